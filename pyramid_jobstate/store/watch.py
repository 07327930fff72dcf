"""Jobs that are watched: read on connections on which Redis announces their changes.

Imported by :mod:`pyramid_jobstate.web.push` only, so that workers, and processes whose
pages poll, do without it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import hiredis
from redis import Redis, RedisCluster
from redis import exceptions as errors
from redis.sentinel import SentinelConnectionPool

from ..job.record import BATCH_MARK
from .batches import is_waiting, stop
from .claims import MAX_ALIASES, named
from .connection import (
    FAIL_FAST,
    PASSING,
    POOLS,
    Client,
    in_use,
    is_full,
    is_passing,
    node_named,
    primary_of,
    redis_errors,
    text,
    texts,
)
from .reader import Reader, skip

if TYPE_CHECKING:
    from ..job.record import Record
    from ..job.state import JobState
    from .batches import Batches

#: Seconds that a server may take to accept what is sent to it.
TIMEOUT = 0.5

#: Bytes that are received at a time.
RECEIVED = 65536


class TrackingRefused(errors.RedisError):
    """A server does not tell clients of changes, or does not allow it to this one."""


class Question(NamedTuple):
    """A key to read, and what the caller wants to know it for."""

    key: str
    cause: Any


class KeyReply(NamedTuple):
    """The reply to a question: a mapping, or an exception."""

    question: Question
    reply: Any


class Changed(NamedTuple):
    """Keys that have changed since they were read. None stands for all of them."""

    keys: Sequence[str] | None


class Clock(NamedTuple):
    """The server's time, in seconds and microseconds."""

    seconds: int
    micros: int


