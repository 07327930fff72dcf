"""The element <job-state> in a real Chromium, under a strict policy."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from tests.pollserver import STATIC, Answer, PollServer, uuid_of
from tests.support import wait_for
from tests.tabs import Tab, opened

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
    fraction = done / total if total else None
    return {
        "done": done,
        "total": total,
        "unit": unit,
        "fraction": fraction,
        "eta": eta,
    }


def data(status: str = "working", metrics: Any = None, **job: Any) -> dict[str, Any]:
    """The data of a job."""
    coarse = {"success": "success", "error": "error", "cancelled": "error"}
    whole = {
        "uuid": uuid_of(1),
        "kind": "RunMarathon",
        "title": "Run marathon",
        "status": status,
        "url": "/",
        "params": {},
        "progress": None,
        "phase": None,
        "message": None,
        "log": [],
        "attempt": 1,
        "error": None,
        "result": None,
        "queued_at": at(-40),
        "due_at": None,
        "started_at": at(-30),
        "updated_at": at(0),
        "finished_at": None,
        "cancellable": True,
        **job,
    }
    return {
        **(metrics or {}),
        "job_state": coarse.get(status, "working"),
        "job": whole,
    }


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


class Stage:
    """A page with elements on it."""

    def __init__(self, page: Page, server: PollServer) -> None:
        self.page = page
        self.server = server
        self.problems: list[str] = []
        #: What the page has asked for, whether or not the server knows yet.
        self.asked: list[str] = []
        page.on("console", self.hear)
        page.on("pageerror", self.fail)
        page.on("request", self.ask)

    def ask(self, request: Request) -> None:
        self.asked.append(request.url)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def fail(self, error: Exception) -> None:
        self.problems.append(str(error))

    def open(
        self, body: str = "<job-state id=job></job-state>", lang: str = "en"
    ) -> None:
        self.server.pages["/element"] = HEAD.format(lang=lang, body=body)
        self.page.goto(self.server.url + "/element")
        self.page.evaluate(SETTLE)

    def show(self, data: dict[str, Any], name: str = "job") -> dict[str, Any]:
        """Give an element data, and look at it."""
        self.page.evaluate(
            "([name, text]) => {document.getElementById(name).data = JSON.parse(text)}",
            [name, json.dumps(data)],
        )
        self.page.evaluate(SETTLE)
        return self.look(name)

    def look(self, name: str = "job") -> dict[str, Any]:
        seen: dict[str, Any] = self.page.evaluate(LOOK, name)
        return seen

    def text(self, selector: str) -> str | None:
        return self.page.locator(selector).text_content()

    def wait(
        self, state: str, name: str = "job", timeout: float = 20.0
    ) -> dict[str, Any]:
        """Wait until an element shows a state, and look at it."""
        wait_for(lambda: self.look(name)["state"] == state, timeout)
        return self.look(name)

    def spoken(self) -> str:
        script = "document.querySelector('[role=status]').textContent"
        text: str = self.page.evaluate(script)
        return text

    def watched(self) -> Iterator[Self]:
        """Yield the stage, and check afterwards that its page reported no problem."""
        yield self
        self.close()

    def close(self) -> None:
        self.page.goto("about:blank")
        self.page.remove_listener("console", self.hear)
        self.page.remove_listener("pageerror", self.fail)
        self.page.remove_listener("request", self.ask)
        self.page.emulate_media(
            media="screen",
            color_scheme="light",
            reduced_motion="no-preference",
            forced_colors="none",
        )
        assert self.problems == []


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Stage]:
    """A page for elements, which must not report errors or violate its policy."""
    yield from Stage(tab, poll_server).watched()


# What it shows


def test_element_shows_a_working_job(stage: Stage) -> None:
    """A job shows title, percentage, status, amount, rate, time left and message."""
    stage.open()
    seen = stage.show(STATES["working"])
    assert seen["title"] == "Run marathon"
    assert seen["percent"] == "46%"
    assert seen["status"] == "Running"
    assert seen["details"] == "· 12 of 26 \u2068miles\u2069 · 24/min"
    assert seen["left"] == "about 2 min left"
    assert seen["message"] == "On the bridge"
    assert seen["notice"] is None


def test_bar_is_determinate(stage: Stage) -> None:
    """The bar has a name, a value and a text, and is filled as far as the job is."""
    stage.open()
    stage.show(STATES["working"])
    bar = stage.page.get_by_role("progressbar", name="Run marathon")
    assert bar.get_attribute("aria-valuenow") == "46"
    spoken = bar.get_attribute("aria-valuetext") or ""
    assert spoken.startswith("46%, 12 of 26")
    assert spoken.endswith("about 2 min left")
    stage.page.emulate_media(reduced_motion="reduce")
    share = stage.page.evaluate(
        """() => {
            const root = document.querySelector("job-state").shadowRoot;
            const box = (part) => root.querySelector(part).getBoundingClientRect();
            const [bar, fill] = [box("[part=bar]"), box("[part=fill]")];
            return (fill.right - bar.left) / bar.width;
        }"""
    )
    assert share == pytest.approx(12 / 26, abs=0.01)


def test_bar_fills_from_the_right_in_right_to_left_pages(stage: Stage) -> None:
    """The bar follows the direction of the page."""
    stage.page.emulate_media(reduced_motion="reduce")
    stage.open("<div dir=rtl><job-state id=job></job-state></div>", lang="he")
    stage.show(data(progress=progress(1, 4)))
    left, right = stage.page.evaluate(
        """() => {
            const root = document.querySelector("job-state").shadowRoot;
            const box = (part) => root.querySelector(part).getBoundingClientRect();
            const [bar, fill] = [box("[part=bar]"), box("[part=fill]")];
            return [(fill.left - bar.left) / bar.width, fill.right - bar.right];
        }"""
    )
    assert left == pytest.approx(0.75, abs=0.01)
    assert right > 0


def test_bar_is_indeterminate(stage: Stage) -> None:
    """Without a total, the bar moves, has no value, and tells how much is done."""
    stage.open()
    seen = stage.show(STATES["unknown"])
    assert seen["now"] is None
    assert seen["spoken"] == "Running, 1,200 \u2068rows\u2069, 40/s"
    assert seen["percent"] == ""
    fill = "document.querySelector('job-state').shadowRoot.querySelector('[part=fill]')"
    assert stage.page.evaluate(f"getComputedStyle({fill}).animationName") == "slide"


WORDS = {
    "queued": "Waiting",
    "working": "Running",
    "unknown": "Running",
    "retrying": "Trying again",
    "stalled": "No sign of life",
    "cancelling": "Cancelling…",
    "cancelled": "Cancelled",
    "success": "Done",
    "error": "Failed",
}


def test_each_status_has_its_word(stage: Stage) -> None:
    """Each status has its own word."""
    stage.open()
    states = {**STATES, "queued": data("queued", updated_at=None)}
    assert {n: stage.show(d)["status"] for n, d in states.items()} == WORDS


def test_ends_and_troubles_differ_by_icon_and_colour(stage: Stage) -> None:
    """Success, failure, trouble and work each differ in both icon and colour."""
    stage.open()
    names = ["working", "success", "error", "stalled", "cancelled"]
    seen = [stage.show(STATES[name]) for name in names]
    assert len({s["icon"] for s in seen}) == len(names)
    assert len({s["color"] for s in seen}) == len(names)


@pytest.mark.parametrize(("status", "now"), [("success", "100"), ("error", "46")])
def test_bar_at_the_end(stage: Stage, status: str, now: str) -> None:
    """Success fills the bar whatever was reported; a failure leaves it where it was."""
    stage.open()
    assert stage.show(data(status, progress=progress(12, 26)))["now"] == now


def test_nothing_is_whole_before_it_is(stage: Stage) -> None:
    """The percentage is truncated rather than rounded, and 29 of 100 are 29 %."""
    stage.open()
    assert stage.show(data(progress=progress(999, 1000)))["percent"] == "99%"
    assert stage.show(data(progress=progress(29, 100)))["percent"] == "29%"


@pytest.mark.parametrize(
    ("done", "total", "amount"),
    [
        (0.96, 1, "0.96 of 1"),
        (99.96, 100, "99.96 of 100"),
        (1.03, 1.04, "1.03 of 1.04"),
        (0.04, 0.05, "0.04 of 0.05"),
        (1999999.96, 2000000, "1,999,999.96 of 2,000,000"),
        (12.34, 100, "12.3 of 100"),
        (0.1 + 0.7, 0.8, "0.8 of 0.8"),
        (999.999999983, 1000, "1,000 of 1,000"),
        (-1, None, "-1"),
        (0.0042, None, "0.0042"),
    ],
)
def test_amount_is_not_whole_before_it_is(
    stage: Stage, done: float, total: float | None, amount: str
) -> None:
    """An amount has the decimals that tell it from the total, and the total from 0."""
    stage.open()
    seen = stage.show(data(progress=progress(done, total, unit="GB"), started_at=at(0)))
    assert seen["details"] == f"· {amount} \u2068GB\u2069"


def test_success_says_how_long_it_took(stage: Stage) -> None:
    """A finished job shows how long it took."""
    stage.open()
    seen = stage.show(data("success", started_at=at(-5400), finished_at=at(0)))
    assert seen["details"] == "· took 1.5 hr"


def test_phase_is_told(stage: Stage) -> None:
    """The element names the phase, with what its loop counts, and gives no rate."""
    stage.open("<job-state id=job></job-state>")
    rows = {**progress(12, 26, unit="rows"), "fraction": 0.14}
    phase = {"name": "<b>Parsing</b>", "path": ["<b>Parsing</b>"], "fraction": 0.46}
    seen = stage.show(data(progress=rows, phase=phase))
    assert seen["percent"] == "14%"
    assert seen["details"] == "· \u2068<b>Parsing</b>\u2069: 12 of 26 \u2068rows\u2069"
    nothing = {**progress(0), "unit": None, "fraction": 0.3}
    seen = stage.show(data(progress=nothing, phase={**phase, "name": "Writing"}))
    assert (seen["percent"], seen["details"]) == ("30%", "· \u2068Writing\u2069")
    # Between two phases
    seen = stage.show(data(progress={**progress(1, 2), "fraction": 0.65}))
    assert seen["details"] == "· 1 of 2 \u2068miles\u2069"
    assert stage.show(data(progress=nothing))["details"] == ""


def test_success_leads_to_its_result(stage: Stage) -> None:
    """The element shows a link to the result of a job, which the keyboard reaches."""
    stage.open("<job-state id=job></job-state>")
    link = stage.page.locator("[part=result]")
    stage.show(data(result={"url": "https://example.com/early"}))
    expect(link).to_be_hidden()
    assert link.get_attribute("href") is None
    stage.show(data("success", result={"url": "https://example.com/a?b=<i>"}))
    expect(link).to_be_visible()
    expect(link).to_have_text("Open the result")
    expect(link).to_have_attribute("href", "https://example.com/a?b=<i>")
    stage.page.keyboard.press("Tab")
    expect(link).to_be_focused()


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"url": None},
        {"url": "javascript:alert(1)"},
        {"url": " javascript:alert(1)"},
        {"url": "/reports/1"},
        {"url": "data:text/html,x"},
        {"url": {"https://": 1}},
        "https://example.com",
    ],
    ids=repr,
)
def test_only_urls_of_the_web_become_links(stage: Stage, result: Any) -> None:
    """Nothing else that a server says of a result can be opened."""
    stage.open("<job-state id=job></job-state>")
    stage.show(data("success", result=result))
    link = stage.page.locator("[part=result]")
    expect(link).to_be_hidden()
    assert link.get_attribute("href") is None


def test_error_is_told(stage: Stage) -> None:
    """The reason of a failure is shown below the bar."""
    stage.open()
    assert stage.show(STATES["error"])["notice"] == "The job failed."


def test_retry_is_told(stage: Stage) -> None:
    """A retrying job shows which attempt failed and when the next one is due."""
    stage.open()
    soon = data("retrying", due_at=at(60), progress=progress(3, 26))
    details = stage.show(soon)["details"]
    assert re.search(r"attempt 1 · next try at \d+:\d\d:\d\d\s[AP]M", details)


def test_due_time_is_told(stage: Stage) -> None:
    """A queued job shows when it is due, but not a time in the past."""
    stage.open()
    status = stage.show(data("queued", due_at=at(400 * 86400)))["status"]
    assert re.match(r"Starts at \w+\s\d+,\s\d{4},\s\d+:\d\d\s[AP]M$", status)
    assert stage.show(data("queued", due_at=at(-5)))["status"].startswith("Waiting")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0 sec"),
        (4.26, "4.3 sec"),
        (9.97, "10 sec"),
        (11.3, "11 sec"),
        (59.4, "59 sec"),
        (59.6, "1 min"),
        (100, "2 min"),
        (-1, "0 sec"),
    ],
)
def test_time_that_a_job_took_is_exact(
    stage: Stage, seconds: float, words: str
) -> None:
    """The element rounds as the timeline does, not as an estimate."""
    stage.open()
    end = datetime.now(UTC)
    start = written(end - timedelta(seconds=seconds))
    seen = stage.show(data("success", started_at=start, finished_at=written(end)))
    assert seen["details"] == f"· took {words}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 sec"), (8, "8 sec"), (41, "45 sec"), (59.9, "1 min"), (7000, "1.9 hr")],
)
def test_time_left_is_about(stage: Stage, seconds: float, words: str) -> None:
    """The time left is as rough as the estimate."""
    stage.open()
    seen = stage.show(data(progress=progress(1, 2, eta=seconds)))
    assert seen["left"] == f"about {words} left"


def test_log_is_shown_on_request(stage: Stage) -> None:
    """The attribute log shows the last lines as they arrive."""
    stage.open()
    lines = [f"line {n}" for n in range(25)]
    assert stage.show(data(log=lines))["log"] == []
    stage.page.evaluate("document.getElementById('job').log = true")
    assert stage.show(data(log=lines))["log"] == lines[5:]
    assert stage.show(data(log=["other"]))["log"] == ["other"]


# The content of the element, and metrics


def test_content_stands_until_the_first_answer(stage: Stage) -> None:
    """The element shows its content until the first answer, then the state."""
    hold = threading.Event()
    first = answer(progress=progress(1, 2))
    first.hold = hold
    stage.server.answer("job", first)
    stage.open("<job-state id=job src=/job_state/job>26 miles</job-state>")
    assert stage.look()["content"] == "26 miles"
    assert stage.look()["job"] is None
    hold.set()
    seen = stage.wait("working")
    assert (seen["content"], seen["percent"]) == (None, "50%")


def test_empty_element_says_that_it_loads(stage: Stage) -> None:
    """An element without content shows a bar from the start."""
    stage.open()
    assert stage.look()["status"] == "Loading…"


def test_metrics_are_shown_in_the_element(stage: Stage) -> None:
    """Descendants with data-metric stay, and show the metric in the page's language."""
    stage.open(
        "<job-state id=job><b data-metric=miles></b> <i data-metric=pace></i>"
        "<u data-metric=none>?</u></job-state>",
        lang="de",
    )
    seen = stage.show(data(metrics={"miles": 1234.5, "pace": "<b>fast</b>"}))
    assert seen["content"] == "1.234,5 <b>fast</b>?"
    seen = stage.show(data(metrics={"miles": True, "pace": [1], "none": None}))
    assert seen["content"] == "true [1]"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0004, "0.0004"),
        (-1.23456789e-7, "-0.0000001235"),
        (0.987654, "0.9877"),
        (0.1 + 0.2, "0.3"),
        (1234567.891234, "1,234,567.891"),
        (2**53 - 1, "9,007,199,254,740,991"),
        (0, "0"),
        (1e-300, "0"),
        (-2, "-2"),
    ],
)
def test_metric_is_not_rounded_to_nothing(
    stage: Stage, number: float, text: str
) -> None:
    """A number has three decimals, and four digits if it is below 1. Not all of them:
    sums of floats end in digits that nobody wants to read.
    """
    stage.open("<job-state id=job><b data-metric=n></b></job-state>")
    assert stage.show(data(metrics={"n": number}))["content"] == text


