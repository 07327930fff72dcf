"""The web side while the store is away: a stand-in for unread records, and logging."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import NoReturn

from redis import exceptions
from redis.exceptions import RedisError

from ..errors import StoreUnavailable
from ..worker import Outage

log = logging.getLogger("pyramid_jobstate")

#: Seconds between two log lines about a server that answers but refuses requests.
LOG_PAUSE = 60.0

#: The most outages logged in that time. With one node of a Cluster away, errors and
#: answers alternate.
MAX_OUTAGES = 5


class UnreadRecord:
    """The stand-in for a record that the store could not read: any attribute but the
    uuid raises StoreUnavailable.

    With it traversal reaches our own views, which respond. An exception would pass all
    tweens, and a tween that logs exceptions would log each poll during an outage.
    """

    def __init__(self, uuid: str, container: object) -> None:
        self.uuid = self.name = uuid
        self._container = container

    def __getattr__(self, name: str) -> NoReturn:
        raise StoreUnavailable(self._container)


class WebOutage:
    """Logs that the store does not answer requests.

    Each outage is logged once, and so is its end, with at most five outages a minute. A
    refusal is logged at most once a minute.
    """

    def __init__(self) -> None:
        self._outage = Outage(
            log,
            "The job state store does not answer. Requests for jobs get a 503 response "
            "until it does: %s: %s",
            "The job state store answers again.",
        )
        self._begun: deque[float] = deque(maxlen=MAX_OUTAGES)
        self._next_refusal = 0.0

    def note(self, error: RedisError) -> None:
        """Log an error of the store, unless it was logged before."""
        now = time.monotonic()
        if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError)):
            begun = self._begun
            is_rare = len(begun) < MAX_OUTAGES or now - begun[0] > LOG_PAUSE
            if is_rare and not self._outage.is_said:
                begun.append(now)
                self._outage.complain(error)
            return
        # Other requests succeed meanwhile, so a refusal has no end that can be logged.
        if now >= self._next_refusal:
            self._next_refusal = now + LOG_PAUSE
            log.warning(
                "The job state store refused a request, which gets a 503 response: "
                "%s: %s",
                type(error).__name__,
                error,
            )

    def end(self) -> None:
        """Log the end of an outage, if one was logged."""
        self._outage.recover()
