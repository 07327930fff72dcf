"""JobStates: the container of jobs, for traversal and as `request.job_states`."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, overload

from dramatiq import Actor, Message, group, pipeline
from pyramid.interfaces import IResourceURL, IRootFactory
from pyramid.request import Request
from pyramid.traversal import (
    DefaultRootFactory,
    ResourceURL,
    resource_path_tuple,
    traversal_path_info,
)
from redis.exceptions import RedisError
from zope.interface import implementer, providedBy

from ..errors import NotRepeatable, StoreUnavailable
from ..job.batch import Batch
from ..job.members import check_actor
from ..job.record import is_uuid
from ..job.state import Inner, JobState, record_of, set_container
from ..job.texts import translated
from ..store.connection import ConnectionsInUse
from ..store.jobstore import JobStore, load_some, records_of
from ..store.lists import Page
from ..worker.batches import OutgoingBatch
from ..worker.ledger import global_broker
from ..worker.message import APPLICATION, URL, check_owner
from ..worker.outgoing import Outgoing, Sendable, Unique
from ..worker.reruns import NO_BROKER, rerun
from .interfaces import IJobStore, IOutbox
from .permits import (
    UnreadRecord,
    name_visitor,
    note_ownerless,
    owner_of,
    permits,
    principals_of,
    sender_of,
)
from .query import localizer_of
from .transaction import join, joinable, send_now

if TYPE_CHECKING:
    from dramatiq import Broker
    from pyramid.registry import Registry

    from ..job.record import Record


T = TypeVar("T")

AnyBatch = TypeVar("AnyBatch", bound=Batch)

#: The request attribute that says whether the block of a batch is open.
_OPEN = "_jobstate_batch"

#: The variables of a request's environment of which WebOb makes the application's URL.
URL_OF = ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "SCRIPT_NAME")

#: The names of the views of a job.
JOB_VIEWS = ("", "cancel", "rerun", "inspect", "log", "stack")


class Default(enum.Enum):
    """The default of an argument `owner`.

    Attributes:
      OWNER: The owner that the setting ``jobstate.owner`` determines for the request.
    """

    OWNER = enum.auto()


DEFAULT = Default.OWNER


class JobStates:
    """The container of jobs in the resource tree.

    ``request.job_states`` is one. An application can mount others in its own tree::

        class Root:
            def __getitem__(self, name):
                if name == "jobs":
                    return JobStates(self.request, parent=self, name="jobs")
                raise KeyError(name)

    Wherever it is, it has the jobs of everybody: it belongs below a resource whose ACL
    gives the permissions of jobs to operators alone.

    Parameters:
      request: The request that it serves.
      parent: The resource in which it is mounted. Without one it is found at the path
        of the setting ``jobstate.path``, below the application's root.
      name: Its name in the parent.

    Attributes:
      is_mounted: Whether it is a resource in the application's own tree.
    """

    def __init__(
        self, request: Request, parent: object = None, name: str | None = None
    ) -> None:
        self.request = request
        self.is_mounted = parent is not None
        self.__name__ = name
        self._parent = parent
        #: The URL of the container, and the variables of which it was made.
        self._url = ""
        self._place: tuple[object, ...] = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A JobStates serves one request and cannot be stored. Create one in the "
            "__getitem__ of the resource that holds it."
        )

    @property
    def __parent__(self) -> Any:
        # The root is made only if an ACL check needs it: the job's own ACL comes first.
        if self._parent is None:
            factory = self.request.registry.queryUtility(
                IRootFactory, default=DefaultRootFactory
            )
            try:
                root = factory(self.request)
            except AttributeError as e:
                # lineage() would mistake it for a missing __parent__.
                raise RuntimeError(f"The root factory failed: {e}") from e
            if isinstance(root, JobStates) and not root.is_mounted:
                # Its parent would be another such root, endlessly.
                root = DefaultRootFactory(self.request)
            self._parent = root
        return self._parent

    def __getitem__(self, uuid: str) -> JobState:
        """Return a job.

        Raises:
          KeyError: The job is unknown.
          StoreUnavailable: The store does not answer.
        """
        try:
            job_state = self.find(uuid)
        except StoreUnavailable as e:
            if self._is_traversed_to(uuid):
                return unread(self, uuid, e)
            raise
        except KeyError as e:
            # Traversal would mistake it for an unknown job.
            raise RuntimeError(f"The class of the job {uuid} failed: {e!r}") from e
        if job_state is None:
            raise KeyError(uuid)
        return job_state

    def _is_traversed_to(self, uuid: str) -> bool:
        """Return whether Pyramid is traversing the application's tree towards one of
        our views, with nothing of the application's below this container.
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
        environ = self.request.environ
        # Pyramid traverses to a virtual root first.
        below = environ.get("HTTP_X_VHM_ROOT", "") + environ["PATH_INFO"]
        asked = traversal_path_info(below)
        path = (*resource_path_tuple(self)[1:], uuid)
        return asked in [path, *((*path, name) for name in JOB_VIEWS)]

    def find(self, uuid: str) -> JobState | None:
        """Return a job, or None if it is unknown.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        if not is_uuid(uuid):
            return None
        return self._adopt(ask(self, lambda store: store.load(uuid)))

    def find_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs, with None in the place of each unknown one.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        known = [uuid for uuid in uuids if is_uuid(uuid)]
        # An empty question would always be answered, and so seem to end an outage.
        jobs = ask(self, lambda store: store.load_many(known)) if known else []
        found = dict(zip(known, jobs, strict=True))
        return [self._adopt(found.get(uuid)) for uuid in uuids]

    def find_some(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return the first of several jobs, and at least one: all of them, unless their
        records are large. None stands for each unknown one.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        known = [uuid for uuid in uuids if is_uuid(uuid)]
        jobs = ask(self, lambda store: load_some(store, known)) if known else []
        if len(jobs) < len(known):
            uuids = uuids[: uuids.index(known[len(jobs)])]
        found = dict(zip(known, jobs, strict=False))
        return [self._adopt(found.get(uuid)) for uuid in uuids]

    def _url_of(self, job_state: JobState) -> str:
        """Return the URL of a job in its state: that of ``request.resource_url()``, but
        with jobstate.base_url at its beginning if that is set.
        """
        if not is_below(job_state, self):
            base_url = self.request.registry.jobstate.base_url
            options = {} if base_url is None else {"app_url": base_url}
            url: str = self.request.resource_url(job_state, **options)
            return url
        request = self.request
        # The jobs of a list share what the URL depends on.
        place = tuple(map(request.environ.get, URL_OF))
        if place != self._place:
            setup = request.registry.jobstate
            path = setup.path
            if self.is_mounted:
                path = ResourceURL(self, request).virtual_path
            self._place = place
            self._url = f"{setup.base_url or request.application_url}{path}"
        return f"{self._url}{job_state.uuid}/"

    def list(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
        *,
        members: bool = False,
    ) -> Page:
        """Return a page of jobs, without checking permissions: see
        :meth:`.JobStore.list`.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid, or `owner` is None and a class
            and an actor are named `kind`.
          StoreUnavailable: The store does not answer.
        """
        page = ask(
            self,
            lambda store: store.list(
                owner, kind, status, params, limit, cursor, members=members
            ),
        )
        for job_state in page.items:
            self._adopt(job_state)
        return page

    @property
    def current_owner(self) -> Any:
        """The owner whose jobs the request may list and see."""
        return owner_of(self.request)

    def permits(self, context: Any, permission: str) -> Any:
        """Return whether the request has a permission on a job or a container of jobs.

        The result is true or false: the object that the setting ``jobstate.permits``,
        by default the application's security policy, returns. If that raises
        HTTPForbidden, the result is false. Without a policy the ACLs decide, with
        Everyone as the only principal.
        """
        return permits(self.request, context, permission)

    def _principals_of(self, owner: str | float) -> Sequence[str | float]:
        """Return the principals that stand for a job's owner in this request."""
        return principals_of(self.request, owner)

    @functools.cached_property
    def localizer(self) -> Any:
        """The localizer of the request, for a language that has a catalog."""
        return localizer_of(self.request)

    @property
    def store(self) -> JobStore:
        """The application's store."""
        store: JobStore = self.request.registry.getUtility(IJobStore)
        return store

    def rerun(self, job_state: JobState) -> bool:
        """Run a job again, without checking permissions: see :meth:`.JobState.rerun`.

        Raises:
          NotRepeatable: The job cannot run again. The error says why.
          RuntimeError: A hook of the job runs here.
          StoreUnavailable: The store does not answer.
        """
        broker = global_broker()
        if broker is not None:
            uuid = record_of(job_state).uuid
            return ask(self, lambda store: rerun(store, broker, uuid))
        if not record_of(job_state).is_failed_or_lost:
            return False
        raise NotRepeatable(NO_BROKER)

    def _adopt(self, job_state: JobState | None) -> JobState | None:
        if job_state is not None:
            set_container(job_state, self)
        return job_state

    def send(self, actor: Actor[Any, Any], *args: Any, **kwargs: Any) -> JobState:
        """Send a message to an actor when the transaction commits.

        The record is written in the first phase of the commit, so that a store that is
        away vetoes the commit. The message is sent once every database is durable. If
        the broker is away by then, the job reads `error`. An abort leaves nothing
        behind.

        Returns:
          The job, which the request owns.

        Raises:
          TypeError: `actor` is not an actor or is not tracked, the middleware on its
            broker certainly writes elsewhere than the web side reads, an argument
            cannot be encoded, or the owner is neither a string nor a number.
          ValueError: The owner is one of Pyramid's own principals.
          RuntimeError: No transaction has begun on `request.tm`, or it accepts no more
            jobs.
        """
        return self.send_with_options(actor, args, kwargs)

    def send_with_options(
        self,
        actor: Actor[Any, Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        owner: str | float | Default | None = DEFAULT,
        *,
        unique: str | None = None,
        shared: bool = False,
        **options: Any,
    ) -> JobState:
        """Send a message with options to an actor, like :meth:`send`.

        At most one unended job has a unique key. If one is under way, it is returned,
        whatever its arguments, and nothing is sent. If two requests send at once, one
        job is sent, and the uuid of the other leads to it.

        Parameters:
          args, kwargs: The arguments of the actor.
          delay: Milliseconds, or a timedelta, from the commit until it is due: at most
            100,000,000,000,000 milliseconds, about 3,000 years.
          owner: The owner of the job, or None for no owner.
          unique: The unique key, of 1 to 200 characters, among the owner's jobs of this
            actor. None sends a job of its own.
          shared: Whether the key is unique among the jobs of all owners, who then share
            the job. The ``__acl__()`` of its class decides who else may see it.
          options: Further options of the message.

        Raises:
          TypeError, RuntimeError: As :meth:`send`. TypeError also if `unique` is not a
            string, or `delay` not a number.
          ValueError: As :meth:`send`. Also if `delay` is out of range, `unique` is
            empty or too long, the job has no owner and is not shared, or `shared` is
            set without `unique`.
          StoreUnavailable: The job is unique, and the store does not answer.
        """
        check_actor(actor)
        message = actor.message_with_options(args=args, kwargs=kwargs, **options)
        if unique is None and shared:
            raise ValueError("shared=True requires unique.")
        key = None if unique is None else Unique(unique, shared=shared)
        (job_state,) = self._send(message, owner, actor.broker, delay, unique=key)
        return job_state

    def find_unique(
        self,
        actor: Actor[Any, Any],
        unique: str,
        *,
        owner: str | float | Default | None = DEFAULT,
        shared: bool = False,
    ) -> JobState | None:
        """Return the last job that was sent with a unique key, ended or not, or None.

        Parameters:
          actor: The actor.
          unique: The unique key.
          owner: The owner of the job. Without one, only a shared job can be found.
          shared: Whether the job was sent with `shared`.

        Raises:
          TypeError: `actor` is not an actor, `unique` is not a string, or the owner
            neither a string nor a number.
          ValueError: `unique` is empty or too long.
          StoreUnavailable: The store does not answer.
        """
        check_actor(actor)
        found = check_owner(self.current_owner if owner is DEFAULT else owner)
        key = Unique(unique, shared=shared or found is None)
        identity = key.identify(actor.actor_name, found)
        if found is None and not shared:
            return None
        return self._adopt(self._unique_job(identity, ended=True))

    @overload
    def send_message(
        self,
        what: Message[Any],
        owner: str | float | Default | None = DEFAULT,
        *,
        broker: Broker | None = None,
    ) -> JobState: ...

    @overload
    def send_message(
        self,
        what: pipeline | group,
        owner: str | float | Default | None = DEFAULT,
        *,
        broker: Broker | None = None,
    ) -> Sequence[JobState]: ...

    def send_message(
        self,
        what: Sendable,
        owner: str | float | Default | None = DEFAULT,
        *,
        broker: Broker | None = None,
    ) -> JobState | Sequence[JobState]:
        """Send a message, pipeline or group, like :meth:`send`. Each member has its
        record from the start.

        Parameters:
          owner: The owner of the jobs, or None for no owner.
          broker: The broker of the actors. By default that of the pipeline or group,
            and Dramatiq's global broker for a message.

        Returns:
          The job, or for a pipeline or group its jobs in order.

        Raises:
          TypeError, RuntimeError: As :meth:`send`. TypeError also if the broker does
            not know an actor, or the option `delay` of a message is not a number.
          ValueError: As :meth:`send`. Also if a message id is not a uuid, a pipeline is
            empty, or the option `delay` of a message is out of range.
        """
        return _one_or_all(what, self._send(what, owner, broker))

    @overload
    def send_immediately(
        self, what: Message[Any], *, broker: Broker | None = None
    ) -> JobState: ...

    @overload
    def send_immediately(
        self, what: pipeline | group, *, broker: Broker | None = None
    ) -> Sequence[JobState]: ...

    @overload
    def send_immediately(
        self, what: Actor[Any, Any], *args: Any, **kwargs: Any
    ) -> JobState: ...

    def send_immediately(
        self, what: Actor[Any, Any] | Sendable, *args: Any, **kwargs: Any
    ) -> JobState | Sequence[JobState]:
        """Send something now, independently of the transaction.

        Parameters:
          what: A message, pipeline or group, or an actor to be sent `args` and
            `kwargs`. To name another owner, set the message's option ``job_owner``.
          broker: As in :meth:`send_message`. With an actor it is one of `kwargs`.

        Returns:
          The job, or for a pipeline or group its jobs in order.

        Raises:
          TypeError, ValueError: As :meth:`send_message`.
          StoreUnavailable: The store does not answer. Nothing was sent.
          Exception: The broker did not accept it.
        """
        if isinstance(what, Actor):
            broker = what.broker
            what = what.message(*args, **kwargs)
        else:
            # Not declared as a parameter: an actor may have one of that name.
            broker = kwargs.pop("broker", None)
            if args or kwargs:
                raise TypeError(f"Only an actor takes arguments, not {what!r}.")
        return _one_or_all(what, self._send(what, DEFAULT, broker, now=True))

    def _send(
        self,
        what: Sendable,
        owner: str | float | Default | None,
        broker: Broker | None,
        delay: timedelta | int | None = None,
        *,
        now: bool = False,
        unique: Unique | None = None,
    ) -> Sequence[JobState]:
        is_default = owner is DEFAULT
        found: Any = sender_of(self.request) if is_default else owner
        outgoing = Outgoing(
            what,
            found,
            broker=broker,
            delay=delay,
            origin=self._origin,
            unique=unique,
        )
        outbox = self.request.registry.queryUtility(IOutbox)
        if outbox is None:
            outgoing.check(self.store)
            if unique is not None:
                # A missing transaction is an error even if another job is under way.
                joinable(self.request)
        if unique is not None:
            under_way = self._unique_job(unique.identity, ended=False)
            if under_way is not None:
                self._adopt(under_way)
                return [under_way]
        if outbox is not None:
            outbox.keep(outgoing)
        elif now:
            send_now(functools.partial(ask, self), outgoing)
        else:
            join(self.request, functools.partial(ask, self), outgoing)
        for job_state in outgoing.job_states:
            self._adopt(job_state)
        if is_default and any(job.owner == found for job in outgoing.job_states):
            # Only now: what cannot be sent leaves no trace in the session.
            name_visitor(self.request, found)
        if is_default and found is None:
            note_ownerless(self.request, outgoing.job_states)
        return outgoing.job_states

    def _unique_job(self, identity: str, *, ended: bool) -> JobState | None:
        """Return the job of an identity that is under way or, with `ended`, the last
        one, or None.
        """
        outbox = self.request.registry.queryUtility(IOutbox)
        if outbox is not None:
            found: JobState | None = outbox.unique_job(identity, ended=ended)
            return found

        def find(store: JobStore) -> JobState | None:
            claims = records_of(store).claims
            record = (claims.find if ended else claims.under_way)(identity)
            return None if record is None else records_of(store).job(record)

        return ask(self, find)

    def _origin(self) -> dict[str, str]:
        """Return the options that tell a job's request where the job comes from."""
        origin = {URL: self.request.application_url}
        name = application_name(self.request.registry)
        return origin if name is None else {**origin, APPLICATION: name}

    def batch(
        self,
        # mypy takes no default for a type variable: python/mypy#3737.
        batch_class: type[AnyBatch] = Batch,  # type: ignore[assignment]
        *,
        title: str | None = None,
        owner: str | float | Default | None = DEFAULT,
        allow_failures: bool = False,
    ) -> AnyBatch:
        """Send many jobs that are shown as one, when the transaction commits::

            with request.job_states.batch(title="Import of 3 files") as batch:
                for name in names:
                    batch.send(import_file, name)

        An exception in the block sends nothing. A batch without members has succeeded
        at once.

        Parameters:
          batch_class: The class of the batch, which decides who may do what with it.
          title: The heading of this batch, in place of that of its class.
          owner: The owner of the batch and of its members, or None for no owner.
          allow_failures: Whether the batch succeeds even if members fail.

        Returns:
          The batch, which takes members within a `with` block.

        Raises:
          TypeError: The class is not a Batch, the title is not a string, or the owner
            neither a string nor a number.
          ValueError: The owner is one of Pyramid's own principals.
          RuntimeError: As :meth:`send`, when the block begins; or it begins within the
            block of another batch.
        """
        is_default = owner is DEFAULT
        found: Any = sender_of(self.request) if is_default else owner
        outbox = self.request.registry.queryUtility(IOutbox)

        def begin() -> None:
            if self.request.__dict__.get(_OPEN):
                raise RuntimeError(
                    "Batches cannot be nested. Leave the first block before you enter "
                    "another."
                )
            if outbox is None:
                join(self.request, functools.partial(ask, self), outgoing)
            self.request.__dict__[_OPEN] = True

        def end(is_sent: bool) -> None:
            self.request.__dict__[_OPEN] = False
            if not is_sent:
                return
            if outbox is not None:
                outbox.keep_batch(outgoing)
            if is_default:
                name_visitor(self.request, found)
            if is_default and found is None:
                note_ownerless(self.request, outgoing.job_states)

        def check(item: Outgoing) -> None:
            if outbox is None:
                item.check(self.store)

        outgoing = OutgoingBatch(
            batch_class,
            None if title is None else translated(title, self),
            found,
            allow_failures=allow_failures,
            origin=self._origin,
            begin=begin,
            end=end,
            check=check,
        )
        self._adopt(outgoing.batch)
        return cast("AnyBatch", outgoing.batch)

    def members(
        self,
        batch: str,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of the members of a batch, without checking permissions: see
        :meth:`.JobStore.members`.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid.
          StoreUnavailable: The store does not answer.
        """
        page = ask(self, lambda store: store.members(batch, status, limit, cursor))
        for job_state in page.items:
            self._adopt(job_state)
        return page


def ask(container: JobStates, question: Callable[[JobStore], T]) -> T:
    """Return the answer of a container's store to a question.

    Raises:
      StoreUnavailable: The store does not answer.
    """
    outage = container.request.registry.jobstate.outage
    try:
        answer = question(container.store)
    except RedisError as e:
        outage.note(e)
        if isinstance(e, ConnectionsInUse):
            raise StoreUnavailable(container, str(e)) from e
        raise StoreUnavailable(container) from e
    if outage.is_logged:
        outage.recover()
    return answer


def unread(container: JobStates, uuid: str, error: StoreUnavailable) -> JobState:
    """Return a job that the store could not read: see :class:`UnreadRecord`."""
    # It takes the place of a Record, and raises when read.
    record = cast("Record", UnreadRecord(uuid, error))
    job_state = JobState(Inner(record, store=records_of(container.store)))
    set_container(job_state, container)
    return job_state


def _one_or_all(
    what: object, job_states: Sequence[JobState]
) -> JobState | Sequence[JobState]:
    return job_states[0] if isinstance(what, Message) else job_states


def application_name(registry: Registry) -> str | None:
    """Return the name by which jobs know the application that has sent them: its
    package and its ``jobstate.base_url``, or None without that.
    """
    base_url = registry.jobstate.base_url
    return None if base_url is None else f"{registry.package_name} {base_url}"


@implementer(IResourceURL)
class JobStatesURL:
    """The URL of a container or of a job in it: our route's, unless the container is
    mounted in the application's own tree.
    """

    def __init__(self, resource: JobStates | JobState, request: Request) -> None:
        container = resource if isinstance(resource, JobStates) else resource.__parent__
        if isinstance(container, JobStates) and container.is_mounted:
            url = ResourceURL(resource, request)
            self.physical_path = url.physical_path
            self.virtual_path = url.virtual_path
            self.physical_path_tuple = url.physical_path_tuple
            self.virtual_path_tuple = url.virtual_path_tuple
            return
        path = request.registry.jobstate.path
        if isinstance(resource, JobState):
            path = f"{path}{resource.uuid}/"
        self.physical_path = self.virtual_path = path
        self.physical_path_tuple = self.virtual_path_tuple = tuple(path.split("/"))


def is_below(job_state: JobState, container: JobStates) -> bool:
    """Return whether the URL of a job is that of its container and its uuid: its parent
    is the container, and the application does not give it another URL.
    """
    request = container.request
    return (
        job_state.__parent__ is container
        and job_state.__name__ == job_state.uuid
        and not hasattr(job_state, "__resource_url__")
        and getattr(request.resource_url, "__func__", None) is Request.resource_url
        # A virtual root may lie below the container.
        and not (container.is_mounted and "HTTP_X_VHM_ROOT" in request.environ)
        and request.registry.adapters.lookup(
            (providedBy(job_state), providedBy(request)), IResourceURL
        )
        is JobStatesURL
    )


def _job_states(request: Request) -> JobStates:
    # A property rather than `reify`, so that check_request_method() recognises it.
    job_states: JobStates | None = request.__dict__.get("job_states")
    if job_states is None:
        job_states = request.__dict__["job_states"] = JobStates(request)
    return job_states


def _set_job_states(request: Request, value: Any) -> None:
    request.__dict__["job_states"] = value


#: `request.job_states`: one container per request. An application's tests may set it.
JOB_STATES = property(_job_states, _set_job_states)
