"""Pages, and the server that they poll."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.paged import Pages, serving
from tests.browser.polling import Polling, polling_from
from tests.pollserver import PollServer
from tests.web.paging import paged_config


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """A page that the tests of a module share, since making one is slow."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.fixture
def poll_server() -> Iterator[PollServer]:
    """A server whose answers the test scripts."""
    server = PollServer()
    yield server
    server.close()


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
def pages(page: Page, redis_url: str) -> Iterator[Pages]:
    """An application with pages, which must not report errors or violate a strict
    policy.
    """
    with serving(page, paged_config(redis_url)) as pages:
        yield pages
