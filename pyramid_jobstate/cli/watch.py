"""``pjobs … watch [ID…]``: running jobs as bars that move, or a line a change."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from redis.exceptions import RedisError

from ..job.state import JobState
from ..store.jobstore import JobStore
from ..store.looks import Looks, Spans
from .arguments import Filters, Operation, add_ids, add_members
from .jobs import RUNNING, Changes, Kinds, as_json, find_all
from .lists import PAGE, jobs
from .operate import INTERVAL, explained
from .terminal import DONE, Output, clock, joined, say, span

#: Seconds that a job stays after its end.
LINGER = 5.0

#: The most jobs to watch with each status.
MOST = 1000

#: Shows jobs and a notice, "" if there is nothing to notice.
Show = Callable[[Sequence[JobState], str], None]


def add_to(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, "*", "the jobs to watch, by default all that a worker has begun")
    add_members(parser)


def run(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    watched: WatchedJobs = Running(store, members=args.members)
    if args.ids:
        watched = Given(store, [job.uuid for job in find_all(store, args.ids)])
    looks = Looks(watched.look, pause=INTERVAL)
    found = next(looks) or []
    if looks.error is not None:
        # Fail before the terminal changes.
        raise looks.error
    if output.draws:
        from .draw import Screen

        with Screen(Kinds(store)) as screen:
            return follow(store, watched, looks, found, screen.show)
    return follow(store, watched, looks, found, ChangeLines(output).show)


class WatchedJobs(Protocol):
    """The jobs to watch."""

    def look(self) -> Sequence[JobState]:
        """Return them as they are now.

        Raises:
          redis.exceptions.RedisError: The store does not answer.
        """

    @property
    def is_over(self) -> bool:
        """Whether nothing will change."""


def follow(
    store: JobStore,
    watched: WatchedJobs,
    looks: Looks[Sequence[JobState]],
    found: Sequence[JobState],
    show: Show,
) -> int:
    """Show jobs until they are over.

    Parameters:
      looks: Looks at them.
      found: What the first look has shown.
    """
    show(found, "")
    while not watched.is_over:
        answer, notice = next(looks), ""
        if answer is not None:
            found = answer
        if looks.error is not None:
            away = span(time.monotonic() - looks.away_since)
            notice = f"{explained(store, looks.error)}, for {away}."
        show(found, notice)
    return DONE


class Running:
    """All jobs that run, and those that have just ended.

    Parameters:
      store: Their store.
      members: Whether members of batches are among them.
    """

    is_over = False

    def __init__(self, store: JobStore, *, members: bool) -> None:
        self._store = store
        self._members = members
        self._shown: Sequence[str] = ()
        self._ended: dict[str, float] = {}

    def look(self) -> Sequence[JobState]:
        """Return the jobs in the order in which they were first seen."""
        found: dict[str, JobState] = {}
        for status in RUNNING:
            wanted = Filters(None, None, status)
            listed = jobs(self._store, wanted, PAGE, members=self._members)
            found.update((job.uuid, job) for job in itertools.islice(listed, MOST))
        gone = [uuid for uuid in self._shown if uuid not in found]
        now = time.monotonic()
        ended = self._ended
        self._ended = {}
        for job in self._store.load_many(gone):
            if job is None or job.status == "queued":
                continue
            # It may also have changed its status while this looked.
            if job.is_finished:
                self._ended[job.uuid] = ended.get(job.uuid, now)
            if now - self._ended.get(job.uuid, now) < LINGER:
                found[job.uuid] = job
        order = dict.fromkeys([*self._shown, *found])
        self._shown = [uuid for uuid in order if uuid in found]
        return [found[uuid] for uuid in self._shown]


class Given:
    """Some jobs, whatever their status.

    Parameters:
      store: Their store.
      uuids: The jobs.
    """

    def __init__(self, store: JobStore, uuids: Sequence[str]) -> None:
        self._store = store
        self._jobs: dict[str, JobState | None] = dict.fromkeys(uuids)
        self._spans = Spans()

    def look(self) -> Sequence[JobState]:
        # Also those that have ended: they may run again.
        uuids = [*self._jobs]
        try:
            found = self._store.load_many(uuids)
        except RedisError:
            self._spans.note_look(is_away=True)
            raise
        self._spans.note_look(is_away=False)
        for uuid, job in zip(uuids, found, strict=True):
            seconds = self._spans.seconds(uuid, "missing" if job is None else "known")
            if job is not None:
                self._jobs[uuid] = job
            # If the store came back empty, a running job writes its record again.
            elif seconds > self._store.stalled_after:
                del self._jobs[uuid]
        return [job for job in self._jobs.values() if job is not None]

    @property
    def is_over(self) -> bool:
        return all(job is not None and job.is_finished for job in self._jobs.values())


class ChangeLines:
    """Writes a line for each change.

    Parameters:
      output: What takes the lines.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._changes = Changes()
        self._was_away = False

    def show(self, found: Sequence[JobState], notice: str) -> None:
        if notice and not self._was_away:
            say(notice)
        elif self._was_away and not notice:
            say("The store answers again.")
        self._was_away = bool(notice)
        for job in found:
            text = self._changes.text(job)
            if text is not None:
                self._output.tell(joined([clock(), job.uuid, text]), **as_json(job))


WATCH = Operation(
    """\
Watch jobs until Ctrl-C: all that are working, retrying, cancelling or stalled, or the
given ones until they have ended. On a terminal, each has a bar; elsewhere each change
is a line. While the store is away, the last states stay.
""",
    add_to,
    run,
    draws=True,
)
