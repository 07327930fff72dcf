"""JobState.startPolling in a real Chromium, against a server that follows a script."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Error, Page

from .pollserver import Answer, PollServer, error, state, success, working
from .support import wait_for


class Polling:
    """A page with pollers on it: what they asked, and what they were told."""

    def __init__(self, page: Page, server: PollServer) -> None:
        self.page = page
        self.server = server
        self.console: list[ConsoleMessage] = []
        self.uncaught: list[Error] = []
        page.on("console", lambda message: self.console.append(message))
        page.on("pageerror", lambda problem: self.uncaught.append(problem))

    def open(self, path: str = "/page") -> None:
        self.page.goto(self.server.url + path)

    def follow(
        self, name: str, *answers: Answer, harness: Any = None, **options: Any
    ) -> None:
        """Script the answers for a job and start a poller for it."""
        if answers:
            self.server.answer(name, *answers)
        self.page.evaluate(
            "([name, options, harness]) => follow(name, options, harness)",
            [name, options, harness or {}],
        )

    def told(self, name: str, callback: str | None = None) -> list[Any]:
        """What a callback was told so far; without one, which were called, in order."""
        calls = [c for c in self.page.evaluate("calls") if c["name"] == name]
        if callback is None:
            return [c["callback"] for c in calls]
        return [c["value"] for c in calls if c["callback"] == callback]

    def wait(self, name: str, callback: str) -> Any:
        """Wait until a callback was called; the last thing it was told."""
        return wait_for(lambda: self.told(name, callback))[-1]

    def wait_for_requests(self, name: str, count: int, method: str = "GET") -> None:
        wait_for(lambda: len(self.server.seen(name, method)) >= count)

    def asked(self, name: str) -> int:
        """How often the page has asked, whether or not the server knows yet."""
        urls = self.page.evaluate("asked")
        return sum(url.endswith(f"/job_state/{name}") for url in urls)

    def wait_for_others(self) -> None:
        """Let as much time pass as another poller needs for four answers."""
        name = f"other-{len(self.page.evaluate('Object.keys(pollers)'))}"
        self.follow(name, *[working()] * 3, success())
        self.wait(name, "done")

    def warnings(self, kind: str) -> list[str]:
        return [message.text for message in self.console if message.type == kind]


@pytest.fixture
def poll_server() -> Iterator[PollServer]:
    """A server whose answers the test writes."""
    server = PollServer()
    yield server
    server.close()


@pytest.fixture
def polling(page: Page, poll_server: PollServer) -> Iterator[Polling]:
    """A page to poll from, on which nothing goes uncaught or against the policy."""
    polling = Polling(page, poll_server)
    polling.open()
    yield polling
    assert polling.uncaught == []
    assert [w for w in polling.warnings("error") if "Security Policy" in w] == []


# Following a job to its end


def test_poller_calls_success_once_with_the_data(polling: Polling) -> None:
    """A job that has succeeded is told to update, success and done, in this order."""
    polling.follow("job", success(miles_run=26))
    outcome = polling.wait("job", "done")
    assert polling.told("job") == ["update", "success", "done"]
    data = polling.told("job", "success")[0]
    assert data["miles_run"] == 26
    assert polling.told("job", "update") == [data]
    assert outcome == {"outcome": "success", "data": data, "reason": None}


def test_poller_calls_error_once_with_the_data(polling: Polling) -> None:
    """A job that has failed is told to update, error and done, in this order."""
    polling.follow("job", error(miles_run=3))
    outcome = polling.wait("job", "done")
    assert polling.told("job") == ["update", "error", "done"]
    data = polling.told("job", "error")[0]
    assert data["job"]["error"] == {"message": "The job failed."}
    assert outcome == {"outcome": "error", "data": data, "reason": None}


def test_poller_calls_update_with_every_new_state(polling: Polling) -> None:
    """Each answer reaches update as the server gave it."""
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
    """The first question does not wait for a period."""
    polling.follow("job", working(), pollingPeriod=3_600_000)
    polling.wait("job", "update")


def test_poller_takes_any_callback_as_optional(polling: Polling) -> None:
    """A poller without callbacks still resolves done."""
    polling.follow("job", working(), success(), harness={"callbacks": []})
    assert polling.wait("job", "done")["outcome"] == "success"


def test_poller_waits_a_period_after_each_answer(polling: Polling) -> None:
    """With a server slower than the period no two requests are in flight at a time."""
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
    """A period of next to nothing is stretched to 50 ms."""
    polling.follow("job", *[working()] * 3, success(), pollingPeriod=0.001)
    polling.wait("job", "done")
    seen = polling.server.seen("job")
    assert seen[3].began - seen[0].began >= 3 * 0.048


def test_poller_does_not_hammer_with_a_period_of_months(polling: Polling) -> None:
    """A period that no browser timer can hold is not taken for zero."""
    polling.follow("job", working(), pollingPeriod=2**40)
    polling.wait("job", "update")
    polling.wait_for_others()
    assert len(polling.server.seen("job")) == 1


def test_pollers_on_one_page_are_independent(polling: Polling) -> None:
    """Several jobs on a page each get their own data and their own end."""
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
    """The request carries the session's cookie and accepts JSON only."""
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
    """A 304 is an answer: polling goes on, and update is spared the same data."""
    polling.follow("job", working('"a"', n=1), Answer(304), Answer(304), success(n=2))
    polling.wait("job", "done")
    sent = [r.headers.get("if-none-match") for r in polling.server.seen("job")]
    assert sent == [None, '"a"', '"a"', '"a"']
    assert [d["n"] for d in polling.told("job", "update")] == [1, 2]


