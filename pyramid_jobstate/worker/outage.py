"""What a process knows of a store that does not answer, and how often it says so."""

from __future__ import annotations

import time
from logging import Logger

#: The seconds for which nobody waits for a store that has just failed.
PAUSE = 1.0

#: What a worker, or whoever sends, says at the beginning of an outage, and at its end.
AWAY = (
    "The job state store does not take updates, which are kept until it does. "
    "Jobs that are sent meanwhile have no state until they start: %s: %s"
)
BACK = "The job state store takes updates again."


class Outage:
    """Whether the store answers, as all who ask it in this process have found out.

    Once it has failed, one caller a second asks it, and the others do without. It has
    no lock, which a fork or an interrupted thread might leave locked: in a race a few
    ask.

    Parameters:
      log: Where an outage is logged, once, and its end.
      away: The warning, with two %s for the type and the text of an error.
      back: What is logged at the end, if anything.

    Attributes:
      is_said: Whether the beginning was logged, and not yet the end.
    """

    def __init__(self, log: Logger, away: str = AWAY, back: str | None = BACK) -> None:
        self._log = log
        self._away = away
        self._back = back
        self._is_on = False
        self.is_said = False
        self._next = 0.0

    def may_ask(self) -> bool:
        """Whether the caller should ask the store, and then report what it said."""
        if not self._is_on:
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + PAUSE
        return True

    def begin(self) -> None:
        """Report that the store did not answer."""
        self._next = time.monotonic() + PAUSE
        self._is_on = True

    def end(self) -> None:
        """Report that the store answered."""
        self._is_on = False

    def complain(self, error: Exception) -> None:
        """Log what the store did not do, once until it recovers."""
        if self.is_said:
            return
        self.is_said = True
        self._log.warning(self._away, type(error).__name__, error)

    def recover(self) -> None:
        """Log the end of what was logged, if anything was."""
        if self.is_said:
            self.is_said = False
            if self._back is not None:
                self._log.info(self._back)
