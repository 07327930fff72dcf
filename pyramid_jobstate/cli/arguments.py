"""What the commands for operators take: ids, filters, durations and consent."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from ..job import STATUSES, is_owner, parse_duration
from .terminal import CouldNot, Refused, clean

if TYPE_CHECKING:
    from ..store import JobStore
    from .terminal import Output


T = TypeVar("T")

EXIT_CODES = """\
exit codes:
  0 done, or `wait` saw success; 1 could not: the job is unknown, already over or
  cannot run again, some of many jobs were refused, or the store or the broker does not
  answer; 2 a mistake in the command line or the ini; 3 the job failed; 4 it was
  cancelled; 5 it has stalled; 124 timed out; 129 SIGHUP; 130 Ctrl-C, which never
  cancels a job; 141 the reader of the output has gone; 143 SIGTERM
"""


class Operation(NamedTuple):
    """A command for operators.

    Attributes:
      description: Its help.
      add_to: Lets a parser accept its arguments.
      run: Runs it, and returns its exit code. It takes the store of the jobs, the
        arguments, among them `has_application`, which says whether an ini was given,
        and what takes the output.
      draws: Whether it draws on terminals.
    """

    description: str
    add_to: Callable[[argparse.ArgumentParser], None]
    run: Callable[[JobStore, argparse.Namespace, Output], int]
    draws: bool = False


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line.

    Parameters:
      prog: How the command was called, without a URL.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(
            prog=prog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message} (see `{self.prog} --help`)")


class Filters(NamedTuple):
    """Which jobs a command is about. None matches every job."""

    owner: str | float | None
    kind: str | None
    status: str | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Filters:
        return cls(args.owner, args.kind, args.status)


def add_filters(
    parser: argparse.ArgumentParser, statuses: Sequence[str] = STATUSES
) -> argparse._ArgumentGroup:
    """Let a parser accept the filters, and return their group.

    Parameters:
      statuses: The statuses to filter by.
    """
    group = parser.add_argument_group("filters")
    group.add_argument("--kind", help="only jobs of this kind, such as RunMarathon")
    group.add_argument(
        "--status",
        choices=statuses,
        metavar="STATUS",
        help=f"only jobs with this status: {', '.join(statuses)}",
    )
    group.add_argument(
        "--owner",
        type=named("owner", owner),
        metavar="JSON",
        help="""only jobs of this owner, as JSON: 7 is a number, '"7"' a text""",
    )
    return group


def add_members(parser: argparse._ActionsContainer) -> None:
    """Let a parser, or a group of its arguments, accept --members."""
    parser.add_argument(
        "--members",
        action="store_true",
        help="include members of batches; otherwise a batch stands for its members",
    )


def add_limit(parser: argparse.ArgumentParser, default: int | None, what: str) -> None:
    """Let a parser accept --limit."""
    parser.add_argument(
        "--limit",
        type=named("limit", positive),
        default=default,
        metavar="N",
        help=what if default is None else f"{what} (default: {default:,})",
    )


def add_ids(parser: argparse.ArgumentParser, nargs: str | None, what: str) -> None:
    """Let a parser accept the ids of jobs."""
    parser.add_argument(
        "ids" if nargs else "id",
        type=named("id", job_id),
        nargs=nargs,
        metavar="ID",
        help=f"{what}: the id, or its beginning if only one of the newest 1,000 jobs "
        "has it",
    )


def add_duration(
    parser: argparse._ActionsContainer, name: str, default: str | None, what: str
) -> None:
    """Let a parser, or a group of its arguments, accept a duration, as settings take
    them.
    """
    parser.add_argument(
        name,
        type=named("duration", duration),
        default=default,
        metavar="DURATION",
        help=what if default is None else f"{what} (default: {default})",
    )


def add_consent(parser: argparse.ArgumentParser) -> None:
    """Let a parser accept --yes and --dry-run."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask; required without a terminal"
    )
    add_dry_run(parser)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Let a parser accept --dry-run."""
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be done"
    )


def must_ask(args: argparse.Namespace) -> bool:
    """Return whether to ask before anything changes: unless --yes was given.

    Raises:
      Refused: Nobody can answer.
    """
    if args.yes:
        return False
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused("Pass --yes, since nobody can be asked without a terminal.")
    return True


def confirm(question: str) -> None:
    """Ask whether to go on.

    Raises:
      CouldNot: The answer is not yes.
    """
    print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CouldNot("Nothing was done.")


def named(what: str, convert: Callable[[str], T]) -> Callable[[str], T]:
    """Return a converter whose ValueErrors reach the user as they are."""

    def converter(text: str) -> T:
        try:
            return convert(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"the {what} {e}") from None

    return converter


def owner(text: str) -> str | float:
    """Return an owner that was given as JSON."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        example = json.dumps(text, ensure_ascii=False)
        raise ValueError(f"{text} is not JSON. Put a text as '{example}'") from None
    if not is_owner(value):
        raise ValueError(f"{text} is neither a text nor a number")
    found: str | float = value
    return found


def positive(text: str) -> int:
    """Return a positive whole number."""
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError(f"{text} is not a positive whole number")
    return int(text)


def duration(text: str) -> float:
    """Return a duration in seconds."""
    try:
        return parse_duration(text)
    except ValueError as e:
        raise ValueError(f"{text} {e}") from None


def job_id(text: str) -> str:
    """Return the id of a job or its beginning, in small letters."""
    if not re.fullmatch("[0-9a-f-]{1,36}", text.lower()):
        raise ValueError(f"{text} is not made of 0-9, a-f and -")
    return text.lower()


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
