"""Batches for the tests of the store."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.cluster import cluster_of_one
from tests.store.bed import Bed


@pytest.fixture
def make_bed(store: JobStore) -> Iterator[Callable[..., Bed]]:
    """Sends a batch, in the usual store or another."""
    with contextlib.ExitStack() as stack:

        def make(count: int = 3, store: JobStore = store, **options: Any) -> Bed:
            bed = Bed(store, count, **options)
            return stack.enter_context(contextlib.closing(bed))

        yield make


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    """A batch of three members."""
    return make_bed()


@pytest.fixture(scope="module", params=["server", "cluster"])
def modelled(
    redis_server: EmbeddedServer, request: pytest.FixtureRequest
) -> Iterator[JobStore]:
    """The stores that are compared with models."""
    if request.param == "server":
        yield JobStore(redis.Redis.from_url(redis_server.url))
        return
    with cluster_of_one() as node:
        yield JobStore(redis.RedisCluster(host="127.0.0.1", port=node.port))
