"""How fast a job has been of late, and when it will end at that pace."""

from __future__ import annotations

import math

from ..job import MAX_AMOUNT

#: The recent pace is measured over at least this many seconds, once a job is that old.
WINDOW = 30.0


class Pace:
    """The recent pace of one job.

    Its numbers are kept one by one: thousands of small objects would keep the garbage
    collector busy. Times are in seconds of the monotonic clock.
    """

    __slots__ = ("_at", "_done", "_last", "_next_at", "_next_done", "_total")

    def __init__(self) -> None:
        #: The current starting point, and the next one.
        self._at = self._next_at = 0.0
        self._done = self._next_done = 0.0
        #: The latest progress and total.
        self._last: float = math.inf
        self._total: float | None = None

    def eta(self, now: float, done: float, total: float | None) -> float | None:
        """Return the seconds to the end, or None if unknown.

        Parameters:
          now: The current time.
          done, total: The progress. If it goes back, or its total changes, the pace is
            measured anew.
        """
        if done < self._last or total != self._total:
            self._at = self._next_at = now
            self._done = self._next_done = done
            self._total = total
        self._last = done
        at, before = self._at, self._done
        if now - self._next_at > WINDOW:
            self._at, self._done = self._next_at, self._next_done
            self._next_at, self._next_done = now, done
        if total is None or done <= before or now <= at:
            return None
        eta = max(total - done, 0.0) * (now - at) / (done - before)
        return round(eta, 1) if eta <= MAX_AMOUNT else None
