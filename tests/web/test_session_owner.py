"""The setting ``jobstate.owner = session``: visitors own what their session sent."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from dramatiq import Broker, actor
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp

from pyramid_jobstate import JobStore, RequestMiddleware
from tests.jobs import wait_until, working
from tests.webapp import EXPLICIT, Root, make_request

Visitors = Callable[[], TestApp]
AJAX = {"X-Requested-With": "XMLHttpRequest"}


def cookies(timeout: int | None = None) -> Any:
    """Return a factory of cookie sessions, each access to which renews the cookie."""
    return SignedCookieSessionFactory("s" * 64, timeout=timeout, reissue_time=-1)


def make_visited(redis_url: str, broker: Broker) -> Configurator:
    """Return the configurator of an application whose visitors send jobs."""
    run_marathon = broker.get_actor("run_marathon")
    settings = {"jobstate.redis_url": redis_url, "jobstate.owner": "session"}
    config = Configurator(settings={**settings, **EXPLICIT}, root_factory=Root)
    config.set_session_factory(cookies())
    config.include("pyramid_tm")
    config.include("pyramid_jobstate")

    def send(request: Request) -> Any:
        return request.job_states.send(run_marathon, 26).uuid

    def now(request: Request) -> Any:
        return request.job_states.send_immediately(run_marathon, 26).uuid

    def between(request: Request) -> Any:
        old = send(request)
        request.session.invalidate()
        return [old, send(request)]

    def beside(request: Request) -> Any:
        with request.job_states.batch() as batch:
            batch.send(run_marathon, 26)
            return [batch.uuid, send(request), now(request)]

    def named(request: Request) -> Any:
        give = functools.partial(request.job_states.send_with_options, run_marathon)
        return [give((26,), owner=owner).uuid for owner in ("bob", None)]

    def page(request: Request) -> Any:
        """Show a job and the visitor's others, as a page with progress bars does."""
        jobs = request.job_states
        found = jobs.find(request.GET.get("uuid", ""))
        may = found is not None and bool(jobs.permits(found, "view_job"))
        owner = jobs.current_owner
        return {"may": may, "count": len(jobs.list(owner).items) if owner else 0}

    for view in (send, now, between, beside, named, page):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__, renderer="json")
    config.make_wsgi_app()
    return config


@pytest.fixture
def config(redis_url: str, global_broker: Broker) -> Configurator:
    """Override: an application whose visitors send jobs."""
    return make_visited(redis_url, global_broker)


@pytest.fixture
def new_visitor(config: Configurator) -> Visitors:
    app = config.make_wsgi_app()
    return lambda: TestApp(app)


def owners(store: JobStore) -> set[Any]:
    return {job.owner for job in store.list().items}


@pytest.mark.parametrize("path", ["/send", "/now"])
def test_send_makes_a_name(new_visitor: Visitors, store: JobStore, path: str) -> None:
    """The first send makes a random name, which the session keeps for later ones."""
    visitor, other = new_visitor(), new_visitor()
    uuid = visitor.post(path).json
    for each in visitor.post("/beside").json:
        visitor.get(f"/job_state/{each}", status=200)
    assert visitor.get(f"/job_state/{uuid}").json["job"]["cancellable"] is True
    assert visitor.get(f"/page?uuid={uuid}").json == {"may": True, "count": 4}
    assert len(visitor.get("/job_state").json["items"]) == 4
    other.post("/beside")
    forger = new_visitor()
    forger.set_cookie("session", "forged")
    for stranger in (other, new_visitor(), forger):
        stranger.get(f"/job_state/{uuid}", status=403)
        stranger.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=403)
        assert stranger.get(f"/job_state?uuid={uuid}").json == {"jobs": {uuid: None}}
        assert stranger.get(f"/page?uuid={uuid}").json["may"] is False
    visitor.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=202)
    assert len(owners(store)) == 2
    assert all(owner is not None and len(owner) > 20 for owner in owners(store))


def test_invalidated_session_gets_a_new_name(
    new_visitor: Visitors, store: JobStore
) -> None:
    """After a login between two sends, the old name would be lost."""
    visitor = new_visitor()
    old, new = visitor.post("/between").json
    visitor.get(f"/job_state/{new}", status=200)
    visitor.get(f"/job_state/{old}", status=403)
    assert len(owners(store)) == 2


def test_reading_sets_no_cookie(new_visitor: Visitors) -> None:
    """Neither a poll nor a cancel does: it could undo what another request stored."""
    sender = new_visitor()
    uuid = sender.post("/send").json
    cookie = sender.cookies["session"]
    jobs, query = "/job_state", f"?uuid={uuid}"
    stranger = new_visitor()
    for path in f"{jobs}/{uuid}", f"{jobs}{query}", jobs, f"/page{query}":
        for visitor in (sender, stranger):
            visitor.get(path, expect_errors=True)
    sender.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=202)
    assert sender.cookies == {"session": cookie}
    assert stranger.cookies == {}


def test_named_owner_makes_no_name(new_visitor: Visitors, store: JobStore) -> None:
    """A send that names the owner, or none, leaves the session alone."""
    visitor = new_visitor()
    response = visitor.post("/named")
    assert "Set-Cookie" not in response.headers
    for uuid in response.json:
        visitor.get(f"/job_state/{uuid}", status=403)
    assert owners(store) == {None, "bob"}


def test_request_of_a_job_makes_no_name(
    config: Configurator, global_broker: Broker
) -> None:
    """What a job sends belongs to the job's owner, if any, and to no session."""
    global_broker.add_middleware(RequestMiddleware())
    config.make_wsgi_app()
    run_marathon = global_broker.get_actor("run_marathon")
    found: list[Any] = []

    @actor(broker=global_broker, job_state=True)
    def lead(*, request: Any = None, job_state: Any = None) -> None:
        states = request.job_states
        child = states.send(run_marathon, 1)
        rights = bool(states.permits(child, "view_job"))
        found.append((child.owner, states.current_owner, rights, len(request.session)))

    for owner in "somebody", None:
        options: Any = {"job_owner": owner}
        message = lead.message_with_options(**options)
        uuid = make_request(config).job_states.send_immediately(message).uuid
        with working(global_broker):
            wait_until(global_broker, message.copy(message_id=uuid), "success")
    assert found == [("somebody", "somebody", True, 0), (None, None, False, 0)]
