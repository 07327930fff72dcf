"""A store that does not answer the web side: what stands for it, and who is told."""

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

#: Seconds between two log lines about a server that answers, but refuses.
LOG_PAUSE = 60.0

#: How many outages are logged in that time at the most: where one node of a Cluster is
#: away, errors and answers take turns.
MAX_OUTAGES = 5


class UnreadRecord:
    """Stands for the record of a job about which the store says nothing: to ask it for
    anything but the uuid raises StoreUnavailable.

    Traversal goes on with a job of such a record where our own views will answer: an
    exception would go through every tween, and what an application has there to log
    exceptions would log each poll of an outage.
    """

    def __init__(self, uuid: str, container: object) -> None:
        self.uuid = uuid
        self._container = container

    def __getattr__(self, name: str) -> NoReturn:
        raise StoreUnavailable(self._container)


class WebOutage:
    """Logs that the store does not answer requests: an outage once, however many ask,
    and its end, at most five in a minute; a refusal at most once a minute.
    """

    def __init__(self) -> None:
        self._outage = Outage(
            log,
            "The job state store does not answer. Requests for jobs get the status 503 "
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
        # Other requests are answered meanwhile, so that this has no end to wait for.
        if now >= self._next_refusal:
            self._next_refusal = now + LOG_PAUSE
            log.warning(
                "The job state store refuses a request, which gets the status 503: "
                "%s: %s",
                type(error).__name__,
                error,
            )

    def end(self) -> None:
        """Log the end of an outage, if one was logged."""
        self._outage.recover()
