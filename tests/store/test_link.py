"""Links: connections on which a server says by itself what has changed."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.cache import CacheConfig
from redis.connection import BlockingConnectionPool, ConnectionPool

from pyramid_jobstate.embedded import EmbeddedServer
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
from tests.support import frozen, wait_for
from tests.tls import tls_server

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


def told(said: list[Said]) -> set[str]:
    """Return the keys that are said to have changed."""
    changes = [each.keys or () for each in said if isinstance(each, Changed)]
    return {key for keys in changes for key in keys}


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


def test_a_link_tells_once_of_a_change(link: Link, client: redis.Redis) -> None:
    """A key that was read is said to have changed, once until it is read again."""
    client.hset("a", "x", 1)
    assert read(link, "a") == [{"x": "1"}]
    client.hset("a", "x", 2)
    client.hset("a", "x", 3)
    assert hear_one(link) == Changed(["a"])
    assert read(link, "a") == [{"x": "3"}]
    client.hset("a", "x", 4)
    assert hear_one(link) == Changed(["a"])


def test_a_link_says_to_what_an_answer_belongs(link: Link, client: redis.Redis) -> None:
    """Answers come in order, with the questions and what they were asked for."""
    client.hset("b", "x", 1)
    questions = [Question("a", 1), Question("b", 2)]
    link.read(questions)
    assert link.waiting == 2
    said = hear(link, lambda said: len(said) == 2)
    assert said == [Answer(questions[0], {}), Answer(questions[1], {"x": "1"})]
    assert link.waiting == 0


@pytest.mark.parametrize("how", ["create", "delete", "expire", "expire-now", "rename"])
def test_every_kind_of_change_is_told(
    link: Link, client: redis.Redis, how: str
) -> None:
    """Creation, deletion, expiry and replacement of a key count as changes."""
    if how != "create":
        client.hset("a", "x", 1)
    if how == "expire":
        client.pexpire("a", 30)
    client.hset("b", "x", 1)
    read(link, "a")
    if how == "create":
        client.hset("a", "x", 1)
    elif how == "delete":
        client.delete("a")
    elif how == "expire-now":
        client.pexpire("a", -1)
    elif how == "rename":
        client.rename("b", "a")
    assert hear_one(link) == Changed(["a"])


def test_an_emptied_server_has_changed_all_keys(
    link: Link, client: redis.Redis
) -> None:
    """FLUSHALL and FLUSHDB change all keys."""
    for flush in client.flushall, client.flushdb:
        client.hset("a", "x", 1)
        read(link, "a")
        flush()
        assert hear(link, lambda said: Changed(None) in said)[-1] == Changed(None)


def test_a_full_table_of_keys_counts_as_change(server: EmbeddedServer) -> None:
    """A server that can no longer remember a key says that it has changed."""
    with redis.Redis.from_url(server.url) as client, linked(client) as link:
        client.config_set("tracking-table-max-keys", 10)
        keys = [f"k{i}" for i in range(30)]
        link.read([Question(key, None) for key in keys])
        said = hear(link, lambda said: len(said) >= 50)
        assert sum(isinstance(each, Changed) for each in said) >= 20


def test_an_answer_that_is_an_error_is_given(link: Link, client: redis.Redis) -> None:
    """A key of another type answers with its error."""
    client.set("a", "x")
    (reply,) = read(link, "a")
    assert isinstance(reply, redis.ResponseError)
    assert str(reply).startswith("WRONGTYPE")


def test_bytes_that_are_not_text_are_tolerated(link: Link, client: redis.Redis) -> None:
    """Invalid UTF-8 in a hash is replaced."""
    client.hset("a", "x", b"\xff")
    assert read(link, "a") == [{"x": "\ufffd"}]


def test_a_check_gives_the_time(link: Link, client: redis.Redis) -> None:
    """A check is answered with the server's clock."""
    link.check()
    assert link.waiting == 1
    clock = hear_one(link)
    assert isinstance(clock, Clock)
    seconds, micros = client.time()
    assert -5 < clock.seconds + clock.micros / 1e6 - seconds - micros / 1e6 <= 0


def test_a_check_that_fails_raises() -> None:
    """A server that refuses to tell the time is as good as lost."""
    with pulled(b"-BUSY running a script\r\n") as (_, link):
        link.check()
        with pytest.raises(redis.ResponseError, match="BUSY"):
            hear_one(link)


