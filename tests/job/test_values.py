"""The rules for what a job may report: values, names and amounts."""

import datetime
import decimal
import enum
import json
import math
import uuid
from typing import Any

import pytest

from pyramid_jobstate.job.values import (
    MAX_AMOUNT,
    MAX_VALUE_BYTES,
    Json,
    check_amount,
    check_name,
    check_text,
    dumps,
    encode_value,
    is_owner,
    loads,
)

ID = uuid.UUID("7d444840-9dc0-11d1-b245-5ffdce74fad2")


#: pytest cannot write this number either.
HUGE = pytest.param(10**5000, id="huge")


class Colour(enum.Enum):
    RED = "red"
    SINCE = datetime.date(2026, 11, 24)


class Mood(enum.StrEnum):
    GOOD = "good"


class Level(enum.IntEnum):
    HIGH = 3


class Ratio(float, enum.Enum):
    HALF = 0.5


class DType:
    def __init__(self, kind):
        self.kind = kind


class Scalar:
    """Resembles a scalar of NumPy."""

    shape: tuple[int, ...] = ()

    def __init__(self, kind, item, text=""):
        self.dtype = DType(kind)
        self._item = item
        self._text = text

    def item(self):
        return self._item

    def __float__(self):
        return float(self._item)

    def __str__(self):
        return self._text


class Tensor:
    """Resembles a scalar of another library, whose types have no kind."""

    shape = ()
    dtype = object()

    def item(self):
        return 2.5


class Array(Scalar):
    shape = (1,)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (12, "12"),
        (-0.0, "-0.0"),
        (10**100, "1" + "0" * 100),
        (0.1, "0.1"),
        (5e-324, "5e-324"),
        ("", '""'),
        ('</script>"\\\n\x00', '"</script>\\"\\\\\\n\\u0000"'),
        ("Zürich 😀", '"Zürich 😀"'),
        ([1, (2, {"a": None})], '[1,[2,{"a":null}]]'),
        ({1: 2, None: 3, False: 4}, '{"1":2,"null":3,"false":4}'),
        (datetime.date(2026, 11, 24), '"2026-11-24"'),
        (datetime.time(22, 17), '"22:17:00"'),
        (
            datetime.datetime(2026, 11, 24, 22, 17, tzinfo=datetime.UTC),
            '"2026-11-24T22:17:00+00:00"',
        ),
        (ID, f'"{ID}"'),
        (Colour.RED, '"red"'),
        (Colour.SINCE, '"2026-11-24"'),
        (Mood.GOOD, '"good"'),
        (Level.HIGH, "3"),
        (Ratio.HALF, "0.5"),
        ([Colour.RED, {"id": ID}], f'["red",{{"id":"{ID}"}}]'),
    ],
)
def test_dumps_writes_the_natural_form(value, text):
    """Each value is written in its natural JSON form, without spaces."""
    assert dumps(value) == text
    assert json.loads(text) == loads(dumps(value))


@pytest.mark.parametrize(
    ("decimal_text", "text"),
    [
        ("12.50", "12.5"),
        ("12.00", "12"),
        ("-0", "0"),
        ("12345678901234567890", "12345678901234567890"),
        ("1e300", str(10**300)),
        # Neither is truncated to its integer part.
        ("0.99999999999999999999", "1.0"),
        ("1e-999999999", "0.0"),
    ],
)
def test_dumps_writes_a_decimal_as_a_number(decimal_text, text):
    """A Decimal is an exact integer if it is whole, otherwise the nearest float."""
    assert dumps(decimal.Decimal(decimal_text)) == text


@pytest.mark.parametrize(
    ("scalar", "text"),
    [
        (Scalar("i", 3), "3"),
        (Scalar("b", True), "true"),
        (Scalar("f", 2.5), "2.5"),
        (Scalar("M", 1767323045123456789, "2026-01-02T03:04"), '"2026-01-02T03:04"'),
        (Tensor(), "2.5"),
    ],
)
def test_dumps_writes_numpy_scalars(scalar, text):
    """A NumPy scalar is written as its value."""
    assert dumps([scalar]) == f"[{text}]"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        [{"a": [float("nan")]}],
        {float("nan"): 1},
        decimal.Decimal("NaN"),
        decimal.Decimal("sNaN"),
        decimal.Decimal("-Infinity"),
        decimal.Decimal("1e400"),
        decimal.Decimal("1e999999999"),
        Scalar("f", float("nan")),
    ],
)
def test_dumps_refuses_what_is_not_finite(value):
    """NaN and infinities are a ValueError at any depth."""
    with pytest.raises(ValueError, match=r"JSON|NaN"):
        dumps(value)


def test_dumps_refuses_an_int_that_python_does_not_write():
    """An int with too many digits is a ValueError."""
    with pytest.raises(ValueError, match="4300 digits"):
        dumps(10**5000)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        (b"x", "bytes"),
        (1j, "complex"),
        (lambda: 1, "function"),
        (Array("i", [1]), "Array"),
        (datetime.timedelta(1), "timedelta"),
        (Scalar("m", 5), "time span"),
        (Scalar("c", 1j), "complex"),
        ({ID: 1}, "UUID"),
    ],
)
def test_dumps_refuses_what_has_no_json_form(value, name):
    """A value without a JSON form is a TypeError that names its class."""
    with pytest.raises(TypeError, match=name):
        dumps(value)


