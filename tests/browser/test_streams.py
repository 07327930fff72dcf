"""Streams in a real Chromium, against a server whose streams the test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests import chromium
from tests.browser.polling import Polling, follow_all, polling_from
from tests.pollserver import (
    Answer,
    PollServer,
    Stream,
    error,
    state,
    success,
    uuid_of,
    working,
)
from tests.support import wait_for
from tests.tabs import opened

HOUR = 3_600_000


def about(uuid: str, job_state: str = "working", **metrics: Any) -> str:
    """The JSON of a job, as a stream sends it."""
    job = {"uuid": uuid, "status": job_state, "error": None}
    return json.dumps({**metrics, "job_state": job_state, "job": job})


@pytest.fixture
def streams(polling: Polling) -> Polling:
    """A page whose polls offer a stream."""
    polling.server.offers = True
    return polling


@pytest.fixture
def paused(page: Page, poll_server: PollServer) -> Iterator[Polling]:
    """The same, with a clock that stands still unless the test advances it."""
    page.clock.install(time=0)
    poll_server.offers = True
    for polling in polling_from(page, poll_server):
        page.clock.pause_at(HOUR)
        yield polling


def stream_of(polling: Polling, number: int = 0) -> Stream:
    """Wait for a stream of the page."""
    return stream_to(polling.server, number)


def stream_to(server: PollServer, number: int = 0) -> Stream:
    """Wait for a stream that a server sends."""
    wait_for(lambda: len(server.streams) > number)
    return server.streams[number]


def settle(polling: Polling) -> None:
    """Let as much time pass as a poller of another base URL needs for four answers."""
    offers, polling.server.offers = polling.server.offers, False
    polling.wait_for_others()
    polling.server.offers = offers


def follow_streamed(polling: Polling, *names: str, **options: Any) -> Stream:
    """Follow jobs until a stream brings them all, and has had its first event."""
    for name in names:
        polling.server.answer(name, working(n=0))
    follow_all(polling, [*names], **{"pollingPeriod": 1000, **options})
    stream = stream_of(polling)
    for name in names:
        stream.send(about(name, n=1))
        wait_for_updates(polling, name, 2)
    return stream


def advance(polling: Polling, milliseconds: int) -> None:
    polling.page.clock.run_for(milliseconds)


def open_first(polling: Polling, *answers: Answer, **options: Any) -> Stream:
    """Follow a job with a clock that stands still, until its stream has opened."""
    options = {"pollingPeriod": 10_000, **options}
    polling.follow("job", *(answers or [working(n=0)]), **options)
    advance(polling, 10)
    stream = stream_of(polling)
    wait_for(lambda: sources(polling) == ["open"])
    return stream


def sources(polling: Polling) -> list[str]:
    """What the page knows of each of its streams so far."""
    states = ["connecting", "open", "closed"]
    return [
        states[number]
        for number in polling.page.evaluate("sources.map((s) => s.readyState)")
    ]


def numbers(polling: Polling, name: str) -> list[int]:
    """The metric n of each update so far."""
    return [data["n"] for data in polling.told(name, "update")]


def wait_for_updates(polling: Polling, name: str, count: int) -> None:
    wait_for(lambda: len(numbers(polling, name)) == count)


def polls(polling: Polling, name: str) -> int:
    return len(polling.server.seen(name))


def answer_many(polling: Polling, count: int) -> list[str]:
    """Answer polls for many jobs, and return their uuids."""
    names = [uuid_of(n) for n in range(count)]
    for name in names:
        polling.server.answer(name, working(n=0))
    return names


def sizes(polling: Polling) -> list[int]:
    """How many jobs each open stream has; 0 for one at a job's own URL."""
    return sorted(len(stream.jobs) for stream in polling.server.open_streams)


def open_three(polling: Polling, count: int) -> list[str]:
    """Follow over 300 jobs with a clock that stands still, until three streams work."""
    names = answer_many(polling, count)
    follow_all(polling, names, pollingPeriod=10_000)
    advance(polling, 10)
    wait_for(lambda: sources(polling) == ["open"] * 3)
    assert sizes(polling) == [100, 100, 100]
    assert sorted(streamed(polling)) == names[:300]
    for name in (names[0], names[100], names[200]):
        stream_with(polling, name).send(about(name, n=1))
        wait_for_updates(polling, name, 2)
    return names


def stream_with(polling: Polling, name: str) -> Stream:
    """The open stream of a job."""
    return next(s for s in polling.server.open_streams if name in s.jobs)


def streamed(polling: Polling) -> list[str]:
    """The jobs of the open streams."""
    return [uuid for stream in polling.server.open_streams for uuid in stream.jobs]


# From the poll to the stream


def test_job_is_polled_once_and_then_streamed(streams: Polling) -> None:
    """A stream takes the place of all polls but the first, at the same URL."""
    streams.follow("job", working(n=0))
    stream = stream_of(streams)
    for n in (1, 2):
        stream.send(about("job", n=n))
    stream.send(about("job", "success", n=3))
    streams.wait("job", "done")
    assert streams.told("job") == [*["update"] * 4, "success", "done"]
    assert numbers(streams, "job") == [0, 1, 2, 3]
    assert [r.path for r in streams.server.requests()] == ["/job_state/job"]
    assert [s.path for s in streams.server.streams] == ["/job_state/job"]


def test_stream_sends_cookies(streams: Polling) -> None:
    """The request for a stream carries the session's cookie."""
    stream = follow_streamed(streams, "job")
    assert stream.headers["cookie"] == "session=alice"
    assert "last-event-id" not in stream.headers


@pytest.mark.parametrize("job_state", ["success", "error"])
def test_stream_is_closed_at_the_end_of_its_job(
    streams: Polling, job_state: str
) -> None:
    """The end of the last job closes its stream, and nothing follows."""
    stream = follow_streamed(streams, "job")
    stream.send(about("job", job_state, n=2))
    streams.wait("job", job_state)
    wait_for(lambda: not stream.is_open)
    settle(streams)
    assert len(streams.server.streams) == 1
    assert polls(streams, "job") == 1


def test_job_that_is_over_is_not_streamed(streams: Polling) -> None:
    """A job that the first poll finds over opens no stream."""
    streams.follow("job", success())
    streams.wait("job", "done")
    settle(streams)
    assert streams.server.streams == []


def test_page_without_an_offer_polls(streams: Polling) -> None:
    """Without the header, nothing asks for a stream."""
    streams.server.offers = False
    streams.follow("job", *[working(n=0)] * 3, success(n=1))
    streams.wait("job", "done")
    assert streams.server.streams == streams.server.refused == []
    assert polls(streams, "job") == 4


@pytest.mark.parametrize("value", ["0", "", "true"])
def test_offer_is_the_number_one(streams: Polling, value: str) -> None:
    """Any other value of the header offers nothing."""
    streams.server.offers = False
    answer = working(n=0)
    answer.headers["JobState-Stream"] = value
    streams.follow("job", answer, answer, success(n=1))
    streams.wait("job", "done")
    assert streams.server.streams == []


@pytest.mark.parametrize("how", ["delete window.EventSource", "EventSource = null"])
def test_browser_without_streams_polls(streams: Polling, how: str) -> None:
    """Where EventSource is missing, an offer changes nothing."""
    streams.page.evaluate(how)
    streams.follow("job", *[working(n=0)] * 3, success(n=1))
    streams.wait("job", "done")
    assert polls(streams, "job") == 4


@pytest.mark.parametrize("broken", ["constructor", "addEventListener"])
def test_stream_that_cannot_be_made_leaves_the_page_to_polls(
    paused: Polling, broken: str
) -> None:
    """Where EventSource throws, polls go on, and no further try follows."""
    paused.page.evaluate(
        """(broken) => {
            window.made = 0;
            const fail = () => { throw new Error("no streams"); };
            window.EventSource = class {
                constructor() {
                    made++;
                    if (broken === "constructor") fail();
                }
                addEventListener() { fail(); }
            };
        }""",
        broken,
    )
    names = answer_many(paused, 150)
    follow_all(paused, names, pollingPeriod=10_000)
    advance(paused, 10)
    for count in (1, 2, 3):
        for name in (names[0], names[149]):
            wait_for_updates(paused, name, count)
        advance(paused, 10_000)
    assert paused.page.evaluate("made") == 2
    assert set(paused.told(names[0])) == {"update"}


