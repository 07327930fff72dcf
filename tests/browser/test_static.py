"""The script and its style sheet in real Pyramid applications and a real Chromium:
below prefixes, behind cache busters, from a CDN, as a module, with CSRF checks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import shift_path_info

import pytest
import redis
from playwright.sync_api import ConsoleMessage, Page, Request
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy, get_csrf_token
from pyramid.response import Response
from pyramid.static import ManifestCacheBuster, QueryStringConstantCacheBuster

from tests.pollserver import STATIC, PollServer
from tests.support import wait_for
from tests.webapp import make_config, mounted_root, put_job

SCRIPT = "pyramid_jobstate:static/job-state.js"
SHEET = "pyramid_jobstate:static/job-state.css"

POLICY = (
    "default-src 'self'; script-src 'self' {more}; style-src 'self' {more}; "
    "connect-src 'self' {more}; require-trusted-types-for 'script'"
)

FOLLOW = "(options) => JobState.startPolling(options).done.then((end) => end.outcome)"

LOOK = """() => {
  const element = document.querySelector("job-state");
  const bar = element.shadowRoot.querySelector("[part=bar]");
  return [element.state, bar.clientHeight];
}"""


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Handler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Log nothing."""


class Site:
    """Serves a WSGI application to a page, and records the page's requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.below = ""  # where the application is mounted
        self.user: str | None = "alice"
        self.markup: Callable[[Any], str] = lambda request: ""
        self.csp = POLICY.format(more="")
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.forgiven: list[str] = []
        self._server = make_server("127.0.0.1", 0, self.dispatch, Server, Handler)
        self._app: Any = None
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()
        page.on("request", self.hear)
        page.on("console", self.read)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def hear(self, request: Request) -> None:
        self.asked.append(request.url.removeprefix(self.url))

    def read(self, message: ConsoleMessage) -> None:
        is_forgiven = any(word in message.text for word in self.forgiven)
        if message.type == "error" and not is_forgiven:
            self.problems.append(message.text)

    def dispatch(self, environ: Any, start_response: Any) -> Any:
        """Pass a request of the user's to the application, as URL maps do."""
        if environ["PATH_INFO"] == "/favicon.ico":
            start_response("204 No Content", [])
            return []
        for segment in self.below.split("/")[1:]:
            if shift_path_info(environ) != segment.encode().decode("latin-1"):
                start_response("404 Not Found", [])
                return []
        if self.user is not None:
            environ = {**environ, "HTTP_X_USER": self.user}
        return self._app(environ, start_response)

    def show(self, request: Any) -> Response:
        response = Response("<!doctype html><title>Jobs</title>" + self.markup(request))
        response.headers["Content-Security-Policy"] = self.csp
        return response

    def open(self, config: Configurator, prefix: str | None = None) -> None:
        """Make the application, with a page of this site's markup, and open it."""
        config.include("pyramid_jobstate", route_prefix=prefix)
        config.add_route("page", "/page")
        config.add_view(self.show, route_name="page")
        self._app = config.make_wsgi_app()
        self.page.goto(f"{self.url}{self.below}/page")

    def follow(self, **options: Any) -> str:
        """Return the outcome of a poller."""
        outcome: str = self.page.evaluate(FOLLOW, options)
        return outcome

    def wait_for_element(self, state: str = "success") -> None:
        """Wait until the element shows this state, with its style sheet loaded."""
        wait_for(lambda: self.page.evaluate(LOOK) == [state, 6])

    def check(self, job_uuid: str) -> None:
        """Check that a poller finds a job, and that the element shows it."""
        assert self.follow(jobUuid=job_uuid) == "success"
        self.wait_for_element()

    def sheets(self) -> set[str]:
        """The URLs of the style sheets requested so far."""
        return {url for url in self.asked if ".css" in url}

    def polls(self) -> set[str]:
        """The paths below which jobs were polled."""
        paths = [urlsplit(url).path.rstrip("/") for url in self.asked]
        return {
            path.rpartition("/")[0] for path in paths if len(path.split("/")[-1]) == 36
        }

    def forgive(self, *words: str) -> None:
        """Drop the problems that contain any of these words, those of later as well."""
        self.forgiven += words
        self.problems = [
            problem
            for problem in self.problems
            if not any(word in problem for word in words)
        ]

    def close(self) -> None:
        self.page.goto("about:blank")
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def live_site(page: Page) -> Iterator[Site]:
    """A site whose page must not report errors or violate its strict policy."""
    site = Site(page)
    yield site
    site.close()
    assert site.problems == []


