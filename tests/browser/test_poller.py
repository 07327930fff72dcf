"""JobState.startPolling for one job, in a real Chromium, against a server with scripted
answers.
"""

import itertools
from typing import Any

import pytest

from tests.browser.polling import HOUR
from tests.pollserver import (
    Answer,
    Request,
    error,
    held,
    release,
    state,
    success,
    working,
)
from tests.support import wait_for


def pauses(requests: list[Request]) -> list[float]:
    """How many seconds lie between an answer and the next request."""
    return [
        later.began - (earlier.ended or later.began)
        for earlier, later in itertools.pairwise(requests)
    ]


# Following a job to its end


@pytest.mark.promise("callbacks-are-called-once")
def test_poller_follows_its_job_to_the_end(polling):
    """Each answer reaches update unchanged; the end calls success or error once, and
    resolves done. An ended job costs the server nothing.
    """
    polling.follow("one", working(miles=1), working(miles=2), success(miles=26))
    polling.follow("two", error(miles=3))
    outcome, failure = (polling.wait(name, "done") for name in ("one", "two"))
    assert polling.told("one") == [*["update"] * 3, "success", "done"]
    assert [data.get("miles") for data in polling.told("one", "update")] == [1, 2, 26]
    [data] = polling.told("one", "success")
    assert outcome == {"outcome": "success", "data": data, "reason": None}
    assert polling.told("two") == ["update", "error", "done"]
    [data] = polling.told("two", "error")
    assert data["job"]["error"] == {"message": "The job failed."}
    assert failure == {"outcome": "error", "data": data, "reason": None}
    polling.wait_for_others()
    assert len(polling.server.seen("one")) == 3
    assert len(polling.server.seen("two")) == 1


def test_poller_sends_cookies_and_asks_for_json(polling):
    """The first request does, at once. A metric named __proto__ is a plain property."""
    body = state("success").replace("{", '{"__proto__": {"polluted": true}, ', 1)
    polling.follow("job", Answer(body=body), pollingPeriod=HOUR)
    polling.wait("job", "done")
    [request] = polling.server.seen("job")
    assert request.headers["accept"] == "application/json"
    assert request.headers["cookie"] == "session=alice"
    assert "if-none-match" not in request.headers
    assert polling.page.evaluate(
        "({}).polluted === undefined"
        " && Object.getPrototypeOf(raw[0]) === Object.prototype"
        " && Object.getOwnPropertyNames(raw[0]).includes('__proto__')"
    )


def test_poller_waits_a_period_after_each_answer(polling):
    """Requests do not overlap if the server is slow; a tiny period is raised to 50 ms,
    and one that is too long for the browser's timers does not become zero.
    """
    slow = [Answer(body=state("working"), delay=0.1) for _ in range(3)]
    polling.follow("slow", *slow, success(), baseUrl="/slow", pollingPeriod=60)
    quick = [*[working()] * 3, success()]
    polling.follow("quick", *quick, baseUrl="/quick", pollingPeriod=0.001)
    polling.follow("months", working(), baseUrl="/months", pollingPeriod=2**40)
    for name, least in ("slow", 0.058), ("quick", 0.048):
        polling.wait(name, "done")
        seen = polling.seen_apart(name)
        assert len(seen) == 4
        assert min(pauses(seen)) >= least, name
    assert len(polling.seen_apart("months")) == 1


# Unchanged data


def test_poller_sends_the_last_etag(polling):
    """The ETag of the last data is the next If-None-Match. A 304 calls update only to
    end an outage, and is final if there was no data.
    """
    a = working('"a"', n=1)
    cases = {
        "changing": [a, working('W/"b"'), working(), success()],
        "same": [a, Answer(304), Answer(304), success(n=2)],
        "outage": [a, Answer(503), Answer(304), success()],
        "unasked": [Answer(304)],
    }
    polling.follow_apart(cases)
    polling.wait_for_all("done", 4)
    sent = {
        name: [r.headers.get("if-none-match") for r in polling.seen_apart(name)]
        for name in ("changing", "same")
    }
    assert sent["changing"] == [None, '"a"', 'W/"b"', None]
    assert sent["same"] == [None, '"a"', '"a"', '"a"']
    assert [data["n"] for data in polling.told("same", "update")] == [1, 2]
    assert polling.told("outage") == [
        *("update", "lost", "update", "update", "success", "done")
    ]
    assert polling.told("unasked", "done")[0]["outcome"] == "lost"


# Trouble that passes

