"""The routes: introspection, methods, CSRF, CORS, and request.job_states."""

import logging
from pathlib import Path
from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.events import ContextFound
from pyramid.exceptions import BadCSRFToken, ConfigurationError
from pyramid.httpexceptions import HTTPBadRequest, HTTPForbidden, HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.scripts.proutes import PRoutesCommand
from pyramid.threadlocal import manager
from pyramid.traversal import ResourceTreeTraverser, find_resource
from webtest import TestApp

from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.web.applications import name_of
from tests.support import UUID
from tests.webapp import (
    NOWHERE,
    Root,
    ask,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    mounted_root,
    put_job,
    take_steps,
)

PREFLIGHT = {
    "Origin": "https://shop.example",
    "Access_Control_Request_Method": "POST",
    "Access_Control_Request_Headers": "x-requested-with",
}


# Introspection by tools.


def main(global_config: Any, **settings: str) -> Any:
    """Return an application, as an ini file makes it."""
    config = make_config(NOWHERE, settings=settings)
    config.include("pyramid_jobstate", route_prefix=settings["prefix"])
    return config.make_wsgi_app()


@pytest.mark.parametrize("prefix", ["/", "/api/"])
def test_proutes_shows_the_documented_paths(tmp_path: Path, prefix: str) -> None:
    """Pyramid's own command lists each URL of the README as a route with its view."""
    ini = tmp_path / "app.ini"
    factory = f"{__name__}:main"
    ini.write_text(f"[app:main]\npaste.app_factory = {factory}\nprefix = {prefix}\n")
    lines: list[str] = []
    command = PRoutesCommand(["proutes", str(ini)])
    command.out = lines.append

    try:
        command.run()
    finally:
        # It leaves its request behind.
        manager.clear()

    rows = {tuple(row.split()[1:]) for line in lines for row in line.splitlines()}
    path, ours = f"{prefix}job_state", "pyramid_jobstate.web"
    assert {
        (path, f"{ours}.views.show_many", "GET"),
        (f"{path}/counts", f"{ours}.operators.counts", "GET"),
        (f"{path}/clear", f"{ours}.bulk.clear", "POST"),
        (f"{path}/cancel", f"{ours}.bulk.cancel_many", "POST"),
        (f"{path}/rerun", f"{ours}.bulk.rerun_many", "POST"),
        (f"{path}/{{uuid}}", f"{ours}.views.show", "GET"),
        (f"{path}/{{uuid}}", f"{ours}.acts.delete", "DELETE"),
        (f"{path}/{{uuid}}/cancel", f"{ours}.acts.cancel", "POST"),
        (f"{path}/{{uuid}}/rerun", f"{ours}.acts.rerun", "POST"),
        (f"{path}/{{uuid}}/inspect", f"{ours}.operators.inspect", "GET"),
    } <= rows


@pytest.mark.parametrize(
    ("method", "path", "pattern"),
    [
        ("GET", "/job_state", "/job_state"),
        ("GET", "/job_state/{job}", "/job_state/{uuid}"),
        ("GET", "/job_state/{job}/", "/job_state/{uuid}/"),
        ("POST", "/job_state/{job}/cancel", "/job_state/{uuid}/cancel"),
        ("POST", "/job_state/{job}/rerun", "/job_state/{uuid}/rerun"),
        ("GET", "/job_state/{job}/inspect", "/job_state/{uuid}/inspect"),
        ("GET", "/job_state/counts", "/job_state/counts"),
        ("POST", "/job_state/clear", "/job_state/clear"),
        ("POST", "/job_state/cancel", "/job_state/cancel"),
        ("POST", "/job_state/rerun", "/job_state/rerun"),
        ("GET", "/job_state?uuid={job}", "/job_state"),
    ],
)
def test_matched_route_has_the_documented_pattern(
    redis_url: str, client: redis.Redis, method: str, path: str, pattern: str
) -> None:
    """For traces and metrics, a request's matched route has the documented pattern."""
    seen = []
    config = make_config(redis_url)
    config.add_subscriber(lambda e: seen.append(e.request.matched_route), ContextFound)
    app = make_app(config)

    ask(app, method, path.format(job=put_job(client)), "alice", X_Requested_With="x")

    (route,) = seen
    assert f"/{route.pattern.lstrip('/')}" == pattern


