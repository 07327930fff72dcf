"""What a job takes in the server, including its places in three lists."""

from __future__ import annotations

import json
import time
import uuid

import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import End, JobInfo, NewJob, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.state import Inner
from pyramid_jobstate.store.jobstore import records_of
from pyramid_jobstate.worker.unsaved import Unsaved

from .jobs import OWNER, set_ten_metrics
from .timing import Row, Table

#: The number of jobs stored.
COUNT = 5000

#: The bytes that a job may take.
AT_MOST = 1200

#: The number of jobs written at a time.
BATCH = 500


def measure(server: EmbeddedServer) -> Table:
    with redis.Redis.from_url(server.url) as client:
        rows = []
        for what, end in (("is running", None), ("has ended", End("success"))):
            client.flushall()
            empty = _used(client)
            with redis.Redis.from_url(server.url) as writer:
                _store_jobs(JobStore(writer), end)
            each = (_used(client) - empty) / COUNT
            note = f"{COUNT} jobs, used_memory"
            rows.append(Row(f"a job that {what}", each, at_most=AT_MOST, note=note))
        client.flushall()
    return Table("Bytes in Redis for a job with ten short metrics", rows)


def _store_jobs(store: JobStore, end: End | None) -> None:
    """Queue jobs, begin them, record them and end them, if they are to end: each in its
    own round trip, as usual.
    """
    params = json.dumps({"miles": 26})
    info = JobInfo("JobState", "run_marathon", 1, json.dumps(OWNER), params)
    for _ in range(0, COUNT, BATCH):
        batch = [Unsaved(str(uuid.uuid4()), Run(), info) for _ in range(BATCH)]
        records_of(store).create(*(NewJob(d.uuid, info) for d in batch))
        _write(store, batch)
        for unsaved in batch:
            set_ten_metrics(JobState(Inner(Record(unsaved.uuid, {}), unsaved.run)))
        _write(store, batch)
        if end is not None:
            for unsaved in batch:
                unsaved.end = end
            _write(store, batch)


def _write(store: JobStore, batch: list[Unsaved]) -> None:
    for reply in records_of(store).write([d.take(d.begun) for d in batch]):
        if isinstance(reply, Exception):
            raise reply
    for unsaved in batch:
        unsaved.mark_stored(unsaved.begun)


def _used(client: redis.Redis) -> int:
    """Return the memory that the server uses once its clients' buffers are freed."""
    used = 0
    while True:
        before, used = used, int(client.info("memory")["used_memory"])
        if abs(used - before) < COUNT:
            return used
        time.sleep(0.5)
