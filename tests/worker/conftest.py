"""What the tests of the worker side share."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.resources import JobStates
from tests.jobs import make_broker, messages
from tests.relay import Relay, relaying
from tests.webapp import make_request
from tests.worker.floors import Floor, MakeFloor

#: Returns what the package has logged so far, at WARNING and above or at a level.
Logged = Callable[..., list[str]]


@pytest.fixture
def broker(redis_url: str) -> RedisBroker:
    """A broker with the middleware appended to Dramatiq's own."""
    return make_broker(redis_url)


@pytest.fixture(params=["appended", "before", "without"])
def place(request: pytest.FixtureRequest, redis_url: str) -> tuple[str, RedisBroker]:
    """The middleware's place (after Retries, before it, or without it) and a broker."""
    name = request.param
    before = Retries if name == "before" else None
    without = Retries if name == "without" else None
    return name, make_broker(redis_url, before=before, without=without)


@pytest.fixture
def alice(app: TestApp) -> JobStates:
    states: JobStates = make_request(app.app, "alice").job_states
    return states


@pytest.fixture
def stub(redis_url: str) -> dramatiq.Broker:
    """A broker that needs no server. The states of its jobs are kept all the same."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=redis_url))
    return broker


@pytest.fixture
def make_floor(request: pytest.FixtureRequest, store: JobStore) -> Iterator[MakeFloor]:
    """Makes floors, whose jobs end with the test. Viewers read `store`."""
    for name in {"relay", "proxy", "named"}.intersection(request.fixturenames):
        # They go after the floors, which have to write the last ends.
        request.getfixturevalue(name)
    floors: list[Floor] = []

    def make(own: JobStore | None = None, **options: Any) -> Floor:
        floors.append(Floor(store, own, **options))
        return floors[-1]

    yield make
    for floor in floors:
        floor.close()


@pytest.fixture
def floor(make_floor: MakeFloor) -> Floor:
    return make_floor()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    return lambda level=logging.WARNING: messages(caplog, "pyramid_jobstate", level)


@pytest.fixture
def own(redis_url: str) -> JobStore:
    """The store of a worker, which the test takes away."""
    return JobStore(redis_url)


@pytest.fixture
def slow(relay: Relay) -> JobStore:
    """The store of a worker, whose client is more patient than a job. It may freeze."""
    return JobStore(redis.Redis.from_url(relay.url, socket_timeout=60))


@pytest.fixture
def relay(redis_url: str) -> Iterator[Relay]:
    with relaying(redis_url) as relay:
        yield relay


@pytest.fixture
def named(client: redis.Redis, redis_url: str) -> Iterator[str]:
    """The URL of a user of the server who may do everything at first."""
    client.acl_setuser(
        "worker", enabled=True, passwords=["+word"], categories=["+@all"], keys=["*"]
    )
    yield redis_url.replace("redis://", "redis://worker:word@")
    client.acl_deluser("worker")
