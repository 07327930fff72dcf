"""The containers of jobs: lookup, permissions, URLs, and mounting in a tree."""

from typing import Any
from unittest.mock import Mock

import pytest
import redis
from pyramid import testing
from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator
from pyramid.events import ContextFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.traversal import (
    DefaultRootFactory,
    ResourceTreeTraverser,
    find_root,
)
from webtest import TestApp

from pyramid_jobstate import Batch, JobState, JobStore, StoreUnavailable
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.web import joburls, resources
from tests.support import UUID
from tests.webapp import (
    ADMIN,
    NOWHERE,
    PLACES,
    Policy,
    Root,
    RunMarathon,
    ask,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    mounted_root,
    put_job,
)


class CountingRoot(Root):
    """A root that counts how often it is made."""

    made = 0

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        type(self).made += 1


class Tattle(JobState):
    """A kind of job that the friend in its parameters may see, but bob may not."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [
            (Allow, self.get_job_param("friend"), "view_job"),
            ("Deny", "bob", "view_job"),
        ]


class Announcing(ResourceTreeTraverser):
    """A traverser that announces, on its way into a root, who may log in there."""

    def __call__(self, request: Request) -> Any:
        request.users = self.root.users
        result: dict[str, Any] = super().__call__(request)
        request.entered = result["context"]
        return result


class SiteRoot(Root):
    users = ("alice", "bob", ADMIN)


class SitePolicy(Policy):
    """Knows only the users of the site, which a traverser has announced."""

    def identity(self, request: Request) -> str | None:
        user = super().identity(request)
        return user if user in getattr(request, "users", ()) else None

    authenticated_userid = identity


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountingRoot]:
    """A root class that was never instantiated."""
    monkeypatch.setattr(CountingRoot, "made", 0)
    return CountingRoot


# Lookup.


def test_find_returns_the_job(config: Configurator, client: redis.Redis) -> None:
    """find() returns an instance of the job's class, whose parent is the container."""
    uuid = put_job(client)
    job_states = make_request(config).job_states

    job_state = job_states.find(uuid)

    assert isinstance(job_state, RunMarathon)
    assert (job_state.uuid, job_state.__name__) == (uuid, uuid)
    assert job_state.__parent__ is job_states


def test_getitem_returns_the_job(config: Configurator, client: redis.Redis) -> None:
    """A container is a mapping for traversal."""
    uuid = put_job(client)

    assert make_request(config).job_states[uuid].uuid == uuid


def test_unknown_job_is_none_or_a_key_error(config: Configurator) -> None:
    """For an unknown job, find() returns None, and traversal gets a KeyError."""
    job_states = make_request(config).job_states

    assert job_states.find(UUID) is None
    with pytest.raises(KeyError, match=UUID):
        job_states[UUID]


@pytest.mark.parametrize(
    "name",
    ["", "x", UUID.upper(), UUID + "\n", UUID + "x", f"{{{UUID}}}", UUID[:-1], None, 5],
)
def test_malformed_uuid_does_not_reach_the_store(name: Any) -> None:
    """Anything but a uuid in its canonical form is unknown without asking the store."""
    config = made_config(NOWHERE)

    assert make_request(config).job_states.find(name) is None


def test_keys_of_other_things_are_not_jobs(
    config: Configurator, client: redis.Redis
) -> None:
    """No name leads to another key of the store."""
    client.hset("jobstate:active:all", "kind", "JobState")

    assert make_request(config).job_states.find("active:all") is None


def test_store_that_is_away_is_store_unavailable() -> None:
    """If the store does not answer, the error names the container and the cause."""
    config = made_config(NOWHERE)
    job_states = make_request(config).job_states

    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        job_states.find(UUID)

    assert caught.value.container is job_states
    assert isinstance(caught.value.__cause__, redis.ConnectionError)


def test_requests_have_one_container(config: Configurator) -> None:
    """`request.job_states` is made once per request and belongs to it."""
    request = make_request(config)

    assert request.job_states is request.job_states
    assert request.job_states.request is request
    assert make_request(config).job_states is not request.job_states


def test_store_is_the_applications(config: Configurator) -> None:
    """The container has the application's store."""
    assert isinstance(make_request(config).job_states.store, JobStore)


