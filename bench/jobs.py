"""A job that runs in this process, recorded in a real server."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator

import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.job.record import End, JobInfo, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.state import Inner
from pyramid_jobstate.worker.recorder import Recorder
from pyramid_jobstate.worker.unsaved import Unsaved

#: The owner of the jobs.
OWNER = "alice"


@contextlib.contextmanager
def running_job(store: JobStore) -> Iterator[JobState]:
    """Yield a job that a recorder writes throughout."""
    params = json.dumps({"miles": 26})
    info = JobInfo("JobState", "run_marathon", 1, json.dumps(OWNER), params)
    unsaved = Unsaved(str(uuid.uuid4()), Run(), info)
    recorder = Recorder(store, {})
    recorder.begin(unsaved)
    try:
        yield JobState(Inner(Record(unsaved.uuid, info.fields()), unsaved.run))
    finally:
        recorder.end(unsaved, End("success"))
        recorder.stop()


def hset_piped(client: redis.Redis | redis.RedisCluster, count: int) -> None:
    """Send `HSET` by redis-py so many times, a hundred per round trip: the least that
    so many updates can cost.
    """
    for _ in range(count // 100):
        with client.pipeline(transaction=False) as pipe:
            for i in range(100):
                pipe.hset(f"benchmark:{i}", "done", i)
            pipe.execute()


def set_ten_metrics(job_state: JobState) -> None:
    """Report what a typical job does."""
    job_state.set_progress_metrics(
        {f"count_{i}": 1000 * i + 7 for i in range(5)},
        rate=12.5,
        share=0.4615,
        file="marathon.csv",
        place="kilometre 12",
        done=False,
    )
    job_state.set_progress(12, 26, unit="miles", message="Running")