def test_metrics_are_shown_anywhere(stage: Stage) -> None:
    """data-job or for names the element to which a metric elsewhere belongs."""
    stage.open(
        "<job-state id=one></job-state><job-state id=two></job-state>"
        "<b id=a data-metric=n data-job=one></b><output id=b data-metric=n for=two>"
        "</output><i id=c data-metric=n></i>"
    )
    stage.show(data(metrics={"n": 1}), "one")
    stage.show(data(metrics={"n": 2}), "two")
    assert [stage.text(f"#{name}") for name in "abc"] == ["1", "2", ""]


def test_metrics_of_two_shadow_roots_are_apart(stage: Stage) -> None:
    """data-job names an element of the same tree, even if others have that id."""
    stage.open("<div class=host></div><div class=host></div>")
    stage.page.evaluate(
        """([a, b]) => {
            const hosts = document.querySelectorAll(".host");
            const elements = [...hosts].map((host) => {
                const root = host.attachShadow({mode: "open"});
                const metric = root.appendChild(document.createElement("b"));
                Object.assign(metric.dataset, {metric: "n", job: "run"});
                const element = document.createElement("job-state");
                element.id = "run";
                return root.appendChild(element);
            });
            [elements[0].data, elements[1].data] = [a, b];
        }""",
        [data(metrics={"n": 1}), data(metrics={"n": 2})],
    )
    texts = """[...document.querySelectorAll(".host")].map(
        (host) => host.shadowRoot.querySelector("b").textContent)"""
    wait_for(lambda: all(stage.page.evaluate(texts)))
    assert stage.page.evaluate(texts) == ["1", "2"]


