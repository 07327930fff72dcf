"""The sorted sets that list the jobs: their entries, pages and counts."""

from __future__ import annotations

import collections
import contextlib
import datetime
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from redis.exceptions import RedisError

from ..job import (
    BATCH,
    FINISHED,
    UNFINISHED,
    UUID,
    JobInfo,
    NewJob,
    Record,
    Update,
    dumps,
    is_owner,
)
from .connection import Client, Command, text
from .reader import MAX_SCORE, ask
from .scripts import Call, Reply, Script, beside, has_tag, millis

if TYPE_CHECKING:
    from ..job import JobState
    from .reader import Reader

#: The statuses that a job reads as.
STATUSES = UNFINISHED + FINISHED

#: Stands for a status in the filter of jobs that may run again: see Record.has_failed.
FAILED_OR_LOST = "failed or lost"

#: The fields that a filter reads before it loads the whole record.
OUTLINE = ("kind", "owner", "status", "updated", "seen", "batch")

#: The parts of a list: unfinished jobs, ended ones, and those of one status.
ACTIVE, ENDED, BY_STATUS = "a", "e", "s"

_CURSOR = re.compile(r"([aes])([0-9]{1,16})\.([0-9a-f-]{36})")


class Filter(NamedTuple):
    """Which jobs to list. A field that is None matches every job."""

    owner: str | float | None = None
    kind: str | None = None
    status: str | None = None
    params: Mapping[str, Any] | None = None
    batch: str | None = None

    def check_types(self) -> None:
        """Check all but the status and the batch: no job would match other types.

        Raises:
          TypeError: The owner is neither a string nor a finite number, the kind is not
            a string, or the params are not a mapping.
        """
        if self.owner is not None and not is_owner(self.owner):
            raise TypeError(
                f"owner must be a string or a finite number, not {self.owner!r}."
            )
        if not isinstance(self.kind, str | None):
            raise TypeError(
                f"kind must be a str, such as RunMarathon.kind, not {self.kind!r}."
            )
        if not isinstance(self.params, Mapping | None):
            raise TypeError(
                f"params must be a dict of values by name, not {self.params!r}."
            )

    def check(self) -> None:
        """Check everything but the batch.

        Raises:
          TypeError: See :meth:`check_types`.
          ValueError: The status is unknown.
        """
        self.check_types()
        if self.status is not None and self.status not in STATUSES:
            raise ValueError(f"status must be a status of a job, not {self.status!r}.")

    @property
    def matches_all(self) -> bool:
        """Whether no job is left out."""
        named = (self.owner, self.kind, self.status, self.batch)
        return not self.params and all(value is None for value in named)

    @property
    def index_name(self) -> str:
        """The name of the index with the fewest jobs to examine."""
        return self.scope if self.owner is None else f"owner:{dumps(self.owner)}"

    @property
    def scope(self) -> str:
        """The scope of the status indexes with the fewest jobs to examine."""
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
            and (self.status is None or has_status(record, self.status))
            and (self.batch is None or record.text("batch") == self.batch)
        )

    def admits_params(self, record: Record) -> bool:
        params = record.params
        return all(
            name in params and params[name] == value
            for name, value in (self.params or {}).items()
        )


def has_status(record: Record, status: str) -> bool:
    """Return whether a job has a status, or is one of FAILED_OR_LOST."""
    if status == FAILED_OR_LOST:
        # A batch does not run again, but its jobs do.
        return record.has_failed and record.text("batch") != BATCH
    return record.status == status


def matches_since(record: Record, status: str | None) -> int:
    """Return since when a job has had its status, in milliseconds of the store's clock,
    as far as its record tells and a filter depends on it; else 0.

    Parameters:
      status: The status that the filter names, or None.
    """
    finished = record.millis("finished")
    if finished is not None:
        return finished
    is_queued = record.status == "queued"
    if status is None and not (is_queued and record.info.rerun):
        # The job has been unfinished since it was sent.
        return 0
    if record.status == "working":
        return record.millis("started") or 0
    if is_queued or record.status == "retrying":
        return record.millis("updated") or 0
    return 0


