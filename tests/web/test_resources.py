"""The containers of jobs: lookup, permissions, and mounting in a tree."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from pyramid import testing
from pyramid.authorization import Allow, Deny, Everyone
from pyramid.config import Configurator
from pyramid.events import ContextFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.traversal import (
    DefaultRootFactory,
    ResourceTreeTraverser,
    find_resource,
    find_root,
)
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import away
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.reading import AWAY, FORBIDDEN, NOT_FOUND, put, put_odd
from tests.webapp import (
    ADMIN,
    NOWHERE,
    PLACES,
    Policy,
    Root,
    ask,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    mounted_root,
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
        friend = self.get_job_param("friend")
        return [(Allow, friend, "view_job"), (Deny, "bob", "view_job")]


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


# Lookup


def test_container_finds_jobs(config: Configurator, store: JobStore) -> None:
    """A container is a mapping of uuids to instances of the jobs' classes, whose parent
    it is, also for Pyramid's own functions. It belongs to its request.
    """
    uuid = put(store)
    request = make_request(config)
    job_states = request.job_states

    assert job_states is request.job_states
    assert job_states is not make_request(config).job_states
    assert job_states.request is request
    assert isinstance(job_states.store, JobStore)
    for job in (
        job_states.find(uuid),
        job_states[uuid],
        find_resource(job_states, uuid),
    ):
        assert isinstance(job, RunMarathon)
        assert (job.uuid, job.__name__) == (uuid, uuid)
        assert job.__parent__ is job_states
    assert job_states.find(UUID) is None
    with pytest.raises(KeyError, match=UUID):
        job_states[UUID]
    with pytest.raises(KeyError):
        find_resource(job_states, UUID)


def test_anything_but_a_uuid_is_unknown(config: Configurator, store: JobStore) -> None:
    """Anything but a uuid in its canonical form is unknown without asking the store, so
    that no name leads to another key of it.
    """
    put(store)
    nowhere = make_request(made_config(NOWHERE)).job_states
    names = ["", "x", UUID.upper(), UUID + "\n", UUID + "x", f"{{{UUID}}}", UUID[:-1]]
    for name in (*names, None, 5):
        assert nowhere.find(name) is None, name
    job_states = make_request(config).job_states
    for key in store.client.scan_iter("jobstate:*"):
        name = key.decode().removeprefix("jobstate:")
        assert (job_states.find(name) is None) == (len(name) != 36)


def test_store_that_is_away_is_store_unavailable() -> None:
    """If the store does not answer, the error names the container and the cause."""
    job_states = make_request(made_config(NOWHERE)).job_states

    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        job_states.find(UUID)

    assert caught.value.container is job_states
    assert isinstance(caught.value.__cause__, redis.ConnectionError)


def test_tests_of_an_application_may_set_it(config: Configurator) -> None:
    """Tests may set request.job_states to a container of their own."""
    request = make_request(config, "alice")
    assert request.job_states is request.job_states

    request.job_states = mine = JobStates(request)

    assert request.job_states is mine


# Permissions


def test_who_sees_a_job(app: TestApp, store: JobStore) -> None:
    """Only the owner and those whom the application's root allows see a job, at every
    place. The ACL of a job's class precedes the root's, and may exclude the owner. Of a
    kind that the process has not imported, and of an owner that is none, only the root
    decides; owners keep their type.
    """
    job = put(store)
    for place in PLACES:
        for user, status in (("alice", 200), (ADMIN, 200), ("bob", 403), (None, 403)):
            response = get(app, f"{place}/{job}", user)
            assert response.status_code == status, (place, user)
            if status == 403:
                assert response.json == FORBIDDEN
    tattle = put(store, Tattle, params={"friend": "carol"})
    for uuid, user, status in (
        (put(store, owner=None), None, 403),
        (put(store, owner=None), ADMIN, 200),
        (put(store, owner=1), "1", 403),
        (put(store, owner=1.0), "1", 403),
        (put(store, owner="1"), "1", 200),
        (tattle, "carol", 200),
        (tattle, "alice", 403),
        (tattle, "bob", 403),
        (tattle, ADMIN, 200),
        (put_odd(store, kind="NeverImported"), "alice", 403),
    ):
        assert get(app, f"/job_state/{uuid}", user).status_code == status, (uuid, user)
    odd = put_odd(store, kind="NeverImported")
    response = get(app, f"/job_state/{odd}", ADMIN)
    assert response.json["job"]["kind"] == "NeverImported"


def test_common_permissions_open_nothing(redis_url: str, store: JobStore) -> None:
    """Common permissions in the application's root, such as "view", open no jobs."""

    class OpenRoot(Root):
        __acl__ = ((Allow, Everyone, ("view", "edit", "read", "list", "cancel")),)

    app = make_app(make_config(redis_url, root_factory=OpenRoot))

    assert get(app, f"/job_state/{put(store)}", "bob").status_code == 403


