"""How many streams there are, and how long they last."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Everyone
from pyramid.exceptions import ConfigurationError

from pyramid_jobstate import JobState
from pyramid_jobstate.web.push import AsgiOffer, LoopQueue, rooms
from pyramid_jobstate.web.push.hub import Hub
from pyramid_jobstate.web.push.rooms import Rooms
from pyramid_jobstate.web.settings import Settings
from pyramid_jobstate.web.streaming import StreamLimits
from tests.asgi import Exchange, Server, pushing
from tests.jobs import messages
from tests.support import wait_for
from tests.web.test_streams import HINT
from tests.webapp import make_app, make_config, put_job


class PublicRun(JobState):
    """A kind that everybody may see."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, "view_job")]


@pytest.fixture
def run(client: redis.Redis) -> str:
    """The path of a job that everybody may see."""
    return f"/job_state/{put_job(client, kind='PublicRun')}"


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    with pushing(make_config(redis_url)) as server:
        yield server


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("0", 0), (0, 0), ("12", 12), (12, 12)]
)
def test_max_streams(value: Any, expected: int | None) -> None:
    """max_streams is a whole number. Without it, descriptors decide."""
    settings = {} if value is None else {"jobstate.max_streams": value}
    assert Settings(settings).stream_limits() == StreamLimits(expected, 300)


@pytest.mark.parametrize(
    ("value", "expected"), [("5m", 300), ("90", 90), (1.5, 1.5), ("1h", 3600)]
)
def test_stream_max_age(value: Any, expected: float) -> None:
    """stream_max_age is a duration."""
    limits = Settings({"jobstate.stream_max_age": value}).stream_limits()
    assert limits == StreamLimits(None, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_streams", value) for value in ("-1", "", "many", "1.5", 1.5, True)),
        *(("max_streams", value) for value in ("٣", "10000000000", "1\n")),
        *(("stream_max_age", value) for value in ("", "0", "-5", "5 minutes", None)),
    ],
)
def test_wrong_settings(redis_url: str, name: str, value: Any) -> None:
    """An application with a wrong setting does not start, and says which it is."""
    config = make_config(redis_url, settings={f"jobstate.{name}": value})
    with pytest.raises(ConfigurationError, match=f"jobstate.{name} = "):
        make_app(config)


def test_default_of_max_streams() -> None:
    """By default half the descriptors of a process may be streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 2, hard))
    try:
        assert Rooms(None).max_streams == (soft - 2) // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_default_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where descriptors are unlimited, streams are not."""
    infinite = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda kind: infinite)
    assert Rooms(None).max_streams == rooms.MAX_STREAMS


