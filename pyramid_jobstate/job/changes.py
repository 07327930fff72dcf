"""What may happen to a job: it is sent, a run of it reports, the run ends."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from .record import JobError, JobInfo


class NewJob(NamedTuple):
    """A job whose message is about to be sent.

    Attributes:
      uuid: The id of the message.
      info: What is known of the job.
      delay: Seconds until it is due, or until its turn comes at the earliest.
      waits: Whether it is a later step of a pipeline, whose turn has not come.
      sender: Names who sends it, if they may want to take back what they have written.
    """

    uuid: str
    info: JobInfo
    delay: float = 0.0
    waits: bool = False
    sender: str = ""


class End(NamedTuple):
    """How a run ended.

    Attributes:
      status: "success", "error", "cancelled" or "retrying".
      error: Why, unless it is a success.
      delay: Seconds until the message comes again, or None if it was not put back.
      was_called: Whether the actor's function was called. If not, the record keeps the
        attempt of the run before.
    """

    status: str
    error: JobError | None = None
    delay: float | None = None
    was_called: bool = True


@dataclasses.dataclass(slots=True)
class Update:
    """What a run has to say since its last update: one write to one key.

    Attributes:
      uuid: The job.
      token: The run. Only the newest may write.
      seq: Rises with each update of a run, so that none is applied twice or late.
      base: The last one that is known to be stored, which this one builds on.
      info: What is known of the job.
      fields: The hash fields to set.
      begins: Whether the store has not yet confirmed that the run began.
      renews: Whether its place in the lists is about to expire.
      age: Seconds since it began.
      late: Whether another run may have begun since this beginning was due.
      cancelled: Whether a run that begins anew has heard that its job was cancelled.
      end: Given when the run is over.
      dropped: Whether the message was stopped before a run began.
      sender: Names whose record alone it is about, if it was not sent.
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

    @property
    def reports(self) -> bool:
        """Whether it says more than that the run began."""
        return bool(self.fields or self.end or not self.begins)
