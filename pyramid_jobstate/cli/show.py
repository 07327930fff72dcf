"""``pjobs … show ID``, ``log ID`` and ``stack ID``: what is known about one job."""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Iterator, Sequence

from ..job.batch import Batch
from ..job.state import JobState, record_of
from ..store.jobstore import JobStore
from ..store.reader import Failures, LogLine, line_as_json
from ..store.whereabouts import (
    ANSWER_SECONDS,
    NO_ANSWER,
    Whereabouts,
    whereabouts_as_json,
)
from ..store.workers import worker_name
from .arguments import Operation, add_duration, add_ids, named
from .jobs import (
    Kinds,
    as_json,
    counted,
    duration,
    failures_as_json,
    find,
    refusal_of,
    times,
    title_of,
    try_text,
)
from .operate import Followed
from .terminal import (
    COULD_NOT,
    DONE,
    CouldNot,
    Output,
    clean,
    error_text,
    joined,
    json_text,
    local,
    owner_text,
    progress_text,
    say,
    span,
)


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, None, "the job to show")


def show_job(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    job = find(store, args.id)
    failures = store.failures(job.uuid)
    (kind,) = Kinds(store).texts([job])
    known = [*facts(job, kind), *failed(job, failures)]
    if output.draws:
        from .draw import draw_card

        draw_card(job, known)
    elif output.is_json:
        output.tell("", **as_json(job), failures=failures_as_json(job, failures))
    else:
        for name, text in known:
            output.tell(f"{name}: {text}")
    return DONE


def facts(job: JobState, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of what a record says, in reading order.

    Parameters:
      kind: The text for its kind.
    """
    yield "id", job.uuid
    yield "title", clean(title_of(job))
    yield "kind", kind
    yield "actor", clean(job.actor) or "-"
    if (queue := record_of(job).queue) is not None:
        yield "queue", clean(queue)
    if (worker := record_of(job).worker) is not None:
        yield "worker", clean(worker_name(worker))
    yield "status", job.status
    if job.cancel_requested:
        yield "cancel", "requested"
    yield "owner", owner_text(job.owner)
    if (identity := record_of(job).info.unique) is not None:
        yield "unique", clean(identity)
    if (record := record_of(job)).is_member:
        yield "batch", clean(record.batch)
    yield "attempt", str(job.attempt)
    if job.progress is not None:
        yield "progress", progress_text(job.progress)
        is_running = job.is_working and job.status != "retrying"
        if job.progress.eta is not None and is_running:
            yield "left", span(job.progress.eta)
    if isinstance(job, Batch):
        yield "jobs", ", ".join(counted(job)) or "none"
    if job.message is not None:
        yield "message", clean(job.message)
    if job.error is not None:
        yield "error", clean(error_text(job.error))
    for name, moment in times(job).items():
        if moment is not None:
            yield name.removesuffix("_at"), local(moment)
    took = duration(job)
    if took is not None:
        yield "took", span(took)
    for name, value in job.job_params.items():
        yield f"param {clean(name)}", json_text(value)
    for name, value in job.progress_metrics.items():
        yield f"metric {clean(name)}", json_text(value)
    for line in job.log:
        yield "log", clean(line)


def failed(job: JobState, failures: Failures) -> Iterator[tuple[str, str]]:
    """Yield what is known about the failures of a job."""
    for each in failures.tries:
        yield "try", try_text(each)
    for line in failures.traceback.rstrip("\n").split("\n"):
        if line:
            yield "traceback", clean(line)
    if reason := refusal_of(job, failures):
        yield "rerun", f"impossible: {clean(reason)}"


SHOW = Operation(
    """\
Show all that is known about a job, with its failures: the last ten tries, the end of
the last traceback, and why it cannot run again. Times are local, with their offsets.
""",
    add_show_arguments,
    show_job,
    draws=True,
)


#: How many lines a record keeps.
KEPT = 20


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, None, "the job")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the job ends"
    )
    parser.add_argument(
        "--level",
        type=named("level", level_number),
        metavar="LEVEL",
        help="only what was logged with this level of logging or a higher one",
    )
    add_duration(parser, "--stalled", "60s", "with -f, how long the store may be away")


def level_number(text: str) -> int:
    """Return the number of a level of logging, which may be given itself."""
    levels = logging.getLevelNamesMapping()
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    if text.upper() not in levels:
        known = ", ".join(name for name, number in levels.items() if number)
        raise ValueError(f"{text} is unknown: choose from {known}")
    return levels[text.upper()]


def log_job(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    lines = LogLines()
    if not args.follow:
        job = find(store, args.id)
        _print(job, lines, args.level, output)
        if args.level is not None and record_of(job).log_level is None:
            say(f"The class of {job.uuid} sets no log_level: its lines have no levels.")
        _print_captured(job.uuid, captured(store, job), args.level, output)
        return DONE
    followed = FollowedLog(store, [args.id], args.stalled)
    for news in followed:
        for each in news:
            if not isinstance(each, JobState):
                say(f"The record of {each.args[0]} is gone.")
                return COULD_NOT
            _print(each, lines, args.level, output)
        new, missed = followed.new()
        if missed:
            say(f"Lines of {followed.uuids[0]} are missing here.")
        _print_captured(followed.uuids[0], new, args.level, output)
    return DONE


def captured(store: JobStore, job: JobState, after: int = 0) -> Sequence[LogLine]:
    """Return the lines of a job whose class captures what it logs, else none."""
    record = record_of(job)
    return [] if record.log_level is None else store.log(record.uuid, after)


class FollowedLog(Followed):
    """A job that is followed with what is captured of it."""

    _captured: Sequence[LogLine] = ()
    _last = 0

    def _ask(self) -> Sequence[JobState | None]:
        # An end is known only with all the lines before it.
        jobs = super()._ask()
        for job in jobs:
            if job is not None:
                self._captured = captured(self._store, job, self._last)
        return jobs

    def new(self) -> tuple[Sequence[LogLine], bool]:
        """Return the lines of the last look, and whether some are missing between them
        or before.
        """
        new, self._captured = self._captured, ()
        if not new:
            return new, False
        last = self._last or new[0].number - 1
        self._last = new[-1].number
        return new, self._last - last > len(new)


def _print_captured(
    uuid: str, lines: Sequence[LogLine], level: int | None, output: Output
) -> None:
    for line in lines:
        if level is not None and (line.level is None or line.level < level):
            continue
        source = f"{line.level_name} {line.logger}: " if line.is_captured else ""
        text = f"{local(line.time)} {clean(source + line.text)}"
        shown = line_as_json(line)
        output.tell(text, uuid=uuid, line=shown.pop("text"), **shown)


def _print(job: JobState, lines: LogLines, level: int | None, output: Output) -> None:
    """Print the new lines of a job whose class captures nothing."""
    new, missed = lines.new(job)
    if level is not None or record_of(job).log_level is not None:
        return
    if missed:
        say(f"Lines of {job.uuid} may be missing here.")
    for line in new:
        output.tell(clean(line), uuid=job.uuid, attempt=job.attempt, line=line)


class LogLines:
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
Print the log of a job. With -f, go on until the job ends.

If the class of the job sets a log_level, that is what the job has logged, up to 64 KiB,
with times and levels. Otherwise it is the last 20 lines of append_log(); if a job
appends more at once, the older ones are missed, and a line on stderr says so.
""",
    add_log_arguments,
    log_job,
)


#: Seconds between two looks for the answer of a worker.
PAUSE = 0.1


def add_stack_arguments(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, None, "the job")


def stack_job(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    job = find(store, args.id)
    if not store.ask_where(job.uuid):
        raise CouldNot(f"The job {job.uuid} does not run.")
    where = whereabouts_as_json(_answer(store, job.uuid))
    if output.is_json:
        output.tell("", uuid=job.uuid, **where)
        return DONE
    memory = None if where["memory"] is None else f"{where['memory'] / 1e6:.0f} MB"
    output.tell(clean(joined([where["worker"], where["thread"], memory])))
    for line in (where["stack"] or "").splitlines():
        output.tell(clean(line))
    return DONE


def _answer(store: JobStore, uuid: str) -> Whereabouts:
    """Return where a job is, once its worker has answered.

    Raises:
      CouldNot: It has not, or the job has ended or is to be tried again.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while (where := store.where(uuid)) is None or where.taken_at is None:
        job = find(store, uuid)
        if job.is_finished:
            raise CouldNot(f"The job {uuid} has ended.")
        if where is None or job.status in ("queued", "retrying"):
            raise CouldNot(f"The job {uuid} does not run any more.")
        if time.monotonic() > deadline:
            raise CouldNot(NO_ANSWER)
        time.sleep(PAUSE)
    return where


STACK = Operation(
    """\
Ask the worker of a running job where it is, and print the stack of the job's thread,
task or greenlet, the innermost call last. Values of variables are never shown. The exit
code is 1 if the job does not run, or if the worker does not answer within five seconds.
""",
    add_stack_arguments,
    stack_job,
)
