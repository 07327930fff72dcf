"""Lists of jobs, one page at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from ..job import FINISHED, UNFINISHED, UUID, Record, dumps

if TYPE_CHECKING:
    from ..job import JobState
    from .index import Index
    from .reading import Reader
    from .scripts import Call

#: The maximum number of jobs on a page.
MAX_LIMIT = 200

#: The maximum number of entries to examine for one page of a filtered list.
MAX_EXAMINED = 1000

#: The fields that a filter reads before it loads the whole record.
OUTLINE = ("kind", "owner", "status", "updated", "seen")

#: The maximum bytes of parameters to read at once.
MAX_PORTION = 4 * 1024 * 1024

#: The highest score of an index. Scores are microseconds, exact as floats up to here.
MAX_SCORE = 2**53

_CURSOR = re.compile(r"([ae])([0-9]{1,16})\.([0-9a-f-]{36})")


class Page(NamedTuple):
    """A page of a list of jobs.

    Attributes:
      items: The jobs.
      cursor: The cursor for the next page, or None on the last one. A page may have
        fewer jobs than its limit, or none, and still have a cursor.
    """

    items: list[JobState]
    cursor: str | None


class Filter(NamedTuple):
    """Which jobs to list. A field that is None matches every job."""

    owner: str | float | None = None
    kind: str | None = None
    status: str | None = None
    params: Mapping[str, Any] | None = None

    @property
    def index_name(self) -> str:
        """The name of the index with the fewest jobs to examine."""
        if self.owner is not None:
            return f"owner:{dumps(self.owner)}"
        return "all" if self.kind is None else f"kind:{self.kind}"

    @property
    def is_index(self) -> bool:
        """Whether every job in the index matches, without further checks."""
        is_one = self.owner is None or self.kind is None
        return is_one and self.status is None and not self.params

    def admits(self, record: Record) -> bool:
        """Return whether a job matches, apart from its parameters."""
        return (
            (self.owner is None or record.owner == self.owner)
            and (self.kind is None or record.kind == self.kind)
            and (self.status is None or record.status == self.status)
        )

    def admits_params(self, record: Record) -> bool:
        params = record.params
        return all(
            name in params and params[name] == value
            for name, value in (self.params or {}).items()
        )


class Place(NamedTuple):
    """A place in a list: after an entry of the ended or the unfinished jobs. `score` is
    None at the beginning of a list.
    """

    ended: bool
    score: int | None = None
    uuid: str = ""

    @classmethod
    def parse(cls, cursor: str) -> Place:
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise ValueError(
                f"cursor was not issued by this list: {cursor!r}. "
                "Omit it for the first page."
            )
        return cls(match[1] == "e", int(match[2]), match[3])

    def __str__(self) -> str:
        return f"{'e' if self.ended else 'a'}{self.score}.{self.uuid}"


class Lister:
    """Makes the pages of one list.

    Parameters:
      wanted: Which jobs to list.
      reader: Reads the records.
      index: The sorted sets.
      run: Runs calls of scripts, and raises an exception if one fails.
      make: Returns the jobs of records, with None for each that cannot be made.
    """

    def __init__(
        self,
        wanted: Filter,
        reader: Reader,
        index: Index,
        run: Callable[[Iterable[Call]], object],
        make: Callable[[Iterable[Record | None]], Sequence[JobState | None]],
    ) -> None:
        self._wanted = wanted
        self._reader = reader
        self._index = index
        self._run = run
        self._make = make

    def page(self, limit: int, cursor: str | None) -> Page:
        """Return a page as :meth:`.JobStore.list` does."""
        wanted = self._wanted
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit must be an int, not {limit!r}.")
        if not 1 <= limit <= MAX_LIMIT:
            raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")
        if wanted.status is not None and wanted.status not in UNFINISHED + FINISHED:
            raise ValueError(
                f"status must be a status of a job, not {wanted.status!r}."
            )
        place = (
            Place(wanted.status in FINISHED) if cursor is None else Place.parse(cursor)
        )
        found: dict[str, Record] = {}
        ended: list[tuple[Place, Record | None]] = []
        next_cursor = None
        # One more entry than the page shows tells whether another page follows.
        entries = self._entries(place, limit + 1)
        for examined, (entry, record, is_wanted) in enumerate(entries):
            if len(found) == limit or examined == MAX_EXAMINED:
                next_cursor = str(place)
                break
            place = entry
            if entry.ended and (record is None or not record.is_finished):
                ended.append((entry, record))
            if record is None or not is_wanted:
                continue
            found.setdefault(entry.uuid, record)
        # Repair only this page. A job on a later page that runs again would move to an
        # earlier one, and a viewer who pages through the list would miss it.
        self._repair(ended)
        return Page(self._load(found), next_cursor)

    def _load(self, found: Mapping[str, Record]) -> list[JobState]:
        """Return the jobs of a page. If the filter has read only outlines, read the
        whole records now and leave out jobs that no longer match.
        """
        records: Iterable[Record | None] = found.values()
        if found and not self._wanted.is_index:
            records = (
                record
                for record in self._reader.read(list(found))
                if record
                and self._wanted.admits(record)
                and self._wanted.admits_params(record)
            )
        return [job_state for job_state in self._make(records) if job_state is not None]

    def _entries(
        self, place: Place, count: int
    ) -> Iterator[tuple[Place, Record | None, bool]]:
        """Yield the entries after a place.

        Parameters:
          place: The place.
          count: How many entries to read at first. Each further read doubles it,
            up to 200.

        Yields:
          An entry, its record or None if that has expired, and whether it is wanted. In
          a filtered list, the record is only an outline.
        """
        while True:
            entries = self._read_index(place, count)
            names = () if self._wanted.is_index else OUTLINE
            records = self._reader.read([entry.uuid for entry in entries], *names)
            wants = self._examine(records)
            if not place.ended and self._repair(
                list(zip(entries, records, strict=True))
            ):
                # A job that was just moved comes again among the ended jobs.
                wants = [
                    is_wanted and not (record and record.is_finished)
                    for record, is_wanted in zip(records, wants, strict=True)
                ]
            yield from zip(entries, records, wants, strict=True)
            if len(entries) == count:
                place = entries[-1]
                count = min(2 * count, MAX_LIMIT)
            elif place.ended or self._wanted.status in UNFINISHED:
                return
            else:
                place = Place(ended=True)

    def _examine(self, records: Sequence[Record | None]) -> list[bool]:
        """Return for each record whether it is wanted."""
        found = {r.uuid for r in records if r is not None and self._wanted.admits(r)}
        if self._wanted.params:
            found = self._with_params(list(found))
        return [record is not None and record.uuid in found for record in records]

    def _with_params(self, uuids: Sequence[str]) -> set[str]:
        """Return the uuids of the jobs whose parameters match. Parameters may be large,
        so they are read in portions and not kept.
        """
        found: set[str] = set()
        first = total = 0
        sizes = self._reader.sizes(uuids, "params")
        for i, size in enumerate([*sizes, MAX_PORTION + 1]):
            if total + size > MAX_PORTION and i > first:
                records = self._reader.read(uuids[first:i], "params")
                found.update(
                    r.uuid for r in records if r and self._wanted.admits_params(r)
                )
                first, total = i, 0
            total += size
        return found

    def _read_index(self, place: Place, count: int) -> list[Place]:
        """Return the entries after a place in its index, the newest first."""
        key = self._index.key(self._wanted.index_name, ended=place.ended)
        newest = MAX_SCORE if place.score is None else place.score
        found: list[Place] = []
        offset = 0
        # One more, since the first reply includes the place itself.
        size = count + 1
        while len(found) < count:
            words = (newest, 0, "WITHSCORES", "LIMIT", offset, size)
            rows = self._reader.scores("ZREVRANGEBYSCORE", key, *words)
            for uuid, score in rows:
                entry = Place(place.ended, score, uuid)
                # Entries with equal scores come in descending order of uuids.
                follows = entry.score != place.score or uuid < place.uuid
                if follows and UUID.fullmatch(uuid):
                    found.append(entry)
            if len(rows) < size:
                break
            offset += size
        return found[:count]

    def _repair(self, found: Sequence[tuple[Place, Record | None]]) -> bool:
        """Remove the entries of expired jobs, and move those that a worker could not
        move when its job ended or began again.

        Returns:
          Whether all entries are now where they belong. On a read-only server they stay
          until later.
        """
        calls: list[Call] = []
        for entry, record in found:
            if record is None:
                key = self._index.key(self._wanted.index_name, ended=entry.ended)
                calls.append(self._index.drop(key, entry.uuid))
            elif record.is_finished and not entry.ended:
                calls.extend(self._index.end(entry.uuid, record.info))
            elif entry.ended and not record.is_finished:
                calls.extend(self._index.remove(entry.uuid, record.info, ended=True))
                calls.extend(self._index.activate(entry.uuid, record.info))
        with contextlib.suppress(RedisError):
            self._run(calls)
            return True
        return False
