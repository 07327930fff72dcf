"""Jobs that do what the test says, in a worker in this process."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dramatiq

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import RunMarathon, make_broker, store_of, working
from tests.support import load_job, wait_for


class Run:
    """A job that runs until the test ends it."""

    def __init__(self, store: JobStore, uuid: str) -> None:
        self.uuid = uuid
        self.is_over = False
        self._store = store
        self._orders: queue.SimpleQueue[Callable[[JobState], object] | None]
        self._orders = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def live(self, job_state: JobState) -> None:
        """Do what the test says, until it says no more."""
        try:
            while (order := self._orders.get()) is not None:
                order(job_state)
                self._replies.put(job_state.flush())
        finally:
            self.is_over = True

    def do(self, act: Callable[[JobState], object]) -> bool:
        """Have the job do something. Return whether the store has what it reported."""
        self._orders.put(act)
        return self._replies.get(timeout=20)

    def report(self, **metrics: Any) -> bool:
        """Have the job report metrics. Return whether the store has them."""
        return self.do(lambda job_state: job_state.set_progress_metrics(metrics))

    def succeed(self) -> None:
        self._orders.put(None)

    def fail(self, error: BaseException) -> None:
        def act(job_state: JobState) -> None:
            raise error

        self._orders.put(act)

    def end(self, error: BaseException | None = None) -> None:
        """Let the job succeed, or fail, and wait until its record says so."""
        if error is None:
            self.succeed()
        else:
            self.fail(error)
        self.wait_until("success" if error is None else "error")

    def wait_until(self, status: str) -> None:
        wait_for(lambda: load_job(self._store, self.uuid).status == status)


class Runs:
    """A worker, and the jobs in it."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        self.broker = broker
        self.store = store_of(broker)
        self._lock = threading.Lock()
        self._actors: dict[type[JobState], dramatiq.Actor[..., Any]] = {}
        self.all: dict[str, Run] = {}

    def actor(self, kind: type[JobState]) -> dramatiq.Actor[..., Any]:
        with self._lock:
            if kind not in self._actors:
                options: Any = {"broker": self.broker, "job_state": kind}
                # What is expected is not logged.
                options |= {"max_retries": 0, "throws": ValueError}
                declare = dramatiq.actor(actor_name=kind.kind, **options)
                self._actors[kind] = declare(self._live)
            return self._actors[kind]

    def start(
        self,
        kind: type[JobState] = RunMarathon,
        owner: Any = "alice",
        options: Mapping[str, Any] = {},
        **metrics: Any,
    ) -> Run:
        """Return a job that runs, and has reported metrics."""
        actor = self.actor(kind)
        options = {"job_owner": owner, "args": (26,), **options}
        return self.begin(actor.message_with_options(**options), **metrics)

    def begin(self, message: dramatiq.Message[Any], **metrics: Any) -> Run:
        """Return the job of a message, once it runs."""
        run = self.all[message.message_id] = Run(self.store, message.message_id)
        self.broker.enqueue(message)
        assert run.report(**metrics)
        return run

    def _live(self, miles: int, *, job_state: Any = None) -> None:
        self.all[job_state.uuid].live(job_state)


@contextlib.contextmanager
def running(
    url: str, threads: int = 8, store: JobStore | None = None, cls: type[Runs] = Runs
) -> Iterator[Runs]:
    """Run a worker, with its broker at a URL, and its store if that is not given."""
    broker = make_broker(url, JobStateMiddleware(store))
    with working(broker, threads):
        runs = cls(broker)
        try:
            yield runs
        finally:
            for run in runs.all.values():
                run.succeed()
