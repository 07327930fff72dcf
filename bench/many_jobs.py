"""What the recorder costs a worker process, by the number of jobs that run."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import End, JobInfo, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.state import Inner
from pyramid_jobstate.worker.recorder import Recorder
from pyramid_jobstate.worker.unsaved import Unsaved

from .jobs import OWNER, hset_piped
from .timing import Row, Table

#: The numbers of running jobs.
COUNTS = (1, 100, 10_000)

#: The length of a measurement in seconds, the reports of each job in it, and the
#: seconds between the heartbeats of a silent job.
SECONDS, REPORTS, HEARTBEAT = 2.0, 2, 1.0

#: The number of jobs that begin and end meanwhile.
MORE = 30


class Cost(NamedTuple):
    """What a number of jobs cost.

    Attributes:
      silent, reporting: The share of a core that the recorder's thread takes while
        they are silent, and while they report.
      more: The seconds that another job takes to begin and to end.
    """

    silent: float
    reporting: float
    more: float


def measure(server: EmbeddedServer) -> Table:
    rows = []
    with redis.Redis.from_url(server.url) as client:
        floor = _floor(client)
        costs = {}
        for count in COUNTS:
            costs[count] = _cost(JobStore(server.url), count)
            client.flushall()
    one = costs[1]
    for count, cost in list(costs.items())[1:]:
        for what, mine, base in (
            ("silent jobs", cost.silent, one.silent),
            ("reporting jobs", cost.reporting, one.reporting),
        ):
            rows.append(
                Row(
                    f"{count:,} {what} / one",
                    mine / base,
                    at_most=count / 10,
                    note=f"{100 * mine:.2g} / {100 * base:.2g} % of a core",
                )
            )
    for count, cost in list(costs.items())[1:]:
        rows.append(
            Row(
                f"beginning and ending a job while {count:,} run / while one runs",
                cost.more / one.more,
                note=f"{1000 * cost.more:.2g} / {1000 * one.more:.2g} ms",
            )
        )
    each = cost.reporting * SECONDS / (count * REPORTS)
    rows.append(
        Row(
            f"an update of one of {count:,} / `HSET` in a pipeline of 100",
            each / floor,
            at_most=10,
            note=f"{1e6 * each:.3g} / {1e6 * floor:.3g} µs of CPU",
        )
    )
    notes = [
        f"The CPU time of the recorder's thread. A reporting job does so "
        f"{REPORTS / SECONDS:g} times a second; a silent one has a heartbeat "
        f"every {HEARTBEAT:g} s."
    ]
    return Table("Many jobs at a time in one worker process", rows, notes)


def _cost(store: JobStore, count: int) -> Cost:
    recorder = Recorder(store, {}, heartbeat=HEARTBEAT)
    batch = [_unsaved() for _ in range(count)]
    jobs = [JobState(Inner(Record(d.uuid, d.info.fields()), d.run)) for d in batch]
    with ThreadPoolExecutor(100) as pool:
        for _ in pool.map(recorder.begin, batch):
            pass
    try:
        thread = recorder._thread
        assert thread is not None and thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)

        begun, used = time.monotonic(), time.clock_gettime(clock)
        time.sleep(SECONDS)
        silent = (time.clock_gettime(clock) - used) / (time.monotonic() - begun)

        begun, used = time.monotonic(), time.clock_gettime(clock)
        for i in range(1, REPORTS + 1):
            for job_state in jobs:
                job_state.set_progress(i, REPORTS)
            time.sleep(max(0.0, begun + i * SECONDS / REPORTS - time.monotonic()))
        reporting = (time.clock_gettime(clock) - used) / (time.monotonic() - begun)

        more = statistics.median(_more(recorder) for _ in range(MORE))
    finally:
        # The recorder's thread would not end while runs are left.
        recorder._backlog._runs.clear()
        recorder.stop()
    return Cost(silent, reporting, more)


def _more(recorder: Recorder) -> float:
    """Return the seconds that a job takes to begin and to end."""
    begun = time.perf_counter()
    unsaved = _unsaved()
    recorder.begin(unsaved)
    recorder.end(unsaved, End("success"))
    return time.perf_counter() - begun


def _unsaved() -> Unsaved:
    params = json.dumps({"miles": 26})
    info = JobInfo("JobState", "run_marathon", 1, json.dumps(OWNER), params)
    return Unsaved(str(uuid.uuid4()), Run(), info)


def _floor(client: redis.Redis) -> float:
    """Return the CPU time of an `HSET` by redis-py, a hundred per round trip."""
    used = time.thread_time()
    hset_piped(client, 5000)
    return (time.thread_time() - used) / 5000