def test_metrics_of_an_earlier_run_go(stage: Stage) -> None:
    """A metric that the job no longer has leaves the text that stood there at first."""
    stage.open(
        "<job-state id=job><b data-metric=n>?</b><i data-metric=m></i></job-state>"
        "<u id=u data-metric=n data-job=job>none</u>"
    )
    assert stage.show(data(metrics={"n": 111, "m": 2}))["content"] == "1112"
    assert stage.show(data(attempt=2))["content"] == "?"
    assert stage.text("#u") == "none"
    assert stage.show(data(metrics={"n": 3}, attempt=2))["content"] == "3"


def test_metrics_of_another_job_go(stage: Stage) -> None:
    """Another src clears the metrics of the job before at once."""
    held = answer()
    held.hold = threading.Event()
    stage.server.answer("one", answer(metrics={"n": 111}))
    stage.server.answer("two", held)
    stage.open(
        "<job-state id=job src=/job_state/one><b id=n data-metric=n>?</b></job-state>"
    )
    wait_for(lambda: stage.text("#n") == "111")
    stage.page.evaluate("document.getElementById('job').src = '/job_state/two'")
    stage.wait("loading")
    assert stage.text("#n") == "?"
    held.hold.set()
    stage.wait("working")
    assert stage.text("#n") == "?"


def test_metrics_with_names_of_javascript_are_harmless(stage: Stage) -> None:
    """Only properties of the data itself are metrics."""
    stage.open(
        "<job-state id=job><b data-metric=constructor>?</b>"
        "<b data-metric=__proto__></b></job-state>"
    )
    seen = stage.show(data(metrics={"__proto__": {"polluted": 1}}))
    assert seen["content"] == '?{"polluted":1}'
    assert stage.page.evaluate("({}).polluted === undefined")


# Text from the server


def test_html_is_text(stage: Stage) -> None:
    """Nothing from the server is interpreted as markup."""
    html = "<img src=x onerror=alert(1)><b>"
    stage.open("<job-state id=job log></job-state>")
    seen = stage.show(data(title=html, message=html, log=[html]))
    assert (seen["title"], seen["message"], seen["log"]) == (html, html, [html])
    inside = "document.querySelector('job-state').shadowRoot.querySelector('img, b')"
    assert stage.page.evaluate(f"{inside} === null")


def test_control_characters_are_dropped(stage: Stage) -> None:
    """Control characters and direction overrides are removed."""
    stage.open()
    seen = stage.show(data(title="a\u202eb\u0000c\u2066d", message="\u2069\u001b[0mx"))
    assert (seen["title"], seen["message"]) == ("abcd", "[0mx")


def test_huge_texts_stay_inside(stage: Stage) -> None:
    """Long words wrap, long texts are cut, and the page does not become wider."""
    stage.open("<job-state id=job log></job-state>")
    long = "x" * 100_000
    seen = stage.show(
        data(title=long, message=long, log=[long], progress=progress(1, unit=long))
    )
    assert max(len(seen["title"]), len(seen["message"]), len(seen["details"])) < 1100
    wider = (
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    assert stage.page.evaluate(wider) is False


@pytest.mark.parametrize("part", ["log", "result"])
def test_focus_stays_in_the_element(stage: Stage, part: str) -> None:
    """When the part that has the focus goes, the element keeps it."""
    stage.open("<job-state id=job log></job-state><button>After</button>")
    stage.show(data("success", log=["Ran"], result={"url": "https://example.com/"}))
    stage.page.locator(f"[part={part}]").focus()
    assert stage.page.evaluate("document.activeElement.id") == "job"

    stage.show(data(attempt=2))

    expect(stage.page.locator("[part=job]")).to_be_focused()
    stage.page.keyboard.press("Tab")
    expect(stage.page.get_by_role("button", name="After")).to_be_focused()


def test_title_in_another_direction_is_isolated(stage: Stage) -> None:
    """Title and message determine their own direction."""
    stage.open()
    stage.show(data(title="מרתון", message="מרתון 26"))
    for part in ("title", "message"):
        assert stage.page.locator(f"[part={part}]").get_attribute("dir") == "auto"


@pytest.mark.parametrize(
    "odd", [{"progress": {"done": "x", "fraction": "y"}}, {"log": 7}]
)
def test_odd_data_break_nothing(stage: Stage, odd: dict[str, Any]) -> None:
    """Data of unexpected types does not throw."""
    stage.open("<job-state id=job log></job-state>")
    assert stage.show(data(**odd))["status"] == "Running"


# Following


def test_element_follows_its_job_to_the_end(stage: Stage) -> None:
    """Events for the updates and the end bubble out of every shadow root."""
    first = answer(metrics={"n": 1})
    stage.server.answer("job", first, answer("success", finished_at=at(0)))
    stage.open()
    stage.page.evaluate(
        """() => {
            window.events = [];
            for (const name of ["update", "success", "error", "lost"]) {
                document.addEventListener(`job-state:${name}`, (event) =>
                    events.push([name, event.composed, event.detail.job_state]));
            }
            Object.assign(document.getElementById("job"), {
                period: 50, src: "/job_state/job" });
        }"""
    )
    stage.wait("success")
    assert stage.page.evaluate("events") == [
        ["update", True, "working"],
        ["update", True, "success"],
        ["success", True, "success"],
    ]


def test_failed_job_is_an_error_event(stage: Stage) -> None:
    """A failed or cancelled job fires an error event with the data."""
    stage.server.answer("job", answer("cancelled", error={"message": "By alice"}))
    stage.open()
    detail = stage.page.evaluate(
        """() => new Promise((resolve) => {
            const element = document.getElementById("job");
            element.addEventListener("job-state:error", (e) => resolve(e.detail.job));
            element.src = "/job_state/job";
        })"""
    )
    assert detail["status"] == "cancelled"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "You are not signed in."),
        (404, "The job does not exist, or has expired."),
        (418, "The server answered 418."),
    ],
)
def test_lost_job_says_why(stage: Stage, status: int, words: str) -> None:
    """A job that can no longer be seen fires an event and shows the reason."""
    stage.server.answer("job", Answer(status))
    stage.open()
    reason = stage.page.evaluate(
        """() => new Promise((resolve) => {
            const element = document.getElementById("job");
            element.addEventListener("job-state:lost", (e) => resolve(e.detail.status));
            element.src = "/job_state/job";
        })"""
    )
    assert reason == status
    seen = stage.wait("lost")
    assert (seen["status"], seen["notice"]) == ("Unavailable", words)


