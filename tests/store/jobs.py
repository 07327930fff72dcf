"""Jobs in any state, for the tests of the store."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from dramatiq.middleware import Middleware

from pyramid_jobstate import Batch, JobError, JobStore
from pyramid_jobstate.testing import put_batch, put_job
from tests.jobs import RunMarathon
from tests.listed import make_desk, pages


def put(store: JobStore, status: str, **options: Any) -> str:
    """Store a job of Alice's in a status and return its uuid. If it has failed, it may
    run again.
    """
    usual: dict[str, Any] = {"owner": "alice", "params": {"miles": 26}}
    if status == "error":
        usual |= {"actor": "run_marathon", "error": JobError("ValueError", "bad")}
    return put_job(store, RunMarathon, status, **usual | options).uuid


def put_crowd(store: JobStore, count: int) -> None:
    """Queue many jobs, as members of a batch, which is faster."""
    member = {"job_state_class": RunMarathon, "status": "queued"}
    put_batch(store, Batch, [member] * count)


class Dies(Middleware):
    """Kills the process that sends a job, before the broker gets its message."""

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        raise SystemExit


def put_unsent(store: JobStore, delay: float | None = None) -> str:
    """Store a job whose sender has died before the broker got its message."""
    broker, run_marathon = make_desk(store)
    broker.add_middleware(Dies())
    message = run_marathon.message_with_options(args=(26,), job_owner="alice")
    with pytest.raises(SystemExit):
        broker.enqueue(message, delay=None if delay is None else int(delay * 1000))
    return message.message_id


def all_of(store: JobStore, limit: int = 3, **wanted: Any) -> list[str]:
    """Return the uuids of a list, read page by page."""
    found = pages(lambda cursor: store.list(**wanted, limit=limit, cursor=cursor))
    return list(itertools.chain(*found))
