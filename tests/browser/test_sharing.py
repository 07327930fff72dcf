"""Pollers of several jobs of one base URL, which share their requests, in a real
Chromium.
"""

from __future__ import annotations

import itertools
import json

from tests.browser.polling import HOUR, Polling, follow_all
from tests.browser.test_poller import ACCEPTED
from tests.pollserver import (
    Answer,
    Request,
    error,
    held,
    release,
    state,
    success,
    uuid_of,
    working,
)
from tests.support import wait_for

BOTH = ["one", "two"]


def jobs_of(requests: list[Request]) -> list[list[str]]:
    """The jobs of each request for several; an empty list for one at a job's URL."""
    return [request.jobs for request in requests]


def null(polling: Polling, name: str, *answers: Answer) -> None:
    """Have requests for several jobs leave one out, which its own URL answers."""
    polling.server.answer(name, *answers)
    polling.server.nulls.add(name)


# Together


def test_jobs_of_one_page_share_the_requests(polling: Polling) -> None:
    """A period costs one request for up to a hundred jobs, and two for 150."""
    for count, a_period in (20, 1), (150, 2):
        names = [uuid_of(1000 * count + n) for n in range(count)]
        for n, name in enumerate(names):
            polling.server.answer(name, *[working(n=n)] * 3, success(n=n))
        before = len(polling.server.requests())
        polling.page.evaluate("() => { calls.length = 0; }")
        follow_all(polling, names, pollingPeriod=200)
        polling.wait_for_all("done", count)
        requests = polling.server.requests()[before:]
        assert len(requests) == 4 * a_period
        assert max(len(request.jobs) for request in requests) <= 100
        assert [d["n"] for d in polling.told(names[-1], "success")] == [count - 1]


def test_requests_of_one_base_url_never_overlap(polling: Polling) -> None:
    """A job that is added during a request waits for its answer, unless nobody waits
    for that any more.
    """
    first = held()
    polling.follow("one", first, held())
    polling.wait_for_requests("one", 1)
    polling.follow("two", success())
    polling.wait_for_others()
    assert polling.server.seen("two") == []
    release(first)
    polling.wait("two", "done")
    one, two = polling.server.requests()[:2]
    assert one.ended is not None
    assert two.began >= one.ended
    polling.wait_for_requests("one", 2)
    polling.follow("three", success())
    polling.page.evaluate("pollers.one.stop()")
    polling.wait("three", "done")


def test_job_that_is_added_later_falls_into_step(polling: Polling) -> None:
    """It is soon polled with the others of its period. A job with a long one joins only
    requests that it would soon need itself.
    """
    polling.follow("slow", working(), pollingPeriod=60_000)
    polling.follow("one", working(), pollingPeriod=200)
    polling.wait("one", "update")
    polling.follow("two", *[working()] * 5, success(), pollingPeriod=200)
    polling.wait("two", "done")
    assert jobs_of(polling.server.requests()).count(BOTH) >= 5
    assert len(polling.server.seen("slow")) == 1


def test_job_that_is_followed_twice_is_asked_for_once(polling: Polling) -> None:
    """Two pollers of one job share its requests, and its data if it is unchanged."""
    url = f"/job_state/{uuid_of(1)}"
    polling.server.answer(uuid_of(1), working('"a"', n=1), Answer(304), success())
    # Long enough for the second poller to come before the next request.
    polling.follow("one", jobUuid=None, url=url, pollingPeriod=5000)
    polling.wait("one", "update")
    polling.follow("two", jobUuid=None, url=url + "/")
    polling.wait("two", "done")
    for name in BOTH:
        assert polling.told(name) == ["update", "update", "success", "done"]
    assert len(polling.server.requests()) == 3


def test_stopped_job_leaves_the_others(polling: Polling) -> None:
    """The requests go on without it, the next one at its time."""
    for name in ("one", "two", "three"):
        polling.server.answer(name, working())
    follow_all(polling, ["one", "two", "three"], pollingPeriod=200)
    polling.wait("two", "update")
    polling.page.evaluate("pollers.two.stop()")
    wait_for(lambda: polling.server.requests()[-1].jobs == ["one", "three"])
    polling.server.answer("three", success())
    polling.wait("three", "done")


def test_cancelled_job_is_asked_for_at_once(polling: Polling) -> None:
    """A cancel does not wait for the period of the others."""
    polling.server.answer("two/cancel", ACCEPTED, method="POST")
    for name in BOTH:
        polling.server.answer(name, working())
    follow_all(polling, BOTH, pollingPeriod=HOUR)
    polling.wait("two", "update")
    polling.server.answer("two", error())
    assert polling.cancel("two") is True
    polling.wait("two", "error")


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
    polling.wait_for_all("success", 2)
    [request] = polling.server.requests(below="/team")
    assert request.path == f"/team/jobs?uuid={uuids[0]}&uuid={uuids[1]}"


# Jobs that a batch leaves out

