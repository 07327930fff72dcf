"""Streams in a real Chromium, against a server whose streams the test writes."""

from typing import Any

import pytest

from tests.browser.polling import HOUR, Polling, about, follow_all
from tests.pollserver import (
    Answer,
    Stream,
    error,
    held,
    release,
    state,
    success,
    uuid_of,
    working,
)
from tests.support import wait_for


@pytest.fixture
def streams(polling: Polling) -> Polling:
    """A page whose polls offer a stream."""
    polling.server.offers = True
    return polling


@pytest.fixture
def still(paused: Polling) -> Polling:
    """The same, with a clock that stands still unless the test advances it."""
    paused.server.offers = True
    return paused


def stream_of(polling: Polling, number: int = 0) -> Stream:
    """Wait for a stream of the page."""
    wait_for(lambda: len(polling.server.streams) > number)
    return polling.server.streams[number]


def follow_streamed(polling: Polling, *names: str, **options: Any) -> Stream:
    """Follow jobs until a stream brings them all, and has had its first event."""
    number = len(polling.server.streams)
    options = {"pollingPeriod": 1000, **options}
    follow_all(polling, names, working(n=0), **options)
    stream = stream_of(polling, number)
    for name in names:
        stream.send(about(name, n=1))
        polling.wait_for_updates(name, 2)
    return stream


def open_first(polling: Polling) -> Stream:
    """Follow a job with a clock that stands still, until its stream has opened."""
    polling.follow("job", working(n=0), pollingPeriod=10_000)
    polling.advance(10)
    stream = stream_of(polling)
    wait_for_sources(polling, "open")
    return stream


def sources(polling: Polling) -> list[str]:
    """What the page knows of each of its streams so far."""
    states = ["connecting", "open", "closed"]
    numbers = polling.page.evaluate("sources.map((s) => s.readyState)")
    return [states[number] for number in numbers]


def wait_for_sources(polling: Polling, *states: str) -> None:
    wait_for(lambda: sources(polling) == [*states])


def so_far(polling: Polling) -> tuple[list[str], int]:
    """The page's streams, and how often it has asked for the job."""
    return sources(polling), polling.asks("job")


def numbers(polling: Polling, name: str) -> list[int]:
    """The metric n of each update so far."""
    return [data["n"] for data in polling.told(name, "update")]


def polls(polling: Polling, name: str) -> int:
    return len(polling.server.seen(name))


def streamed(polling: Polling) -> list[str]:
    """The jobs of the open streams."""
    return sorted(uuid for s in polling.server.open_streams for uuid in s.jobs)


def sizes(polling: Polling) -> list[int]:
    """How many jobs each open stream has."""
    return sorted(len(stream.jobs) for stream in polling.server.open_streams)


def beat(polling: Polling, stream: Stream) -> None:
    """Send a beat, and wait until the page has heard it."""
    heard = """new Promise((resolve) =>
        sources[sources.length - 1].addEventListener("beat", resolve, {once: true}))"""
    polling.page.evaluate(f"window.heard = {heard}; null")
    stream.send("1767225600000", "beat")
    polling.page.evaluate("heard.then(() => null)")


# From the poll to the stream


def test_job_is_polled_once_and_then_streamed(streams):
    """A stream takes the place of all polls but the first, at the same URL, as the
    poller says. The end of its last job closes it, and nothing follows.
    """
    streams.follow("job", working(n=0))
    assert streams.page.evaluate("pollers.job.transport") in (None, "poll")
    stream = stream_of(streams)
    for n in (1, 2):
        stream.send(about("job", n=n))
    stream.send(about("job", "error", n=3))
    streams.wait("job", "done")
    assert streams.page.evaluate("pollers.job.transport") == "stream"
    assert streams.told("job") == [*["update"] * 4, "error", "done"]
    assert numbers(streams, "job") == [0, 1, 2, 3]
    wait_for(lambda: not stream.is_open)
    streams.wait_for_others()
    assert [r.path for r in streams.server.requests()] == ["/job_state/job"]
    assert [s.path for s in streams.server.streams] == ["/job_state/job"]
    assert stream.headers["cookie"] == "session=alice"
    assert "last-event-id" not in stream.headers


