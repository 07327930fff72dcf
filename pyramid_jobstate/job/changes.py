"""The changes of a job: it is sent, a run of it reports, the run ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .record import JobError, JobInfo


class NewJob(NamedTuple):
    """A job whose message is about to be sent.

    Attributes:
      uuid: The id of the message.
      info: The job's kind, actor, owner and parameters.
      delay: Seconds until the job is due, or the earliest that its turn can come.
      waits: Whether the job is a later step of a pipeline and waits for its turn.
      sender: Identifies the sender, so that it can withdraw its own record, or "".
    """

    uuid: str
    info: JobInfo
    delay: float = 0.0
    waits: bool = False
    sender: str = ""


class NewBatch(NamedTuple):
    """A batch that is about to be sent.

    Attributes:
      uuid: The uuid of the batch.
      info: Its kind and owner.
      fields: The other fields of its record.
      sender: Identifies the sender, so that it can withdraw its own record.
      members: Its members, each with its weight.
    """

    uuid: str
    info: JobInfo
    fields: Mapping[str, str]
    sender: str
    members: Sequence[Member]


class Member(NamedTuple):
    """A member of a batch that is about to be sent.

    Attributes:
      job: The job.
      weight: Its share of the batch's bar, in thousandths.
    """

    job: NewJob
    weight: int


class Failure(NamedTuple):
    """What an operator needs of a run that failed.

    Attributes:
      message: The Dramatiq message from which the job may run again, as JSON, or "".
      refusal: Why it may not run again, or "".
      traceback: The end of the traceback.
    """

    message: str
    refusal: str
    traceback: str


class End(NamedTuple):
    """How a run ended.

    Attributes:
      status: "success", "error", "cancelled" or "retrying".
      error: The reason, or None.
      delay: Seconds until the message is delivered again, or None if it was not
        requeued.
      was_called: Whether the actor's function was called. If not, the record keeps the
        attempt of the previous run.
      failure: What is kept for operators, or None if it did not fail.
    """

    status: str
    error: JobError | None = None
    delay: float | None = None
    was_called: bool = True
    failure: Failure | None = None


@dataclasses.dataclass(slots=True)
class Update:
    """The changes of a run since its last update, written to the key of its job.

    Attributes:
      uuid: The uuid of the job.
      token: Identifies the run. Only the newest run may write.
      seq: Increases with each update of a run, so that none is applied twice or late.
      base: The `seq` of the last update known to be stored, on which this one builds.
      info: The job's kind, actor, attempt, owner and parameters.
      fields: The hash fields to set.
      begins: Whether the store has yet to confirm that the run began.
      renews: Whether to renew the job's place in the lists before it expires.
      age: Seconds since the run began.
      late: Whether a newer run may have begun since this one did.
      cancelled: Whether the run already knows that its job was cancelled.
      end: How the run ended, or None while it continues.
      dropped: Whether the message was stopped before a run began.
      sender: If set, apply the update only to a record written by this sender.
      tells: Whether to report the member's progress to its batch.
      millionths: How much of the job is done, for its batch, or None if unknown.
    """

    uuid: str
    token: str
    seq: int
    info: JobInfo
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    begins: bool = False
    renews: bool = False
    age: float = 0.0
    late: bool = False
    cancelled: bool = False
    end: End | None = None
    dropped: bool = False
    base: int = 0
    sender: str = ""
    tells: bool = False
    millionths: int | None = None

    @property
    def reports(self) -> bool:
        """Whether there is more to write than the beginning of the run."""
        return bool(self.fields or self.end or not self.begins)
