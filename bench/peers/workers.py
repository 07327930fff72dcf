"""The peers, as seen by the process that sends them jobs."""

from __future__ import annotations

import abc
import contextlib
import http.client
import importlib.util
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from bench.jobs import OWNER
from bench.timing import Timing
from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.embedded import EmbeddedServer
from tests.support import ROOT

from .work import MEASURED

#: The seconds that a worker may take to start, and a job to end.
PATIENCE = 30.0


class Peer(abc.ABC):
    """Software that runs jobs and shows their progress.

    Attributes:
      name: Its name in tables, and the first segment of its paths on the web server.
      call: The call that reports progress.
      needs: The packages that it requires.
      command: The command of its worker, after ``python -m``.
      page: The path at which the web server shows a job, with {} for its id, or ""
        if it does not show them.
    """

    name = ""
    call = ""
    needs: Sequence[str] = ()
    command: Sequence[str] = ()
    page = ""

    def __init__(self, broker: str, state: str) -> None:
        self.broker = broker
        self.state = state

    @classmethod
    def missing(cls) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in cls.needs if importlib.util.find_spec(name) is None]

    @abc.abstractmethod
    def send(self, task: str, *args: Any) -> str:
        """Send a job and return its id."""

    @abc.abstractmethod
    def is_done(self, job: str) -> bool:
        """Return whether a job has ended."""

    def wait(self, *jobs: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(map(self.is_done, jobs)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not come to an end")
            time.sleep(0.02)

    def path(self, job: str) -> str:
        """Return the path at which the web server shows a job."""
        return self.page.format(job)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Run a worker, and wait until it works."""
        with _process(self.command, self.broker, self.state):
            self.wait(self.send("take_steps", 1, 0.0))
            yield

    def updates(self, count: int) -> tuple[Timing, Timing]:
        """Return the timings of an update in a job, and of an `HSET` there."""
        with redis.Redis.from_url(self.broker) as client:
            self.wait(self.send("measure_updates", count))
            theirs, floor = json.loads(client.lpop(MEASURED) or "")
        return Timing(theirs), Timing(floor)


class Ours(Peer):
    name = "ours"
    call = "set_progress"
    command = (
        *("dramatiq", "bench.peers.dramatiq_worker"),
        *("--processes", "1", "--threads", "1"),
    )
    page = "/ours/job_state/{}"

    def __init__(self, broker: str, state: str) -> None:
        super().__init__(broker, state)
        middleware = JobStateMiddleware(url=state)
        dramatiq_broker = RedisBroker(url=broker)
        dramatiq_broker.add_middleware(middleware)
        self._store = middleware.store_for(dramatiq_broker)

        @dramatiq.actor(broker=dramatiq_broker)
        def work(name: str, args: list[Any], *, job_state: JobState) -> None:
            """Runs in the worker."""

        self._work = work

    def send(self, task: str, *args: Any) -> str:
        message = self._work.send_with_options(args=(task, args), job_owner=OWNER)
        return str(message.message_id)

    def is_done(self, job: str) -> bool:
        job_state = self._store.load(job)
        return job_state is not None and job_state.is_finished


class CeleryProgress(Peer):
    name = "celery-progress"
    call = "ProgressRecorder.set_progress"
    needs = ("celery", "celery_progress", "django")
    command = (
        *("celery", "-A", "bench.peers.celery_worker", "worker"),
        *("--concurrency", "1", "--loglevel", "ERROR"),
    )
    page = "/celery-progress/{}/"

    def __init__(self, broker: str, state: str) -> None:
        super().__init__(broker, state)
        from celery import Celery

        self._app = Celery(broker=broker, backend=state)

    def send(self, task: str, *args: Any) -> str:
        job = str(uuid.uuid4())
        self._app.send_task("work", args=(task, args), task_id=job, ignore_result=False)
        return job

    def is_done(self, job: str) -> bool:
        return bool(self._app.AsyncResult(job).ready())


class RQ(Peer):
    name = "RQ"
    call = "job.save_meta"
    needs = ("rq",)
    command: Sequence[str] = ("rq.cli", "worker", "--quiet", "--url")

    def __init__(self, broker: str, state: str) -> None:
        # RQ keeps everything in one server.
        super().__init__(broker, state)
        self.command = (*self.command, state)
        from rq import Queue

        self._queue = Queue(connection=redis.Redis.from_url(state))

    def send(self, task: str, *args: Any) -> str:
        function = "bench.peers.rq_worker.work"
        return str(self._queue.enqueue(function, task, args).id)

    def is_done(self, job: str) -> bool:
        found = self._queue.fetch_job(job)
        return found is not None and found.is_finished


@contextlib.contextmanager
def peers(
    state: EmbeddedServer, *classes: type[Peer]
) -> Iterator[tuple[list[Peer], list[str]]]:
    """Yield the peers that are installed, and a line for each that is not."""
    found = [cls for cls in classes if not cls.missing()]
    left_out = [
        f"{cls.name} is left out. Not installed: {', '.join(cls.missing())}. "
        'See the extra "benchmarks".'
        for cls in classes
        if cls.missing()
    ]
    with EmbeddedServer() as broker:
        yield [cls(broker.url, state.url) for cls in found], left_out


@contextlib.contextmanager
def _process(
    command: Sequence[str], broker: str, state: str, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    environ = {
        **os.environ,
        "BENCHMARK_BROKER": broker,
        "BENCHMARK_STATE": state,
        "PYTHONWARNINGS": "ignore",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environ,
        **{**quiet, **options},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def web_server(state: EmbeddedServer) -> Iterator[http.client.HTTPConnection]:
    """Yield a connection to a web server that shows the jobs of all peers."""
    command = ["bench.peers.web"]
    with _process(command, "", state.url, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout:
            port = int(process.stdout.readline())
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                yield connection


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    """Return the response body of a path, as the jobs' owner sees it."""
    connection.request("GET", path, headers={"X-User": OWNER})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise RuntimeError(f"{path} gave {response.status}")
    return body
