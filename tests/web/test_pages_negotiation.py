"""Who gets a page rather than JSON, and what keeps the two apart in caches."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound, HTTPServiceUnavailable
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import KEEPER, OPERATOR, act
from tests.web.paging import CHROMIUM, Visit, browse, paged_app, paged_config
from tests.webapp import NOWHERE, PLACES, ask, get, make_app, make_config

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (CHROMIUM, "text/html"),
        (FIREFOX, "text/html"),
        ("text/html", "text/html"),
        ("application/xhtml+xml", "text/html"),
        ("Text/HTML; level=1 ; q=0.5", "text/html"),
        ("text/html;q=0.5, application/json;q=0.5", "text/html"),
        ("text/html, application/json;q=0.9", "text/html"),
        ("text/html;q=0.8, */*;q=0.8", "text/html"),
        ("text/html;q=0.8, application/*;q=0.9, application/json;q=0.1", "text/html"),
        # fetch(), curl and axios
        ("*/*", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("", "application/json"),
        (None, "application/json"),
        ("text/*", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0.5, */*;q=0.8", "application/json"),
        ("text/html;q=0.5, application/*;q=0.8", "application/json"),
        ("text/html;q=0", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("application/xhtml+xml, TEXT/HTML;q=0", "application/json"),
        ("text/event-stream;q=0, text/html", "text/html"),
        ("text/html;q=high", "application/json"),
        ("application/vnd.html", "application/json"),
        ("text/event-stream", "application/json"),
        ("text/html, text/event-stream", "application/json"),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_page_is_for_those_who_name_html(
    paged: TestApp, store: JobStore, place: str, accept: str | None, content_type: str
) -> None:
    """HTML is for requests whose Accept names it, and JSON with no higher quality."""
    job = put_job(store, RunMarathon, owner="alice").uuid
    headers = {} if accept is None else {"Accept": accept}

    for path in f"{place}/", f"{place}/{job}", f"{place}/{job}/":
        response = get(paged, path, "alice", **headers)

        assert response.status_code == 200
        assert response.content_type == content_type
        assert response.headers["Vary"] == "Accept"


def test_pages_are_off_by_default(operated: TestApp, store: JobStore) -> None:
    """Without the include, browsers get JSON."""
    job = put_job(store, RunMarathon).uuid

    for path in "/job_state", f"/job_state/{job}", "/job_state/x", "/job_state?all=0":
        assert browse(operated, path).content_type == "application/json"


def test_page_is_never_kept(paged: TestApp, store: JobStore) -> None:
    """A page has no ETag, and no cache keeps it."""
    job = put_job(store, RunMarathon).uuid
    etag = get(paged, f"/job_state/{job}", OPERATOR).headers["ETag"]

    for path in f"/job_state/{job}", "/job_state?all=1":
        response = browse(paged, path, If_None_Match=etag)

        assert response.status_code == 200
        assert "ETag" not in response.headers
        assert response.headers["Cache-Control"] == "private, no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Type"] == "text/html; charset=UTF-8"


@pytest.mark.parametrize("place", PLACES)
def test_every_answer_varies(paged: TestApp, store: JobStore, place: str) -> None:
    """All answers at the URLs of jobs say that they depend on the header Accept."""
    job = put_job(store, RunMarathon, owner="alice").uuid
    paths = ["", f"/{job}", f"/{UUID}", "/x/y", "?status=x", "?kind=%ff", "?all=1"]
    seen = set()
    for path in paths:
        for user in OPERATOR, "bob":
            for accept in CHROMIUM, "*/*":
                response = get(paged, place + path, user, Accept=accept)
                if place == "/job_state" or not path.startswith("/x"):
                    # There is nothing of ours at /jobs/x/y.
                    assert response.headers["Vary"] == "Accept", (path, accept)
                seen.add((response.status_code, response.content_type))
    page, data = "text/html", "application/json"
    for status in 200, 400, 403, 404:
        assert {(status, page), (status, data)} <= seen
    tag = get(paged, f"{place}/{job}", OPERATOR).headers["ETag"]
    unchanged = get(paged, f"{place}/{job}", OPERATOR, If_None_Match=tag)
    assert (unchanged.status_code, unchanged.headers["Vary"]) == (304, "Accept")


def test_head_of_a_page(paged: TestApp, store: JobStore) -> None:
    """HEAD has the headers of the page, and no body."""
    job = put_job(store, RunMarathon).uuid

    response = ask(paged, "HEAD", f"/job_state/{job}", OPERATOR, Accept=CHROMIUM)

    assert response.status_code == 200
    assert (response.content_type, response.body) == ("text/html", b"")


def test_acts_keep_their_json(paged: TestApp, store: JobStore) -> None:
    """What a browser changes is answered as JSON, whatever it accepts."""
    job = put_job(store, RunMarathon, "success").uuid

    path = f"/job_state/{job}"
    for method, status in ("PUT", 405), ("POST", 405), ("DELETE", 400):
        response = ask(paged, method, path, OPERATOR, Accept=CHROMIUM)
        assert response.status_code == status
        assert "error" in response.json
    assert act(paged, path, method="DELETE").status_code == 204


@pytest.mark.parametrize("path", ["/counts", "/{job}/inspect", "?uuid={job}&uuid=x"])
def test_what_has_no_page_is_json(paged: TestApp, store: JobStore, path: str) -> None:
    """Browsers get JSON where nothing else is served."""
    job = put_job(store, RunMarathon).uuid
    path = "/job_state" + path.format(job=job)

    response = browse(paged, path)

    assert response.json == get(paged, path, OPERATOR).json
    assert response.headers["Vary"] == "Accept"


def error_app(redis_url: str | None) -> TestApp:
    """Return an application with pages and error pages of its own."""
    config = paged_config(redis_url)

    def error_page(exc: Any, request: Request) -> Response:
        status = getattr(exc, "status_int", 503)
        return Response(f"<h1>Our own {status}</h1>", status=status)

    for exception in HTTPForbidden, HTTPNotFound, StoreUnavailable:
        config.add_exception_view(error_page, context=exception)
    return make_app(config)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("path", "user", "status"),
    [
        ("/{job}", "bob", 403),
        ("/{job}/", None, 403),
        ("?all=1", KEEPER, 403),
        ("?owner=bob", "alice", 403),
        (f"/{UUID}", OPERATOR, 404),
        ("/x", OPERATOR, 404),
    ],
)
def test_error_pages_are_the_application_s(
    redis_url: str,
    store: JobStore,
    place: str,
    path: str,
    user: str | None,
    status: int,
) -> None:
    """The application's own pages say that a job is forbidden or unknown; scripts still
    read it as JSON.
    """
    app = error_app(redis_url)
    path = place + path.format(job=put_job(store, RunMarathon, owner="alice").uuid)

    response = browse(app, path, user)
    script = get(app, path, user)

    assert response.status_code == script.status_code == status
    assert response.text == f"<h1>Our own {status}</h1>"
    assert "error" in script.json
    assert response.headers["Vary"] == script.headers["Vary"] == "Accept"
    assert response.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize(
    "path", ["/job_state/x/y", "/job_state/{job}/x", "/jobs/x/y", "/jobs/{job}/@@/x"]
)
def test_nothing_below_our_path_is_the_application_s_page(
    redis_url: str, store: JobStore, path: str
) -> None:
    """A path that is nobody's gets the application's page, too."""
    path = path.format(job=put_job(store, RunMarathon).uuid)

    assert browse(error_app(redis_url), path).text == "<h1>Our own 404</h1>"


@pytest.mark.parametrize("path", [f"/{UUID}", "?all=1"])
@pytest.mark.parametrize("place", PLACES)
def test_outage_is_the_application_s_page(place: str, path: str) -> None:
    """While the store is away, a browser gets the application's page for that."""
    app = error_app(NOWHERE)

    response = browse(app, place + path)

    assert (response.status_code, response.text) == (503, "<h1>Our own 503</h1>")
    assert get(app, place + path, OPERATOR).content_type == "application/json"


