"""Pages in one Chromium, and the servers that they ask."""

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from webtest import TestApp

from pyramid_jobstate.embedded import EmbeddedServer
from tests import chromium
from tests.browser.paged import Pages, Runner, serving
from tests.browser.polling import HOUR, Polling, polling_from
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
def tab(browser: Browser) -> Iterator[Page]:
    """A page that tests share, since making one is slow."""
    with browser.new_context() as context:
        yield context.new_page()


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
    """A page to poll from, which must not report errors or violate its policy."""
    yield from polling_from(tab, poll_server)


@pytest.fixture
def timed(page: Page, poll_server: PollServer) -> Iterator[Polling]:
    """The same, with a clock that the test can advance."""
    page.clock.install()
    yield from polling_from(page, poll_server)


@pytest.fixture
def paused(page: Page, poll_server: PollServer) -> Iterator[Polling]:
    """The same, with a clock that stands still unless the test advances it."""
    page.clock.install(time=0)
    for polling in polling_from(page, poll_server):
        page.clock.pause_at(HOUR)
        yield polling


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Stage]:
    """A page for elements, which must not report errors or violate its policy."""
    yield from Stage(tab, poll_server).watched()


@pytest.fixture(scope="package")
def shared_pages(redis_server: EmbeddedServer) -> TestApp:
    """What `pages` renews: making an application takes as long as opening a page."""
    return make_app(paged_config(redis_server.url))


@pytest.fixture
def pages(page: Page, shared_pages: TestApp, redis_url: str) -> Iterator[Pages]:
    """An application with pages, which must not report errors or violate its policy."""
    with serving(page, renewed(shared_pages)) as pages:
        yield pages


@pytest.fixture
def runner(redis_url: str) -> Iterator[Runner]:
    """Runs jobs in this process, as far as the test lets them."""
    with Runner(redis_url) as runner:
        yield runner
