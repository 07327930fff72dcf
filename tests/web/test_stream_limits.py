"""How many streams there are, what they leave behind, and what a slow reader holds."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from tests.asgi import FEEDS, LINKS, Exchange, Server, pushing, serving
from tests.jobs import Gate, messages
from tests.support import in_child, load_job, wait_for
from tests.web.streaming import (
    HINT,
    PublicRun,
    UntimedRun,
    batch,
    flagged,
    follow,
    one,
    pooling,
    put,
    put_members,
    refusing_threads,
    report,
    see_an_end,
    statuses,
    told,
    wait_until,
)
from tests.webapp import make_config

#: Bytes that a stream is given at a time, unless one event is larger.
CHUNK = 64 * 1024


@pytest.fixture
def path(store: JobStore) -> str:
    """The path of a job that everybody may see."""
    return one(put(store, kind=PublicRun))


def assert_polled(server: Server, path: str, *user: str | None, **headers: str) -> None:
    """Assert that a request for a stream gets a poll's answer, and a poll no hint."""
    answer = server.ask(path, *user, **headers)
    assert (answer.status, answer.is_stream) == (200, False)
    assert HINT not in answer.headers
    assert HINT not in server.poll(path, *user, **headers).headers


@pytest.mark.promise("refused-stream-falls-back")
def test_max_streams_are_open(redis_url, path, caplog):
    """Once max_streams are open, the rest polls, which is logged once."""
    with pushing(make_config(redis_url), rooms=3) as server:
        streams = [server.open(path, f"user{number}") for number in range(3)]
        for stream in streams:
            assert stream.at(0).state["job_state"] == "working"
        for user in "other", None:
            assert_polled(server, path, user)
        streams[1].go().wait()
        assert server.poll(path, "other").headers[HINT] == "1"
        assert server.open(path, "other").is_stream
        assert not server.ask(path, "more").is_stream
        reached = "The limit of 3 streams (jobstate.max_streams) is reached."
        (said,) = messages(caplog, "pyramid_jobstate")
        assert said == f"{reached} Further pages poll."


def test_streams_of_one_owner(redis_url, path, caplog):
    """An owner has 20, which takes nothing from others, or from those without one."""
    owners = {"1": 1, "1.0": 1.0, "text": "1"}

    def owner(request: Any) -> Any:
        return owners.get(request.headers.get("X-User"))

    config = make_config(redis_url, settings={"jobstate.owner": owner})
    with pushing(config, rooms=50) as server:
        streams = [server.open(path, "1") for _ in range(20)]
        assert all(stream.is_stream for stream in streams)
        for _ in range(2):
            assert_polled(server, path, "1")
        for other in "1.0", "text", *[None] * 21:
            assert server.poll(path, other).headers[HINT] == "1"
            assert server.open(path, other).is_stream
        streams[0].go().wait()
        assert server.open(path, "1").is_stream
        reached = "An owner has 20 streams open in this process. Further pages poll."
        assert messages(caplog, "pyramid_jobstate") == [reached]


def test_streams_of_many_hosts(redis_url, path, caplog):
    """A process renders for eight host names at a time, while their streams last."""
    with pushing(make_config(redis_url), rooms=30) as server:
        streams = [server.open(path, None, host=f"h{n}.example") for n in range(8)]
        for number, stream in enumerate(streams):
            url = stream.at(0).state["job"]["url"]
            assert url == f"http://h{number}.example{path}/"
        for user, host in (("alice", "h8.example"), (None, "h0.example:81")):
            assert_polled(server, path, user, host=host)
        assert server.poll(path, host="h3.example").headers[HINT] == "1"
        assert server.open(path, host="h3.example").is_stream
        streams[5].go().wait()
        assert server.poll(path, host="h8.example").headers[HINT] == "1"
        assert server.open(path, host="h8.example").is_stream
        assert_polled(server, path, host="h5.example")
        reached = "The limit of 8 host names (one with jobstate.base_url) is reached."
        (said,) = messages(caplog, "pyramid_jobstate")
        assert said == f"{reached} Further pages poll."
    # With jobstate.base_url, all count as one, and get the same URLs.
    settings = {"jobstate.base_url": "https://example.com/shop/"}
    with pushing(make_config(redis_url, settings=settings), rooms=12) as server:
        for number in range(10):
            host = f"h{number}.example:8000"
            poll = server.poll(path, host=host)
            assert poll.headers[HINT] == "1"
            state = server.open(path, host=host).at(0).state
            assert state == json.loads(poll.body)
            assert state["job"]["url"] == f"https://example.com/shop{path}/"


