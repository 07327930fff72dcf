"""The broker that a setting names."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import dramatiq
import dramatiq.broker
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from ..store.connection import deferred_client, place_of
from ..store.jobstore import JobStore, store_beside
from .actors import own_function
from .hooks import forget_actors
from .middleware import JobStateMiddleware
from .recorder import watch_forks

if TYPE_CHECKING:
    from dramatiq.middleware import Middleware

#: The setting of a broker for tests.
STUB = "stub"

SCHEMES = "redis://, rediss://, unix://, amqp:// or amqps://"

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
        if _made[current].spec == spec and _makes(spec, settings, current):
            return current
        raise BrokerFault(
            "cannot be used: another application in this process, or one that failed "
            "to start, has another broker or keeps its jobs elsewhere. If "
            "config.scan() imports a module that makes an application, such as "
            "asgi.py, move that module out of the package. The applications of a "
            "process share one broker: give them equal settings, or a process each. A "
            "test suite calls pyramid_jobstate.testing.release_broker() between two "
            'applications. See "Two applications, two brokers" in the troubleshooting '
            "guide."
        )
    if current is not spec.broker:
        _refuse_own(current)
    broker = make_broker(spec, settings)
    # A function may have set its broker, or imported actors.
    current = dramatiq.broker.global_broker
    if current is not broker:
        _refuse_own(current)
    server, store = None, None
    added = list(middleware)
    if not _has(broker, JobStateMiddleware):
        server = (
            LateServer() if spec.broker == STUB and spec.redis_url is None else None
        )
        store = make_store(broker, spec, server)
        added.insert(0, JobStateMiddleware(store, hooks_queue=spec.hooks_queue))
    elif spec.hooks_queue is not None:
        raise BrokerFault(
            "names a broker that has a JobStateMiddleware. Remove "
            "jobstate.hooks_queue, and pass that a hooks_queue=..."
        )
    added = [m for m in added if not _has(broker, type(m))]
    functions = [(actor, actor.fn) for actor in broker.actors.values()]
    _add(broker, added)
    if current is not None and current is not broker:
        try:
            _check_movable(current, broker)
            _move_actors(current, broker)
        except BaseException:
            _remove(broker, added)
            for actor, fn in functions:
                actor.fn = fn
            raise
    dramatiq.set_broker(broker)
    _made[broker] = Made(spec, server, store, added)
    return broker


class BrokerFault(Exception):
    """Raised if the process cannot have the broker of a setting. Its text continues
    "The setting jobstate.broker", and never contains a password.
    """


# Not a NamedTuple: two applications have different functions for `make_store` and may
# still share a broker. It has no repr, which would show the passwords in the URLs.
@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class BrokerSpec:
    """What a broker is made from.

    Attributes:
      broker: The broker's URL, "stub", a Broker, or a function `settings → Broker`.
      redis_url: The URL of the Redis server for job states, or None for the broker's.
      options: The options of the JobStore, such as its namespace.
      hooks_queue: The queue of the messages that run hooks, or None for those of the
        jobs.
      make_store: Returns the store at `redis_url`.
    """

    broker: Any
    redis_url: str | None
    options: Mapping[str, Any]
    hooks_queue: str | None
    make_store: Callable[[], JobStore] = dataclasses.field(compare=False)


class LateServer:
    """An embedded server that starts when its port is needed."""

    def __init__(self) -> None:
        # Otherwise `python -m pyramid_jobstate.embedded` warns of its second import.
        from ..embedded import EmbeddedServer

        self._make = EmbeddedServer
        self._server = EmbeddedServer()
        self._lock = threading.Lock()
        watch_forks().add(self)

    def port(self) -> int:
        """Return the port of the running server.

        Raises:
          RuntimeError: The server cannot be started.
        """
        with self._lock:
            if not self._server.port:
                self._server.start()
        return self._server.port

    def stop(self) -> None:
        self._server.stop()

    def abandon(self) -> None:
        """In a forked child, forget a server that a thread was about to start."""
        self._lock = threading.Lock()
        if not self._server.port:
            self._server = self._make()


def make_broker(spec: BrokerSpec, settings: Mapping[str, Any]) -> Broker:
    """Return a broker as it is before middleware is added.

    Parameters:
      settings: What a function that makes the broker is called with.

    Raises:
      BrokerFault: No broker can be made.
    """
    value = spec.broker
    if value == STUB:
        return StubBroker()
    if isinstance(value, str):
        return _from_url(value)
    if isinstance(value, Broker):
        return value
    broker = value(settings)
    if not isinstance(broker, Broker):
        # Its type alone, since it may contain a password.
        kind = type(broker).__name__
        raise BrokerFault(
            f"names a function that must return a Dramatiq broker, but returned an "
            f"object of the type {kind}."
        )
    return broker


def make_store(broker: Broker, spec: BrokerSpec, server: LateServer | None) -> JobStore:
    """Return the store for the jobs of a broker.

    Parameters:
      server: Where to keep them, or None for the places that `spec` names.

    Raises:
      BrokerFault: No place is named.
    """
    if spec.redis_url is not None:
        return spec.make_store()
    if server is not None:
        options = {**spec.options}
        client = deferred_client(server.port, options.pop("max_connections"))
        return JobStore(client, **options)
    store = store_beside(getattr(broker, "client", None), **spec.options)
    if store is None:
        raise BrokerFault(
            f"needs jobstate.redis_url, the Redis server for job states: a "
            f"{type(broker).__name__} does not keep them."
        )
    return store


def _from_url(url: str) -> Broker:
    scheme, colon, _ = url.partition("://")
    if scheme.endswith("+cluster"):
        raise BrokerFault(
            "is invalid: Dramatiq's RedisBroker needs a single server. Name the "
            "Cluster in jobstate.redis_url, where it keeps the job states."
        )
    if colon and scheme in ("redis", "rediss", "unix"):
        return _redis(url)
    if colon and scheme in ("amqp", "amqps"):
        return _rabbitmq(url)
    raise BrokerFault(
        f"= {masked(url)!r} is invalid. Use a URL that begins with {SCHEMES}, "
        f"{STUB!r}, or the dotted name of a broker."
    )


def _redis(url: str) -> Broker:
    try:
        # Checked here, since Dramatiq accepts any database and ignores options.
        JobStore(url)
        _check_port(url)
    except ValueError as e:
        fault = str(e)
    else:
        # RedisBroker is untyped.
        make: Callable[..., Any] = RedisBroker
        made = make(url=url)
        options = made.client.connection_pool.connection_kwargs
        if options.get("decode_responses"):
            raise BrokerFault(
                "is invalid. Remove decode_responses from it: Dramatiq reads bytes."
            )
        broker: Broker = made
        return broker
    # Raised outside the handler, so that no traceback shows the original error.
    raise BrokerFault(f"is invalid. {fault}")


def _rabbitmq(url: str) -> Broker:
    try:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
    except ImportError:
        fault = "RabbitMQ needs the package pika: pip install pika."
    else:
        try:
            # Dramatiq takes several, for the nodes of a RabbitMQ cluster.
            for each in url.split(";"):
                # pika misreads other forms: amqp://user:12#3@host as the host "user".
                if not re.fullmatch(
                    r"amqps?://[^\s/?#]*(/[^\s/?#@]*)?(\?[^\s#@]*)?", each
                ):
                    raise ValueError("not the URL of a node")
                _check_port(each)
            broker: Broker = RabbitmqBroker(url=url)
        except Exception:
            # What pika says may quote the URL.
            fault = (
                f"{masked(url)!r} is not a URL such as "
                "amqp://user:password@localhost:5672/vhost, with special characters in "
                "the password and in the vhost percent-encoded: # as %23, / as %2F, "
                "; as %3B, ? as %3F, @ as %40."
            )
        else:
            return broker
    raise BrokerFault(f"is invalid. {fault}")


def _check_port(url: str) -> None:
    """Check that the port of a URL is not 0, which would stand for the default.

    Raises:
      ValueError: It is.
    """
    if urlsplit(url).port == 0:
        raise ValueError("Its port is 0.")


def masked(url: str) -> str:
    """Return a URL without its user, password and options."""
    scheme, colon, rest = url.partition(":")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme, re.IGNORECASE):
        return "…"
    found = re.fullmatch(
        r"//([^@/?#\[\]]*@)?([\w.-]*|\[[\w.:]*\])(:\w*)?(/[\w.%/-]*)?(\?[^@#]*)?", rest
    )
    if found is None:
        return f"{scheme}:…"
    user, host, port, path, options = (group or "" for group in found.groups())
    # The password of a URL without a host looks like a port.
    port = port if port[1:].isdecimal() else ":…" if port else ""
    user, options = "…@" if user else "", "?…" if options else ""
    return f"{scheme}://{user}{host}{port}{path}{options}"


class Made(NamedTuple):
    """How a broker was made.

    Attributes:
      spec: What it was made from.
      server: The server that keeps its job states, or None if that is not ours.
      store: The store of its JobStateMiddleware, or None if it had one before.
      added: The middleware that was added to it.
    """

    spec: BrokerSpec
    server: LateServer | None
    store: JobStore | None
    added: Sequence[Middleware]


def release_broker() -> None:
    """Undo what the setting ``jobstate.broker`` did to this process, so that the next
    application can have another broker. Call it after each test that makes an
    application, for example in a fixture.

    Actors keep their functions and move to the next application's broker. A server that
    was started for ``jobstate.broker = stub`` stops. A broker that the application has
    set itself stays.
    """
    broker = dramatiq.broker.global_broker
    made = None if broker is None else _made.pop(broker, None)
    if broker is None or made is None:
        return
    dramatiq.broker.global_broker = None
    try:
        if broker.actors:
            _move_actors(broker, dramatiq.get_broker())
        # The broker may be the application's own, and serve again.
        _remove(broker, made.added)
        broker.close()
    finally:
        if made.server is not None:
            made.server.stop()


def is_made(broker: Broker | None) -> bool:
    """Return whether a broker was made by :func:`use_broker`."""
    return broker is not None and broker in _made


def made_store(broker: Broker | None) -> JobStore | None:
    """Return the store that :func:`use_broker` made for the jobs of a broker, or None
    if it made neither: the broker has its own JobStateMiddleware, or comes from
    elsewhere.
    """
    made = None if broker is None else _made.get(broker)
    return None if made is None else made.store


def is_default(broker: Broker) -> bool:
    """Return whether the global broker is the one that Dramatiq makes when an actor is
    declared before any broker is set.
    """
    dramatiq.broker.global_broker = None
    try:
        default = dramatiq.get_broker()
    finally:
        dramatiq.broker.global_broker = broker
    return _look(broker) == _look(default)


def _refuse_own(broker: Broker | None) -> None:
    """Check that the global broker is not the application's own.

    Raises:
      BrokerFault: It is, or it is Dramatiq's default broker but cannot be replaced.
    """
    if broker is None:
        return
    if not is_default(broker):
        raise BrokerFault(
            f"cannot be used: the application has set a broker of its own, {broker!r}."
            " Remove its dramatiq.set_broker(...), or this setting."
        )
    if _has_connected(broker):
        raise BrokerFault(
            "cannot be used: Dramatiq's default broker has already been connected to. "
            "Include pyramid_jobstate before anything is sent."
        )


def _makes(spec: BrokerSpec, settings: Mapping[str, Any], broker: Broker) -> bool:
    """Return whether a specification still makes a broker like this one. A function
    may depend on settings that have changed.
    """
    if isinstance(spec.broker, (str, Broker)):
        return True
    try:
        return _place(make_broker(spec, settings)) == _place(broker)
    finally:
        # The function may have set its broker.
        dramatiq.set_broker(broker)


def _look(broker: Broker) -> tuple[object, ...]:
    """Return what tells Dramatiq's default broker from others."""
    return ([type(m) for m in broker.middleware], *_place(broker))


