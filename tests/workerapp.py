"""The worker processes of the tests: ``python -m dramatiq tests.workerapp``.

They read the URLs of their servers from the environment.
"""

import multiprocessing
import os
import time

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore

BROKER_URL = os.environ["BROKER_URL"]
STORE_URL = os.environ["STORE_URL"]

#: The seconds of silence after which a job reads stalled.
STALLED_AFTER = 1.5

# A dead worker's messages are redelivered soon.
broker = RedisBroker(
    url=BROKER_URL, heartbeat_timeout=2000, maintenance_chance=1_000_000
)
store = JobStore(STORE_URL, stalled_after=STALLED_AFTER)
broker.add_middleware(JobStateMiddleware(store, interval=0.05, heartbeat=0.2))
dramatiq.set_broker(broker)

client = redis.Redis.from_url(BROKER_URL)


def wait_at_gate() -> None:
    """Wait until the test opens the gate."""
    deadline = time.monotonic() + 60
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


@dramatiq.actor(notify_shutdown=True)
def run_until_shutdown(*, job_state: JobState) -> None:
    job_state.set_progress_metric("pid", os.getpid())
    try:
        wait_at_gate()
    finally:
        job_state.set_progress_metric("swept", True)


@dramatiq.actor(max_retries=0)
def fork(*, job_state: JobState) -> None:
    def work() -> None:
        try:
            job_state.set_progress_metric("child", "reported")
        except RuntimeError:
            os._exit(3)
        os._exit(0)

    job_state.set_progress_metric("before", True)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    job_state.set_progress_metric("exit_code", child.exitcode)
