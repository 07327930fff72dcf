"""What texts mean: the JSON, numbers and times in a hash, whatever bytes they hold, and
the durations that people write.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
from collections.abc import Collection
from typing import Any

#: The last millisecond that a datetime can represent.
LAST_TIME = 253_402_300_799_999

#: The longest delay of a job in milliseconds, about 3,000 years: it is due before
#: LAST_TIME.
MAX_DELAY = 100_000_000_000_000

#: In milliseconds such a number is still exact everywhere, including Lua.
MAX_SECONDS = 1e12
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large for a float")
    return number


#: Rejects what :func:`json.dumps` would write as NaN or Infinity. A poll decodes every
#: field, so raw_decode() saves time: it does not skip surrounding white space.
_decode = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite).raw_decode


def parse_json(text: str | None, default: Any = None) -> Any:
    """Return the value of a JSON text, or `default` if it is None or invalid."""
    if text is None:
        return default
    try:
        value, end = _decode(text)
    except (ValueError, RecursionError):
        return default
    return value if end == len(text) else default


def parse_all(texts: Collection[str], default: Any) -> list[Any]:
    """Return the value of each of several JSON texts as :func:`parse_json` does."""
    # Parsing all at once is faster. It fails if any of them is not valid JSON.
    values = parse_json(f"[{','.join(texts)}]")
    if isinstance(values, list) and len(values) == len(texts):
        return values
    return [parse_json(text, default) for text in texts]


@functools.lru_cache(1024)
def stored_owner(text: str | None) -> Any:
    """Return the owner in a hash, a string or a number, or None. Many jobs have the
    same one.
    """
    owner = parse_json(text)
    return owner if type(owner) in (str, int, float) else None


def parse_int(text: str | None) -> int | None:
    """Return the value of 1 to 15 ASCII digits, or None for any other text."""
    if text is None or len(text) > 15 or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def parse_number(text: str | None) -> int | None:
    """Return the value of 1 to 19 ASCII digits, which a 64-bit counter of the store may
    hold, or None for any other text.
    """
    if text is None or len(text) > 19 or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def parse_time(text: str | None) -> datetime.datetime | None:
    """Return the aware UTC datetime of milliseconds since the epoch, or None."""
    number = parse_int(text)
    if number is None or number > LAST_TIME:
        return None
    return datetime.datetime.fromtimestamp(number / 1000, datetime.UTC)


def iso_time(time: datetime.datetime | None) -> str | None:
    """Return a UTC time in JavaScript's ISO format, to the millisecond."""
    if time is None:
        return None
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@functools.lru_cache(1024)
def stored_iso_time(text: str | None) -> str | None:
    """Return the time in a hash as :func:`iso_time` does, or None."""
    return iso_time(parse_time(text))


def parse_duration(text: str) -> float:
    """Return the seconds of a duration that a person wrote.

    Raises:
      ValueError: It is not one. The text completes a sentence that quotes it.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text, re.ASCII)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0
    if not 0.001 <= seconds <= MAX_SECONDS:
        raise ValueError("is not a duration such as 90, 90s, 15m, 24h or 8d")
    return seconds
