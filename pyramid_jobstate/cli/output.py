"""Where a command writes: JSON, plain lines, or a terminal that it draws on."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from typing import Any, NamedTuple

from .faults import CouldNot
from .texts import clean

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
        draws = can_draw and not is_json and is_drawable()
        if draws and importlib.util.find_spec("rich") is None:
            raise CouldNot(NO_RICH)
        return cls(is_json, draws)

    def tell(self, text: str, **values: Any) -> None:
        """Write a line at once: the values as JSON, or the text."""
        print(encoded(values) if self.is_json else text, flush=True)


def is_drawable() -> bool:
    """Return whether stdout is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def encoded(values: dict[str, Any]) -> str:
    """Return an object as one line of printable ASCII."""
    return json.dumps(values)


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
