"""Says whether a job could run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import NotRepeatable, NotUnique
from ..job import JobState, record_of
from ..store import JobStore
from .finding import middleware_of
from .rerunning import message_of

if TYPE_CHECKING:
    from dramatiq import Broker


def why_not_repeatable(
    store: JobStore, broker: Broker | None, job_state: JobState
) -> str | None:
    """Return why a job cannot run again at the moment, or None if it can.

    Parameters:
      store: The store of the job.
      broker: The broker of this process, or None.
      job_state: The job.

    Raises:
      redis.exceptions.RedisError: The store does not answer.
    """
    record = record_of(job_state)
    if not record.has_failed:
        return "The job has not failed."
    if broker is None:
        return "This process has no Dramatiq broker."
    try:
        middleware_of(broker)
    except TypeError as e:
        return str(e)
    try:
        message_of(store, broker, record)
    except NotRepeatable as e:
        return str(e)
    identity = record.info.unique
    other = None if identity is None else store.records.claims.under_way(identity)
    if other is not None and other.uuid != record.uuid:
        return str(NotUnique(other.uuid))
    return None
