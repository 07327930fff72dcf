"""Streams of batches and of their members."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.store import batches
from pyramid_jobstate.store.tracking import Tracker
from pyramid_jobstate.testing import pass_time
from pyramid_jobstate.web.push import looks
from pyramid_jobstate.web.push.frames import render, viewer_of
from pyramid_jobstate.web.push.hub import Hub
from pyramid_jobstate.web.push.looks import Looks
from tests.hubs import Basket, hub_of
from tests.store.test_batches import Bed
from tests.support import wait_for
from tests.webapp import make_app, make_config, make_request


@pytest.fixture
def hub(store: JobStore) -> Iterator[Hub]:
    with hub_of(store) as hub:
        yield hub


@pytest.fixture
def bed(store: JobStore) -> Bed:
    return Bed(store)


def last(basket: Basket) -> Any:
    """Return the `job` in the last state that a stream was given, or an empty one."""
    return basket.states[-1]["job"] if basket.states else {}


def test_batch_is_streamed(hub: Hub, bed: Bed) -> None:
    basket = Basket(hub, bed.uuid)
    wait_for(lambda: last(basket).get("counts", {}).get("queued") == 3)
    bed.end(0)
    wait_for(lambda: last(basket)["counts"]["success"] == 1)
    bed.end(1)
    bed.end(2)
    assert basket.is_over.wait(10)
    assert last(basket)["status"] == "success"


def test_waiting_member_hears_that_its_batch_was_cancelled(hub: Hub, bed: Bed) -> None:
    waiting, running = Basket(hub, bed.uuids[0]), Basket(hub, bed.uuids[1])
    wait_for(lambda: last(waiting).get("status") == "queued")
    bed.run(1)
    wait_for(lambda: last(running).get("status") == "working")
    assert bed.load().cancel()
    wait_for(lambda: last(waiting)["status"] == "cancelled")
    assert waiting.is_over.wait(10)
    assert last(running)["status"] == "working"
    running.leave()


def test_dead_member_of_a_batch_that_was_cancelled(hub: Hub, store: JobStore) -> None:
    """Its worker is silent: its stream says what a poll says."""
    bed = Bed(store, 1)
    bed.run(0)
    assert bed.load().cancel()
    pass_time(store, 14)
    basket = Basket(hub, bed.uuids[0])
    wait_for(lambda: last(basket).get("status") == "stalled")
    bed.grow_old()
    assert bed.load().cancel()
    wait_for(lambda: last(basket)["status"] == "cancelled")
    assert basket.is_over.wait(10)


def test_member_of_a_batch_that_is_gone(hub: Hub, bed: Bed) -> None:
    bed.client.delete(bed.key())
    basket = Basket(hub, bed.uuids[0])
    wait_for(lambda: last(basket).get("status") == "queued")
    bed.client.set(bed.key(), "another program's")
    bed.end(0)
    assert basket.is_over.wait(10)


def test_batch_that_cannot_be_read(bed: Bed, store: JobStore) -> None:
    """The stream of a member that waits shows what is known, or nothing yet."""
    tracker, uuid = store.track(), bed.uuids[0]
    key, batch = f"jobstate:{uuid}", bed.key()
    reply = {"status": "queued", "batch": bed.uuid}
    assert tracker.keys_of(uuid, {key: reply}) == {key, batch}
    record = tracker.record(uuid, {key: reply, batch: redis.ResponseError("WRONGTYPE")})
    assert record is not None
    assert record.status == "queued"
    with pytest.raises(redis.ConnectionError):
        tracker.record(uuid, {key: reply, batch: redis.ConnectionError("away")})
    assert tracker.keys_of(uuid, {key: {**reply, "status": "success"}}) == {key}
    assert tracker.keys_of(uuid, {key: {}}) == {key}


def test_stream_of_a_silent_batch_looks_at_its_members(
    hub: Hub, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker died between the two writes of an end: nobody polls, and the stream
    finds it.
    """
    monkeypatch.setattr(batches, "PAUSE", 10)
    bed = Bed(store, 1)
    bed.run(0)
    # The view that opens a stream has read the store's clock.
    assert bed.load().status == "working"
    bed.change(0, status="success")
    bed.grow_old(14)
    basket = Basket(hub, bed.uuid)
    wait_for(lambda: last(basket).get("status") == "success")
    assert basket.is_over.wait(10)


def test_stream_of_a_batch_that_was_looked_at(
    hub: Hub, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, a moment ago: the stream does not look again yet."""
    monkeypatch.setattr(batches, "PAUSE", 10**15)
    bed = Bed(store, 1)
    bed.run(0)
    assert bed.load().status == "working"
    bed.change(0, status="success")
    bed.grow_old(14)
    basket = Basket(hub, bed.uuid)
    wait_for(lambda: last(basket).get("status") == "stalled")
    basket.leave()
    assert not bed.client.hexists(bed.key(), "looked")


def test_stream_knows_the_url_of_the_members(redis_url: str, bed: Bed) -> None:
    """It has no request, but knows the URL of the batch."""
    config = make_config(redis_url)
    make_app(config)
    request = make_request(config, "alice")
    batch = request.job_states[bed.uuid]
    viewer = viewer_of(request, batch)
    assert viewer is not None
    frame = render(batch, viewer)
    assert frame is not None
    url = f"http://localhost/job_state/?batch={bed.uuid}"
    assert url.encode() in frame.block
    assert batch.__json__(request)["job"]["members"] == url


class SlowTracker(Tracker):
    """Looks at members until it is told to stop, or fails."""

    def __init__(self) -> None:
        self.looked: list[str] = []
        self.go_on = threading.Event()
        self.fails = False

    def look(self, record: Any) -> None:
        self.looked.append(record.uuid)
        assert self.go_on.wait(10)
        if self.fails:
            raise ValueError("x")


def test_looks_do_not_pile_up(
    bed: Bed,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One of each batch at a time, and few at once. A failure is logged."""
    monkeypatch.setattr(looks, "MOST", 2)
    tracker = SlowTracker()
    all_looks = Looks(tracker)
    records: Any = [store.record(uuid) for uuid in (bed.uuid, *bed.uuids)]
    for record in (records[0], records[0], records[1], records[2]):
        all_looks.look(record)
    wait_for(lambda: len(tracker.looked) == 2)
    tracker.fails = True
    tracker.go_on.set()
    wait_for(lambda: not all_looks._batches)
    assert tracker.looked == [records[0].uuid, records[1].uuid]
    assert "cannot be read" in caplog.text
    all_looks.look(records[2])
    wait_for(lambda: len(tracker.looked) == 3)


def test_looks_without_threads(
    bed: Bed, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may start no more: the next second may."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tracker = SlowTracker()
    all_looks = Looks(tracker)
    record: Any = store.record(bed.uuid)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    all_looks.look(record)
    monkeypatch.undo()
    tracker.go_on.set()
    all_looks.look(record)
    wait_for(lambda: tracker.looked)
