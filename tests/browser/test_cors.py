"""Jobs on pages of another origin, allowed by the README's snippet."""

import threading
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import redis
from playwright.sync_api import Page
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate.asgi import asgi_app
from tests.readme import snippets
from tests.streams import StreamClient, serving
from tests.support import UUID, wait_for
from tests.webapp import NOWHERE, ask, get, make_config, put_job

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


def make_app(config: Configurator) -> TestApp:
    config.include("pyramid_jobstate")
    cors()(config)
    return TestApp(config.make_wsgi_app())


def allowed(response: Any) -> str | None:
    value: str | None = response.headers.get("Access-Control-Allow-Origin")
    return value


def test_streams_may_be_read(redis_url: str, client: redis.Redis) -> None:
    """Under ASGI, a page of the allowed origin sees that a poll offers a stream, which
    it may read.
    """
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    cors()(config)
    place = f"/job_state/{put_job(client)}"
    with serving(asgi_app(config.make_wsgi_app())) as port:
        with StreamClient(port, place, Accept="*/*", Origin=SHOP) as poll:
            assert poll.headers["JobState-Stream"] == "1"
            exposed = poll.headers["Access-Control-Expose-Headers"]
            assert "JobState-Stream" in exposed.split(", ")
        with StreamClient(port, place, Origin=SHOP) as stream:
            assert stream.is_stream
            assert stream.headers["Access-Control-Allow-Origin"] == SHOP
            assert stream.headers["Access-Control-Allow-Credentials"] == "true"


def test_every_answer_may_be_read(redis_url: str, client: redis.Redis) -> None:
    """States, lists, refusals and errors carry the header for the allowed origin."""
    app = make_app(make_config(redis_url))
    job = put_job(client)
    place = f"/job_state/{job}"
    etag = get(app, place, "alice").headers["ETag"]

    for status, method, path, headers in (
        (200, "GET", place, {"X_User": "alice"}),
        (304, "GET", place, {"X_User": "alice", "If_None_Match": etag}),
        (200, "GET", f"/job_state?uuid={job}", {}),
        (200, "GET", "/job_state", {}),
        (400, "GET", "/job_state?limit=many", {}),
        (403, "GET", place, {}),
        (404, "GET", f"/job_state/{UUID}", {}),
        (405, "PUT", place, {}),
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


def test_outage_may_be_read() -> None:
    """A 503 carries the header, too, and tells the script when to ask again."""
    app = make_app(make_config(NOWHERE))

    for path in (f"/job_state/{UUID}", "/job_state?all=1", f"/job_state?uuid={UUID}"):
        response = get(app, path, "admin", Origin=SHOP)
        assert (response.status_code, allowed(response)) == (503, SHOP)
        assert "Retry-After" in response.headers
        assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("end", ["", "/", f"/{UUID}", f"/{UUID}/", f"/{UUID}/cancel"])
def test_preflight_is_answered_without_a_user(end: str) -> None:
    """A preflight, which has no cookie, is answered with the script's headers."""
    config = make_config(NOWHERE)
    config.set_default_permission("view_job")
    app = make_app(config)

    response = ask(
        app,
        "OPTIONS",
        f"/job_state{end}",
        Origin=SHOP,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="x-requested-with",
    )

    assert (response.status_code, allowed(response)) == (200, SHOP)
    assert "X-Requested-With" in response.headers["Access-Control-Allow-Headers"]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


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


@pytest.fixture
def api(redis_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an application with jobs, in which everyone is Alice. Its /page,
    opened under the name localhost, is of another origin, which is allowed if the
    test's parameter is true.
    """
    config = make_config(redis_url)
    config.include("pyramid_jobstate")

    def as_alice(environ: Any, start_response: Any) -> Any:
        return app({**environ, "HTTP_X_USER": "alice"}, start_response)

    with make_server("127.0.0.1", 0, as_alice, handler_class=Quiet) as server:
        port = server.server_port
        api = f"http://127.0.0.1:{port}"
        cors(f"http://localhost:{port}" if request.param else SHOP)(config)
        config.add_route("page", "/page")
        config.add_view(
            lambda request: Response(PAGE.format(api=api)), route_name="page"
        )
        app = config.make_wsgi_app()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield api
        server.shutdown()
        thread.join()


def follow(page: Page, api: str, job: str) -> None:
    """Follow a job from a page of another origin."""
    page.goto(api.replace("127.0.0.1", "localhost") + "/page")
    page.evaluate(FOLLOW, [job, f"{api}/job_state"])


@pytest.mark.parametrize("api", [True], indirect=True)
def test_page_of_an_allowed_origin_follows_and_cancels(
    api: str, client: redis.Redis, page: Page
) -> None:
    """In a browser, the script of an allowed page polls a job, cancels it, and knows
    the store's time.
    """
    job = put_job(client, status="queued")
    page.clock.install(time=time.time() - 3600)

    follow(page, api, job)

    wait_for(lambda: page.evaluate("told.includes('queued')"))
    assert abs(page.evaluate("poller.now") / 1000 - time.time()) < 60
    assert page.evaluate("poller.cancel()") is True
    wait_for(lambda: page.evaluate("told")[-1] == "error")
    assert not [told for told in page.evaluate("told") if told.startswith("lost")]
    assert client.hget(f"jobstate:{job}", "status") == b"cancelled"


@pytest.mark.parametrize("api", [False], indirect=True)
def test_page_of_another_origin_learns_and_changes_nothing(
    api: str, client: redis.Redis, page: Page
) -> None:
    """In a browser, the script of any other page gets no answer and cancels nothing."""
    job = put_job(client, status="queued")

    follow(page, api, job)

    (told,) = wait_for(lambda: page.evaluate("told"))
    assert told.startswith("lost")
    reason = page.evaluate("poller.cancel().then(() => null, reason => `${reason}`)")
    assert reason is not None
    assert client.hget(f"jobstate:{job}", "status") == b"queued"
