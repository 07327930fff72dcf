"""The element <job-state> in a real Chromium, under a strict policy: what it shows, and
how it follows its job.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.staging import (
    ELEMENT,
    STATES,
    Stage,
    answer,
    at,
    data,
    progress,
    written,
)
from tests.pollserver import Answer, PollServer, held, release
from tests.support import wait_for

FOLLOWING = "<job-state id=job src=/job_state/job period=50 {}></job-state>"


# What it shows


def test_element_shows_a_working_job(stage):
    """A job shows title, percentage, status, amount, rate, time left and message. The
    bar has a name, a value and a text, and is filled as far as the job is, from the
    right in right-to-left pages. Without a total it moves, and has no value.
    """
    stage.open(f"{ELEMENT}<div dir=rtl><job-state id=other></job-state></div>")
    seen = stage.show(STATES["unknown"])
    assert (seen["now"], seen["percent"]) == (None, "")
    assert seen["spoken"] == "Running, 1,200 \u2068rows\u2069, 40/s"
    fill = stage.page.locator("#job [part=fill]")
    expect(fill).to_have_css("animation-name", "slide")
    stage.page.emulate_media(reduced_motion="reduce")
    seen = stage.show(STATES["working"])
    assert seen["title"] == "Run marathon"
    assert (seen["percent"], seen["now"]) == ("46%", "46")
    assert seen["status"] == "Running"
    assert seen["details"] == "· 12 of 26 \u2068miles\u2069 · 24/min"
    assert seen["left"] == "about 2 min left"
    assert seen["message"] == "On the bridge"
    assert seen["notice"] is None
    quiet = stage.show(data(progress=progress(12, 26), quiet_since=at(0)))
    assert (quiet["details"], quiet["left"]) == ("· 12 of 26 \u2068miles\u2069", None)
    stage.show(STATES["working"])
    bar = stage.page.locator("#job").get_by_role("progressbar", name="Run marathon")
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
    assert stage.page.evaluate(edges, "other")[0] == pytest.approx(0.75, abs=0.01)


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


@pytest.mark.promise("element-shows-each-status")
def test_each_status_has_its_word(stage):
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


def test_end_leaves_out_what_is_over(stage):
    """A job that failed, was cancelled or is lost shows no message, since the work does
    not go on, and no bar without progress. A reason that says no more than "Cancelled",
    in any language, is neither shown nor announced.
    """
    stage.server.answer("job", answer(message="Half way"), Answer(404))
    stage.open(f"{FOLLOWING.format('')}<job-state id=other compact></job-state>")
    lost = stage.wait("lost")
    assert (lost["message"], lost["bar"]) == (None, None)
    reason = {"message": "The job was cancelled."}
    for status, error, notice in (
        ("success", None, None),
        ("error", {"message": "It rains."}, "It rains."),
        ("error", reason, "The job was cancelled."),
        ("cancelled", {"message": "By alice"}, "By alice"),
        ("cancelled", reason, None),
    ):
        is_success = status == "success"
        for name in "job", "other":
            job = {"message": "Half way", "error": error}
            seen = stage.show(data(status, **job), name)
            assert seen["notice"] == notice
            assert seen["message"] == ("Half way" if is_success else None)
            assert (seen["bar"] is not None) is is_success
            bar = stage.show(data(status, **job, progress=progress(0, 4)), name)["bar"]
            assert bar is not None
    end = "getComputedStyle(job.shadowRoot.querySelector('.bar'), '::after').content"
    assert stage.page.evaluate(end) == "none"
    # A language without labels
    stage.set("e.lang = 'fr'")
    assert stage.show(data("cancelled", error=reason))["notice"] is None
    stage.set("e.removeAttribute('lang')")
    german = {"message": "Der Auftrag wurde abgebrochen."}
    stage.set(
        "e.setAttribute('label-reason-cancelled', 'Der Auftrag wurde abgebrochen.')"
    )
    stage.listen()
    stage.show(data())
    assert stage.show(data("cancelled", error=german))["notice"] is None
    assert stage.said(1) == ["Run marathon: Cancelled."]


AMOUNTS: tuple[tuple[float, float | None, str], ...] = (
    (0.96, 1, "0.96 of 1"),
    (1999999.96, 2000000, "1,999,999.96 of 2,000,000"),
    (12.34, 100, "12.3 of 100"),
    (0.1 + 0.7, 0.8, "0.8 of 0.8"),
    (0.0042, None, "0.0042"),
)


def test_nothing_is_whole_before_it_is(stage):
    """The percentage is truncated rather than rounded, and 29 of 100 are 29 %. An
    amount has the decimals that tell it from the total, and the total from 0.
    """
    stage.open()
    assert stage.show(data(progress=progress(999, 1000)))["percent"] == "99%"
    assert stage.show(data(progress=progress(29, 100)))["percent"] == "29%"
    for done, total, amount in AMOUNTS:
        job = data(progress=progress(done, total, unit="GB"), started_at=at(0))
        assert stage.show(job)["details"] == f"· {amount} \u2068GB\u2069"


def test_phase_is_told(stage):
    """The element names the phase, with what its loop counts, and gives no rate."""
    stage.open()
    rows = {**progress(12, 26, unit="rows"), "fraction": 0.14}
    phase = {"name": "<b>Parsing</b>", "path": ["<b>Parsing</b>"], "fraction": 0.46}
    seen = stage.show(data(progress=rows, phase=phase))
    assert seen["percent"] == "14%"
    assert seen["details"] == "· \u2068<b>Parsing</b>\u2069: 12 of 26 \u2068rows\u2069"


RESULTS: tuple[Any, ...] = (
    *(None, {"url": None}, {"url": {"https://": 1}}, "https://example.com"),
    *({"url": "javascript:alert(1)"}, {"url": " javascript:alert(1)"}),
    *({"url": "/reports/1"}, {"url": "data:text/html,x"}),
)


def test_success_leads_to_its_result(stage):
    """A link that the keyboard reaches leads there, if it is a URL of the web."""
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


TOOK = {5400: "1.5 hr", 4.26: "4.3 sec", 9.97: "10 sec", 59.6: "1 min", -1: "0 sec"}
LEFT = {0.2: "1 sec", 41: "45 sec", 59.9: "1 min", 7000: "1.9 hr"}


def test_times_are_told(stage):
    """What a job took is exact, the time left rough. A retry says when it is due."""
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


def test_log_is_shown_on_request(stage):
    """The attribute log shows the last lines as they arrive. Who reads older ones is
    not taken to the end.
    """
    stage.open()
    lines = [f"line {n}" for n in range(25)]
    assert stage.show(data(log=lines))["log"] == []
    stage.set("e.log = true")
    assert stage.show(data(log=lines))["log"] == lines[5:]
    log = stage.page.locator("[part=log]")
    to_end = "(e) => e.scrollHeight - e.clientHeight - e.scrollTop"
    assert log.evaluate(to_end) < 2
    log.evaluate("(e) => { e.scrollTop = 20; }")
    stage.show(data(log=[*lines, "late"]))
    assert log.evaluate("(e) => e.scrollTop") == 20
    log.evaluate("(e) => { e.scrollTop = e.scrollHeight; }")
    stage.show(data(log=[*lines, "late", "later"]))
    assert log.evaluate(to_end) < 2
    assert stage.show(data(log=["other"]))["log"] == ["other"]


# The content of the element, and metrics


def test_properties_set_before_the_script_is_loaded(stage):
    """They count once the element is defined."""
    state = json.dumps(data(progress=progress(1, 2), log=["Ran"]))
    stage.server.pages["/early.js"] = (
        f"Object.assign(job, {{ data: {state}, log: true, cancellable: true }});"
    )
    stage.server.pages["/element"] = (
        f"<!doctype html>{ELEMENT}<script src=/early.js></script>"
        "<script src=/job-state.js></script>"
    )
    stage.page.goto(stage.server.url + "/element")
    seen = stage.wait("working")
    assert (seen["percent"], seen["log"], seen["cancel"]) == ("50%", ["Ran"], "Cancel")


def test_content_stands_until_the_first_answer(stage):
    """The element shows its content until the first answer arrives, then the state. An
    element without ``src`` keeps its content.
    """
    first = held(json.dumps(data(progress=progress(1, 2))))
    stage.server.answer("job", first)
    following = "<job-state id=job src=/job_state/job>26 miles</job-state>"
    stage.open(f"{following}<job-state id=other>No miles</job-state>")
    seen = stage.look()
    assert (seen["content"], seen["job"]) == ("26 miles", None)
    release(first)
    seen = stage.wait("working")
    assert (seen["content"], seen["percent"]) == (None, "50%")
    seen = stage.look("other")
    assert (seen["content"], seen["job"]) == ("No miles", None)


NUMBERS = {
    -1.23456789e-7: "-0.0000001235",
    0.1 + 0.2: "0.3",
    1234567.891234: "1,234,567.891",
    2**53 - 1: "9,007,199,254,740,991",
    0: "0",
}


def test_metrics_are_shown(stage):
    """Descendants with data-metric show them in the page's language, and so does what
    names the element elsewhere. Once one is gone, the text that stood there is back.
    """
    stage.open(
        "<job-state id=job><b data-metric=miles></b> <i data-metric=pace></i>"
        "<u data-metric=none>?</u></job-state>"
        "<p lang=en><job-state id=n><b data-metric=n></b></job-state></p>"
        "<u id=u data-metric=pace data-job=job>none</u>"
        "<output id=o data-metric=n for=n></output><i id=i data-metric=n></i>",
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
    assert [stage.text("#o"), stage.text("#i")] == ["0", ""]


def test_metrics_of_another_job_go(stage):
    """Another src clears them and the data at once, and stops polling the old job."""
    second = held(json.dumps(data(title="Two")))
    stage.server.answer("job", answer(metrics={"n": 111}))
    stage.server.answer("two", second, answer(title="Two"))
    stage.open(FOLLOWING.format("").replace("><", "><b id=n data-metric=n>?</b><", 1))
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


def test_texts_of_the_server_stay_inside(stage):
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
    seen = stage.show(
        data(title=long, message=long, log=[long], progress=progress(1, unit=long))
    )
    assert max(len(seen["title"]), len(seen["message"]), len(seen["details"])) < 1100
    wider = "document.documentElement.scrollWidth > innerWidth"
    assert stage.page.evaluate(wider) is False
    for odd in {"progress": {"done": "x", "fraction": "y"}}, {"log": 7}:
        assert stage.show(data(**odd))["status"] == "Running"


# Following


def test_element_follows_its_job_to_the_end(stage):
    """Events for updates and the end bubble out of every shadow root. Put back, a
    finished element asks nothing: only another src makes it ask and fire again.
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
    assert stage.page.evaluate("[job.state, job.data.job.status]") == ["success"] * 2
    stage.set("e.setAttribute('period', '100'); e.remove(); document.body.append(e)")
    # It asks later than the first would.
    stage.set("e.src = '/job_state/other'", "other")
    stage.wait("success", "other")
    stage.set("e.src = '/job_state/failed'")
    stage.wait("cancelled")
    assert stage.page.evaluate("events.map(([name, , , id]) => [name, id])") == [
        *(["update", "other"], ["success", "other"]),
        *(["update", "job"], ["error", "job"]),
    ]
    assert len(stage.server.seen("job")) == 2


