"""Streams in a real Chromium, against a server whose streams the test writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.polling import HOUR, Polling, follow_all
from tests.pollserver import (
    Answer,
    PollServer,
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
    for name in names:
        polling.server.answer(name, working(n=0))
    number = len(polling.server.streams)
    follow_all(polling, [*names], **{"pollingPeriod": 1000, **options})
    stream = stream_of(polling, number)
    for name in names:
        stream.send(about(name, n=1))
        polling.wait_for_updates(name, 2)
    return stream


def open_first(polling: Polling, *answers: Answer, **options: Any) -> Stream:
    """Follow a job with a clock that stands still, until its stream has opened."""
    options = {"pollingPeriod": 10_000, **options}
    number = len(polling.server.streams)
    polling.follow("job", *(answers or [working(n=0)]), **options)
    polling.advance(10)
    stream = stream_of(polling, number)
    wait_for(lambda: sources(polling)[-1:] == ["open"])
    return stream


def sources(polling: Polling) -> list[str]:
    """What the page knows of each of its streams so far."""
    states = ["connecting", "open", "closed"]
    return [
        states[number]
        for number in polling.page.evaluate("sources.map((s) => s.readyState)")
    ]


def wait_for_sources(polling: Polling, *states: str) -> None:
    wait_for(lambda: sources(polling) == [*states])


def so_far(polling: Polling) -> tuple[list[str], int]:
    """The page's streams, and how often it has asked for the job."""
    return sources(polling), polling.asked("job")


def numbers(polling: Polling, name: str) -> list[int]:
    """The metric n of each update so far."""
    return [data["n"] for data in polling.told(name, "update")]


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


def stream_with(polling: Polling, name: str) -> Stream:
    """The open stream of a job."""
    return next(s for s in polling.server.open_streams if name in s.jobs)


def streamed(polling: Polling) -> list[str]:
    """The jobs of the open streams."""
    return sorted(uuid for s in polling.server.open_streams for uuid in s.jobs)


def beat(polling: Polling, stream: Stream) -> None:
    """Send a beat, and wait until the page has heard it."""
    heard = """new Promise((resolve) =>
        sources[sources.length - 1].addEventListener("beat", resolve, {once: true}))"""
    polling.page.evaluate(f"window.heard = {heard}; null")
    stream.send("1767225600000", "beat")
    polling.page.evaluate("heard.then(() => null)")


# From the poll to the stream


def test_job_is_polled_once_and_then_streamed(streams: Polling) -> None:
    """A stream takes the place of all polls but the first, at the same URL. The end of
    its last job closes it, and nothing follows.
    """
    streams.follow("job", working(n=0))
    stream = stream_of(streams)
    for n in (1, 2):
        stream.send(about("job", n=n))
    stream.send(about("job", "error", n=3))
    streams.wait("job", "done")
    assert streams.told("job") == [*["update"] * 4, "error", "done"]
    assert numbers(streams, "job") == [0, 1, 2, 3]
    wait_for(lambda: not stream.is_open)
    streams.wait_for_others()
    assert [r.path for r in streams.server.requests()] == ["/job_state/job"]
    assert [s.path for s in streams.server.streams] == ["/job_state/job"]
    assert stream.headers["cookie"] == "session=alice"
    assert "last-event-id" not in stream.headers


def test_page_without_an_offer_polls(streams: Polling) -> None:
    """Only the value 1 of the header offers a stream, and only of a job that runs. A
    browser without EventSource leaves it.
    """
    streams.follow("over", success())
    streams.wait("over", "done")
    streams.server.offers = False
    cases = {}
    for name, value in {"none": None, "zero": "0", "empty": "", "true": "true"}.items():
        answer = working(n=0)
        if value is not None:
            answer.headers["JobState-Stream"] = value
        cases[name] = [answer, answer, success(n=1)]
    streams.follow_apart(cases)
    for name in cases:
        streams.wait(name, "done")
        assert len(streams.seen_apart(name)) == 3
    streams.server.offers = True
    for how in "delete window.EventSource", "window.EventSource = null":
        streams.page.evaluate(f"{how}; null")
        streams.follow(how, working(n=0), success(n=1), jobUuid="job")
        streams.wait(how, "done")
    assert streams.server.streams == streams.server.refused == []
    assert polls(streams, "job") == 4


