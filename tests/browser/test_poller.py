"""JobState.startPolling in a real Chromium, against a server with scripted answers."""

from __future__ import annotations

import itertools
import json
import threading
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Error, Page

from tests.browser.polling import Polling, follow_all
from tests.pollserver import (
    STATIC,
    Answer,
    PollServer,
    error,
    state,
    success,
    uuid_of,
    working,
)
from tests.support import wait_for

# Following a job to its end


def test_poller_calls_success_once_with_the_data(polling: Polling) -> None:
    """A job that succeeds calls update and success and resolves done, in this order."""
    polling.follow("job", success(miles_run=26))
    outcome = polling.wait("job", "done")
    assert polling.told("job") == ["update", "success", "done"]
    data = polling.told("job", "success")[0]
    assert data["miles_run"] == 26
    assert polling.told("job", "update") == [data]
    assert outcome == {"outcome": "success", "data": data, "reason": None}


def test_poller_calls_error_once_with_the_data(polling: Polling) -> None:
    """A job that fails calls update and error and resolves done, in this order."""
    polling.follow("job", error(miles_run=3))
    outcome = polling.wait("job", "done")
    assert polling.told("job") == ["update", "error", "done"]
    data = polling.told("job", "error")[0]
    assert data["job"]["error"] == {"message": "The job failed."}
    assert outcome == {"outcome": "error", "data": data, "reason": None}


def test_poller_calls_update_with_every_new_state(polling: Polling) -> None:
    """Each answer reaches update unchanged."""
    polling.follow("job", working(miles_run=1), working(miles_run=2), success())
    polling.wait("job", "done")
    assert [d.get("miles_run") for d in polling.told("job", "update")] == [1, 2, None]


def test_poller_asks_no_more_after_the_end(polling: Polling) -> None:
    """A finished job costs the server nothing."""
    polling.follow("job", success())
    polling.wait("job", "done")
    polling.wait_for_others()
    assert len(polling.server.seen("job")) == 1


def test_poller_asks_at_once(polling: Polling) -> None:
    """The first request does not wait for a period."""
    polling.follow("job", working(), pollingPeriod=3_600_000)
    polling.wait("job", "update")


def test_poller_takes_any_callback_as_optional(polling: Polling) -> None:
    """A poller without callbacks still resolves done."""
    polling.follow("job", working(), success(), harness={"callbacks": []})
    assert polling.wait("job", "done")["outcome"] == "success"


def test_poller_waits_a_period_after_each_answer(polling: Polling) -> None:
    """If the server is slower than the period, requests still do not overlap."""
    slow = [Answer(body=state("working"), delay=0.1) for _ in range(3)]
    polling.follow("job", *slow, success(), pollingPeriod=60)
    polling.wait("job", "done")
    seen = polling.server.seen("job")
    pauses = [
        later.began - (earlier.ended or later.began)
        for earlier, later in itertools.pairwise(seen)
    ]
    assert len(pauses) == 3
    assert min(pauses) >= 0.058


def test_poller_never_asks_without_a_pause(polling: Polling) -> None:
    """A tiny period is raised to 50 ms."""
    polling.follow("job", *[working()] * 3, success(), pollingPeriod=0.001)
    polling.wait("job", "done")
    seen = polling.server.seen("job")
    assert seen[3].began - seen[0].began >= 3 * 0.048


def test_poller_does_not_hammer_with_a_period_of_months(polling: Polling) -> None:
    """A period too long for a browser's timer does not become zero."""
    polling.follow("job", working(), pollingPeriod=2**40)
    polling.wait("job", "update")
    polling.wait_for_others()
    assert len(polling.server.seen("job")) == 1


def test_pollers_on_one_page_are_independent(polling: Polling) -> None:
    """Each of several jobs on a page gets its own data and its own end."""
    polling.follow("one", working(n=1), success(n=1))
    polling.follow("two", working(n=2), error(n=2))
    polling.follow("three", working(n=3))
    polling.wait("one", "success")
    polling.wait("two", "error")
    polling.wait("three", "update")
    for number, name in enumerate(("one", "two", "three"), 1):
        assert {d["n"] for d in polling.told(name, "update")} == {number}
    assert "done" not in polling.told("three")


def test_poller_sends_cookies_and_asks_for_json(polling: Polling) -> None:
    """The request carries the session's cookie and accepts only JSON."""
    polling.follow("job", success())
    polling.wait("job", "done")
    headers = polling.server.seen("job")[0].headers
    assert headers["accept"] == "application/json"
    assert headers["cookie"] == "session=alice"
    assert "if-none-match" not in headers


def test_metric_called_proto_is_harmless(polling: Polling) -> None:
    """A metric named __proto__ stays a plain property of the data."""
    body = state("success").replace("{", '{"__proto__": {"polluted": true}, ', 1)
    polling.follow("job", Answer(body=body))
    polling.wait("job", "done")
    assert polling.page.evaluate("({}).polluted === undefined")
    assert polling.page.evaluate(
        "Object.getPrototypeOf(raw[0]) === Object.prototype"
        " && Object.getOwnPropertyNames(raw[0]).includes('__proto__')"
    )


# Unchanged data


def test_poller_sends_the_last_etag(polling: Polling) -> None:
    """The ETag of the last data is the next If-None-Match."""
    polling.follow("job", working('"a"'), working('W/"b"'), working(), success())
    polling.wait("job", "done")
    sent = [r.headers.get("if-none-match") for r in polling.server.seen("job")]
    assert sent == [None, '"a"', 'W/"b"', None]


def test_not_modified_keeps_the_data_and_the_poller(polling: Polling) -> None:
    """A 304 is an answer: polling goes on, and update is not called again."""
    polling.follow("job", working('"a"', n=1), Answer(304), Answer(304), success(n=2))
    polling.wait("job", "done")
    sent = [r.headers.get("if-none-match") for r in polling.server.seen("job")]
    assert sent == [None, '"a"', '"a"', '"a"']
    assert [d["n"] for d in polling.told("job", "update")] == [1, 2]


def test_not_modified_after_an_outage_is_an_update(polling: Polling) -> None:
    """A 304 after an outage calls update, so that the page learns that it is over."""
    polling.follow("job", working('"a"', n=1), Answer(503), Answer(304), success())
    polling.wait("job", "done")
    assert polling.told("job") == [
        *("update", "lost", "update", "update", "success", "done")
    ]


def test_not_modified_unasked_is_final(polling: Polling) -> None:
    """A 304 without earlier data ends the poller rather than loop for ever."""
    polling.follow("job", Answer(304))
    assert polling.wait("job", "done")["outcome"] == "lost"


# Trouble that passes


@pytest.mark.parametrize(
    ("trouble", "code", "status"),
    [
        (Answer(500, "<h1>Oops"), "status", 500),
        (Answer(503, '{"error": "…"}'), "status", 503),
        (Answer(429), "status", 429),
        (Answer(408), "status", 408),
        (Answer(drop=True), "network", 0),
    ],
    ids=["500", "503", "429", "408", "dropped"],
)
def test_passing_trouble_is_told_once_and_survived(
    polling: Polling, trouble: Answer, code: str, status: int
) -> None:
    """An outage calls lost once; update is called again after it."""
    polling.follow("job", working(), trouble, trouble, working(), success())
    polling.wait("job", "done")
    assert polling.told("job") == [
        *("update", "lost", "update", "update", "success", "done")
    ]
    [reason] = polling.told("job", "lost")
    assert (reason["code"], reason["status"]) == (code, status)
    assert reason["final"] is False
    assert 50 <= reason["retryIn"] <= 100
    assert reason["message"].startswith("The server ")


