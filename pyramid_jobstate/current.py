"""What a worker thread is at work on, and how that ends."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

from .delivery import Delivery
from .record import CANCELLED, End, JobError
from .state import JobState

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy


@dataclasses.dataclass(slots=True, eq=False)
class Job:
    """The job that a worker thread runs.

    Attributes:
      message: The message, whose id is the job's uuid.
      tracked: The actor's function.
      delivery: What the recorder knows of the run.
      job_state: What the function is handed, until it was called.
      next_id: The id of the message that follows in its pipeline, if any.
      is_next_sent: Whether the broker has taken that.
      exception: What the function raised, if anything.
      skipped: Why the message was skipped, if it was.
      retry_in: Seconds after which the message is to come again, if it was put back.
    """

    message: MessageProxy
    tracked: object
    delivery: Delivery
    job_state: JobState | None
    next_id: str | None
    is_next_sent: bool = False
    exception: BaseException | None = None
    skipped: JobError | None = None
    retry_in: float | None = None

    def verdict(self, acknowledged: bool) -> End:
        """Return how the run ended, as it stands when its message is acknowledged, or
        rejected.
        """
        error = None if self.exception is None else describe(self.exception)
        if self.skipped is CANCELLED:
            return End("cancelled", CANCELLED, self.retry_in)
        if self.retry_in is not None:
            # Retries has put it back, or the actor itself.
            return End("retrying", error, self.retry_in)
        if self.skipped is not None:
            return End("cancelled", self.skipped)
        if error is None and not acknowledged:
            error = JobError(None, "The message was rejected.")
        return End("success" if error is None else "error", error)


class RunningJob(threading.local):
    """What a thread is at work on.

    Attributes:
      job: The job that this worker thread runs, or None.
      announced: The ids of messages whose records were made, until they are sent.
      sending: The id of a message whose record was made, until it is sent.
      returning: The running job whose own message is being put back.
    """

    job: Job | None = None
    sending: str | None = None
    returning: Job | None = None

    def __init__(self) -> None:
        self.announced: set[str] = set()


def describe(exception: BaseException, length: int = 1000) -> JobError:
    """Return what is stored of an exception, its text cut to `length` characters."""
    cls = type(exception)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    try:
        text = str(exception)
    except Exception:
        text = ""
    return JobError(name, text[:length])