def test_container_is_traversed_by_pyramids_functions(
    redis_url: str, client: redis.Redis
) -> None:
    """find_resource() finds a job in a container, as in every resource tree."""
    config = made_config(redis_url)
    container = make_request(config, "alice").job_states
    job = put_job(client)

    assert find_resource(container, job).uuid == job
    with pytest.raises(KeyError):
        find_resource(container, UUID)


def test_route_of_the_application_may_have_the_container_as_its_root(
    redis_url: str, client: redis.Redis
) -> None:
    """A hybrid route of the application can have JobStates as its root factory."""
    config = make_config(redis_url)
    config.add_route("mine", "/mine/*traverse", factory=JobStates)
    config.add_view(lambda c, r: Response(c.uuid), route_name="mine")
    app = make_app(config)
    job = put_job(client)

    assert get(app, f"/mine/{job}", "alice").text == job


# Methods.


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
@pytest.mark.parametrize(
    ("method", "end", "allowed"),
    [
        ("PUT", "", "GET, HEAD"),
        ("DELETE", "", "GET, HEAD"),
        ("OPTIONS", "/{job}", "GET, DELETE, HEAD"),
        ("PATCH", "/{job}", "GET, DELETE, HEAD"),
        ("GET", "/{job}/cancel", "POST"),
        ("HEAD", "/{job}/cancel", "POST"),
        ("DELETE", "/{job}/rerun", "POST"),
        ("POST", "/{job}/inspect", "GET, HEAD"),
        ("POST", "/counts", "GET, HEAD"),
        ("GET", "/clear", "POST"),
        ("OPTIONS", "/cancel", "POST"),
        ("PUT", "/rerun", "POST"),
    ],
)
def test_other_method_is_refused_whatever_the_application_demands(
    redis_url: str,
    client: redis.Redis,
    place: str,
    method: str,
    end: str,
    allowed: str,
) -> None:
    """Neither a CSRF check nor a default permission prevents the 405."""
    config = make_config(redis_url, root_factory=mounted_root)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    config.set_default_permission("enter")
    app = make_app(config)

    response = ask(app, method, place + end.format(job=put_job(client)))

    assert response.status_code == 405
    assert response.headers["Allow"] == allowed
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "end", ["/{unknown}", "/{unknown}/", "/{unknown}/cancel", "/x/y"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_unknown_job_is_not_found_whatever_the_application_demands(
    redis_url: str, method: str, end: str
) -> None:
    """A CSRF check does not prevent the 404."""
    config = make_config(redis_url)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    app = make_app(config)

    response = ask(app, method, f"/job_state{end}")

    assert response.status_code == 404
    assert response.content_type == "application/json"


# Exceptions.


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
@pytest.mark.parametrize(
    "options",
    [
        {"accept": "text/html"},
        {"accept": "application/json"},
        {"request_method": ("GET", "POST"), "header": "Accept"},
    ],
    ids=lambda o: str([*o.items()]),
)
def test_exception_views_of_the_application_stay_away(
    redis_url: str, client: redis.Redis, options: dict[str, Any], accept: str
) -> None:
    """Exception views of the application never answer for ours, however specific."""
    config = make_config(redis_url)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    for add in (
        config.add_notfound_view,
        config.add_forbidden_view,
        lambda v, **o: config.add_exception_view(v, context=HTTPBadRequest, **o),
    ):
        add(lambda exc, request: Response("app"), **options)
    config.include("pyramid_jobstate")
    config.commit()
    app = TestApp(config.make_wsgi_app())
    job = put_job(client)

    answers = [
        get(app, f"/job_state/{UUID}", "alice", Accept=accept),
        get(app, f"/job_state/{job}", "bob", Accept=accept),
        get(app, "/job_state?all=1", "bob", Accept=accept),
        get(app, f"/job_state/{UUID}/cancel", "alice", Accept=accept),
        ask(app, "POST", f"/job_state/{job}/cancel", "alice", Accept=accept),
    ]

    assert [a.status_code for a in answers] == [404, 403, 403, 404, 400]
    assert {a.content_type for a in answers} == {"application/json"}


@pytest.mark.parametrize("error", [HTTPForbidden, HTTPNotFound])
def test_what_the_application_raises_on_the_way_is_json(
    redis_url: str, client: redis.Redis, error: type[Exception]
) -> None:
    """If a subscriber of the application refuses a request for a job, the response is
    like that of our views.
    """

    def refuse(event: Any) -> None:
        raise error

    config = make_config(redis_url)
    config.add_subscriber(refuse, ContextFound)
    config.add_notfound_view(lambda exc, request: Response("app"))
    config.add_forbidden_view(lambda exc, request: Response("app"))
    app = make_app(config)

    response = get(app, f"/job_state/{put_job(client)}", "alice")

    assert response.status_code in (403, 404)
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_traverser_that_finds_nothing_at_our_path_is_left_alone(
    redis_url: str, client: redis.Redis
) -> None:
    """A traverser for all resources that raises HTTPNotFound does not break polls."""

    class Picky(ResourceTreeTraverser):
        def __call__(self, request: Request) -> Any:
            raise HTTPNotFound(request.path)

    config = make_config(redis_url)
    config.add_traverser(Picky)
    app = make_app(config)

    assert get(app, f"/job_state/{put_job(client)}", "alice").status_code == 200


def test_container_as_the_root_of_everything_ends_the_lineage(
    redis_url: str, client: redis.Redis
) -> None:
    """If the application's root is a JobStates, the lineage ends there."""
    app = make_app(make_config(redis_url, root_factory=JobStates))
    job = put_job(client)

    assert get(app, f"/job_state/{job}", "alice").status_code == 200
    assert get(app, f"/job_state/{job}", "bob").status_code == 403
    assert get(app, "/job_state?all=1", "bob").status_code == 403


# CSRF.


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_refused_csrf_check_is_json(
    redis_url: str, client: redis.Redis, place: str, scheme: str
) -> None:
    """A request below our path that Pyramid's CSRF check refuses, by token or origin,
    gets JSON. Elsewhere the application answers.
    """
    config = make_config(redis_url, root_factory=mounted_root)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    config.add_view(lambda c, r: Response("posted"), name="post")
    app = make_app(config)
    job = put_job(client)
    environ = {"wsgi.url_scheme": scheme, "HTTP_HOST": "shop.example"}
    headers = {"X-User": "alice", "X-Requested-With": "x", "Accept": "text/html"}

    response = app.post(
        f"{place}/{job}/cancel", headers=headers, extra_environ=environ, status=400
    )
    elsewhere = app.post("/post", headers=headers, extra_environ=environ, status=400)

    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    (error,) = response.json.values()
    assert error.startswith("The CSRF check refused the request.")
    assert ("Origin" in error) is (scheme == "https")
    assert "None" not in error
    assert elsewhere.content_type == "text/html"
    assert client.hget(f"jobstate:{job}", "status") in (b"working", "working")


@pytest.mark.parametrize(
    ("method", "end"),
    [
        ("POST", "/{job}/cancel"),
        ("POST", "/{job}/rerun"),
        ("DELETE", "/{job}"),
        ("DELETE", "/{job}/"),
        ("POST", "/clear"),
        ("POST", "/cancel"),
        ("POST", "/rerun"),
    ],
)
@pytest.mark.parametrize("exception", [BadCSRFToken, HTTPBadRequest, Exception])
def test_csrf_view_of_the_application_stays_away(
    redis_url: str, client: redis.Redis, method: str, end: str, exception: Any
) -> None:
    """The application's own view for a refused check, however specific, does not answer
    for our routes.
    """
    config = make_config(redis_url)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    predicates = {"request_method": method, "header": "X-User", "accept": "text/html"}
    config.add_exception_view(
        lambda exc, request: Response("app"), context=exception, **predicates
    )
    app = make_app(config)
    path = f"/job_state{end.format(job=put_job(client))}"

    response = ask(app, method, path, "alice", Accept="text/html")

    assert response.status_code == 400
    assert response.json["error"].startswith("The CSRF check refused the request.")


# CORS.


class PreflightPredicate:
    """A route predicate of the application that matches CORS preflights."""

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"preflight = {self.value}"

    phash = text

    def __call__(self, info: Any, request: Request) -> bool:
        return (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in request.headers
        )


def add_cors(config: Configurator) -> None:
    """Let a route of the application answer every preflight."""
    config.add_route_predicate("preflight", PreflightPredicate)
    config.add_route("preflight", "/{everything:.*}", preflight=True)
    config.add_view(
        lambda c, r: Response(headers={"Access-Control-Allow-Origin": "*"}),
        route_name="preflight",
    )


@pytest.mark.parametrize(
    "end", ["", f"/{UUID}", f"/{UUID}/", f"/{UUID}/cancel", "/clear", "/x"]
)
@pytest.mark.parametrize("is_first", [True, False])
def test_preflight_is_the_applications(end: str, is_first: bool) -> None:
    """A CORS preflight reaches the application's route, wherever it stands, without
    asking the store.
    """
    config = make_config(NOWHERE)
    if is_first:
        config.include(add_cors)
    config.include("pyramid_jobstate")
    if not is_first:
        config.include(add_cors)
    app = TestApp(config.make_wsgi_app())

    response = ask(app, "OPTIONS", f"/job_state{end}", **PREFLIGHT)

    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_preflight_that_nobody_answers_is_not_found(app_nowhere: TestApp) -> None:
    """Without CORS in the application, no other origin is allowed anything."""
    response = ask(app_nowhere, "OPTIONS", f"/job_state/{UUID}", **PREFLIGHT)

    assert response.status_code == 404
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.fixture
def app_nowhere() -> TestApp:
    return make_app(make_config(NOWHERE))


# The request method.


def own_method(request: Request) -> str:
    return "mine"


class OwnRequest(Request):
    """A request whose class already has an attribute of this name."""

    def job_states(self) -> str:
        return "mine"


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"property": True}, {"reify": True}], ids=lambda o: str([*o])
)
def test_request_method_of_the_same_name_stops_the_start(
    is_first: bool, options: dict[str, bool]
) -> None:
    """An application's own `request.job_states` is an error at the start."""
    config = make_config(NOWHERE)
    if is_first:
        config.add_request_method(own_method, "job_states", **options)
    config.include("pyramid_jobstate")
    if not is_first:
        config.add_request_method(own_method, "job_states", **options)

    with pytest.raises(ConfigurationError, match="request method job_states"):
        config.make_wsgi_app()


