"""The script and its style sheet in real Pyramid applications and a real Chromium:
below prefixes, behind cache busters, from a CDN, as a module, with CSRF checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from pyramid.config import Configurator
from pyramid.csrf import get_csrf_token
from pyramid.response import Response
from pyramid.static import ManifestCacheBuster

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import put_job
from tests.browser.sites import POLICY, Site, protected
from tests.jobs import RunMarathon
from tests.pollserver import STATIC, PollServer
from tests.support import wait_for
from tests.webapp import make_config, mounted_root

SCRIPT = "pyramid_jobstate:static/job-state.js"
SHEET = "pyramid_jobstate:static/job-state.css"


@pytest.fixture
def site(page: Page) -> Iterator[Site]:
    """A site whose page must not report errors or violate its strict policy."""
    site = Site(page)
    yield site
    site.close()
    assert site.problems == []


@pytest.fixture
def job(store: JobStore) -> str:
    """A job of Alice's that has succeeded."""
    return put_job(store, RunMarathon, "success", owner="alice").uuid


@pytest.fixture
def running(store: JobStore) -> str:
    """One that runs."""
    return put_job(store, RunMarathon, owner="alice").uuid


def tag(url: str, attributes: str = "") -> str:
    return f'<script src="{url}" {attributes}></script>'


def element(request: Any, job_uuid: str, attributes: str = "") -> str:
    url = request.resource_url(request.job_states[job_uuid])
    return f'<job-state src="{url}" {attributes}></job-state>'


def usual(job_uuid: str) -> Callable[[Any], str]:
    """The script's tag as in the README, and an element."""
    return lambda request: tag(request.static_url(SCRIPT)) + element(request, job_uuid)


# Below a prefix


def test_page_below_a_prefix_has_nothing_to_configure(
    site: Site, redis_url: str, job: str
) -> None:
    """A bare uuid is found and the element is styled, wherever the package is included
    and the application is mounted.
    """
    site.below = "/café/static"
    site.markup = usual(job)
    settings = {"jobstate.path": "static"}
    site.open(make_config(redis_url, settings=settings), "team")
    site.check(job)
    base = "/caf%C3%A9/static/team/static"
    assert site.polls() == {base}
    assert site.sheets() == {f"{base}/static/job-state.css"}


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


@pytest.mark.system
def test_sheet_of_a_manifest_is_named_by_the_tag(
    site: Site, redis_url: str, job: str, tmp_path: Path
) -> None:
    """With a ManifestCacheBuster, the attribute data-styles gives the sheet's URL, and
    a script with a longer name finds the jobs. Without it, the sheet is the package's.
    """
    config = make_config(redis_url)
    add_manifest(config, tmp_path)
    attribute = "data-styles"
    site.markup = lambda request: (
        tag(request.static_url(SCRIPT), f'{attribute}="{request.static_url(SHEET)}"')
        + element(request, job)
    )
    site.open(config, "team")
    site.check(job)
    static = "/team/job_state/static"
    assert f"{static}/job-state-3f2a91.js" in site.asked
    assert site.sheets() == {f"{static}/job-state-7c.css"}
    attribute = "data-none"
    site.page.reload()
    site.wait_for_element()
    assert f"{static}/job-state.css" in site.sheets()


# From elsewhere


@pytest.mark.system
def test_tag_says_where_the_jobs_are_when_a_cdn_has_the_script(
    site: Site, redis_url: str, job: str, elsewhere: PollServer
) -> None:
    """data-base-url or the option baseUrl points to an application below a prefix;
    data-styles may point back to the application.
    """
    site.below = "/shop"
    site.csp = POLICY.format(more=elsewhere.url)
    site.markup = lambda request: (
        tag(
            f"{elsewhere.url}/static/job-state.js",
            f'data-base-url="{request.resource_url(request.job_states)}"'
            f' data-styles="{request.static_path(SHEET)}"',
        )
        + element(request, job)
    )
    site.open(make_config(redis_url), "team")
    base = "/shop/team/job_state"
    assert site.follow(jobUuid=job) == "success"
    assert site.follow(jobUuid=job, baseUrl=base) == "success"
    site.wait_for_element()
    assert site.polls() == {base}
    assert site.sheets() == {f"{base}/static/job-state.css"}


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


