"""``pjobs … rerun``: runs failed jobs again."""

from __future__ import annotations

import argparse
import functools

from ..errors import NotRepeatable
from ..job import Batch, JobState, record_of
from ..store import JobStore
from .act import Results
from .arguments import Operation, named
from .batches import find_batch
from .brokers import broker_name, find_broker, sending
from .bulk import Bulk
from .faults import CouldNot, Refused
from .output import Output
from .selecting import add_selection, filters_of


def add_rerun_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, ("error",), "rerun", "failed", by_batch=True)
    parser.add_argument(
        "--broker",
        type=named("broker", broker_name),
        metavar="MODULE:NAME",
        help="with --url: the Dramatiq broker to import, from here or from PYTHONPATH",
    )


def rerun_jobs(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    if args.has_application and args.broker is not None:
        raise Refused("--broker needs --url: an application has its own broker.")
    if not args.has_application and args.broker is None:
        raise Refused("With --url, rerun needs --broker module:name.")
    filters = filters_of(args)
    broker = find_broker(store, args.broker)
    # Dramatiq is imported only where jobs run again.
    from ..worker import rerun, rerun_all, why_not_repeatable

    if filters is not None:
        if filters.pop("status", None) is not None:
            # All that it acts on have failed.
            filters["everything"] = True
        if "batch" in filters:
            filters["batch"] = find_batch(store, filters["batch"])
        call = sending()(functools.partial(rerun_all, store, broker))
        return Bulk(call, filters, "requeued", args, output).run()

    @sending()
    def send(job: JobState) -> None:
        try:
            if args.dry_run:
                is_sent = record_of(job).has_failed
                reason = why_not_repeatable(store, broker, job)
                if is_sent and reason:
                    raise NotRepeatable(reason)
            else:
                is_sent = rerun(store, broker, job.uuid)
        except NotRepeatable as e:
            more = f" Use --batch {job.uuid}." * isinstance(job, Batch)
            raise CouldNot(f"The job {job.uuid} cannot run again: {e}{more}") from None
        if not is_sent:
            raise CouldNot(f"The job {job.uuid} has not failed: {job.status}.")

    results = Results(output, "requeued", is_dry_run=args.dry_run)
    return results.of_each(store, args.ids, send, "queued")


RERUN = Operation(
    """\
Run failed jobs again, each under its id. Given ids, print the status of each, and why a
job cannot run again. Given filters, print how many jobs were sent and refused: those
that cannot run again, or had changed meanwhile. On a terminal, it then asks first, and
leaves alone what fails after that. --batch names a batch, which is not run again
itself, but its failed jobs are. If one of the jobs cannot run again, the others
do, and the exit code is 1. The messages go to the broker of the application or, with
--url, to --broker.
""",
    add_rerun_arguments,
    rerun_jobs,
)