# Ends


@pytest.mark.promise("stream-ends-in-time")
def test_ended_stream_makes_room(redis_url, path, store):
    """However a stream ends, another one may begin at once."""
    # One room is for what wakes the thread of the streams.
    with pushing(make_config(redis_url), rooms=2) as server:

        def cancel(stream: Exchange) -> None:
            """Servers may cancel what runs at their end."""
            stream.future.cancel()

        def fail(stream: Exchange) -> None:
            """Some servers raise an OSError for a client that has gone."""
            stream.is_broken = True
            server.pass_time(21)

        def end_all(stream: Exchange) -> None:
            server.end()

        ends: list[tuple[str, dict[str, Any], Callable[[Exchange], object]]] = [
            ("gone before the first byte", {"is_there": False}, Exchange.go),
            ("gone", {}, Exchange.go),
            ("gone in mid-frame", {"is_reading": False}, Exchange.go),
            ("cancelled in mid-frame", {"is_reading": False}, cancel),
            ("failed", {}, fail),
            ("ended with all others", {}, end_all),
        ]
        for end, options, act in ends:
            stream = server.open(path, **options)
            wait_until(True, lambda s: s.is_done or s.is_held(), stream)
            act(stream)
            wait_for(stream.future.done)
            streams = [server.open(path, None) for _ in range(2)]
            assert all(stream.is_stream for stream in streams), end
            server.close()
        assert see_an_end(server, store) == ["queued", "cancelled"]
        assert [server.open(path).is_stream for _ in range(2)] == [True, True]


def test_request_that_is_cancelled_before_its_answer(redis_url, path):
    """A request that the server cancels while its view runs takes no room."""
    gate, left = Gate(), threading.Event()

    def slow(app: Any) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            if "HTTP_X_SLOW" in environ:
                gate.wait()
            try:
                return app(environ, start_response)
            finally:
                if "HTTP_X_SLOW" in environ:
                    left.set()

        return application

    with pushing(make_config(redis_url), slow, rooms=1) as server:
        stream = server.open(path, x_slow="1")
        gate.wait_for_job()
        stream.future.cancel()
        wait_for(lambda: not asyncio.all_tasks(server.loop))
        gate.open()
        assert left.wait(20)
        assert server.open(path).is_stream


def test_process_that_can_start_no_thread_polls(redis_url, path):
    """A stream that no thread can feed is a poll, until a thread can start again."""
    with pushing(make_config(redis_url)) as server:
        with refusing_threads("jobstate-", 1000):
            answer = server.ask(path)
            assert (answer.status, answer.is_stream) == (200, False)
        assert server.open(path).at(0).name == "message"


# Readers that are slow, or do not read


def put_large(store: JobStore, size: int, **options: Any) -> str:
    """Store a job whose viewers get so many bytes, and return its uuid."""
    return put(store, params={"miles": "x" * size}, **options)


def test_stopped_reader_gets_the_newest_state(pushed, runs, client):
    """A reader that stops holds one frame, and then gets the newest state alone."""
    run = runs.start(n=1)
    stopped, watching = (pushed.watch(one(run.uuid)) for _ in range(2))
    stopped.stop()
    for n in range(2, 12):
        report(run, n, watching)
    client.delete(f"jobstate:{run.uuid}")
    pushed.pass_time(1)
    # One is on its way. Of the others, only the last one comes.
    stopped.resume()
    wait_until([1, 2, 11], told, stopped)
    assert len(stopped.events) == 3


