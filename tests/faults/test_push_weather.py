"""Streams in bad weather: ends at any moment, and a store that fails."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import End, Update
from pyramid_jobstate.web.push.feed import GRACE, Feed
from pyramid_jobstate.web.push.offer import streams_of
from pyramid_jobstate.web.push.watch import Watch
from tests.hubs import end
from tests.relay import relaying
from tests.streams import Event, StreamClient, serving
from tests.support import INFO, frozen, wait_for
from tests.webapp import make_config, put_job

LOGGER = "pyramid_jobstate"


@contextlib.contextmanager
def served(url: str, **settings: str) -> Iterator[int]:
    """Serve an application whose jobs are at a URL, and give its port."""
    config = make_config(url, settings=settings)
    config.include("pyramid_jobstate")
    with serving(asgi_app(config.make_wsgi_app())) as port:
        yield port
    end(streams_of(config.registry).hub)


def stream_of(port: int, *jobs: str) -> StreamClient:
    """Open a stream of one job, or of several."""
    query = "&".join(f"uuid={job}" for job in jobs)
    path = f"/job_state/{jobs[0]}" if len(jobs) == 1 else f"/job_state?{query}"
    stream = StreamClient(port, path)
    assert stream.is_stream
    return stream


def is_mile(mile: int, job: str | None = None) -> Callable[[Event], bool]:
    """Return a condition that holds for a state with the metric `miles_run`."""

    def holds(event: Event) -> bool:
        return (
            event.name == "message"
            and event.state.get("miles_run") == mile
            and job in (None, event.state["job"]["uuid"])
        )

    return holds


def write(client: redis.Redis, job: str, mile: int) -> None:
    """Write a job's metric `miles_run`."""
    client.hset(f"jobstate:{job}", "m:miles_run", mile)


