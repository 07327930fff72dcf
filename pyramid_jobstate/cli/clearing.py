"""``pjobs … clear``: deletes ended jobs."""

from __future__ import annotations

import argparse

from ..job import FINISHED
from ..store import JobStore
from .arguments import Operation
from .bulk import Bulk
from .output import Output
from .selecting import add_selection, filters_of


def add_clear_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, FINISHED, "delete", "ended", by_id=False, by_age=True)


def clear_jobs(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    filters = filters_of(args) or {}
    return Bulk(store.clear, filters, "deleted", args, output).run()


CLEAR = Operation(
    """\
Delete ended jobs that match filters, and print how many were deleted and refused:
those that had changed meanwhile. On a terminal, it asks first, and leaves alone what
ends after that.
""",
    add_clear_arguments,
    clear_jobs,
)