def test_stream_that_cannot_be_made_leaves_the_page_to_polls(streams: Polling) -> None:
    """Where EventSource throws, polls go on, and no further try follows."""
    names = answer_many(streams, 150)
    for broken in "constructor", "addEventListener":
        streams.open()
        streams.page.evaluate(
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
        follow_all(streams, names, pollingPeriod=200)
        wait_for(lambda: len(streams.told(names[149])) > 2)
        assert streams.page.evaluate("made") == 2
        assert set(streams.told(names[0])) == {"update"}


def test_jobs_share_a_stream(streams: Polling) -> None:
    """Jobs of one base URL are one stream, in the order in which they were followed. It
    goes on for the others if one ends or is stopped.
    """
    stream = follow_streamed(streams, "two", "one", "three", "four")
    assert stream.path == "/job_state?uuid=two&uuid=one&uuid=three&uuid=four"
    stream.send(about("one", "success", n=2))
    streams.wait("one", "done")
    streams.page.evaluate("pollers.two.stop()")
    for name in "one", "two":
        stream.send(about(name, "working", n=9))
    stream.send(about("three", n=2))
    streams.wait_for_updates("three", 3)
    for name in "three", "four":
        stream.send(about(name, "success", n=3))
        streams.wait(name, "done")
    assert streams.told("one") == [*["update"] * 3, "success", "done"]
    assert streams.told("two") == ["update", "update", "done"]
    wait_for(lambda: not stream.is_open)
    assert len(streams.server.streams) == 1
    assert len(streams.server.requests()) == 1


def test_hundred_jobs_are_one_stream_and_more_are_two(still: Polling) -> None:
    """A stream has at most a hundred jobs, and streams are of about one size."""
    names = answer_many(still, 150)
    follow_all(still, names[:100])
    still.advance(10)
    stream = stream_of(still)
    assert stream.jobs == names[:100]
    stream.send(about(names[0], n=1))
    still.wait_for_updates(names[0], 2)
    follow_all(still, names[100:])
    still.advance(10)
    wait_for(lambda: len(still.server.streams) == 3)
    wait_for(lambda: not stream.is_open)
    parts = sorted(still.server.open_streams, key=lambda stream: stream.jobs)
    assert [part.jobs for part in parts] == [names[:75], names[75:]]
    for part in parts:
        for name in part.jobs:
            part.send(about(name, "success", n=2))
    still.wait_for_all("done", 150)
    wait_for(lambda: not still.server.open_streams)
    assert len(still.server.streams) == 3
    assert len(still.server.requests()) == 2


def test_jobs_that_are_polled_slowly_are_streamed(streams: Polling) -> None:
    """A page whose polls take longer than a period still begins to stream."""
    names = answer_many(streams, 150)
    slow = json.dumps({"jobs": dict.fromkeys(names, json.loads(state()))})
    streams.server.answer_batches(*[Answer(body=slow, delay=0.2) for _ in range(50)])
    follow_all(streams, names, pollingPeriod=50)
    wait_for(lambda: len(streams.server.streams) == 2)
    assert len(streams.server.requests()) < 5


def test_page_opens_at_most_three_streams(streams: Polling) -> None:
    """The jobs of further base URLs are polled, so that connections remain. A stream
    that ends makes room.
    """
    for n in range(4):
        streams.follow(f"job{n}", working(n=0), jobUuid="job", baseUrl=f"/app{n}")
    wait_for(lambda: len(streams.server.streams) == 3)
    (rest,) = {f"/app{n}/job" for n in range(4)} - {
        stream.path for stream in streams.server.streams
    }
    count = len(streams.server.seen("job", below=rest[:5]))
    wait_for(lambda: len(streams.server.seen("job", below=rest[:5])) > count + 2)
    assert streams.server.most_streams == 3
    assert streams.page.evaluate("fetch('/empty').then((answer) => answer.status)")
    # The server may hear of the next one first.
    first = streams.server.streams[0]
    first.send(about("job", "success", n=5))
    wait_for(lambda: rest in [stream.path for stream in streams.server.streams])
    ended = f"job{first.path[4]}"
    streams.wait(ended, "success")
    others = [numbers(streams, f"job{n}") for n in range(4) if f"job{n}" != ended]
    assert {5} & {number for found in others for number in found} == set()


def test_jobs_beyond_three_hundred_are_polled(still: Polling) -> None:
    """Three streams bring the first 300 jobs of a page, and polls bring the rest. Where
    streamed jobs end, the others join, once a period.
    """
    names = answer_many(still, 310)
    follow_all(still, names, pollingPeriod=10_000)
    still.advance(10)
    wait_for_sources(still, *["open"] * 3)
    assert sizes(still) == [100, 100, 100]
    assert streamed(still) == names[:300]
    for name in (names[0], names[100], names[200]):
        stream_with(still, name).send(about(name, n=1))
        still.wait_for_updates(name, 2)
    still.wait_for_updates(names[309], 1)
    still.advance(10_000)
    still.wait_for_updates(names[309], 2)
    assert [polls(still, name) for name in (names[0], names[299])] == [1, 1]
    stream = stream_with(still, names[0])
    for name in names[:8]:
        stream.send(about(name, "success"))
        still.wait(name, "done")
    assert sources(still) == ["open"] * 3
    still.advance(10_000)
    wait_for(lambda: streamed(still) == names[8:308])
    assert len(still.server.streams) == 6


def test_other_streams_leave_less_room(still: Polling) -> None:
    """Where another base URL has a stream, only the first 200 jobs get streams. They
    are as small as the polls that the server has answered.
    """
    still.server.max_uuids = 80
    still.follow("other", working(n=0), jobUuid="job", baseUrl="/other")
    still.advance(10)
    stream_of(still)
    names = answer_many(still, 250)
    follow_all(still, names, pollingPeriod=10_000)
    for _ in range(3):
        still.advance(60)
        still.wait_for_updates(names[0], 1)
    wait_for(lambda: len(sizes(still)) == 3)
    assert max(sizes(still)) <= 80
    assert streamed(still) == names[: sum(sizes(still))]
    assert still.server.refused == []


def test_stream_of_too_many_jobs_is_split(still: Polling) -> None:
    """If jobs were polled in small numbers, the first stream may be too large. That
    rules out no later ones.
    """
    still.server.max_uuids = 16
    names = answer_many(still, 20)
    follow_all(still, names[:12], pollingPeriod=10_000)
    still.advance(10)
    stream_of(still).send(about(names[0], n=1))
    still.wait_for_updates(names[0], 2)
    follow_all(still, names[12:], pollingPeriod=10_000)
    still.advance(10)

    def are_smaller() -> bool:
        # The least pause between polls is 50 milliseconds, the longest their period.
        # A stream that takes five seconds of the page's time to open is given up, so
        # that time stands still meanwhile.
        if "connecting" not in sources(still):
            still.advance(1000)
        return sizes(still) == [10, 10]

    wait_for(are_smaller)
    assert streamed(still) == names
    assert [len(stream.jobs) for stream in still.server.refused] == [20]
    assert "lost" not in still.told(names[0])
    still.page.evaluate("Object.values(pollers).forEach((poller) => poller.stop())")
    wait_for(lambda: not still.server.open_streams)
    still.follow("later", working(n=0), pollingPeriod=10_000)
    still.advance(10)
    later = ["/job_state/later"]
    wait_for(lambda: [s.path for s in still.server.open_streams] == later)


@pytest.mark.long
def test_proxy_that_buffers_is_given_up_though_the_limit_shrinks(
    still: Polling,
) -> None:
    """Smaller streams get one try more, and are then given up as well."""
    still.server.max_uuids = 80
    names = answer_many(still, 100)
    follow_all(still, names[:60], pollingPeriod=10_000)
    still.advance(10)
    beat(still, stream_of(still))
    still.server.refusals = [held() for _ in range(9)]
    follow_all(still, names[60:], pollingPeriod=10_000)
    still.advance(10)
    wait_for_sources(still, "closed", "closed")

    def are_opening() -> bool:
        still.advance(50)
        return sources(still)[2:] == ["connecting", "connecting"]

    wait_for(are_opening)
    count = len(numbers(still, names[0]))
    still.advance(5000)
    for more in range(1, 5):
        still.wait_for_updates(names[0], count + more)
        still.advance(10_000)
    assert sources(still) == ["closed"] * 4


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


def test_jobs_followed_later_join(streams: Polling) -> None:
    """Later jobs are polled once, and then one stream of all replaces the first, which
    is closed before.
    """
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
    first = follow_streamed(streams, "one")
    names = [f"job{n}" for n in range(10)]
    for name in names:
        streams.server.answer(name, working(n=0))
    follow_all(streams, names, pollingPeriod=1000)
    second = stream_of(streams, 1)
    assert second.jobs == ["one", *names]
    wait_for(lambda: not first.is_open)
    for name in "one", "job9":
        second.send(about(name, n=2))
    streams.wait_for_updates("job9", 2)
    assert numbers(streams, "one") == [0, 1, 2]
    assert streams.page.evaluate("[open().length, most]") == [1, 1]
    assert len(streams.server.streams) == 2
    # On a busy machine the first job may be asked for on its own once more.
    [poll] = [r for r in streams.server.requests() if names[0] in r.path]
    assert all(name in poll.path for name in names)


def test_stream_without_an_event_is_not_replaced(still: Polling) -> None:
    """Adding jobs does not hide that a stream is held back: it fails all the same."""
    still.server.refusals = [held()]
    still.follow("job", working(n=0), pollingPeriod=HOUR)
    still.advance(10)
    wait_for_sources(still, "connecting")
    for n in range(4):
        still.advance(1000)
        still.follow(f"later{n}", working(n=0), pollingPeriod=HOUR)
        still.advance(60)
        still.wait(f"later{n}", "update")
    assert so_far(still) == (["connecting"], 1)
    still.advance(1000)
    assert sources(still) == ["closed"]
    still.wait_for_requests("job", 2)
    assert still.server.streams == []


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


@pytest.mark.parametrize("how", ["pollers.job.stop()", "aborters.job.abort()"])
def test_stream_that_nobody_watches_is_closed(streams: Polling, how: str) -> None:
    """stop() and the signal close the stream of the only job, even if the server has
    not answered yet.
    """
    stream = follow_streamed(streams, "job", signal=True)
    streams.page.evaluate(how)
    assert streams.wait("job", "done")["outcome"] == "stopped"
    wait_for(lambda: not stream.is_open)
    stream.send(about("job", "success", n=2))
    streams.server.refusals = [held()]
    streams.page.evaluate("calls.length = 0")
    streams.follow("job", working(n=0), signal=True)
    wait_for(lambda: streams.server.refused)
    streams.page.evaluate(how)
    wait_for(lambda: not streams.server.refused[0].is_open)
    streams.wait_for_others()
    assert streams.told("job") == ["update", "done"]
    assert polls(streams, "job") == 2
    assert len(streams.server.streams) == 1


def test_second_poller_of_a_job_shares_its_stream(streams: Polling) -> None:
    """It gets the last state without a request, once its call has returned and unless
    it is stopped, and then what arrives.
    """
    stream = follow_streamed(streams, "job")
    streams.follow("again", jobUuid="job")
    streams.follow("short", jobUuid="job", harness={"stopIn": "update"})
    streams.page.evaluate("follow('none', { jobUuid: 'job' }); pollers.none.stop()")
    for name, callback in ("again", "update"), ("short", "done"), ("none", "done"):
        streams.wait(name, callback)
    assert numbers(streams, "again") == [1]
    assert numbers(streams, "job") == [0, 1]
    streams.page.evaluate("pollers.job.stop()")
    stream.send(about("job", "success", n=2))
    streams.wait("again", "success")
    assert numbers(streams, "again") == [1, 2]
    assert streams.told("short") == ["update", "done"]
    assert streams.told("none") == ["done"]
    assert polls(streams, "job") == 1
    assert len(streams.server.streams) == 1


# Callbacks


def test_throwing_callback_does_not_harm_the_stream(streams: Polling) -> None:
    """What callbacks throw during an event is logged, and the stream goes on."""
    harness = {"throwing": ["update", "lost", "success"]}
    streams.follow("job", working(n=0), harness=harness)
    stream = stream_of(streams)
    stream.send(about("job", n=1))
    stream.send("", "away")
    stream.send(about("job", "success", n=2))
    streams.wait("job", "done")
    assert numbers(streams, "job") == [0, 1, 2]
    assert [w for w in streams.warnings("error") if "thrown in lost" in w]
    assert polls(streams, "job") == 1


@pytest.mark.parametrize("callback", ["update", "lost"])
def test_callback_may_stop_another_poller(streams: Polling, callback: str) -> None:
    """A poller that another's callback stops during an event is told no more. A job
    that is followed because of an event is polled and then streamed.
    """
    stream = follow_streamed(streams, "job")
    streams.follow("again", jobUuid="job")
    streams.wait("again", "update")
    streams.server.answer("next", working(n=0))
    streams.page.evaluate("""() => {
        calls.length = 0;
        const { push } = calls;
        calls.push = (call) => {
            push.call(calls, call);
            if (call.name === "job") pollers.again.stop();
        };
        void pollers.again.done.then(() => follow("next"));
    }""")
    if callback == "update":
        stream.send(about("job", n=2))
    else:
        stream.send("", "away")
    streams.wait("next", "update")
    assert streams.told("job") == [callback]
    assert streams.told("again") == ["done"]
    if callback == "update":
        second = stream_of(streams, 1)
        assert second.jobs == ["job", "next"]


# gone, away and beat


def test_job_that_is_gone_is_asked_for_once(streams: Polling) -> None:
    """One poll tells why, or brings the end."""
    ends = {"lost": Answer(404), "hidden": Answer(403), "over": success(n=2)}
    streams.follow_apart({name: [working(n=0), ends[name]] for name in ends})
    wait_for(lambda: len(streams.server.streams) == 3)
    for stream in streams.server.streams:
        stream.send(stream.path.split("/")[-1], "gone")
    for name, answer in ends.items():
        outcome = streams.wait(name, "done")
        if answer.status == 200:
            assert streams.told(name) == ["update", "update", "success", "done"]
        else:
            [reason] = streams.told(name, "lost")
            assert (reason["status"], reason["final"]) == (answer.status, True)
            assert outcome["outcome"] == "lost"
        assert len(streams.seen_apart(name)) == 2
    wait_for(lambda: not streams.server.open_streams)
    assert len(streams.server.streams) == 3


def test_job_that_cannot_be_streamed_goes_on_by_polls(streams: Polling) -> None:
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
    second = follow_streamed(streams, "three")
    assert second.jobs == ["two", "three"]
    streams.wait_for_requests("odd", polls(streams, "odd") + 3)
    assert sources(streams) == ["closed", "open"]
    assert "lost" not in streams.told("again")


def test_stream_of_one_job_that_is_gone_rules_out_no_others(streams: Polling) -> None:
    """A stream that says gone and ends leaves its job to polls, and only this job."""
    streams.follow("odd", working(n=0))
    stream = stream_of(streams)
    stream.send("odd", "gone")
    stream.end()
    streams.wait_for_requests("odd", 3)
    second = follow_streamed(streams, "one")
    assert second.path == "/job_state/one"
    streams.wait_for_requests("odd", polls(streams, "odd") + 3)
    assert polls(streams, "one") == 1
    streams.server.answer("odd", success(n=5))
    streams.wait("odd", "success")
    assert sources(streams) == ["closed", "open"]


def test_jobs_that_are_gone_together_are_asked_for_together(still: Polling) -> None:
    """Ten jobs that a stream drops cost one poll; unknown ones cost none."""
    names = [f"job{n}" for n in range(10)]
    for name in (*names, "stays"):
        still.server.answer(name, working(n=0))
    follow_all(still, [*names, "stays"], pollingPeriod=10_000)
    still.advance(10)
    stream = stream_of(still)
    wait_for_sources(still, "open")
    for name in names:
        still.server.answer(name, success(n=2))
    gone = [*names, "another", "", "__proto__", "constructor", "null"]
    stream.write("".join(f"event: gone\ndata: {name}\n\n" for name in gone))
    stream.send(about("stays", n=1))
    still.wait_for_updates("stays", 2)
    still.advance(100)
    wait_for(lambda: all("success" in still.told(name) for name in names))
    assert [request.jobs for request in still.server.requests()][1:] == [names]
    assert stream.is_open


def test_away_is_an_outage_told_once(streams: Polling) -> None:
    """If the store is away, lost is called once, and the next state is the recovery.
    Polls that take over during an outage do not tell it again.
    """
    stream = follow_streamed(streams, "one", "two")
    stream.send("", "away")
    stream.send("", "away")
    for name in ("one", "two"):
        stream.send(about(name, n=2))
    streams.wait_for_updates("two", 3)
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
    streams.server.answer("two", Answer(503), success(n=4))
    streams.server.refusals = [Answer(503)]
    stream.end()
    streams.wait("two", "done")
    assert streams.told("two", "lost") == streams.told("one", "lost")


def test_silent_stream_is_given_up_after_fifty_seconds(still: Polling) -> None:
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
    assert still.asked("job") == 3
    assert "lost" not in still.told("job")


# Streams that fail

REFUSALS = {
    "json": Answer(200, state()),
    "204": Answer(204),
    "403": Answer(403),
    "503": Answer(503),
    "302": Answer(302, headers={"Location": "/empty"}),
    "html": Answer(200, "<p>Sign in", {"Content-Type": "text/html"}),
}


def test_refused_stream_leaves_the_page_to_polls(still: Polling) -> None:
    """A stream that is refused is not tried again, also not for jobs that are followed
    later; polls go on at once.
    """
    for count, (name, refusal) in enumerate(REFUSALS.items(), 1):
        still.server.refusals = [refusal]
        still.follow(name, working(n=0), baseUrl=f"/{name}", pollingPeriod=10_000)
        still.advance(10)
        wait_for_sources(still, *["closed"] * count)
        still.advance(50)
        still.wait_for_updates(name, 2)
    still.page.evaluate("pollers.json.stop()")
    still.follow("later", working(n=0), baseUrl="/json", pollingPeriod=10_000)
    for _ in range(3):
        before = len(numbers(still, "html"))
        still.advance(10_000)
        still.wait_for_updates("html", before + 1)
    assert len(numbers(still, "later")) >= 2
    assert sources(still) == ["closed"] * len(REFUSALS)
    assert not any("lost" in still.told(name) for name in REFUSALS)
    assert still.server.streams == []


def test_stream_without_an_event_is_given_up_after_five_seconds(still: Polling) -> None:
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


def test_stream_that_fails_twice_is_tried_no_more(still: Polling) -> None:
    """It is tried again only where a poll offers it. The second try must have an event,
    too, to be followed by a third.
    """
    stream = open_first(still)
    beat(still, stream)
    still.server.offers = False
    still.server.refusals = [Answer(503)] * 3
    stream.end()
    wait_for_sources(still, "closed")
    for count in (2, 3, 4):
        still.advance(10_000)
        still.wait_for_updates("job", count)
    assert sources(still) == ["closed"]
    still.server.offers = True
    still.advance(10_000)
    wait_for_sources(still, "closed", "closed")
    for _ in range(6):
        asked = still.asked("job")
        still.wait_for_updates("job", asked)
        still.advance(10_000)
    assert sources(still) == ["closed", "closed"]
    assert len(still.server.refused) == 2


def open_two(polling: Polling) -> list[Stream]:
    """Follow 150 jobs with a clock that stands still, until they have two streams."""
    names = answer_many(polling, 150)
    follow_all(polling, names, pollingPeriod=10_000)
    polling.advance(10)
    wait_for_sources(polling, "open", "open")
    assert len(polling.server.requests()) == 2
    return sorted(polling.server.streams, key=lambda stream: stream.jobs)


def test_stream_that_never_worked_rules_out_others_that_had(still: Polling) -> None:
    """A page whose streams fail in either way does not try again."""
    worked, never = open_two(still)
    worked.send(about(worked.jobs[0], n=1))
    still.wait_for_updates(worked.jobs[0], 2)
    worked.write("data: bad\n\n")
    wait_for(lambda: "closed" in sources(still))
    still.advance(100)
    never.write("data: bad\n\n")
    wait_for_sources(still, "closed", "closed")
    still.advance(100)
    for count in (3, 4, 5):
        still.wait_for_updates(worked.jobs[0], count)
        still.advance(10_000)
    assert sources(still) == ["closed", "closed"]
    assert len(still.server.streams) == 2


def test_each_stream_that_fails_makes_the_page_wait(still: Polling) -> None:
    """Streams are tried again 15 s after the last failure, not after the first one."""
    one, two = open_two(still)
    for stream in (one, two):
        stream.send(about(stream.jobs[0], n=1))
        still.wait_for_updates(stream.jobs[0], 2)
    one.write("data: bad\n\n")
    wait_for(lambda: "closed" in sources(still))
    still.advance(8000)
    still.wait_for_updates(one.jobs[0], 3)
    two.write("data: bad\n\n")
    wait_for_sources(still, "closed", "closed")
    still.wait_for_updates(two.jobs[0], 3)
    still.advance(7000)
    assert sources(still) == ["closed", "closed"]
    still.advance(7999)
    still.wait_for_updates(two.jobs[0], 4)
    assert sources(still) == ["closed", "closed"]
    still.advance(1)
    wait_for(lambda: sources(still)[2:] == ["open", "open"])


BAD = (
    *("<!doctype html><p>Sign in", "", "null", "[]", '"job"', state()[:-2]),
    *('{"job_state": "working"}', '{"job_state": "odd", "job": {}}'),
)


def test_event_that_is_not_a_job_ends_the_stream(still: Polling) -> None:
    """The page polls at once, and streams again only if the stream had worked."""
    for number, data in enumerate(BAD):
        still.page.evaluate("sources.length = calls.length = asked.length = 0")
        stream = open_first(still, baseUrl=f"/{number}/job_state")
        has_worked = number % 2 == 1
        if has_worked:
            beat(still, stream)
        still.advance(100)
        stream.write(f"data: {data}\n\n")
        wait_for_sources(still, "closed")
        assert still.asked("job") == 2, data
        still.wait_for_updates("job", 2)
        still.advance(15_000)
        still.wait_for_updates("job", 3)
        wait_for_sources(still, "closed", *(["open"] if has_worked else []))
        assert "lost" not in still.told("job")
        still.page.evaluate("pollers.job.stop()")


def test_page_polls_if_the_stream_fails_during_a_poll(still: Polling) -> None:
    """Jobs of a stream that fails wait for the answer to the poll of another job."""
    answer = held(state(n=0))
    stream = open_first(still)
    still.follow("two", answer)
    still.advance(50)
    still.wait_for_requests("two", 1)
    stream.write("data: bad\n\n")
    wait_for_sources(still, "closed")
    assert still.asked("job") == 1
    release(answer)
    still.wait("two", "update")
    assert still.asked("job") == 2


def test_poll_after_a_stream_sends_no_older_etag(streams: Polling) -> None:
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


def test_stream_that_ends_goes_on_with_its_last_id(streams: Polling) -> None:
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
    second.reset()
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


def test_stream_that_takes_long_to_come_back_is_given_up(still: Polling) -> None:
    """Eight seconds after an error, a stream that is still away gives way to polls."""
    stream = open_first(still)
    beat(still, stream)
    still.server.refusals = [Answer(drop=True)] * 500
    stream.reset()
    wait_for_sources(still, "connecting")
    still.advance(4000)  # and each further failure does not begin anew
    wait_for(lambda: len(still.server.refused) > 2)
    still.advance(3999)
    assert so_far(still) == (["connecting"], 1)
    still.advance(1)
    assert so_far(still) == (["closed"], 2)
    assert "lost" not in still.told("job")


def test_stream_that_comes_back_is_kept(still: Polling) -> None:
    """A connection that opens again has as long as before to send something, but if it
    only opens and ends, it is given up.
    """
    stream = open_first(still)
    beat(still, stream)
    still.server.refusals = [Answer(drop=True)] * 2
    stream.end()
    second = stream_of(still, 1)
    wait_for_sources(still, "open")
    still.advance(20_000)
    assert so_far(still) == (["open"], 1)
    beat(still, second)
    still.advance(49_900)
    assert so_far(still) == (["open"], 1)
    beat(still, second)
    for n in range(2, 12):
        still.server.streams[-1].end()
        stream_of(still, n)
        wait_for_sources(still, "open")
        still.advance(4999)
    assert so_far(still) == (["open"], 1)
    still.advance(10)
    assert so_far(still) == (["closed"], 2)


# Hidden, left and offline pages


def test_hidden_tab_closes_its_stream(streams: Polling) -> None:
    """A shown tab polls at once, and streams after the answer. However often it is
    shown, it has at most one stream in the end.
    """
    stream = follow_streamed(streams, "job")
    for event in "pageshow", "online":  # costs nothing
        streams.page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
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
    second = stream_of(streams, 1)
    assert "last-event-id" not in second.headers
    streams.page.evaluate(
        "for (let n = 0; n < 50; n++) { setHidden(true); setHidden(false); }"
    )
    third = stream_of(streams, 2)
    streams.wait_for_others()
    assert sources(streams) == ["closed", "closed", "open"]
    third.send(about("job", "success", n=4))
    streams.wait("job", "done")
    assert numbers(streams, "job") == [0, 1, 2, 3, 4]
    assert polls(streams, "job") == 3


def test_hidden_tab_lets_no_stream_fail(still: Polling) -> None:
    """However long a tab is hidden, it sends nothing and then goes on streaming, also
    if its stream had no event. A tab that is hidden during a poll opens no stream.
    """
    answer = held(state(n=0))
    still.follow("job", answer, working(n=0), pollingPeriod=10_000)
    still.advance(10)
    still.wait_for_requests("job", 1)
    still.hide()
    release(answer)
    still.wait("job", "update")
    still.advance(60_000)
    assert so_far(still) == ([], 1)
    for number in range(3):
        still.hide(hidden=False)
        assert still.asked("job") == number + 2
        stream = stream_of(still, number)
        wait_for_sources(still, *["closed"] * number, "open")
        if number:
            beat(still, stream)
            still.advance(6000)
        still.hide()
        still.advance(2 * HOUR)
        assert so_far(still) == (["closed"] * (number + 1), number + 2)


def test_left_page_closes_its_stream(streams: Polling) -> None:
    """A page that returns polls at once, and then streams."""
    stream = follow_streamed(streams, "job")
    streams.page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    assert sources(streams) == ["closed"]
    wait_for(lambda: not stream.is_open)
    streams.page.evaluate("window.dispatchEvent(new Event('pageshow'))")
    second = stream_of(streams, 1)
    second.send(about("job", "success", n=2))
    streams.wait("job", "done")
    assert polls(streams, "job") == 2
    assert "lost" not in streams.told("job")


# What else a page does


def test_live_stream_brings_what_a_cancel_does(streams: Polling) -> None:
    """A cancel polls only without a stream."""
    streams.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    stream = follow_streamed(streams, "job", pollingPeriod=HOUR)
    streams.server.answer("job", error(n=2))
    assert streams.cancel("job") is True
    streams.wait_for_others()
    assert polls(streams, "job") == 1
    stream.send(about("job", "error", n=2))
    streams.wait("job", "error")


def test_hostile_events_are_harmless(streams: Polling) -> None:
    """Jobs and metrics named __proto__ or constructor pollute nothing. A state of eight
    megabytes arrives whole.
    """
    stream = follow_streamed(streams, "one", "two")
    for uuid in ("__proto__", "constructor", "toString", "one\u0000", "ONE"):
        stream.send(about(uuid, "success", n=9))
    for odd in (None, 7, {"a": 1}, ["one"], True):
        job = {"uuid": odd, "status": "success"}
        stream.send(json.dumps({"job_state": "success", "job": job}))
    hostile = about("two", n=2).replace("{", '{"__proto__": {"polluted": 1}, ', 1)
    stream.send(hostile)
    streams.wait_for_updates("two", 3)
    assert numbers(streams, "one") == [0, 1]
    assert streams.page.evaluate("({}).polluted === undefined")
    assert streams.told("one") == ["update", "update"]
    streams.page.evaluate("() => { calls.push = (call) => call.callback }")
    stream.send(about("two", "success", text="x" * 8_000_000))
    text = "(raw[raw.length - 1].text || '').length"
    wait_for(lambda: streams.page.evaluate(text) == 8_000_000)


def test_transport_says_what_brought_the_last_answer(streams: Polling) -> None:
    """That of a poller and of an element is null, then "poll", and then "stream", at
    each of their callbacks and events.
    """
    uuid = uuid_of(1)
    streams.server.answer(uuid, working(n=0))
    streams.page.evaluate(
        """(uuid) => {
            window.seen = [];
            window.heard = [];
            const note = (name) => () => seen.push([name, poller.transport]);
            window.element = document.createElement("job-state");
            for (const name of ["update", "success", "lost"]) {
                element.addEventListener(`job-state:${name}`, () =>
                    heard.push([name, element.transport]));
            }
            heard.push(["start", element.transport]);
            element.src = `/job_state/${uuid}`;
            document.body.append(element);
            window.poller = JobState.startPolling({
                jobUuid: uuid, pollingPeriod: 50, update: note("update"),
                success: note("success"), lost: note("lost"),
            });
            seen.push(["start", poller.transport]);
        }""",
        uuid,
    )
    stream = stream_of(streams)
    stream.send(about(uuid, n=1))
    stream.send("", "away")
    wait_for(lambda: len(streams.page.evaluate("seen")) == 4)
    streams.server.answer(uuid, Answer(503), working(n=2))
    streams.server.refusals = [Answer(503)]
    stream.end()
    wait_for(lambda: len(streams.page.evaluate("seen")) >= 5)
    streams.server.answer(uuid, success(n=3))
    wait_for(lambda: "success" in str(streams.page.evaluate("heard")))
    for seen in streams.page.evaluate("[seen, heard]"):
        assert seen[:4] == [
            ["start", None],
            ["update", "poll"],
            ["update", "stream"],
            ["lost", "stream"],
        ]
        assert {transport for _, transport in seen[4:]} == {"poll"}
        assert seen[-1] == ["success", "poll"]
    # At once, since the answer may come between two calls.
    transport = streams.page.evaluate(
        "() => { element.src = '/job_state/missing'; return element.transport; }"
    )
    assert transport is None
    wait_for(lambda: streams.page.evaluate("heard")[-1] == ["lost", "poll"])


def test_page_of_another_origin_streams_if_it_sees_the_offer(
    streams: Polling, elsewhere: PollServer
) -> None:
    """The offer must be exposed by CORS; otherwise the page polls."""
    headers = {
        "Access-Control-Allow-Origin": streams.server.url,
        "Access-Control-Allow-Credentials": "true",
    }
    seen = {**headers, "Access-Control-Expose-Headers": "JobState-Stream"}
    elsewhere.offers = True
    elsewhere.stream_headers = headers
    elsewhere.answer("one", Answer(body=state(n=0), headers=headers))
    elsewhere.answer("two", Answer(body=state(n=0), headers=seen))
    streams.page.context.add_cookies(
        [{"name": "session", "value": "alice", "url": elsewhere.url}]
    )
    streams.open("/page?connect=" + elsewhere.url)
    options = {"baseUrl": f"{elsewhere.url}/job_state", "crossOrigin": True}
    follow: Any = streams.page.evaluate
    follow("(options) => follow('one', options)", options)
    wait_for(lambda: len(elsewhere.seen("one")) > 3)
    assert elsewhere.streams == []
    streams.page.evaluate("pollers.one.stop()")
    follow("(options) => follow('two', options)", options)
    wait_for(lambda: elsewhere.streams)
    [stream] = elsewhere.streams
    assert stream.headers["cookie"] == "session=alice"
    stream.send(about("two", "success", n=1))
    streams.wait("two", "success")
    assert len(elsewhere.seen("two")) == 1
