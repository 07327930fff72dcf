"""What the tests of requests that read share."""

from typing import Any

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon

NOT_FOUND = {"error": "The job does not exist."}
FORBIDDEN = {"error": "You may not do this with the job."}
AWAY = {"error": "The job state store does not answer."}


def put(
    store: JobStore,
    cls: type[JobState] = RunMarathon,
    status: str = "working",
    **options: Any,
) -> str:
    """Store a marathon of Alice's, and return its uuid."""
    usual = {"owner": "alice", "params": {"miles": 26, "shoes": "secret"}}
    return put_job(store, cls, status, **{**usual, **options}).uuid