def test_page_without_an_offer_polls(streams):
    """The header must be 1, the job must run, and the browser must have EventSource."""
    streams.follow("over", success())
    streams.wait("over", "done")
    streams.server.offers = False
    refused = working(n=0)
    refused.headers["JobState-Stream"] = "0"
    cases = {"none": working(n=0), "zero": refused}
    streams.follow_apart({name: [a, a, success()] for name, a in cases.items()})
    for name in cases:
        streams.wait(name, "done")
    streams.server.offers = True
    streams.page.evaluate("delete window.EventSource; null")
    streams.follow("job", working(n=0), success(n=1))
    streams.wait("job", "done")
    assert streams.server.streams == streams.server.refused == []


@pytest.mark.promise("jobs-of-a-page-share-a-stream")
def test_jobs_share_a_stream(streams):
    """It has them in the order followed, and goes on if one ends or is stopped."""
    stream = follow_streamed(streams, "two", "one", "three")
    assert stream.path == "/job_state?uuid=two&uuid=one&uuid=three"
    stream.send(about("one", "success", n=2))
    streams.wait("one", "done")
    streams.page.evaluate("pollers.two.stop()")
    for name in "one", "two":
        stream.send(about(name, "working", n=9))
    stream.send(about("three", "success", n=3))
    streams.wait("three", "done")
    assert streams.told("one") == [*["update"] * 3, "success", "done"]
    assert streams.told("two") == ["update", "update", "done"]
    wait_for(lambda: not stream.is_open)
    assert len(streams.server.streams) == 1
    assert len(streams.server.requests()) == 1


def test_jobs_beyond_three_hundred_are_polled(still):
    """Three streams bring a hundred each. Where streamed jobs end, others join."""
    names = [uuid_of(n) for n in range(310)]
    follow_all(still, names, working(n=0), pollingPeriod=10_000)
    still.advance(10)
    wait_for_sources(still, *["open"] * 3)
    assert sizes(still) == [100, 100, 100]
    assert streamed(still) == names[:300]
    for stream in still.server.streams:
        stream.send(about(stream.jobs[0], n=1))
        still.wait_for_updates(stream.jobs[0], 2)
    still.wait_for_updates(names[309], 1)
    still.advance(10_000)
    still.wait_for_updates(names[309], 2)
    assert [polls(still, name) for name in (names[0], names[299])] == [1, 1]
    [stream] = [s for s in still.server.open_streams if names[0] in s.jobs]
    for name in names[:8]:
        stream.send(about(name, "success"))
        still.wait(name, "done")
    still.advance(10_000)
    wait_for(lambda: streamed(still) == names[8:308])


def test_stream_of_too_many_jobs_is_split(still):
    """Streams are smaller from then on, which rules out no later ones."""
    still.server.max_uuids = 16
    names = [uuid_of(n) for n in range(20)]
    follow_all(still, names[:12], working(n=0), pollingPeriod=10_000)
    still.advance(10)
    stream_of(still).send(about(names[0], n=1))
    still.wait_for_updates(names[0], 2)
    follow_all(still, names[12:], working(n=0), pollingPeriod=10_000)
    still.advance(10)

    def are_open() -> bool:
        # A stream is given up that takes five seconds of the page's time to open or to
        # bring an event, so that time stands still meanwhile.
        if len(still.server.streams) == 3:
            return True
        if "connecting" not in sources(still):
            still.advance(1000)
        return False

    wait_for(are_open)
    wait_for(lambda: sizes(still) == [10, 10])
    assert streamed(still) == names
    assert "lost" not in still.told(names[0])


# Jobs that come and go


def test_jobs_followed_later_join(streams):
    """Later jobs are polled once, and then one stream of all replaces the first."""
    first = follow_streamed(streams, "one")
    names = [f"job{n}" for n in range(10)]
    follow_all(streams, names, working(n=0), pollingPeriod=1000)
    second = stream_of(streams, 1)
    assert second.jobs == ["one", *names]
    wait_for(lambda: not first.is_open)
    for name in "one", "job9":
        second.send(about(name, n=2))
    streams.wait_for_updates("job9", 2)
    assert numbers(streams, "one") == [0, 1, 2]
    assert sources(streams) == ["closed", "open"]
    # On a busy machine the first job may be asked for on its own once more.
    [poll] = [r for r in streams.server.requests() if names[0] in r.path]
    assert all(name in poll.path for name in names)


