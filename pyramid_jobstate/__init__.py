"""Show users the live state of their background jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    ActorError,
    JobCancelled,
    JobStalled,
    NotRepeatable,
    NotUnique,
    StoreUnavailable,
)
from .job.batch import Batch
from .job.members import OwnBatch
from .job.progress import Phase, Progress
from .job.record import Counts, JobError
from .job.state import JobState, current_job_state
from .store.bulk import BulkResult
from .store.durations import Durations
from .store.jobstore import JobStore
from .store.lists import Bucket, Page
from .store.looks import FollowedJobs
from .store.reader import Failures, LogLine, Try
from .store.whereabouts import Whereabouts
from .store.workers import WorkerInfo
from .worker.middleware import JobStateMiddleware
from .worker.reruns import rerun, rerun_all

if TYPE_CHECKING:
    from pyramid.config import Configurator

    from .web.request import RequestMiddleware

__all__ = [
    "ActorError",
    "Batch",
    "Bucket",
    "BulkResult",
    "Counts",
    "Durations",
    "Failures",
    "FollowedJobs",
    "JobCancelled",
    "JobError",
    "JobStalled",
    "JobState",
    "JobStateMiddleware",
    "JobStore",
    "LogLine",
    "NotRepeatable",
    "NotUnique",
    "OwnBatch",
    "Page",
    "Phase",
    "Progress",
    "RequestMiddleware",
    "StoreUnavailable",
    "Try",
    "Whereabouts",
    "WorkerInfo",
    "current_job_state",
    "includeme",
    "rerun",
    "rerun_all",
]


def __getattr__(name: str) -> Any:
    if name == "RequestMiddleware":
        # Loaded at first use: a worker that needs no ini does not import Pyramid.
        from .web.request import RequestMiddleware

        return RequestMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def includeme(config: Configurator) -> None:
    """Add job states to a Pyramid application.

    Each job becomes a resource at ``/job_state/{uuid}``, guarded by its ACL and shown
    as JSON; ``request.job_states`` sends jobs and finds them; the script that polls
    them is served from ``pyramid_jobstate:static/``.

    The application's security policy decides who may see a job. Without a policy, the
    jobs' ACLs are evaluated for Everyone alone: unless ``jobstate.owner`` is set, every
    request for a job is refused.

    The setting ``jobstate.broker`` makes Dramatiq's global broker, with a
    :class:`JobStateMiddleware` and a :class:`RequestMiddleware`. An application with a
    broker of its own adds these itself.

    Directives:

    * ``config.set_job_store(store)``: keep the states in this :class:`JobStore`.

    The names of its settings begin with ``jobstate.``: see "Settings" in the
    documentation.

    Raises:
      pyramid.exceptions.ConfigurationError: A setting is unknown or invalid, no store
        is configured, or the process has another broker.
    """
    # Imported here: a worker that needs no ini does not import Pyramid.
    from .web.config import include

    include(config)
