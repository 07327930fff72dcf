"""Timing things side by side, and the tables that compare them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

#: The number of times that each thing is timed, in turn with the others.
ROUNDS = 15


class Row(NamedTuple):
    """A figure and its target.

    Attributes:
      what: What was compared.
      ratio: The result.
      at_least, at_most: The bounds of the result; neither is set if it has no target.
      note: The times behind it, for instance.
    """

    what: str
    ratio: float
    at_least: float = 0.0
    at_most: float = float("inf")
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure meets its target."""
        return self.at_least <= self.ratio <= self.at_most

    @property
    def target(self) -> str:
        if self.at_least:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if math.isfinite(self.at_most) else "–"


class Table(NamedTuple):
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """Return the table as Markdown."""
        lines = [
            f"### {self.title}",
            "",
            "| what | ratio | target | holds | measured |",
            "| --- | ---: | ---: | --- | --- |",
        ]
        lines += [
            f"| {row.what} | {_figure(row.ratio)} | {row.target} "
            f"| {'yes' if row.holds else '**no**'} | {row.note} |"
            for row in self.rows
        ]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


class Timing(NamedTuple):
    """The seconds that something took, once in each round."""

    rounds: Sequence[float]

    def over(self, other: Timing) -> float:
        """Return the median of the rounds' ratios: a slowdown of the machine affects
        both sides of a round.
        """
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(mine / others for mine, others in pairs)

    def __str__(self) -> str:
        seconds = statistics.median(self.rounds)
        for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
            if seconds >= size:
                return f"{seconds / size:.3g} {unit}"
        return f"{seconds / 1e-9:.3g} ns"


def side_by_side(
    *things: tuple[int, Callable[[int], object]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time several things in turns. Each comes as a count and a function that does it
    that often. Return the seconds that each takes once.

    Parameters:
      clock: What tells the seconds: on a busy machine `time.thread_time` is steadier,
        for things that do not wait.
    """
    timings: list[list[float]] = [[] for _ in things]
    for count, do in things:
        do(count // 10 + 1)
    for _ in range(rounds):
        for timing, (count, do) in zip(timings, things, strict=True):
            begun = clock()
            do(count)
            timing.append((clock() - begun) / count)
    return [Timing(timing) for timing in timings]


def show(tables: Iterable[Table]) -> bool:
    """Print tables as they are made, and return whether all figures hold."""
    fine = True
    for table in tables:
        print(table, flush=True)
        fine = fine and all(row.holds for row in table.rows)
    return fine


def _figure(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2f}"