def test_dumps_escapes_a_lone_surrogate():
    """A lone surrogate, as in a file name, is escaped, so that it fits into UTF-8."""
    text = dumps({"ü": "\udcff"})
    assert text.encode() == b'{"\\u00fc":"\\udcff"}'
    assert loads(text) == {"ü": "\udcff"}


def test_dumps_refuses_a_cycle():
    """A list that contains itself is a ValueError."""
    value: list[object] = []
    value.append([{"a": value}])
    with pytest.raises(ValueError, match="Circular"):
        dumps(value)


def test_dumps_refuses_what_is_nested_too_deeply():
    """A list of 100,000 levels is a ValueError, not a RecursionError."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        dumps(value)
    while value:
        value = value.pop()


def test_dumps_returns_json():
    """The result is a Json, so that nobody mistakes it for a plain string."""
    assert type(dumps("a")) is Json
    assert type(dumps("\ud800")) is Json


@pytest.mark.parametrize("character", ["a", "é", "€", "😀", "\udcff"])
def test_encode_value_takes_16_kib_and_no_byte_more(character):
    """The limit counts the bytes of the JSON, not characters."""
    size = len(dumps(character).encode()) - 2
    count, rest = divmod(MAX_VALUE_BYTES - 2, size)
    value = "a" * rest + character * count
    assert len(encode_value("It", value).encode()) == MAX_VALUE_BYTES
    with pytest.raises(ValueError, match=r"^It takes 16385 bytes as JSON"):
        encode_value("It", value + "a")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (object(), TypeError),
        pytest.param(10**5000, ValueError, id="huge"),
    ],
)
def test_encode_value_says_what_cannot_be_encoded(value, error):
    """The error begins with the name of what should have been encoded."""
    with pytest.raises(error, match=r"^The metric cannot be encoded as JSON: "):
        encode_value("The metric", value)


@pytest.mark.parametrize(
    "name", ["a", "__proto__", "constructor", " ", "m:x", "Äpfel 😀", "\x00", Mood.GOOD]
)
def test_check_name_takes_any_text(name):
    """Any text is a valid name, even if it is special elsewhere."""
    assert check_name(name) is name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        ("job", "must not be called 'job'"),
        ("job_state", "must not be called 'job_state'"),
        ("a\ud800", "not valid Unicode"),
    ],
)
def test_check_name_refuses_a_bad_name(name, message):
    """Empty and reserved names and lone surrogates are a ValueError."""
    with pytest.raises(ValueError, match=message):
        check_name(name)


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"], ID])
def test_check_name_refuses_a_non_string(name):
    """A name that is not a string is a TypeError."""
    with pytest.raises(TypeError, match="must be a str, not"):
        check_name(name)


def test_check_text_returns_a_string():
    """A string is returned unchanged."""
    assert check_text("The unit", "Zeilen") == "Zeilen"


@pytest.mark.parametrize("text", [None, 1, b"rows", ["rows"]])
def test_check_text_refuses_a_non_string(text):
    """Anything else is a TypeError that says what must be a string."""
    with pytest.raises(TypeError, match=r"^The unit must be a str, not"):
        check_text("The unit", text)


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (0, 0),
        (12, 12),
        (0.5, 0.5),
        (MAX_AMOUNT, MAX_AMOUNT),
        (int(MAX_AMOUNT), int(MAX_AMOUNT)),
        (decimal.Decimal("2.5"), 2.5),
        (decimal.Decimal(3), 3),
        (Scalar("i", 3), 3),
    ],
)
def test_check_amount_returns_a_plain_number(value, amount):
    """Any real number is returned as an int or a float."""
    checked = check_amount("The total", value)
    assert checked == amount
    assert type(checked) is type(amount)


@pytest.mark.parametrize(
    "value",
    [
        -1,
        -0.1,
        float("nan"),
        float("inf"),
        int(MAX_AMOUNT) + 1,
        HUGE,
        pytest.param(-(10**5000), id="-huge"),
        decimal.Decimal("NaN"),
        decimal.Decimal("Infinity"),
        decimal.Decimal("1e400"),
        Scalar("f", float("nan")),
    ],
)
def test_check_amount_refuses_what_cannot_be_counted_with(value):
    """An amount that is negative, or not finite as a float, is a ValueError."""
    with pytest.raises(ValueError, match=r"^The total must be a finite number, 0 or"):
        check_amount("The total", value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "3",
        1j,
        decimal.Decimal("sNaN"),
        Scalar("b", True),
        Scalar("c", 1j),
        Array("i", [1]),
    ],
)
def test_check_amount_refuses_a_non_number(value):
    """An amount that is not a number, or is a bool, is a TypeError."""
    with pytest.raises(TypeError, match=r"^The total must be a number, not"):
        check_amount("The total", value)


@pytest.mark.parametrize("owner", ["alice", "", 0, -7, HUGE, 1.5])
def test_is_owner_takes_strings_and_finite_numbers(owner):
    """A string and a finite number can own jobs."""
    assert is_owner(owner)


@pytest.mark.parametrize(
    "owner", [None, True, False, math.inf, -math.inf, math.nan, b"alice", ["alice"], {}]
)
def test_is_owner_refuses_all_else(owner):
    """Anything else cannot own jobs: as JSON it would name a different owner."""
    assert not is_owner(owner)