def test_not_modified_after_an_outage_is_an_update(polling: Polling) -> None:
    """A page that showed the outage learns that it is over, though nothing changed."""
    polling.follow("job", working('"a"', n=1), Answer(503), Answer(304), success())
    polling.wait("job", "done")
    assert polling.told("job") == [
        *("update", "lost", "update", "update", "success", "done")
    ]


def test_not_modified_unasked_is_final(polling: Polling) -> None:
    """A 304 without data to go with it ends the poller rather than loop for ever."""
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
    """An outage is told to lost once, and update goes on after it."""
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
    """A second outage is told again, and backs off from the start."""
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
    assert polling.page.evaluate("delays") == [1998, 3996, 7992, 15984]


def test_back_off_is_spread_by_chance_and_bounded(polling: Polling) -> None:
    """Chance takes up to a half off a pause, which is half a minute at most."""
    polling.page.evaluate("hurry(0)")
    polling.follow("job", *[Answer(500)] * 6, success(), pollingPeriod=1001)
    polling.wait("job", "done")
    delays = polling.page.evaluate("delays")
    assert delays == [1001, 2002, 4004, 8008, 15_000, 15_000]


def test_back_off_is_never_shorter_than_the_period(polling: Polling) -> None:
    """A poller with a period of minutes does not ask sooner because of a failure."""
    polling.follow("job", Answer(500), pollingPeriod=120_000)
    assert polling.wait("job", "lost")["retryIn"] == 120_000


def test_retry_after_in_seconds_is_honoured(polling: Polling) -> None:
    """The poller stays away as long as the server asks, even if the tab is shown."""
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
    """Dates go by the server's clock, a bound holds, and nonsense is ignored."""
    date = "Thu, 01 Jan 2015 00:00:00 GMT"
    headers = {"Date": date, "Retry-After": retry_after}
    polling.follow("job", Answer(429, headers=headers), success())
    assert low <= polling.wait("job", "lost")["retryIn"] <= high


def test_hanging_request_counts_as_an_outage(polling: Polling) -> None:
    """A request without an answer is given up after 30 seconds, and asked again."""
    polling.page.clock.install()
    polling.open()
    hold = threading.Event()
    polling.follow("job", Answer(hold=hold), success())
    polling.wait_for_requests("job", 1)
    polling.page.clock.run_for(29_000)
    assert polling.told("job") == []
    polling.page.clock.run_for(1_000)
    reason = polling.wait("job", "lost")
    assert (reason["code"], reason["final"]) == ("timeout", False)
    polling.page.clock.run_for(100)
    assert polling.wait("job", "done")["outcome"] == "success"


def test_poller_survives_a_server_restart(polling: Polling) -> None:
    """A server that is gone and comes back is found again."""
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
    """An answer that cannot get better is told to lost as final; nobody asks again."""
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
    """After a passing loss the final one is told as well."""
    polling.follow("job", Answer(503), Answer(404))
    polling.wait("job", "done")
    assert [r["final"] for r in polling.told("job", "lost")] == [False, True]


def test_final_trouble_that_nobody_hears_is_written_to_the_console(
    polling: Polling,
) -> None:
    """Without a lost callback the console says why the page stands still."""
    polling.follow("job", Answer(404), harness={"callbacks": ["update"]})
    outcome = polling.wait("job", "done")
    assert outcome["data"] is None
    assert polling.warnings("warning") == [f"JobState: {outcome['reason']['message']}"]


# Stopping