def test_stream_that_nobody_watches_is_closed(streams):
    """stop() or the signal closes it, even if the server has not answered yet."""
    stream = follow_streamed(streams, "job")
    streams.page.evaluate("pollers.job.stop()")
    wait_for(lambda: not stream.is_open)
    streams.server.refusals = [held()]
    streams.follow("signalled", working(n=0), signal=True)
    wait_for(lambda: streams.server.refused)
    streams.page.evaluate("aborters.signalled.abort()")
    wait_for(lambda: not streams.server.refused[0].is_open)
    streams.wait_for_others()
    assert streams.told("signalled") == ["update", "done"]
    assert polls(streams, "signalled") == 1


def test_second_poller_of_a_job_shares_its_stream(streams):
    """It gets the last state without a request, and then what arrives."""
    stream = follow_streamed(streams, "job")
    streams.follow("again", jobUuid="job")
    streams.wait("again", "update")
    assert numbers(streams, "again") == [1]
    streams.page.evaluate("pollers.job.stop()")
    stream.send(about("job", "success", n=2))
    streams.wait("again", "success")
    assert numbers(streams, "again") == [1, 2]
    assert polls(streams, "job") == 1
    assert len(streams.server.streams) == 1


# gone, away and beat


def test_job_that_is_gone_is_asked_for_once(streams):
    """That poll shows why, or how it ended. The stream counts as healthy."""
    ends = {"hidden": Answer(403), "over": success(n=2)}
    streams.follow_apart({name: [working(n=0), ends[name]] for name in ends})
    wait_for(lambda: len(streams.server.streams) == 2)
    for stream in streams.server.streams:
        stream.send(stream.path.split("/")[-1], "gone")
        stream.end()
    for name in ends:
        streams.wait(name, "done")
        assert len(streams.seen_apart(name)) == 2
    [reason] = streams.told("hidden", "lost")
    assert (reason["status"], reason["final"]) == (403, True)
    assert streams.told("over") == ["update", "update", "success", "done"]
    assert len(streams.server.streams) == 2
    follow_streamed(streams, "next")


def test_job_that_cannot_be_streamed_goes_on_by_polls(streams):
    """If the poll after a gone succeeds, the job is polled from then on, also when it
    is followed again. The stream goes on with the others.
    """
    stream = follow_streamed(streams, "odd", "two", pollingPeriod=50)
    stream.send("odd", "gone")
    streams.wait_for_requests("odd", 3)
    stream.send(about("odd", n=8))
    stream.send(about("two", n=2))
    streams.wait_for_updates("two", 3)
    assert 8 not in numbers(streams, "odd")
    assert polls(streams, "two") == 1
    streams.page.evaluate("pollers.odd.stop()")
    streams.follow("again", jobUuid="odd")
    streams.wait_for_requests("odd", polls(streams, "odd") + 3)
    assert len(streams.server.streams) == 1
    assert follow_streamed(streams, "three").jobs == ["two", "three"]
    streams.wait_for_requests("odd", polls(streams, "odd") + 3)
    assert sources(streams) == ["closed", "open"]
    assert "lost" not in streams.told("again")


def test_away_is_an_outage_told_once(streams):
    """If the store is away, lost is called once, and the next state is the recovery.
    Polls that take over during an outage do not tell it again.
    """
    stream = follow_streamed(streams, "one", "two")
    for _ in range(2):
        stream.send("", "away")
    stream.send(about("one", n=2))
    stream.send("", "away")
    stream.send(about("one", "success", n=3))
    streams.wait("one", "done")
    assert streams.told("one") == [
        *("update", "update", "lost", "update", "lost", "update", "success", "done")
    ]
    for reason in streams.told("one", "lost"):
        assert (reason["code"], reason["status"]) == ("status", 503)
        assert (reason["final"], reason["retryIn"]) == (False, 1000)
    streams.server.answer("two", Answer(503), success(n=4))
    streams.server.refusals = [Answer(503)]
    stream.end()
    streams.wait("two", "done")
    assert len(streams.told("two", "lost")) == 1


