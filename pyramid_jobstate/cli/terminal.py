"""What a command writes to stdout and stderr: texts that are safe there, and errors."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import io
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..job.progress import Progress
from ..job.record import JobError
from ..job.values import dumps

#: What may act on a terminal, end a line, reorder the text around it or is not to be
#: exchanged: C0 and C1 controls, DEL, separators of lines, invisible and bidirectional
#: formats, assigned or reserved, tags, lone surrogates and noncharacters. The joiners
#: and the variation selectors that scripts and emojis need are left alone.
UNSAFE = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff0-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff\ufdd0-\ufdef"
    + "".join(map(chr, range(0xFFFE, 0x110000, 0x10000)))
    + "".join(map(chr, range(0xFFFF, 0x110000, 0x10000)))
    + "]"
)

#: A URL within a text, without the punctuation after it.
URL = re.compile(r"\b[\w+.-]+://[^\s'\"]*[^\s'\".,;)]")

#: The most characters of a text in a line that also says other things.
SHORT = 200


def clean(text: str) -> str:
    r"""Return a text with each unsafe character as Python writes it: ``\n``, ``\x1b``
    or ``\u202e``.
    """
    return UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Return a text cleaned, in one line."""
    return clean(" ".join(text.split()))


def without_passwords(text: str) -> str:
    """Return a text with the URLs in it masked."""
    from ..worker.brokers import masked

    return URL.sub(lambda match: masked(match[0]), text)


def short(text: str, length: int = SHORT) -> str:
    """Return a text cleaned, and cut if it is long."""
    text = clean(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def number(value: float) -> str:
    """Return a number as people write it: "20,000" or "0.25"."""
    if isinstance(value, int) or value.is_integer():
        return f"{int(value):,}"
    return f"{value:,.2f}"


def span(seconds: float) -> str:
    """Return a duration in its two largest units: "9 s", "2 min 5 s" or "1 d 4 h"."""
    if seconds < 1:
        return f"{max(seconds, 0):.1f} s"
    rest = int(seconds)
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        parts.append(f"{count} {name}" if count else "")
    while not parts[0]:
        parts.pop(0)
    return " ".join(part for part in parts[:2] if part)


def clock() -> str:
    """Return the time of day."""
    return time.strftime("%H:%M:%S")


def here(moment: datetime.datetime) -> datetime.datetime:
    """Return a time in the local time zone."""
    try:
        return moment.astimezone()
    except OverflowError:
        # Whatever a record holds, such as the last second of the year 9999.
        return moment


def local(moment: datetime.datetime, separator: str = " ") -> str:
    """Return a local time, with its offset."""
    return here(moment).isoformat(separator, "seconds")


def percent(progress: Progress) -> int | None:
    """Return the whole percentage that is done, 100 only at the end."""
    fraction = progress.fraction
    # 0.29 * 100 is a little less than 29.
    return None if fraction is None else math.floor(fraction * 100 + 1e-9)


def progress_text(progress: Progress | None) -> str:
    """Return progress as "10% 2,000 of 20,000 rows"."""
    if progress is None:
        return ""
    share = percent(progress)
    words = [] if share is None else [f"{share}%"]
    if progress.phase is not None:
        words += [f"{short(name)}:" for name in progress.phase.names[-1:]]
        if (progress.done, progress.total, progress.unit) == (0, None, None):
            # Nothing is counted yet.
            return " ".join(words).rstrip(":")
    words.append(number(progress.done))
    if progress.total is not None:
        words.append(f"of {number(progress.total)}")
    if progress.unit:
        words.append(short(progress.unit))
    return " ".join(words)


def error_text(error: JobError | None) -> str:
    """Return an exception as "ValueError: its text", or a reason."""
    if error is None:
        return ""
    return error.message if error.type is None else f"{error.type}: {error.message}"


def owner_text(owner: str | float | None) -> str:
    """Return an owner as JSON, which tells 7 from "7"."""
    return "-" if owner is None else clean(dumps(owner))


def joined(words: Sequence[str | None]) -> str:
    """Return the words that say something, with spaces between them."""
    return " ".join(word for word in words if word)


#: The exit codes of the commands for operators.
DONE, COULD_NOT, USAGE, FAILED, CANCELLED, STALLED = range(6)
TIMED_OUT, HUNG_UP, INTERRUPTED, BROKEN_PIPE, TERMINATED = 124, 129, 130, 141, 143


class Refused(Exception):
    """A mistake in the command line or in the ini. Only its text is shown."""


class CouldNot(Exception):
    """The command line is right, but the command could not do it. Only its text is
    shown.
    """


def say(text: str) -> None:
    """Write a line to stderr, whatever is in the text."""
    line = f"pjobs: {one_line(text)}"
    # Nobody may be left to read it.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


NO_RICH = (
    "Drawing on a terminal needs the package rich. Install it with `pip install "
    '"pyramid_jobstate[cli]"`, or pass --json, or append `| cat` for plain lines.'
)


class Output(NamedTuple):
    """What stdout takes.

    Attributes:
      is_json: Whether it takes one JSON object a line.
      draws: Whether it is a terminal to draw on.
    """

    is_json: bool
    draws: bool

    @classmethod
    def choose(cls, *, is_json: bool, can_draw: bool) -> Output:
        """Return what stdout takes from a command.

        Parameters:
          is_json: Whether the user wants JSON.
          can_draw: Whether the command draws on terminals.

        Raises:
          CouldNot: It would draw, but rich is missing.
        """
        is_terminal = sys.stdout.isatty()
        moves = is_terminal and os.environ.get("TERM") not in ("dumb", "unknown")
        draws = can_draw and not is_json and moves
        if draws and importlib.util.find_spec("rich") is None:
            raise CouldNot(NO_RICH)
        return cls(is_json, draws)

    def tell(self, text: str, **values: Any) -> None:
        """Write a line at once: the values as JSON, or the text."""
        print(json.dumps(values) if self.is_json else text, flush=True)


def json_text(value: object) -> str:
    """Return a job's value as readable JSON."""
    return clean(json.dumps(value, ensure_ascii=False))


def prepare_streams() -> None:
    """Let stdout and stderr take any text. If they are closed, writing to stdout raises
    an OSError, and stderr takes nothing.
    """
    for name, mode in (("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # Open until the process ends, and unbuffered, so that nothing is left to
            # be written then.
            raw = os.fdopen(os.open(os.devnull, mode), "wb", buffering=0)
            setattr(sys, name, io.TextIOWrapper(raw, write_through=True))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # The locale's encoding may lack characters.
            stream.reconfigure(errors="backslashreplace")


class OneLine(logging.Handler):
    """Writes errors to stderr, each as one line without a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text = f"{text} {type(error).__name__}: {error}"
        say(text)


def log_to_stderr() -> None:
    """Write errors to stderr as single lines, instead of what the ini's handlers write
    to the terminal. Its other handlers stay.
    """
    root = logging.getLogger()
    names = list(root.manager.loggerDict)
    for logger in [root, *map(logging.getLogger, names)]:
        for handler in list(logger.handlers):
            if _is_of_terminal(handler):
                logger.removeHandler(handler)
    root.addHandler(OneLine(logging.ERROR))


def _is_of_terminal(handler: logging.Handler) -> bool:
    if isinstance(handler, OneLine):
        return True
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    if isinstance(handler, logging.FileHandler):
        return False
    return isinstance(handler, logging.StreamHandler) and handler.stream in streams
