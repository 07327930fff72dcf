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
from tests.functional.test_readme import snippets
from tests.support import UUID
from tests.webapp import ADMIN, ask, get, make_config, put_job


@pytest.fixture
def site_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The persistent root of the README, in a module that ZODB finds it in."""
    (snippet,) = [text for text in snippets("python") if "PersistentMapping" in text]
    module = types.ModuleType("persistent_site")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(snippet, module.__dict__)
    return module.__dict__["Site"]


@pytest.fixture
def database(site_class: Any, tmp_path: Path) -> Iterator[DB]:
    """A database with a site in it, in which admins may do everything with jobs."""
    database = DB(FileStorage(str(tmp_path / "Data.fs")))
    with database.transaction() as connection:
        connection.root()["site"] = site = site_class()
        site.__acl__ = [(Allow, ADMIN, ("view_job", "cancel_job", "list_jobs"))]
        site["news"] = PersistentMapping()
    yield database
    database.close()


@pytest.fixture
def config(redis_url: str, database: DB) -> Configurator:
    """The configurator of an application with that database."""

    def root_factory(request: Request) -> Any:
        connection = database.open(request.tm)
        request.add_finished_callback(lambda request: connection.close())
        return connection.root()["site"]

    def visit(context: Any, request: Request) -> Response:
        request.root["jobs"].list()
        request.root["visits"] = request.root.get("visits", 0) + 1
        return Response("Welcome")

    settings = {"tm.manager_hook": "pyramid_tm.explicit_manager"}
    config = make_config(redis_url, settings=settings, root_factory=root_factory)
    config.include("pyramid_tm")
    config.include("pyramid_jobstate")
    config.add_view(visit, name="visit")
    return config


@pytest.fixture
def app(config: Configurator) -> TestApp:
    return TestApp(config.make_wsgi_app())


def test_jobs_are_served_in_the_persistent_tree(
    app: TestApp, client: redis.Redis
) -> None:
    """A persistent root that makes the container of each request serves its jobs."""
    job = put_job(client)

    response = get(app, f"/jobs/{job}", "alice")
    assert response.json["job"]["url"] == f"http://localhost/jobs/{job}/"
    assert response.json["job"]["cancellable"] is True
    assert get(app, f"/jobs/{job}", "bob").status_code == 403
    assert get(app, f"/jobs/{job}", ADMIN).status_code == 200
    assert get(app, f"/jobs/{UUID}", "alice").status_code == 404
    assert get(app, "/jobs?all=1").status_code == 403
    assert get(app, "/jobs?all=1", ADMIN).json["items"] == []
    assert get(app, "/news", "alice").status_code == 404
    response = ask(app, "POST", f"/jobs/{job}/cancel", "alice", X_Requested_With="x")
    assert response.status_code == 202


def test_persistent_root_decides_at_our_own_path(
    app: TestApp, client: redis.Redis
) -> None:
    """Its ACL holds for /job_state as well."""
    job = put_job(client)

    assert get(app, f"/job_state/{job}", ADMIN).status_code == 200
    assert get(app, f"/job_state/{job}", "bob").status_code == 403


def test_nothing_of_a_request_is_stored(app: TestApp, database: DB) -> None:
    """A request that changes the root stores what it changed, and no container."""
    get(app, "/visit", "alice")
    get(app, "/visit", "bob")

    with database.transaction() as connection:
        site = connection.root()["site"]
        stored, _ = database.storage.load(site._p_oid)
        assert site["visits"] == 2
        assert dict.keys(site.data) == {"news", "visits"}
    assert b"JobStates" not in stored
    assert b"equest" not in stored


def test_container_in_the_database_is_refused(
    app: TestApp, database: DB, site_class: Any
) -> None:
    """A container that is put there stops the commit, and the error says what to do."""
    connection = database.open()
    root = connection.root()["site"]
    request = Request.blank("/")
    PersistentMapping.__setitem__(root, "jobs", JobStates(request, root, "jobs"))

    with pytest.raises(TypeError, match=r"cannot be stored\..*__getitem__"):
        transaction.commit()

    transaction.abort()
    connection.close()
    with database.transaction() as connection:
        assert dict.keys(connection.root()["site"].data) == {"news"}


def test_container_is_not_pickled() -> None:
    """Nor does any other pickle hold one."""
    with pytest.raises(TypeError, match="serves one request"):
        pickle.dumps(JobStates(Request.blank("/")))
