"""Reports of a running job: they reach the store soon, whole and in few round trips."""

import functools
import gc
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import pytest
import redis
from dramatiq import Middleware
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobError, JobStore
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import RunMarathon, job_actor, working
from tests.support import PACKAGE, counted, in_child, load_job, wait_for
from tests.worker.floors import Chore, Ear, Held


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


# What is written when.


@pytest.mark.promise("last-value-lands")
@pytest.mark.promise("end-is-true")
def test_end_is_stored_before_the_message_is_acknowledged(make_floor):
    """The end carries all that was reported. After it, nothing can be reported."""
    floor = make_floor(interval=60)
    found: list[Any] = []

    class Look(Middleware):
        def after_nack(self, broker: Any, message: Any) -> None:
            found.append(floor.load(message.message_id))

    floor.broker.add_middleware(Look())
    held = floor.begin()
    held.job_state.set_progress_metrics(miles=26, name="Åsa")
    held.job_state.set_progress(3, 26, "miles", "Done")
    held.end(ValueError("bad"))
    (state,) = found
    assert (state.status, state.error) == ("error", JobError("ValueError", "bad"))
    assert state.progress_metrics == {"miles": 26, "name": "Åsa"}
    assert (state.progress.done, state.message) == (3, "Done")
    with pytest.raises(RuntimeError, match=r"has ended: it can no longer report\."):
        held.job_state.set_message("late")


def test_what_an_actor_returns_is_never_shown(floor, client):
    """Nor is it stored."""
    floor.scripts["a"] = lambda job_state: "hush"
    message = floor.post("a")
    floor.work()
    request = floor.request()
    shown = request.job_states[message.message_id].__json__(request)
    assert shown["job"]["status"] == "success"
    stored: Any = client.hgetall(f"jobstate:{message.message_id}")
    assert "hush" not in str(shown) + str(stored)


def test_clock_of_the_host_does_not_matter(make_floor, client, monkeypatch):
    """All times are Redis's."""
    time_of_redis: Any = client.time()
    monkeypatch.setattr(time, "time", lambda: 10**9)
    held = make_floor(heartbeat=0.05).begin()
    state = held.load()
    assert state.status == "working"
    assert abs(state.started_at.timestamp() - time_of_redis[0]) < 60


def test_tight_loop_costs_few_writes(make_floor, proxy):
    """However often a job reports, the store gets one write an interval."""
    floor = make_floor(JobStore(proxy.url), interval=0.05)
    held = floor.begin()
    ear = Ear(proxy)
    begun = time.monotonic()
    count = 0
    while time.monotonic() < begun + 0.25:
        for _ in range(1000):
            count += 1
            held.job_state.set_progress_metric("count", count)
    assert held.job_state.flush(10)
    seconds = time.monotonic() - begun
    assert 1 < len(ear.about(held.uuid)) <= seconds / 0.05 + 2
    assert held.load().progress_metrics == {"count": count}


def test_all_jobs_are_written_together(make_floor, proxy):
    """The reports of many jobs are written in one round trip."""
    floor = make_floor(JobStore(proxy.url), interval=3600, threads=12)
    jobs = [floor.begin() for _ in range(12)]
    # The first report may load what the server needs for it.
    jobs[0].job_state.set_message("here we go")
    assert jobs[0].job_state.flush(10)
    for held in jobs:
        held.job_state.set_message("on we go")
    ear = Ear(proxy)
    # A worker that stops writes what is left.
    floor.stop(timeout=1)
    written = ear.about(*(held.uuid for held in jobs))
    assert len(written) == 1
    assert all(held.load().message == "on we go" for held in jobs)


@pytest.mark.promise("silent-job-is-stalled")
def test_silent_job_reads_stalled_until_it_is_heard_of(make_floor, store):
    """It does after 15 seconds without a sign of life, and works after a report."""
    floor = make_floor(heartbeat=3600)
    held = floor.hold(floor.post())
    queued_at = held.load().queued_at
    floor.start()
    held.wait()
    assert held.reads("working") and held.load().queued_at == queued_at
    pass_time(store, 10)
    assert held.reads("working")
    pass_time(store, 6)
    assert held.reads("stalled")
    held.job_state.set_message("On we go")
    assert held.job_state.flush(10)
    assert held.reads("working")