@pytest.mark.parametrize(
    "options", [{}, {"property": True}, {"reify": True}], ids=lambda o: str([*o])
)
@pytest.mark.parametrize(
    "steps",
    ["own commit include make", "include commit own make", "auto own include make"],
)
def test_request_method_is_found_after_a_commit(
    steps: str, options: dict[str, bool]
) -> None:
    """The conflict is found even after a commit, where Pyramid's own detection ends."""
    config = make_config(NOWHERE)
    config.autocommit = "auto" in steps

    def own() -> None:
        config.add_request_method(own_method, "job_states", **options)

    with pytest.raises(ConfigurationError, match="request method job_states"):
        take_steps(config, steps, own=own, auto=lambda: None)


def test_request_class_with_such_an_attribute_stops_the_start() -> None:
    """An attribute of the request class that ours would hide is an error."""
    config = make_config(NOWHERE, request_factory=OwnRequest)
    config.include("pyramid_jobstate")

    with pytest.raises(ConfigurationError, match=r"OwnRequest.*Rename yours"):
        config.make_wsgi_app()


def test_other_request_methods_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Other request methods, and request classes without ours, cause no warning."""

    class PlainRequest(Request):
        pass

    config = make_config(NOWHERE, request_factory=PlainRequest, root_factory=Root)
    config.add_request_method(own_method, "jobs")
    config.include("pyramid_jobstate")

    with caplog.at_level(logging.WARNING):
        config.make_wsgi_app()

    assert caplog.records == []


def test_tests_of_an_application_may_set_it(redis_url: str) -> None:
    """Tests may set request.job_states to a container of their own."""
    config = made_config(redis_url)
    request = make_request(config, "alice")
    assert request.job_states is request.job_states

    request.job_states = mine = JobStates(request)

    assert request.job_states is mine


@pytest.mark.parametrize("name", ["", "cancel", "rerun", "inspect"])
def test_static_files_come_before_jobs(redis_url: str, name: str) -> None:
    """A path below our static files never leads to a job."""
    seen = []
    config = make_config(redis_url)
    config.add_subscriber(lambda e: seen.append(e.request.matched_route), ContextFound)
    app = make_app(config)

    response = get(app, f"/job_state/static/{name}")

    assert response.status_code == 404
    assert response.content_type != "application/json"
    assert seen[0].pattern == "job_state/static/*subpath"


def test_application_has_the_name_that_earlier_versions_gave_it() -> None:
    """Messages that they have sent name the application by a hash of its routes."""
    settings = {"jobstate.redis_url": "redis://127.0.0.1:23999/0"}
    config = Configurator(settings=settings, package="tests")
    config.add_route("a", "/a")
    config.include("pyramid_jobstate")
    config.add_route("b", "/b")
    config.commit()

    assert name_of(config.registry) == "7db41052"
