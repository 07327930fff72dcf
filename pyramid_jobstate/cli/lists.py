"""``pjobs … list``: jobs, the unfinished first, each with the newest first."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

from ..job.state import JobState
from ..store.jobstore import JobStore
from .arguments import Filters, Operation, add_filters, add_limit, add_members
from .jobs import Kinds, as_json, row
from .terminal import DONE, Output

#: The most jobs that a store returns at once.
PAGE = 200


def add_to(parser: argparse.ArgumentParser) -> None:
    add_members(add_filters(parser))
    add_limit(parser, 50, "list so many jobs at most")


def run(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    found = jobs(store, Filters.of(args), args.limit, members=args.members)
    kinds = Kinds(store)
    if output.draws:
        from .draw import draw_table

        # One more than is shown tells whether there are more.
        shown = list(itertools.islice(found, args.limit))
        draw_table(shown, kinds.texts(shown), has_more=next(found, None) is not None)
        return DONE
    for job in itertools.islice(found, args.limit):
        output.tell(row(job, *kinds.texts([job])), **as_json(job))
    return DONE


def jobs(
    store: JobStore, filters: Filters, limit: int, *, members: bool
) -> Iterator[JobState]:
    """Yield the jobs of a store, in pages of up to `limit`."""
    seen: set[str] = set()
    cursor = None
    while True:
        size = min(PAGE, limit)
        page = store.list(*filters, limit=size, cursor=cursor, members=members)
        for job in page.items:
            # A job that ends between two pages is on both.
            if job.uuid not in seen:
                seen.add(job.uuid)
                yield job
        cursor = page.cursor
        if cursor is None:
            return


LIST = Operation(
    """\
List jobs: first the unfinished, then the ended ones, each with the newest first.
Without a terminal, a line has the id, the time at which the job was queued, its kind,
its owner as JSON and its state.
""",
    add_to,
    run,
    draws=True,
)
