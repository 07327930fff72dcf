"""Recorder against a real server that may stop, freeze or lose its data."""

import functools
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from dramatiq.middleware import Interrupt

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import End, Failure, NewJob, Update
from pyramid_jobstate.job.phases import phase_of
from pyramid_jobstate.job.record import JobError, JobInfo, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.store import connection, scripts, trouble
from pyramid_jobstate.testing import pass_time
from pyramid_jobstate.worker import backlog, flush, outage
from pyramid_jobstate.worker import recorder as recorder_module
from pyramid_jobstate.worker.recorder import Recorder
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.interrupts import interrupt
from tests.jobs import messages, new_id
from tests.support import INFO, ROOT, SENT, frozen, key_of, unmeasured, wait_for

LOGGER = "pyramid_jobstate.worker"


@pytest.fixture
def store(server: EmbeddedServer) -> JobStore:
    """Override: a store in the test's own server, which it may stop or freeze."""
    return JobStore(server.url)


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


MakeRecorder = Callable[..., Recorder]


@pytest.fixture
def make_recorder(store: JobStore) -> Iterator[MakeRecorder]:
    """Makes recorders, and stops them at the end of the test."""
    made = []

    def make(store: JobStore = store, **options: Any) -> Recorder:
        made.append(Recorder(store, **{"interval": 0.02, **options}))
        return made[-1]

    yield make
    logging.disable()
    for recorder in made:
        recorder._backlog._runs.clear()
        recorder.stop(timeout=0.1)
    logging.disable(logging.NOTSET)


@pytest.fixture
def recorder(make_recorder: MakeRecorder) -> Recorder:
    return make_recorder()


class Job(JobState):
    """A job that a recorder writes."""

    kind = "tests.worker.test_recorder.Job"

    def __init__(self, recorder: Recorder, uuid: str = "", info: JobInfo = INFO):
        self.unsaved = Unsaved(uuid or new_id(), Run(), info)
        self.recorder = recorder
        super().__init__(Record(self.unsaved.uuid, info.fields()), self.unsaved.run)

    def begin(self) -> "Job":
        self.recorder.begin(self.unsaved)
        return self

    def end(self, status: str = "success", **options: Any) -> bool:
        return self.recorder.end(self.unsaved, End(status, **options))

    def load(self) -> JobState:
        """Return what a viewer sees."""
        state = self.recorder.store.load(self.uuid)
        assert state is not None
        return state

    def reads(self, status: str) -> bool:
        state = self.recorder.store.load(self.uuid)
        return state is not None and state.status == status

    @property
    def is_recorded(self) -> bool:
        return self.unsaved.run.token in self.recorder._backlog._runs


def away(recorder: Recorder) -> bool:
    return recorder._flush.failures > 0