# Permissions.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("user", "status"), [("alice", 200), (ADMIN, 200), ("bob", 403), (None, 403)]
)
def test_owner_and_admins_see_a_job(
    app: TestApp,
    client: redis.Redis,
    place: str,
    user: str | None,
    status: int,
) -> None:
    """Only the owner and those whom the application's root allows see a job."""
    response = get(app, f"{place}/{put_job(client)}", user)

    assert response.status_code == status
    if status == 403:
        assert "miles" not in response.text


def test_job_without_owner_is_for_the_root_to_decide(
    app: TestApp, client: redis.Redis
) -> None:
    """A job without an owner is visible only to those whom the root allows."""
    uuid = put_job(client, owner="null")

    assert get(app, f"/job_state/{uuid}").status_code == 403
    assert get(app, f"/job_state/{uuid}", ADMIN).status_code == 200


@pytest.mark.parametrize("owner", ["1", "1.0", '"1"'])
def test_number_and_string_are_different_owners(
    redis_url: str, client: redis.Redis, owner: str
) -> None:
    """Owners keep their type in the store: the user 1 is not the user "1"."""
    config = made_config(redis_url)
    job_state = make_request(config).job_states[put_job(client, owner=owner)]

    allowed = make_request(config, "1").has_permission("view_job", job_state)

    assert bool(allowed) is (owner == '"1"')


def test_root_that_gives_view_to_everyone_opens_nothing(
    redis_url: str, client: redis.Redis
) -> None:
    """Common permissions in the application's root, such as "view", open no jobs."""

    class OpenRoot(Root):
        __acl__ = ((Allow, Everyone, ("view", "edit", "read", "list", "cancel")),)

    app = make_app(make_config(redis_url, root_factory=OpenRoot))

    assert get(app, f"/job_state/{put_job(client)}", "bob").status_code == 403


def test_acl_of_the_jobs_class_decides_first(app: TestApp, client: redis.Redis) -> None:
    """The ACL of a job's class may use the job's parameters and exclude the owner. It
    precedes the root's.
    """
    uuid = put_job(client, kind="Tattle", params='{"friend": "carol"}')

    assert get(app, f"/job_state/{uuid}", "carol").status_code == 200
    assert get(app, f"/job_state/{uuid}", "alice").status_code == 403
    assert get(app, f"/job_state/{uuid}", "bob").status_code == 403
    assert get(app, f"/job_state/{uuid}", ADMIN).status_code == 200


def test_unknown_kind_has_no_rights_of_its_own(
    app: TestApp, client: redis.Redis
) -> None:
    """Only the root decides about a kind that the web process has not imported."""
    uuid = put_job(client, kind="NeverImported")

    assert get(app, f"/job_state/{uuid}", "alice").status_code == 403
    assert get(app, f"/job_state/{uuid}", ADMIN).json["job"]["kind"] == "NeverImported"


def test_policy_without_acls_is_asked_about_the_job(
    redis_url: str, client: redis.Redis
) -> None:
    """A policy without ACLs decides by the job and the permission."""

    class Rules:
        def identity(self, request: Request) -> None:
            return None

        authenticated_userid = identity

        def permits(self, request: Request, context: Any, permission: str) -> bool:
            asked.append(permission)
            return isinstance(context, JobState) and context.attempt == 1

    asked: list[str] = []
    app = make_app(make_config(redis_url, security_policy=Rules()))

    assert get(app, f"/job_state/{put_job(client)}").status_code == 200
    assert get(app, f"/job_state/{put_job(client, attempt=2)}").status_code == 403
    assert asked[0] == "view_job"


def test_root_is_made_only_when_the_job_has_not_decided(
    redis_url: str, client: redis.Redis, counted: type[CountingRoot]
) -> None:
    """An owner's request does not make the root. Another user's makes it once."""
    app = make_app(make_config(redis_url, root_factory=counted))
    uuid = put_job(client)

    get(app, f"/job_state/{uuid}", "alice")
    assert counted.made == 0
    get(app, f"/job_state/{UUID}", "alice")
    assert counted.made == 0
    get(app, f"/job_state/{uuid}", ADMIN)
    assert counted.made == 1


