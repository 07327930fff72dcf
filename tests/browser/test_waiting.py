"""How long a job has waited, and when it starts, as the element says it in a real
Chromium.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.polling import COUNT_ANSWERS
from tests.browser.test_element import Stage, data, written
from tests.pollserver import Answer, PollServer, uuid_of
from tests.support import wait_for

#: Noon of a day, in milliseconds, by the store's clock.
NOON = 1_780_056_000_000
SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

PLACE = f"/job_state/{uuid_of(1)}"
ELEMENT = f'<job-state id=job src="{PLACE}" period=3600000000></job-state>'
PLAIN = "<job-state id=job></job-state>"


def iso(millis: int) -> str:
    """A time, as the server writes it."""
    return written(datetime.fromtimestamp(millis / 1000, UTC))


def waiting(status: str = "queued", waited: int = 0, **job: Any) -> dict[str, Any]:
    """A job that was put into the queue some milliseconds before noon."""
    usual = {"started_at": None, "attempt": 0, "updated_at": iso(NOON - waited)}
    return data(status, **{**usual, **job})


def told(state: dict[str, Any], time: int | None = NOON) -> Answer:
    """The answer that a store gives at a time, or that no store gives."""
    headers = {} if time is None else {"JobState-Time": str(time)}
    return Answer(body=json.dumps(state), headers=headers)


class Timed(Stage):
    """A page whose clock the test sets and advances."""

    def start(self, clock: int = NOON) -> None:
        """Stop the clock of the browser at a time."""
        self.page.clock.install(time=(clock - HOUR) / 1000)
        self.page.clock.pause_at(clock / 1000)

    def follow(self, *answers: Answer, clock: int = NOON, body: str = ELEMENT) -> None:
        """Show an element whose job gets these answers."""
        self.server.answer(uuid_of(1), *answers)
        self.begin(clock, body)
        self.wait_for_status(answers[0])

    def begin(self, clock: int = NOON, body: str = PLAIN) -> None:
        self.start(clock)
        self.server.pages["/element"] = PAGE.format(body=body)
        self.page.goto(self.server.url + "/element")

    def wait_for_status(self, answer: Answer) -> None:
        """Let the page get an answer, and draw it."""
        status = json.loads(answer.body)["job"]["status"]
        wait_for(lambda: self.passes(20) and self.look()["state"] == status)

    def wait_for_words(self, words: str) -> None:
        """Let time pass until the element says them."""
        wait_for(lambda: self.passes(20) and self.status == words)

    def give(self, state: dict[str, Any]) -> dict[str, Any]:
        """Give the element data, and look at it."""
        script = "(data) => {document.getElementById('job').data = data}"
        self.page.evaluate(script, state)
        status = state["job"]["status"]
        wait_for(lambda: self.passes(20) and self.look()["state"] == status)
        self.passes(20)
        return self.look()

    def passes(self, millis: int) -> bool:
        """Let time pass in the browser. Return True, for conditions."""
        self.page.clock.run_for(millis)
        return True

    @property
    def status(self) -> str:
        return str(self.look()["status"])

    @property
    def asked_for(self) -> int:
        return sum(PLACE in url for url in self.asked)


PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Jobs</title>'
    '<script src="/job-state.js"></script><main>{body}</main>'
)


@pytest.fixture
def timed(browser: Browser, poll_server: PollServer) -> Iterator[Timed]:
    """A page in New York whose clock stands still unless the test advances it."""
    with browser.new_context(timezone_id="America/New_York") as context:
        yield from Timed(context.new_page(), poll_server).watched()


@pytest.mark.parametrize("off", [0, HOUR, -HOUR, 400 * 24 * HOUR])
def test_wait_is_counted_by_the_clock_of_the_store(timed: Timed, off: int) -> None:
    """A browser whose clock is wrong says the same as one whose clock is right."""
    timed.follow(told(waiting(waited=40 * SECOND)), clock=NOON + off)
    assert timed.status == "Waiting for 40 sec"


@pytest.mark.parametrize("off", [0, 50 * MINUTE, -50 * MINUTE])
def test_start_is_told_in_the_zone_of_the_viewer(timed: Timed, off: int) -> None:
    """A delayed job says at what time of the viewer's day it starts."""
    due = waiting(due_at=iso(NOON + 5 * MINUTE))
    timed.follow(told(due), clock=NOON + off)
    assert re.fullmatch(r"Starts at 8:05\sAM", timed.status)
    assert timed.look()["details"] == ""


