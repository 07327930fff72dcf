"""JobStates: the container that traversal enters, and a request's own access to jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pyramid.interfaces import IResourceURL, IRootFactory, IRoutesMapper
from pyramid.traversal import (
    DefaultRootFactory,
    ResourceTreeTraverser,
    ResourceURL,
)
from redis.exceptions import RedisError
from zope.interface import Interface, implementer

from .enqueue import Outgoing
from .state import JobState
from .store import JobStore, StoreUnavailable, is_uuid

if TYPE_CHECKING:
    from dramatiq import Actor, Message
    from pyramid.request import Request

T = TypeVar("T")

#: The name of the route to the resources.
ROUTE = "pyramid_jobstate"


class IJobStore(Interface):  # type: ignore[misc]
    """Marks the application's JobStore, a utility."""


class IOwner(Interface):  # type: ignore[misc]
    """Marks the function that returns the principal of a request, a utility."""


class JobStates:
    """The jobs, as a container of the resource tree.

    ``request.job_states`` is one. An application may mount others in its own tree::

        class Root:
            def __getitem__(self, name):
                if name == "jobs":
                    return JobStates(self.request, parent=self, name="jobs")
                raise KeyError(name)

    Parameters:
      request: The request that it serves.
      parent: The resource that it is mounted in. Without one it stands at the path of
        the setting ``jobstate.path``, below the application's root.
      name: Its name there.
    """

    def __init__(
        self, request: Request, parent: object = None, name: str | None = None
    ) -> None:
        self.request = request
        self.is_mounted = parent is not None
        self.__name__ = name
        self._parent = parent

    @property
    def __parent__(self) -> Any:
        # Made only when an ACL check gets here: when the job's own has not decided.
        if self._parent is None:
            factory = self.request.registry.queryUtility(
                IRootFactory, default=DefaultRootFactory
            )
            try:
                self._parent = factory(self.request)
            except AttributeError as e:
                # lineage() would take it for a missing __parent__.
                raise RuntimeError(f"The root factory failed: {e}") from e
        return self._parent

    def __getitem__(self, uuid: str) -> JobState:
        """Return a job.

        Raises:
          KeyError: There is no job of this uuid.
          StoreUnavailable: The store does not answer.
        """
        job_state = self.find(uuid)
        if job_state is None:
            raise KeyError(uuid)
        return job_state

    def find(self, uuid: str) -> JobState | None:
        """Return a job, or None if there is no job of this uuid.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        if not is_uuid(uuid):
            return None
        job_state = self.ask(lambda store: store.load(uuid))
        if job_state is not None:
            job_state.__parent__ = self
        return job_state

    def send_immediately(
        self, what: Actor[Any, Any] | Message[Any], *args: Any, **kwargs: Any
    ) -> JobState:
        """Send a message now, whatever becomes of the transaction.

        Parameters:
          what: An actor, which is sent the further arguments, or a message.

        Returns:
          The job, which belongs to whoever made the request unless the message has the
          option ``job_owner``.

        Raises:
          TypeError: The actor is not tracked, or the owner is no string or number.
          StoreUnavailable: The store does not answer. Nothing was sent.
        """
        owner = self.request.registry.getUtility(IOwner)(self.request)
        outgoing = Outgoing(what, args, kwargs, owner)
        self.ask(outgoing.record)
        outgoing.send()
        outgoing.job_state.__parent__ = self
        return outgoing.job_state

    @property
    def store(self) -> JobStore:
        """The application's store."""
        store: JobStore = self.request.registry.getUtility(IJobStore)
        return store

    def ask(self, question: Callable[[JobStore], T]) -> T:
        """Return the store's answer.

        Raises:
          StoreUnavailable: There is none.
        """
        try:
            return question(self.store)
        except RedisError as e:
            raise StoreUnavailable(self) from e


class JobStatesTraverser(ResourceTreeTraverser):  # type: ignore[misc]
    """Traverses the container of our route. As for every route, a virtual root of the
    application's own tree has no say in it."""

    VH_ROOT_KEY = "pyramid_jobstate.no_virtual_root"


@implementer(IResourceURL)
class JobStatesURL:
    """The URL of a container, or of a job in it: that of the route unless the container
    is mounted in the application's own tree."""

    def __init__(self, resource: JobStates | JobState, request: Request) -> None:
        container = resource if isinstance(resource, JobStates) else resource.__parent__
        if isinstance(container, JobStates) and container.is_mounted:
            url = ResourceURL(resource, request)
            self.physical_path = url.physical_path
            self.virtual_path = url.virtual_path
            self.physical_path_tuple = url.physical_path_tuple
            self.virtual_path_tuple = url.virtual_path_tuple
            return
        route = request.registry.getUtility(IRoutesMapper).get_route(ROUTE)
        below = "/" if resource is container else f"/{resource.uuid}/"  # type: ignore[union-attr]
        self.physical_path = self.virtual_path = route.generate({"traverse": below})
        path = tuple(self.physical_path.split("/"))
        self.physical_path_tuple = self.virtual_path_tuple = path
