"""Flush with thousands of runs: how many at a time, and what it leaves in memory."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import Update
from pyramid_jobstate.job.record import Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.worker import flush as flush_module
from pyramid_jobstate.worker.backlog import Backlog
from pyramid_jobstate.worker.flush import BATCH, BATCH_FAR, NEAR, Flush
from pyramid_jobstate.worker.outage import Outage
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.jobs import messages, new_id
from tests.support import INFO, wait_for


class CountingStore(JobStore):
    """A store that notes how many updates come at a time.

    Attributes:
      seconds: How far away it is.
      written: The number of updates each time.
    """

    seconds = 0.0

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.written: list[int] = []

    def write(self, updates: Sequence[Update]) -> Any:
        self.written.append(len(updates))
        time.sleep(self.seconds)
        return super().write(updates)


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


@pytest.fixture
def counting(server: EmbeddedServer) -> CountingStore:
    return CountingStore(server.url)


@pytest.mark.parametrize(("seconds", "size"), [(0.0, BATCH), (3 * NEAR, BATCH_FAR)])
def test_a_far_store_gets_more_updates_at_a_time(
    counting: CountingStore, seconds: float, size: int
) -> None:
    """Round trips to a far store cost more time than they spare."""
    counting.seconds = seconds
    worker = Worker(counting, 1)
    # A busy machine may be slow once.
    for _ in range(50):
        worker.runs[0].run.set_message("on we go")
        worker.tick()
    worker.begin(BATCH_FAR + BATCH)
    counting.written.clear()
    worker.tick()
    assert sum(counting.written) == BATCH_FAR + BATCH
    assert counting.written[0] == max(counting.written) == size


def test_each_of_many_runs_is_asked_for_its_thread(
    counting: CountingStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many there are: one whose thread is gone is given up after some ticks,
    and the others go on.
    """
    monkeypatch.setattr(flush_module, "LOOKED_AT", 3)
    worker = Worker(counting, 0)
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
    found = counting.load_many([run.uuid for run in worker.runs[2:6]])
    assert [job and job.message for job in found] == ["on we go"] * 4


def test_flush_leaves_nothing_to_the_garbage_collector(
    counting: CountingStore,
) -> None:
    """What reports leave behind is no work for the garbage collector, whose full
    collections would cost more than the flushes.
    """
    worker = Worker(counting, 500)
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