def test_stop_ends_the_poller(polling: Polling) -> None:
    """After stop() nobody asks and no callback is called."""
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
    """stop() resolves done though the server never answers."""
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
    """A page that stops in update hears no success."""
    polling.follow("job", success(), harness={"stopIn": "update"})
    assert polling.wait("job", "done")["outcome"] == "stopped"
    assert polling.told("job") == ["update", "done"]


def test_abort_signal_stops_the_poller(polling: Polling) -> None:
    """Aborting the signal is the same as stop()."""
    polling.follow("job", Answer(hold=threading.Event()), signal=True)
    polling.wait_for_requests("job", 1)
    polling.page.evaluate("aborters.job.abort()")
    assert polling.wait("job", "done")["outcome"] == "stopped"
    assert polling.told("job") == ["done"]


def test_ended_poller_lets_go_of_its_signal(polling: Polling) -> None:
    """A signal that outlives many pollers does not keep them."""
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
    """With a signal that is aborted already nothing is asked."""
    polling.follow("job", success(), signal="aborted")
    assert polling.wait("job", "done")["outcome"] == "stopped"
    polling.wait_for_others()
    assert polling.server.seen("job") == []


# Callbacks that throw


def test_throwing_callback_does_not_stop_the_poller(polling: Polling) -> None:
    """What callbacks throw goes to the console, and the poller goes on to the end."""
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
    """cancel() is true for a 202 and false for a job that has ended."""
    polling.server.answer("job/cancel", Answer(status, "{}"), method="POST")
    polling.follow("job", working())
    assert polling.page.evaluate("cancel('job')") is accepted
    [request] = polling.server.seen("job/cancel", "POST")
    assert request.headers["x-requested-with"] == "XMLHttpRequest"
    assert request.headers["cookie"] == "session=alice"
    assert "x-csrf-token" not in request.headers


def test_cancel_polls_at_once(polling: Polling) -> None:
    """The page need not wait a period to see that a job was cancelled."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", working(), error(), pollingPeriod=3_600_000)
    polling.wait("job", "update")
    polling.page.evaluate("cancel('job')")
    polling.wait("job", "error")


def test_cancel_does_not_trust_an_older_question(polling: Polling) -> None:
    """A request in flight while cancelling is followed by another one at once."""
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
    """The application's CSRF protection gets its token."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", working(), csrfToken="t0ken")
    polling.page.evaluate("cancel('job')")
    [request] = polling.server.seen("job/cancel", "POST")
    assert request.headers["x-csrf-token"] == "t0ken"


@pytest.mark.parametrize(
    ("answer", "code", "status", "words"),
    [
        (Answer(403), "status", 403, "The server answered 403: not allowed."),
        (Answer(200, "{}"), "status", 200, "The server answered 200."),
        (Answer(302, headers={"Location": "/login"}), "redirect", 0, "login page"),
        (Answer(drop=True), "network", 0, "cannot be reached"),
    ],
    ids=["403", "200", "redirect", "dropped"],
)
def test_cancel_rejects_when_refused(
    polling: Polling, answer: Answer, code: str, status: int, words: str
) -> None:
    """A cancel that did not get through is a readable Error; the poller goes on."""
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
    """A page that no longer watches may still cancel, and asks nothing more."""
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    polling.follow("job", success())
    polling.wait("job", "done")
    assert polling.page.evaluate("cancel('job')") is True
    polling.wait_for_others()
    assert len(polling.server.seen("job")) == 1


# Hidden, left and offline pages


def test_hidden_tab_sleeps_and_asks_when_shown(polling: Polling) -> None:
    """No timer runs in a hidden tab; showing it asks at once."""
    polling.page.clock.install()
    polling.open()
    polling.follow("job", working(), success(), pollingPeriod=3_600_000)
    polling.wait("job", "update")
    polling.page.evaluate("setHidden(true)")
    polling.page.clock.run_for(2 * 3_600_000)
    assert polling.asked("job") == 1
    polling.page.evaluate("setHidden(false)")
    polling.page.clock.run_for(50)
    polling.wait("job", "success")


def test_answer_that_comes_while_hidden_counts(polling: Polling) -> None:
    """The answer to a tab that was hidden meanwhile is told, and no other asked for."""
    polling.page.clock.install()
    polling.open()
    hold = threading.Event()
    polling.follow("job", Answer(body=state("working"), hold=hold))
    polling.wait_for_requests("job", 1)
    polling.page.evaluate("setHidden(true)")
    hold.set()
    polling.wait("job", "update")
    polling.page.clock.run_for(60_000)
    assert polling.asked("job") == 1