def test_jobs_share_a_stream(streams: Polling) -> None:
    """Jobs of one base URL are one stream, in the order in which they were followed."""
    names = ["two", "one", "three"]
    stream = follow_streamed(streams, *names)
    assert stream.path == "/job_state?uuid=two&uuid=one&uuid=three"
    for name in names:
        stream.send(about(name, "success", n=2))
        streams.wait(name, "done")
    wait_for(lambda: not stream.is_open)
    assert len(streams.server.streams) == 1
    assert len(streams.server.requests()) == 1


def test_hundred_jobs_are_one_stream_and_more_are_two(paused: Polling) -> None:
    """A stream has at most a hundred jobs, and streams are of about one size."""
    names = answer_many(paused, 150)
    follow_all(paused, names[:100])
    advance(paused, 10)
    stream = stream_of(paused)
    assert stream.jobs == names[:100]
    stream.send(about(names[0], n=1))
    wait_for(lambda: numbers(paused, names[0]) == [0, 1])
    follow_all(paused, names[100:])
    advance(paused, 10)
    wait_for(lambda: len(paused.server.streams) == 3)
    wait_for(lambda: not stream.is_open)
    parts = sorted(paused.server.open_streams, key=lambda stream: stream.jobs)
    assert [part.jobs for part in parts] == [names[:75], names[75:]]
    for part in parts:
        for name in part.jobs:
            part.send(about(name, "success", n=2))
    done = "calls.filter((call) => call.callback === 'done').length"
    wait_for(lambda: paused.page.evaluate(done) == 150)
    wait_for(lambda: not paused.server.open_streams)
    assert len(paused.server.streams) == 3
    assert len(paused.server.requests()) == 2


def test_many_jobs_that_start_together_open_each_stream_once(paused: Polling) -> None:
    """The streams wait until all jobs of the page were polled."""
    names = answer_many(paused, 150)
    follow_all(paused, names)
    advance(paused, 10)
    wait_for(lambda: sources(paused) == ["open", "open"])
    wait_for(lambda: sizes(paused) == [75, 75])
    assert len(paused.server.requests()) == 2


def test_jobs_that_are_polled_slowly_are_streamed(streams: Polling) -> None:
    """A page whose polls take longer than a period still begins to stream."""
    names = answer_many(streams, 150)
    jobs = json.loads(state())
    slow = json.dumps({"jobs": dict.fromkeys(names, jobs)})
    streams.server.answer_batches(*[Answer(body=slow, delay=0.2) for _ in range(50)])
    follow_all(streams, names, pollingPeriod=50)
    wait_for(lambda: len(streams.server.streams) == 2)
    assert len(streams.server.requests()) < 5


def test_page_opens_at_most_three_streams(streams: Polling) -> None:
    """The jobs of further base URLs are polled, so that connections remain."""
    for n in range(4):
        below = f"/app{n}"
        streams.server.answer("job", working(n=0), below=below)
        streams.follow(f"job{n}", jobUuid="job", baseUrl=below, pollingPeriod=50)
    wait_for(lambda: len(streams.server.streams) == 3)
    streamed = {stream.path for stream in streams.server.streams}
    (rest,) = {f"/app{n}/job" for n in range(4)} - streamed
    count = len(streams.server.seen("job", below=rest[:5]))
    wait_for(lambda: len(streams.server.seen("job", below=rest[:5])) > count + 2)
    assert streams.server.most_streams == 3
    # A stream that ends makes room. The server may hear of the next one first.
    streams.server.streams[0].send(about("job", "success"))
    wait_for(lambda: rest in [stream.path for stream in streams.server.streams])


def test_job_beyond_three_hundred_is_polled(paused: Polling) -> None:
    """Three streams bring the first 300 jobs of a page, and polls bring the rest."""
    names = open_three(paused, 301)
    for count in (1, 2, 3):
        wait_for_updates(paused, names[300], count)
        advance(paused, 10_000)
    wait_for_updates(paused, names[300], 4)
    assert [polls(paused, name) for name in (names[0], names[299])] == [1, 1]
    assert sources(paused) == ["open"] * 3


def test_job_beyond_three_hundred_joins_when_there_is_room(paused: Polling) -> None:
    """The end of a streamed job lets a polled one in, after its next poll."""
    names = open_three(paused, 301)
    stream_with(paused, names[0]).send(about(names[0], "success"))
    paused.wait(names[0], "done")
    assert sources(paused) == ["open"] * 3
    advance(paused, 10_000)
    wait_for(lambda: sorted(streamed(paused)) == names[1:])
    assert sizes(paused) == [100, 100, 100]
    assert [polls(paused, name) for name in (names[1], names[300])] == [1, 2]


def test_ends_of_jobs_reopen_streams_once_a_period(paused: Polling) -> None:
    """While more jobs wait than fit, ends do not reopen the streams one by one."""
    names = open_three(paused, 310)
    stream = stream_with(paused, names[0])
    for name in names[:8]:
        stream.send(about(name, "success"))
        paused.wait(name, "done")
    assert sources(paused) == ["open"] * 3
    advance(paused, 10_000)
    wait_for(lambda: sorted(streamed(paused)) == names[8:308])
    assert len(paused.server.streams) == 6


def test_other_streams_leave_less_room(paused: Polling) -> None:
    """Where another base URL has a stream, only the first 200 jobs get streams."""
    paused.server.answer("job", working(n=0), below="/other")
    paused.follow("other", jobUuid="job", baseUrl="/other")
    advance(paused, 10)
    stream_of(paused)
    names = answer_many(paused, 250)
    follow_all(paused, names, pollingPeriod=10_000)
    advance(paused, 10)
    wait_for(lambda: sizes(paused) == [0, 100, 100])
    assert sorted(streamed(paused)) == names[:200]


def test_limit_of_the_server_holds_for_streams(paused: Polling) -> None:
    """Streams are as small as the polls that the server has answered."""
    paused.server.max_uuids = 80
    names = answer_many(paused, 150)
    follow_all(paused, names, pollingPeriod=10_000)
    advance(paused, 10)
    wait_for(lambda: sizes(paused) == [75, 75])
    assert sorted(streamed(paused)) == names
    assert paused.server.refused == []


def test_stream_of_too_many_jobs_is_split(paused: Polling) -> None:
    """If jobs were polled in small numbers, the first stream may be too large."""
    names = open_too_large(paused)
    assert sorted(streamed(paused)) == names
    assert [len(stream.jobs) for stream in paused.server.refused] == [20]
    assert "lost" not in paused.told(names[0])


def test_stream_of_too_many_jobs_rules_out_no_later_ones(paused: Polling) -> None:
    """Jobs that are followed after all others have ended are streamed, too."""
    open_too_large(paused)
    paused.page.evaluate("Object.values(pollers).forEach((poller) => poller.stop())")
    wait_for(lambda: not paused.server.open_streams)
    paused.follow("later", working(n=0), pollingPeriod=10_000)
    advance(paused, 10)
    wait_for(
        lambda: [s.path for s in paused.server.open_streams] == ["/job_state/later"]
    )


