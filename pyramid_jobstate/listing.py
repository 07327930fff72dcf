"""Lists of jobs, a page at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .record import FINISHED, UNFINISHED, UUID
from .roundtrip import Command, execute, text
from .state import JobState
from .values import dumps

if TYPE_CHECKING:
    from .store import JobStore

#: The most jobs that a page may have.
MAX_LIMIT = 200

#: The most entries that are looked at for one page of a filtered list.
MAX_EXAMINED = 1000

#: The scores of an index are microseconds, of which a float can say as many exactly.
MAX_SCORE = 2**53

_CURSOR = re.compile(r"([ae])([0-9]{1,16})\.([0-9a-f-]{36})")


class Page(NamedTuple):
    """A page of a list of jobs.

    Attributes:
      items: The jobs.
      cursor: Where the next page begins, or None after the last. A page may be short,
        even empty, and have a cursor all the same.
    """

    items: list[JobState]
    cursor: str | None


class Filter(NamedTuple):
    """Which jobs are listed. None leaves all through."""

    owner: str | float | None = None
    kind: str | None = None
    status: str | None = None
    params: Mapping[str, Any] | None = None

    @property
    def index_name(self) -> str:
        """The name of the index that leaves the fewest to look at."""
        if self.owner is not None:
            return f"owner:{dumps(self.owner)}"
        return "all" if self.kind is None else f"kind:{self.kind}"

    def admits(self, job_state: JobState) -> bool:
        params = job_state.job_params if self.params else {}
        return (
            (self.owner is None or job_state.owner == self.owner)
            and (self.kind is None or job_state.kind == self.kind)
            and (self.status is None or job_state.status == self.status)
            and all(
                name in params and params[name] == value
                for name, value in (self.params or {}).items()
            )
        )


class Place(NamedTuple):
    """A place in a list: behind an entry of the jobs that have ended, or have not."""

    ended: bool
    score: int | None = None
    uuid: str = ""

    @classmethod
    def parse(cls, cursor: str) -> Place:
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise ValueError(
                f"cursor is none that a page of this list gave: {cursor!r}"
            )
        return cls(match[1] == "e", int(match[2]), match[3])

    def __str__(self) -> str:
        return f"{'e' if self.ended else 'a'}{self.score}.{self.uuid}"


def list_jobs(store: JobStore, wanted: Filter, limit: int, cursor: str | None) -> Page:
    """Return a page of the jobs that are wanted, as :meth:`JobStore.list` says."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {limit!r}.")
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")
    if wanted.status is not None and wanted.status not in UNFINISHED + FINISHED:
        raise ValueError(f"status is none that a job can have: {wanted.status!r}.")
    place = Place(wanted.status in FINISHED) if cursor is None else Place.parse(cursor)
    items: list[JobState] = []
    shown: set[str] = set()
    ended: list[tuple[Place, JobState | None]] = []
    next_cursor = None
    # One more than is shown tells whether there is another page.
    entries = _entries(store, wanted, place, limit + 1)
    for examined, (entry, job_state) in enumerate(entries):
        if len(items) == limit or examined == MAX_EXAMINED:
            next_cursor = str(place)
            break
        place = entry
        if entry.ended:
            ended.append((entry, job_state))
        if job_state is None or entry.uuid in shown or not wanted.admits(job_state):
            continue
        if job_state.is_finished and not entry.ended:
            # It has just ended: it comes again among those that have.
            continue
        shown.add(entry.uuid)
        items.append(job_state)
    # Not those that were not looked at: a job that has begun again would be behind who
    # goes from page to page.
    _repair(store, wanted, ended)
    return Page(items, next_cursor)


def _entries(
    store: JobStore, wanted: Filter, place: Place, count: int
) -> Iterator[tuple[Place, JobState | None]]:
    """Yield the entries from a place on, with their jobs, None for one that is gone.

    Parameters:
      count: How many are read at first. If they do not do, it is more and more.
    """
    while True:
        entries = _read_index(store, wanted, place, count)
        jobs = store.load_many([entry.uuid for entry in entries])
        found = list(zip(entries, jobs, strict=True))
        if not place.ended:
            _repair(store, wanted, found)
        yield from found
        if len(entries) == count:
            place = entries[-1]
            count = min(2 * count, MAX_LIMIT)
        elif place.ended or wanted.status in UNFINISHED:
            return
        else:
            place = Place(ended=True)


def _read_index(
    store: JobStore, wanted: Filter, place: Place, count: int
) -> list[Place]:
    """Return the entries that follow a place in its index, the newest first."""
    key = store.index.key(wanted.index_name, ended=place.ended)
    newest = MAX_SCORE if place.score is None else place.score
    found: list[Place] = []
    offset = 0
    # One more: the place itself is in the first answer.
    size = count + 1
    while len(found) < count:
        rows = _read_range(store, key, newest, offset, size)
        for uuid, score in rows:
            entry = Place(place.ended, score, uuid)
            # Of one score the later names come first.
            follows = entry.score != place.score or uuid < place.uuid
            if follows and UUID.fullmatch(uuid):
                found.append(entry)
        if len(rows) < size:
            break
        offset += size
    return found[:count]


def _read_range(
    store: JobStore, key: str, newest: int, offset: int, size: int
) -> list[tuple[str, int]]:
    words = (newest, 0, "WITHSCORES", "LIMIT", offset, size)
    command = Command(key, ("ZREVRANGEBYSCORE", key, *words))
    (rows,) = execute(store.client, [command])
    if isinstance(rows, Exception):
        raise rows
    if rows and not isinstance(rows[0], list):
        # The older protocol has no pairs.
        rows = zip(rows[::2], rows[1::2], strict=True)
    return [(text(member), int(float(score))) for member, score in rows]


def _repair(
    store: JobStore,
    wanted: Filter,
    found: Sequence[tuple[Place, JobState | None]],
) -> None:
    """Drop the entries of jobs that are gone, and move those that a worker could not
    move when its job ended, or began again.
    """
    calls = []
    for entry, job_state in found:
        if job_state is None:
            key = store.index.key(wanted.index_name, ended=entry.ended)
            calls.append(store.index.drop(key, entry.uuid))
        elif job_state.is_finished and not entry.ended:
            calls.extend(store.index.end(entry.uuid, job_state._record.start))
        elif entry.ended and not job_state.is_finished:
            start = job_state._record.start
            calls.extend(store.index.remove(entry.uuid, start, ended=True))
            calls.extend(store.index.activate(entry.uuid, start))
    store.run(calls)
