"""Pages, and the server that they poll."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.pollserver import PollServer


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
