"""Who of a job's threads and tasks has been told that it was cancelled."""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref

from dramatiq.middleware import Interrupt


class JobCancelled(Interrupt):
    """Raised in a job that somebody has cancelled, by its next call that reports.

    It is no Exception, so that ``except Exception`` lets it through.
    """


class Told:
    """Who has been told of a cancel already, and so may go on reporting.

    Told once are the thread that made this, and each asyncio task. Any other thread is
    told at every call, for the next piece of a pool's work reports as well. Nobody is
    told while a JobCancelled is being handled: the clean-up may report.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._is_thread_told = False
        self._tasks: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()

    def is_told(self) -> bool:
        """Whether the caller knows of the cancel. If not, it is about to."""
        is_told = False
        task = _current_task()
        if task is not None:
            is_told = task in self._tasks
            self._tasks.add(task)
        elif threading.get_ident() == self._thread:
            is_told, self._is_thread_told = self._is_thread_told, True
        return is_told or _is_handled(sys.exception())


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _is_handled(exception: BaseException | None) -> bool:
    """Whether an exception that is being handled is a JobCancelled, or came of one."""
    seen: set[int] = set()
    left = [exception]
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        if isinstance(found, JobCancelled):
            return True
        seen.add(id(found))
        left += [found.__context__, found.__cause__]
        if isinstance(found, BaseExceptionGroup):
            left += found.exceptions
    return False
