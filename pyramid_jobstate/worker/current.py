"""What a thread is at work on, and how that ends."""

from __future__ import annotations

import collections
import dataclasses
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any, Protocol

from dramatiq.middleware import MiddlewareError, SkipMessage

from ..job import CANCELLED, End, JobError, JobState, current_job
from .unsaved import Unsaved

if TYPE_CHECKING:
    from dramatiq import Message
    from dramatiq.broker import MessageProxy

    from ..job import JobInfo

#: How many messages may be sent from within each other's enqueue hooks.
MAX_NESTED = 16


class Tracked(Protocol):
    """The function of a tracked actor."""

    def info_of(
        self, message: Message[Any] | MessageProxy, attempt: int = 0
    ) -> JobInfo:
        """Return what is to be stored of a message."""

    def unsaved(self, message: MessageProxy) -> Unsaved:
        """Return what the recorder is to know of a run that begins now."""


@dataclasses.dataclass(slots=True, eq=False)
class CurrentJob:
    """A message that a thread processes, and the job that it is.

    Attributes:
      message: The message. Its id is the job's uuid.
      tracked: The actor's function, or None if the actor is not tracked.
      frame: The broker's call that processes the message.
      outer: The JobState that was current before.
      handled: The exception that was being handled before, if any.
      unsaved: What the recorder knows of the run, or None if none has begun.
      was_called: Whether the function was called.
      is_running: Whether it has yet to return.
      raised: What it raised, or with what the message failed or was skipped.
      is_next_sent: Whether the broker has taken the next step of its pipeline.
      is_over: Whether the job's end is written.
      due: When the message is to come again, in seconds of the monotonic clock, if it
        was put back.
    """

    message: MessageProxy
    tracked: Tracked | None
    frame: types.FrameType
    outer: JobState | None
    handled: BaseException | None
    unsaved: Unsaved | None = None
    was_called: bool = False
    is_running: bool = False
    raised: BaseException | None = None
    is_next_sent: bool = False
    is_over: bool = False
    due: float | None = None

    @property
    def uuid(self) -> str:
        return self.message.message_id

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
        # Its traceback would keep alive all that the actor had at hand.
        raised, self.raised = self.raised, None
        error = None if raised is None else describe(raised)
        if error is None and not acknowledged:
            error = JobError(None, "The message was rejected.")
        is_skipped = isinstance(raised, SkipMessage)
        delay = None if self.due is None else max(0.0, self.due - time.monotonic())
        # An actor that is called in another thread may raise anything else.
        is_stopped = error is not None and isinstance(raised, MiddlewareError | None)
        was_called = self.was_called or not is_stopped
        run = None if self.unsaved is None else self.unsaved.run
        if raised is not None and run is not None and run.cancel_requested:
            return End("cancelled", CANCELLED, delay, was_called)
        if delay is not None:
            # Retries has put it back, a limiter, or the actor itself.
            return End("retrying", None if is_skipped else error, delay, was_called)
        status = "cancelled" if is_skipped else "success" if error is None else "error"
        return End(status, error, None, was_called)


class ThreadState(threading.local):
    """What a thread is at work on.

    Attributes:
      jobs: The messages that it processes, each within the one before it: a broker that
        runs jobs in the caller processes one within another.
      announced: The ids of messages whose records were made, until they are sent.
      confirms: Whether the store still answers while those are sent.
      sending: The ids of messages whose records were made here, until they are sent.
      resent: The ids of messages that are being sent while their jobs are under way.
      returning: The running jobs whose own messages are being put back, by their ids.
      returned: The ids of those that were sent so since a message was acknowledged, and
        when each is due, in seconds of the monotonic clock.
    """

    confirms = True

    def __init__(self) -> None:
        self.jobs: list[CurrentJob] = []
        self.announced: set[str] = set()
        # Those that the broker does not take are never removed.
        self.sending: collections.deque[str] = collections.deque(maxlen=MAX_NESTED)
        self.resent: collections.deque[str] = collections.deque(maxlen=MAX_NESTED)
        self.returning: dict[str, CurrentJob] = {}
        self.returned: collections.deque[tuple[str, float]] = collections.deque(
            maxlen=MAX_NESTED
        )

    @property
    def job(self) -> CurrentJob | None:
        """The innermost of them, unless it is over."""
        return self.jobs[-1] if self.jobs and not self.jobs[-1].is_over else None

    def enter(self, message: MessageProxy, tracked: Tracked | None) -> CurrentJob:
        """Begin to process a message."""
        job = CurrentJob(
            message, tracked, _broker(), current_job.get(), sys.exception()
        )
        self.jobs.append(job)
        current_job.set(None)
        return job

    def leave(self, place: int) -> list[CurrentJob]:
        """Leave the messages from a place on, and return them. Those whose function is
        running, in another greenlet of the thread, stay.
        """
        left = [job for job in self.jobs[place:] if not job.is_running]
        if left:
            current_job.set(left[0].outer)
            self.jobs[place:] = [job for job in self.jobs[place:] if job.is_running]
            self.returned.clear()
        for job in left:
            if self.returning.get(job.uuid) is job:
                del self.returning[job.uuid]
        return left

    def find(self, message: MessageProxy) -> int | None:
        """Return the place of a message."""
        places = (i for i, job in enumerate(self.jobs) if job.message is message)
        return next(places, None)

    def find_abandoned(self) -> int:
        """Return the place of the first message with which the broker has gone on
        without a word: the call that processed it has returned.
        """
        place = len(self.jobs)
        while place and not _is_in_progress(self.jobs[place - 1]):
            place -= 1
        return place


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


def _is_in_progress(job: CurrentJob) -> bool:
    caller: types.FrameType | None = sys._getframe(1)
    while caller is not None and caller is not job.frame:
        caller = caller.f_back
    return job.is_running or caller is not None


def _broker() -> types.FrameType:
    """Return the call that has the middleware's hooks called."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_name in ("emit_before", "emit_after")
        or frame.f_globals.get("__package__") == __package__
    ):
        frame = frame.f_back
    return frame
