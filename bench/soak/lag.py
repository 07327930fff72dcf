"""Notes when an event loop or a thread was too late for what was due."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .weather import Span

#: The seconds between two looks at the clock.
PERIOD = 0.1

#: The seconds by which a look may be late.
ALLOWED = 0.3

#: The seconds after which what all threads do is written to stderr.
DUMPED = 1.0


async def note_lags(note: Callable[[Span], object]) -> None:
    """Report each span of time in which the running event loop did nothing for longer
    than `ALLOWED`. Runs until it is cancelled.
    """
    while True:
        due = time.time() + PERIOD
        await asyncio.sleep(PERIOD)
        if time.time() - due > ALLOWED:
            note(Span(due, time.time()))


def note_waits(note: Callable[[Span, str], object]) -> None:
    """Report each span of time in which a thread of this process had to wait for its
    turn for longer than `ALLOWED`, and what the process did meanwhile. Returns at once.
    After `DUMPED` seconds, the threads' stacks are written to stderr as well.
    """

    def watch() -> None:
        while True:
            # Needs no interpreter lock, which a hog may hold.
            faulthandler.dump_traceback_later(DUMPED)
            due = time.time() + PERIOD
            before = Usage.now()
            time.sleep(PERIOD)
            if time.time() - due > ALLOWED:
                note(Span(due, time.time()), Usage.now().since(before))

    threading.Thread(target=watch, daemon=True).start()


class Usage(NamedTuple):
    """What a process has used so far: a hog in it uses the processor, while a machine
    that is too busy lets it wait.
    """

    cpu: float
    faults: int
    waited: float

    @classmethod
    def now(cls) -> Usage:
        used = resource.getrusage(resource.RUSAGE_SELF)
        waited = 0
        for path in Path("/proc/self/task").glob("*/schedstat"):
            # The thread may have ended.
            with contextlib.suppress(OSError):
                # The nanoseconds that it has run, and has waited for a processor.
                waited += int(path.read_text().split()[1])
        return cls(used.ru_utime + used.ru_stime, used.ru_majflt, waited / 1e9)

    def since(self, before: Usage) -> str:
        return (
            f"used {self.cpu - before.cpu:.2f} s of the processor, waited "
            f"{self.waited - before.waited:.2f} s for it in all threads, "
            f"{self.faults - before.faults} pages read from disk"
        )