def test_every_outage_is_told(polling: Polling) -> None:
    """A second outage calls lost again, and backs off from the start."""
    polling.page.evaluate("hurry(1)")
    bad = Answer(500)
    polling.follow("job", bad, bad, bad, working(), bad, success(), pollingPeriod=1000)
    polling.wait("job", "done")
    reasons = polling.told("job", "lost")
    assert [reason["retryIn"] for reason in reasons] == [2000, 2000]


def test_back_off_doubles(polling: Polling) -> None:
    """Each failure doubles the pause."""
    polling.page.evaluate("hurry(1)")
    polling.follow("job", *[Answer(500)] * 4, success(), pollingPeriod=999)
    polling.wait("job", "done")
    delays = polling.page.evaluate("delays")[1:]
    assert delays == pytest.approx([1998, 3996, 7992, 15984], abs=20)


def test_back_off_is_spread_by_chance_and_bounded(polling: Polling) -> None:
    """Chance shortens a pause by up to a half; half a minute is the maximum."""
    polling.page.evaluate("hurry(0)")
    polling.follow("job", *[Answer(500)] * 6, success(), pollingPeriod=1001)
    polling.wait("job", "done")
    delays = polling.page.evaluate("delays")[1:]
    assert delays == pytest.approx([1001, 2002, 4004, 8008, 15_000, 15_000], abs=20)


def test_back_off_is_never_shorter_than_the_period(polling: Polling) -> None:
    """A poller with a period of minutes does not ask sooner because of a failure."""
    polling.follow("job", Answer(500), pollingPeriod=120_000)
    assert polling.wait("job", "lost")["retryIn"] == 120_000


def test_retry_after_in_seconds_is_honoured(polling: Polling) -> None:
    """The poller waits as long as the server asks, even if the tab is shown."""
    busy = Answer(503, headers={"Retry-After": "1"})
    polling.follow("job", busy, success())
    assert 1000 <= polling.wait("job", "lost")["retryIn"] <= 1050
    polling.page.evaluate("setHidden(true); setHidden(false)")
    polling.wait("job", "done")
    first, second = polling.server.seen("job")
    assert first.ended is not None
    assert second.began - first.ended >= 0.998


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [
        ("Thu, 01 Jan 2015 00:01:30 GMT", 90_000, 90_050),
        ("Wed, 31 Dec 2014 23:59:59 GMT", 50, 100),
        ("86400", 300_000, 300_050),
        ("soon", 50, 100),
        ("-5", 50, 100),
    ],
    ids=["date", "past date", "a day", "nonsense", "negative"],
)
def test_retry_after_is_read_with_care(
    polling: Polling, retry_after: str, low: int, high: int
) -> None:
    """Dates are read by the server's clock and limited, and nonsense is ignored."""
    date = "Thu, 01 Jan 2015 00:00:00 GMT"
    headers = {"Date": date, "Retry-After": retry_after}
    polling.follow("job", Answer(429, headers=headers), success())
    assert low <= polling.wait("job", "lost")["retryIn"] <= high


def test_hanging_request_counts_as_an_outage(timed: Polling) -> None:
    """A request without an answer is given up after 30 seconds, and repeated."""
    hold = threading.Event()
    timed.follow("job", Answer(hold=hold), success())
    timed.wait_for_requests("job", 1)
    timed.page.clock.run_for(20_000)
    assert timed.told("job") == []
    timed.page.clock.run_for(10_000)
    reason = timed.wait("job", "lost")
    assert (reason["code"], reason["final"]) == ("timeout", False)
    timed.page.clock.run_for(100)
    assert timed.wait("job", "done")["outcome"] == "success"


def test_poller_survives_a_server_restart(polling: Polling) -> None:
    """The poller goes on once a stopped server is back."""
    polling.follow("job", working())
    polling.wait("job", "update")
    polling.server.stop()
    assert polling.wait("job", "lost")["code"] == "network"
    polling.server.answer("job", success())
    polling.server.start()
    assert polling.wait("job", "done")["outcome"] == "success"
    assert len(polling.told("job", "lost")) == 1


# Trouble that does not pass

FINAL = {
    "400": (Answer(400), "status", 400),
    "401": (Answer(401), "status", 401),
    "403": (Answer(403), "status", 403),
    "404": (Answer(404), "status", 404),
    "410": (Answer(410), "status", 410),
    "418": (Answer(418), "status", 418),
    "redirect": (Answer(302, headers={"Location": "/job_state/login"}), "redirect", 0),
    "html": (Answer(200, "<!doctype html><p>Log in"), "format", 200),
    "empty": (Answer(204), "format", 204),
    "null": (Answer(200, "null"), "format", 200),
    "list": (Answer(200, "[]"), "format", 200),
    "no job": (Answer(200, '{"job_state": "working"}'), "format", 200),
    "odd state": (Answer(200, '{"job_state": "odd", "job": {}}'), "format", 200),
}


@pytest.mark.parametrize(("answer", "code", "status"), FINAL.values(), ids=FINAL)
def test_final_trouble_ends_the_poller(
    polling: Polling, answer: Answer, code: str, status: int
) -> None:
    """An answer that cannot improve calls lost with a final reason and ends polling."""
    polling.server.answer("login", success())
    polling.follow("job", working(n=1), answer, success())
    outcome = polling.wait("job", "done")
    assert polling.told("job") == ["update", "lost", "done"]
    [reason] = polling.told("job", "lost")
    assert (reason["code"], reason["status"]) == (code, status)
    assert reason["final"] is True
    assert (outcome["outcome"], outcome["reason"]) == ("lost", reason)
    assert outcome["data"]["n"] == 1
    polling.wait_for_others()
    assert len(polling.server.seen("job")) == 2
    assert polling.server.seen("login") == []


def test_outage_may_end_in_final_trouble(polling: Polling) -> None:
    """After a temporary loss, the final one is reported as well."""
    polling.follow("job", Answer(503), Answer(404))
    polling.wait("job", "done")
    assert [r["final"] for r in polling.told("job", "lost")] == [False, True]


def test_final_trouble_that_nobody_hears_is_written_to_the_console(
    polling: Polling,
) -> None:
    """Without a lost callback, the console explains why the page stands still."""
    polling.follow("job", Answer(404), harness={"callbacks": ["update"]})
    outcome = polling.wait("job", "done")
    assert outcome["data"] is None
    assert polling.warnings("warning") == [f"JobState: {outcome['reason']['message']}"]


# Stopping


def test_stop_ends_the_poller(polling: Polling) -> None:
    """After stop(), the poller sends no requests and calls no callbacks."""
    polling.follow("job", working(n=1))
    polling.wait("job", "update")
    polling.page.evaluate("pollers.job.stop(); pollers.job.stop(); calls.length = 0")
    outcome = polling.wait("job", "done")
    assert (outcome["outcome"], outcome["reason"]) == ("stopped", None)
    assert outcome["data"]["n"] == 1
    asked = len(polling.server.seen("job"))
    polling.wait_for_others()
    assert polling.told("job") == ["done"]
    assert len(polling.server.seen("job")) <= asked + 1


def test_stop_aborts_the_running_request(polling: Polling) -> None:
    """stop() resolves done even if the server never answers."""
    failed: list[str] = []
    polling.page.on("requestfailed", lambda request: failed.append(request.url))
    polling.follow("job", Answer(hold=threading.Event()))
    polling.wait_for_requests("job", 1)
    polling.page.evaluate("pollers.job.stop()")
    outcome = polling.wait("job", "done")
    assert outcome == {"outcome": "stopped", "data": None, "reason": None}
    wait_for(lambda: polling.page.evaluate("1") and failed)
    assert failed == [f"{polling.server.url}/job_state/job"]
    assert polling.told("job") == ["done"]


def test_stop_in_a_callback_is_the_last_word(polling: Polling) -> None:
    """If update calls stop(), success is not called."""
    polling.follow("job", success(), harness={"stopIn": "update"})
    assert polling.wait("job", "done")["outcome"] == "stopped"
    assert polling.told("job") == ["update", "done"]


