"""The sorted sets that list the jobs: their names, their entries, pages and counts."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..job.record import FINISHED, RUNNING, STATUSES, UUID, Counts, Record
from ..job.state import JobState
from ..job.values import dumps, is_owner
from ..job.words import did_you_mean
from .arguments import check_int
from .connection import Client, Command
from .reader import MAX_SCORE, ask, records_in, scored
from .scripts import Calls, Lives, Runner, has_tag

if TYPE_CHECKING:
    from .reader import Reader

#: Stands for a status in the filter of jobs that may run again: see
#: Record.is_failed_or_lost.
FAILED_OR_LOST = "failed or lost"

#: The set of the jobs that are being sent.
UNSENT = "unsent"

#: The sets that list the jobs of a status. The stored status of a stalled job is the
#: one that it had when its worker was last heard from.
SOURCES = {
    "queued": ("queued",),
    "working": ("working",),
    "retrying": ("retrying",),
    "stalled": (*RUNNING, UNSENT),
    "cancelling": ("cancelling",),
    "success": ("success",),
    "error": ("error",),
    "cancelled": ("cancelled",),
    FAILED_OR_LOST: ("error", UNSENT),
}

#: The sets of a scope, which hold all its jobs.
UNFINISHED_SETS = ("queued", "working", "retrying", "cancelling")
SETS = UNFINISHED_SETS + FINISHED

#: The set of the jobs that had ended and run again, at their old places.
AGAIN = "again"

#: The fields that a filter reads before it loads the whole record.
OUTLINE = ("kind", "actor", "owner", "status", "updated", "seen", "batch")

#: The parts of a list: unfinished jobs and ended ones.
ACTIVE, ENDED = "u", "e"

_CURSOR = re.compile(r"([ue])([0-9]{1,16})\.([0-9]{1,4})")

#: What the names of kinds begin with: of those that have a class, and of actors.
CLASS, ACTOR = "class:", "actor:"


def kind_name(record: Record) -> str:
    """Return the name of a job's kind: that of its class or, if its actor declares
    none, that of its actor. See scopes_of() in lua/sets.lua.
    """
    is_plain = record.kind == JobState.kind and not record.is_batch
    if is_plain and record.actor:
        return ACTOR + record.actor
    return CLASS + record.kind


class Filter(NamedTuple):
    """Which jobs to list. A field that is None matches every job.

    Attributes:
      kind: The name of a kind: see :func:`kind_name`. With an owner it may be that of
        a class or an actor, or of both.
      batch: The uuid of a batch, whose members to list.
      members: Whether to list members of batches.
    """

    owner: str | float | None = None
    kind: str | None = None
    status: str | None = None
    params: Mapping[str, Any] | None = None
    batch: str | None = None
    members: bool = False

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
            raise ValueError(
                f"status must be a status of a job, not {self.status!r}."
                f"{did_you_mean(self.status)}"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the kinds that match, or none if all do."""
        if self.kind is None:
            return ()
        if self.kind.startswith((CLASS, ACTOR)):
            return (self.kind,)
        return CLASS + self.kind, ACTOR + self.kind

    @property
    def matches_all(self) -> bool:
        """Whether no job is left out."""
        named = (self.owner, self.kind, self.status, self.batch)
        return not self.params and all(value is None for value in named)

    @property
    def scope(self) -> str:
        """The scope with the fewest jobs to examine."""
        if self.owner is not None:
            return f"owner:{dumps(self.owner)}"
        return self.kind or "all"

    @property
    def is_scope(self) -> bool:
        """Whether every job matches that is in the sets of the filter, but for one that
        is stalled.
        """
        if self.params or self.status in ("stalled", FAILED_OR_LOST):
            return False
        return self.owner is None or (self.kind is None and not self.members)

    def admits(self, record: Record) -> bool:
        """Return whether a job matches, apart from its parameters."""
        return (
            (self.owner is None or record.owner == self.owner)
            and (self.kind is None or kind_name(record) in self.kinds)
            and (self.status is None or has_status(record, self.status))
            and (self.batch is None or record.batch == self.batch)
            and (self.members or not record.is_member)
        )

    def admits_params(self, record: Record) -> bool:
        params = record.params
        return all(
            name in params and params[name] == value
            for name, value in (self.params or {}).items()
        )


