"""Jobs in any state, and lists of them, for the tests of the store."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware

from pyramid_jobstate import Batch, JobError, JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.testing import put_batch, put_job
from tests.jobs import RunMarathon, working


class Diary(JobState):
    """Another kind of job than a marathon."""


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


def make_desk(store: JobStore) -> tuple[StubBroker, dramatiq.Actor[..., Any]]:
    """Return a broker that keeps its messages in memory, and an actor whose jobs end
    with the status that they are told.
    """
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(store))

    @dramatiq.actor(broker=broker, job_state=RunMarathon, max_retries=0)
    def run_marathon(miles: int, status: str = "success") -> None:
        if status != "success":
            raise ValueError("A cramp.")

    return broker, run_marathon


def create(store: JobStore, count: int) -> list[str]:
    """Send jobs of Alice's that nobody runs, and return their uuids, newest first."""
    _, run_marathon = make_desk(store)
    options: dict[str, Any] = {"args": (26,), "job_owner": "alice"}
    sent = [run_marathon.send_with_options(**options) for _ in range(count)]
    return [message.message_id for message in sent][::-1]


def finish(store: JobStore, *uuids: str, status: str = "success") -> None:
    """Run jobs of :func:`create` to their end, the first of them last."""
    broker, run_marathon = make_desk(store)
    options: dict[str, Any] = {"args": (26, status), "job_owner": "alice"}
    for uuid in reversed(uuids):
        message = run_marathon.message_with_options(**options)
        broker.enqueue(message.copy(message_id=uuid))
    with working(broker, threads=1):
        broker.join("default", fail_fast=False)


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


def status_of(store: JobStore, uuid: str) -> str | None:
    """Return the status of a job, or None if it is unknown."""
    found = store.load(uuid)
    return None if found is None else found.status


def uuids_of(items: Sequence[JobState]) -> list[str]:
    return [item.uuid for item in items]


def pages(
    list_page: Callable[..., Any], between: Callable[[], object] = list
) -> list[list[str]]:
    """Return all pages of a list, calling `between` before the next one."""
    found: list[list[str]] = []
    cursor = None
    while cursor is not None or not found:
        between()
        page = list_page(cursor)
        cursor = page.cursor
        found.append(uuids_of(page.items))
    return found


def all_of(store: JobStore, limit: int = 3, **wanted: Any) -> list[str]:
    """Return the uuids of a list, read page by page."""
    found = pages(lambda cursor: store.list(**wanted, limit=limit, cursor=cursor))
    return list(itertools.chain(*found))