def test_abort_signal_stops_the_poller(polling: Polling) -> None:
    """Aborting the signal has the same effect as stop()."""
    polling.follow("job", Answer(hold=threading.Event()), signal=True)
    polling.wait_for_requests("job", 1)
    polling.page.evaluate("aborters.job.abort()")
    assert polling.wait("job", "done")["outcome"] == "stopped"
    assert polling.told("job") == ["done"]


def test_ended_poller_lets_go_of_its_signal(polling: Polling) -> None:
    """A signal that outlives many pollers does not keep them alive."""
    polling.page.evaluate(
        """() => {
            const { prototype } = EventTarget;
            const { removeEventListener } = prototype;
            prototype.removeEventListener = function (type, ...rest) {
                if (this instanceof AbortSignal) calls.push({ name: "removed" });
                return removeEventListener.call(this, type, ...rest);
            };
        }"""
    )
    polling.follow("job", success(), signal=True)
    polling.wait("job", "done")
    assert {"name": "removed"} in polling.page.evaluate("calls")


def test_aborted_signal_prevents_the_poller(polling: Polling) -> None:
    """With a signal that is already aborted, no request is sent."""
    polling.follow("job", success(), signal="aborted")
    assert polling.wait("job", "done")["outcome"] == "stopped"
    polling.wait_for_others()
    assert polling.server.seen("job") == []


# Callbacks that throw


def test_throwing_callback_does_not_stop_the_poller(polling: Polling) -> None:
    """What callbacks throw is logged to the console, and the poller goes on."""
    throwing = ["update", "lost", "success"]
    harness = {"throwing": throwing}
    polling.follow("job", working(), Answer(503), success(), harness=harness)
    assert polling.wait("job", "done")["outcome"] == "success"
    assert polling.told("job") == ["update", "lost", "update", "success", "done"]
    for callback in throwing:
        reports = [w for w in polling.warnings("error") if f'"{callback}"' in w]
        assert reports
        assert f"thrown in {callback}" in reports[0]


# Cancelling


@pytest.mark.parametrize(("status", "accepted"), [(202, True), (409, False)])
def test_cancel_says_whether_the_job_will(
    polling: Polling, status: int, accepted: bool
) -> None:
    """cancel() resolves to true for a 202, and to false for a job that has ended."""
    polling.server.answer("job/cancel", Answer(status, "{}"), method="POST")
    polling.follow("job", working())
    assert polling.page.evaluate("cancel('job')") is accepted
    [request] = polling.server.seen("job/cancel", "POST")
    assert request.headers["x-requested-with"] == "XMLHttpRequest"
    assert request.headers["cookie"] == "session=alice"
    assert "x-csrf-token" not in request.headers


def test_cancel_polls_at_once(polling: Polling) -> None:
    """The page sees at once, without waiting a period, that a job was cancelled."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", working(), error(), pollingPeriod=3_600_000)
    polling.wait("job", "update")
    polling.page.evaluate("cancel('job')")
    polling.wait("job", "error")


def test_cancel_does_not_trust_an_older_question(polling: Polling) -> None:
    """A request in flight during the cancel is followed by another one at once."""
    hold = threading.Event()
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    early = Answer(body=state("working"), hold=hold)
    polling.follow("job", early, error(), pollingPeriod=3_600_000)
    polling.wait_for_requests("job", 1)
    polling.page.evaluate("cancel('job')")
    assert len(polling.server.seen("job")) == 1
    hold.set()
    polling.wait("job", "error")


def test_cancel_sends_the_csrf_token(polling: Polling) -> None:
    """The cancel carries the application's CSRF token."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", working(), csrfToken="t0ken")
    polling.page.evaluate("cancel('job')")
    [request] = polling.server.seen("job/cancel", "POST")
    assert request.headers["x-csrf-token"] == "t0ken"


@pytest.mark.parametrize(
    ("given", "header"),
    [("X-XSRF-TOKEN", "x-xsrf-token"), ("", "x-csrf-token"), (None, "x-csrf-token")],
)
def test_cancel_sends_the_csrf_token_in_the_header_asked_for(
    polling: Polling, given: str | None, header: str
) -> None:
    """The option csrfHeader replaces the usual header, unless it is empty."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", working(), csrfToken="t0ken", csrfHeader=given)
    assert polling.page.evaluate("cancel('job')") is True
    [request] = polling.server.seen("job/cancel", "POST")
    assert [n for n, v in request.headers.items() if v == "t0ken"] == [header]


@pytest.mark.parametrize(
    ("answer", "code", "status", "words"),
    [
        (Answer(403), "status", 403, "You may not do this."),
        (Answer(200, "{}"), "status", 200, "The server answered 200."),
        (Answer(302, headers={"Location": "/login"}), "redirect", 0, "login page"),
        (Answer(drop=True), "network", 0, "cannot be reached"),
    ],
    ids=["403", "200", "redirect", "dropped"],
)
def test_cancel_rejects_when_refused(
    polling: Polling, answer: Answer, code: str, status: int, words: str
) -> None:
    """A cancel that fails rejects with a readable Error; the poller goes on."""
    polling.server.answer("job/cancel", answer, method="POST")
    polling.follow("job", working())
    problem = polling.page.evaluate("cancel('job')")
    assert problem["rejected"] is True
    assert (problem["code"], problem["status"]) == (code, status)
    assert words in problem["message"]
    polling.server.answer("job", success())
    polling.wait("job", "success")


@pytest.mark.parametrize("url", ["/jobs/job", "/jobs/job/", "jobs/job/?of=alice#top"])
def test_cancel_finds_its_url(polling: Polling, url: str) -> None:
    """The cancel URL is below the job's, with or without a last slash or a query."""
    posts = {"method": "POST", "below": "/jobs"}
    polling.server.answer("job/cancel", Answer(202, "{}"), **posts)
    polling.follow("job", jobUuid=None, url=url)
    assert polling.page.evaluate("cancel('job')") is True
    [request] = polling.server.seen("job/cancel", **posts)
    assert request.path.endswith("?of=alice") is ("?" in url)


