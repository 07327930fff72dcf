"""Batches for the tests of the store."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.store.bed import Bed
from tests.webapp import make_app, make_tm_config


@pytest.fixture(scope="session")
def batch_config(redis_server: EmbeddedServer) -> Configurator:
    """The configurator of an application that sends batches."""
    config = make_tm_config(redis_server.url)
    make_app(config)
    return config


@pytest.fixture
def make_bed(
    batch_config: Configurator, store: JobStore
) -> Iterator[Callable[..., Bed]]:
    """Sends a batch, in the usual store or another."""
    with contextlib.ExitStack() as stack:

        def make(count: int = 3, store: JobStore = store, **options: Any) -> Bed:
            return stack.enter_context(Bed(batch_config, store, count, **options))

        yield make


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    """A batch of three members."""
    return make_bed()
