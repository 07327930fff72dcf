"""``pjobs … info``: how many jobs there are, by kind."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..job.batch import Batch
from ..job.record import Counts
from ..job.state import JobState
from ..store.durations import Durations
from ..store.jobstore import JobStore
from ..store.lists import Bucket, kind_texts
from .arguments import Operation, add_members
from .terminal import DONE, Output, number, short, span

#: The statuses that are shown for a kind only if it has such jobs.
OTHERS = ("retrying", "stalled", "cancelling")

#: Seconds in which ended jobs count.
DAY = 86400.0


class Tally(NamedTuple):
    """How many jobs there are.

    Attributes:
      kind: Their kind, or None for all jobs.
      counts: Their number by status.
      ended: How many have ended lately.
      durations: How long those of a kind have run.
    """

    kind: str | None
    counts: Counts
    ended: Bucket
    durations: Durations

    @property
    def running(self) -> int:
        """How many jobs a worker is at work on."""
        return self.counts.working + self.counts.cancelling


def run(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    seconds = min(DAY, store.expire_in)

    def tally(kind: str | None) -> Tally:
        (ended,) = store.throughput(kind, seconds, 1, members=args.members)
        counts = store.counts(kind, members=args.members)
        durations = Durations() if kind is None else store.durations(kind)
        return Tally(kind, counts, ended, durations)

    total = tally(None)
    kinds = [tally(kind) for kind in {*store.kinds(), *_known(JobState)}]
    texts = kind_texts(str(each.kind) for each in kinds)
    kinds.sort(key=_rank)
    if output.is_json:
        values = {
            str(each.kind): {
                **_as_json(each, seconds),
                "durations": {"p50": each.durations.p50, "p95": each.durations.p95},
            }
            for each in kinds
        }
        output.tell("", **_as_json(total, seconds), kinds=values)
        return DONE
    head = head_text(total, seconds)
    if output.draws:
        from .draw import draw_info

        draw_info(
            head,
            [(texts[str(each.kind)], each.running, words(each)) for each in kinds],
        )
        return DONE
    output.tell(head)
    for each in kinds:
        output.tell("  ".join([short(texts[str(each.kind)]), *words(each)]))
    return DONE


def head_text(total: Tally, seconds: float) -> str:
    """Return the line about all jobs."""
    counts, ended = total.counts, total.ended
    period = "24 h" if seconds == DAY else span(seconds)
    names = ["working", "queued", "retrying", "stalled"]
    if counts.cancelling:
        names.append("cancelling")
    texts = [f"{name} {number(getattr(counts, name))}" for name in names]
    now = "   ".join(texts + waits(counts))
    lately = f"success {number(ended.success)}  error {number(ended.error)}"
    return f"{now}   | {period}: {lately}"


def words(tally: Tally) -> list[str]:
    """Return what is said of a kind: three numbers, others unless they are 0, how late
    its jobs are, and how long they run.
    """
    counts = tally.counts
    found = [
        f"{number(counts.working)} working",
        f"{number(counts.queued)} queued",
        f"{number(tally.ended.error)} error",
    ]
    others = {name: getattr(counts, name) for name in OTHERS}
    found += [f"{number(n)} {name}" for name, n in others.items() if n]
    found += waits(counts)
    p50, p95 = tally.durations.p50, tally.durations.p95
    if p50 is not None and p95 is not None:
        found.append(f"half in {span(p50)}, 95% in {span(p95)}")
    return found


def waits(counts: Counts) -> list[str]:
    """Return how late jobs are, if that is a second or more."""
    times = {
        "oldest waits": counts.oldest_wait,
        "recent starts waited": counts.recent_wait,
    }
    return [f"{what} {span(t)}" for what, t in times.items() if t and t >= 1]


def _known(cls: type[JobState]) -> Iterator[str]:
    """Yield the kinds of the application's classes."""
    for found in cls.__subclasses__():
        # A job of an unknown kind has a class without one, a batch our own.
        if found.kind and found.__module__ != Batch.__module__:
            yield f"class:{found.kind}"
        yield from _known(found)


def _rank(tally: Tally) -> tuple[Any, ...]:
    """Return what sorts the busiest kind first."""
    numbers = tally.running, tally.counts.queued, tally.ended.error
    return (*(-each for each in numbers), tally.kind)


def _as_json(tally: Tally, seconds: float) -> dict[str, Any]:
    ended = dataclasses.asdict(tally.ended)
    del ended["start"]
    return {**dataclasses.asdict(tally.counts), "ended": {"seconds": seconds, **ended}}


INFO = Operation(
    """\
Count jobs: in the first line all of them, then those of each kind. Those that have
ended with success or error count for 24 hours, or for as long as the store keeps them.
The line of a kind ends with how long its newest successful jobs ran: half of them, and
95%, at most.
""",
    add_members,
    run,
    draws=True,
)
