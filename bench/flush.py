"""What a flush costs with thousands of jobs: near, far and on a Cluster."""

from __future__ import annotations

import gc
import json
import logging
import statistics
import time
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import JobInfo, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.worker.backlog import Backlog
from pyramid_jobstate.worker.flush import Flush
from pyramid_jobstate.worker.outage import Outage
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.cluster import running_cluster

from .far import far_away
from .jobs import OWNER
from .timing import Row, Table

#: The number of jobs that run.
COUNT = 10_000

#: How many flushes of each kind are timed. The median of several counts, since a full
#: collection of garbage may fall into any of them.
FLUSHES = 9

#: The seconds to a far store and back.
DISTANCE = 0.005

Report = Callable[[JobState, int], None]


class Flushes(NamedTuple):
    """What flushes took.

    Attributes:
      cpu: The microseconds of CPU a job, the median.
      wall: The seconds, the median.
      collections: How many full collections fell into them, and their milliseconds.
    """

    cpu: float
    wall: float
    collections: tuple[int, float]

    def __str__(self) -> str:
        count, millis = self.collections
        return (
            f"{self.cpu:.3g} µs of CPU a job, the median of {FLUSHES} flushes; "
            f"{count} full collections took {millis:.0f} ms"
        )


class Worker:
    """A worker process in which many jobs run.

    Parameters:
      store: Where it writes them.
    """

    def __init__(self, store: JobStore) -> None:
        self._backlog = Backlog()
        outage = Outage(logging.getLogger(__name__))
        self._flush = Flush(self._backlog, store, 3600.0, outage)
        info = JobInfo("JobState", "a", 1, json.dumps(OWNER), "{}")
        # As in life, a small update is written first.
        for count in 1, COUNT - 1:
            for _ in range(count):
                self._backlog.add(Unsaved(str(uuid.uuid4()), Run(), info))
            self.tick()
        self.jobs = [
            JobState(Record(unsaved.uuid, {}), unsaved.run)
            for unsaved in self._backlog.all()
        ]

    def tick(self) -> None:
        self._flush.tick(time.monotonic(), everyone=True)

    def time(self, report: Report | None) -> Flushes:
        """Time flushes in which each job reports, or none does."""
        cpu, wall = [], []
        with Collections() as collections:
            for done in range(1, FLUSHES + 1):
                for job_state in self.jobs if report is not None else ():
                    assert report is not None
                    report(job_state, done)
                collections.begin()
                begun, used = time.perf_counter(), time.thread_time()
                self.tick()
                cpu.append((time.thread_time() - used) / COUNT * 1e6)
                wall.append(time.perf_counter() - begun)
                collections.end()
        median = statistics.median
        return Flushes(median(cpu), median(wall), collections.found)


class Collections:
    """Counts full collections of garbage between `begin` and `end`."""

    def __init__(self) -> None:
        self._is_on = False
        self._begun = 0.0
        self._count = 0
        self._seconds = 0.0

    @property
    def found(self) -> tuple[int, float]:
        return self._count, 1000 * self._seconds

    def begin(self) -> None:
        self._is_on = True

    def end(self) -> None:
        self._is_on = False

    def _note(self, phase: str, info: dict[str, Any]) -> None:
        if not self._is_on or info["generation"] != 2:
            return
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            self._count += 1
            self._seconds += time.perf_counter() - self._begun

    def __enter__(self) -> Collections:
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        gc.callbacks.remove(self._note)


def set_metric(job_state: JobState, done: int) -> None:
    job_state.set_progress_metric("rows", 100 * done)


def set_progress(job_state: JobState, done: int) -> None:
    job_state.set_progress(done, 10**6, "rows")


def measure(server: EmbeddedServer) -> Table:
    worker = Worker(JobStore(server.url))
    near = worker.time(set_metric)
    progress, idle = worker.time(set_progress), worker.time(None)
    rows = [
        Row("an update of a metric / 9 µs", near.cpu / 9, at_most=1, note=str(near)),
        Row(
            "an update by `set_progress` / 12 µs",
            progress.cpu / 12,
            at_most=1,
            note=str(progress),
        ),
        Row(
            "a tick without reports / 0.1 µs a job",
            idle.cpu / 0.1,
            at_most=1,
            note=str(idle),
        ),
    ]
    with far_away(server.url, DISTANCE) as url:
        far = Worker(JobStore(url)).time(set_metric)
    rows.append(
        Row(
            f"a flush to a store {1000 * DISTANCE:g} ms away / to a near one",
            far.wall / near.wall,
            note=f"{far.wall:.3f} / {near.wall:.3f} s, {far.cpu:.3g} µs of CPU a job",
        )
    )
    with running_cluster() as cluster:
        spread = Worker(JobStore(cluster.url)).time(set_metric)
    rows += [
        Row(
            "a flush to a Cluster of three / to one server",
            spread.wall / near.wall,
            note=f"{spread.wall:.3f} / {near.wall:.3f} s, {spread.cpu:.3g} µs of CPU",
        ),
        Row(
            "KiB of memory that a running job takes in the worker",
            _memory(JobStore(server.url)) / 1024,
            note="with a metric and a progress, flushed",
        ),
    ]
    return Table(f"A flush of {COUNT:,} jobs", rows)


def _memory(store: JobStore) -> float:
    """Return the bytes that a job takes."""
    tracemalloc.start()
    worker = Worker(store)
    for done in 1, 2:
        for job_state in worker.jobs:
            set_metric(job_state, done)
            set_progress(job_state, done)
        worker.tick()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / COUNT
