"""How many jobs have which status, from the indexes alone."""

from __future__ import annotations

import collections
import datetime
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from ..job import FINISHED
from .commands import Command
from .connection import Client
from .entries import OTHERS, SOURCES, Entries, ListAccess
from .filters import BY_STATUS, Filter, Place
from .fresh import Fresh
from .reading import MAX_SCORE, ask
from .statuses import INDEXED

#: Seconds for which this process returns the same counts.
FRESH_SECONDS = 1.0

#: How many jobs of each status to examine for stalled ones.
MAX_EXAMINED = 1000

#: The maximum number of periods of a throughput.
MAX_BUCKETS = 1000

#: The maximum length of all periods of a throughput in seconds: the first begins at a
#: time that a datetime can represent.
MAX_SPAN = 1e9


class Counts(NamedTuple):
    """How many jobs have which status.

    The numbers are approximate. A worker that is paused between its two writes may
    leave a job counted under its last status until a list shows it, and of each status,
    only the thousand newest jobs are examined for stalled ones.
    """

    queued: int = 0
    working: int = 0
    retrying: int = 0
    stalled: int = 0
    cancelling: int = 0
    success: int = 0
    error: int = 0
    cancelled: int = 0


class Bucket(NamedTuple):
    """The jobs that ended in a period.

    Attributes:
      start: When the period began, by the store's clock.
      success, error, cancelled: How many jobs ended in it, by status.
    """

    start: datetime.datetime
    success: int
    error: int
    cancelled: int


class Counter:
    """Counts the jobs of a store.

    Parameters:
      client: The server.
      access: The access to the lists.
    """

    def __init__(self, client: Client, access: ListAccess) -> None:
        self._client = client
        self._access = access
        self._reader, self._index, _ = access
        #: The counts of each kind that this process keeps.
        self.fresh: Fresh[str | None, Counts] = Fresh(FRESH_SECONDS)

    def counts(self, kind: str | None, *, anew: bool) -> Counts:
        """Return the counts of a kind, or of all jobs, at most a second old."""
        return self.fresh.get(kind, lambda: self._count(Filter(kind=kind)), anew=anew)

    def kinds(self) -> list[str]:
        """Return the kinds of the listed jobs in alphabetical order."""
        words = (self._reader.clock() * 1000 - self._index.kind_ttl * 1000, MAX_SCORE)
        key = self._index.kinds_key
        return sorted(
            kind
            for kind, _ in self._reader.scores(
                "ZRANGEBYSCORE", key, *words, "WITHSCORES"
            )
        )

    def throughput(
        self, kind: str | None, seconds: float, buckets: int
    ) -> list[Bucket]:
        """Return the jobs that ended in each of some periods of equal length, the last
        of which ends now.
        """
        scope = Filter(kind=kind).scope
        end = self._reader.clock() * 1000
        length = seconds * 1e6 / buckets
        starts = [round(end - (buckets - i) * length) for i in range(buckets)]
        limits = [*starts, end]
        keys = [
            self._index.key(scope, ended=True),
            *(self._index.status_key(scope, status) for status in OTHERS["success"]),
        ]
        numbers = self._numbers(
            (key, first, f"({last}")
            for key in keys
            for first, last in itertools.pairwise(limits)
        )
        columns = zip(
            *(numbers[i : i + buckets] for i in range(0, len(numbers), buckets)),
            strict=True,
        )
        return [
            Bucket(
                datetime.datetime.fromtimestamp(start / 1e6, datetime.UTC),
                max(0, ended - error - cancelled),
                error,
                cancelled,
            )
            for start, (ended, error, cancelled) in zip(starts, columns, strict=True)
        ]

    def _count(self, wanted: Filter) -> Counts:
        index, scope = self._index, wanted.scope
        now = self._reader.clock() * 1000
        keys = [
            (index.key(scope, ended=False), index.active_ttl),
            (index.key(scope, ended=True), index.ended_ttl),
            *(
                (index.status_key(scope, each), index.ttl(ended=each in FINISHED))
                for each in INDEXED
            ),
        ]
        active, ended, *listed = self._numbers(
            (key, now - ttl * 1000, MAX_SCORE) for key, ttl in keys
        )
        number = dict(zip(INDEXED, listed, strict=True))
        stalled = self._stalled(wanted._replace(status="stalled"))
        working = number["working"] - stalled["working"]
        cancelling = number["cancelling"] - stalled["cancelling"]
        counts = Counts(
            queued=active
            - sum(number[status] for status in OTHERS["queued"])
            - stalled["sending"],
            working=working,
            retrying=number["retrying"],
            stalled=stalled.total(),
            cancelling=cancelling,
            success=ended - number["error"] - number["cancelled"],
            error=number["error"],
            cancelled=number["cancelled"],
        )
        return Counts(*(max(0, count) for count in counts))

    def _stalled(self, wanted: Filter) -> collections.Counter[str]:
        """Return the numbers of stalled jobs by their stored status."""
        entries = Entries(wanted, self._access, skips=False)
        found = [
            (place, status)
            for status in SOURCES["stalled"]
            for place in entries.read_index(Place(BY_STATUS), MAX_EXAMINED, status)
        ]
        examined = list(entries.examine(found))
        entries.repair(examined)
        return collections.Counter(each.status for each in examined if each.is_wanted)

    def _numbers(self, ranges: Iterable[tuple[str, int, int | str]]) -> list[int]:
        """Return how many members sorted sets have in ranges of scores."""
        commands = [Command(key, ("ZCOUNT", key, *limits)) for key, *limits in ranges]
        return [number or 0 for number in ask(self._client, commands)]
