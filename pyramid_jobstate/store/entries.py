"""The entries of a list: read from the indexes, examined, and repaired."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from ..job import FINISHED, UNFINISHED, UUID, Record
from .connection import text
from .filters import ACTIVE, BY_STATUS, ENDED, FAILED_OR_LOST, OUTLINE, Filter, Place
from .reading import MAX_SCORE
from .statuses import Found

if TYPE_CHECKING:
    from .index import Index
    from .reading import Reader
    from .scripts import Call

#: The maximum number of entries whose records are read at once.
MAX_READ = 200

#: The maximum number of entries that the server looks at in one call.
MAX_LOOKED = 2000

#: The maximum bytes of parameters to read at once.
MAX_PORTION = 4 * 1024 * 1024

#: The status indexes that list the jobs of a status. The stored status of a stalled job
#: is the one that it had when its worker was last heard of.
SOURCES = {
    "working": ("working",),
    "retrying": ("retrying",),
    "cancelling": ("cancelling",),
    "stalled": ("working", "cancelling", "sending"),
    "error": ("error",),
    "cancelled": ("cancelled",),
    FAILED_OR_LOST: ("error", "sending"),
}

#: The status indexes of the jobs that have none of these statuses.
OTHERS = {
    "queued": ("working", "retrying", "cancelling"),
    "success": ("error", "cancelled"),
}


class ListAccess(NamedTuple):
    """What it takes to read the lists, and to repair them.

    Attributes:
      reader: Reads the records.
      indexes: The sorted sets.
      run: Runs calls of scripts, and raises an exception if one fails.
    """

    reader: Reader
    indexes: Index
    run: Callable[[Iterable[Call]], Sequence[Any]]


class Entry(NamedTuple):
    """An entry of a list.

    Attributes:
      place: Its place.
      record: Its record, only an outline in a filtered list, or None if it has expired.
      is_wanted: Whether the list shows it.
      status: The status index in which it was found, or "".
      is_unlisted: Whether the index of its status lacks it.
      skipped: If it only marks a place, how many entries were looked at up to there.
    """

    place: Place
    record: Record | None = None
    is_wanted: bool = False
    status: str = ""
    is_unlisted: bool = False
    skipped: int = 0

    @property
    def is_misplaced(self) -> bool:
        """Whether its record says that it belongs elsewhere."""
        if self.skipped:
            return False
        if self.record is None or self.is_unlisted:
            return True
        if self.status:
            return self.record.stored_status != self.status
        return self.record.is_finished != (self.place.part == ENDED)


class Entries:
    """Reads the entries of a list.

    Parameters:
      wanted: Which jobs to list.
      access: The access to the lists.
      skips: Whether the status indexes tell which jobs to skip.
      names: The fields to read, by default all, or an outline for a filtered list.
    """

    def __init__(
        self,
        wanted: Filter,
        access: ListAccess,
        *,
        skips: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        self._wanted = wanted
        self._reader, self._index, self._run = access
        self._names = (() if wanted.is_index else OUTLINE) if names is None else names
        self._others = OTHERS[wanted.status] if skips and wanted.status else ()

    def after(self, place: Place, count: int) -> Iterator[Entry]:
        """Yield the entries after a place.

        Parameters:
          place: The place.
          count: How many entries to read at first. Each further read doubles it,
            up to MAX_READ.
        """
        while True:
            sought = self.seek(place, count) if self._others else None
            if sought is not None:
                found, looked, last = sought
            else:
                found, looked = self.read(place, count), 0
                last = found[-1][0] if len(found) == count else None
            yield from self.examine(found)
            if last is not None:
                if looked:
                    yield Entry(last, skipped=looked)
                place = last
                count = min(2 * count, MAX_READ)
            elif place.part == ACTIVE and self._wanted.status not in UNFINISHED:
                place = Place(ENDED)
            else:
                return

    def read(self, place: Place, count: int) -> list[tuple[Place, str]]:
        """Return entries after a place, the newest first, and their status indexes."""
        if place.part != BY_STATUS:
            return [(entry, "") for entry in self.read_index(place, count)]
        found = [
            (entry, status)
            for status in SOURCES[self._wanted.status or ""]
            for entry in self.read_index(place, count, status)
        ]
        found.sort(key=lambda each: (each[0].score, each[0].uuid), reverse=True)
        return found[:count]

    def read_index(self, place: Place, count: int, status: str = "") -> list[Place]:
        """Return the entries after a place in an index, the newest first."""
        key = self._key(place.part, status)
        newest = MAX_SCORE if place.score is None else place.score
        found: list[Place] = []
        offset = 0
        # One more, since the first reply includes the place itself.
        size = count + 1
        while len(found) < count:
            words = (newest, 0, "WITHSCORES", "LIMIT", offset, size)
            rows = self._reader.scores("ZREVRANGEBYSCORE", key, *words)
            for uuid, score in rows:
                entry = Place(place.part, score, uuid)
                # Entries with equal scores come in descending order of uuids.
                follows = entry.score != place.score or uuid < place.uuid
                if follows and UUID.fullmatch(uuid):
                    found.append(entry)
            if len(rows) < size:
                break
            offset += size
        return found[:count]

    def seek(
        self, place: Place, count: int
    ) -> tuple[list[tuple[Place, str]], int, Place | None] | None:
        """Return entries after a place that no other status lists, how many entries
        were looked at for them, and the last of these, or None at the end of the index.
        Return None if another program has written into one of the indexes.
        """
        newest = MAX_SCORE if place.score is None else place.score
        ended = place.part == ENDED
        scope = self._wanted.scope
        call = self._index.seek(
            scope, self._others, newest, place.uuid, count, MAX_LOOKED, ended=ended
        )
        (reply,) = self._run([call])
        if reply is None:
            return None
        last, score, looked, *rows = reply
        found = [
            (Place(place.part, int(float(score)), text(uuid)), "")
            for uuid, score in zip(rows[::2], rows[1::2], strict=True)
            if UUID.fullmatch(text(uuid))
        ]
        if not last:
            return found, looked, None
        return found, looked, Place(place.part, int(float(score)), text(last))

    def examine(self, found: Sequence[tuple[Place, str]]) -> Iterator[Entry]:
        """Yield entries with their records."""
        uuids = [place.uuid for place, _ in found]
        records = self._reader.read(uuids, *self._names)
        if self._wanted.owner is None and (kind := self._wanted.kind) is not None:
            # A job whose class has another name now has no place in this index.
            records = [r if r and r.kind == kind else None for r in records]
        wants = self._wants(records)
        entries = [
            Entry(place, record, is_wanted, status, self._is_unlisted(record))
            for (place, status), record, is_wanted in zip(
                found, records, wants, strict=True
            )
        ]
        # Ended and listed by status, they are repaired with the page that shows them. A
        # job on a later page that runs again would move to an earlier one, and a viewer
        # who pages through the list would miss it.
        unfinished = [entry for entry in entries if entry.place.part == ACTIVE]
        if any(e.is_misplaced for e in unfinished) and self.repair(unfinished):
            # A job that was just moved comes again among the ended jobs.
            entries = [
                entry._replace(is_wanted=entry.is_wanted and not entry.is_misplaced)
                for entry in entries
            ]
        yield from entries

    def _is_unlisted(self, record: Record | None) -> bool:
        """Return whether an entry that no other status lists has one of those."""
        return record is not None and record.stored_status in self._others

    def repair(self, entries: Sequence[Entry]) -> bool:
        """Remove the entries of expired jobs, and move those that a worker could not
        move when its job changed.

        Returns:
          Whether all entries are now where they belong. On a read-only server they stay
          until later.
        """
        calls = [call for entry in entries for call in self._repairs(entry)]
        with contextlib.suppress(RedisError):
            self._run(calls)
            return True
        return False

    def _repairs(self, entry: Entry) -> Iterable[Call]:
        index, record, uuid = self._index, entry.record, entry.place.uuid
        if not entry.is_misplaced:
            return ()
        if record is None:
            name, ended = self._index_of(entry.place.part, entry.status)
            return [index.drop(name, uuid, ended=ended)]
        if entry.is_unlisted:
            return index.move(uuid, record.kind, record.stored_status, Found(""))
        if entry.status:
            found = Found(entry.status, self._wanted.scope, entry.place.score or 0)
            return index.relist(uuid, record, found)
        return index.relist(uuid, record)

    def _wants(self, records: Sequence[Record | None]) -> list[bool]:
        """Return for each record whether it is wanted."""
        admits = self._wanted.admits
        if not self._wanted.params:
            return [record is not None and admits(record) for record in records]
        fits = {r.uuid for r in records if r is not None and admits(r)}
        found = self._with_params(list(fits))
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

    def _key(self, part: str, status: str = "") -> str:
        """Return the key of the index that a part of the list is read from."""
        if part == BY_STATUS:
            return self._index.status_key(self._wanted.scope, status)
        name, ended = self._index_of(part)
        return self._index.key(name, ended=ended)

    def _index_of(self, part: str, status: str = "") -> tuple[str, bool]:
        """Return the name of the index that a part of the list is read from, or beside,
        and whether it lists the ended jobs.
        """
        if part == BY_STATUS:
            return self._wanted.scope, status in FINISHED
        return self._wanted.index_name, part == ENDED