PASSING = {
    "500": (Answer(500, "<h1>Oops"), "status", 500),
    "503": (Answer(503, '{"error": "…"}'), "status", 503),
    "429": (Answer(429), "status", 429),
    "408": (Answer(408), "status", 408),
    "dropped": (Answer(drop=True), "network", 0),
}


def test_passing_trouble_is_told_once_and_survived(polling):
    """An outage calls lost once; update is called again after it."""
    for name, (trouble, _, _) in PASSING.items():
        answers = [working(), trouble, trouble, working(), success()]
        polling.follow_apart({name: answers})
    polling.wait_for_all("done", len(PASSING))
    for name, (_, code, status) in PASSING.items():
        assert polling.told(name) == [
            *("update", "lost", "update", "update", "success", "done")
        ], name
        [reason] = polling.told(name, "lost")
        assert (reason["code"], reason["status"]) == (code, status), name
        assert reason["final"] is False
        assert 50 <= reason["retryIn"] <= 100
        assert reason["message"].startswith("The server ")


@pytest.mark.promise("script-survives-outages")
def test_pauses_double_until_the_outage_is_over(paused):
    """Each failure doubles the pause, which chance shortens by up to a half, to half a
    minute at most and the period at least. The next outage begins anew, and is told.
    """

    def check_pauses(*pauses: int) -> None:
        for pause in pauses:
            count = paused.page.evaluate("asked.length")
            wait_for(lambda: paused.page.evaluate("answered === asked.length"))
            # By the time of another answer, the poller has read this one.
            paused.page.evaluate("reallyFetch('/empty').then(() => null)")
            paused.advance(pause - 1)
            assert paused.page.evaluate("asked.length") == count, pause
            paused.advance(1)
            assert paused.page.evaluate("asked.length") == count + 1, pause

    paused.page.evaluate("Math.random = () => 1; null")
    bad = Answer(500)
    paused.follow("one", *[bad] * 4, working(), bad, success(), pollingPeriod=1000)
    paused.advance(10)
    check_pauses(2000, 4000, 8000, 16_000, 1000, 2000)
    paused.wait("one", "done")
    reasons = paused.told("one", "lost")
    assert [reason["retryIn"] for reason in reasons] == [2000, 2000]
    paused.page.evaluate("Math.random = () => 0; null")
    paused.follow("two", *[bad] * 6, success(), pollingPeriod=1000)
    paused.advance(10)
    check_pauses(1000, 2000, 4000, 8000, 15_000, 15_000)


RETRY_AFTER: dict[str, tuple[str, int, int]] = {
    "date": ("Thu, 01 Jan 2015 00:01:30 GMT", 90_000, 90_050),
    "day": ("86400", 300_000, 300_050),
    "nonsense": ("soon", 50, 100),
    "negative": ("-5", 50, 100),
}


def test_retry_after_is_honoured_with_care(polling):
    """The poller waits as long as the server asks, even if the tab is shown. Dates are
    read by the server's clock and limited, and nonsense is ignored.
    """
    polling.follow("job", Answer(503, headers={"Retry-After": "1"}), success())
    assert 1000 <= polling.wait("job", "lost")["retryIn"] <= 1050
    date = "Thu, 01 Jan 2015 00:00:00 GMT"
    for name, (value, _, _) in RETRY_AFTER.items():
        limited = Answer(429, headers={"Date": date, "Retry-After": value})
        polling.follow_apart({name: [limited, success()]})
    # A failure does not make a poller with a long period ask sooner.
    polling.follow("minutes", Answer(500), baseUrl="/late", pollingPeriod=120_000)
    polling.wait_for_all("lost", len(RETRY_AFTER) + 2)
    polling.hide()
    polling.hide(hidden=False)
    for name, (_, low, high) in RETRY_AFTER.items():
        assert low <= polling.told(name, "lost")[0]["retryIn"] <= high, name
    assert polling.told("minutes", "lost")[0]["retryIn"] == 120_000
    polling.wait("job", "done")
    assert pauses(polling.server.seen("job"))[0] >= 0.998


def test_hanging_request_counts_as_an_outage(timed):
    """A request without an answer is given up after 30 seconds, and repeated."""
    timed.follow("job", held(), success())
    timed.wait_for_requests("job", 1)
    timed.advance(20_000)
    assert timed.told("job") == []
    timed.advance(10_000)
    reason = timed.wait("job", "lost")
    assert (reason["code"], reason["final"]) == ("timeout", False)
    timed.advance(100)
    assert timed.wait("job", "done")["outcome"] == "success"


# Trouble that does not pass