def test_start_on_another_day_has_the_date(timed: Timed) -> None:
    """The date is added only if it is not today's, by the store's clock."""
    timed.follow(told(waiting(due_at=iso(NOON + 24 * HOUR))), clock=NOON + 24 * HOUR)
    assert re.fullmatch(r"Starts at \w+\s\d+,\s2026,\s8:00\sAM", timed.status)


def test_start_is_told_in_the_language_of_the_page(timed: Timed) -> None:
    """Times and durations are those of the element's language."""
    body = ELEMENT.replace("id=job", "id=job lang=de label-due='Beginnt {time}'")
    timed.follow(told(waiting(due_at=iso(NOON + 9 * HOUR))), body=body)
    assert timed.status == "Beginnt 17:00"


def test_wait_ticks_without_a_request(timed: Timed) -> None:
    """The text counts on by itself, also where motion is unwelcome."""
    timed.page.emulate_media(reduced_motion="reduce")
    timed.follow(told(waiting(waited=40 * SECOND)))
    seen = [timed.status]
    for _ in range(4):
        timed.passes(SECOND)
        seen.append(timed.status)
    assert seen == [f"Waiting for {40 + n} sec" for n in range(5)]
    timed.passes(20 * SECOND)
    assert timed.status == "Waiting for 1 min"
    timed.passes(2 * HOUR)
    assert timed.status == "Waiting for 2 hr"
    assert timed.asked_for == 1


def test_count_ends_when_the_job_starts(timed: Timed) -> None:
    """A job that runs, ends or falls silent is not said to wait, and nothing ticks."""
    timed.begin()
    for status in "working", "stalled", "cancelling", "cancelled", "error", "success":
        assert timed.give(waiting(waited=5000))["status"] == "Waiting for 5 sec"
        seen = timed.give(waiting(status, waited=5000, due_at=iso(NOON + HOUR)))
        assert "ait" not in f"{seen['status']} {seen['details']}"
        assert "Starts" not in f"{seen['status']} {seen['details']}"
        count_draws(timed)
        timed.passes(5 * SECOND)
        assert timed.page.evaluate("drawn") == 0
        timed.page.clock.set_system_time(NOON / 1000)


def count_draws(timed: Timed) -> None:
    """Count how often the element is drawn from now on."""
    timed.page.evaluate(
        """() => {
            const { JobStateElement: { prototype } } = JobState;
            const draw = prototype.really || prototype._draw;
            window.drawn = 0;
            prototype.really = draw;
            prototype._draw = function (loaded) {
                window.drawn += 1;
                draw.call(this, loaded);
            };
        }"""
    )


def test_job_whose_time_has_come_waits_from_then(timed: Timed) -> None:
    """When a delayed job is due, the wait begins: it was not waiting before."""
    due = waiting(waited=HOUR, due_at=iso(NOON + 10 * SECOND))
    timed.follow(told(due))
    assert timed.status.startswith("Starts at 8:00:10")
    timed.passes(9 * SECOND)
    assert timed.status.startswith("Starts at 8:00:10")
    timed.passes(2 * SECOND)
    assert timed.status in ("Waiting", "Waiting for 1 sec")
    timed.passes(40 * SECOND)
    assert timed.status in ("Waiting for 40 sec", "Waiting for 41 sec")
    assert timed.asked_for == 1


def test_job_that_runs_again_waits_from_then(timed: Timed) -> None:
    """The wait of a job that was put back counts from then, not from the first time."""
    timed.begin()
    again = waiting(waited=5 * SECOND, queued_at=iso(NOON - 48 * HOUR))
    assert timed.give(again)["status"] == "Waiting for 5 sec"


@pytest.mark.parametrize("waited", [0, 500, -1, -5 * SECOND, -HOUR])
def test_wait_is_never_negative(timed: Timed, waited: int) -> None:
    """A job that seems to come from the future waits, as does one that just came."""
    timed.begin()
    assert timed.give(waiting(waited=waited))["status"] == "Waiting"


@pytest.mark.parametrize("odd", [None, "soon", {}, True, 1e300])
def test_odd_times_break_nothing(timed: Timed, odd: Any) -> None:
    """A job without usable times waits, without a number."""
    timed.begin()
    for due in None, odd:
        seen = timed.give(waiting(updated_at=odd, due_at=due))
        assert seen["status"] == "Waiting"


def test_next_try_is_told_until_it_is_due(timed: Timed) -> None:
    """A job that is tried again says when, and no time in the past."""
    retry = waiting("retrying", attempt=1, due_at=iso(NOON + 30 * SECOND))
    timed.follow(told(retry), clock=NOON - HOUR)
    assert timed.status == "Trying again"
    assert re.fullmatch(
        r"· attempt 1 · next try at 8:00:30\sAM", timed.look()["details"]
    )
    timed.passes(32 * SECOND)
    assert timed.status == "Trying again"
    assert timed.look()["details"] == "· attempt 1"


