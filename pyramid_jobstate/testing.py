"""Helpers for testing applications.

* ``config.include("pyramid_jobstate.testing")`` collects the messages that views send
  in an :func:`outbox`, even if the transaction is never committed.
* :func:`detached` returns a JobState to call an actor with; :func:`values` and
  :func:`history` return what the actor reported, in order.
* :func:`put_job` creates a job in any status, for testing a page.

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
      message: The Dramatiq message.
      job_state: The JobState that the view received.
    """

    message: Message[Any]
    job_state: JobState


class Outbox(list[Sent]):
    """The messages that the views of an application have sent, in order."""

    def keep(self, outgoing: Outgoing) -> None:
        self.extend(map(Sent, outgoing.messages, outgoing.job_states))


def includeme(config: Configurator) -> None:
    """Collect the messages that views send in an outbox.

    Messages are validated as usual, but neither written nor sent, whether the
    transaction commits or aborts. Therefore the broker's middleware and the
    application may use different stores.

    Include this module before or after the package itself, for example with the
    setting ``pyramid.includes``.
    """
    from .web import IOutbox

    config.registry.registerUtility(Outbox(), IOutbox)


def outbox(registry: Registry) -> Outbox:
    """Return the messages that the views of an application have sent so far.

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
            "The application has no outbox. Call "
            'config.include("pyramid_jobstate.testing").'
        )
    return found


class RecordingRun(Run):
    """A run that keeps every reported value, not only the latest."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[Any, ...]] = []

    def _set_metrics(self, values: Mapping[str, object]) -> None:
        super()._set_metrics(values)
        # Known names bypass this method: forget them to record every call.
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
        lines: Any = self.report["log"]
        self.history.append(("log", lines[-1]))


def detached(
    job_state_class: type[AnyJobState] = JobState,  # type: ignore[assignment]
    /,
    **params: Any,
) -> AnyJobState:
    """Return a JobState to call an actor with: ``run_marathon(26, job_state=...)``.

    Parameters:
      job_state_class: The JobState class of the actor.
      params: The `job_params` of the JobState.
    """
    info = JobInfo(job_state_class.kind, "", 1, None, dumps(params))
    record = Record(str(uuid.uuid4()), info.fields(), "working")
    return job_state_class(record, RecordingRun())


def history(job_state: JobState) -> list[tuple[Any, ...]]:
    """Return every report to a :func:`detached` JobState, in order: ("metric", name,
    value), ("progress", done, total, unit), ("message", text) or ("log", line).

    Raises:
      TypeError: The JobState was not created by :func:`detached`.
    """
    run = run_of(job_state)
    if not isinstance(run, RecordingRun):
        raise TypeError(f"{job_state!r} was not created by detached().")
    return run.history


def values(job_state: JobState, name: str) -> list[Any]:
    """Return every value reported for one metric of a :func:`detached` JobState, in
    order.

    Raises:
      TypeError: The JobState was not created by :func:`detached`.
    """
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
    """Store a job in the given status, as a worker would, and return it.

    Parameters:
      store: The store to write to.
      job_state_class: The JobState class of the job.
      status: Any status of a job.
      actor: The name of the actor.
      owner: The owner of the job, or None.
      params: The values that were sent, by the names of the parameters.
      metrics, progress, message, log: The values that the job has reported; ignored for
        "queued".
      error: Why the job failed, was cancelled or is retried.
      attempt: The number of the attempt, from 1.
      delay: Seconds until the job is due, for "queued" and "retrying".

    Raises:
      ValueError: The status is unknown, or a metric is invalid.
    """
    if status not in UNFINISHED + FINISHED:
        known = ", ".join(UNFINISHED + FINISHED)
        raise ValueError(f"Unknown status {status!r}. Use one of: {known}.")
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
