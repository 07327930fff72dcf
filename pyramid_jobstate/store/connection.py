"""Connecting to Redis, and round trips to a single server or a Cluster."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import unquote, urlsplit

from redis import Redis, RedisCluster
from redis import exceptions as errors
from redis.backoff import ConstantBackoff
from redis.client import NEVER_DECODE
from redis.cluster import ClusterNode
from redis.connection import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ResponseError, SlotNotCoveredError
from redis.retry import Retry

Client = Redis | RedisCluster

#: The options of our own clients. redis-py's defaults block for seconds, but users wait
#: for the web side's answers, and the recorder retries by itself.
FAIL_FAST: dict[str, Any] = {
    # See `is_fit`. It is also the faster one for hashes.
    "protocol": 2,
    "decode_responses": True,
    "encoding_errors": "replace",
    "socket_timeout": 0.5,
    "socket_connect_timeout": 0.5,
    "retry": Retry(ConstantBackoff(0.05), 1),
}

#: The most connections of a client of ours, unless an application says otherwise.
MAX_CONNECTIONS = 100

#: The most that one may be allowed. A server accepts 10,000 in all.
MOST_CONNECTIONS = 9999

#: The suffix of a URL scheme that marks a Cluster node.
CLUSTER = "+cluster"

SCHEMES = ("redis", "rediss", "unix", f"redis{CLUSTER}", f"rediss{CLUSTER}")

#: The errors after which a call may have been carried out, or not.
LOST = (errors.ConnectionError, errors.TimeoutError)

#: What a server answers while it starts, or while another takes over. `is_passing`
#: knows the errors without a class of their own.
AWAY = (*LOST, errors.ReadOnlyError, errors.ClusterDownError, errors.TryAgainError)

#: What more patience does not help against.
HOPELESS = (errors.AuthenticationError, errors.AuthorizationError)

#: The errors of a Cluster node that does not hold a key, or does not hold it yet.
MOVED = (errors.MovedError, errors.AskError, errors.TryAgainError)

#: The names of the local host, which count as equal.
LOCALHOST = frozenset({"localhost", "127.0.0.1", "::1"})

#: The texts of the errors of a redis-py pool that has waited for a connection, and of a
#: pool of a redis-py that has no class for it yet.
FULL = ("No connection available.", "Too many connections")

#: The prefixes of errors that will pass.
PASSING = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "ERR max number of clients",
)


class Address(NamedTuple):
    """The address of a single server. The path of a Unix socket counts as the host."""

    host: str
    port: int
    db: int
    is_tls: bool


class ConnectionsInUse(errors.RedisError):
    """Raised if no connection becomes free. The call has not been made.

    Neither redis-py's ConnectionError nor its TimeoutError, which say that the server
    does not answer.
    """

    def __init__(self, number: int | None) -> None:
        all_ = "All" if number is None else f"All {number}"
        super().__init__(f"{all_} connections to the store are in use.")


def connect(url: str, max_connections: int = MAX_CONNECTIONS) -> Client:
    """Return a client that fails fast: half-second timeouts and one retry.

    Parameters:
      url: A URL in redis-py's format. The schemes ``redis+cluster`` and
        ``rediss+cluster`` name any node of a Cluster.
      max_connections: The most connections to a server, unless the URL has an option
        of that name.

    Raises:
      ValueError: The URL is invalid. The error does not quote the URL or chain another
        exception, because any part may belong to a password.
      redis.exceptions.RedisError: No node of the Cluster answers.
    """
    fault = _fault_of(url)
    if fault is None:
        try:
            return _connect(url, max_connections)
        except Exception as e:
            if url.partition(":")[0].endswith(CLUSTER) and isinstance(
                e, errors.RedisError
            ):
                # Only the client of a Cluster connects when it is created.
                raise
            fault = "an option after its ? is unknown or has an invalid value"
    # Raised outside the handler, which would chain the original exception.
    raise ValueError(
        f"The URL of the Redis server is invalid: {fault}. Use the form "
        "redis://user:password@localhost:6379/0, with special characters in the "
        "password percent-encoded: # as %23, / as %2F, ? as %3F, @ as %40, [ as %5B."
    )


def impatient(client: Redis, max_connections: int = MAX_CONNECTIONS) -> Redis | None:
    """Return a client for the same server that fails fast, or None if only the
    application knows how to connect.

    Parameters:
      max_connections: Its most connections.
    """
    pool = client.connection_pool
    if type(pool) not in POOLS:
        return None
    kwargs = {
        name: value
        for name, value in {**pool.connection_kwargs, **FAIL_FAST}.items()
        # The server's notices of maintenance require RESP3.
        if not name.startswith("maint_")
    }
    own = PatientPool(
        connection_class=pool.connection_class,
        max_connections=max_connections,
        **kwargs,
    )
    return Redis(connection_pool=own)


def _connect(url: str, max_connections: int) -> Client:
    scheme, colon, rest = url.partition(":")
    if scheme.endswith(CLUSTER):
        scheme = scheme.removesuffix(CLUSTER)
        with redis_errors():
            return RedisCluster.from_url(
                scheme + colon + rest,
                connection_pool_class=PatientPool,
                max_connections=max_connections,
                **FAIL_FAST,
            )
    pool = PatientPool.from_url(url, max_connections=max_connections, **FAIL_FAST)
    # Unknown options in the URL are rejected only here.
    pool.connection_class(**pool.connection_kwargs)
    return Redis.from_pool(pool)


def _fault_of(url: str) -> str | None:
    """Return what is wrong with a URL without quoting it, or None. redis-py misreads
    some URLs: redis://:12/34@host as port 12 without a password.
    """
    scheme, _, rest = url.partition("://")
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if scheme not in SCHEMES:
        return f"its scheme must be one of {', '.join(SCHEMES)}"
    if re.search(r"[\0-\x1f\x7f]", url):
        return "it contains a line break or another control character"
    if "#" in tail or "@" in tail:
        return "a # or @ follows its host"
    if re.search(r"[\[\]].*@", authority):
        return "a [ or ] precedes its host"
    path = unquote(tail.partition("?")[0])
    if scheme != "unix" and not re.fullmatch(r"(/[0-9]*/?)?", path):
        return "its path is not a database number"
    if scheme.endswith(CLUSTER) and re.match(
        r"/0*[1-9]|.*[?&]db=0*[1-9]", unquote(tail)
    ):
        return "a Cluster has no other database than 0"
    if scheme == "unix" and not path:
        # redis-py would connect to localhost.
        return "it has no path to a socket"
    try:
        _ = urlsplit(f"//{authority}").port
    except ValueError:
        return "its host or its port is invalid"
    return None


def name_of(client: Client) -> str:
    """Return a name for a client's server. It never contains a password."""
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
    """Return the place where a client keeps data: an Address, or a name if only the
    application knows how to connect.
    """
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