@pytest.mark.parametrize("error", [AttributeError, KeyError, ZeroDivisionError])
def test_root_factory_that_fails_is_not_passed_over(
    redis_url: str, client: redis.Redis, error: type[Exception]
) -> None:
    """An error of the root factory is raised. It does not end the lineage."""

    def factory(request: Request) -> Any:
        raise error("Who has taken the root?")

    app = make_app(make_config(redis_url, root_factory=factory))

    with pytest.raises((RuntimeError, error), match="Who has taken the root"):
        get(app, f"/job_state/{put_job(client)}", "bob")


def test_root_is_pyramids_own_without_a_root_factory() -> None:
    """Without a registered root factory, the root is Pyramid's default."""
    with testing.testConfig() as config:
        request = testing.DummyRequest()
        request.registry = config.registry

        assert isinstance(JobStates(request).__parent__, DefaultRootFactory)


def test_root_is_at_the_end_of_the_lineage(
    redis_url: str, client: redis.Redis, counted: type[CountingRoot]
) -> None:
    """The lineage of a job ends at the application's root, which is made once."""
    config = made_config(redis_url, root_factory=counted)
    job_state = make_request(config).job_states[put_job(client)]

    assert find_root(job_state) is find_root(job_state)
    assert isinstance(find_root(job_state), counted)
    assert counted.made == 1


# URLs.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("script_name", ["", "/app"])
def test_url_of_a_job_is_where_it_was_reached(
    app: TestApp, client: redis.Redis, place: str, script_name: str
) -> None:
    """The URL of a job is below the place through which it was reached."""
    environ = {"SCRIPT_NAME": script_name, "HTTP_X_USER": "alice"}
    uuid = put_job(client)

    response = app.request(f"{place}/{uuid}", environ=environ)

    url = response.json["job"]["url"]
    assert url == f"http://localhost{script_name}{place}/{uuid}/"
    below = url.removeprefix(f"http://localhost{script_name}")
    assert app.request(below, environ=environ).json == response.json


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
def test_url_of_a_job_follows_the_virtual_root(
    app: TestApp, client: redis.Redis, place: str
) -> None:
    """A virtual root shortens the URL of a mounted job, but not that of a routed one,
    as with every route.
    """
    uuid = put_job(client)

    response = get(app, f"{place}/{uuid}", "alice", X_VHM_Root="/site")

    assert response.json["job"]["url"] == f"http://localhost{place}/{uuid}/"


def test_virtual_root_does_not_lead_to_another_job(
    app: TestApp, client: redis.Redis
) -> None:
    """A header with a virtual root does not lead to any other job."""
    uuid = put_job(client)

    assert get(app, "/job_state", "bob", X_VHM_Root=f"/{uuid}").json["items"] == []
    assert get(app, "/", "bob", X_VHM_Root=f"/jobs/{uuid}").status_code == 403


@pytest.mark.parametrize("header", [{}, {"X_VHM_Root": "/nowhere"}])
def test_traverser_of_the_application_enters_its_root(
    redis_url: str, client: redis.Redis, header: dict[str, str]
) -> None:
    """A traverser that the application registered for all resources also runs for ours,
    before the policy is asked. (PyAMS finds its security manager like this.)
    """
    config = make_config(redis_url, root_factory=SiteRoot, security_policy=SitePolicy())
    config.add_traverser(Announcing)
    app = make_app(config)
    uuid = put_job(client)
    place = f"/job_state/{uuid}"

    assert get(app, place, "alice", **header).json["job"]["cancellable"] is True
    assert get(app, place, "bob", **header).status_code == 403
    assert get(app, place, "mallory", **header).status_code == 403
    assert get(app, place, ADMIN, **header).status_code == 200
    assert get(app, f"/job_state/{UUID}", "alice", **header).status_code == 404
    assert get(app, "/job_state", "alice", **header).json["items"] == []
    response = ask(app, "POST", f"{place}/cancel", "alice", X_Requested_With="x")
    assert response.status_code == 202


def test_traverser_of_the_application_is_shown_its_root_alone(
    redis_url: str, client: redis.Redis
) -> None:
    """The application's traverser does not see the rest of the path, as that is not in
    its tree.
    """
    config = make_config(redis_url, root_factory=SiteRoot, security_policy=SitePolicy())
    config.add_traverser(Announcing)
    entered = []
    config.add_subscriber(
        lambda event: entered.append((event.request.entered, event.request.matchdict)),
        ContextFound,
    )
    app = make_app(config)
    uuid = put_job(client)

    get(app, f"/job_state/{uuid}", "alice")

    ((root, matchdict),) = entered
    assert isinstance(root, SiteRoot)
    assert matchdict == {"uuid": uuid}


