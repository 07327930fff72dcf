"""Which jobs a list shows, and where in it a page begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..job import BATCH, FINISHED, UNFINISHED, Record, dumps, is_owner

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