class Place(NamedTuple):
    """A place in a list: after an entry of one of its parts. `score` is None at the
    beginning of a part.
    """

    part: str
    score: int | None = None
    uuid: str = ""

    @classmethod
    def parse(cls, cursor: str) -> Place:
        match = _CURSOR.fullmatch(check_cursor(cursor))
        if match is None:
            raise bad_cursor(cursor)
        return cls(match[1], int(match[2]), match[3])

    def __str__(self) -> str:
        return f"{self.part}{self.score}.{self.uuid}"


def check_cursor(cursor: object) -> str:
    """Return a cursor if it is a string.

    Raises:
      TypeError: It is not.
    """
    if not isinstance(cursor, str):
        raise TypeError(f"cursor must be a str from the call before, not {cursor!r}.")
    return cursor


def bad_cursor(cursor: str) -> ValueError:
    """Return the error for a cursor of another list."""
    return ValueError(
        f"cursor was not issued by this list: {cursor!r}. Omit it for the first page."
    )


#: Those of unfinished and of ended jobs, each in the order of their numbers for the
#: script. Other unfinished jobs count as queued, other ended ones as successful: they
#: take no place in them.
ACTIVE_INDEXES = ("sending", "working", "retrying", "cancelling")
ENDED_INDEXES = ("error", "cancelled")

INDEXED = ACTIVE_INDEXES + ENDED_INDEXES


class Found(NamedTuple):
    """Where a job is expected among the status indexes.

    Attributes:
      status: The status of the index, or "" if it is expected in none.
      scope: The scope of the index in which it was found, if it was read there.
      score: Its score there, in microseconds.
    """

    status: str
    scope: str = ""
    score: int = 0


def indexes_of(*, ended: bool) -> tuple[str, ...]:
    """Return the statuses of the indexes beside one of ended or of unfinished jobs."""
    return ENDED_INDEXES if ended else ACTIVE_INDEXES


def number_of(status: str, *, ended: bool) -> int:
    """Return the number of a status's index for the script, or 0 if it has none."""
    statuses = indexes_of(ended=ended)
    return statuses.index(status) + 1 if status in statuses else 0


def scopes_of(kind: str) -> tuple[str, ...]:
    """Return the scopes in which a job is listed by status."""
    return ("all", f"kind:{kind}") if kind else ("all",)


#: Milliseconds for which a requested cancellation is announced. Later, workers learn of
#: it from the reply to a heartbeat.
NEWS_TTL = 60_000

#: Seconds for which this process does not list a kind again.
KIND_SECONDS = 60.0


