"""pytest fixtures for the tests of an application.

In a ``conftest.py``::

    pytest_plugins = ["pyramid_jobstate.fixtures"]

`job_outbox` and `run_jobs` need a fixture `app` that returns the application, and
`run_jobs` one `testapp` that returns its WebTest ``TestApp``, as in the projects that
Pyramid's cookiecutter makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .embedded import EmbeddedServer
from .job.state import JobState
from .store.jobstore import JobStore
from .testing import Clerk, Outbox
from .testing import run_jobs as run_jobs_of
from .worker.ledger import global_broker

if TYPE_CHECKING:
    from pyramid.registry import Registry
    from pyramid.router import Router


__all__ = ["job_outbox", "job_store", "jobstate_server", "run_jobs"]


@pytest.fixture(scope="session")
def jobstate_server() -> Iterator[EmbeddedServer]:
    """A real Redis-compatible server, private to this test session."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def job_store(
    request: pytest.FixtureRequest, jobstate_server: EmbeddedServer
) -> Iterator[JobStore]:
    """A store on the `jobstate_server`, emptied before each test. If the test uses the
    fixture `app`, that application reads from it.
    """
    from .web.interfaces import IJobStore

    store = JobStore(jobstate_server.url)
    store.client.flushdb()
    if "app" in request.fixturenames:
        registry = _registry(request.getfixturevalue("app"))
        with _utility(registry, store, IJobStore):
            yield store
    else:
        yield store
    store.client.close()


@pytest.fixture
def job_outbox(app: Router) -> Iterator[Outbox]:
    """What the application sends in this test: messages and their JobStates. They are
    neither written nor sent, whether or not the transaction commits. Those that
    ``actor.send()`` sends without a request are among them, and the steps of pipelines.
    """
    from .web.interfaces import IOutbox

    clerk = Clerk()
    with _utility(_registry(app), clerk, IOutbox), clerk.instead_of(global_broker()):
        yield clerk.outbox


@pytest.fixture
def run_jobs(
    app: Router, testapp: Any, job_outbox: Outbox
) -> Callable[[], list[JobState]]:
    """A function that runs the jobs in the `job_outbox`, and those that they send, in
    the test's own transaction. It returns their JobStates: see
    :func:`pyramid_jobstate.testing.run_jobs`.
    """
    return lambda: run_jobs_of(_registry(app), testapp.extra_environ)


def _registry(app: Any) -> Registry:
    """Return the registry of an application, or of the one that a TestApp wraps."""
    return getattr(app, "app", app).registry


@contextlib.contextmanager
def _utility(registry: Registry, component: Any, interface: Any) -> Iterator[None]:
    """Have a registry use a component for the time of a test."""
    before = registry.queryUtility(interface)
    registry.registerUtility(component, interface)
    try:
        yield
    finally:
        registry.unregisterUtility(component, interface)
        if before is not None:
            registry.registerUtility(before, interface)
