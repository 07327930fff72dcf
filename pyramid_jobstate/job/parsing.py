"""Reading what stands in a field, whatever another program may have written there."""

from __future__ import annotations

import datetime
import functools
import json
import math
from typing import Any

#: The last millisecond that a datetime can say.
LAST_TIME = 253_402_300_799_999


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large for a float")
    return number


#: Takes nothing that :func:`json.dumps` would then write as NaN or Infinity. A poll
#: calls it for each field: raw_decode() does without looking for white space.
_decode = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite).raw_decode


def parse_json(text: str | None, default: Any = None) -> Any:
    """Return what `text` says, or `default` where it is no JSON."""
    if text is None:
        return default
    try:
        value, end = _decode(text)
    except (ValueError, RecursionError):
        return default
    return value if end == len(text) else default


def parse_int(text: str | None) -> int | None:
    """Return a number of at most 15 digits, or None where `text` is none."""
    if text is None or len(text) > 15 or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def parse_time(text: str | None) -> datetime.datetime | None:
    """Return the aware UTC datetime of milliseconds since the epoch."""
    number = parse_int(text)
    if number is None or number > LAST_TIME:
        return None
    return datetime.datetime.fromtimestamp(number / 1000, datetime.UTC)


@functools.lru_cache(1024)
def iso_time(text: str | None) -> str | None:
    time = parse_time(text)
    if time is None:
        return None
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