def test_silent_job_reads_working(make_floor, store):
    """Its beats keep a job that reports nothing from stalling, and are no updates."""
    held = make_floor(heartbeat=0.05).begin()
    pass_time(store, store.stalled_after + 1)
    updated = held.load().updated_at
    wait_for(lambda: held.reads("working"))
    assert held.load().updated_at == updated


@pytest.mark.promise("time-left-ends")
def test_quiet_job_tells_no_time_left(make_floor, store, alice):
    """Once nothing has been reported for the longer of 15 s and twice the time left, a
    job that beats tells no time left, but since when. The next report brings it back.
    """
    for done in 999, 1:
        held = make_floor(heartbeat=0.05).begin()

        def told(held: Held = held) -> tuple[bool, datetime | None]:
            wait_for(lambda: held.reads("working"))
            job = alice[held.uuid].__json__(alice.request)["job"]
            since = job["quiet_since"] and datetime.fromisoformat(job["quiet_since"])
            return job["progress"]["eta"] is not None, since

        for amount in 0, done:
            held.job_state.set_progress(amount, 1000)
            assert held.job_state.flush(10)
            # At this pace, 999 more take at least 50 s.
            time.sleep(0.05)
        patience = max(15, 2 * held.load().progress.eta)
        assert told() == (True, None)
        pass_time(store, patience / 2)
        assert told() == (True, None)
        pass_time(store, patience / 2 + 1)
        assert told() == (False, held.load().updated_at)
        held.job_state.set_progress(done + 0.5, 1000)
        assert held.job_state.flush(10)
        assert told() == (True, None)


@pytest.mark.parametrize("lifetime", ["stalled_after", "active_expire_in"])
def test_beats_come_as_often_as_the_store_needs(make_floor, store, proxy, lifetime):
    """By default two come before a job would stall, or its record expire."""
    held = make_floor(JobStore(proxy.url).replace(**{lifetime: 0.9})).begin()
    pass_time(store, store.stalled_after + 1)
    wait_for(lambda: held.reads("working"), 3)
    beats: list[float] = []

    def judge(request: bytes) -> str:
        if held.uuid.encode() in request:
            beats.append(time.monotonic())
        return "pass"

    proxy.judge = judge
    # On a busy machine some may be late.
    wait_for(lambda: any(t - beats[n] < 0.9 for n, t in enumerate(beats[2:])), 5)


@pytest.mark.promise("unfinished-jobs-are-kept")
def test_running_job_does_not_expire(make_floor, store):
    """Each report of a running job renews its record."""
    brief = store.replace(active_expire_in=1000)
    held = make_floor(brief, heartbeat=3600).begin()
    for mile in range(3):
        held.job_state.set_progress_metric("miles_run", mile)
        assert held.job_state.flush(10)
        pass_time(brief, 900)
        assert held.load().progress_metrics == {"miles_run": mile}


def test_job_that_runs_for_long_stays_listed(make_floor, store):
    """It runs longer than `active_expire_in`, while new jobs trim the lists."""
    brief = store.replace(active_expire_in=5)
    held = make_floor(brief, heartbeat=0.05).begin()
    time.sleep(2.7)
    # More than five seconds since it began, but not since its place was renewed.
    pass_time(brief, 3.5)
    wait_for(lambda: held.reads("working"))
    put_job(brief, Chore, "queued")
    wait_for(
        lambda: [j.uuid for j in brief.list(status="working").items] == [held.uuid], 5
    )


# Waiting for it.


def test_flush_waits_for_a_write_that_has_its_values(make_floor, proxy):
    """A write that was under way when flush() was called does not count."""
    floor = make_floor(JobStore(redis.Redis.from_url(proxy.url)), interval=60)
    held = floor.begin()
    job_state = held.job_state
    flushed: list[bool] = []

    def judge(request: bytes) -> str:
        if b"the first" in request:
            # It may be sent again, with the script that the server lacks.
            proxy.judge = lambda request: "pass"
            job_state.set_message("the second")
            thread = in_thread(lambda: flushed.append(job_state.flush(10)))
            # The second flush waits by now, or will wait for the next write.
            thread.join(0.2)
        return "pass"

    proxy.judge = judge
    job_state.set_message("the first")
    assert job_state.flush(10)
    wait_for(lambda: flushed)
    assert flushed == [True]
    assert held.load().message == "the second"


