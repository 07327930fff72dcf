"""The processes of ``pjobs dev``, which all end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO

#: The module that runs inside each part.
CHILD = "pyramid_jobstate.cli.child"


class Part:
    """A process with its own session, whose output appears with a prefix.

    It does not outlive this process, however this one ends: it reads from a pipe whose
    other end only this process holds.

    Parameters:
      name: The name of the part, for its module and as the prefix of its output.
      reports: The descriptor for its reports.
      environ: Its environment.
    """

    def __init__(self, name: str, reports: int, environ: Mapping[str, str]) -> None:
        reader, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(reader), str(reports), name],
            env={**environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[reader, reports],
            start_new_session=True,
        )
        os.close(reader)
        assert self._process.stdout is not None
        copy = (name, self._process.stdout)
        self._output = threading.Thread(target=_copy, args=copy, daemon=True)
        self._output.start()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None if it still runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.terminate()

    def end(self, patience: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Wait until it has stopped, but not for longer than `patience` seconds or
        once `hurry` returns true. Then kill what is left of it and its children.
        """
        deadline = time.monotonic() + patience
        while self.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._lifeline)
        # A process that left the session may hold the pipe for as long as it likes.
        self._output.join(1)


def say(name: str, text: str) -> None:
    """Print a line with the name of the part that it is from."""
    # The terminal may have been closed. sys.stderr would then keep the text and fail
    # again at the end of the process.
    with contextlib.suppress(OSError):
        os.write(2, f"{name:<6} | {text}\n".encode())


def _copy(name: str, stream: IO[bytes]) -> None:
    with stream:
        for line in stream:
            say(name, line.decode(errors="replace").rstrip("\r\n"))
