"""Streams whose clients read slowly, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from tests.asgi import Exchange, Server, pushing
from tests.running import Runs
from tests.support import load_job, wait_for
from tests.web.streaming import (
    PublicRun,
    batch,
    one,
    put,
    put_members,
    report,
    statuses,
    told,
    wait_until,
)
from tests.webapp import make_config

#: Bytes that a stream is given at a time, unless one event is larger.
CHUNK = 64 * 1024


def put_large(store: JobStore, size: int, **options: Any) -> str:
    """Store a job whose viewers get so many bytes, and return its uuid."""
    return put(store, params={"miles": "x" * size}, **options)


def test_stopped_reader_gets_the_newest_state(
    pushed: Server, runs: Runs, client: redis.Redis
) -> None:
    """A reader that stops holds one frame, and then gets the newest state alone, even
    if its record went missing just then. Others get each change at once.
    """
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


def test_large_event_comes_in_pieces(pushed: Server, store: JobStore) -> None:
    """An event of more than 64 KiB arrives whole, in pieces of at most that."""
    job = put_large(store, 300_000)
    stream = pushed.open(one(job))
    assert len(stream.at(0).state["job"]["params"]["miles"]) == 300_000
    assert max(stream.sending) == CHUNK
    load_job(store, job).cancel()
    assert len(stream.at(1).state["job"]["params"]["miles"]) == 300_000


def test_first_events_of_many_jobs(pushed: Server, store: JobStore) -> None:
    """A reader of many jobs, even ended ones, holds 64 KiB and gets all in the end."""
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


def test_chunks_of_a_stopped_reader(pushed: Server, store: JobStore) -> None:
    """Changes that a reader has missed come together, in chunks of at most 64 KiB, of
    which only the last event has an id.
    """
    made, uuids = put_members(store, 10, 20_000)
    stream = pushed.watch(batch(*uuids), count=10)
    stream.stop()
    made.cancel()
    wait_for(lambda: sum(stream.sending) > 220_000)
    stream.resume()
    stream.wait()
    assert statuses(stream)[10:] == ["cancelled"] * 10
    ids = [event.id for event in stream.events[10:]]
    chunks = " ".join("_" if found is None else "id" for found in ids).split("id")
    assert max(len(chunk) for chunk in chunks) < len("_ _ _ ")


def test_reader_of_nothing_is_dropped(pushed: Server, store: JobStore) -> None:
    """A reader gets no more when it takes nothing for a minute, unless it has all."""
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


def test_busy_stream_ends_in_time(redis_url: str, runs: Runs) -> None:
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
def test_most_unsent_bytes(redis_url: str, store: JobStore) -> None:
    """Beyond 64 MiB of unsent bytes, only those go that have taken longest."""
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
