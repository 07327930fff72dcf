"""A tab that a test can really hide.

Playwright makes each of its pages believe that it is visible. So this tab bypasses it
and is driven through the protocol of the browser's own session.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, CDPSession

from tests.support import wait_for


class Tab:
    """A tab in its own window: `turn` does what a user would."""

    def __init__(self, session: CDPSession, context: str) -> None:
        self._session = session
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        options = {"url": "about:blank", "browserContextId": context}
        target = session.send("Target.createTarget", options)
        attach = {"targetId": target["targetId"], "flatten": False}
        self._id = session.send("Target.attachToTarget", attach)["sessionId"]
        session.on("Target.receivedMessageFromTarget", self._hear)

    def _hear(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if event["sessionId"] == self._id and "id" in message:
            self._answers[message["id"]] = message

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        self._count += 1
        number = self._count
        message = json.dumps({"id": number, "method": method, "params": params})
        asked = {"sessionId": self._id, "message": message}
        self._session.send("Target.sendMessageToTarget", asked)

        def answer() -> dict[str, Any] | None:
            # Playwright receives events only while it waits for something.
            self._session.send("Target.getTargets")
            return self._answers.pop(number, None)

        result: dict[str, Any] = wait_for(answer, timeout=30)["result"]
        return result

    def evaluate(self, script: str) -> Any:
        """The value of an expression, or of its promise."""
        options = {"awaitPromise": True, "returnByValue": True}
        answered = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answered, answered
        return answered["result"].get("value")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        loaded = f"location.href === {url!r} && document.readyState === 'complete'"
        wait_for(lambda: self.evaluate(loaded))

    def turn(self, state: str, visibility: str) -> None:
        """Bring the window into a state ("minimized"), which hides or shows the tab."""
        window = self.send("Browser.getWindowForTarget")["windowId"]
        bounds = {"windowState": state}
        self.send("Browser.setWindowBounds", windowId=window, bounds=bounds)
        wait_for(lambda: self.evaluate(f"document.visibilityState === {visibility!r}"))


@contextmanager
def opened(browser: Browser) -> Iterator[Tab]:
    """A tab in its own browser context."""
    session = browser.new_browser_cdp_session()
    context = session.send("Target.createBrowserContext")["browserContextId"]
    try:
        yield Tab(session, context)
    finally:
        session.send("Target.disposeBrowserContext", {"browserContextId": context})
        session.detach()