def test_first_events_of_many_jobs(pushed, store):
    """A reader of many jobs holds 64 KiB and gets all in the end."""
    made, uuids = put_members(store, 30, 20_000)
    stream = pushed.open(batch(*uuids), is_reading=False)
    wait_for(stream.is_held)
    assert sum(stream.sending) <= CHUNK
    stream.resume()
    last = stream.at(29).id
    shown = [event.state["job"]["uuid"] for event in stream.events]
    assert sorted(shown) == sorted(uuids)
    again = pushed.open(batch(*uuids), last_event_id=last)
    assert again.opening
    again.stop()
    made.cancel()
    wait_for(again.is_held)
    pushed.pass_time(1)
    again.resume()
    assert statuses(again.wait()) == ["cancelled"] * 30
    ids = ["_" if event.id is None else "id" for event in again.events]
    assert max(map(len, " ".join(ids).split("id"))) < len("_ _ _ ")
    over = pushed.ask(batch(*uuids))
    assert statuses(over) == ["cancelled"] * 30
    assert pushed.ask(batch(*uuids), last_event_id=over.events[-1].id).status == 204


def test_stream_of_large_jobs_has_all(pushed, store):
    """It has, in pieces of 64 KiB, also those for which a poll has no room, if they may
    be seen. A client that comes back with the last id has them.
    """
    jobs = [put_large(store, 1_500_000, status="queued") for _ in range(4)]
    path = batch(*jobs, put(store, owner="bob"))
    assert [*json.loads(pushed.poll(path).body)["jobs"]] == jobs[:3]
    stream = pushed.watch(path, count=5)
    assert max(stream.sending) == CHUNK
    gone, *events = stream.events
    assert gone.name == "gone"
    assert [event.state["job"]["uuid"] for event in events] == jobs
    again = pushed.open(path, last_event_id=events[-1].id)
    assert again.opening
    load_job(store, jobs[3]).cancel()
    assert again.at(0).state["job"]["uuid"] == jobs[3]
    assert statuses(again) == ["cancelled"]


@pytest.mark.promise("answers-are-bounded")
def test_stream_of_huge_jobs_ends_early(pushed, store):
    """Of those that fill an answer each it has nine. The page polls for the others."""
    jobs = [put(store, params={"secret": "x" * 4_200_000}) for _ in range(11)]
    stream = pushed.watch(batch(*jobs), count=11)
    assert [e.data for e in stream.events if e.name == "gone"] == jobs[9:]


def test_reader_of_nothing_is_dropped(pushed, store):
    """A reader that takes nothing for a minute gets no more, unless it has all."""
    stopped = pushed.open(one(put_large(store, 300_000)), is_reading=False)
    wait_for(stopped.is_held)
    job = put(store, "queued")
    patient = pushed.watch(one(job))
    for _ in range(3):
        pushed.pass_time(21)
    pushed.pass_time(1)
    stopped.resume()
    stopped.wait()
    assert stopped.events == []
    assert len(stopped.body) <= 2 * CHUNK
    load_job(store, job).cancel()
    assert statuses(patient.wait()) == ["queued", "cancelled"]


