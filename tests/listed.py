"""Jobs to list, as senders and workers leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import RunMarathon, working


class Diary(JobState):
    """Another kind of job than a marathon."""


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


def create(store: JobStore, count: int, owner: str = "alice") -> list[str]:
    """Send jobs that nobody runs, and return their uuids, newest first."""
    _, run_marathon = make_desk(store)
    options: dict[str, Any] = {"args": (26,), "job_owner": owner}
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
        items, cursor = list_page(cursor)
        found.append(uuids_of(items))
    return found
