"""The routes: introspection, paths, methods, and the application's own around them."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.events import ContextFound
from pyramid.exceptions import BadCSRFToken, ConfigurationError, URLDecodeError
from pyramid.httpexceptions import HTTPBadRequest, HTTPForbidden, HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.scripts.proutes import PRoutesCommand
from pyramid.threadlocal import manager
from pyramid.traversal import ResourceTreeTraverser
from webtest import TestApp

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
    RequestMiddleware,
)
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import outbox
from tests.jobs import job_actor
from tests.support import UUID, load_job
from tests.web.reading import FORBIDDEN, NOT_FOUND, put
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Root,
    ask,
    get,
    make_app,
    make_config,
    make_request,
    mounted_root,
    take_steps,
)

PREFLIGHT = {
    "Origin": "https://shop.example",
    "Access_Control_Request_Method": "POST",
    "Access_Control_Request_Headers": "x-requested-with",
}


def checking_csrf(config: Configurator) -> Configurator:
    """Let an application check CSRF tokens everywhere."""
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    return config


# Introspection by tools


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

    rows = [row.split()[1:] for line in lines for row in line.splitlines()]
    found = {(r[0], r[2]) for r in rows if len(r) == 3 and "pyramid_jobstate" in r[1]}
    assert {
        (f"{prefix}job_state{end}", method)
        for end, method in (
            ("", "GET"),
            ("/counts", "GET"),
            ("/clear", "POST"),
            ("/cancel", "POST"),
            ("/rerun", "POST"),
            ("/{uuid}", "GET"),
            ("/{uuid}", "DELETE"),
            ("/{uuid}/cancel", "POST"),
            ("/{uuid}/rerun", "POST"),
            ("/{uuid}/inspect", "GET"),
        )
    } <= found


def test_matched_route_has_the_documented_pattern(
    redis_url: str, store: JobStore
) -> None:
    """For traces and metrics, a request's matched route has the documented pattern. A
    path below our static files never leads to a job.
    """
    seen: list[Any] = []
    config = make_config(redis_url)
    config.add_subscriber(lambda e: seen.append(e.request.matched_route), ContextFound)
    app = make_app(config)
    job = put(store)
    for method, end, pattern in (
        ("GET", "", ""),
        ("GET", "/{job}", "/{uuid}"),
        ("GET", "/{job}/", "/{uuid}/"),
        ("POST", "/{job}/cancel", "/{uuid}/cancel"),
        ("POST", "/{job}/rerun", "/{uuid}/rerun"),
        ("GET", "/{job}/inspect", "/{uuid}/inspect"),
        ("GET", "/counts", "/counts"),
        ("POST", "/clear", "/clear"),
        ("POST", "/cancel", "/cancel"),
        ("POST", "/rerun", "/rerun"),
        ("GET", "?uuid={job}", ""),
        *(("GET", f"/static/{n}", "/static/*subpath") for n in ("", "cancel", "rerun")),
    ):
        seen.clear()
        path = f"/job_state{end.format(job=job)}"
        response = ask(app, method, path, "alice", X_Requested_With="x")
        (route,) = seen
        assert f"/{route.pattern.lstrip('/')}" == f"/job_state{pattern}", path
        if "static" in path:
            assert response.status_code == 404
            assert response.content_type != "application/json"


# Paths


def test_paths_below_ours(redis_url: str, store: JobStore) -> None:
    """Every other path below ours is our 404, for all users, whatever views the
    application has elsewhere. No path to the container shows jobs that the user may not
    see, and a job behind an odd path needs its permission.
    """
    config = make_config(redis_url)
    for name in "", "login", "cancel", "edit", "find", "store":
        config.add_view(lambda c, r: Response("App"), name=name)
    app = make_app(config)
    job = put(store)
    upper = job.upper().replace("0", "A", 1) if job.isdecimal() else job.upper()
    unknown = f"""/login /nothing /{UUID} /{upper} /{job}x /{job}%20 /{job}%00
        /{job}%0A /%0A{job} /%0Alogin /{job};x=1 /{job},{job} /{job}/x /{job}/x/y
        /{job}/login /{job}/edit /{job}/cancel/ /{job}/cancel/x /{job}/cancel%0A
        /{job}%0A/cancel /{job}/@@login /{job}/__json__ /{job}/{job} /@@{job} /@@login
        /../login /..%2Flogin /{job}%2Fx /__parent__ /__getitem__ /find /store
        /jobstate:{job} /* /%D9%A1 /static"""
    for end in unknown.split():
        for user in "alice", ADMIN, None:
            response = get(app, f"/job_state{end}", user)
            assert response.status_code == 404, end
            assert response.json == NOT_FOUND, end
    for length in 1_000, 100_000:
        for end in f"/{'a' * length}", f"/{job}{'/a' * length}", "/.." * length + "/x":
            assert get(app, f"/job_state{end}", "alice").json == NOT_FOUND
    for end in "", "/", "//", "/@@", f"/{job}/..", "/x/..":
        for user in "bob", ADMIN, None:
            response = get(app, f"/job_state{end}", user)
            assert response.json in (NOT_FOUND, {"items": [], "cursor": None}), end
    odd = f"""//{job} /x/../{job} /./{job} /%2E%2E/{job} %2F{job} /{job}// /{job}/@@
        /{job}/x/.. /../job_state/../{job}"""
    for end in odd.split():
        for user, statuses in (("bob", {403, 404}), (None, {403, 404})):
            assert get(app, f"/job_state{end}", user).status_code in statuses, end
        assert get(app, f"/job_state{end}", "alice").status_code in {200, 404}, end


def test_paths_beside_ours_are_the_applications(
    redis_url: str, store: JobStore
) -> None:
    """Paths that only resemble ours belong to the application. One that is not UTF-8
    fails before anybody can claim it, as in every application.
    """
    config = make_config(redis_url)
    config.add_notfound_view(lambda e, r: Response("app 404", 404))
    app = make_app(config)
    job = put(store)
    beside = f"""/job_stateXYZ /job_stateXYZ/{job} /job_state%0A /job_state.json
        /JOB_STATE/{job} //job_state/{job} /x/../job_state/{job} /job"""
    for path in beside.split():
        assert get(app, path, "alice").text == "app 404", path
    with pytest.raises(URLDecodeError):
        get(app, "/job_state/%FF", "alice")


# Methods


def test_other_methods_are_refused(redis_url: str, store: JobStore) -> None:
    """Methods other than those of our views are refused and change nothing, for an
    unknown job as a 404. Neither a CSRF check nor a default permission nor a header
    prevents that.
    """
    config = checking_csrf(make_config(redis_url, root_factory=mounted_root))
    config.set_default_permission("enter")
    app = make_app(config)
    job = put(store)
    for place in "/job_state", "/jobs":
        for methods, end, allowed in (
            ("POST PUT PATCH DELETE OPTIONS", "", "GET, HEAD"),
            ("POST PUT PATCH OPTIONS", f"/{job}", "GET, DELETE, HEAD"),
            ("POST PUT", f"/{job}/", "GET, DELETE, HEAD"),
            ("GET HEAD", f"/{job}/cancel", "POST"),
            ("DELETE", f"/{job}/rerun", "POST"),
            ("POST", f"/{job}/inspect", "GET, HEAD"),
            ("POST", "/counts", "GET, HEAD"),
            ("GET", "/clear", "POST"),
            ("OPTIONS", "/cancel", "POST"),
            ("PUT", "/rerun", "POST"),
        ):
            for method in methods.split():
                response = ask(app, method, place + end)
                assert response.status_code == 405, (method, end)
                assert response.headers["Allow"] == allowed
                assert response.headers["Content-Type"] == "application/json"
                assert response.headers["Cache-Control"] == "private, no-cache"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                if method != "HEAD":
                    error = f"The method {method} is not allowed here."
                    assert response.json == {"error": error}
    for method in "POST", "PUT", "DELETE", "OPTIONS":
        for end in f"/{UUID}", f"/{UUID}/", f"/{UUID}/cancel", "/x/y":
            response = ask(app, method, f"/job_state{end}")
            assert (response.status_code, response.json) == (404, NOT_FOUND)
    for header in "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override":
        overridden: dict[str, Any] = {header: "GET"}
        assert ask(app, "POST", f"/job_state/{job}", **overridden).status_code == 405
        overridden = {header: "DELETE"}
        response = get(app, f"/job_state/{job}", "alice", **overridden)
        assert response.status_code == 200
    assert load_job(store, job).status == "working"


# The application's own routes, views and predicates


def test_catch_all_of_the_application_leaves_our_path_alone(
    redis_url: str, store: JobStore
) -> None:
    """A catch-all route of the application, added after the include, does not catch our
    requests, not even with global views.
    """
    job = put(store)
    for pattern, options, name in (
        ("/*everything", {}, ""),
        ("/*traverse", {"use_global_views": True}, "login"),
    ):
        config = make_config(redis_url)
        config.include("pyramid_jobstate")
        config.add_route("everything", pattern, **options)
        view = {"name": name} if name else {"route_name": "everything"}
        config.add_view(lambda c, r: Response("App"), **view)
        app = TestApp(config.make_wsgi_app())
        assert get(app, f"/job_state/{job}", "alice").json["job"]["uuid"] == job
        assert get(app, "/job_state/x", "alice").json == NOT_FOUND
        assert get(app, f"/job_state/{job}/login", "alice").json == NOT_FOUND
        assert get(app, "/login", "alice").text == "App"


def test_views_of_the_application_do_not_answer_for_ours(
    redis_url: str, store: JobStore
) -> None:
    """The application's view without a context does not answer for jobs, whether it is
    added before or after the include, and its default permission is not asked.
    """
    config = make_config(redis_url)
    config.set_default_permission("enter")
    config.add_view(lambda c, r: Response("App"), permission="view")
    config.include("pyramid_jobstate")
    config.commit()
    config.add_view(lambda c, r: Response("App"), name="edit")
    app = TestApp(config.make_wsgi_app())
    job = put(store)

    assert get(app, f"/job_state/{job}", "alice").status_code == 200
    assert get(app, f"/job_state/{job}", "bob").json == FORBIDDEN
    assert get(app, "/job_state/x", "bob").json == NOT_FOUND
    assert ask(app, "POST", f"/job_state/{job}", "alice").status_code == 405
    assert get(app, "/", "bob").text == "App"


def mine(request: Request) -> Response:
    return Response("mine")


def test_views_of_the_application_may_replace_ours(
    redis_url: str, store: JobStore
) -> None:
    """The application's own view for a container in its tree, or for our route, answers
    for several jobs too, whatever its predicates are.
    """
    job = put(store)
    for predicates, query, headers in (
        ({"request_method": "GET"}, "", {}),
        ({"request_method": ("GET", "HEAD")}, "", {}),
        ({"request_param": "html"}, "&html=1", {}),
        ({"xhr": True, "request_method": "GET"}, "", {"X_Requested_With": "x"}),
    ):
        options: dict[str, Any] = dict(predicates)
        if options.get("xhr"):
            headers = {"X_Requested_With": "XMLHttpRequest"}
        config = make_config(redis_url, root_factory=mounted_root)
        config.include("pyramid_jobstate")
        config.commit()
        config.add_view(mine, context=JobStates, **options)
        app = TestApp(config.make_wsgi_app())
        path = f"/site/jobs?uuid={job}{query}"
        assert get(app, path, "alice", **headers).text == "mine", predicates
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.commit()
    config.add_view(
        mine, route_name="pyramid_jobstate", context=JobStates, request_method="GET"
    )
    app = TestApp(config.make_wsgi_app())
    for path in "/job_state", f"/job_state?uuid={job}":
        assert get(app, path, "alice").text == "mine"


def test_predicates_keep_their_order(redis_url: str) -> None:
    """The include leaves the order of all other predicates unchanged: a header still
    outweighs a parameter.
    """

    def names(config: Configurator) -> list[str]:
        found = [name for name, _ in config.get_predlist("view").sorter.sorted()]
        return [name for name in found if not name.startswith("jobstate_")]

    config = make_config(redis_url)
    config.add_view_predicate("custom", lambda value, config: None)
    config.commit()
    before = names(config)
    for name, predicate in {"header": "X-Api", "request_param": "save"}.items():
        config.add_view(
            lambda request, name=name: Response(name), name="edit", **{name: predicate}
        )
    app = make_app(config)
    assert names(config) == before
    assert get(app, "/edit?save=1", X_Api="1").text == "header"
    assert get(app, "/edit?save=1").text == "request_param"


def test_traverser_that_finds_nothing_at_our_path_is_left_alone(
    redis_url: str, store: JobStore
) -> None:
    """A traverser for all resources that raises HTTPNotFound does not break polls."""

    class Picky(ResourceTreeTraverser):
        def __call__(self, request: Request) -> Any:
            raise HTTPNotFound(request.path)

    config = make_config(redis_url)
    config.add_traverser(Picky)
    app = make_app(config)

    assert get(app, f"/job_state/{put(store)}", "alice").status_code == 200


# Errors


def test_error_views_of_the_application_answer_for_its_pages_alone(
    redis_url: str, store: JobStore
) -> None:
    """The application's pages keep its own error pages, however specific these are, and
    requests for jobs get our responses.
    """
    job = put(store)
    for options in (
        {},
        {"accept": "text/html"},
        {"accept": "application/json"},
        {"request_method": ("GET", "POST"), "header": "Accept"},
    ):
        config = checking_csrf(make_config(redis_url, root_factory=mounted_root))
        for add in (
            config.add_notfound_view,
            config.add_forbidden_view,
            lambda v, c=config, **o: c.add_exception_view(v, HTTPBadRequest, **o),
        ):
            add(lambda exc, request: Response("app", exc.status), **options)
        config.add_exception_view(lambda e, r: Response("app", 500), Exception)
        config.add_view(lambda c, r: Response(), name="secret", permission="secret")
        app = make_app(config)
        for accept in "text/html", "application/json":
            places = ["/job_state"] if options else ["/job_state", "/jobs"]
            for place in places:
                for method, path, user, status in (
                    ("GET", f"/{UUID}", "alice", 404),
                    ("GET", f"/{job}", "bob", 403),
                    ("GET", "?all=1", "bob", 403),
                    ("GET", f"/{UUID}/cancel", "alice", 404),
                    ("POST", f"/{job}/cancel", "alice", 400),
                ):
                    response = ask(app, method, place + path, user, Accept=accept)
                    assert response.status_code == status, (options, path)
                    assert response.content_type == "application/json"
            for path in "/nothing", "/secret":
                response = get(app, path, "alice", Accept=accept)
                if accept in options.get("accept", accept):
                    assert response.text == "app", (options, path)


def test_what_the_application_raises_on_the_way(
    redis_url: str, store: JobStore
) -> None:
    """If a subscriber of the application refuses a request for a job, the response is
    like that of our views. If its root factory does, the application answers.
    """
    job = put(store)
    for error in HTTPForbidden, HTTPNotFound:

        def refuse(event: Any, error: type[Exception] = error) -> None:
            raise error

        config = make_config(redis_url)
        config.add_subscriber(refuse, ContextFound)
        config.add_notfound_view(lambda exc, request: Response("app"))
        config.add_forbidden_view(lambda exc, request: Response("app"))
        response = get(make_app(config), f"/job_state/{job}", "alice")
        assert response.status_code in (403, 404)
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    def forbid(request: Request) -> Any:
        raise HTTPForbidden

    config = make_config(redis_url, root_factory=forbid)
    config.add_forbidden_view(lambda exc, request: Response("app 403", 403))
    assert get(make_app(config), "/page", "alice").text == "app 403"


# CSRF


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_refused_csrf_check_is_json(
    redis_url: str, store: JobStore, scheme: str
) -> None:
    """A request below our path that Pyramid's CSRF check refuses, by token or origin,
    gets JSON. Elsewhere the application answers.
    """
    config = checking_csrf(make_config(redis_url, root_factory=mounted_root))
    config.add_view(lambda c, r: Response("posted"), name="post")
    app = make_app(config)
    job = put(store)
    environ = {"wsgi.url_scheme": scheme, "HTTP_HOST": "shop.example"}
    headers = {"X-User": "alice", "X-Requested-With": "x", "Accept": "text/html"}
    sent: dict[str, Any] = {"headers": headers, "extra_environ": environ, "status": 400}

    for place in "/job_state", "/jobs":
        response = app.post(f"{place}/{job}/cancel", **sent)
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        (error,) = response.json.values()
        assert error.startswith("The CSRF check refused the request.")
        assert ("Origin" in error) is (scheme == "https")
        assert "None" not in error
    assert app.post("/post", **sent).content_type == "text/html"
    assert load_job(store, job).status == "working"


def test_csrf_view_of_the_application_stays_away(
    redis_url: str, store: JobStore
) -> None:
    """The application's own view for a refused check, however specific, does not answer
    for our routes.
    """
    job = put(store)
    for exception in BadCSRFToken, HTTPBadRequest, Exception:
        config = checking_csrf(make_config(redis_url))
        for method in "POST", "DELETE":
            config.add_exception_view(
                lambda exc, request: Response("app"),
                context=exception,
                request_method=method,
                header="X-User",
                accept="text/html",
            )
        app = make_app(config)
        for method, end in (
            ("POST", f"/{job}/cancel"),
            ("POST", f"/{job}/rerun"),
            ("DELETE", f"/{job}"),
            ("DELETE", f"/{job}/"),
            ("POST", "/clear"),
            ("POST", "/cancel"),
            ("POST", "/rerun"),
        ):
            path = f"/job_state{end}"
            response = ask(app, method, path, "alice", Accept="text/html")
            assert response.status_code == 400, (exception, end)
            error = response.json["error"]
            assert error.startswith("The CSRF check refused the request.")


# CORS


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


def test_preflight_is_the_applications() -> None:
    """A CORS preflight reaches the application's route, wherever it stands, without
    asking the store. Without CORS in the application, no other origin is allowed
    anything.
    """
    ends = ["", f"/{UUID}", f"/{UUID}/", f"/{UUID}/cancel", "/clear", "/x"]
    for includes in (add_cors, "pyramid_jobstate"), ("pyramid_jobstate", add_cors):
        config = make_config(NOWHERE)
        for include in includes:
            config.include(include)
        app = TestApp(config.make_wsgi_app())
        for end in ends:
            response = ask(app, "OPTIONS", f"/job_state{end}", **PREFLIGHT)
            assert response.status_code == 200, end
            assert response.headers["Access-Control-Allow-Origin"] == "*"
    app = make_app(make_config(NOWHERE))
    response = ask(app, "OPTIONS", f"/job_state/{UUID}", **PREFLIGHT)
    assert response.status_code == 404
    assert "Access-Control-Allow-Origin" not in response.headers


# The request method


def own_method(request: Request) -> str:
    return "mine"


def test_request_method_of_the_same_name_stops_the_start() -> None:
    """An application's own `request.job_states` is an error at the start, even after a
    commit, where Pyramid's own detection ends, and as an attribute of its class of
    requests. Others are left alone.
    """
    for steps in (
        "own include make",
        "include own make",
        "own commit include make",
        "include commit own make",
        "auto own include make",
    ):
        for options in {}, {"property": True}, {"reify": True}:
            config = make_config(NOWHERE)
            config.autocommit = "auto" in steps
            own = functools.partial(
                config.add_request_method, own_method, "job_states", **options
            )
            with pytest.raises(ConfigurationError, match="request method job_states"):
                take_steps(config, steps, own=own, auto=lambda: None)

    class OwnRequest(Request):
        def job_states(self) -> str:
            return "mine"

    with pytest.raises(ConfigurationError, match=r"OwnRequest.*Rename yours"):
        make_app(make_config(NOWHERE, request_factory=OwnRequest))


def test_other_request_methods_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Other request methods, and request classes without ours, cause no warning."""

    class PlainRequest(Request):
        pass

    config = make_config(NOWHERE, request_factory=PlainRequest, root_factory=Root)
    config.add_request_method(own_method, "jobs")
    with caplog.at_level(logging.WARNING):
        make_app(config)
    assert caplog.records == []


def test_application_has_the_name_that_earlier_versions_gave_it() -> None:
    """Messages name their application by a hash of its routes, which stays the same."""
    settings = {"jobstate.redis_url": "redis://127.0.0.1:23999/0"}
    config = Configurator(settings=settings, package="tests")
    config.add_route("a", "/a")
    config.include("pyramid_jobstate.testing")
    config.include("pyramid_jobstate")
    config.add_route("b", "/b")
    config.commit()
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=settings["jobstate.redis_url"]))
    broker.add_middleware(RequestMiddleware())

    @job_actor(broker=broker)
    def act(*, request: Request, job_state: JobState) -> None:
        """Receive a request."""

    make_request(config).job_states.send_immediately(act)

    (sent,) = outbox(config.registry)
    assert sent.message.options["job_app"] == "7db41052"
