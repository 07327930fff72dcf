"""Which of a job's threads and tasks have been told that it was cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types

from ..errors import JobCancelled, PoolJobCancelled

#: Where a BaseException would end a thread that others wait for: in the callback of a
#: future, and where multiprocessing's pool of threads calls what it was given.
CALLBACKS = {
    ("concurrent.futures._base", "_invoke_callbacks"),
    ("multiprocessing.pool", "_handle_results"),
}
POOL = {
    ("multiprocessing.pool", "worker"),
    ("multiprocessing.pool", "_handle_tasks"),
}
MESSAGE = "The job was cancelled."


class Told:
    """Tells of a cancel whoever does not know of it.

    Told once are the thread that made this, and each asyncio task with the tasks that
    it makes from then on. Any other thread is told at every call, for the next piece of
    a pool's work reports as well. Nobody is told while a JobCancelled is being handled,
    or a task is cancelled: the clean-up may report; nor in a future's callback.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def tell(self) -> None:
        """Raise JobCancelled, unless the caller knows of the cancel."""
        if told_by.get() is self:
            return
        handled = sys.exception()
        is_known = _came_of(handled, JobCancelled)
        callers = _callers()
        task = _current_task()
        if task is not None:
            if task.cancelling() and _came_of(handled, asyncio.CancelledError):
                return
        elif threading.get_ident() != self._thread:
            if is_known or callers & CALLBACKS:
                return
            raise (PoolJobCancelled if callers & POOL else JobCancelled)(MESSAGE)
        told_by.set(self)
        if not is_known:
            raise JobCancelled(MESSAGE)


#: By whom this thread or task was told last. Tasks, and the threads of
#: asyncio.to_thread(), begin with what their maker knows, so that a clean-up may use
#: them; the threads of a pool do not.
told_by: contextvars.ContextVar[Told | None] = contextvars.ContextVar(
    "pyramid_jobstate.told", default=None
)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _callers() -> set[tuple[str, str]]:
    """Return module and name of each function that is being called."""
    found = set()
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        found.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        frame = frame.f_back
    return found


def _came_of(exception: BaseException | None, cause: type[BaseException]) -> bool:
    """Whether an exception is of a class, or came of one that is."""
    seen: set[int] = set()
    left = [exception]
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        if isinstance(found, cause):
            return True
        seen.add(id(found))
        left += [found.__context__, found.__cause__]
        if isinstance(found, BaseExceptionGroup):
            left += found.exceptions
    return False
