"""Requests below the path of the jobs: their responses, and what they reveal."""

import json
from typing import Any

import pytest
import redis
from pyramid.exceptions import URLDecodeError
from pyramid.httpexceptions import HTTPForbidden
from pyramid.renderers import JSON
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.embedded import EmbeddedServer
from tests.support import UUID
from tests.webapp import (
    ADMIN,
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
)

NOT_FOUND = {"error": "The job does not exist."}
FORBIDDEN = {"error": "You may not do this with the job."}


@pytest.fixture
def bare_app(redis_url: str) -> TestApp:
    """An application whose own tree is empty."""
    return make_app(make_config(redis_url))


class Confession(JobState):
    """A kind of job that shows the message of one type of error."""

    def public_error(self, exception_type: str, message: str) -> str:
        if exception_type == "ValueError":
            return message
        return super().public_error(exception_type, message)


# The state of a job.


@pytest.mark.parametrize("end", ["", "/"])
def test_get_answers_the_state(bare_app: TestApp, job: str, end: str) -> None:
    """The response is the job's JSON, with or without a trailing slash."""
    response = get(bare_app, f"/job_state/{job}{end}", "alice")

    assert response.status_code == 200
    assert response.json["job_state"] == "working"
    assert response.json["job"]["uuid"] == job
    assert response.json["job"]["url"] == f"http://localhost/job_state/{job}/"
    assert response.json["job"]["params"] == {"miles": 26}


def test_get_has_the_headers_of_private_json(bare_app: TestApp, job: str) -> None:
    """No cache keeps the state, and no browser renders it as a page."""
    headers = get(bare_app, f"/job_state/{job}", "alice").headers

    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "private, no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["ETag"].startswith('"')


def test_head_answers_without_the_state(bare_app: TestApp, job: str) -> None:
    """HEAD is GET without a body and needs the same permission."""
    full = get(bare_app, f"/job_state/{job}", "alice")

    response = ask(bare_app, "HEAD", f"/job_state/{job}", "alice")

    assert response.status_code == 200
    assert response.body == b""
    assert response.headers["ETag"] == full.headers["ETag"]
    assert ask(bare_app, "HEAD", f"/job_state/{job}", "bob").status_code == 403


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}'])
def test_current_etag_is_a_304(bare_app: TestApp, job: str, form: str) -> None:
    """A viewer who has the current state gets a 304, even if a proxy has weakened the
    tag.
    """
    etag = get(bare_app, f"/job_state/{job}", "alice").headers["ETag"]

    response = get(
        bare_app, f"/job_state/{job}", "alice", If_None_Match=form.format(etag)
    )

    assert response.status_code == 304
    assert response.body == b""
    assert response.headers["ETag"] == etag
    assert response.headers["Cache-Control"] == "private, no-cache"


def test_part_of_a_state_is_not_served(bare_app: TestApp, job: str) -> None:
    """A Range header is ignored: the whole state is returned."""
    headers = {"If_None_Match": '"other"', "Range": "bytes=0-9"}

    response = get(bare_app, f"/job_state/{job}", "alice", **headers)

    assert response.status_code == 200
    assert response.json["job"]["uuid"] == job


def test_old_etag_is_the_new_state(
    bare_app: TestApp, client: redis.Redis, job: str
) -> None:
    """After a change of the job, its former tag returns the new state."""
    etag = get(bare_app, f"/job_state/{job}", "alice").headers["ETag"]

    client.hset(f"jobstate:{job}", "m:miles_run", "12")
    response = get(bare_app, f"/job_state/{job}", "alice", If_None_Match=etag)

    assert response.status_code == 200
    assert response.json["miles_run"] == 12
    assert response.headers["ETag"] != etag