class Index:
    """Makes the calls that list the jobs of a store: all jobs, by kind, by owner, by
    status, and those whose cancellation was requested recently.

    Beside each index of all jobs or of a kind stand the indexes of the statuses that
    its jobs may have. One script changes them together.

    Parameters:
      scripts: The scripts by name.
      namespace: The prefix of each key.
      active_ttl: Milliseconds that an unfinished job stays listed.
      ended_ttl: Milliseconds that a job stays listed after its end.

    Attributes:
      kind_ttl: Milliseconds that a kind stays listed after one of its jobs was sent or
        started.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script],
        namespace: str,
        active_ttl: int,
        ended_ttl: int,
    ) -> None:
        self._script = scripts["index"]
        self._seek = scripts["seek"]
        self._namespace = namespace
        self.active_ttl = active_ttl
        self.ended_ttl = ended_ttl
        self.kind_ttl = active_ttl + ended_ttl
        #: When each kind is due to be listed again.
        self._noted: dict[str, float] = {}

    def key(self, name: str, *, ended: bool) -> str:
        """Return the key of an index, whose name is a scope ("all", or "kind:" and a
        kind), or "owner:" and an owner as JSON.
        """
        return index_key(self._namespace, name, ended=ended)

    def status_key(self, scope: str, status: str) -> str:
        """Return the key of a status index, in the slot of the scope's index."""
        return beside(self.key(scope, ended=status in FINISHED), status)

    def ttl(self, *, ended: bool) -> int:
        """Return for how many milliseconds a job stays listed."""
        return self.ended_ttl if ended else self.active_ttl

    def queue(self, job: NewJob, *, again: bool) -> Iterator[Call]:
        """Yield the calls that list a new job, or one that had ended."""
        if again:
            yield from self._reopen(job.uuid, job.info.kind)
        status, delay = "waiting" if job.waits else "sending", millis(job.delay)
        yield from self._enter(job.uuid, job.info, status, delay=delay)

    def confirm(self, uuid: str, kind: str) -> Iterator[Call]:
        """Yield the calls that list a job as sent."""
        yield from self.note_kind(kind)
        yield from self.move(uuid, kind, "queued", Found("sending"))

    def forget(self, job: NewJob) -> Iterable[Call]:
        """Return the calls that remove a job that was not sent."""
        return self.leave(job.uuid, job.info, ended=False)

    def update(
        self, update: Update, reply: Reply | Exception, *, reopened: bool
    ) -> Iterator[Call]:
        """Yield the calls that list a job after an update that begins its run, renews
        its place or ends the run.

        Parameters:
          reply: The store's reply to the update.
          reopened: Whether the job had ended before the run began.
        """
        if reply not in (Reply.OK, Reply.CANCELLING):
            return
        if reopened:
            yield from self._reopen(update.uuid, update.info.kind)
        end, is_cancelling = update.end, reply is Reply.CANCELLING
        uuid, info, delay = update.uuid, update.info, 0
        if end is None:
            status = "cancelling" if is_cancelling else "working"
        else:
            status = "cancelled" if is_cancelling else end.status
            delay = millis(end.delay or 0)
        if status in FINISHED:
            yield from self.end(uuid, info, status)
            return
        if update.begins or update.renews or delay:
            yield from self.note_kind(info.kind, delay)
        place = "GT" if update.renews else "NX" if update.begins else "XX"
        yield from self._enter(uuid, info, status, place, delay)

    def requeue(
        self, uuid: str, info: JobInfo, status: str = "sending"
    ) -> Iterator[Call]:
        """Yield the calls that list a job that had ended as unfinished."""
        # In this order, no crash leaves a job without a place.
        yield from self._enter(uuid, info, status)
        yield from self.leave(uuid, info, ended=True)

    def batch(
        self, uuid: str, info: JobInfo, status: str, delay: int
    ) -> Iterator[Call]:
        """Yield the calls that list a new batch, or list it anew because its place is
        about to expire.

        Parameters:
          delay: Milliseconds until the last of its members is due.
        """
        yield from self.note_kind(info.kind, delay)
        yield from self._enter(uuid, info, status, "GT", delay)

    def delete(self, uuid: str, info: JobInfo) -> Iterator[Call]:
        """Yield the calls that remove a deleted job."""
        yield from self.leave(uuid, info, ended=True)
        yield from self.leave(uuid, info, ended=False)

    def end(self, uuid: str, info: JobInfo, status: str) -> Iterator[Call]:
        """Yield the calls that list a job as ended."""
        # "GT", because the end of an earlier run may have listed it already.
        yield from self._enter(uuid, info, status, "GT")
        # In this order, no crash leaves a job without a place.
        yield from self.leave(uuid, info, ended=False)

    def relist(
        self, uuid: str, record: Record, found: Found | None = None
    ) -> Iterator[Call]:
        """Yield the calls that list a job where its record says.

        Parameters:
          found: The only status index that it may leave for another one of the same
            index, or None for any. If it is elsewhere, it stays.
        """
        if found is not None and record.is_finished == (found.status in FINISHED):
            yield from self.move(uuid, record.kind, record.stored_status, found)
        elif record.is_finished:
            yield from self.end(uuid, record.info, record.status)
        else:
            yield from self.requeue(uuid, record.info, record.stored_status)

    @property
    def cancels_key(self) -> str:
        """The key of the sorted set of running jobs with a requested cancellation."""
        return f"{self._namespace}:cancels"

    def announce(self, uuid: str, kind: str) -> Iterator[Call]:
        """Yield the calls that list a job as being cancelled, and announce to all
        workers that it should stop.
        """
        yield Call.of(self._script, self.cancels_key, (uuid, NEWS_TTL, 0, "GT", 0))
        yield from self.move(uuid, kind, "cancelling")

    @property
    def kinds_key(self) -> str:
        """The key of the sorted set of the kinds of listed jobs."""
        return f"{self._namespace}:kinds"

    def note_kind(self, kind: str, delay: int = 0) -> Iterator[Call]:
        """Yield the call that lists a kind for as long as a job may be listed that is
        sent now and due in `delay` milliseconds, unless it was listed a moment ago.
        """
        now = time.monotonic()
        is_due_late = delay > self.ended_ttl
        if kind and (is_due_late or now >= self._noted.get(kind, 0.0)):
            self._noted[kind] = now + KIND_SECONDS
            args = (kind, self.kind_ttl, delay, "GT", 0)
            yield Call.of(self._script, self.kinds_key, args)

    def drop(self, name: str, uuid: str, *, ended: bool) -> Call:
        """Return the call that removes a job from one index, and from those beside."""
        return self._call(name, (uuid, 0, 0, "", 0), ended=ended)

    def move(
        self,
        uuid: str,
        kind: str,
        status: str,
        found: Found | None = None,
    ) -> Iterator[Call]:
        """Yield the calls that list a job under another status, in the same place.

        Parameters:
          uuid, kind: The job.
          status: Its stored status. Some statuses have no index.
          found: The only status index that it may leave. If it is elsewhere, it stays.
        """
        ended = status in FINISHED
        args = (uuid, self.ttl(ended=ended), 0, "", number_of(status, ended=ended))
        for scope in scopes_of(kind):
            origin = () if found is None else _origin(scope, found)
            yield self._call(scope, (*args, *origin), ended=ended)

    def seek(
        self, scope: str, others: Sequence[str], *args: str | int, ended: bool
    ) -> Call:
        """Return the call that reads the entries of a scope's index that are in none of
        some of its status indexes. See the script for the arguments.
        """
        keys = [self.status_key(scope, status) for status in others]
        return Call.of(self._seek, self.key(scope, ended=ended), args, keys)

    def _reopen(self, uuid: str, kind: str) -> Iterable[Call]:
        """Return the calls that list an ended job under no status. It keeps its place
        among the ended jobs until a list shows that: moved to an earlier page, it would
        be missed by a viewer who pages through the list.
        """
        return self.move(uuid, kind, "success")

    def leave(self, uuid: str, info: JobInfo, *, ended: bool) -> Iterator[Call]:
        """Yield the calls that remove a job from the ended or the unfinished jobs."""
        for name in _names(info):
            yield self.drop(name, uuid, ended=ended)

    def _enter(
        self, uuid: str, info: JobInfo, status: str, place: str = "NX", delay: int = 0
    ) -> Iterator[Call]:
        """Yield the calls that list a job under its status, due in `delay`
        milliseconds. See the script for `place`.
        """
        ended = status in FINISHED
        number = number_of(status, ended=ended)
        args = (uuid, self.ttl(ended=ended), delay, place, number)
        for name in _names(info):
            yield self._call(name, args, ended=ended)

    def _call(self, name: str, args: Sequence[str | int], *, ended: bool) -> Call:
        """Return a call of the script for an index and those beside it."""
        key = self.key(name, ended=ended)
        if name.startswith(OWNER):
            return Call.of(self._script, key, args)
        keys = [beside(key, status) for status in indexes_of(ended=ended)]
        return Call.of(self._script, key, args, keys)


