"""Streams whose clients read slowly, or not at all."""

from __future__ import annotations

import gc
import socket
import struct
import tracemalloc
from typing import Any

import pytest
import redis

from pyramid_jobstate import Batch, JobStore
from pyramid_jobstate.testing import put_batch
from tests.asgi import Exchange, Server, pushing
from tests.jobs import RunMarathon
from tests.running import Run, Runs
from tests.support import load_job, wait_for
from tests.web.streaming import PublicRun, batch, one, put, serving_sockets, wait_until
from tests.webapp import make_config

#: Bytes that a stream is given at a time, unless one event is larger.
CHUNK = 64 * 1024

MIB = 1024 * 1024


def put_large(store: JobStore, size: int, **options: Any) -> str:
    """Store a job whose viewers get so many bytes, and return its uuid."""
    return put(store, params={"miles": "x" * size}, **options)


def put_members(store: JobStore, count: int, size: int = 0) -> tuple[Batch, list[str]]:
    """Store a batch of jobs that wait, which all end when it is cancelled."""
    member = {
        "status": "queued",
        "job_state_class": RunMarathon,
        "params": {"miles": "x" * size},
    }
    made = put_batch(store, Batch, [member] * count, owner="alice")
    return made, [job.uuid for job in store.members(made.uuid, limit=count).items]


def miles(stream: Exchange) -> list[int]:
    """Return the metric n of the states of a stream."""
    return [event.state["n"] for event in stream.events if event.name == "message"]


def statuses(stream: Exchange) -> list[str]:
    """Return the statuses of the states of a stream."""
    states = [event.state for event in stream.events if event.name == "message"]
    return [state["job"]["status"] for state in states]


def report_and_see(run: Run, n: int, *watching: Exchange) -> None:
    """Have a job report, and wait until streams show it."""
    run.report(n=n)
    for stream in watching:
        wait_until([n], lambda stream: miles(stream)[-1:], stream)


def test_stopped_reader_gets_the_newest_state(pushed: Server, runs: Runs) -> None:
    """A reader that stops holds one frame, and then gets the newest state alone."""
    run = runs.start(n=1)
    stopped, watching = (pushed.open(one(run.uuid)) for _ in range(2))
    stopped.at(0)
    stopped.stop()
    for n in range(2, 12):
        report_and_see(run, n, watching)
    # One is on its way. Of the others, only the last one comes.
    stopped.resume()
    wait_for(lambda: miles(stopped) == [1, 2, 11])


def test_stopped_reader_does_not_delay_others(pushed: Server, runs: Runs) -> None:
    """Others get each change at once, while some readers do not read."""
    large: Any = {f"m{number}": "x" * 16_000 for number in range(10)}
    run = runs.start(n=1, **large)
    stopped = [pushed.open(one(run.uuid), is_reading=False) for _ in range(10)]
    watching = pushed.open(one(run.uuid))
    for n in range(2, 6):
        report_and_see(run, n, watching)
    assert [stream.events for stream in stopped] == [[]] * 10


def test_large_event_comes_in_pieces(pushed: Server, store: JobStore) -> None:
    """An event of more than 64 KiB arrives whole, in pieces of at most that."""
    job = put_large(store, 300_000)
    stream = pushed.open(one(job))
    assert len(stream.at(0).state["job"]["params"]["miles"]) == 300_000
    assert max(stream.sending) == CHUNK
    load_job(store, job).cancel()
    assert len(stream.at(1).state["job"]["params"]["miles"]) == 300_000


def test_first_events_of_many_jobs(pushed: Server, store: JobStore) -> None:
    """A reader of many large jobs holds 64 KiB of them, and gets all in the end. So
    does one whose jobs are all over.
    """
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
    made.cancel()
    again.wait()
    assert statuses(again) == ["cancelled"] * 30
    over = pushed.ask(batch(*uuids))
    assert statuses(over) == ["cancelled"] * 30
    assert pushed.ask(batch(*uuids), last_event_id=over.events[-1].id).status == 204


def test_changes_of_many_jobs_come_together(pushed: Server, store: JobStore) -> None:
    """What changes of a hundred jobs at once comes in few chunks."""
    made, uuids = put_members(store, 100)
    stream = pushed.open(batch(*uuids))
    stream.at(99)
    sent = len(stream.sending)
    made.cancel()
    stream.wait()
    assert len(stream.sending) - sent <= 20
    assert max(stream.sending) <= CHUNK
    ended = [event.state["job"]["uuid"] for event in stream.events[100:]]
    assert sorted(ended) == sorted(uuids)


def test_chunks_of_a_stopped_reader(pushed: Server, store: JobStore) -> None:
    """Changes that a reader has missed come in chunks of at most 64 KiB, of which only
    the last event has an id.
    """
    made, uuids = put_members(store, 10, 20_000)
    stream = pushed.open(batch(*uuids))
    stream.at(9)
    stream.stop()
    made.cancel()
    wait_for(lambda: sum(stream.sending) > 220_000)
    stream.resume()
    stream.wait()
    assert statuses(stream)[10:] == ["cancelled"] * 10
    ids = [event.id for event in stream.events[10:]]
    chunks = " ".join("_" if found is None else "id" for found in ids).split("id")
    assert max(len(chunk) for chunk in chunks) < len("_ _ _ ")


