"""The data of batches of jobs."""

from typing import Any

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