@pytest.fixture
def finished_job(client: redis.Redis) -> str:
    """A job of Alice's that has succeeded."""
    return put_job(client, status="success")


def tag(url: str, attributes: str = "") -> str:
    return f'<script src="{url}" {attributes}></script>'


def element(request: Any, job_uuid: str, attributes: str = "") -> str:
    url = request.resource_url(request.job_states[job_uuid])
    return f'<job-state src="{url}" {attributes}></job-state>'


def usual(job_uuid: str, attributes: str = "") -> Callable[[Any], str]:
    """The script's tag as in the README, and an element."""
    return lambda request: (
        tag(request.static_url(SCRIPT), attributes) + element(request, job_uuid)
    )


# Below a prefix


@pytest.mark.parametrize(
    ("below", "prefix", "path", "base"),
    [
        ("", None, None, "/job_state"),
        ("", "team", None, "/team/job_state"),
        ("/shop", None, None, "/shop/job_state"),
        ("", None, "api/jobs", "/api/jobs"),
        ("/shop/static", "team", "static", "/shop/static/team/static"),
        ("/café", None, None, "/caf%C3%A9/job_state"),
    ],
    ids=["plain", "route_prefix", "SCRIPT_NAME", "path", "all", "not ASCII"],
)
def test_page_below_a_prefix_has_nothing_to_configure(
    live_site: Site,
    redis_url: str,
    finished_job: str,
    below: str,
    prefix: str | None,
    path: str | None,
    base: str,
) -> None:
    """A bare uuid is found and the element is styled, wherever the package is included
    and the application is mounted.
    """
    live_site.below = below
    settings = {"jobstate.path": path} if path else {}
    live_site.markup = usual(finished_job)
    live_site.open(make_config(redis_url, settings=settings), prefix)
    live_site.check(finished_job)
    assert live_site.polls() == {base}
    assert live_site.sheets() == {f"{base}/static/job-state.css"}


# Cache busters


def add_manifest(config: Configurator, folder: Path) -> None:
    """Serve the files under names with a hash, and no other new names."""
    names = {"job-state.js": "job-state-3f2a91.js", "job-state.css": "job-state-7c.css"}
    for name, hashed in names.items():
        (folder / hashed).write_bytes((STATIC / name).read_bytes())
    (folder / "manifest.json").write_text(json.dumps(names))
    config.override_asset("pyramid_jobstate:static/", f"{folder}/")
    buster = ManifestCacheBuster(str(folder / "manifest.json"))
    config.add_cache_buster("pyramid_jobstate:static/", buster)


@pytest.mark.parametrize("param", ["x", "v"])
def test_query_of_the_script_is_the_sheet_s(
    live_site: Site, redis_url: str, finished_job: str, param: str
) -> None:
    """With a QueryStringConstantCacheBuster, a new script requests a new sheet."""
    config = make_config(redis_url)
    buster = QueryStringConstantCacheBuster("abc", param=param)
    config.add_cache_buster("pyramid_jobstate:static/", buster)
    live_site.markup = usual(finished_job)
    live_site.open(config, "team")
    live_site.check(finished_job)
    static = "/team/job_state/static"
    assert f"{static}/job-state.js?{param}=abc" in live_site.asked
    assert live_site.sheets() == {f"{static}/job-state.css?{param}=abc"}


def test_sheet_of_a_manifest_is_named_by_the_tag(
    live_site: Site, redis_url: str, finished_job: str, tmp_path: Path
) -> None:
    """With a ManifestCacheBuster, the attribute data-styles gives the sheet's URL, and
    a script with a longer name finds the jobs.
    """
    config = make_config(redis_url)
    add_manifest(config, tmp_path)
    live_site.markup = lambda request: (
        tag(request.static_url(SCRIPT), f'data-styles="{request.static_url(SHEET)}"')
        + element(request, finished_job)
    )
    live_site.open(config, "team")
    live_site.check(finished_job)
    static = "/team/job_state/static"
    assert f"{static}/job-state-3f2a91.js" in live_site.asked
    assert live_site.sheets() == {f"{static}/job-state-7c.css"}