def open_too_large(polling: Polling) -> list[str]:
    """Follow 12 jobs and 8 more at a server that takes 16, until all are streamed."""
    polling.server.max_uuids = 16
    names = answer_many(polling, 20)
    follow_all(polling, names[:12], pollingPeriod=10_000)
    advance(polling, 10)
    stream_of(polling).send(about(names[0], n=1))
    wait_for_updates(polling, names[0], 2)
    follow_all(polling, names[12:], pollingPeriod=10_000)
    advance(polling, 10)

    def are_smaller() -> bool:
        # The least pause between polls is 50 milliseconds, the longest their period.
        # A stream that takes five seconds of the page's time to open is given up, so
        # that time stands still meanwhile.
        if "connecting" not in sources(polling):
            advance(polling, 1000)
        return sizes(polling) == [10, 10]

    wait_for(are_smaller)
    return names


@pytest.mark.long
def test_proxy_that_buffers_is_given_up_though_the_limit_shrinks(
    paused: Polling,
) -> None:
    """Smaller streams get one try more, and are then given up as well."""
    paused.server.max_uuids = 80
    names = answer_many(paused, 100)
    follow_all(paused, names[:60], pollingPeriod=10_000)
    advance(paused, 10)
    beat(paused, stream_of(paused))
    paused.server.refusals = [Answer(hold=threading.Event()) for _ in range(9)]
    follow_all(paused, names[60:], pollingPeriod=10_000)
    advance(paused, 10)
    wait_for(lambda: sources(paused) == ["closed", "closed"])

    def are_opening() -> bool:
        advance(paused, 50)
        return sources(paused)[2:] == ["connecting", "connecting"]

    wait_for(are_opening)
    count = len(numbers(paused, names[0]))
    advance(paused, 5000)
    for more in range(1, 5):
        wait_for_updates(paused, names[0], count + more)
        advance(paused, 10_000)
    assert sources(paused) == ["closed"] * 4


def test_streams_do_not_keep_the_page_waiting(streams: Polling) -> None:
    """With as many streams as a page opens, its other requests are still answered."""
    for n in range(20):
        below = f"/app{n}"
        streams.server.answer("job", working(n=0), below=below)
        streams.follow(f"job{n}", jobUuid="job", baseUrl=below)
    wait_for(lambda: len(streams.server.streams) == 3)
    assert streams.page.evaluate("fetch('/empty').then((answer) => answer.status)")


def test_base_urls_have_streams_of_their_own(streams: Polling) -> None:
    """Jobs of two base URLs are two streams."""
    streams.server.answer("job", working(n=0))
    streams.server.answer("job", working(n=0), below="/other")
    streams.follow("job")
    streams.follow("other", jobUuid="job", baseUrl="/other")
    wait_for(lambda: len(streams.server.streams) == 2)
    paths = {stream.path: stream for stream in streams.server.streams}
    paths["/other/job"].send(about("job", "success", n=5))
    streams.wait("other", "success")
    assert numbers(streams, "other") == [0, 5]
    assert numbers(streams, "job") == [0]


def test_url_with_a_query_is_streamed_as_it_is(streams: Polling) -> None:
    """A job whose URL stands alone gets what its stream sends, whatever the uuid."""
    streams.server.answer("", working(n=0), below="/jobs/job")
    streams.follow("job", jobUuid=None, url="jobs/job/?of=alice")
    stream = stream_of(streams)
    assert stream.path == "/jobs/job/?of=alice"
    stream.send(about("another", n=1))
    stream.send(about("__proto__", "success", n=2))
    streams.wait("job", "success")
    assert numbers(streams, "job") == [0, 1, 2]


# Jobs that come and go


def test_job_followed_later_joins(streams: Polling) -> None:
    """A later job is polled once, and then one stream of both replaces the first."""
    first = follow_streamed(streams, "one")
    streams.follow("two", working(n=0), pollingPeriod=1000)
    second = stream_of(streams, 1)
    assert second.path == "/job_state?uuid=one&uuid=two"
    wait_for(lambda: not first.is_open)
    for name in ("one", "two"):
        second.send(about(name, n=2))
    wait_for(lambda: numbers(streams, "two") == [0, 2])
    assert numbers(streams, "one") == [0, 1, 2]
    assert [polls(streams, name) for name in ("one", "two")] == [1, 1]
    assert len(streams.server.streams) == 2


def test_jobs_followed_in_one_tick_join_together(streams: Polling) -> None:
    """Ten jobs more cost one poll and one stream."""
    follow_streamed(streams, "one")
    names = [f"job{n}" for n in range(10)]
    for name in names:
        streams.server.answer(name, working(n=0))
    follow_all(streams, names)
    second = stream_of(streams, 1)
    assert second.jobs == ["one", *names]
    settle(streams)
    assert len(streams.server.streams) == 2
    # On a busy machine the first job may be asked for on its own once more.
    polls = [r for r in streams.server.requests() if names[0] in r.path]
    assert len(polls) == 1
    assert all(name in polls[0].path for name in names)


def test_old_stream_is_closed_before_the_new_one_opens(streams: Polling) -> None:
    """The page counts no connection twice, even if the server is slow to notice."""
    streams.page.evaluate(
        """() => {
            window.most = 0;
            const Really = EventSource;
            window.EventSource = class extends Really {
                constructor(...options) {
                    super(...options);
                    window.most = Math.max(most, open().length);
                }
            };
            window.open = () => sources.filter((source) => source.readyState < 2);
        }"""
    )
    follow_streamed(streams, "one")
    for n in range(1, 4):
        streams.follow(f"later{n}", working(n=0))
        stream_of(streams, n).send(about("one", n=n))
    wait_for(lambda: numbers(streams, "one") == [0, 1, 1, 2, 3])
    assert streams.page.evaluate("[open().length, most]") == [1, 1]


def test_stream_without_an_event_is_not_replaced(paused: Polling) -> None:
    """Adding jobs does not hide that a stream is held back: it fails all the same."""
    paused.server.refusals = [Answer(hold=threading.Event())]
    paused.follow("one", working(n=0), pollingPeriod=HOUR)
    advance(paused, 10)
    wait_for(lambda: sources(paused) == ["connecting"])
    for n in range(4):
        advance(paused, 1000)
        paused.follow(f"later{n}", working(n=0), pollingPeriod=HOUR)
        advance(paused, 60)
        paused.wait(f"later{n}", "update")
    assert sources(paused) == ["connecting"]
    assert paused.asked("one") == 1
    advance(paused, 1000)
    assert sources(paused) == ["closed"]
    paused.wait_for_requests("one", 2)
    assert paused.server.streams == []


def test_job_that_joins_an_opening_stream_waits_for_its_first_event(
    streams: Polling,
) -> None:
    """Meanwhile it is polled, and the first event lets it join."""
    streams.follow("one", working(n=0))
    first = stream_of(streams)
    streams.follow("two", working(n=0))
    streams.wait_for_requests("two", 3)
    assert len(streams.server.streams) == 1
    first.send(about("one", n=1))
    assert stream_of(streams, 1).jobs == ["one", "two"]
    wait_for(lambda: not first.is_open)
    assert polls(streams, "one") == 1


def test_end_of_one_job_keeps_the_stream(streams: Polling) -> None:
    """The stream of jobs of which some are over goes on for the others."""
    stream = follow_streamed(streams, "one", "two", "three")
    stream.send(about("one", "success", n=2))
    stream.send(about("two", "error", n=2))
    streams.wait("two", "error")
    stream.send(about("three", n=2))
    wait_for(lambda: numbers(streams, "three")[-1] == 2)
    stream.send(about("one", "working", n=9))
    stream.send(about("three", "success", n=3))
    streams.wait("three", "done")
    assert streams.told("one") == ["update", "update", "update", "success", "done"]
    wait_for(lambda: not stream.is_open)
    assert len(streams.server.streams) == 1
    assert len(streams.server.requests()) == 1


@pytest.mark.parametrize("how", ["pollers.job.stop()", "aborters.job.abort()"])
def test_stream_that_nobody_watches_is_closed(streams: Polling, how: str) -> None:
    """stop() and the signal close the stream of the only job."""
    stream = follow_streamed(streams, "job", signal=True)
    streams.page.evaluate(how)
    assert streams.wait("job", "done")["outcome"] == "stopped"
    wait_for(lambda: not stream.is_open)
    stream.send(about("job", "success", n=2))
    settle(streams)
    assert streams.told("job") == ["update", "update", "done"]
    assert len(streams.server.streams) == 1
    assert polls(streams, "job") == 1


