"""How late the ends of jobs were that streams showed, by phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .sights import Job
from .verdict import Runs
from .weather import Span, Weather

#: The seconds within which a stream shows the end of a job that the store has.
IN_TIME = 2.0

#: The seconds around a late end from which the log of the web server is quoted.
AROUND = 1.0

#: The seconds by which the clocks may differ: the store's is cut to milliseconds.
ROUNDED = 0.001


class Lateness:
    """Measures the ends, and finds those that came late or never.

    Parameters:
      weather: Knows which ends met an outage.
      lags: When the watchers were too busy to read what had arrived.
      log: The log of the web server. What it says of cancels is left out.

    Attributes:
      excused: How many ends met an outage.
      store_phase: The seconds from the return of each run to the end in the store.
      stream_phase: The seconds from there to the arrival of the event, of streams that
        were open.
      opening_phase: The same of ends that came while a stream was being opened, which
        takes as long as a poll.
      table: The ends of both, for whoever looks for the cause of a late one.
    """

    def __init__(self, weather: Weather, lags: list[Span], log: Path) -> None:
        self.weather = weather
        self.lags = lags
        lines = log.read_text(errors="replace").splitlines()
        self.log = [line for line in lines if "cancelled the job" not in line]
        self.excused = 0
        self.store_phase: list[float] = []
        self.stream_phase: list[float] = []
        self.opening_phase: list[float] = []
        self.table = ["asked opened finished arrived late"]

    def measure(self, job: Job, runs: Runs) -> Iterator[str]:
        """Measure the ends of a job, and yield those that came late."""
        returned: dict[str, float] = {}
        for stream in job.streams:
            for ending in stream.endings:
                finished, arrived = ending.finished, ending.arrived
                if finished < stream.asked - ROUNDED:
                    # It was over before the stream was asked for.
                    continue
                if self.weather.was_rough(finished, arrived):
                    self.excused += 1
                    continue
                run = runs.get(ending.run or "")
                if run and run.outcome == ending.status:
                    returned[run.run] = finished
                late = max(0.0, arrived - finished)
                is_open = finished >= stream.opened
                (self.stream_phase if is_open else self.opening_phase).append(late)
                self.table.append(
                    f"{stream.asked:.3f} {stream.opened:.3f} {finished:.3f} "
                    f"{arrived:.3f} {late:.3f}"
                )
                since = max(finished, stream.opened)
                if arrived - since - self.busy(since, arrived) > IN_TIME:
                    yield (
                        f"was shown as {ending.status} {late:.2f} s after its end at "
                        f"{finished:.3f}, by a stream asked for at {stream.asked:.3f} "
                        f"and opened at {stream.opened:.3f}"
                        f"{self.explain(finished, arrived)}"
                    )
        for name, finished in returned.items():
            since = runs[name].ended
            if not (
                self.weather.was_rough(since, finished)
                or self.weather.was_harmed(since, finished)
            ):
                self.store_phase.append(max(0.0, finished - since))

    def missed(self, job: Job, finished: float) -> Iterator[str]:
        """Yield the streams that went on after the job's end and did not show it."""
        for stream in job.streams:
            busy = self.busy(finished, stream.until)
            if (
                stream.asked < finished - ROUNDED
                and stream.until - busy > finished + IN_TIME
                and not any(
                    abs(ending.finished - finished) <= ROUNDED
                    for ending in stream.endings
                )
                and not self.weather.was_rough(finished, finished + IN_TIME)
            ):
                yield (
                    f"ended at {finished:.3f}, but a stream from {stream.asked:.3f} to "
                    f"{stream.until:.3f} did not show it"
                    f"{self.explain(finished, finished + IN_TIME)}"
                )

    def alarms(self, job: Job) -> Iterator[str]:
        """Yield what streams said about a store that did answer."""
        for stream in job.streams:
            for at in stream.away:
                if not self.weather.was_rough(at - IN_TIME, at):
                    yield f"was said to be away at {at:.3f}{self.explain(at, at)}"

    def busy(self, since: float, until: float) -> float:
        """Return for how long the watchers were too busy to read what had arrived."""
        return sum(lag.shared(since, until) for lag in self.lags)

    def explain(self, since: float, until: float) -> str:
        """Return what may have made an event late."""
        span = Span(since - AROUND, until + AROUND)
        near = [line for line in self.log if is_within(line, span)]
        return (
            f"; watchers busy for {self.busy(*span):.2f} s of it; the web server "
            f"logged {' | '.join(near) or 'nothing'}"
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report."""
        yield (
            f"ends         {len(self.table) - 1} shown by streams as they came, "
            f"{self.excused} more met an outage"
        )
        yield f"  return to store    {percentiles(self.store_phase)}"
        yield f"  store to watcher   {percentiles(self.stream_phase)}"
        yield f"  of opening streams {percentiles(self.opening_phase)}"


def percentiles(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    named = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    parts = [
        f"{name} {ordered[int(len(ordered) * share)] * 1000:.0f}"
        for name, share in named.items()
    ]
    return f"{', '.join(parts)}, maximum {ordered[-1] * 1000:.0f} ms of {len(ordered)}"


def is_within(line: str, span: Span) -> bool:
    """Whether a line of the log has a time within a span."""
    stamp = line.partition(" ")[0]
    try:
        return span.touches(float(stamp), 0)
    except ValueError:
        # The lines of a traceback have none.
        return False
