"""A pseudo-terminal, and what a person would see there."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator

from rich.cells import cell_len

from tests.support import wait_for

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


#: What ends a question.
QUESTION = "[y/N] "

#: Shows nothing, and tells that all before it has been read.
MARK = b"\x1b]mark\x07"


class Terminal:
    """A pseudo-terminal.

    Parameters:
      rows, columns: Its size.
      answer: What a person does when asked for the first time.

    Attributes:
      master: The end at which the person sits.
      slave: The end of the program.
      code: The exit code of the command that ran on it.
      output: Everything that was written to it.
      screen: What is seen.
    """

    code = -1

    def __init__(
        self,
        rows: int,
        columns: int,
        answer: "Callable[[Terminal], None] | None" = None,
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.screen = Screen(rows, columns)
        self.output = ""
        self._answer = answer
        self._lock = threading.Lock()
        self._set_size(rows, columns)
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
                if self._answer is not None and QUESTION in self.output:
                    answer, self._answer = self._answer, None
                    answer(self)

    def _set_size(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def resize(self, rows: int, columns: int) -> None:
        with self._lock:
            self.screen.resize(rows, columns)
            self._set_size(rows, columns)

    def catch_up(self) -> None:
        """Wait until all that was written so far is seen."""
        seen = self.output.count(MARK.decode())
        os.write(self.slave, MARK)
        wait_for(lambda: self.output.count(MARK.decode()) > seen)

    def lines(self) -> list[str]:
        """Return what is seen, without empty lines at the end."""
        with self._lock:
            return "\n".join(self.screen.lines()).rstrip().split("\n")

    def text(self) -> str:
        return "\n".join(self.lines())

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def close(self) -> None:
        """Read what is left, once no program has it any more."""
        self._reader.join(20)
        os.close(self.master)


@contextlib.contextmanager
def on_terminal(terminal: Terminal) -> Iterator[None]:
    """Put a terminal in the place of this process's stdin, stdout and stderr."""
    streams = sys.stdin, sys.stdout, sys.stderr
    kept = [os.dup(number) for number in range(3)]
    for number in range(3):
        os.dup2(terminal.slave, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        terminal.catch_up()
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)
        os.close(terminal.slave)
        terminal.close()
