"""Pollers of several jobs of one base URL, which share their requests, in a real
Chromium.
"""

import itertools
import json

from tests.browser.polling import Polling, follow_all
from tests.pollserver import (
    Answer,
    Request,
    held,
    release,
    state,
    success,
    uuid_of,
    working,
)
from tests.support import wait_for

BOTH = ["one", "two"]


def null(polling: Polling, name: str, *answers: Answer) -> None:
    """Have requests for several jobs leave one out, which its own URL answers."""
    polling.server.answer(name, *answers)
    polling.server.nulls.add(name)


def shown_and_gone(names: list[str]) -> list[Answer]:
    """The answers of batches that show all jobs, and then none."""
    return [
        Answer(body=json.dumps({"jobs": dict.fromkeys(names, each)}))
        for each in (json.loads(state()), None)
    ]


def alone_requests(polling: Polling, below: str = "/job_state") -> list[Request]:
    """The requests for one job so far."""
    return [r for r in polling.server.requests(below=below) if not r.jobs]


# Together


def test_jobs_of_one_page_share_the_requests(polling):
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


def test_jobs_take_turns_where_answers_are_slow(polling):
    """Each has its turn when the requests for all take longer than the period."""
    names = [uuid_of(n) for n in range(250)]
    follow_all(polling, names, Answer(body=state(), delay=0.06), pollingPeriod=50)
    for name in names[::50]:
        polling.wait_for_updates(name, 3)
    counts = [len(polling.server.seen(name)) for name in names[::50]]
    assert max(counts) <= 2 * min(counts)


def test_jobs_for_which_an_answer_has_no_room(polling):
    """They are asked for before the others have their next turn, and all have as many
    turns. The jobs of an answer then have requests of their own, with its ETag. Once
    they are smaller, all share requests again.
    """
    names = [uuid_of(n) for n in range(10)]
    polling.server.room = 3
    large = working('"a"', n="x" * 1000)
    large.delay = 0.03
    follow_all(polling, names, large, pollingPeriod=200)
    for name in names:
        polling.wait_for_updates(name, 3)
    requests = polling.server.requests
    turns = [each.jobs[:3] or [each.path.split("/")[2]] for each in requests()]
    assert [*itertools.chain(*turns[:4])] == names
    assert turns[4:8] == turns[:4]
    counts = [sum(name in turn for turn in turns) for name in names]
    assert max(counts) <= min(counts) + 1
    later = requests()[4:]
    assert {r.headers.get("if-none-match") for r in later} == {'"a"'}
    assert max(len(r.jobs) for r in later) == 3
    polling.server.room = 1000
    for name in names:
        polling.server.answer(name, working('"b"', n=2))
    last = wait_for(lambda: [r for r in requests() if r.jobs == names][2:])[-1]
    assert last.headers["if-none-match"] == '"b"'


def test_requests_of_one_base_url_never_overlap(polling):
    """A job that is added during a request waits for its answer."""
    first = held()
    polling.follow("one", first, working())
    polling.wait_for_requests("one", 1)
    polling.follow("two", success())
    polling.wait_for_others()
    assert polling.server.seen("two") == []
    release(first)
    polling.wait("two", "done")
    one, two = polling.server.requests()[:2]
    assert one.ended is not None
    assert two.began >= one.ended


def test_urls_of_jobs_are_batched_below_their_base(polling):
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
    "redirect": (Answer(302, headers={"Location": "/login"}), "redirect", 0),
    "html": (Answer(body="<p>Sign in"), "format", 200),
}


def test_null_in_a_batch_is_asked_about_alone(polling):
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
        assert [len(r.jobs) for r in requests if name in r.path] == [6, 0], name
    for earlier, later in itertools.pairwise(requests):
        assert earlier.ended is not None
        assert later.began >= earlier.ended - 0.005
    polling.server.answer("one", success())
    polling.wait("one", "done")
    assert polling.told("one", "lost") == []


def test_outage_after_which_a_batch_is_empty_is_asked_about_once(polling):
    """If a batch shows none of the jobs that the one before has shown, and that of one
    cannot be answered, all wait for the same pause.
    """
    names = [uuid_of(n) for n in range(8)]
    polling.server.answer_batches(*shown_and_gone(names))
    follow_all(polling, names, Answer(500), pollingPeriod=300)
    for name in names:
        assert polling.wait(name, "lost")["final"] is False
    assert len(alone_requests(polling)) < 4
    for name in names:
        polling.server.answer(name, success())
    polling.wait_for_all("success", len(names))


