"""Jobs to list, in any state."""

import uuid

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import JobInfo
from tests.support import INFO


def create(store: JobStore, count: int, info: JobInfo = INFO) -> list[str]:
    """Queue jobs and return their uuids, newest first."""
    uuids = [str(uuid.uuid4()) for _ in range(count)]
    store.create(*(NewJob(job, info) for job in uuids))
    return uuids[::-1]


def begin(store: JobStore, *uuids: str) -> None:
    store.write(
        [Update(job, str(uuid.uuid4())[:12], 1, INFO, begins=True) for job in uuids]
    )


def finish(store: JobStore, *uuids: str, status: str = "success") -> None:
    """Run jobs to their end, the first of them last."""
    store.write(
        [
            Update(job, str(uuid.uuid4())[:12], 1, INFO, begins=True, end=End(status))
            for job in reversed(uuids)
        ]
    )
