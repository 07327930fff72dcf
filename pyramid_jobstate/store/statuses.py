"""The stored statuses that have indexes, beside the indexes of all jobs."""

from __future__ import annotations

from typing import NamedTuple

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