#: Stands for a reply that a Cut has left out.
LEFT_OUT = object()


class Cut:
    """Leaves out replies to HGETALL once those before take so many bytes in JSON. What
    is left out is freed as soon as it has been received.

    Parameters:
      most: How many bytes.

    Attributes:
      limit: The same, or less as long as other nodes have their turn later.
      size: The bytes of the replies that were kept.
    """

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self.size = 0

    def apply(self, pipe: Any) -> None:
        """Have a pipeline leave out replies."""
        read = pipe.response_callbacks.get("HGETALL")

        def keep(reply: Any, **options: Any) -> Any:
            if self.size >= self.limit:
                return LEFT_OUT
            found = reply if read is None else read(reply, **options)
            self.size += json_size([*found, *found.values()])
            return found

        # A pipeline shares those of its client.
        pipe.response_callbacks = {"HGETALL": keep}


def json_size(words: Sequence[Any]) -> int:
    """Return about how many bytes some words take in JSON, which may escape a character
    beyond ASCII with six bytes.

    Parameters:
      words: All str, or all bytes.
    """
    # Most words are ASCII, and a poll has many: joining them is fastest.
    whole = words[0][:0].join(words) if words else ""
    if whole.isascii():
        return len(whole)
    return len(json.dumps(text(whole)))


