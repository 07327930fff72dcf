"""Processes that the tests start, and what servers among them answer."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import ROOT, descendants, unmeasured, wait_for


def hear() -> None:
    """Have a process that begins end on the signals of a terminal, as systemd and a
    terminal start one. A shell has SIGINT ignored in the background of a script, and
    nohup SIGHUP.
    """
    for signum in signal.SIGINT, signal.SIGHUP:
        signal.signal(signum, signal.SIG_DFL)


class Process(subprocess.Popen[bytes]):
    """A command in a session of its own, all of which is killed at the end of a `with`
    block.

    Parameters:
      output: Where its output goes instead of the log.
      patience: The seconds that it may take to do what a test waits for.

    Attributes:
      log: The path of its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        folder: Path = ROOT,
        environ: Mapping[str, str] = {},
        *,
        output: int | None = None,
        patience: float = 20,
    ) -> None:
        self.log = log
        self.patience = patience
        with log.open("wb") as file:
            super().__init__(
                command,
                cwd=folder,
                # How often a worker looks whether it is to stop, in milliseconds.
                env={**unmeasured(), "dramatiq_worker_timeout": "100", **environ},
                stdout=file if output is None else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=hear,
            )

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def lines(self, text: str) -> list[str]:
        """Return the lines of its output that contain a text."""
        return [line for line in self.text().splitlines() if text in line]

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds. It must not end before."""

        def holds() -> object:
            assert self.poll() is None, self.text()
            return condition()

        wait_for(holds, self.patience)

    def wait_for_line(self, pattern: str, count: int = 1) -> None:
        """Wait until the output has so many lines that match a pattern."""
        self.wait_until(lambda: len(re.findall(pattern, self.text())) >= count)

    def end(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.wait(self.patience)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.send_signal(signum)
        return self.end()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Kill all of its session, or send them a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def processes(self) -> dict[int, str]:
        """Return the command lines of its living processes by process id."""
        return descendants(self.pid)

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self.wait()


def run_python(
    *arguments: str,
    folder: Path = ROOT,
    environ: Mapping[str, str] = {},
    stdin: str = "",
    timeout: float = 60,
) -> str:
    """Run Python, which must not fail, and return what it prints."""
    # Tests that it runs are a run of their own.
    kept = {k: v for k, v in unmeasured().items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


class Answer(NamedTuple):
    """What an HTTP server has answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def fetch(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask a web server on this host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
