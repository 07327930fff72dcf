"""What requests do with many jobs: whether they may act on each, and what they did."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import dramatiq.broker
from redis.exceptions import RedisError

from ..errors import NotRepeatable, StoreUnavailable
from ..job import (
    FINISHED,
    UNFINISHED,
    JobState,
    note_trouble,
    record_of,
    set_container,
)
from ..store import BulkResult, JobStore
from ..worker import rerun_all
from .acts import CANCELLED, DELETED, RAN_AGAIN

if TYPE_CHECKING:
    from .resources import JobStates

log = logging.getLogger("pyramid_jobstate")

#: The parameters that say which jobs a request matches.
FILTERS = ("owner", "kind", "status", "older_than")


class NotAccepted(Exception):
    """Raised when the broker does not accept the message of a job."""


class Act(NamedTuple):
    """What a request does with jobs.

    Attributes:
      done: What has been done to them, for the log.
      line: What the log says of each, about a user and a uuid.
      permission: What it takes on each of them.
      filters: The parameters that say which jobs are meant.
      statuses: The values of the parameter status.
      run: Calls the store.
    """

    done: str
    line: str
    permission: str
    filters: tuple[str, ...]
    statuses: tuple[str, ...]
    run: Callable[..., BulkResult]


class Acting:
    """Says of each job whether a request may act on it, and logs what it did.

    Parameters:
      container: The jobs.
      act: What the request does.
      who: The user, for the log.

    Attributes:
      is_begun: Whether it has been asked about a job yet.
      done: How many jobs it has acted on.
    """

    def __init__(self, container: JobStates, act: Act, who: str) -> None:
        self.is_begun = False
        self.done = 0
        self._container = container
        self._act = act
        self._who = who

    def permits(self, job_state: JobState) -> bool:
        """Return whether the request may act on a job."""
        self.is_begun = True
        set_container(job_state, self._container)
        try:
            return bool(self._container.permits(job_state, self._act.permission))
        except StoreUnavailable:
            raise
        except Exception:
            # Code of the application: the other jobs are not affected.
            note_trouble(type(job_state), record_of(job_state).uuid)
            return False

    def tell(self, uuid: str, is_certain: bool) -> None:
        """Log that a job was acted on, or may have been."""
        if is_certain:
            self.done += 1
            log.info(self._act.line, self._who, uuid)
        else:
            line = "%s may have %s the job %s: the store did not answer."
            log.info(line, self._who, self._act.done, uuid)


def clear_all(store: JobStore, acting: Acting, **options: Any) -> BulkResult:
    """Delete ended jobs."""
    return store.clear(permits=acting.permits, tell=acting.tell, **options)


def cancel_all(store: JobStore, acting: Acting, **options: Any) -> BulkResult:
    """Cancel unfinished jobs."""
    return store.cancel_all(permits=acting.permits, tell=acting.tell, **options)


def run_again(store: JobStore, acting: Acting, **options: Any) -> BulkResult:
    """Run failed jobs again.

    Raises:
      NotRepeatable: This process has no broker.
      NotAccepted: The broker did not accept a job.
    """
    # Not get_broker(), which would create one.
    broker = dramatiq.broker.global_broker
    if broker is None:
        raise NotRepeatable("This process has no Dramatiq broker.")
    try:
        return rerun_all(
            store, broker, permits=acting.permits, tell=acting.tell, **options
        )
    except Exception as e:
        if not acting.is_begun or isinstance(e, (RedisError, StoreUnavailable)):
            raise
        raise NotAccepted from e


CLEAR = Act("deleted", DELETED, "delete_job", FILTERS, FINISHED, clear_all)
CANCEL = Act(
    "cancelled",
    CANCELLED,
    "cancel_job",
    ("owner", "kind", "status"),
    UNFINISHED,
    cancel_all,
)
RERUN = Act(
    "requeued", RAN_AGAIN, "rerun_job", ("owner", "kind", "batch"), (), run_again
)
