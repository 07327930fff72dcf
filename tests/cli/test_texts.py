"""Texts of jobs are harmless on a terminal, and numbers and times readable."""

import datetime
import sys
import time
import unicodedata

import pytest

from pyramid_jobstate import JobError, Progress
from pyramid_jobstate.cli import texts
from pyramid_jobstate.job import Phase, in_phase

#: The bidirectional controls.
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_nothing_acts_on_a_terminal() -> None:
    """Every control, line separator, bidirectional control and surrogate is escaped,
    and every letter, mark, number, punctuation and symbol stays.
    """
    characters = list(map(chr, range(sys.maxunicode + 1)))
    unsafe = [
        character
        for character in characters
        if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
        or unicodedata.bidirectional(character) in BIDI
    ]
    for character in unsafe:
        assert texts.clean(character).startswith("\\"), hex(ord(character))
        assert texts.clean(character).isprintable()
    safe = "".join(c for c in characters if unicodedata.category(c)[0] in "LMNPS")
    assert texts.clean(safe) == safe


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("\u202egnp.exe\u2069", r"\u202egnp.exe\u2069"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("Größe \\n ☃", "Größe \\n ☃"),
        # Emoji and Persian need their joiners.
        ("👩‍👧 نمی‌خواهم", "👩‍👧 نمی‌خواهم"),
    ],
)
def test_unsafe_characters_are_shown_as_python_writes_them(
    text: str, cleaned: str
) -> None:
    """A reader sees which character stood there."""
    assert texts.clean(text) == cleaned


def test_long_texts_are_cut() -> None:
    """A text takes at most 200 characters of a line, whatever it is made of."""
    assert texts.short("x" * 200) == "x" * 200
    assert texts.short("x" * 201) == "x" * 199 + "…"
    assert len(texts.short("\x1b" * 200)) == 200


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (20000, "20,000"), (2.0, "2"), (0.256, "0.26"), (1e15, f"{10**15:,}")],
)
def test_numbers(value: float, text: str) -> None:
    """Numbers have separators and at most two decimals."""
    assert texts.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.26, "0.3 s"),
        (9.9, "9 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7384, "2 h 3 min"),
        (100800, "1 d 4 h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    """A duration takes its two largest units."""
    assert texts.span(seconds) == text


def phased(progress: Progress, *names: str) -> Progress:
    """Return the progress of a job with open phases."""
    return in_phase(progress, Phase(0.4, 0.1, names))


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (None, ""),
        (Progress(2000, 20000, "rows"), "10% 2,000 of 20,000 rows"),
        (Progress(2000, None, "rows"), "2,000 rows"),
        (Progress(29, 100), "29% 29 of 100"),
        (Progress(9999, 10000), "99% 9,999 of 10,000"),
        (Progress(7, 5), "100% 7 of 5"),
        (Progress(0, 0), "100% 0 of 0"),
        (Progress(1, 2, "\x1b"), r"50% 1 of 2 \x1b"),
        (phased(Progress(1, 2, "rows"), "A", "B"), "45% B: 1 of 2 rows"),
        (phased(Progress(1, 2, "rows"), "\x1b"), r"45% \x1b: 1 of 2 rows"),
        (phased(Progress(0), "A", "B"), "40% B"),
        (phased(Progress(1, 2)), "45% 1 of 2"),
        (phased(Progress(0)), "40%"),
    ],
)
def test_progress(progress: Progress | None, text: str) -> None:
    """Progress has a whole percentage, which is 100 only at the end."""
    assert texts.progress_text(progress) == text


def test_errors_and_owners() -> None:
    """An exception has its type, a reason has none, and an owner is JSON."""
    assert texts.error_text(None) == ""
    assert texts.error_text(JobError("ValueError", "bad")) == "ValueError: bad"
    assert texts.error_text(JobError(None, "gone")) == "gone"
    owners = [texts.owner_text(owner) for owner in (None, 7, "7", "\x7f")]
    assert owners == ["-", "7", '"7"', r'"\x7f"']


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time is shown in the local time zone, if that has such a year."""
    moment = datetime.datetime(2026, 7, 1, 12, 0, 1, tzinfo=datetime.UTC)
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert texts.local(moment) == "2026-07-01 17:30:01+05:30"
        last = datetime.datetime.max.replace(tzinfo=datetime.UTC)
        assert texts.local(last, "T") == "9999-12-31T23:59:59+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()