#: How the name of an owner's index begins. Its jobs are not listed by status.
OWNER = "owner:"


def index_key(namespace: str, name: str, *, ended: bool) -> str:
    """Return the key of an index as :meth:`Index.key` does."""
    key = f"{namespace}:{'ended' if ended else 'active'}:{name}"
    if "}" in key and not has_tag(key) and not name.startswith(OWNER):
        # No key of a status index could share its slot.
        return key.replace("}", "%7D")
    return key


def _names(info: JobInfo) -> Iterator[str]:
    yield from scopes_of(info.kind)
    # Among the jobs of its owner, a batch stands for its members.
    if info.owner is not None and not info.is_member:
        yield f"{OWNER}{info.owner}"


def _origin(scope: str, found: Found) -> tuple[str | int, ...]:
    """Return how the script is told of the only index that a job may leave."""
    ended = found.status in FINISHED
    score = found.score if scope == found.scope else ""
    return (number_of(found.status, ended=ended), score)


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


#: The maximum number of jobs on a page.
MAX_LIMIT = 200

#: The maximum number of entries to examine for one page of a filtered list, and of each
#: status for stalled jobs.
MAX_EXAMINED = 1000

#: The maximum number of entries to skip for one page without examining them.
MAX_SKIPPED = 50_000


class Page(NamedTuple):
    """A page of a list of jobs.

    Attributes:
      items: The jobs.
      cursor: The cursor for the next page, or None on the last one. A page may have
        fewer jobs than its limit, or none, and still have a cursor.
    """

    items: list[JobState]
    cursor: str | None


