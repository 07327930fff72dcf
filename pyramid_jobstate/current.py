"""What a worker thread is at work on, and how that ends."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from dramatiq.middleware import SkipMessage

from .delivery import Delivery
from .record import CANCELLED, End, JobError
from .state import JobState, _current
from .told import Told, _told

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy

#: How many messages may be sent from within each other's enqueue hooks.
MAX_NESTED = 16


@dataclasses.dataclass(slots=True, eq=False)
class CurrentJob:
    """The job that a thread runs.

    Attributes:
      message: The message, whose id is the job's uuid.
      tracked: The actor's function.
      delivery: What the recorder knows of the run.
      has_begun: Whether the function was called.
      is_running: Whether that has not returned.
      raised: What it raised, if anything.
      is_concluded: Whether the broker has said how the message was processed:
      exception: the exception that failed it, if any;
      skipped: why it was skipped, if it was.
      is_next_sent: Whether the broker has taken the next step of its pipeline.
      is_over: Whether its end is written.
      due: When the message is to come again, in seconds of the monotonic clock, if it
        was put back.
    """

    message: MessageProxy
    tracked: object
    delivery: Delivery
    has_begun: bool = False
    is_running: bool = False
    raised: BaseException | None = None
    is_concluded: bool = False
    exception: BaseException | None = None
    skipped: JobError | None = None
    is_next_sent: bool = False
    is_over: bool = False
    due: float | None = None

    @property
    def uuid(self) -> str:
        return self.delivery.uuid

    def is_followed_by(self, uuid: str) -> bool:
        """Whether a message is the next step of this one's pipeline."""
        target = self.message.options.get("pipe_target")
        return isinstance(target, dict) and target.get("message_id") == uuid

    def put_back(self, delay: int) -> None:
        """Take note that the message comes again after so many milliseconds."""
        self.due = time.monotonic() + delay / 1000

    def conclude(self, exception: BaseException | None) -> None:
        """Take note of how the message was processed."""
        self.is_concluded = True
        if isinstance(exception, SkipMessage):
            is_cancelled = self.delivery.run.cancel_requested
            self.skipped = CANCELLED if is_cancelled else describe(exception)
        else:
            self.exception = exception

    def verdict(self, acknowledged: bool) -> End:
        """Return how the run ended, as it stands when its message is acknowledged, or
        rejected.
        """
        error = None if self.exception is None else describe(self.exception)
        # Its traceback would keep alive all that the actor had at hand.
        self.exception = self.raised = None
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


class Outer(NamedTuple):
    """What a thread was at work on when it began to process a message.

    Attributes:
      message: The message.
      job: The job that the thread ran.
      job_state: The current JobState.
      told: By whom it was told last that a job was cancelled.
    """

    message: MessageProxy
    job: CurrentJob | None
    job_state: JobState | None
    told: Told | None


class ThreadState(threading.local):
    """What a thread is at work on.

    Attributes:
      is_worker: Whether it is a worker's, which processes one message at a time. Others
        may process one while they process another: some brokers run jobs in the caller.
      job: The job that this thread runs, or None.
      outers: Of each message that it processes, the innermost last, what it was at work
        on before.
      settled: The message that it is acknowledging or rejecting.
      announced: The ids of messages whose records were made, until they are sent.
      confirms: Whether the store still answers while those are sent.
      sending: The ids of messages whose records were made here, until they are sent.
      returning: The running jobs whose own messages are being put back, by their ids.
      returned: The ids of messages that this worker thread has put back since the last
        one was acknowledged.
    """

    is_worker = False
    job: CurrentJob | None = None
    settled: MessageProxy | None = None
    confirms = True

    def __init__(self) -> None:
        self.outers: list[Outer] = []
        self.announced: set[str] = set()
        # Those that the broker does not take are never removed.
        self.sending: collections.deque[str] = collections.deque(maxlen=MAX_NESTED)
        self.returning: dict[str, CurrentJob] = {}
        self.returned: collections.deque[str] = collections.deque(maxlen=MAX_NESTED)

    def enter(self, message: MessageProxy) -> None:
        """Begin to process a message."""
        if self.is_worker:
            # Forget the last job, and what the broker did not take of its messages.
            self.job = None
            self.sending.clear()
            self.returning.clear()
            return
        uuid = message.message_id
        self.announced.discard(uuid)
        if self.job is not None and self.job.is_followed_by(uuid):
            self.job.is_next_sent = True
        self.outers.append(Outer(message, self.job, _current.get(), _told.get()))
        self.job = None
        _current.set(None)

    def job_of(self, message: MessageProxy) -> CurrentJob | None:
        """Return the job of a message that this thread is at work on, if it is tracked.
        If one was begun within it, nobody was told of its end: it is forgotten.
        """
        for place, outer in enumerate(self.outers):
            if outer.job is not None and outer.job.message is message:
                self._go_back(place)
                break
        job = self.job
        return job if job is not None and job.message is message else None

    def leave(self, message: MessageProxy) -> None:
        """Have done with a message, and go on with what was before it."""
        if self.is_worker:
            self.job = None
            self.returned.clear()
        for place, outer in enumerate(self.outers):
            if outer.message is message:
                if self.returning.get(message.message_id) is self.job:
                    self.returning.pop(message.message_id, None)
                self._go_back(place)
                break

    def _go_back(self, place: int) -> None:
        outer = self.outers[place]
        self.job = outer.job
        _current.set(outer.job_state)
        _told.set(outer.told)
        del self.outers[place:]

    def has_settled(self, message: MessageProxy) -> bool:
        """Whether it was told of a message's acknowledgement beforehand. Asked once."""
        is_settled = self.settled is message
        if is_settled:
            self.settled = None
        return is_settled

    def outer_runs(self, uuid: str) -> list[CurrentJob]:
        """Return the runs of a job that this thread has not done with, but for the
        innermost.
        """
        jobs = [outer.job for outer in self.outers]
        return [job for job in jobs if job is not None and job.uuid == uuid]


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
