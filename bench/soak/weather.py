"""What goes wrong: workers are killed and frozen, and the store is restarted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from pyramid_jobstate.embedded import EmbeddedServer
from tests.support import ROOT

from .actors import HEARTBEAT_TIMEOUT

#: The threads of a worker process.
THREADS = 8

#: The seconds after the store's return in which workers catch up, and in which a sender
#: may not have noticed it yet.
CATCH_UP = 4.0
NOTICED = 1.5


class Span(NamedTuple):
    """A span of time."""

    since: float
    until: float

    def __str__(self) -> str:
        return f"{self.until - self.since:.2f} s from {self.since:.3f}"

    def touches(self, at: float, margin: float) -> bool:
        return self.since - margin <= at <= self.until + margin

    def meets(self, since: float, until: float) -> bool:
        """Whether it has a moment in common with another span."""
        return self.since <= until and since <= self.until

    def shared(self, since: float, until: float) -> float:
        """Return the seconds that it has in common with another span."""
        return max(0.0, min(self.until, until) - max(self.since, since))


class Worker:
    """Dramatiq's command with one worker process, in their own group."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        command = [sys.executable, "-m", "dramatiq", "bench.soak.worker"]
        options = ["--processes", "1", "--threads", str(THREADS)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, *options],
                cwd=ROOT,
                env=environ,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def stop(self) -> int | None:
        """Ask it to stop, and return its exit code, or None if it had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.signal(signal.SIGKILL)
            self.process.wait()


class Weather:
    """Makes things go wrong until it is told to stop.

    Workers are not killed or frozen while the store is away, or just after: what only
    they know would be lost.

    Attributes:
      killed, frozen: How many workers were.
      outages: When the store was away.
      freezes: When a worker was frozen.
      kills: When a worker was killed.
    """

    def __init__(
        self, store: EmbeddedServer, environ: dict[str, str], log: Path, workers: int
    ) -> None:
        self.store = store
        self.environ = environ
        self.log = log
        self.workers = [Worker(environ, log) for _ in range(workers)]
        self.killed = self.frozen = self.crashes = 0
        self.outages: list[Span] = []
        self.freezes: list[Span] = []
        self.kills: list[Span] = []
        self._since: float | None = None
        self._calm = threading.Lock()
        self._over = threading.Event()

    def restart_store(self, every: float) -> None:
        """Restart the store with its data, every second time after a crash."""
        while not self._over.wait(every):
            with self._calm:
                self._since = since = time.time()
                if len(self.outages) % 2:
                    os.kill(self.store.pid, signal.SIGKILL)
                    self.crashes += 1
                self.store.stop()
                time.sleep(random.uniform(0.2, 4.0))
                self.store.start()
                self.outages.append(Span(since, time.time()))
                self._since = None
                time.sleep(CATCH_UP)

    def harm_workers(self, every: float) -> None:
        """Kill a worker and start another; freeze every fourth instead."""
        while not self._over.wait(every * random.uniform(0.5, 1.5)):
            with self._calm:
                place = random.randrange(len(self.workers))
                worker = self.workers[place]
                if (self.killed + self.frozen) % 4 == 3:
                    since = time.time()
                    worker.signal(signal.SIGSTOP)
                    time.sleep(HEARTBEAT_TIMEOUT / 1000 * random.uniform(0.5, 2.0))
                    worker.signal(signal.SIGCONT)
                    self.freezes.append(Span(since, time.time()))
                    self.frozen += 1
                else:
                    since = time.time()
                    worker.signal(signal.SIGKILL)
                    worker.process.wait()
                    self.workers[place] = Worker(self.environ, self.log)
                    self.kills.append(Span(since, time.time()))
                    self.killed += 1

    def clear_up(self) -> None:
        """Stop causing failures."""
        self._over.set()

    def is_away(self, at: float, margin: float = 1.0) -> bool:
        """Whether the store was away at a time, within a margin."""
        return any(span.touches(at, margin) for span in self.outages)

    def was_rough(self, since: float, until: float) -> bool:
        """Whether the store was away in a span of time, or had just come back."""
        return any(
            Span(span.since, span.until + CATCH_UP).meets(since, until)
            for span in self.outages
        )

    def was_harmed(self, since: float, until: float) -> bool:
        """Whether a worker was killed or frozen in a span of time, or just before."""
        return any(
            Span(span.since, span.until + CATCH_UP).meets(since, until)
            for span in (*self.kills, *self.freezes)
        )

    def was_fine(self, since: float) -> bool:
        """Whether the store has been available to senders ever since."""
        if self._since is not None:
            return False
        return not any(span.until + NOTICED >= since for span in self.outages)

    def stop_workers(self) -> list[int | None]:
        return [worker.stop() for worker in self.workers]
