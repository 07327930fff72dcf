"""What a process knows of a store that does not answer, and how often it says so."""

from __future__ import annotations

import time
from logging import Logger

#: The seconds for which nobody waits for a store that has just failed.
PAUSE = 1.0


class Outage:
    """Whether the store answers, as all who ask it in this process have found out.

    Once it has failed, one caller a second asks it, and the others do without. It has
    no lock, which a fork or an interrupted thread might leave locked: in a race a few
    ask.

    Parameters:
      log: Where an outage is logged, once, and its end.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._is_on = False
        self._is_said = False
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
        if self._is_said:
            return
        self._is_said = True
        self._log.warning(
            "The job state store does not take updates, which are kept until it does. "
            "Jobs that are sent meanwhile have no state until they start: %s: %s",
            type(error).__name__,
            error,
        )

    def recover(self) -> None:
        """Log that the store does again what it should, if anything else was logged."""
        if self._is_said:
            self._is_said = False
            self._log.info("The job state store takes updates again.")
