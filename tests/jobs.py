"""A broker with its worker in this process, for the tests of the worker's side."""

import contextlib
import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, default_middleware

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.support import wait_for


class RunMarathon(JobState):
    """The kind of job that the tests are about."""

    public_params = ("miles",)


def make_broker(
    url: str,
    middleware: JobStateMiddleware | None = None,
    *,
    before: type[Middleware] | None = None,
    without: type[Middleware] | None = None,
    others: tuple[Middleware, ...] = (),
) -> RedisBroker:
    """Return a broker with the middleware appended to Dramatiq's own, or before one of
    them, or with one of those left out.
    """
    own = [m() for m in default_middleware if m is not without]
    broker = RedisBroker(url=url, middleware=[*own, *others])
    broker.add_middleware(middleware or JobStateMiddleware(), before=before)
    return broker


def store_of(broker: dramatiq.Broker) -> JobStore:
    """Return the store of a broker's middleware."""
    for middleware in broker.middleware:
        if isinstance(middleware, JobStateMiddleware):
            return middleware.store_for(broker)
    raise AssertionError("The broker has no JobStateMiddleware.")


def load(broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> JobState:
    """Return the state of a message's job."""
    state = store_of(broker).load(message.message_id)
    assert state is not None
    return state


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

    return wait_for(reached, timeout)  # type: ignore[return-value]


@contextlib.contextmanager
def working(broker: dramatiq.Broker, threads: int = 4) -> Iterator[dramatiq.Worker]:
    """Run a worker."""
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout=10_000)


class Gate:
    """What a job waits at until the test opens it."""

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


def messages(caplog: Any, logger: str, level: int = logging.WARNING) -> list[str]:
    """Return what a logger and those below it have said."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(logger) and record.levelno >= level
    ]


def new_id() -> str:
    return str(uuid.uuid4())
