"""Helpers for the tests of applications.

* ``config.include("pyramid_jobstate.testing")``: what views send is kept in
  :func:`outbox`, also in a transaction that is never committed.
* :func:`detached`: a JobState to call an actor with; :func:`values` and
  :func:`history`: what the actor has reported, in order.
* :func:`put_job`: a job in any state, to test a page with.

The pytest fixtures are in :mod:`pyramid_jobstate.fixtures`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .job import (
    CANCELLED,
    FINISHED,
    UNFINISHED,
    End,
    JobError,
    JobInfo,
    JobState,
    NewJob,
    Progress,
    Record,
    Run,
    dumps,
    loads,
    run_of,
)
from .worker import Unsaved

if TYPE_CHECKING:
    from dramatiq import Message
    from pyramid.config import Configurator
    from pyramid.registry import Registry

    from .store import JobStore
    from .web import Outgoing

T = TypeVar("T")
AnyJobState = TypeVar("AnyJobState", bound=JobState)


class Sent(NamedTuple):
    """A message that a view has sent.

    Attributes:
      message: The message.
      job_state: The job, as the view got it.
    """

    message: Message[Any]
    job_state: JobState


class Outbox(list[Sent]):
    """What the views of an application have sent, in order."""

    def keep(self, outgoing: Outgoing) -> None:
        self.extend(map(Sent, outgoing.messages, outgoing.job_states))


def includeme(config: Configurator) -> None:
    """Keep what views send in an outbox. It is checked as in earnest, but neither
    written nor sent, whatever becomes of the transaction. So the middleware of the
    broker may have another store than the application.

    Include it before or after the package itself, for instance by the setting
    ``pyramid.includes``.
    """
    from .web import IOutbox

    config.registry.registerUtility(Outbox(), IOutbox)


def outbox(registry: Registry) -> Outbox:
    """Return what the views of an application have sent so far.

    Parameters:
      registry: The application's registry, such as ``app.app.registry`` of a WebTest
        ``TestApp``.

    Raises:
      LookupError: The application has not included this module.
    """
    from .web import IOutbox

    found: Outbox | None = registry.queryUtility(IOutbox)
    if found is None:
        raise LookupError(
            'There is no outbox. Call config.include("pyramid_jobstate.testing").'
        )
    return found


class RecordingRun(Run):
    """A run that keeps every value, not only the latest."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[Any, ...]] = []

    def _set_metrics(self, values: Mapping[str, object]) -> None:
        super()._set_metrics(values)
        # With no name known every call comes here.
        self.known.clear()
        for name in values:
            value = self.metrics[name]
            plain = loads(value) if isinstance(value, str) else value
            self.history.append(("metric", name, plain))

    def set_progress(
        self, done: float, total: float | None, unit: str | None, message: str | None
    ) -> None:
        super().set_progress(done, total, unit, message)
        self.history.append(("progress", done, total, unit))
        if message is not None:
            self.history.append(("message", message))

    def steps(
        self, iterable: Iterable[T], total: float | None, unit: str | None
    ) -> Iterator[T]:
        done = 0
        for item in super().steps(iterable, total, unit):
            if done:
                self.history.append(("progress", done, total, unit))
            yield item
            done += 1
        if done:
            self.history.append(("progress", done, total, unit))

    def step(self, done: int, total: float | None, unit: str | None) -> None:
        super().step(done, total, unit)
        self.history.append(("progress", done, total, unit))

    def set_message(self, text: str | None) -> None:
        super().set_message(text)
        self.history.append(("message", text))

    def append_log(self, line: str) -> None:
        super().append_log(line)
        self.history.append(("log", self._lines[-1]))


def detached(
    job_state_class: type[AnyJobState] = JobState,  # type: ignore[assignment]
    /,
    **params: Any,
) -> AnyJobState:
    """Return a JobState to call an actor with: ``run_marathon(26, job_state=...)``.

    Parameters:
      job_state_class: The class of the actor's jobs.
      params: What its `job_params` are to be.
    """
    info = JobInfo(job_state_class.kind, "", 1, None, dumps(params))
    record = Record(str(uuid.uuid4()), info.fields(), "working")
    return job_state_class(record, RecordingRun())


def history(job_state: JobState) -> list[tuple[Any, ...]]:
    """Return all that was reported to a :func:`detached` JobState, in order: ("metric",
    name, value), ("progress", done, total, unit), ("message", text), ("log", line).

    Raises:
      TypeError: The JobState is another.
    """
    run = run_of(job_state)
    if not isinstance(run, RecordingRun):
        raise TypeError(f"{job_state!r} does not come from detached().")
    return run.history


def values(job_state: JobState, name: str) -> list[Any]:
    """Return every value that a metric of a :func:`detached` JobState had, in order."""
    return [entry[2] for entry in history(job_state) if entry[:2] == ("metric", name)]


def cancel(job_state: JobState) -> None:
    """Make the next call of a :func:`detached` JobState raise JobCancelled."""
    run_of(job_state).cancel()


def put_job(
    store: JobStore,
    job_state_class: type[JobState] = JobState,
    status: str = "working",
    *,
    actor: str = "",
    owner: str | float | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    message: str | None = None,
    log: Sequence[str] = (),
    error: JobError | None = None,
    attempt: int = 1,
    delay: float = 0.0,
) -> JobState:
    """Put a job into a state, as a worker would have, and return it.

    Parameters:
      store: Where to.
      status: Any status that a job can have.
      error: Why it failed, was cancelled or is retried.
      attempt: Which try it is at.
      delay: Seconds until it is due, for "queued" and "retrying".

    Raises:
      ValueError: No job can have this status.
    """
    if status not in UNFINISHED + FINISHED:
        known = ", ".join(UNFINISHED + FINISHED)
        raise ValueError(f"There is no status {status!r}. There are: {known}.")
    job = str(uuid.uuid4())
    encoded = None if owner is None else dumps(owner)
    info = JobInfo(job_state_class.kind, actor, attempt, encoded, dumps(params or {}))
    waiting = info._replace(attempt=0)
    store.create(NewJob(job, waiting, delay if status == "queued" else 0.0))
    store.confirm(job)
    if status != "queued":
        run = Run()
        run.set_metrics(metrics or {})
        if progress is not None:
            run.set_progress(*progress[:3], None)
        run.set_message(message)
        for line in log:
            run.append_log(line)
        unsaved = Unsaved(job, run, info)
        update = unsaved.take(time.monotonic())
        if status == "stalled":
            update.fields["seen"] = "0"
        store.write([update])
        if status == "cancelling":
            store.cancel(job, info)
        elif status not in ("working", "stalled"):
            if error is None and status == "cancelled":
                error = CANCELLED
            put_back = delay if status == "retrying" else None
            unsaved.end = End(status, error, put_back)
            unsaved.mark_stored(time.monotonic())
            store.write([unsaved.take(time.monotonic())])
    job_state = store.load(job)
    assert job_state is not None
    return job_state
