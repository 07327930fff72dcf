"""Jobs in the resource tree of an application whose root is kept in a ZODB."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from persistent.mapping import PersistentMapping
from pyramid.authorization import Allow
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp
from ZODB import DB
from ZODB.FileStorage import FileStorage

from pyramid_jobstate import JobStore
from pyramid_jobstate.resources import JobStates
from tests.readme import snippets
from tests.support import UUID
from tests.web.reading import put
from tests.webapp import ADMIN, get, make_tm_config


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
    yield database
    database.close()


@pytest.fixture
def zodb_app(redis_url: str, zodb: DB) -> TestApp:
    """An application with that database."""

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
    return TestApp(config.make_wsgi_app())


def test_jobs_are_served_in_the_persistent_tree(
    zodb_app: TestApp, store: JobStore
) -> None:
    """A persistent root serves jobs through a container that it makes per request, and
    its ACL also applies to /job_state.
    """
    job = put(store)
    shown = get(zodb_app, f"/jobs/{job}", "alice").json["job"]
    assert shown["url"] == f"http://localhost/jobs/{job}/"
    assert get(zodb_app, f"/jobs/{UUID}", "alice").status_code == 404
    for place in "/jobs", "/job_state":
        assert get(zodb_app, f"{place}/{job}", "bob").status_code == 403
        assert get(zodb_app, f"{place}/{job}", ADMIN).status_code == 200


def test_nothing_of_a_request_is_stored(zodb_app: TestApp, zodb: DB) -> None:
    """A root that changes is stored without containers, which stop the commit."""
    for user in "alice", "bob":
        get(zodb_app, "/visit", user)
    with zodb.transaction() as connection:
        site = connection.root()["site"]
        assert site["visits"] == 2
        assert dict.keys(site.data) == {"visits"}
    connection = zodb.open()
    root = connection.root()["site"]
    container = JobStates(Request.blank("/"), root, "jobs")
    PersistentMapping.__setitem__(root, "jobs", container)
    with pytest.raises(TypeError, match=r"cannot be stored\..*__getitem__"):
        transaction.commit()
    transaction.abort()
    connection.close()
