"""Where running jobs are: operators ask, and workers answer."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from ..job.values import iso_time, parse_natural, parse_time
from .workers import worker_name

#: For how many seconds a worker is expected to answer, and what people read after that.
ANSWER_SECONDS = 5.0
NO_ANSWER = (
    "The worker did not answer: it is paused, holds the interpreter, has lost the "
    "store, or is older."
)

#: The prefix of such a request among the cancels.
PREFIX = "where:"

#: The fields of the hash that are read.
WHERE_FIELDS = ("asked_at", "taken_at", "worker", "thread", "memory", "stack")


@dataclasses.dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a running job is, as its worker has answered.

    Attributes:
      asked_at: When the worker was asked last, in UTC.
      taken_at: When the worker answered, in UTC, or None while it has not.
      worker: The token of its process, or None if that has none.
      thread: The name of the thread, or None if unknown.
      memory: The bytes of memory that the process used, or None if unknown.
      stack: The stack, as a traceback shows one: the innermost call last. None while
        the worker has not answered.
    """

    asked_at: datetime.datetime
    taken_at: datetime.datetime | None = None
    worker: str | None = None
    thread: str | None = None
    memory: int | None = None
    stack: str | None = None


def read_where(fields: Mapping[str, str]) -> Whereabouts | None:
    """Return where a job is from the fields of a hash, or None if nobody has asked."""
    asked_at = parse_time(fields.get("asked_at"))
    if asked_at is None:
        return None
    stack = fields.get("stack")
    return Whereabouts(
        asked_at,
        # Another program may have left one without the other.
        None if stack is None else parse_time(fields.get("taken_at")),
        fields.get("worker") or None,
        fields.get("thread") or None,
        parse_natural(fields.get("memory")),
        stack,
    )


def whereabouts_as_json(where: Whereabouts) -> dict[str, Any]:
    """Return where a job is as HTTP and the command line tell it."""
    return {
        **dataclasses.asdict(where),
        "asked_at": iso_time(where.asked_at),
        "taken_at": iso_time(where.taken_at),
        "worker": where.worker and worker_name(where.worker),
    }
