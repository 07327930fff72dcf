"""What the commands for operators take: ids, filters, durations and consent."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from ..job.record import STATUSES
from ..job.values import is_owner, parse_duration
from ..job.words import did_you_mean
from .terminal import Refused

if TYPE_CHECKING:
    from ..store.jobstore import JobStore
    from .terminal import Output


T = TypeVar("T")

EXIT_CODES = """\
exit codes:
  0 done, or `wait` saw success; 1 could not: the job is unknown, already over or
  cannot run again, some of many jobs were refused, or the store or the broker does not
  answer; 2 a mistake in the command line or the ini; 3 the status of the job is error;
  4 it is cancelled; 5 it is stalled; 124 timed out; 129 SIGHUP; 130 Ctrl-C, which never
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
    group.add_argument(
        "--kind",
        help="only jobs of this class or, if they have none, of this actor, such as "
        "RunMarathon or run_marathon",
    )
    group.add_argument(
        "--status",
        type=status_of(statuses),
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


def named(what: str, convert: Callable[[str], T]) -> Callable[[str], T]:
    """Return a converter whose ValueErrors reach the user as they are."""

    def converter(text: str) -> T:
        try:
            return convert(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"the {what} {e}") from None

    return converter


def status_of(statuses: Sequence[str]) -> Callable[[str], str]:
    """Return a converter that takes one of some statuses."""

    def converter(text: str) -> str:
        if text in statuses:
            return text
        error = f"invalid choice: {text!r} (choose from {', '.join(statuses)})."
        error += did_you_mean(text, statuses)
        raise argparse.ArgumentTypeError(error.removesuffix("."))

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