def spy_on_writes(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> list[Sequence[Update]]:
    """Return a list to which each written batch of updates is added."""
    written: list[Sequence[Update]] = []
    write = store.write

    def spy(updates: Sequence[Update]) -> Any:
        written.append(updates)
        return write(updates)

    monkeypatch.setattr(store, "write", spy)
    return written


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


# Batched writes.


def writes(admin: redis.Redis) -> int:
    stats: Any = admin.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


def test_a_tight_loop_costs_ten_writes_a_second(
    make_recorder: MakeRecorder, admin: redis.Redis
) -> None:
    """However often a job reports, the server gets ten writes a second."""
    job = Job(make_recorder(interval=0.1)).begin()
    before, began, count = writes(admin), time.monotonic(), 0
    while count < 200_000 or time.monotonic() < began + 1:
        for _ in range(1000):
            count += 1
            job.set_progress_metric("count", count)
    assert job.flush(10)
    seconds = time.monotonic() - began
    assert 1 < writes(admin) - before <= seconds * 10 + 2
    assert job.load().progress_metrics == {"count": count}


def test_all_jobs_are_written_together(
    make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The updates of many jobs are written in one round trip."""
    recorder = make_recorder(interval=60)
    jobs = [Job(recorder).begin() for _ in range(50)]
    # The first write loads the script into the server.
    jobs[0].set_message("here we go")
    assert jobs[0].flush(10)
    for job in jobs:
        job.set_message("on we go")
    sent = []

    def spy(client: Any, commands: Any) -> Any:
        sent.append(len(commands))
        return connection.execute(client, commands)

    monkeypatch.setattr(scripts, "execute", spy)
    recorder.stop()
    assert [count for count in sent if count] == [50]
    assert all(job.load().message == "on we go" for job in jobs)


def test_a_pipeline_has_a_limited_length(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More updates than fit into one round trip are written in several."""
    monkeypatch.setattr(flush, "BATCH", 2)
    jobs = [Job(recorder).begin() for _ in range(5)]
    written = spy_on_writes(recorder.store, monkeypatch)
    for job in jobs:
        job.set_message("on we go")
    wait_for(lambda: all(job.load().message == "on we go" for job in jobs))
    assert max(map(len, written)) <= 2


def test_job_that_falls_silent_is_not_written(
    make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all that it has reported is stored, only its heartbeats are."""
    recorder = make_recorder(interval=0.01, heartbeat=3600)
    job = Job(recorder).begin()
    job.set_progress(1, 2)
    assert job.flush(10)
    written = spy_on_writes(recorder.store, monkeypatch)
    ticks = []
    cancels = recorder.store.cancels

    def count(since: int) -> Any:
        ticks.append(since)
        return cancels(since)

    monkeypatch.setattr(recorder.store, "cancels", count)
    wait_for(lambda: len(ticks) > 20)
    assert written == []


def test_a_silent_job_is_reported_as_running(
    make_recorder: MakeRecorder, admin: redis.Redis
) -> None:
    """The heartbeats of a job that reports nothing keep it from stalling."""
    store = JobStore(admin, stalled_after=2)
    job = Job(make_recorder(store, heartbeat=0.05)).begin()
    key = key_of(store, job.uuid)
    before = admin.hmget(key, "seen", "updated")
    seen = set()

    def is_heard_of() -> bool:
        seen.add(admin.hget(key, "seen"))
        return len(seen) > 5

    wait_for(is_heard_of)
    assert job.load().status == "working"
    assert admin.hget(key, "updated") == before[1]


def test_a_job_is_written_when_it_begins(make_recorder: MakeRecorder) -> None:
    """When begin() returns, a viewer sees the job working."""
    job = Job(make_recorder(interval=60), info=INFO._replace(attempt=2)).begin()
    state = job.load()
    assert (state.status, state.attempt, state.owner) == ("working", 2, "alice")
    assert state.job_params == {"miles": 26}


def test_the_end_carries_the_last_values(
    make_recorder: MakeRecorder, admin: redis.Redis
) -> None:
    """When end() returns, everything is stored, and the run has left the backlog."""
    job = Job(make_recorder(interval=60)).begin()
    job.set_progress_metrics(miles=26, name="Åsa")
    job.set_progress(3, 26, "miles", "Done")
    assert job.end("error", error=JobError("ValueError", "bad"))
    state = job.load()
    assert state.status == "error" and state.error == JobError("ValueError", "bad")
    assert state.progress_metrics == {"miles": 26, "name": "Åsa"}
    assert state.progress and state.progress.done == 3 and state.message == "Done"
    assert not job.is_recorded
    with pytest.raises(RuntimeError, match="has ended"):
        job.set_message("late")


def test_flush_says_whether_all_is_stored(
    make_recorder: MakeRecorder, server: EmbeddedServer
) -> None:
    """flush() waits until everything is stored, but no longer than its timeout."""
    job = Job(make_recorder(interval=60)).begin()
    job.set_message("one")
    assert job.flush(10)
    assert job.load().message == "one"
    with frozen(server):
        job.set_message("two")
        assert not job.flush(0.05)
        assert not job.flush(0)
        assert not job.flush(-1)
    assert job.flush(float("inf"))
    assert job.load().message == "two"


def test_waiter_that_gives_up_is_forgotten(
    recorder: Recorder, server: EmbeddedServer
) -> None:
    """Flushes that time out while the store is away leave no waiters behind."""
    job = Job(recorder).begin()
    with frozen(server):
        assert not any(job.flush(0.02) for _ in range(50))
        assert not job.unsaved.waiters
    assert job.flush(10)
    assert not job.unsaved.waiters


def test_sixteen_threads_lose_nothing(recorder: Recorder) -> None:
    """All that sixteen threads of one job report at the same time is stored."""
    job = Job(recorder).begin()

    def work(number: int) -> None:
        for i in range(500):
            job.set_progress_metric(f"own {number}", i)
            job.increment_progress_metric("count")
            job.append_log(f"{number}: {i}")
            if i % 100 == number:
                assert job.flush(10)

    threads = [in_thread(functools.partial(work, n)) for n in range(16)]
    for thread in threads:
        thread.join()
    final, lines = job.progress_metrics, job.log
    assert job.end()
    state = job.load()
    assert state.progress_metrics == final and state.log == lines
    assert final["count"] == 16 * 500
    assert all(final[f"own {number}"] == 499 for number in range(16))


def test_an_end_that_is_seen_early_is_waited_for(
    make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends just as its last update is gathered need not wait for another."""
    monkeypatch.setattr(recorder_module, "PATIENCE", 60.0)
    job = Job(make_recorder(interval=60)).begin()
    done = threading.Event()
    take = Unsaved.take

    def end() -> None:
        if job.end():
            done.set()

    def take_late(unsaved: Unsaved, *times: float) -> Any:
        if unsaved.end is None:
            in_thread(end)
            wait_for(lambda: len(unsaved.waiters) == 2)
        return take(unsaved, *times)

    monkeypatch.setattr(Unsaved, "take", take_late)
    assert job.flush(10)
    assert done.wait(10)
    assert job.load().status == "success"


# Stopping.


def test_stop_writes_what_is_left(make_recorder: MakeRecorder) -> None:
    """A recorder that stops writes everything, and its thread ends."""
    recorder = make_recorder(interval=60)
    job = Job(recorder).begin()
    thread = recorder._thread
    job.set_message("last words")
    recorder.stop()
    assert job.load().message == "last words"
    assert thread is not None and thread.is_alive()
    assert job.end()
    recorder.stop()
    wait_for(lambda: not thread.is_alive())
    recorder.stop()


def test_stop_leaves_the_jobs_of_others_alone(make_recorder: MakeRecorder) -> None:
    """A worker that stops leaves the jobs of another worker in its process alone: they
    still report, and learn of a cancel.
    """
    recorder = make_recorder(heartbeat=0.05)
    job = Job(recorder).begin()
    recorder.stop()
    job.set_message("on we go")
    wait_for(lambda: job.load().message == "on we go")
    wait_for(lambda: recorder.store.cancel(job.uuid, INFO))
    wait_for(lambda: job.unsaved.run.cancel_requested)
    assert job.end("cancelled")


def test_stop_waits_for_a_store_that_comes_back(
    recorder: Recorder, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Ends that could not be written are written at shutdown if the store is back in
    time.
    """
    jobs = [Job(recorder).begin() for _ in range(3)]
    with frozen(server):
        for number, job in enumerate(jobs):
            job.set_progress_metric("number", number)
            assert not job.end()
        stopped = in_thread(lambda: recorder.stop(timeout=60))
        wait_for(lambda: recorder._stop_at is not None)
    stopped.join(20)
    assert not stopped.is_alive()
    for number, job in enumerate(jobs):
        state = job.load()
        assert state.status == "success"
        assert state.progress_metrics == {"number": number}
    assert not messages(caplog, LOGGER, logging.ERROR)


@pytest.mark.parametrize("weather", ["frozen", "gone"])
def test_stop_gives_up_in_time(
    recorder: Recorder,
    server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    weather: str,
) -> None:
    """A store that stays away does not hold up the shutdown; one line counts the lost
    outcomes. A job that has not ended is not lost.
    """
    jobs = [Job(recorder).begin() for _ in range(3)]
    Job(recorder).begin().set_message("still at work")

    def stop() -> None:
        for job in jobs:
            job.end()
        began = time.monotonic()
        recorder.stop(timeout=0.5)
        assert time.monotonic() - began < 5

    if weather == "frozen":
        with frozen(server):
            stop()
    else:
        server.stop()
        stop()
    assert messages(caplog, LOGGER, logging.ERROR) == [
        "The job state store did not answer in time: 3 job outcomes are lost."
    ]


def test_a_job_after_the_stop_begins_a_new_thread(recorder: Recorder) -> None:
    """A stopped recorder starts again with the next job."""
    Job(recorder).begin().end()
    recorder.stop()
    job = Job(recorder).begin()
    job.set_message("on we go")
    wait_for(lambda: job.load().message == "on we go")
    assert job.end()


def test_a_job_that_begins_during_the_stop_is_recorded(
    recorder: Recorder, server: EmbeddedServer
) -> None:
    """A job that begins after the thread was asked to stop, but before it does, is
    recorded.
    """
    first = Job(recorder).begin()
    with frozen(server):
        first.set_message("one")
        assert not first.flush(0.05)
        recorder.stop(timeout=0.01)
        job = Job(recorder)
        began = in_thread(job.begin)
        wait_for(lambda: job.is_recorded)
    began.join(10)
    wait_for(lambda: job.reads("working"))
    job.set_message("two")
    wait_for(lambda: job.load().message == "two")


# Forking.


def test_recorders_share_one_fork_hook(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorders of a process share one fork hook, which keeps none alive."""
    hooks: list[object] = []
    watch_anew = functools.cache(recorder_module.watch_forks.__wrapped__)
    monkeypatch.setattr(recorder_module, "watch_forks", watch_anew)
    monkeypatch.setattr(os, "register_at_fork", lambda **hook: hooks.append(hook))
    recorders = [Recorder(store) for _ in range(3)]
    assert len(hooks) == 1
    dropped = weakref.ref(recorders.pop())
    assert dropped() is None


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_job(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """In a forked child, the job's JobState raises an error, and a new job is recorded;
    the parent goes on undisturbed.
    """
    job = Job(recorder).begin()
    job.set_progress_metric("miles", 1)
    childs = Job(recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.raises(RuntimeError, match="runs in another process"):
                job.set_progress_metric("miles", 2)
            assert not job.flush()
            # As if the child returned from the actor.
            assert not job.end("error")
            assert not recorder._backlog._runs
            childs.begin().set_progress_metric("miles", 3)
            assert childs.flush(10)
            assert childs.end()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert childs.load().status == "success"
    assert childs.load().progress_metrics == {"miles": 3}
    assert job.load().status == "working"
    job.set_progress_metric("miles", 4)
    assert job.end()
    assert job.load().progress_metrics == {"miles": 4}
    assert not messages(caplog, LOGGER)


# The store is away.


def test_an_outage_is_one_warning_and_one_info(
    recorder: Recorder, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """However long an outage, one warning is logged, and one info at its end."""
    caplog.set_level(logging.INFO)
    job = Job(recorder).begin()
    for _ in range(2):
        caplog.clear()
        server.stop()
        for number in range(20):
            job.set_progress_metric("number", number)
            job.flush(0.02)
        server.start()
        assert job.flush(10)
        first, second = messages(caplog, LOGGER, logging.INFO)
        assert first.startswith("The job state store does not accept updates")
        assert second == "The job state store accepts updates again."


def test_memory_is_bounded_while_the_store_is_away(
    make_recorder: MakeRecorder,
    server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended runs that do not fit are dropped, oldest first, with one error; the others,
    and those still running, are stored once the store is back.
    """
    recorder = make_recorder(heartbeat=0.2)
    running = Job(recorder).begin()
    server.stop()
    long = INFO._replace(params='{"text":"%s"}' % ("x" * 2000))
    jobs = [Job(recorder, info=long) for _ in range(40)]
    monkeypatch.setattr(backlog, "MAX_PENDING", 10 * jobs[0].unsaved.size)
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.1)
    for job in jobs:
        job.begin()
        job.end()
    wait_for(lambda: len(recorder._backlog._runs) == 11)
    assert messages(caplog, LOGGER, logging.ERROR) == [
        "The job state store has been away for so long that the outcomes of jobs are "
        f"lost, beginning with job {jobs[0].uuid}."
    ]
    assert not jobs[0].flush()
    server.start()
    wait_for(lambda: all(job.reads("success") for job in jobs[-10:]), 10)
    wait_for(lambda: running.reads("working"))
    assert recorder.store.load(jobs[-11].uuid) is None


def test_the_size_of_what_is_kept_counts_all_that_is_long() -> None:
    """The size counts metrics, parameters, message and log."""
    run = Run()
    unsaved = Unsaved(new_id(), run, INFO._replace(params="x" * 1000))
    sizes = [unsaved.size]
    job_state = JobState(Record(unsaved.uuid, {}), run)

    def fill_log() -> None:
        for _ in range(10):
            job_state.append_log("x" * 200)

    for report in (
        lambda: job_state.set_progress_metric("a", "x" * 1000),
        lambda: job_state.set_message("x" * 1000),
        fill_log,
    ):
        report()
        sizes.append(unsaved.size)
    assert sizes[0] >= 1000
    assert all(b - a >= 1000 for a, b in itertools.pairwise(sizes))


def test_only_the_first_batch_is_tried_while_the_store_is_away(
    recorder: Recorder, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first round trip gets no answer, the others are skipped."""
    monkeypatch.setattr(flush, "BATCH", 1)
    jobs = [Job(recorder).begin() for _ in range(3)]
    server.stop()
    written = spy_on_writes(recorder.store, monkeypatch)
    for job in jobs:
        job.set_message("on we go")
    wait_for(lambda: recorder._flush.failures > 2)
    assert {updates[0].uuid for updates in written} == {jobs[0].uuid}
    server.start()
    wait_for(lambda: all(job.reads("working") for job in jobs))


def slow_store(server: EmbeddedServer, timeout: float = 60) -> JobStore:
    """Return a store whose client has a long timeout."""
    return JobStore(redis.Redis.from_url(server.url, socket_timeout=timeout))


def test_starts_and_ends_wait_for_a_second(
    make_recorder: MakeRecorder, server: EmbeddedServer
) -> None:
    """A store that does not answer delays a job's start and end for a while, but not
    for as long as the connection's timeout.
    """
    job = Job(make_recorder(slow_store(server)))
    began = time.monotonic()
    with frozen(server):
        job.begin()
        assert not job.end()
        assert 1 < time.monotonic() - began < 20
    wait_for(lambda: job.reads("success"))


def test_an_end_that_nobody_waits_for_is_written_soon(
    make_recorder: MakeRecorder, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end set during a write, and no longer waited for, is written right after it
    rather than at the next heartbeat.
    """
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.1)
    job = Job(make_recorder(slow_store(server), heartbeat=3600)).begin()
    with frozen(server):
        assert not job.flush(0.1)
        assert not job.end()
    wait_for(lambda: job.reads("success"))


def test_nobody_waits_for_a_store_that_has_been_away(
    make_recorder: MakeRecorder, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the store has failed, starts and ends no longer wait for it."""
    # A reply that never comes counts as a failure too, within the test's patience.
    recorder = make_recorder(slow_store(server, timeout=5))
    first = Job(recorder).begin()
    server.stop()
    first.set_message("on we go")
    wait_for(lambda: away(recorder))
    monkeypatch.setattr(recorder_module, "PATIENCE", 60.0)
    monkeypatch.setattr(outage, "PAUSE", 60.0)
    jobs = [Job(recorder).begin() for _ in range(3)]
    began = time.monotonic()
    for job in jobs:
        assert not job.end()
    assert time.monotonic() - began < 20
    server.start()
    wait_for(lambda: all(job.reads("success") for job in jobs))


def test_an_end_that_was_kept_goes_before_the_next_try(
    recorder: Recorder,
    server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of a run that failed while the store was away is written before the start
    of the next run.
    """
    first = Job(recorder).begin()
    written = spy_on_writes(recorder.store, monkeypatch)
    with frozen(server):
        first.set_message("one")
        assert not first.end("retrying")
        wait_for(lambda: away(recorder))
        # Until someone waits.
        monkeypatch.setattr(recorder_module, "MAX_PAUSE", 3600)
        monkeypatch.setattr(recorder, "interval", 3600)
        failures = recorder._flush.failures
        wait_for(lambda: recorder._flush.failures > failures)
    second = Job(recorder, first.uuid).begin()
    wait_for(lambda: not first.is_recorded)
    assert [update.token for update in written[-1]] == [
        job.unsaved.run.token for job in (first, second)
    ]
    assert second.is_recorded
    assert len(messages(caplog, LOGGER)) == 1


def test_a_retry_that_begins_elsewhere_does_no_harm(
    make_recorder: MakeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The retry may begin elsewhere before the end of the first run is written."""
    first = Job(make_recorder()).begin()
    second = Job(make_recorder(), first.uuid).begin()
    assert not first.end("retrying")
    assert second.load().status == "working"
    assert not messages(caplog, LOGGER)


def test_a_store_that_came_back_empty_is_told_everything(
    make_recorder: MakeRecorder, admin: redis.Redis
) -> None:
    """If the store comes back empty, a running job is written again with all that it
    has reported, even if it has nothing new.
    """
    job = Job(make_recorder(heartbeat=0.05)).begin()
    job.set_progress_metrics(miles=3, names=["a", "b"])
    job.set_progress(3, 26, "miles", "On we go")
    job.append_log("line")
    assert job.flush(10)
    before = job.load()
    admin.flushall()
    wait_for(lambda: job.reads("working"))
    state = job.load()
    for name in (
        *("kind", "actor", "owner", "attempt", "job_params"),
        *("progress_metrics", "progress", "message", "log"),
    ):
        assert getattr(state, name) == getattr(before, name), name
    assert state.started_at and before.started_at
    assert abs((state.started_at - before.started_at).total_seconds()) < 0.5
    assert admin.zscore("jobstate:active:all", job.uuid)


def test_an_end_that_waits_is_written_to_an_empty_store(
    recorder: Recorder, server: EmbeddedServer
) -> None:
    """A job that ended while the store was away is stored with its end, even if the
    store comes back empty.
    """
    job = Job(recorder).begin()
    job.set_progress_metric("miles", 3)
    assert job.flush(10)
    server.stop()
    job.set_progress_metric("more", 4)
    assert not job.end()
    server.start()
    wait_for(lambda: job.reads("success"))
    assert job.load().progress_metrics == {"miles": 3, "more": 4}


def test_an_expired_record_is_not_created_again(
    make_recorder: MakeRecorder,
    admin: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run frozen for so long that its job may have ended elsewhere and expired does
    not restore the record.
    """
    job = Job(make_recorder(heartbeat=0.05)).begin()
    store = job.recorder.store
    write = store.write

    def write_later(updates: Any) -> Any:
        # The process was frozen for a day, from just before the write.
        job.unsaved.confirmed -= store.expire_in + 1
        admin.delete(key_of(store, job.uuid))
        return write(updates)

    monkeypatch.setattr(store, "write", write_later)
    wait_for(lambda: not job.is_recorded)
    assert store.load(job.uuid) is None
    assert not job.flush()
    assert not job.end()
    assert store.load(job.uuid) is None
    wait_for(lambda: messages(caplog, LOGGER))
    assert messages(caplog, LOGGER) == [
        f"This process no longer records job {job.uuid}: its record has expired."
    ]


def test_a_poison_record_does_not_hold_up_the_others(
    recorder: Recorder, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose key holds a value of another type is given up with a warning; the
    other jobs are recorded as usual, and their ends are waited for.
    """
    job, poisoned = Job(recorder).begin(), Job(recorder).begin()
    key = key_of(recorder.store, poisoned.uuid)
    admin.delete(key)
    admin.set(key, "a string")
    poisoned.set_message("one")
    wait_for(lambda: not poisoned.is_recorded)
    assert not poisoned.flush(10)
    assert not poisoned.end()
    late = Job(recorder, poisoned.uuid).begin()
    assert not late.is_recorded
    job.set_message("one")
    assert job.end()
    assert job.load().message == "one"
    first, second = messages(caplog, LOGGER)
    assert first.startswith(f"This process no longer records job {poisoned.uuid}: ")
    assert "WRONGTYPE" in first and "WRONGTYPE" in second
    assert not away(recorder)


def test_a_poisoned_index_holds_up_only_its_own_jobs(
    recorder: Recorder, admin: redis.Redis
) -> None:
    """An index whose key holds a value of another type affects only the jobs in it."""
    admin.set('jobstate:active:owner:"bob"', "a string")
    bobs = Job(recorder, info=INFO._replace(owner='"bob"'))
    job = Job(recorder).begin()
    in_thread(bobs.begin)
    job.set_message("one")
    assert job.end()
    assert job.load().message == "one"


def test_a_failure_of_one_job_is_told_and_tried_again(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that one job of a batch did not get keeps only that job waiting."""
    jobs = [Job(recorder).begin() for _ in range(2)]
    write = recorder.store.write
    failed = threading.Event()

    def fail_first(updates: Any) -> Any:
        replies = write(updates)
        if len(updates) == 2 and not failed.is_set():
            failed.set()
            return [redis.ConnectionError("one node"), replies[1]]
        return replies

    monkeypatch.setattr(recorder.store, "write", fail_first)

    def report() -> bool:
        for job in jobs:
            job.set_message(f"{time.monotonic()}")
        return failed.is_set()

    wait_for(report)
    for job in jobs:
        job.set_message("last")
        assert job.end()
        assert job.load().message == "last"


def test_a_phase_is_stored(recorder: Recorder) -> None:
    """A viewer sees the whole job's progress, and which phase is open."""
    job = Job(recorder).begin()

    def seen() -> tuple[Any, ...]:
        assert job.flush(10)
        loaded = job.load()
        progress = loaded.progress
        assert progress is not None
        return (*progress[:3], progress.fraction, phase_of(progress))

    with job.phase("Reading", percent=40):
        job.set_progress(1, 2, "rows")
        phase = {"name": "Reading", "path": ["Reading"], "fraction": 0.5}
        assert seen() == (1, 2, "rows", 0.2, phase)
    assert seen() == (0, None, None, 0.4, None)
    job.set_progress(1, 4)
    assert seen() == (1, 4, None, pytest.approx(0.55), None)
    again = Job(recorder, job.uuid).begin()
    assert again.load().progress is None
    again.set_progress(1, 4)
    assert again.flush(10)
    progress = again.load().progress
    assert progress is not None and progress.fraction == 0.25


def test_a_bar_is_stored_as_it_stands(recorder: Recorder) -> None:
    """Viewers never see a phase take it back. A new run begins it anew."""
    job = Job(recorder).begin()

    def seen() -> tuple[float, float | None]:
        assert job.flush(10)
        progress = job.load().progress
        assert progress is not None
        return progress.done, progress.fraction

    job.set_progress(0, 10)
    with job.phase("Reading", percent=50):
        for done in (5, 8, 1):
            job.set_progress(done, 10)
        assert seen() == (1, 0.4)
        job.set_progress(9, 10)
        assert seen() == (9, 0.45)
        job.set_progress(1, 10)
        assert seen() == (1, 0.45)
        job.set_progress(10, 10)
        assert seen() == (10, 0.5)
    again = Job(recorder, job.uuid).begin()
    with again.phase("Reading", percent=50):
        again.set_progress(1, 10)
        assert again.flush(10)
    progress = again.load().progress
    assert progress is not None and progress.fraction == 0.05


def test_a_record_with_holes_is_written(recorder: Recorder, admin: redis.Redis) -> None:
    """A record that lacks fields another version did not write can be updated."""
    job = Job(recorder)
    key = key_of(recorder.store, job.uuid)
    admin.hset(key, mapping={"status": "working", "run": "other"})
    job.unsaved.is_late = True
    job.begin()
    admin.hdel(key, "seq")
    job.set_message("one")
    wait_for(lambda: job.load().message == "one")
    assert job.end()


# Cancelling.


def test_a_cancelled_job_does_not_begin(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """When begin() returns, a cancelled job knows of its cancel, and its run has left
    the backlog.
    """
    job = Job(recorder)
    recorder.store.create(NewJob(job.uuid, INFO))
    wait_for(lambda: recorder.store.cancel(job.uuid, INFO))
    job.begin()
    assert job.unsaved.run.cancel_requested
    assert not job.is_recorded
    assert not job.end("cancelled")
    assert job.load().status == "cancelled"
    assert not messages(caplog, LOGGER)


def test_a_cancelled_job_that_began_nevertheless_is_told(
    make_recorder: MakeRecorder,
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job that began without knowing of its cancel learns of it. It stays cancelled
    even if it returns, which is logged.
    """
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.1)
    job = Job(make_recorder(slow_store(server)))
    store = job.recorder.store
    store.create(NewJob(job.uuid, INFO))
    wait_for(lambda: store.cancel(job.uuid, INFO))
    with frozen(server):
        job.begin()
        assert not job.unsaved.run.cancel_requested
    wait_for(lambda: job.unsaved.run.cancel_requested)
    wait_for(lambda: not job.is_recorded)
    assert not job.end()
    assert job.load().status == "cancelled"
    assert f"Job {job.uuid} returned after" in messages(caplog, LOGGER)[-1]


def test_a_job_that_ended_before_the_store_answered_stays_cancelled(
    make_recorder: MakeRecorder,
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job that began and succeeded before its cancel could reach it stays cancelled,
    which is logged once.
    """
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.1)
    recorder = make_recorder(slow_store(server))
    job, other = Job(recorder), Job(recorder).begin()
    recorder.store.create(NewJob(job.uuid, INFO))
    wait_for(lambda: recorder.store.cancel(job.uuid, INFO))
    with frozen(server):
        # The thread is busy with another job until the server answers.
        assert not other.flush(0.1)
        job.begin()
        assert not job.end()
    wait_for(lambda: not job.is_recorded)
    assert job.load().status == "cancelled"

    def said() -> list[str]:
        return [m for m in messages(caplog, LOGGER) if "returned after" in m]

    # Logged after the recorder has dropped the job.
    wait_for(said)
    assert len(said()) == 1 and job.uuid in said()[0]


def test_a_start_that_nobody_waits_for_is_late(recorder: Recorder) -> None:
    """A start that is first written late does not take over from a run that has begun
    since.
    """
    old = Job(recorder)
    time.sleep(0.01)
    Job(recorder, old.uuid).begin()
    old.unsaved.is_late = True
    old.begin()
    wait_for(lambda: not old.is_recorded)
    assert not old.flush()


def test_a_running_job_learns_of_the_cancel_once_it_reports(
    recorder: Recorder,
) -> None:
    """A cancel reaches the job with the reply to its next update."""
    job = Job(recorder).begin()
    wait_for(lambda: recorder.store.cancel(job.uuid, INFO))
    wait_for(lambda: job.cancel_requested)
    with pytest.raises(Interrupt):
        job.set_message("one")
    assert job.end("cancelled")
    assert job.load().status == "cancelled"


def test_a_cancel_is_heard_though_another_program_has_written_its_list(
    make_recorder: MakeRecorder,
    admin: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If another program has overwritten the list of cancels, a heartbeat brings the
    cancel, and one warning is logged.
    """
    monkeypatch.setattr(trouble, "_noted", set())
    admin.set("jobstate:cancels", "not a list")
    job = Job(make_recorder(heartbeat=0.05)).begin()

    def refusals() -> int:
        stats: Any = admin.info("errorstats")
        return int(stats.get("errorstat_WRONGTYPE", {}).get("count", 0))

    # It has asked more than once.
    wait_for(lambda: refusals() > 4)
    wait_for(lambda: job.recorder.store.cancel(job.uuid, INFO))
    wait_for(lambda: job.unsaved.run.cancel_requested)
    assert job.end("cancelled")
    (said,) = messages(caplog, "pyramid_jobstate")
    assert "the key jobstate:cancels of" in said and "WRONGTYPE" in said


def test_a_cancel_is_heard_though_the_store_refuses_its_list(
    make_recorder: MakeRecorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If this process may not read the list of cancels, the same holds."""
    job = Job(make_recorder(heartbeat=0.05)).begin()
    asked = threading.Semaphore(0)

    def refuse(since: int) -> None:
        asked.release()
        raise redis.exceptions.NoPermissionError("No permission")

    monkeypatch.setattr(job.recorder.store, "cancels", refuse)
    assert asked.acquire(timeout=20) and asked.acquire(timeout=20)
    assert job.recorder.store.cancel(job.uuid, INFO)
    wait_for(lambda: job.unsaved.run.cancel_requested)
    assert job.end("cancelled")
    (said,) = messages(caplog, LOGGER)
    assert "refuses to list cancels" in said


def test_a_message_that_was_put_back_finds_its_cancelled_record(
    make_recorder: MakeRecorder, store: JobStore
) -> None:
    """If a stalled job's run has put its message back and learns of a cancel, the
    record lives until the message is due.
    """
    short = store.replace(stalled_after=0.01, active_expire_in=1000, expire_in=100)
    job = Job(make_recorder(short, heartbeat=0.05)).begin()
    with job.recorder._backlog._lock:
        wait_for(lambda: job.reads("stalled"))
        assert short.cancel(job.uuid, INFO)
    wait_for(lambda: job.unsaved.run.cancel_requested)
    assert job.end("cancelled", delay=5000)
    assert job.load().status == "cancelled"
    ttl: Any = short.client.pttl(key_of(short, job.uuid))
    assert 5_990_000 < ttl <= 6_000_000


def test_a_job_hears_of_its_cancel_after_one_failure(
    make_recorder: MakeRecorder, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that failed once to ask for cancels asks again, even if it has nothing
    to write.
    """
    job = Job(make_recorder(heartbeat=3600)).begin()
    failed = threading.Event()
    cancels = store.cancels

    def fail(since: int) -> Any:
        if failed.is_set():
            return cancels(since)
        failed.set()
        raise redis.ConnectionError

    monkeypatch.setattr(store, "cancels", fail)
    assert failed.wait(5)
    wait_for(lambda: store.cancel(job.uuid, INFO))
    wait_for(lambda: job.unsaved.run.cancel_requested)


def test_a_job_hears_of_its_cancel_though_another_met_a_failure(
    make_recorder: MakeRecorder,
) -> None:
    """A job that begins just after another call has failed still waits a moment for the
    store: it may have been cancelled.
    """
    recorder = make_recorder(interval=5)
    job = Job(recorder)
    recorder.store.create(NewJob(job.uuid, INFO))
    wait_for(lambda: recorder.store.cancel(job.uuid, INFO))
    recorder._outage.begin()
    job.begin()
    assert job.unsaved.run.cancel_requested


def test_a_job_that_is_lost_already_ends_at_once(make_recorder: MakeRecorder) -> None:
    """The end of a fenced run does not wait."""
    old = Job(make_recorder(heartbeat=0.05)).begin()
    Job(make_recorder(), old.uuid).begin()
    wait_for(lambda: not old.is_recorded)
    old.recorder._outage.begin()
    assert not old.end("success")


@pytest.mark.parametrize("is_over", [False, True])
def test_values_that_a_failover_lost_are_written_again(
    recorder: Recorder, admin: redis.Redis, is_over: bool
) -> None:
    """A record that a failover has set back gets all that the run has reported, with
    the run's next update or its end.
    """
    job = Job(recorder).begin()
    job.set_progress_metric("first", 1)
    assert job.flush(10)
    key = key_of(recorder.store, job.uuid)
    with redis.Redis.from_url(f"redis://{admin_address(admin)}") as raw:
        before: Any = raw.dump(key)
        job.set_progress_metrics(rows=42, file="out.csv")
        job.set_message("written")
        assert job.flush(10)
        raw.restore(key, 60_000, before, replace=True)
    if is_over:
        assert job.end()
    else:
        job.set_progress_metric("last", 1)
        assert job.flush(10)
    metrics = job.load().progress_metrics
    assert (metrics["rows"], metrics["file"]) == (42, "out.csv")
    assert job.load().message == "written"


def admin_address(admin: redis.Redis) -> str:
    place = admin.connection_pool.connection_kwargs
    return f"{place['host']}:{place['port']}"


# Fencing.


def test_an_older_run_is_told_once(
    make_recorder: MakeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """A run whose message runs elsewhere by now changes nothing, and logs one
    warning.
    """
    old = Job(make_recorder(heartbeat=0.05)).begin()
    new = Job(make_recorder(), old.uuid).begin()
    new.set_message("new")
    assert new.flush(10)
    wait_for(lambda: not old.is_recorded)
    old.set_message("old")
    assert not old.flush()
    assert not old.end("error")
    assert new.load().message == "new"
    assert new.end()
    assert messages(caplog, LOGGER) == [
        f"This process no longer records job {old.uuid}: a newer run of it has begun."
    ]


#: The end of a try whose message was put back.
FAILED = End(
    "retrying", JobError("ValueError", "a cramp"), 0.0, failure=Failure("", "", "")
)


def test_a_failure_of_an_older_run_is_among_the_tries(
    make_recorder: MakeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the run had learned before that it is an older one."""
    old = Job(make_recorder(heartbeat=0.05)).begin()
    new = Job(make_recorder(), old.uuid).begin()
    wait_for(lambda: not old.is_recorded)
    assert not old.recorder.end(old.unsaved, FAILED)
    assert not old.is_recorded
    assert [t.error for t in new.recorder.store.failures(old.uuid).tries] == [
        FAILED.error
    ]
    assert new.load().status == "working"
    assert len(messages(caplog, LOGGER)) == 1


def test_a_failure_that_comes_with_a_late_report_is_among_the_tries(
    make_recorder: MakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run fails while a report of it is written, which a retry has overtaken."""
    recorder = make_recorder()
    old = Job(recorder).begin()
    write = recorder.store.write
    ends: list[threading.Thread] = []

    def write_late(updates: Sequence[Update]) -> Any:
        if not ends:
            Job(make_recorder(JobStore(recorder.store.client)), old.uuid).begin()
            ends.append(in_thread(lambda: recorder.end(old.unsaved, FAILED)))
            wait_for(lambda: old.unsaved.end is not None)
        return write(updates)

    monkeypatch.setattr(recorder.store, "write", write_late)
    old.set_message("old")
    wait_for(lambda: recorder.store.failures(old.uuid).tries)
    ends[0].join()
    assert not old.is_recorded
    assert not messages(caplog, LOGGER)


def test_a_run_that_never_owned_its_record_does_not_begin_later(
    make_recorder: MakeRecorder,
) -> None:
    """A newer one had begun before it. Its end begins nothing, even if the job is put
    back in the queue meanwhile.
    """
    recorder = make_recorder()
    old = Job(recorder)
    new = Job(recorder, old.uuid).begin()
    old.unsaved.is_late = True
    old.unsaved.begun -= 1
    old.begin()
    assert new.end()
    recorder.store.create(NewJob(old.uuid, INFO))
    assert not recorder.end(old.unsaved, FAILED)
    assert not old.is_recorded
    assert old.load().status == "queued"


# Interrupts.


def test_an_interrupt_at_the_start_leaves_nothing_behind(
    make_recorder: MakeRecorder, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose thread is interrupted while its start is written ends like any other,
    and no heartbeats go on.
    """
    recorder = make_recorder(slow_store(server))
    assert Job(recorder).begin().end()
    job = Job(recorder)

    def run() -> None:
        job.unsaved = Unsaved(job.uuid, job.unsaved.run, INFO)
        try:
            job.begin()
            wait_for(lambda: False, 30)
        except Interrupt:
            job.end("error")

    with frozen(server):
        thread = in_thread(run)
        wait_for(lambda: job.unsaved.waiters)
        interrupt(thread)
    thread.join(20)
    wait_for(lambda: job.reads("error"))
    wait_for(lambda: not recorder._backlog._runs)


def test_an_interrupt_at_the_end_leaves_nothing_behind(
    make_recorder: MakeRecorder, server: EmbeddedServer
) -> None:
    """A job's end is written even if its thread is interrupted while waiting for it."""
    recorder = make_recorder(slow_store(server))
    job = Job(recorder).begin()
    interrupted = threading.Event()

    def end() -> None:
        try:
            job.end()
            wait_for(lambda: False, 30)
        except Interrupt:
            interrupted.set()

    with frozen(server):
        thread = in_thread(end)
        wait_for(lambda: job.unsaved.waiters)
        interrupt(thread)
    assert interrupted.wait(20)
    wait_for(lambda: job.reads("success"))
    wait_for(lambda: not recorder._backlog._runs)


def test_a_job_whose_thread_is_gone_is_not_reported_as_running(
    make_recorder: MakeRecorder,
    server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose thread dies without reporting an end stalls. Dramatiq's threads die
    so when interrupted at the wrong time.
    """
    store = JobStore(server.url, stalled_after=0.2)
    recorder = make_recorder(store, heartbeat=0.05)
    jobs: list[Job] = []
    in_thread(lambda: jobs.append(Job(recorder).begin())).join()
    (job,) = jobs
    wait_for(lambda: job.reads("stalled"))
    wait_for(lambda: messages(caplog, LOGGER))
    assert not job.is_recorded
    assert messages(caplog, LOGGER) == [
        f"This process no longer records job {job.uuid}: the thread that ran it is "
        "gone."
    ]


@pytest.mark.parametrize("rounds", [80, pytest.param(400, marks=pytest.mark.long)])
def test_interrupts_at_any_time_do_no_harm(server: EmbeddedServer, rounds: int) -> None:
    """Wherever threads are interrupted inside the recorder, it goes on for the others,
    and keeps nothing of the interrupted runs.
    """
    subprocess.run(
        [sys.executable, "-m", "tests.interrupts", server.url, str(rounds)],
        cwd=ROOT,
        env=unmeasured(),
        check=True,
        timeout=100,
    )


# The thread.


def test_a_thread_that_could_not_be_started_is_started_later(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the recorder's thread cannot be started for one job, the next job starts
    it.
    """

    def fail(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", fail)
        first = Job(recorder)
        with pytest.raises(RuntimeError, match="can't start"):
            first.begin()
        recorder.stop(timeout=0.01)
    second = Job(recorder).begin()
    assert second.end() and first.end("error")


def test_a_thread_that_died_when_it_was_started_is_started_again(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an interrupt hits the recorder's new thread rather than the one that starts
    it, jobs wait no longer than for a store that is away.
    """
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", lambda *args: 0)
        first = Job(recorder).begin()
    second = Job(recorder).begin()
    assert first.flush(10) and second.flush(10)
    assert first.end() and second.end()


def test_there_is_one_thread(recorder: Recorder) -> None:
    """A thread that has been replaced ends."""
    job = Job(recorder).begin()
    replaced = recorder._thread
    recorder._thread = None
    assert job.flush(10)
    assert replaced is not None
    replaced.join(10)
    assert not replaced.is_alive()
    assert job.end()


def test_the_thread_survives_the_unforeseen(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error in the recorder itself is logged, and its thread goes on."""
    job = Job(recorder).begin()

    def fail(unsaved: Unsaved, now: float) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Unsaved, "take", fail)
        assert not job.flush(0.2)
    assert job.flush(10) and job.end()
    assert "Job states could not be written." in messages(caplog, LOGGER)


def test_a_drop_that_comes_too_late_does_no_harm(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Dropping a message while another delivery of it runs changes nothing."""
    job = Job(recorder).begin()
    drop = Unsaved(job.uuid, Run(), SENT, dropped=True)
    assert not recorder.end(drop, End("cancelled", JobError(None, "Too old")))
    assert job.load().status == "working"
    assert job.is_recorded and not messages(caplog, LOGGER)


def test_a_job_that_runs_for_long_stays_listed(
    store: JobStore, make_recorder: MakeRecorder, admin: redis.Redis
) -> None:
    """A job that runs for longer than `active_expire_in` stays in the lists, even while
    new jobs trim them.
    """
    store = store.replace(active_expire_in=60, stalled_after=3600)
    job = Job(make_recorder(store, heartbeat=0.05)).begin()
    for _ in range(8):
        store.create(NewJob(new_id(), INFO))
        listed = store.list(status="working").items
        assert [item.uuid for item in listed] == [job.uuid]
        pass_time(store, 20)
        job.unsaved._listed -= 20
        wait_for(lambda: time.monotonic() - job.unsaved._listed < 31)
    job.end()