def test_silent_stream_is_given_up_after_fifty_seconds(still):
    """Beats keep a stream open, and tell nobody anything. After 50 s of silence the
    page polls at once, and streams again 15 s later.
    """
    stream = open_first(still)
    for _ in range(3):
        beat(still, stream)
        still.advance(45_000)
    assert so_far(still) == (["open"], 1)
    assert still.told("job") == ["update"]
    beat(still, stream)
    still.advance(49_999)
    assert so_far(still) == (["open"], 1)
    still.advance(1)
    assert so_far(still) == (["closed"], 2)
    still.wait_for_updates("job", 2)
    still.advance(14_999)
    assert so_far(still) == (["closed"], 3)
    still.wait_for_updates("job", 3)
    still.advance(1)
    wait_for_sources(still, "closed", "open")
    assert still.asks("job") == 3
    assert "lost" not in still.told("job")


def test_lost_stream_is_given_up_after_eight_seconds(still):
    """Unless the browser has opened it again. Then the page polls at once."""
    stream = open_first(still)
    beat(still, stream)
    still.advance(7999)
    stream.end()
    again = stream_of(still, 1)
    wait_for_sources(still, "open")
    beat(still, again)
    still.advance(9000)
    assert so_far(still) == (["open"], 1)
    still.server.refusals = [Answer(drop=True)] * 1000
    again.end()
    wait_for_sources(still, "connecting")
    still.advance(7999)
    assert so_far(still) == (["connecting"], 1)
    still.advance(1)
    assert so_far(still) == (["closed"], 2)
    still.wait_for_updates("job", 2)
    assert "lost" not in still.told("job")


# Streams that fail

REFUSALS = {"json": Answer(200, state()), "204": Answer(204), "503": Answer(503)}


@pytest.mark.promise("refused-stream-falls-back")
def test_refused_stream_leaves_the_page_to_polls(still):
    """It polls at once, and tries no stream again, not even for later jobs."""
    for count, (name, refusal) in enumerate(REFUSALS.items(), 1):
        still.server.refusals = [refusal]
        still.follow(name, working(n=0), baseUrl=f"/{name}", pollingPeriod=10_000)
        still.advance(10)
        wait_for_sources(still, *["closed"] * count)
        still.advance(50)
        still.wait_for_updates(name, 2)
    still.follow("later", working(n=0), baseUrl="/json", pollingPeriod=10_000)
    for count in (3, 4):
        still.advance(10_000)
        still.wait_for_updates("503", count)
    still.wait_for_updates("later", 2)
    assert sources(still) == ["closed"] * len(REFUSALS)
    assert not any("lost" in still.told(name) for name in REFUSALS)


def test_stream_without_an_event_is_given_up_after_five_seconds(still):
    """A proxy may hold back the events, or all; the browser may fail to connect again
    and again. The page then polls, and never streams again.
    """
    open_first(still)
    for name, refusals in ("all", [held()]), ("down", [Answer(drop=True)] * 50):
        still.server.refusals = refusals
        still.follow(name, working(n=0), baseUrl=f"/{name}", pollingPeriod=10_000)
        still.advance(10)
        still.wait(name, "update")
        wait_for(lambda: still.server.refused)
    wait_for(lambda: len(still.server.refused) > 1)
    still.advance(4979)
    assert so_far(still) == (["open", "connecting", "connecting"], 1)
    still.advance(1)
    assert so_far(still) == (["closed", "connecting", "connecting"], 2)
    still.advance(20)
    assert sources(still) == ["closed"] * 3
    for count in (2, 3, 4):
        for name in "job", "all", "down":
            still.wait_for_updates(name, count)
        still.advance(10_000)
    assert sources(still) == ["closed"] * 3
    assert "lost" not in still.told("job")


def test_event_that_is_not_a_job_ends_the_stream(still):
    """The page polls at once."""
    stream = open_first(still)
    still.advance(100)
    stream.write('data: {"job_state": "working"}\n\n')
    wait_for_sources(still, "closed")
    still.wait_for_updates("job", 2)
    assert "lost" not in still.told("job")


