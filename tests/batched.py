"""Batches with members in any status, as their senders and workers would leave them."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from dramatiq import Message

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.job import (
    BATCH,
    CANCELLED,
    FINISHED,
    End,
    Failure,
    JobError,
    JobInfo,
    Member,
    NewBatch,
    NewJob,
    Update,
    dumps,
)
from tests.jobs import RunMarathon


class ImportFiles(Batch):
    """A kind of batch."""


class Put(NamedTuple):
    """A batch in the store.

    Attributes:
      uuid: Its uuid.
      members: Those of its members, in order.
    """

    uuid: str
    members: list[str]


def put_batch(
    store: JobStore,
    *statuses: str,
    cls: type[Batch] = ImportFiles,
    member: type[JobState] = RunMarathon,
    owner: str | None = "alice",
    owners: Sequence[str | None] = (),
    title: str | None = "Import of the files",
    params: dict[str, Any] | None = None,
    weights: Sequence[int] = (),
    allow_failures: bool = False,
) -> Put:
    """Store a batch whose members have statuses, and return it.

    Parameters:
      cls, member: The classes of the batch and of its members.
      owner: The owner of the batch.
      owners: Those of the first members, by default that of the batch.
      title: The heading of the batch, or None for that of its class.
      params: The values that its members were sent with.
      weights: The weights of the first members, by default 1.
    """
    batch = new_uuid()
    infos = [
        JobInfo(
            member.kind,
            "run_marathon",
            0,
            encoded(owners[i] if i < len(owners) else owner),
            dumps(params or {"miles": 26}),
            batch=batch,
        )
        for i in range(len(statuses))
    ]
    jobs = [NewJob(new_uuid(), info, sender="s") for info in infos]
    weighed = [
        Member(job, 1000 * (weights[i] if i < len(weights) else 1))
        for i, job in enumerate(jobs)
    ]
    fields = {} if title is None else {"title": title}
    if allow_failures:
        fields["allow"] = "1"
    info = JobInfo(cls.kind, "", 0, encoded(owner), "{}", batch=BATCH)
    store.batches.open(NewBatch(batch, info, fields, "s", weighed))
    store.create_new(*jobs)
    # Its sender has died before it sent the others.
    pairs = zip(jobs, statuses, strict=True)
    store.confirm_members([job for job, status in pairs if status != "sending"])
    for job, status in zip(jobs, statuses, strict=True):
        move(store, job, status)
    return Put(batch, [job.uuid for job in jobs])


def move(store: JobStore, job: NewJob, status: str) -> None:
    """Bring a member that waits to a status."""
    if status in ("queued", "sending"):
        return
    info = job.info._replace(attempt=1)
    update = Update(job.uuid, secrets.token_hex(6), 1, info, begins=True)
    update.fields["seen"] = str(10**14)
    if status in (*FINISHED, "retrying"):
        error = {"error": JobError("ValueError", "wrong"), "cancelled": CANCELLED}
        failure = Failure(message_of(job), "", "") if status == "error" else None
        delay = 60.0 if status == "retrying" else None
        update.end = End(status, error.get(status), delay, failure=failure)
    store.write([update])


def end(store: JobStore, batch: str, uuid: str, status: str = "success") -> None:
    """Run a member that waits to its end."""
    record = store.record(uuid)
    assert record is not None
    move(store, NewJob(uuid, record.info._replace(batch=batch)), status)


def message_of(job: NewJob) -> str:
    """Return the message of a job, from which it may run again."""
    options = {"job_batch": job.info.batch}
    message: Message[Any] = Message(
        "default", job.info.actor, (), json.loads(job.info.params), options, job.uuid
    )
    return dumps(message.asdict())


def encoded(owner: str | None) -> str | None:
    return None if owner is None else dumps(owner)


def new_uuid() -> str:
    return str(uuid.uuid4())
