"""Cancels that reach a running job between two of its reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from redis import exceptions

from ..store import JobStore
from .outage import Outage
from .unsaved import Unsaved

log = logging.getLogger(__name__)

REFUSED = (
    "The job state store refuses to list cancels. Jobs learn of theirs with the next "
    "heartbeat: %s: %s"
)


class Cancels:
    """The cancels announced in the store. Through them a job with nothing to report
    learns of its cancel before its next heartbeat.

    Parameters:
      store: The store.
      outage: Whether the store answers this process.
    """

    def __init__(self, store: JobStore, outage: Outage) -> None:
        self._store = store
        self._outage = outage
        self._since = 0
        self._refusal = Outage(log, REFUSED, None)

    def find(
        self, silent: Sequence[Unsaved], members: Sequence[Unsaved]
    ) -> list[Unsaved]:
        """Return those of the silent runs whose cancel, or that of their batch, was
        announced since the previous call, or none of them while the store is away.

        Parameters:
          members: Runs of members of batches that report. If their batch was
            cancelled, their next update asks it.
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
        if not uuids:
            return []
        for unsaved in (*silent, *members):
            if unsaved.info.batch in uuids:
                unsaved.tell_soon()
        return [u for u in silent if u.uuid in uuids or u.info.batch in uuids]
