"""A store that does not answer the web side: what stands for it, and who is told."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from redis import exceptions
from redis.exceptions import RedisError
from zope.interface import Interface

from .outage import Outage

if TYPE_CHECKING:
    from .resources import JobStates

log = logging.getLogger("pyramid_jobstate")

#: Seconds between two log lines about a server that answers, but refuses.
REFUSAL_PAUSE = 60.0


class IWebOutage(Interface):  # type: ignore[misc]
    """Marks the WebOutage of an application, a utility."""


class Unavailable:
    """Stands in the resource tree for a job about which the store says nothing.

    Traversal that raised instead would go through every tween, and what an application
    has there to log exceptions would log each poll.
    """

    def __init__(self, container: JobStates, uuid: str) -> None:
        self.__parent__ = container
        self.__name__ = uuid


class WebOutage:
    """Logs that the store does not answer requests: an outage once, however many ask,
    and its end; a refusal at most once a minute.
    """

    def __init__(self) -> None:
        self._outage = Outage(
            log,
            "The job state store does not answer. Requests for jobs get the status 503 "
            "until it does: %s: %s",
            "The job state store answers again.",
        )
        self._next_refusal = 0.0

    def note(self, error: RedisError) -> None:
        """Log an error of the store, unless it was logged before."""
        if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError)):
            self._outage.complain(error)
            return
        # Other requests are answered meanwhile, so that this has no end to wait for.
        now = time.monotonic()
        if now >= self._next_refusal:
            self._next_refusal = now + REFUSAL_PAUSE
            log.warning(
                "The job state store refuses a request, which gets the status 503: "
                "%s: %s",
                type(error).__name__,
                error,
            )

    def end(self) -> None:
        """Log that the store answers, if the last thing logged is that it does not."""
        self._outage.recover()
