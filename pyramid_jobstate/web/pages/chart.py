"""The chart of the jobs that ended lately, as paths of an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...store import Bucket
    from .words import Words

#: The period that the chart shows, in seconds, and the number of its bars.
SECONDS, BARS = 86400, 48

#: The distance of two bars, their width, and the height of the highest one.
STEP, WIDTH, HEIGHT = 10, 8, 60

#: The least height of a part of a bar: one failure among thousands must be visible.
LEAST = 2

#: The parts of a bar, from the bottom.
PARTS = ("error", "cancelled", "success")


class Chart(NamedTuple):
    """What the template draws.

    Attributes:
      width, height: The size of the drawing.
      paths: What to fill for each part of the bars, by status.
      summary: The chart in words: how many had each status, and the peak.
    """

    width: int
    height: int
    paths: Mapping[str, str]
    summary: Mapping[str, str]


def chart_of(buckets: Sequence[Bucket], words: Words) -> Chart:
    """Return the chart of what ended in each of some periods."""
    totals = [sum(getattr(bucket, part) for part in PARTS) for bucket in buckets]
    most = max(totals)
    paths: dict[str, list[str]] = {part: [] for part in PARTS}
    for i, bucket in enumerate(buckets):
        bottom = HEIGHT
        for part in PARTS:
            number = getattr(bucket, part)
            if number:
                height = max(LEAST, round(number / most * HEIGHT))
                # Many parts of the least height may be higher than the chart.
                height = min(height, bottom)
                bottom -= height
                paths[part].append(f"M{i * STEP} {bottom}h{WIDTH}v{height}h-{WIDTH}z")
    return Chart(
        len(buckets) * STEP - (STEP - WIDTH),
        HEIGHT,
        {part: "".join(path) for part, path in paths.items() if path},
        summary_of(buckets, totals, words),
    )


def summary_of(
    buckets: Sequence[Bucket], totals: Sequence[int], words: Words
) -> dict[str, str]:
    """Return what the chart shows, in words."""
    if not any(totals):
        return {"none": words("chart-none")}
    numbers = {part: sum(getattr(b, part) for b in buckets) for part in PARTS}
    texts = {
        part: words(f"chart-{part}", number=words.number(numbers[part]))
        for part in reversed(PARTS)
    }
    minutes = words.number(SECONDS / len(buckets) / 60)
    most = words.number(max(totals))
    return {**texts, "peak": words("chart-peak", minutes=minutes, number=most)}
