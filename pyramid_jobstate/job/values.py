"""The values that may be passed and reported, and what the texts of a hash mean."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import functools
import json
import math
import re
import sys
import uuid
from collections.abc import Mapping
from typing import Any, TypeGuard

#: The maximum size of one value as JSON, in bytes.
MAX_VALUE_BYTES = 16 * 1024

#: The maximum size of all metrics of a job together, including names, in bytes.
MAX_JOB_BYTES = 256 * 1024

#: The bytes that any number counts for: the length of the longest one as JSON.
NUMBER_BYTES = 24

#: The maximum amount of progress: the fraction and the ETA are computed as floats.
MAX_AMOUNT = sys.float_info.max

#: Numbers of these classes between -LIMIT and LIMIT are kept without further checks:
#: they are finite and never take more than NUMBER_BYTES as JSON.
NUMBERS = frozenset({int, float, bool})
LIMIT = 2**62

#: The classes of amounts of progress that are kept as they are.
AMOUNTS = frozenset({int, float})

#: The lines that a job's log keeps, and the characters that it keeps of each.
LOG_LINES = 20
LOG_LINE_LENGTH = 200

#: The names of Pyramid's principals Everyone and Authenticated.
SYSTEM = frozenset({"system.Everyone", "system.Authenticated"})

#: The metric names that are reserved for the keys of a job's JSON.
RESERVED_NAMES = frozenset({"job_state", "job"})


class Json(str):
    """A value as JSON text. Mutable values are kept as text, which makes a copy."""

    __slots__ = ()


def natural(value: object) -> object:
    """Return the natural JSON form of a value that :mod:`json` does not support.

    Raises:
      TypeError: The value has no JSON form.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, decimal.Decimal):
        number = float(value)
        if number.is_integer() and int(value) == value:
            return int(value)
        return number
    # NumPy's scalars, without importing NumPy.
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        return _natural_scalar(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _natural_scalar(value: Any) -> object:
    # item() would return a time in nanoseconds as an int, and a long double unchanged.
    kind = getattr(value.dtype, "kind", "")
    if kind == "M":
        return str(value)
    if kind == "f":
        return float(value)
    if kind == "m":
        raise TypeError("a time span has no JSON form: use a number of seconds")
    return value.item()


_options: dict[str, Any] = {
    "allow_nan": False,
    "separators": (",", ":"),
    "default": natural,
}
_encode = json.JSONEncoder(ensure_ascii=False, **_options).encode
_encode_ascii = json.JSONEncoder(**_options).encode


def dumps(value: object) -> Json:
    """Return `value` as compact JSON that is valid UTF-8.

    Raises:
      ValueError: `value` contains NaN, an infinity or a cycle, or is nested too deeply.
      TypeError: `value` contains something without a JSON form.
    """
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        # A lone surrogate, as in some file names: only escaped is it valid UTF-8.
        text = _encode_ascii(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return Json(text)


def plain(value: object) -> Any:
    """Return the value of what is kept of one."""
    return json.loads(value) if isinstance(value, Json) else value


def encode_owner(owner: object) -> str | None:
    """Return an owner as JSON, or None for none."""
    return None if owner is None else dumps(owner)


def encode_value(what: str, value: object) -> Json:
    """Return `value` as JSON.

    Parameters:
      what: What to call the value in an error message.
      value: The value.

    Raises:
      ValueError: The value is NaN or infinite, or takes more than 16 KiB.
      TypeError: The value has no JSON form.
    """
    try:
        text = dumps(value)
    except (TypeError, ValueError) as e:
        error = TypeError if isinstance(e, TypeError) else ValueError
        raise error(f"{what} cannot be encoded as JSON: {e}") from None
    # A character takes up to four bytes: a short text need not be counted exactly.
    size = len(text) if len(text) * 4 <= MAX_VALUE_BYTES else len(text.encode())
    if size > MAX_VALUE_BYTES:
        raise ValueError(
            f"{what} takes {size} bytes as JSON. The limit for one value is "
            f"{MAX_VALUE_BYTES} bytes."
        )
    return text


def encode_params(params: Mapping[str, object]) -> Json:
    """Return the parameters as JSON, leaving out those that are too long or cannot be
    encoded.
    """
    kept: dict[str, object] = {}
    for name, value in params.items():
        try:
            if len(dumps(value).encode()) <= MAX_VALUE_BYTES:
                kept[name] = value
        except (TypeError, ValueError):
            continue
    return dumps(kept)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an int or a float, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_owner(owner: object) -> bool:
    """Return whether a value can own jobs: a string or a finite number."""
    if is_number(owner):
        return -math.inf < owner < math.inf
    return isinstance(owner, str)


def is_system(owner: object) -> bool:
    """Return whether an owner has the name of a principal of Pyramid's. In the ACL of a
    job, it would let in everybody, or everybody who is logged in.
    """
    return isinstance(owner, str) and owner in SYSTEM


def is_plain(value: float) -> bool:
    """Return whether a number may be kept without further checks."""
    return type(value) in NUMBERS and -LIMIT < value < LIMIT


def check_name(name: object) -> str:
    """Return `name` if it is valid for a metric.

    Raises:
      TypeError: The name is not a string.
      ValueError: The name is empty, reserved or not valid Unicode.
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of a progress metric must be a str, not {name!r}.")
    if not name:
        raise ValueError("The name of a progress metric must not be empty.")
    if name in RESERVED_NAMES:
        raise ValueError(
            f"A progress metric must not be called {name!r}: the name is reserved in "
            "a job's JSON. Choose another name."
        )
    try:
        name.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"The name {name!r} is not valid Unicode: {e}") from None
    return name


def check_text(what: str, text: object) -> str:
    """Return `text` if it is a string.

    Raises:
      TypeError: The text is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {text!r}.")
    return text


def check_amount(what: str, value: Any) -> float:
    """Return an amount of progress as a plain int or float.

    Raises:
      TypeError: The value is not a number.
      ValueError: The value is negative, NaN, infinite or too large for a float.
    """
    amount: float = value if type(value) in AMOUNTS else _plain_amount(what, value)
    if not 0 <= amount <= MAX_AMOUNT:
        # Without the value: an int may have too many digits to format.
        raise ValueError(f"{what} must be a finite number, 0 or greater.")
    return amount


def _plain_amount(what: str, value: object) -> float:
    if isinstance(value, decimal.Decimal) or hasattr(value, "dtype"):
        # What natural() does not convert is refused below.
        with contextlib.suppress(TypeError, ValueError):
            value = natural(value)
    if not is_number(value):
        raise TypeError(f"{what} must be a number, not {value!r}.")
    return value


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


def parse_all(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of some JSON texts by name, without those that are invalid."""
    # Parsing all at once is faster. It fails if any of them is not valid JSON.
    values = parse_json(f"[{','.join(texts.values())}]")
    if isinstance(values, list) and len(values) == len(texts):
        return dict(zip(texts, values, strict=True))
    found = ((name, parse_json(text, texts)) for name, text in texts.items())
    return {name: value for name, value in found if value is not texts}


@functools.lru_cache(1024)
def stored_owner(text: str | None) -> Any:
    """Return the owner in a hash, a string or a number, or None. Many jobs have the
    same one.
    """
    owner = parse_json(text)
    if type(owner) not in (str, int, float) or is_system(owner):
        return None
    return owner


def parse_natural(text: str | None, digits: int = 15) -> int | None:
    """Return the natural number that some ASCII digits spell, or None for any other
    text, such as one with a sign.

    Parameters:
      digits: The most that count.
    """
    if text is None or len(text) > digits or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def parse_time(text: str | None) -> datetime.datetime | None:
    """Return the aware UTC datetime of milliseconds since the epoch, or None."""
    number = parse_natural(text)
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


#: The maximum number of characters of a unique key.
MAX_KEY = 200


def identity_of(actor: str, key: object, owner: str | None, *, shared: bool) -> str:
    """Return the identity of a unique job, as JSON.

    Parameters:
      actor: The name of its actor.
      key: Its unique key.
      owner: Its owner as JSON, or None.
      shared: Whether the jobs of all owners have one identity.

    Raises:
      TypeError: The key is not a string.
      ValueError: The key is empty, too long or not valid Unicode, or the job has
        neither an owner nor a shared identity.
    """
    if not isinstance(key, str):
        raise TypeError(f"A unique key must be a string, not {key!r}.")
    if not 1 <= len(key) <= MAX_KEY:
        raise ValueError(
            f"A unique key must have 1 to {MAX_KEY} characters, not {len(key)}: "
            f"{key[:MAX_KEY]!r}."
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueError(f"A unique key must be valid Unicode, not {key!r}.") from None
    if shared:
        return dumps([actor, key])
    if owner is None:
        raise ValueError(
            f"The job with the unique key {key!r} has no owner. Pass shared=True to "
            "let all visitors share one job, or name an owner."
        )
    return f"[{dumps(actor)},{dumps(key)},{owner}]"