def test_lost_job_says_why(stage):
    """It fires an event, too. Another origin is not asked without cross-origin."""
    reasons = {
        401: "You are not signed in.",
        404: "The job does not exist, or has expired.",
        418: "The server answered 418.",
    }
    for status in reasons:
        stage.server.answer(f"job{status}", answer(), Answer(status))
    stage.open(
        "<job-state id=far src=http://elsewhere.test/job></job-state>"
        + "".join(f"<job-state id=j{status}></job-state>" for status in reasons)
    )
    stage.page.evaluate(
        """() => {
            window.lost = [];
            document.addEventListener("job-state:lost", ({ detail, target }) =>
                lost.push([target.id, detail.status]));
        }"""
    )
    for status, words in reasons.items():
        name = f"j{status}"
        stage.set(f"e.period = 50; e.src = '/job_state/job{status}?'", name)
        seen = stage.wait("lost", name)
        assert (seen["status"], seen["notice"]) == ("Unavailable", words)
        assert [name, status] in stage.page.evaluate("lost")
    assert stage.wait("lost", "far")["notice"] == "The address is wrong."
    [problem] = stage.problems
    assert "needs crossOrigin: true" in problem
    stage.problems.clear()


@pytest.mark.promise("script-survives-outages")
def test_outage_is_shown_and_over(stage):
    """While the server is away, the last data stays, and the status says so."""
    stage.server.answer("job", answer(progress=progress(1, 2)), Answer(503))
    stage.open(FOLLOWING.format(""))
    seen = stage.wait("reconnecting")
    assert seen["status"] == "Connection lost, trying again…"
    assert seen["percent"] == "50%"
    stage.server.answer("job", answer(progress=progress(2, 2)))
    assert stage.wait("working")["percent"] == "100%"


