"""Links: connections on which a server says by itself what has changed.

What they are for is tested with streams. Here is what no stream shows: bytes that a
server says in odd pieces, or should not say, and the clients from which links are made.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.cache import CacheConfig
from redis.connection import BlockingConnectionPool, ConnectionPool

from pyramid_jobstate.store.tracking import (
    Answer,
    Changed,
    Clock,
    Link,
    Question,
    TrackingRefused,
)
from tests.hubs import LendingPool
from tests.relay import Puppet, relaying

Said = Answer | Changed | Clock

#: What a server answers to HELLO and CLIENT TRACKING.
GREETING = b"%1\r\n$5\r\nproto\r\n:3\r\n", b"+OK\r\n"


def hear(link: Link, enough: Callable[[list[Said]], object]) -> list[Said]:
    """Return what a link receives until that is enough."""
    said: list[Said] = []
    deadline = time.monotonic() + 20
    with selectors.DefaultSelector() as selector:
        selector.register(link.fileno(), selectors.EVENT_READ)
        while not enough(said):
            assert selector.select(deadline - time.monotonic()), said
            said += link.receive()
    return said


def hear_one(link: Link) -> Said:
    """Return the one thing that a link receives next."""
    (said,) = hear(link, len)
    return said


def read(link: Link, *keys: str) -> list[Any]:
    """Return the replies to reading keys."""
    link.read([Question(key, None) for key in keys])
    said = hear(link, lambda said: len(said) >= len(keys))
    return [each.reply for each in said if isinstance(each, Answer)]


@contextlib.contextmanager
def linked(client: redis.Redis) -> Iterator[Link]:
    """Have a link to a client's server."""
    link = Link(client)
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def pulled(*replies: bytes) -> Iterator[tuple[Puppet, Link]]:
    """Have a link to a puppet that replies so after its greeting."""
    with (
        Puppet(*[b"+OK\r\n"] * 2, *GREETING, *replies) as puppet,
        redis.Redis(port=puppet.port, protocol=2) as client,
        linked(client) as link,
    ):
        yield puppet, link


@pytest.fixture
def link(client: redis.Redis) -> Iterator[Link]:
    """A link to the shared server."""
    with linked(client) as link:
        yield link


def test_a_reply_may_come_in_pieces() -> None:
    """Replies and messages are understood wherever the network cuts them."""
    stream = (
        b"%1\r\n$1\r\na\r\n$1\r\n1\r\n"
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nb\r\n"
        b">2\r\n$7\r\nunknown\r\n$1\r\nb\r\n"
        b"%1\r\n$1\r\nx\r\n$2\r\n\xc3\xa4\r\n"
    )
    with pulled() as (puppet, link):
        link.read([Question("a", 1), Question("b", 2)])
        said: list[Said] = []
        for i in range(len(stream)):
            puppet.say(stream[i : i + 1])
            wait_readable(link)
            said += link.receive()
        assert said == [
            Answer(Question("a", 1), {"a": "1"}),
            Changed(["b"]),
            Answer(Question("b", 2), {"x": "ä"}),
        ]


def wait_readable(link: Link) -> None:
    """Wait until a link has something to receive."""
    with selectors.DefaultSelector() as selector:
        selector.register(link.fileno(), selectors.EVENT_READ)
        assert selector.select(20)


