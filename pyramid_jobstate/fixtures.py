"""pytest fixtures: an embedded server and a store on it.

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
    """A real Redis-compatible server, private to this test session."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def job_store(jobstate_server: EmbeddedServer) -> Iterator[JobStore]:
    """A store on the `jobstate_server`, emptied before each test."""
    store = JobStore(jobstate_server.url)
    store.client.flushdb()
    yield store
    store.client.close()