def test_cancel_works_on_a_stopped_poller(polling: Polling) -> None:
    """A stopped poller can still cancel its job, and sends no further requests."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", success())
    polling.wait("job", "done")
    assert polling.page.evaluate("cancel('job')") is True
    polling.wait_for_others()
    assert len(polling.server.seen("job")) == 1


# Hidden, left and offline pages


def test_hidden_tab_sleeps_and_asks_when_shown(timed: Polling) -> None:
    """No timer runs in a hidden tab; showing the tab polls at once."""
    timed.follow("job", working(), success(), pollingPeriod=3_600_000)
    timed.wait("job", "update")
    timed.page.evaluate("setHidden(true)")
    timed.page.clock.run_for(2 * 3_600_000)
    assert timed.asked("job") == 1
    timed.page.evaluate("setHidden(false)")
    timed.page.clock.run_for(50)
    timed.wait("job", "success")


def test_answer_that_comes_while_hidden_counts(timed: Polling) -> None:
    """An answer that arrives in a hidden tab is reported, and polling then pauses."""
    hold = threading.Event()
    timed.follow("job", Answer(body=state("working"), hold=hold))
    timed.wait_for_requests("job", 1)
    timed.page.evaluate("setHidden(true)")
    hold.set()
    timed.wait("job", "update")
    timed.page.clock.run_for(60_000)
    assert timed.asked("job") == 1


def test_poller_started_in_a_hidden_tab_waits(timed: Polling) -> None:
    """A tab opened in the background polls when it is first shown."""
    timed.page.evaluate("setHidden(true)")
    timed.follow("job", success())
    timed.page.clock.run_for(60_000)
    assert timed.asked("job") == 0
    timed.page.evaluate("setHidden(false)")
    timed.wait("job", "success")


def test_flickering_tab_does_not_hammer(polling: Polling) -> None:
    """However often a tab is shown, requests do not overlap, and pauses are kept."""
    polling.follow("job", *[working()] * 3, success(), pollingPeriod=3_600_000)
    polling.page.evaluate(
        """const flicker = setInterval(() => setHidden(!document.hidden), 1);
        pollers.job.done.then(() => clearInterval(flicker))"""
    )
    polling.wait("job", "done")
    seen = polling.server.seen("job")
    for earlier, later in itertools.pairwise(seen):
        assert later.began - (earlier.ended or later.began) >= 0.048


@pytest.mark.parametrize("event", ["pageshow", "online"])
def test_returning_page_asks_at_once(polling: Polling, event: str) -> None:
    """A page that returns from the back/forward cache or goes online polls at once."""
    polling.follow("job", working(), success(), pollingPeriod=3_600_000)
    polling.wait("job", "update")
    polling.page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
    polling.wait("job", "success")


def test_pagehide_of_an_element_is_ignored(polling: Polling) -> None:
    """A pagehide event dispatched by a widget does not silence the poller."""
    polling.follow("job", working())
    polling.wait("job", "update")
    hide = "new Event('pagehide', { bubbles: true })"
    polling.page.evaluate(f"document.documentElement.dispatchEvent({hide})")
    polling.server.answer("job", success())
    polling.wait("job", "success")


@pytest.mark.parametrize("awhile", [True, False])
def test_leaving_a_page_is_no_outage(polling: Polling, awhile: bool) -> None:
    """A request that leaving the page cuts off is repeated when the page returns."""
    polling.follow("job", Answer(hold=threading.Event()), success())
    polling.wait_for_requests("job", 1)
    polling.page.evaluate(
        """async (awhile) => {
            window.dispatchEvent(new Event("pagehide"));
            if (awhile) await fetch("/empty");
            window.dispatchEvent(new Event("pageshow"));
        }""",
        awhile,
    )
    polling.wait("job", "done")
    assert polling.told("job") == ["update", "success", "done"]


@pytest.mark.parametrize("answers", [0, 1])
def test_left_page_asks_nothing(timed: Polling, answers: int) -> None:
    """A page that was left sends no requests, whether or not one was in flight."""
    held = Answer(hold=threading.Event())
    timed.follow("job", *[working()] * answers, held, pollingPeriod=10_000)
    wait_for(lambda: timed.asked("job") == 1)
    wait_for(lambda: timed.told("job") == ["update"] * answers)
    timed.page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    timed.page.clock.run_for(60_000)
    timed.page.clock.run_for(60_000)
    assert timed.asked("job") == 1


def test_laptop_that_slept_asks_once(timed: Polling) -> None:
    """However long a computer slept, the jobs are polled once when it wakes."""
    timed.follow("job", working(), pollingPeriod=10_000)
    timed.wait("job", "update")
    timed.server.answer("job", success())
    timed.page.clock.fast_forward(8 * 3_600_000)
    timed.wait("job", "success")
    assert timed.asked("job") == 2


# Several jobs of one base URL


@pytest.mark.parametrize(("count", "a_period"), [(1, 1), (20, 1), (150, 2)])
def test_jobs_of_one_page_share_the_requests(
    polling: Polling, count: int, a_period: int
) -> None:
    """A period costs one request for up to a hundred jobs, and two for 150."""
    names = [uuid_of(n) for n in range(count)]
    for n, name in enumerate(names):
        polling.server.answer(name, *[working(n=n)] * 3, success(n=n))
    follow_all(polling, names, pollingPeriod=200)
    done = "calls.filter((call) => call.callback === 'done').length"
    wait_for(lambda: polling.page.evaluate(done) == count)
    requests = polling.server.requests()
    assert len(requests) == 4 * a_period
    assert max(len(request.jobs) for request in requests) <= 100
    assert [d["n"] for d in polling.told(names[-1], "success")] == [count - 1]


def test_requests_of_one_base_url_never_overlap(polling: Polling) -> None:
    """A job added during a request waits for its answer."""
    held = Answer(body=state("working"), hold=threading.Event())
    polling.follow("one", held, success())
    polling.wait_for_requests("one", 1)
    polling.follow("two", success())
    polling.wait_for_others()
    assert polling.server.seen("two") == []
    assert held.hold is not None
    held.hold.set()
    polling.wait("two", "done")
    first, second = polling.server.requests()[:2]
    assert first.ended is not None
    assert second.began >= first.ended


def test_job_that_is_added_later_falls_into_step(polling: Polling) -> None:
    """A job that joins others of the same period is soon polled together with them."""
    polling.follow("one", working(), pollingPeriod=200)
    polling.wait("one", "update")
    polling.follow("two", *[working()] * 5, success(), pollingPeriod=200)
    polling.wait("two", "done")
    together = [r for r in polling.server.requests() if r.jobs == ["one", "two"]]
    assert len(together) >= 5


def test_slower_job_is_asked_for_less_often(polling: Polling) -> None:
    """A job with a long period joins only requests that it would soon need itself."""
    polling.follow("slow", working(), pollingPeriod=60_000)
    polling.wait("slow", "update")
    polling.follow("fast", *[working()] * 4, success(), pollingPeriod=50)
    polling.wait("fast", "done")
    assert len(polling.server.seen("slow")) == 1
    assert len(polling.server.seen("fast")) == 5


def test_unknown_job_in_a_batch_is_lost(polling: Polling) -> None:
    """Null stands for an unknown or forbidden job; the others go on."""
    polling.server.answer("one", working(), working(), success())
    follow_all(polling, ["one", "nil"])
    reason = polling.wait("nil", "lost")
    assert (reason["code"], reason["status"], reason["final"]) == ("status", 404, True)
    polling.wait("one", "success")
    assert [request.jobs for request in polling.server.seen("nil")] == [
        ["one", "nil"],
        [],
    ]


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (Answer(401), "status", 401),
        (Answer(403), "status", 403),
        (Answer(410), "status", 410),
        (Answer(302, headers={"Location": "/login"}), "redirect", 0),
        (Answer(body="<p>Sign in"), "format", 200),
    ],
    ids=["401", "403", "410", "302", "html"],
)
def test_null_in_a_batch_is_asked_about_alone(
    polling: Polling, answer: Answer, code: str, status: int
) -> None:
    """The job's own URL tells why a batch does not show a job."""
    polling.server.answer("one", working())
    polling.server.answer("two", answer)
    polling.server.nulls.add("two")
    follow_all(polling, ["one", "two"])
    reason = polling.wait("two", "lost")
    assert (reason["code"], reason["status"]) == (code, status)
    assert reason["final"] is True
    assert [request.jobs for request in polling.server.seen("two")] == [
        ["one", "two"],
        [],
    ]
    polling.server.answer("one", success())
    polling.wait("one", "done")
    assert polling.told("one", "lost") == []


def test_null_in_a_batch_may_be_a_job_all_the_same(polling: Polling) -> None:
    """If a job's own URL shows it, it goes on, and joins the batch again."""
    polling.server.answer("one", working())
    polling.server.answer("two", working(n=1))
    polling.server.nulls.add("two")
    # Jobs join if their answers are less than three quarters of a period apart.
    follow_all(polling, ["one", "two"], pollingPeriod=1000)
    polling.wait("two", "update")
    polling.server.answer("two", working(n=2))
    polling.server.nulls.clear()
    before = len(polling.server.seen("two"))
    # The answer to an earlier batch may still be on its way.
    both = ["one", "two"]
    wait_for(lambda: both in [r.jobs for r in polling.server.seen("two")[before:]])
    polling.server.answer("two", success(n=3))
    polling.wait("two", "done")
    assert polling.told("two", "lost") == []
    assert polling.told("two", "success") == [polling.told("two", "update")[-1]]
    assert polling.server.seen("two")[-1].jobs == both


