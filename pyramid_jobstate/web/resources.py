"""JobStates: the container that traversal enters, and a request's access to jobs."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from dramatiq import Actor, Message
from pyramid.interfaces import IRootFactory
from pyramid.traversal import DefaultRootFactory, resource_path_tuple
from redis.exceptions import RedisError
from zope.interface import Interface

from ..errors import StoreUnavailable
from ..job.state import JobState
from ..store.jobstore import JobStore, is_uuid
from ..store.pages import Page
from .outgoing import Outgoing, Sendable
from .permits import owner_of, permits, principals_of
from .transaction import join, send_now
from .unavailable import IWebOutage, UnreadRecord

if TYPE_CHECKING:
    from dramatiq import Broker
    from pyramid.request import Request

    from ..job.record import Record

T = TypeVar("T")


class Default(enum.Enum):
    """What stands for the owner that the setting ``jobstate.owner`` names."""

    OWNER = enum.auto()


DEFAULT = Default.OWNER


class IJobStore(Interface):  # type: ignore[misc]  # zope.interface is untyped
    """Marks the application's JobStore, a utility."""


class IOutbox(Interface):  # type: ignore[misc]  # zope.interface is untyped
    """Marks what keeps the messages that an application's tests send, a utility."""


class IMaxUuids(Interface):  # type: ignore[misc]  # zope.interface is untyped
    """Marks how many jobs one request may ask for, a utility."""


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

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A JobStates serves one request and cannot be stored. Give the resource "
            "that holds it a __getitem__ that makes one."
        )

    @property
    def __parent__(self) -> Any:
        # Made only when an ACL check gets here: when the job's own has not decided.
        if self._parent is None:
            factory = self.request.registry.queryUtility(
                IRootFactory, default=DefaultRootFactory
            )
            try:
                root = factory(self.request)
            except AttributeError as e:
                # lineage() would take it for a missing __parent__.
                raise RuntimeError(f"The root factory failed: {e}") from e
            if isinstance(root, JobStates) and not root.is_mounted:
                # Its parent would be another such root, without end.
                root = DefaultRootFactory(self.request)
            self._parent = root
        return self._parent

    def __getitem__(self, uuid: str) -> JobState:
        """Return a job.

        Raises:
          KeyError: There is no job of this uuid.
          StoreUnavailable: The store does not answer.
        """
        try:
            job_state = self.find(uuid)
        except StoreUnavailable:
            if self._is_traversed_to(uuid):
                return self.unread(uuid)
            raise
        except KeyError as e:
            # Traversal would take it for an unknown job.
            raise RuntimeError(f"The class of the job {uuid} failed: {e!r}") from e
        if job_state is None:
            raise KeyError(uuid)
        return job_state

    def _is_traversed_to(self, uuid: str) -> bool:
        """Whether Pyramid is traversing the application's tree on the way to a view of
        ours, and will meet nothing of the application's behind this container.
        """
        attributes = self.request.__dict__
        if (
            type(self) is not JobStates
            or not self.is_mounted
            or "root" not in attributes
            or "context" in attributes
            or attributes.get("matched_route") is not None
        ):
            return False
        path = f"{'/'.join(resource_path_tuple(self))}/{uuid}"
        return self.request.path_info in (path, f"{path}/", f"{path}/cancel")

    def unread(self, uuid: str) -> JobState:
        """Return a job of which the store says nothing: see :class:`UnreadRecord`."""
        # It raises where a Record would answer.
        job_state = JobState(cast("Record", UnreadRecord(uuid, self)))
        job_state._store = self.store
        job_state.__parent__ = job_state._container = self
        return job_state

    def find(self, uuid: str) -> JobState | None:
        """Return a job, or None if there is no job of this uuid.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        if not is_uuid(uuid):
            return None
        return self._adopt(self.ask(lambda store: store.load(uuid)))

    def find_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs, None in the place of each that there is not.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        known = [uuid for uuid in uuids if is_uuid(uuid)]
        # To ask for nothing would look like an answer, and so end an outage.
        jobs = self.ask(lambda store: store.load_many(known)) if known else []
        found = dict(zip(known, jobs, strict=True))
        return [self._adopt(found.get(uuid)) for uuid in uuids]

    def list(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of jobs, whoever may see them: see :meth:`JobStore.list`.

        Raises:
          ValueError: limit, status or cursor is invalid.
          StoreUnavailable: The store does not answer.
        """
        page = self.ask(
            lambda store: store.list(owner, kind, status, params, limit, cursor)
        )
        for job_state in page.items:
            self._adopt(job_state)
        return page

    def send(self, actor: Actor[Any, Any], *args: Any, **kwargs: Any) -> JobState:
        """Send a message to an actor when the transaction commits.

        The record is written in the first phase of the commit, so that a store that is
        away vetoes it; the message leaves when every database is durable. If the broker
        is away then, the job reads `error`. An abort leaves nothing behind.

        Returns:
          The job, which belongs to whoever made the request.

        Raises:
          TypeError: The actor is not tracked, the middleware on its broker certainly
            writes elsewhere than the web side reads, an argument cannot be encoded, or
            the owner is neither a string nor a number.
          RuntimeError: No transaction has begun on `request.tm`, or it is being
            committed.
        """
        return self.send_with_options(actor, args, kwargs)

    def send_with_options(
        self,
        actor: Actor[Any, Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        owner: str | float | Default | None = DEFAULT,
        **options: Any,
    ) -> JobState:
        """Send a message to an actor when the transaction commits, like :meth:`send`.

        Parameters:
          args, kwargs: The arguments of the actor.
          delay: Milliseconds from the commit, or a timedelta, until it is due.
          owner: The principal that the job belongs to, or None.
          options: Further options of the message.

        Raises:
          TypeError, RuntimeError: As :meth:`send`.
        """
        message = actor.message_with_options(args=args, kwargs=kwargs, **options)
        outgoing = Outgoing(
            message, self._owner(owner), broker=actor.broker, delay=delay
        )
        (job_state,) = self._send(outgoing)
        return job_state

    def send_message(
        self,
        what: Sendable,
        owner: str | float | Default | None = DEFAULT,
        *,
        broker: Broker | None = None,
    ) -> JobState | Sequence[JobState]:
        """Send a message, a pipeline or a group when the transaction commits, as
        :meth:`send` does. Each member has its record from the start.

        Parameters:
          owner: The principal that the jobs belong to, or None.
          broker: The broker of the actors, in place of that of the pipeline or group,
            or of Dramatiq's global one for a message.

        Returns:
          The job, or for a pipeline or group the jobs in their order.

        Raises:
          TypeError, RuntimeError: As :meth:`send`. TypeError also where the broker does
            not know an actor.
        """
        outgoing = Outgoing(what, self._owner(owner), broker=broker)
        return _one_or_all(what, self._send(outgoing))

    def send_immediately(
        self, what: Actor[Any, Any] | Sendable, *args: Any, **kwargs: Any
    ) -> JobState | Sequence[JobState]:
        """Send something now, whatever becomes of the transaction.

        Parameters:
          what: An actor, which is sent the further arguments, or a message, a pipeline
            or a group. For another owner give the message the option ``job_owner``.
          broker: With a message, pipeline or group as in :meth:`send_message`.

        Returns:
          The job, or for a pipeline or group the jobs in their order.

        Raises:
          TypeError: As :meth:`send`.
          StoreUnavailable: The store does not answer. Nothing was sent.
          Exception: The broker did not take it.
        """
        if isinstance(what, Actor):
            broker = what.broker
            what = what.message(*args, **kwargs)
        else:
            # Not a parameter: an actor may have its own of that name.
            broker = kwargs.pop("broker", None)
            if args or kwargs:
                raise TypeError(f"Only an actor takes arguments, not {what!r}.")
        outgoing = Outgoing(what, self.current_owner, broker=broker)
        return _one_or_all(what, self._send(outgoing, now=True))

    def _send(self, outgoing: Outgoing, *, now: bool = False) -> Sequence[JobState]:
        outbox = self.request.registry.queryUtility(IOutbox)
        if outbox is not None:
            outbox.keep(outgoing)
        else:
            outgoing.check(self.store)
            if now:
                send_now(self.ask, outgoing)
            else:
                join(self.request, self.ask, outgoing)
        for job_state in outgoing.job_states:
            self._adopt(job_state)
        return outgoing.job_states

    @property
    def current_owner(self) -> Any:
        """The owner of the jobs that the request sends."""
        return owner_of(self.request)

    def permits(self, context: JobState | JobStates, permission: str) -> Any:
        """Return whether the request has a permission on a job, or on a container of
        jobs: what the application's security policy answers, an object that is true or
        false. Without a policy the ACLs decide for Everyone alone.
        """
        return permits(self.request, context, permission)

    def principals_of(self, owner: str | float) -> Sequence[str | float]:
        """Return the principals that stand for a job's owner in this request."""
        return principals_of(self.request, owner)

    def _owner(self, owner: str | float | Default | None) -> Any:
        return self.current_owner if owner is DEFAULT else owner

    def _adopt(self, job_state: JobState | None) -> JobState | None:
        if job_state is not None:
            job_state.__parent__ = job_state._container = self
        return job_state

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
        outage = self.request.registry.getUtility(IWebOutage)
        try:
            answer = question(self.store)
        except RedisError as e:
            outage.note(e)
            raise StoreUnavailable(self) from e
        outage.end()
        return answer


def _job_states(request: Request) -> JobStates:
    # A property rather than `reify`, so that check_request_method() recognises it.
    job_states: JobStates | None = request.__dict__.get("job_states")
    if job_states is None:
        job_states = request.__dict__["job_states"] = JobStates(request)
    return job_states


def _set_job_states(request: Request, value: Any) -> None:
    request.__dict__["job_states"] = value


#: `request.job_states`: one container a request. The application's tests may set it.
JOB_STATES = property(_job_states, _set_job_states)


def _one_or_all(
    what: object, job_states: Sequence[JobState]
) -> JobState | Sequence[JobState]:
    return job_states[0] if isinstance(what, Message) else job_states
