"""What a worker does while its store is away, slow or empty, and afterwards."""

import contextlib
import gc
import logging
import threading
import time
import tracemalloc
from typing import Any

import pytest
from dramatiq import Middleware

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import away, pass_time
from tests.actor.calls import REPORTS
from tests.jobs import Alarm
from tests.support import crowded, wait_for
from tests.worker.floors import Held, fail

# The log, and who waits.


@pytest.mark.promise("outage-is-logged-once")
def test_outage_is_one_warning_and_one_info(make_floor, own, said):
    """However much fails, one warning is logged, and one info at its end."""
    held = make_floor(own).begin()
    lines: list[str] = []

    def is_over() -> bool:
        lines.extend(said())
        return len(lines) > 1

    for _ in range(2):
        with away(own):
            for number in range(10):
                held.job_state.set_progress_metric("number", number)
                assert not held.job_state.flush(0.01)
        wait_for(lambda: held.job_state.flush(10))
        wait_for(is_over)
        first, second = lines
        lines.clear()
        assert first.startswith("The job state store does not accept updates")
        assert second == "The job state store accepts updates again."
    assert held.load().progress_metrics == {"number": 9}


def test_flush_says_whether_all_is_stored(make_floor, slow, relay):
    """It waits no longer than its timeout, and may wait for ever."""
    held = make_floor(slow, interval=60).begin()
    with relay.frozen():
        held.job_state.set_message("two")
        for timeout in (0.05, 0, -1):
            assert not held.job_state.flush(timeout)
    assert held.job_state.flush(float("inf"))
    assert held.load().message == "two"


@pytest.mark.promise("actor-outlives-the-store")
def test_starts_and_ends_wait_for_a_second(make_floor, slow, relay):
    """Not for the connection's timeout. Both are written once the store answers. No
    report waits or raises.
    """
    floor = make_floor(slow, heartbeat=3600)
    floor.start()
    begun = time.monotonic()
    with relay.frozen():
        held = floor.begin(floor.message())
        waited = time.monotonic() - begun
        held.end()
        assert floor.store.load(held.uuid) is None
        assert 1 <= waited < 5
    wait_for(lambda: held.reads("success"), 4)
    held = floor.begin()
    held.job_state.flush(10)
    begun = time.monotonic()
    with relay.frozen():
        for report in REPORTS.values():
            report(held.job_state)
        assert not held.job_state.flush(0.1)
        held.end()
        assert 1 <= time.monotonic() - begun < 5
    wait_for(lambda: held.reads("success"), 4)


def test_nobody_waits_for_a_store_that_has_been_away(make_floor, slow, relay):
    """Starts and ends wait for it no longer, but for one a second."""
    floor = make_floor(slow, threads=1)
    floor.start()
    with relay.frozen():
        floor.begin(floor.message()).end()
        begun = time.monotonic()
        sent = [floor.message(str(number)) for number in range(30)]
        for message in sent:
            floor.deliver(message)
        wait_for(lambda: sum(floor.ran.values()) == 31 and floor.is_idle())
        assert time.monotonic() - begun < 15
    wait_for(lambda: all(map(floor.store.load, (m.message_id for m in sent))))
    wait_for(lambda: {*floor.statuses(*sent)} == {"success"})


def test_senders_ask_a_store_that_has_failed_once_a_second(
    make_floor, proxy, monkeypatch
):
    """200 sends take as long as one, and all leave. Once it is back, each is noted."""
    floor = make_floor(JobStore(proxy.url))
    proxy.judge = lambda request: "refuse"
    begun = time.monotonic()
    clock = [begun]
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        floor.post()
        once = proxy.faults["refuse"]
        for clock[0], asked in (begun + 0.9, once), (begun + 1.1, 2 * once):
            for _ in range(100):
                floor.post()
            assert proxy.faults["refuse"] == asked > 0
    assert len(floor.waiting()) == 201
    proxy.judge = lambda request: "pass"
    wait_for(lambda: floor.store.load(floor.post().message_id))
    sent = [floor.post() for _ in range(3)]
    assert floor.statuses(*sent) == ["queued"] * 3


def test_full_pool_is_no_outage(make_floor, redis_url, logged):
    """While no connection is free, jobs run and end, and messages leave. The store is
    not taken to be away: as soon as one is free, all is written, and the next send has
    its record. The log says once what is so.
    """
    own = JobStore(redis_url, max_connections=1)
    floor = make_floor(own=own)
    held, late = floor.begin(), floor.begin()
    with crowded(own):
        held.job_state.set_message("half way")
        assert not held.job_state.flush(0.6)
        held.end()
        unseen = floor.post()
        wait_for(lambda: floor.is_idle(but=1))
    sent = floor.post("late")
    assert floor.load(sent.message_id).uuid == sent.message_id
    wait_for(lambda: floor.store.load(unseen.message_id))
    wait_for(lambda: {*floor.statuses(held.message, unseen, sent)} == {"success"})
    late.end()
    assert late.reads("success")
    assert held.load().message == "half way"
    (line,) = logged()
    assert line.startswith("All 1 connections to the store are in use. Updates wait")


