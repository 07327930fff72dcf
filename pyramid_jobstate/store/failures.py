"""What operators read of a job's failures, and what running it again needs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import NamedTuple

from ..job import JobError, parse_json, parse_time

#: How many tries the store keeps, each in a field of its own, in any order.
TRIES = 10

#: The fields that are read.
FIELDS = (
    "message",
    "refusal",
    "traceback",
    *(f"try:{number}" for number in range(TRIES)),
)

LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class Try(NamedTuple):
    """A run of a job that failed.

    Attributes:
      started_at: When it began, or None if that is unknown.
      ended_at: When it failed.
      error: Why.
    """

    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None
    error: JobError | None


class Failures(NamedTuple):
    """What operators read of a job's failures.

    Attributes:
      tries: The last ten runs that failed, the oldest first.
      traceback: The end of the last traceback, or "".
      message: The Dramatiq message from which the job may run again, as JSON, or "".
      refusal: Why it may not run again, or "".
    """

    tries: tuple[Try, ...] = ()
    traceback: str = ""
    message: str = ""
    refusal: str = ""


def read_failures(fields: Mapping[str, str]) -> Failures:
    """Return the failures in the fields of a hash. What cannot be parsed reads as if it
    were missing.
    """
    read = [_read_try(fields.get(f"try:{number}")) for number in range(TRIES)]
    tries = [each for each in read if each is not None]
    tries.sort(key=lambda each: each.started_at or each.ended_at or LONG_AGO)
    return Failures(
        tuple(tries),
        fields.get("traceback", ""),
        fields.get("message", ""),
        fields.get("refusal", ""),
    )


def _read_try(text: str | None) -> Try | None:
    match parse_json(text):
        case [started, ended, [str() | None as type_, str() as message], *_]:
            error = JobError(type_, message)
            return Try(parse_time(str(started)), parse_time(str(ended)), error)
    return None
