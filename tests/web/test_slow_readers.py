"""Streams whose clients read slowly, or not at all."""

from __future__ import annotations

import gc
import json
import socket
import struct
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.web.push.hub import Hub
from pyramid_jobstate.web.push.offer import streams_of
from pyramid_jobstate.web.push.stream import CHUNK
from tests.asgi import Exchange, Server, pushing
from tests.hubs import Basket, hub_of
from tests.streams import serving as serving_with_uvicorn
from tests.support import wait_for
from tests.web.test_streams import batch
from tests.webapp import make_config, put_job

MIB = 1024 * 1024


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """A server of an application that lets Alice read all."""
    with pushing(make_config(redis_url)) as server:
        yield server


def put_large(client: redis.Redis, size: int, **fields: Any) -> str:
    """Write a job whose viewers get so many bytes, and return its uuid."""
    return put_job(client, params=json.dumps({"miles": "x" * size}), **fields)


def change(client: redis.Redis, uuid: str, attempt: int) -> None:
    client.hset(f"jobstate:{uuid}", "attempt", attempt)


def attempts(stream: Exchange) -> list[int]:
    """Return the attempts that the states of a stream show."""
    states = [event.state for event in stream.events if event.name == "message"]
    return [state["job"]["attempt"] for state in states]


def wait_until_read(server: Server, watching: Exchange, attempt: int) -> None:
    """Wait until another stream of a job shows a state."""
    watching.until(
        lambda event: (
            event.name == "message" and event.state["job"]["attempt"] == attempt
        )
    )


def test_stopped_reader_gets_the_newest_state(
    server: Server, client: redis.Redis, job: str
) -> None:
    """A reader that stops holds one frame, and then gets the newest state alone."""
    stopped, watching = (server.open(f"/job_state/{job}") for _ in range(2))
    stopped.at(0)
    stopped.stop()
    for attempt in range(2, 12):
        change(client, job, attempt)
        wait_until_read(server, watching, attempt)
    # One is on its way. Of the others, only the last one comes.
    stopped.resume()
    wait_until_read(server, stopped, 11)
    assert attempts(stopped) == [1, 2, 11]


class SlowBasket(Basket):
    """A stream that gets nothing more until :meth:`take` is called.

    Attributes:
      gifts: What it was given.
    """

    def __init__(self, hub: Hub, uuid: str) -> None:
        self.gifts: list[bytes] = []
        super().__init__(hub, uuid)

    def give(self, data: bytes, is_over: bool) -> None:
        self.gifts.append(data)
        self.data += data

    def take(self, number: int) -> None:
        """Wait for a gift, and be ready for the next one."""
        wait_for(lambda: len(self.gifts) == number)
        self._hub.taken(self.stream)


def test_state_that_returns(redis_url: str, client: redis.Redis, job: str) -> None:
    """A slow reader is given nothing if the newest state is the one that it has."""

    def write(mile: int) -> None:
        client.hset(f"jobstate:{job}", "m:miles_run", mile)
        watching.wait_for_mile(mile)

    with hub_of(JobStore(redis_url)) as hub:
        slow, watching = SlowBasket(hub, job), Basket(hub, job)
        slow.take(1)
        slow.take(2)
        for mile in (1, 2, 3, 1):
            write(mile)
        slow.take(3)
        wait_for(lambda: slow.stream.is_ready and not slow.stream.missed)
        write(4)
        wait_for(lambda: len(slow.gifts) == 4)
    assert [state.get("miles_run") for state in slow.states] == [None, 1, 4]
    assert slow.gifts[0] == b""
    assert all(slow.gifts[1:])


def test_stopped_reader_does_not_delay_others(
    server: Server, client: redis.Redis
) -> None:
    """Others get each change at once, while some readers do not read."""
    uuid = put_large(client, 200_000)
    stopped = [server.open(f"/job_state/{uuid}", is_reading=False) for _ in range(10)]
    watching = server.open(f"/job_state/{uuid}")
    watching.at(0)
    began = time.monotonic()
    for attempt in range(2, 12):
        change(client, uuid, attempt)
        wait_until_read(server, watching, attempt)
    assert time.monotonic() - began < 5
    assert [stream.events for stream in stopped] == [[]] * 10


