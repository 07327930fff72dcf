"""A page whose pollers a test starts and watches."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from playwright.sync_api import Page

from tests.browser.watching import Watched
from tests.pollserver import Answer, PollServer, Request, success, working
from tests.support import wait_for

#: Milliseconds
HOUR = 3_600_000

#: The callbacks of a poller that were called so far, and their values.
CALLS = """(name) => calls.filter((call) => call.name === name)
    .map(({ callback, value }) => [callback, value])"""


class Polling(Watched):
    """A page with pollers on it, their requests and the calls of their callbacks."""

    def __init__(self, page: Page, server: PollServer) -> None:
        super().__init__(page)
        self.server = server
        self.open()

    def forgives(self, text: str) -> bool:
        return "Security Policy" not in text

    def open(self, path: str = "/page") -> None:
        self.page.goto(self.server.url + path)

    def open_with(self, markup: str, script: str = "") -> None:
        """Open a page with markup before the script, or with another script tag."""
        script = script or "<script src=/job-state.js></script>"
        head = "<!doctype html><meta charset=utf-8><title>Poller</title>"
        harness = f"<script src={self.server.url}/harness.js></script>"
        self.server.pages["/marked"] = f"{head}{markup}{script}{harness}"
        self.open("/marked")

    def follow(
        self, name: str, *answers: Answer, harness: Any = None, **options: Any
    ) -> None:
        """Script the answers for a job and start a poller for it."""
        if answers:
            below = options.get("baseUrl") or "/job_state"
            self.server.answer(options.get("jobUuid") or name, *answers, below=below)
        self.page.evaluate("(all) => follow(...all)", [name, options, harness or {}])

    def follow_apart(
        self, cases: Mapping[str, Sequence[Answer]], **options: Any
    ) -> None:
        """Follow one job for each case, below a base URL of its own."""
        for name, answers in cases.items():
            self.follow(name, *answers, baseUrl=f"/{name}", **options)

    def seen_apart(self, name: str, method: str = "GET") -> list[Request]:
        """The requests of a case."""
        return self.server.seen(name, method, below=f"/{name}")

    def told(self, name: str, callback: str | None = None) -> list[Any]:
        """The values passed to a callback so far; without one, the callbacks called."""
        calls: list[Any] = self.page.evaluate(CALLS, name)
        if callback is None:
            return [called for called, _ in calls]
        return [value for called, value in calls if called == callback]

    def wait(self, name: str, callback: str) -> Any:
        """Wait until a callback was called, and return its last value."""
        return wait_for(lambda: self.told(name, callback))[-1]

    def wait_for_updates(self, name: str, count: int) -> None:
        wait_for(lambda: len(self.told(name, "update")) >= count)

    def wait_for_more(self, below: str, count: int) -> None:
        """Wait until the server has heard more requests below a URL than so many."""
        wait_for(lambda: len(self.server.requests(below=below)) > count)

    def wait_for_all(self, callback: str, count: int) -> None:
        """Wait until a callback was called so often, of whatever pollers."""
        called = f"calls.filter((call) => call.callback === '{callback}').length"
        wait_for(lambda: self.page.evaluate(called) >= count)

    def wait_for_requests(self, name: str, count: int, method: str = "GET") -> None:
        wait_for(lambda: len(self.server.seen(name, method)) >= count)

    def asks(self, name: str) -> int:
        """Return how often the page has asked, even if the server has not noticed."""
        urls = self.page.evaluate("asked")
        return sum(url.endswith(f"/job_state/{name}") for url in urls)

    def advance(self, milliseconds: int) -> None:
        self.page.clock.run_for(milliseconds)

    def hide(self, *, hidden: bool = True) -> None:
        self.page.evaluate("setHidden", hidden)

    def wait_for_others(self) -> None:
        """Let as much time pass as another poller needs for four answers."""
        name = f"other-{len(self.page.evaluate('Object.keys(pollers)'))}"
        offers, self.server.offers = self.server.offers, False
        self.follow(name, *[working()] * 3, success(), baseUrl="/others")
        self.wait(name, "done")
        self.server.offers = offers

    def cancel(self, name: str) -> Any:
        return self.page.evaluate("cancel", name)

    def warnings(self, kind: str) -> list[str]:
        return [message.text for message in self.console if message.type == kind]


def follow_all(
    polling: Polling, names: Sequence[str], *answers: Answer, **options: Any
) -> None:
    """Start pollers at one moment, however slow the page is, so that all of them join
    the first request. Script the answers for each job, if any are given.
    """
    for name in names if answers else ():
        below = options.get("baseUrl", "/job_state")
        polling.server.answer(name, *answers, below=below)
    polling.page.evaluate(
        """([names, options]) => {
            const reallyNow = performance.now;
            const moment = performance.now();
            performance.now = () => moment;
            names.forEach((name) => follow(name, options));
            performance.now = reallyNow;
        }""",
        [names, options],
    )


def about(uuid: str, job_state: str = "working", **metrics: Any) -> str:
    """The JSON of a job, as a stream sends it."""
    job = {"uuid": uuid, "status": job_state, "error": None}
    return json.dumps({**metrics, "job_state": job_state, "job": job})