@pytest.fixture
def timed(page: Page, poll_server: PollServer) -> Iterator[Stage]:
    """The same as `stage`, with a clock that the test can advance."""
    page.clock.install()
    with Stage(page, poll_server) as stage:
        yield stage


def test_removed_element_stops_asking_and_goes_on_later(timed):
    """It goes on when it is put back. One that is moved does not ask anew."""
    first = held(json.dumps(data()))
    timed.server.answer("job", first, answer())
    following = "<job-state id=job src=/job_state/job period=60000></job-state>"
    timed.open(f"<div id=a>{following}</div>")
    wait_for(lambda: timed.server.seen("job"))
    failed: list[str] = []
    timed.page.once("requestfailed", lambda request: failed.append(request.url))
    timed.set("document.body.append(e)")
    release(first)
    timed.wait("working")
    assert failed == []
    timed.page.evaluate("window.kept = document.getElementById('job'); kept.remove()")
    count = len(timed.asked)
    timed.page.clock.run_for(120_000)
    assert len(timed.asked) == count
    timed.page.evaluate("document.body.append(kept)")
    timed.page.clock.run_for(120_000)
    wait_for(lambda: timed.page.evaluate("1") and len(timed.asked) > count)


def test_attributes_and_properties_are_in_step(stage):
    """Each property reads and writes its attribute. A senseless period is a second."""
    stage.open("<job-state id=job period=250 log></job-state>")
    read = "[job.src, job.period, job.cancellable, job.log, job.data, job.state]"
    assert stage.page.evaluate(read) == ["", 250, False, True, None, "loading"]
    stage.set("Object.assign(e, { cancellable: true, log: false, period: 70 })")
    names = stage.page.evaluate("job.getAttributeNames().sort()")
    assert names == ["cancellable", "id", "period", "state"]
    for period in "-5", "x":
        stage.set(f"e.setAttribute('period', '{period}')")
        assert stage.page.evaluate("job.period") == 1000