class Link:
    """A connection with ``CLIENT TRACKING``: the server remembers the keys that are
    read on it. When one changes, expires or is deleted, it says so once, in order with
    its replies, so that nothing can be missed between a read and the first message.

    Reading does not block: the replies are received as they arrive. One thread uses a
    link, but any may create it.

    Parameters:
      client: The client of the server. The link connects as its pool does.

    Raises:
      TrackingRefused: The server does not support tracking, or refuses it.
      redis.exceptions.RedisError: The server does not answer.
    """

    def __init__(self, client: Redis) -> None:
        # Older versions return what a server says by itself as if it were a reply.
        if not hasattr(hiredis, "PushNotification"):
            raise TrackingRefused("the installed hiredis is older than 3.0")
        self._pool = client.connection_pool
        self._is_own = type(self._pool) in (*POOLS, SentinelConnectionPool)
        self._connection: Any
        if self._is_own:
            # A link keeps its connection: it must not fill a pool that has a limit.
            options = {**self._pool.connection_kwargs, **FAIL_FAST}
            self._connection = self._pool.connection_class(**options)
            self._connection.connect()
        else:
            # Only the application knows how its pool connects.
            try:
                self._connection = self._pool.get_connection()
            except errors.ConnectionError as e:
                if is_full(e):
                    raise in_use(client) from e
                raise
        # It decodes nothing: see `is_fit`.
        self._reader = hiredis.Reader(
            protocolError=errors.ConnectionError, replyError=errors.ResponseError
        )
        #: The questions whose replies are awaited, None for the clock, each with the
        #: time at which it was asked.
        self._asked: deque[tuple[Question | None, float]] = deque()
        self._heard_at = 0.0
        try:
            # redis-py has no public way to wait for what a server says by itself.
            sock: socket.socket | None = getattr(self._connection, "_sock", None)
            if sock is None:
                raise TrackingRefused("the client's connections show no socket")
            self._sock = sock
            self._fileno = sock.fileno()
            sock.setblocking(False)
            for words in ("HELLO", "3"), ("CLIENT", "TRACKING", "ON"):
                self._require(words)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to receive."""
        return self._fileno

    @property
    def waiting(self) -> int:
        """How many replies are awaited."""
        return len(self._asked)

    def silence(self, now: float) -> float:
        """Return for how many seconds nothing has come though a reply is awaited."""
        return now - max(self._asked[0][1], self._heard_at) if self._asked else 0.0

    def read(self, questions: Sequence[Question]) -> None:
        """Ask for hashes, and to be told of their next change.

        Raises:
          redis.exceptions.RedisError: The server does not accept it.
        """
        now = time.monotonic()
        self._asked += [(question, now) for question in questions]
        self._send(b"".join([_pack("HGETALL", key) for key, _ in questions]))

    def check(self) -> None:
        """Ask for the server's time.

        Raises:
          redis.exceptions.RedisError: The server does not accept it.
        """
        self._asked.append((None, time.monotonic()))
        self._send(_pack("TIME"))

    def receive(self) -> Iterator[KeyReply | Changed | Clock]:
        """Yield what the server has sent.

        Raises:
          redis.exceptions.RedisError: The connection is lost, or a reply is broken.
        """
        try:
            yield from self._messages()
        except (AttributeError, IndexError, TypeError, ValueError) as e:
            # Something between us has mixed up what both say, so that a key is a list,
            # for one. The log must not hold the rest of the error: see below.
            name = type(e).__name__
            raise errors.ConnectionError(f"A reply is broken: {name}.") from e

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._connection.disconnect()
        if not self._is_own:
            self._pool.release(self._connection)

    def abandon(self) -> None:
        """Close the descriptor of a forked process, which shares the connection."""
        self._sock.close()

    def _messages(self) -> Iterator[KeyReply | Changed | Clock]:
        # A flat loop: redis-py's own calls itself for each message, and ends at the
        # limit of recursion if a thousand precede a reply.
        for reply in self._replies():
            if isinstance(reply, hiredis.PushNotification):
                if reply[0] == b"invalidate":
                    yield Changed(reply[1] and [text(key) for key in reply[1]])
                continue
            if not self._asked:
                # Only an error is shown: the log must not hold what a job keeps secret.
                said = reply if isinstance(reply, Exception) else type(reply).__name__
                raise errors.ConnectionError(f"The server says unasked: {said}")
            question, _ = self._asked.popleft()
            if question is not None and isinstance(reply, dict):
                yield KeyReply(question, texts(reply))
            elif question is not None and isinstance(reply, Exception):
                yield KeyReply(question, reply)
            elif question is None and isinstance(reply, list):
                yield Clock(int(reply[0]), int(reply[1]))
            elif isinstance(reply, Exception):
                raise reply
            else:
                # Something between us has lost a reply, so that none can be trusted.
                raise errors.ConnectionError(
                    f"The server replies out of order, with a {type(reply).__name__}."
                )

    def _replies(self) -> Iterator[Any]:
        while True:
            try:
                data = self._sock.recv(RECEIVED)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as e:
                raise errors.ConnectionError(f"The connection is lost: {e}") from e
            if not data:
                raise errors.ConnectionError("The server closed the connection.")
            self._heard_at = time.monotonic()
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                yield reply

    def _require(self, words: Sequence[str]) -> None:
        """Run a command that the server has to accept."""
        self._send(_pack(*words))
        deadline = time.monotonic() + TIMEOUT
        while True:
            for reply in self._replies():
                if isinstance(reply, errors.ResponseError):
                    refusal = f"{' '.join(words)}: {reply}"
                    if is_passing(reply):
                        raise errors.ConnectionError(refusal)
                    raise TrackingRefused(refusal)
                if not isinstance(reply, hiredis.PushNotification):
                    return
            if not self._wait(selectors.EVENT_READ, deadline):
                raise errors.TimeoutError("The server does not answer.")

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + TIMEOUT
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not self._wait(selectors.EVENT_WRITE, deadline):
                    raise errors.TimeoutError("The server does not read.") from None
            except OSError as e:
                raise errors.ConnectionError(f"The connection is lost: {e}") from e

    def _wait(self, event: int, deadline: float) -> bool:
        # Not select(), which fails for descriptors above 1,023.
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, event)
            return bool(selector.select(max(0, deadline - time.monotonic())))


def _pack(*words: str) -> bytes:
    # Its stub only knows commands of one word.
    packed: bytes = hiredis.pack_command(cast("Any", words))
    return packed


#: How the errors begin of a Cluster node that does not hold a key, and of a server that
#: does not read it at present.
ELSEWHERE = ("MOVED ", "ASK ", *PASSING)


class Tracker:
    """Reads jobs on links: see :class:`Link`.

    Parameters:
      client: The store's client.
      reader: Its reader.
      make: Makes the job of a record, or returns None if its class raises.
      members: Looks at the members of silent batches.
    """

    def __init__(
        self,
        client: Client,
        reader: Reader,
        make: Callable[[Record], JobState | None],
        members: Batches,
    ) -> None:
        # Kept, since isinstance() is slow for classes of redis-py.
        self._cluster = client if isinstance(client, RedisCluster) else None
        self._client = client
        self._reader = reader
        self.make = make
        #: Returns the server's time in milliseconds.
        self.now = reader.now
        self.set_clock = reader.set_clock
        self._members = members

    def keys_of(self, uuid: str, found: Mapping[str, Any]) -> frozenset[str]:
        """Return the keys on which the state of a job depends.

        Parameters:
          found: The replies to those keys that have been read. What they say may add
            further keys.
        """
        led = self._led(uuid, found)
        key = self._reader.key(uuid)
        if len(led) > 1:
            return frozenset(map(self._reader.key, led))
        batch = self._batch_of(uuid, found.get(key))
        return frozenset((key,) if batch is None else (key, self._reader.key(batch)))

    def record(self, uuid: str, found: Mapping[str, Any]) -> Record | None:
        """Return the record of a job, or None if the store has none.

        Parameters:
          found: The replies to the keys of the job.

        Raises:
          redis.exceptions.RedisError: A reply is an error.
        """
        key = self._reader.key(uuid)
        target = self._led(uuid, found)[-1]
        if target == uuid:
            record = self._reader.record(uuid, found[key])
            batch = self._batch_of(uuid, found[key])
            if record is not None and batch is not None:
                stop(record, *self._stop_of(self._reader.key(batch), found))
            return record
        record = self._reader.record(target, found[self._reader.key(target)])
        return None if record is None else named(record, uuid)

    def may_look(self, record: Record) -> bool:
        """Return whether to look at the members of a job: see
        :meth:`.Batches.may_look`.
        """
        return self._members.may_look(record)

    def look(self, record: Record) -> None:
        """Look at members of a silent batch, which takes round trips: see
        :meth:`.Batches.look`.
        """
        self._members.look_at_silent([record])

    def _led(self, uuid: str, found: Mapping[str, Any]) -> list[str]:
        """Return the uuid of a job, and those to which aliases lead from there, one
        after the other, as far as that has been read.
        """
        led = [uuid]
        while len(led) <= MAX_ALIASES:
            alias = self._reader.alias(led[-1], found.get(self._reader.key(led[-1])))
            if alias is None:
                break
            led.append(alias.target)
        return led

    def _batch_of(self, uuid: str, reply: Any) -> str | None:
        """Return the uuid of the batch on which a job depends that does not run, or
        None.
        """
        if not isinstance(reply, dict) or reply.get("batch") in (None, BATCH_MARK):
            return None
        record = self._reader.record(uuid, reply)
        return record.batch if record and is_waiting(record) else None

    def _stop_of(
        self, key: str, found: Mapping[str, Any]
    ) -> tuple[str | None, str | None]:
        """Return when a batch was cancelled, and its status, as far as they were read.

        Raises:
          redis.exceptions.RedisError: The reply is an error that will pass.
        """
        reply = found.get(key, {})
        if isinstance(reply, Exception):
            skip(key, reply)
            return None, None
        return reply.get("stopped"), reply.get("status")

    def server_of(self, key: str) -> str:
        """Return the name of the server that holds a key: of a Cluster's primary.

        Raises:
          redis.exceptions.RedisError: The Cluster has none.
        """
        if self._cluster is None:
            return ""
        with redis_errors():
            return primary_of(self._cluster, key).name

    def connect(self, server: str) -> Link:
        """Return a new link to a server.

        Raises:
          TrackingRefused: The server does not tell of changes.
          redis.exceptions.RedisError: It does not answer.
        """
        client = self._client
        if not isinstance(client, RedisCluster):
            return Link(client)
        with redis_errors():
            node = node_named(client, server)
            if node is None:
                raise errors.ConnectionError(f"{server} has left the Cluster.")
            return Link(client.get_redis_connection(node))

    def refresh(self) -> None:
        """Learn anew which server of a Cluster holds which keys.

        Raises:
          redis.exceptions.RedisError: No server answers.
        """
        if self._cluster is not None:
            with redis_errors():
                self._cluster.nodes_manager.initialize()


def is_elsewhere(reply: object) -> bool:
    """Return whether a reply says to look for a key again, perhaps elsewhere."""
    return isinstance(reply, errors.ResponseError) and str(reply).startswith(ELSEWHERE)
