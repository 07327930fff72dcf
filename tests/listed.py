"""Jobs to list, in any state."""

import uuid
from collections.abc import Callable
from typing import Any

import redis
from pyramid.authorization import Deny

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import JobInfo
from tests.support import INFO


class Diary(JobState):
    """A kind of job that its owner may cancel but not see."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Deny, self.owner, "view_job"), *super().__acl__()]


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


def uuids_of(items: Any) -> list[str]:
    return [
        item.uuid if isinstance(item, JobState) else item["job"]["uuid"]
        for item in items
    ]


def pages(
    list_page: Callable[..., Any], between: Callable[[], Any] | None = None
) -> list[list[str]]:
    """Return all pages of a list, calling `between` between two of them."""
    found = []
    cursor = None
    while True:
        items, cursor = list_page(cursor)
        found.append(uuids_of(items))
        if cursor is None:
            return found
        if between is not None:
            between()


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often the server ran each command since the last reset."""
    stats: Any = client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()
    }
