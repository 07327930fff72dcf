"""Take the README's screenshots: `python -m demo.screenshots.take`."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import FilePayload, Page, expect, sync_playwright

from pyramid_jobstate.embedded import EmbeddedServer

FOLDER = Path(__file__).parent

#: The looks of the pictures: width, height, colour scheme, and the user.
LOOKS: dict[str, tuple[int, int, Literal["light", "dark"], str]] = {
    "light": (1280, 800, "light", "Alice"),
    "dark-phone": (390, 844, "dark", "Bob"),
}

BAD_FILE: FilePayload = {
    "name": "boston.csv",
    "mimeType": "text/csv",
    "buffer": b"bib,name\n",
}


@contextmanager
def demo() -> Iterator[str]:
    """Run the demo, and yield its URL."""
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as data:
        os.environ.update(JOBSTATE_REDIS_URL=server.url, JOBSTATE_DEMO_DATA=data)
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            found = (re.search(r"http://\S+", line) for line in process.stdout)
            yield next(filter(None, found))[0]
        finally:
            process.terminate()
            process.wait()


def start(page: Page, url: str, button: str, speed: str) -> None:
    """Start a job and wait for its page."""
    page.goto(url)
    form = page.locator("form", has=page.get_by_role("button", name=button))
    form.get_by_text(speed).click()
    if button == "Import file":
        form.locator("[type=file]").set_input_files(BAD_FILE)
    form.get_by_role("button", name=button).click()
    page.locator(
        "#job[state=working], #job[state=success], #job[state=error]"
    ).wait_for()


def wait_for_percent(page: Page, pattern: str) -> None:
    bar = page.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(pattern), timeout=40_000)


def take(page: Page, name: str, top: str, bottom: str) -> None:
    """Take a picture of the page from the top of one element to the end of another."""
    box = page.locator("html").bounding_box()
    start = page.locator(top).bounding_box()
    end = page.locator(bottom).bounding_box()
    assert box
    assert start
    assert end
    y = max(start["y"] - 24, 0)
    height = end["y"] + end["height"] + 40 - y
    page.screenshot(
        path=FOLDER / f"{name}.png",
        full_page=True,
        clip={"x": 0, "y": y, "width": box["width"], "height": height},
    )


def take_pages(page: Page, url: str) -> None:
    """Take pictures of what an admin sees of the jobs of the others."""
    page.goto(url)
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("button", name="Grace").click()
    page.get_by_role("link", name="All jobs").click()
    page.locator("job-state[state=working]").first.wait_for()
    page.locator("job-state[state=loading]").first.wait_for(state="detached")
    take(page, "pages-list-light", "body", ".jobstate")
    page.get_by_role("link", name="Import of boston.csv").first.click()
    page.locator("job-state[state=error]").wait_for()
    take(page, "pages-job-light", "body", ".jobstate")


def take_batch(page: Page, url: str) -> None:
    """Take a picture of a batch of which two jobs have failed, and wait for its end."""
    page.goto(url)
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("button", name="Alice").click()
    start(page, url, "Import 120 files", "Easy to watch")
    wait_for_percent(page, "8[4-9]")
    page.wait_for_timeout(700)  # until the bar stands still
    take(page, "batch-light", "body", "article")
    page.get_by_role("region", name="failed files").wait_for()


def main() -> None:
    with demo() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for look, (width, height, scheme, user) in LOOKS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(url)
            page.get_by_role("button", name=user).click()
            start(page, url, "Import file", "Flat out")
            start(page, url, "Start running", "Sprint")
            wait_for_percent(page, "[23].")
            page.get_by_role("button", name="Cancel").click()
            page.locator("#job[state=cancelled]").wait_for()
            start(page, url, "Start running", "Flat out")
            page.locator("#job[state=success]").wait_for()
            start(page, url, "Start running", "Jog")
            start(page, url, "Import a sample", "Easy to watch")
            wait_for_percent(page, "4[2-9]")
            take(page, f"import-{look}", "body", "article")
            page.goto(url)
            page.locator("li").nth(4).wait_for()
            page.wait_for_timeout(700)  # until the bars stand still
            top = ".list" if "phone" in look else "body"
            take(page, f"home-{look}", top, ".list")
            if look == "light":
                take_pages(page, url)
                take_batch(page, url)
            page.close()


if __name__ == "__main__":
    main()
