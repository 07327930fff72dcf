"""Elements on a page in a real Chromium, and the data that they show."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from playwright.sync_api import Page

from tests.browser.watching import Watched
from tests.pollserver import Answer, PollServer, uuid_of
from tests.support import wait_for

HEAD = (
    '<!doctype html><html lang="{lang}"><meta charset="utf-8"><title>Jobs</title>'
    '<script src="/job-state.js"></script>'
    "<main><h1>Jobs</h1>{body}</main>"
)

ELEMENT = "<job-state id=job></job-state>"

# What a test may ask the page.
LOOK = """(id) => {
  const element = document.getElementById(id);
  const root = element.shadowRoot;
  const seen = {state: element.getAttribute("state")};
  for (const node of root.querySelectorAll("[part]")) {
    const shown = node.checkVisibility();
    seen[node.getAttribute("part")] = shown ? node.textContent.trim() : null;
  }
  const bar = root.querySelector("[part=bar]");
  seen.now = bar.getAttribute("aria-valuenow");
  seen.spoken = bar.getAttribute("aria-valuetext");
  seen.content = root.querySelector("slot").hidden ? null : element.textContent.trim();
  seen.log = [...root.querySelectorAll("li")].map((line) => line.textContent);
  seen.icon = root.querySelector("[part=sign]").getAttribute("d");
  seen.color = getComputedStyle(root.querySelector("[part=icon]")).color;
  return seen;
}"""

SETTLE = """async () => {
  const elements = [...document.querySelectorAll("job-state")];
  const styled = ({ shadowRoot: root }) =>
    root.adoptedStyleSheets.length || root.querySelector("link");
  const frame = () => new Promise(requestAnimationFrame);
  for (let i = 0; i < 300 && !elements.every(styled); i++) await frame();
  await frame();
  await frame();
}"""


def at(seconds: float) -> str:
    """The time this many seconds from now, as the server writes it."""
    return written(datetime.now(UTC) + timedelta(seconds=seconds))


def written(time: datetime) -> str:
    """A time, as the server writes it."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def progress(
    done: float,
    total: float | None = None,
    eta: float | None = None,
    unit: str = "miles",
) -> dict[str, Any]:
    amount = {"done": done, "total": total, "unit": unit, "eta": eta}
    return {**amount, "fraction": done / total if total else None}


def data(status: str = "working", metrics: Any = None, **job: Any) -> dict[str, Any]:
    """The data of a job."""
    coarse = {"success": "success", "error": "error", "cancelled": "error"}
    absent = ("phase", "message", "error", "result", "due_at", "finished_at")
    whole = {
        "uuid": uuid_of(1),
        "kind": "RunMarathon",
        "title": "Run marathon",
        "status": status,
        "url": "/",
        "params": {},
        "progress": None,
        "log": [],
        "attempt": 1,
        "queued_at": at(-40),
        "started_at": at(-30),
        "updated_at": at(0),
        "quiet_since": None,
        "cancellable": True,
        **dict.fromkeys(absent),
        **job,
    }
    return {**(metrics or {}), "job_state": coarse.get(status, "working"), "job": whole}


def answer(*args: Any, **kwargs: Any) -> Answer:
    return Answer(body=json.dumps(data(*args, **kwargs)))


STATES = {
    "queued": data("queued", started_at=None, attempt=0, due_at=at(7200)),
    "working": data(progress=progress(12, 26, eta=130), message="On the bridge"),
    "unknown": data(progress=progress(1200, unit="rows")),
    "retrying": data("retrying", due_at=at(1800), progress=progress(3, 26)),
    "stalled": data("stalled", progress=progress(12, 26)),
    "cancelling": data("cancelling", progress=progress(12, 26)),
    "cancelled": data("cancelled", error={"message": "Cancelled by alice"}),
    "success": data("success", finished_at=at(0), log=["Ran", "Arrived"]),
    "error": data("error", error={"message": "The job failed."}, log=["Ran", "Fell"]),
}


class Stage(Watched):
    """A page with elements on it."""

    def __init__(self, page: Page, server: PollServer) -> None:
        super().__init__(page)
        self.server = server

    def open(self, body: str = ELEMENT, lang: str = "en") -> None:
        self.server.pages["/element"] = HEAD.format(lang=lang, body=body)
        self.page.goto(self.server.url + "/element")
        self.page.evaluate(SETTLE)

    def show(self, data: dict[str, Any], name: str = "job") -> dict[str, Any]:
        """Give an element data, and look at it."""
        self.set(f"e.data = JSON.parse({json.dumps(json.dumps(data))})", name)
        return self.look(name)

    def look(self, name: str = "job") -> dict[str, Any]:
        return dict(self.page.evaluate(LOOK, name))

    def set(self, script: str, name: str = "job") -> None:
        """Change an element, which the script calls `e`, and let it be drawn."""
        self.page.evaluate(
            f"(name) => {{ const e = document.getElementById(name); {script} }}", name
        )
        self.page.evaluate(SETTLE)

    def set_root(self, style: str) -> None:
        """Set the style of the root element."""
        self.page.evaluate("(s) => {document.documentElement.style.cssText = s}", style)

    def text(self, selector: str) -> str | None:
        return self.page.locator(selector).text_content()

    def wait(self, state: str, name: str = "job") -> dict[str, Any]:
        """Wait until an element shows a state, and look at it."""
        wait_for(lambda: self.look(name)["state"] == state)
        return self.look(name)

    def listen(self) -> None:
        """Keep what is announced from now on in `said`."""
        self.page.evaluate(
            """() => {
                window.said = [];
                const speaker = document.querySelector("[role=status]");
                new MutationObserver(() => said.push(speaker.textContent))
                    .observe(speaker, { childList: true });
            }"""
        )

    def said(self, count: int) -> list[str]:
        """Wait until so much was announced, and return it."""
        wait_for(lambda: self.page.evaluate("said.length") >= count)
        return list(self.page.evaluate("said"))

    def spoken(self) -> str:
        script = "document.querySelector('[role=status]').textContent"
        return str(self.page.evaluate(script))
