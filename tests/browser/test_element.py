"""The element <job-state> in a real Chromium, under a strict policy: what it shows, and
how it follows its job.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.staging import (
    ELEMENT,
    HEAD,
    LOOK,
    SETTLE,
    STATES,
    Stage,
    answer,
    at,
    data,
    progress,
    written,
)
from tests.pollserver import Answer, PollServer, held, release, uuid_of
from tests.support import wait_for

FOLLOWING = "<job-state id=job src=/job_state/job period=50 {}></job-state>"


# What it shows


def test_element_shows_a_working_job(stage: Stage) -> None:
    """A job shows title, percentage, status, amount, rate, time left and message. The
    bar has a name, a value and a text, and is filled as far as the job is.
    """
    stage.page.emulate_media(reduced_motion="reduce")
    stage.open(f"{ELEMENT}<div dir=rtl><job-state id=other></job-state></div>")
    seen = stage.show(STATES["working"])
    assert seen["title"] == "Run marathon"
    assert seen["percent"] == "46%"
    assert seen["status"] == "Running"
    assert seen["details"] == "· 12 of 26 \u2068miles\u2069 · 24/min"
    assert seen["left"] == "about 2 min left"
    assert seen["message"] == "On the bridge"
    assert seen["notice"] is None
    bar = stage.page.locator("#job").get_by_role("progressbar", name="Run marathon")
    assert bar.get_attribute("aria-valuenow") == "46"
    spoken = bar.get_attribute("aria-valuetext") or ""
    assert spoken.startswith("46%, 12 of 26")
    assert spoken.endswith("about 2 min left")
    stage.show(data(progress=progress(1, 4)), "other")
    edges = """(id) => {
        const { shadowRoot: root } = document.getElementById(id);
        const box = (part) => root.querySelector(part).getBoundingClientRect();
        const [bar, fill] = [box("[part=bar]"), box("[part=fill]")];
        return [fill.left, fill.right].map((x) => (x - bar.left) / bar.width);
    }"""
    assert stage.page.evaluate(edges, "job")[1] == pytest.approx(12 / 26, abs=0.01)
    # From the right in right-to-left pages
    left, right = stage.page.evaluate(edges, "other")
    assert left == pytest.approx(0.75, abs=0.01)
    assert right > 1


def test_bar_is_indeterminate(stage: Stage) -> None:
    """Without a total, the bar moves, has no value, and tells how much is done."""
    stage.open()
    seen = stage.show(STATES["unknown"])
    assert seen["now"] is None
    assert seen["spoken"] == "Running, 1,200 \u2068rows\u2069, 40/s"
    assert seen["percent"] == ""
    fill = stage.page.locator("[part=fill]")
    expect(fill).to_have_css("animation-name", "slide")


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
    """Each status has its own word; success, failure, trouble and work each differ in
    both icon and colour. Success fills the bar, a failure leaves it where it was.
    """
    stage.open()
    assert stage.look()["status"] == "Loading…"
    states = {**STATES, "queued": data("queued", updated_at=None)}
    looks = {name: stage.show(state) for name, state in states.items()}
    assert {name: seen["status"] for name, seen in looks.items()} == WORDS
    names = ["working", "success", "error", "stalled", "cancelled"]
    assert len({looks[name]["icon"] for name in names}) == len(names)
    assert len({looks[name]["color"] for name in names}) == len(names)
    assert looks["error"]["notice"] == "The job failed."
    for status, now in ("success", "100"), ("error", "46"):
        assert stage.show(data(status, progress=progress(12, 26)))["now"] == now


AMOUNTS: tuple[tuple[float, float | None, str], ...] = (
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
)


def test_nothing_is_whole_before_it_is(stage: Stage) -> None:
    """The percentage is truncated rather than rounded, and 29 of 100 are 29 %. An
    amount has the decimals that tell it from the total, and the total from 0.
    """
    stage.open()
    assert stage.show(data(progress=progress(999, 1000)))["percent"] == "99%"
    assert stage.show(data(progress=progress(29, 100)))["percent"] == "29%"
    for done, total, amount in AMOUNTS:
        job = data(progress=progress(done, total, unit="GB"), started_at=at(0))
        assert stage.show(job)["details"] == f"· {amount} \u2068GB\u2069"


def test_phase_is_told(stage: Stage) -> None:
    """The element names the phase, with what its loop counts, and gives no rate."""
    stage.open()
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


RESULTS: tuple[Any, ...] = (
    *(None, {}, {"url": None}, {"url": {"https://": 1}}, "https://example.com"),
    *({"url": "javascript:alert(1)"}, {"url": " javascript:alert(1)"}),
    *({"url": "/reports/1"}, {"url": "data:text/html,x"}),
)


def test_success_leads_to_its_result(stage: Stage) -> None:
    """The element shows a link to the result of a job, which the keyboard reaches.
    Nothing but URLs of the web becomes one.
    """
    stage.open()
    link = stage.page.locator("[part=result]")
    for state in (
        data(result={"url": "https://example.com/early"}),
        *(data("success", result=result) for result in RESULTS),
    ):
        stage.show(state)
        assert link.is_hidden(), state
        assert link.get_attribute("href") is None, state
    stage.show(data("success", result={"url": "https://example.com/a?b=<i>"}))
    expect(link).to_have_text("Open the result")
    expect(link).to_have_attribute("href", "https://example.com/a?b=<i>")
    stage.page.keyboard.press("Tab")
    expect(link).to_be_focused()


TOOK = {
    5400: "1.5 hr",
    0.04: "0 sec",
    4.26: "4.3 sec",
    9.97: "10 sec",
    11.3: "11 sec",
    59.4: "59 sec",
    59.6: "1 min",
    100: "2 min",
    -1: "0 sec",
}
LEFT = {0.2: "1 sec", 8: "8 sec", 41: "45 sec", 59.9: "1 min", 7000: "1.9 hr"}


def test_times_are_told(stage: Stage) -> None:
    """What a job took is exact, as in the timeline; the time left is as rough as the
    estimate. A queued job says when it is due, a retrying one when it is tried again.
    """
    stage.open()
    end = datetime.now(UTC)
    for seconds, words in TOOK.items():
        start = written(end - timedelta(seconds=seconds))
        seen = stage.show(data("success", started_at=start, finished_at=written(end)))
        assert seen["details"] == f"· took {words}"
    for seconds, words in LEFT.items():
        seen = stage.show(data(progress=progress(1, 2, eta=seconds)))
        assert seen["left"] == f"about {words} left"
    soon = data("retrying", due_at=at(60), progress=progress(3, 26))
    details = stage.show(soon)["details"]
    assert re.search(r"attempt 1 · next try at \d+:\d\d:\d\d\s[AP]M", details)
    status = stage.show(data("queued", due_at=at(400 * 86400)))["status"]
    assert re.match(r"Starts at \w+\s\d+,\s\d{4},\s\d+:\d\d\s[AP]M$", status)
    assert stage.show(data("queued", due_at=at(-5)))["status"].startswith("Waiting")


def test_log_is_shown_on_request(stage: Stage) -> None:
    """The attribute log shows the last lines as they arrive."""
    stage.open()
    lines = [f"line {n}" for n in range(25)]
    assert stage.show(data(log=lines))["log"] == []
    stage.set("e.log = true")
    assert stage.show(data(log=lines))["log"] == lines[5:]
    assert stage.show(data(log=["other"]))["log"] == ["other"]


# The content of the element, and metrics


def test_content_stands_until_the_first_answer(stage: Stage) -> None:
    """The element shows its content until the first answer, then the state."""
    first = held(json.dumps(data(progress=progress(1, 2))))
    stage.server.answer("job", first)
    stage.open("<job-state id=job src=/job_state/job>26 miles</job-state>")
    seen = stage.look()
    assert (seen["content"], seen["job"]) == ("26 miles", None)
    release(first)
    seen = stage.wait("working")
    assert (seen["content"], seen["percent"]) == (None, "50%")


NUMBERS = {
    0.0004: "0.0004",
    -1.23456789e-7: "-0.0000001235",
    0.987654: "0.9877",
    0.1 + 0.2: "0.3",
    1234567.891234: "1,234,567.891",
    2**53 - 1: "9,007,199,254,740,991",
    0: "0",
    1e-300: "0",
    -2: "-2",
}


def test_metrics_are_shown_in_the_element(stage: Stage) -> None:
    """Descendants with data-metric stay, and show the metric in the page's language, a
    number with as many digits as one wants to read. One that the job no longer has
    leaves the text that stood there at first.
    """
    stage.open(
        "<job-state id=job><b data-metric=miles></b> <i data-metric=pace></i>"
        "<u data-metric=none>?</u></job-state>"
        "<p lang=en><job-state id=n><b data-metric=n></b></job-state></p>"
        "<u id=u data-metric=pace data-job=job>none</u>",
        lang="de",
    )
    seen = stage.show(data(metrics={"miles": 1234.5, "pace": "<b>fast</b>"}))
    assert seen["content"] == "1.234,5 <b>fast</b>?"
    assert stage.text("#u") == "<b>fast</b>"
    seen = stage.show(data(metrics={"miles": True, "pace": [1], "none": None}))
    assert seen["content"] == "true [1]"
    assert stage.show(data(metrics={"miles": 3}, attempt=2))["content"] == "3 ?"
    assert stage.text("#u") == "none"
    for number, text in NUMBERS.items():
        assert stage.show(data(metrics={"n": number}), "n")["content"] == text


def test_metrics_are_shown_anywhere(stage: Stage) -> None:
    """data-job or for names the element of the same tree to which a metric elsewhere
    belongs.
    """
    stage.open(
        "<job-state id=one></job-state><job-state id=two></job-state>"
        "<b id=a data-metric=n data-job=one></b><output id=b data-metric=n for=two>"
        "</output><i id=c data-metric=n></i><div id=host></div>"
    )
    stage.show(data(metrics={"n": 1}), "one")
    stage.show(data(metrics={"n": 2}), "two")
    stage.set(
        """const root = e.attachShadow({mode: "open"});
        const metric = root.appendChild(document.createElement("b"));
        Object.assign(metric.dataset, {metric: "n", job: "one"});
        const element = document.createElement("job-state");
        element.id = "one";
        root.append(element);
        element.data = {...document.getElementById("two").data, n: 3};""",
        "host",
    )
    assert [stage.text(f"#{name}") for name in "abc"] == ["1", "2", ""]
    assert stage.text("#host b") == "3"


def test_metrics_of_another_job_go(stage: Stage) -> None:
    """Another src clears the data and the metrics of the job before at once, and stops
    polling it.
    """
    second = held(json.dumps(data(title="Two")))
    stage.server.answer("job", answer(metrics={"n": 111}))
    stage.server.answer("two", second, answer(title="Two"))
    stage.open(
        FOLLOWING.format("").replace("><", "><b id=n data-metric=n>?</b><", 1),
    )
    wait_for(lambda: stage.text("#n") == "111")
    stage.set("e.src = '/job_state/two'")
    stage.wait("loading")
    assert stage.text("#n") == "?"
    asked = stage.asked.count(f"{stage.server.url}/job_state/job")
    release(second)
    wait_for(lambda: stage.look()["title"] == "Two")
    wait_for(lambda: stage.look() and len(stage.server.seen("two")) > 2)
    assert stage.text("#n") == "?"
    assert stage.asked.count(f"{stage.server.url}/job_state/job") == asked > 0


# Text from the server


def test_texts_of_the_server_stay_inside(stage: Stage) -> None:
    """Nothing from the server is markup, a name of JavaScript's or of another type than
    expected; control characters are dropped, long texts wrap and are cut.
    """
    stage.open(
        "<job-state id=job log><b data-metric=constructor>?</b>"
        "<b data-metric=__proto__></b></job-state>"
    )
    html = "<img src=x onerror=alert(1)><b>"
    hostile = {"__proto__": {"polluted": 1}}
    seen = stage.show(data(title=html, message=html, log=[html], metrics=hostile))
    assert (seen["title"], seen["message"], seen["log"]) == (html, html, [html])
    assert seen["content"] == '?{"polluted":1}'
    assert stage.page.locator("job-state img, job-state [part] b").count() == 0
    assert stage.page.evaluate("({}).polluted === undefined")
    seen = stage.show(data(title="a\u202eb\u0000c\u2066d", message="\u2069\u001b[0mx"))
    assert (seen["title"], seen["message"]) == ("abcd", "[0mx")
    for part in ("title", "message"):
        assert stage.page.locator(f"[part={part}]").get_attribute("dir") == "auto"
    long = "x" * 100_000
    long_progress = progress(1, unit=long)
    seen = stage.show(
        data(title=long, message=long, log=[long], progress=long_progress)
    )
    assert max(len(seen["title"]), len(seen["message"]), len(seen["details"])) < 1100
    wider = "document.documentElement.scrollWidth > innerWidth"
    assert stage.page.evaluate(wider) is False
    for odd in {"progress": {"done": "x", "fraction": "y"}}, {"log": 7}:
        assert stage.show(data(**odd))["status"] == "Running"


def test_focus_stays_in_the_element(stage: Stage) -> None:
    """When the part that has the focus goes, the element keeps it."""
    stage.open("<job-state id=job log></job-state><button>After</button>")
    for part in "log", "result":
        stage.show(data("success", log=["Ran"], result={"url": "https://a.test/"}))
        stage.page.locator(f"[part={part}]").focus()
        assert stage.page.evaluate("document.activeElement.id") == "job"
        stage.show(data(attempt=2))
        expect(stage.page.locator("[part=job]")).to_be_focused()
        stage.page.keyboard.press("Tab")
        expect(stage.page.get_by_role("button", name="After")).to_be_focused()


# Following


def test_element_follows_its_job_to_the_end(stage: Stage) -> None:
    """Events for the updates and the end bubble out of every shadow root. A finished
    element asks nothing when it is put back, or has other attributes: only another src
    makes it ask and fire again.
    """
    ended = answer("success", finished_at=at(0))
    stage.server.answer("job", answer(metrics={"n": 1}), ended)
    stage.server.answer("failed", answer("cancelled", error={"message": "By alice"}))
    stage.server.answer("other", ended)
    stage.open(f"{ELEMENT}<job-state id=other></job-state>")
    stage.set(
        """window.events = [];
        for (const name of ["update", "success", "error", "lost"]) {
            document.addEventListener(`job-state:${name}`, (event) => events.push(
                [name, event.composed, event.detail.job.status, event.target.id]));
        }
        Object.assign(e, { period: 50, src: "/job_state/job" });"""
    )
    stage.wait("success")
    assert stage.page.evaluate("events.splice(0)") == [
        ["update", True, "working", "job"],
        ["update", True, "success", "job"],
        ["success", True, "success", "job"],
    ]
    for name in ("csrf-token", "csrf-header", "period", "notify", "cross-origin"):
        stage.set(f"e.setAttribute('{name}', '100')")
    stage.set("e.remove(); setTimeout(() => document.body.append(e), 20)")
    wait_for(lambda: stage.page.locator("#job").count())
    # It asks later than the first would.
    stage.set("e.src = '/job_state/other'", "other")
    stage.wait("success", "other")
    stage.set("e.src = '/job_state/failed'")
    stage.wait("cancelled")
    events = stage.page.evaluate("events.map(([name, , , id]) => [name, id])")
    assert events == [
        *(["update", "other"], ["success", "other"]),
        *(["update", "job"], ["error", "job"]),
    ]
    assert len(stage.server.seen("job")) == 2


def test_lost_job_says_why(stage: Stage) -> None:
    """A job that can no longer be seen fires an event and shows the reason, also one of
    several. Another origin is not asked without the attribute cross-origin.
    """
    reasons = {
        401: "You are not signed in.",
        404: "The job does not exist, or has expired.",
        418: "The server answered 418.",
    }
    uuids = {status: uuid_of(status) for status in reasons}
    for uuid in uuids.values():
        stage.server.answer(f"{uuid}/", answer())
        stage.server.answer(uuid, answer())
    stage.open(
        "<job-state id=far src=http://elsewhere.test/job></job-state>"
        + "".join(
            f"<job-state id=j{status} src=/job_state/{uuid}/ period=50></job-state>"
            for status, uuid in uuids.items()
        )
    )
    stage.page.evaluate(
        """() => {
            window.lost = [];
            document.addEventListener("job-state:lost", ({ detail, target }) =>
                lost.push([target.id, detail.status]));
        }"""
    )
    for status, uuid in uuids.items():
        stage.wait("working", f"j{status}")
        # A poll may come between the two.
        stage.server.answer(f"{uuid}/", Answer(status))
        stage.server.nulls.add(uuid)
    for status, words in reasons.items():
        seen = stage.wait("lost", f"j{status}")
        assert (seen["status"], seen["notice"]) == ("Unavailable", words)
        assert [f"j{status}", status] in stage.page.evaluate("lost")
    assert stage.wait("lost", "far")["notice"] == "The address is wrong."
    [problem] = stage.problems
    assert "needs crossOrigin: true" in problem
    stage.problems.clear()


def test_outage_is_shown_and_over(stage: Stage) -> None:
    """While the server is away, the last data stays, and the status says so."""
    stage.server.answer("job", answer(progress=progress(1, 2)), Answer(503))
    stage.open(FOLLOWING.format(""))
    seen = stage.wait("reconnecting")
    assert seen["status"] == "Connection lost, trying again…"
    assert seen["percent"] == "50%"
    stage.server.answer("job", answer(progress=progress(2, 2)))
    assert stage.wait("working")["percent"] == "100%"


def test_elements_share_their_requests(stage: Stage) -> None:
    """The elements of a page share their requests, and one live region."""
    uuids = [uuid_of(n) for n in range(20)]
    for uuid in uuids:
        stage.server.answer(uuid, answer(), answer("success", finished_at=at(0)))
    stage.open(
        "".join(f"<job-state id=j{u} src=/job_state/{u}/ ></job-state>" for u in uuids)
    )
    for uuid in uuids:
        stage.wait("success", f"j{uuid}")
    assert len(stage.server.requests()) <= 4
    live = "document.querySelectorAll('[role=status], [aria-live]').length"
    assert stage.page.evaluate(live) == 1


def test_removed_element_stops_asking_and_goes_on_later(stage: Stage) -> None:
    """A removed element stops polling, also one with data by hand, and goes on when it
    is put back. Its data of meanwhile is drawn. One that is moved asks no more often.
    """
    first = held(json.dumps(data()))
    stage.server.answer("job", first, answer())
    stage.open(f"<div id=a>{FOLLOWING.format('')}</div>")
    wait_for(lambda: stage.server.seen("job"))
    failed: list[str] = []
    stage.page.once("requestfailed", lambda request: failed.append(request.url))
    stage.set("document.body.append(e)")
    release(first)
    stage.wait("working")
    assert failed == []
    late = json.dumps(data("success", progress=progress(1, 4), finished_at=at(0)))
    stage.page.evaluate("window.kept = document.getElementById('job'); kept.remove()")
    stage.page.evaluate("new Promise((resolve) => setTimeout(resolve, 60))")
    count = len(stage.asked)
    stage.page.evaluate(f"kept.data = {late}; null")
    stage.page.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")
    assert len(stage.asked) == count
    stage.server.answer("job", held(), answer())
    stage.page.evaluate("document.body.append(kept)")
    wait_for(lambda: stage.look()["status"] == "Done")
    wait_for(lambda: stage.page.evaluate("1") and len(stage.asked) > count)


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


def test_trouble_of_one_element_is_its_own(stage: Stage) -> None:
    """If one element cannot be drawn, the others are, and the console reports it. It is
    drawn once the trouble is over.
    """
    due = data("queued", due_at=at(7200), title="")
    for spoil, script in SPOILT.items():
        stage.open(
            "<form><input name=closest></form>"
            "<job-state id=one lang=xx></job-state><odd-state id=odd></odd-state>"
            "<job-state id=two></job-state><b id=n data-metric=n data-job=two></b>"
        )
        fine = data(metrics={"n": 7}, progress=progress(1, 4))
        stage.page.evaluate(
            f"""([due, fine]) => {{
                {script}
                document.getElementById("one").data = due;
                document.getElementById("odd").data = due;
                document.getElementById("two").data = fine;
            }}""",
            [due, fine],
        )
        wait_for(lambda: stage.look("two")["percent"] == "25%")
        wait_for(lambda: stage.text("#n") == "7")
        if spoil != "root":  # which the script need not call
            assert stage.problems, spoil
            assert all("JobState" in problem for problem in stage.problems)
        stage.problems.clear()
    stage.open()
    stage.page.evaluate("window.labels = JobState.labels; JobState.labels = 'odd'")
    stage.show(data())
    assert len(stage.problems) == 1
    stage.problems.clear()
    stage.page.evaluate("JobState.labels = labels")
    assert stage.show(data(progress=progress(1, 4)))["percent"] == "25%"


#: What the script uses of the page.
NAMES = (
    *("body", "documentElement", "createElement", "createElementNS", "host"),
    *("querySelectorAll", "getRootNode", "closest", "adoptedStyleSheets"),
)


def test_element_minds_no_element_of_a_name(stage: Stage) -> None:
    """Elements named after what the script uses do not shadow it, nor is a form's field
    named lang the language.
    """
    stage.server.answer("job", answer(metrics={"n": 7}, progress=progress(1234, 4936)))
    body = FOLLOWING.format("").replace("><", "><b data-metric=n></b><", 1)
    for markup in "<img name={0}>", "<iframe name={0}></iframe>":
        form = f"<form lang=de><input name=lang>{body}</form>"
        page = HEAD.format(lang="en", body=form)
        names = "".join(markup.format(name) for name in NAMES)
        stage.server.pages["/element"] = page.replace("<script", f"{names}<script")
        stage.page.goto(stage.server.url + "/element")
        wait_for(lambda: "1.234 of 4.936" in str(stage.look()["details"]))
        assert stage.look()["content"] == "7"
        live = "() => Reflect.get(Document.prototype, 'body', document).lastChild.role"
        assert stage.page.evaluate(live) == "status"


def test_attributes_and_properties_are_in_step(stage: Stage) -> None:
    """Each property reads and writes its attribute. A senseless period is a second."""
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
    for period in "-5", "x", "Infinity":
        stage.set(f"e.setAttribute('period', '{period}')")
        assert stage.page.evaluate("document.getElementById('job').period") == 1000


def test_script_may_come_late_or_twice(page: Page, poll_server: PollServer) -> None:
    """Properties set on the element before the script loads take effect. A page that
    loads it twice keeps its labels, those set later as well.
    """
    stalled = held(json.dumps(data("stalled")))
    poll_server.answer("job", answer(progress=progress(1, 4)), stalled)
    page.goto(poll_server.url + "/empty")
    page.evaluate(
        """() => {
            document.documentElement.lang = "de";
            document.body.innerHTML = "<job-state id=job></job-state>";
            Object.assign(document.getElementById("job"),
                { src: "/job_state/job", period: 50 });
        }"""
    )
    page.add_script_tag(url="/job-state.js")
    page.evaluate("JobState.labels = {stalled: 'Silent'}")
    page.evaluate("window.first = JobState.askToNotify")
    page.add_script_tag(url="/job-state.js")
    page.evaluate("JobState.setLabels('de', {working: 'Läuft'})")
    wait_for(lambda: page.evaluate(LOOK, "job")["status"] == "Läuft")
    assert page.evaluate(LOOK, "job")["percent"].startswith("25")
    release(stalled)
    wait_for(lambda: page.evaluate(LOOK, "job")["status"] == "Silent")
    assert page.evaluate("first === JobState.askToNotify")


# Cancelling


def open_cancellable(stage: Stage, *cancels: Answer, attributes: str = "") -> None:
    stage.server.answer("job/cancel", *cancels, method="POST")
    stage.server.answer("job", answer())
    stage.open(FOLLOWING.format(f"cancellable {attributes}"))
    stage.wait("working")


def test_cancel_by_keyboard(stage: Stage) -> None:
    """The button is for who may cancel, can be reached by Tab, shows its focus, and
    sends the CSRF token, once.
    """
    stage.open()
    assert stage.show(data())["cancel"] is None
    stage.set("e.cancellable = true")
    assert stage.show(data())["cancel"] == "Cancel"
    assert stage.show(data(cancellable=False))["cancel"] is None
    assert stage.show(data("cancelling"))["cancel"] is None

    open_cancellable(stage, Answer(202, "{}"), attributes="csrf-token=t0ken")
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


def test_header_that_cannot_be_sent_is_told(stage: Stage) -> None:
    """The element and the console report it at once; another header mends it."""
    stage.server.answer("job", answer())
    for wrong in "csrf-header='X Token'", "csrf-header=Cookie", "csrf-token=…":
        stage.open(FOLLOWING.format(wrong))
        assert stage.wait("lost")["notice"] == "The CSRF header or token is wrong."
        [problem] = stage.problems
        assert "csrfHeader or csrfToken cannot be sent" in problem
        stage.problems.clear()
    assert stage.server.seen("job") == []
    stage.set("e.setAttribute('csrf-header', 'X-T'); e.removeAttribute('csrf-token')")
    stage.wait("working")


def test_cancel_that_is_refused_says_why(stage: Stage) -> None:
    """The button comes back, and the element says why, until the job is cancelled all
    the same or has ended.
    """
    open_cancellable(stage, Answer(403))
    for status in "cancelling", "success":
        stage.page.locator("[part=cancel]").click()
        wait_for(
            lambda: stage.look()["notice"] == "Not cancelled: You may not do this."
        )
        assert stage.look()["cancel"] == "Cancel"
        wait_for(lambda: "Not cancelled" in stage.spoken())
        stage.server.answer("job", answer(status, finished_at=at(0)))
        assert not stage.wait(status)["notice"]
        stage.server.answer("job", answer())
        if status == "cancelling":
            stage.wait("working")


def test_refusal_of_a_cancel_stays_with_its_job(stage: Stage) -> None:
    """A cancel that is refused after src has changed leaves the next job and its own
    cancel alone.
    """
    refusals = {name: held(status=403) for name in ("job", "other")}
    for name, refusal in refusals.items():
        stage.server.answer(f"{name}/cancel", refusal, method="POST")
        stage.server.answer(name, answer(title=name))
    stage.open("<job-state id=job src=/job_state/job cancellable></job-state>")
    stage.wait("working")
    stage.set("window.first = e.cancel().catch((e) => e.status)")
    wait_for(lambda: stage.server.seen("job/cancel", "POST"))
    stage.set("e.src = '/job_state/other'")
    wait_for(lambda: stage.look()["title"] == "other")
    stage.page.locator("[part=cancel]").click()
    wait_for(lambda: stage.server.seen("other/cancel", "POST"))

    release(refusals["job"])

    assert stage.page.evaluate("first") == 403
    stage.page.evaluate(SETTLE)
    seen = stage.look()
    assert (seen["cancel"], seen["notice"]) == ("Cancelling…", None)
    release(refusals["other"])
    wait_for(lambda: stage.look()["notice"] == "Not cancelled: You may not do this.")


# Words


def test_labels_replace_the_words(stage: Stage) -> None:
    """Attributes change the words of one element, even later; labels follow the
    element's language, as numbers and times do; JobState.labels is for all others. An
    invalid language does no harm.
    """
    stage.open("<job-state id=job label-working='On the run'></job-state>", "de-AT")
    assert stage.show(data())["status"] == "On the run"
    stage.set("e.setAttribute('label-working', 'Off')")
    assert stage.look()["status"] == "Off"
    stage.set("e.removeAttribute('label-working')")
    stage.page.evaluate("JobState.labels = {working: 'Busy', left: '?'}")
    assert stage.show(data())["status"] == "Busy"
    stage.page.evaluate(
        """JobState.setLabels("de", {working: "Läuft", left: "noch etwa {time}",
            "amount-of": "{done} von {total} {unit}"})"""
    )
    seen = stage.show(data(progress=progress(1234.5, 5000, eta=125)))
    assert seen["status"] == "Läuft"
    assert seen["left"] == "noch etwa 2 Min."
    details = seen["details"].replace("\u00a0", ".")
    assert details.startswith("· 1.234,5 von 5")
    stage.set("e.lang = 'no_such language!'")
    assert stage.look()["status"] == "Busy"
    seen = stage.show(data(progress=progress(1, 4)))
    assert seen["percent"] in ("25%", "25\u00a0%")


#: The language of each text that an element shows.
LANGUAGES = """() => Object.fromEntries(
  [...job.shadowRoot.querySelectorAll("[part]")]
    .filter((part) => !part.childElementCount && part.textContent)
    .filter((part) => part.checkVisibility())
    .map((part) => [part, part.closest("[lang]") || job.closest("[lang]")])
    .map(([part, { lang }]) => [part.part[0], lang]))
