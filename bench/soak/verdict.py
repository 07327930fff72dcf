"""Checks what was stored, and what was seen, against the jobs' own journal."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from pyramid_jobstate import JobState

from .actors import MAX_RETRIES
from .sights import FINISHED, Job, Sight
from .weather import Weather

#: The seconds by which a run's note of its start may differ from the store's.
MARGIN = 3.0


@dataclasses.dataclass(slots=True)
class Run:
    """A run, as recorded in the journal.

    Attributes:
      run: Its name.
      attempt: Which attempt it was.
      started: When it began.
      outcome: How it ended; empty if it was killed.
      ended: When it ended.
    """

    run: str
    attempt: int
    started: float
    outcome: str = ""
    ended: float = float("inf")


Runs = dict[str, Run]


def read_journal(path: Path) -> dict[str, Runs]:
    """Return the runs of each job by name, in the order of their starts."""
    jobs: dict[str, Runs] = collections.defaultdict(dict)
    for text in path.read_text().splitlines():
        line = json.loads(text)
        runs = jobs[line["job"]]
        if line["event"] == "start":
            runs[line["run"]] = Run(line["run"], line["attempt"], line["at"])
        else:
            run = runs[line["run"]]
            run.outcome, run.ended = line["outcome"], line["at"]
    return jobs


class Judge:
    """Finds what is wrong with one job after the other.

    Attributes:
      came_back: How often a finished job was seen working again, redelivered.
      lost: How many jobs the broker lost: an overtaken run acknowledged the message,
        and the run that had overtaken it was killed.
    """

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.came_back = 0
        self.lost = 0

    def final(self, job: Job, runs: Runs, state: JobState | None) -> Iterable[str]:
        """Yield what is wrong with a job in the end."""
        if state is None:
            yield "has no record"
            return
        name = state.get_progress_metric("run")
        newest = max(runs.values(), key=lambda run: run.started, default=None)
        if state.status not in FINISHED:
            if newest and self._is_lost(newest, runs):
                self.lost += 1
            else:
                yield f"is {state.status} in the end, of {list(runs.values())}"
            return
        yield from self._ended(job, runs, state.status, name, state.attempt)
        if name in runs and newest and self._is_later(newest, runs[name]):
            # Without the store, a worker does not know of a cancel between attempts.
            is_unaware = self.weather.is_away(newest.started)
            if state.status != "cancelled" or not is_unaware:
                yield f"ended as {runs[name]}, but {newest} began later"
        allowed = {"error"} if job.fails > MAX_RETRIES else {"success"}
        code, told = job.cancel_answer
        if job.cancel_asked and code in (0, 202, 503):
            allowed.add("cancelled")
        if code == 202:
            # A run that succeeds despite its cancel is a success; one that fails is not
            # an error.
            allowed.discard("error")
            late = [run for run in runs.values() if self._ran(run, job)]
            if told == "cancelled" and late:
                yield f"ran though it had been cancelled at {job.cancel_asked}: {late}"
            if told == "cancelled" and state.status != "cancelled":
                # The store may not have known of the run.
                early = [r for r in runs.values() if self.weather.is_away(r.started)]
                if not early:
                    yield f"is {state.status}, but was cancelled"
        if state.status not in allowed:
            yield f"({job.what}) is {state.status}, not {' or '.join(allowed)}"
        if state.status == "success" and state.get_progress_metric("m0") not in (
            None,
            job.steps - 1,
        ):
            yield f"has {state.progress_metrics} in the end"

    def seen(self, runs: Runs, sights: list[Sight]) -> Iterable[str]:
        """Yield what is wrong with what one poller has seen of a job."""
        last: Sight | None = None
        for sight in sights:
            run = runs.get(sight.run or "")
            if sight.run and not run:
                yield f"was seen with a run that never was: {sight}"
                return
            if sight.status in FINISHED:
                yield from self._ended(
                    None, runs, sight.status, sight.run, sight.attempt
                )
            if run and sight.status == "retrying" and run.outcome != "error":
                yield f"was seen {sight}, but {run}"
            if (
                run
                and sight.status == "working"
                and run.ended < sight.at - MARGIN
                and not self.weather.is_away(run.ended, MARGIN)
            ):
                yield f"was seen {sight}, but {run}"
            if run:
                newer = [
                    other
                    for other in runs.values()
                    if self._is_later(other, run)
                    and other.started < sight.at - MARGIN
                    and not self.weather.is_away(other.started, MARGIN)
                ]
                if newer:
                    yield f"was seen {sight}, but there was {newer}"
            if last and last.status in FINISHED and sight.status not in FINISHED:
                before = runs.get(last.run or "")
                since = before.started if before else 0.0
                again = [
                    other
                    for other in runs.values()
                    if other is not before
                    and other.started > since - MARGIN
                    and other.started < sight.at + MARGIN
                ]
                if again and (sight.run is None or sight.run != last.run):
                    self.came_back += 1
                else:
                    yield f"went back from {last} to {sight}: {list(runs.values())}"
            last = sight

    def _ended(
        self, job: Job | None, runs: Runs, status: str, name: str | None, attempt: int
    ) -> Iterable[str]:
        """Yield what is wrong if the run did not end with this status."""
        if name is None or status == "cancelled":
            # A cancel may come before the start, or between two attempts.
            if status != "cancelled":
                yield f"is {status}, but no run has reported"
            return
        run = runs.get(name)
        if run is None or (run.outcome, run.attempt) != (status, attempt):
            yield f"is {status} in attempt {attempt}, but {run}"

    def _is_later(self, run: Run, other: Run) -> bool:
        """Whether a run certainly began after another."""
        started = run.started - MARGIN / 2
        for span in self.weather.freezes:
            # Frozen between its start and its note of it.
            if span.touches(run.started, MARGIN / 2):
                started = min(started, span.since - MARGIN / 2)
        return started > other.started

    def _ran(self, run: Run, job: Job) -> bool:
        """Whether a run began after its job had been cancelled for good."""
        return run.started > job.cancel_asked + MARGIN and not self.weather.is_away(
            run.started, MARGIN
        )

    def _is_lost(self, newest: Run, runs: Runs) -> bool:
        return not newest.outcome and any(
            run.ended > newest.started for run in runs.values() if run.outcome
        )