def test_script_of_a_manifest_finds_the_plain_sheet(
    live_site: Site, redis_url: str, finished_job: str, tmp_path: Path
) -> None:
    """Without data-styles, the sheet is the package's own, beside the script."""
    config = make_config(redis_url)
    add_manifest(config, tmp_path)
    live_site.markup = usual(finished_job)
    live_site.open(config)
    live_site.wait_for_element()
    assert live_site.sheets() == {"/job_state/static/job-state.css"}


# From elsewhere


@pytest.fixture
def cdn(poll_server: PollServer) -> PollServer:
    """A file server of another origin."""
    return poll_server


def test_script_of_a_cdn_asks_at_the_default_path(
    live_site: Site, redis_url: str, finished_job: str, cdn: PollServer
) -> None:
    """If Pyramid's static_url leads to a CDN, jobs are polled at /job_state, and the
    sheet comes from beside the script.
    """
    live_site.csp = POLICY.format(more=cdn.url)
    config = make_config(redis_url)
    config.add_static_view(f"{cdn.url}/x/static", "pyramid_jobstate:static")
    live_site.markup = usual(finished_job)
    live_site.open(config)
    live_site.check(finished_job)
    assert live_site.polls() == {"/job_state"}
    assert live_site.sheets() == {f"{cdn.url}/x/static/job-state.css"}
    # The sheet is linked, since this CDN does not allow the script to fetch it.
    live_site.forgive("CORS policy", "net::ERR_FAILED")


def test_tag_says_where_the_jobs_are_when_a_cdn_has_the_script(
    live_site: Site, redis_url: str, finished_job: str, cdn: PollServer
) -> None:
    """data-base-url or the option baseUrl points to an application below a prefix;
    data-styles may point back to the application.
    """
    live_site.below = "/shop"
    live_site.csp = POLICY.format(more=cdn.url)
    config = make_config(redis_url)
    live_site.markup = lambda request: (
        tag(
            f"{cdn.url}/static/job-state.js",
            f'data-base-url="{request.resource_url(request.job_states)}"'
            f' data-styles="{request.static_path(SHEET)}"',
        )
        + element(request, finished_job)
    )
    live_site.open(config, "team")
    assert live_site.follow(jobUuid=finished_job) == "success"
    assert (
        live_site.follow(jobUuid=finished_job, baseUrl="/shop/team/job_state")
        == "success"
    )
    live_site.wait_for_element()
    assert live_site.polls() == {"/shop/team/job_state"}
    assert live_site.sheets() == {"/shop/team/job_state/static/job-state.css"}


def test_container_in_the_tree_is_named_by_the_tag(
    live_site: Site, redis_url: str, finished_job: str
) -> None:
    """A container mounted in the application's tree is polled at its own path."""
    config = make_config(redis_url, root_factory=mounted_root)
    live_site.markup = lambda request: tag(
        request.static_url(SCRIPT),
        f'data-base-url="{request.resource_url(request.root["jobs"])}"',
    )
    live_site.open(config)
    assert live_site.follow(jobUuid=finished_job) == "success"
    assert live_site.polls() == {"/jobs"}


# Modules, which have no tag of their own


def module(source: str) -> Callable[[Any], Response]:
    return lambda request: Response(source, content_type="text/javascript")


IMPORTS = {
    "module": (lambda url: f'<script type="module" src="{url}"></script>', ""),
    "import": (lambda url: "", 'import "/{path}";'),
    "map": (
        lambda url: (
            '<script type="importmap" nonce="n">'
            f'{{"imports": {{"job-state": "{url}"}}}}</script>'
        ),
        'import "job-state";',
    ),
    "dynamic": (lambda url: "", 'await import("/{path}");'),
}


