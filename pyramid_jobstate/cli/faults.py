"""What keeps a command from doing its work, said in one line."""

from __future__ import annotations

import contextlib
import sys

from .texts import clean

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
    line = f"pjobs: {clean(' '.join(text.split()))}"
    # Nobody may be left to read it.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
