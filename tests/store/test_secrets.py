"""URLs with passwords, which must not show, and URLs that are ambiguous."""

import logging
import traceback
from typing import Any
from urllib.parse import quote

import pytest
import redis

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.webapp import make_config

#: Half a password before the character in its middle, and half behind it.
HALVES = ["hush", "hish"]

AMBIGUOUS = [
    "redis://:hush{}hish@localhost/0",
    "redis://bob:hush{}hish@localhost:6379/0",
    "rediss://:hush{}hish@localhost:6379/0",
    "redis://:hush{}hish@[::1]:6379/0",
    "unix://:hush{}hish@/tmp/redis.sock?db=0",
    "redis+cluster://:hush{}hish@127.0.0.1:1",
]

URLS = [
    *(url.format(sign) for url in AMBIGUOUS for sign in "#/[]?\n\r\t"),
    "redis://:12/hush@localhost",
    "redis://:12#hush@localhost",
    "redis://:12?hush@localhost",
    "redis://:12?x=hush@localhost",
    "redis://:12?hush=hish@localhost",
    "redis://:12/34?hush=hish@localhost",
    "redis://localhost:hush",
    "redis://localhost:hush/0",
    "redis://:hush℀@localhost/0",
    "redis://:hush@localhost:hish/0",
    "redis://:hush@localhost:99999/0",
    "redis://:hush@local[host/0",
    "redis://:hush@localhost/hish",
    "redis://:hush@localhost/1/2",
    "redis://:hush@localhost/+1",
    "redis://:hush@localhost/%31%2F2",
    "redis://:hush@localhost/0#",
    "redis+cluster://:hush@localhost/5",
    "redis+cluster://:hush@localhost?ssl=1&db=05",
    "redis://:hush@localhost/0#hish",
    "redis://:hush@localhost/0?db=x",
    "redis://:hush@localhost/0?hish=1",
    "redis://:hush@localhost/0?socket_timeout=hish",
    "rediss://:hush@localhost/0?ssl_cert_reqs=hish",
    "redis://:hush@localhost/0\n",
    " redis://:hush@localhost/0",
    "http://:hush@localhost/0",
    "hush://localhost",
    "hush",
    "//:hush@localhost",
    "redis:hush",
    "unix://:hush@?db=0",
    "redis+hush://localhost",
]


def everything_of(error: BaseException | None) -> str:
    """Return everything that could be printed of an error."""
    texts = []
    while error is not None:
        texts += [repr(error), str(error), repr(vars(error))]
        texts += traceback.format_exception(error, chain=False)
        chained = everything_of(error.__cause__)
        error = error.__context__
        texts.append(chained)
    return "".join(texts)


def start(url: str) -> Any:
    config = make_config(url)
    config.include("pyramid_jobstate")
    return config.make_wsgi_app()


MAKERS: dict[str, Any] = {
    "JobStore": JobStore,
    "middleware": lambda url: JobStateMiddleware(url=url),
    "setting": start,
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("url", URLS)
def test_nothing_of_a_password_shows(
    url: str, maker: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No part of an invalid URL appears in the error, its chain or the log, wherever
    the URL is given.
    """
    caplog.set_level(logging.DEBUG)

    with pytest.raises(Exception) as caught:  # noqa: PT011
        MAKERS[maker](url)

    shown = everything_of(caught.value) + caplog.text
    assert not [half for half in HALVES if half in shown]


@pytest.mark.parametrize("url", URLS)
def test_url_that_cannot_be_understood_is_a_value_error(url: str) -> None:
    """The error says what to do and chains no other."""
    with pytest.raises(ValueError, match="URL") as caught:
        JobStore(url)

    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [url.format(sign) for url in AMBIGUOUS[:4] for sign in "#/?"],
)
def test_error_of_an_ambiguous_url_shows_the_encoding(url: str) -> None:
    """The error shows how to encode an ambiguous password."""
    with pytest.raises(ValueError, match="%23"):
        JobStore(url)


def place_of(url: str) -> dict[str, Any]:
    client = JobStore(url).client
    assert isinstance(client, redis.Redis)
    kwargs = client.connection_pool.connection_kwargs
    names = ("host", "port", "db", "path", "username", "password")
    return {name: kwargs[name] for name in names if name in kwargs}


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://", {}),
        ("redis://localhost", {"host": "localhost"}),
        ("redis://localhost/", {"host": "localhost"}),
        ("redis://localhost:6380/3", {"host": "localhost", "port": 6380, "db": 3}),
        ("redis://localhost/3/", {"host": "localhost", "db": 3}),
        ("redis://localhost?db=3", {"host": "localhost", "db": 3}),
        ("redis://localhost/1?db=3", {"host": "localhost", "db": 3}),
        ("rediss://h:1/2", {"host": "h", "port": 1, "db": 2}),
        ("redis://:pw@h", {"host": "h", "password": "pw"}),
        (
            "redis://bob:pw@h/1",
            {"host": "h", "username": "bob", "password": "pw", "db": 1},
        ),
        ("redis://bob@h", {"host": "h", "username": "bob"}),
        ("redis://:p%23%2F%40%5B%3F%0Aw@h", {"host": "h", "password": "p#/@[?\nw"}),
        ("redis://:p@w@h", {"host": "h", "password": "p@w"}),
        ("redis://:p:w@h", {"host": "h", "password": "p:w"}),
        ("redis://[::1]:7/1", {"host": "::1", "port": 7, "db": 1}),
        ("redis://:pw@[::1]", {"host": "::1", "password": "pw"}),
        ("redis://h?socket_timeout=3&password=pw", {"host": "h", "password": "pw"}),
        ("unix:///tmp/redis.sock", {"path": "/tmp/redis.sock"}),
        ("unix:///tmp/redis.sock?db=2", {"path": "/tmp/redis.sock", "db": 2}),
        (
            "unix://bob@/tmp/redis.sock?db=2&password=pw",
            {"path": "/tmp/redis.sock", "db": 2, "username": "bob", "password": "pw"},
        ),
        ("unix://:pw@/tmp/a%40b", {"path": "/tmp/a@b", "password": "pw"}),
    ],
)
def test_url_of_every_documented_form_is_understood(
    url: str, place: dict[str, Any]
) -> None:
    """Every documented form of a URL is accepted, and the repr hides the password."""
    assert place_of(url) == place
    assert "pw" not in repr(JobStore(url))


@pytest.mark.parametrize("sign", ["#", "/", "[", "?", "@", "\n", "℀", "%", ":"])
def test_password_that_is_encoded_logs_in(server: EmbeddedServer, sign: str) -> None:
    """Any password works if it is percent-encoded."""
    password = f"hush{sign}hish"
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", password)

    place = server.url.removeprefix("redis://")
    store = JobStore(f"redis://:{quote(password, safe='')}@{place}")

    assert store.list() == ([], None)
    assert "hush" not in repr(store) and "hish" not in repr(store)


def test_cluster_that_does_not_answer_keeps_the_password() -> None:
    """The error of a Cluster that is away does not contain its URL."""
    url = "redis+cluster://bob:hush@127.0.0.1:1"

    with pytest.raises(redis.RedisError) as caught:
        JobStore(url)

    assert "hush" not in everything_of(caught.value)
