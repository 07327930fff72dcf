"""Pages of a real application and a real store, in a real browser."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect
from pyramid.config import Configurator

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.browser.test_static import Site
from tests.support import ROOT
from tests.web.operating import OPERATOR

#: Where the tests put pictures, which CI keeps.
PICTURES = ROOT / "build" / "screenshots"

POLICY = (
    "default-src 'self'; require-trusted-types-for 'script'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

#: Whether a page is wider than its window.
IS_WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def in_two_parts(body: Iterable[bytes]) -> Iterator[bytes]:
    """Send half of a page late, so that a test that does not wait for it soon fails."""
    text = b"".join(body)
    middle = len(text) // 2
    yield text[:middle]
    time.sleep(0.1)
    yield text[middle:]


class Pages(Site):
    """An application with pages, under a strict policy, and a browser in it.

    Attributes:
      refuse: Returns the status with which a request is refused, or None. 0 breaks the
        connection.
      changes: The requests so far that were to change something: method and path.
    """

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.user = OPERATOR
        self.refuse: Callable[[str], int | None] = lambda method: None
        self.changes: list[tuple[str, str]] = []

    def serve(self, config: Configurator) -> None:
        """Serve the application of a configurator that has included pages."""
        config.include("pyramid_jobstate")
        self._app = config.make_wsgi_app()

    def dispatch(self, environ: Any, start_response: Any) -> Any:
        method = environ["REQUEST_METHOD"]
        if method != "GET":
            self.changes.append((method, environ["PATH_INFO"]))
        status = self.refuse(method)
        if status == 0:
            raise ConnectionAbortedError
        if status is not None:
            location = ("Location", "/login")
            start_response(f"{status} No", [location] if status == 302 else [])
            return []

        sent: dict[str, str] = {}

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            sent.update(headers)
            policy = ("Content-Security-Policy", POLICY)
            return start_response(status, [*headers, policy], exc_info)

        body = super().dispatch(environ, start)
        is_page = sent.get("Content-Type", "").startswith("text/html")
        return in_two_parts(body) if is_page else body

    def visit(self, path: str = "/job_state") -> None:
        """Open a page, and wait until each of its elements shows its job."""
        self.page.goto(self.url + path)
        self.settle()

    def settle(self) -> None:
        """Wait until each element of the page shows its job."""
        waiting = "job-state:not([state]), job-state[state=loading]"
        expect(self.page.locator(waiting)).to_have_count(0)

    def one(self, name: str) -> Locator:
        """Return the part of a page that its script calls by a name."""
        return self.page.locator(f"[data-jobstate={name}]")

    def row(self, uuid: str) -> Locator:
        return self.page.locator(f"tr[data-uuid='{uuid}']")

    @property
    def uuids(self) -> list[str]:
        """The jobs in the rows on the page now. Right after a navigation there may be
        none: see `expect_uuids()`.
        """
        script = "rows => rows.map(row => row.dataset.uuid)"
        found: list[str] = self.page.locator("tr[data-uuid]").evaluate_all(script)
        return found

    def confirm(self, act: str, question: str) -> None:
        """Press a button, read the question, and say yes."""
        self.page.get_by_role("button", name=act).click()
        expect(self.one("question")).to_have_text(question)
        self.one("yes").click()

    def expect_said(self, text: str) -> None:
        """Expect that the page says what became of an act, and has the focus there."""
        expect(self.one("said")).to_have_text(text)
        expect(self.one("said")).to_be_focused()
        expect(self.one("dialog")).to_be_hidden()

    def expect_uuids(self, *uuids: str) -> None:
        """Wait until the rows are those of these jobs, in this order."""
        rows = self.page.locator("tr[data-uuid]")
        expect(rows).to_have_count(len(uuids))
        for n, uuid in enumerate(uuids):
            expect(rows.nth(n)).to_have_attribute("data-uuid", uuid)

    def expect_path(self, path: str) -> None:
        """Wait until the browser has opened and read the page at this path."""
        self.page.wait_for_url(self.url + path)

    def picture(self, name: str) -> None:
        """Keep a picture of the page."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path: Path = PICTURES / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)


@contextlib.contextmanager
def serving(page: Page, config: Configurator) -> Iterator[Pages]:
    """Serve the application of a configurator that has included pages, to a page that
    must not report errors or violate a strict policy.
    """
    pages = Pages(page)
    try:
        pages.serve(config)
        yield pages
    finally:
        pages.close()
    assert pages.problems == [], pages.problems


class ImportSheet(JobState):
    """A kind of job that has a title, and tells the world of its file."""

    public_params = ("filename",)

    @property
    def title(self) -> str:
        return f"Import of {self.get_job_param('filename')}"


FILES = (
    "boston.csv",
    "paris.csv",
    "the results of all marathons since 1896, collected by hand.csv",
)

#: The jobs of the pictures: status, progress in rows, message, and attempt.
JOBS: tuple[tuple[str, int, str | None, int], ...] = (
    ("queued", 0, None, 1),
    ("working", 9_257, "Writing the rows", 1),
    ("working", 640, "Checking the file", 1),
    ("retrying", 12_100, "Waiting for the database", 2),
    ("cancelling", 4_830, None, 1),
    ("success", 20_000, "All rows have been read", 1),
    ("error", 14_020, None, 3),
    ("cancelled", 730, None, 1),
    ("success", 20_000, "All rows have been read", 2),
)


def fill(store: JobStore, count: int = 18) -> list[str]:
    """Put jobs of all statuses and several owners, and return their uuids."""
    found = []
    for n in range(count):
        status, done, message, attempt = JOBS[n % len(JOBS)]
        job_state = put_job(
            store,
            ImportSheet,
            status,
            owner=("alice", "bob", None)[n % 3],
            params={"filename": FILES[n % len(FILES)]},
            progress=None if status == "queued" else Progress(done, 20_000, "rows"),
            message=message,
            log=["Line 17: bib 4 is taken", "Line 90: the name is missing"],
            metrics={"rows_written": done, "rows_rejected": 3, "runner": "Ruth"},
            error=JobError("ValueError", "bib 4") if status == "error" else None,
            attempt=attempt,
            delay=90 if status == "retrying" else 7200 * (n == 0),
        )
        found.append(job_state.uuid)
    return found