@pytest.mark.promise("counters-are-exact")
def test_sixteen_threads_lose_nothing(make_floor, proxy):
    """While replies are lost, each last value is stored, and each count is exact."""
    threads, rounds = 16, 40
    floor = make_floor(JobStore(proxy.url), interval=0.002)
    held = floor.begin()
    job_state, seen = held.job_state, 0

    def judge(request: bytes) -> str:
        nonlocal seen
        seen += 1
        return "lose" if seen % 4 == 0 else "pass"

    proxy.judge = judge
    barrier = threading.Barrier(threads)

    def work(number: int) -> None:
        barrier.wait()
        for i in job_state.track(range(rounds), unit=f"rows of {number}"):
            job_state.set_progress_metric(f"own {number}", i)
            job_state.set_progress_metrics({f"pair {number}": [i], "shared": number})
            job_state.increment_progress_metric("count")
            job_state.increment_progress_metric(f"count {number % 4}", 2)
            job_state.set_message(f"{number}: {i}")
            job_state.append_log(f"{number}: {i}")
            if i % 20 == number:
                job_state.flush(0.01)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        started = [in_thread(functools.partial(work, n)) for n in range(threads)]
        for thread in started:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    proxy.judge = lambda request: "pass"
    held.end()
    wait_for(lambda: held.reads("success"))
    state, metrics = held.load(), held.load().progress_metrics
    assert metrics == job_state.progress_metrics
    assert metrics["count"] == threads * rounds
    for number in range(4):
        assert metrics[f"count {number}"] == threads * rounds // 4 * 2
    for number in range(threads):
        assert metrics[f"own {number}"] == rounds - 1
        assert metrics[f"pair {number}"] == [rounds - 1]
    assert (state.message, state.log) == (job_state.message, job_state.log)
    assert counted(state.progress) == counted(job_state.progress)


# Where two threads meet.


def one_step(job_state: Any) -> Callable[[], object]:
    """Return a call that takes a tracked loop from its second item to the third."""
    steps = job_state.track(range(3))
    next(steps)
    next(steps)
    return lambda: next(steps)


CALLS: dict[str, tuple[Callable[[Any], Callable[[], object]], dict[str, Any]]] = {
    "known": (lambda j: lambda: j.set_progress_metric("a", 2), {"a": 2}),
    "several": (lambda j: lambda: j.set_progress_metrics(a=2, b=2), {"a": 2, "b": 2}),
    "increment": (lambda j: lambda: j.increment_progress_metric("a"), {"a": 2}),
    "progress": (
        lambda j: lambda: j.set_progress(1, 2, "rows", "Reading"),
        {"progress": (1, 2, "rows"), "message": "Reading"},
    ),
    "track": (one_step, {"progress": (2, 3, None)}),
    "log": (lambda j: lambda: j.append_log("line"), {"log": ["line"]}),
}


def seen(held: Held, names: Mapping[str, Any]) -> dict[str, Any]:
    state = held.load()
    progress = counted(state.progress)
    found = {"message": state.message, "progress": progress, "log": state.log}
    return {name: {**state.progress_metrics, **found}.get(name) for name in names}


