"""What a flush costs with thousands of jobs: near, far and on a Cluster.

METRIC, PROGRESS and TICK stand for goals of 9, 12 and 0.1 µs of CPU a job. The version
of 27 November 2026 was measured at 0.88, 0.80 and 1.14 of these; on another machine, it
took 2.62 and 3.01 times as long as `HSET` in a pipeline, and 8.9 times as long as a
loop over as many objects, the medians of three runs. So the goals were 3.0, 3.8 and 7.8
times that.
"""

from __future__ import annotations

import functools
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
from pyramid_jobstate.job.state import Inner
from pyramid_jobstate.worker.recorder import Backlog, Flush, Outage
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.cluster import running_cluster

from .far import far_away
from .jobs import OWNER, hset_piped
from .timing import Row, Table, Timing

#: The number of jobs that run.
COUNT = 10_000

#: How many flushes of each kind are timed. The median of several counts, since a full
#: collection of garbage may fall into any of them.
FLUSHES = 9

#: How many ticks without reports are timed. They are short.
TICKS = 99

#: The seconds to a far store and back.
DISTANCE = 0.005

#: What an update of a metric, one by `set_progress` and a tick may cost.
METRIC, PROGRESS, TICK = 3.0, 3.8, 7.8

Report = Callable[[JobState, int], None]


class Flushes(NamedTuple):
    """What flushes took.

    Attributes:
      cpu: The microseconds of CPU a job, the median.
      wall: The seconds, the median.
      collections: How many full collections fell into them, and their milliseconds.
      floor: The microseconds of CPU a job of what they are compared with.
      ratio: The ratio of the two.
      rounds: How many flushes were timed.
    """

    cpu: float
    wall: float
    collections: tuple[int, float]
    floor: float
    ratio: float
    rounds: int

    def __str__(self) -> str:
        full, millis = self.collections
        return (
            f"{self.cpu:.3g} / {self.floor:.3g} µs of CPU a job, the medians of "
            f"{self.rounds} flushes; "
            f"{full} full collections took {millis:.0f} ms"
        )


class Worker:
    """A worker process in which many jobs run.

    Parameters:
      store: Where it writes them.
    """

    def __init__(self, store: JobStore) -> None:
        self._backlog = Backlog()
        outage = Outage(logging.getLogger(__name__))
        self._flush = Flush(self._backlog, store, 3600.0, outage, {})
        info = JobInfo("JobState", "a", 1, json.dumps(OWNER), "{}")
        # As in life, a small update is written first.
        for count in 1, COUNT - 1:
            for _ in range(count):
                self._backlog.add(Unsaved(str(uuid.uuid4()), Run(), info))
            self.tick()
        self.runs = self._backlog.all()
        self.jobs = [
            JobState(Inner(Record(unsaved.uuid, {}), unsaved.run))
            for unsaved in self.runs
        ]

    def tick(self) -> None:
        self._flush.tick(time.monotonic(), everyone=True)

    def time(
        self, report: Report | None, floor: Callable[[], object], rounds: int = FLUSHES
    ) -> Flushes:
        """Time flushes in which each job reports, or none does, and in turns with them
        what they are compared with.
        """
        cpu, wall, floors = [], [], []
        with Collections() as collections:
            for done in range(1, rounds + 1):
                for job_state in self.jobs if report is not None else ():
                    assert report is not None
                    report(job_state, done)
                collections.begin()
                begun, used = time.perf_counter(), time.thread_time()
                self.tick()
                cpu.append((time.thread_time() - used) / COUNT * 1e6)
                wall.append(time.perf_counter() - begun)
                collections.end()
                used = time.thread_time()
                floor()
                floors.append((time.thread_time() - used) / COUNT * 1e6)
        median = statistics.median
        ratio = Timing(cpu).over(Timing(floors))
        found = collections.found
        return Flushes(median(cpu), median(wall), found, median(floors), ratio, rounds)

    def look(self) -> int:
        """Look at one attribute of each run, and return how many have ended."""
        ended = 0
        for unsaved in self.runs:
            if unsaved.end is not None:
                ended += 1
        return ended


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
    store = JobStore(server.url)
    worker, hsets = Worker(store), functools.partial(hset_piped, store.client, COUNT)
    near, progress = (
        worker.time(report, hsets) for report in (set_metric, set_progress)
    )
    idle = worker.time(None, worker.look, TICKS)
    rows = [
        Row(f"{what} / {floor}", flushes.ratio, at_most=at_most, note=str(flushes))
        for what, floor, flushes, at_most in (
            ("an update of a metric", "`HSET` in a pipeline", near, METRIC),
            ("an update by `set_progress`", "the same", progress, PROGRESS),
            ("a tick without reports", "a loop over as many objects", idle, TICK),
        )
    ]
    with far_away(server.url, DISTANCE) as url:
        far = Worker(JobStore(url)).time(set_metric, hsets)
    rows.append(
        Row(
            f"a flush to a store {1000 * DISTANCE:g} ms away / to a near one",
            far.wall / near.wall,
            note=f"{far.wall:.3f} / {near.wall:.3f} s, {far.cpu:.3g} µs of CPU a job",
        )
    )
    with running_cluster() as cluster:
        spread = Worker(JobStore(cluster.url)).time(set_metric, hsets)
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
