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
        self, runs: Sequence[Unsaved], reporting: Sequence[Unsaved]
    ) -> list[Unsaved]:
        """Return those of the silent runs whose cancel, or that of their batch, was
        announced since the previous call, or none of them while the store is away.

        Parameters:
          runs: All runs. If the batch of one was cancelled, its next update asks it.
          reporting: Those that are not silent.
        """
        uuids = self._ask()
        if not uuids:
            return []
        known = set(reporting)
        found = []
        for unsaved in runs:
            of_batch = unsaved.info.batch in uuids
            if of_batch:
                unsaved.tell_soon()
            if (of_batch or unsaved.uuid in uuids) and unsaved not in known:
                found.append(unsaved)
        return found

    def _ask(self) -> set[str]:
        """Return the uuids of the jobs and batches whose cancel is new."""
        try:
            uuids, self._since = self._store.records.cancels(self._since)
        except (exceptions.ConnectionError, exceptions.TimeoutError):
            self._outage.begin()
            return set()
        except exceptions.RedisError as e:
            self._refusal.complain(e)
            return set()
        self._outage.end()
        self._refusal.recover()
        return uuids
