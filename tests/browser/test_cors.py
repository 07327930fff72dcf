"""Jobs on pages of another origin, allowed by the README's snippet."""

import time
from typing import Any

from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.readme import snippets
from tests.support import UUID, load_job, wait_for
from tests.webapp import NOWHERE, ask, get, make_config

SHOP = "https://shop.example.com"
ELSEWHERE = "https://elsewhere.example.com"


def cors(*origins: str) -> Any:
    """Return the README's includeme, for these origins."""
    (snippet,) = [text for text in snippets("python") if "myapp/cors.py" in text]
    namespace: dict[str, Any] = {}
    exec(snippet, namespace)
    namespace["ORIGINS"] |= {*origins}
    return namespace["includeme"]


def shared(redis_url: str) -> TestApp:
    """Return an application with the snippet, whose views ask for a permission."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    cors()(config)
    config.set_default_permission("view_job")
    return TestApp(config.make_wsgi_app())


def allowed(response: Any) -> Any:
    return response.headers.get("Access-Control-Allow-Origin")


def test_every_answer_may_be_read(redis_url, store):
    """An allowed origin may read states, refusals, errors, when to retry a 503, and the
    answer to a preflight, which has no user.
    """
    app = shared(redis_url)
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
        assert {"ETag", "JobState-Stream"} <= {*exposed.split(", ")}
        assert ("JobState-Time" in exposed) == ("JobState-Time" in response.headers)
        assert "Origin" in response.headers["Vary"]
        response = ask(app, method, path, Origin=ELSEWHERE, **headers)
        assert allowed(response) is None
    app = shared(NOWHERE)
    response = get(app, f"{place}?all=1", Origin=SHOP)
    assert (response.status_code, allowed(response)) == (503, SHOP)
    assert "Retry-After" in response.headers
    assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
    asked = {"Access_Control_Request_Method": "POST"}
    response = ask(app, "OPTIONS", f"{place}/cancel", Origin=SHOP, **asked)
    assert (response.status_code, allowed(response)) == (200, SHOP)
    assert "X-Requested-With" in response.headers["Access-Control-Allow-Headers"]


FOLLOW = """([jobUuid, baseUrl]) => {
    window.told = [];
    window.poller = JobState.startPolling({
        jobUuid, baseUrl, crossOrigin: true, pollingPeriod: 50,
        update: data => told.push(data.job.status),
        lost: reason => told.push(`lost: ${reason}`),
    });
}"""


def test_page_of_another_origin_follows_and_cancels(redis_url, store, site):
    """In a browser, the script of an allowed page polls a job, cancels it, and knows
    the store's time.
    """
    job = put_job(store, RunMarathon, "queued", owner="alice").uuid
    page = site.page
    other = site.url.replace("127.0.0.1", "localhost")
    config = make_config(redis_url)
    cors(other)(config)
    page.clock.install(time=time.time() - 3600)
    config.add_route("shop", "/shop")
    script = f"{site.url}/job_state/static/job-state.js"
    shop = Response(f"<!doctype html><title>Shop</title><script src={script}></script>")
    config.add_view(lambda request: shop, route_name="shop")
    site.open(config)
    page.goto(f"{other}/shop")
    page.evaluate(FOLLOW, [job, f"{site.url}/job_state"])
    wait_for(lambda: page.evaluate("told.at(-1)") == "queued")
    assert abs(page.evaluate("poller.now") / 1000 - time.time()) < 60
    assert page.evaluate("poller.cancel()") is True
    wait_for(lambda: page.evaluate("told.at(-1)") == "cancelled")
    assert set(page.evaluate("told")) == {"queued", "cancelled"}
    assert load_job(store, job).status == "cancelled"