def test_five_thousand_changes_may_precede_a_reply(
    link: Link, client: redis.Redis
) -> None:
    """Any number of messages between two replies is received, all of them."""
    keys = [f"k{i}" for i in range(5000)]
    read(link, *keys)
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hset(key, "x", 1)
        pipe.execute()
    link.read([Question("last", None)])
    *changes, last = hear(
        link, lambda said: any(isinstance(each, Answer) for each in said)
    )
    assert isinstance(last, Answer)
    assert told(changes) == set(keys)


def test_changes_may_come_between_replies(link: Link, client: redis.Redis) -> None:
    """Messages among the replies to many questions leave each its own reply."""
    keys = [f"k{i}" for i in range(100)]
    for key in keys:
        client.hset(key, "x", key)
    for _ in range(20):
        link.read([Question(key, None) for key in keys])
        for key in keys[::3]:
            client.hset(key, "y", "1")
    said = hear(
        link, lambda said: sum(isinstance(each, Answer) for each in said) >= 2000
    )
    answers = [each for each in said if isinstance(each, Answer)]
    assert all(answer.reply["x"] == answer.question.key for answer in answers)
    assert any(isinstance(each, Changed) for each in said[:-1])


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


def test_a_reply_may_be_large(link: Link, client: redis.Redis) -> None:
    """A reply much larger than what is received at a time arrives whole."""
    client.hset("a", "x", "y" * 5_000_000)
    (reply,) = read(link, "a")
    assert reply == {"x": "y" * 5_000_000}


def test_questions_may_be_larger_than_the_send_buffer(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More questions than the system's buffers hold are sent as the server reads."""
    keys = ["x" * 100_000] * 200
    with redis.Redis.from_url(server.url) as client, linked(client) as link:
        wait = link._wait

        def wait_for_server(event: int, deadline: float) -> bool:
            os.kill(server.pid, signal.SIGCONT)
            return wait(event, deadline)

        monkeypatch.setattr(link, "_wait", wait_for_server)
        with frozen(server):
            assert read(link, *keys) == [{}] * 200


def test_a_server_that_does_not_read_is_given_up(server: EmbeddedServer) -> None:
    """Sending ends with an error after half a second in which nothing is accepted."""
    with redis.Redis.from_url(server.url) as client, linked(client) as link:
        keys = [Question("x" * 100_000, None)] * 200
        with frozen(server), pytest.raises(redis.TimeoutError, match="read"):
            link.read(keys)


def test_silence_is_since_the_question_or_the_last_sign_of_life() -> None:
    """While replies are awaited, silence counts from the question, or from when
    anything came since.
    """
    with pulled() as (puppet, link):
        assert link.silence(time.monotonic() + 9) == 0
        before = time.monotonic()
        link.read([Question("a", None)] * 2)
        asked = time.monotonic()
        assert 9 <= link.silence(asked + 9) <= 9 + asked - before
        puppet.say(b"%0\r\n")
        hear_one(link)
        heard = time.monotonic()
        assert 9 <= link.silence(heard + 9) <= 9 + heard - asked
        puppet.say(b"%0\r\n")
        hear_one(link)
        assert link.silence(time.monotonic() + 9) == 0


def test_a_server_that_hangs_up_is_lost() -> None:
    """The end of the connection is an error."""
    with pulled() as (puppet, link):
        puppet.hang_up()
        with pytest.raises(redis.ConnectionError, match="closed"):
            hear_one(link)


def test_a_broken_connection_is_lost(link: Link) -> None:
    """An error of the system's is one of Redis, in receiving and in sending."""
    link._sock.close()
    with pytest.raises(redis.ConnectionError, match="lost"):
        list(link.receive())
    with pytest.raises(redis.ConnectionError, match="lost"):
        link.check()


def test_what_is_not_the_protocol_is_an_error() -> None:
    """Bytes outside the protocol end the connection."""
    with pulled() as (puppet, link):
        puppet.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(redis.ConnectionError):
            hear_one(link)


def test_a_reply_without_question_is_an_error() -> None:
    """A reply to nothing would be taken for that to the next question."""
    with pulled() as (puppet, link):
        puppet.say(b"-ERR going down\r\n")
        with pytest.raises(redis.ConnectionError, match="unasked: ERR going down"):
            hear_one(link)


def test_a_reply_without_question_is_not_shown() -> None:
    """The log must not hold what a job keeps secret."""
    with pulled() as (puppet, link):
        puppet.say(b"*2\r\n$6\r\nparams\r\n$6\r\nsecret\r\n")
        with pytest.raises(redis.ConnectionError, match="unasked: list") as caught:
            hear_one(link)
        assert "secret" not in str(caught.value)


def test_replies_out_of_order_are_an_error() -> None:
    """A list where a hash was asked for shows that a reply was lost on the way."""
    with pulled() as (puppet, link):
        link.read([Question("jobstate:x", None)])
        puppet.say(b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n")
        with pytest.raises(redis.ConnectionError, match="out of order, with a list"):
            hear_one(link)


def test_messages_may_precede_the_greeting(client: redis.Redis) -> None:
    """Messages that come while the link begins do not pass for replies."""
    push = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
    greeting = GREETING[0], push + GREETING[1]
    with (
        Puppet(*[b"+OK\r\n"] * 2, *greeting, b"%0\r\n") as puppet,
        redis.Redis(port=puppet.port, protocol=2) as client,
        linked(client) as link,
    ):
        assert read(link, "a") == [{}]


def test_a_server_that_does_not_greet_is_no_refusal() -> None:
    """A server that falls silent in the greeting is not answering, for now."""
    with (
        Puppet(b"+OK\r\n", b"+OK\r\n", b"") as puppet,
        redis.Redis(port=puppet.port, protocol=2) as client,
        pytest.raises(redis.TimeoutError, match="does not answer"),
    ):
        Link(client)


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script",
        "ERR max number of clients reached",
    ],
)
def test_an_error_that_passes_is_no_refusal(error: str) -> None:
    """A server that is loading or busy may accept the same later."""
    with (
        Puppet(*[b"+OK\r\n"] * 2, b"-%b\r\n" % error.encode()) as puppet,
        redis.Redis(port=puppet.port, protocol=2) as client,
        pytest.raises(redis.ConnectionError, match=f"HELLO 3: {error}"),
    ):
        Link(client)


