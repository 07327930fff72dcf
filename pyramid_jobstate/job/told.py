"""Decides in which of a job's threads and tasks to raise JobCancelled."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types

from ..errors import JobCancelled, PoolJobCancelled
from .record import CANCELLED

#: The functions in which a BaseException would end a thread that others wait for: those
#: that call a future's callbacks, and those of multiprocessing's ThreadPool.
CALLBACKS = {
    ("concurrent.futures._base", "_invoke_callbacks"),
    ("multiprocessing.pool", "_handle_results"),
}
POOL = {
    ("multiprocessing.pool", "worker"),
    ("multiprocessing.pool", "_handle_tasks"),
}


class Told:
    """Raises JobCancelled in each of a job's threads and tasks.

    It is raised once in the thread that created this object, and once in each asyncio
    task, but not in tasks that this task creates afterwards. In other threads it is
    raised at every call, so that a pool's remaining work stops too. It is not raised
    while a JobCancelled or a task's cancellation is being handled, since the clean-up
    may report, nor in a future's callback.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def tell(self) -> None:
        """Raise JobCancelled unless the caller already knows of the cancellation."""
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
            error = PoolJobCancelled if callers & POOL else JobCancelled
            raise error(CANCELLED.message)
        told_by.set(self)
        if not is_known:
            raise JobCancelled(CANCELLED.message)


#: The object that last raised in this thread or task. Tasks and asyncio.to_thread()
#: inherit it from their creator, so that clean-up code can use them; threads of a pool
#: do not.
told_by: contextvars.ContextVar[Told | None] = contextvars.ContextVar(
    "pyramid_jobstate.told", default=None
)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _callers() -> set[tuple[str, str]]:
    """Return the module and name of each function on the call stack."""
    found = set()
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        found.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        frame = frame.f_back
    return found


def _came_of(exception: BaseException | None, cause: type[BaseException]) -> bool:
    """Return whether an exception, or any in its chain or group, is a `cause`."""
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
