"""The URLs of jobs and of their containers."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.resources import JobStates
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
    """The URL of a job is below the place through which it was reached, and leads to
    it.
    """
    uuid = put(store)
    for place in PLACES:
        for script_name in "", "/app":
            environ = {"SCRIPT_NAME": script_name, "HTTP_X_USER": "alice"}
            response = app.request(f"{place}/{uuid}", environ=environ)
            url = url_in(response.json)
            assert url == f"http://localhost{script_name}{place}/{uuid}/"
            below = url.removeprefix(f"http://localhost{script_name}")
            assert app.request(below, environ=environ).json == response.json


def test_urls_with_a_virtual_root(app: TestApp, store: JobStore) -> None:
    """A virtual root shortens the URL of a mounted job, but not that of a routed one,
    as with every route. It does not lead to any other job.
    """
    uuid = put(store)
    for place in "/job_state", "/jobs":
        response = get(app, f"{place}/{uuid}", "alice", X_VHM_Root="/site")
        assert url_in(response.json) == f"http://localhost{place}/{uuid}/"
    assert get(app, "/job_state", "bob", X_VHM_Root=f"/{uuid}").json["items"] == []
    assert get(app, "/", "bob", X_VHM_Root=f"/jobs/{uuid}").status_code == 403


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
    resource. A job loaded from the store itself has a URL at the default path, also
    where the application's tests have put something else in the container's place.
    """
    config.add_route("shown", "/shown*traverse")
    config.commit()
    request = make_request(config)
    mounted = mounted_root(request)["site"]["jobs"]
    job = request.job_states[uuid := put(store)]
    loaded = store.load(uuid)
    assert loaded is not None
    path = f"/job_state/{uuid}/"
    assert request.resource_url(request.job_states) == "http://localhost/job_state/"
    assert request.resource_url(mounted) == "http://localhost/site/jobs/"
    assert request.resource_path(mounted, "x", query={"y": 1}) == "/site/jobs/x?y=1"
    assert request.resource_path(job, "cancel", query={"n": 1}) == f"{path}cancel?n=1"
    assert request.resource_path(job, route_name="shown") == f"/shown{path}"
    assert request.resource_url(loaded) == f"http://localhost{path}"
    request.job_states = Mock()
    for each in job, loaded:
        assert url_in(each.__json__(request)) == f"http://localhost{path}"


def test_state_has_the_url_that_pyramid_gives(redis_url: str, store: JobStore) -> None:
    """Whatever URLs the application gives its jobs, and wherever it is mounted, states
    have the URLs of request.resource_url().
    """
    config = made_config(redis_url, root_factory=mounted_root)
    config.add_resource_url_adapter(TenantURL, InTenants)
    config.commit()
    classes: list[type[JobState]] = [RunMarathon] * 4
    jobs = [put(store, cls) for cls in (*classes, Elsewhere, InTenants)]
    for virtual_root in "", "/site", "/site/jobs", f"/site/jobs/{jobs[0]}":
        for script_name in "", "/a b":
            request = make_request(config)
            request.environ["SCRIPT_NAME"] = script_name
            if virtual_root:
                request.environ["HTTP_X_VHM_ROOT"] = virtual_root
            root = mounted_root(request)
            for container in request.job_states, root["jobs"], root["site"]["jobs"]:
                found = [container[uuid] for uuid in jobs]
                found[1].__parent__ = root["jobs"]
                found[2].__parent__ = Root(request)
                found[3].__name__ = "other"
                for job in (*found, container[jobs[0]]):
                    url = url_in(job.__json__(request))
                    assert url == request.resource_url(job), (virtual_root, script_name)


def test_urls_of_several_jobs(app: TestApp, store: JobStore) -> None:
    """The jobs of a container have their URLs in one answer."""
    jobs = [put(store) for _ in range(3)]
    query = "&".join(f"uuid={uuid}" for uuid in jobs)
    for place in PLACES:
        states = get(app, f"{place}?{query}", "alice").json["jobs"]
        for uuid in jobs:
            assert url_in(states[uuid]) == f"http://localhost{place}/{uuid}/"


