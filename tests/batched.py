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
from pyramid_jobstate.store import Reply
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


INFO = JobInfo("Batch", "", 0, '"alice"', "{}", batch=BATCH)


class Bed:
    """A batch, with members whose messages the broker has accepted.

    Attributes:
      uuids: Its members.
    """

    def __init__(
        self, store: JobStore, count: int = 3, *, delay: float = 0.0, sent: bool = True
    ) -> None:
        self.store = store
        self.client: Any = store.client
        self.uuid = new_uuid()
        self.info = JobInfo("JobState", "a", 0, '"alice"', "{}", batch=self.uuid)
        self.jobs = [
            NewJob(new_uuid(), self.info, delay, sender="s") for _ in range(count)
        ]
        self.uuids = [job.uuid for job in self.jobs]
        self.new = NewBatch(
            self.uuid, INFO, {}, "s", [Member(job, 1000) for job in self.jobs]
        )
        store.batches.open(self.new)
        # As a request does: the batch knows already that they are being sent.
        store.create_new(*self.jobs, tells=False)
        if sent:
            store.confirm_members(self.jobs)

    def key(self, name: str = "") -> str:
        key = f"jobstate:{self.uuid}"
        return f"{{{key}}}:{name}" if name else key

    def load(self) -> Batch:
        """Return the batch as a poll does."""
        batch = self.store.load(self.uuid)
        assert isinstance(batch, Batch)
        return batch

    def counts(self) -> dict[str, int]:
        return {status: n for status, n in self.load().counts.items() if n}

    def run(self, place: int, end: End | None = None, token: str = "") -> Reply:
        """Have a worker run a member, and perhaps end it."""
        token = token or new_uuid()[:12]
        update = Update(self.uuids[place], token, 1, self.info, begins=True, end=end)
        (reply,) = self.store.write([update])
        assert isinstance(reply, Reply)
        return reply

    def end(self, place: int, status: str = "success") -> None:
        error = None if status == "success" else JobError("E", "x")
        assert self.run(place, End(status, error)) == Reply.OK

    def change(self, place: int, **fields: Any) -> None:
        """Change the record of a member without its batch's knowledge."""
        rev = int(self.client.hget(f"jobstate:{self.uuids[place]}", "rev"))
        key = f"jobstate:{self.uuids[place]}"
        self.client.hset(key, mapping={"rev": rev + 1, **fields})

    def grow_old(self, seconds: float = 20) -> None:
        """Let the batch be silent for a while."""
        self.client.hincrby(self.key(), "updated", -int(seconds * 1000))
        self.client.hdel(self.key(), "looked")

    def ttls(self) -> list[int]:
        keys = [self.key(name) for name in ("", "members", "order")]
        return [self.client.ttl(key) for key in keys]
