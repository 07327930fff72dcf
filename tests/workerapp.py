"""The worker processes of the tests: ``python -m dramatiq tests.workerapp``."""

import ctypes
import gc
import os
import threading
import time

import dramatiq
import redis

from pyramid_jobstate import JobState
from tests.workerprocess import make_broker

broker = make_broker(os.environ["BROKER_URL"], os.environ["STORE_URL"])
dramatiq.set_broker(broker)
client = redis.Redis.from_url(os.environ["BROKER_URL"])


def wait_at_gate() -> None:
    """Wait until the test opens the gate."""
    deadline = time.monotonic() + 300
    while not client.exists("gate") and time.monotonic() < deadline:
        time.sleep(0.02)


@dramatiq.actor(max_retries=0)
def run_marathon(*, job_state: JobState) -> None:
    if not client.exists("started"):
        job_state.set_progress_metric("first", True)
        client.set("started", 1)
    job_state.set_progress_metric("pid", os.getpid())
    wait_at_gate()
    job_state.set_progress_metric("done", True)


@dramatiq.actor(max_retries=0)
def hold_the_interpreter(*, job_state: JobState) -> None:
    job_state.set_progress_metric("pid", os.getpid())
    assert job_state.flush()
    # A call into C that does not let other threads run.
    ctypes.PyDLL(None).usleep(1_500_000)
    wait_at_gate()


@dramatiq.actor(notify_shutdown=True)
def run_until_shutdown(*, job_state: JobState) -> None:
    job_state.set_progress_metric("pid", os.getpid())
    try:
        wait_at_gate()
    finally:
        job_state.set_progress_metric("swept", True)


class Own:
    """Has variables of its thread. Only the garbage collector frees it."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.local.owner = self


def begin_threads(over: threading.Event) -> None:
    """Begin threads that end at once, until it is over."""
    while not over.is_set():
        thread = threading.Thread(target=Own)
        thread.start()
        thread.join()


def leave_garbage(over: threading.Event, depth: int = 3) -> None:
    """Leave such objects behind in calls that return soon."""
    if not depth:
        Own()
        time.sleep(0.005)
        return
    leave_garbage(over, depth - 1)
    while depth == 3 and not over.is_set():
        leave_garbage(over, depth - 1)


@dramatiq.actor(max_retries=0)
def keep_the_collector_busy(*, job_state: JobState) -> None:
    gc.set_threshold(20)
    over = threading.Event()
    targets = [begin_threads] * 2 + [leave_garbage] * 20
    threads = [threading.Thread(target=each, args=(over,)) for each in targets]
    for thread in threads:
        thread.start()
    job_state.set_progress_metric("pid", os.getpid())
    wait_at_gate()
    over.set()
    for thread in threads:
        thread.join()
