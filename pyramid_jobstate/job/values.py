"""The rules for the values that a job may report."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import json
import math
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


def loads(text: Json | str | bytes) -> Any:
    """Return the value of a JSON text that :func:`dumps` wrote."""
    return json.loads(text)


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
            if len(dumps(value)) <= MAX_VALUE_BYTES:
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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, not {value!r}.")
    return value