# What it missed.


@pytest.mark.promise("updates-change-nothing-twice")
def test_lost_reply_is_made_good(make_floor, proxy):
    """If a change may be stored, it is written again, even back to the value before. If
    it is not, it is written as soon as the store answers, though the job is silent.
    """
    held = make_floor(JobStore(proxy.url), interval=0.002, heartbeat=3600).begin()
    job_state = held.job_state
    for value in (None, 7, [1, 2]):
        job_state.set_progress_metric("a", value)
        job_state.set_message("before")
        assert job_state.flush(10)
        proxy.lose_replies('"in between"')
        job_state.set_progress_metric("a", False)
        job_state.set_message("in between")
        wait_for(lambda: held.load().message == "in between")
        job_state.set_progress_metric("a", value)
        job_state.set_message("before")
        proxy.judge = lambda request: "pass"
        wait_for(lambda: job_state.flush(10))
        state = held.load()
        assert (state.progress_metrics["a"], state.message) == (value, "before")
    proxy.judge = lambda request: "refuse"
    job_state.set_message("last")
    # More than the client library tries by itself.
    wait_for(lambda: proxy.faults["refuse"] > 10, 10)
    proxy.judge = lambda request: "pass"
    wait_for(lambda: held.load().message == "last")


@pytest.mark.promise("empty-store-gets-running-jobs")
def test_store_that_came_back_empty_is_told_everything(make_floor, client):
    """All that a running job has reported is written, even if it has nothing new."""
    floor = make_floor(heartbeat=0.05)
    held = floor.begin(job_owner="alice")
    held.job_state.set_progress_metrics(miles=3, names=["a", "b"])
    held.job_state.set_progress(3, 26, "miles", "On we go")
    held.job_state.append_log("line")
    assert held.job_state.flush(10)
    before = held.load()
    client.flushall()
    wait_for(lambda: held.reads("working"))
    state = held.load()
    for name in (
        *("kind", "actor", "owner", "attempt", "job_params"),
        *("progress_metrics", "progress", "message", "log"),
    ):
        assert getattr(state, name) == getattr(before, name), name
    assert state.started_at is not None and before.started_at is not None
    assert abs((state.started_at - before.started_at).total_seconds()) < 0.5
    wait_for(lambda: floor.store.list(status="working").items)


@pytest.mark.promise("ends-outlive-an-outage")
def test_end_that_waits_is_written_to_an_empty_store(make_floor, own, client, logged):
    """It has all values and, if the job has failed, its failure."""
    floor = make_floor(own)
    held, failing = floor.begin(), floor.begin()
    held.job_state.set_progress_metric("miles", 3)
    assert held.job_state.flush(10)
    with away(own):
        held.job_state.set_progress_metric("more", 4)
        held.end()
        failing.end(ValueError("a cramp"))
        client.flushall()
    wait_for(lambda: held.reads("success") and failing.reads("error"))
    assert held.load().progress_metrics == {"miles": 3, "more": 4}
    failures = floor.store.failures(failing.uuid)
    assert failures.traceback.endswith("ValueError: a cramp\n")
    assert failures.message and len(failures.tries) == 1
    assert not logged(logging.ERROR)


def test_values_that_a_failover_lost_are_written_again(floor, client):
    """The next report brings all that the run has reported."""
    held = floor.begin()
    job_state, key = held.job_state, f"jobstate:{held.uuid}"
    job_state.set_progress_metric("first", 1)
    assert job_state.flush(10)
    before: Any = client.dump(key)
    job_state.set_progress_metrics(rows=42, file="out.csv")
    job_state.set_message("written")
    assert job_state.flush(10)
    client.restore(key, 60_000, before, replace=True)
    job_state.set_progress_metric("last", 1)
    assert job_state.flush(10)
    metrics = held.load().progress_metrics
    assert (metrics["rows"], metrics["file"]) == (42, "out.csv")
    assert held.load().message == "written"


@pytest.mark.promise("expired-record-stays-away")
def test_expired_record_is_not_created_again(make_floor, store, client, logged):
    """A run was frozen so long that its job may have ended elsewhere and expired."""
    held = make_floor(store.replace(expire_in=0.2), heartbeat=3600).begin()
    assert held.job_state.flush(10)
    time.sleep(0.25)
    client.delete(f"jobstate:{held.uuid}")
    held.job_state.set_message("late")
    assert not held.job_state.flush(10)
    held.end()
    assert store.load(held.uuid) is None
    assert logged() == [
        f"This process no longer records job {held.uuid}: its record has expired."
    ]


# Shutdown.


def end_all(jobs: list[Held]) -> None:
    for held in jobs:
        held.leave()
    for held in jobs:
        assert held.settled.wait(30)