def test_job_that_ends_before_the_others(pushed: Server, store: JobStore) -> None:
    """A stream goes on with the jobs that are left when one is over."""
    uuids = [put(store, "queued") for _ in range(3)]
    stream = pushed.open(batch(*uuids))
    stream.at(2)
    for number, uuid in enumerate(uuids[1:] + uuids[:1], start=3):
        assert not stream.is_done
        load_job(store, uuid).cancel()
        assert stream.at(number).state["job"]["uuid"] == uuid
    stream.wait()


def test_reader_of_nothing_is_dropped(pushed: Server, store: JobStore) -> None:
    """A reader that takes nothing for a minute gets no more. Its stream ends when it
    reads. One that has received all may wait for news for as long as it likes.
    """
    stopped = pushed.open(one(put_large(store, 300_000)), is_reading=False)
    wait_for(stopped.is_held)
    job = put(store, "queued")
    patient = pushed.open(one(job))
    patient.at(0)
    for _ in range(3):
        pushed.pass_time(21)
    pushed.pass_time(1)
    stopped.resume()
    stopped.wait()
    assert stopped.events == []
    assert len(stopped.body) <= 2 * CHUNK
    load_job(store, job).cancel()
    patient.wait()
    assert statuses(patient) == ["queued", "cancelled"]


def test_missing_record_of_a_slow_reader(
    pushed: Server, runs: Runs, client: redis.Redis
) -> None:
    """A reader that was slow when a record went missing gets the last state, and is
    not told too early that the job has gone.
    """
    run = runs.start(n=1)
    stream, watching = (pushed.open(one(run.uuid)) for _ in range(2))
    stream.at(0)
    stream.stop()
    for n in 2, 3:
        report_and_see(run, n, watching)
    client.delete(f"jobstate:{run.uuid}")
    pushed.pass_time(1)
    stream.resume()
    wait_for(lambda: miles(stream) == [1, 2, 3])
    assert len(stream.events) == 3


def test_busy_stream_ends_in_time(redis_url: str, runs: Runs) -> None:
    """A stream that always has more to send ends at its age like any other."""
    run = runs.start(n=1)
    settings = {"jobstate.stream_max_age": "10s"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        stream, watching = (server.open(one(run.uuid)) for _ in range(2))
        for each in stream, watching:
            each.at(0)
        stream.stop()
        for n in 2, 3:
            report_and_see(run, n, watching)
        server.pass_time(11)
        stream.resume()
        stream.wait()
        assert miles(stream) == [1, 2]


@pytest.mark.system
def test_most_unsent_bytes(redis_url: str, store: JobStore) -> None:
    """Beyond 64 MiB of unsent bytes, those readers go first that have taken longest,
    and nobody else is hurt.
    """
    paths = [one(put_large(store, 4 * MIB, kind=PublicRun)) for _ in range(20)]
    small = put(store, "queued")
    with pushing(make_config(redis_url), rooms=25) as server:
        watching = server.open(one(small))
        watching.at(0)
        tracemalloc.start()
        try:
            streams: list[Exchange] = []
            for path in paths:
                streams.append(server.open(path, None, is_reading=False))
                wait_for(streams[-1].is_held)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # A job's frame is kept with an id and without.
        assert 60 * MIB < held < 3 * 64 * MIB
        for stream in streams:
            stream.resume()
        # Of 20 at 4 MiB and a little more each, fifteen fit.
        for stream in streams[:5]:
            assert stream.wait().events == []
        for stream in streams[5:]:
            assert stream.at(0).name == "message"
        load_job(store, small).cancel()
        assert watching.wait().events[-1].state["job"]["status"] == "cancelled"


def open_socket(port: int, path: str) -> socket.socket:
    """Ask a server for a stream, with a small buffer for what it sends."""
    sock = socket.socket()
    sock.settimeout(20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: example.com\r\n"
        "Accept: text/event-stream\r\nX-User: alice\r\n\r\n".encode()
    )
    return sock


def receive(sock: socket.socket, wanted: bytes) -> bytes:
    """Receive until something has come."""
    received = b""
    while wanted not in received:
        part = sock.recv(65536)
        assert part
        received += part
    return received


@pytest.mark.system
def test_readers_of_sockets(redis_url: str, store: JobStore) -> None:
    """A reader that stops, one that reads single bytes, and one that resets its
    connection in mid-frame, leave the others alone.
    """
    config = make_config(redis_url)
    large, small = one(put_large(store, 10_000_000)), put(store, "queued")
    with serving_sockets(config) as port:
        stopped, slow, reset = (open_socket(port, large) for _ in range(3))
        watching = open_socket(port, one(small))
        receive(watching, b'"queued"')
        start = b"".join(slow.recv(1) for _ in range(500))
        assert start.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"retry: " in start
        receive(reset, b"data: {")
        linger = struct.pack("ii", 1, 0)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        reset.close()
        load_job(store, small).cancel()
        receive(watching, b'"cancelled"')
        assert len(receive(stopped, b'"result":null}}\n\n')) > 10_000_000
        for sock in stopped, slow, watching:
            sock.close()
