"""What a request may ask of the store, and do with a job."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import dramatiq.broker
from redis.exceptions import RedisError

from ..errors import NotRepeatable, StoreUnavailable
from ..job import JobState, record_of, set_container
from ..store import JobStore
from ..worker import rerun
from .interfaces import IJobStore, IWebOutage
from .permits import owner_of, permits, principals_of
from .queries import localizer_of

if TYPE_CHECKING:
    from pyramid.request import Request

T = TypeVar("T")


class Access:
    """The access of a request to jobs. The base of :class:`.JobStates`.

    Parameters:
      request: The request that it serves.

    Attributes:
      is_mounted: Whether it is a resource in the application's own tree.
    """

    is_mounted = False

    def __init__(self, request: Request) -> None:
        self.request = request

    @property
    def current_owner(self) -> Any:
        """The owner whose jobs the request may list and see."""
        return owner_of(self.request)

    def permits(self, context: Any, permission: str) -> Any:
        """Return whether the request has a permission on a job or a container of jobs.

        The result is true or false: the object that the setting ``jobstate.permits``,
        by default the application's security policy, returns. Without a policy the
        ACLs decide, with Everyone as the only principal.
        """
        return permits(self.request, context, permission)

    def principals_of(self, owner: str | float) -> Sequence[str | float]:
        """Return the principals that stand for a job's owner in this request."""
        return principals_of(self.request, owner)

    @functools.cached_property
    def localizer(self) -> Any:
        """What translates for the request: see :func:`.localizer_of`."""
        return localizer_of(self.request)

    @property
    def store(self) -> JobStore:
        """The application's store."""
        store: JobStore = self.request.registry.getUtility(IJobStore)
        return store

    def ask(self, question: Callable[[JobStore], T]) -> T:
        """Return the store's answer to a question.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        outage = self.request.registry.getUtility(IWebOutage)
        try:
            answer = question(self.store)
        except RedisError as e:
            outage.note(e)
            raise StoreUnavailable(self) from e
        outage.end()
        return answer

    def rerun(self, job_state: JobState) -> bool:
        """Run a job again, without checking permissions: see :meth:`.JobState.rerun`.

        Raises:
          NotRepeatable: The job cannot run again. The error says why.
          StoreUnavailable: The store does not answer.
        """
        # Not get_broker(), which would create one.
        broker = dramatiq.broker.global_broker
        if broker is not None:
            uuid = record_of(job_state).uuid
            return self.ask(lambda store: rerun(store, broker, uuid))
        if not record_of(job_state).has_failed:
            return False
        raise NotRepeatable("This process has no Dramatiq broker.")

    def _adopt(self, job_state: JobState | None) -> JobState | None:
        if job_state is not None:
            # It is always a JobStates, which has all that a container has.
            set_container(job_state, cast("Any", self))
        return job_state