def test_worker_that_stops_waits_for_a_store_that_comes_back(make_floor, proxy, logged):
    """Ends that could not be written are written at its shutdown."""
    floor, stopping = make_floor(JobStore(proxy.url)), threading.Event()

    class Stopping(Middleware):
        def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
            stopping.set()

    floor.broker.add_middleware(Stopping())
    jobs = [floor.begin() for _ in range(3)]
    proxy.judge = lambda request: "refuse"
    for number, held in enumerate(jobs):
        held.job_state.set_progress_metric("number", number)
    end_all(jobs)
    stopped = threading.Thread(target=floor.stop, daemon=True)
    stopped.start()
    assert stopping.wait(10)
    refused = proxy.faults["refuse"]
    # It tries more than once.
    wait_for(lambda: proxy.faults["refuse"] > refused + 4)
    proxy.judge = lambda request: "pass"
    stopped.join(20)
    assert not stopped.is_alive()
    for number, held in enumerate(jobs):
        state = held.load()
        assert state.status == "success"
        assert state.progress_metrics == {"number": number}
    assert not logged(logging.ERROR)


@pytest.mark.promise("worker-stops-in-time")
def test_worker_that_stops_gives_up_in_time(make_floor, own, logged):
    """It takes some seconds. One line counts the lost outcomes, not running jobs. A job
    whose outcome is lost reads stalled or, if it had also begun meanwhile, as before.
    """
    floor = make_floor(own, threads=5)
    floor.broker.add_middleware(alarm := Alarm())
    late = floor.post("late")
    floor.take(late)
    floor.scripts["again"] = lambda _: fail(ValueError("again"))
    again = floor.stubborn.send("again")
    jobs = [floor.begin() for _ in range(3)]
    wait_for(lambda: floor.statuses(again) == ["retrying"])
    del floor.scripts["again"]
    floor.begin().job_state.set_message("still at work")
    with away(own):
        alarm.ring()
        floor.deliver(late)
        wait_for(lambda: (floor.ran["late"], floor.ran["again"]) == (1, 2))
        end_all(jobs)
        begun = time.monotonic()
        floor.stop(timeout=1)
        # It takes six: four are left to a busy machine.
        assert time.monotonic() - begun < 10
    assert logged(logging.ERROR) == [
        "The job state store did not answer in time: 5 job outcomes are lost."
    ]
    pass_time(floor.store, 16)
    assert [held.load().status for held in jobs] == ["stalled"] * 3
    assert floor.statuses(late, again) == ["queued", "retrying"]


# Memory.


@pytest.mark.system
def test_memory_is_bounded_while_the_store_is_away(make_floor, own, logged):
    """Of ends that take over 64 MiB the oldest are dropped, with one error. The others,
    and running jobs, are stored once it is back, in round trips of limited length.
    """
    text = "x" * 16_000

    def fill(job_state: Any) -> None:
        job_state.set_progress_metrics({str(i): text for i in range(16)})

    floor = make_floor(own, heartbeat=0.2, threads=2)
    floor.scripts["large"] = fill
    running = floor.begin()
    with away(own):
        sent = [floor.message("large") for _ in range(300)]
        for message in sent:
            floor.deliver(message)
            wait_for(lambda: len(floor.waiting()) < 8)
        wait_for(lambda: floor.is_idle(but=1))
        (said,) = wait_for(lambda: logged(logging.ERROR))
        assert said == (
            "The job state store has been away for so long that the outcomes of jobs "
            f"are lost, beginning with job {sent[0].message_id}."
        )
        small = [floor.message("small") for _ in range(1100)]
        for message in small:
            floor.deliver(message)
        wait_for(lambda: floor.is_idle(but=1), 60)
    kept = sent[-200:] + small
    wait_for(lambda: all(floor.store.load_many([m.message_id for m in kept])), 60)
    wait_for(lambda: {*floor.statuses(*kept)} == {"success"}, 60)
    assert floor.store.load(sent[0].message_id) is None
    wait_for(lambda: running.reads("working"))
    assert len(logged(logging.ERROR)) == 1


@pytest.mark.system
def test_kept_ends_take_what_will_be_sent(make_floor, own):
    """Thousands of numbers are kept as bytes, and a try to write them leaves nothing
    behind. Once the store is back, they are written in portions.
    """

    def fill(job_state: Any) -> None:
        job_state.set_progress_metrics({f"n{i}": i * 1.5 for i in range(3000)})

    floor = make_floor(own, threads=1)
    floor.scripts["numbers"] = fill
    sent = [floor.message("numbers") for _ in range(100)]
    with contextlib.ExitStack() as stack:
        stack.callback(gc.enable)
        gc.disable()
        with away(own):
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            for message in sent:
                floor.deliver(message)
            floor.start()
            wait_for(floor.is_idle, 60)
            # As objects, each takes 340 kB. A try takes another 16 MB.
            wait_for(lambda: tracemalloc.get_traced_memory()[0] < len(sent) * 100_000)
            tracemalloc.reset_peak()
        wait_for(lambda: floor.store.load(sent[-1].message_id), 60)
        _, peak = tracemalloc.get_traced_memory()
    assert peak < 50_000_000
    wait_for(lambda: floor.statuses(sent[-1]) == ["success"])
    for message in sent[0], sent[-1]:
        assert len(floor.load(message.message_id).progress_metrics) == 3000