@pytest.mark.system
@pytest.mark.parametrize(("head", "source"), IMPORTS.values(), ids=IMPORTS)
def test_module_asks_at_the_default_path_or_the_base_url(
    site: Site, redis_url: str, job: str, head: Any, source: str
) -> None:
    """However a module loads the script, baseUrl says where the jobs are; without it
    they are polled at /job_state, since a module does not know its tag.
    """
    site.csp = POLICY.format(more="'nonce-n'")
    config = make_config(redis_url, root_factory=mounted_root)
    text = source.replace("{path}", "job_state/static/job-state.js")
    config.add_route("module", "/module.js")
    config.add_view(module(text + "\nwindow.loaded = true;"), route_name="module")
    site.markup = lambda request: (
        head(request.static_url(SCRIPT))
        + '<script type="module" src="/module.js" data-base-url="/forged"></script>'
        + element(request, job)
    )
    site.open(config)
    # Not wait_for_function(), whose eval the page's policy forbids.
    wait_for(lambda: site.page.evaluate("window.loaded"))
    assert site.follow(jobUuid=job) == "success"
    assert site.follow(jobUuid=job, baseUrl="/jobs") == "success"
    site.wait_for_element()
    assert site.polls() == {"/job_state", "/jobs"}
    assert site.sheets() == {"/job_state/static/job-state.css"}


@pytest.mark.system
def test_deferred_script_is_there_for_the_modules_after_it(
    site: Site, redis_url: str, job: str
) -> None:
    """A tag with `defer` runs before the modules that follow it, and knows its own
    URL, or what names a container that is mounted in the application's tree.
    """
    config = make_config(redis_url, root_factory=mounted_root)
    source = f'window.end = JobState.startPolling({{ jobUuid: "{job}" }}).done;'
    config.add_route("module", "/module.js")
    config.add_view(module(source), route_name="module")
    attributes = "defer"
    site.markup = lambda request: (
        tag(
            request.static_url(SCRIPT),
            attributes.format(request.resource_url(request.root["jobs"])),
        )
        + '<script type="module" src="/module.js"></script>'
    )
    site.open(config, "team")
    assert site.page.evaluate("end")["outcome"] == "success"
    assert site.polls() == {"/team/job_state"}
    attributes = 'defer data-base-url="{}"'
    site.page.reload()
    assert site.page.evaluate("end")["outcome"] == "success"
    assert site.polls() == {"/team/job_state", "/jobs"}


# CSRF checks


@pytest.mark.system
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
    site: Site, redis_url: str, running: str, options: Any, attribute: str
) -> None:
    """The attribute csrf-header names the header that Pyramid checks."""
    site.markup = lambda request: (
        tag(request.static_url(SCRIPT))
        + element(
            request,
            running,
            f"cancellable csrf-token={get_csrf_token(request)} {attribute}",
        )
    )
    site.open(protected(make_config(redis_url), **options))
    site.wait_for_element("working")
    site.page.locator("[part=cancel]").click()
    site.wait_for_element("cancelling")


CANCEL = """([jobUuid, options]) => {
  const poller = JobState.startPolling({ jobUuid, ...options });
  poller.stop();
  return poller.cancel().catch(({ code, status }) => [code, status]);
}"""


@pytest.mark.system
def test_poller_sends_the_application_s_csrf_header(
    site: Site, redis_url: str, running: str
) -> None:
    """The option csrfHeader does the same; in another header the token is refused."""
    site.markup = lambda request: (
        tag(request.static_url(SCRIPT))
        + f'<body data-token="{get_csrf_token(request)}"></body>'
    )
    site.open(protected(make_config(redis_url), header="X-XSRF-TOKEN"))
    token = site.page.evaluate("document.body.dataset.token")

    def cancel(**options: str) -> Any:
        return site.page.evaluate(CANCEL, [running, options])

    refused = ["status", 400]
    assert cancel(csrfToken=token) == refused
    assert cancel(csrfHeader="X-XSRF-TOKEN") == refused
    assert cancel(csrfToken="forged", csrfHeader="X-XSRF-TOKEN") == refused
    site.forgive("status of 400")
    assert cancel(csrfToken=token, csrfHeader="x-xsrf-token") is True