def test_policy_without_acls_is_asked_about_the_job(
    redis_url: str, store: JobStore
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

    assert get(app, f"/job_state/{put(store)}").status_code == 200
    assert get(app, f"/job_state/{put(store, attempt=2)}").status_code == 403
    assert asked[0] == "view_job"


# The root


def test_root_is_made_when_it_is_needed(
    redis_url: str, store: JobStore, counted: type[CountingRoot]
) -> None:
    """Neither an owner's request nor the URL of a job makes the root. Another user's
    request makes it once, and the lineage of a job ends there.
    """
    config = make_config(redis_url, root_factory=counted)
    app = make_app(config)
    uuid = put(store)

    assert get(app, f"/job_state/{uuid}", "alice").json["job"]["url"]
    get(app, f"/job_state/{UUID}", "alice")
    assert counted.made == 0
    get(app, f"/job_state/{uuid}", ADMIN)
    assert counted.made == 1
    job_state = make_request(config).job_states[uuid]
    assert find_root(job_state) is find_root(job_state)
    assert isinstance(find_root(job_state), counted)
    assert counted.made == 2


def test_root_factory_that_fails_is_not_passed_over(
    redis_url: str, store: JobStore
) -> None:
    """An error of the root factory is raised. It does not end the lineage."""
    uuid = put(store)
    for error in AttributeError, KeyError, ZeroDivisionError:

        def factory(request: Request, error: type[Exception] = error) -> Any:
            raise error("Who has taken the root?")

        app = make_app(make_config(redis_url, root_factory=factory))

        with pytest.raises((RuntimeError, error), match="Who has taken the root"):
            get(app, f"/job_state/{uuid}", "bob")


def test_root_without_a_root_factory(redis_url: str, store: JobStore) -> None:
    """Without a registered root factory, the root is Pyramid's default. If it is a
    container itself, the lineage ends there.
    """
    with testing.testConfig() as config:
        request = testing.DummyRequest()
        request.registry = config.registry
        assert isinstance(JobStates(request).__parent__, DefaultRootFactory)
    app = make_app(make_config(redis_url, root_factory=JobStates))
    job = put(store)
    for path, user, status in (
        (f"/{job}", "alice", 200),
        (f"/{job}", "bob", 403),
        ("?all=1", "bob", 403),
    ):
        assert get(app, f"/job_state{path}", user).status_code == status


def test_traverser_of_the_application_enters_its_root(
    redis_url: str, store: JobStore
) -> None:
    """A traverser that the application registered for all resources also runs for ours,
    before the policy is asked. (PyAMS finds its security manager like this.) It sees
    the root alone, as the rest of the path is not in its tree.
    """
    config = make_config(redis_url, root_factory=SiteRoot, security_policy=SitePolicy())
    config.add_traverser(Announcing)
    entered: list[Any] = []
    config.add_subscriber(
        lambda event: entered.append((event.request.entered, event.request.matchdict)),
        ContextFound,
    )
    app = make_app(config)
    uuid = put(store)
    place = f"/job_state/{uuid}"

    for header in {}, {"X_VHM_Root": "/nowhere"}:
        entered.clear()
        job = get(app, place, "alice", **header).json["job"]
        assert job["cancellable"] is True
        ((root, matchdict),) = entered
        assert isinstance(root, SiteRoot)
        assert matchdict == {"uuid": uuid}
        for path, user, status in (
            (place, "bob", 403),
            (place, "mallory", 403),
            (place, ADMIN, 200),
            (f"/job_state/{UUID}", "alice", 404),
            ("/job_state", "alice", 200),
        ):
            assert get(app, path, user, **header).status_code == status, (path, user)
    response = ask(app, "POST", f"{place}/cancel", "alice", X_Requested_With="x")
    assert response.status_code == 202


# Mounted in the application's tree


def test_places_answer_alike(redis_url: str, store: JobStore) -> None:
    """Wherever jobs are, they have the same JSON but for the URL, unknown names are our
    404, and an outage is our 503.
    """
    config = make_config(redis_url, root_factory=mounted_root)
    own = JobStore(redis_url)
    config.include("pyramid_jobstate")
    config.set_job_store(own)
    app = make_app(config)
    uuid = put(store)
    states = []
    for place in PLACES:
        state = get(app, f"{place}/{uuid}", "alice").json
        assert state["job"].pop("url") == f"http://localhost{place}/{uuid}/"
        states.append(state)
        for name in f"/{UUID}", f"/{UUID}/", "/x", "/x/y":
            response = get(app, place + name, "alice")
            assert (response.status_code, response.json) == (404, NOT_FOUND)
        with away(own):
            response = get(app, f"{place}/{UUID}", "alice")
        assert (response.status_code, response.json) == (503, AWAY)
        assert response.headers["Retry-After"] == "5"
        assert response.headers["Cache-Control"] == "private, no-cache"
    assert states[0] == states[1] == states[2]
    assert get(app, f"/job_state/{UUID}", "alice").status_code == 404


def test_views_of_the_application_work_beside_ours_in_its_tree(
    redis_url: str, store: JobStore
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
    uuid = put(store)

    for path, user, text in (
        (f"/jobs/{uuid}/page", "alice", "RunMarathon"),
        (f"/jobs/{uuid}/page", "bob", "app 403"),
        (f"/jobs/{uuid}/none", "alice", "app 404"),
        ("/jobs/page", ADMIN, "All"),
        ("/jobs/page", "bob", "app 403"),
    ):
        assert get(app, path, user).text == text, (path, user)
    assert get(app, f"/jobs/{uuid}", "bob").json == FORBIDDEN
    assert ask(app, "PUT", f"/jobs/{uuid}", "alice").json["error"]
    with pytest.raises(KeyError):
        get(app, f"/jobs/{uuid}/gone")


def test_route_of_the_application_may_have_the_container_as_its_root(
    redis_url: str, store: JobStore
) -> None:
    """A hybrid route of the application can have JobStates as its root factory."""
    config = make_config(redis_url)
    config.add_route("mine", "/mine/*traverse", factory=JobStates)
    config.add_view(lambda c, r: Response(c.uuid), route_name="mine")
    job = put(store)

    assert get(make_app(config), f"/mine/{job}", "alice").text == job