def has_status(record: Record, status: str) -> bool:
    """Return whether a job has a status, or is one of FAILED_OR_LOST. A silent batch is
    listed under the status that it had before.
    """
    if status == FAILED_OR_LOST:
        # A batch does not run again, but its jobs do.
        return record.is_failed_or_lost and not record.is_batch
    return (record.stored_status if record.is_batch else record.status) == status


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
    """A place in a list: after an entry of one of its parts.

    Attributes:
      part: ACTIVE or ENDED.
      score: The score of the entry, or None at the beginning of the part.
      passed: How many entries with this score come before the place.
    """

    part: str
    score: int | None = None
    passed: int = 0

    @classmethod
    def parse(cls, cursor: str) -> Place:
        match = _CURSOR.fullmatch(check_cursor(cursor))
        if match is None:
            raise bad_cursor(cursor)
        return cls(match[1], int(match[2]), int(match[3]))

    def __str__(self) -> str:
        if self.passed > 9999 and self.score:
            # So many have one score only if another program wrote them.
            return f"{self.part}{self.score - 1}.0"
        return f"{self.part}{self.score}.{self.passed}"


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


class Sets:
    """The names of the sorted sets of a store: see lua/sets.lua.

    Parameters:
      namespace: The prefix of each key.
      lives: The durations of the store.
    """

    def __init__(self, namespace: str, lives: Lives) -> None:
        self._namespace = namespace
        self.lives = lives
        #: Milliseconds that a kind stays listed after one of its jobs was sent.
        self.kind_ttl = lives.active + lives.ended
        self._braces = ("", "") if has_tag(namespace) else ("{", "}")

    def key(self, name: str) -> str:
        """Return the key of a set of the whole store."""
        return f"{self._namespace}:{name}"

    def scope(self, name: str, *, members: bool = False) -> str:
        """Return what the names of a scope's sets begin with.

        Parameters:
          name: "all", the name of a kind, or "owner:" and an owner as JSON.
          members: Whether they list members of batches.
        """
        what, colon, rest = name.partition(":")
        first, last = self._braces
        inside = what + colon + escaped(rest)
        part = "members:" if members else ""
        return f"{self._namespace}:{first}{inside}{last}:{part}"

    def ttl(self, name: str) -> int:
        """Return for how many milliseconds a job stays in a set."""
        return self.lives.ended if name in (*FINISHED, AGAIN) else self.lives.active


#: The characters that would end the hash tag of a key, or its scope.
_ESCAPED = re.compile("[%}:]")


def escaped(name: str) -> str:
    """Return a name as it stands in the name of a set."""
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", name)


#: The maximum number of entries whose records are read at once.
MAX_READ = 200

#: The maximum bytes of parameters to read at once.
MAX_PORTION = 4 * 1024 * 1024


class ListAccess(NamedTuple):
    """What it takes to read the lists, and to mend them.

    Attributes:
      client: The server.
      reader: Reads the records.
      sets: The names of the sorted sets.
      calls: Makes calls of scripts.
      runner: Runs them.
    """

    client: Client
    reader: Reader
    sets: Sets
    calls: Calls
    runner: Runner


class Entry(NamedTuple):
    """An entry of a list.

    Attributes:
      place: The place after it.
      uuid: The job.
      scope, set: What the name of the set begins with in which it was found, and the
        rest of its name.
      record: Its record, only an outline in a filtered list, or None if it has expired.
      is_wanted: Whether the list shows it.
    """

    place: Place
    uuid: str
    scope: str
    set: str
    record: Record | None = None
    is_wanted: bool = False

    @property
    def score(self) -> int:
        return self.place.score or 0