def test_jobs_of_a_signed_out_viewer_say_so(stage: Stage) -> None:
    """Several jobs show that the session has ended, as a single one does."""
    uuids = [uuid_of(n) for n in range(3)]
    for uuid in uuids:
        stage.server.answer(uuid, answer())
        # A slow page may ask for the first of them before it knows the others.
        stage.server.answer(f"{uuid}/", answer())
    stage.open(
        "".join(
            f"<job-state id=j{u} src=/job_state/{u}/ period=50></job-state>"
            for u in uuids
        )
    )
    for uuid in uuids:
        stage.wait("working", f"j{uuid}")
    for uuid in uuids:
        # A poll may come between the two.
        stage.server.answer(f"{uuid}/", Answer(401))
        stage.server.nulls.add(uuid)
    for uuid in uuids:
        notice = stage.wait("lost", f"j{uuid}")["notice"]
        assert notice == "You are not signed in."


def test_outage_is_shown_and_over(stage: Stage) -> None:
    """While the server is away, the last data stays, and the status says so."""
    stage.server.answer("job", answer(progress=progress(1, 2)), Answer(503))
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    seen = stage.wait("reconnecting")
    assert seen["status"] == "Connection lost, trying again…"
    assert seen["percent"] == "50%"
    stage.server.answer("job", answer(progress=progress(2, 2)))
    assert stage.wait("working")["percent"] == "100%"


def test_src_of_another_origin_is_refused(stage: Stage) -> None:
    """Without the attribute cross-origin, no other site is polled."""
    stage.open("<job-state id=job src=http://elsewhere.test/job></job-state>")
    assert stage.wait("lost")["notice"] == "The address is wrong."
    [problem] = stage.problems
    assert "needs crossOrigin: true" in problem
    stage.problems.clear()


def test_elements_share_their_requests(stage: Stage) -> None:
    """The elements of a page share their requests."""
    uuids = [uuid_of(n) for n in range(20)]
    for uuid in uuids:
        stage.server.answer(uuid, answer(), answer("success", finished_at=at(0)))
    stage.open(
        "".join(f"<job-state id=j{u} src=/job_state/{u}/ ></job-state>" for u in uuids)
    )
    for uuid in uuids:
        # On a busy machine a request may get lost: it is given up after 30 seconds.
        stage.wait("success", f"j{uuid}", 60)
    assert len(stage.server.requests()) <= 4


def test_removed_element_stops_asking_and_goes_on_later(stage: Stage) -> None:
    """A removed element stops polling, and goes on when it is put back."""
    stage.server.answer("job", answer())
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    stage.wait("working")
    stage.page.evaluate("window.kept = document.getElementById('job'); kept.remove()")
    stage.page.evaluate("new Promise((resolve) => setTimeout(resolve, 60))")
    count = len(stage.asked)
    stage.page.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")
    assert len(stage.asked) == count
    stage.page.evaluate("document.body.append(kept)")
    wait_for(lambda: stage.page.evaluate("1") and len(stage.asked) > count)
    seen = len(stage.server.seen("job"))
    wait_for(lambda: len(stage.server.seen("job")) > seen)


def test_moved_element_goes_on(stage: Stage) -> None:
    """A moved element keeps its data, and its request is not aborted."""
    held = answer()
    held.hold = threading.Event()
    failed: list[str] = []
    stage.server.answer("job", held)
    once = "<job-state id=job src=/job_state/job period=3600000></job-state>"
    stage.open(f"<div id=a>{once}</div>")
    wait_for(lambda: stage.server.seen("job"))
    stage.page.on("requestfailed", lambda request: failed.append(request.url))
    stage.page.evaluate("document.body.append(document.getElementById('job'))")
    held.hold.set()
    stage.wait("working")
    assert failed == []
    assert len(stage.server.seen("job")) == 1


def test_finished_element_that_comes_back_asks_nothing(stage: Stage) -> None:
    """An element of a finished job polls no more when it is put back."""
    stage.server.answer("job", answer("success", finished_at=at(0)))
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    stage.wait("success")
    stage.page.evaluate(
        """async () => {
            const element = document.getElementById("job");
            element.remove();
            await new Promise((resolve) => setTimeout(resolve, 20));
            document.body.append(element);
            await new Promise((resolve) => setTimeout(resolve, 100));
        }"""
    )
    assert len(stage.server.seen("job")) == 1


@pytest.mark.parametrize(
    "attribute", ["csrf-token", "csrf-header", "period", "notify", "cross-origin"]
)
def test_attributes_of_a_finished_element_ask_nothing(
    stage: Stage, attribute: str
) -> None:
    """After the end, only another src makes the element ask and fire events again."""
    for name in ("job", "other", "next"):
        stage.server.answer(name, answer("success", finished_at=at(0)))
    stage.open("<job-state id=job></job-state><job-state id=other></job-state>")
    stage.page.evaluate(
        """() => {
            window.ends = [];
            document.addEventListener("job-state:success", ({ target }) =>
                ends.push(target.src));
            document.getElementById("job").src = "/job_state/job";
        }"""
    )
    stage.wait("success")
    stage.page.evaluate(
        """(name) => {
            document.getElementById("job").setAttribute(name, "100");
            // It asks later than the first would.
            document.getElementById("other").src = "/job_state/other";
        }""",
        attribute,
    )
    stage.wait("success", "other")
    stage.page.evaluate("document.getElementById('job').src = '/job_state/next'")
    wait_for(lambda: len(stage.page.evaluate("ends")) > 2)
    names = ("job", "other", "next")
    assert stage.page.evaluate("ends") == [f"/job_state/{name}" for name in names]
    assert [len(stage.server.seen(name)) for name in names] == [1, 1, 1]


def test_removed_elements_are_forgotten(stage: Stage) -> None:
    """A removed element can be garbage-collected."""
    stage.server.answer("job", answer())
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    stage.wait("working")
    stage.page.evaluate(
        """() => {
            const element = document.getElementById("job");
            window.reference = new WeakRef(element);
            element.remove();
        }"""
    )
    session = stage.page.context.new_cdp_session(stage.page)

    def is_collected() -> bool:
        session.send("HeapProfiler.collectGarbage")
        return bool(stage.page.evaluate("reference.deref() === undefined"))

    wait_for(is_collected)
    session.detach()


# Removed elements, by each way that might keep them alive. The script puts them into
# window.made and may give them `working` or `finished` data.
REMOVED = {
    "after data": "document.body.append(e); e.data = working; e.remove();",
    "before data": "document.body.append(e); e.remove(); e.data = working;",
    "never added": "e.data = working; e.setAttribute('label-job', 'Run');",
    "content": "document.body.append(e); e.append('x'); e.remove(); e.append('y');",
    "following": "e.src = '/job_state/job'; document.body.append(e); e.remove();",
    "finished": "e.src = '/job_state/job'; document.body.append(e);"
    " e.data = finished; e.remove();",
}