def test_busy_stream_ends_in_time(redis_url, runs):
    """A stream that always has more to send ends at its age like any other."""
    run = runs.start(n=1)
    settings = {"jobstate.stream_max_age": "10s"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        stream, watching = (server.watch(one(run.uuid)) for _ in range(2))
        stream.stop()
        for n in 2, 3:
            report(run, n, watching)
        server.pass_time(11)
        stream.resume()
        assert told(stream.wait()) == [1, 2]


@pytest.mark.system
def test_most_unsent_bytes(redis_url, store):
    """Beyond 64 MiB of unsent bytes, only the readers go that have taken longest."""
    paths = [one(put_large(store, 4 * 1024 * 1024, kind=PublicRun)) for _ in range(20)]
    small = put(store, "queued")
    with pushing(make_config(redis_url), rooms=25) as server:
        watching = server.watch(one(small))
        streams: list[Exchange] = []
        for path in paths:
            streams.append(server.open(path, None, is_reading=False))
            wait_for(streams[-1].is_held)
        for stream in streams:
            stream.resume()
        # Of 20 at 4 MiB and a little more each, fifteen fit.
        for stream in streams[:5]:
            assert stream.wait().events == []
        for stream in streams[5:]:
            assert stream.at(0).name == "message"
        load_job(store, small).cancel()
        assert statuses(watching.wait())[-1] == "cancelled"


# Failures


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application that has logged nothing yet."""
    with pushing(make_config(redis_url)) as server:
        yield server


@contextlib.contextmanager
def failing(
    server: Server, number: int, error: BaseException
) -> Iterator[threading.Event]:
    """Have the thread that feeds streams fail at its `number`-th look at the clock."""
    clock, left, failed = time.monotonic, [number], threading.Event()

    def fail() -> float:
        thread = threading.current_thread()
        if thread.name == FEEDS and thread not in server.others and not failed.is_set():
            left[0] -= 1
            if left[0] == 0:
                failed.set()
                raise error
        return clock()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", fail)
        yield failed


def test_failure_ends_all_streams_and_the_next_is_served(server, runs, caplog):
    """A failure of the thread is logged once, ends all streams, and starts another."""
    run = runs.start(n=0)
    follow(server, run).go()
    for number in range(1, 12):
        caplog.clear()
        error = ZeroDivisionError(f"bug {number}")
        with failing(server, number, error) as failed:
            streams = [server.open(one(run.uuid)) for _ in range(2)]
            run.report(n=number)
            while not failed.wait(0.005):
                streams.append(server.open(one(run.uuid)))
                streams.pop(0).go()
        for stream in streams:
            # One that came after the failure goes on.
            wait_until(True, lambda s: s.is_done or s.events != [], stream)
            stream.go().wait()
        # The thread may not have come to its log yet.
        wait_until(True, lambda: any(r.exc_info for r in caplog.records))
        errors = [r for r in caplog.records if r.exc_info]
        ended = "The job streams of this process end. Clients reconnect."
        assert [r.getMessage() for r in errors] == [ended]
        assert errors[0].exc_info is not None
        assert errors[0].exc_info[1] is error
        report(run, -number, follow(server, run, number))
        server.close()


# Forks


def addresses() -> set[str]:
    """Return the own addresses of the sockets of this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(fileno=os.dup(int(number))) as sock,
        ):
            host, port, *_ = sock.getsockname()
            found.add(f"{host}:{port}")
    return found


@pytest.mark.system
def test_forked_child_has_streams_of_its_own(redis_url, client, runs):
    """A child closes its copies of connections, and has streams of its own."""
    run, others = runs.start(n=0), flagged(client)
    with pushing(make_config(redis_url), rooms=2) as server:
        stream, other = follow(server, run), follow(server, run, 2)
        (link,) = flagged(client, *others)
        assert link["addr"] in addresses()

        def look() -> str:
            has_link = link["addr"] in addresses()
            app = asgi_app(server.config.make_wsgi_app())
            with serving(app) as own, redis.Redis.from_url(redis_url) as mine:
                first, second = (own.open(one(run.uuid)) for _ in range(2))
                began = first.at(0).state["n"], second.at(0).state["n"]
                wait_for(lambda: len(flagged(mine, *others)) == 2)
                first.go().wait()
                return f"{has_link} {began} {see_an_end(own, JobStore(redis_url))}"

        assert in_child(look) == "False (2, 2) ['queued', 'cancelled']"
        report(run, 5, stream, other)
        wait_for(lambda: len(flagged(client, *others)) == 1)


@pytest.mark.system
def test_streams_that_come_and_go_leave_nothing(server, runs, store):
    """Memory does not grow with the number of jobs that were shown."""
    stream = follow(server, runs.start(n=0))

    def come_and_go() -> int:
        with serving(server.app) as other:
            for _ in range(40):
                other.watch(one(put(store))).go().wait()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    come_and_go()
    tracemalloc.start()
    try:
        # Dictionaries grow with the most jobs at a time. A leak grows in each round.
        sizes = [come_and_go() for _ in range(5)]
    finally:
        tracemalloc.stop()
    # A job that is kept takes some thousand bytes.
    assert min(after - before for before, after in pairwise(sizes)) < 40 * 800
    assert not stream.is_done


def test_connection_that_comes_after_a_failure(redis_url, runs):
    """A connection that comes after a failure is given back with the next stream."""
    run, gate = runs.start(UntimedRun, n=0), Gate()

    def wait(connection: Any, name: str) -> None:
        if name == LINKS:
            gate.wait()

    with pooling(redis_url, wait) as (server, pool):
        stream = server.open(one(run.uuid))
        gate.wait_for_job()
        (link,) = (t for t in server.threads if t.name == LINKS)
        with failing(server, 1, ZeroDivisionError("bug")):
            # Another stream wakes the thread.
            server.open(one(run.uuid)).go()
            stream.wait()
        gate.open()
        link.join()
        follow(server, run)
        assert pool.lent == 1
