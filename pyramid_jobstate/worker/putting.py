"""Stores a job in any status, as a worker would, for the tests of a page."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..job import (
    CANCELLED,
    FINISHED,
    MAX_DELAY,
    UNFINISHED,
    Batch,
    End,
    JobError,
    JobInfo,
    JobState,
    NewJob,
    Progress,
    Run,
    dumps,
)
from ..store import JobStore, type_name
from .options import check_delay, check_owner
from .unsaved import Unsaved


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
      delay: Seconds until the job is due, for "queued" and "retrying": at most
        100,000,000,000.

    Raises:
      TypeError: An argument has the wrong type, or the class is that of a batch.
      ValueError: The status is unknown, a metric is invalid, or the attempt or the
        delay is out of range.
    """
    if not isinstance(store, JobStore):
        # Without the value: a URL may contain a password.
        raise TypeError(f"store must be a JobStore, not {type_name(store)}.")
    check_class(job_state_class)
    if issubclass(job_state_class, Batch):
        raise TypeError(
            "put_job() makes no batches. Send one with request.job_states.batch()."
        )
    if status not in UNFINISHED + FINISHED:
        known = ", ".join(UNFINISHED + FINISHED)
        raise ValueError(f"Unknown status {status!r}. Use one of: {known}.")
    _check("actor", actor, str, "a str")
    check_owner(owner)
    _check("params", params, Mapping | None, "a dict of values by name")
    _check("metrics", metrics, Mapping | None, "a dict of values by name")
    _check("progress", progress, Progress | None, "a Progress")
    if isinstance(log, str):
        raise TypeError(f"log must be a list of lines, not the string {log!r}.")
    _check("error", error, JobError | None, "a JobError")
    if isinstance(attempt, bool) or not isinstance(attempt, int):
        raise TypeError(f"attempt must be an int, not {attempt!r}.")
    if attempt < (status != "queued"):
        raise ValueError(f"attempt must be 1 or more, not {attempt}.")
    check_delay(delay, "seconds", MAX_DELAY // 1000)
    delay = max(0.0, delay)
    job = str(uuid.uuid4())
    encoded = None if owner is None else dumps(owner)
    info = JobInfo(job_state_class.kind, actor, attempt, encoded, dumps(params or {}))
    waiting = info._replace(attempt=0)
    store.create(NewJob(job, waiting, delay if status == "queued" else 0.0))
    store.confirm(job, info.kind)
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


def check_class(job_state_class: object) -> None:
    """Check the class of a job that a test makes.

    Raises:
      TypeError: It is not a JobState class.
    """
    if not (
        isinstance(job_state_class, type) and issubclass(job_state_class, JobState)
    ):
        raise TypeError(
            f"job_state_class must be a JobState class, not {job_state_class!r}."
        )


def _check(name: str, value: object, kinds: Any, wanted: str) -> None:
    """Check the type of an argument.

    Raises:
      TypeError: It is wrong.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {wanted}, not {value!r}.")
