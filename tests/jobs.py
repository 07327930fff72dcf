"""A broker with its worker in this process, for the tests of the worker side."""

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, default_middleware

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.support import load_job, wait_for

R = TypeVar("R")


class RunMarathon(JobState):
    """The kind of job that the tests use."""

    public_params = ("miles",)


def make_broker(
    url: str,
    middleware: JobStateMiddleware | None = None,
    *,
    before: type[Middleware] | None = None,
    without: type[Middleware] | None = None,
    others: tuple[Middleware, ...] = (),
) -> RedisBroker:
    """Return a broker with the middleware after Dramatiq's own, or before one of them,
    or with one of them left out.
    """
    own = [m() for m in default_middleware if m is not without]
    broker = RedisBroker(url=url, middleware=[*own, *others])
    broker.add_middleware(middleware or JobStateMiddleware(), before=before)
    return broker


def store_of(broker: dramatiq.Broker) -> JobStore:
    (ours,) = (m for m in broker.middleware if isinstance(m, JobStateMiddleware))
    return ours.store_for(broker)


def load(broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> JobState:
    return load_job(store_of(broker), message.message_id)


def wait_until(
    broker: dramatiq.Broker,
    message: dramatiq.Message[Any],
    *statuses: str,
    timeout: float = 20.0,
) -> JobState:
    """Wait until a job has one of the statuses, and return it."""

    def reached() -> JobState | None:
        state = store_of(broker).load(message.message_id)
        return state if state is not None and state.status in statuses else None

    return wait_for(reached, timeout)


@contextlib.contextmanager
def working(broker: dramatiq.Broker, threads: int = 4) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout=10_000)


def job_actor(**options: Any) -> Callable[[Callable[..., R]], dramatiq.Actor[..., R]]:
    """Declare an actor as `dramatiq.actor` does, but typed so that its messages may
    omit `job_state`, which the worker passes.
    """
    return dramatiq.actor(**options)


class Gate:
    """A gate at which a job waits until the test opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)

    def wait_for_job(self) -> None:
        assert self.reached.wait(30)

    def open(self) -> None:
        self.opened.set()


class Alarm(Middleware):
    """Holds delayed messages until the test rings. Then they are due at once."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def before_delay_message(self, broker: Any, message: Any) -> None:
        assert self._rung.wait(30)
        message.options["eta"] = 0

    def ring(self) -> None:
        self._rung.set()


def messages(caplog: Any, logger: str, level: int = logging.WARNING) -> list[str]:
    """Return what a logger and its children have logged."""
    records = [r for r in caplog.records if r.name.startswith(logger)]
    return [r.getMessage() for r in records if r.levelno >= level]


def new_id() -> str:
    return str(uuid.uuid4())