def _place(broker: Broker) -> tuple[object, ...]:
    """Return what a broker is, and where it keeps messages."""
    client = getattr(broker, "client", None)
    login: dict[str, Any] = getattr(client, "get_connection_kwargs", dict)()
    parameters = getattr(broker, "parameters", None)
    return (
        type(broker),
        getattr(broker, "namespace", None),
        None if client is None else place_of(client),
        login.get("username"),
        login.get("password"),
        repr(parameters),
        getattr(parameters, "credentials", None),
    )


def _has_connected(broker: Broker) -> bool:
    """Return whether a broker that looks like Dramatiq's default one has connected."""
    pool = getattr(getattr(broker, "client", None), "connection_pool", None)
    return bool(
        getattr(broker, "connections", None) or getattr(pool, "_created_connections", 0)
    )


def _has(broker: Broker, cls: type[Middleware]) -> bool:
    return any(isinstance(m, cls) for m in broker.middleware)


def _add(broker: Broker, added: Iterable[Middleware]) -> None:
    """Add middleware to a broker, which may have actors.

    Raises:
      ActorError: An actor is declared wrongly. No middleware was added.
    """
    added = list(added)
    for middleware in added:
        for actor in broker.actors.values():
            # add_middleware() calls only the hook that comes after.
            middleware.before_declare_actor(broker, actor)
    for middleware in added:
        broker.add_middleware(middleware)


def _remove(broker: Broker, added: Iterable[Middleware]) -> None:
    """Undo :func:`_add`."""
    for middleware in added:
        broker.middleware.remove(middleware)


def _check_movable(source: Broker, target: Broker) -> None:
    """Check that the actors of a broker can be declared on another.

    Raises:
      BrokerFault: One cannot.
    """
    forget_actors(source)
    for name in source.actors:
        if name in target.actors:
            raise BrokerFault(
                f"cannot be used: its broker and Dramatiq's default broker both have "
                f"an actor named {name!r}. Declare it once, or rename one."
            )


def _move_actors(source: Broker, target: Broker) -> None:
    """Declare the actors of one broker on another instead.

    Raises:
      ActorError: An actor is declared wrongly. None has moved.
    """
    forget_actors(source)
    functions = [(actor, actor.fn) for actor in source.actors.values()]
    try:
        for actor, fn in functions:
            actor.fn = own_function(fn)
            target.declare_actor(actor)
    except BaseException:
        for actor, fn in functions:
            actor.fn = fn
            target.actors.pop(actor.actor_name, None)
        raise
    for actor, _ in functions:
        actor.broker = target
    source.actors.clear()
