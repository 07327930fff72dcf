"""Sending jobs from a request, with its transaction or immediately."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, overload

from dramatiq import Actor, Message, group, pipeline
from pyramid.interfaces import IRoutesMapper

from ..job import JobState, check_actor
from ..worker import Outgoing, Sendable, Unique, check_owner
from .access import Access
from .interfaces import IApplicationName, IBaseUrl, IOutbox
from .joining import join, joinable, send_now
from .permits import name_visitor, sender_of
from .routenames import JOB, RERUN_ALL

if TYPE_CHECKING:
    from dramatiq import Broker
    from pyramid.registry import Registry

    from ..store import JobStore


class Default(enum.Enum):
    """The placeholder for the owner that the setting ``jobstate.owner`` determines."""

    OWNER = enum.auto()


DEFAULT = Default.OWNER


class Sender(Access):
    """The methods of :class:`.JobStates` that send."""

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
          ValueError: `delay` is out of range, `unique` is empty or too long, the job
            has no owner and is not shared, or `shared` is set without `unique`.
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
          ValueError: A message id is not a uuid, a pipeline is empty, or the option
            `delay` of a message is out of range.
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
            send_now(self.ask, outgoing)
        else:
            join(self.request, self.ask, outgoing)
        for job_state in outgoing.job_states:
            self._adopt(job_state)
        if is_default and any(job.owner == found for job in outgoing.job_states):
            # Only now: what cannot be sent leaves no trace in the session.
            name_visitor(self.request, found)
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
            record = store.records.unique(identity, ended=ended)
            return None if record is None else store.job(record)

        return self.ask(find)

    def _origin(self) -> dict[str, str]:
        """Return the options that tell a job's request where the job comes from."""
        return {
            "job_url": self.request.application_url,
            "job_app": application_name(self.request.registry),
        }


def _one_or_all(
    what: object, job_states: Sequence[JobState]
) -> JobState | Sequence[JobState]:
    return job_states[0] if isinstance(what, Message) else job_states


def application_name(registry: Registry) -> str:
    """Return a name for an application, which is the same in every process that makes
    it: of its package and its ``jobstate.base_url`` or, without that, its settings and
    routes.
    """
    name: str | None = registry.queryUtility(IApplicationName)
    if name is not None:
        return name
    parts: list[Any] = [getattr(registry, "package_name", None)]
    base_url = registry.queryUtility(IBaseUrl)
    if base_url is None:
        settings = registry.settings.items()
        parts.append({k: v for k, v in settings if isinstance(v, str)})
        routes = registry.getUtility(IRoutesMapper).get_routes()
        names = [route.name for route in routes]
        pairs = [[route.name, route.pattern] for route in routes]
        # Where it was in earlier versions, from which messages may have come.
        pairs.insert(names.index(RERUN_ALL), pairs.pop(names.index(JOB)))
        parts += pairs
    text = json.dumps([*parts, base_url], sort_keys=True)
    # Cut short, so that nobody can work out the settings from it.
    return hashlib.sha256(text.encode()).hexdigest()[:8]