def test_null_that_its_own_url_contradicts_keeps_the_period(polling: Polling) -> None:
    """Two URLs that never agree cost only one extra request a period."""
    polling.server.answer("one", working())
    polling.server.answer("two", *[working()] * 4, success())
    polling.server.nulls.add("two")
    follow_all(polling, ["one", "two"], pollingPeriod=500)
    polling.wait("two", "done")
    seen = polling.server.seen("two")
    # A busy server may answer them in another order.
    assert sorted(request.jobs for request in seen) == [
        *[[]] * 5,
        *[["one", "two"]] * 5,
    ]
    # By the page's clock: a busy server may be late to hear of a request.
    times = polling.page.evaluate("askedAt.filter((_, i) => asked[i].includes('two'))")
    assert len(times) == 10
    # The extra request follows the answer to the other, which may be late.
    assert times == sorted(times)
    for earlier, later in itertools.pairwise(times[::2]):
        assert later - earlier >= 490


def test_null_that_cannot_be_asked_about_is_retried(polling: Polling) -> None:
    """Trouble with the job's own URL is an outage of this job only."""
    polling.server.answer("one", working())
    polling.server.answer("two", Answer(500), Answer(500), working(), success())
    polling.server.nulls.add("two")
    follow_all(polling, ["one", "two"])
    polling.wait("two", "update")
    assert [r.jobs for r in polling.server.seen("two")[:4]] == [
        ["one", "two"],
        [],
        [],
        [],
    ]
    polling.wait("two", "done")
    assert polling.told("two") == ["lost", "update", "update", "success", "done"]
    assert polling.told("two", "lost")[0]["final"] is False
    assert polling.told("one", "lost") == []


def test_null_that_cannot_be_asked_about_is_asked_ever_less(polling: Polling) -> None:
    """The pauses of one failing job double, even while others are answered."""
    polling.server.answer("one", working())
    polling.server.answer("two", *[Answer(500)] * 4, success())
    polling.server.nulls.add("two")
    polling.page.evaluate("Math.random = () => 1")
    follow_all(polling, ["one", "two"], pollingPeriod=100)
    polling.wait("two", "done")
    alone = [request for request in polling.server.seen("two") if not request.jobs]
    pauses = [late.began - soon.began for soon, late in itertools.pairwise(alone)]
    for pause, least in zip(pauses, (0.2, 0.4, 0.8, 1.6), strict=True):
        assert pause >= 0.95 * least
    assert len(polling.server.seen("one")) >= 10


def test_many_nulls_are_asked_about_one_after_another(polling: Polling) -> None:
    """Ten nulls cost ten requests, one for each, and none of them overlap."""
    names = [uuid_of(n) for n in range(10)]
    polling.server.answer("one", working())
    for name in names:
        polling.server.answer(name, Answer(403, delay=0.02))
        polling.server.nulls.add(name)
    follow_all(polling, ["one", *names])
    for name in names:
        assert polling.wait(name, "lost")["status"] == 403
    requests = polling.server.requests()
    for name in names:
        assert [len(r.jobs) for r in requests if name in r.path] == [11, 0]
    for earlier, later in itertools.pairwise(requests):
        assert earlier.ended is not None
        assert later.began >= earlier.ended - 0.005
    polling.server.answer("one", success())
    polling.wait("one", "done")


def test_null_is_not_asked_about_in_a_hidden_tab(timed: Polling) -> None:
    """In a hidden tab, the request for a null waits until the tab is shown."""
    jobs = {"one": json.loads(state("working")), "two": None}
    held = Answer(body=json.dumps({"jobs": jobs}), hold=threading.Event())
    timed.server.answer("one", working())
    timed.server.answer("two", success())
    timed.server.answer_batches(held)
    follow_all(timed, ["one", "two"])
    timed.page.clock.run_for(50)
    timed.wait_for_requests("two", 1)
    timed.page.evaluate("setHidden(true)")
    assert held.hold is not None
    held.hold.set()
    timed.wait("one", "update")
    timed.page.clock.run_for(60_000)
    assert timed.asked("two") == 0
    timed.page.evaluate("setHidden(false)")
    timed.page.clock.run_for(100)
    timed.wait("two", "success")


def test_null_that_nobody_waits_for_is_given_up(polling: Polling) -> None:
    """Stopping the job aborts the request for it, and the others go on."""
    polling.server.answer("one", working())
    polling.server.answer("two", Answer(hold=threading.Event()))
    polling.server.nulls.add("two")
    follow_all(polling, ["one", "two"])
    wait_for(lambda: [] in [r.jobs for r in polling.server.seen("two")])
    polling.page.evaluate("pollers.two.stop()")
    polling.server.answer("one", success())
    polling.wait("one", "done")
    assert polling.told("two", "done")[0]["outcome"] == "stopped"


def test_null_is_not_confirmed_by_a_batch_that_has_not_changed(
    polling: Polling,
) -> None:
    """The ETag of a batch with a null does not confirm the job that it left out."""
    polling.server.answer("one", working('"a"'))
    polling.server.answer("two", Answer(500), success(n=2))
    polling.server.nulls.add("two")
    follow_all(polling, ["one", "two"])
    polling.wait("two", "lost")
    polling.server.answer("one", Answer(304))
    polling.wait("two", "done")
    assert [d["n"] for d in polling.told("two", "update")] == [2]


def test_odd_job_in_a_batch_is_lost(polling: Polling) -> None:
    """An invalid state in a batch ends only the poller of its job."""
    polling.server.answer("one", working(), success())
    polling.server.answer("odd", Answer(body="{}"))
    follow_all(polling, ["one", "odd"])
    assert polling.wait("odd", "lost")["code"] == "format"
    polling.wait("one", "success")


def test_batch_that_has_not_changed(polling: Polling) -> None:
    """A request for several jobs sends the last ETag, and accepts a 304."""
    polling.server.answer("one", working('"a"'), success())
    polling.server.answer("two", working('"a"'), success())
    follow_all(polling, ["one", "two"])
    polling.wait("two", "update")
    polling.server.answer_batches(Answer(304), Answer(304))
    polling.wait("two", "done")
    sent = [r.headers.get("if-none-match") for r in polling.server.seen("one")]
    assert sent[0] is None
    assert set(sent[1:]) == {'"a"'}
    assert polling.told("one") == ["update", "update", "success", "done"]


def test_etag_is_of_the_same_jobs(polling: Polling) -> None:
    """If the request's jobs change, the ETag is not sent."""
    polling.follow("one", working('"a"'), pollingPeriod=200)
    polling.wait("one", "update")
    polling.follow("two", *[working('"b"')] * 2, success(), pollingPeriod=200)
    polling.wait("two", "done")
    for before, request in itertools.pairwise(polling.server.requests()):
        sent = "if-none-match" in request.headers
        assert sent is (before.path == request.path)


def test_etag_is_not_older_than_the_data(polling: Polling) -> None:
    """Once a job was polled alone, the ETag of the batch is not sent."""
    polling.server.answer("one", working('"a"'))
    polling.server.answer("two", working('"a"'))
    polling.page.evaluate(
        "follow('one', { pollingPeriod: 400 }); follow('two', { pollingPeriod: 50 })"
    )
    both = ["one", "two"]
    wait_for(lambda: [r.jobs for r in polling.server.requests()].count(both) >= 2)
    requests = polling.server.requests()
    assert [] in [r.jobs for r in requests]
    assert [r for r in requests if r.jobs and "if-none-match" in r.headers] == []


