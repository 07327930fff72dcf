"""What a run has logged: the lines that the store does not have yet."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from typing import NamedTuple

from .values import Json, dumps

#: The most bytes that are kept of what one job logs: in the store, in memory until it
#: is there, and in one flush.
MAX_LOG_BYTES = 64 * 1024

#: The characters that are kept of a line, and of the names of its level and its logger.
JOURNAL_LINE_LENGTH = 1000
NAME_LENGTH = 100

#: What a line takes in memory beside its text, roughly.
LINE_BYTES = 64


class NewLine(NamedTuple):
    """A line as it is sent to the store.

    Attributes:
      number: Its number among all lines of the run, from 1.
      age: How many milliseconds ago it was logged.
      json: Its level as a number and as a name, its logger, its attempt and its text,
        as JSON.
    """

    number: int
    age: int
    json: Json


class Journal:
    """The lines of a run that the store does not have yet. While the store is away, the
    newest are kept: the numbers tell how many are missing.

    It has no lock: a finalizer may log while one is held, and wait for a handler that
    is about to log itself. The calls on the deque are atomic.

    Parameters:
      level: The lowest level that is captured.
      attempt: The number of the attempt.

    Attributes:
      level: As the parameter. No level reaches that of a closed journal.
      failures: How many records could not be formatted.
      size: The approximate memory that the lines take, in bytes. Threads that add lines
        at once may miscount until these are taken.
    """

    __slots__ = ("_attempt", "_lines", "_numbers", "failures", "level", "size")

    def __init__(self, level: int, attempt: int) -> None:
        self.level: float = level
        self.failures = 0
        self.size = 0
        self._attempt = attempt
        #: The lines, each with its number: when it was logged, in seconds of the
        #: monotonic clock, the number and the name of its level, its logger and its
        #: text. Plain tuples: a job may log a thousand times a second.
        self._lines: deque[
            tuple[tuple[float, int | None, str | None, str | None, str], int]
        ] = deque()
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Have nothing captured any more."""
        self.level = math.inf

    def add(
        self,
        text: str,
        level: int | None = None,
        name: str | None = None,
        logger: str | None = None,
    ) -> None:
        """Add a line, which is cut if it is long.

        Parameters:
          text: What it says.
          level, name: The number and the name of its level, or None for a line of
            append_log().
          logger: The name of its logger, or None.
        """
        text, now = text[:JOURNAL_LINE_LENGTH], time.monotonic()
        line = (now, level, name, logger, text)
        # One call takes the number and appends the line. Between two, another thread
        # could have a higher number stored first.
        self._lines.extend(zip((line,), self._numbers, strict=False))
        self.size += LINE_BYTES + len(text)
        while self.size > MAX_LOG_BYTES:
            self._drop()

    def fail(self) -> None:
        """Count a record that could not be formatted, which takes a number, too."""
        self.failures += 1
        next(self._numbers)

    def take(self) -> list[NewLine]:
        """Return the lines to send, the oldest first. They stay until they are said to
        be stored.
        """
        lines = [*self._lines]
        self.size = sum(LINE_BYTES + len(line[-1]) for line, _ in lines)
        now, size = time.monotonic(), 0
        taken: list[NewLine] = []
        for (logged, level, name, logger, text), number in reversed(lines):
            json = dumps((level, name, logger, self._attempt, text))
            size += LINE_BYTES + len(json.encode())
            if size > MAX_LOG_BYTES:
                break
            taken.append(NewLine(number, max(0, int((now - logged) * 1000)), json))
        return taken[::-1]

    def forget(self, number: int) -> None:
        """Drop the lines up to a number: they are stored."""
        while self._lines and self._lines[0][1] <= number:
            self._drop()

    def _drop(self) -> None:
        line, _ = self._lines.popleft()
        self.size -= LINE_BYTES + len(line[-1])