WHY = {
    "unknown": (Answer(404), "status", 404),
    "signed-out": (Answer(401), "status", 401),
    "forbidden": (Answer(403), "status", 403),
    "gone": (Answer(410), "status", 410),
    "redirect": (Answer(302, headers={"Location": "/login"}), "redirect", 0),
    "html": (Answer(body="<p>Sign in"), "format", 200),
}


def test_null_in_a_batch_is_asked_about_alone(polling: Polling) -> None:
    """The job's own URL tells why a batch does not show it. Many cost one request each,
    one after another, and the others go on. An invalid state ends its job alone.
    """
    polling.server.answer("one", working())
    polling.server.answer("odd", Answer(body="{}"))
    for name, (answer, _, _) in WHY.items():
        null(polling, name, answer)
    follow_all(polling, ["one", *WHY, "odd"])
    assert polling.wait("odd", "lost")["code"] == "format"
    for name, (_, code, status) in WHY.items():
        reason = polling.wait(name, "lost")
        assert (reason["code"], reason["status"]) == (code, status), name
        assert reason["final"] is True
    requests = polling.server.requests()
    for name in WHY:
        assert [len(r.jobs) for r in requests if name in r.path] == [8, 0], name
    for earlier, later in itertools.pairwise(requests):
        assert earlier.ended is not None
        assert later.began >= earlier.ended - 0.005
    polling.server.answer("one", success())
    polling.wait("one", "done")
    assert polling.told("one", "lost") == []


def test_null_in_a_batch_may_be_a_job_all_the_same(polling: Polling) -> None:
    """If its own URL shows it, it goes on, costs one extra request a period as long as
    the two do not agree, and joins the others again.
    """
    polling.server.answer("one", working())
    null(polling, "two", working(n=1))
    # Jobs join if their answers are less than three quarters of a period apart.
    follow_all(polling, BOTH, pollingPeriod=500)
    polling.wait_for_updates("two", 3)
    # A busy server may answer them in another order.
    seen = sorted(jobs_of(polling.server.seen("two")[:6]))
    assert seen == [*[[]] * 3, *[BOTH] * 3]
    # By the page's clock: a busy server may be late to hear of a request.
    times = polling.page.evaluate("askedAt.filter((_, i) => asked[i].includes('two'))")
    for earlier, later in itertools.pairwise(times[:6:2]):
        assert later - earlier >= 490
    polling.server.answer("two", working(n=2))
    polling.server.nulls.clear()
    before = len(polling.server.seen("two"))
    # The answer to an earlier batch may still be on its way.
    wait_for(lambda: BOTH in jobs_of(polling.server.seen("two")[before:]))
    polling.server.answer("two", success(n=3))
    polling.wait("two", "done")
    assert polling.told("two", "lost") == []
    assert polling.told("two", "success") == [polling.told("two", "update")[-1]]
    assert polling.server.seen("two")[-1].jobs == BOTH


def test_null_that_cannot_be_asked_about_is_retried(polling: Polling) -> None:
    """Trouble with the job's own URL is an outage of this job only, and is followed by
    pauses that double, while the others are answered.
    """
    polling.server.answer("one", working())
    null(polling, "two", *[Answer(500)] * 3, working(), success())
    polling.page.evaluate("Math.random = () => 1; null")
    follow_all(polling, BOTH, pollingPeriod=100)
    polling.wait("two", "done")
    alone = [request for request in polling.server.seen("two") if not request.jobs]
    found = [late.began - soon.began for soon, late in itertools.pairwise(alone)]
    for pause, least in zip(found[:3], (0.2, 0.4, 0.8), strict=True):
        assert pause >= 0.95 * least
    assert polling.told("two") == ["lost", "update", "update", "success", "done"]
    assert polling.told("two", "lost")[0]["final"] is False
    assert polling.told("one", "lost") == []
    assert len(polling.server.seen("one")) >= 5


def test_null_is_not_asked_about_in_a_hidden_tab(timed: Polling) -> None:
    """In a hidden tab, the request for a null waits until the tab is shown."""
    jobs = {"one": json.loads(state("working")), "two": None}
    batch = held(json.dumps({"jobs": jobs}))
    timed.server.answer("one", working())
    timed.server.answer("two", success())
    timed.server.answer_batches(batch)
    follow_all(timed, BOTH)
    timed.advance(50)
    timed.wait_for_requests("two", 1)
    timed.hide()
    release(batch)
    timed.wait("one", "update")
    timed.advance(60_000)
    assert timed.asked("two") == 0
    timed.hide(hidden=False)
    timed.advance(100)
    timed.wait("two", "success")


def test_null_that_nobody_waits_for_is_given_up(polling: Polling) -> None:
    """Stopping the job aborts the request for it, and the others go on."""
    polling.server.answer("one", working())
    null(polling, "two", held())
    follow_all(polling, BOTH)
    wait_for(lambda: [] in jobs_of(polling.server.seen("two")))
    polling.page.evaluate("pollers.two.stop()")
    polling.server.answer("one", success())
    polling.wait("one", "done")
    assert polling.told("two", "done")[0]["outcome"] == "stopped"


