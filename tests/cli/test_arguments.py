"""What commands for operators take, and how they ask."""

import argparse
import contextlib
import os
import pty
import re
from collections.abc import Iterator

import pytest

from pyramid_jobstate.cli import arguments
from pyramid_jobstate.cli.faults import CouldNot, Refused


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ('"7"', "7"), ("1.5", 1.5), ('"ü"', "ü")]
)
def test_owners_are_json(text: str, value: object) -> None:
    """A number and a text of the same digits are two owners."""
    owner = arguments.owner(text)
    assert (owner, type(owner)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("alice", """alice is not JSON. Put a text as '"alice"'"""),
        ("", """Put a text as '""'"""),
        ("NaN", "neither a text nor a number"),
        ("true", "neither a text nor a number"),
        ("null", "neither a text nor a number"),
        ('["alice"]', "neither a text nor a number"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_other_owners_are_refused(text: str, error: str) -> None:
    """A word without quotes is shown with them; what cannot own jobs is named."""
    with pytest.raises(ValueError, match=re.escape(error)):
        arguments.owner(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "x", "1" * 10, "１"])
def test_limits_are_positive(text: str) -> None:
    """A limit is a positive whole number."""
    assert arguments.positive("12") == 12
    with pytest.raises(ValueError, match="not a positive whole number"):
        arguments.positive(text)


def test_durations_are_those_of_settings() -> None:
    """A duration is a number of seconds, or a number with a unit."""
    given = ["90", "90s", "15m", "24h", "0.5"]
    assert [arguments.duration(text) for text in given] == [90, 90, 900, 86400, 0.5]
    for text in ("0", "-1", "soon", "٣s"):
        with pytest.raises(ValueError, match=f"{text} is not a duration such as 90"):
            arguments.duration(text)


def test_ids_are_in_small_letters() -> None:
    """An id may be typed in capitals, and has only digits of its own."""
    assert arguments.job_id("4F6C-") == "4f6c-"
    for text in ("", "4f6c*", "http", "a" * 37):
        with pytest.raises(ValueError, match="is not made of"):
            arguments.job_id(text)


@contextlib.contextmanager
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Give the end of a terminal at which a person sits, whose other end is stdin and
    stderr of this process meanwhile.
    """
    ours, theirs = pty.openpty()
    with (
        os.fdopen(theirs, "r", closefd=False) as keys,
        os.fdopen(theirs, "w") as shown,
        monkeypatch.context() as patch,
    ):
        patch.setattr("sys.stdin", keys)
        patch.setattr("sys.stderr", shown)
        yield ours
    os.close(ours)


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.add_consent(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("answer", ["y", "YES", " yes "])
def test_yes_goes_on(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A person is asked a clean question, and says yes."""
    with person(monkeypatch) as terminal:
        os.write(terminal, f"{answer}\n".encode())
        arguments.confirm("Cancel 3 jobs of \x1b[31m?")
        seen = b""
        while b"[y/N] " not in seen:
            seen += os.read(terminal, 1000)
    assert b"Cancel 3 jobs of \\x1b[31m? [y/N] " in seen


@pytest.mark.parametrize("answer", ["n\n", "\n", "yes please\n", "\x04"])
def test_anything_else_does_not(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Only a clear yes counts: any other answer, and Ctrl-D, changes nothing."""
    with person(monkeypatch) as terminal:
        os.write(terminal, answer.encode())
        with pytest.raises(CouldNot, match=r"^Nothing was done\.$"):
            arguments.confirm("Sure?")


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, --yes is needed. With it, nobody is asked."""
    with person(monkeypatch):
        assert arguments.must_ask(given())
        assert not arguments.must_ask(given("--yes"))
    assert not arguments.must_ask(given("--yes"))
    with pytest.raises(Refused, match="Pass --yes"):
        arguments.must_ask(given())
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(Refused, match="Pass --yes"):
        arguments.must_ask(given())