FINAL = {
    **{str(status): (Answer(status), "status", status) for status in (400, 401, 403)},
    **{str(status): (Answer(status), "status", status) for status in (404, 410)},
    "redirect": (Answer(302, headers={"Location": "/login"}), "redirect", 0),
    "html": (Answer(200, "<!doctype html><p>Log in"), "format", 200),
    "null": (Answer(200, "null"), "format", 200),
    "odd": (Answer(200, '{"job_state": "odd", "job": {}}'), "format", 200),
}


def test_final_trouble_ends_the_poller(polling):
    """It calls lost with a final reason, also after trouble that would have passed."""
    polling.server.answer("", success(), below="/login")
    polling.follow_apart(
        {name: [working(n=1), odd, success()] for name, (odd, _, _) in FINAL.items()}
    )
    polling.follow("outage", Answer(503), Answer(404))
    polling.wait_for_all("done", len(FINAL) + 1)
    polling.wait_for_others()
    for name, (_, code, status) in FINAL.items():
        assert polling.told(name) == ["update", "lost", "done"], name
        [reason] = polling.told(name, "lost")
        assert (reason["code"], reason["status"]) == (code, status), name
        assert reason["final"] is True
        [outcome] = polling.told(name, "done")
        assert (outcome["outcome"], outcome["reason"]) == ("lost", reason)
        assert outcome["data"]["n"] == 1
        assert len(polling.seen_apart(name)) == 2, name
    assert polling.server.requests(below="/login") == []
    assert [r["final"] for r in polling.told("outage", "lost")] == [False, True]


def test_final_trouble_that_nobody_hears_is_written_to_the_console(polling):
    """Without a lost callback, the console explains why the page stands still."""
    polling.follow("job", Answer(404), harness={"callbacks": ["update"]})
    outcome = polling.wait("job", "done")
    assert outcome["data"] is None
    assert polling.warnings("warning") == [f"JobState: {outcome['reason']['message']}"]


def test_throwing_callback_does_not_stop_the_poller(polling):
    """What callbacks throw is logged to the console, and the poller goes on."""
    throwing = ["update", "lost", "success"]
    harness = {"throwing": throwing}
    polling.follow("job", working(), Answer(503), success(), harness=harness)
    assert polling.wait("job", "done")["outcome"] == "success"
    assert polling.told("job") == ["update", "lost", "update", "success", "done"]
    for callback in throwing:
        reports = [w for w in polling.warnings("error") if f'"{callback}"' in w]
        assert f"thrown in {callback}" in reports[0]


# Stopping


def test_stop_is_the_last_word(polling):
    """No request or callback follows, not even that of an end that is being told."""
    polling.follow("job", working(n=1))
    polling.wait("job", "update")
    polling.page.evaluate("pollers.job.stop(); pollers.job.stop(); calls.length = 0")
    outcome = polling.wait("job", "done")
    assert (outcome["outcome"], outcome["reason"]) == ("stopped", None)
    assert outcome["data"]["n"] == 1
    asked = len(polling.server.seen("job"))
    polling.follow("other", success(), harness={"stopIn": "update"})
    assert polling.wait("other", "done")["outcome"] == "stopped"
    assert polling.told("other") == ["update", "done"]
    polling.wait_for_others()
    assert polling.told("job") == ["done"]
    assert len(polling.server.seen("job")) <= asked + 1


def test_poller_is_stopped_whatever_it_waits_for(polling):
    """stop() and the signal abort the request. With an aborted signal, none is sent."""
    failed: list[str] = []

    def hear(request: Any) -> None:
        failed.append(request.url)

    polling.page.on("requestfailed", hear)
    polling.follow("job", held())
    polling.follow("signalled", held(), baseUrl="/other", signal=True)
    polling.follow("never", success(), baseUrl="/never", signal="aborted")
    polling.wait_for_requests("job", 1)
    polling.wait_for_more("/other", 0)
    polling.page.evaluate("pollers.job.stop(); aborters.signalled.abort()")
    for name in "job", "signalled", "never":
        outcome = polling.wait(name, "done")
        assert outcome == {"outcome": "stopped", "data": None, "reason": None}
        assert polling.told(name) == ["done"]
    wait_for(lambda: polling.page.evaluate("1") and len(failed) == 2)
    assert polling.server.requests(below="/never") == []
    polling.page.remove_listener("requestfailed", hear)


# Cancelling

ACCEPTED = Answer(202, "{}")