# Cancelling


def open_cancellable(stage: Stage, cancel: Answer, attributes: str = "") -> None:
    stage.server.answer("job/cancel", cancel, method="POST")
    stage.server.answer("job", answer())
    stage.open(FOLLOWING.format(f"cancellable {attributes}"))
    stage.wait("working")


@pytest.mark.promise("cancel-button-cancels")
def test_cancel_by_keyboard(stage):
    """Who may cancel gets a button that shows its focus and sends the token once."""
    stage.open()
    assert stage.show(data())["cancel"] is None
    stage.set("e.cancellable = true")
    assert stage.show(data())["cancel"] == "Cancel"
    assert stage.show(data(cancellable=False))["cancel"] is None
    assert stage.show(data("cancelling"))["cancel"] is None
    open_cancellable(stage, Answer(202, "{}"), "csrf-token=t0ken csrf-header=X-T")
    stage.page.keyboard.press("Tab")
    button = stage.page.get_by_role("button", name="Cancel Run marathon")
    assert button.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
    stage.page.keyboard.press("Enter")
    wait_for(lambda: stage.look()["cancel"] == "Cancelling…")
    button = stage.page.locator("[part=cancel]")
    assert button.evaluate("(e) => e.getRootNode().activeElement === e")
    [request] = wait_for(lambda: stage.server.seen("job/cancel", "POST"))
    assert request.headers["x-t"] == "t0ken"
    stage.page.keyboard.press("Enter")
    stage.server.answer("job", answer("cancelled", error={"message": "By alice"}))
    seen = stage.wait("cancelled")
    assert (seen["cancel"], seen["notice"]) == (None, "By alice")
    assert stage.page.evaluate("document.activeElement.id") == "job"
    assert len(stage.server.seen("job/cancel", "POST")) == 1


def test_cancel_that_is_refused_says_why(stage):
    """The button comes back, and the element says why, until the job has ended."""
    open_cancellable(stage, Answer(403))
    stage.page.locator("[part=cancel]").click()
    wait_for(lambda: stage.look()["notice"] == "Not cancelled: You may not do this.")
    assert stage.look()["cancel"] == "Cancel"
    wait_for(lambda: "Not cancelled" in stage.spoken())
    stage.server.answer("job", answer("success", finished_at=at(0)))
    assert not stage.wait("success")["notice"]


def test_refused_cancel_of_a_former_job_is_not_told(stage):
    """An element whose src has changed meanwhile says nothing of it."""
    refusal = held()
    refusal.status = 403
    open_cancellable(stage, refusal)
    stage.page.locator("[part=cancel]").click()
    wait_for(lambda: stage.server.seen("job/cancel", "POST"))
    stage.server.answer("two", answer(title="Two"))
    stage.set("e.src = '/job_state/two'")
    wait_for(lambda: stage.look()["title"] == "Two")
    with stage.page.expect_response("**/cancel"):
        release(refusal)
    seen = stage.show(data(title="Two"))
    assert (seen["notice"], seen["cancel"]) == (None, "Cancel")