def test_large_first_event(server: Server, client: redis.Redis) -> None:
    """An event of more than 64 KiB arrives whole, in pieces of at most that."""
    uuid = put_large(client, 300_000)
    stream = server.open(f"/job_state/{uuid}")
    assert len(stream.at(0).state["job"]["params"]["miles"]) == 300_000
    assert max(stream.sending) == CHUNK
    change(client, uuid, 2)
    assert len(stream.at(1).state["job"]["params"]["miles"]) == 300_000


def test_first_events_of_many_jobs(server: Server, client: redis.Redis) -> None:
    """A reader of many large jobs holds 64 KiB of them, and gets all in the end."""
    uuids = [put_large(client, 20_000) for _ in range(30)]
    stream = server.open(batch(*uuids), is_reading=False)
    feed = server.streams.hub._feed
    wait_for(lambda: feed._unsent)
    assert feed._unsent <= CHUNK
    stream.resume()
    stream.at(29)
    shown = [event.state["job"]["uuid"] for event in stream.events]
    assert sorted(shown) == sorted(uuids)
    last = stream.at(29).id
    again = server.open(batch(*uuids), last_event_id=last)
    assert again.opening
    change(client, uuids[0], 2)
    assert again.at(0).state["job"]["attempt"] == 2


def test_many_large_jobs_that_are_over(server: Server, client: redis.Redis) -> None:
    """So does a reader of many large jobs that are over, whose stream then ends."""
    uuids = [put_large(client, 20_000, status="success") for _ in range(30)]
    stream = server.ask(batch(*uuids))
    shown = [event.state["job"]["uuid"] for event in stream.events]
    assert sorted(shown) == sorted(uuids)
    last = stream.events[-1].id
    assert server.ask(batch(*uuids), last_event_id=last).status == 204


def test_changes_of_many_jobs(server: Server, client: redis.Redis) -> None:
    """What changes of a hundred jobs at once comes in few chunks."""
    uuids = [put_job(client) for _ in range(100)]
    stream = server.open(batch(*uuids))
    stream.at(99)
    sent = len(stream.sending)
    with client.pipeline() as pipeline:
        for uuid in uuids:
            pipeline.hset(f"jobstate:{uuid}", "attempt", 2)
        pipeline.execute()
    stream.at(199)
    assert len(stream.sending) - sent <= 20
    assert max(stream.sending) <= CHUNK
    with client.pipeline() as pipeline:
        for uuid in uuids:
            pipeline.hset(f"jobstate:{uuid}", "status", "success")
        pipeline.execute()
    stream.wait()
    ended = {e.state["job"]["uuid"] for e in stream.events if "success" in e.data}
    assert ended == set(uuids)


def wait_for_attempts(stream: Exchange, number: int) -> None:
    """Wait until a stream of ten jobs has shown an attempt of each."""
    wait_for(lambda: attempts(stream).count(number) == 10)


def test_chunks_of_a_stopped_reader(server: Server, client: redis.Redis) -> None:
    """Changes that a reader has missed come in chunks of at most 64 KiB."""
    uuids = [put_large(client, 20_000) for _ in range(10)]
    stream, watching = (server.open(batch(*uuids)) for _ in range(2))
    for opened in stream, watching:
        opened.at(9)
    stream.stop()
    for number in 2, 3:
        for uuid in uuids:
            change(client, uuid, number)
        wait_for_attempts(watching, number)
    before, sent = len(stream.events), len(stream.sending)
    stream.resume()
    wait_for_attempts(stream, 3)
    assert sum(stream.sending[sent:]) < 10 * 21_000
    # The first chunk was on its way when the reader stopped.
    assert attempts(stream).count(2) <= 3
    # Only the last event of a chunk has an id.
    ids = [event.id for event in stream.events[before:]]
    chunks = " ".join("_" if found is None else "id" for found in ids).split("id")
    assert max(len(chunk) for chunk in chunks) < len("_ _ _ ")


