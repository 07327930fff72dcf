"""A store that is away: the answers of our views and the application's, and the log."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from pyramid.events import ContextFound
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.testing import away
from tests.jobs import RunMarathon, messages
from tests.relay import relaying
from tests.support import UUID, crowded
from tests.web.reading import AWAY, put
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Policy,
    ask,
    get,
    make_app,
    make_config,
    make_request,
    mounted_root,
    take_steps,
)

#: Pages of the application whose views ask for jobs.
PATHS = ["/find", "/list", "/getitem", "/routed/1"]

#: Requests that need the store, without their place.
EVERYTHING = f"""GET /{UUID} GET /? GET /?limit=5 GET /?uuid={UUID} GET /?owner=x
    GET /?all=1 GET /counts GET /{UUID}/inspect POST /{UUID}/cancel
    POST /{UUID}/stack POST /{UUID}/rerun DELETE /{UUID} POST /clear?everything=1&all=1
    POST /cancel?all=1&everything=1""".split()


def config_without_store() -> Configurator:
    """Return the configurator of an application whose views find its store away."""
    config = make_config(NOWHERE, root_factory=mounted_root)
    config.add_route("routed", "/routed/{x}")
    for name, view in (
        ({"name": "find"}, lambda c, r: r.job_states.find(UUID)),
        ({"route_name": "routed"}, lambda c, r: r.job_states.find(UUID)),
        ({"name": "list"}, lambda c, r: r.job_states.list()),
        ({"name": "getitem"}, lambda c, r: r.job_states[UUID]),
    ):
        config.add_view(view, renderer="string", **name)
    return config


@contextlib.contextmanager
def narrow(client: redis.Redis, url: str, *commands: str) -> Iterator[str]:
    """Give the URL of a user who may do little on a server."""
    rules = ["on", ">secret", "~jobstate:*", "+time", "+client", "+hello", "+ping"]
    client.execute_command("ACL SETUSER", "narrow", *rules, *commands)
    try:
        yield url.replace("//", "//narrow:secret@")
    finally:
        client.acl_deluser("narrow")


def is_503(response: Any) -> bool:
    return bool(response.status_code == 503 and response.headers["Retry-After"] == "5")


@pytest.mark.promise("views-answer-503")
def test_answer_is_of_the_accepted_type(caplog):
    """An outage is a page, or JSON as accepted or below our path, and logged once."""
    app = make_app(config_without_store())
    for path in PATHS:
        for accept in "text/html", "application/json", "text/plain":
            response = get(app, path, "alice", Accept=accept)
            assert is_503(response), path
            assert response.content_type == accept
            assert "does not answer" in response.text
    for path in f"/job_state/{UUID}", f"/jobs/{UUID}", "/jobs":
        response = get(app, path, "alice", Accept="text/html")
        assert is_503(response)
        assert response.json == AWAY
    assert len(messages(caplog, "pyramid_jobstate", logging.INFO)) == 1


@pytest.mark.promise("views-answer-503")
def test_store_that_hangs_is_a_503_soon(redis_url):
    """A store that takes requests and answers none holds nobody up for long."""
    with relaying(redis_url) as relay:
        app = make_app(make_config(relay.url))
        assert get(app, "/job_state", "alice").status_code == 200
        with relay.held():
            begun = time.monotonic()
            assert is_503(get(app, f"/job_state/{UUID}", "alice"))
            # It takes about one second: the others are left to a busy machine.
            assert time.monotonic() - begun < 5


def test_view_of_the_application_wins():
    """The application's exception view is used, but not for requests for jobs."""

    def own_view(exc: Exception, request: Request) -> Response:
        return Response("app 503", 503)

    for steps in "own include make", "include own make", "include commit own make":
        config = config_without_store()
        own = functools.partial(config.add_exception_view, own_view, StoreUnavailable)
        app = take_steps(config, steps, own=own)
        for path in PATHS:
            assert get(app, path, "alice").text == "app 503", steps
        for path in f"/job_state/{UUID}", f"/jobs/{UUID}":
            assert get(app, path, "alice").content_type == "application/json"
    config = config_without_store()
    config.add_exception_view(lambda e, r: Response("app 500", 500), context=Exception)
    app = make_app(config)
    for path in "/find", f"/job_state/{UUID}", f"/jobs/{UUID}":
        assert is_503(get(app, path, "alice"))


