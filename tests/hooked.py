"""Jobs whose class has hooks, and the worker processes of their tests. These are forked
by one that has imported everything, ``python -m tests.hooked``: it takes little time to
start many.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import Middleware, Retries

from pyramid_jobstate import Batch, JobState, JobStateMiddleware, JobStore
from tests.support import ROOT, unmeasured
from tests.workerprocess import STALLED_AFTER, make_broker

#: Where a worker may die: before a hook's message has left or as it has, and so on.
PLACES = ("before sending", "sent", "taken", "inside", "returned")


class Journaling:
    """Writes down in a journal how its jobs end."""

    def on_success(self) -> None:
        note(self, "on_success")

    def on_error(self) -> None:
        note(self, "on_error")


class Crossing(Journaling, JobState):
    """A job whose ends are written down."""

    def on_cancelled(self) -> None:
        note(self, "on_cancelled")


class Convoy(Journaling, Batch):
    """A batch whose ends are written down, too."""


def note(job_state: Any, hook: str) -> None:
    """Write an end down, the status that others see then, and whether the job has been
    queued or has begun again.
    """
    status, is_newer = None, False
    if seen := JobStore(os.environ["STORE"]).load(job_state.uuid):
        status, ended = seen.status, job_state.finished_at
        since = [time for time in (seen.queued_at, seen.started_at) if time]
        is_newer = ended is not None and max(since) >= ended
    line = [hook, job_state.uuid, moment(job_state), status, is_newer]
    _client(os.environ["JOURNAL"]).rpush("journal", json.dumps(line))
    die("inside", job_state.uuid)


def moment(job_state: JobState) -> int:
    """Return when a job has ended, in milliseconds."""
    ended = job_state.finished_at
    return 0 if ended is None else round(ended.timestamp() * 1000)


class Trap(Middleware):
    """Kills the worker where it was told to die."""

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._spring("before sending", message)

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._spring("sent", message)

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._spring("taken", message)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        self._spring("returned", message)

    def _spring(self, place: str, message: Any) -> None:
        if message.actor_name == "jobstate_hook":
            die(place, message.args[0])


def die(place: str, uuid: str) -> None:
    """Die here if this worker was told to."""
    if os.environ.get("DEATH") == f"{place} {uuid}":
        os.kill(os.getpid(), signal.SIGKILL)


def declare(broker: dramatiq.Broker) -> dramatiq.Actor[..., Any]:
    """Declare an actor that does as it is told, once a gate is open."""

    @dramatiq.actor(broker=broker, max_retries=1)
    def cross(plan: str = "success", gate: str = "", *, job_state: Crossing) -> None:
        journal = _client(os.environ["JOURNAL"])
        while gate and not journal.exists(gate):
            job_state.set_progress_metric("at", time.time())
            time.sleep(0.01)
        if plan == "error" or (plan == "retry" and job_state.attempt == 1):
            raise ValueError("a storm")

    return cross


def make_hooked_broker(url: str, store_url: str) -> dramatiq.Broker:
    """Return a broker whose workers soon look for ends, and try hooks again."""
    broker: dramatiq.Broker
    if url.startswith("redis:"):
        broker = make_broker(url, store_url)
    else:
        broker = RabbitmqBroker(url=url, confirm_delivery=True)
        store = JobStore(store_url, stalled_after=STALLED_AFTER)
        broker.add_middleware(JobStateMiddleware(store, interval=0.05, heartbeat=0.2))
    (retries,) = (m for m in broker.middleware if isinstance(m, Retries))
    retries.min_backoff = retries.max_backoff = 50
    return broker


class Workers:
    """Starts worker processes, and kills them."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.hooked"],
                cwd=ROOT,
                # How soon a worker asks a broker again that was away.
                env={**unmeasured(), "dramatiq_restart_delay": "100"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )

    def start(self, **environ: str) -> int:
        """Start a worker, and return its process id. `environ` has the URLs BROKER,
        STORE and JOURNAL, and perhaps THREADS, and DEATH: a place and a job's uuid.
        """
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps(environ).encode() + b"\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def lines(self, text: str) -> list[str]:
        """Return the lines that the workers have logged with a text in them."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if text in line]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._parent.pid, signal.SIGKILL)
        self._parent.communicate()


def kill(pid: int) -> None:
    """Kill a worker, which may be dead."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@functools.cache
def _client(url: str) -> Any:
    return redis.Redis.from_url(url)


def _work(environ: dict[str, str]) -> None:
    os.environ.update(environ)
    logging.basicConfig(level=logging.INFO)
    broker = make_hooked_broker(environ["BROKER"], environ["STORE"])
    broker.add_middleware(Trap())
    declare(broker)
    threads = int(environ.get("THREADS", "1"))
    dramatiq.Worker(broker, worker_timeout=20, worker_threads=threads).start()
    signal.pause()


def main() -> None:
    """Fork a worker for each line, until there are no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _work(json.loads(line))
        print(pid, flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