@pytest.mark.parametrize("how", ["pollers.job.stop()", "aborters.job.abort()"])
def test_stream_that_opens_can_be_stopped(streams: Polling, how: str) -> None:
    """A stream that the server has not answered yet is closed, too."""
    streams.server.refusals = [Answer(hold=threading.Event())]
    streams.follow("job", working(n=0), signal=True)
    wait_for(lambda: streams.server.refused)
    streams.page.evaluate(how)
    wait_for(lambda: not streams.server.refused[0].is_open)
    settle(streams)
    assert streams.told("job") == ["update", "done"]
    assert polls(streams, "job") == 1
    assert streams.server.streams == []


def test_stopped_job_keeps_the_stream_of_the_others(streams: Polling) -> None:
    """What arrives for a job that was stopped is ignored."""
    stream = follow_streamed(streams, "one", "two")
    streams.page.evaluate("pollers.one.stop()")
    stream.send(about("one", "success", n=2))
    stream.send(about("two", "success", n=2))
    streams.wait("two", "success")
    assert streams.told("one") == ["update", "update", "done"]
    assert len(streams.server.streams) == 1


def test_second_poller_of_a_job_shares_its_stream(streams: Polling) -> None:
    """It gets the last state without a request, and then what arrives."""
    stream = follow_streamed(streams, "job")
    streams.follow("again", jobUuid="job")
    streams.wait("again", "update")
    assert numbers(streams, "again") == [1]
    assert numbers(streams, "job") == [0, 1]
    streams.page.evaluate("pollers.job.stop()")
    stream.send(about("job", "success", n=2))
    streams.wait("again", "success")
    assert numbers(streams, "again") == [1, 2]
    assert polls(streams, "job") == 1
    assert len(streams.server.streams) == 1


def test_second_poller_that_is_stopped_at_once_is_told_nothing(
    streams: Polling,
) -> None:
    """The last state, which comes a moment later, does not reach a stopped poller."""
    follow_streamed(streams, "job")
    streams.page.evaluate("follow('again', { jobUuid: 'job' }); pollers.again.stop()")
    streams.wait("again", "done")
    settle(streams)
    assert streams.told("again") == ["done"]


def test_second_poller_hears_nothing_before_its_call_returns(
    streams: Polling,
) -> None:
    """Callbacks may use the poller that startPolling returns."""
    follow_streamed(streams, "job")
    streams.follow("again", jobUuid="job", harness={"stopIn": "update"})
    assert streams.wait("again", "done")["outcome"] == "stopped"
    assert streams.told("again") == ["update", "done"]


# Callbacks that throw, stop and start


def test_throwing_callback_does_not_harm_the_stream(streams: Polling) -> None:
    """What callbacks throw during an event is logged, and the stream goes on."""
    harness = {"throwing": ["update", "lost", "success"]}
    streams.follow("job", working(n=0), harness=harness)
    stream = stream_of(streams)
    for n in (1, 2):
        stream.send(about("job", n=n))
    stream.send("", "away")
    stream.send(about("job", "success", n=3))
    streams.wait("job", "done")
    assert numbers(streams, "job") == [0, 1, 2, 3]
    assert [w for w in streams.warnings("error") if "thrown in lost" in w]
    assert polls(streams, "job") == 1


@pytest.mark.parametrize("callback", ["update", "lost"])
def test_callback_may_stop_another_poller(streams: Polling, callback: str) -> None:
    """A poller that another's callback stops during an event is told no more."""
    follow_streamed(streams, "job")
    streams.follow("again", jobUuid="job")
    streams.wait("again", "update")
    streams.page.evaluate("""() => {
        calls.length = 0;
        const { push } = calls;
        calls.push = (call) => {
            push.call(calls, call);
            if (call.name === "job") pollers.again.stop();
        };
    }""")
    if callback == "update":
        streams.server.streams[0].send(about("job", n=2))
    else:
        streams.server.streams[0].send("", "away")
    streams.wait("again", "done")
    assert streams.told("job") == [callback]
    assert streams.told("again") == ["done"]


def test_callback_may_follow_the_next_job(streams: Polling) -> None:
    """A job that is followed because of an event is polled and then streamed."""
    stream = follow_streamed(streams, "one")
    streams.server.answer("two", working(n=0))
    streams.page.evaluate("void pollers.one.done.then(() => follow('two'))")
    stream.send(about("one", "success", n=2))
    streams.wait("two", "update")
    second = stream_of(streams, 1)
    assert second.path == "/job_state/two"
    second.send(about("two", "success", n=1))
    streams.wait("two", "success")


# gone, away and beat


@pytest.mark.parametrize(
    ("answer", "status"), [(Answer(404), 404), (Answer(403), 403), (Answer(410), 410)]
)
def test_job_that_is_gone_is_asked_for_once(
    streams: Polling, answer: Answer, status: int
) -> None:
    """One poll tells why, and its answer is final."""
    stream = follow_streamed(streams, "job")
    streams.server.answer("job", answer)
    stream.send("job", "gone")
    assert streams.wait("job", "done")["outcome"] == "lost"
    [reason] = streams.told("job", "lost")
    assert (reason["status"], reason["final"]) == (status, True)
    assert streams.told("job") == ["update", "update", "lost", "done"]
    wait_for(lambda: not stream.is_open)
    assert polls(streams, "job") == 2
    assert len(streams.server.streams) == 1


def test_job_that_cannot_be_streamed_goes_on_by_polls(streams: Polling) -> None:
    """If the poll after a gone succeeds, the job is polled from then on."""
    streams.follow("job", working(n=0))
    stream = stream_of(streams)
    stream.send("job", "gone")
    streams.wait_for_requests("job", 4)
    streams.server.answer("job", success(n=5))
    streams.wait("job", "success")
    assert len(streams.server.streams) == 1
    assert "lost" not in streams.told("job")


def test_job_that_cannot_be_streamed_is_not_streamed_when_followed_again(
    streams: Polling,
) -> None:
    """The page remembers the jobs that streams have left to polls."""
    streams.follow("job", working(n=0))
    stream_of(streams).send("job", "gone")
    streams.wait_for_requests("job", 2)
    streams.page.evaluate("pollers.job.stop()")
    streams.follow("again", jobUuid="job")
    count = polls(streams, "job")
    streams.wait_for_requests("job", count + 3)
    assert len(streams.server.streams) == 1


def test_one_job_that_is_gone_leaves_the_stream_to_the_others(
    streams: Polling,
) -> None:
    """The stream goes on, and is not replaced because of the job that left."""
    stream = follow_streamed(streams, "one", "two")
    stream.send("one", "gone")
    streams.wait_for_requests("one", 3)
    stream.send(about("one", n=8))
    stream.send(about("two", n=2))
    wait_for(lambda: numbers(streams, "two")[-1] == 2)
    assert 8 not in numbers(streams, "one")
    assert polls(streams, "two") == 1
    assert len(streams.server.streams) == 1


@pytest.mark.parametrize(
    ("names", "path"),
    [(["one"], "/job_state/one"), (["one", "two"], "/job_state?uuid=one&uuid=two")],
    ids=["one", "two"],
)
def test_stream_of_one_job_that_is_gone_rules_out_no_others(
    streams: Polling, names: list[str], path: str
) -> None:
    """A stream that says gone and ends leaves its job to polls, and only this job."""
    streams.follow("odd", working(n=0))
    stream = stream_of(streams)
    stream.send("odd", "gone")
    stream.end()
    streams.wait_for_requests("odd", 3)
    for name in names:
        streams.server.answer(name, working(n=0))
    follow_all(streams, names)
    second = stream_of(streams, 1)
    assert second.path == path
    for name in names:
        second.send(about(name, n=1))
        wait_for_updates(streams, name, 2)
    streams.wait_for_requests("odd", polls(streams, "odd") + 3)
    assert [polls(streams, name) for name in names] == [1] * len(names)
    assert sources(streams) == ["closed", "open"]
    assert "lost" not in streams.told("odd")