@pytest.mark.parametrize("status", [400, 414])
def test_batch_that_is_too_large_is_halved(polling: Polling, status: int) -> None:
    """A server with a lower limit is asked for fewer jobs at a time from then on."""
    names = [uuid_of(n) for n in range(8)]
    for name in names:
        polling.server.answer(name, working(), success())
    polling.server.answer_batches(Answer(status))
    follow_all(polling, names)
    for name in names:
        polling.wait(name, "success")
    sizes = [len(request.jobs) for request in polling.server.requests()]
    assert sizes[:3] == [8, 4, 4]
    assert max(sizes[1:]) == 4


@pytest.mark.parametrize(
    "answer",
    [Answer(404), Answer(403), Answer(body='{"items": []}')],
    ids=["404", "403", "list"],
)
def test_server_without_batches_is_asked_singly(
    polling: Polling, answer: Answer
) -> None:
    """If the server does not support batches, each job is polled by its own URL."""
    for name in ("one", "two"):
        polling.server.answer(name, working(), success())
    polling.server.answer_batches(answer)
    follow_all(polling, ["one", "two"])
    polling.wait("one", "success")
    polling.wait("two", "success")
    assert [r.jobs for r in polling.server.requests()] == [["one", "two"], *[[]] * 4]


@pytest.mark.parametrize(
    "answer",
    [Answer(302, headers={"Location": "/login"}), Answer(403), Answer(400)],
    ids=["302", "403", "400"],
)
def test_batches_are_tried_again_after_an_odd_answer(
    timed: Polling, answer: Answer
) -> None:
    """One odd answer to a batch does not part its jobs for good."""
    for name in ("one", "two"):
        timed.server.answer(name, working())
    timed.server.answer_batches(answer)
    follow_all(timed, ["one", "two"], pollingPeriod=1000)
    together = "asked.filter((url) => url.includes('?')).length"
    for name in ("one", "two"):
        timed.wait(name, "update")
    timed.page.clock.run_for(3000)
    assert timed.page.evaluate(together) == 1

    def count_batches() -> int:
        timed.page.clock.run_for(1000)
        count: int = timed.page.evaluate(together)
        return count

    timed.page.clock.run_for(10_000)
    wait_for(lambda: count_batches() > 3)
    alone = [request for request in timed.server.requests() if not request.jobs]
    wait_for(lambda: count_batches() > 6)
    requests = timed.server.requests()
    assert [request for request in requests if not request.jobs] == alone


def test_server_that_refuses_batches_is_tried_ever_less(timed: Polling) -> None:
    """Each refusal of a batch doubles the time until the next is tried."""
    for name in ("one", "two"):
        timed.server.answer(name, working())
    timed.server.answer_batches(*[Answer(404)] * 100)
    follow_all(timed, ["one", "two"], pollingPeriod=1000)
    times = "askedAt.filter((_, n) => asked[n].includes('?'))"

    def pass_time() -> bool:
        timed.page.clock.fast_forward(1000)
        return len(timed.page.evaluate(times)) >= 4

    wait_for(pass_time, 60)
    found = timed.page.evaluate(times)
    pauses = [late - soon for soon, late in itertools.pairwise(found)]
    for pause, least in zip(pauses, (15, 30, 60), strict=True):
        assert pause / 1000 >= least
    assert timed.told("one", "lost") == []


def test_batch_of_a_signed_out_viewer_ends_all_pollers(polling: Polling) -> None:
    """A 401 ends all the pollers at once."""
    polling.server.answer_batches(Answer(401))
    follow_all(polling, ["one", "two"])
    assert polling.wait("one", "lost")["status"] == 401
    assert polling.wait("two", "lost")["status"] == 401
    polling.wait_for_others()
    assert len(polling.server.requests()) == 1


def test_outage_is_told_to_all_jobs_and_asked_about_once(polling: Polling) -> None:
    """All jobs of a batch report an outage; one request checks whether it is over."""
    names = ["one", "two", "three"]
    for name in names:
        polling.server.answer(name, working(), success())
    polling.server.answer_batches(Answer(503), Answer(503))
    follow_all(polling, names)
    for name in names:
        polling.wait(name, "done")
        assert polling.told(name) == ["lost", "update", "update", "success", "done"]
    assert len(polling.server.requests()) == 4


def test_job_that_is_followed_twice_is_asked_for_once(polling: Polling) -> None:
    """Two pollers of one job share its requests, and its data if it is unchanged."""
    url = f"/job_state/{uuid_of(1)}"
    polling.server.answer(uuid_of(1), working('"a"', n=1), Answer(304), success())
    # Long enough for the second poller to come before the next request.
    polling.follow("one", jobUuid=None, url=url, pollingPeriod=5000)
    polling.wait("one", "update")
    polling.follow("two", jobUuid=None, url=url + "/")
    polling.wait("two", "done")
    assert polling.told("two") == ["update", "update", "success", "done"]
    assert polling.told("one") == ["update", "update", "success", "done"]
    assert len(polling.server.requests()) == 3


def test_stopped_job_leaves_the_batch(polling: Polling) -> None:
    """The other jobs go on without the stopped one."""
    for name in ("one", "two", "three"):
        polling.server.answer(name, working())
    follow_all(polling, ["one", "two", "three"])
    polling.wait("two", "update")
    polling.page.evaluate("pollers.two.stop()")
    wait_for(lambda: polling.server.requests()[-1].jobs == ["one", "three"])
    polling.server.answer("three", success())
    polling.wait("three", "done")


def test_request_for_stopped_jobs_only_is_aborted(polling: Polling) -> None:
    """A request for stopped jobs is aborted, so that other jobs need not wait."""
    polling.follow("one", Answer(hold=threading.Event()))
    polling.wait_for_requests("one", 1)
    polling.follow("two", success())
    polling.page.evaluate("pollers.one.stop()")
    polling.wait("two", "done")


def test_stopped_job_does_not_stop_the_clock_of_others(polling: Polling) -> None:
    """Stopping one job between two requests leaves the next one scheduled."""
    for name in ("one", "two"):
        polling.server.answer(name, working())
    follow_all(polling, ["one", "two"], pollingPeriod=200)
    polling.wait("two", "update")
    polling.page.evaluate("pollers.one.stop()")
    polling.server.answer("two", success())
    polling.wait("two", "done")


def test_cancelled_job_in_a_batch_is_asked_for_at_once(polling: Polling) -> None:
    """A cancel does not wait for the period of the batch."""
    polling.server.answer("two/cancel", Answer(202, "{}"), method="POST")
    for name in ("one", "two"):
        polling.server.answer(name, working())
    follow_all(polling, ["one", "two"], pollingPeriod=3_600_000)
    polling.wait("two", "update")
    polling.server.answer("two", error())
    assert polling.page.evaluate("cancel('two')") is True
    polling.wait("two", "error")


# Where to ask, and wrong arguments


def test_urls_of_jobs_are_batched_below_their_base(polling: Polling) -> None:
    """URLs that end in uuids, as resource URLs do, are split into base URL and uuid."""
    uuids = [uuid_of(n) for n in range(2)]
    for uuid in uuids:
        polling.server.answer(uuid, success(), below="/team/jobs")
    polling.page.evaluate(
        """(uuids) => uuids.forEach((uuid) =>
            follow(uuid, { jobUuid: null, url: `/team/jobs/${uuid}/` }))""",
        uuids,
    )
    for uuid in uuids:
        polling.wait(uuid, "success")
    [request] = polling.server.requests(below="/team")
    assert request.path == f"/team/jobs?uuid={uuids[0]}&uuid={uuids[1]}"


def test_another_origin_is_asked_if_allowed(polling: Polling) -> None:
    """With crossOrigin, the job may be elsewhere, and cookies are sent there."""
    elsewhere = PollServer()
    try:
        headers = {
            "Access-Control-Allow-Origin": polling.server.url,
            "Access-Control-Allow-Credentials": "true",
        }
        elsewhere.answer("job", Answer(body=state("success"), headers=headers))
        polling.page.context.add_cookies(
            [{"name": "session", "value": "alice", "url": elsewhere.url}]
        )
        polling.open("/page?connect=" + elsewhere.url)
        polling.follow("job", baseUrl=f"{elsewhere.url}/job_state", crossOrigin=True)
        assert polling.wait("job", "done")["outcome"] == "success"
        assert elsewhere.seen("job")[0].headers["cookie"] == "session=alice"
    finally:
        elsewhere.close()


