"""Stores jobs and batches in any status, as workers would, for the tests of a page."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from dramatiq import Message

from ..job import (
    CANCELLED,
    FINISHED,
    MAX_DELAY,
    UNFINISHED,
    Batch,
    End,
    Failure,
    JobError,
    JobInfo,
    JobState,
    Member,
    NewBatch,
    NewJob,
    Progress,
    Run,
    check_weight,
    dumps,
)
from ..store import JobStore, type_name
from .batches import describe
from .message import BATCH, check_delay, check_owner
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
    traceback: str = "",
    attempt: int = 1,
    delay: float = 0.0,
) -> JobState:
    """Store a job in the given status, as a worker would, and return it.

    Parameters:
      store: The store to write to.
      job_state_class: The JobState class of the job.
      status: Any status of a job.
      actor: The name of the actor. With it, a job that failed of an `error` can run
        again.
      owner: The owner of the job, or None.
      params: The values that were sent, by the names of the parameters.
      metrics, progress, message, log: The values that the job has reported; ignored for
        "queued".
      error: Why the job failed, was cancelled or is retried.
      traceback: What operators read of the `error` beside it.
      attempt: The number of the attempt, from 1.
      delay: Seconds until the job is due, for "queued" and "retrying": at most
        100,000,000,000.

    Raises:
      TypeError: An argument has the wrong type, or the class is that of a batch.
      ValueError: The status is unknown, a metric is invalid, or the attempt or the
        delay is out of range.
    """
    _check_store(store)
    put = _Put(
        job_state_class,
        status,
        actor=actor,
        owner=owner,
        params=params,
        metrics=metrics,
        progress=progress,
        message=message,
        log=log,
        error=error,
        traceback=traceback,
        attempt=attempt,
        delay=delay,
    )
    store.records.create(put.job)
    store.records.confirm(put.job.uuid)
    put.move(store)
    job_state = store.load(put.job.uuid)
    assert job_state is not None
    return job_state


def put_batch(
    store: JobStore,
    batch_class: type[Batch] = Batch,
    members: Sequence[str | Mapping[str, Any]] = (),
    *,
    owner: str | float | None = None,
    title: str | None = None,
    allow_failures: bool = False,
) -> Batch:
    """Store a batch and its members, as their sender and the workers would, and return
    it. Its status follows from theirs.

    Parameters:
      store: The store to write to.
      batch_class: The class of the batch.
      members: For each member its status, or a dict with `status` and other arguments
        of :func:`put_job`, and with `weight`, as ``batch.send()`` takes it. The owner
        of a member is by default that of the batch.
      owner: The owner of the batch, or None.
      title: The title of this batch, or None for that of its class.
      allow_failures: Whether it succeeds even if members fail.

    Raises:
      TypeError: An argument has the wrong type or an unknown name.
      ValueError: One is out of range, as for :func:`put_job`.
    """
    _check_store(store)
    info, fields = describe(
        batch_class, title, check_owner(owner), allow_failures=allow_failures
    )
    if isinstance(members, str):
        raise TypeError(f"members must be a list of statuses, not {members!r}.")
    batch, puts, weights = str(uuid.uuid4()), [], []
    for member in members:
        options = {"status": member} if isinstance(member, str) else {**member}
        weights.append(check_weight(options.pop("weight", 1)))
        puts.append(_Put(**{"owner": owner, **options}, batch=batch))
    jobs = [put.job for put in puts]
    weighed = [*map(Member, jobs, weights)]
    records = store.records
    records.batches.open(NewBatch(batch, info, fields, secrets.token_hex(6), weighed))
    records.create_new(*jobs, tells=False)
    records.confirm_members(jobs)
    for put in puts:
        put.move(store)
    job_state = store.load(batch)
    assert isinstance(job_state, Batch)
    return job_state


class _Put:
    """A job to be stored: see :func:`put_job`.

    Parameters:
      batch: The uuid of its batch, or None.

    Attributes:
      job: What its sender writes.
    """

    def __init__(
        self,
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
        traceback: str = "",
        attempt: int = 1,
        delay: float = 0.0,
        batch: str | None = None,
    ) -> None:
        check_class(job_state_class)
        if issubclass(job_state_class, Batch):
            raise TypeError("put_job() makes no batches. Use put_batch().")
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
        _check("traceback", traceback, str, "a str")
        if isinstance(attempt, bool) or not isinstance(attempt, int):
            raise TypeError(f"attempt must be an int, not {attempt!r}.")
        if attempt < (status != "queued"):
            raise ValueError(f"attempt must be 1 or more, not {attempt}.")
        check_delay(delay, "seconds", MAX_DELAY // 1000)
        self._delay = max(0.0, delay)
        encoded = None if owner is None else dumps(owner)
        self._info = JobInfo(
            job_state_class.kind,
            actor,
            attempt,
            encoded,
            dumps(params or {}),
            batch=batch,
        )
        self._status = status
        self._error = CANCELLED if error is None and status == "cancelled" else error
        self._traceback = traceback
        self._run = Run()
        if status != "queued":
            self._run.set_metrics(metrics or {})
            if progress is not None:
                self._run.set_progress(*progress[:3], None)
            self._run.set_message(message)
            for line in log:
                self._run.append_log(line)
        self.job = NewJob(
            str(uuid.uuid4()),
            self._info._replace(attempt=0),
            self._delay if status == "queued" else 0.0,
            sender="" if batch is None else secrets.token_hex(6),
        )

    def move(self, store: JobStore) -> None:
        """Bring the job, which waits, to its status."""
        status = self._status
        if status == "queued":
            return
        unsaved = Unsaved(self.job.uuid, self._run, self._info)
        update = unsaved.take(time.monotonic())
        if status == "stalled":
            update.fields["seen"] = "0"
        store.records.write([update])
        if status == "cancelling":
            store.records.cancel(self.job.uuid, self._info)
        elif status not in ("working", "stalled"):
            put_back = self._delay if status == "retrying" else None
            failure = self._failure() if status in ("error", "retrying") else None
            unsaved.end = End(status, self._error, put_back, failure=failure)
            unsaved.mark_stored(time.monotonic())
            store.records.write([unsaved.take(time.monotonic())])

    def _failure(self) -> Failure:
        """Return what is kept of a failure."""
        info = self._info
        if self._status != "error" or not info.actor:
            return Failure("", "", self._traceback)
        options = {"job_owner": None if info.owner is None else json.loads(info.owner)}
        if info.batch is not None:
            options[BATCH] = info.batch
        message: Message[Any] = Message(
            "default", info.actor, (), json.loads(info.params), options, self.job.uuid
        )
        return Failure(dumps({**message.asdict(), "args": []}), "", self._traceback)


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


def _check_store(store: object) -> None:
    """Check the store of a job that a test makes.

    Raises:
      TypeError: It is not a JobStore.
    """
    if not isinstance(store, JobStore):
        # Without the value: a URL may contain a password.
        raise TypeError(f"store must be a JobStore, not {type_name(store)}.")


def _check(name: str, value: object, kinds: Any, wanted: str) -> None:
    """Check the type of an argument.

    Raises:
      TypeError: It is wrong.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {wanted}, not {value!r}.")