MAKE = """(async () => {
  const working = %s, finished = %s;
  window.frames_ = 0;
  const reallyAsk = window.requestAnimationFrame;
  window.requestAnimationFrame = (draw) => { frames_ += 1; return reallyAsk(draw); };
  window.made = [];
  for (let n = 0; n < 1000; n++) {
    let e = document.createElement("job-state");
    %s
    made.push(new WeakRef(e));
    e = null;
    if (n %% 100 === 0) await new Promise((resolve) => setTimeout(resolve));
  }
})()"""

LEFT = "made.filter((reference) => reference.deref()).length"


def make_and_remove(how: str) -> str:
    finished = data("success", finished_at=at(0))
    return MAKE % (json.dumps(data()), json.dumps(finished), REMOVED[how])


@pytest.fixture
def hideable(windowed: Browser, poll_server: PollServer) -> Iterator[Tab]:
    """A tab with the script and one element that follows a job."""
    body = "<job-state id=job src=/job_state/job period=50></job-state>"
    poll_server.answer("job", answer(progress=progress(1, 4)))
    poll_server.pages["/element"] = HEAD.format(lang="en", body=body)
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/element")
        wait_for(lambda: tab.evaluate("job.getAttribute('state')") == "working")
        yield tab


@pytest.mark.parametrize("how", REMOVED)
def test_elements_removed_while_hidden_are_forgotten(hideable: Tab, how: str) -> None:
    """A hidden tab keeps none of a thousand elements that were added and removed."""
    hideable.hide()
    hideable.evaluate(make_and_remove(how))

    def are_collected() -> bool:
        hideable.collect_garbage()
        return hideable.evaluate(LEFT) == 0

    wait_for(are_collected)
    assert hideable.evaluate("frames_") <= 1
    assert hideable.evaluate("document.visibilityState") == "hidden"


def test_elements_that_stay_are_drawn_when_the_tab_shows(hideable: Tab) -> None:
    """Changes made while the tab is hidden show as soon as the tab does."""
    hideable.hide()
    hideable.evaluate(
        f"""(() => {{
            const late = document.createElement("job-state");
            late.id = "late";
            document.body.append(late);
            late.data = {json.dumps(data(progress=progress(3, 4)))};
            document.body.append(job);
            job.data = {json.dumps(data(progress=progress(2, 4)))};
        }})()"""
    )
    hideable.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    hideable.show()
    percent = "{}.shadowRoot.querySelector('[part=percent]').textContent"
    wait_for(lambda: hideable.evaluate(percent.format("late")) == "75%")
    styled = "late.shadowRoot.adoptedStyleSheets.length"
    assert hideable.evaluate(styled) == 1


def test_element_that_was_away_is_drawn_when_it_returns(stage: Stage) -> None:
    """Data set on a removed element shows as soon as the element is put back."""
    stage.open("<job-state id=job><b data-metric=n></b></job-state>")
    stage.page.evaluate(
        """async (text) => {
            const element = document.getElementById("job");
            element.remove();
            await null;
            element.data = JSON.parse(text);
            document.body.append(element);
        }""",
        json.dumps(data(metrics={"n": 7}, progress=progress(1, 4))),
    )
    stage.page.evaluate(SETTLE)
    seen = stage.look()
    assert (seen["percent"], seen["content"]) == ("25%", "7")


def test_elements_removed_before_they_are_styled_are_forgotten(
    stage: Stage,
) -> None:
    """A style sheet that never loads does not keep removed elements alive."""
    hold = threading.Event()
    stage.server.answer("job-state.css", Answer(hold=hold), below="")
    stage.server.pages["/element"] = HEAD.format(lang="en", body=ELEMENT)
    stage.page.goto(stage.server.url + "/element")
    wait_for(lambda: stage.server.seen("job-state.css", below=""))
    stage.page.evaluate(make_and_remove("after data"))
    session = stage.page.context.new_cdp_session(stage.page)

    def are_collected() -> bool:
        session.send("HeapProfiler.collectGarbage")
        return bool(stage.page.evaluate(LEFT) == 0)

    wait_for(are_collected)
    session.detach()
    hold.set()


def test_element_of_a_finished_job_asks_no_more_when_removed(stage: Stage) -> None:
    """Setting data by hand does not keep the poller of a removed element going."""
    stage.server.answer("job", answer())
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    stage.wait("working")
    stage.page.evaluate(
        """(text) => {
            const element = document.getElementById("job");
            element.data = JSON.parse(text);
            element.remove();
        }""",
        json.dumps(data("success", finished_at=at(0))),
    )
    stage.page.evaluate("new Promise((resolve) => setTimeout(resolve, 60))")
    count = len(stage.asked)
    stage.page.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")
    assert len(stage.asked) == count


# Trouble of one element

