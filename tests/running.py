"""Jobs that do what the test says, in a worker in this process."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import RunMarathon, make_broker, working


class Run:
    """A job that runs until the test ends it."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.is_over = False
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


class Runs:
    """A worker, and the jobs in it."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._actors: dict[type[JobState], dramatiq.Actor[..., Any]] = {}
        self.all: dict[str, Run] = {}

    def start(
        self, kind: type[JobState] = RunMarathon, owner: Any = "alice", **metrics: Any
    ) -> Run:
        """Return a job that runs, and has reported metrics."""
        with self._lock:
            if kind not in self._actors:
                options: Any = {"broker": self._broker, "job_state": kind}
                declare = dramatiq.actor(actor_name=kind.kind, max_retries=0, **options)
                self._actors[kind] = declare(self._live)
            actor = self._actors[kind]
        message = actor.message_with_options(job_owner=owner, args=(26,))
        run = self.all[message.message_id] = Run(message.message_id)
        self._broker.enqueue(message)
        assert run.report(**metrics)
        return run

    def _live(self, miles: int, *, job_state: Any = None) -> None:
        self.all[job_state.uuid].live(job_state)


@contextlib.contextmanager
def running(
    url: str, threads: int = 8, store: JobStore | None = None
) -> Iterator[Runs]:
    """Run a worker, with its broker at a URL, and its store if that is not given."""
    broker = make_broker(url, JobStateMiddleware(store))
    with working(broker, threads):
        runs = Runs(broker)
        try:
            yield runs
        finally:
            for run in runs.all.values():
                run.succeed()