def execute_some(
    client: Client, commands: Sequence[Keyed], most: int
) -> tuple[list[Any], int]:
    """Return the replies to the first of some commands HGETALL, as many as fit into a
    number of bytes, and at least one, and how many bytes these are.
    """
    cut = Cut(most)
    replies = execute(client, commands, cut)
    if replies[0] is LEFT_OUT:
        # The client has tried again, and counted the first try.
        replies = execute(client, commands[:1])
    kept = replies.index(LEFT_OUT) if LEFT_OUT in replies else len(replies)
    return replies[:kept], cut.size


def execute(
    client: Client, commands: Sequence[Keyed], cut: Cut | None = None
) -> list[Any]:
    """Return the replies to commands, with an exception in place of each failed one.

    A Cluster takes one round trip to each node involved, and one more for each command
    whose slot has moved.

    Parameters:
      cut: Leaves out some of the replies, or None.

    Raises:
      redis.exceptions.RedisError: No server answered.
      ConnectionsInUse: No connection has become free.
    """
    # isinstance() alone is slow: the class is abstract.
    if type(client) is not Redis and isinstance(client, RedisCluster):
        with redis_errors():
            return _on_cluster(client, commands, cut)
    try:
        if len(commands) == 1:
            # A poll, the most frequent call: avoid the pipeline's overhead.
            send = _send if is_fit(client) else _send_bytes
            return [send(client, commands[0])]
        return _pipeline(client, commands, cut)
    except errors.ResponseError as e:
        if len(commands) == 1:
            return [e]
        raise
    except errors.ConnectionError as e:
        if is_full(e):
            raise in_use(client) from e
        raise