def test_outage_without_a_page_of_the_application() -> None:
    """Without a page for outages, a browser gets Pyramid's plain one."""
    response = browse(paged_app(NOWHERE), f"/job_state/{UUID}")

    assert response.status_code == HTTPServiceUnavailable.code
    assert response.content_type == "text/html"
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("status=x", "status must be a status of a job, not"),
        ("all=2", "all can only be 1"),
        ("limit=x", "limit must be a number"),
        ("limit=0", "limit must be"),
        ("cursor=<b>", "cursor was not issued by this list: &#x27;&lt;b&gt;&#x27;"),
    ],
)
def test_bad_query_is_a_page(paged: TestApp, query: str, text: str) -> None:
    """What a query gets wrong is said on a page, as text."""
    query += "" if query.startswith("all") else "&all=1"

    response = browse(paged, f"/job_state/?{query}")

    assert (response.status_code, response.content_type) == (400, "text/html")
    assert text in response.text


@pytest.mark.parametrize("place", PLACES)
def test_view_of_the_application_wins(
    redis_url: str, store: JobStore, place: str
) -> None:
    """A view that the application has for a kind of job is its page."""

    class Parade(JobState):
        """A kind of job with a page of its own."""

    config = paged_config(redis_url)

    def own(context: Parade, request: Request) -> Response:
        return Response(f"<h1>{context.kind}</h1>")

    for route in None, "pyramid_jobstate.job", "pyramid_jobstate.job/":
        config.add_view(
            own,
            context=Parade,
            route_name=route,
            jobstate_page=True,
            permission="view_job",
        )
    app = make_app(config)
    path = f"{place}/{put_job(store, Parade).uuid}"

    page = browse(app, path)
    assert page.text == "<h1>Parade</h1>"
    assert page.headers["Vary"] == "Accept"
    assert page.headers["Cache-Control"] == "private, no-store"
    assert browse(app, path, None).status_code == 403
    assert get(app, path, OPERATOR).json["job"]["kind"] == "Parade"
    other = f"{place}/{put_job(store, RunMarathon).uuid}"
    assert Visit(app, other).texts("h1") == ["Run marathon"]


def test_page_without_a_policy(redis_url: str, store: JobStore) -> None:
    """Without a policy, pages are as closed as their JSON."""
    app = paged_app(redis_url, security_policy=None)
    job = put_job(store, RunMarathon, owner="alice").uuid

    assert browse(app, f"/job_state/{job}").status_code == 403
    assert browse(app, "/job_state?all=1").status_code == 403
    assert Visit(app, "/job_state").uuids == []


def test_pages_of_an_application_without_operators(
    redis_url: str, store: JobStore
) -> None:
    """An application that grants nothing itself shows owners their own jobs."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.include("pyramid_jobstate.pages")
    app = make_app(config)
    job = put_job(store, RunMarathon, owner="alice").uuid

    assert Visit(app, "/job_state", "alice").uuids == [job]
    assert Visit(app, f"/job_state/{job}", "alice").acts == ["cancel"]
    assert json.loads(get(app, "/job_state", "alice").text)["items"]