class Steps:
    """Does something at one line of the package that a thread runs."""

    count = 0

    def at(self, point: int, act: Callable[[], object]) -> None:
        self.count, self._point, self._act = 0, point, act

    def trace(self, frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return None
        if event == "line":
            if self.count == self._point:
                self._act()
            self.count += 1
        return self.trace


@pytest.mark.promise("values-of-one-call-appear-together")
@pytest.mark.parametrize("name", CALLS)
def test_flush_at_any_line_of_a_call_loses_nothing(make_floor, name):
    """What the call sets is stored, all of it or nothing at a time."""
    prepare, expected = CALLS[name]
    floor, steps, point = make_floor(interval=3600), Steps(), 0
    while point <= steps.count:
        held = floor.begin()
        job_state = held.job_state
        job_state.set_progress_metrics(a=1, b=1)
        call = prepare(job_state)
        assert job_state.flush(10)
        between = [seen(held, expected), expected]

        def write(held: Held = held, between: list[Any] = between) -> None:
            assert held.job_state.flush(10)
            between.append(seen(held, expected))

        steps.at(point, write)
        before = sys.gettrace()
        sys.settrace(steps.trace)
        try:
            call()
        finally:
            sys.settrace(before)
        assert job_state.flush(10)
        assert seen(held, expected) == expected, point
        if len(between) > 2:
            assert between[2] in between[:2], point
        held.end()
        point += 1
    assert point > 3


# Stopping.


def test_finalizer_may_flush_anywhere(make_floor):
    """A garbage collection may come whenever a thread makes an object, such as that
    which writes, and close a generator that flushes at its end.
    """
    held = make_floor(interval=0.001).begin()
    flushed: list[bool] = []

    def flush(phase: str, _: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            flushed.append(held.job_state.flush(0.001))

    usual = gc.get_threshold()
    kept: list[Any] = []
    gc.callbacks.append(flush)
    try:
        gc.set_threshold(3)
        while len(flushed) < 1000:
            # The next objects that another thread makes are too many.
            kept.append([kept])
            time.sleep(0.0001)
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(flush)
    held.job_state.set_message("on we go")
    assert held.job_state.flush(10)


def test_worker_that_stops_writes_what_is_left(make_floor):
    """Its threads end with its last job, and the next worker begins anew."""
    threads = threading.active_count()
    floor = make_floor(interval=60)
    held = floor.begin()
    held.job_state.set_message("last words")
    floor.stop(timeout=1)
    assert (held.load().status, held.load().message) == ("working", "last words")
    held.end()
    assert held.reads("success")
    floor.start()
    floor.stop()
    wait_for(lambda: threading.active_count() <= threads)
    held = floor.begin()
    held.job_state.set_message("on we go")
    assert held.job_state.flush(10)
    assert held.load().message == "on we go"


def test_worker_that_stops_leaves_the_jobs_of_others_alone(floor):
    """The jobs of another worker in its process still report, and hear of a cancel."""
    held = floor.begin()
    floor.new_worker().stop()
    held.job_state.set_message("on we go")
    wait_for(lambda: held.load().message == "on we go")
    assert held.load().cancel()
    wait_for(lambda: held.job_state.cancel_requested)
    held.end(lambda job_state: job_state.raise_if_cancelled())
    assert held.load().status == "cancelled"


# Forking.


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_job_may_fork(make_floor, logged):
    """In the child it raises, and new jobs are recorded. The parent is undisturbed."""
    floor = make_floor(interval=3600)
    held = floor.begin()
    held.job_state.set_progress_metric("miles", 1)
    assert held.job_state.flush(10)
    held.job_state.set_message("of the parent")
    found: list[Any] = []

    def child() -> str:
        with pytest.raises(RuntimeError, match="runs in another process"):
            held.job_state.set_progress_metric("miles", 2)
        assert not held.job_state.flush()
        broker = StubBroker()
        broker.add_middleware(floor.middleware)

        @job_actor(broker=broker)
        def childs(*, job_state: RunMarathon) -> None:
            job_state.set_progress_metric("miles", 3)
            assert job_state.flush(10)

        sent: Any = childs.send()
        with working(broker):
            wait_for(lambda: load_job(floor.store, sent.message_id).is_success)
        return "done"

    def fork(job_state: Chore) -> None:
        found.extend([in_child(child), held.load()])
        job_state.set_progress_metric("miles", 4)

    held.end(fork)
    said, state = found
    assert said == "done"
    assert (state.status, state.message) == ("working", None)
    jobs = floor.store.list(status="success").items
    (childs,) = [job for job in jobs if job.uuid != held.uuid]
    assert childs.progress_metrics == {"miles": 3}
    assert held.load().progress_metrics == {"miles": 4}
    assert held.load().message == "of the parent"
    assert not logged()


def test_time_left_is_reckoned_at_the_pace_so_far(floor):
    """It is unknown until some of a known total is done. A new loop begins anew."""
    held = floor.begin()
    ends = iter(range(10**6))

    def eta(done: float, total: float | None) -> Any:
        held.job_state.set_progress(done, total, f"{next(ends)}")
        assert held.job_state.flush(10)
        progress = held.load().progress
        return progress and progress.eta

    def passed(since: float) -> float:
        return time.monotonic() - since

    assert eta(0, None) is None and eta(5, None) is None
    begun = time.monotonic()
    assert eta(0, 100) is None and eta(0, 100) is None
    begun_by = time.monotonic()
    while passed(begun_by) < 0.3:
        time.sleep(0.01)
    at_least = passed(begun_by) * 9
    assert at_least - 0.1 <= eta(10, 100) <= passed(begun) * 9 + 0.1
    assert eta(100, 100) == eta(101, 100) == 0
    # It falls back: the first loop no longer counts.
    again = time.monotonic()
    assert eta(0, 100) is None
    assert eta(1, 100) <= passed(again) * 99 + 0.1
    assert eta(1, 1000) is None