def test_job_that_falls_silent_has_another_etag(
    bare_app: TestApp, client: redis.Redis, job: str
) -> None:
    """A job that stalls without a write has another tag."""
    etag = get(bare_app, f"/job_state/{job}", "alice").headers["ETag"]

    client.hset(f"jobstate:{job}", "seen", "1")
    response = get(bare_app, f"/job_state/{job}", "alice", If_None_Match=etag)

    assert response.status_code == 200
    assert response.json["job"]["status"] == "stalled"
    assert response.json["job_state"] == "working"


def test_etag_opens_nothing(bare_app: TestApp, job: str) -> None:
    """A viewer who knows the tag but may not see the job gets a 403, not a 304."""
    etag = get(bare_app, f"/job_state/{job}", "alice").headers["ETag"]

    assert (
        get(bare_app, f"/job_state/{job}", "bob", If_None_Match=etag).status_code == 403
    )
    assert (
        get(bare_app, f"/job_state/{job}", "bob", If_None_Match="*").status_code == 403
    )


def test_state_says_what_the_viewer_may_do(bare_app: TestApp, job: str) -> None:
    """An unfinished job is cancellable for users who may cancel it."""
    assert (
        get(bare_app, f"/job_state/{job}", "alice").json["job"]["cancellable"] is True
    )


def test_error_is_not_revealed(bare_app: TestApp, client: redis.Redis) -> None:
    """The text and type of an exception are hidden from every viewer."""
    error = json.dumps(["myapp.SecretError", "password=hush"])
    uuid = put_job(client, status="error", error=error)

    for user in "alice", ADMIN:
        response = get(bare_app, f"/job_state/{uuid}", user)
        assert response.json["job"]["error"] == {"message": "The job failed."}
        assert "hush" not in response.text
        assert "SecretError" not in response.text


def test_error_is_told_as_far_as_the_class_says(
    bare_app: TestApp, client: redis.Redis
) -> None:
    """A class may show the errors that it knows."""

    def message_of(error: list[str]) -> str:
        uuid = put_job(
            client, kind="Confession", status="error", error=json.dumps(error)
        )
        response = get(bare_app, f"/job_state/{uuid}", "alice")
        return str(response.json["job"]["error"]["message"])

    assert message_of(["ValueError", "No miles."]) == "No miles."
    assert message_of(["OSError", "/etc/shoes"]) == "The job failed."


# Other users.


@pytest.mark.parametrize("user", ["bob", None])
def test_others_are_forbidden(bare_app: TestApp, job: str, user: str | None) -> None:
    """A user who may not see a job gets a 403 that reveals nothing."""
    response = get(bare_app, f"/job_state/{job}", user)

    assert response.status_code == 403
    assert response.json == FORBIDDEN
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "ETag" not in response.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("end", ["", "/"])
def test_other_methods_are_not_allowed(
    bare_app: TestApp, client: redis.Redis, job: str, method: str, end: str
) -> None:
    """Methods other than those of our views are refused and change nothing."""
    before = client.hgetall(f"jobstate:{job}")

    for path, allowed in (
        (f"/job_state/{job}{end}", "GET, DELETE, HEAD"),
        (f"/job_state{end}", "GET, HEAD"),
    ):
        response = ask(bare_app, method, path, "alice")

        assert response.status_code == 405
        assert response.json == {"error": f"The method {method} is not allowed here."}
        assert response.headers["Allow"] == allowed
        assert response.headers["Cache-Control"] == "private, no-cache"
    assert client.hgetall(f"jobstate:{job}") == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_of_an_unknown_job_are_not_found(
    bare_app: TestApp, method: str
) -> None:
    """For an unknown job or path, every method is a 404."""
    for path in f"/job_state/{UUID}", f"/job_state/{UUID}/cancel", "/job_state/x/y":
        response = ask(bare_app, method, path, "alice")

        assert response.status_code == 404
        assert response.json == NOT_FOUND