def test_jobs_that_are_gone_together_are_asked_for_together(paused: Polling) -> None:
    """Ten jobs that a stream drops cost one poll."""
    names = [f"job{n}" for n in range(10)]
    for name in (*names, "stays"):
        paused.server.answer(name, working(n=0))
    follow_all(paused, [*names, "stays"], pollingPeriod=10_000)
    advance(paused, 10)
    stream = stream_of(paused)
    wait_for(lambda: sources(paused) == ["open"])
    for name in names:
        paused.server.answer(name, success(n=2))
    stream.write("".join(f"event: gone\ndata: {name}\n\n" for name in names))
    stream.send(about("stays", n=1))
    wait_for_updates(paused, "stays", 2)
    advance(paused, 100)
    wait_for(lambda: all("success" in paused.told(name) for name in names))
    assert [request.jobs for request in paused.server.requests()][1:] == [names]


def test_success_of_a_job_with_a_link_comes_by_a_poll(streams: Polling) -> None:
    """A job that is gone because it has succeeded ends by one poll."""
    stream = follow_streamed(streams, "job")
    streams.server.answer("job", success(n=2))
    stream.send("job", "gone")
    streams.wait("job", "done")
    assert streams.told("job") == [*["update"] * 3, "success", "done"]
    assert polls(streams, "job") == 2


@pytest.mark.parametrize("uuid", ["another", "", "__proto__", "constructor", "null"])
def test_unknown_job_that_is_gone_changes_nothing(streams: Polling, uuid: str) -> None:
    """A gone for a job that nobody follows costs no request."""
    stream = follow_streamed(streams, "one", "two")
    stream.send(uuid, "gone")
    stream.send(about("one", n=2))
    wait_for(lambda: numbers(streams, "one")[-1] == 2)
    settle(streams)
    assert stream.is_open
    assert len(streams.server.requests()) == 1


def test_away_is_an_outage_told_once(streams: Polling) -> None:
    """If the store is away, lost is called once, and the next state is the recovery."""
    stream = follow_streamed(streams, "one", "two")
    stream.send("", "away")
    stream.send("", "away")
    for name in ("one", "two"):
        stream.send(about(name, n=2))
    wait_for(lambda: numbers(streams, "two")[-1] == 2)
    stream.send("", "away")
    stream.send(about("one", "success", n=3))
    streams.wait("one", "done")
    assert streams.told("one") == [
        *("update", "update", "lost", "update", "lost", "update", "success", "done")
    ]
    for reason in streams.told("one", "lost"):
        assert (reason["code"], reason["status"]) == ("status", 503)
        assert (reason["final"], reason["retryIn"]) == (False, 1000)
    assert stream.is_open
    assert len(streams.server.requests()) == 1


def test_outage_of_a_stream_that_fails_is_told_once(streams: Polling) -> None:
    """Polls that take over during an outage do not tell it again."""
    stream = follow_streamed(streams, "job", pollingPeriod=50)
    streams.server.answer("job", Answer(503), success(n=2))
    stream.send("", "away")
    streams.wait("job", "lost")
    streams.server.refusals = [Answer(503)]
    stream.end()
    streams.wait("job", "done")
    assert streams.told("job").count("lost") == 1


def test_beat_is_only_a_sign_of_life(paused: Polling) -> None:
    """Beats keep a silent stream open, and tell nobody anything."""
    stream = open_first(paused)
    for _ in range(3):
        beat(paused, stream)
        advance(paused, 45_000)
    assert sources(paused) == ["open"]
    assert paused.told("job") == ["update"]
    assert paused.asked("job") == 1


def beat(polling: Polling, stream: Stream) -> None:
    """Send a beat, and wait until the page has heard it."""
    heard = """new Promise((resolve) =>
        sources[sources.length - 1].addEventListener("beat", resolve, {once: true}))"""
    polling.page.evaluate(f"window.heard = {heard}; null")
    stream.send("1767225600000", "beat")
    polling.page.evaluate("heard.then(() => null)")


# Streams that fail

