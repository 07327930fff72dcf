"""Flush: which runs a tick writes, and what it leaves in memory."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.job.changes import Update
from pyramid_jobstate.job.record import Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.worker import flush as flush_module
from pyramid_jobstate.worker.backlog import Backlog
from pyramid_jobstate.worker.flush import Flush
from pyramid_jobstate.worker.outage import Outage
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.jobs import messages, new_id
from tests.support import INFO, wait_for


class Worker:
    """The flushes of a process with some runs."""

    def __init__(self, store: JobStore, count: int, heartbeat: float = 60) -> None:
        self.backlog = Backlog()
        outage = Outage(logging.getLogger(__name__))
        self.flush = Flush(self.backlog, store, heartbeat, outage)
        self.runs: list[Unsaved] = []
        self.begin(count)

    def begin(self, count: int) -> None:
        for _ in range(count):
            unsaved = Unsaved(new_id(), Run(), INFO)
            self.backlog.add(unsaved)
            self.runs.append(unsaved)

    @property
    def jobs(self) -> list[JobState]:
        return [JobState(Record(run.uuid, {}), run.run) for run in self.runs]

    def tick(self) -> None:
        self.flush.tick(time.monotonic(), everyone=True)


def test_each_of_many_runs_is_asked_for_its_thread(
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many there are: one whose thread is gone is given up after some ticks,
    and the others go on.
    """
    monkeypatch.setattr(flush_module, "CHECKED", 3)
    worker = Worker(store, 0)
    stop = threading.Event()

    def run() -> None:
        worker.begin(2)
        stop.wait()

    first = threading.Thread(target=run)
    first.start()
    wait_for(lambda: len(worker.runs) == 2)
    worker.begin(4)
    second = threading.Thread(target=worker.begin, args=(5,))
    second.start()
    second.join()
    worker.begin(4)
    for _ in range(10):
        worker.tick()
    gone = worker.runs[6:11]
    assert [run for run in worker.runs if run.lost] == gone
    stop.set()
    first.join()
    for _ in range(10):
        worker.tick()
    gone = worker.runs[:2] + gone
    assert worker.backlog.all() == worker.runs[2:6] + worker.runs[11:]
    said = messages(caplog, "pyramid_jobstate.worker")
    assert len(said) == len(gone)
    assert all(any(run.uuid in text for text in said) for run in gone)
    for job in worker.jobs[2:6]:
        job.set_message("on we go")
    worker.tick()
    found = store.load_many([run.uuid for run in worker.runs[2:6]])
    assert [job and job.message for job in found] == ["on we go"] * 4


def test_flush_leaves_nothing_to_the_garbage_collector(
    store: JobStore,
) -> None:
    """Reports leave nothing behind that the garbage collector tracks. Its full
    collections would cost more than the flushes.
    """
    worker = Worker(store, 500)
    jobs = worker.jobs

    def report(done: int) -> None:
        for job in jobs:
            job.set_progress_metric("rows", 1000 * done)
            job.set_progress(done, 1000, "rows", f"Row {done}")
        worker.tick()

    gc.collect()
    gc.disable()
    try:
        report(1)
        report(2)
        gc.collect(1)
        report(3)
        # A young collection finds that tuples of plain values hold nothing to collect.
        gc.collect(0)
        assert len(gc.get_objects(generation=1)) < len(jobs) / 10
    finally:
        gc.enable()


def test_run_whose_thread_is_gone_is_not_written(store: JobStore) -> None:
    """Not even once more."""
    worker = Worker(store, 1)
    thread = threading.Thread(target=worker.begin, args=(1,))
    thread.start()
    thread.join()
    for job in worker.jobs:
        job.set_message("on we go")

    worker.tick()

    alive, gone = store.load_many([run.uuid for run in worker.runs])
    assert alive is not None
    assert gone is None


def test_whoever_waits_for_a_silent_run_is_released(store: JobStore) -> None:
    """Its last values may just have been written."""
    worker = Worker(store, 2)
    worker.tick()
    (waited, other) = worker.runs
    waiter = worker.backlog.add_waiter(waited)
    assert waiter is not None

    worker.tick()

    assert waiter.acquire(timeout=0)
    assert not waited.waiters
    assert not other.waiters


def test_cancelled_runs_are_written_once(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel is announced for one that reports in the same tick, and for a silent
    one. Both learn of it, and the others are left alone.
    """
    worker = Worker(store, 4)
    worker.tick()
    for run in worker.runs[:2]:
        store.cancel(run.uuid, INFO)
    reporting = worker.jobs[0]
    reporting.set_message("on we go")
    written: list[str] = []
    write = store.write

    def spy(updates: Sequence[Update]) -> Any:
        written.extend(update.uuid for update in updates)
        return write(updates)

    monkeypatch.setattr(store, "write", spy)

    worker.tick()

    assert written == [run.uuid for run in worker.runs[:2]]
    assert [run.run.cancel_requested for run in worker.runs] == [True] * 2 + [False] * 2