def test_outage_is_never_a_refusal():
    """During an outage no page is a 404, 403 or 500, at which it would stop polling."""

    class ByKind(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            return isinstance(context, RunMarathon) or context.kind == "RunMarathon"

    config = make_config(NOWHERE, root_factory=mounted_root, security_policy=ByKind())
    page = {"renderer": "string"}
    config.add_view(lambda c, r: c.title, name="watch", context=JobState, **page)
    config.add_view(lambda c, r: c.title, name="kind", context=RunMarathon, **page)
    config.add_route("routed", "/routed/{uuid}", traverse="/jobs/{uuid}")
    config.add_view(lambda c, r: c.status, route_name="routed", **page)
    app = make_app(config)
    for path in (
        f"/jobs/{UUID}/watch",
        f"/jobs/{UUID}/kind",
        f"/routed/{UUID}",
        f"/jobs/{UUID}",
        f"/job_state/{UUID}",
    ):
        assert is_503(get(app, path, "alice")), path


def test_job_that_is_not_read():
    """Code can print an unread job. Any other use of it is a 503."""
    seen: list[str] = []
    uses: list[Callable[[Any], object]] = [
        lambda job: seen.append(repr(job)),
        JobState.cancel,
        JobState.__acl__,
    ]
    for use in uses:
        config = make_config(NOWHERE)
        config.add_subscriber(lambda e, u=use: u(e.request.context), ContextFound)
        assert is_503(get(make_app(config), f"/job_state/{UUID}", "alice")), use
    assert seen == [f"<JobState {UUID} unread>"]


def watch(handler: Any, registry: Any) -> Any:
    """Note exceptions, as pyramid_exclog does."""

    def tween(request: Request) -> Any:
        try:
            return handler(request)
        except BaseException as e:
            registry["seen"].append(type(e).__name__)
            raise

    return tween


def make_watched(url: str, **settings: str) -> tuple[TestApp, JobStore, list[str]]:
    """Return an application, its store, and the exceptions that pass its tween."""
    given = {f"jobstate.{name}": value for name, value in settings.items()}
    config = make_config(url, root_factory=mounted_root, settings=given)
    seen: list[str] = []
    config.registry["seen"] = seen
    config.add_tween(f"{__name__}.watch")
    app = make_app(config)
    return app, make_request(config).job_states.store, seen


@pytest.mark.promise("views-answer-503")
def test_outage_raises_nothing_through_the_tweens(redis_url, caplog):
    """Every request gets a 503. The log has a line for an outage and for its end."""
    app, store, seen = make_watched(redis_url)
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    for asked in EVERYTHING, EVERYTHING[:2]:
        caplog.clear()
        with away(store):
            for place in "/job_state", "/jobs":
                for method, end in zip(asked[::2], asked[1::2], strict=True):
                    answer = ask(app, method, place + end, ADMIN, X_Requested_With="x")
                    assert is_503(answer) and answer.json == AWAY, (method, end)
            assert get(app, "/job_state?uuid=x", "alice").status_code == 200
        (line,) = caplog.records
        assert line.levelno == logging.WARNING
        assert line.getMessage().startswith("The job state store does not answer.")
        assert line.exc_info is None
        caplog.clear()
        for _ in range(3):
            assert get(app, f"/job_state?uuid={UUID}", ADMIN).status_code == 200
        said = messages(caplog, "pyramid_jobstate", logging.INFO)
        assert said == ["The job state store answers again."]
    assert seen == []


def test_log_has_few_lines_of_a_store_that_comes_and_goes(
    redis_url, caplog, monkeypatch
):
    """It tells of five outages a minute, as with one node of a Cluster away."""
    app, store, _ = make_watched(redis_url)
    clock, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + clock[0])
    for clock[0], begun, logged in (0, 7, 5), (61, 2, 2):
        caplog.clear()
        for _ in range(begun):
            with away(store):
                assert get(app, f"/job_state?uuid={UUID}", ADMIN).status_code == 503
            assert get(app, f"/job_state?uuid={UUID}", ADMIN).status_code == 200
        assert len(messages(caplog, "pyramid_jobstate")) == logged


@pytest.mark.parametrize(
    ("virtual", "place"), [("/site", "/jobs"), ("/site/", "/jobs"), ("/site/jobs", "")]
)
def test_outage_below_a_virtual_root(virtual, place):
    """A container below a virtual root answers as any other, without an exception."""
    app, _, seen = make_watched(NOWHERE)
    sent = {"X_Vhm_Root": virtual, "X_Requested_With": "x"}
    for method, end in ("GET", ""), ("GET", "/"), ("GET", "/log"), ("POST", "/cancel"):
        answer = ask(app, method, f"{place}/{UUID}{end}", "alice", **sent)
        assert is_503(answer)
        assert answer.json == AWAY
    assert seen == []


def test_store_that_refuses_is_a_503(redis_url, client, store, caplog, monkeypatch):
    """If the store refuses, the answer is a 503, and the log says so once a minute."""
    with narrow(client, redis_url, "-hgetall") as url:
        app = make_app(make_config(url))
        for query in f"/{UUID}", f"?uuid={UUID}&uuid={UUID[::-1]}":
            assert get(app, f"/job_state{query}", "alice").status_code == 503
    clock, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + clock[0])
    job = put(store)
    with narrow(client, redis_url, "+hgetall") as url:
        app, _, seen = make_watched(url)
        for clock[0] in 0, 61:
            caplog.clear()
            for _ in range(5):
                assert get(app, f"/job_state/{job}", "alice").status_code == 200
                path = f"/job_state/{job}/cancel"
                response = ask(app, "POST", path, "alice", X_Requested_With="x")
                assert response.status_code == 503
            (line,) = messages(caplog, "pyramid_jobstate", logging.INFO)
            assert line.startswith("The job state store refused a request")
            assert "secret" not in line
    assert seen == []


def test_full_pool_is_a_503_in_words_of_its_own(redis_url, caplog):
    """Requests and the log, once, say that no connection is free, and not an outage."""
    app, store, seen = make_watched(redis_url, max_connections="1")
    job = put(store)
    said = {"error": "All 1 connections to the store are in use."}
    with crowded(store):
        for path in f"/job_state/{job}", "/job_state/", f"/job_state/{job}/inspect":
            response = get(app, path, ADMIN)
            assert is_503(response)
            assert response.json == said
        path = f"/job_state/{job}/cancel"
        assert is_503(ask(app, "POST", path, ADMIN, X_Requested_With="x"))
    assert get(app, f"/job_state/{job}", ADMIN).status_code == 200
    (line,) = messages(caplog, "pyramid_jobstate")
    assert line.startswith("All 1 connections to the store are in use. Requests for")
    assert seen == []