@pytest.mark.parametrize(
    "header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]
)
def test_method_override_does_nothing(bare_app: TestApp, job: str, header: str) -> None:
    """A header does not change the method."""
    headers = {header: "GET"}
    assert (
        ask(bare_app, "POST", f"/job_state/{job}", "alice", **headers).status_code
        == 405
    )

    headers = {header: "DELETE"}
    assert get(bare_app, f"/job_state/{job}", "alice", **headers).status_code == 200


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "/login",
        "/nothing",
        "/{unknown}",
        "/{upper}",
        "/{job}x",
        "/{job}%20",
        "/{job}%00",
        "/{job}%0A",
        "/%0A{job}",
        "/%0Alogin",
        "/{job};x=1",
        "/{job},{job}",
        "/{job}/x",
        "/{job}/x/y",
        "/{job}/login",
        "/{job}/edit",
        "/{job}/cancel/",
        "/{job}/cancel/x",
        "/{job}/cancel%0A",
        "/{job}%0A/cancel",
        "/{job}/@@login",
        "/{job}/__json__",
        "/{job}/{job}",
        "/@@{job}",
        "/@@login",
        "/../login",
        "/..%2Flogin",
        "/{job}%2Fx",
        "/__parent__",
        "/__getitem__",
        "/find",
        "/store",
        "/jobstate:{job}",
        "/*",
        "/%D9%A1",
        "/static",
    ],
)
def test_other_paths_are_not_found(redis_url: str, job: str, path: str) -> None:
    """Every other path below ours is our 404, for all users, whatever views the
    application has elsewhere.
    """
    config = make_config(redis_url)
    for name in "", "login", "cancel", "edit", "find", "store":
        config.add_view(lambda c, r: Response("App"), name=name)
    app = make_app(config)
    path = path.format(job=job, unknown=UUID, upper=job.upper())

    for user in "alice", ADMIN, None:
        response = get(app, f"/job_state{path}", user)
        assert response.status_code == 404
        assert response.json == NOT_FOUND


@pytest.mark.parametrize("path", ["", "/", "//", "/@@", "/{job}/..", "/x/.."])
def test_paths_to_the_container_show_the_viewers_own_jobs(
    bare_app: TestApp, job: str, path: str
) -> None:
    """No path to the container shows jobs that the user may not see."""
    path = "/job_state" + path.format(job=job)

    for user in "bob", ADMIN, None:
        response = get(bare_app, path, user)
        assert response.status_code in (200, 404)
        assert response.json in (NOT_FOUND, {"items": [], "cursor": None})


@pytest.mark.parametrize(
    "path",
    [
        "//{job}",
        "/x/../{job}",
        "/./{job}",
        "/%2E%2E/{job}",
        "%2F{job}",
        "/{job}//",
        "/{job}/@@",
        "/{job}/x/..",
        "/../job_state/../{job}",
    ],
)
def test_odd_paths_to_a_job_need_its_right(
    bare_app: TestApp, job: str, path: str
) -> None:
    """If traversal finds a job through an odd path, viewing it still needs the
    permission.
    """
    path = "/job_state" + path.format(job=job)

    assert get(bare_app, path, "bob").status_code in (403, 404)
    assert get(bare_app, path).status_code in (403, 404)
    assert get(bare_app, path, "alice").status_code in (200, 404)


@pytest.mark.parametrize(
    "path",
    [
        "/job_stateXYZ",
        "/job_stateXYZ/{job}",
        "/job_state%0A",
        "/job_state.json",
        "/JOB_STATE/{job}",
        "//job_state/{job}",
        "/x/../job_state/{job}",
        "/job",
    ],
)
def test_paths_beside_ours_are_the_applications(
    redis_url: str, job: str, path: str
) -> None:
    """Paths that only resemble ours belong to the application."""
    config = make_config(redis_url)
    config.add_notfound_view(lambda e, r: Response("app 404", 404))
    app = make_app(config)

    assert get(app, path.format(job=job), "alice").text == "app 404"


