"""A page whose pollers a test starts and watches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from playwright.sync_api import ConsoleMessage, Error, Page

from tests.pollserver import Answer, PollServer, success, working
from tests.support import wait_for

#: Counts the requests of a page, and those of them whose answers it has read.
COUNT_ANSWERS = """
window.fetched = 0;
window.answered = 0;
const unwatchedFetch = window.fetch;
window.fetch = async (...options) => {
  fetched += 1;
  try {
    const response = await unwatchedFetch(...options);
    const text = await response.text();
    response.text = async () => text;
    return response;
  } finally {
    answered += 1;
  }
};
"""


class Polling:
    """A page with pollers on it, their requests and the calls of their callbacks."""

    def __init__(self, page: Page, server: PollServer) -> None:
        self.page = page
        self.server = server
        self.console: list[ConsoleMessage] = []
        self.uncaught: list[Error] = []
        page.on("console", self.hear)
        page.on("pageerror", self.fail)

    def hear(self, message: ConsoleMessage) -> None:
        self.console.append(message)

    def fail(self, problem: Error) -> None:
        self.uncaught.append(problem)

    def open(self, path: str = "/page") -> None:
        self.page.goto(self.server.url + path)

    def follow(
        self, name: str, *answers: Answer, harness: Any = None, **options: Any
    ) -> None:
        """Script the answers for a job and start a poller for it."""
        if answers:
            self.server.answer(name, *answers)
        self.page.evaluate(
            "([name, options, harness]) => follow(name, options, harness)",
            [name, options, harness or {}],
        )

    def told(self, name: str, callback: str | None = None) -> list[Any]:
        """The values passed to a callback so far; without one, the callbacks called."""
        calls = [c for c in self.page.evaluate("calls") if c["name"] == name]
        if callback is None:
            return [c["callback"] for c in calls]
        return [c["value"] for c in calls if c["callback"] == callback]

    def wait(self, name: str, callback: str) -> Any:
        """Wait until a callback was called, and return its last value."""
        return wait_for(lambda: self.told(name, callback))[-1]

    def wait_for_requests(self, name: str, count: int, method: str = "GET") -> None:
        wait_for(lambda: len(self.server.seen(name, method)) >= count)

    def asked(self, name: str) -> int:
        """Return how often the page has asked, even if the server has not noticed."""
        urls = self.page.evaluate("asked")
        return sum(url.endswith(f"/job_state/{name}") for url in urls)

    def wait_for_others(self) -> None:
        """Let as much time pass as another poller needs for four answers."""
        name = f"other-{len(self.page.evaluate('Object.keys(pollers)'))}"
        self.server.answer(name, *[working()] * 3, success(), below="/others")
        self.follow(name, baseUrl="/others")
        self.wait(name, "done")

    def warnings(self, kind: str) -> list[str]:
        return [message.text for message in self.console if message.type == kind]


def polling_from(page: Page, server: PollServer) -> Iterator[Polling]:
    polling = Polling(page, server)
    polling.open()
    yield polling
    page.goto("about:blank")
    page.remove_listener("console", polling.hear)
    page.remove_listener("pageerror", polling.fail)
    assert polling.uncaught == []
    assert [w for w in polling.warnings("error") if "Security Policy" in w] == []


def follow_all(polling: Polling, names: list[str], **options: Any) -> None:
    """Start pollers at one moment, however slow the page is, so that all of them join
    the first request.
    """
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