def test_mounted_urls_ignore_a_route_prefix(
    redis_url: str, client: redis.Redis
) -> None:
    """A route_prefix moves only the routed jobs."""
    config = make_config(redis_url, root_factory=mounted_root)
    config.include("pyramid_jobstate", route_prefix="/api")
    app = make_app(config)
    uuid = put_job(client)

    for place in "/api/job_state", "/jobs":
        url = get(app, f"{place}/{uuid}", "alice").json["job"]["url"]
        assert url == f"http://localhost{place}/{uuid}/"


def test_url_of_a_job_without_a_container_is_the_default(
    config: Configurator, client: redis.Redis, redis_url: str
) -> None:
    """A job loaded from the store itself has a URL at the default path."""
    uuid = put_job(client)
    job_state = JobStore(redis_url).load(uuid)

    url = make_request(config).resource_url(job_state)

    assert url == f"http://localhost/job_state/{uuid}/"


def test_url_of_a_container(config: Configurator) -> None:
    """Containers have URLs, and so do paths below them."""
    request = make_request(config)
    mounted = mounted_root(request)["site"]["jobs"]

    assert request.resource_url(request.job_states) == "http://localhost/job_state/"
    assert request.resource_url(mounted) == "http://localhost/site/jobs/"
    assert request.resource_path(mounted, "x", query={"y": 1}) == "/site/jobs/x?y=1"


def test_url_goes_on_below_a_job(config: Configurator, client: redis.Redis) -> None:
    """Elements, a query and a route name work as for any resource."""
    config.add_route("shown", "/shown*traverse")
    config.commit()
    request = make_request(config)
    job_state = request.job_states[uuid := put_job(client)]

    path = request.resource_path(job_state, "cancel", query={"now": "1"})
    by_route = request.resource_path(job_state, route_name="shown")

    assert path == f"/job_state/{uuid}/cancel?now=1"
    assert by_route == f"/shown/job_state/{uuid}/"


def test_url_spares_the_root_factory(
    redis_url: str, client: redis.Redis, counted: type[CountingRoot]
) -> None:
    """The URL of a job is made without the root."""
    config = made_config(redis_url, root_factory=counted)
    request = make_request(config)

    request.resource_url(request.job_states[put_job(client)])

    assert counted.made == 0


class Elsewhere(JobState):
    """A kind of job with a URL of its own."""

    kind = "tests.web.test_resources.Elsewhere"

    def __resource_url__(self, request: Request, info: dict[str, str]) -> str:
        return f"https://example.com/{self.uuid}"


class InTenants(JobState):
    """A kind of job for which the application has an adapter."""

    kind = "tests.web.test_resources.InTenants"


class TenantURL:
    def __init__(self, resource: JobState, request: Request) -> None:
        self.virtual_path = self.physical_path = f"/tenants/7/{resource.uuid}"
        self.virtual_path_tuple = tuple(self.virtual_path.split("/"))
        self.physical_path_tuple = self.virtual_path_tuple