def test_poll_after_a_stream_sends_no_older_etag(streams):
    """A 304 would confirm what the stream has shown since the last poll."""
    streams.follow("job", working('"a"', n=0))
    stream = stream_of(streams)
    stream.send(about("job", n=1))
    streams.wait_for_updates("job", 2)
    streams.server.refusals = [Answer(200, state())]
    stream.end()
    streams.wait_for_requests("job", 3)
    sent = [r.headers.get("if-none-match") for r in streams.server.seen("job")]
    assert sent[:3] == [None, None, '"a"']


# Streams that the browser opens again


def test_stream_that_ends_goes_on_with_its_last_id(streams):
    """The browser reconnects with Last-Event-ID, and nobody is told. A restart of the
    server is survived so. After a 204, one poll brings the end.
    """
    streams.follow("job", working(n=0))
    first = stream_of(streams)
    first.send(about("job", n=1), event_id="a1")
    streams.wait_for_updates("job", 2)
    first.end()
    second = stream_of(streams, 1)
    assert second.headers["last-event-id"] == "a1"
    streams.server.stop()
    second.end()
    streams.server.start()
    third = stream_of(streams, 2)
    assert third.headers["last-event-id"] == "a1"
    third.send(about("job", n=2))
    streams.wait_for_updates("job", 3)
    assert polls(streams, "job") == 1
    streams.server.answer("job", success(n=3))
    streams.server.refusals = [Answer(204)]
    third.end()
    streams.wait("job", "done")
    assert streams.told("job") == [*["update"] * 4, "success", "done"]
    assert polls(streams, "job") == 2


# Hidden and left pages


def test_hidden_tab_closes_its_stream(streams):
    """Shown, it polls, and then streams: at most one, however often it is shown."""
    stream = follow_streamed(streams, "job")
    streams.hide()
    assert sources(streams) == ["closed"]
    wait_for(lambda: not stream.is_open)
    assert polls(streams, "job") == 1
    answer = held(state(n=2))
    streams.server.answer("job", answer, working(n=3))
    streams.hide(hidden=False)
    streams.wait_for_requests("job", 2)
    assert sources(streams) == ["closed"]
    release(answer)
    assert "last-event-id" not in stream_of(streams, 1).headers
    streams.page.evaluate(
        "for (let n = 0; n < 50; n++) { setHidden(true); setHidden(false); }"
    )
    third = stream_of(streams, 2)
    streams.wait_for_others()
    assert sources(streams) == ["closed", "closed", "open"]
    third.send(about("job", "success", n=4))
    streams.wait("job", "done")
    assert polls(streams, "job") == 3


# What else a page does


def test_live_stream_brings_what_a_cancel_does(streams):
    """A cancel polls only without a stream."""
    streams.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    stream = follow_streamed(streams, "job", pollingPeriod=HOUR)
    streams.server.answer("job", error(n=2))
    assert streams.cancel("job") is True
    streams.wait_for_others()
    assert polls(streams, "job") == 1
    stream.send(about("job", "error", n=2))
    streams.wait("job", "error")


def test_page_of_another_origin_streams_if_it_sees_the_offer(streams, elsewhere):
    """The offer must be exposed by CORS; otherwise the page polls."""
    headers = {"Access-Control-Allow-Origin": streams.server.url}
    headers["Access-Control-Allow-Credentials"] = "true"
    seen = {**headers, "Access-Control-Expose-Headers": "JobState-Stream"}
    elsewhere.offers = True
    elsewhere.stream_headers = headers
    elsewhere.answer("one", Answer(body=state(n=0), headers=headers))
    elsewhere.answer("two", Answer(body=state(n=0), headers=seen))
    cookie: Any = {"name": "session", "value": "alice", "url": elsewhere.url}
    streams.page.context.add_cookies([cookie])
    streams.server.policy += f"; connect-src {elsewhere.url}"
    streams.open()
    options = {"baseUrl": f"{elsewhere.url}/job_state", "crossOrigin": True}
    streams.follow("one", **options)
    wait_for(lambda: len(elsewhere.seen("one")) > 3)
    assert elsewhere.streams == []
    streams.page.evaluate("pollers.one.stop()")
    streams.follow("two", **options)
    wait_for(lambda: elsewhere.streams)
    [stream] = elsewhere.streams
    assert stream.headers["cookie"] == "session=alice"
    stream.send(about("two", "success", n=1))
    streams.wait("two", "success")
    assert len(elsewhere.seen("two")) == 1