@pytest.mark.parametrize("length", [1_000, 100_000])
def test_long_paths_are_not_found(bare_app: TestApp, job: str, length: int) -> None:
    """A path of any length or depth is a plain 404."""
    for path in f"/{'a' * length}", f"/{job}{'/a' * length}", "/.." * length + "/x":
        assert get(bare_app, "/job_state" + path, "alice").json == NOT_FOUND


def test_path_that_is_not_utf_8_is_pyramids_own_error(bare_app: TestApp) -> None:
    """A path that is not UTF-8 fails before anybody can claim it, as in every
    application.
    """
    with pytest.raises(URLDecodeError):
        get(bare_app, "/job_state/%FF", "alice")


# The application's own routes and views.


def test_catch_all_after_the_include_leaves_our_path_alone(
    redis_url: str, job: str
) -> None:
    """A catch-all route of the application, added after the include, does not catch our
    requests.
    """
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.add_route("everything", "/*everything")
    config.add_view(lambda c, r: Response("App"), route_name="everything")
    app = TestApp(config.make_wsgi_app())

    assert get(app, f"/job_state/{job}", "alice").json["job"]["uuid"] == job
    assert get(app, "/job_state/x", "alice").json == NOT_FOUND
    assert get(app, "/other", "alice").text == "App"


def test_catch_all_with_global_views_keeps_out(redis_url: str, job: str) -> None:
    """A catch-all that traverses with global views does not catch our requests."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.add_route("everything", "/*traverse", use_global_views=True)
    config.add_view(lambda c, r: Response("App"), name="login")
    app = TestApp(config.make_wsgi_app())

    assert get(app, f"/job_state/{job}/login", "alice").json == NOT_FOUND
    assert get(app, "/login", "alice").text == "App"


def test_view_for_every_context_does_not_answer_for_a_job(
    redis_url: str, job: str
) -> None:
    """The application's view without a context does not answer for jobs, whether it is
    added before or after the include.
    """
    config = make_config(redis_url)
    config.add_view(lambda c, r: Response("App"))
    config.include("pyramid_jobstate")
    config.commit()
    config.add_view(lambda c, r: Response("App"), name="edit")
    app = TestApp(config.make_wsgi_app())

    assert get(app, f"/job_state/{job}", "bob").status_code == 403
    assert ask(app, "POST", f"/job_state/{job}", "alice").status_code == 405
    assert get(app, "/", "bob").text == "App"


def test_default_permission_of_the_application_is_not_asked(
    redis_url: str, job: str
) -> None:
    """Our views have their own permission; error responses need none."""
    config = make_config(redis_url)
    config.set_default_permission("enter")
    app = make_app(config)

    assert get(app, f"/job_state/{job}", "alice").status_code == 200
    assert get(app, f"/job_state/{job}", "bob").json == FORBIDDEN
    assert get(app, "/job_state/x", "bob").json == NOT_FOUND


def app_with_error_views(redis_url: str, **options: Any) -> TestApp:
    """Return an application that has its own views for all errors."""

    def ask_store(context: Any, request: Request) -> Response:
        request.job_states.find(UUID)
        return Response("asked")

    def answer(text: str, status: int) -> Any:
        return lambda exc, request: Response(text, status)

    config = make_config(redis_url, **options)
    config.add_notfound_view(answer("app 404", 404), append_slash=True)
    config.add_forbidden_view(answer("app 403", 403))
    config.add_exception_view(answer("app 500", 500), context=Exception)
    config.add_view(ask_store, name="ask")
    config.add_view(ask_store, name="secret", permission="secret")
    config.add_route("routed", "/routed/{x}")
    config.add_view(ask_store, route_name="routed")
    return make_app(config)


@pytest.mark.parametrize("root_factory", [Root, mounted_root])
def test_error_views_of_the_application_answer_for_its_pages(
    redis_url: str, job: str, root_factory: Any
) -> None:
    """The application's pages keep its own error pages; ours are not used."""
    app = app_with_error_views(redis_url, root_factory=root_factory)

    assert get(app, "/nothing", "alice").text == "app 404"
    assert get(app, "/secret", "alice").text == "app 403"
    assert get(app, "/routed/1/2", "alice").text == "app 404"
    assert get(app, "/ask", "alice").text == "asked"


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
def test_error_views_of_the_application_do_not_answer_for_ours(
    redis_url: str, job: str, place: str
) -> None:
    """A request for a job gets our responses, whatever error pages there are."""
    app = app_with_error_views(redis_url, root_factory=mounted_root)

    assert get(app, f"{place}/{UUID}", "alice").json == NOT_FOUND
    assert get(app, f"{place}/{job}", "bob").json == FORBIDDEN


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
def test_general_error_view_does_not_answer_for_a_store_that_is_away(
    place: str,
) -> None:
    """A request for a job gets our 503, even if the application catches all errors."""
    app = app_with_error_views(NOWHERE, root_factory=mounted_root)

    assert get(app, f"{place}/{UUID}", "alice").status_code == 503


