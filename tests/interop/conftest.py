"""A real server, which the actors' broker and the applications' stores share."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import dramatiq.broker
import pytest
import redis

from pyramid_jobstate.embedded import EmbeddedServer

pytest.register_assert_rewrite("tests.interop.contract")


@pytest.fixture(scope="session")
def interop_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        os.environ["REDIS_URL"] = server.url
        yield server
        del os.environ["REDIS_URL"]


@pytest.fixture(scope="module")
def interop_actors() -> str:
    return "tests.interop.jobs"


@pytest.fixture(scope="module")
def interop_broker(
    interop_server: EmbeddedServer, interop_actors: str
) -> Iterator[Any]:
    """The broker of the actors, global during this module's tests."""
    before = dramatiq.broker.global_broker
    actors = importlib.import_module(interop_actors)
    dramatiq.set_broker(actors.broker)
    yield actors.broker
    dramatiq.broker.global_broker = before


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    """Empty the server before each test that uses it."""
    if "interop_broker" in request.fixturenames:
        server = request.getfixturevalue("interop_server")
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