REFUSALS = {
    "json": Answer(200, state()),
    "204": Answer(204),
    "403": Answer(403),
    "404": Answer(404),
    "503": Answer(503),
    "302": Answer(302, headers={"Location": "/empty"}),
    "html": Answer(200, "<p>Sign in", {"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refused_stream_leaves_the_page_to_polls(
    paused: Polling, refusal: Answer
) -> None:
    """A stream that is refused is not tried again; polls go on at once."""
    paused.server.refusals = [refusal]
    paused.follow("job", working(n=0), pollingPeriod=10_000)
    advance(paused, 10)
    wait_for(lambda: sources(paused) == ["closed"])
    advance(paused, 50)
    assert paused.asked("job") == 2
    for count in (2, 3, 4, 5):
        wait_for_updates(paused, "job", count)
        assert paused.asked("job") == count
        advance(paused, 10_000)
    assert sources(paused) == ["closed"]
    assert "lost" not in paused.told("job")


def test_page_remembers_that_streams_are_refused(streams: Polling) -> None:
    """Jobs that are followed after all others have ended do not try again."""
    streams.server.refusals = [Answer(403)]
    streams.follow("one", working(n=0), success(n=1))
    streams.wait("one", "done")
    streams.follow("two", *[working(n=0)] * 3, success(n=1))
    streams.wait("two", "done")
    assert len(streams.server.refused) == 1
    assert streams.server.streams == []
    assert polls(streams, "two") == 4


@pytest.mark.parametrize("buffers", ["all", "events"])
def test_proxy_that_buffers_is_given_up_after_five_seconds(
    paused: Polling, buffers: str
) -> None:
    """Without a first event, the page polls, and never streams again."""
    if buffers == "all":
        paused.server.refusals = [Answer(hold=threading.Event())]
    paused.follow("job", working(n=0), pollingPeriod=10_000)
    advance(paused, 10)
    opening = "connecting" if buffers == "all" else "open"
    wait_for(lambda: sources(paused) == [opening])
    advance(paused, 4999)
    assert (sources(paused), paused.asked("job")) == ([opening], 1)
    advance(paused, 1)
    assert (sources(paused), paused.asked("job")) == (["closed"], 2)
    for count in (2, 3, 4):
        wait_for_updates(paused, "job", count)
        advance(paused, 10_000)
        assert paused.asked("job") == count + 1
    assert sources(paused) == ["closed"]
    assert "lost" not in paused.told("job")


def test_server_that_cannot_be_reached_is_given_up_after_five_seconds(
    paused: Polling,
) -> None:
    """A stream that the browser fails to open again and again counts as held back."""
    paused.server.refusals = [Answer(drop=True)] * 50
    paused.follow("job", working(n=0), pollingPeriod=10_000)
    advance(paused, 10)
    wait_for(lambda: paused.server.refused)
    advance(paused, 4999)
    assert (sources(paused), paused.asked("job")) == (["connecting"], 1)
    advance(paused, 1)
    assert (sources(paused), paused.asked("job")) == (["closed"], 2)


def test_silent_stream_is_given_up_after_fifty_seconds(paused: Polling) -> None:
    """After 50 s of silence the page polls at once, and streams again 15 s later."""
    stream = open_first(paused)
    beat(paused, stream)
    advance(paused, 49_999)
    assert (sources(paused), paused.asked("job")) == (["open"], 1)
    advance(paused, 1)
    assert (sources(paused), paused.asked("job")) == (["closed"], 2)
    wait_for(lambda: len(numbers(paused, "job")) == 2)
    advance(paused, 14_999)
    assert (sources(paused), paused.asked("job")) == (["closed"], 3)
    wait_for(lambda: len(numbers(paused, "job")) == 3)
    advance(paused, 1)
    wait_for(lambda: sources(paused) == ["closed", "open"])
    assert paused.asked("job") == 3
    assert "lost" not in paused.told("job")


def test_stream_that_fails_twice_is_tried_no_more(paused: Polling) -> None:
    """The second try must have an event, too, to be followed by a third."""
    stream = open_first(paused)
    beat(paused, stream)
    paused.server.refusals = [Answer(503), Answer(503)]
    stream.end()
    wait_for(lambda: sources(paused) == ["closed"])
    for _ in range(50):
        # Less than the page waits for a first event, so that the refusal comes first.
        advance(paused, 4_000)
        asked = paused.asked("job")
        wait_for_updates(paused, "job", asked)
        wait_for(lambda: set(sources(paused)) == {"closed"})
    assert sources(paused) == ["closed", "closed"]
    assert len(paused.server.refused) == 2


@pytest.mark.parametrize("first", ["worked", "never worked"])
def test_stream_that_never_worked_rules_out_others_that_had(
    paused: Polling, first: str
) -> None:
    """A page whose streams fail in either way does not try again."""
    worked, never = open_two(paused)
    worked.send(about(worked.jobs[0], n=1))
    wait_for_updates(paused, worked.jobs[0], 2)
    streams = [worked, never] if first == "worked" else [never, worked]
    streams[0].write("data: bad\n\n")
    wait_for(lambda: "closed" in sources(paused))
    advance(paused, 100)
    streams[1].write("data: bad\n\n")
    wait_for(lambda: sources(paused) == ["closed", "closed"])
    advance(paused, 100)
    for count in (3, 4, 5):
        wait_for_updates(paused, worked.jobs[0], count)
        advance(paused, 10_000)
    assert sources(paused) == ["closed", "closed"]
    assert len(paused.server.streams) == 2


def test_each_stream_that_fails_makes_the_page_wait(paused: Polling) -> None:
    """Streams are tried again 15 s after the last failure, not after the first one."""
    one, two = open_two(paused)
    for stream in (one, two):
        stream.send(about(stream.jobs[0], n=1))
        wait_for_updates(paused, stream.jobs[0], 2)
    one.write("data: bad\n\n")
    wait_for(lambda: "closed" in sources(paused))
    advance(paused, 8000)
    wait_for_updates(paused, one.jobs[0], 3)
    two.write("data: bad\n\n")
    wait_for(lambda: sources(paused) == ["closed", "closed"])
    wait_for_updates(paused, two.jobs[0], 3)
    advance(paused, 7000)
    assert sources(paused) == ["closed", "closed"]
    advance(paused, 7999)
    wait_for_updates(paused, two.jobs[0], 4)
    assert sources(paused) == ["closed", "closed"]
    advance(paused, 1)
    wait_for(lambda: sources(paused)[2:] == ["open", "open"])


def open_two(polling: Polling) -> list[Stream]:
    """Follow 150 jobs with a clock that stands still, until they have two streams."""
    names = answer_many(polling, 150)
    follow_all(polling, names, pollingPeriod=10_000)
    advance(polling, 10)
    wait_for(lambda: sources(polling) == ["open", "open"])
    return sorted(polling.server.streams, key=lambda stream: stream.jobs)


def test_stream_is_tried_again_only_where_it_is_offered(paused: Polling) -> None:
    """After a failure, the poll must offer a stream again."""
    stream = open_first(paused)
    beat(paused, stream)
    paused.server.offers = False
    paused.server.refusals = [Answer(200, state())]
    stream.end()
    wait_for(lambda: sources(paused) == ["closed"])
    for count in (2, 3, 4):
        advance(paused, 10_000)
        wait_for_updates(paused, "job", count)
    assert sources(paused) == ["closed"]
    paused.server.offers = True
    advance(paused, 10_000)
    wait_for(lambda: sources(paused) == ["closed", "open"])


BAD = {
    "text": "<!doctype html><p>Sign in",
    "empty": "",
    "null": "null",
    "list": "[]",
    "string": '"job"',
    "no job": '{"job_state": "working"}',
    "odd state": '{"job_state": "odd", "job": {}}',
    "cut": state()[:-2],
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_event_that_is_not_a_job_ends_the_stream(
    paused: Polling, data: str, first: bool
) -> None:
    """The page polls at once, and streams again only if the stream had worked."""
    stream = open_first(paused)
    if not first:
        beat(paused, stream)
    advance(paused, 100)
    stream.write(f"data: {data}\n\n")
    wait_for(lambda: sources(paused) == ["closed"])
    assert paused.asked("job") == 2
    wait_for(lambda: len(numbers(paused, "job")) == 2)
    advance(paused, 15_000)
    wait_for(lambda: len(numbers(paused, "job")) == 3)
    again = [] if first else ["open"]
    wait_for(lambda: sources(paused) == ["closed", *again])
    assert "lost" not in paused.told("job")


def test_page_polls_if_the_stream_fails_during_a_poll(paused: Polling) -> None:
    """Jobs of a stream that fails wait for the answer to the poll of another job."""
    hold = threading.Event()
    stream = open_first(paused)
    paused.follow("two", Answer(body=state(n=0), hold=hold))
    advance(paused, 50)
    paused.wait_for_requests("two", 1)
    stream.write("data: bad\n\n")
    wait_for(lambda: sources(paused) == ["closed"])
    assert paused.asked("job") == 1
    hold.set()
    paused.wait("two", "update")
    assert paused.asked("job") == 2


def test_poll_after_a_stream_sends_no_older_etag(streams: Polling) -> None:
    """A 304 would confirm what the stream has shown since the last poll."""
    streams.follow("job", working('"a"', n=0))
    stream = stream_of(streams)
    stream.send(about("job", n=1))
    wait_for(lambda: numbers(streams, "job") == [0, 1])
    streams.server.refusals = [Answer(200, state())]
    stream.end()
    streams.wait_for_requests("job", 3)
    sent = [r.headers.get("if-none-match") for r in streams.server.seen("job")]
    assert sent[:3] == [None, None, '"a"']


# Streams that the browser opens again


def test_stream_that_ends_goes_on_with_its_last_id(streams: Polling) -> None:
    """The browser reconnects with Last-Event-ID, and nobody is told."""
    streams.follow("job", working(n=0))
    first = stream_of(streams)
    first.send(about("job", n=1), event_id="a1")
    wait_for(lambda: numbers(streams, "job") == [0, 1])
    first.end()
    second = stream_of(streams, 1)
    assert second.headers["last-event-id"] == "a1"
    second.reset()
    third = stream_of(streams, 2)
    assert third.headers["last-event-id"] == "a1"
    third.send(about("job", "success", n=2))
    streams.wait("job", "done")
    assert streams.told("job") == [*["update"] * 3, "success", "done"]
    assert polls(streams, "job") == 1


def test_stream_that_takes_long_to_come_back_is_given_up(paused: Polling) -> None:
    """Eight seconds after an error, a stream that is still away gives way to polls."""
    stream = open_first(paused)
    beat(paused, stream)
    paused.server.refusals = [Answer(drop=True)] * 500
    stream.reset()
    wait_for(lambda: sources(paused) == ["connecting"])
    advance(paused, 4000)  # and each further failure does not begin anew
    wait_for(lambda: len(paused.server.refused) > 2)
    advance(paused, 3999)
    assert (sources(paused), paused.asked("job")) == (["connecting"], 1)
    advance(paused, 1)
    assert (sources(paused), paused.asked("job")) == (["closed"], 2)
    assert "lost" not in paused.told("job")


def test_stream_that_comes_back_is_kept(paused: Polling) -> None:
    """A connection that opens again has as long as before to send something."""
    stream = open_first(paused)
    beat(paused, stream)
    paused.server.refusals = [Answer(drop=True)] * 3
    stream.end()
    second = stream_of(paused, 1)
    wait_for(lambda: sources(paused) == ["open"])
    advance(paused, 20_000)
    assert (sources(paused), paused.asked("job")) == (["open"], 1)
    beat(paused, second)
    advance(paused, 49_999)
    assert (sources(paused), paused.asked("job")) == (["open"], 1)


def test_stream_that_only_opens_and_ends_is_given_up(paused: Polling) -> None:
    """Connections without events do not count as signs of life."""
    stream = open_first(paused)
    beat(paused, stream)
    for n in range(1, 11):
        paused.server.streams[-1].end()
        stream_of(paused, n)
        wait_for(lambda: sources(paused) == ["open"])
        advance(paused, 4999)
    assert (sources(paused), paused.asked("job")) == (["open"], 1)
    advance(paused, 10)
    assert (sources(paused), paused.asked("job")) == (["closed"], 2)


def test_no_content_ends_the_stream_and_one_poll_decides(streams: Polling) -> None:
    """After a 204 to a reconnect, one poll brings the end."""
    stream = follow_streamed(streams, "job")
    streams.server.answer("job", success(n=2))
    streams.server.refusals = [Answer(204)]
    stream.end()
    streams.wait("job", "done")
    assert streams.told("job") == [*["update"] * 3, "success", "done"]
    assert polls(streams, "job") == 2
    assert len(streams.server.streams) == 1


def test_restart_of_the_server_is_survived(streams: Polling) -> None:
    """A stream that breaks off with its server goes on when the server is back."""
    stream = follow_streamed(streams, "job")
    streams.server.stop()
    stream.reset()
    streams.server.answer("job", success(n=2))
    streams.server.start()
    again = stream_of(streams, 1)
    again.send(about("job", "success", n=2))
    streams.wait("job", "done")
    assert "lost" not in streams.told("job")
    assert polls(streams, "job") == 1


# Hidden, left and offline pages


def test_hidden_tab_closes_its_stream(streams: Polling) -> None:
    """A shown tab polls at once, and streams after the answer."""
    stream = follow_streamed(streams, "job")
    streams.page.evaluate("setHidden(true)")
    assert sources(streams) == ["closed"]
    wait_for(lambda: not stream.is_open)
    assert polls(streams, "job") == 1
    hold = threading.Event()
    held = Answer(body=state(n=2), hold=hold)
    streams.server.answer("job", held, working(n=3))
    streams.page.evaluate("setHidden(false)")
    streams.wait_for_requests("job", 2)
    assert sources(streams) == ["closed"]
    hold.set()
    second = stream_of(streams, 1)
    assert "last-event-id" not in second.headers
    second.send(about("job", "success", n=4))
    streams.wait("job", "done")
    assert numbers(streams, "job") == [0, 1, 2, 4]
    assert polls(streams, "job") == 2


def test_hidden_tab_lets_no_stream_fail(paused: Polling) -> None:
    """However long a tab is hidden, it sends nothing and then goes on streaming."""
    stream = open_first(paused)
    beat(paused, stream)
    paused.page.evaluate("setHidden(true)")
    advance(paused, 2 * HOUR)
    assert (sources(paused), paused.asked("job")) == (["closed"], 1)
    paused.page.evaluate("setHidden(false)")
    assert paused.asked("job") == 2
    wait_for(lambda: sources(paused) == ["closed", "open"])


def test_stream_that_was_closed_early_does_not_count_as_failed(
    paused: Polling,
) -> None:
    """A tab that is hidden before the first event streams whenever it is shown."""
    open_first(paused)
    for number in (1, 2):
        paused.page.evaluate("setHidden(true)")
        advance(paused, 100)
        paused.page.evaluate("setHidden(false)")
        beat(paused, stream_of(paused, number))
        advance(paused, 6000)
    assert sources(paused) == ["closed", "closed", "open"]


def test_stream_opens_not_before_the_tab_is_shown(paused: Polling) -> None:
    """A tab that is hidden during its first poll opens no stream."""
    hold = threading.Event()
    paused.follow("job", Answer(body=state(n=0), hold=hold))
    advance(paused, 10)
    paused.wait_for_requests("job", 1)
    paused.page.evaluate("setHidden(true)")
    hold.set()
    paused.wait("job", "update")
    advance(paused, 60_000)
    assert (sources(paused), paused.asked("job")) == ([], 1)
    paused.page.evaluate("setHidden(false)")
    wait_for(lambda: sources(paused) == ["open"])
    assert paused.asked("job") == 2


def test_flickering_tab_keeps_one_stream(streams: Polling) -> None:
    """However often a tab is shown, it has at most one stream in the end."""
    follow_streamed(streams, "job")
    streams.page.evaluate(
        "for (let n = 0; n < 50; n++) { setHidden(true); setHidden(false); }"
    )
    wait_for(lambda: sources(streams)[-1] == "open" and len(sources(streams)) > 1)
    settle(streams)
    assert sources(streams).count("open") == 1
    wait_for(lambda: len(streams.server.open_streams) == 1)
    assert polls(streams, "job") == 2


def test_left_page_closes_its_stream(streams: Polling) -> None:
    """A page that returns polls at once, and then streams."""
    stream = follow_streamed(streams, "job")
    streams.page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    assert sources(streams) == ["closed"]
    wait_for(lambda: not stream.is_open)
    settle(streams)
    assert polls(streams, "job") == 1
    streams.page.evaluate("window.dispatchEvent(new Event('pageshow'))")
    second = stream_of(streams, 1)
    second.send(about("job", "success", n=2))
    streams.wait("job", "done")
    assert polls(streams, "job") == 2
    assert "lost" not in streams.told("job")


@pytest.mark.parametrize("event", ["pageshow", "online"])
def test_page_that_streams_already_minds_no_return(
    streams: Polling, event: str
) -> None:
    """The pageshow of a page that has just loaded costs no request."""
    follow_streamed(streams, "job")
    streams.page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
    settle(streams)
    assert sources(streams) == ["open"]
    assert polls(streams, "job") == 1


def test_tab_that_is_really_hidden_closes_its_stream(
    windowed: Browser, poll_server: PollServer
) -> None:
    """A tab in a minimized window has no stream until it is shown again."""
    poll_server.offers = True
    poll_server.answer("job", working(n=0))
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/page")
        tab.evaluate("follow('job', { pollingPeriod: 3600000 })")
        stream = stream_to(poll_server)
        tab.hide()
        wait_for(lambda: not stream.is_open)
        assert len(poll_server.seen("job")) == 1
        tab.show()
        assert stream_to(poll_server, 1).is_open
        assert len(poll_server.seen("job")) == 2


def test_page_from_the_back_forward_cache_streams_again(
    browser: Browser, poll_server: PollServer
) -> None:
    """In the cache, a page has no stream; back from there it polls and streams."""
    poll_server.offers = True
    poll_server.answer("job", working(n=0))
    cached = chromium.launch(
        browser.browser_type, ignore_default_args=["--disable-back-forward-cache"]
    )
    try:
        with opened(cached) as tab:
            tab.open(poll_server.url + "/page")
            tab.evaluate("follow('job', { pollingPeriod: 3600000 })")
            wait_for(lambda: poll_server.open_streams)
            poll_server.streams[0].send(about("job", n=1))
            wait_for(lambda: tab.evaluate("calls.length") == 2)
            tab.open(poll_server.url + "/empty")
            wait_for(lambda: not poll_server.open_streams)
            tab.evaluate("history.back()")
            wait_for(lambda: tab.evaluate("location.pathname") == "/page")
            assert tab.evaluate("calls.length") >= 2  # the same page, not a new one
            wait_for(lambda: poll_server.open_streams)
            poll_server.streams[1].send(about("job", "success", n=2))
            wait_for(lambda: "done" in tab.evaluate("calls.map((c) => c.callback)"))
            assert len(poll_server.seen("job")) == 2
            assert "lost" not in tab.evaluate("calls.map((c) => c.callback)")
    finally:
        cached.close()


# Cancelling


@pytest.mark.parametrize("streamed", [True, False])
def test_cancel_polls_only_without_a_stream(streams: Polling, streamed: bool) -> None:
    """A live stream brings what a cancel does; without one, a poll asks at once."""
    streams.server.offers = streamed
    streams.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    streams.follow("job", working(n=0), pollingPeriod=HOUR)
    streams.wait("job", "update")
    if streamed:
        stream = stream_of(streams)
        stream.send(about("job", n=1))
        wait_for(lambda: numbers(streams, "job") == [0, 1])
    streams.server.answer("job", error(n=2))
    assert streams.page.evaluate("cancel('job')") is True
    if streamed:
        settle(streams)
        assert polls(streams, "job") == 1
        stream.send(about("job", "error", n=2))
    streams.wait("job", "error")
    assert polls(streams, "job") == (1 if streamed else 2)


# Hostile data


def test_names_of_javascript_in_events_are_harmless(streams: Polling) -> None:
    """Jobs and metrics named __proto__ or constructor pollute nothing."""
    stream = follow_streamed(streams, "one", "two")
    for uuid in ("__proto__", "constructor", "toString", "one\u0000", "ONE"):
        stream.send(about(uuid, "success", n=9))
    for odd in (None, 7, {"a": 1}, ["one"], True):
        job = {"uuid": odd, "status": "success"}
        stream.send(json.dumps({"job_state": "success", "job": job}))
    hostile = about("two", n=2).replace("{", '{"__proto__": {"polluted": 1}, ', 1)
    stream.send(hostile)
    wait_for(lambda: numbers(streams, "two") == [0, 1, 2])
    assert numbers(streams, "one") == [0, 1]
    assert streams.page.evaluate("({}).polluted === undefined")
    assert streams.told("one") == ["update", "update"]


def test_huge_event_is_an_event(streams: Polling) -> None:
    """A state of eight megabytes arrives whole."""
    stream = follow_streamed(streams, "job")
    stream.send(about("job", "success", n=2, text="x" * 8_000_000))
    streams.wait("job", "success")
    assert streams.page.evaluate("raw[raw.length - 1].text.length") == 8_000_000


@pytest.mark.parametrize("name", ["EventSource", "performance", "self", "open"])
def test_stream_minds_no_element_of_a_name(streams: Polling, name: str) -> None:
    """Elements named after what streams use do not shadow it."""
    scripts = "<script src=/job-state.js></script><script src=/harness.js></script>"
    head = "<!doctype html><meta charset=utf-8><title>Poller</title>"
    markup = f"<img name={name}><form name={name}></form><a id={name}></a>"
    streams.server.pages["/marked"] = head + markup + scripts
    streams.open("/marked")
    stream = follow_streamed(streams, "job")
    stream.send(about("job", "success", n=2))
    streams.wait("job", "success")


# The transport


def test_poller_says_what_brought_the_last_answer(streams: Polling) -> None:
    """A poller's transport is null, then "poll", and then "stream"."""
    streams.server.answer("job", working(n=0))
    streams.page.evaluate(
        """() => {
            window.seen = [];
            const note = (name) => () => seen.push([name, poller.transport]);
            window.poller = JobState.startPolling({
                jobUuid: "job", pollingPeriod: 50, update: note("update"),
                success: note("success"), lost: note("lost"),
            });
            seen.push(["start", poller.transport]);
        }"""
    )
    stream = stream_of(streams)
    stream.send(about("job", n=1))
    stream.send("", "away")
    wait_for(lambda: len(streams.page.evaluate("seen")) == 4)
    streams.server.answer("job", Answer(503), working(n=2))
    streams.server.refusals = [Answer(503)]
    stream.end()
    wait_for(lambda: len(streams.page.evaluate("seen")) >= 5)
    streams.server.answer("job", success(n=3))
    wait_for(lambda: "success" in str(streams.page.evaluate("seen")))
    seen = streams.page.evaluate("seen")
    assert seen[:4] == [
        ["start", None],
        ["update", "poll"],
        ["update", "stream"],
        ["lost", "stream"],
    ]
    assert {transport for _, transport in seen[4:]} == {"poll"}
    assert seen[-1] == ["success", "poll"]


def test_element_says_what_brought_each_event(streams: Polling) -> None:
    """An element's transport is right at each of its events, and after the last."""
    streams.server.answer("job", working(n=0))
    streams.page.evaluate(
        """() => {
            window.seen = [];
            const element = document.createElement("job-state");
            for (const name of ["update", "success", "lost"]) {
                element.addEventListener(`job-state:${name}`, () =>
                    seen.push([name, element.transport]));
            }
            seen.push(["start", element.transport]);
            element.src = "/job_state/job";
            document.body.append(element);
            window.element = element;
        }"""
    )
    stream = stream_of(streams)
    stream.send(about("job", n=1))
    stream.send("", "away")
    stream.send(about("job", "success", n=2))
    wait_for(lambda: len(streams.page.evaluate("seen")) == 6)
    assert streams.page.evaluate("seen") == [
        ["start", None],
        ["update", "poll"],
        ["update", "stream"],
        ["lost", "stream"],
        ["update", "stream"],
        ["success", "stream"],
    ]
    assert streams.page.evaluate("element.transport") == "stream"
    # At once, since the answer may come between two calls.
    transport = streams.page.evaluate(
        "() => { element.src = '/job_state/missing'; return element.transport; }"
    )
    assert transport is None
    wait_for(lambda: streams.page.evaluate("seen")[-1] == ["lost", "poll"])


def test_elements_share_a_stream(streams: Polling) -> None:
    """Elements of one page are streamed together, and show what arrives."""
    uuids = [uuid_of(n) for n in range(2)]
    for uuid in uuids:
        streams.server.answer(uuid, working(n=0))
    streams.page.evaluate(
        """(uuids) => document.body.append(...uuids.map((uuid) => {
            const element = document.createElement("job-state");
            element.id = uuid;
            element.src = `/job_state/${uuid}`;
            return element;
        }))""",
        uuids,
    )
    stream = stream_of(streams)
    assert stream.jobs == uuids
    stream.send(about(uuids[1], "success"))
    shown = f"document.getElementById('{uuids[1]}').getAttribute('state')"
    wait_for(lambda: streams.page.evaluate(shown) == "success")
    streams.page.evaluate(f"document.getElementById('{uuids[0]}').remove()")
    wait_for(lambda: not stream.is_open)


# Pages of another origin


@pytest.mark.parametrize("exposed", [True, False])
def test_page_of_another_origin_streams_if_it_sees_the_offer(
    streams: Polling, exposed: bool
) -> None:
    """The offer must be exposed by CORS; otherwise the page polls."""
    elsewhere = PollServer()
    try:
        headers = {
            "Access-Control-Allow-Origin": streams.server.url,
            "Access-Control-Allow-Credentials": "true",
        }
        elsewhere.offers = True
        elsewhere.stream_headers = headers
        seen = {"Access-Control-Expose-Headers": "JobState-Stream"} if exposed else {}
        answer = Answer(body=state(n=0), headers={**headers, **seen})
        elsewhere.answer("job", answer)
        streams.page.context.add_cookies(
            [{"name": "session", "value": "alice", "url": elsewhere.url}]
        )
        streams.open("/page?connect=" + elsewhere.url)
        options = {"baseUrl": f"{elsewhere.url}/job_state", "crossOrigin": True}
        streams.follow("job", **options)
        if exposed:
            stream = stream_to(elsewhere)
            assert stream.headers["cookie"] == "session=alice"
            stream.send(about("job", "success", n=1))
            streams.wait("job", "success")
            assert len(elsewhere.seen("job")) == 1
        else:
            wait_for(lambda: len(elsewhere.seen("job")) > 3)
            assert elsewhere.streams == []
    finally:
        elsewhere.close()
