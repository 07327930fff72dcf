"""How long a job has waited, when it starts, and how long such jobs usually run, as the
element says it in a real Chromium.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.staging import Stage, data, progress, written
from tests.pollserver import Answer, PollServer, uuid_of
from tests.support import wait_for

#: Noon of a day, in milliseconds, by the store's clock.
NOON = 1_780_056_000_000
SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

PLACE = f"/job_state/{uuid_of(1)}"
FOLLOWING = f'<job-state id=job src="{PLACE}" period=3600000000></job-state>'
PLAIN = "<job-state id=job></job-state>"

PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Jobs</title>'
    '<script src="/job-state.js"></script><main>{body}</main>'
)


def iso(millis: int) -> str:
    """A time, as the server writes it."""
    return written(datetime.fromtimestamp(millis / 1000, UTC))


def waiting(status: str = "queued", waited: int = 0, **job: Any) -> dict[str, Any]:
    """A job that was put into the queue some milliseconds before noon."""
    usual = {"started_at": None, "attempt": 0, "updated_at": iso(NOON - waited)}
    return data(status, **{**usual, **job})


def told(state: dict[str, Any], time: int | str | None = NOON) -> Answer:
    """The answer that a store gives at a time, or that no store gives."""
    headers = {} if time is None else {"JobState-Time": str(time)}
    return Answer(body=json.dumps(state), headers=headers)


class Timed(Stage):
    """A page whose clock the test sets and advances."""

    def follow(
        self, *answers: Answer, clock: int = NOON, body: str = FOLLOWING
    ) -> None:
        """Show an element whose job gets these answers."""
        self.server.answer(uuid_of(1), *answers)
        self.begin(clock, body)
        status = json.loads(answers[0].body)["job"]["status"]
        wait_for(lambda: self.passes(20) and self.look()["state"] == status)

    def begin(self, clock: int = NOON, body: str = PLAIN) -> None:
        """Open a page, with the clock of the browser stopped at a time."""
        self.page.clock.install(time=(clock - HOUR) / 1000)
        self.page.clock.pause_at(clock / 1000)
        self.server.pages["/element"] = PAGE.format(body=body)
        self.page.goto(self.server.url + "/element")

    def set(self, script: str, name: str = "job") -> None:
        """Change an element, which the script calls `e`."""
        self.page.evaluate(
            f"(name) => {{ const e = document.getElementById(name); {script} }}", name
        )

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

    def wait_so(self, waited: float, **job: Any) -> str:
        """Return what the element says of a job that has waited so long by now."""
        now = self.page.evaluate("Date.now()")
        updated_at = iso(int(now - waited))
        return str(self.give(waiting(**{"updated_at": updated_at, **job}))["status"])

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


@pytest.fixture
def timed(browser: Browser, poll_server: PollServer) -> Iterator[Timed]:
    """A page in New York whose clock stands still unless the test advances it."""
    with (
        browser.new_context(timezone_id="America/New_York") as context,
        Timed(context.new_page(), poll_server) as timed,
    ):
        yield timed


# How long, and until when


def test_wait_is_counted_by_the_clock_of_the_store(timed):
    """The browser's may be wrong. It counts only if the header is not a number of
    milliseconds, as from an older server.
    """
    state = waiting(waited=40 * SECOND)
    for off in 0, -HOUR, 400 * DAY:
        timed.follow(told(state), clock=NOON + off)
        assert timed.status == "Waiting for 40 sec"
    for value in (None, "soon", "-1", "1e300", "2026-05-29T12:00:00Z"):
        timed.follow(told(state, value), clock=NOON + 2 * SECOND)
        assert timed.status == "Waiting for 42 sec", value


def test_start_is_told_in_the_zone_and_language_of_the_viewer(timed):
    """The date is told if it is another one by the store's clock."""
    for off in 50 * MINUTE, -50 * MINUTE:
        soon = waiting(due_at=iso(NOON + 5 * MINUTE))
        timed.follow(told(soon), clock=NOON + off)
        assert re.fullmatch(r"Starts at 8:05\sAM", timed.status)
        assert timed.look()["details"] == ""
    timed.follow(told(waiting(due_at=iso(NOON + DAY))), clock=NOON + DAY)
    assert re.fullmatch(r"Starts at \w+\s\d+,\s2026,\s8:00\sAM", timed.status)
    german = FOLLOWING.replace("id=job", "id=job lang=de label-due='Beginnt {time}'")
    timed.follow(told(waiting(due_at=iso(NOON + 9 * HOUR))), body=german)
    assert timed.status == "Beginnt 17:00"


def test_wait_ticks_without_a_request(timed):
    """The text does, but not the live region or the text of the bar."""
    timed.follow(told(waiting(waited=40 * SECOND)))
    timed.passes(SECOND)
    seen = [timed.status]
    for _ in range(4):
        timed.passes(SECOND)
        seen.append(timed.status)
    assert seen == [f"Waiting for {41 + n} sec" for n in range(5)]
    assert timed.spoken() == "Run marathon: Waiting"
    assert timed.look()["spoken"] == "Waiting"
    timed.passes(2 * HOUR)
    assert timed.status == "Waiting for 2 hr"
    assert timed.asked_for == 1


WAITED = {90: "1 min", 3599: "59 min", 5400: "1.5 hr", 86399: "23.9 hr", 86400: "1 day"}