def test_job_that_ends_before_the_others(server: Server, client: redis.Redis) -> None:
    """A stream goes on with the jobs that are left when one is over."""
    uuids = [put_job(client) for _ in range(3)]
    stream = server.open(batch(*uuids))
    stream.at(2)
    client.hset(f"jobstate:{uuids[1]}", "status", "success")
    assert stream.at(3).state["job_state"] == "success"
    # What is over is watched no longer.
    wait_for(lambda: set(server.streams.hub._feed._jobs) == {uuids[0], uuids[2]})
    change(client, uuids[1], 2)
    change(client, uuids[2], 2)
    assert stream.at(4).state["job"]["uuid"] == uuids[2]
    assert not stream.is_done


def test_dropped_reader(
    server: Server,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader that takes too long gets no more. Its stream ends when it reads."""
    uuid = put_large(client, 300_000)
    stream = server.open(f"/job_state/{uuid}", is_reading=False)
    feed = server.streams.hub._feed
    wait_for(lambda: feed._unsent > 300_000)
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.PATIENCE", 0.5)
    wait_for(lambda: not feed._streams)
    assert (feed._unsent, feed._jobs) == (0, {})
    stream.resume()
    stream.wait()
    assert stream.events == []
    assert len(stream.body) <= 2 * CHUNK


def test_slow_reader_is_not_dropped(
    server: Server, client: redis.Redis, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has received all may wait for news for as long as it likes."""
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.PATIENCE", 0.5)
    stream = server.open(f"/job_state/{job}")
    stream.at(0)
    given = next(iter(server.streams.hub._feed._streams)).given_at
    wait_for(lambda: time.monotonic() > given + 2.5)
    change(client, job, 2)
    assert stream.at(1).state["job"]["attempt"] == 2


def test_missing_record_of_a_slow_reader(
    server: Server, client: redis.Redis, job: str
) -> None:
    """A reader that was slow when a record went missing gets the last state, and is
    not told too early that the job has gone.
    """
    stream, watching = (server.open(f"/job_state/{job}") for _ in range(2))
    stream.at(0)
    stream.stop()
    for attempt in 2, 3:
        change(client, job, attempt)
        wait_until_read(server, watching, attempt)
    shown = server.streams.hub._feed._jobs[job]
    client.delete(f"jobstate:{job}")
    wait_for(lambda: shown.missing_since)
    stream.resume()
    stream.at(2)
    assert attempts(stream) == [1, 2, 3]


def test_most_unsent_bytes(
    server: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the most unsent bytes, those go first that have taken longest."""
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.MAX_UNSENT", 1_000_000)
    feed = server.streams.hub._feed
    watching = server.open(f"/job_state/{put_job(client)}")
    watching.at(0)
    streams: list[Exchange] = []
    for _ in range(5):
        uuid = put_large(client, 300_000)
        streams.append(server.open(f"/job_state/{uuid}", is_reading=False))
        wait_for(streams[-1].is_held)
        wait_for(lambda: len(feed._streams) == 1 + min(len(streams), 3))
    for stream in streams:
        stream.resume()
    for stream in streams[:2]:
        assert stream.wait().events == []
    for stream in streams[2:]:
        assert stream.at(0).name == "message"
    assert not watching.is_done


def test_many_readers_of_large_jobs(redis_url: str, client: redis.Redis) -> None:
    """40 stopped readers of 2 MB each hold 64 MiB at most, and nobody else is hurt."""
    uuids = [put_large(client, 2_000_000) for _ in range(40)]
    config = make_config(redis_url)
    with pushing(config) as server:
        feed = server.streams.hub._feed
        small = put_job(client, owner='"bob"')
        watching = server.open(f"/job_state/{small}", "bob")
        watching.at(0)
        gc.collect()
        tracemalloc.start()
        try:
            streams = []
            for number, uuid in enumerate(uuids):
                user = "alice" if number % 2 else "admin"
                streams.append(
                    server.open(f"/job_state/{uuid}", user, is_reading=False)
                )
            wait_for(lambda: all(stream.is_held() for stream in streams))
            assert feed._unsent > 60_000_000
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert feed._unsent <= 64 * MIB
        # The hub keeps each job's frame with an id and without.
        assert held < 3 * 64 * MIB
        assert len(feed._streams) <= 34
        change(client, small, 2)
        assert watching.at(1).state["job"]["attempt"] == 2


def open_socket(port: int, uuid: str) -> socket.socket:
    """Ask a server for a stream, with a small buffer for what it sends."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(
        f"GET /job_state/{uuid} HTTP/1.1\r\nHost: example.com\r\n"
        "Accept: text/event-stream\r\nX-User: alice\r\n\r\n".encode()
    )
    return sock


def test_readers_of_sockets(redis_url: str, client: redis.Redis) -> None:
    """A reader that stops, and one that resets its connection in mid-frame, leave the
    others alone, and nothing behind.
    """
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    uuid = put_large(client, 10_000_000)
    small = put_job(client)
    with serving_with_uvicorn(asgi_app(config.make_wsgi_app())) as port:
        stopped, reset = open_socket(port, uuid), open_socket(port, uuid)
        watching = open_socket(port, small)
        streams = streams_of(config.registry)
        wait_for(lambda: streams.rooms.count == 3)
        feed = streams.hub._feed
        wait_for(lambda: feed._unsent > 20_000_000)
        assert reset.recv(1000).startswith(b"HTTP/1.1 200 OK")
        linger = struct.pack("ii", 1, 0)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        reset.close()
        wait_for(lambda: streams.rooms.count == 2)
        wait_for(lambda: 10_000_000 < feed._unsent < 11_000_000)
        watching.settimeout(20)
        received = b""
        change(client, small, 2)
        while b'"attempt":2' not in received:
            received += watching.recv(65536)
        stopped.settimeout(20)
        received = b""
        while b"\r\n\r\n" not in received or len(received) < 10_000_000:
            received += stopped.recv(65536)
        wait_for(lambda: feed._unsent == 0)
        for sock in stopped, watching:
            sock.close()
        wait_for(lambda: streams.rooms.count == 0)


def test_reader_of_single_bytes(redis_url: str, client: redis.Redis) -> None:
    """A reader of a byte now and then gets the bytes in order, and delays nobody."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    uuid = put_large(client, 1_000_000)
    with serving_with_uvicorn(asgi_app(config.make_wsgi_app())) as port:
        slow = open_socket(port, uuid)
        other = open_socket(port, uuid)
        slow.settimeout(20)
        other.settimeout(20)
        received = b""
        while len(received) < 1_000_000:
            received += other.recv(65536)
        start = b"".join(slow.recv(1) for _ in range(500))
        assert start.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"retry: " in start
        slow.close()
        other.close()


def test_busy_stream_ends_in_time(redis_url: str, client: redis.Redis) -> None:
    """A stream that always has more to send ends at its age like any other."""
    job = put_job(client)
    config = make_config(redis_url, settings={"jobstate.stream_max_age": "1s"})
    with pushing(config) as server:
        stream = server.open(f"/job_state/{job}", is_reading=False)
        begun = time.monotonic()
        number = 0
        while not stream.is_done and time.monotonic() < begun + 10:
            number += 1
            client.hset(f"jobstate:{job}", "m:text", json.dumps(f"{number}" * 90_000))
            # It reads just what it was sent, so that the next state is due.
            stream.resume()
            time.sleep(0.02)
            stream.stop()
        assert stream.is_done
        assert time.monotonic() - begun < 5
