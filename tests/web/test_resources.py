"""The containers of jobs: lookup, their root, mounting in a tree, and URLs."""

import pickle
import sys
import types
from typing import Any

import pytest
import redis
from pyramid.authorization import ALL_PERMISSIONS, Allow
from pyramid.request import Request
from pyramid.response import Response
from pyramid.traversal import find_resource
from ZODB import DB
from ZODB.FileStorage import FileStorage

from pyramid_jobstate import JobState, StoreUnavailable
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import put_batch
from tests.jobs import RunMarathon
from tests.readme import snippets
from tests.support import UUID
from tests.web.reading import FORBIDDEN, put
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Root,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    make_tm_config,
    mounted_root,
)


def test_container_finds_jobs(config, store):
    """It is a mapping of uuids to jobs, whose parent it is, and of its request."""
    uuid = put(store)
    request = make_request(config)
    job_states = request.job_states

    assert job_states is request.job_states
    assert job_states is not make_request(config).job_states
    for job in job_states.find(uuid), job_states[uuid], find_resource(job_states, uuid):
        assert isinstance(job, RunMarathon)
        assert (job.uuid, job.__name__) == (uuid, uuid)
        assert job.__parent__ is job_states
    assert job_states.find(UUID) is None
    with pytest.raises(KeyError, match=UUID):
        job_states[UUID]
    request.job_states = mine = JobStates(request)
    assert request.job_states is mine


def test_anything_but_a_uuid_is_unknown():
    """The store is asked for no other name, which could lead to a foreign key."""
    job_states = make_request(made_config(NOWHERE)).job_states
    for name in "", "x", UUID.upper(), UUID + "\n", f"{{{UUID}}}", UUID[:-1], None, 5:
        assert job_states.find(name) is None, name

    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        job_states.find(UUID)

    assert caught.value.container is job_states
    assert isinstance(caught.value.__cause__, redis.ConnectionError)


def test_root_that_fails_hides_no_rights(redis_url, store):
    """Its AttributeError could pass for a missing parent, so the request fails."""

    def root(request: Request) -> Root:
        raise AttributeError("no site")

    app = make_app(make_config(redis_url, root_factory=root))
    path = f"/job_state/{put(store)}"
    assert get(app, path, "alice").status_code == 200
    with pytest.raises(RuntimeError, match="The root factory failed: no site"):
        get(app, path, "bob")
    app = make_app(make_config(redis_url, root_factory=JobStates))
    assert get(app, path, "alice").json["job"]["url"]
    assert get(app, path, ADMIN).status_code == 403


def test_mounted_container_has_the_jobs_of_all(redis_url, store):
    """The ACL of a folder above the container gives permissions on every job in it."""

    class Folder(Root):
        __name__, __acl__ = "folder", ((Allow, "alice", ALL_PERMISSIONS),)

    def root_factory(request: Request) -> Root:
        root = Root(request)
        root["folder"] = folder = Folder(request)
        folder.__parent__ = root
        folder["jobs"] = JobStates(request, parent=folder, name="jobs")
        return root

    app = make_app(make_config(redis_url, root_factory=root_factory))
    job = put(store, owner="bob")
    (item,) = get(app, "/folder/jobs?all=1", "alice").json["items"]
    assert (item["job"]["uuid"], item["job"]["cancellable"]) == (job, True)
    for path in "?all=1", f"/{job}":
        assert get(app, f"/job_state{path}", "alice").json == FORBIDDEN


def test_persistent_root(redis_url, store, monkeypatch, tmp_path):
    """The documents' root serves jobs through a container that is never stored."""
    (snippet,) = [text for text in snippets("python") if "PersistentMapping" in text]
    # ZODB finds the class in a module.
    module = types.ModuleType("persistent_site")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(snippet, module.__dict__)
    database = DB(FileStorage(str(tmp_path / "Data.fs")))
    with database.transaction() as connection:
        connection.root()["site"] = site = module.__dict__["Site"]()
        site.__acl__ = [(Allow, ADMIN, ("view_job", "cancel_job", "list_jobs"))]

    def root_factory(request: Request) -> Any:
        connection = database.open(request.tm)
        request.add_finished_callback(lambda request: connection.close())
        return connection.root()["site"]

    def visit(context: Any, request: Request) -> Response:
        request.root["jobs"].list()
        request.root["visits"] = request.root.get("visits", 0) + 1
        return Response("Welcome")

    config = make_tm_config(redis_url, root_factory=root_factory)
    config.add_view(visit, name="visit")
    app = make_app(config)
    job = put(store)
    shown = get(app, f"/jobs/{job}", "alice").json["job"]
    assert shown["url"] == f"http://localhost/jobs/{job}/"
    assert get(app, f"/jobs/{UUID}", "alice").status_code == 404
    for place in "/jobs", "/job_state":
        assert get(app, f"{place}/{job}", "bob").status_code == 403
        assert get(app, f"{place}/{job}", ADMIN).status_code == 200
    for user in "alice", "bob":
        get(app, "/visit", user)
    with database.transaction() as connection:
        site = connection.root()["site"]
        assert site["visits"] == 2
        assert dict.keys(site.data) == {"visits"}
    # As it does by itself if the root has kept one.
    with pytest.raises(TypeError, match=r"cannot be stored\..*__getitem__"):
        pickle.dumps(JobStates(Request.blank("/")))
    database.close()


