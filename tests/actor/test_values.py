"""What an actor may report: values, names, amounts and texts."""

import datetime
import decimal
import enum
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_jobstate import JobState, Progress
from tests.actor.calls import NAN, VALUE

ID = uuid.UUID("7d444840-9dc0-11d1-b245-5ffdce74fad2")

INFINITE = float("inf")


class Colour(enum.Enum):
    RED = "red"
    SINCE = datetime.date(2026, 11, 24)


class Mood(enum.StrEnum):
    GOOD = "good"


class Scalar:
    """Resembles a scalar of NumPy."""

    shape: tuple[int, ...] = ()

    def __init__(self, kind: str, value: Any, text: str = "") -> None:
        self.dtype = types.SimpleNamespace(kind=kind)
        self.value = value
        self.text = text

    def item(self) -> Any:
        return self.value

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return self.text


class Array(Scalar):
    shape = (1,)


NATURAL: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (-0.0, -0.0),
    (2**62, 2**62),
    (10**100, 10**100),
    (5e-324, 5e-324),
    ('</script>"\\\n\x00', '</script>"\\\n\x00'),
    ("Zürich 😀", "Zürich 😀"),
    # A lone surrogate, as in the name of a file.
    ({"ü": "\udcff"}, {"ü": "\udcff"}),
    ([1, (2, {"a": None})], [1, [2, {"a": None}]]),
    ({1: 2, None: 3, False: 4}, {"1": 2, "null": 3, "false": 4}),
    (datetime.date(2026, 11, 24), "2026-11-24"),
    (
        datetime.datetime(2026, 11, 24, 22, 17, tzinfo=datetime.UTC),
        "2026-11-24T22:17:00+00:00",
    ),
    (Colour.SINCE, "2026-11-24"),
    (Mood.GOOD, "good"),
    ([Colour.RED, {"id": ID}], ["red", {"id": str(ID)}]),
    (decimal.Decimal("12.50"), 12.5),
    (decimal.Decimal("12.00"), 12),
    (decimal.Decimal("12345678901234567890"), 12345678901234567890),
    # It is not cut to its integer part.
    (decimal.Decimal("0.99999999999999999999"), 1.0),
    ([Scalar("i", 3), Scalar("b", True), Scalar("f", 2.5)], [3, True, 2.5]),
    ([Scalar("M", 1767323045123456789, "2026-01-02T03:04")], ["2026-01-02T03:04"]),
]

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (NAN, ValueError, "JSON"),
    ([{"a": [-INFINITE]}], ValueError, "JSON"),
    ({NAN: 1}, ValueError, "JSON"),
    (decimal.Decimal("sNaN"), ValueError, "NaN"),
    (decimal.Decimal("1e999999999"), ValueError, "JSON"),
    (Scalar("f", NAN), ValueError, "JSON"),
    (10**5000, ValueError, "4300 digits"),
    (object(), TypeError, "object has no JSON form"),
    ({1, 2}, TypeError, "set has no JSON form"),
    (b"x", TypeError, "bytes has no JSON form"),
    (Array("i", [1]), TypeError, "Array has no JSON form"),
    (datetime.timedelta(1), TypeError, "timedelta has no JSON form"),
    (Scalar("m", 5), TypeError, "time span has no JSON form"),
    ({ID: 1}, TypeError, "UUID"),
]


@pytest.mark.promise("values-are-json")
def test_values_have_their_natural_form(run_job):
    """The actor and viewers read its JSON form, also where a number stood before."""

    def run(job_state: JobState) -> None:
        for number, (value, natural) in enumerate(NATURAL):
            name = str(number)
            job_state.set_progress_metric(name, 1)
            job_state.set_progress_metric(name, value)
            assert repr(job_state.get_progress_metric(name)) == repr(natural), value

    stored = run_job(run).progress_metrics
    for number, (_, natural) in enumerate(NATURAL):
        assert repr(stored[str(number)]) == repr(natural)


@pytest.mark.promise("values-are-json")
def test_values_without_a_json_form_are_refused(job_state):
    """The error names the metric and what is wrong, and the metric stays as it was."""
    job_state.set_progress_metrics(number=1, text="one")
    for value, error, text in REFUSED:
        for name in ("number", "text", "new"):
            with pytest.raises(error, match=text) as caught:
                job_state.set_progress_metric(name, value)
            assert str(caught.value).startswith(
                f"The progress metric {name!r} cannot be encoded as JSON: "
            )
    assert job_state.progress_metrics == {"number": 1, "text": "one"}


def test_values_that_never_end_are_refused(job_state):
    """A list that contains itself, or 100,000 others, is a ValueError."""
    value: list[Any] = []
    value.append([{"a": value}])
    with pytest.raises(ValueError, match="Circular"):
        job_state.set_progress_metric("a", value)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        job_state.set_progress_metric("a", deep)
    # It could not be freed at once.
    while deep:
        deep = deep.pop()


