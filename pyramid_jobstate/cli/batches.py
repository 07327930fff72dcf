"""What the commands say of batches and of their members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..job import Batch, JobState, record_of
from ..store import JobStore
from .faults import CouldNot
from .ids import find
from .texts import number

#: The words for the statuses of members, in the order in which they are told.
WORDS = {
    "success": "succeeded",
    "error": "failed",
    "cancelled": "cancelled",
    "working": "running",
    "queued": "waiting",
    "retrying": "retrying",
}

#: Those of members whose number is told beside how many are over.
BAD = ("error", "cancelled")

#: Why a batch that failed cannot run again.
NOT_REPEATABLE = "A batch cannot run again. Rerun its failed jobs."


def find_batch(store: JobStore, name: str) -> str:
    """Return the uuid of the batch that a name means: see :func:`.find`.

    Raises:
      CouldNot: The name means no job, several, or one that is not a batch.
      redis.exceptions.RedisError: The store does not answer.
    """
    job = find(store, name)
    if not isinstance(job, Batch):
        raise CouldNot(f"The job {job.uuid} is not a batch.")
    return job.uuid


def over_text(batch: Batch) -> str:
    """Return how many members are over, and how badly: "118 of 120 jobs, 2 failed"."""
    over = f"{number(batch.progress.done)} of {number(batch.size)} jobs"
    return ", ".join([over, *counted(batch, BAD)])


def counted(batch: Batch, statuses: Sequence[str] = tuple(WORDS)) -> list[str]:
    """Return how many members have each of some statuses, such as "2 failed", without
    zeros.
    """
    counts = batch.counts
    return [f"{number(counts[s])} {WORDS[s]}" for s in statuses if counts[s]]


def bad_counts(job: JobState) -> tuple[int, ...]:
    """Return how many members have failed or were cancelled."""
    return tuple(job.counts[s] for s in BAD) if isinstance(job, Batch) else ()


def batch_of(job: JobState) -> str | None:
    """Return the uuid of the batch of which a job is a member, or None."""
    info = record_of(job).info
    return info.batch if info.is_member else None


def batch_as_json(job: JobState) -> dict[str, Any]:
    """Return the counts of a batch, or the uuid of the batch of a member."""
    if isinstance(job, Batch):
        return {"counts": job.counts}
    batch = batch_of(job)
    return {} if batch is None else {"batch": batch}
