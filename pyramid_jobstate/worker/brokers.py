"""The broker that the applications of this process share, and its middleware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import dramatiq
import dramatiq.broker
from dramatiq import Broker

from ..store import place_of
from .making import STUB, BrokerFault, BrokerSpec, LateServer, make_broker
from .middleware import JobStateMiddleware
from .parameters import own_function

if TYPE_CHECKING:
    from dramatiq.middleware import Middleware


class Made(NamedTuple):
    """How a broker was made.

    Attributes:
      spec: What it was made from.
      server: The server that keeps its job states, or None if that is not ours.
    """

    spec: BrokerSpec
    server: LateServer | None


#: The brokers made here that are in use.
_made: WeakKeyDictionary[Broker, Made] = WeakKeyDictionary()


def use_broker(
    spec: BrokerSpec, settings: Mapping[str, Any], middleware: Iterable[Middleware]
) -> Broker:
    """Make the broker of a specification Dramatiq's global broker, and move the actors
    there that were declared on Dramatiq's default broker. A broker made from an equal
    specification is shared.

    Parameters:
      settings: What a function that makes the broker is called with.
      middleware: Middleware to add after the JobStateMiddleware, each unless the broker
        has one of its class.

    Raises:
      BrokerFault: The process uses another broker, or none can be made.
      ActorError: An actor that has moved is declared wrongly.
    """
    current = dramatiq.broker.global_broker
    if current is not None and current in _made:
        if _made[current].spec == spec:
            return current
        raise BrokerFault(
            "cannot be used: another application in this process has another broker, "
            "or keeps its jobs elsewhere, and the applications of a process share one "
            "broker. Give them equal settings, or a process each. A test suite calls "
            "pyramid_jobstate.testing.release_broker() between two applications."
        )
    if current is not None and current is not spec.broker and not _is_default(current):
        raise BrokerFault(
            f"cannot be used: the application has set a broker of its own, {current!r}."
            " Remove its dramatiq.set_broker(...), or this setting."
        )
    server = LateServer() if spec.broker == STUB and spec.redis_url is None else None
    broker = make_broker(spec, settings, server)
    present = {type(m) for m in broker.middleware}
    for each in middleware:
        if type(each) not in present:
            broker.add_middleware(each)
    if current is not None and current is not broker:
        _move_actors(current, broker)
    dramatiq.set_broker(broker)
    _made[broker] = Made(spec, server)
    return broker


def release_broker() -> None:
    """Undo :func:`use_broker`: the actors return to Dramatiq's default broker, from
    which the next application takes them.
    """
    broker = dramatiq.broker.global_broker
    made = None if broker is None else _made.pop(broker, None)
    if broker is None or made is None:
        return
    dramatiq.broker.global_broker = None
    _move_actors(broker, dramatiq.get_broker())
    broker.close()
    if made.server is not None:
        made.server.stop()


def is_made(broker: Broker | None) -> bool:
    """Return whether a broker was made by :func:`use_broker`."""
    return broker is not None and broker in _made


def middleware_of(broker: Broker) -> JobStateMiddleware:
    """Return the JobStateMiddleware of a broker.

    Raises:
      TypeError: The broker does not have one.
    """
    for middleware in broker.middleware:
        if isinstance(middleware, JobStateMiddleware):
            return middleware
    raise TypeError(
        f"The broker {broker!r} has no JobStateMiddleware. Add one before the actors "
        "are declared: broker.add_middleware(JobStateMiddleware())."
    )


def _is_default(broker: Broker) -> bool:
    """Return whether a broker is one that Dramatiq makes when an actor is declared
    before any broker is set, and has not connected.
    """
    dramatiq.broker.global_broker = None
    try:
        default = dramatiq.get_broker()
    finally:
        dramatiq.broker.global_broker = broker
    is_connected = bool(getattr(broker, "connections", None))
    return not is_connected and _look(broker) == _look(default)


def _look(broker: Broker) -> tuple[object, ...]:
    client = getattr(broker, "client", None)
    parameters = getattr(broker, "parameters", None)
    return (
        type(broker),
        [type(m) for m in broker.middleware],
        getattr(broker, "namespace", None),
        None if client is None else place_of(client),
        repr(parameters),
        getattr(parameters, "credentials", None),
    )


def _move_actors(source: Broker, target: Broker) -> None:
    """Declare the actors of one broker on another instead.

    Raises:
      ActorError: An actor is declared wrongly. None has moved.
    """
    functions = [(actor, actor.fn) for actor in source.actors.values()]
    try:
        for actor, fn in functions:
            actor.fn = own_function(fn)
            target.declare_actor(actor)
    except BaseException:
        for actor, fn in functions:
            actor.fn = fn
        raise
    for actor, _ in functions:
        actor.broker = target
    source.actors.clear()
