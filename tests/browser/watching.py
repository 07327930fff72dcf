"""A page in Chromium, and what a test hears of it."""

from typing import Any, Self

from playwright.sync_api import ConsoleMessage, Error, Page, Request

from tests.support import wait_for


class Watched:
    """A page that must not report errors or violate its policy.

    Attributes:
      asked: The URLs of all requests so far, even if no server knows of them yet.
      console: All messages so far.
      forgiven: Parts of the errors in the console that are not held against the page.
      problems: The other errors.
    """

    forgiven: tuple[str, ...] = ("Failed to load resource",)

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.console: list[ConsoleMessage] = []
        self.problems: list[str] = []
        self._hears: Any = {
            "request": self._ask,
            "console": self._read,
            "pageerror": self._fail,
        }
        for event, hear in self._hears.items():
            page.on(event, hear)

    def _ask(self, request: Request) -> None:
        self.asked.append(request.url)

    def _read(self, message: ConsoleMessage) -> None:
        self.console.append(message)
        if message.type == "error" and not self.forgives(message.text):
            self.problems.append(message.text)

    def _fail(self, error: Error) -> None:
        self.problems.append(str(error))

    def forgives(self, text: str) -> bool:
        return any(word in text for word in self.forgiven)

    def forgive(self, *words: str) -> None:
        """Drop the problems that contain any of these words, those of later as well."""
        self.forgiven += words
        self.problems = [text for text in self.problems if not self.forgives(text)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        wait_for(self._leave)
        for event, hear in self._hears.items():
            self.page.remove_listener(event, hear)
        assert kind or self.problems == []

    def _leave(self) -> bool:
        """Leave the page. Return False if it goes elsewhere at that moment: it reloads
        after an act.
        """
        try:
            self.page.goto("about:blank")
        except Error:
            return False
        return True
