"""What a job may report: the rules for the values of metrics, progress and log."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import json
import sys
import uuid
from typing import Any

#: The most that one value may take as JSON, in bytes.
MAX_VALUE_BYTES = 16 * 1024

#: The most that all metrics of a job may take together, names included, in bytes.
MAX_JOB_BYTES = 256 * 1024

#: A number's share of a job's bytes: what the longest one takes as JSON.
NUMBER_BYTES = 24

#: The most that can be done, or to do: whatever is reckoned from it is a float.
MAX_AMOUNT = sys.float_info.max

#: A job's log keeps this many lines of this many characters.
LOG_LINES = 20
LOG_LINE_LENGTH = 200

#: The names that a job's JSON uses itself.
RESERVED_NAMES = frozenset({"job_state", "job"})


class Json(str):
    """A value as JSON text: what a mutable value is kept as, so that it is a copy."""

    __slots__ = ()


def natural(value: object) -> object:
    """Return the natural JSON form of a value that :mod:`json` does not know.

    Raises:
      TypeError: There is none.
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
    # item() gives nanoseconds as an int, and a long double as itself.
    kind = getattr(value.dtype, "kind", "")
    if kind == "M":
        return str(value)
    if kind == "f":
        return float(value)
    if kind == "m":
        raise TypeError("a time span has no JSON form: give a number of seconds")
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
      ValueError: NaN, an infinity, a cycle, too deep.
      TypeError: Something in it has no JSON form.
    """
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        # A lone surrogate, as in the name of a file: JSON can say it, UTF-8 can't.
        text = _encode_ascii(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return Json(text)


def loads(text: Json | str | bytes) -> Any:
    """Return the value that :func:`dumps` was given, in its JSON form."""
    return json.loads(text)


def encode_value(what: str, value: object) -> Json:
    """Return `value` as JSON.

    Parameters:
      what: What the value is, for the message of an error.

    Raises:
      ValueError: It is NaN, infinite or takes more than 16 KiB.
      TypeError: It has no JSON form.
    """
    try:
        text = dumps(value)
    except (TypeError, ValueError) as e:
        error = TypeError if isinstance(e, TypeError) else ValueError
        raise error(f"{what} cannot be said in JSON: {e}") from None
    # A character takes up to four bytes: only then is counting needed.
    size = len(text) if len(text) * 4 <= MAX_VALUE_BYTES else len(text.encode())
    if size > MAX_VALUE_BYTES:
        raise ValueError(
            f"{what} takes {size} bytes as JSON, more than the {MAX_VALUE_BYTES} "
            "that one value may take."
        )
    return text


def check_name(name: object) -> str:
    """Return `name` if a metric may be called so.

    Raises:
      TypeError: It is no string.
      ValueError: It is empty, reserved, or no valid Unicode.
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of a progress metric must be a str, not {name!r}.")
    if not name:
        raise ValueError("The name of a progress metric must not be empty.")
    if name in RESERVED_NAMES:
        raise ValueError(
            f"A progress metric must not be called {name!r}: a job's JSON uses the "
            "name itself."
        )
    try:
        name.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"The name {name!r} is no valid Unicode: {e}") from None
    return name


def check_text(what: str, text: object) -> str:
    """Return `text` if it is a string.

    Raises:
      TypeError: It is none.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {text!r}.")
    return text


def check_amount(what: str, value: object) -> float:
    """Return `value`, how much is done or to do, as a plain int or float.

    Raises:
      TypeError: It is no number.
      ValueError: It is negative, NaN, infinite, or too large for a float.
    """
    if isinstance(value, decimal.Decimal) or hasattr(value, "dtype"):
        # A value that stays what it was is refused below.
        with contextlib.suppress(TypeError, ValueError):
            value = natural(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, not {value!r}.")
    if not 0 <= value <= MAX_AMOUNT:
        # Not the value itself: an int may be too long to be written out.
        raise ValueError(f"{what} must be a finite number from 0 up.")
    return value
