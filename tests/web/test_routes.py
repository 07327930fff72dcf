"""The routes: paths, places, methods, and the application's own around them."""

import functools
import itertools
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.exceptions import BadCSRFToken, ConfigurationError, URLDecodeError
from pyramid.httpexceptions import HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.traversal import ResourceTreeTraverser
from webtest import TestApp

from pyramid_jobstate import JobState
from pyramid_jobstate.resources import JobStates
from tests.jobs import RunMarathon
from tests.support import UUID, load_job
from tests.web import reading
from tests.web.operating import (
    OPERATOR,
    act,
    operated_root,
    put,
    statuses,
    uuids_of,
)
from tests.web.paging import Visit, browse, paged_app, put_batch
from tests.web.reading import FORBIDDEN, NOT_FOUND
from tests.webapp import (
    ADMIN,
    NOWHERE,
    PLACES,
    Root,
    ask,
    get,
    make_app,
    make_config,
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


def test_paths_below_ours(redis_url, store):
    """Every other path below ours is our 404, and none shows hidden jobs."""
    config = make_config(redis_url)
    for name in "", "login", "cancel", "edit", "find", "store":
        config.add_view(lambda c, r: Response("App"), name=name)
    app = make_app(config)
    job = reading.put(store)
    unknown = f"""/login /{UUID} /{job}x /{job}%00 /{job}%0A /%0A{job} /{job};x=1
        /{job},{job} /{job}/x/y /{job}/edit /{job}/cancel/x /{job}%0A/cancel
        /{job}/@@login /{job}/__json__ /@@{job} /../login /..%2Flogin /__parent__
        /__getitem__ /find /store /jobstate:{job} /* /%D9%A1 /static"""
    long = [f"/{'a' * 100_000}", f"/{job}{'/a' * 100_000}", "/.." * 100_000 + "/x"]
    for end in (*unknown.split(), *long):
        for user in "alice", ADMIN, None:
            response = get(app, f"/job_state{end}", user)
            assert response.status_code == 404, end[:99]
            assert response.json == NOT_FOUND, end[:99]
    for end in "", "/", "//", "/@@", f"/{job}/..", "/x/..":
        for user in "bob", ADMIN, None:
            response = get(app, f"/job_state{end}", user)
            assert response.json in (NOT_FOUND, {"items": [], "cursor": None}), end
    odd = f"""//{job} /x/../{job} /./{job} /%2E%2E/{job} %2F{job} /{job}// /{job}/@@
        /{job}/x/.. /../job_state/../{job}"""
    for end in odd.split():
        for user in "bob", None:
            assert get(app, f"/job_state{end}", user).status_code in (403, 404), end
        assert get(app, f"/job_state{end}", "alice").status_code in (200, 404), end


def test_paths_beside_ours_are_the_applications(redis_url):
    """What is not UTF-8 is a 400 below our path, and elsewhere the application's."""
    config = make_config(redis_url)
    config.add_notfound_view(lambda e, r: Response("app 404", 404))
    app = make_app(config)
    for path in f"/job_stateXYZ/{UUID} /job_state.json /JOB_STATE /job".split():
        assert get(app, path, "alice").text == "app 404", path
    for path in "/%FF", "/job_state%FF":
        with pytest.raises(URLDecodeError):
            get(app, path, "alice")
    for path in "/job_state/%FF", f"/job_state/{UUID}/%FF":
        for response in get(app, path), browse(paged_app(redis_url), path):
            assert response.status_code == 400
            assert response.json == {"error": "The path is not UTF-8."}


def test_other_methods_are_refused(redis_url, store):
    """An override in a header, or a check of the application's, changes nothing."""
    config = checking_csrf(make_config(redis_url))
    config.set_default_permission("enter")
    app = make_app(config)
    job = reading.put(store)
    for methods, end, allowed in (
        ("POST PUT PATCH DELETE OPTIONS", "", "GET, HEAD"),
        ("POST PUT PATCH OPTIONS", f"/{job}", "GET, DELETE, HEAD"),
        ("GET HEAD", f"/{job}/cancel", "POST"),
        ("DELETE", f"/{job}/rerun", "POST"),
        ("POST", f"/{job}/inspect", "GET, HEAD"),
        ("GET", f"/{job}/stack", "POST"),
        ("POST", f"/{job}/log", "GET, HEAD"),
        ("POST", "/counts", "GET, HEAD"),
        ("OPTIONS", "/cancel", "POST"),
    ):
        for method in methods.split():
            response = ask(app, method, f"/job_state{end}")
            assert response.status_code == 405, (method, end)
            assert response.headers["Allow"] == allowed
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["Cache-Control"] == "private, no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            if method != "HEAD":
                error = f"The method {method} is not allowed here."
                assert response.json == {"error": error}
    beyond = f"/x/y /clear/x /cancel/x /rerun/x /{job}/cancel/x /{job}/stack/x"
    unknown = "", "/cancel", "/rerun", "/stack", "/inspect", "/x"
    for end in (*beyond.split(), *(f"/{UUID}{end}" for end in unknown)):
        for method in "POST", "DELETE", "OPTIONS":
            response = ask(app, method, f"/job_state{end}", X_Requested_With="x")
            assert (response.status_code, response.json) == (404, NOT_FOUND), end
    for header in "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override":
        overridden: dict[str, Any] = {header: "GET"}
        assert ask(app, "POST", f"/job_state/{job}", **overridden).status_code == 405
    assert load_job(store, job).status == "working"


def test_routes_and_views_of_the_application_do_not_answer_for_ours(redis_url, store):
    """It may have a catch-all route, a general view, or a default permission."""
    job = reading.put(store)
    config = make_config(redis_url)
    config.set_default_permission("enter")
    config.add_view(lambda c, r: Response("App"), permission="view")
    config.include("pyramid_jobstate")
    config.add_view(lambda c, r: Response("App"), name="login", permission="view")
    config.add_route("everything", "/*traverse", use_global_views=True)
    app = TestApp(config.make_wsgi_app())

    assert get(app, f"/job_state/{job}", "alice").json["job"]["uuid"] == job
    assert get(app, f"/job_state/{job}", "bob").json == FORBIDDEN
    assert get(app, "/job_state/x", "bob").json == NOT_FOUND
    assert get(app, f"/job_state/{job}/login", "alice").json == NOT_FOUND
    assert ask(app, "POST", f"/job_state/{job}", "alice").status_code == 405
    assert get(app, "/", "bob").text == get(app, "/login", "bob").text == "App"


@pytest.mark.promise("refusals-are-json")
def test_error_views_of_the_application_answer_for_its_pages_alone(redis_url, store):
    """However specific error views are, requests for jobs get our responses."""
    job = reading.put(store)
    for options in {}, {"request_method": ("GET", "POST"), "header": "Accept"}:
        config = make_config(redis_url)
        config.add_notfound_view(lambda exc, r: Response("app", 404), **options)
        config.add_forbidden_view(lambda exc, r: Response("app", 403), **options)
        config.add_exception_view(lambda exc, r: Response("app", 500), Exception)
        config.add_view(lambda c, r: Response(), name="secret", permission="secret")
        app = make_app(config)
        for method, path, user, status in (
            ("GET", f"/{UUID}", "alice", 404),
            ("GET", f"/{job}", "bob", 403),
            ("POST", f"/{job}/cancel", "alice", 400),
        ):
            response = ask(app, method, f"/job_state{path}", user, Accept="text/html")
            assert response.status_code == status, (options, path)
            assert response.content_type == "application/json"
        for path in "/nothing", "/secret":
            assert get(app, path, "alice", Accept="text/html").text == "app", path


@pytest.mark.promise("unsafe-requests-need-a-token")
def test_refused_csrf_check_is_json(redis_url, store):
    """Below our path, that of a token or an origin is, whatever views there are."""
    config = checking_csrf(make_config(redis_url, root_factory=mounted_root))
    config.add_view(lambda c, r: Response("posted"), name="post")
    for method in "POST", "DELETE":
        most = {"request_method": method, "header": "X-User", "accept": "text/html"}
        config.add_exception_view(lambda e, r: Response("app"), BadCSRFToken, **most)
    app = make_app(config)
    job = reading.put(store)
    acts = [("POST", f"/job_state/{job}/cancel"), ("DELETE", f"/job_state/{job}")]
    acts += [("POST", "/job_state/clear"), ("POST", f"/jobs/{job}/cancel")]
    sent = {"X-User": "alice", "Accept": "text/html"}

    for scheme, (method, path) in itertools.product(("http", "https"), acts):
        environ = {"wsgi.url_scheme": scheme, "HTTP_HOST": "shop.example"}
        response = app.request(
            path, method=method, headers=sent, environ=environ, status=400
        )
        assert response.headers["Cache-Control"] == "private, no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        (error,) = response.json.values()
        assert error.startswith("The CSRF check refused the request.")
        assert ("Origin" in error) is (scheme == "https")
    assert ask(app, "POST", "/post", "alice", Accept="text/html").text == "app"
    assert load_job(store, job).status == "working"


def add_cors(config: Configurator) -> None:
    """Let a route of the application answer every preflight, as in the README."""
    asked = {"request_method": "OPTIONS", "header": "Access-Control-Request-Method"}
    config.add_route("preflight", "/{path:.*}", **asked)
    allowed = {"Access-Control-Allow-Origin": "*"}
    config.add_view(lambda c, r: Response(headers=allowed), route_name="preflight")


def test_preflight_is_the_applications():
    """It reaches the application's route, if any, without asking the store."""
    ends = ["", f"/{UUID}", f"/{UUID}/cancel", "/x"]
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


def test_name_of_ours_stops_the_start():
    """An application's own `job_states` or `registry.jobstate` is an error."""

    class OwnRequest(Request):
        def job_states(self) -> str:
            return "mine"

    for steps in (
        "own include",
        "own commit include",
        "include own",
        "include commit own",
    ):
        for is_reified in True, False:
            config = make_config(NOWHERE)
            add = functools.partial(config.add_request_method, reify=is_reified)
            own = functools.partial(add, OwnRequest.job_states)
            with pytest.raises(ConfigurationError, match="request method job_states"):
                take_steps(config, f"{steps} make", own=own)
        attribute = make_config(NOWHERE)
        own = functools.partial(setattr, attribute.registry, "jobstate", {})
        with pytest.raises(ConfigurationError, match=r"sets registry\.jobstate"):
            take_steps(attribute, f"{steps} make", own=own)
    with pytest.raises(ConfigurationError, match=r"OwnRequest.*Rename yours"):
        make_app(make_config(NOWHERE, request_factory=OwnRequest))


def test_route_of_the_application_may_traverse_to_a_container(redis_url, store):
    """A route whose factory makes a container finds the jobs in it."""

    def container(request: Request) -> JobStates:
        return JobStates(request, parent=Root(request), name="own")

    config = make_config(redis_url)
    config.add_route("own", "/own/*traverse", factory=container)
    config.add_view(lambda c, r: Response(c.uuid), route_name="own", context=JobState)
    app, job = make_app(config), reading.put(store)
    assert get(app, f"/own/{job}", "alice").text == job
    assert get(app, f"/own/{UUID}", "alice").status_code == 404


# Jobs at the default path, and mounted in the application's resource tree.


def test_everything_is_the_same_at_each_place(paged, store, marathons):
    """Wherever jobs are mounted, each request does the same, and URLs stay there."""
    for place in PLACES:
        store.client.flushdb()
        job, other, bobs = put(store, "alice", "alice", "bob", cls=RunMarathon)
        url = f"http://localhost{place}/{job}/"
        state = get(paged, f"{place}/{job}", "alice").json
        assert state["job"]["url"] == url
        for path in place, f"{place}/", f"{place}?kind=RunMarathon":
            items = get(paged, path, "alice").json["items"]
            assert uuids_of(items) == [other, job] and items[1] == state
        several = get(paged, f"{place}?uuid={job}&uuid={bobs}", "alice").json
        assert several == {"jobs": {job: state, bobs: None}}
        assert len(get(paged, f"{place}?all=1", OPERATOR).json["items"]) == 3
        fresh = {"Cache-Control": "no-cache"}
        counts = get(paged, f"{place}/counts", OPERATOR, **fresh).json["counts"]
        assert counts["working"] == 3
        assert get(paged, f"{place}/{job}/inspect", OPERATOR).json["uuid"] == job

        cancelled = act(paged, f"{place}/{job}/cancel", "alice")
        assert (cancelled.status_code, cancelled.json["job"]["url"]) == (202, url)
        assert act(paged, f"{place}/cancel", owner="bob").json["done"] == 1
        ended = put(store, *["bob"] * 3, cls=RunMarathon, status="error")
        assert act(paged, f"{place}/{ended[2]}/rerun").status_code == 202
        assert act(paged, f"{place}/rerun", owner="bob", limit=1).json["done"] == 1
        (failed,) = (u for u in ended if statuses(store, u) == ["error"])
        assert act(paged, f"{place}/{failed}", method="DELETE").status_code == 204
        put(store, "bob", status="success")
        assert act(paged, f"{place}/clear", owner="bob").json["done"] == 1


@pytest.mark.promise("refusals-are-json")
def test_refusals_are_the_same_at_each_place(paged, store):
    """Wherever jobs are mounted, the same is refused, and a browser gets a page."""
    (job,) = put(store, "alice", cls=RunMarathon)
    for place in PLACES:
        for method, end, user, code in (
            ("GET", f"/{job}", "bob", 403),
            ("GET", "?all=1", "alice", 403),
            ("GET", "/counts", "alice", 403),
            ("GET", f"/{job}/inspect", "alice", 403),
            ("POST", f"/{job}/stack", "alice", 403),
            ("POST", f"/{job}/cancel", "bob", 403),
            ("DELETE", f"/{job}", "alice", 403),
            ("POST", "/clear?all=1&everything=1", "alice", 403),
            ("POST", "/cancel?owner=alice", "bob", 403),
            ("GET", "?limit=0", OPERATOR, 400),
            ("POST", "/clear", OPERATOR, 400),
            ("GET", f"/{UUID}", OPERATOR, 404),
            ("GET", "/counts/x", OPERATOR, 404),
            ("PUT", f"/{job}", OPERATOR, 405),
            ("GET", "/clear", OPERATOR, 405),
        ):
            response = act(paged, place + end, user, method)
            assert response.status_code == code, (place, method, end, user)
            assert [*response.json] == ["error"], (place, method, end, user)
        page = browse(paged, f"{place}/{job}", "bob")
        assert (page.status_code, page.content_type) == (403, "text/html"), place
        for end in f"/{job}/cancel", "/clear?everything=1&all=1":
            assert ask(paged, "POST", place + end, OPERATOR).status_code == 400
    assert statuses(store, job) == ["working"]


def test_pages_lead_to_their_place(paged, store):
    """Pages lead to each other, and their scripts post, where jobs are mounted."""
    batch, (member,) = put_batch(store, "error")
    for place in PLACES:
        base = f"http://localhost{place}/"
        assert browse(paged, place).location == f"{base}?all=1"
        of_batch = browse(paged, f"{place}/?batch={batch}&limit=1")
        assert of_batch.location == f"{base}{batch}/?limit=1"
        ends = "/?all=1", f"/{batch}", f"/{member}"
        pages = listed, page, of_member = [Visit(paged, place + end) for end in ends]
        urls: list[Any] = [listed.data["first"], page.data["url"], page.data["list"]]
        for visit in pages:
            urls += [tag["src"] for tag in visit.all("job-state")]
            urls += [tag["href"] for tag in visit.all(".jobstate a")]
            urls += [each["url"] for each in visit.data.get("bulk", {}).values()]
        assert len(urls) > 25
        assert [url for url in urls if not url.startswith(base)] == []
        assert of_member.link("Import of the files") == f"{base}{batch}/"


def test_pages_below_a_prefix(redis_url, store):
    """All URLs of pages are below the prefix, here if pages are included last."""
    (job,) = put(store, "alice", status="error")
    settings = {"jobstate.path": "jobs"}
    config = make_config(redis_url, settings=settings, root_factory=operated_root)
    config.include("pyramid_jobstate", route_prefix="team")
    config.include("pyramid_jobstate.pages")
    router = config.make_wsgi_app()

    def serve(environ: Any, start: Any) -> Any:
        return router({**environ, "SCRIPT_NAME": "/shop"}, start)

    page, one = (Visit(TestApp(serve), f"/team/jobs/{e}") for e in ("?all=1", job))
    urls = [one.data["url"], one.data["list"], page.data["first"]]
    urls += [each["url"] for each in page.data["bulk"].values()]
    for name in "href", "src", "action", "data-styles":
        urls += [tag[name] for visit in (page, one) for tag in visit.all(f"[{name}]")]
    assert len(urls) > 20
    for url in urls:
        assert url.startswith("http://localhost/shop/team/jobs/"), url


def test_traverser_of_the_application_enters_its_root(redis_url, store):
    """A traverser for all resources is called with the application's root, which it may
    announce, whatever it finds there. The job is found in any case.
    """

    class Announcing(ResourceTreeTraverser):
        def __call__(self, request: Request) -> Any:
            seen.append((type(self.root), request.matchdict))
            raise HTTPNotFound(request.path)

    seen: list[Any] = []
    config = make_config(redis_url)
    config.add_traverser(Announcing)
    assert (
        get(make_app(config), f"/job_state/{reading.put(store)}", "alice").status_code
        == 200
    )
    assert seen == [(Root, {"traverse": "/"})]