def test_cancel_says_whether_the_job_will(polling):
    """True for a 202, false for a job that has ended. A stopped poller asks no more."""
    polling.server.answer("one/cancel", ACCEPTED, method="POST")
    polling.server.answer("two/cancel", Answer(409, "{}"), method="POST")
    polling.follow("one", working())
    polling.follow("two", success())
    polling.wait("two", "done")
    asked = len(polling.server.seen("two"))
    assert polling.cancel("one") is True
    assert polling.cancel("two") is False
    [request] = polling.server.seen("one/cancel", "POST")
    assert request.headers["x-requested-with"] == "XMLHttpRequest"
    assert request.headers["cookie"] == "session=alice"
    assert "x-csrf-token" not in request.headers
    polling.wait_for_others()
    assert len(polling.server.seen("two")) == asked


def test_cancel_is_followed_by_a_poll_at_once(polling):
    """It is, without waiting a period, and after an answer that was on its way."""
    early = held()
    cases = {"quick": [working(), error()], "late": [early, error()]}
    for name in cases:
        place = f"{name}/cancel"
        polling.server.answer(place, ACCEPTED, method="POST", below=f"/{name}")
    polling.follow_apart(cases, pollingPeriod=HOUR)
    polling.wait("quick", "update")
    wait_for(lambda: polling.seen_apart("late"))
    for name in cases:
        assert polling.cancel(name) is True
    assert len(polling.seen_apart("late")) == 1
    release(early)
    for name in cases:
        polling.wait(name, "error")


@pytest.mark.promise("unsafe-requests-need-a-token")
def test_cancel_sends_the_csrf_token_in_the_header_asked_for(polling):
    """The option csrfHeader replaces the usual header, unless it is empty."""
    cases = {"own": "X-XSRF-TOKEN", "empty": "", "none": None}
    for name, header in cases.items():
        polling.server.answer(f"{name}/cancel", ACCEPTED, method="POST")
        polling.follow(name, working(), csrfToken="t0ken", csrfHeader=header)
        assert polling.cancel(name) is True
        [request] = polling.server.seen(f"{name}/cancel", "POST")
        sent = [n for n, v in request.headers.items() if v == "t0ken"]
        assert sent == ["x-xsrf-token" if header else "x-csrf-token"], name


REFUSED = {
    "400": (Answer(400, "{}"), "status", 400, "The server answered 400."),
    "csrf": (Answer(400, "The CSRF check"), "csrf", 400, "The CSRF header or token"),
    "500": (Answer(500, "CSRF"), "status", 500, "The server answered 500."),
    "403": (Answer(403), "status", 403, "You may not do this."),
    "200": (Answer(200, "{}"), "status", 200, "The server answered 200."),
    "302": (Answer(302, headers={"Location": "/"}), "redirect", 0, "login page"),
    "dropped": (Answer(drop=True), "network", 0, "cannot be reached"),
}


def test_cancel_rejects_when_refused(polling):
    """A cancel that fails rejects with a readable Error; the poller goes on."""
    for name, (answer, code, status, words) in REFUSED.items():
        polling.server.answer(f"{name}/cancel", answer, method="POST")
        polling.follow(name, working())
        problem = polling.cancel(name)
        assert problem["rejected"] is True
        assert (problem["code"], problem["status"]) == (code, status), name
        assert words in problem["message"]
        polling.server.answer(name, success())
        polling.wait(name, "success")


# Hidden, left and offline pages


def test_hidden_tab_sleeps_and_asks_when_shown(timed):
    """No timer runs in a hidden tab, also if it was never shown; showing it asks at
    once. A laptop that slept asks once, however long that was.
    """
    timed.hide()
    timed.follow("job", working(), pollingPeriod=HOUR)
    timed.advance(60_000)
    assert timed.asks("job") == 0
    for count in (1, 2):
        timed.hide(hidden=False)
        timed.advance(50)
        timed.wait_for_updates("job", count)
        timed.hide()
        timed.advance(2 * HOUR)
        assert timed.asks("job") == count
    timed.hide(hidden=False)
    timed.advance(50)
    timed.wait_for_updates("job", 3)
    timed.server.answer("job", success())
    timed.page.clock.fast_forward(8 * HOUR)
    timed.wait("job", "success")
    assert timed.asks("job") == 4


def test_returning_page_asks_at_once(polling):
    """It returns from the cache or goes online. A widget's pagehide changes nothing."""
    polling.follow("job", working(), pollingPeriod=HOUR)
    hide = "new Event('pagehide', { bubbles: true })"
    polling.page.evaluate(f"document.documentElement.dispatchEvent({hide})")
    for count, event in enumerate(("pageshow", "online"), 1):
        polling.wait_for_updates("job", count)
        polling.page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
    polling.wait_for_updates("job", 3)
