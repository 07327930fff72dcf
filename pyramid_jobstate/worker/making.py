"""Makes a broker, and the store of its jobs, from what a setting names."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from ..store import JobStore, deferred_client, store_beside

#: The setting of a broker for tests.
STUB = "stub"

SCHEMES = "redis://, rediss://, unix://, amqp:// or amqps://"


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
      make_store: Returns the store at `redis_url`.
    """

    broker: Any
    redis_url: str | None
    options: Mapping[str, Any]
    make_store: Callable[[], JobStore] = dataclasses.field(compare=False)


class LateServer:
    """An embedded server that starts when its port is needed."""

    def __init__(self) -> None:
        # Otherwise `python -m pyramid_jobstate.embedded` warns of its second import.
        from ..embedded import EmbeddedServer

        self._make = EmbeddedServer
        self._server = EmbeddedServer()
        self._lock = threading.Lock()
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(reference()))

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

    def forget(self) -> None:
        """In a forked child, forget a server that a thread was about to start."""
        self._lock = threading.Lock()
        if not self._server.port:
            self._server = self._make()


def _forget(server: LateServer | None) -> None:
    if server is not None:
        server.forget()


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
