"""``pjobs … wait ID…``: waits for jobs, for scripts that go on when they have ended."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from ..job import JobState
from ..store import JobStore
from .arguments import Operation, add_duration, add_ids
from .jobs import Changes, as_json, find_all, shortened
from .operate import Patience, TimeUp
from .terminal import (
    CANCELLED,
    COULD_NOT,
    DONE,
    FAILED,
    STALLED,
    TIMED_OUT,
    Output,
    clock,
    joined,
    say,
    span,
)

#: The codes, the worst first.
WORST = (FAILED, CANCELLED, STALLED, COULD_NOT, TIMED_OUT, DONE)

CODES = {"success": DONE, "error": FAILED, "cancelled": CANCELLED}


def add_to(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, "+", "the jobs to wait for")
    add_duration(parser, "--timeout", None, "stop waiting after this time")
    add_duration(
        parser, "--stalled", "60s", "how long a job may be stalled, or the store away"
    )


def run(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    patience = Patience(store, args.stalled, deadline)
    codes: list[int] = []
    try:
        found = patience.ask(lambda: find_all(store, args.ids))
        waiting = Waiting(store, [job.uuid for job in found], args.stalled, output)
        jobs: Sequence[JobState | None] = found
        codes = waiting.codes
        while waiting.pending:
            waiting.look(jobs)
            if waiting.pending:
                patience.sleep()
                jobs = patience.ask(waiting.load)
    except TimeUp:
        say(f"Not all over after {span(args.timeout)}.")
        codes = [*codes, TIMED_OUT]
    return min(codes, key=WORST.index)


class Waiting:
    """Jobs that are waited for.

    Parameters:
      store: Their store.
      uuids: The jobs.
      seconds: How long a job may be stalled.
      output: What takes the changes.

    Attributes:
      pending: The jobs that have not ended.
      codes: The exit codes that the others stand for.
    """

    def __init__(
        self, store: JobStore, uuids: Sequence[str], seconds: float, output: Output
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._output = output
        self._names = shortened(uuids) if len(uuids) > 1 else {}
        self._changes = Changes()
        #: Since when jobs are stalled or without a record.
        self._silent: dict[str, float] = {}
        self.pending = list(uuids)
        self.codes: list[int] = []

    def load(self) -> Sequence[JobState | None]:
        """Return the pending jobs as they are now."""
        return self._store.load_many(self.pending)

    def look(self, jobs: Sequence[JobState | None]) -> None:
        """Say what has changed of the pending jobs."""
        for uuid, job in zip(list(self.pending), jobs, strict=True):
            code = self._missing(uuid) if job is None else self._look(job)
            if code is not None:
                self.pending.remove(uuid)
                self.codes.append(code)

    def _look(self, job: JobState) -> int | None:
        text = self._changes.text(job)
        if text is not None:
            name = self._names.get(job.uuid)
            self._output.tell(joined([clock(), name, text]), **as_json(job))
        if job.status != "stalled":
            self._silent.pop(job.uuid, None)
        elif self._silence(job.uuid) > self._seconds:
            say(f"{job.uuid} has been stalled for {span(self._seconds)}.")
            return STALLED
        return CODES.get(job.status)

    def _missing(self, uuid: str) -> int | None:
        # If the store came back empty, a running job writes its record again.
        if self._silence(uuid) <= min(self._seconds, self._store.stalled_after):
            return None
        say(f"The record of {uuid} is gone, so nobody can tell how the job ended.")
        return COULD_NOT

    def _silence(self, uuid: str) -> float:
        now = time.monotonic()
        return now - self._silent.setdefault(uuid, now)


WAIT = Operation(
    """\
Wait until jobs have ended, and print a line for each change. The exit code is 0 if all
of them succeeded. Otherwise it is the first of these that applies to any of them:
3 error, 4 cancelled, 5 stalled for longer than --stalled, 1 its record is gone,
124 --timeout has passed. If one of the ids is unknown, nothing is waited for: 1. A
store that is away is asked again for as long as --stalled; then the exit code is 1,
since nothing is known about the jobs.
""",
    add_to,
    run,
)