def test_base_url_of_the_script_tag(polling: Polling) -> None:
    """data-base-url on the script's tag says where to look up bare uuids."""
    polling.server.answer("job", success(), below="/app/jobs")
    polling.open("/page?base=/app/jobs/")
    polling.follow("job")
    polling.wait("job", "success")


def test_base_url_option_wins_over_the_script_tag(polling: Polling) -> None:
    """The option baseUrl takes precedence over the script's tag."""
    polling.server.answer("job", success(), below="/other")
    polling.open("/page?base=/app/jobs")
    polling.follow("job", baseUrl="/other")
    polling.wait("job", "success")


def serve_script(server: PollServer, path: str) -> None:
    """Serve the script at another path."""
    server.pages[path] = (STATIC / "job-state.js").read_text("utf-8")


@pytest.mark.parametrize(
    "name",
    [
        *("job-state.js", "job-state.js?v=1", "job-state.js#top", "job-state.js?#"),
        *("job-state-3f2a91.js", "job-state.3f2a91.js", "job-state.min.js?v=/static/"),
    ],
)
def test_jobs_are_looked_up_where_the_script_lies(polling: Polling, name: str) -> None:
    """Without data-base-url, the script's own URL says where the jobs are."""
    polling.server.answer("job", success(), below="/app/jobs")
    path = f"/app/jobs/static/{name}"
    serve_script(polling.server, urlsplit(path).path)
    open_with(polling, "", f"<script src={path}></script>")
    polling.follow("job")
    polling.wait("job", "success")


@pytest.mark.parametrize(
    "path", ["/app/static/bundle.js", "/static/job-state.js", "/app/job-state.js"]
)
def test_scripts_elsewhere_do_not_say_where_jobs_are(
    polling: Polling, path: str
) -> None:
    """With a bundle or a copy elsewhere, jobs are polled at /job_state."""
    polling.server.answer("job", success())
    serve_script(polling.server, path)
    open_with(polling, "", f"<script src={path}></script>")
    polling.follow("job")
    polling.wait("job", "success")


def append_element(polling: Polling) -> None:
    """Put an element into the page, which fetches its style sheet."""
    polling.page.evaluate("document.body.append(new JobState.JobStateElement())")


@pytest.mark.parametrize(
    ("markup", "tag", "sheet"),
    [
        ("", "src=/job-state.js?x=a&y", "/job-state.css?x=a&y"),
        ("", "src=/job-state.js#top", "/job-state.css"),
        ("", "src=/job-state.js?x=a data-styles=/s/b.css", "/s/b.css"),
        ("", "src=/job-state.js data-styles=s/b.css", "/s/b.css"),
        ("<base href=/app/>", "src=/job-state.js data-styles=s/b.css", "/app/s/b.css"),
        ("", "src=/job-state.js data-styles", "/job-state.css"),
        ("", "src=/job-state.js data-styles=http://", "/job-state.css"),
    ],
)
def test_address_of_the_style_sheet(
    polling: Polling, markup: str, tag: str, sheet: str
) -> None:
    """The sheet has the script's query, or is the one that data-styles names."""
    path = urlsplit(sheet).path
    polling.server.answer(path[1:], Answer(body=""), below="")
    open_with(polling, markup, f"<script {tag}></script>")
    append_element(polling)
    [request] = wait_for(lambda: polling.server.seen(path[1:], below=""))
    assert request.path == sheet


def test_script_of_a_blob_finds_jobs_and_styles(
    page: Page, poll_server: PollServer
) -> None:
    """A script from a blob: URL uses the default paths."""
    poll_server.answer("static/job-state.css", Answer())
    poll_server.answer("job", success())
    page.goto(poll_server.url + "/empty")
    page.evaluate(
        """(source) => new Promise((resolve) => {
            const script = document.createElement("script");
            script.src = URL.createObjectURL(new Blob([source]));
            script.onload = resolve;
            document.head.append(script);
        })""",
        (STATIC / "job-state.js").read_text("utf-8"),
    )
    page.evaluate("document.body.append(new JobState.JobStateElement())")
    wait_for(lambda: poll_server.seen("static/job-state.css"))
    outcome = page.evaluate("JobState.startPolling({ jobUuid: 'job' }).done")
    assert outcome["outcome"] == "success"


def test_script_of_another_site_does_not_say_where_jobs_are(
    page: Page, poll_server: PollServer
) -> None:
    """With a script on a file server, jobs are polled on the page's own site."""
    elsewhere = PollServer()
    try:
        poll_server.answer("job", success())
        page.goto(poll_server.url + "/empty")
        page.add_script_tag(url=elsewhere.url + "/app/static/job-state.js")
        outcome = page.evaluate("JobState.startPolling({ jobUuid: 'job' }).done")
        assert outcome["outcome"] == "success"
    finally:
        elsewhere.close()


def test_url_of_the_job_is_taken_as_it_is(polling: Polling) -> None:
    """A url is requested as given, with its slash and query, relative to the page."""
    polling.server.answer("", success(), below="/jobs/job")
    polling.follow("job", jobUuid=None, url="jobs/job/?of=alice")
    polling.wait("job", "success")
    [request] = polling.server.seen("", below="/jobs/job")
    assert request.path == "/jobs/job/?of=alice"


PERIOD = "pollingPeriod must be a positive number of milliseconds"
ELSEWHERE = "is of another origin, which needs crossOrigin: true"
UNSENDABLE = "csrfHeader or csrfToken cannot be sent"
WRONG = {
    "": "an object of options is needed",
    "null": "an object of options is needed",
    "{}": "give either jobUuid or url",
    "{jobUuid: 'a', url: '/a'}": "give either jobUuid or url",
    "{jobUuid: 7}": "jobUuid must be a string",
    "{jobUuid: ''}": "jobUuid is not a uuid",
    "{jobUuid: '..'}": "jobUuid is not a uuid",
    "{jobUuid: 'a', baseUrl: 7}": "baseUrl must be a string",
    "{jobUuid: 'a', baseUrl: 'http://a.test'}": f"baseUrl {ELSEWHERE}",
    "{url: 'http://a.test/job'}": f"url {ELSEWHERE}",
    "{jobUuid: 'a', baseUrl: 'ftp://x'}": "baseUrl must be an http(s) URL",
    "{url: 'http://'}": "url must be an http(s) URL",
    "{url: 'javascript:0'}": "url must be an http(s) URL",
    "{jobUuid: 'a', pollingPeriod: 0}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: '500'}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: NaN}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: Infinity}": PERIOD,
    "{jobUuid: 'a', update: 'x'}": "update must be a function",
    "{jobUuid: 'a', success: {}}": "success must be a function",
    "{jobUuid: 'a', error: 1}": "error must be a function",
    "{jobUuid: 'a', lost: true}": "lost must be a function",
    "{jobUuid: 'a', csrfToken: 7}": "csrfToken must be a string",
    "{jobUuid: 'a', csrfHeader: 7}": "csrfHeader must be a string",
    "{jobUuid: 'a', csrfHeader: 'X Token'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'X-Token:'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'X-Tökèn'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'X-Token\\n'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'Cookie'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'sec-token'}": UNSENDABLE,
    "{jobUuid: 'a', csrfToken: 'a\\nb'}": UNSENDABLE,
    "{jobUuid: 'a', csrfToken: '…'}": UNSENDABLE,
}