SPOILT = {
    "subclass": """class Odd extends JobState.JobStateElement {
            get state() { throw new Error("spoilt"); }
        }
        customElements.define("odd-state", Odd);""",
    "label": """JobState.setLabels("xx", { job: { toString() {
            throw new Error("spoilt"); } } });""",
    "Intl": """Intl.DateTimeFormat = class { constructor() {
            throw new Error("spoilt"); } };""",
    "metric": """const bad = document.querySelector("form");
        bad.dataset.metric = "n"; bad.dataset.job = "two";""",
    "root": """document.getElementById("one").getRootNode = () => {
            throw new Error("spoilt"); };""",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_trouble_of_one_element_is_its_own(stage: Stage, spoil: str) -> None:
    """If one element cannot be drawn, the others are, and the console reports it."""
    stage.open(
        "<form><input name=closest></form>"
        "<job-state id=one lang=xx></job-state><odd-state id=odd></odd-state>"
        "<job-state id=two></job-state><b id=n data-metric=n data-job=two></b>"
    )
    due = data("queued", due_at=at(7200), title="")
    fine = data(metrics={"n": 7}, progress=progress(1, 4))
    stage.page.evaluate(
        f"""([due, fine]) => {{
            {SPOILT[spoil]}
            document.getElementById("one").data = due;
            document.getElementById("odd").data = due;
            document.getElementById("two").data = fine;
        }}""",
        [due, fine],
    )
    wait_for(lambda: stage.look("two")["percent"] == "25%")
    wait_for(lambda: stage.text("#n") == "7")
    if spoil != "root":  # which the script need not call
        assert stage.problems
        assert all("JobState" in problem for problem in stage.problems)
    stage.problems.clear()


def test_element_that_could_not_be_drawn_is_drawn_later(stage: Stage) -> None:
    """Once the trouble is over, the next data is shown."""
    stage.open()
    stage.page.evaluate("window.labels = JobState.labels; JobState.labels = 'odd'")
    stage.show(data())
    [problem] = stage.problems
    assert "JobState" in problem
    stage.problems.clear()
    stage.page.evaluate("JobState.labels = labels")
    assert stage.show(data(progress=progress(1, 4)))["percent"] == "25%"


# Markup injected before the script


@pytest.mark.parametrize("markup", ["<img name={0}>", "<iframe name={0}></iframe>"])
@pytest.mark.parametrize(
    "name",
    [
        *("body", "documentElement", "createElement", "createElementNS", "host"),
        *("querySelectorAll", "getRootNode", "closest", "adoptedStyleSheets"),
    ],
)
def test_element_minds_no_element_of_a_name(
    stage: Stage, name: str, markup: str
) -> None:
    """Elements named after what the script uses do not shadow it."""
    stage.server.answer("job", answer(metrics={"n": 7}, progress=progress(1, 4)))
    body = "<job-state id=job src=/job_state/job><b data-metric=n></b></job-state>"
    page = HEAD.format(lang="en", body=body)
    stage.server.pages["/element"] = page.replace(
        "<script", markup.format(name) + "<script"
    )
    stage.page.goto(stage.server.url + "/element")
    wait_for(lambda: stage.look()["percent"] == "25%")
    assert stage.look()["content"] == "7"
    live = "() => Reflect.get(Document.prototype, 'body', document).lastChild.role"
    assert stage.page.evaluate(live) == "status"


def test_language_is_that_of_the_form_around(stage: Stage) -> None:
    """A form's field named lang is not taken for the language."""
    stage.open(f"<form lang=de><input name=lang>{ELEMENT}</form>")
    seen = stage.show(data("stalled", progress=progress(1234, unit="rows")))
    assert seen["details"] == "· 1.234 \u2068rows\u2069"


def test_another_src_is_another_job(stage: Stage) -> None:
    """Another src drops the old job's data and stops polling it."""
    stage.server.answer("one", answer(title="One"))
    stage.server.answer("two", answer(title="Two"))
    stage.open("<job-state id=job src=/job_state/one period=50></job-state>")
    stage.wait("working")
    stage.page.evaluate("document.getElementById('job').src = '/job_state/two'")
    wait_for(lambda: stage.look()["title"] == "Two")
    old = f"{stage.server.url}/job_state/one"
    asked = stage.asked.count(old)
    wait_for(lambda: stage.look() and len(stage.server.seen("two")) > 2)
    assert stage.asked.count(old) == asked > 0


def test_attributes_and_properties_are_in_step(stage: Stage) -> None:
    """Each property reads and writes its attribute."""
    stage.open("<job-state id=job period=250 log></job-state>")
    assert stage.page.evaluate(
        """() => {
            const e = document.getElementById("job");
            const before = [e.src, e.period, e.cancellable, e.log, e.data, e.state];
            e.cancellable = true;
            e.log = false;
            e.period = 70;
            return [before, e.getAttributeNames().sort(), e.getAttribute("period")];
        }"""
    ) == [
        ["", 250, False, True, None, "loading"],
        ["cancellable", "id", "period", "state"],
        "70",
    ]


@pytest.mark.parametrize("period", ["-5", "x", "Infinity"])
def test_senseless_period_is_a_second(stage: Stage, period: str) -> None:
    """An invalid period falls back to a second."""
    stage.open(f"<job-state id=job period={period}></job-state>")
    assert stage.page.evaluate("document.getElementById('job').period") == 1000


def test_script_may_come_after_the_element(page: Page, poll_server: PollServer) -> None:
    """Properties set on the element before the script loads take effect."""
    poll_server.answer("job", answer(progress=progress(1, 4)))
    page.goto(poll_server.url + "/empty")
    page.evaluate(
        """() => {
            document.body.innerHTML = "<job-state id=job></job-state>";
            document.getElementById("job").src = "/job_state/job";
        }"""
    )
    page.add_script_tag(url="/job-state.js")
    wait_for(lambda: page.evaluate(LOOK, "job")["percent"] == "25%")


# Cancelling


def open_cancellable(stage: Stage, cancelled: Answer, attributes: str = "") -> None:
    stage.server.answer("job/cancel", cancelled, method="POST")
    stage.server.answer("job", answer())
    stage.open(
        f"<job-state id=job src=/job_state/job cancellable {attributes}></job-state>"
    )
    stage.wait("working")


def test_cancel_button_is_for_who_may_cancel(stage: Stage) -> None:
    """The button needs the attribute, and a job that this viewer may cancel."""
    stage.open()
    assert stage.show(data())["cancel"] is None
    stage.page.evaluate("document.getElementById('job').cancellable = true")
    assert stage.show(data())["cancel"] == "Cancel"
    assert stage.show(data(cancellable=False))["cancel"] is None
    assert stage.show(data("cancelling"))["cancel"] is None


def test_cancel_by_keyboard(stage: Stage) -> None:
    """The button can be reached by Tab, shows its focus, and sends the CSRF token."""
    open_cancellable(stage, Answer(202, "{}"), "csrf-token=t0ken")
    stage.page.keyboard.press("Tab")
    button = stage.page.get_by_role("button", name="Cancel Run marathon")
    assert button.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
    stage.page.keyboard.press("Enter")
    wait_for(lambda: stage.look()["cancel"] == "Cancelling…")
    button = stage.page.locator("[part=cancel]")
    assert button.evaluate("(e) => e.getRootNode().activeElement === e")
    [request] = wait_for(lambda: stage.server.seen("job/cancel", "POST"))
    assert request.headers["x-csrf-token"] == "t0ken"
    stage.page.keyboard.press("Enter")
    stage.server.answer("job", answer("cancelled", error={"message": "By alice"}))
    seen = stage.wait("cancelled")
    assert (seen["cancel"], seen["notice"]) == (None, "By alice")
    assert stage.page.evaluate("document.activeElement.id") == "job"
    assert len(stage.server.seen("job/cancel", "POST")) == 1


@pytest.mark.parametrize(
    "attributes", ["csrf-header='X Token'", "csrf-header=Cookie", "csrf-token=…"]
)
def test_header_that_cannot_be_sent_is_told(stage: Stage, attributes: str) -> None:
    """The element and the console report it at once; another header mends it."""
    stage.server.answer("job", answer())
    stage.open(f"<job-state id=job src=/job_state/job {attributes}></job-state>")
    seen = stage.wait("lost")
    assert seen["notice"] == "The CSRF header or token is wrong."
    [problem] = stage.problems
    assert "csrfHeader or csrfToken cannot be sent" in problem
    stage.problems.clear()
    assert stage.server.seen("job") == []
    stage.page.evaluate(
        """() => {
            const job = document.getElementById("job");
            job.setAttribute("csrf-header", "X-Token");
            job.removeAttribute("csrf-token");
        }"""
    )
    stage.wait("working")


def test_refusal_of_a_cancel_stays_with_its_job(stage: Stage) -> None:
    """A cancel that is refused after src has changed leaves the next job and its own
    cancel alone.
    """
    holds = {"job": threading.Event(), "other": threading.Event()}
    for name, hold in holds.items():
        refusal = Answer(403, hold=hold)
        stage.server.answer(f"{name}/cancel", refusal, method="POST")
        stage.server.answer(name, answer(title=name))
    stage.open("<job-state id=job src=/job_state/job cancellable></job-state>")
    stage.wait("working")
    ask = (
        "window.first = document.getElementById('job').cancel().catch((e) => e.status)"
    )
    stage.page.evaluate(f"() => {{ {ask} }}")
    wait_for(lambda: stage.server.seen("job/cancel", "POST"))
    stage.page.evaluate("document.getElementById('job').src = '/job_state/other'")
    wait_for(lambda: stage.look()["title"] == "other")
    stage.page.locator("[part=cancel]").click()
    wait_for(lambda: stage.server.seen("other/cancel", "POST"))

    holds["job"].set()

    assert stage.page.evaluate("first") == 403
    stage.page.evaluate(SETTLE)
    seen = stage.look()
    assert (seen["cancel"], seen["notice"]) == ("Cancelling…", None)
    holds["other"].set()
    wait_for(lambda: stage.look()["notice"] == "Not cancelled: You may not do this.")


@pytest.mark.parametrize("status", ["cancelling", "success"])
def test_refusal_of_a_cancel_goes_with_its_reason(stage: Stage, status: str) -> None:
    """The refusal of a cancel is gone once the job is cancelled, or has ended."""
    open_cancellable(stage, Answer(403), "period=50")
    stage.page.locator("[part=cancel]").click()
    wait_for(lambda: stage.look()["notice"])
    stage.server.answer("job", answer(status, finished_at=at(0)))
    assert not stage.wait(status)["notice"]


def test_cancel_that_is_refused_says_why(stage: Stage) -> None:
    """If the cancel is refused, the button comes back, and the element says why."""
    open_cancellable(stage, Answer(403))
    stage.page.locator("[part=cancel]").click()
    wait_for(lambda: stage.look()["notice"] == "Not cancelled: You may not do this.")
    assert stage.look()["cancel"] == "Cancel"
    wait_for(lambda: "Not cancelled" in stage.spoken())


# Words


def test_labels_of_one_element(stage: Stage) -> None:
    """Attributes change the words of one element, even later."""
    stage.open("<job-state id=job label-working='On the run'></job-state>")
    assert stage.show(data())["status"] == "On the run"
    stage.page.evaluate(
        "document.getElementById('job').setAttribute('label-working', 'Off')"
    )
    stage.page.evaluate(SETTLE)
    assert stage.look()["status"] == "Off"


def test_labels_of_a_language(stage: Stage) -> None:
    """Labels follow the element's language, as numbers and times do."""
    stage.open("<job-state id=job></job-state>", lang="de-AT")
    stage.page.evaluate(
        """JobState.setLabels("de", {working: "Läuft", left: "noch etwa {time}",
            "amount-of": "{done} von {total} {unit}"})"""
    )
    seen = stage.show(data(progress=progress(1234.5, 5000, eta=125)))
    assert seen["status"] == "Läuft"
    assert seen["left"] == "noch etwa 2 Min."
    assert seen["details"].startswith("· 1.234,5 von 5000") or seen[
        "details"
    ].startswith("· 1\u00a0234,5 von 5\u00a0000")


def test_labels_of_the_page(stage: Stage) -> None:
    """JobState.labels applies to all languages without labels of their own."""
    stage.open()
    stage.page.evaluate("JobState.labels = {working: 'Busy'}")
    assert stage.show(data())["status"] == "Busy"


def test_second_copy_of_the_script_changes_nothing(
    page: Page, poll_server: PollServer
) -> None:
    """A page that loads the script twice keeps its labels, those set later as well."""
    stalled = answer("stalled")
    stalled.hold = threading.Event()
    poll_server.answer("job", answer(), stalled)
    page.goto(poll_server.url + "/empty")
    page.add_script_tag(url="/job-state.js")
    page.evaluate("JobState.labels = {stalled: 'Silent'}")
    page.add_script_tag(url="/job-state.js")
    page.evaluate("JobState.setLabels('de', {working: 'Läuft'})")
    page.evaluate(
        """() => {
            document.documentElement.lang = "de";
            document.body.innerHTML = "<job-state id=job></job-state>";
            document.getElementById("job").src = "/job_state/job";
        }"""
    )
    wait_for(lambda: page.evaluate(LOOK, "job")["status"] == "Läuft")
    stalled.hold.set()
    wait_for(lambda: page.evaluate(LOOK, "job")["status"] == "Silent")


#: The language of each text that an element shows.
LANGUAGES = """() => Object.fromEntries(
  [...job.shadowRoot.querySelectorAll("[part]")]
    .filter((part) => !part.childElementCount && part.textContent)
    .filter((part) => part.checkVisibility())
    .map((part) => [part, part.closest("[lang]") || job.closest("[lang]")])
    .map(([part, { lang }]) => [part.part[0], lang]))
"""

#: Those of a page whose elements have no words of its language.
MIXED = {
    "title": "de",
    "percent": "de",
    "cancel": "en",
    "status": "en",
    "details": "en",
    "left": "en",
    "message": "de",
}

RUNNING = data(progress=progress(12, 26, eta=130), message="Auf der Brücke")


def languages(stage: Stage, state: dict[str, Any]) -> dict[str, str]:
    stage.show(state)
    found: dict[str, str] = stage.page.evaluate(LANGUAGES)
    return found


def test_english_words_say_that_they_are_english(stage: Stage) -> None:
    """On a page of a language without labels, the words of the element are marked as
    English. What the application says is in the language of the page.
    """
    stage.open("<job-state id=job cancellable></job-state>", lang="de")
    assert languages(stage, RUNNING) == MIXED
    assert stage.page.locator("[part=bar]").get_attribute("lang") == "en"
    failed = languages(stage, data("error", error={"message": "Der Läufer ist müde."}))
    assert failed == {"title": "de", "status": "en", "notice": "de"}
    late = languages(stage, data("retrying", due_at=at(1800)))
    assert late["details"] == "en"
    over = data("success", result={"url": "https://example.com/"}, title="", attempt=0)
    words = dict.fromkeys(("title", "status", "details", "result"), "en")
    assert languages(stage, over) == {**words, "percent": "de"}


def test_words_of_the_page_are_in_its_language(stage: Stage) -> None:
    """Attributes and labels that the page has are not marked."""
    stage.open("<job-state id=job cancellable label-left='{time}'></job-state>", "de")
    assert languages(stage, RUNNING) == {**MIXED, "left": "de"}
    stage.page.evaluate("JobState.setLabels('de', { working: 'Läuft' })")
    assert languages(stage, RUNNING) == {**MIXED, "left": "de", "status": "de"}
    stage.page.evaluate("JobState.labels = { cancel: 'Halt', 'amount-of': '{done}' }")
    german = {**MIXED, "left": "de", "status": "de", "cancel": "de"}
    state = data(progress=progress(12, 26, eta=130), message="!", started_at=at(0))
    assert languages(stage, state) == {**german, "details": "de"}


def test_numbers_and_units_alone_are_no_english_words(stage: Stage) -> None:
    """An amount with the application's unit is in the language of the page."""
    stage.open(lang="de")
    state = data(progress=progress(1200, unit="Zeilen"), started_at=at(0))
    assert languages(stage, state)["details"] == "de"


@pytest.mark.parametrize("lang", ["en", "en-GB"])
def test_english_page_has_one_language(stage: Stage, lang: str) -> None:
    """Where the page is English, nothing is marked."""
    stage.open("<job-state id=job cancellable></job-state>", lang=lang)
    assert set(languages(stage, RUNNING).values()) == {lang}


def test_announcements_name_their_language(stage: Stage) -> None:
    """What a screen reader is told is in the language of the element's words, not in
    that of the page around.
    """
    stage.open("<div lang=de><job-state id=job></job-state></div>", lang="fr")
    spoken = stage.page.locator("body > [role=status] > span")
    stage.show(data())
    expect(spoken).to_have_text("Run marathon: Running")
    expect(spoken).to_have_attribute("lang", "en")
    stage.page.evaluate("JobState.setLabels('de', { success: 'Fertig' })")
    stage.show(data("success"))
    expect(spoken).to_have_text("Run marathon: Fertig.")
    expect(spoken).to_have_attribute("lang", "de")


def test_wrong_language_is_no_disaster(stage: Stage) -> None:
    """An invalid lang attribute falls back to the browser's language."""
    stage.open(lang="no_such language!")
    assert stage.show(data(progress=progress(1, 4)))["percent"] in ("25%", "25\u00a0%")


# Accessibility


def test_announcements_are_few(stage: Stage) -> None:
    """Only the start, each quarter and the end are announced."""
    stage.open()
    stage.page.evaluate(
        """() => {
            window.said = [];
            const speaker = document.querySelector("[role=status]");
            new MutationObserver(() => said.push(speaker.textContent))
                .observe(speaker, { childList: true });
        }"""
    )

    def said(count: int) -> list[str]:
        def enough() -> list[str] | None:
            found: list[str] = stage.page.evaluate("said")
            return found if len(found) >= count else None

        return wait_for(enough)

    stage.show(data(progress=progress(1, 100)))
    assert said(1) == ["Run marathon: Running"]
    for done in (2, 24, 26, 30):
        stage.show(data(progress=progress(done, 100)))
    assert said(2)[1:] == ["Run marathon: 26%"]
    stage.show(data(progress=progress(100, 100)))
    assert said(3)[2:] == ["Run marathon: 100%"]
    stage.show(data("error", error={"message": "It rained."}))
    assert said(4)[3:] == ["Run marathon: Failed. It rained."]


def test_progress_that_wavers_is_announced_once(stage: Stage) -> None:
    """A quarter is announced once in each attempt, even if the progress falls back."""
    shown = [(1, 1), (1, 50), (1, 49), (1, 51), (1, 49), (1, 52), (2, 10), (2, 26)]
    others = "".join(f"<job-state id=j{n}></job-state>" for n in range(len(shown)))
    stage.open(ELEMENT + others)
    stage.page.evaluate(
        """() => {
            window.said = "";
            const speaker = document.querySelector("[role=status]");
            new MutationObserver(() => { said += ` ${speaker.textContent}`; })
                .observe(speaker, { childList: true });
        }"""
    )

    def hear(text: str) -> None:
        wait_for(lambda: text in stage.page.evaluate("said"))

    for n, (attempt, done) in enumerate(shown):
        stage.show(data(attempt=attempt, progress=progress(done, 100)))
        # Each sentence of the job is said before its next one may replace it.
        stage.show(data(title=f"Other {n}"), f"j{n}")
        hear(f"Other {n}")
    stage.show(data("success", attempt=2, finished_at=at(0)))
    hear("Done")
    told = re.findall("Run marathon: ([^ ]+)", stage.page.evaluate("said"))
    assert told == ["Running", "50%", "26%", "Done."]


def test_jobs_that_were_over_are_not_announced(stage: Stage) -> None:
    """A job that had ended before the page opened is not announced."""
    stage.open("<job-state id=old></job-state><job-state id=job></job-state>")
    stage.show(STATES["success"], "old")
    stage.show(data())
    wait_for(stage.spoken)
    assert stage.spoken() == "Run marathon: Running"


def test_there_is_one_live_region(stage: Stage) -> None:
    """Many elements share one live region."""
    stage.open("<job-state id=one></job-state><job-state id=two></job-state>")
    stage.show(data(), "one")
    stage.show(data(), "two")
    live = "document.querySelectorAll('[role=status], [aria-live]').length"
    assert stage.page.evaluate(live) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    stage: Stage, node_modules: Path, scheme: Literal["light", "dark"]
) -> None:
    """Elements in every state are accessible, including contrast, in light and dark."""
    stage.page.emulate_media(color_scheme=scheme)
    names = [*STATES, "lost", "loading"]
    stage.open(
        "".join(f"<job-state id={n} cancellable log></job-state>" for n in names)
    )
    stage.page.evaluate(
        """(scheme) => Object.assign(document.documentElement.style, {
            colorScheme: scheme,
            background: scheme === "dark" ? "#1b1b1f" : "#fff",
            color: scheme === "dark" ? "#efeef2" : "#1b1b1a",
        })""",
        scheme,
    )
    for name, state in STATES.items():
        stage.show(state, name)
    stage.page.evaluate("document.getElementById('lost').src = '/job_state/none'")
    stage.wait("lost", "lost")
    stage.page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8"))
    found = stage.page.evaluate("axe.run()")
    rules = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "aria-progressbar-name", "button-name"} <= rules
    assert [
        (rule["id"], [node["target"] for node in rule["nodes"]])
        for rule in found["violations"]
    ] == []