def test_poller_started_in_a_hidden_tab_waits(polling: Polling) -> None:
    """A tab opened in the background asks when it is first shown."""
    polling.page.clock.install()
    polling.open()
    polling.page.evaluate("setHidden(true)")
    polling.follow("job", success())
    polling.page.clock.run_for(60_000)
    assert polling.asked("job") == 0
    polling.page.evaluate("setHidden(false)")
    polling.wait("job", "success")


def test_flickering_tab_does_not_hammer(polling: Polling) -> None:
    """However often a tab is shown, one request is in flight, and pauses are kept."""
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
    """Coming back from the back/forward cache or to the network is worth a look."""
    polling.follow("job", working(), success(), pollingPeriod=3_600_000)
    polling.wait("job", "update")
    polling.page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
    polling.wait("job", "success")


@pytest.mark.parametrize("awhile", [True, False])
def test_leaving_a_page_is_no_outage(polling: Polling, awhile: bool) -> None:
    """The request that leaving a page cuts off is asked again when it returns."""
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
def test_left_page_asks_nothing(polling: Polling, answers: int) -> None:
    """Whether a question is on its way or not, a page that is left falls silent."""
    polling.page.clock.install()
    polling.open()
    held = Answer(hold=threading.Event())
    polling.follow("job", *[working()] * answers, held, pollingPeriod=10_000)
    wait_for(lambda: polling.told("job") == ["update"] * answers)
    polling.page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    polling.page.clock.run_for(60_000)
    polling.page.clock.run_for(60_000)
    assert polling.asked("job") == 1


# Where to ask, and wrong arguments


def test_base_url_of_the_script_tag(polling: Polling) -> None:
    """data-base-url on the script's tag says where bare uuids are looked up."""
    polling.server.answer("job", success(), below="/app/jobs")
    polling.open("/page?base=/app/jobs/")
    polling.follow("job")
    polling.wait("job", "success")


def test_base_url_option_wins_over_the_script_tag(polling: Polling) -> None:
    """The option baseUrl is nearer than the script's tag."""
    polling.server.answer("job", success(), below="/other")
    polling.open("/page?base=/app/jobs")
    polling.follow("job", baseUrl="/other")
    polling.wait("job", "success")


def test_url_of_the_job_is_taken_as_it_is(polling: Polling) -> None:
    """A url is asked as given, with its slash and query, relative to the page."""
    polling.server.answer("", success(), below="/jobs/job")
    polling.follow("job", jobUuid=None, url="jobs/job/?of=alice")
    polling.wait("job", "success")
    [request] = polling.server.seen("", below="/jobs/job")
    assert request.path == "/jobs/job/?of=alice"


PERIOD = "pollingPeriod must be a positive number of milliseconds"
WRONG = {
    "": "an object of options is needed",
    "null": "an object of options is needed",
    "{}": "give either jobUuid or url",
    "{jobUuid: 'a', url: '/a'}": "give either jobUuid or url",
    "{jobUuid: 7}": "jobUuid must be the uuid of a job, as a string",
    "{jobUuid: ''}": "jobUuid must be the uuid of a job, as a string",
    "{jobUuid: '..'}": "jobUuid must be the uuid of a job, as a string",
    "{jobUuid: 'a', baseUrl: 7}": "baseUrl must be a string",
    "{jobUuid: 'a', baseUrl: 'ftp://x'}": "baseUrl is no http(s) URL",
    "{url: 'http://'}": "url is no http(s) URL",
    "{url: 'javascript:0'}": "url is no http(s) URL",
    "{jobUuid: 'a', pollingPeriod: 0}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: '500'}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: NaN}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: Infinity}": PERIOD,
    "{jobUuid: 'a', update: 'x'}": "update must be a function",
    "{jobUuid: 'a', success: {}}": "success must be a function",
    "{jobUuid: 'a', error: 1}": "error must be a function",
    "{jobUuid: 'a', lost: true}": "lost must be a function",
    "{jobUuid: 'a', csrfToken: 7}": "csrfToken must be a string",
    "{jobUuid: 'a', signal: {}}": "signal must be an AbortSignal",
}


def test_wrong_arguments_are_type_errors(polling: Polling) -> None:
    """A wrong argument is a TypeError at the call that names it."""
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


def test_script_defines_only_job_state(page: Page, poll_server: PollServer) -> None:
    """The script adds one name to the page."""
    page.goto(poll_server.url + "/empty")
    before = set(page.evaluate("Object.getOwnPropertyNames(window)"))
    page.add_script_tag(url="/job-state.js")
    after = set(page.evaluate("Object.getOwnPropertyNames(window)"))
    assert after - before == {"JobState"}
