"""Worker processes for the tests: Dramatiq's own command."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.support import ROOT, unmeasured

#: The seconds that a worker may take to start on a busy machine, or a message to be
#: redelivered.
PATIENCE = 30

#: The seconds of silence after which their jobs read stalled.
STALLED_AFTER = 1.5


def make_broker(url: str, store_url: str | None = None) -> RedisBroker:
    """Return a broker that redelivers the messages of a dead worker soon."""
    broker = RedisBroker(url=url, heartbeat_timeout=2000, maintenance_chance=1_000_000)
    store = JobStore(store_url or url, stalled_after=STALLED_AFTER)
    broker.add_middleware(JobStateMiddleware(store, interval=0.05, heartbeat=0.2))
    return broker


class WorkerProcess:
    """Dramatiq's command, with all its processes in their own group."""

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

    def kill(self, signum: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def terminate(self) -> None:
        """Ask the command to stop, as a service manager does."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def lines(self, text: str) -> list[str]:
        """Return the lines of the log that contain a text."""
        return [line for line in self.log.read_text().splitlines() if text in line]


#: Starts another worker process.
StartWorker = Callable[[], WorkerProcess]


@contextlib.contextmanager
def starting(
    environ: dict[str, str], folder: Path, *options: Any
) -> Iterator[StartWorker]:
    """Yield a function that starts worker processes, and end them at last."""
    workers: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        log = folder / f"{len(workers)}.log"
        workers.append(WorkerProcess(environ, log, *options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()
