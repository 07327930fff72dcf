"""The flags of the command ``dramatiq``, on a command line and in ``[pjobs]``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyramid.settings import aslist, falsey, truthy

from .faults import Refused

#: The section of an ini that holds defaults.
SECTION = "pjobs"


class Flag(NamedTuple):
    """A flag, without the dashes.

    Attributes:
      kind: How it takes its values: a key of KINDS.
    """

    name: str
    short: str
    kind: str
    help: str


def _whole(text: str, least: int) -> int:
    """Return a whole number, of at most nine digits."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise ValueError(f"not a whole number from {least} to 999,999,999")
    return int(text)


def _from(least: int) -> Callable[[str], int]:
    """Return a converter to whole numbers for argparse."""

    def convert(text: str) -> int:
        try:
            return _whole(text, least)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"{text!r} is {e}") from None

    return convert


#: What argparse needs to know for each kind.
KINDS: dict[str, dict[str, Any]] = {
    "positive": {"type": _from(1), "metavar": "N"},
    "number": {"type": _from(0), "metavar": "N"},
    "text": {"metavar": "PATH"},
    "words": {"nargs": "*", "metavar": "NAME"},
    "repeated": {"action": "append", "metavar": "NAME"},
    "switch": {"action": "store_true"},
    "count": {"action": "count"},
}

#: The flags of Dramatiq 2.2. A test compares them with the installed version's.
FLAGS = (
    Flag("processes", "p", "positive", "worker processes (default: one per CPU)"),
    Flag("threads", "t", "positive", "threads in each of them (default: 8)"),
    Flag("queues", "Q", "words", "listen to these queues only"),
    Flag("path", "P", "words", "import modules from these folders (default: .)"),
    Flag("pid-file", "", "text", "write the process id to this file"),
    Flag("log-file", "", "text", "write logs to this file (default: stderr)"),
    Flag("skip-logging", "", "switch", "do not set up Dramatiq's logging"),
    Flag("use-spawn", "", "switch", "start processes by spawning"),
    Flag("fork-function", "f", "repeated", "run a function in a process of its own"),
    Flag("worker-fork-timeout", "", "number", "milliseconds the workers have to start"),
    Flag("worker-shutdown-timeout", "", "number", "milliseconds that jobs have to end"),
    Flag("watch", "", "text", "reload when Python files in this folder change"),
    Flag("watch-use-polling", "", "switch", "poll the files"),
    Flag("watch-include", "i", "repeated", "watch files with this pattern, too"),
    Flag("watch-exclude", "x", "repeated", "do not watch files with this pattern"),
    Flag("verbose", "v", "count", "log more"),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Let a parser accept the flags. Only those that are given are in its result."""
    for flag in FLAGS:
        names = [f"-{flag.short}"] * bool(flag.short) + [f"--{flag.name}"]
        parser.add_argument(
            *names, help=flag.help, default=argparse.SUPPRESS, **KINDS[flag.kind]
        )


def arguments_of(settings: Mapping[str, str], path: str) -> dict[str, list[str]]:
    """Return the flags that ``[pjobs]`` sets: their names and the arguments for them.

    Parameters:
      path: The path of the ini, for errors.

    Raises:
      Refused: A name or a value is wrong.
    """
    known = {flag.name: flag.kind for flag in FLAGS}
    found = {}
    for setting, value in settings.items():
        name = setting.replace("_", "-")
        if name not in known:
            raise Refused(
                f"{path}: {setting!r} in [{SECTION}] is not a long flag of Dramatiq's. "
                f"Use one of: {', '.join(known)}."
            )
        try:
            found[name] = _ARGUMENTS[known[name]](f"--{name}", value.strip())
        except ValueError as e:
            raise Refused(f"{path}: {setting} in [{SECTION}] is {e}.") from None
    return found


def _positive(flag: str, value: str) -> list[str]:
    return _number(flag, value, 1)


def _number(flag: str, value: str, least: int = 0) -> list[str]:
    try:
        return [flag, str(_whole(value, least))]
    except ValueError as e:
        raise ValueError(f"{value!r}, {e}") from None


def _text(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value else []


def _words(flag: str, value: str) -> list[str]:
    words = aslist(value)
    return [flag, *words] if words else []


def _repeated(flag: str, value: str) -> list[str]:
    return [f"{flag}={word}" for word in aslist(value)]


def _switch(flag: str, value: str) -> list[str]:
    if value.lower() not in truthy | falsey:
        raise ValueError(f"{value!r}, neither true nor false")
    return [flag] if value.lower() in truthy else []


def _count(flag: str, value: str) -> list[str]:
    return [flag] * int(_number(flag, value)[1])


_ARGUMENTS = {
    "positive": _positive,
    "number": _number,
    "text": _text,
    "words": _words,
    "repeated": _repeated,
    "switch": _switch,
    "count": _count,
}
