"""Looks at the members of silent batches, outside the hub's thread."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...job import Record
    from ...store.watch import Tracker

log = logging.getLogger("pyramid_jobstate")

#: How many batches are looked at at once. The others have their turn a second later.
MOST = 4


class Looks:
    """Looks at the members of silent batches: a store that does not answer must not
    keep the hub from feeding streams.

    Parameters:
      tracker: Knows the store.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        #: The batches that are being looked at.
        self._batches: set[str] = set()

    def look(self, record: Record) -> None:
        """Look at the members of a batch soon."""
        if record.uuid in self._batches or len(self._batches) >= MOST:
            return
        self._batches.add(record.uuid)
        name = "jobstate-look"
        thread = threading.Thread(
            target=self._look, args=(record,), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # The process may start no more threads.
            self._batches.discard(record.uuid)

    def _look(self, record: Record) -> None:
        try:
            self._tracker.look(record)
        except Exception:
            log.exception("The members of the batch %s cannot be read.", record.uuid)
        finally:
            self._batches.discard(record.uuid)
