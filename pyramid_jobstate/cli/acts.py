"""``pjobs … cancel``, ``rerun`` and ``clear``: acts on jobs, and logs who did what."""

from __future__ import annotations

import argparse
import contextlib
import functools
import getpass
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from ..errors import NotRepeatable
from ..job.batch import Batch
from ..job.record import FINISHED, UNFINISHED
from ..job.state import JobState, record_of
from ..store.bulk import BulkResult
from ..store.jobstore import JobStore
from ..store.lists import AmbiguousKind
from .arguments import (
    Operation,
    add_duration,
    add_filters,
    add_ids,
    add_limit,
    job_id,
    named,
)
from .brokers import broker_name, find_broker, sending
from .jobs import find, find_batch
from .operate import ENDING, handling
from .terminal import COULD_NOT, DONE, CouldNot, Output, Refused, clean, number, say

log = logging.getLogger("pyramid_jobstate")

#: The most jobs that one call acts on.
MOST = 1000

#: Acts on some of the jobs that filters match, such as `store.cancel_all`.
Call = Callable[..., BulkResult]


def add_consent(parser: argparse.ArgumentParser) -> None:
    """Let a parser accept --yes and --dry-run."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask; required without a terminal"
    )
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


class Results:
    """What was done to each job.

    Parameters:
      output: What takes it.
      what: What is done to jobs, such as "cancelled".
      is_dry_run: Whether it is only said.

    Attributes:
      code: The exit code so far.
    """

    def __init__(self, output: Output, what: str, *, is_dry_run: bool) -> None:
        self._output = output
        self._what = what
        self._is_dry_run = is_dry_run
        self.code = DONE

    def act_on(
        self,
        store: JobStore,
        names: Sequence[str],
        act: Callable[[JobState], None],
        usual: str,
    ) -> int:
        """Act on each of some jobs, and return the exit code.

        Parameters:
          store: The store of the jobs.
          names: Their ids, or the beginnings of these. Several may name one job.
          act: Acts on a job, or raises CouldNot with the reason.
          usual: The status to name if the record is gone right after that.

        Raises:
          redis.exceptions.RedisError: The store does not answer.
        """
        acted: set[str] = set()
        for name in dict.fromkeys(names):
            uuid = name
            try:
                job = find(store, name)
                uuid = job.uuid
                if uuid in acted:
                    continue
                acted.add(uuid)
                act(job)
            except CouldNot as e:
                self.refused(uuid, str(e))
                continue
            (job_now,) = store.load_many([uuid])
            self.done(uuid, usual if job_now is None else job_now.status)
        return self.code

    def done(self, uuid: str, status: str) -> None:
        """Say that it was done, or would be.

        Parameters:
          uuid: The job.
          status: Its status now.
        """
        would = f"would be {self._what}, is " if self._is_dry_run else ""
        self._output.tell(
            f"{uuid} {would}{status}",
            uuid=uuid,
            done=not self._is_dry_run,
            dry_run=self._is_dry_run,
            status=status,
        )
        if not self._is_dry_run:
            note(self._what, uuid)

    def refused(self, name: str, reason: str) -> None:
        """Say that it could not be done.

        Parameters:
          name: The uuid, or what the user gave for it.
          reason: Why, as a sentence that names the job.
        """
        self.code = COULD_NOT
        say(reason)
        if self._output.is_json:
            self._output.tell(
                "", uuid=name, done=False, dry_run=self._is_dry_run, error=reason
            )


def note(what: str, uuid: str, is_certain: bool = True) -> None:
    """Log what was done to a job.

    Parameters:
      what: What is done to jobs, such as "cancelled".
      uuid: The job.
      is_certain: Whether it was done, or only may have been.
    """
    if is_certain:
        log.info("%s %s the job %s.", operator(), what, uuid)
    else:
        line = "%s may have %s the job %s: the store did not answer."
        log.info(line, operator(), what, uuid)


def operator() -> str:
    """Return who uses this command, for the log."""
    try:
        return f"{getpass.getuser()} (pjobs)"
    except (KeyError, OSError):
        # The user has no name, as in some containers.
        return "pjobs"


class BulkCommand:
    """Acts on all jobs that filters match.

    Parameters:
      call: Acts on some of them.
      filters: What it takes beside limit, cursor, permits and tell.
      what: What is done to jobs, such as "cancelled".
      args: The arguments of the command.
      output: What takes the result.
    """

    def __init__(
        self,
        call: Call,
        filters: Mapping[str, Any],
        what: str,
        args: argparse.Namespace,
        output: Output,
    ) -> None:
        self._call = call
        self._filters = filters
        self._what = what
        self._args = args
        self._output = output
        self._done = self._refused = 0

    def run(self) -> int:
        """Act on the jobs, after a question unless --yes was given, and return the exit
        code: 1 if some of them were refused.
        """
        args, what = self._args, self._what
        if args.dry_run:
            count = self._count()
            text = f"{number(count)} would be {what}"
            self._output.tell(text, matching=count, dry_run=True)
            return DONE
        cursor = None
        if must_ask(args):
            # Leaves alone jobs sent or ended after the question.
            cursor = self._call(limit=0, **self._filters).cursor
            count = self._count(cursor)
            if count:
                jobs = "1 job" if count == 1 else f"{number(count)} jobs"
                confirm(f"{args.verb.capitalize()} {jobs}?")
        self._act(cursor)
        return COULD_NOT if self._refused else DONE

    def _count(self, cursor: str | None = None) -> int:
        """Return how many jobs match."""
        count = 0
        while True:
            result = self._next(count, cursor, permits=lambda job: False)
            count += result.refused
            cursor = result.cursor
            if cursor is None or count == self._args.limit:
                return count

    def _act(self, cursor: str | None) -> None:
        ending, at_least = ", then stopped", ""
        try:
            while ending:
                with _uninterrupted():
                    at_least = "at least "
                    acted = self._done + self._refused
                    result = self._next(acted, cursor)
                    self._done += result.done
                    self._refused += result.refused
                    at_least, cursor = "", result.cursor
                acted = self._done + self._refused
                if cursor is None or acted == self._args.limit:
                    ending = ""
        finally:
            # The first call refuses a kind that may be a class or an actor.
            if cursor is not None or not isinstance(sys.exception(), AmbiguousKind):
                self._tell(at_least, ending)

    def _next(self, count: int, cursor: str | None, **options: Any) -> BulkResult:
        limit = self._args.limit
        most = MOST if limit is None else min(MOST, limit - count)
        return self._call(
            limit=most,
            cursor=cursor,
            tell=functools.partial(note, self._what),
            **self._filters,
            **options,
        )

    def _tell(self, at_least: str, ending: str) -> None:
        done, refused = self._done, self._refused
        text = f"{at_least}{number(done)} {self._what}, {number(refused)} refused"
        log.info(
            "%s: %s%s, of the jobs with %s.", operator(), text, ending, self._filters
        )
        self._output.tell(
            text + ending,
            done=done,
            refused=refused,
            dry_run=False,
            complete=not ending,
        )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C, SIGTERM and SIGHUP until a call is over, so that it is known what
    was done. The second one does not wait.
    """
    noted: list[int] = []
    with contextlib.ExitStack() as handled:

        def note(signum: int, frame: FrameType | None) -> None:
            noted.append(signum)
            handled.close()

        handled.enter_context(handling((signal.SIGINT, *ENDING), note))
        yield
    for signum in noted:
        signal.raise_signal(signum)


