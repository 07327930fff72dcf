"""One round trip to Redis, be it one server or a Cluster."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from redis import Redis, RedisCluster
from redis import exceptions as errors
from redis.backoff import ConstantBackoff
from redis.client import NEVER_DECODE
from redis.connection import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.retry import Retry

Client = Redis | RedisCluster

#: How a client of our own connects: a user waits for the answer, and the recorder
#: tries again by itself. redis-py's defaults block for seconds.
FAIL_FAST: dict[str, Any] = {
    "decode_responses": True,
    "encoding_errors": "replace",
    "socket_timeout": 0.5,
    "socket_connect_timeout": 0.5,
    "retry": Retry(ConstantBackoff(0.05), 1),
}

#: The pools that do nothing but connect to one server.
POOLS = (ConnectionPool, BlockingConnectionPool)

#: What the name of a scheme ends with where the URL is that of a node of a Cluster.
CLUSTER = "+cluster"

SCHEMES = ("redis", "rediss", "unix", f"redis{CLUSTER}", f"rediss{CLUSTER}")

#: What a node of a Cluster says of a key that it does not have, or not yet.
MOVED = (errors.MovedError, errors.AskError, errors.TryAgainError)


#: The names of one host.
LOCALHOST = frozenset({"localhost", "127.0.0.1", "::1"})


class Address(NamedTuple):
    """Where a single server is. The path of a Unix socket counts as its host."""

    host: str
    port: int
    db: int
    is_tls: bool


class Command(NamedTuple):
    """A command, with the one key that it touches."""

    key: str
    args: Sequence[str | int]


def connect(url: str) -> Client:
    """Return a client that gives up soon.

    Parameters:
      url: As redis-py takes it, or with the scheme ``redis+cluster`` or
        ``rediss+cluster`` that of any node of a Cluster.

    Raises:
      ValueError: The URL cannot be understood. No part of it is repeated, nor chained:
        any may belong to a password.
      redis.exceptions.RedisError: No node of the Cluster answers.
    """
    fault = _fault_of(url)
    if fault is None:
        try:
            return _connect(url)
        except Exception as e:
            if url.partition(":")[0].endswith(CLUSTER) and isinstance(
                e, errors.RedisError
            ):
                # The only one that connects here.
                raise
            fault = "an option behind its ? is unknown, or has a wrong value"
    # Not in the handler: an exception shows the one that was handled.
    raise ValueError(
        f"The URL of the Redis server cannot be used: {fault}. It reads like "
        "redis://user:password@localhost:6379/0, with the special characters of the "
        "password percent-encoded: # as %23, / as %2F, ? as %3F, @ as %40, [ as %5B."
    )


def impatient(client: Redis) -> Redis | None:
    """Return a client of the same server that gives up soon, or None where only the
    application knows how to connect.
    """
    pool = client.connection_pool
    if type(pool) not in POOLS:
        return None
    kwargs = {**pool.connection_kwargs, **FAIL_FAST}
    own = ConnectionPool(connection_class=pool.connection_class, **kwargs)
    return Redis(connection_pool=own)


def _connect(url: str) -> Client:
    scheme, colon, rest = url.partition(":")
    if scheme.endswith(CLUSTER):
        scheme = scheme.removesuffix(CLUSTER)
        with redis_errors():
            return RedisCluster.from_url(scheme + colon + rest, **FAIL_FAST)
    client = Redis.from_url(url, **FAIL_FAST)
    # Unknown options in the URL are rejected only here.
    client.connection_pool.make_connection()
    return client


def _fault_of(url: str) -> str | None:
    """Return why a URL cannot be understood, without any part of it. redis-py takes
    some for another than was meant: port 12 and no password for redis://:12/34@host.
    """
    scheme, _, rest = url.partition("://")
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if scheme not in SCHEMES:
        return f"its scheme must be one of {', '.join(SCHEMES)}"
    if re.search(r"[\0-\x1f\x7f]", url):
        return "it has a line break or another control character"
    if "#" in tail or "@" in tail:
        return "a # or an @ stands behind its host"
    if re.search(r"[\[\]].*@", authority):
        return "a [ or a ] stands before its host"
    path = unquote(tail.partition("?")[0])
    if scheme != "unix" and not re.fullmatch(r"(/[0-9]*/?)?", path):
        return "its path is not the number of a database"
    try:
        _ = urlsplit(f"//{authority}").port
    except ValueError:
        return "its host or its port is invalid"
    return None


def name_of(client: Client) -> str:
    """Return where a client leads, without what may hold a password."""
    if isinstance(client, RedisCluster):
        nodes = client.get_nodes()  # type: ignore[no-untyped-call]
        return ", ".join(sorted(node.name for node in nodes))
    pool = client.connection_pool
    place = pool.connection_kwargs
    db = place.get("db") or 0
    service = getattr(pool, "service_name", None)
    if service is not None:
        return f"{service}/{db} by Sentinel"
    if "path" in place:
        return f"{place['path']}?db={db}" if db else str(place["path"])
    return f"{place.get('host', 'localhost')}:{place.get('port', 6379)}/{db}"


def place_of(client: Client) -> Address | str:
    """Return what two clients of one server have in common."""
    if isinstance(client, Redis):
        pool = client.connection_pool
        cls, place = pool.connection_class, pool.connection_kwargs
        if type(pool) in POOLS and cls is UnixDomainSocketConnection:
            return Address(str(place["path"]), 0, int(place.get("db") or 0), False)
        if type(pool) in POOLS and cls in (Connection, SSLConnection):
            host = str(place.get("host", "localhost")).lower()
            return Address(
                "localhost" if host in LOCALHOST else host,
                int(place.get("port", 6379)),
                int(place.get("db") or 0),
                cls is SSLConnection,
            )
    return name_of(client)


def execute(client: Client, commands: Sequence[Command]) -> list[Any]:
    """Return the replies to commands, an exception in the place of each that failed.

    On a Cluster there is a round trip to each node concerned, and one more for each
    command whose slot has moved.

    Raises:
      redis.exceptions.RedisError: No server answered.
    """
    if isinstance(client, RedisCluster):
        with redis_errors():
            return _on_cluster(client, commands)
    if len(commands) == 1:
        # A poll, which is what happens most: spared the pipeline's overhead.
        try:
            return [_send(client, commands[0], is_fit(client))]
        except errors.ResponseError as e:
            return [e]
    return _pipeline(client, commands)


def text(value: str | bytes) -> str:
    """Return what a reply says, whatever its bytes are."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _on_cluster(client: RedisCluster, commands: Sequence[Command]) -> list[Any]:
    places: dict[str, list[int]] = {}
    nodes: dict[str, Any] = {}
    for i, command in enumerate(commands):
        node = client.get_node_from_key(command.key)  # type: ignore[no-untyped-call]
        nodes[node.name] = node
        places.setdefault(node.name, []).append(i)
    replies: list[Any] = [None] * len(commands)
    lost = 0
    for name, indexes in places.items():
        try:
            found = _pipeline(
                client.get_redis_connection(nodes[name]),
                [commands[i] for i in indexes],
            )
        except (errors.ConnectionError, errors.TimeoutError) as e:
            found = [e] * len(indexes)
            lost += 1
        for i, reply in zip(indexes, found, strict=True):
            if isinstance(reply, MOVED):
                # This client knows the way, and learns the new one.
                reply = _alone(client, commands[i])
            replies[i] = reply
    if lost:
        # Another node may have taken over: the next try is to find it.
        with contextlib.suppress(errors.RedisError, errors.RedisClusterException):
            client.nodes_manager.initialize()
    if lost == len(places) > 0:
        raise next(reply for reply in replies if isinstance(reply, Exception))
    return replies