class Source(NamedTuple):
    """A set of a scope.

    Attributes:
      scope, set: What the name of the set begins with, and the rest of its name.
      least: The lowest score that counts.
    """

    scope: str
    set: str
    least: int

    def size(self, most: int | str = MAX_SCORE) -> Command:
        """Return the command that counts the entries, up to a score."""
        return self._command("ZCOUNT", self.least, most)

    def newest(self, limit: int, most: int = MAX_SCORE) -> Command:
        """Return the command that reads the newest entries, up to a score."""
        words = ("WITHSCORES", "LIMIT", 0, limit)
        return self._command("ZREVRANGEBYSCORE", most, self.least, *words)

    def oldest(self, limit: int, most: int, passed: int = 0) -> Command:
        """Return the command that reads the oldest entries after some that are passed
        over, up to a score.
        """
        words = ("WITHSCORES", "LIMIT", passed, limit)
        return self._command("ZRANGEBYSCORE", self.least, most, *words)

    def entries(self, reply: Any) -> list[Entry]:
        """Return the entries in a reply."""
        return [
            Entry(Place(ACTIVE, score), uuid, self.scope, self.set)
            for uuid, score in scored(reply)
        ]

    def _command(self, name: str, *words: str | int) -> Command:
        key = self.scope + self.set
        return Command(key, (name, key, *words))


