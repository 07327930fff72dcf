"""Hearing of cancels between two reports of a job."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from redis import exceptions

from ..store import JobStore
from .outage import Outage
from .unsaved import Unsaved

log = logging.getLogger(__name__)

REFUSED = (
    "The job state store refuses to list cancels. Jobs hear of theirs with the next "
    "heartbeat: %s: %s"
)


class Cancels:
    """The cancels that are announced in the store: a job that has nothing to report
    hears of its own here, sooner than with its next heartbeat.

    Parameters:
      store: Where the cancels are announced.
      outage: What this process knows of the store.
    """

    def __init__(self, store: JobStore, outage: Outage) -> None:
        self._store = store
        self._outage = outage
        self._since = 0
        self._refusal = Outage(log, REFUSED, None)

    def find(self, silent: Sequence[Unsaved]) -> list[Unsaved]:
        """Return those of the silent runs whose cancel was announced since the last
        call.
        """
        try:
            uuids, self._since = self._store.cancels(self._since)
        except (exceptions.ConnectionError, exceptions.TimeoutError):
            self._outage.begin()
            return []
        except exceptions.RedisError as e:
            self._refusal.complain(e)
            return []
        self._outage.end()
        self._refusal.recover()
        return [unsaved for unsaved in silent if unsaved.uuid in uuids]