def add_cancel_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, UNFINISHED, "cancel", "unfinished")


def cancel_jobs(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    filters = filters_of(args)
    if filters is not None:
        return BulkCommand(store.cancel_all, filters, "cancelled", args, output).run()

    def cancel(job: JobState) -> None:
        # It may end before it is asked to.
        if job.is_finished or not (args.dry_run or job.cancel()):
            (job_now,) = store.load_many([job.uuid])
            status = "" if job_now is None else f": {job_now.status}"
            raise CouldNot(f"The job {job.uuid} is already over{status}.")

    results = Results(output, "cancelled", is_dry_run=args.dry_run)
    return results.act_on(store, args.ids, cancel, "cancelled")


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
    from ..worker.reruns import rerun, rerun_all, why_not_repeatable

    if filters is not None:
        if filters.pop("status", None) is not None:
            # All that it acts on have failed.
            filters["everything"] = True
        if "batch" in filters:
            filters["batch"] = find_batch(store, filters["batch"])
        call = sending()(functools.partial(rerun_all, store, broker))
        return BulkCommand(call, filters, "requeued", args, output).run()

    @sending()
    def send(job: JobState) -> None:
        try:
            if args.dry_run:
                is_sent = record_of(job).is_failed_or_lost
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
    return results.act_on(store, args.ids, send, "queued")


RERUN = Operation(
    """\
Run failed jobs again, those with the status error, each under its id. Given ids, print
the status of each, and why a job cannot run again. Given filters, print how many jobs
were sent and refused: those that cannot run again, or had changed meanwhile. On a
terminal, it then asks first, and leaves alone what fails after that. --batch names a
batch, which is not run again itself, but its failed jobs are. If one of the jobs cannot
run again, the others do, and the exit code is 1. The messages go to the broker of the
application or, with --url, to --broker.
""",
    add_rerun_arguments,
    rerun_jobs,
)


def add_clear_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, FINISHED, "delete", "ended", by_id=False, by_age=True)


def clear_jobs(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    filters = filters_of(args) or {}
    return BulkCommand(store.clear, filters, "deleted", args, output).run()


CLEAR = Operation(
    """\
Delete ended jobs that match filters, and print how many were deleted and refused:
those that had changed meanwhile, or whose hooks have yet to return. On a terminal, it
asks first, and leaves alone what ends after that.
""",
    add_clear_arguments,
    clear_jobs,
)