def test_a_server_without_resp3_refuses(redis_url: str) -> None:
    """An old server, or a proxy, does not know HELLO."""
    with (
        relaying(redis_url, {"HELLO 3": "ERR unknown command 'HELLO'"}) as relay,
        redis.Redis.from_url(relay.url, protocol=2) as client,
        pytest.raises(TrackingRefused, match="HELLO 3: ERR unknown command"),
    ):
        Link(client)


def test_a_server_may_forbid_tracking(server: EmbeddedServer) -> None:
    """An ACL that forbids CLIENT TRACKING refuses, and leaves no connection."""
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser(
            "jobs", enabled=True, nopass=True, keys=["*"], commands=["+@all"]
        )
        client.execute_command("ACL", "SETUSER", "jobs", "-client|tracking")
        url = server.url.replace("redis://", "redis://jobs:x@")
        with (
            redis.Redis.from_url(url) as own,
            pytest.raises(TrackingRefused, match="CLIENT TRACKING ON: NOPERM"),
        ):
            Link(own)
        wait_for(lambda: len(client.client_list()) == 1)


def test_an_old_hiredis_refuses(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hiredis that cannot tell messages from replies, nothing is connected."""
    monkeypatch.setattr("pyramid_jobstate.store.tracking.link.CAN_TRACK", False)
    with pytest.raises(TrackingRefused, match="hiredis"):
        Link(client)


def test_a_server_that_is_away_is_no_refusal(server: EmbeddedServer) -> None:
    """A link to a server that is away, or frozen, fails soon, however patient the
    client is.
    """
    with redis.Redis.from_url(server.url, socket_timeout=None) as client:
        begun = time.monotonic()
        with frozen(server), pytest.raises(redis.TimeoutError):
            Link(client)
        assert time.monotonic() - begun < 5
        server.stop()
        with pytest.raises(redis.ConnectionError):
            Link(client)


def works(client: redis.Redis, writer: redis.Redis | None = None) -> bool:
    """Return whether a link to a client's server tells of a change."""
    writer = writer or client
    with linked(client) as link:
        writer.hset("a", "x", "ä")
        (reply,) = read(link, "a")
        writer.delete("a")
        return reply == {"x": "ä"} and hear_one(link) == Changed(["a"])


@pytest.mark.parametrize(
    "options",
    [
        {"decode_responses": True},
        {"decode_responses": False},
        {"encoding": "latin-1"},
        {"protocol": 2},
        {"protocol": 3},
        {"client_name": "web"},
        {"db": 3},
        {"health_check_interval": 1},
        {"single_connection_client": True},
        {"max_connections": 1},
        {"socket_timeout": None},
    ],
    ids=str,
)
def test_a_client_may_have_any_options(redis_url: str, options: Any) -> None:
    """A link works whatever options the application's client has."""
    with redis.Redis.from_url(redis_url, **options) as client:
        writer = redis.Redis.from_url(redis_url, db=options.get("db", 0))
        with writer:
            assert works(client, writer)


def test_a_link_bears_the_name_of_its_client(redis_url: str) -> None:
    """An operator finds links in CLIENT LIST under the client's name."""
    with (
        redis.Redis.from_url(redis_url, client_name="web") as client,
        linked(client),
    ):
        names = [c["name"] for c in client.client_list() if "t" in c["flags"]]
        assert names == ["web"]


def test_a_link_is_no_connection_of_a_limited_pool(redis_url: str) -> None:
    """A pool that may open one connection serves its application beside a link."""
    for cls in ConnectionPool, BlockingConnectionPool:
        options: dict[str, Any] = {"max_connections": 1}
        if cls is BlockingConnectionPool:
            options["timeout"] = 1
        with redis.Redis(connection_pool=cls.from_url(redis_url, **options)) as client:
            with linked(client), linked(client):
                assert client.ping()
            client.connection_pool.disconnect()


def test_a_client_may_cache_on_its_side(redis_url: str) -> None:
    """The cache of a client that tracks keys itself does not get in the way."""
    with (
        redis.Redis.from_url(redis_url, protocol=3, cache_config=CacheConfig()) as own,
        redis.Redis.from_url(redis_url) as writer,
    ):
        assert works(own, writer)


def test_a_pool_of_the_applications_own_lends_a_connection(redis_url: str) -> None:
    """Only such a pool knows how it connects. It gets its connection back, closed."""
    pool = LendingPool.from_url(redis_url)
    with redis.Redis(connection_pool=pool) as client:
        with linked(client) as link:
            assert pool.lent == 1
            assert read(link, "a") == [{}]
        assert pool.lent == 0
        assert client.ping()
    pool.disconnect()


def test_a_pool_whose_connections_hide_their_socket_refuses(redis_url: str) -> None:
    """Nobody could hear what such a connection is told."""

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

    pool = WrappingPool.from_url(redis_url)
    with redis.Redis(connection_pool=pool) as client:
        with pytest.raises(TrackingRefused, match="socket"):
            Link(client)
        assert pool.lent == 0
    pool.disconnect()


def test_a_link_logs_in(server: EmbeddedServer) -> None:
    """A link has the user and the password of its client."""
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser(
            "jobs", enabled=True, passwords=["+hunter2"], keys=["*"], commands=["+@all"]
        )
        client.acl_setuser("default", enabled=False)
    url = server.url.replace("redis://", "redis://jobs:hunter2@")
    for protocol in 2, 3:
        with redis.Redis.from_url(url, protocol=protocol) as own:
            assert works(own)


def test_a_link_may_use_a_unix_socket(tmp_path: Path) -> None:
    """A link connects over a Unix socket as its client does."""
    path = tmp_path / "s"
    with (
        EmbeddedServer(arguments=["--unixsocket", str(path)]),
        redis.Redis.from_url(f"unix://{path}") as client,
    ):
        assert works(client)


def test_a_link_may_use_tls(tmp_path: Path) -> None:
    """A link works over TLS: large replies, many questions, many changes."""
    with tls_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        assert works(client)
        with linked(client) as link:
            client.hset("a", "x", "y" * 1_000_000)
            assert read(link, "a") == [{"x": "y" * 1_000_000}]
            keys = [f"{i:0500}" for i in range(3000)]
            assert read(link, *keys) == [{}] * 3000
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hset(key, "x", 1)
                pipe.execute()
            said = hear(link, lambda said: len(said) >= 3000)
            assert told(said) == set(keys)


def test_a_link_is_closed_at_the_server(client: redis.Redis) -> None:
    """A closed link leaves no connection."""

    def count() -> int:
        """Return how many clients the server tells of changes."""
        return sum("t" in c["flags"] for c in client.client_list())

    before = count()
    with linked(client):
        assert count() == before + 1
    wait_for(lambda: count() <= before)


def test_an_abandoned_link_goes_on_elsewhere(link: Link, client: redis.Redis) -> None:
    """A child of this process closes its descriptor and leaves the connection open."""
    pid = os.fork()
    if pid == 0:
        link.abandon()
        link.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert read(link, "a") == [{}]
