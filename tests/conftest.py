"""Real servers and a real browser for the tests."""

import os
import shutil
from collections.abc import Iterator

import pytest
import redis
from playwright.sync_api import Browser, Page, sync_playwright

from pyramid_jobstate.embedded import EmbeddedServer

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """The server that all tests share. Those that harm theirs take `server`."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """The URL of an empty database."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the empty database at `redis_url`."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be stopped, killed or frozen."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium.

    It ends with the test's module, since as long as it runs, its event loop counts as
    running in the main thread, and no test could run another.
    """
    found = filter(None, map(shutil.which, CHROMIUM_NAMES))
    executable = next(found, None)
    if executable is None:
        reason = "No Chromium is installed (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=CHROMIUM_ARGUMENTS
        )
        yield browser
        browser.close()


@pytest.fixture
def console_errors() -> list[str]:
    """The errors that the test's `page` has reported so far."""
    return []


@pytest.fixture
def page(browser: Browser, console_errors: list[str]) -> Iterator[Page]:
    """A page in a browser context of its own: no cookies, nothing cached."""
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                console_errors.append(message.text) if message.type == "error" else None
            ),
        )
        yield page
