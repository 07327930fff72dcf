"""Jobs on pages of another origin, allowed by the README's snippet."""

import time
from typing import Any

import pytest
from playwright.sync_api import Page
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.testing import put_job
from tests.browser.sites import Site
from tests.jobs import RunMarathon
from tests.readme import snippets
from tests.streams import StreamClient, serving
from tests.support import UUID, load_job, wait_for
from tests.webapp import NOWHERE, ask, get, make_config

SHOP = "https://shop.example.com"
ELSEWHERE = "https://elsewhere.example.com"


def cors(*origins: str) -> Any:
    """Return the README's includeme, for these origins."""
    (snippet,) = [text for text in snippets("python") if "myapp/cors.py" in text]
    namespace: dict[str, Any] = {}
    exec(snippet, namespace)
    if origins:
        namespace["ORIGINS"] = set(origins)
    return namespace["includeme"]


def shared(config: Configurator) -> TestApp:
    config.include("pyramid_jobstate")
    cors()(config)
    return TestApp(config.make_wsgi_app())


def allowed(response: Any) -> Any:
    return response.headers.get("Access-Control-Allow-Origin")


def test_streams_may_be_read(redis_url: str, store: JobStore) -> None:
    """Under ASGI, an allowed origin's page sees the offer, and may read the stream."""
    app = shared(make_config(redis_url)).app
    place = f"/job_state/{put_job(store, RunMarathon, owner='alice').uuid}"
    with serving(asgi_app(app)) as port:
        with StreamClient(port, place, Accept="*/*", Origin=SHOP) as poll:
            assert poll.headers["JobState-Stream"] == "1"
            exposed = poll.headers["Access-Control-Expose-Headers"]
            assert "JobState-Stream" in exposed.split(", ")
        with StreamClient(port, place, Origin=SHOP) as stream:
            assert stream.is_stream
            assert stream.headers["Access-Control-Allow-Origin"] == SHOP
            assert stream.headers["Access-Control-Allow-Credentials"] == "true"


def test_every_answer_may_be_read(redis_url: str, store: JobStore) -> None:
    """An allowed origin may read states, refusals, errors and when to retry a 503."""
    app = shared(make_config(redis_url))
    job = put_job(store, RunMarathon, owner="alice").uuid
    place = f"/job_state/{job}"
    etag = get(app, place, "alice").headers["ETag"]
    for status, method, path, headers in (
        (304, "GET", place, {"X_User": "alice", "If_None_Match": etag}),
        (200, "GET", f"/job_state?uuid={job}", {}),
        (403, "GET", place, {}),
        (404, "GET", f"/job_state/{UUID}", {}),
        (202, "POST", f"{place}/cancel", {"X_User": "alice", "X_Requested_With": "x"}),
    ):
        response = ask(app, method, path, Origin=SHOP, **headers)
        assert (response.status_code, allowed(response)) == (status, SHOP)
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
        exposed = ", ".join(response.headers.getall("Access-Control-Expose-Headers"))
        assert "ETag" in exposed
        assert ("JobState-Time" in exposed) == ("JobState-Time" in response.headers)
        assert "Origin" in response.headers["Vary"]
        response = ask(app, method, path, Origin=ELSEWHERE, **headers)
        assert allowed(response) is None
    response = get(shared(make_config(NOWHERE)), f"{place}?all=1", Origin=SHOP)
    assert (response.status_code, allowed(response)) == (503, SHOP)
    assert "Retry-After" in response.headers
    assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]


def test_preflight_is_answered_without_a_user() -> None:
    """A preflight, which has no cookie, is answered with the script's headers."""
    config = make_config(NOWHERE)
    config.set_default_permission("view_job")
    app = shared(config)
    asked = {"Access_Control_Request_Method": "POST"}
    for end in "", f"/{UUID}/cancel":
        response = ask(app, "OPTIONS", f"/job_state{end}", Origin=SHOP, **asked)
        assert (response.status_code, allowed(response)) == (200, SHOP)
        assert "X-Requested-With" in response.headers["Access-Control-Allow-Headers"]


PAGE = """<!doctype html><title>Shop</title>
<script src="{api}/job_state/static/job-state.js"></script>"""

FOLLOW = """([jobUuid, baseUrl]) => {
    window.told = [];
    window.poller = JobState.startPolling({
        jobUuid, baseUrl, crossOrigin: true, pollingPeriod: 50,
        update: data => told.push(data.job.status),
        error: data => told.push("error"),
        lost: reason => told.push(`lost: ${reason}`),
    });
}"""


@pytest.mark.parametrize("is_allowed", [True, False])
def test_page_of_another_origin_follows_and_cancels(
    redis_url: str, store: JobStore, page: Page, *, is_allowed: bool
) -> None:
    """In a browser, the script of an allowed page polls a job, cancels it, and knows
    the store's time. That of any other page gets no answer and cancels nothing.
    """
    job = put_job(store, RunMarathon, "queued", owner="alice").uuid
    site = Site(page)
    config = make_config(redis_url)
    other = site.url.replace("127.0.0.1", "localhost")
    cors(other if is_allowed else SHOP)(config)
    page.clock.install(time=time.time() - 3600)
    config.add_route("shop", "/shop")
    shop = Response(PAGE.format(api=site.url))
    config.add_view(lambda request: shop, route_name="shop")
    site.open(config)
    page.goto(f"{other}/shop")
    page.evaluate(FOLLOW, [job, f"{site.url}/job_state"])
    told = wait_for(lambda: page.evaluate("told"))
    if is_allowed:
        assert told[0] == "queued"
        assert abs(page.evaluate("poller.now") / 1000 - time.time()) < 60
        assert page.evaluate("poller.cancel()") is True
        wait_for(lambda: page.evaluate("told")[-1] == "error")
        told = page.evaluate("told")
        assert [words for words in told if words.startswith("lost")] == []
    else:
        assert told[0].startswith("lost")
        cancel = "poller.cancel().then(() => null, (reason) => `${reason}`)"
        assert page.evaluate(cancel) is not None
    status = load_job(store, job).status
    assert status == ("cancelled" if is_allowed else "queued")
    site.close()
