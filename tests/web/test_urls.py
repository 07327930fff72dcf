"""The URLs of jobs and of their containers."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import put_batch
from tests.jobs import RunMarathon
from tests.web.reading import put
from tests.webapp import (
    PLACES,
    Root,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    mounted_root,
)


class Elsewhere(JobState):
    """A kind of job with a URL of its own."""

    kind = "tests.web.test_urls.Elsewhere"

    def __resource_url__(self, request: Request, info: dict[str, str]) -> str:
        return f"https://example.com/{self.uuid}"


class InTenants(JobState):
    """A kind of job for which the application has an adapter."""

    kind = "tests.web.test_urls.InTenants"


class TenantURL:
    def __init__(self, resource: JobState, request: Request) -> None:
        self.virtual_path = self.physical_path = f"/tenants/7/{resource.uuid}"
        self.virtual_path_tuple = tuple(self.virtual_path.split("/"))
        self.physical_path_tuple = self.virtual_path_tuple


def url_in(state: Any) -> str:
    url: str = state["job"]["url"]
    return url


def test_url_of_a_job_is_where_it_was_reached(app: TestApp, store: JobStore) -> None:
    """The URL of a job is below the place through which it was reached."""
    uuid = put(store)
    for place in PLACES:
        for script_name in "", "/app":
            environ = {"SCRIPT_NAME": script_name, "HTTP_X_USER": "alice"}
            state = app.request(f"{place}/{uuid}", environ=environ).json
            assert url_in(state) == f"http://localhost{script_name}{place}/{uuid}/"
            below = url_in(state).removeprefix(f"http://localhost{script_name}")
            assert app.request(below, environ=environ).json == state
            several = app.request(f"{place}?uuid={uuid}", environ=environ).json
            assert several["jobs"] == {uuid: state}


def test_route_prefix_moves_the_routed_jobs(redis_url: str, store: JobStore) -> None:
    """A route_prefix moves only the routed jobs."""
    config = make_config(redis_url, root_factory=mounted_root)
    config.include("pyramid_jobstate", route_prefix="/api")
    app = make_app(config)
    uuid = put(store)
    for place in "/api/job_state", "/jobs":
        state = get(app, f"{place}/{uuid}", "alice").json
        assert url_in(state) == f"http://localhost{place}/{uuid}/"


def test_urls_by_pyramids_functions(config: Configurator, store: JobStore) -> None:
    """Containers and jobs have URLs; elements, a query and a route name work as for any
    resource. A job loaded from the store itself has a URL at the default path.
    """
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


class OwnHostRequest(Request):
    """A request that comes by another name than the application's."""

    @property
    def host_url(self) -> str:
        return "https://jobs.example.com"


class OwnURLRequest(Request):
    """A request that has its own opinion of URLs."""

    def resource_url(self, *args: Any, **options: Any) -> str:
        return "https://example.com/somewhere"


def test_state_has_the_url_that_pyramid_gives(redis_url: str, store: JobStore) -> None:
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
    for factory in Request, OwnHostRequest, OwnURLRequest:
        request = make_request(config, factory=factory)
        root = mounted_root(request)
        for container in request.job_states, root["site"]["jobs"]:
            found = [container[uuid] for uuid in jobs]
            found[1].__parent__ = Root(request)
            found[2].__name__ = "other"
            for environ in environs:
                request.environ |= environ
                for job in found:
                    url = url_in(job.__json__(request))
                    assert url == request.resource_url(job), (factory, environ)


def test_base_url_begins_the_urls_in_states(redis_url: str, store: JobStore) -> None:
    """With jobstate.base_url, the URLs in states begin with it, whatever host a request
    names, unless a class makes its own. Those of request.resource_url() do not.
    """
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
