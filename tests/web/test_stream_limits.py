"""How many streams there are, and what each leaves behind."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.exceptions import ConfigurationError

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from tests.asgi import Exchange, Server, end, pushing, serving
from tests.jobs import messages
from tests.support import load_job, wait_for
from tests.web.streaming import HINT, PublicRun, one, put
from tests.webapp import make_app, make_config

LIMIT_OF_OWNER = "An owner has 20 streams open in this process. Further pages poll."


@pytest.fixture
def path(store: JobStore) -> str:
    """The path of a job that everybody may see."""
    return one(put(store, kind=PublicRun))


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application that has logged nothing yet."""
    settings = {"jobstate.max_streams": "30"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        yield server


def assert_polled(server: Server, path: str, *user: str | None, **headers: str) -> None:
    """Assert that a request for a stream gets a poll's answer, and a poll no hint."""
    answer = server.ask(path, *user, **headers)
    assert (answer.status, answer.is_stream) == (200, False)
    assert HINT not in answer.headers
    assert HINT not in server.poll(path, *user, **headers).headers


def test_wrong_settings_stop_the_start(redis_url: str) -> None:
    """An application with a wrong setting does not start, and says which it is."""
    for name, value in (
        *(("max_streams", value) for value in ("-1", "", "many", "1.5", True)),
        *(("max_streams", value) for value in ("٣", "10000000000", "1\n")),
        *(("stream_max_age", value) for value in ("", "0", "-5", "5 minutes", None)),
    ):
        config = make_config(redis_url, settings={f"jobstate.{name}": value})
        with pytest.raises(ConfigurationError, match=f"jobstate.{name} = "):
            make_app(config)


def test_max_streams_are_open(
    redis_url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once max_streams are open, the rest polls, which is logged once."""
    settings = {"jobstate.max_streams": 3}
    with pushing(make_config(redis_url, settings=settings)) as server:
        streams = [server.open(path, f"user{number}") for number in range(3)]
        for stream in streams:
            assert stream.at(0).state["job_state"] == "working"
        for user in "other", None:
            assert_polled(server, path, user)
        streams[1].go()
        streams[1].wait()
        assert server.poll(path, "other").headers[HINT] == "1"
        assert server.open(path, "other").is_stream
        assert not server.ask(path, "more").is_stream
        assert messages(caplog, "pyramid_jobstate") == [
            "The limit of 3 streams (jobstate.max_streams) is reached. Further pages "
            "poll."
        ]


def test_limit_where_descriptors_are_unlimited(
    redis_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, a process without a limit of descriptors has streams."""
    config = make_config(redis_url)
    infinite = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda kind: infinite)
    with pushing(config, rooms=None) as server:
        assert server.open(path).is_stream


class Number(int):
    """A number that is another owner than the equal int."""


def test_streams_of_one_owner(
    redis_url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner has 20 streams, which takes nothing away from others, not even those
    that Python holds for equal.
    """
    owners = {"1": 1, "1.0": 1.0, "Number": Number(1), "text": "1"}
    settings: Any = {
        "jobstate.max_streams": "30",
        "jobstate.owner": lambda request: owners.get(request.headers.get("X-User")),
    }
    with pushing(make_config(redis_url, settings=settings)) as server:
        streams = [server.open(path, "1") for _ in range(20)]
        assert all(stream.is_stream for stream in streams)
        for _ in range(2):
            assert_polled(server, path, "1")
        for other in "1.0", "Number", "text", None:
            assert server.poll(path, other).headers[HINT] == "1"
            assert server.open(path, other).is_stream
        streams[0].go()
        streams[0].wait()
        assert server.open(path, "1").is_stream
        assert messages(caplog, "pyramid_jobstate") == [LIMIT_OF_OWNER]


def test_streams_without_an_owner(pushed: Server, path: str) -> None:
    """Requests without an owner count towards max_streams only."""
    streams = [pushed.open(path, None) for _ in range(22)]
    assert all(stream.is_stream for stream in streams)


def test_streams_of_many_hosts(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process renders for eight host names at a time, whoever asks. A host counts
    while one of its streams is open, and a request under another one polls.
    """
    streams = [server.open(path, None, host=f"h{n}.example") for n in range(8)]
    for number, stream in enumerate(streams):
        url = stream.at(0).state["job"]["url"]
        assert url == f"http://h{number}.example{path}/"
    for user, host in (("alice", "h8.example"), (None, "h0.example:81")):
        assert_polled(server, path, user, host=host)
        url = json.loads(server.ask(path, user, host=host).body)["job"]["url"]
        assert url == f"http://{host}{path}/"
    assert server.poll(path, host="h3.example").headers[HINT] == "1"
    assert server.open(path, host="h3.example").is_stream
    streams[5].go()
    streams[5].wait()
    assert server.poll(path, host="h8.example").headers[HINT] == "1"
    assert server.open(path, host="h8.example").is_stream
    assert_polled(server, path, host="h5.example")
    assert messages(caplog, "pyramid_jobstate") == [
        "The limit of 8 host names (one with jobstate.base_url) is reached. Further "
        "pages poll."
    ]


def test_streams_of_many_hosts_with_a_base_url(redis_url: str, path: str) -> None:
    """With jobstate.base_url, the URLs in states are the same under every host name, by
    polls and by streams, and all hosts count as one.
    """
    settings = {
        "jobstate.base_url": "https://example.com/shop/",
        "jobstate.max_streams": "12",
    }
    with pushing(make_config(redis_url, settings=settings)) as server:
        for number in range(10):
            host = f"h{number}.example:8000"
            poll = server.poll(path, host=host)
            assert poll.headers[HINT] == "1"
            state = server.open(path, host=host).at(0).state
            assert state == json.loads(poll.body)
            assert state["job"]["url"] == f"https://example.com/shop{path}/"


# Ends


def end_before_the_first_byte(server: Server, path: str) -> Exchange:
    return server.open(path, is_there=False)


def end_by_going(server: Server, path: str) -> Exchange:
    stream = server.open(path)
    stream.at(0)
    stream.go()
    return stream


def end_by_going_in_mid_frame(server: Server, path: str) -> Exchange:
    stream = server.open(path, is_reading=False)
    wait_for(stream.is_held)
    stream.go()
    return stream


def end_by_cancelling(server: Server, path: str) -> Exchange:
    stream = server.open(path)
    stream.at(0)
    stream.cancel()
    return stream


def end_by_cancelling_in_mid_frame(server: Server, path: str) -> Exchange:
    stream = server.open(path, is_reading=False)
    wait_for(stream.is_held)
    stream.cancel()
    return stream


def end_by_an_error(server: Server, path: str) -> Exchange:
    """Some servers raise an OSError for what is sent to a client that has gone."""
    stream = server.open(path)
    stream.at(0)
    stream.break_down()
    server.pass_time(21)
    return stream


ENDS = [
    end_before_the_first_byte,
    end_by_going,
    end_by_going_in_mid_frame,
    end_by_cancelling,
    end_by_cancelling_in_mid_frame,
    end_by_an_error,
]


def test_ended_stream_makes_room(redis_url: str, path: str, store: JobStore) -> None:
    """However a stream ends, another one may begin at once."""
    settings = {"jobstate.max_streams": "2"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        for end in ENDS:
            # One room is for what wakes the thread of the streams.
            stream = end(server, path)
            wait_for(stream.future.done)
            streams = [server.open(path, None) for _ in range(2)]
            assert all(stream.is_stream for stream in streams), end.__name__
            server.close()
        job = put(store, "queued")
        stream = server.open(one(job))
        stream.at(0)
        load_job(store, job).cancel()
        assert stream.wait().events[-1].state["job"]["status"] == "cancelled"
        assert server.ask(server.put_last()).events != []
        assert [server.open(path).is_stream for _ in range(2)] == [True] * 2


def test_cancelled_before_the_answer(redis_url: str, path: str) -> None:
    """A request that is cancelled while its view runs takes no room afterwards."""
    reached, opened, left = (threading.Event() for _ in range(3))

    def slow(app: Any) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            if "HTTP_X_SLOW" not in environ:
                return app(environ, start_response)
            reached.set()
            assert opened.wait(20)
            try:
                return app(environ, start_response)
            finally:
                left.set()

        return application

    settings = {"jobstate.max_streams": "1"}
    with pushing(make_config(redis_url, settings=settings), slow) as server:
        stream = server.open(path, x_slow="1")
        assert reached.wait(20)
        stream.cancel()
        wait_for(lambda: not server.run(count_tasks()))
        opened.set()
        assert left.wait(20)
        assert server.open(path).is_stream


async def count_tasks() -> int:
    """Return how many tasks there are besides this one."""
    return len(asyncio.all_tasks()) - 1


def test_process_that_can_start_no_thread_polls(
    pushed: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that no thread can feed is a poll, and the next one is fed if a thread
    can start again.
    """
    start = threading.Thread.start

    def fail(self: threading.Thread) -> None:
        if self.name.startswith("jobstate-"):
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        # The thread that feeds streams has to be started anew.
        pushed.ask(pushed.put_last())
        patch.setattr(threading.Thread, "start", fail)
        assert not pushed.ask(path).is_stream
    stream = pushed.open(path)
    assert stream.at(0).name == "message"


@pytest.mark.parametrize(
    "count", [75, pytest.param(10_000, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_clients_that_come_and_go(pushed: Server, path: str, count: int) -> None:
    """Nothing is left of clients that come and go at all moments of a stream's life."""
    for start in range(0, count, 25):
        for number in range(start, start + 25):
            there = number % 3 > 0
            stream = pushed.open(path, f"user{number}", is_there=there)
            if number % 5 == 0:
                wait_for(stream.has_begun)
            if number % 7 == 0:
                stream.cancel()
            else:
                stream.go()
        pushed.close()
    streams = [pushed.open(path, None) for _ in range(30)]
    assert all(stream.is_stream for stream in streams)


def test_application_outlives_the_loop_of_its_server(
    redis_url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is given for a loop that has gone is dropped, and nothing keeps the loop."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    app = asgi_app(config.make_wsgi_app())

    def stream(act: Callable[[Exchange], object]) -> weakref.ref[Any]:
        with serving(app) as server:
            act(server.open(path))
            return weakref.ref(server.loop)

    # The server ends with a stream whose client does not read.
    first = stream(lambda stream: stream.stop())

    def is_free() -> bool:
        gc.collect()
        return first() is None

    wait_for(is_free)
    stream(lambda stream: stream.at(0))
    assert messages(caplog, "pyramid_jobstate") == []
    with serving(app) as server:
        server.config = config
        end(server, 1)
