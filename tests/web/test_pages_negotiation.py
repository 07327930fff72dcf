"""Who gets a page rather than JSON, and what keeps the two apart in caches."""

from typing import Any

import pytest
from pyramid.events import NewResponse
from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, StoreUnavailable
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import KEEPER, OPERATOR, put
from tests.web.paging import CHROMIUM, Visit, browse, paged_app, paged_config
from tests.webapp import NOWHERE, PLACES, ask, get, make_app

HTML = [
    CHROMIUM,
    "application/xhtml+xml",
    "Text/HTML; level=1 ; q=0.5",
    "text/html;q=0.5, application/json;q=0.5",
    "text/html;q=0.8, */*;q=0.8",
    "text/html;q=0.8, application/*;q=0.9, application/json;q=0.1",
]

JSON = [
    # fetch(), curl and axios
    "*/*",
    "application/json, text/plain, */*",
    None,
    "text/*",
    "text/html;q=0.5, application/json",
    "text/html;q=0.5, */*;q=0.8",
    "text/html;q=0, */*",
    "text/html;q=high",
    "text/html, text/event-stream",
]


def test_page_is_for_those_who_name_html(paged, operated, store):
    """HTML is for requests that name it, and do not prefer JSON."""
    (job,) = put(store, "alice", cls=RunMarathon)
    for accept in HTML + JSON:
        headers = {} if accept is None else {"Accept": accept}
        content_type = "text/html" if accept in HTML else "application/json"
        for path in "/job_state/", f"/job_state/{job}":
            response = get(paged, path, "alice", **headers)
            assert response.status_code == 200
            assert response.content_type == content_type, accept
    for path in "/job_state", f"/job_state/{job}", "/job_state/x":
        assert browse(operated, path).content_type == "application/json"


FRAMES = ("Content-Security-Policy", "X-Frame-Options")


@pytest.mark.promise("headers-forbid-caching")
def test_headers_of_every_answer(paged, store):
    """Answers vary by Accept. No cache keeps one, and only its origin frames a page."""
    (job,) = put(store, "alice")
    tag = get(paged, f"/job_state/{job}", OPERATOR).headers["ETag"]
    seen = set()
    for path in "", f"/{job}", f"/{UUID}", "/x/y", "?status=x", "?kind=%ff", "?all=1":
        for user in OPERATOR, "bob":
            page = browse(paged, f"/job_state{path}", user, If_None_Match=tag)
            script = get(paged, f"/job_state{path}", user)
            for response in page, script:
                assert response.headers["Vary"] == "Accept", (path, user)
                assert response.headers["Cache-Control"] == "private, no-store"
                seen.add((response.status_code, response.content_type))
            policies = [page.headers.get(name) for name in FRAMES]
            assert policies == ["frame-ancestors 'self'", "SAMEORIGIN"], (path, user)
            assert not {*script.headers} & {*FRAMES}
            if page.status_code == 200:
                assert "ETag" not in page.headers
                assert page.headers["X-Content-Type-Options"] == "nosniff"
                assert page.headers["Content-Type"] == "text/html; charset=UTF-8"
    for status in 200, 400, 403, 404:
        assert {(status, "text/html"), (status, "application/json")} <= seen
    head = ask(paged, "HEAD", f"/job_state/{job}", OPERATOR, Accept=CHROMIUM)
    assert (head.content_type, head.body) == ("text/html", b"")
    unchanged = get(paged, f"/job_state/{job}", OPERATOR, If_None_Match=tag)
    assert (unchanged.status_code, unchanged.headers["Vary"]) == (304, "Accept")
    away = browse(paged_app(NOWHERE), f"/job_state/{job}")
    assert (away.status_code, away.headers[FRAMES[1]]) == (503, "SAMEORIGIN")


