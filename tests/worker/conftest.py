"""What the tests of the worker side share."""

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware
from pyramid_jobstate.resources import JobStates
from tests.jobs import make_broker
from tests.webapp import make_request


@pytest.fixture
def broker(redis_url: str) -> RedisBroker:
    """A broker with the middleware appended to Dramatiq's own."""
    return make_broker(redis_url)


@pytest.fixture
def alice(app: TestApp) -> JobStates:
    """The job_states of a request of Alice's."""
    states: JobStates = make_request(app.app, "alice").job_states
    return states


@pytest.fixture
def stub(redis_url: str) -> dramatiq.Broker:
    """A broker that needs no server. The states of its jobs are kept all the same."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=redis_url))
    return broker