def test_wait_is_not_rounded_up(timed):
    """It is never negative, nor counted from an invalid time. A job that was put back
    waits from then on. The words can be replaced.
    """
    timed.begin()
    for waited, words in WAITED.items():
        assert timed.wait_so(waited * SECOND) == f"Waiting for {words}"
    for waited in 500, -5 * SECOND:
        assert timed.wait_so(waited) == "Waiting"
    odds: tuple[Any, ...] = (None, "soon", {})
    for odd in odds:
        assert timed.wait_so(0, updated_at=odd, due_at=odd) == "Waiting", odd
    again = timed.wait_so(5 * SECOND, queued_at=iso(NOON - 48 * HOUR))
    assert again == "Waiting for 5 sec"
    timed.set("e.setAttribute('label-waiting', '{time} so far')")
    assert timed.wait_so(5 * SECOND) == "5 sec so far"


def test_job_whose_time_has_come_waits_from_then(timed):
    """A delayed job waits once it is due. A retry says when, and never in the past."""
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
    retry = waiting("retrying", attempt=1, due_at=iso(NOON + 30 * SECOND))
    timed.follow(told(retry), clock=NOON - HOUR)
    assert timed.status == "Trying again"
    details = timed.look()["details"]
    assert re.fullmatch(r"· attempt 1 · next try at 8:00:30\sAM", details)
    timed.passes(32 * SECOND)
    assert timed.status == "Trying again"
    assert timed.look()["details"] == "· attempt 1"


# The clock of the store


def test_not_modified_sets_the_clock(timed):
    """A 304 tells the time, too: the clock of a viewer may be set meanwhile."""
    first = told(waiting(waited=40 * SECOND))
    first.headers["ETag"] = '"1"'
    second = Answer(304, headers={"JobState-Time": str(NOON + HOUR)})
    timed.follow(first, second, body=FOLLOWING.replace("3600000000", "500"))
    timed.wait_for_words("Waiting for 1 hr")


def test_streams_set_the_clock(timed):
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


def test_clock_that_was_set_back_is_followed(timed):
    """If three answers in a row tell an earlier time. One or two may only be late."""
    timed.server.offers = True
    timed.follow(told(waiting(), NOON + 7 * MINUTE))
    wait_for(lambda: timed.passes(20) and timed.server.streams)
    (stream,) = timed.server.streams
    earlier, later = NOON + 5 * MINUTE, NOON + 7 * MINUTE + 10 * SECOND
    for millis in earlier, later, earlier, earlier:
        stream.send(str(millis), "beat")
    stream.send(json.dumps(waiting(waited=MINUTE)))
    timed.wait_for_words("Waiting for 8 min")
    stream.send(str(earlier), "beat")
    timed.wait_for_words("Waiting for 6 min")


# How long such jobs usually run


def running(
    low: Any = 118, high: Any = 171, p95: Any = 240, **job: Any
) -> dict[str, Any]:
    """A job that began at noon, and what is usual for its kind."""
    usual = {"low": low, "high": high, "p95": p95}
    return data(**{"usual": usual, "started_at": iso(NOON), **job})


#: What is usual, in seconds, and in words.
RANGES = {
    (118, 171): "2 to 3 min",
    (12, 17): "12 to 17 sec",
    (1.2, 9.9): "1.2 to 9.9 sec",
    (45, 70): "45 sec to 1 min",
    (110, 130): "2 min",
    (0, 0): "0 sec",
    (3000, 5400): "50 min to 1.5 hr",
    (86400, 180000): "1 to 2.1 days",
}


@pytest.mark.promise("usual-durations-are-told")
def test_usual_duration_is_told_until_it_is_over(timed):
    """By the store's clock, and without a request. Then the job takes longer."""
    timed.follow(told(running(), NOON), clock=NOON - HOUR)
    seen = timed.look()
    assert seen["left"] == "usually runs 2 to 3 min"
    assert seen["spoken"] == "Running, usually runs 2 to 3 min"
    timed.passes(239 * SECOND)
    assert timed.look()["left"] == "usually runs 2 to 3 min"
    asked = timed.asked_for
    timed.passes(2 * SECOND)
    assert timed.look()["left"] == "longer than usual"
    assert timed.asked_for == asked


def test_usual_duration_is_a_range(timed):
    """The unit is named once if both ends have it, and one end if they read alike."""
    timed.begin()
    for (low, high), words in RANGES.items():
        seen = timed.give(running(low, high, 1e6))
        assert seen["left"] == f"usually runs {words}"
    timed.set("e.lang = 'de'; e.setAttribute('label-usual', 'meist {time}')")
    timed.set("e.setAttribute('label-range', '{low} bis {high}')")
    assert timed.give(running())["left"] == "meist 2 bis 3 Min."


def test_time_left_is_told_in_place_of_it(timed):
    """As soon as the job can say that. Nor does a job say it that does not work."""
    timed.begin()
    for job in (
        {"progress": progress(1, 2, eta=0)},
        {"status": "retrying"},
        {"status": "cancelling"},
        {"status": "stalled"},
        {"usual": None},
        {"p95": "long"},
        {"low": None},
        {"started_at": None},
    ):
        assert timed.give(running(**job))["left"] in ("", None), job
    left = timed.give(running(progress=progress(1, 2, eta=130)))["left"]
    assert left == "about 2 min left"
    seen = timed.give(running(progress=progress(1, 2), p95=1e300))
    assert seen["left"] == "usually runs 2 to 3 min"
