"""Batches of jobs, and pages with an element that shows them."""

from __future__ import annotations

import itertools
from typing import Any

from tests.browser.looks import Themes
from tests.browser.staging import at, data, progress

STATUSES = ("queued", "working", "retrying", "success", "error", "cancelled")


def batch(
    status: str = "working",
    fraction: float | None = None,
    eta: float | None = None,
    unit: str = "jobs",
    counts: Any = None,
    **members: Any,
) -> dict[str, Any]:
    """The data of a batch with so many members of each status."""
    numbers = {name: members.get(name, 0) for name in STATUSES}
    total = sum(numbers.values())
    done = sum(numbers[name] for name in ("success", "error", "cancelled"))
    share = done / total if fraction is None else fraction
    return data(
        status,
        title="Import",
        started_at=at(-90),
        finished_at=at(0) if status in ("success", "error", "cancelled") else None,
        progress={**progress(done, total, eta, unit), "fraction": share},
        counts=numbers if counts is None else counts,
        members="https://example.com/job_state/?batch=1",
    )


USUAL = batch(fraction=0.984, eta=12.5, success=116, error=2, working=1, queued=1)
EACH = batch(
    fraction=0.8, success=40, error=20, cancelled=10, working=15, queued=13, retrying=2
)

LOOK_AT_COUNTS = """() => {
  const { shadowRoot: root } = document.getElementById("job");
  return [...root.querySelectorAll("[part=counts] > *")]
    .filter((node) => node.checkVisibility())
    .map((node) => node.textContent);
}"""

#: The edges of the shares, in hundredths of the bar, from where the bar begins.
EDGES = """() => {
  const { shadowRoot: root } = document.getElementById("job");
  const style = getComputedStyle(root.querySelector("[part=bar]"));
  const names = ["success-end", "error-end", "cancelled-end", "done"];
  return names.map((name) => parseFloat(style.getPropertyValue(`--_${name}`)));
}"""

#: The colours of a page, the shares of a bar and its track, as custom properties.
COLOURS = (
    "background: #fff; --job-state-success: #0f0; --job-state-error: #f00; "
    "--job-state-muted: #333; --job-state-accent: #00f; --job-state-track: #ff0"
)
NAMES = {
    (0, 255, 0): "success",
    (255, 0, 0): "error",
    (51, 51, 51): "cancelled",
    (0, 0, 255): "working",
    (255, 255, 0): "track",
    (255, 255, 255): "page",
}


class Batches(Themes):
    """A page with an element that shows batches."""

    def counts(self) -> list[str]:
        """What the line of counts says."""
        return list(self.page.evaluate(LOOK_AT_COUNTS))

    def edges(self) -> list[float]:
        return list(self.page.evaluate(EDGES))

    def along(self, state: dict[str, Any]) -> list[tuple[str, float]]:
        """What is along the bar, from its left, and how much of it, in percent."""
        self.show(state)
        bar = self.measure().bars["job"]
        seen = [NAMES.get((int(r), int(g), int(b)), "") for r, g, b in bar]
        runs = [(name, len(list(run))) for name, run in itertools.groupby(seen)]
        return [(name, 100 * length / len(bar)) for name, length in runs if name]
