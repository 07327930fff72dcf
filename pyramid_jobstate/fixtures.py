"""pytest fixtures: an embedded server, and a store in it.

In a ``conftest.py``::

    pytest_plugins = ["pyramid_jobstate.fixtures"]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .embedded import EmbeddedServer
from .store import JobStore


@pytest.fixture(scope="session")
def jobstate_server() -> Iterator[EmbeddedServer]:
    """A real Redis-compatible server of these tests' own."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def job_store(jobstate_server: EmbeddedServer) -> Iterator[JobStore]:
    """A store in the `jobstate_server`, empty at the start of each test."""
    store = JobStore(jobstate_server.url)
    store.client.flushdb()
    yield store
    store.client.close()
