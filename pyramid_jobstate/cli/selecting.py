"""Which jobs a command changes: those with given ids, or all that filters match."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .arguments import (
    add_consent,
    add_duration,
    add_filters,
    add_ids,
    add_limit,
    job_id,
    named,
)
from .faults import Refused


def add_selection(
    parser: argparse.ArgumentParser,
    statuses: Sequence[str],
    verb: str,
    which: str,
    *,
    by_id: bool = True,
    by_age: bool = False,
    by_batch: bool = False,
) -> None:
    """Let a parser accept what :func:`filters_of` reads, --limit and consent.

    Parameters:
      statuses: The statuses that a job may have.
      verb: What is done to jobs, such as "cancel".
      which: What such jobs are called, such as "unfinished".
      by_id: Whether ids are accepted, too.
      by_age: Whether --older-than is.
      by_batch: Whether --batch is.
    """
    if by_id:
        add_ids(parser, "*", f"the jobs to {verb}, instead of filters")
    group = add_filters(parser, statuses)
    if by_age:
        add_duration(group, "--older-than", None, "only jobs that ended so long ago")
    if by_batch:
        group.add_argument(
            "--batch",
            type=named("batch", job_id),
            metavar="ID",
            help="only jobs of this batch: its id, or the beginning",
        )
    group.add_argument(
        "--everything",
        action="store_true",
        help=f"{verb} all {which} jobs: required if no filter is given",
    )
    add_limit(parser, None, f"{verb} so many jobs at most, beginning with the newest")
    add_consent(parser)
    parser.set_defaults(verb=verb, which=which, by_id=by_id)
    if not by_age:
        parser.set_defaults(older_than=None)
    if not by_batch:
        parser.set_defaults(batch=None)


def filters_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the filters that were given, with `everything` if none is needed, or None
    if there are ids.

    Raises:
      Refused: Neither was given, or both.
    """
    names = ("owner", "kind", "status", "older_than", "batch")
    given = {n: v for n in names if (v := getattr(args, n)) is not None}
    if args.everything:
        if given:
            raise Refused("Give filters, or --everything: it stands for no filter.")
        given["everything"] = True
    if not args.by_id or not args.ids:
        if given:
            return given
        ids = "ids, " if args.by_id else ""
        aim = f"{args.verb} all {args.which} jobs"
        raise Refused(f"Give {ids}filters, or --everything to {aim}.")
    if given or args.limit is not None:
        raise Refused("Give either ids, or filters with or without --limit.")
    return None
