"""What the tests of the worker side share."""

import pytest
from dramatiq.brokers.redis import RedisBroker

from tests.jobs import make_broker


@pytest.fixture
def broker(redis_url: str) -> RedisBroker:
    """A broker with the middleware appended to Dramatiq's own."""
    return make_broker(redis_url)
