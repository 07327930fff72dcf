"""Acts on all jobs that a filter matches, a bounded number at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..job.record import Record, is_uuid
from ..job.values import dumps
from ..job.words import did_you_mean
from .arguments import check_int, check_seconds
from .batches import FailedMembers
from .lists import (
    MAX_READ,
    OUTLINE,
    SOURCES,
    UNSENT,
    Entries,
    Filter,
    ListAccess,
    Place,
    check_cursor,
    has_status,
    matches_since,
    resolved,
)

#: The maximum number of jobs that one call acts on.
MAX_BULK = 1000

#: The maximum number of entries that it examines.
MAX_EXAMINED = 10_000

_CURSOR = re.compile(
    r"([0-9a-f]{8})\.([0-9]{1,15})(?:\.([ue][0-9]{1,16}\.[0-9]{1,4}))?"
)


@dataclasses.dataclass(frozen=True, slots=True)
class BulkResult:
    """What a call did that acts on many jobs.

    Attributes:
      done: The jobs that it acted on.
      refused: The matching jobs that it left alone: the caller may not act on them, or
        they had changed meanwhile.
      cursor: What to pass to the next call, which goes on with the other jobs, or None
        if none are left. Jobs sent or ended after the first call are left alone.
    """

    done: int
    refused: int
    cursor: str | None


class Acted(NamedTuple):
    """A job that a call has acted on.

    Attributes:
      uuid: The job.
      is_certain: False if the reply to the call was lost, so that nobody knows.
      stays: Whether it is still listed among the jobs on which the call acts.
    """

    uuid: str
    is_certain: bool
    stays: bool = False


#: A function that is told at once of each job that was, or may have been, acted on: its
#: uuid, and whether that is certain.
Tell = Callable[[str, bool], object]


class Act(NamedTuple):
    """What a call does with the jobs that match.

    Attributes:
      name: Its name, for error messages.
      statuses: The statuses that a job may have, or FAILED_OR_LOST.
      run: Acts on jobs and yields each as soon as it has acted on it.
    """

    name: str
    statuses: Sequence[str]
    run: Callable[[Sequence[Record]], Iterable[Acted]]


class Bulk:
    """Acts on many jobs.

    Parameters:
      act: What to do.
      wanted: Which jobs.
      older_than: Only jobs that ended at least so many seconds ago, or None.
      everything: Whether a filter that matches all jobs is meant.

    Raises:
      TypeError: A part of the filter, or the age, has the wrong type.
      ValueError: The filter matches all jobs though that is not meant, its status is
        not one of the act's, or the age is out of range.
    """

    def __init__(
        self,
        act: Act,
        wanted: Filter,
        older_than: float | None = None,
        *,
        everything: bool = False,
    ) -> None:
        wanted.check_types()
        if not everything and older_than is None and wanted.matches_all:
            raise ValueError(
                f"{act.name}() without a filter acts on all jobs. Pass a filter, or "
                "everything=True."
            )
        if wanted.status is not None and wanted.status not in act.statuses:
            known = ", ".join(act.statuses)
            raise ValueError(
                f"{act.name}() acts on jobs with one of the statuses {known}, not "
                f"{wanted.status!r}.{did_you_mean(wanted.status, act.statuses)}"
            )
        if wanted.batch is not None and not is_uuid(wanted.batch):
            raise ValueError(f"batch must be a uuid, not {wanted.batch!r}.")
        if older_than is not None:
            check_seconds("older_than", older_than)
        if len(act.statuses) == 1:
            wanted = wanted._replace(status=act.statuses[0])
        self._act = act
        self._wanted = wanted
        self._older_than = older_than
        params = wanted.params and dict(wanted.params)
        parts = [act.name, *wanted._replace(params=params), older_than]
        digest = hashlib.sha1(dumps(parts).encode(), usedforsecurity=False)
        #: Tells the cursors of this call from those of others.
        self._mark = digest.hexdigest()[:8]

    def run(
        self,
        limit: int,
        cursor: str | None,
        *,
        access: ListAccess,
        permits: Callable[[Sequence[Record]], Sequence[Record]],
        tell: Tell | None,
    ) -> BulkResult:
        """Act on jobs.

        Parameters:
          limit: The maximum number of jobs, up to 1,000. 0 acts on none: the next call
            acts on those that match now.
          cursor: The cursor of the previous call, or None.
          access: The access to the lists.
          permits: Returns those jobs on which the caller may act.
          tell: Is told of each job that was acted on, or None.

        Raises:
          TypeError: limit is not an int, or cursor not a string.
          ValueError: limit or cursor is invalid, or a class and an actor have the name
            that the filter gives for a kind.
        """
        check_int("limit", limit, 0, MAX_BULK)
        wanted = resolved(self._wanted._replace(members=True), access)
        start = None
        if cursor is None:
            until = access.reader.exact_clock()
            # No job that is sent after this call was queued in the same millisecond.
            time.sleep(0.001)
        else:
            until, start = self._parse(cursor)
        if limit == 0:
            return BulkResult(0, 0, cursor or f"{self._mark}.{until}")
        kind = Entries if wanted.batch is None else FailedMembers
        names = (*OUTLINE, *DETAILS)
        entries = kind(wanted, access, self._sets(), names)
        place = start or entries.start
        if not entries.has(place):
            raise _foreign(cursor or "")
        matching: list[Record] = []
        matched = done = 0
        others = []
        is_over = True
        # The jobs that have the score of the place, and those that have left theirs.
        level: list[str] = []
        passed, gone = place.passed, set[str]()
        for examined, entry in enumerate(entries.after(place, min(limit, MAX_READ))):
            if matched == limit or examined == MAX_EXAMINED:
                is_over = False
                break
            if entry.place[:2] != place[:2]:
                level, passed = [], 0
            level.append(entry.uuid)
            place, record = entry.place, entry.record
            if record and entry.is_wanted and self._fits(record, until):
                matching.append(record)
                matched += 1
            else:
                others.append(entry)
            if len(matching) == MAX_READ:
                done += self._act_on(permits(matching), tell, gone)
                matching = []
        done += self._act_on(permits(matching), tell, gone)
        entries.mend(others)
        if is_over:
            return BulkResult(done, matched - done, None)
        # What was done to a job has mostly moved its entry.
        passed += sum(uuid not in gone for uuid in level)
        next_place = place._replace(passed=passed)
        cursor = f"{self._mark}.{until}.{next_place}"
        return BulkResult(done, matched - done, cursor)

    def _act_on(
        self, records: Sequence[Record], tell: Tell | None, gone: set[str]
    ) -> int:
        """Act on jobs and return how many it has acted on.

        Parameters:
          gone: To these it adds the jobs whose entries may have moved.
        """
        done = 0
        for acted in self._act.run(records):
            done += acted.is_certain
            if not (acted.stays and self._wanted.status is None):
                gone.add(acted.uuid)
            if tell is not None:
                tell(acted.uuid, acted.is_certain)
        return done

    def _sets(self) -> Sequence[str]:
        """Return the names of the sets to read, or none for those of the filter."""
        if self._wanted.batch is not None:
            return ("error",)
        if self._wanted.status is not None:
            return ()
        sets = dict.fromkeys(n for each in self._act.statuses for n in SOURCES[each])
        return [name for name in sets if name != UNSENT]

    def _fits(self, record: Record, until: int) -> bool:
        """Return whether a job is to be acted on, apart from the filter.

        Parameters:
          until: When the first call began, in milliseconds of the store's clock.
        """
        if not any(has_status(record, status) for status in self._act.statuses):
            return False
        since = matches_since(record, self._wanted.status)
        if max(record.millis("queued") or 0, since) > until:
            return False
        if self._older_than is None:
            return True
        finished = record.millis("finished")
        return finished is not None and finished <= until - self._older_than * 1000

    def _parse(self, cursor: str) -> tuple[int, Place | None]:
        match = _CURSOR.fullmatch(check_cursor(cursor))
        if match is None or match[1] != self._mark:
            raise _foreign(cursor)
        return int(match[2]), Place.parse(match[3]) if match[3] else None


#: The fields of a record that are read beside an outline.
DETAILS = ("queued", "started", "finished", "rerun")


def check_empty(limit: int, cursor: str | None) -> None:
    """Check the arguments of a call that acts on the jobs of nobody. No other call has
    returned a cursor for it.

    Raises:
      TypeError: limit is not an int.
      ValueError: limit or cursor is invalid.
    """
    check_int("limit", limit, 0, MAX_BULK)
    if cursor is not None:
        raise _foreign(cursor)


def _foreign(cursor: str) -> ValueError:
    return ValueError(
        f"cursor was not returned by a call with these arguments: {cursor!r}. Omit it "
        "to begin."
    )
