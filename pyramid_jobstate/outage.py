"""What a process knows of a store that does not answer, and how often it says so."""

from __future__ import annotations

import time
from logging import Logger

#: The seconds for which nobody waits for a store that has just failed.
PAUSE = 1.0


class Outage:
    """Whether the store answers, as all who ask it in this process have found out.

    Once it has failed, one caller a second asks it; the others do without. It has no
    lock, which a fork or an interrupted thread might leave locked: at worst two ask.
    """

    def __init__(self) -> None:
        self._is_on = False
        self._next = 0.0

    def may_ask(self) -> bool:
        """Whether the caller is to ask the store, and then to say what came of it."""
        if not self._is_on:
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + PAUSE
        return True

    def begin(self) -> None:
        """Take note that the store did not answer."""
        self._next = time.monotonic() + PAUSE
        self._is_on = True

    def end(self) -> None:
        """Take note that it did."""
        self._is_on = False


class Complaint:
    """Logs that something is wrong once, however often it happens, until it is right.

    Parameters:
      log: Where to.
      wrong: What is wrong with the store, such as "does not answer".
      right: What is said when it is right again, or nothing.
    """

    def __init__(self, log: Logger, wrong: str, right: str = "") -> None:
        self._log = log
        self._wrong = wrong
        self._right = right
        self.is_open = False

    def open(self, error: Exception) -> None:
        if self.is_open:
            return
        self.is_open = True
        name = type(error).__name__
        self._log.warning("The job state store %s: %s: %s", self._wrong, name, error)

    def close(self) -> None:
        if self.is_open and self._right:
            self._log.info("The job state store %s.", self._right)
        self.is_open = False
