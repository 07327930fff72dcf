"""``pjobs … cancel``: cancels jobs."""

from __future__ import annotations

import argparse

from ..job import UNFINISHED, JobState
from ..store import JobStore
from .act import Results
from .arguments import Operation
from .bulk import Bulk
from .faults import CouldNot
from .output import Output
from .selecting import add_selection, filters_of


def add_cancel_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, UNFINISHED, "cancel", "unfinished")


def cancel_jobs(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    filters = filters_of(args)
    if filters is not None:
        return Bulk(store.cancel_all, filters, "cancelled", args, output).run()

    def cancel(job: JobState) -> None:
        # It may end before it is asked to.
        if job.is_finished or not (args.dry_run or job.cancel()):
            (job_now,) = store.load_many([job.uuid])
            status = "" if job_now is None else f": {job_now.status}"
            raise CouldNot(f"The job {job.uuid} is already over{status}.")

    results = Results(output, "cancelled", is_dry_run=args.dry_run)
    return results.of_each(store, args.ids, cancel, "cancelled")


CANCEL = Operation(
    """\
Cancel jobs. Given ids, print the status of each: `cancelled`, or `cancelling` until the
worker has stopped it, for which `wait` waits. Given filters, print how many jobs were
cancelled and refused: those that had ended meanwhile. On a terminal, it then asks
first, and leaves alone what is sent after that. The cancel of a batch is one of all
its jobs that are not over. If one of the jobs cannot be cancelled,
the others are, and the exit code is 1.
""",
    add_cancel_arguments,
    cancel_jobs,
)