@pytest.mark.promise("values-are-bounded")
def test_value_takes_16_kib(job_state):
    """The limit counts the bytes of the JSON, not characters: not one more is taken."""
    for character, size in ("a", 1), ("€", 3), ("😀", 4), ("\udcff", 6):
        count, rest = divmod(VALUE - 2, size)
        value = "a" * rest + character * count
        job_state.set_progress_metric("a", value)
        with pytest.raises(ValueError, match=r"'a' takes 16385 bytes as JSON"):
            job_state.set_progress_metric("a", value + "a")
        assert job_state.get_progress_metric("a") == value


def test_mutable_values_are_copied(job_state):
    """Later changes to a value, or to one that was read, have no effect."""
    value = {"a": [1]}
    job_state.set_progress_metric("x", value)
    job_state.append_log("line")
    value["a"].append(2)
    job_state.get_progress_metric("x")["a"].append(3)
    job_state.progress_metrics["y"] = 1
    job_state.log.append("more")
    assert job_state.progress_metrics == {"x": {"a": [1]}}
    assert job_state.log == ["line"]


def test_any_text_is_a_name(job_state):
    """A metric may have a name that is special elsewhere, or a member of an enum."""
    names = ["__proto__", "m:a", " ", "Äpfel 😀", "\x00", Mood.GOOD]
    for name in names:
        job_state.set_progress_metric(name, 1)
        job_state.set_progress_metric(name, 2)
    job_state.set_progress_metric("good", 3)
    assert job_state.progress_metrics == dict.fromkeys(names, 2) | {"good": 3}


def test_bad_names_are_refused(job_state):
    """Every call that names a metric refuses a name that viewers could not be shown."""
    bad: list[tuple[Any, type[Exception], str]] = [
        ("", ValueError, "must not be empty"),
        ("job", ValueError, "must not be called 'job'"),
        ("job_state", ValueError, "must not be called 'job_state'"),
        ("a\ud800", ValueError, "not valid Unicode"),
        (1, TypeError, "must be a str, not"),
    ]
    job_state.set_progress_metric("a", 1)
    for name, error, text in bad:
        for call in (
            lambda name: job_state.set_progress_metric(name, 1),
            lambda name: job_state.set_progress_metrics({"a": 2, name: 1}),
            job_state.increment_progress_metric,
        ):
            with pytest.raises(error, match=text):
                call(name)
    assert job_state.progress_metrics == {"a": 1}


def test_amounts_are_plain_numbers(job_state):
    """Any real number of 0 or more is an amount, which reads as an int or a float."""
    largest = sys.float_info.max
    for value, amount in [
        (0, 0),
        (0.5, 0.5),
        (int(largest), int(largest)),
        (decimal.Decimal("2.5"), 2.5),
        (Scalar("i", 3), 3),
    ]:
        given: Any = value
        job_state.set_progress(given, given)
        progress = job_state.progress
        assert progress is not None
        assert repr(progress.done) == repr(progress.total) == repr(amount)


def test_bad_amounts_are_refused(job_state):
    """The error says which amount is wrong, and the progress stays as it was."""
    job_state.set_progress(1, 2)
    before = job_state.progress
    numbers = [-1, -0.1, NAN, INFINITE, 10**5000, decimal.Decimal("1e400")]
    others = [True, "3", 1j, decimal.Decimal("sNaN"), Array("i", [1])]
    for values, error, text in (
        (numbers, ValueError, "must be a finite number, 0 or greater"),
        (others, TypeError, "must be a number, not"),
    ):
        for value in values:
            given: Any = value
            with pytest.raises(error, match=rf"^The progress {text}"):
                job_state.set_progress(given, 2)
            with pytest.raises(error, match=rf"^The total of the progress {text}"):
                job_state.set_progress(1, given)
            with pytest.raises(error, match=rf"^The total of the progress {text}"):
                job_state.track([], given)
    assert job_state.progress == before


def test_bad_texts_are_refused(job_state):
    """A unit, a message or a line is a string, the first two of at most 16 KiB. What
    one call sets is set as a whole or not at all.
    """
    job_state.set_progress(0, 1, "rows", "Before")
    job_state.append_log("before")
    calls: list[tuple[str, Callable[[Any], object]]] = [
        ("unit", lambda text: job_state.set_progress(1, 2, text, "After")),
        ("message", lambda text: job_state.set_progress(1, 2, "miles", text)),
        ("message", job_state.set_message),
        ("line of the log", job_state.append_log),
        ("unit", lambda text: job_state.track([], None, text)),
    ]
    for what, call in calls:
        with pytest.raises(TypeError, match=rf"^(The|A) {what} must be a str, not"):
            call(b"rows")
    for what, call in calls[:3]:
        with pytest.raises(ValueError, match=rf"^The {what}.* takes 16386 bytes"):
            call("x" * VALUE)
    assert job_state.progress == Progress(0, 1, "rows")
    assert (job_state.message, job_state.log) == ("Before", ["before"])