def test_max_streams_are_open(
    redis_url: str, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once max_streams are open, the rest polls, which is logged once."""
    settings = {"jobstate.max_streams": "3"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        streams = [server.open(run, f"user{number}") for number in range(3)]
        for stream in streams:
            assert stream.at(0).state["job_state"] == "working"
        for user in "other", None:
            answer = server.ask(run, user)
            assert (answer.status, answer.is_stream) == (200, False)
            assert HINT not in answer.headers
            assert HINT not in server.poll(run, user).headers
        streams[1].go()
        server.wait_for_count(2)
        assert server.poll(run, "other").headers[HINT] == "1"
        assert server.open(run, "other").is_stream
        assert not server.ask(run, "more").is_stream
    assert messages(caplog, "pyramid_jobstate") == [
        "The limit of 3 streams (jobstate.max_streams) is reached. Further pages poll."
    ]


def test_streams_of_one_owner(
    server: Server, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner has 20 streams, which takes nothing away from others."""
    streams = [server.open(run, "alice") for _ in range(20)]
    assert all(stream.is_stream for stream in streams)
    for _ in range(2):
        assert not server.ask(run, "alice").is_stream
        assert HINT not in server.poll(run, "alice").headers
    assert server.poll(run, "bob").headers[HINT] == "1"
    assert server.open(run, "bob").is_stream
    streams[0].go()
    server.wait_for_count(20)
    assert server.open(run, "alice").is_stream
    assert messages(caplog, "pyramid_jobstate") == [
        "An owner has 20 streams open in this process. Further pages poll."
    ]


def test_streams_without_an_owner(server: Server, run: str) -> None:
    """Requests without an owner count towards max_streams only."""
    streams = [server.open(run, None) for _ in range(25)]
    assert all(stream.is_stream for stream in streams)
    assert server.streams.rooms.count == 25


def test_streams_of_many_hosts(
    server: Server, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process renders for eight host names at a time, whoever asks. A host counts
    while one of its streams is open, and a request under another one polls.
    """
    streams = [server.open(run, None, host=f"h{n}.example") for n in range(8)]
    for number, stream in enumerate(streams):
        url = stream.at(0).state["job"]["url"]
        assert url == f"http://h{number}.example{run}/"
    for user, host in (("alice", "h8.example"), (None, "h0.example:81")):
        answer = server.ask(run, user, host=host)
        assert (answer.status, answer.is_stream) == (200, False)
        url = json.loads(answer.body)["job"]["url"]
        assert url == f"http://{host}{run}/"
        assert HINT not in server.poll(run, user, host=host).headers
    assert server.poll(run, host="h3.example").headers[HINT] == "1"
    assert server.open(run, host="h3.example").is_stream
    streams[5].go()
    server.wait_for_count(8)
    assert server.poll(run, host="h8.example").headers[HINT] == "1"
    assert server.open(run, host="h8.example").is_stream
    assert not server.ask(run, host="h5.example").is_stream
    assert messages(caplog, "pyramid_jobstate") == [
        "The limit of 8 host names (one with jobstate.base_url) is reached. Further "
        "pages poll."
    ]


def test_streams_of_many_hosts_with_a_base_url(redis_url: str, run: str) -> None:
    """With jobstate.base_url, the URLs in states are the same under every host name, by
    polls and by streams, and all hosts share one rendering.
    """
    settings = {"jobstate.base_url": "https://example.com/shop/"}
    uuid = run.removeprefix("/job_state/")
    with pushing(make_config(redis_url, settings=settings)) as server:
        for number in range(20):
            host = f"h{number}.example:8000"
            poll = server.poll(f"/job_state?uuid={uuid}", host=host)
            assert poll.headers[HINT] == "1"
            state = server.open(run, host=host).at(0).state
            assert state == json.loads(poll.body)["jobs"][uuid]
            assert state["job"]["url"] == f"https://example.com/shop{run}/"
        job = server.streams.hub._feed._jobs[uuid]
        wait_for(lambda: len(job.streams) == 20)
        assert len({stream.viewers[uuid] for stream in job.streams}) == 1


def test_languages_that_nobody_knows_share_a_rendering(
    server: Server, run: str
) -> None:
    """A visitor who makes up names of languages multiplies nothing."""
    for number in range(12):
        assert server.open(f"{run}?_LOCALE_=x{number}").is_stream
    uuid = run.removeprefix("/job_state/")
    job = server.streams.hub._feed._jobs[uuid]
    wait_for(lambda: len(job.streams) == 12)
    assert len({stream.viewers[uuid] for stream in job.streams}) == 1


def test_owners_that_are_equal_in_python() -> None:
    """1, 1.0, "1" and a subclass's 1 are four owners."""

    class Number(int):
        pass

    streams = Rooms(100)
    owners: list[Any] = [1, 1.0, "1", Number(1)]
    for owner in owners:
        for _ in range(20):
            assert streams.take(owner, "h")
        assert not streams.has(owner, "h")
        assert not streams.take(owner, "h")
    assert streams.count == 80
    streams.leave(1, "h")
    assert [streams.has(owner, "h") for owner in owners] == [True, False, False, False]


def test_owners_are_forgotten() -> None:
    """Nothing stays of an owner who has left."""
    streams = Rooms(100)
    for owner in "alice", "alice", None:
        assert streams.take(owner, "h")
    for owner in "alice", None, "alice":
        streams.leave(owner, "h")
    assert (streams.count, len(streams._owners)) == (0, 0)


def end_before_the_first_byte(server: Server, run: str) -> Exchange:
    return server.open(run, is_there=False)


def end_by_going(server: Server, run: str) -> Exchange:
    stream = server.open(run)
    stream.at(0)
    stream.go()
    return stream


def end_by_going_in_mid_frame(server: Server, run: str) -> Exchange:
    stream = server.open(run, is_reading=False)
    wait_for(lambda: stream.sending)
    stream.go()
    return stream


def end_by_cancelling(server: Server, run: str) -> Exchange:
    stream = server.open(run)
    stream.at(0)
    stream.cancel()
    return stream


def end_by_cancelling_in_mid_frame(server: Server, run: str) -> Exchange:
    stream = server.open(run, is_reading=False)
    wait_for(lambda: len(stream.sending) > 1)
    stream.cancel()
    return stream


def end_by_an_error_of_the_hub(server: Server, run: str) -> Exchange:
    stream = server.open(run)
    stream.at(0)

    def fail(argument: Any) -> None:
        raise LookupError("the hub fails")

    server.streams.hub._post(fail, None)
    return stream


def end_by_refusal(server: Server, run: str) -> Exchange:
    stream = server.open(run)
    stream.at(0)
    server.streams.hub._refused_until = float("inf")
    return stream


def end_by_success(server: Server, run: str) -> Exchange:
    stream = server.open(run)
    stream.at(0)
    store = server.streams.hub._store
    store.client.hset(f"jobstate:{run.rpartition('/')[2]}", "status", "success")
    return stream


ENDS = [
    end_before_the_first_byte,
    end_by_going,
    end_by_going_in_mid_frame,
    end_by_cancelling,
    end_by_cancelling_in_mid_frame,
    end_by_an_error_of_the_hub,
    end_by_refusal,
    end_by_success,
]


@pytest.mark.parametrize("end", ENDS)
def test_rooms_are_given_back(
    server: Server, run: str, end: Callable[[Server, str], Exchange]
) -> None:
    """However a stream ends, it makes room for another."""
    stream = end(server, run)
    wait_for(lambda: stream.is_done)
    server.wait_for_count(0)
    hub = server.streams.hub
    wait_for(lambda: not hub._feed._streams and not hub._feed._jobs)


def test_cancelled_before_the_answer(redis_url: str, run: str) -> None:
    """A request that is cancelled while its view runs takes no room afterwards."""
    reached, opened = threading.Event(), threading.Event()

    def slow(app: Any) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            reached.set()
            assert opened.wait(20)
            try:
                return app(environ, start_response)
            finally:
                reached.set()

        return application

    with pushing(make_config(redis_url), slow) as server:
        stream = server.open(run)
        assert reached.wait(20)
        stream.cancel()
        wait_for(lambda: not server.run(tasks_of(server)))
        reached.clear()
        opened.set()
        assert reached.wait(20)
        assert server.streams.rooms.count == 0


async def tasks_of(server: Server) -> int:
    """Return how many tasks there are besides this one."""
    return len(asyncio.all_tasks()) - 1


def test_server_that_raises_for_a_client_that_has_gone(
    server: Server, run: str, client: redis.Redis
) -> None:
    """Some servers raise an OSError when a client has gone. That ends the stream."""
    stream = server.open(run)
    stream.at(0)
    stream.break_down()
    client.hset(f"jobstate:{run.rpartition('/')[2]}", "attempt", 2)
    stream.wait()


def test_hub_that_cannot_start(
    server: Server, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that no thread can feed is a poll, and the next one is fed
    if a thread can start again.
    """
    start = threading.Thread.start

    def fail(self: threading.Thread) -> None:
        if self.name == "jobstate-hub":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert not server.ask(run).is_stream
    assert server.streams.rooms.count == 0
    wait_for(lambda: not server.run(tasks_of(server)))
    assert server.open(run, last_event_id=None).at(0).name == "message"
    wait_for(lambda: len(server.streams.hub._feed._streams) == 1)


def test_dropped_before_it_has_begun(
    server: Server, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that the hub drops at once ends."""

    def join(self: Hub, stream: Any) -> None:
        stream.carrier.drop()
        self._flush()

    monkeypatch.setattr(Hub, "join", join)
    assert server.ask(run).events == []
    assert server.streams.rooms.count == 0


def test_offer_that_nobody_takes(server: Server) -> None:
    """A request whose response has not become a stream sends none."""
    answer = Exchange(server.loop)
    offer = AsgiOffer(LoopQueue(server.loop))
    send: Any = answer.send
    server.run(offer.carry(answer.receive, send))
    assert answer.messages == []


def connect_and_go(server: Server, run: str, count: int) -> None:
    """Have clients come and go at all moments of a stream's life."""
    for start in range(0, count, 50):
        for number in range(start, start + 50):
            stream = server.open(run, f"user{number}", is_there=number % 3 > 0)
            if number % 5 == 0:
                wait_for(stream.has_begun)
            if number % 7 == 0:
                stream.cancel()
            else:
                stream.go()
        server.close()
    server.wait_for_count(0)
    feed = server.streams.hub._feed
    wait_for(lambda: not feed._streams and not feed._jobs)
    assert (feed._unsent, len(server.streams.rooms._owners)) == (0, 0)


def test_clients_that_come_and_go(server: Server, run: str) -> None:
    """Nothing is left of clients that go at once."""
    connect_and_go(server, run, 300)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_clients_that_come_and_go(server: Server, run: str) -> None:
    """Nor of ten thousand."""
    connect_and_go(server, run, 10_000)
