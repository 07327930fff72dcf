"""How many streams there are, and what each leaves behind."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from tests.asgi import FEEDS, Exchange, Server, pushing, serving, stream_threads
from tests.jobs import Gate, messages
from tests.support import load_job, wait_for
from tests.web.streaming import HINT, PublicRun, one, put, statuses, wait_until
from tests.webapp import make_config

LIMIT_OF_OWNER = "An owner has 20 streams open in this process. Further pages poll."


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


def test_max_streams_are_open(
    redis_url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_streams_of_one_owner(
    redis_url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner has 20 streams, which takes nothing away from others, not even those
    that Python holds for equal. Requests without an owner count towards max_streams
    only.
    """
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
        assert messages(caplog, "pyramid_jobstate") == [LIMIT_OF_OWNER]


def test_streams_of_many_hosts(
    redis_url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process renders for eight host names at a time, whoever asks. A host counts
    while one of its streams is open, and a request under another one polls.
    """
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


def test_streams_of_many_hosts_with_a_base_url(redis_url: str, path: str) -> None:
    """With jobstate.base_url, all hosts count as one, and get the same URLs."""
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


def test_ended_stream_makes_room(redis_url: str, path: str, store: JobStore) -> None:
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
        job = put(store, "queued")
        stream = server.watch(one(job))
        load_job(store, job).cancel()
        assert stream.wait().events[-1].state["job"]["status"] == "cancelled"
        assert [server.open(path).is_stream for _ in range(2)] == [True, True]


def test_request_that_is_cancelled_before_its_answer(redis_url: str, path: str) -> None:
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


def test_process_that_can_start_no_thread_polls(
    redis_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that no thread can feed is a poll, until a thread can start again."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith("jobstate-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with pushing(make_config(redis_url)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            answer = server.ask(path)
            assert (answer.status, answer.is_stream) == (200, False)
        assert server.open(path).at(0).name == "message"


def test_streams_outlive_the_loop_of_a_server(
    redis_url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing keeps an event loop that has gone. Another may serve the application."""
    gate, others = Gate(), stream_threads()

    class Slow(PublicRun):
        """A kind that is slow for the thread which feeds streams."""

        @property
        def title(self) -> str:
            if threading.current_thread().name == FEEDS:
                gate.wait()
            return "Slow"

    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    app = asgi_app(config.make_wsgi_app())

    def begin() -> weakref.ref[Any]:
        with serving(app) as server:
            exchange = server.open(one(put(store, kind=Slow)))
            gate.wait_for_job()
            # As a server does that stops.
            exchange.future.cancel()
            return weakref.ref(server.loop)

    loop = begin()

    def is_free() -> bool:
        gc.collect()
        return loop() is None

    wait_for(is_free)
    gate.open()
    job = put(store, "queued")
    with serving(app) as server:
        stream = server.watch(one(job))
        load_job(store, job).cancel()
        assert statuses(stream.wait()) == ["queued", "cancelled"]
        assert messages(caplog, "pyramid_jobstate") == []
        server.config, server.others = config, others
        server.end()
        wait_for(lambda: not server.threads)
