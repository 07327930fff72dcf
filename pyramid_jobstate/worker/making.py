"""Makes a broker, with its JobStateMiddleware, from what a setting names."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from ..embedded import EmbeddedServer
from ..store import JobStore, deferred_client, store_beside
from .middleware import JobStateMiddleware

#: The setting of a broker for tests.
STUB = "stub"

SCHEMES = "redis://, rediss://, unix://, amqp:// or amqps://"


class BrokerFault(Exception):
    """Raised if the process cannot have the broker of a setting. Its text continues
    "The setting jobstate.broker", and never contains a password.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerSpec:
    """What a broker is made from.

    Attributes:
      broker: The broker's URL, "stub", a Broker, or a function `settings → Broker`.
      redis_url: The URL of the Redis server for job states, or None for the broker's.
      options: The options of the JobStore that are set, such as its namespace.
      make_store: Returns the store at `redis_url`.
    """

    broker: Any
    redis_url: str | None
    options: Mapping[str, Any]
    make_store: Callable[[], JobStore] = dataclasses.field(compare=False)


class LateServer:
    """An embedded server that starts when its port is needed."""

    def __init__(self) -> None:
        self._server = EmbeddedServer()
        self._lock = threading.Lock()

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


def make_broker(
    spec: BrokerSpec, settings: Mapping[str, Any], server: LateServer | None
) -> Broker:
    """Return a broker, with a JobStateMiddleware.

    Parameters:
      settings: What a function that makes the broker is called with.
      server: Where to keep job states, or None for the places that `spec` names.

    Raises:
      BrokerFault: No broker can be made.
    """
    value = spec.broker
    if value == STUB:
        broker: Any = StubBroker()
    elif isinstance(value, str):
        broker = _from_url(value)
    elif isinstance(value, Broker):
        broker = value
    else:
        broker = value(settings)
        if not isinstance(broker, Broker):
            raise BrokerFault(f"must return a Dramatiq broker, not {broker!r}.")
    if not any(isinstance(m, JobStateMiddleware) for m in broker.middleware):
        broker.add_middleware(JobStateMiddleware(_store(broker, spec, server)))
    return cast("Broker", broker)


def _store(broker: Broker, spec: BrokerSpec, server: LateServer | None) -> JobStore:
    if spec.redis_url is not None:
        return spec.make_store()
    if server is not None:
        return JobStore(deferred_client(server.port), **spec.options)
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
        try:
            # Checked here, since Dramatiq accepts any database and ignores options.
            JobStore(url)
        except ValueError as e:
            fault = str(e)
        else:
            # RedisBroker is untyped.
            make: Callable[..., Broker] = RedisBroker
            return make(url=url)
        # Raised outside the handler, so that no traceback shows the original error.
        raise BrokerFault(f"is invalid. {fault}")
    if colon and scheme in ("amqp", "amqps"):
        return _rabbitmq(url)
    raise BrokerFault(
        f"= {masked(url)!r} is invalid. Use a URL that begins with {SCHEMES}, "
        f"{STUB!r}, or the dotted name of a broker."
    )


def _rabbitmq(url: str) -> Broker:
    try:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
    except ImportError:
        fault = "RabbitMQ needs the package pika: pip install pika."
    else:
        try:
            # Dramatiq takes several, for the nodes of a RabbitMQ cluster.
            for each in url.split(";"):
                if not re.match("amqps?://", each):
                    raise ValueError("each of its URLs must begin with amqp://")
            broker: Broker = RabbitmqBroker(url=url)
        except Exception:
            # What pika says may quote the URL.
            fault = (
                f"{masked(url)!r} is not a URL such as "
                "amqp://user:password@localhost:5672/vhost."
            )
        else:
            return broker
    raise BrokerFault(f"is invalid. {fault}")


def masked(url: str) -> str:
    """Return a URL without its user, password and options."""
    scheme, _, rest = url.partition(":")
    found = re.fullmatch(r"//(?:[^@/?#\[\]]*@)?([^@?#]*)(\?[^@#]*)?", rest)
    if found is None:
        return f"{scheme}:…"
    user = "…@" if "@" in rest else ""
    return f"{scheme}://{user}{found[1]}{'?…' if found[2] else ''}"