@pytest.mark.parametrize(("head", "source"), IMPORTS.values(), ids=IMPORTS)
def test_module_asks_at_the_default_path_or_the_base_url(
    live_site: Site, redis_url: str, finished_job: str, head: Any, source: str
) -> None:
    """However a module loads the script, baseUrl says where the jobs are; without it
    they are polled at /job_state, since a module does not know its tag.
    """
    live_site.csp = POLICY.format(more="'nonce-n'")
    config = make_config(redis_url, root_factory=mounted_root)
    text = source.replace("{path}", "job_state/static/job-state.js")
    config.add_route("module", "/module.js")
    config.add_view(module(text + "\nwindow.loaded = true;"), route_name="module")
    live_site.markup = lambda request: (
        head(request.static_url(SCRIPT))
        + '<script type="module" src="/module.js" data-base-url="/forged"></script>'
        + element(request, finished_job)
    )
    live_site.open(config)
    # Not wait_for_function(), whose eval the page's policy forbids.
    wait_for(lambda: live_site.page.evaluate("window.loaded"))
    assert live_site.follow(jobUuid=finished_job) == "success"
    assert live_site.follow(jobUuid=finished_job, baseUrl="/jobs") == "success"
    live_site.wait_for_element()
    assert live_site.polls() == {"/job_state", "/jobs"}
    assert live_site.sheets() == {"/job_state/static/job-state.css"}


def test_deferred_script_is_there_for_the_modules_after_it(
    live_site: Site, redis_url: str, finished_job: str
) -> None:
    """A tag with `defer` runs before the modules that follow it, and knows its own
    URL.
    """
    config = make_config(redis_url)
    source = (
        f'window.end = JobState.startPolling({{ jobUuid: "{finished_job}" }}).done;'
    )
    config.add_route("module", "/module.js")
    config.add_view(module(source), route_name="module")
    live_site.markup = lambda request: (
        tag(request.static_url(SCRIPT), "defer")
        + '<script type="module" src="/module.js"></script>'
    )
    live_site.open(config, "team")
    assert live_site.page.evaluate("end")["outcome"] == "success"
    assert live_site.polls() == {"/team/job_state"}


# CSRF checks


def protected(config: Configurator, **options: Any) -> Configurator:
    """Have an application check each POST for Pyramid's CSRF token."""
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True, **options)
    return config


@pytest.mark.parametrize(
    ("options", "attribute"),
    [
        ({}, ""),
        ({}, "csrf-header"),
        ({"header": "X-XSRF-TOKEN"}, "csrf-header=X-XSRF-TOKEN"),
    ],
    ids=["default", "empty", "own"],
)
def test_element_sends_the_application_s_csrf_header(
    live_site: Site, redis_url: str, job: str, options: Any, attribute: str
) -> None:
    """The attribute csrf-header names the header that Pyramid checks."""
    live_site.markup = lambda request: (
        tag(request.static_url(SCRIPT))
        + element(
            request,
            job,
            f"cancellable csrf-token={get_csrf_token(request)} {attribute}",
        )
    )
    live_site.open(protected(make_config(redis_url), **options))
    live_site.wait_for_element("working")
    live_site.page.locator("[part=cancel]").click()
    live_site.wait_for_element("cancelling")


CANCEL = """([jobUuid, options]) => {
  const poller = JobState.startPolling({ jobUuid, ...options });
  poller.stop();
  return poller.cancel().catch(({ code, status }) => [code, status]);
}"""


def test_poller_sends_the_application_s_csrf_header(
    live_site: Site, redis_url: str, job: str
) -> None:
    """The option csrfHeader does the same; in another header the token is refused."""
    live_site.markup = lambda request: (
        tag(request.static_url(SCRIPT))
        + f'<body data-token="{get_csrf_token(request)}"></body>'
    )
    live_site.open(protected(make_config(redis_url), header="X-XSRF-TOKEN"))
    token = live_site.page.evaluate("document.body.dataset.token")

    def cancel(**options: str) -> Any:
        return live_site.page.evaluate(CANCEL, [job, options])

    refused = ["status", 400]
    assert cancel(csrfToken=token) == refused
    assert cancel(csrfHeader="X-XSRF-TOKEN") == refused
    assert cancel(csrfToken="forged", csrfHeader="X-XSRF-TOKEN") == refused
    live_site.forgive("status of 400")
    assert cancel(csrfToken=token, csrfHeader="x-xsrf-token") is True
