"""Finds the jobs that a command line names, in full or by their beginnings."""

from __future__ import annotations

from collections.abc import Sequence

from ..job import JobState, is_uuid, record_of
from ..store import JobStore, newest_uuids
from .faults import CouldNot
from .texts import clean

#: Among how many of the newest jobs the beginning of an id must be unique.
NEWEST = 1000

#: The most candidates to name.
CANDIDATES = 5


def find(store: JobStore, name: str) -> JobState:
    """Return the job that a name means.

    Parameters:
      store: The store.
      name: The uuid, or its beginning.

    Raises:
      CouldNot: The name means no job, or several.
      redis.exceptions.RedisError: The store does not answer.
    """
    if is_uuid(name):
        (job,) = store.load_many([name])
        if job is None:
            raise CouldNot(f"The job {name} is unknown, or has expired.")
        if record_of(job).uuid != name:
            # An alias leads to it.
            return find(store, record_of(job).uuid)
        return job
    uuids = [
        u for u in newest_uuids(store.records.access, NEWEST) if u.startswith(name)
    ]
    found = [job for job in store.load_many(uuids[: 4 * CANDIDATES]) if job is not None]
    if not found:
        raise CouldNot(
            f"The id of none of the newest {NEWEST:,} jobs begins with {name}. Give "
            "the full id of an older one."
        )
    if len(found) > 1:
        raise CouldNot(f"{name} is the beginning of several ids: {_named(found)}.")
    return found[0]


def find_all(store: JobStore, names: Sequence[str]) -> list[JobState]:
    """Return the jobs that names mean, each once."""
    jobs = [find(store, name) for name in names]
    return list({job.uuid: job for job in jobs}.values())


def _named(jobs: Sequence[JobState]) -> str:
    shown = [
        f"{job.uuid} ({clean(job.kind)}, {job.status})" for job in jobs[:CANDIDATES]
    ]
    return ", ".join(shown) + (", …" if len(jobs) > len(shown) else "")


def shortened(uuids: Sequence[str]) -> dict[str, str]:
    """Return for each uuid a beginning that tells it from the others."""
    length = 8
    while len({uuid[:length] for uuid in uuids}) < len(set(uuids)):
        length += 1
    return {uuid: uuid[:length] for uuid in uuids}
