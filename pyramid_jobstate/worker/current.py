"""The messages that a thread processes, and how their jobs end."""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from dramatiq.errors import Retry
from dramatiq.middleware import MiddlewareError, SkipMessage

from ..job.record import CANCELLED, REJECTED, End, JobError
from ..job.state import JobState, current_state
from .message import attempts_before, failure_of
from .unsaved import Unsaved

if TYPE_CHECKING:
    from dramatiq import Message
    from dramatiq.broker import MessageProxy

    from ..job.members import MemberSender
    from ..job.record import JobInfo

#: How deep messages may be sent from within each other's enqueue hooks.
MAX_NESTED = 16


class Tracked(Protocol):
    """The function of a tracked actor."""

    def info_of(
        self, message: Message[Any] | MessageProxy, attempt: int = 0
    ) -> JobInfo:
        """Return what to store about a message."""

    def unsaved(self, message: MessageProxy, worker: str | None = None) -> Unsaved:
        """Return the recorder's entry for the run of a message.

        Parameters:
          worker: The token of the worker process, or None.
        """


class Conflict(Retry):
    """Raised in place of a conflict between transactions, its cause, so that Dramatiq
    runs the job again at once.
    """


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class CurrentJob:
    """A message that a thread processes, and its job.

    Attributes:
      message: The message. Its id is the job's uuid.
      tracked: The actor's function, or None if the actor is not tracked.
      attempts: The number of attempts before this message, as it came.
      frame: The frame of the broker's call that processes the message.
      greenlet: Returns the greenlet of that call while it lives, or None if the
        process has none.
      outer: The JobState that was current before.
      handled: The exception that was being handled before, if any.
      unsaved: The recorder's entry for the run, which begins when the function is
        called, or None if a middleware before ours has stopped the message.
      members: What sends further members of its batch, or None.
      was_called: Whether the function was called.
      is_forbidden: Whether the store has forbidden the run.
      has_request: Whether the actor's function has received its request.
      is_running: Whether the function is running.
      raised: The exception that the function raised, or that failed or skipped the
        message.
      is_next_sent: Whether the broker has accepted the next step of the pipeline.
      is_over: Whether the job's end has been written.
      due: When a message that was put back comes again, in seconds of the monotonic
        clock, or None.
    """

    message: MessageProxy
    tracked: Tracked | None
    attempts: int
    frame: types.FrameType
    greenlet: weakref.ref[Any] | None
    outer: JobState | None
    handled: BaseException | None
    unsaved: Unsaved | None = None
    members: MemberSender | None = None
    was_called: bool = False
    is_forbidden: bool = False
    has_request: bool = False
    is_running: bool = False
    raised: BaseException | None = None
    is_next_sent: bool = False
    is_over: bool = False
    due: float | None = None

    @property
    def uuid(self) -> str:
        return self.message.message_id

    def is_followed_by(self, uuid: str) -> bool:
        """Return whether a message is the next step of this one's pipeline."""
        target = self.message.options.get("pipe_target")
        return isinstance(target, dict) and target.get("message_id") == uuid

    def put_back(self, delay: int) -> None:
        """Note that the message was put back, due again in `delay` milliseconds."""
        self.due = time.monotonic() + delay / 1000

    def verdict(self, acknowledged: bool) -> tuple[End, bool]:
        """Return how the message ended, and whether it had a run: its function was
        called, or something answered in its place. Called when the message is settled.

        Parameters:
          acknowledged: Whether the message was acknowledged rather than rejected.
        """
        # Its traceback would keep the actor's local variables alive.
        raised, self.raised = self.raised, None
        error = None if raised is None else describe(raised)
        if error is None and not acknowledged:
            error = REJECTED
        is_skipped = isinstance(raised, SkipMessage)
        delay = None if self.due is None else max(0.0, self.due - time.monotonic())
        # Another exception comes from the actor, even if that was called in another
        # thread.
        is_stopped = error is not None and isinstance(raised, MiddlewareError | None)
        has_run = self.was_called or not is_stopped
        run = None if self.unsaved is None else self.unsaved.run
        is_cancelled = raised is not None and run is not None and run.cancel_requested
        if is_cancelled or self.is_forbidden:
            return End("cancelled", CANCELLED, delay), has_run
        if error is None or is_skipped:
            failure = None
        else:
            failure = failure_of(self.message, raised, is_final=delay is None)
        if delay is not None:
            # It was put back by Retries, a limiter or the actor itself.
            reason = None if is_skipped else error
            return End("retrying", reason, delay, failure), has_run
        status = "cancelled" if is_skipped else "success" if error is None else "error"
        return End(status, error, None, failure), has_run


