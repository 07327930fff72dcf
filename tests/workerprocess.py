"""Worker processes for the tests: Dramatiq's own command."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import ROOT, unmeasured

#: The seconds that a worker may take to start on a busy machine, or a message to be
#: redelivered.
PATIENCE = 30


class WorkerProcess:
    """Dramatiq's command, with all its processes in their own group.

    Attributes:
      log: The path of its log.
    """

    def __init__(
        self,
        environ: dict[str, str],
        log: Path,
        module: str = "tests.workerapp",
        threads: int = 2,
    ) -> None:
        self.log = log
        command = [sys.executable, "-m", "dramatiq", module]
        options = ["--processes", "1", "--threads", str(threads)]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, *options],
                cwd=ROOT,
                env={**unmeasured(), "dramatiq_worker_timeout": "100", **environ},
                stderr=stderr,
                start_new_session=True,
            )

    def kill(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def terminate(self) -> None:
        """Ask the command to stop, as a service manager does."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def lines(self, text: str) -> list[str]:
        """Return the lines of the log that contain a text."""
        return [line for line in self.log.read_text().splitlines() if text in line]

    def stop(self) -> None:
        """End it at once."""
        self.kill(signal.SIGKILL)
        self.wait()


#: Starts another worker process.
StartWorker = Callable[[], WorkerProcess]


@contextlib.contextmanager
def starting(
    environ: dict[str, str], folder: Path, *options: Any
) -> Iterator[StartWorker]:
    """Yield a function that starts worker processes, and stop them at the end."""
    workers: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        log = folder / f"{len(workers)}.log"
        workers.append(WorkerProcess(environ, log, *options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()
