"""What a run has logged: the lines that the store does not have yet."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

from .values import Json, dumps

#: The most bytes that are kept of what one job logs: in the store, in memory until it
#: is there, and in one flush.
MAX_LOG_BYTES = 64 * 1024

#: The characters that are kept of a line, and of the name of its logger.
JOURNAL_LINE_LENGTH = 1000
LOGGER_LENGTH = 100

#: What a line takes in memory beside its texts, roughly.
LINE_BYTES = 64


class Source(NamedTuple):
    """Where a line comes from that was logged with :mod:`logging`.

    Attributes:
      levelno, level: The number and the name of its level.
      logger: The name of its logger.
    """

    levelno: int
    level: str
    logger: str


class Line(NamedTuple):
    """A line that the store does not have yet.

    Attributes:
      number: Its number among all lines of the run, from 1.
      created: When it was logged, in seconds of the clock of this machine.
      source: Where it comes from, or None for a line of append_log().
      text: What it says.
    """

    number: int
    created: float
    source: Source | None
    text: str

    @property
    def size(self) -> int:
        """The approximate memory that it takes, in bytes."""
        return LINE_BYTES + len(self.text)


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

    Parameters:
      level: The least level of what is captured.
      attempt: The number of the attempt.

    Attributes:
      level: As the parameter.
      failures: How many records could not be formatted.
    """

    __slots__ = ("_attempt", "_count", "_lines", "_lock", "_size", "failures", "level")

    def __init__(self, level: int, attempt: int) -> None:
        self.level = level
        self.failures = 0
        self._attempt = attempt
        self._lines: deque[Line] = deque()
        self._size = 0
        self._count = 0
        # Reentrant: a finalizer may log while this thread is here.
        self._lock = threading.RLock()

    @property
    def size(self) -> int:
        """The approximate memory that the lines take, in bytes."""
        return self._size

    def add(self, created: float, source: Source | None, text: str) -> None:
        """Add a line, which is cut if it is long."""
        with self._lock:
            self._count += 1
            line = Line(self._count, created, source, text[:JOURNAL_LINE_LENGTH])
            self._lines.append(line)
            self._size += line.size
            while self._size > MAX_LOG_BYTES:
                self._drop()

    def fail(self) -> None:
        """Count a record that could not be formatted, which takes a number, too."""
        with self._lock:
            self.failures += 1
            self._count += 1

    def take(self) -> list[NewLine]:
        """Return the lines to send, the oldest first. They stay until they are said to
        be stored.
        """
        now, size = time.time(), 0
        with self._lock:
            lines = [*self._lines]
        taken: list[NewLine] = []
        for line in reversed(lines):
            source = (None, None, None) if line.source is None else line.source
            text = dumps([*source, self._attempt, line.text])
            size += LINE_BYTES + len(text.encode())
            if size > MAX_LOG_BYTES:
                break
            age = max(0, int((now - line.created) * 1000))
            taken.append(NewLine(line.number, age, text))
        return taken[::-1]

    def forget(self, number: int) -> None:
        """Drop the lines up to a number: they are stored."""
        with self._lock:
            while self._lines and self._lines[0].number <= number:
                self._drop()

    def _drop(self) -> None:
        self._size -= self._lines.popleft().size