class Elsewhere(JobState):
    kind = "tests.web.test_resources.Elsewhere"

    def __resource_url__(self, request: Request, info: dict[str, str]) -> str:
        return f"https://example.com/{self.uuid}"


def url_in(state: Any) -> str:
    return str(state["job"]["url"])


@pytest.mark.promise("job-has-the-url-of-its-resource")
def test_urls_by_pyramids_functions(config, store):
    """Containers and jobs have URLs as any resource, with elements and queries."""
    config.add_route("shown", "/shown*traverse")
    config.commit()
    request = make_request(config)
    mounted = mounted_root(request)["site"]["jobs"]
    job = request.job_states[uuid := put(store)]
    path = f"/job_state/{uuid}/"
    assert request.resource_url(request.job_states) == "http://localhost/job_state/"
    assert request.resource_path(mounted, "x", query={"y": 1}) == "/site/jobs/x?y=1"
    assert request.resource_path(job, "cancel", query={"n": 1}) == f"{path}cancel?n=1"
    assert request.resource_path(job, route_name="shown") == f"/shown{path}"
    assert request.resource_url(store.load(uuid)) == f"http://localhost{path}"


class InTenants(JobState):
    """A kind of job for which the application has an adapter."""

    kind = "tests.web.test_resources.InTenants"


class TenantURL:
    def __init__(self, resource: JobState, request: Request) -> None:
        self.virtual_path = self.physical_path = f"/tenants/7/{resource.uuid}"
        self.virtual_path_tuple = tuple(self.virtual_path.split("/"))
        self.physical_path_tuple = self.virtual_path_tuple


@pytest.mark.promise("job-has-the-url-of-its-resource")
def test_state_has_the_url_that_pyramid_gives(redis_url, store):
    """Whatever URLs the application gives its jobs or makes, wherever it is mounted,
    and whatever a view changes of its request, states have the URLs of
    request.resource_url().
    """
    config = made_config(redis_url, root_factory=mounted_root)
    config.add_resource_url_adapter(TenantURL, InTenants)
    config.commit()
    classes: list[type[JobState]] = [RunMarathon, RunMarathon, RunMarathon]
    jobs = [put(store, cls) for cls in (*classes, Elsewhere, InTenants)]
    environs: list[dict[str, Any]] = [
        {},
        {"SCRIPT_NAME": "/a b"},
        {"HTTP_X_VHM_ROOT": "/site"},
        {"HTTP_X_VHM_ROOT": f"/site/jobs/{jobs[0]}"},
        {"HTTP_HOST": "example.com", "wsgi.url_scheme": "https"},
    ]
    request = make_request(config)
    for container in request.job_states, mounted_root(request)["site"]["jobs"]:
        found = [container[uuid] for uuid in jobs]
        found[1].__parent__ = Root(request)
        found[2].__name__ = "other"
        for environ in environs:
            request.environ |= environ
            for job in found:
                url = url_in(job.__json__(request))
                assert url == request.resource_url(job), environ


def test_base_url_begins_the_urls_in_states(redis_url, store):
    """It does so whatever host the request names. resource_url() does not use it."""
    base = "https://example.com/shop"
    settings = {"jobstate.base_url": base}
    config = make_config(redis_url, settings=settings, root_factory=mounted_root)
    app = make_app(config)
    jobs = [put(store, cls) for cls in (RunMarathon, Elsewhere)]
    batch = put_batch(store, owner="alice").uuid
    query = "&".join(f"uuid={uuid}" for uuid in (*jobs, batch))
    states = get(app, f"/jobs?{query}", "alice", Host="evil.example").json["jobs"]
    assert url_in(states[jobs[0]]) == f"{base}/jobs/{jobs[0]}/"
    assert url_in(states[jobs[1]]) == f"https://example.com/{jobs[1]}"
    assert states[batch]["job"]["members"] == f"{base}/jobs/?batch={batch}"
    request = make_request(config)
    job_state = request.job_states[jobs[0]]
    assert request.resource_url(job_state) == f"http://localhost/job_state/{jobs[0]}/"
