"""Shows a user, live and honestly, what their background job is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import JobCancelled, StoreUnavailable
from .job.state import JobState, current_job_state
from .store.jobstore import JobStore
from .worker.middleware import JobStateMiddleware

if TYPE_CHECKING:
    from pyramid.config import Configurator

__all__ = [
    "JobCancelled",
    "JobState",
    "JobStateMiddleware",
    "JobStore",
    "StoreUnavailable",
    "current_job_state",
    "includeme",
]


def includeme(config: Configurator) -> None:
    """Add job states to a Pyramid application.

    Each job becomes a resource at ``/job_state/{uuid}``, guarded by its ACL and shown
    as JSON; ``request.job_states`` sends jobs and finds them; the script that polls
    them is served from ``pyramid_jobstate:static/``.

    The application's security policy is asked who may see a job, and its Dramatiq
    broker needs the :class:`JobStateMiddleware`. Without a policy the ACLs of the jobs
    decide for Everyone alone, and nobody is let in to the jobs of others.

    Directives:

    * ``config.set_job_store(store)``: keep the states in this :class:`JobStore`.

    Settings, each of which may be left out:

    * ``jobstate.redis_url``: the server where the states are kept. Unless set, the
      store of the middleware on Dramatiq's global broker.
    * ``jobstate.namespace``: what the name of each key begins with, ``jobstate``.
    * ``jobstate.path``: the path below which the resources are, ``job_state``.
    * ``jobstate.expire_in``: how long a job is kept after its end, ``24h``.
    * ``jobstate.active_expire_in``: how long one that does not end is, ``8d``.
    * ``jobstate.stalled_after``: how long a job may be silent, ``15s``.
    * ``jobstate.owner``: the dotted name of a function that returns the owner of the
      jobs that a request sends, who may see and cancel them; the authenticated userid
      unless set.
    * ``jobstate.permits``: the dotted name of a function that decides in place of the
      security policy what a request may do with a job.
    * ``jobstate.max_uuids``: how many jobs one request may ask for, ``100``.

    Raises:
      pyramid.exceptions.ConfigurationError: A setting is unknown or wrong, or there is
        no store.
    """
    # Nothing of Pyramid is imported by a worker.
    from .web.config import include

    include(config)
