"""A command on a pseudo-terminal, and what a person would see there."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from tests.cliapp import PATIENCE, PJOBS
from tests.support import ROOT, wait_for

#: A control sequence, an operating system command, or any one character.
TOKEN = re.compile(
    r"\x1b\[([?\d;]*)([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|(.)", re.DOTALL
)

#: The beginning of a control sequence whose end is yet to come.
BEGUN = re.compile(r"\x1b(\[[?\d;]*|\][^\x07\x1b]*)?\Z")


class Screen:
    """A terminal's screen, as far as the tests' commands use it.

    Attributes:
      alternate: Whether the alternate screen shows.
      has_cursor: Whether the cursor shows.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.alternate = False
        self.has_cursor = True
        self._clear()
        self._kept = (self._cells, 0, 0)

    def _clear(self) -> None:
        self._cells = [[" "] * self.columns for _ in range(self.rows)]
        self._row = self._column = 0

    def resize(self, rows: int, columns: int) -> None:
        """Change the size: lines are cut, not wrapped, as xterm does."""
        cells = [line[:columns] + [" "] * (columns - len(line)) for line in self._cells]
        self.rows, self.columns = rows, columns
        blank = [[" "] * columns for _ in range(rows - len(cells))]
        self._cells = cells[-rows:] + blank
        self._row = min(self._row, rows - 1)

    def lines(self) -> list[str]:
        return ["".join(line).rstrip() for line in self._cells]

    def feed(self, text: str) -> None:
        for match in TOKEN.finditer(text):
            numbers, final, character = match.groups()
            if final is not None:
                self._control(numbers, final)
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._line_feed()
            elif character is not None and character >= " ":
                self._put(character)

    def _control(self, numbers: str, final: str) -> None:
        if numbers == "?1049":
            self.alternate = final == "h"
            if self.alternate:
                self._kept = (self._cells, self._row, self._column)
                self._clear()
            else:
                self._cells, self._row, self._column = self._kept
                self.resize(self.rows, self.columns)
        elif numbers == "?25":
            self.has_cursor = final == "h"
        elif final == "H":
            self._row = self._column = 0
        else:
            assert final in "mK", f"Unknown control sequence {numbers}{final}"

    def _line_feed(self) -> None:
        if self._row == self.rows - 1:
            self._cells = [*self._cells[1:], [" "] * self.columns]
        else:
            self._row += 1

    def _put(self, character: str) -> None:
        if self._column >= self.columns:
            self._column = 0
            self._line_feed()
        self._cells[self._row][self._column] = character
        self._column += max(cell_len(character), 1)


class Terminal:
    """A `pjobs` on a pseudo-terminal.

    Attributes:
      output: Everything that it wrote.
      screen: What is seen.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        rows: int,
        columns: int,
        code: str,
        environ: dict[str, str],
    ) -> None:
        self.master, slave = pty.openpty()
        self.screen = Screen(rows, columns)
        self.output = ""
        self._lock = threading.Lock()
        self._set_size(rows, columns)
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        kept |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=kept,
            start_new_session=True,
            # Ctrl-C reaches the processes of the terminal's session.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        # Reading fails when the last process has closed the terminal.
        with contextlib.suppress(OSError):
            while chunk := os.read(self.master, 65536):
                text = rest + decoder.decode(chunk)
                end = BEGUN.search(text)
                cut = len(text) if end is None else end.start()
                rest = text[cut:]
                with self._lock:
                    self.output += text[:cut]
                    self.screen.feed(text[:cut])

    def _set_size(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def resize(self, rows: int, columns: int) -> None:
        with self._lock:
            self.screen.resize(rows, columns)
            self._set_size(rows, columns)

    def lines(self) -> list[str]:
        """Return what is seen, without empty lines at the end."""
        with self._lock:
            return "\n".join(self.screen.lines()).rstrip().split("\n")

    def text(self) -> str:
        return "\n".join(self.lines())

    def wait_for(self, pattern: str) -> str:
        """Wait until what is seen matches a pattern, and return it."""

        def seen() -> str:
            text = self.text()
            found = re.search(pattern, text)
            assert found or self.process.poll() is None, text
            return text if found else ""

        return wait_for(seen, PATIENCE)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        """Wait for its end, and return its exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        # Not killed, so that its coverage is kept.
        self.process.terminate()
        self.end()
        os.close(self.master)


@contextlib.contextmanager
def terminal(
    *arguments: str,
    rows: int = 24,
    columns: int = 100,
    code: str = PJOBS,
    **environ: str,
) -> Iterator[Terminal]:
    """Run `pjobs` on a pseudo-terminal, and end it at last."""
    running = Terminal(arguments, rows, columns, code, environ)
    with contextlib.closing(running):
        yield running
