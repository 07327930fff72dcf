"""Finds and launches Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.support import lack

if TYPE_CHECKING:
    # tests/interop runs without Playwright.
    from playwright.sync_api import Browser, BrowserType

#: Chromium itself, which has windows, though nobody sees them.
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

#: Chromium without windows, which opens a page in a quarter of the time.
SHELL_NAMES = ("chromium-headless-shell",)

CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]


def running() -> Iterator[Browser]:
    """Yield a headless Chromium, and close it. While it runs, no test can run an event
    loop of its own: no fixture must outlive the tests that need it.
    """
    from playwright.sync_api import expect, sync_playwright

    # As patient as `wait_for`: the machine may be busy.
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium, has_windows=False)
        yield browser
        browser.close()


def launch(kind: BrowserType, *, has_windows: bool = True, **options: Any) -> Browser:
    """Launch a headless Chromium, with windows if they are needed, or skip the test."""
    names = CHROMIUM_NAMES if has_windows else SHELL_NAMES + CHROMIUM_NAMES
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        lack("No Chromium is installed (Debian: apt-get install chromium)")
    return kind.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS, **options)