@pytest.mark.parametrize("virtual_root", ["", "/site", "/site/jobs", "job"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("script_name", ["", "/a b"])
def test_container_gives_a_job_the_url_that_pyramid_does(
    redis_url: str, client: redis.Redis, place: str, virtual_root: str, script_name: str
) -> None:
    """Whatever URLs the application gives its jobs."""
    config = made_config(redis_url, root_factory=mounted_root)
    config.add_resource_url_adapter(TenantURL, InTenants)
    config.commit()
    kinds = [RunMarathon.kind] * 4 + [Elsewhere.kind, InTenants.kind]
    jobs = [put_job(client, kind=kind) for kind in kinds]
    request = make_request(config)
    request.environ["SCRIPT_NAME"] = script_name
    if virtual_root:
        below = {"job": f"/site/jobs/{jobs[0]}"}
        request.environ["HTTP_X_VHM_ROOT"] = below.get(virtual_root, virtual_root)
    root = mounted_root(request)
    container = {
        "/job_state": request.job_states,
        "/jobs": root["jobs"],
        "/site/jobs": root["site"]["jobs"],
    }[place]
    found = [container[uuid] for uuid in jobs]
    found[1].__parent__ = root["jobs"]
    found[2].__parent__ = Root(request)
    found[3].__name__ = "other"

    for job_state in (*found, container[jobs[0]]):
        url = container.url_of(job_state)
        assert url == request.resource_url(job_state)
        assert job_state.__json__(request)["job"]["url"] == url


@pytest.mark.parametrize("place", PLACES)
def test_urls_of_several_jobs_are_worked_out_once(
    app: TestApp, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The jobs of a container share the beginning of their URLs."""
    made = []

    def spy(container: Any) -> str:
        made.append(container)
        return joburls.url_of(container)

    monkeypatch.setattr(resources, "url_of", spy)
    jobs = [put_job(client) for _ in range(3)]

    query = "&".join(f"uuid={uuid}" for uuid in jobs)
    states = get(app, f"{place}?{query}", "alice").json["jobs"]

    for uuid in jobs:
        assert states[uuid]["job"]["url"] == f"http://localhost{place}/{uuid}/"
    assert len(made) == 1


@pytest.mark.parametrize("place", PLACES)
def test_base_url_begins_the_urls_in_states(
    redis_url: str, client: redis.Redis, place: str
) -> None:
    """With jobstate.base_url, the URLs in states begin with it, whatever host a request
    names, unless a class makes its own. Those of request.resource_url() do not.
    """
    base = "https://example.com/shop"
    settings = {"jobstate.base_url": base}
    config = make_config(redis_url, settings=settings, root_factory=mounted_root)
    config.add_resource_url_adapter(TenantURL, InTenants)
    app = make_app(config)
    kinds = RunMarathon.kind, InTenants.kind, Elsewhere.kind
    jobs = [put_job(client, kind=kind) for kind in kinds]
    jobs.append(put_job(client, kind=Batch.kind, batch="*"))

    query = "&".join(f"uuid={uuid}" for uuid in jobs)
    states = get(app, f"{place}?{query}", "alice", Host="evil.example").json["jobs"]

    assert [states[uuid]["job"]["url"] for uuid in jobs[:3]] == [
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


def own_url(request: Request, *args: Any, **options: Any) -> str:
    return "https://example.com/somewhere"


@pytest.mark.parametrize("way", ["factory", "method"])
def test_own_resource_url_of_the_application_is_used(
    redis_url: str, client: redis.Redis, way: str
) -> None:
    """An application may make URLs in its own way."""
    config = make_config(redis_url)
    if way == "factory":
        config.set_request_factory(OwnURLs)
    else:
        config.add_request_method(own_url, "resource_url")
    app = make_app(config)
    uuid = put_job(client)

    url = get(app, f"/job_state/{uuid}", "alice").json["job"]["url"]

    assert (
        url
        == {
            "factory": f"http://jobs.example.com/job_state/{uuid}/",
            "method": "https://example.com/somewhere",
        }[way]
    )


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


@pytest.mark.parametrize("has_properties", [False, True])
@pytest.mark.parametrize(
    ("factory", "start"),
    [
        (UsualRequest, "http://localhost/caf%C3%A9"),
        (OwnHostRequest, "https://jobs.example.com/caf%C3%A9"),
        (DiamondRequest, "https://jobs.example.com/caf%C3%A9"),
    ],
)
def test_url_of_a_job_is_that_of_its_kind_of_request(
    config: Configurator,
    client: redis.Redis,
    factory: type[Request],
    start: str,
    has_properties: bool,
) -> None:
    """Whatever makes a URL may be the application's own."""
    request = make_request(config, factory=factory)
    if not has_properties:
        request.__class__ = factory
    request.environ["SCRIPT_NAME"] = "/café".encode().decode("latin-1")
    job_state = JobStates(request)[put_job(client)]

    url = job_state.__json__(request)["job"]["url"]

    assert url == f"{start}/job_state/{job_state.uuid}/"
    assert url == request.resource_url(job_state)


@pytest.mark.parametrize("name", ["application_url", "host_url", "script_name"])
def test_property_of_a_request_changes_the_url_of_a_job(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    """An application adds properties to Pyramid's own requests."""
    config = make_config(redis_url)
    config.add_request_method(lambda request: "/elsewhere", name, property=True)
    make_app(config)
    request = make_request(config)
    job_state = request.job_states[put_job(client)]

    url = job_state.__json__(request)["job"]["url"]

    assert "/elsewhere" in url
    assert url == request.resource_url(job_state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_HOST", "example.com"),
        ("SCRIPT_NAME", "/app"),
        ("wsgi.url_scheme", "https"),
    ],
)
def test_url_follows_a_request_that_changes(
    config: Configurator, client: redis.Redis, name: str, value: str
) -> None:
    """A view may change its request, to write the URLs of another site."""
    request = make_request(config)
    job_state = request.job_states[put_job(client)]
    before = job_state.__json__(request)["job"]["url"]

    request.environ[name] = value

    after = job_state.__json__(request)["job"]["url"]
    assert after == request.resource_url(job_state)
    assert after != before


def test_url_does_not_come_from_a_mock(
    config: Configurator, client: redis.Redis
) -> None:
    """An application's tests may put anything in the place of the container."""
    uuid = put_job(client)
    job_state = make_request(config).job_states[uuid]
    request = make_request(config)
    request.job_states = Mock()

    url = job_state.__json__(request)["job"]["url"]

    assert url == f"http://localhost/job_state/{uuid}/"


# Mounted in the application's tree.


def test_mounted_container_answers_as_the_routed_one(
    app: TestApp, client: redis.Redis
) -> None:
    """Except for the URL, both places return the same JSON."""
    uuid = put_job(client)

    routed = get(app, f"/job_state/{uuid}", "alice").json
    mounted = get(app, f"/jobs/{uuid}", "alice").json

    assert routed["job"].pop("url") != mounted["job"].pop("url")
    assert routed == mounted


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [f"/{UUID}", f"/{UUID}/", "/x", "/x/y"])
def test_unknown_name_is_not_found_in_json(
    config: Configurator, place: str, name: str
) -> None:
    """At every place, an unknown name is our 404 in JSON."""
    response = get(make_app(config), place + name, "alice")

    assert response.status_code == 404
    assert response.json == {"error": "The job does not exist."}


@pytest.mark.parametrize("place", PLACES)
def test_store_that_is_away_is_a_503(server: EmbeddedServer, place: str) -> None:
    """While the store is away, every job is a 503 with a Retry-After."""
    app = make_app(make_config(server.url, root_factory=mounted_root))
    server.stop()

    response = get(app, f"{place}/{UUID}", "alice")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.json == {"error": "The job state store does not answer."}


def test_store_that_is_back_is_found_again(server: EmbeddedServer) -> None:
    """Once the store is back, requests succeed again."""
    app = make_app(make_config(server.url))
    assert get(app, f"/job_state/{UUID}", "alice").status_code == 404
    server.stop()
    assert get(app, f"/job_state/{UUID}", "alice").status_code == 503

    server.start()

    assert get(app, f"/job_state/{UUID}", "alice").status_code == 404


def test_views_of_the_application_work_beside_ours_in_its_tree(
    redis_url: str, client: redis.Redis
) -> None:
    """The application may add views for jobs in its own tree; its own error views
    handle their errors.
    """
    config = make_config(redis_url, root_factory=mounted_root)
    config.add_view(
        lambda c, r: Response(c.kind),
        name="page",
        context=JobState,
        permission="view_job",
    )
    config.add_view(lambda c, r: r.job_states[UUID], name="gone", context=JobState)
    config.add_view(
        lambda c, r: Response("All"),
        name="page",
        context=JobStates,
        permission="list_jobs",
    )
    config.add_notfound_view(lambda e, r: Response("app 404", 404))
    config.add_forbidden_view(lambda e, r: Response("app 403", 403))
    app = make_app(config)
    uuid = put_job(client)

    assert get(app, f"/jobs/{uuid}/page", "alice").text == "RunMarathon"
    assert get(app, f"/jobs/{uuid}/page", "bob").text == "app 403"
    assert get(app, f"/jobs/{uuid}/none", "alice").text == "app 404"
    assert get(app, "/jobs/page", ADMIN).text == "All"
    assert get(app, "/jobs/page", "bob").text == "app 403"
    assert get(app, f"/jobs/{uuid}", "bob").content_type == "application/json"
    assert ask(app, "PUT", f"/jobs/{uuid}", "alice").json["error"]
    with pytest.raises(KeyError):
        get(app, f"/jobs/{uuid}/gone")
