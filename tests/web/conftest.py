"""Fixtures of the web tests: applications, requests and a global broker."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq.broker
import pytest
from dramatiq import Broker
from pyramid.config import Configurator
from transaction.interfaces import NoTransaction
from webtest import TestApp

from pyramid_jobstate.embedded import EmbeddedServer
from tests.asgi import Server, pushing
from tests.counters import SQL
from tests.running import Runs, running
from tests.web.operating import operated_app
from tests.web.paging import Visit, Visiting, paged_app
from tests.webapp import (
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
    make_tm_config,
    mounted_root,
    renewed,
)


@pytest.fixture
def global_broker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Dramatiq's global broker, with the actors run_marathon and sweep."""
    broker = make_broker(redis_url)
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SQL]:
    """A database in a file, which an application may include."""
    with contextlib.closing(SQL(f"sqlite:///{tmp_path / 'counter'}")) as database:
        yield database


@pytest.fixture
def config(redis_url: str) -> Configurator:
    """The configurator of a finished application, with jobs at three places."""
    return made_config(redis_url, root_factory=mounted_root)


@pytest.fixture
def tm_config(redis_url: str) -> Configurator:
    """The configurator of an application that has included only pyramid_tm."""
    return make_tm_config(redis_url)


@pytest.fixture
def made_tm_config(tm_config: Configurator) -> Configurator:
    """The configurator of a finished application with pyramid_tm."""
    make_app(tm_config)
    return tm_config


@pytest.fixture
def job_states(made_tm_config: Configurator) -> Iterator[Any]:
    """The job_states of a request of Alice's whose transaction has begun."""
    request = make_request(made_tm_config, "alice")
    request.tm.begin()
    yield request.job_states
    with contextlib.suppress(NoTransaction):
        request.tm.abort()


#: Makes an application once: that takes as long as many tests.
make_once = functools.cache(lambda make, redis_url: make(redis_url))


@pytest.fixture
def operated(redis_url: str) -> TestApp:
    """An application with operators, whose jobs are at three places."""
    return renewed(make_once(operated_app, redis_url))


@pytest.fixture
def paged(redis_url: str) -> TestApp:
    """An application with operators and pages, whose jobs are at three places."""
    return renewed(make_once(paged_app, redis_url))


@pytest.fixture
def visit(paged: TestApp) -> Visiting:
    """Visits a path of `paged`, as an operator or another user."""
    return functools.partial(Visit, paged)


@pytest.fixture(scope="module")
def shared_pushed(redis_server: EmbeddedServer) -> Iterator[Server]:
    """What `pushed` renews."""
    settings = {"jobstate.max_streams": "30"}
    config = make_config(redis_server.url, root_factory=mounted_root, settings=settings)
    with pushing(config) as server:
        yield server


@pytest.fixture
def pushed(shared_pushed: Server, redis_url: str) -> Iterator[Server]:
    """An application that streams, whose jobs are at three places."""
    yield shared_pushed
    shared_pushed.close()


@pytest.fixture
def runs(redis_url: str) -> Iterator[Runs]:
    """Jobs that do what the test says."""
    with running(redis_url) as runs:
        yield runs
