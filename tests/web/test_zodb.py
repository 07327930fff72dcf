"""Jobs in the resource tree of an application whose root is kept in a ZODB."""

import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import transaction
from persistent.mapping import PersistentMapping
from pyramid.authorization import Allow
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp
from ZODB import DB
from ZODB.FileStorage import FileStorage

from pyramid_jobstate.resources import JobStates
from tests.readme import snippets
from tests.support import UUID
from tests.webapp import ADMIN, ask, get, make_tm_config, put_job


@pytest.fixture
def site_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The persistent root of the README, in a module where ZODB finds it."""
    (snippet,) = [text for text in snippets("python") if "PersistentMapping" in text]
    module = types.ModuleType("persistent_site")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(snippet, module.__dict__)
    return module.__dict__["Site"]


@pytest.fixture
def zodb(site_class: Any, tmp_path: Path) -> Iterator[DB]:
    """A database with a site in which admins may do everything with jobs."""
    database = DB(FileStorage(str(tmp_path / "Data.fs")))
    with database.transaction() as connection:
        connection.root()["site"] = site = site_class()
        site.__acl__ = [(Allow, ADMIN, ("view_job", "cancel_job", "list_jobs"))]
        site["news"] = PersistentMapping()
    yield database
    database.close()


@pytest.fixture
def zodb_config(redis_url: str, zodb: DB) -> Configurator:
    """The configurator of an application with that database."""

    def root_factory(request: Request) -> Any:
        connection = zodb.open(request.tm)
        request.add_finished_callback(lambda request: connection.close())
        return connection.root()["site"]

    def visit(context: Any, request: Request) -> Response:
        request.root["jobs"].list()
        request.root["visits"] = request.root.get("visits", 0) + 1
        return Response("Welcome")

    config = make_tm_config(redis_url, root_factory=root_factory)
    config.include("pyramid_jobstate")
    config.add_view(visit, name="visit")
    return config


@pytest.fixture
def zodb_app(zodb_config: Configurator) -> TestApp:
    return TestApp(zodb_config.make_wsgi_app())


def test_jobs_are_served_in_the_persistent_tree(
    zodb_app: TestApp, client: redis.Redis
) -> None:
    """A persistent root serves jobs through a container that it makes per request."""
    job = put_job(client)

    response = get(zodb_app, f"/jobs/{job}", "alice")
    assert response.json["job"]["url"] == f"http://localhost/jobs/{job}/"
    assert response.json["job"]["cancellable"] is True
    assert get(zodb_app, f"/jobs/{job}", "bob").status_code == 403
    assert get(zodb_app, f"/jobs/{job}", ADMIN).status_code == 200
    assert get(zodb_app, f"/jobs/{UUID}", "alice").status_code == 404
    assert get(zodb_app, "/jobs?all=1").status_code == 403
    assert get(zodb_app, "/jobs?all=1", ADMIN).json["items"] == []
    assert get(zodb_app, "/news", "alice").status_code == 404
    response = ask(
        zodb_app, "POST", f"/jobs/{job}/cancel", "alice", X_Requested_With="x"
    )
    assert response.status_code == 202


def test_persistent_root_decides_at_our_own_path(
    zodb_app: TestApp, client: redis.Redis
) -> None:
    """The ACL of a persistent root also applies to /job_state."""
    job = put_job(client)

    assert get(zodb_app, f"/job_state/{job}", ADMIN).status_code == 200
    assert get(zodb_app, f"/job_state/{job}", "bob").status_code == 403


def test_nothing_of_a_request_is_stored(zodb_app: TestApp, zodb: DB) -> None:
    """A request that changes the root stores its changes, but no container."""
    get(zodb_app, "/visit", "alice")
    get(zodb_app, "/visit", "bob")

    with zodb.transaction() as connection:
        site = connection.root()["site"]
        stored, _ = zodb.storage.load(site._p_oid)
        assert site["visits"] == 2
        assert dict.keys(site.data) == {"news", "visits"}
    assert b"JobStates" not in stored
    assert b"equest" not in stored


def test_container_in_the_database_is_refused(
    zodb_app: TestApp, zodb: DB, site_class: Any
) -> None:
    """A container in the database stops the commit. The error says what to do."""
    connection = zodb.open()
    root = connection.root()["site"]
    request = Request.blank("/")
    PersistentMapping.__setitem__(root, "jobs", JobStates(request, root, "jobs"))

    with pytest.raises(TypeError, match=r"cannot be stored\..*__getitem__"):
        transaction.commit()

    transaction.abort()
    connection.close()
    with zodb.transaction() as connection:
        assert dict.keys(connection.root()["site"].data) == {"news"}


def test_container_is_not_pickled() -> None:
    """A container cannot be pickled."""
    with pytest.raises(TypeError, match="serves one request"):
        pickle.dumps(JobStates(Request.blank("/")))
