"""Lists of jobs, one page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..job import FINISHED, Record
from .entries import OTHERS, SOURCES, Entries, ListAccess
from .filters import ACTIVE, BY_STATUS, ENDED, Filter, Place, bad_cursor

if TYPE_CHECKING:
    from ..job import JobState

#: The maximum number of jobs on a page.
MAX_LIMIT = 200

#: The maximum number of entries to examine for one page of a filtered list.
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
