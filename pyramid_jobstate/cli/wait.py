"""``pjobs … wait ID…``: waits for jobs, for scripts that go on when they have ended."""

from __future__ import annotations

import argparse

from ..errors import JobStalled
from ..job.state import JobState
from ..store.jobstore import JobStore
from .arguments import Operation, add_duration, add_ids
from .jobs import Changes, as_json, shortened
from .operate import Followed
from .terminal import (
    CANCELLED,
    COULD_NOT,
    DONE,
    FAILED,
    STALLED,
    TIMED_OUT,
    CouldNot,
    Output,
    clock,
    joined,
    say,
    span,
)

#: The codes, the worst first.
WORST = (FAILED, CANCELLED, STALLED, COULD_NOT, TIMED_OUT, DONE)

CODES = {"success": DONE, "error": FAILED, "cancelled": CANCELLED}


def add_to(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, "+", "the jobs to wait for")
    add_duration(parser, "--timeout", None, "stop waiting after this time")
    add_duration(
        parser, "--stalled", "60s", "how long a job may be stalled, or the store away"
    )


def run(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    followed = Followed(store, args.ids, args.stalled, args.stalled, args.timeout)
    changes = Changes()
    codes: list[int] = []
    try:
        for news in followed:
            names = shortened(followed.uuids) if len(followed.uuids) > 1 else {}
            # A small change has its line later, without another change.
            for job in (*news, *followed.unended.jobs.values()):
                if isinstance(job, JobState) and (text := changes.text(job)):
                    name = names.get(job.uuid)
                    output.tell(joined([clock(), name, text]), **as_json(job))
            found = [_code_of(each, args.stalled) for each in news]
            codes += [code for code in found if code is not None]
    except TimeoutError:
        say(f"Not all over after {span(args.timeout)}.")
        codes.append(TIMED_OUT)
    except CouldNot as e:
        say(str(e))
        codes.append(COULD_NOT)
    return min(codes, key=WORST.index)


def _code_of(news: JobState | Exception, stalled: float) -> int | None:
    """Return the exit code of a job that is not waited for any longer, and say why if
    it has not ended. Return None for any other.
    """
    if isinstance(news, JobState):
        return CODES.get(news.status)
    if isinstance(news, JobStalled):
        say(f"{news.uuid} has been stalled for {span(stalled)}.")
        return STALLED
    (uuid,) = news.args
    say(f"The record of {uuid} is gone, so nobody can tell how the job ended.")
    return COULD_NOT


WAIT = Operation(
    """\
Wait until jobs have ended, and print a line for each change. The exit code is 0 if all
of them succeeded. Otherwise it is the first of these that applies to any of them:
3 error, 4 cancelled, 5 stalled for longer than --stalled, 1 its record is gone,
124 --timeout has passed. If one of the ids is unknown, nothing is waited for: 1. A
store that is away is asked again for as long as --stalled. After that, nothing is known
about the jobs that have not ended: 1.
""",
    add_to,
    run,
)