def test_application_chooses_who_may_frame_pages(redis_url, store):
    """What a view or a subscriber sets stays, and replaces nothing else."""
    (job,) = put(store, "alice", cls=RunMarathon)
    own = "default-src 'self'; frame-ancestors https://partner.example"

    def own_page(context: RunMarathon, request: Request) -> Response:
        return Response("<h1>Mine</h1>", headers={"X-Frame-Options": "DENY"})

    def set_policy(event: Any) -> None:
        event.response.headers["Content-Security-Policy"] = own

    view: dict[str, Any] = {"context": RunMarathon, "jobstate_page": True}
    route = "pyramid_jobstate.job"
    # A policy of ours would let this origin in: browsers heed that one alone.
    for name, set_up, frames in (
        ("view", lambda c: c.add_view(own_page, route_name=route, **view), "DENY"),
        ("event", lambda c: c.add_subscriber(set_policy, NewResponse), "SAMEORIGIN"),
    ):
        config = paged_config(redis_url)
        set_up(config)
        page = browse(make_app(config), f"/job_state/{job}")
        found = [page.headers.get(header) for header in FRAMES]
        assert found == [own if name == "event" else None, frames], name


def test_what_has_no_page_is_json(paged, store):
    """Browsers get JSON from requests without a page, and from those that act."""
    (job,) = put(store, "alice", status="success")
    for end in "/counts", f"/{job}/inspect", f"?uuid={job}&uuid=x":
        response = browse(paged, f"/job_state{end}")
        assert response.json == get(paged, f"/job_state{end}", OPERATOR).json
    for method, status in ("PUT", 405), ("DELETE", 400):
        response = ask(paged, method, f"/job_state/{job}", OPERATOR, Accept=CHROMIUM)
        assert response.status_code == status
        assert "error" in response.json


def test_error_pages_are_the_application_s(redis_url, store):
    """Browsers get the application's error pages, and scripts JSON."""

    def error_app(redis_url: str) -> TestApp:
        config = paged_config(redis_url)

        def error_page(exc: Any, request: Request) -> Response:
            status = getattr(exc, "status_int", 503)
            return Response(f"<h1>Our own {status}</h1>", status=status)

        for exception in HTTPForbidden, HTTPNotFound, StoreUnavailable:
            config.add_exception_view(error_page, context=exception)
        return make_app(config)

    app = error_app(redis_url)
    (job,) = put(store, "alice")
    for path, user, status in (
        (f"/{job}", "bob", 403),
        ("?all=1", KEEPER, 403),
        (f"/{UUID}", OPERATOR, 404),
        ("/x", OPERATOR, 404),
        (f"/{job}/@@/x", OPERATOR, 404),
    ):
        response = browse(app, f"/job_state{path}", user)
        script = get(app, f"/job_state{path}", user)
        assert response.status_code == script.status_code == status
        assert response.text == f"<h1>Our own {status}</h1>"
        assert "error" in script.json
        assert response.headers["Vary"] == script.headers["Vary"] == "Accept"
        assert response.headers["Cache-Control"] == "private, no-store"
    path = f"/job_state/{UUID}"
    response = browse(error_app(NOWHERE), path)
    assert (response.status_code, response.text) == (503, "<h1>Our own 503</h1>")
    response = browse(paged_app(NOWHERE), path)
    assert (response.status_code, response.content_type) == (503, "text/html")
    assert response.headers["Retry-After"] == "5"


def test_view_of_the_application_wins(redis_url, store):
    """A view that the application has for a kind of job is its page."""

    class Procession(JobState):
        """A kind of job with a page of its own."""

    config = paged_config(redis_url)

    def own(context: Procession, request: Request) -> Response:
        return Response(f"<h1>{context.kind}</h1>")

    for route in None, "pyramid_jobstate.job", "pyramid_jobstate.job/":
        config.add_view(own, context=Procession, route_name=route, jobstate_page=True)
    app = make_app(config)
    parade = put_job(store, Procession).uuid
    (other,) = put(store, "alice", cls=RunMarathon)
    for place in PLACES:
        page = browse(app, f"{place}/{parade}")
        assert page.text == "<h1>Procession</h1>"
        assert page.headers["Vary"] == "Accept"
        assert page.headers["Cache-Control"] == "private, no-store"
        state = get(app, f"{place}/{parade}", OPERATOR).json
        assert state["job"]["kind"] == "Procession"
        assert Visit(app, f"{place}/{other}").texts("h1") == ["Run marathon"]