# Words


@pytest.mark.promise("element-speaks-languages")
def test_labels_replace_the_words(stage):
    """Attributes change those of one element, even later; labels, numbers and times
    follow its language; JobState.labels is for the rest. A wrong language does no harm.
    """
    stage.open("<job-state id=job label-working='On the run'></job-state>", "de-AT")
    assert stage.show(data())["status"] == "On the run"
    stage.set("e.setAttribute('label-job', 'Bread')")
    assert stage.look()["title"] == "Bread"
    stage.set("e.removeAttribute('label-working')")
    stage.page.evaluate("JobState.labels = {working: 'Busy', left: '?'}")
    assert stage.show(data())["status"] == "Busy"
    stage.set(
        """JobState.setLabels("de", {working: "Läuft", left: "noch etwa {time}",
            "amount-of": "{done} von {total} {unit}"})"""
    )
    assert stage.look()["status"] == "Läuft"
    seen = stage.show(data(progress=progress(1234.5, 5000, eta=125)))
    assert seen["left"] == "noch etwa 2 Min."
    details = seen["details"].replace("\u00a0", ".")
    assert details.startswith("· 1.234,5 von 5")
    stage.set("e.lang = 'no_such language!'")
    assert stage.look()["status"] == "Busy"


#: The language of each text that an element shows.
LANGUAGES = """() => Object.fromEntries(
  [...job.shadowRoot.querySelectorAll("[part]")]
    .filter((part) => !part.childElementCount && part.textContent)
    .filter((part) => part.checkVisibility())
    .map((part) => [part, part.closest("[lang]") || job.closest("[lang]")])
    .map(([part, { lang }]) => [part.part[0], lang]))
"""


def test_english_words_say_that_they_are_english(stage):
    """On a page of a language without labels, the words of the element are marked as
    English. What the application says is in the language of the page, as numbers are.
    """

    def languages(state: dict[str, Any]) -> dict[str, str]:
        stage.show(state)
        return dict(stage.page.evaluate(LANGUAGES))

    stage.open("<job-state id=job cancellable></job-state>", lang="de")
    running = data(progress=progress(12, 26, eta=130), message="Auf der Brücke")
    english = dict.fromkeys(("cancel", "status", "details", "left"), "en")
    mixed = {"title": "de", "percent": "de", "message": "de", **english}
    assert languages(running) == mixed
    assert stage.page.locator("[part=bar]").get_attribute("lang") == "en"
    failed = languages(data("error", error={"message": "Der Läufer ist müde."}))
    assert failed == {"title": "de", "status": "en", "notice": "de"}
    # Attributes and labels that the page has
    stage.set("e.setAttribute('label-left', '{time}')")
    stage.page.evaluate("JobState.setLabels('de', { working: 'Läuft' })")
    stage.page.evaluate("JobState.labels = { cancel: 'Halt', 'amount-of': '{done}' }")
    count = data(progress=progress(12, 26, eta=130), message="!", started_at=at(0))
    assert languages(count) == dict.fromkeys(mixed, "de")


# Announcements


def test_announcements_are_few(stage):
    """Only the start, each quarter of an attempt and the end are announced, in the
    language of the words, and not of jobs that had ended before.
    """
    stage.open(f"<job-state id=old></job-state><div lang=de>{ELEMENT}</div>", "fr")
    stage.listen()
    spoken = stage.page.locator("[role=status], [aria-live]")
    expect(spoken).to_have_count(1)
    stage.show(STATES["success"], "old")
    stage.show(data(progress=progress(1, 100)))
    told = ["Running"]

    def expect_said(words: str) -> None:
        told.append(words)
        assert stage.said(len(told)) == [f"Run marathon: {word}" for word in told]

    assert stage.said(1) == ["Run marathon: Running"]
    expect(spoken.locator("span")).to_have_attribute("lang", "en")
    for done in (2, 24, 26, 30):
        stage.show(data(progress=progress(done, 100)))
    expect_said("26\u00a0%")
    # Progress that wavers is announced once, but again in another attempt.
    for attempt, done in (1, 24), (1, 27), (2, 10), (2, 26):
        stage.show(data(attempt=attempt, progress=progress(done, 100)))
    expect_said("26\u00a0%")
    stage.page.evaluate("JobState.setLabels('de', { error: 'Fehler' })")
    stage.show(data("error", error={"message": "Es regnet."}))
    expect_said("Fehler. Es regnet.")
    expect(spoken.locator("span")).to_have_attribute("lang", "de")