def test_nobody_is_spoken_to_each_second(timed: Timed) -> None:
    """Neither the live region nor the text of the bar counts."""
    timed.follow(told(waiting(waited=40 * SECOND)))
    timed.passes(SECOND)
    timed.page.evaluate(
        """() => {
            window.changes = 0;
            const count = (records) => { changes += records.length; };
            const root = document.getElementById("job").shadowRoot;
            new MutationObserver(count).observe(
                root.querySelector("[part=bar]"), {attributes: true});
            new MutationObserver(count).observe(
                document.querySelector("[role=status]"), {childList: true});
        }"""
    )
    assert timed.spoken() == "Run marathon: Waiting"
    timed.passes(10 * SECOND)
    assert timed.status == "Waiting for 51 sec"
    assert timed.look()["spoken"] == "Waiting"
    assert timed.page.evaluate("changes") == 0
    due = timed.give(waiting(due_at=iso(NOON + HOUR)))
    assert re.fullmatch(r"Starts at 9:00\sAM", due["spoken"])


def test_words_of_the_wait_can_be_replaced(timed: Timed) -> None:
    """An attribute or the labels of a language have the words."""
    timed.begin(body=PLAIN.replace("id=job", 'id=job label-waiting="{time} so far"'))
    assert timed.give(waiting(waited=5000))["status"] == "5 sec so far"
    timed.page.evaluate(
        """() => {
            JobState.setLabels("en", { waiting: "Queued {time}" });
            document.getElementById("job").removeAttribute("label-waiting");
        }"""
    )
    timed.passes(100)
    assert timed.status == "Queued 5 sec"


def test_without_a_time_the_clock_of_the_browser_counts(timed: Timed) -> None:
    """An older server, and data that a script sets, leave the browser its own clock."""
    timed.follow(told(waiting(waited=40 * SECOND), None), clock=NOON + 2 * SECOND)
    assert timed.status == "Waiting for 42 sec"


@pytest.mark.parametrize("odd", ["", "soon", "-1", "2026-05-29T12:00:00Z"])
def test_odd_header_is_ignored(timed: Timed, odd: str) -> None:
    """What is not a number of milliseconds sets no clock."""
    answer = told(waiting(waited=40 * SECOND))
    answer.headers["JobState-Time"] = odd
    timed.follow(answer)
    assert timed.status == "Waiting for 40 sec"


AHEAD = "document.getElementById('job')._poller.now - Date.now()"


def test_late_answer_does_not_turn_the_clock_back(timed: Timed) -> None:
    """A late answer tells an earlier time. If several do, the clock was set back."""
    state = waiting(waited=40 * SECOND)
    late = told(state, NOON - HOUR)
    answers = [told(state), late, late, told(state, NOON + SECOND), late, late]
    timed.server.answer(uuid_of(1), *answers, told(state, NOON + 2 * SECOND))
    timed.page.add_init_script(COUNT_ANSWERS)
    timed.begin(body=ELEMENT.replace("3600000000", "100"))

    def ask(count: int) -> None:
        wait_for(lambda: timed.passes(20) and timed.page.evaluate("fetched") >= count)
        # No time passes while the page waits for the answer.
        wait_for(lambda: timed.page.evaluate("answered") >= count)

    for count in range(1, len(answers) + 4):
        ask(count)
    assert 0 <= timed.page.evaluate(AHEAD) <= 3 * SECOND
    timed.server.answer(uuid_of(1), late)
    wait_for(lambda: timed.passes(50) and timed.page.evaluate(AHEAD) < -HOUR + MINUTE)
    timed.wait_for_words("Waiting")


def test_clock_of_the_viewer_may_be_set(timed: Timed) -> None:
    """The count does not depend on it once the time of the store is known."""
    timed.follow(told(waiting(waited=40 * SECOND)))
    before = timed.page.evaluate("document.getElementById('job')._poller.now")
    timed.page.clock.set_system_time((NOON + HOUR) / 1000)
    after = timed.page.evaluate("document.getElementById('job')._poller.now")
    assert 0 <= after - before < SECOND


def test_element_that_follows_anew_knows_the_time(timed: Timed) -> None:
    """Its own clock is an hour ahead."""
    timed.follow(told(waiting(waited=40 * SECOND)), clock=NOON + HOUR)
    held = told(waiting(waited=40 * SECOND))
    held.hold = threading.Event()
    timed.server.answer(uuid_of(1), held)
    timed.page.evaluate(
        "document.getElementById('job').setAttribute('period', '90000')"
    )
    timed.passes(SECOND)
    assert re.fullmatch(r"Waiting for 4\d sec", timed.status)
    held.hold.set()


