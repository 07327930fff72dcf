"""Pages in one Chromium, and the servers that they ask."""

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from webtest import TestApp

from pyramid_jobstate.embedded import EmbeddedServer
from tests import chromium
from tests.browser.paged import Pages, Runner
from tests.browser.polling import HOUR, Polling
from tests.browser.sites import Site
from tests.browser.staging import Stage
from tests.pollserver import PollServer
from tests.web.paging import paged_config
from tests.webapp import make_app, renewed


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless Chromium, for all tests of this folder."""
    yield from chromium.running()


@pytest.fixture(scope="package")
def windowed(browser: Browser) -> Iterator[Browser]:
    """A headless Chromium whose windows can be minimized, which hides their pages."""
    windowed = chromium.launch(browser.browser_type)
    yield windowed
    windowed.close()


@pytest.fixture(scope="package")
def shared_tab(browser: Browser) -> Iterator[Page]:
    """What `tab` renews: making a page is slow."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.fixture
def tab(shared_tab: Page) -> Iterator[Page]:
    """A page that tests share."""
    yield shared_tab
    shared_tab.set_viewport_size({"width": 1280, "height": 720})
    shared_tab.emulate_media(
        media="screen",
        color_scheme="light",
        reduced_motion="no-preference",
        forced_colors="none",
    )


@pytest.fixture
def poll_server() -> Iterator[PollServer]:
    """A server whose answers the test scripts."""
    with contextlib.closing(PollServer()) as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[PollServer]:
    """A server of another origin."""
    with contextlib.closing(PollServer()) as server:
        yield server


@pytest.fixture
def polling(tab: Page, poll_server: PollServer) -> Iterator[Polling]:
    """A page to poll from."""
    with Polling(tab, poll_server) as polling:
        yield polling


@pytest.fixture
def timed(page: Page, poll_server: PollServer) -> Iterator[Polling]:
    """The same, with a clock that the test can advance."""
    page.clock.install()
    with Polling(page, poll_server) as polling:
        yield polling


@pytest.fixture
def paused(page: Page, poll_server: PollServer) -> Iterator[Polling]:
    """The same, with a clock that stands still unless the test advances it."""
    page.clock.install(time=0)
    with Polling(page, poll_server) as polling:
        page.clock.pause_at(HOUR)
        yield polling


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Stage]:
    """A page for elements."""
    with Stage(tab, poll_server) as stage:
        yield stage


@pytest.fixture
def site(page: Page) -> Iterator[Site]:
    """A page of an application that the test makes."""
    with Site(page) as site:
        yield site


@pytest.fixture(scope="package")
def shared_pages(redis_server: EmbeddedServer) -> TestApp:
    """What `pages` renews: making an application takes as long as opening a page."""
    return make_app(paged_config(redis_server.url))


@pytest.fixture
def pages(page: Page, shared_pages: TestApp, redis_url: str) -> Iterator[Pages]:
    """An application with pages."""
    with Pages(page, renewed(shared_pages)) as pages:
        yield pages


@pytest.fixture
def runner(redis_url: str) -> Iterator[Runner]:
    """Runs jobs in this process, as far as the test lets them."""
    with Runner(redis_url) as runner:
        yield runner