def test_error_before_traversal_is_the_applications(redis_url: str) -> None:
    """If the root factory raises HTTPForbidden, the application answers."""

    def forbid(request: Request) -> Any:
        raise HTTPForbidden

    app = app_with_error_views(redis_url, root_factory=forbid)

    assert get(app, "/ask", "alice").text == "app 403"


def test_view_on_a_job_may_meet_a_store_that_is_away(server: EmbeddedServer) -> None:
    """In an application's view on a job, the error belongs to the application."""

    def restart(context: JobState, request: Request) -> Response:
        server.stop()
        return Response(str(request.job_states.find(UUID)))

    config = make_config(server.url, root_factory=mounted_root)
    config.add_view(restart, context=JobState, name="restart")
    config.add_exception_view(
        lambda e, r: Response("app 503", 503), context=StoreUnavailable
    )
    app = make_app(config)
    with redis.Redis.from_url(server.url) as client:
        uuid = put_job(client)

    assert get(app, f"/jobs/{uuid}/restart", "alice").text == "app 503"
    assert get(app, f"/jobs/{uuid}", "alice").content_type == "application/json"
    assert get(app, "/job_state/" + UUID, "alice").content_type == "application/json"


# In the application's own JSON.


def test_state_goes_through_the_applications_json_renderer(
    redis_url: str, job: str
) -> None:
    """In the response of an application's view, a job has the same JSON."""
    config = make_config(redis_url)
    config.add_renderer("app_json", JSON(indent=4))
    config.add_view(
        lambda c, r: {"job": r.job_states[job]}, name="page", renderer="app_json"
    )
    app = make_app(config)

    page = get(app, "/page", "alice")

    assert page.json == {"job": get(app, f"/job_state/{job}", "alice").json}


def test_state_can_be_shown_by_a_view_that_has_no_container(
    redis_url: str, job: str
) -> None:
    """A job loaded from the store itself can be shown as well."""
    config = made_config(redis_url)
    job_state = JobStore(redis_url).load(job)
    assert job_state is not None

    state = job_state.__json__(make_request(config, "alice"))

    assert state["job"]["url"] == f"http://localhost/job_state/{job}/"


# Arbitrary values in Redis.


def test_markup_stays_text(bare_app: TestApp, client: redis.Redis) -> None:
    """Markup in a job's texts is JSON text, of a type that browsers do not render."""
    markup = "</script><img src=x onerror=alert(1)>"
    uuid = put_job(
        client, **{"message": json.dumps(markup), f"m:{markup}": json.dumps(markup)}
    )

    response = get(bare_app, f"/job_state/{uuid}", "alice", Accept="text/html")

    assert response.content_type == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.json["job"]["message"] == markup
    assert response.json[markup] == markup