def test_wait_is_not_rounded_up(timed: Timed) -> None:
    for waited, words in (
        (90, "1 min"),
        (3599, "59 min"),
        (3600, "1 hr"),
        (5400, "1.5 hr"),
        (86399, "23.9 hr"),
        (86400, "1 day"),
        (250_000, "2.8 days"),
    ):
        timed.begin()
        timed.give(waiting(waited=waited * SECOND))
        assert timed.status == f"Waiting for {words}", waited


def test_nothing_is_drawn_while_nothing_changes(timed: Timed) -> None:
    """A job that is due next year is looked at once a minute."""
    timed.follow(told(waiting(due_at=iso(NOON + 400 * 24 * HOUR))))
    timed.page.evaluate(
        """() => {
            window.drawn = 0;
            const element = document.getElementById("job");
            const draw = element._draw;
            element._draw = function (sheet) {
                drawn += 1;
                draw.call(this, sheet);
            };
        }"""
    )
    timed.passes(10 * MINUTE)
    assert 1 <= timed.page.evaluate("drawn") <= 12


@pytest.mark.parametrize("odd", ["Infinity", "1e300", "0x10", "-5", "1.5"])
def test_time_that_is_no_number_of_milliseconds_is_ignored(
    timed: Timed, odd: str
) -> None:
    answer = told(waiting(waited=40 * SECOND))
    answer.headers["JobState-Time"] = odd
    timed.follow(answer)
    assert timed.status == "Waiting for 40 sec"


def test_not_modified_sets_the_clock(timed: Timed) -> None:
    """A 304 tells the time, too: the clock of a viewer may be set meanwhile."""
    first = told(waiting(waited=40 * SECOND))
    first.headers["ETag"] = '"1"'
    second = Answer(304, headers={"JobState-Time": str(NOON + HOUR)})
    timed.follow(first, second, body=ELEMENT.replace("3600000000", "500"))
    timed.wait_for_words("Waiting for 1 hr")


def test_streams_set_the_clock(timed: Timed) -> None:
    """The first event of a stream, and each beat, tell the time as a poll does."""
    timed.server.offers = True
    timed.follow(told(waiting(waited=40 * SECOND), None))
    wait_for(lambda: timed.passes(20) and timed.server.streams)
    (stream,) = timed.server.streams
    for minutes in 5, 7:
        stream.send(str(NOON + minutes * MINUTE), "beat")
        timed.wait_for_words(f"Waiting for {minutes} min")
    stream.send("2026-05-29T12:00:00.000Z", "beat")
    stream.send(json.dumps(waiting(waited=0)))
    timed.wait_for_words("Waiting for 7 min")


def test_element_that_cannot_be_drawn_ticks_no_more(timed: Timed) -> None:
    """Trouble is told to the console once, not each second."""
    timed.begin()
    timed.give(waiting(waited=5000))
    timed.page.evaluate("window.labels = JobState.labels; JobState.labels = 'odd'")
    timed.passes(5 * SECOND)
    assert len(timed.problems) == 1
    timed.problems.clear()
    timed.page.evaluate("JobState.labels = labels")
    assert timed.give(waiting(waited=5000))["status"].startswith("Waiting for 1")


def test_removed_element_ticks_no_more(timed: Timed) -> None:
    """An element that has left the page has no timer, and counts on if it returns."""
    timed.begin()
    timed.give(waiting(waited=5000))
    count_draws(timed)
    timed.page.evaluate(
        """() => {
            window.removed = document.getElementById("job");
            window.cleared = [];
            const clear = window.clearTimeout.bind(window);
            window.clearTimeout = (timer) => { cleared.push(timer); clear(timer); };
            removed.remove();
        }"""
    )
    timed.passes(5 * SECOND)
    assert timed.page.evaluate("cleared.includes(removed._timer)")
    assert timed.page.evaluate("drawn") == 0
    timed.page.evaluate("document.body.append(removed)")
    timed.passes(100)
    assert timed.status == "Waiting for 10 sec"


def test_pollers_tell_the_time(page: Page, poll_server: PollServer) -> None:
    """A script reads the store's time from its poller."""
    poll_server.answer("job", told(waiting(), NOON))
    page.clock.install(time=NOON / 1000 + 7200)
    page.goto(poll_server.url + "/page")
    before, own, after = page.evaluate(
        "follow('job'), [Date.now(), pollers.job.now, Date.now()]"
    )
    assert before <= own <= after
    ahead = "pollers.job.now - Date.now()"
    wait_for(lambda: abs(page.evaluate(ahead) + 2 * HOUR) < 10 * SECOND)