def check_limit(limit: int) -> None:
    """Check the number of jobs that a page is to have at most.

    Raises:
      TypeError, ValueError: It is not an int, or out of range.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {limit!r}.")
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")


class Lister:
    """Makes the pages of one list.

    Parameters:
      wanted: Which jobs to list.
      access: The access to the lists.
      make: Returns the jobs of records, with None for each that cannot be made.
      knows_statuses: Returns whether the status indexes hold all jobs.
    """

    def __init__(
        self,
        wanted: Filter,
        access: ListAccess,
        make: Callable[[Iterable[Record | None]], Sequence[JobState | None]],
        knows_statuses: Callable[[], bool],
    ) -> None:
        self._wanted = wanted
        self._access = access
        self._make = make
        self._knows_statuses = knows_statuses

    def page(self, limit: int, cursor: str | None) -> Page:
        """Return a page as :meth:`.JobStore.list` does."""
        wanted = self._wanted
        check_limit(limit)
        wanted.check()
        place = None if cursor is None else Place.parse(cursor)
        # The indexes by status do not know the owners.
        status = wanted.status if wanted.owner is None else None
        if cursor is not None and place is not None and place.part == BY_STATUS:
            if status not in SOURCES:
                raise bad_cursor(cursor)
            is_known = True
        else:
            is_known = status is not None and self._knows_statuses()
        if place is None:
            if is_known and status in SOURCES:
                place = Place(BY_STATUS)
            else:
                place = Place(ENDED if wanted.status in FINISHED else ACTIVE)
        skips = is_known and status in OTHERS
        entries = Entries(wanted, self._access, skips=skips)
        return self._page(entries, place, limit)

    def _page(self, entries: Entries, place: Place, limit: int) -> Page:
        found: dict[str, Record] = {}
        misplaced = []
        next_cursor = None
        examined = skipped = 0
        # One more entry than the page shows tells whether another page follows.
        for entry in entries.after(place, limit + 1):
            is_full = len(found) == limit or examined == MAX_EXAMINED
            if is_full or skipped >= MAX_SKIPPED:
                next_cursor = str(place)
                break
            place = entry.place
            examined += not entry.skipped
            skipped += entry.skipped
            if place.part != ACTIVE:
                misplaced.append(entry)
            if entry.record is not None and entry.is_wanted:
                found.setdefault(place.uuid, entry.record)
        entries.repair(misplaced)
        return Page(self._load(found), next_cursor)

    def _load(self, found: Mapping[str, Record]) -> list[JobState]:
        """Return the jobs of a page. If the filter has read only outlines, read the
        whole records now and leave out jobs that no longer match.
        """
        records: Iterable[Record | None] = found.values()
        if found and not self._wanted.is_index:
            records = (
                record
                for record in self._access.reader.read(list(found))
                if record
                and self._wanted.admits(record)
                and self._wanted.admits_params(record)
            )
        return [job_state for job_state in self._make(records) if job_state is not None]


#: Seconds for which this process returns the same counts.
FRESH_SECONDS = 1.0

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


Key = TypeVar("Key")
Answer = TypeVar("Answer")


class Fresh(Generic[Key, Answer]):
    """Answers by their questions, each kept for a while. Threads may share them.

    Parameters:
      seconds: How long an answer is kept.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: Before then answers are too old.
        self._since = 0.0
        #: The answers, each with the time of its question.
        self._kept: dict[Key, tuple[float, Answer]] = {}

    def get(self, key: Key, ask: Callable[[], Answer], *, anew: bool = False) -> Answer:
        """Return the answer that is kept, or else what `ask` returns.

        Parameters:
          anew: Ask in any case.
        """
        now = time.monotonic()
        since = max(self._since, now - self._seconds)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > since and not anew:
            return kept[1]
        answer = ask()
        fresh = {k: v for k, v in self._kept.items() if v[0] > since}
        # Other threads may iterate over the old dictionary: it never changes.
        self._kept = {**fresh, key: (now, answer)}
        return answer

    def forget(self) -> None:
        """Ask anew from now on: something has changed that this process knows of."""
        self._since = time.monotonic()