class Entries:
    """Reads the entries of a list.

    Parameters:
      wanted: Which jobs to list.
      access: The access to the lists.
      sets: The names of the sets to read, by default those of the filter.
      names: The fields to read, by default all, or an outline for a filtered list.

    Attributes:
      is_full: Whether so many bytes of records were read that the last entry has none,
        and that a page ends before it.
    """

    def __init__(
        self,
        wanted: Filter,
        access: ListAccess,
        sets: Sequence[str] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        self._wanted = wanted
        self._access = access
        self._reader = access.reader
        self.is_full = False
        self._names = (() if wanted.is_scope else OUTLINE) if names is None else names
        if not sets:
            sets = (*SETS, AGAIN) if wanted.status is None else SOURCES[wanted.status]
        #: The sets of each part: what their names begin with, and the rest.
        self._parts: dict[str, list[tuple[str, str]]] = {}
        for name in sets:
            part = ENDED if name in (*FINISHED, AGAIN) else ACTIVE
            self._parts.setdefault(part, []).extend(self._sources(name))

    def _sources(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the sets that list wanted jobs."""
        wanted, sets = self._wanted, self._access.sets
        if name == UNSENT:
            yield sets.key(""), name
            return
        yield sets.scope(wanted.scope), name
        if wanted.members:
            for kind in wanted.kinds or ("all",):
                yield sets.scope(kind, members=True), name

    @property
    def start(self) -> Place:
        """The place before the first entry."""
        return Place(next(iter(self._parts)))

    def has(self, place: Place) -> bool:
        """Return whether a place is one of this list."""
        return place.part in self._parts

    def after(self, place: Place, count: int) -> Iterator[Entry]:
        """Yield the entries after a place.

        Parameters:
          place: The place.
          count: How many entries to read at first. Each further read doubles it,
            up to MAX_READ.
        """
        while True:
            found = self.read(place, count)
            yield from self.examine(found)
            if len(found) < count:
                return
            place = found[-1].place
            count = min(2 * count, MAX_READ)

    def read(self, place: Place, count: int) -> list[Entry]:
        """Return entries after a place, the newest first, without their records."""
        parts = [*self._parts]
        places = [place, *map(Place, parts[parts.index(place.part) + 1 :])]
        limit = count + place.passed
        while True:
            found, is_whole = self._read(places, limit)
            if is_whole or len(found) >= count:
                return found[:count]
            # Another program has written into the sets.
            limit *= 2

    def _read(self, places: Sequence[Place], limit: int) -> tuple[list[Entry], bool]:
        """Return entries after the places, each in a part, in one round trip, and
        whether nothing follows them.

        Parameters:
          limit: How many entries of each set to read.
        """
        now = self._reader.clock() * 1000
        commands = []
        for place in places:
            most = MAX_SCORE if place.score is None else place.score
            for scope, name in self._parts[place.part]:
                source = Source(scope, name, self._oldest(name, now))
                commands.append(source.newest(limit, most))
        replies = iter(map(scored, ask(self._access.client, commands)))
        found: list[Entry] = []
        for place in places:
            rows, is_whole = [], True
            for scope, name in self._parts[place.part]:
                reply = next(replies)
                is_whole = is_whole and len(reply) < limit
                rows += [
                    (score, uuid, scope, name)
                    for uuid, score in reply
                    if UUID.fullmatch(uuid)
                ]
            found += _entries(place, sorted(rows, reverse=True))
            if not is_whole:
                return found, False
        return found, True

    def _oldest(self, name: str, now: int) -> int:
        """Return the lowest score of interest in a set."""
        return max(0, now - self._access.sets.ttl(name) * 1000)

    def examine(self, found: Sequence[Entry]) -> Iterator[Entry]:
        """Yield entries with their records."""
        uuids = [each.uuid for each in found]
        if self._names:
            records = self._reader.read(uuids, *self._names)
        else:
            records = records_in(self._reader.read_some(uuids))
        wants = self._wants(records)
        for entry, record, is_wanted in zip(found, records, wants, strict=False):
            is_old = entry.set == AGAIN and record is not None and record.is_finished
            yield entry._replace(record=record, is_wanted=is_wanted and not is_old)
        if len(records) < len(found):
            self.is_full = True
            yield found[len(records)]

    def mend(self, entries: Iterable[Entry]) -> None:
        """Remove the entries of expired jobs, and move those that are not where their
        records say. On a read-only server they stay until later.
        """
        self._access.runner.mend(
            [
                self._access.calls.mend(entry.uuid, entry.scope, entry.set, entry.score)
                for entry in entries
                if self._is_misplaced(entry)
            ]
        )

    def _is_misplaced(self, entry: Entry) -> bool:
        record = entry.record
        if record is None:
            return True
        status = record.stored_status
        if entry.set == UNSENT:
            return status != "sending"
        if entry.set == AGAIN:
            return record.is_finished
        sets, is_member = self._access.sets, record.is_member
        names = ["all", kind_name(record)]
        owner = record.text("owner")
        if owner is not None and not is_member:
            names.append(f"owner:{owner}")
        scopes = [sets.scope(name, members=is_member) for name in names]
        return entry.scope not in scopes or entry.set != (
            "queued" if status in ("waiting", "sending") else status
        )

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


def _entries(
    place: Place, rows: Iterable[tuple[int, str, str, str]]
) -> Iterator[Entry]:
    """Yield the entries after a place, from the rows of its part: their scores, their
    jobs, and the names of their sets.
    """
    last, passed = None, 0
    for score, uuid, scope, name in rows:
        passed = passed + 1 if score == last else 1
        last = score
        if score != place.score or passed > place.passed:
            yield Entry(Place(place.part, score, passed), uuid, scope, name)


#: The maximum number of jobs on a page.
MAX_LIMIT = 200

#: The maximum number of entries to examine for one page of a filtered list, and of each
#: status for stalled jobs.
MAX_EXAMINED = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page of a list of jobs.

    Attributes:
      items: The jobs.
      cursor: The cursor for the next page, or None on the last one. A page may have
        fewer jobs than its limit, or none, and still have a cursor. It ends after about
        4 MiB of records.
    """

    items: list[JobState]
    cursor: str | None


def newest_uuids(
    access: ListAccess, count: int, sets: Sequence[str] = SETS, *, lone: bool = True
) -> list[str]:
    """Return the uuids of the jobs that were queued, are due or have ended last, the
    newest first, in one round trip. The records of some may have expired.

    Parameters:
      count: How many at most.
      sets: The sets of a scope to look in.
      lone: Whether jobs outside batches count, too.

    Raises:
      redis.exceptions.RedisError: The store does not answer.
    """
    parts = (False, True) if lone else (True,)
    scopes = [access.sets.scope("all", members=members) for members in parts]
    commands = [Source(s, name, 0).newest(count) for s in scopes for name in sets]
    rows = [row for reply in ask(access.client, commands) for row in scored(reply)]
    rows.sort(key=lambda row: row[1], reverse=True)
    uuids = dict.fromkeys(uuid for uuid, _ in rows if UUID.fullmatch(uuid))
    return [*uuids][:count]


class AmbiguousKind(ValueError):
    """Raised for a kind that a class and an actor are named."""


def kind_texts(kinds: Iterable[str]) -> dict[str, str]:
    """Return what people read for each kind: the name of its class or its actor. The
    whole kind is shown if both have that name, or if the name looks like a kind.
    """
    names = {kind: kind.partition(":")[2] for kind in kinds}
    counts = collections.Counter(names.values())
    return {
        kind: kind if counts[name] > 1 or name.startswith((CLASS, ACTOR)) else name
        for kind, name in names.items()
    }


def resolved(wanted: Filter, access: ListAccess) -> Filter:
    """Return a filter whose kind is the name of a kind. It may be that of a class or an
    actor. Among an owner's jobs it stays that of both: which of them others have jobs
    of is not for the owner to know.

    Raises:
      AmbiguousKind: A class and an actor have this name.
    """
    kind, names = wanted.kind, wanted.kinds
    if wanted.owner is not None or len(names) < 2:
        return wanted
    key = access.sets.key("kinds")
    commands = [Command(key, ("ZSCORE", key, name)) for name in names]
    replies = ask(access.client, commands)
    known = [name for name, reply in zip(names, replies, strict=True) if reply]
    if len(known) == 2:
        raise AmbiguousKind(
            f"A class and an actor are named {kind!r}. Pass {names[0]!r} or "
            f"{names[1]!r}."
        )
    return wanted._replace(kind=(known or names)[0])


def list_page(
    wanted: Filter,
    access: ListAccess,
    make: Callable[[Iterable[Record | None]], Sequence[JobState | None]],
    limit: int,
    cursor: str | None,
) -> Page:
    """Return a page as :meth:`.JobStore.list` does.

    Parameters:
      make: Returns the jobs of records, with None for each that cannot be made.
    """
    check_int("limit", limit, 1, MAX_LIMIT)
    entries = Entries(wanted, access)
    place = entries.start
    if cursor is not None:
        place = Place.parse(cursor)
        if not entries.has(place):
            raise bad_cursor(cursor)
    found: dict[str, Record] = {}
    places: dict[str, Place] = {}
    seen: list[Entry] = []
    next_cursor = None
    # One more entry than the page shows tells whether another page follows.
    for entry in entries.after(place, limit + 1):
        if len(found) == limit or len(seen) == MAX_EXAMINED or entries.is_full:
            next_cursor = str(place)
            break
        place = entry.place
        seen.append(entry)
        if entry.record is not None and entry.is_wanted:
            found.setdefault(entry.uuid, entry.record)
            places.setdefault(entry.uuid, place)
    entries.mend(seen)
    records: Iterable[Record | None] = found.values()
    if found and not wanted.is_scope:
        # Only outlines were read. Some jobs may no longer match.
        uuids = list(found)
        whole = records_in(access.reader.read_some(uuids))
        if len(whole) < len(uuids):
            next_cursor = str(places[uuids[len(whole) - 1]])
        records = (
            record
            for record in whole
            if record and wanted.admits(record) and wanted.admits_params(record)
        )
    return Page([job for job in make(records) if job is not None], next_cursor)


#: Seconds for which this process returns the same counts.
FRESH_SECONDS = 1.0

#: The fields of a record that counts depend on.
COUNTED = (*OUTLINE, "due", "started", "waited")

#: The sets of the jobs that wait for a worker, and of those that have run.
WAITING, HAVE_RUN = ("queued", "retrying"), ("success", "error")

#: How many of the oldest entries of a set are examined at first. Mostly, the first one
#: is that of the oldest waiting job.
FIRST = 10

#: If that is not certain, portions of this length are examined that begin at these
#: places, and the newest entries. The first three portions leave no gap.
PORTION, PORTIONS = 100, (0, *(100 * 2**i for i in range(10)))

#: How many of the newest starts count, and for how many milliseconds.
STARTS, RECENT = 10, 3_600_000

#: The maximum number of periods of a throughput.
MAX_BUCKETS = 1000

#: The maximum length of all periods of a throughput in seconds: the first begins at a
#: time that a datetime can represent.
MAX_SPAN = 1e9


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket:
    """The jobs that ended in a period.

    Attributes:
      start: When the period began, by the store's clock, in UTC.
      success: How many jobs have succeeded in it.
      error: How many have failed.
      cancelled: How many were cancelled.
    """

    start: datetime.datetime
    success: int
    error: int
    cancelled: int


def waits_since(record: Record, entry: Entry) -> int | None:
    """Return since when a job waits for a worker, in milliseconds of the store's clock,
    or None if it does not wait. A time that lies ahead is when it is due. Whether its
    batch was cancelled is not known here.

    Parameters:
      entry: Its entry in a list: its score is when it was queued, or first due.
    """
    # A batch waits for nothing: its members do.
    may_wait = record.status in WAITING and not record.is_batch
    if not may_wait or record.stored_status == "waiting":
        return None
    times = map(record.millis, ("updated", "due"))
    return max(entry.score // 1000, *(time or 0 for time in times))


class Counter:
    """Counts the jobs of a store.

    Parameters:
      access: The access to the lists.
    """

    def __init__(self, access: ListAccess) -> None:
        self._access = access
        self._client = access.client
        self._reader = access.reader
        self._sets = access.sets
        #: The counts of each filter that this process keeps.
        self.fresh: Fresh[Filter, Counts] = Fresh(FRESH_SECONDS)

    def counts(self, wanted: Filter, *, anew: bool) -> Counts:
        """Return the counts of a kind, or of all jobs, at most a second old."""
        return self.fresh.get(wanted, lambda: self._count(wanted), anew=anew)

    def kinds(self) -> list[str]:
        """Return the names of the kinds of the listed jobs in alphabetical order."""
        key = self._sets.key("kinds")
        words = ((self._reader.clock() - self._sets.kind_ttl) * 1000, MAX_SCORE)
        found = self._reader.scores(key, *words)
        return sorted(name for name, _ in found if name.startswith((CLASS, ACTOR)))

    def throughput(self, wanted: Filter, seconds: float, buckets: int) -> list[Bucket]:
        """Return the jobs that ended in each of some periods of equal length, the last
        of which ends now.
        """
        end = self._reader.clock() * 1000
        length = seconds * 1e6 / buckets
        starts = [round(end - (buckets - i) * length) for i in range(buckets)]
        limits = [*starts, end]
        scopes = self._scopes(wanted)
        commands = [
            Source(scope, status, first).size(f"({last}")
            for first, last in itertools.pairwise(limits)
            for status in FINISHED
            for scope in scopes
        ]
        numbers = (number or 0 for number in ask(self._client, commands))
        return [
            Bucket(
                datetime.datetime.fromtimestamp(start / 1e6, datetime.UTC),
                *(sum(next(numbers) for _ in scopes) for _ in FINISHED),
            )
            for start in starts
        ]

    def _scopes(self, wanted: Filter) -> list[str]:
        return [
            self._sets.scope(wanted.scope, members=members)
            for members in ((False, True) if wanted.members else (False,))
        ]

    def _count(self, wanted: Filter) -> Counts:
        scopes = self._scopes(wanted)
        everywhere = self._scopes(wanted._replace(members=True))
        counted = self._sources(scopes, SETS)
        # They stand where they were queued: the last to start may be behind the others.
        running = self._sources(everywhere, RUNNING)
        running += self._sources([self._sets.key("")], (UNSENT,))
        ended = self._sources(everywhere, HAVE_RUN)
        waiting = self._sources(everywhere, WAITING)
        now = self._reader.now() * 1000
        commands = [
            *(each.size() for each in counted),
            *(each.newest(MAX_EXAMINED) for each in running),
            *(each.newest(STARTS) for each in ended),
            *(each.oldest(FIRST, now) for each in waiting),
        ]
        replies = iter(ask(self._client, commands))
        number: collections.Counter[str] = collections.Counter()
        for each in counted:
            number[each.set] += next(replies) or 0
        silent = [entry for each in running for entry in each.entries(next(replies))]
        begun = [*silent]
        for each in ended:
            begun += each.entries(next(replies))
        oldest = {each: each.entries(next(replies)) for each in waiting}
        records = self._read(wanted, [*begun, *itertools.chain(*oldest.values())])
        stalled = self._stalled(wanted, silent, records)
        number["queued"] -= stalled["sending"]
        number["working"] -= stalled["working"]
        number["cancelling"] -= stalled["cancelling"]
        return Counts(
            stalled=stalled.total(),
            **{name: max(0, number[name]) for name in SETS},
            oldest_wait=self._oldest_wait(wanted, oldest, records),
            recent_wait=self._recent_wait(begun, records),
        )

    def _sources(self, scopes: Iterable[str], names: Sequence[str]) -> list[Source]:
        """Return some sets of each scope."""
        now = self._reader.clock()
        return [
            Source(scope, name, (now - self._sets.ttl(name)) * 1000)
            for scope in scopes
            for name in names
        ]

    def _read(self, wanted: Filter, entries: Iterable[Entry]) -> dict[str, Record]:
        """Return the records of entries whose jobs are of the wanted kind, by uuid, in
        one round trip, and mend the lists that have these.
        """
        # Another program may have written others.
        found = [entry for entry in entries if UUID.fullmatch(entry.uuid)]
        uuids = [*{entry.uuid: None for entry in found}]
        pairs = zip(uuids, self._reader.read(uuids, *COUNTED), strict=True)
        records = dict(pairs)
        Entries(wanted, self._access).mend(
            entry._replace(record=records[entry.uuid]) for entry in found
        )
        admits = Filter(kind=wanted.kind, members=True).admits
        return {u: r for u, r in records.items() if r is not None and admits(r)}

    def _stalled(
        self, wanted: Filter, entries: Iterable[Entry], records: Mapping[str, Record]
    ) -> collections.Counter[str]:
        """Return the numbers of stalled jobs by their stored status."""
        wanted = wanted._replace(status="stalled")
        found = [records[uuid] for uuid in {e.uuid for e in entries} & records.keys()]
        return collections.Counter(r.stored_status for r in found if wanted.admits(r))

    def _oldest_wait(
        self,
        wanted: Filter,
        oldest: Mapping[Source, Sequence[Entry]],
        records: Mapping[str, Record],
    ) -> float | None:
        """Return for how many seconds the oldest waiting job has waited, or None if no
        job waits.

        Parameters:
          oldest: The FIRST entries of each set.
          records: Their records.
        """
        now = self._reader.now()
        found = [*itertools.chain(*oldest.values())]
        since = self._since(found, records, now)
        # No job waits for longer than its score says.
        rest = [
            source
            for source, entries in oldest.items()
            if len(entries) == FIRST
            and (since is None or entries[-1].score < since * 1000)
        ]
        if rest:
            most = now * 1000
            reads = [
                *((s, s.oldest(PORTION, most, at)) for s in rest for at in PORTIONS),
                *((s, s.newest(PORTION, most)) for s in rest),
            ]
            replies = ask(self._client, [command for _, command in reads])
            for (source, _), reply in zip(reads, replies, strict=True):
                found += source.entries(reply)
            since = self._since(found, self._read(wanted, found), now)
        return None if since is None else (now - since) / 1000

    def _since(
        self, entries: Iterable[Entry], records: Mapping[str, Record], now: int
    ) -> int | None:
        """Return since when the oldest waiting job has waited, or None if no job waits.
        Asking the batches of members takes another round trip.

        Parameters:
          now: The time in milliseconds of the store's clock.
        """
        lone: list[int] = []
        members: list[tuple[int, str]] = []
        for entry in entries:
            record = records.get(entry.uuid)
            since = None if record is None else waits_since(record, entry)
            if record is None or since is None or since > now:
                continue
            if record.is_member:
                members.append((since, record.batch))
            else:
                lone.append(since)
        first = min(lone, default=now + 1)
        members = [each for each in members if each[0] < first]
        if members:
            stops = self._reader.read_stops([*{batch for _, batch in members}])
            lone += [since for since, batch in members if stops[batch][0] is None]
        return min(lone, default=None)

    def _recent_wait(
        self, entries: Iterable[Entry], records: Mapping[str, Record]
    ) -> float | None:
        """Return the median wait, in seconds, of the newest runs."""
        starts = []
        for uuid in {entry.uuid for entry in entries} & records.keys():
            started, waited = map(records[uuid].millis, ("started", "waited"))
            if waited is not None and (started or 0) > self._reader.now() - RECENT:
                starts.append((started, waited))
        newest = sorted(starts)[-STARTS:]
        return statistics.median(w for _, w in newest) / 1000 if newest else None


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