# Looks


def test_colours_follow_the_color_scheme(stage: Stage) -> None:
    """On a page that is dark only in the dark scheme, the colours follow its text."""
    stage.page.emulate_media(color_scheme="dark")
    stage.open()
    light = stage.show(data())["color"]
    stage.page.evaluate("document.documentElement.style.colorScheme = 'light dark'")
    assert stage.look()["color"] != light


def test_custom_properties_style_the_element(stage: Stage) -> None:
    """The page can set the colours and the height of the bar."""
    stage.open()
    stage.page.evaluate(
        """() => {
            const { style } = document.getElementById("job");
            style.setProperty("--job-state-accent", "rgb(1, 2, 3)");
            style.setProperty("--job-state-bar-height", "12px");
        }"""
    )
    assert stage.show(data())["color"] == "rgb(1, 2, 3)"
    box = stage.page.locator("[part=bar]").bounding_box()
    assert box is not None
    assert box["height"] == 12


def test_reduced_motion_is_respected(stage: Stage) -> None:
    """Nothing moves for users who prefer reduced motion."""
    stage.open()
    stage.show(STATES["unknown"])
    moving = "document.querySelector('job-state').shadowRoot.getAnimations().length"
    assert stage.page.evaluate(moving) > 0
    stage.page.emulate_media(reduced_motion="reduce")
    assert stage.page.evaluate(moving) == 0
    stage.show(STATES["working"])
    assert stage.page.evaluate(moving) == 0


