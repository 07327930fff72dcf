"""What a worker thread is at work on, and how that ends."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from .delivery import Delivery
from .record import CANCELLED, End, JobError
from .state import JobState

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy

#: How many messages may be sent from within each other's enqueue hooks.
MAX_NESTED = 16


@dataclasses.dataclass(slots=True, eq=False)
class CurrentJob:
    """The job that a worker thread runs.

    Attributes:
      message: The message, whose id is the job's uuid.
      tracked: The actor's function.
      delivery: What the recorder knows of the run.
      job_state: What the function is handed, until it was called.
      is_next_sent: Whether the broker has taken the next step of its pipeline.
      exception: What the function raised, if anything.
      skipped: Why the message was skipped, if it was.
      due: When the message is to come again, in seconds of the monotonic clock, if it
        was put back.
    """

    message: MessageProxy
    tracked: object
    delivery: Delivery
    job_state: JobState | None
    is_next_sent: bool = False
    exception: BaseException | None = None
    skipped: JobError | None = None
    due: float | None = None

    def is_followed_by(self, uuid: str) -> bool:
        """Whether a message is the next step of this one's pipeline."""
        target = self.message.options.get("pipe_target")
        return isinstance(target, dict) and target.get("message_id") == uuid

    def put_back(self, delay: int) -> None:
        """Take note that the message comes again after so many milliseconds."""
        self.due = time.monotonic() + delay / 1000

    def verdict(self, acknowledged: bool) -> End:
        """Return how the run ended, as it stands when its message is acknowledged, or
        rejected.
        """
        error = None if self.exception is None else describe(self.exception)
        # Its traceback would keep alive all that the actor had at hand.
        self.exception = None
        delay = None if self.due is None else max(0.0, self.due - time.monotonic())
        if self.skipped is CANCELLED:
            return End("cancelled", CANCELLED, delay)
        if delay is not None:
            # Retries has put it back, or the actor itself.
            return End("retrying", error, delay)
        if self.skipped is not None:
            return End("cancelled", self.skipped)
        if error is None and not acknowledged:
            error = JobError(None, "The message was rejected.")
        return End("success" if error is None else "error", error)


class ThreadState(threading.local):
    """What a thread is at work on.

    Attributes:
      job: The job that this worker thread runs, or None.
      failure: What was raised before a message's run began, until that is rejected.
      announced: The ids of messages whose records were made, until they are sent.
      confirms: Whether the store still answers while those are sent.
      sending: The ids of messages whose records were made here, until they are sent.
      returning: The running jobs whose own messages are being put back, by their ids.
    """

    job: CurrentJob | None = None
    failure: JobError | None = None
    confirms = True

    def __init__(self) -> None:
        self.announced: set[str] = set()
        # Those that the broker does not take are never removed.
        self.sending: collections.deque[str] = collections.deque(maxlen=MAX_NESTED)
        self.returning: dict[str, CurrentJob] = {}

    def reset(self) -> None:
        """Forget the last job, and what the broker did not take of its messages."""
        self.job = self.failure = None
        self.sending.clear()
        self.returning.clear()


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