def text(value: str | bytes) -> str:
    """Return a reply as text. Invalid UTF-8 is replaced."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def texts(reply: Mapping[str | bytes, str | bytes]) -> dict[str, str]:
    """Return a reply to HGETALL as text."""
    return {text(name): text(value) for name, value in reply.items()}


def _on_cluster(
    client: RedisCluster, commands: Sequence[Keyed], cut: Cut | None
) -> list[Any]:
    places: dict[str, list[int]] = {}
    nodes: dict[str, Any] = {}
    for i, command in enumerate(commands):
        node = fresh_primary_of(client, command.key)
        nodes[node.name] = node
        places.setdefault(node.name, []).append(i)
    replies: list[Any] = [None] * len(commands)
    lost = failed = 0
    for turn, (name, indexes) in enumerate(places.items(), 1):
        if cut is not None:
            cut.limit = cut.most * turn // len(places)
        own = client.get_redis_connection(nodes[name])
        try:
            found = _pipeline(own, [commands[i] for i in indexes], cut)
        except (*LOST, ConnectionsInUse) as e:
            found = [in_use(own) if is_full(e) else e] * len(indexes)
            failed += 1
            lost += isinstance(found[0], LOST)
        for i, reply in zip(indexes, found, strict=True):
            if isinstance(reply, MOVED):
                # The Cluster client follows the redirection and remembers it.
                reply = _alone(client, commands[i])
            replies[i] = reply
    if lost:
        # A replica may have taken over: let the next try find it.
        with contextlib.suppress(errors.RedisError, errors.RedisClusterException):
            client.nodes_manager.initialize()
    if failed == len(places) > 0:
        raise next(reply for reply in replies if isinstance(reply, Exception))
    return replies


def _alone(client: RedisCluster, command: Keyed) -> Any:
    try:
        return _send_bytes(client, command)
    except (errors.RedisError, errors.RedisClusterException) as e:
        return in_use(client) if is_full(e) else e


def in_use(client: Client | None) -> ConnectionsInUse:
    """Return the error for a client that has no free connection."""
    pool = getattr(client, "connection_pool", None)
    return ConnectionsInUse(getattr(pool, "max_connections", None))


def is_full(error: Exception) -> bool:
    """Return whether an error says that all connections of a pool are in use."""
    if isinstance(error, errors.MaxConnectionsError):
        return True
    return isinstance(error, errors.ConnectionError) and str(error) in FULL


def _pipeline(
    client: Redis, commands: Sequence[Keyed], cut: Cut | None = None
) -> list[Any]:
    send = _send if is_fit(client) else _send_bytes
    with client.pipeline(transaction=False) as pipe:
        if cut is not None:
            cut.apply(pipe)
        for command in commands:
            send(pipe, command)
        return pipe.execute(raise_on_error=False)


def is_fit(client: Redis) -> bool:
    """Return whether a client uses UTF-8 and tolerates any bytes, as our own do. With
    RESP3, hiredis mixes up the values of a hash if two names in it decode to the same
    text.
    """
    options = client.connection_pool.connection_kwargs
    return (
        options.get("protocol") == 2
        and options.get("encoding_errors") == "replace"
        and options.get("encoding", "utf-8") == "utf-8"
    )


def _send(client: Client, command: Keyed) -> Any:
    # redis-py does not annotate this method.
    return client.execute_command(*command.args)  # type: ignore[no-untyped-call]


def _send_bytes(client: Client, command: Keyed) -> Any:
    """Send a command, and receive bytes. Strict decoding could fail in the middle of a
    reply, and the next command would read the rest of it.
    """
    name, *words = command.args
    args = (
        word.encode("utf-8", "replace") if isinstance(word, str) else word
        for word in words
    )
    return client.execute_command(name, *args, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def redis_errors(client: Client | None = None) -> Iterator[None]:
    """Turn a RedisClusterException, which is not a RedisError, into one, and tell a
    pool that is full from a server that does not answer.

    Parameters:
      client: The client that is called, if that is known.
    """
    try:
        yield
    except errors.ConnectionError as e:
        if is_full(e):
            raise in_use(client) from e
        raise
    except errors.RedisClusterException as e:
        raise errors.ConnectionError(str(e)) from e


def primary_of(client: RedisCluster, key: str) -> ClusterNode:
    """Return the primary that holds a key, as far as the client knows.

    Raises:
      SlotNotCoveredError: The client knows of none.
    """
    find = cast("Callable[[str], ClusterNode]", client.get_node_from_key)
    return find(key)


def fresh_primary_of(client: RedisCluster, key: str) -> ClusterNode:
    """Return the same. If the client knows of none, have it ask the Cluster first.

    Raises:
      redis.exceptions.RedisClusterException: No node holds the key.
    """
    try:
        return primary_of(client, key)
    except SlotNotCoveredError:
        # What the client knows dates from a time when no node held the slot.
        client.nodes_manager.initialize()
        return primary_of(client, key)


def node_named(client: RedisCluster, name: str) -> ClusterNode | None:
    """Return a node by its name, or None if it has left the Cluster."""
    find = cast("Callable[..., ClusterNode | None]", client.get_node)
    return find(node_name=name)


def is_passing(error: Exception) -> bool:
    """Return whether a server will not answer so for long. redis-py leaves out the
    prefix of the errors that it has a class for: see `redis.exceptions`.
    """
    return isinstance(error, ResponseError) and str(error).startswith(PASSING)


def passes(error: errors.RedisError) -> bool:
    """Return whether an error may pass by itself."""
    if isinstance(error, AWAY):
        return not isinstance(error, HOPELESS)
    return isinstance(error, ConnectionsInUse) or is_passing(error)


class Keyed(Protocol):
    """A command and the one key that it touches, by which a Cluster finds its node."""

    @property
    def key(self) -> str: ...

    @property
    def args(self) -> Sequence[str | int]: ...


class Command(NamedTuple):
    """A command other than a call of a script."""

    key: str
    args: Sequence[str | int]


class PatientPool(ConnectionPool):
    """Connections to a server. While all are in use, callers stand in line for one, as
    long as they would wait for the server: `socket_timeout`.

    redis-py's own pool that waits serves late comers first, takes longer, and may stay
    locked if an interrupt comes.

    Parameters:
      max_connections: The most connections.
      kwargs: As for a ConnectionPool.
    """

    def __init__(self, max_connections: int = MAX_CONNECTIONS, **kwargs: Any) -> None:
        patience = kwargs.get("socket_timeout")
        self._patience = (
            -1 if patience is None else min(patience, threading.TIMEOUT_MAX)
        )
        # An option in a URL is not checked.
        most = min(max_connections, MOST_CONNECTIONS)
        super().__init__(max_connections=most, **kwargs)

    def reset(self) -> None:
        # Called again in a forked child.
        #: One for each connection that is free or not made yet. No lock guards the
        #: tokens or the line. It would slow down each call, and a finalizer or a signal
        #: handler that releases a connection could wait for a lock of its own thread.
        self._tokens: list[None] = [None] * self.max_connections
        #: A lock for each caller that waits, released when it is handed a token.
        self._line: deque[threading.Lock] = deque()
        super().reset()

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if self._line or not self._tokens:
            self._wait()
        else:
            try:
                self._tokens.pop()
            except IndexError:
                # Another thread has taken it.
                self._wait()
        try:
            # If it does not connect, this releases it.
            return _get_connection(self)
        except errors.ConnectionError as e:
            if not is_full(e):
                raise
        # There was one token too many, since a fork.
        return self.get_connection()

    def release(self, connection: Any) -> None:
        try:
            ConnectionPool.release(self, connection)
        finally:
            self._tokens.append(None)
            if self._line:
                self._serve()

    def _serve(self) -> None:
        """Hand the tokens to those who wait, the first first."""
        while self._line and self._tokens:
            try:
                self._tokens.pop()
            except IndexError:
                # Another caller has taken it.
                return
            try:
                turn = self._line.popleft()
            except IndexError:
                # Another caller has served them. Somebody may wait again by now.
                self._tokens.append(None)
            else:
                turn.release()

    def _wait(self) -> None:
        """Wait for a token.

        Raises:
          ConnectionsInUse: None has come in time.
        """
        # A forked child has the tokens that were left in its parent.
        self._checkpid()
        turn = threading.Lock()
        turn.acquire()
        try:
            self._line.append(turn)
            # One may have been put back meanwhile.
            self._serve()
            if turn.acquire(timeout=self._patience) or not self._leave(turn):
                return
        except BaseException:
            # An interrupt.
            if not self._leave(turn):
                self._tokens.append(None)
                self._serve()
            raise
        if len(self._in_use_connections) >= self.max_connections:
            raise ConnectionsInUse(self.max_connections)
        # An interrupt has lost a token. The release of this connection makes up for it.

    def _leave(self, turn: threading.Lock) -> bool:
        """Leave the line. Return False if a token has been handed over meanwhile."""
        try:
            self._line.remove(turn)
        except ValueError:
            return False
        return True


#: Without its wrapper, which looks for deprecated arguments and takes longer than the
#: tokens do.
_get_connection = inspect.unwrap(ConnectionPool.get_connection)

#: The pools that only connect to one server.
POOLS = (ConnectionPool, BlockingConnectionPool, PatientPool)


class DeferredPool(PatientPool):
    """Connections to a server on 127.0.0.1.

    Parameters:
      find_port: Returns the server's port.
      max_connections: The most connections.
    """

    def __init__(self, find_port: Callable[[], int], max_connections: int) -> None:
        super().__init__(max_connections, host="127.0.0.1", port=0, **FAIL_FAST)
        self._find_port = find_port

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        # Not when the connection is made: the pool holds its lock then, and a process
        # that forks meanwhile would keep it locked.
        self.connection_kwargs["port"] = self._find_port()
        return super().get_connection(*args, **kwargs)


def deferred_client(
    find_port: Callable[[], int], max_connections: int = MAX_CONNECTIONS
) -> Redis:
    """Return a client that asks for its server's port when it connects.

    Parameters:
      find_port: Returns the port of a server on 127.0.0.1, which it may start.
      max_connections: Its most connections.
    """
    return Redis(connection_pool=DeferredPool(find_port, max_connections))
