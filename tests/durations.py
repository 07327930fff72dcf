"""Jobs that have succeeded, with the durations that a test gives them."""

import time
from collections.abc import Iterable
from typing import Any

from pyramid_jobstate import Durations, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import write

#: Two minutes, more or less, and what is known of jobs that take so long.
LIKE = tuple(range(100, 141, 2))
TWO_MINUTES = Durations(120, 138, 110, 130)


def put_runs(
    store: JobStore,
    durations: Iterable[float] = LIKE,
    *,
    every: float = 60,
    cls: type[JobState] = RunMarathon,
    **options: Any,
) -> list[str]:
    """Store jobs that have succeeded, each of which began some seconds after the one
    before and took some seconds. Return their uuids.
    """
    began = time.time() * 1000 - 3_600_000
    uuids = []
    for i, seconds in enumerate(durations):
        uuid = put_job(store, cls, "success", **options).uuid
        started = int(began + i * every * 1000)
        finished = int(started + seconds * 1000)
        write(store, uuid, started=started, finished=finished)
        uuids.append(uuid)
    return uuids