def outages(caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """Return how many outages were logged, and how many ends of one."""
    texts = [r.getMessage() for r in caplog.records if r.name == LOGGER]
    return (
        sum("tells of changes is lost. Streams wait" in text for text in texts),
        sum("tells of changes again" in text for text in texts),
    )


class Ended(NamedTuple):
    """When the end of a job was written, heard of, read and seen. None if not."""

    job: str
    written: float
    changed: float
    read: float
    seen: float | None

    @property
    def late(self) -> float:
        return 99.0 if self.seen is None else self.seen - self.written


class Times:
    """When the hub of this process last heard of each job's change, and read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changed: dict[str, float] = {}
        self.read: dict[str, float] = {}
        note, report = Watch._note, Feed.report

        def noting(watch: Watch, said: Any) -> None:
            for key in getattr(said, "keys", None) or ():
                self.changed[key.removeprefix("jobstate:")] = time.monotonic()
            note(watch, said)

        def reporting(
            feed: Feed, uuid: str, reading: int, found: Mapping[str, Any]
        ) -> None:
            report(feed, uuid, reading, found)
            self.read[uuid] = time.monotonic()

        monkeypatch.setattr(Watch, "_note", noting)
        monkeypatch.setattr(Feed, "report", reporting)


def end_at_random(
    port: int, store: JobStore, times: Times, dice: random.Random, patience: float
) -> Ended:
    """Ask for a job's stream and end the job, the end from 30 ms before to 60 ms after
    the request.
    """
    job = str(uuid.UUID(int=dice.getrandbits(128), version=4))
    store.write([Update(job, "t", 1, INFO, {"m:miles_run": "0"}, begins=True)])
    delay = dice.uniform(-0.03, 0.06)
    pause = dice.choice([0.0, dice.uniform(0, 0.004)])
    written = [0.0]

    def end() -> None:
        time.sleep(max(0.0, delay))
        store.write([Update(job, "t", 2, INFO, {"m:miles_run": "1"})])
        time.sleep(pause)
        last = Update(job, "t", 3, INFO, {"m:miles_run": "2"}, end=End("success"))
        store.write([last])
        written[0] = time.monotonic()

    thread = threading.Thread(target=end)
    thread.start()
    time.sleep(max(0.0, -delay))
    seen = None
    with StreamClient(port, f"/job_state/{job}") as stream:
        thread.join()
        with contextlib.suppress(Exception):
            seen = stream.until(
                lambda event: (
                    is_mile(2)(event) and event.state["job_state"] == "success"
                ),
                patience,
            ).at
    return Ended(
        job, written[0], times.changed.get(job, 0), times.read.get(job, 0), seen
    )


def end_many(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    patience: float = 20,
    parallel: int = 10,
) -> list[Ended]:
    """End many jobs at random moments, several at a time."""
    times = Times(monkeypatch)
    store = JobStore(url)
    ends: list[Ended] = []

    def run(first: int) -> None:
        for seed in range(first, count, parallel):
            ends.append(
                end_at_random(port, store, times, random.Random(seed), patience)
            )

    with served(url) as port:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ends) == count
    return ends


@pytest.mark.parametrize(
    "count", [60, pytest.param(500, marks=pytest.mark.long)], ids=str
)
def test_no_end_is_missed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A job that ends at any moment around the request is seen to end."""
    ends = end_many(redis_url, monkeypatch, count)
    assert [end.job for end in ends if end.seen is None] == []
    heard = [e for e in ends if e.seen and e.written <= e.changed <= e.read <= e.seen]
    phases = {
        "write to notice": max((e.changed - e.written for e in heard), default=0),
        "notice to reading": max((e.read - e.changed for e in heard), default=0),
        "reading to event": max(((e.seen or 0) - e.read for e in heard), default=0),
        "in all": max(e.late for e in ends),
    }
    print({name: f"{seconds * 1000:.0f} ms" for name, seconds in phases.items()})
    # A wide bound, since the machine may be busy.
    assert phases["in all"] < 3


@pytest.mark.long
def test_a_snapshot_before_the_subscription_misses_ends(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would find a hub that takes what the view has read for the state
    at the time of its subscription.
    """
    shown: set[str] = set()
    add, report = Watch.add, Feed.report

    def adding(watch: Watch, uuid: str) -> int:
        # As long as another process's snapshot may take.
        time.sleep(0.005)
        return add(watch, uuid)

    def reporting(
        feed: Feed, uuid: str, reading: int, found: Mapping[str, Any]
    ) -> None:
        if uuid in shown:
            report(feed, uuid, reading, found)
            return
        shown.add(uuid)
        job = feed._jobs[uuid]
        job.streams |= set(job.joining)
        job.joining.clear()

    monkeypatch.setattr(Watch, "add", adding)
    monkeypatch.setattr(Feed, "report", reporting)
    ends = end_many(redis_url, monkeypatch, 60, patience=1, parallel=20)
    assert any(end.seen is None for end in ends)


@contextlib.contextmanager
def dead(server: EmbeddedServer) -> Iterator[None]:
    """Kill the server. It comes back with what is on its disk."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    yield
    server.start()


@contextlib.contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Stop the server, which saves its data."""
    server.stop()
    yield
    server.start()


Weather = Callable[[EmbeddedServer], contextlib.AbstractContextManager[None]]


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that keeps its data on disk."""
    arguments = ["--appendonly", "yes", "--appendfsync", "always"]
    with EmbeddedServer(directory=str(tmp_path), arguments=arguments) as server:
        yield server


class Outage(NamedTuple):
    """What two streams were told of an outage.

    Attributes:
      away_after: Seconds from its begin until the first stream was told.
      back_after: Seconds from its end until the first stream had the newest state.
      events: The events of the first stream from `away` on.
    """

    away_after: float
    back_after: float
    events: list[Event]


def suffer(
    port: int, server: EmbeddedServer, weather: Weather, seconds: float
) -> Outage:
    """Have two streams suffer an outage that lasts on after they have been told."""
    with redis.Redis.from_url(server.url) as client:
        jobs = [put_job(client, **{"m:miles_run": 1}) for _ in range(3)]
    with stream_of(port, jobs[0]) as one, stream_of(port, *jobs[1:]) as two:
        one.until(is_mile(1))
        for job in jobs[1:]:
            two.until(is_mile(1, job))
        # The hub has read them, too.
        time.sleep(0.2)
        begun = time.monotonic()
        with weather(server):
            away = one.until(lambda event: event.name == "away")
            two.until(lambda event: event.name == "away")
            time.sleep(seconds)
        ended = time.monotonic()
        with redis.Redis.from_url(server.url) as client:
            for job in jobs:
                write(client, job, 2)
        events = [away]
        while not is_mile(2)(events[-1]):
            events.append(one.next())
        for job in jobs[1:]:
            two.until(is_mile(2, job))
        with redis.Redis.from_url(server.url) as client:
            client.hset(f"jobstate:{jobs[0]}", "status", "success")
        events += one.rest()
    return Outage(away.at - begun, events[-2].at - ended, events)


def check_outage(outage: Outage) -> None:
    """Check what a stream was told: that the store is away, once, that it goes on, and
    then the current states.
    """
    names = [event.name for event in outage.events]
    assert names.count("away") == 1
    assert "gone" not in names
    assert names[1] == "beat"
    assert outage.events[-1].state["job_state"] == "success"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub loses its patience, and beats, sooner."""
    monkeypatch.setattr("pyramid_jobstate.web.push.links.AWAY_AFTER", 0.4)
    monkeypatch.setattr("pyramid_jobstate.web.push.links.CHECK", 1.0)
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.BEAT", 0.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "weather",
    [
        pytest.param(dead, marks=pytest.mark.long),
        pytest.param(stopped, marks=pytest.mark.long),
        frozen,
    ],
)
def test_streams_outlive_an_outage(
    durable: EmbeddedServer, weather: Weather, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams are told once that the store does not answer, hear that the server is
    still there, and get the current states when it answers. The log says once that it
    is away and once that it is back.
    """
    caplog.set_level(logging.INFO, LOGGER)
    with served(durable.url) as port:
        check_outage(suffer(port, durable, weather, seconds=2))
        wait_for(lambda: outages(caplog)[1])
    assert outages(caplog) == (1, 1)


@pytest.mark.parametrize(
    ("weather", "latest"),
    [
        (dead, 3.5),
        # A question each five seconds, and two ticks.
        pytest.param(frozen, 9.0, marks=pytest.mark.long),
    ],
)
def test_an_outage_is_told_in_time(
    durable: EmbeddedServer,
    weather: Weather,
    latest: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store counts as away when it has not answered for two seconds, and its states
    are back two seconds after it is.
    """
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.BEAT", 0.5)
    with served(durable.url) as port:
        outage = suffer(port, durable, weather, seconds=1)
    check_outage(outage)
    # The machine may be busy.
    assert 1.9 < outage.away_after < latest + 1
    assert outage.back_after < 3


def test_a_blip_is_told_to_nobody(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A link that is killed is made anew, and what happened meanwhile is shown."""
    caplog.set_level(logging.INFO, LOGGER)
    job = put_job(client, **{"m:miles_run": 1})
    with served(redis_url) as port, stream_of(port, job) as stream:
        stream.until(is_mile(1))
        for mile in range(2, 5):
            wait_for(lambda: links(client))
            client.client_kill_filter(_type="normal", skipme=True)
            write(client, job, mile)
            events: list[Event] = []
            while not events or not is_mile(mile)(events[-1]):
                events.append(stream.next())
            assert {event.name for event in events} <= {"message", "beat"}
        wait_for(lambda: outages(caplog)[1])


def links(client: redis.Redis) -> int:
    """Return how many links a server has."""
    return sum("t" in c["flags"] for c in client.client_list())


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        pytest.param("FLUSHDB", marks=pytest.mark.long),
        pytest.param("FLUSHALL ASYNC", marks=pytest.mark.long),
    ],
)
def test_a_job_that_is_written_again_is_not_gone(
    redis_url: str, client: redis.Redis, command: str
) -> None:
    """After the store was emptied, a job whose worker writes it again goes on."""
    job = put_job(client, **{"m:miles_run": 1})
    with served(redis_url) as port, stream_of(port, job) as stream:
        stream.until(is_mile(1))
        time.sleep(0.1)
        client.execute_command(command)
        assert stream.is_silent(1.5)
        put_job(client, uuid=job, run="1" * 12, **{"m:miles_run": 2})
        assert is_mile(2)(stream.next())
        client.hset(f"jobstate:{job}", "status", "success")
        assert [event.state["job_state"] for event in stream.rest()] == ["success"]


@pytest.mark.usefixtures("quick")
def test_a_store_that_comes_back_empty_is_written_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart without data, a job that its worker writes again goes on, and one
    that nobody writes is gone.
    """
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.GRACE", 2.0)
    client = redis.Redis.from_url(server.url)
    jobs = [put_job(client, **{"m:miles_run": 1}) for _ in range(2)]
    with (
        client,
        served(server.url) as port,
        stream_of(port, *jobs) as stream,
    ):
        for job in jobs:
            stream.until(is_mile(1, job))
        with stopped(server):
            stream.until(lambda event: event.name == "away")
        put_job(client, uuid=jobs[0], **{"m:miles_run": 2})
        stream.until(is_mile(2, jobs[0]))
        gone = stream.until(lambda event: event.name == "gone")
        assert gone.data == jobs[1]
        write(client, jobs[0], 3)
        stream.until(is_mile(3, jobs[0]))


@pytest.mark.usefixtures("quick")
def test_an_outage_takes_nothing_of_the_time_of_grace(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was missing before an outage may be written again after it."""
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.GRACE", 3.0)
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.BEAT", 60.0)
    client = redis.Redis.from_url(server.url)
    job = put_job(client, **{"m:miles_run": 1})
    with client, served(server.url) as port, stream_of(port, job) as stream:
        stream.until(is_mile(1))
        client.flushall()
        assert stream.is_silent(1.5)
        with stopped(server):
            stream.until(lambda event: event.name == "away")
            assert stream.is_silent(2)
        assert stream.is_silent(1.2)
        put_job(client, uuid=job, **{"m:miles_run": 2})
        stream.until(is_mile(2))


@pytest.mark.parametrize(
    "how",
    [
        "delete",
        pytest.param("expire", marks=pytest.mark.long),
        pytest.param("other-type", marks=pytest.mark.long),
    ],
)
def test_a_job_that_is_deleted_is_gone_after_a_while(
    redis_url: str, client: redis.Redis, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose record is deleted, expires or is overwritten is shown for a time of
    grace. Then its page is to ask by a poll, and the stream is over.
    """
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.GRACE", 1.5)
    job = put_job(client, **{"m:miles_run": 1})
    key = f"jobstate:{job}"
    with served(redis_url) as port, stream_of(port, job) as stream:
        stream.until(is_mile(1))
        time.sleep(0.1)
        lost_at = time.monotonic()
        if how == "delete":
            client.delete(key)
        elif how == "expire":
            client.pexpire(key, 20)
        else:
            client.set(key, "x")
        gone = stream.next()
        assert (gone.name, gone.data) == ("gone", job)
        assert 1.4 < gone.at - lost_at < 5
        assert stream.rest() == []


def test_the_time_of_grace_is_longer_than_a_heartbeat() -> None:
    """A worker writes its job at least every five seconds."""
    assert GRACE > 5


def test_a_silent_job_is_stalled(redis_url: str, client: redis.Redis) -> None:
    """A job whose worker is silent becomes stalled, though nobody writes that, and
    works again when the worker is heard of.
    """
    with served(redis_url, **{"jobstate.stalled_after": "2"}) as port:
        job = put_job(client)
        with stream_of(port, job) as stream:
            assert stream.next().state["job"]["status"] == "working"
            assert stream.next().state["job"]["status"] == "stalled"
            seconds, micros = client.time()
            seen = int(client.hget(f"jobstate:{job}", "seen") or 0)
            assert 2 <= seconds + micros / 1e6 - seen / 1000 < 5
            assert stream.is_silent(1.5)
            client.hset(f"jobstate:{job}", "seen", seconds * 1000 + 1500)
            assert stream.next().state["job"]["status"] == "working"


@pytest.mark.parametrize("how", ["acl", "hello", "hiredis"])
def test_where_changes_cannot_be_heard_pages_poll(
    server: EmbeddedServer,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the server refuses to tell of changes, the streams end, pages get the answer
    to a poll, polls offer no stream, and one line of the log says why.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(server.url))
        url = server.url
        if how == "acl":
            client.acl_setuser(
                "jobs", enabled=True, nopass=True, keys=["*"], commands=["+@all"]
            )
            client.execute_command("ACL", "SETUSER", "jobs", "-client|tracking")
            url = url.replace("redis://", "redis://jobs:x@")
        elif how == "hello":
            refused = {"HELLO 3": "ERR unknown command 'HELLO'"}
            relay = stack.enter_context(relaying(url, refused))
            url = f"{relay.url}?protocol=2"
        else:
            monkeypatch.setattr("pyramid_jobstate.store.tracking.link.CAN_TRACK", False)
        port = stack.enter_context(served(url))
        job = put_job(client, **{"m:miles_run": 1})
        with stream_of(port, job) as first:
            assert {event.name for event in first.rest()} <= {"message"}
        for _ in range(3):
            with StreamClient(port, f"/job_state/{job}") as poll:
                assert poll.status == 200
                assert not poll.is_stream
                assert b'"miles_run": 1' in poll.body or b'"miles_run":1' in poll.body
                assert "JobState-Stream" not in poll.headers
    (said,) = [r.getMessage() for r in caplog.records if r.name == LOGGER]
    assert "pages poll" in said


@pytest.mark.usefixtures("quick")
def test_an_exception_in_the_hub_is_survived(
    redis_url: str,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The streams of a hub that raises end, which makes their pages come again."""
    job = put_job(client, **{"m:miles_run": 1})
    with served(redis_url) as port:
        with stream_of(port, job) as first:
            first.until(is_mile(1))
            time.sleep(0.1)
            with monkeypatch.context() as context:
                context.setattr(Feed, "_update", broken)
                write(client, job, 2)
                assert {event.name for event in first.rest()} <= {"beat"}
        with stream_of(port, job) as second:
            second.until(is_mile(2))
            write(client, job, 3)
            second.until(is_mile(3))
    errors = [r for r in caplog.records if r.name == LOGGER and r.exc_info]
    assert len(errors) == 1


def broken(*args: Any) -> bool:
    """Raise."""
    raise ZeroDivisionError("a bug")
