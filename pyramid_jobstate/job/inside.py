"""What other modules need of a JobState beside its public names.

These are functions, so that they take no public names from an application's subclasses.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .protocols import Container, MemberSender, Store
    from .record import Record
    from .run import Run
    from .state import JobState


def record_of(job_state: JobState) -> Record:
    """Return the record of a job."""
    return job_state._record


def run_of(job_state: JobState) -> Run:
    """Return the run to which a JobState writes."""
    return job_state._run


def set_store(job_state: JobState, store: Store) -> None:
    """Set the store that a JobState uses."""
    job_state._store = store


def set_member_sender(job_state: JobState, sender: MemberSender | None) -> None:
    """Set the sender of a batch's members, or of those of a running job's batch."""
    job_state._member_sender = sender


def set_container(job_state: JobState, container: Container) -> None:
    """Set the container that a JobState uses, which becomes its parent."""
    job_state.__parent__ = job_state._container = container


def container_of(job_state: JobState) -> Any:
    """Return the container of a job, even if the application has given it another
    parent.
    """
    container = job_state._container
    return job_state.__parent__ if container is None else container


def url_in(job_state: JobState, request: Any) -> str:
    """Return the URL of a job in the state that a request gets."""
    return job_state._url_in(request)


def as_seen_from(job_state: JobState, request: Any) -> JobState:
    """Return a job for use in a request: a copy if another request loaded it."""
    container = job_state._container
    if container is None or container.request is request:
        return job_state
    job_state = copy.copy(job_state)
    job_state._container = request.job_states
    return job_state
