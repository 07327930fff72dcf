"""``pjobs … log ID``: what a job has logged, and with ``-f`` what it logs from now."""

from __future__ import annotations

import argparse

from ..job import JobState
from ..store import JobStore
from .arguments import Operation, add_duration, add_ids
from .faults import COULD_NOT, DONE, say
from .ids import find
from .output import Output
from .stores import Patience
from .texts import clean

#: How many lines a record keeps.
KEPT = 20


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, None, "the job")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the job ends"
    )
    add_duration(parser, "--stalled", "60s", "with -f, how long the store may be away")


def log_job(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    if not args.follow:
        _print(find(store, args.id), Lines(), output)
        return DONE
    patience = Patience(store, args.stalled)
    job = patience.ask(lambda: find(store, args.id))
    uuid, lines = job.uuid, Lines()
    while True:
        _print(job, lines, output)
        if job.is_finished:
            return DONE
        patience.sleep()
        (found,) = patience.ask(lambda: store.load_many([uuid]))
        if found is None:
            say(f"The record of {uuid} is gone.")
            return COULD_NOT
        job = found


def _print(job: JobState, lines: Lines, output: Output) -> None:
    new, missed = lines.new(job)
    if missed:
        say(f"Lines of {job.uuid} may be missing here.")
    for line in new:
        output.tell(clean(line), uuid=job.uuid, attempt=job.attempt, line=line)


class Lines:
    """Tells the new lines of a log, of which each look shows the last 20."""

    def __init__(self) -> None:
        self._run: object = None
        self._last: list[str] = []

    def new(self, job: JobState) -> tuple[list[str], bool]:
        """Return the lines since the last look, and whether some may be missing."""
        log, last = job.log, self._last
        is_first = self._run is None
        # Each run of a job begins with an empty log.
        run = (job.attempt, job.started_at)
        if run != self._run:
            last = []
        self._run, self._last = run, log
        is_full = len(log) == KEPT
        # The fewest new lines that explain what is there now.
        for old in range(min(len(log), len(last)), -1, -1):
            # Only a full log has dropped lines.
            may_be = is_full or old == len(last)
            if may_be and log[:old] == last[len(last) - old :]:
                break
        else:
            old = 0
        return log[old:], is_full and not old and not is_first


LOG = Operation(
    """\
Print the last 20 lines of a job's log, which is all that its record keeps. With -f, go
on until the job ends. If a job logs more than 20 lines at once, the older ones are
missed, and a line on stderr says so.
""",
    add_log_arguments,
    log_job,
)
