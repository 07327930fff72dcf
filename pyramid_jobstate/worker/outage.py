"""Whether the store answers a process: ask it sparingly, and log an outage once."""

from __future__ import annotations

import time
from logging import Logger

#: Seconds before a store that has failed is asked again.
PAUSE = 1.0

#: What workers and senders log at the beginning of an outage, and at its end.
AWAY = (
    "The job state store does not accept updates. They are kept until it does, but "
    "jobs sent meanwhile have no state until they start: %s: %s"
)
BACK = "The job state store accepts updates again."


class Outage:
    """Whether the store answers, as reported by everything in this process that asks.

    After a failure one caller a second asks the store, and the others do without it.
    A fork or an interrupted thread could leave a lock locked, so this takes none: in a
    race several callers may ask.

    Parameters:
      log: The logger for the beginning and the end of an outage.
      away: The warning at the beginning, with two %s for the type and the text of an
        error.
      back: The message at the end, or None to log nothing.

    Attributes:
      is_said: Whether the beginning of an outage was logged, but not yet its end.
    """

    def __init__(self, log: Logger, away: str = AWAY, back: str | None = BACK) -> None:
        self._log = log
        self._away = away
        self._back = back
        self._is_on = False
        self.is_said = False
        self._next = 0.0

    def may_ask(self) -> bool:
        """Return whether the caller should ask the store. If so, it reports the result
        with :meth:`begin` or :meth:`end`.
        """
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
        """Log an error of the store, only once until it recovers."""
        if self.is_said:
            return
        self.is_said = True
        self._log.warning(self._away, type(error).__name__, error)

    def recover(self) -> None:
        """Log the end of the outage if its beginning was logged."""
        if self.is_said:
            self.is_said = False
            if self._back is not None:
                self._log.info(self._back)
