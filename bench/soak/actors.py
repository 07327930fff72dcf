"""The job of the soak test, and the journal into which each run writes what it does."""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobCancelled, JobState, JobStateMiddleware, JobStore

#: The milliseconds of silence after which a worker's messages are redelivered.
HEARTBEAT_TIMEOUT = 2500

#: The seconds of silence after which a job reads stalled.
STALLED_AFTER = 5.0

#: How often a job is retried.
MAX_RETRIES = 1


class Planned(Exception):
    """The failure of a job that is meant to fail."""


class Journal:
    """A file to which many processes append lines, each with one write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, **line: Any) -> None:
        os.write(self._file, json.dumps({**line, "at": time.time()}).encode() + b"\n")


def make_broker(broker_url: str, store_url: str) -> RedisBroker:
    """Return a broker that looks for dead workers at each command."""
    broker = RedisBroker(
        url=broker_url, heartbeat_timeout=HEARTBEAT_TIMEOUT, maintenance_chance=10**6
    )
    store = JobStore(store_url, stalled_after=STALLED_AFTER)
    broker.add_middleware(JobStateMiddleware(store, heartbeat=1.0))
    return broker


def declare(
    broker: dramatiq.Broker, journal: Journal | None = None
) -> dramatiq.Actor[Any, Any]:
    """Declare the actor. Only the process that runs it needs a journal."""

    @dramatiq.actor(
        broker=broker, max_retries=MAX_RETRIES, min_backoff=200, max_backoff=2000
    )
    def work(
        steps: int, pause: float, width: int, fails: int, *, job_state: JobState
    ) -> None:
        """Take some steps with a pause in each, report `width` metrics in each, and
        fail in the first `fails` attempts.
        """
        assert journal is not None
        run = {"job": job_state.uuid, "run": uuid.uuid4().hex, "pid": os.getpid()}
        journal.note(event="start", attempt=job_state.attempt, **run)
        try:
            job_state.set_progress_metric("run", run["run"])
            for step in job_state.track(range(steps)):
                time.sleep(pause)
                job_state.set_progress_metrics({f"m{i}": step for i in range(width)})
            if job_state.attempt <= fails:
                raise Planned("as planned")
        except JobCancelled:
            journal.note(event="end", outcome="cancelled", **run)
            raise
        except Planned:
            journal.note(event="end", outcome="error", **run)
            raise
        journal.note(event="end", outcome="success", **run)

    return work