"""


def languages(stage: Stage, state: dict[str, Any]) -> dict[str, str]:
    stage.show(state)
    found: dict[str, str] = stage.page.evaluate(LANGUAGES)
    return found


def test_english_words_say_that_they_are_english(stage: Stage) -> None:
    """On a page of a language without labels, the words of the element are marked as
    English. What the application says is in the language of the page, as numbers are.
    """
    running = data(progress=progress(12, 26, eta=130), message="Auf der Brücke")
    for lang in "en", "en-GB":
        stage.open("<job-state id=job cancellable></job-state>", lang=lang)
        assert set(languages(stage, running).values()) == {lang}
    stage.open("<job-state id=job cancellable></job-state>", lang="de")
    english = dict.fromkeys(("cancel", "status", "details", "left"), "en")
    mixed = {"title": "de", "percent": "de", "message": "de", **english}
    assert languages(stage, running) == mixed
    assert stage.page.locator("[part=bar]").get_attribute("lang") == "en"
    failed = languages(stage, data("error", error={"message": "Der Läufer ist müde."}))
    assert failed == {"title": "de", "status": "en", "notice": "de"}
    late = languages(stage, data("retrying", due_at=at(1800)))
    assert late["details"] == "en"
    over = data("success", result={"url": "https://example.com/"}, title="", attempt=0)
    words = dict.fromkeys(("title", "status", "details", "result"), "en")
    assert languages(stage, over) == {**words, "percent": "de"}
    count = data(progress=progress(1200, unit="Zeilen"), started_at=at(0))
    assert languages(stage, count)["details"] == "de"
    # Attributes and labels that the page has
    stage.set("e.setAttribute('label-left', '{time}')")
    assert languages(stage, running) == {**mixed, "left": "de"}
    stage.page.evaluate("JobState.setLabels('de', { working: 'Läuft' })")
    stage.page.evaluate("JobState.labels = { cancel: 'Halt', 'amount-of': '{done}' }")
    german = dict.fromkeys(mixed, "de")
    count = data(progress=progress(12, 26, eta=130), message="!", started_at=at(0))
    assert languages(stage, count) == german


# Announcements


def test_announcements_are_few(stage: Stage) -> None:
    """Only the start, each quarter of an attempt and the end are announced, in the
    language of the words, and not of jobs that had ended before.
    """
    stage.open(f"<job-state id=old></job-state><div lang=de>{ELEMENT}</div>", "fr")
    stage.listen()
    spoken = stage.page.locator("body > [role=status] > span")
    stage.show(STATES["success"], "old")
    stage.show(data(progress=progress(1, 100)))
    told = ["Running"]

    def expect_said(words: str) -> None:
        told.append(words)
        assert stage.said(len(told)) == [f"Run marathon: {word}" for word in told]

    assert stage.said(1) == ["Run marathon: Running"]
    expect(spoken).to_have_attribute("lang", "en")
    for done in (2, 24, 26, 30, 24, 27):
        stage.show(data(progress=progress(done, 100)))
    expect_said("26\u00a0%")
    for done in (49, 51):
        stage.show(data(progress=progress(done, 100)))
    expect_said("51\u00a0%")
    # Progress that wavers is announced once, but again in another attempt.
    for attempt, done in (1, 49), (1, 52), (2, 10), (2, 26):
        stage.show(data(attempt=attempt, progress=progress(done, 100)))
    expect_said("26\u00a0%")
    stage.page.evaluate("JobState.setLabels('de', { error: 'Fehler' })")
    stage.show(data("error", error={"message": "Es regnet."}))
    expect_said("Fehler. Es regnet.")
    expect(spoken).to_have_attribute("lang", "de")