def test_what_a_server_should_not_say_is_an_error() -> None:
    """Bytes outside the protocol, a reply to no question or of the wrong type end the
    connection. The error does not show what may be secret.
    """
    cases: list[tuple[int, bytes, str]] = [
        (0, b"HTTP/1.1 400 Bad Request\r\n\r\n", "."),
        (0, b"-ERR going down\r\n", "unasked: ERR going down"),
        (0, b"*2\r\n$6\r\nparams\r\n$6\r\nsecret\r\n", "unasked: list"),
        (1, b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n", "out of order, with a list"),
    ]
    for questions, said, match in cases:
        with pulled() as (puppet, link):
            link.read([Question("jobstate:x", None)] * questions)
            puppet.say(said)
            with pytest.raises(redis.ConnectionError, match=match) as caught:
                hear_one(link)
            assert "secret" not in str(caught.value)
    with pulled() as (puppet, link):
        puppet.hang_up()
        with pytest.raises(redis.ConnectionError, match="closed"):
            hear_one(link)


def test_server_may_refuse_for_good_or_for_now(redis_url: str) -> None:
    """A server without RESP3 refuses. One that is loading, busy or silent may accept
    the same later.
    """
    with (
        relaying(redis_url, {"HELLO 3": "ERR unknown command 'HELLO'"}) as relay,
        redis.Redis.from_url(relay.url, protocol=2) as client,
        pytest.raises(TrackingRefused, match="HELLO 3: ERR unknown command"),
    ):
        Link(client)
    for error in (
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script",
        "ERR max number of clients reached",
    ):
        with (
            Puppet(*[b"+OK\r\n"] * 2, b"-%b\r\n" % error.encode()) as puppet,
            redis.Redis(port=puppet.port, protocol=2) as client,
            pytest.raises(redis.ConnectionError, match=f"HELLO 3: {error}"),
        ):
            Link(client)
    with (
        Puppet(b"+OK\r\n", b"+OK\r\n", b"") as puppet,
        redis.Redis(port=puppet.port, protocol=2) as client,
        pytest.raises(redis.TimeoutError, match="does not answer"),
    ):
        Link(client)


def works(client: redis.Redis, writer: redis.Redis | None = None) -> bool:
    """Return whether a link to a client's server tells of a change."""
    writer = writer or client
    with linked(client) as link:
        writer.hset("a", "x", "ä")
        (reply,) = read(link, "a")
        writer.delete("a")
        return reply == {"x": "ä"} and hear_one(link) == Changed(["a"])


def test_client_may_have_any_options(redis_url: str) -> None:
    """A link works whatever options the application's client has, and is no connection
    of a limited pool.
    """
    options: list[dict[str, Any]] = [
        {"decode_responses": True},
        {"encoding": "latin-1"},
        {"protocol": 2},
        {"protocol": 3, "cache_config": CacheConfig()},
        {"db": 3},
        {"health_check_interval": 1},
        {"single_connection_client": True},
        {"max_connections": 1},
        {"socket_timeout": None},
    ]
    for each in options:
        with (
            redis.Redis.from_url(redis_url, **each) as client,
            redis.Redis.from_url(redis_url, db=each.get("db", 0)) as writer,
        ):
            assert works(client, writer), each
    for cls in ConnectionPool, BlockingConnectionPool:
        pool = cls.from_url(redis_url, max_connections=1)
        with redis.Redis(connection_pool=pool) as client:
            with linked(client), linked(client):
                assert client.ping()
            pool.disconnect()


def test_pool_of_the_applications_own_lends_a_connection(redis_url: str) -> None:
    """Only such a pool knows how it connects. It gets its connection back, closed; one
    whose connections hide their sockets refuses.
    """

    class Wrapper:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def disconnect(self) -> None:
            self.connection.disconnect()

    class WrappingPool(LendingPool):
        def get_connection(self, *args: Any, **kwargs: Any) -> Any:
            return Wrapper(super().get_connection(*args, **kwargs))

        def release(self, connection: Any) -> None:
            super().release(getattr(connection, "connection", connection))

    pool = LendingPool.from_url(redis_url)
    with redis.Redis(connection_pool=pool) as client:
        with linked(client) as link:
            assert pool.lent == 1
            assert read(link, "a") == [{}]
        assert pool.lent == 0
        assert client.ping()
    pool.disconnect()
    pool = WrappingPool.from_url(redis_url)
    with redis.Redis(connection_pool=pool) as client:
        with pytest.raises(TrackingRefused, match="socket"):
            Link(client)
        assert pool.lent == 0
    pool.disconnect()


def test_an_abandoned_link_goes_on_elsewhere(link: Link, client: redis.Redis) -> None:
    """A child of this process closes its descriptor and leaves the connection open."""
    pid = os.fork()
    if pid == 0:
        link.abandon()
        link.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert read(link, "a") == [{}]