def test_forced_colours_keep_the_bar(stage: Stage) -> None:
    """With forced colours, the fill still differs from the track."""
    stage.page.emulate_media(forced_colors="active")
    stage.open()
    stage.show(STATES["working"])
    colours = [
        stage.page.locator(f"[part={part}]").evaluate(
            "(e) => getComputedStyle(e).backgroundColor"
        )
        for part in ("bar", "fill")
    ]
    assert colours[0] != colours[1]


def test_element_is_printed_whole(stage: Stage) -> None:
    """On paper, the log has all its lines, and the bar its colours."""
    stage.open("<job-state id=job log></job-state>")
    stage.show(data(log=[f"line {n}" for n in range(20)], progress=progress(1, 4)))
    log = stage.page.locator("[part=log]")
    hidden = "log => log.scrollHeight - log.clientHeight"
    assert log.evaluate(hidden) > 0

    stage.page.emulate_media(media="print")

    assert log.evaluate(hidden) == 0
    for part in ("bar", "fill"):
        node = stage.page.locator(f"[part={part}]")
        expect(node).to_have_css("print-color-adjust", "exact")


def test_busy_page_moves_less(stage: Stage) -> None:
    """With very many elements, the bars jump rather than keep the browser busy."""
    few = "".join(f"<job-state id=j{n}></job-state>" for n in range(30))
    stage.open(few)
    stage.show(STATES["working"], "j0")
    lively = (
        "document.getElementById('j0').shadowRoot.querySelector('.lively') !== null"
    )
    assert stage.page.evaluate(lively) is True
    stage.open(few + "<job-state id=one-more></job-state>")
    stage.show(STATES["working"], "j0")
    assert stage.page.evaluate(lively) is False


@pytest.mark.parametrize(
    "spoil",
    [
        "delete Document.prototype.adoptedStyleSheets;"
        "window.CSSStyleSheet = function () { throw new TypeError(); };",
        "const reallyFetch = fetch; window.fetch = (url, ...rest) =>"
        " String(url).includes('.css') ? Promise.reject(new TypeError())"
        " : reallyFetch(url, ...rest);",
    ],
    ids=["old browser", "no fetch"],
)
def test_style_sheet_is_linked_where_none_can_be_constructed(
    page: Page, poll_server: PollServer, spoil: str, console_errors: list[str]
) -> None:
    """If no sheet can be constructed, the element links job-state.css."""
    poll_server.answer("job", answer())
    page.add_init_script(spoil)
    body = "<job-state id=job src=/job_state/job></job-state>"
    poll_server.pages["/element"] = HEAD.format(lang="en", body=body)
    page.goto(poll_server.url + "/element")
    wait_for(lambda: page.locator("[part=bar]").is_visible())
    wait_for(lambda: page.locator("[part=bar]").evaluate("(e) => e.clientHeight") == 6)
    assert [e for e in console_errors if "Policy" in e] == []


# Weight


def test_script_is_light() -> None:
    """Compressed and without comments, the script takes no more than 16 KiB."""
    source = (STATIC / "job-state.js").read_text("utf-8")
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.S)
    source = re.sub(r"(?m)(^|\s)//.*$", "", source)
    assert len(gzip.compress(source.encode(), 9)) <= 16 * 1024


def test_script_is_of_2018(node_modules: Path) -> None:
    """ES2018 browsers can parse the script."""
    acorn = node_modules / ".bin" / "acorn"
    command = [str(acorn), "--ecma2018", "--silent", str(STATIC / "job-state.js")]
    done = subprocess.run(command, check=False)
    assert done.returncode == 0
