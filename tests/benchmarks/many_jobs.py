"""What the recorder's thread costs a worker process, by how many jobs that runs."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.delivery import Delivery
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.record import Record, Start
from pyramid_jobstate.recorder import Recorder
from pyramid_jobstate.run import Run

from .jobs import OWNER
from .timing import Row, Table

#: How many jobs run.
COUNTS = (1, 100, 10_000)

#: For how many seconds, how often each reports in that time, and how often one that
#: does not is said to be running.
SECONDS, REPORTS, HEARTBEAT = 4.0, 4, 2.0


def measure(server: EmbeddedServer) -> Table:
    rows = []
    with redis.Redis.from_url(server.url) as client:
        floor = _floor(client)
        for count in COUNTS:
            silent, reporting = _cost(JobStore(server.url), count)
            client.flushall()
            for what, share, writes in (
                ("silent", silent, SECONDS / HEARTBEAT),
                ("reporting", reporting, REPORTS),
            ):
                each = share * SECONDS / (count * writes)
                rows.append(
                    Row(
                        f"{count:,} {what}: a write / `HSET` in a pipeline of 100",
                        each / floor,
                        note=f"{100 * share:.2g} % of a core; "
                        f"{1e6 * each:.3g} / {1e6 * floor:.3g} µs of CPU",
                    )
                )
    last = rows[-1]
    rows[-1] = last._replace(at_most=10)
    notes = [
        f"A job that reports does so {REPORTS / SECONDS:g} times a second; for a "
        f"silent one there is a heartbeat every {HEARTBEAT:g} s. With one job the "
        "thread mostly wakes up to find nothing."
    ]
    return Table("The recorder's thread in one worker process", rows, notes)


def _cost(store: JobStore, count: int) -> tuple[float, float]:
    """Return the share of a core that the recorder takes while the jobs are silent, and
    while they report.
    """
    recorder = Recorder(store, heartbeat=HEARTBEAT)
    params = json.dumps({"miles": 26})
    start = Start("JobState", "run_marathon", 1, json.dumps(OWNER), params)
    deliveries = [Delivery(str(uuid.uuid4()), Run(), start) for _ in range(count)]
    jobs = [JobState(Record(d.uuid, start.fields()), d.run) for d in deliveries]
    with ThreadPoolExecutor(100) as pool:
        for _ in pool.map(recorder.begin, deliveries):
            pass
    try:
        jobs[0].flush()
        thread = recorder._thread
        assert thread is not None and thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        begun, used = time.monotonic(), time.clock_gettime(clock)
        time.sleep(SECONDS)
        silent = (time.clock_gettime(clock) - used) / (time.monotonic() - begun)
        begun, used = time.monotonic(), time.clock_gettime(clock)
        for i in range(REPORTS):
            for job_state in jobs:
                job_state.set_progress(i, REPORTS)
            due = begun + (i + 1) * SECONDS / REPORTS
            time.sleep(max(0.0, due - time.monotonic()))
        reporting = (time.clock_gettime(clock) - used) / (time.monotonic() - begun)
    finally:
        recorder.stop()
    return silent, reporting


def _floor(client: redis.Redis) -> float:
    """Return the CPU time of an `HSET` by redis-py, a hundred to a round trip."""
    used = time.thread_time()
    for _ in range(50):
        with client.pipeline(transaction=False) as pipe:
            for i in range(100):
                pipe.hset(f"benchmark:{i}", "done", i)
            pipe.execute()
    return (time.thread_time() - used) / 5000