# Data that has not changed


def test_batch_that_has_not_changed(polling):
    """A request for several jobs sends the last ETag, and accepts a 304."""
    follow_all(polling, BOTH, working('"a"'), success())
    polling.wait("two", "update")
    polling.server.answer_batches(Answer(304), Answer(304))
    polling.wait("two", "done")
    sent = [r.headers.get("if-none-match") for r in polling.server.seen("one")]
    assert sent[0] is None
    assert set(sent[1:]) == {'"a"'}
    assert polling.told("one") == ["update", "update", "success", "done"]


def test_etag_is_that_of_the_data(polling):
    """It is not sent for other jobs, and confirms none that its batch left out."""
    polling.follow("one", working('"a"'), pollingPeriod=200)
    polling.wait("one", "update")
    polling.follow("two", *[working('"b"')] * 2, success(), pollingPeriod=200)
    polling.wait("two", "done")
    for before, request in itertools.pairwise(polling.server.requests()):
        assert ("if-none-match" in request.headers) is (before.path == request.path)
    polling.page.evaluate("pollers.one.stop()")
    polling.server.answer("three", working('"a"'))
    null(polling, "four", Answer(500), success(n=2))
    follow_all(polling, ["three", "four"])
    polling.wait("four", "lost")
    polling.server.answer("three", Answer(304))
    polling.wait("four", "done")
    assert [d["n"] for d in polling.told("four", "update")] == [2]


# Servers that refuse batches


def test_batch_that_is_too_large_is_halved(polling):
    """Later ones stay smaller. A server without batches is asked for each job."""
    cases = [(Answer(400), [8, 4, 4]), (Answer(404), [8, *[0] * 16])]
    for number, (answer, asked) in enumerate(cases):
        names = [uuid_of(100 * number + n) for n in range(8)]
        below = f"/{number}"
        polling.server.answer_batches(answer)
        follow_all(polling, names, working(), success(), baseUrl=below)
        for name in names:
            polling.wait(name, "success")
        sizes = [len(request.jobs) for request in polling.server.requests(below=below)]
        assert sizes[: len(asked)] == asked
        assert max(sizes[1:]) == asked[1]


REFUSALS = {
    "401": (Answer(401), "status", 401),
    "403": (Answer(403), "status", 403),
    "redirect": (Answer(302, headers={"Location": "/login"}), "redirect", 0),
}


def test_batch_that_is_refused_ends_its_jobs(polling):
    """A page whose viewer has lost a right or a login asks once, not once a job."""
    for number, (refusal, code, status) in enumerate(REFUSALS.values()):
        names = [uuid_of(100 * number + n) for n in range(8)]
        below = f"/{number}"
        polling.server.answer_batches(refusal)
        follow_all(polling, names, working(), baseUrl=below)
        for name in names:
            reason = polling.wait(name, "lost")
            assert (reason["code"], reason["status"]) == (code, status)
            assert reason["final"] is True
        polling.wait_for_others()
        assert len(polling.server.requests(below=below)) == 1


def test_jobs_that_disappear_together_are_asked_about_once(polling):
    """If a batch shows none of the jobs that the one before has shown, and the URL of
    one says that the viewer has lost a right or a login, all are lost. Jobs that are
    only gone are asked for one by one.
    """
    cases = {**REFUSALS, "404": (Answer(404), "status", 404)}
    for number, (answer, code, status) in enumerate(cases.values()):
        names = [uuid_of(100 * number + n) for n in range(8)]
        below = f"/{number}"
        polling.server.answer_batches(*shown_and_gone(names))
        follow_all(polling, names, answer, baseUrl=below)
        for name in names:
            reason = polling.wait(name, "lost")
            assert (reason["code"], reason["status"]) == (code, status)
            assert reason["final"] is True
        polling.wait_for_others()
        alone = alone_requests(polling, below)
        assert len(alone) == (8 if status == 404 else 1), (code, status)


def test_outage_is_told_to_all_jobs_and_asked_about_once(polling):
    """All jobs of a batch report an outage; one request checks whether it is over."""
    names = ["one", "two", "three"]
    polling.server.answer_batches(Answer(503), Answer(503))
    follow_all(polling, names, working(), success())
    for name in names:
        polling.wait(name, "done")
        assert polling.told(name) == ["lost", "update", "update", "success", "done"]
    assert len(polling.server.requests()) == 4