# Data that has not changed


def test_batch_that_has_not_changed(polling: Polling) -> None:
    """A request for several jobs sends the last ETag, and accepts a 304."""
    for name in BOTH:
        polling.server.answer(name, working('"a"'), success())
    follow_all(polling, BOTH)
    polling.wait("two", "update")
    polling.server.answer_batches(Answer(304), Answer(304))
    polling.wait("two", "done")
    sent = [r.headers.get("if-none-match") for r in polling.server.seen("one")]
    assert sent[0] is None
    assert set(sent[1:]) == {'"a"'}
    assert polling.told("one") == ["update", "update", "success", "done"]


def test_etag_is_that_of_the_data(polling: Polling) -> None:
    """If the request's jobs change, or one was polled alone, the ETag is not sent. That
    of a batch does not confirm a job that the batch left out.
    """
    polling.follow("one", working('"a"'), pollingPeriod=200)
    polling.wait("one", "update")
    polling.follow("two", *[working('"b"')] * 2, success(), pollingPeriod=200)
    polling.wait("two", "done")
    for before, request in itertools.pairwise(polling.server.requests()):
        assert ("if-none-match" in request.headers) is (before.path == request.path)
    polling.page.evaluate("pollers.one.stop()")

    for name in "slow", "fast":
        polling.server.answer(name, working('"a"'), below="/etags")
    options = "baseUrl: '/etags', pollingPeriod:"
    polling.page.evaluate(
        f"follow('slow', {{ {options} 400 }}); follow('fast', {{ {options} 50 }})"
    )
    both = ["slow", "fast"]
    wait_for(lambda: jobs_of(polling.server.requests(below="/etags")).count(both) >= 2)
    requests = polling.server.requests(below="/etags")
    assert [] in jobs_of(requests)
    assert [r for r in requests if r.jobs and "if-none-match" in r.headers] == []

    polling.server.answer("three", working('"a"'))
    null(polling, "four", Answer(500), success(n=2))
    follow_all(polling, ["three", "four"])
    polling.wait("four", "lost")
    polling.server.answer("three", Answer(304))
    polling.wait("four", "done")
    assert [d["n"] for d in polling.told("four", "update")] == [2]


# Servers that refuse batches


def test_batch_that_is_too_large_is_halved(polling: Polling) -> None:
    """A server with a lower limit is asked for fewer jobs at a time from then on. One
    without batches is asked for each job.
    """
    older = Answer(403), Answer(body='{"items": []}')
    cases = [(Answer(414), [8, 4, 4]), *((each, [8, *[0] * 16]) for each in older)]
    for number, (answer, asked) in enumerate(cases):
        names = [uuid_of(100 * number + n) for n in range(8)]
        below = f"/{number}"
        for name in names:
            polling.server.answer(name, working(), success(), below=below)
        polling.server.answer_batches(answer)
        follow_all(polling, names, baseUrl=below)
        for name in names:
            polling.wait(name, "success")
        sizes = [len(request.jobs) for request in polling.server.requests(below=below)]
        assert sizes[: len(asked)] == asked
        assert max(sizes[1:]) == asked[1]


def test_batches_are_tried_again_after_an_odd_answer(timed: Polling) -> None:
    """One odd answer to a batch does not part its jobs for good. A server that refuses
    all batches is tried ever less.
    """
    for name in BOTH:
        timed.server.answer(name, working())
    odd = Answer(302, headers={"Location": "/login"})
    timed.server.answer_batches(odd, *[Answer(404)] * 100)
    follow_all(timed, BOTH, pollingPeriod=1000)
    timed.wait("two", "update")
    times = "askedAt.filter((_, n) => asked[n].includes('?'))"

    def has_asked(count: int) -> bool:
        timed.page.clock.fast_forward(3000)
        return len(timed.page.evaluate(times)) >= count

    wait_for(lambda: has_asked(4), 60)
    found = itertools.pairwise(timed.page.evaluate(times))
    for (soon, late), least in zip(found, (15, 30, 60), strict=False):
        assert (late - soon) / 1000 >= least
    # Once it is answered, the jobs stay together.
    timed.server.answer_batches()
    wait_for(lambda: has_asked(7), 60)
    timed.page.evaluate("asked.length = askedAt.length = 0")
    wait_for(lambda: has_asked(3))
    assert timed.page.evaluate("asked.filter((url) => !url.includes('?'))") == []
    assert timed.told("one", "lost") == []


def test_batch_of_a_signed_out_viewer_ends_all_pollers(polling: Polling) -> None:
    """A 401 ends all the pollers at once."""
    polling.server.answer_batches(Answer(401))
    follow_all(polling, BOTH)
    for name in BOTH:
        assert polling.wait(name, "lost")["status"] == 401
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