def test_base_url_begins_the_urls_in_states(redis_url: str, store: JobStore) -> None:
    """With jobstate.base_url, the URLs in states begin with it, whatever host a request
    names, unless a class makes its own. Those of request.resource_url() do not.
    """
    base = "https://example.com/shop"
    settings = {"jobstate.base_url": base}
    config = make_config(redis_url, settings=settings, root_factory=mounted_root)
    config.add_resource_url_adapter(TenantURL, InTenants)
    app = make_app(config)
    jobs = [put(store, cls) for cls in (RunMarathon, InTenants, Elsewhere)]
    jobs.append(put_batch(store, owner="alice").uuid)
    query = "&".join(f"uuid={uuid}" for uuid in jobs)
    for place in PLACES:
        states = get(app, f"{place}?{query}", "alice", Host="evil.example").json["jobs"]
        assert [url_in(states[uuid]) for uuid in jobs[:3]] == [
            f"{base}{place}/{jobs[0]}/",
            f"{base}/tenants/7/{jobs[1]}",
            f"https://example.com/{jobs[2]}",
        ]
        members = states[jobs[3]]["job"]["members"]
        assert members == f"{base}{place}/?batch={jobs[3]}"
    request = make_request(config)
    job_state = request.job_states[jobs[0]]
    assert request.resource_url(job_state) == f"http://localhost/job_state/{jobs[0]}/"


class OwnURLs(Request):
    """A request that has its own opinion of URLs."""

    def resource_url(self, *args: Any, **options: Any) -> str:
        url: str = super().resource_url(*args, **options)
        return url.replace("localhost", "jobs.example.com")


class OwnHost:
    """A mixin for requests that come by another name than the application's."""

    @property
    def host_url(self) -> str:
        return "https://jobs.example.com"


class OwnHostRequest(OwnHost, Request):
    """Such a request."""


class UsualRequest(Request):
    """A request that changes nothing."""


class DiamondRequest(UsualRequest, OwnHostRequest):
    """A request whose first base changes nothing, but whose second base does."""


def test_own_requests_of_the_application_make_the_urls(
    redis_url: str, store: JobStore
) -> None:
    """An application may make URLs in its own way: by a class of requests, by a method,
    or by one of the properties of which URLs are made.
    """
    uuid = put(store)

    def own_url(request: Request, *args: Any, **options: Any) -> str:
        return "https://example.com/somewhere"

    config = make_config(redis_url)
    config.set_request_factory(OwnURLs)
    url = url_in(get(make_app(config), f"/job_state/{uuid}", "alice").json)
    assert url == f"http://jobs.example.com/job_state/{uuid}/"
    config = make_config(redis_url)
    config.add_request_method(own_url, "resource_url")
    url = url_in(get(make_app(config), f"/job_state/{uuid}", "alice").json)
    assert url == "https://example.com/somewhere"
    for name in "application_url", "host_url", "script_name":
        config = make_config(redis_url)
        config.add_request_method(lambda request: "/elsewhere", name, property=True)
        make_app(config)
        request = make_request(config)
        job = request.job_states[uuid]
        url = url_in(job.__json__(request))
        assert "/elsewhere" in url, name
        assert url == request.resource_url(job)


@pytest.mark.parametrize("has_properties", [False, True])
def test_url_is_that_of_its_kind_of_request(
    config: Configurator, store: JobStore, has_properties: bool
) -> None:
    """Whatever of a request's class makes a URL may be the application's own, and what
    a view changes of its request counts.
    """
    uuid = put(store)
    usual, own = "http://localhost", "https://jobs.example.com"
    for factory, start in (
        (UsualRequest, usual),
        (OwnHostRequest, own),
        (DiamondRequest, own),
    ):
        request = make_request(config, factory=factory)
        if not has_properties:
            request.__class__ = factory
        request.environ["SCRIPT_NAME"] = "/café".encode().decode("latin-1")
        job = JobStates(request)[uuid]
        url = url_in(job.__json__(request))
        assert url == f"{start}/caf%C3%A9/job_state/{uuid}/", factory
        assert url == request.resource_url(job)
        for name, value in (
            ("HTTP_HOST", "example.com"),
            ("SCRIPT_NAME", "/app"),
            ("wsgi.url_scheme", "https"),
        ):
            request.environ[name] = value
            assert url_in(job.__json__(request)) == request.resource_url(job), name
