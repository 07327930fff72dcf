"""The runs that a recorder writes, and the threads that wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from ..job import End
from .unsaved import Unsaved

#: How many bytes of memory ended runs may take while the store is away.
MAX_PENDING = 64 * 1024 * 1024


class Backlog:
    """The runs that have something to write now or later. Thread-safe.

    Dramatiq may interrupt a worker thread between any two bytecodes. Hence the plain
    locks, which are written in C: an interrupt can leave an Event, written in Python,
    locked for good.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Unsaved] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, unsaved: Unsaved) -> None:
        with self._lock:
            self._runs[unsaved.run.token] = unsaved

    def end(self, unsaved: Unsaved, end: End) -> bool:
        """Set how a run ended, and return whether that has yet to be written."""
        with self._lock:
            unsaved.end = end
            if (unsaved.is_cancelled and end.delay is not None) or (
                unsaved.is_fenced and end.failure is not None
            ):
                # A message put back must still find the record, and a failure is listed
                # among the tries: see finish.lua.
                unsaved.lost = ""
            if not unsaved.lost:
                self._runs[unsaved.run.token] = unsaved
            return not unsaved.lost

    def give_up(self, unsaved: Unsaved, why: str) -> bool:
        """Stop writing a run, and return whether it had ended."""
        with self._lock:
            unsaved.lost = why
            del self._runs[unsaved.run.token]
            self._release(unsaved, tuple(unsaved.waiters))
            return unsaved.end is not None

    def remove(self, unsaved: Unsaved) -> None:
        """Remove a run whose end is stored."""
        with self._lock:
            del self._runs[unsaved.run.token]
            self._release(unsaved, tuple(unsaved.waiters))

    def all(self) -> list[Unsaved]:
        with self._lock:
            return list(self._runs.values())

    def ended(self) -> list[Unsaved]:
        """Return the runs that have ended, oldest first."""
        return [unsaved for unsaved in self.all() if unsaved.end is not None]

    def excess(self) -> Iterator[Unsaved]:
        """Yield the oldest ended runs until the rest fit into MAX_PENDING."""
        ended = self.ended()
        excess = sum(unsaved.size for unsaved in ended) - MAX_PENDING
        for unsaved in ended:
            if excess <= 0:
                break
            excess -= unsaved.size
            yield unsaved

    def add_waiter(self, unsaved: Unsaved) -> threading.Lock | None:
        """Begin to wait for a run to be stored.

        Returns:
          A lock, released once everything set before is stored or given up, or None if
          the backlog has dropped the run.
        """
        waiter = threading.Lock()
        waiter.acquire()
        with self._lock:
            if unsaved.run.token not in self._runs:
                return None
            unsaved.waiters.add(waiter)
        return waiter

    def discard_waiter(self, unsaved: Unsaved, waiter: threading.Lock) -> None:
        """Stop waiting for a run."""
        with self._lock:
            unsaved.waiters.discard(waiter)

    def waiters(
        self, batch: Sequence[Unsaved]
    ) -> dict[Unsaved, tuple[threading.Lock, ...]]:
        """Return the current waiters of those runs that have any."""
        waited = [unsaved for unsaved in batch if unsaved.waiters]
        if not waited:
            return {}
        with self._lock:
            return {unsaved: tuple(unsaved.waiters) for unsaved in waited}

    def release(self, unsaved: Unsaved, waiters: Sequence[threading.Lock]) -> None:
        """Release those of the waiters that are still waiting for a run."""
        with self._lock:
            self._release(unsaved, waiters)

    def _release(self, unsaved: Unsaved, waiters: Sequence[threading.Lock]) -> None:
        for waiter in unsaved.waiters.intersection(waiters):
            unsaved.waiters.remove(waiter)
            waiter.release()

    def abandon(self) -> None:
        """Leave all runs to the parent process. Called in a forked child."""
        # Another thread of the parent may have held the lock.
        self._lock = threading.Lock()
        for unsaved in self._runs.values():
            unsaved.lost = "it runs in another process"
            unsaved.run.close(
                "This job runs in another process, the one that forked this process. "
                "Only that one may report."
            )
        self._runs.clear()