def _alone(client: RedisCluster, command: Command) -> Any:
    try:
        return _send(client, command, is_fit=False)
    except (errors.RedisError, errors.RedisClusterException) as e:
        return e


def _pipeline(client: Redis, commands: Sequence[Command]) -> list[Any]:
    fit = is_fit(client)
    with client.pipeline(transaction=False) as pipe:
        for command in commands:
            _send(pipe, command, fit)
        return pipe.execute(raise_on_error=False)


def is_fit(client: Redis) -> bool:
    """Whether a client reads and writes UTF-8, and any bytes: one that we made does."""
    options = client.connection_pool.connection_kwargs
    return (
        options.get("encoding_errors") == "replace"
        and options.get("encoding", "utf-8") == "utf-8"
    )


def _send(client: Client, command: Command, is_fit: bool) -> Any:
    if is_fit:
        return client.execute_command(*command.args)  # type: ignore[no-untyped-call]
    # Strict decoding would fail in mid-answer, and the connection give the rest of it
    # to the next command. So bytes come back, and bytes are sent.
    name, *words = command.args
    args = (
        word.encode("utf-8", "replace") if isinstance(word, str) else word
        for word in words
    )
    return client.execute_command(name, *args, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]


def is_hopeless(error: Exception) -> bool:
    """Whether a command will always fail: another program has written its key."""
    return isinstance(error, errors.ResponseError) and "WRONGTYPE" in str(error)


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Within this context what a Cluster raises is a RedisError, as all else is."""
    try:
        yield
    except errors.RedisClusterException as e:
        raise errors.ConnectionError(str(e)) from e
