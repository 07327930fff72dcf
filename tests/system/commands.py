"""`pjobs` in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

from tests.cliapp import PATIENCE, PJOBS
from tests.operated import Ran
from tests.support import ROOT, wait_for
from tests.terminal import Terminal

#: Starts a command that ends with the test.
Start = Callable[..., "subprocess.Popen[str]"]


def start(*arguments: str, code: str = PJOBS, **environ: str) -> subprocess.Popen[str]:
    """Start a command, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> Ran:
    """Wait for the end of a command."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ran(process.returncode, out.splitlines(), err.splitlines())


def run(*arguments: str, code: str = PJOBS, **environ: str) -> Ran:
    """Run a command."""
    return finished(start(*arguments, code=code, **environ))


class Shown:
    """A command on a terminal of its own.

    Attributes:
      terminal: The terminal.
    """

    def __init__(
        self, arguments: tuple[str, ...], columns: int, code: str, environ: dict
    ) -> None:
        self.terminal = Terminal(40, columns)
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        slave = self.terminal.slave
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "TERM": "xterm-256color", **environ},
            start_new_session=True,
            # Ctrl-C reaches the processes of the terminal's session.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(slave)

    def wait_for(self, pattern: str) -> None:
        """Wait until what is seen matches a pattern."""

        def is_seen() -> bool:
            text = self.terminal.text()
            found = re.search(pattern, text)
            assert found or self._process.poll() is None, text
            return bool(found)

        wait_for(is_seen, PATIENCE)

    def end(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.terminate()
        self.end()
        self.terminal.close()


@contextlib.contextmanager
def shown(
    *arguments: str, columns: int = 100, code: str = PJOBS, **environ: str
) -> Iterator[Shown]:
    """Run a command on a terminal of its own, and end it at last."""
    running = Shown(arguments, columns, code, environ)
    with contextlib.closing(running):
        yield running
