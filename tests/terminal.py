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

from tests.support import wait_for

#: The alternate screen, once the former one shows again.
LEFT = re.compile(r"\x1b\[\?1049h.*?\x1b\[\?1049l", re.DOTALL)

#: What begins a new picture.
HOME = re.compile(r"\x1b\[[\d;]*H")

#: A control sequence, or an operating system command.
CONTROL = re.compile(r"\x1b\[[?\d;]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

#: What ends a question.
QUESTION = "[y/N] "

#: Shows nothing, and tells that all before it has been read.
MARK = b"\x1b]mark\x07"


class Terminal:
    """A pseudo-terminal, where a person may answer when asked for the first time.

    Attributes:
      slave: The end of the program.
      output: Everything that was written to it.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        answer: "Callable[[Terminal], None] | None" = None,
    ) -> None:
        self._master, self.slave = pty.openpty()
        self.output = ""
        self._answer = answer
        self.resize(rows, columns)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_alternate(self) -> bool:
        """Whether the alternate screen shows."""
        return "\x1b[?1049h" in LEFT.sub("", self.output)

    @property
    def has_cursor(self) -> bool:
        return self.output.rfind("\x1b[?25l") <= self.output.rfind("\x1b[?25h")

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Reading fails when the last process has closed the terminal.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._master, 65536):
                self.output += decoder.decode(chunk)
                if self._answer is not None and QUESTION in self.output:
                    answer, self._answer = self._answer, None
                    answer(self)

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def catch_up(self) -> "Terminal":
        """Wait until all that was written so far is seen."""
        seen = self.output.count(MARK.decode())
        os.write(self.slave, MARK)
        wait_for(lambda: self.output.count(MARK.decode()) > seen)
        return self

    def lines(self) -> list[str]:
        """Return what is seen, without empty lines at the end."""
        text = LEFT.sub("", self.output).rpartition("\x1b[?1049h")[2]
        text = CONTROL.sub("", HOME.split(text)[-1])
        lines = [line.rstrip() for line in text.split("\n")]
        return "\n".join(lines).rstrip().split("\n")

    def text(self) -> str:
        return "\n".join(self.lines())

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        """Read what is left, once no program has it any more."""
        self._reader.join(20)
        os.close(self._master)


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