def reject(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("m:x", "{bad"),
        ("m:x", "NaN"),
        ("m:x", "[1e999]"),
        ("m:x", "9" * 5000),
        ("m:x", "[" * 100_000),
        ("m:x", "[" * 970 + "]" * 970),
        ("m:x", b"\xff"),
        ("m:x", '"\\ud800"'),
        ("m:__proto__", '{"isAdmin": true}'),
        ("m:constructor", "1"),
        ("m:job", '{"status": "success"}'),
        ("m:job_state", '"success"'),
        ("m:", "1"),
        ("status", "<b>"),
        ("status", ""),
        ("seen", "²"),
        ("seen", "9" * 5000),
        ("seen", "soon"),
        ("queued", "²"),
        ("queued", "9" * 30),
        ("updated", "-1"),
        ("due", "1e400"),
        ("attempt", "x"),
        ("attempt", "9" * 5000),
        ("params", "[1]"),
        ("params", '{"miles": 1e999}'),
        ("progress", '"half"'),
        ("progress", '[1, "x", null, null]'),
        ("progress", "[1, [], {}, true]"),
        ("progress", "[NaN, -1, null, null]"),
        ("progress", "[1" + "0" * 400 + ", 3, null, null]"),
        ("message", '["x"]'),
        ("log", '[1, null, {"a": 1}]'),
        ("log", '"abc"'),
        ("error", "[1, 2]"),
        ("error", '{"message": "hush"}'),
        ("unknown", "x"),
    ],
)
def test_nonsense_in_the_store_is_not_an_error(
    bare_app: TestApp, client: redis.Redis, field: str, value: str | bytes
) -> None:
    """Fields written by another program never break the request or the browser's
    JSON.parse, and do not affect the job's own part.
    """
    uuid = put_job(client, **{field: value})

    response = get(bare_app, f"/job_state/{uuid}", "alice")

    assert response.status_code == 200
    state = json.loads(response.body, parse_constant=reject)
    assert state["job"]["uuid"] == uuid
    assert state["job_state"] == "working"
    assert '"hush"' not in response.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("owner", '["alice"]'),
        ("owner", '{"alice": 1}'),
        ("owner", "alice"),
        ("owner", "null"),
        ("owner", ""),
        ("owner", '"alic\\u0065x"'),
        ("owner", "[" * 100_000),
        ("kind", "NoSuchKind"),
        ("kind", "<script>"),
        ("kind", ""),
        ("kind", b"\xff"),
    ],
)
def test_nonsense_in_the_store_gives_no_rights(
    bare_app: TestApp, client: redis.Redis, field: str, value: str | bytes
) -> None:
    """An owner or kind that cannot be parsed gives no rights and causes no error."""
    uuid = put_job(client, **{field: value})

    for user in "alice", "bob", None:
        assert get(bare_app, f"/job_state/{uuid}", user).json == FORBIDDEN
    assert get(bare_app, f"/job_state/{uuid}", ADMIN).status_code == 200


def test_key_of_another_type_is_not_a_job(
    bare_app: TestApp, client: redis.Redis
) -> None:
    """A job's key that does not hold a hash is not a job."""
    client.set(f"jobstate:{UUID}", "x")

    assert get(bare_app, f"/job_state/{UUID}", "alice").json == NOT_FOUND
    jobs = get(bare_app, f"/job_state?uuid={UUID}", "alice").json["jobs"]
    assert jobs == {UUID: None}


@pytest.mark.parametrize("query", [f"/{UUID}", f"?uuid={UUID}&uuid={UUID[::-1]}"])
def test_store_that_refuses_is_a_503(
    redis_url: str, client: redis.Redis, query: str
) -> None:
    """If a server refuses to say whether a job exists, the response is not a 404: a
    browser would stop asking.
    """
    client.acl_setuser(
        "narrow",
        enabled=True,
        passwords=["+secret"],
        keys=["jobstate:*"],
        commands=["+time", "+client", "+hello", "+ping", "-hgetall"],
    )
    app = make_app(make_config(redis_url.replace("//", "//narrow:secret@")))
    try:
        assert get(app, f"/job_state{query}", "alice").status_code == 503
    finally:
        client.acl_deluser("narrow")