def test_wrong_signal_starts_nothing(polling: Polling) -> None:
    """A wrong signal is an error at the call, and no job is polled."""
    with pytest.raises(Error, match="TypeError"):
        polling.page.evaluate("JobState.startPolling({ jobUuid: 'a', signal: {} })")
    polling.wait_for_others()
    assert polling.server.seen("a") == []


def test_wrong_arguments_are_type_errors(polling: Polling) -> None:
    """A wrong argument raises a TypeError that names the call."""
    messages = {
        options: polling.page.evaluate(
            f"""() => {{
                try {{ JobState.startPolling({options}); }}
                catch (error) {{ return error instanceof TypeError && error.message; }}
            }}"""
        )
        for options in WRONG
    }
    assert messages == {o: f"JobState.startPolling: {w}" for o, w in WRONG.items()}
    assert polling.server.seen("a") == []


# Markup injected before the script


CLOBBERING = ["<img name={0}>", "<iframe name={0}></iframe>", "<a id={0}></a>" * 2]


def open_with(polling: Polling, markup: str, script: str = "") -> None:
    """Open a page with this markup before the script, or with another script tag."""
    script = script or "<script src=/job-state.js></script>"
    head = "<!doctype html><meta charset=utf-8><title>Poller</title>"
    harness = f"<script src={polling.server.url}/harness.js></script>"
    polling.server.pages["/marked"] = f"{head}{markup}{script}{harness}"
    polling.open("/marked")


@pytest.mark.parametrize(
    "forged",
    [
        "<img name=currentScript {}>",
        "<img name=currentScript {0}>" * 2,
        "<form name=currentScript {}></form>",
        "<embed name=currentScript {}>",
        "<object id=currentScript {}></object>",
        "<iframe name=currentScript {}></iframe>",
    ],
)
def test_only_a_script_says_where_jobs_are(polling: Polling, forged: str) -> None:
    """An element named currentScript changes neither the base URL nor the styles."""
    polling.server.answer("job", success(), below="/app")
    polling.server.answer("static/job-state.css", Answer(body=""), below="/app")
    script = "<script src=/app/static/job-state.js data-base-url=/app></script>"
    attributes = "data-base-url=/forged data-styles=/forged/x.css"
    attributes += f" src={polling.server.url}/forged/x"
    open_with(polling, forged.format(attributes), script)
    append_element(polling)
    wait_for(lambda: polling.server.seen("static/job-state.css", below="/app"))
    polling.follow("job")
    polling.wait("job", "success")
    asked = {request.path for request in polling.server.requests(below="/forged")}
    assert asked <= {"/forged/x"}  # by the forged element itself


@pytest.mark.parametrize("markup", CLOBBERING)
@pytest.mark.parametrize(
    "name",
    [
        *("hidden", "visibilityState", "baseURI", "location", "body"),
        *("addEventListener", "removeEventListener", "fetch", "JobState"),
        *("setTimeout", "self", "origin", "HTMLScriptElement", "customElements"),
    ],
)
def test_poller_minds_no_element_of_a_name(
    polling: Polling, name: str, markup: str
) -> None:
    """Elements named after what the script uses do not shadow it."""
    polling.server.answer("job", working(), success())
    open_with(polling, markup.format(name))
    polling.follow("job", jobUuid=None, url="job_state/job")
    polling.wait("job", "success")


def test_image_named_hidden_keeps_no_tab_awake(timed: Polling) -> None:
    """An element named hidden does not affect how a hidden or shown tab polls."""
    open_with(timed, "<img name=hidden><img name=visibilityState>")
    # Longer than a busy browser needs to hide the tab.
    timed.follow("job", working(), success(), pollingPeriod=20_000)
    timed.wait("job", "update")
    timed.page.evaluate("setHidden(true)")
    timed.page.clock.run_for(60_000)
    assert timed.asked("job") == 1
    timed.page.evaluate("setHidden(false)")
    timed.page.clock.run_for(50)
    timed.wait("job", "success")


@pytest.mark.parametrize("crossing", [False, True])
def test_base_of_another_site_is_not_followed(polling: Polling, crossing: bool) -> None:
    """With <base> pointing elsewhere, jobs and tokens still go to the page's site."""
    elsewhere = PollServer()
    try:
        posts = {"method": "POST"}
        elsewhere.answer("job", success())
        polling.server.answer("job/cancel", Answer(202, "{}"), **posts)
        url = polling.server.url
        script = f"<script src={url}/job-state.js></script>"
        open_with(polling, f"<base href={elsewhere.url}/>", script)
        options = {"crossOrigin": crossing, "csrfToken": "secret"}
        polling.follow("job", working(), **options)
        polling.wait("job", "update")
        assert polling.page.evaluate("cancel('job')") is True
        assert elsewhere.requests() == elsewhere.requests("POST") == []
    finally:
        elsewhere.close()


@pytest.mark.parametrize("styles", ["", "data-styles=static/job-state.css"])
def test_base_after_the_script_moves_no_sheet(polling: Polling, styles: str) -> None:
    """A <base> of another site after a deferred script does not get any request."""
    elsewhere = PollServer()
    try:
        for server in (elsewhere, polling.server):
            server.answer("job-state.css", Answer(), below="/app/static")
            server.answer("job-state.css", Answer(), below="/static")
            server.answer("job", success(), below="/app")
        script = f"<script defer src=/app/static/job-state.js {styles}></script>"
        open_with(polling, "", f"{script}<base href={elsewhere.url}/>")
        append_element(polling)
        below = "/static" if styles else "/app/static"
        wait_for(lambda: polling.server.seen("job-state.css", below=below))
        polling.follow("job")
        polling.wait("job", "success")
        assert elsewhere.requests(below="/") == []
    finally:
        elsewhere.close()


def test_base_of_the_same_site_is_followed(polling: Polling) -> None:
    """A relative URL of a job is relative to the page's own <base>."""
    polling.server.answer("job", success(), below="/app/jobs")
    open_with(polling, "<base href=/app/>", "<script src=/job-state.js></script>")
    polling.follow("job", jobUuid=None, url="jobs/job")
    polling.wait("job", "success")


def test_base_url_of_another_site_is_refused(polling: Polling) -> None:
    """A data-base-url of another origin is refused like the option."""
    polling.open("/page?base=http://a.test/jobs")
    message = polling.page.evaluate(
        """() => {
            try { JobState.startPolling({ jobUuid: "job" }); }
            catch (error) { return error.message; }
        }"""
    )
    assert message == f"JobState.startPolling: baseUrl {ELSEWHERE}"


def test_script_in_a_drawing_is_not_believed(polling: Polling) -> None:
    """An SVG script loads the poller, but its attributes are ignored."""
    polling.server.answer("job", success())
    script = "<script href=/job-state.js data-base-url=/forged></script>"
    open_with(polling, "", f"<svg>{script}</svg>")
    polling.follow("job")
    polling.wait("job", "success")


def test_script_may_stand_in_the_page(page: Page, poll_server: PollServer) -> None:
    """An inline script has no URL, and uses the default paths."""
    poll_server.answer("static/job-state.css", Answer())
    poll_server.answer("job", success())
    page.goto(poll_server.url + "/empty")
    page.add_script_tag(content=(STATIC / "job-state.js").read_text("utf-8"))
    page.evaluate("document.body.append(new JobState.JobStateElement())")
    wait_for(lambda: poll_server.seen("static/job-state.css"))
    outcome = page.evaluate("JobState.startPolling({ jobUuid: 'job' }).done")
    assert outcome["outcome"] == "success"


def test_script_defines_only_job_state(page: Page, poll_server: PollServer) -> None:
    """The script adds one name to the page."""
    page.goto(poll_server.url + "/empty")
    before = set(page.evaluate("Object.getOwnPropertyNames(window)"))
    page.add_script_tag(url="/job-state.js")
    after = set(page.evaluate("Object.getOwnPropertyNames(window)"))
    assert after - before == {"JobState"}