#: Returns the message that is processed here, also in a thread that has the context of
#: the worker's thread: a wrapper of an actor's function may call it in another one. Not
#: the message itself, since a context may live for long.
_entered: contextvars.ContextVar[Callable[[], CurrentJob | None]] = (
    contextvars.ContextVar("pyramid_jobstate.entered", default=lambda: None)
)


class ThreadState(threading.local):
    """The messages that a thread processes and sends.

    Attributes:
      jobs: The messages being processed, outermost first: a broker that runs jobs in
        the caller nests them.
      announced: Ids of messages whose records were written in advance, until sent.
      sender: Who sends those: see :class:`.NewJob`.
      confirms: Whether the store still answers while those are sent.
      sending: Ids of messages whose records this thread wrote, until sent, each with
        its sender.
      resent: Ids of messages being sent while their jobs are under way.
      returning: Running jobs whose own messages are being put back, by message id.
      returned: Ids of the `resent` messages sent since a message was last settled, each
        with the time when it is due, in seconds of the monotonic clock.
    """

    sender = ""
    confirms = True

    def __init__(self) -> None:
        self.jobs: list[CurrentJob] = []
        self.announced: set[str] = set()
        # Bounded, since nothing removes a message that the broker refuses.
        self.sending: collections.deque[tuple[str, str]] = collections.deque(
            maxlen=MAX_NESTED
        )
        self.resent: collections.deque[str] = collections.deque(maxlen=MAX_NESTED)
        self.returning: dict[str, CurrentJob] = {}
        self.returned: collections.deque[tuple[str, float]] = collections.deque(
            maxlen=MAX_NESTED
        )

    @property
    def job(self) -> CurrentJob | None:
        """The innermost job, or None if there is none or it is over."""
        job = self.jobs[-1] if self.jobs else _entered.get()()
        return None if job is None or job.is_over else job

    def enter(self, message: MessageProxy, tracked: Tracked | None) -> CurrentJob:
        """Start processing a message."""
        outer, handled = current_state.get(), sys.exception()
        job = CurrentJob(
            message,
            tracked,
            attempts_before(message),
            _broker(),
            _greenlet(),
            outer,
            handled,
        )
        self.jobs.append(job)
        current_state.set(None)
        _entered.set(weakref.ref(job))
        return job

    def leave(self, place: int) -> list[CurrentJob]:
        """Leave the jobs from index `place` on, and return them. Jobs whose function is
        still running, in another greenlet of the thread, stay.
        """
        left = [job for job in self.jobs[place:] if not job.is_running]
        if left:
            current_state.set(left[0].outer)
            self.jobs[place:] = [job for job in self.jobs[place:] if job.is_running]
            _entered.set(weakref.ref(self.jobs[-1]) if self.jobs else lambda: None)
            self.returned.clear()
        for job in left:
            if self.returning.get(job.uuid) is job:
                del self.returning[job.uuid]
        return left

    def find(self, message: MessageProxy) -> int | None:
        """Return the index of a message in `jobs`, or None."""
        places = (i for i, job in enumerate(self.jobs) if job.message is message)
        return next(places, None)

    def find_abandoned(self) -> int:
        """Return the index of the first job that the broker has left without calling a
        hook: the call that processed it has returned.
        """
        place = len(self.jobs)
        while place and not _is_in_progress(self.jobs[place - 1]):
            place -= 1
        return place


#: The characters that are kept of an exception's text.
MAX_TEXT = 1000


def describe(exception: BaseException) -> JobError:
    """Return an exception as it is stored, its text cut to MAX_TEXT."""
    if isinstance(exception, Conflict) and exception.__cause__ is not None:
        exception = exception.__cause__
    cls = type(exception)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    try:
        text = str(exception)
    except Exception:
        text = ""
    return JobError(name, text[:MAX_TEXT])


def _is_in_progress(job: CurrentJob) -> bool:
    caller: types.FrameType | None = sys._getframe(1)
    while caller is not None and caller is not job.frame:
        caller = caller.f_back
    return job.is_running or caller is not None


def _broker() -> types.FrameType:
    """Return the frame of the broker's call that triggers the middleware's hooks."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_name in ("emit_before", "emit_after")
        or frame.f_globals.get("__package__") == __package__
    ):
        frame = frame.f_back
    return frame


def _greenlet() -> weakref.ref[Any] | None:
    """Return what refers to the greenlet of the caller, or None if none was made."""
    module = sys.modules.get("greenlet")
    # Another thread may be importing it.
    getcurrent = getattr(module, "getcurrent", None)
    return None if getcurrent is None else weakref.ref(getcurrent())


def skip(message: MessageProxy) -> NoReturn:
    """Have Dramatiq drop the message of a cancelled job as AgeLimit does: with no
    retry, no callback and no traceback.

    Raises:
      SkipMessage: Always.
    """
    message.fail()
    raise SkipMessage(CANCELLED.message) from None
