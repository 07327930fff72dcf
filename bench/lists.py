"""What a page of a list costs with few jobs, and with many."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.lists import Page
from pyramid_jobstate.testing import put_job
from tests.support import key_of

from .jobs import OWNER
from .timing import Row, Table, Timing, side_by_side

FEW, MANY = 1_000, 1_000_000

#: The number of unfinished jobs, so that a page has some of both.
ACTIVE = 20

#: Of how many jobs one has each status, in the lists by status, the oldest first.
SHARES = {"working": 100, "queued": 4, "success": 2, "error": 10, "cancelled": 50}


def fill(server: EmbeddedServer, namespace: str, count: int) -> JobStore:
    """Return a store with this many jobs, the finished ones all alike."""
    store = JobStore(server.url, namespace=namespace)
    for _ in range(ACTIVE):
        put_job(store, owner=OWNER, metrics={"miles": 12})
    ended = put_job(store, status="success", owner=OWNER, metrics={"miles": 26})
    repeat(store, ended, count - ACTIVE - 1)
    return store


def fill_statuses(server: EmbeddedServer, namespace: str, count: int) -> JobStore:
    """Return a store with this many jobs of several statuses, the newest of which are
    those that the others must not hide.
    """
    store = JobStore(server.url, namespace=namespace, stalled_after=3600)
    for status, share in SHARES.items():
        first = put_job(store, status=status, metrics={"miles": 12})
        repeat(store, first, count // share)
    return store


def repeat(store: JobStore, job_state: JobState, count: int) -> None:
    """Write older jobs like one, into the same sets."""
    client, uuid_ = store.client, job_state.uuid
    fields: Any = client.hgetall(key_of(store, uuid_))
    scores = {
        key: client.zscore(key, uuid_)
        for key in client.scan_iter(f"*{store.namespace}:*", _type="zset", count=10_000)
    }
    for first in range(0, count, 1000):
        uuids = [str(uuid.uuid4()) for _ in range(min(1000, count - first))]
        with client.pipeline(transaction=False) as pipe:
            for job in uuids:
                pipe.hset(key_of(store, job), mapping=fields)
            for key, score in scores.items():
                if score is not None:
                    pipe.zadd(key, {u: score - first - i for i, u in enumerate(uuids)})
            pipe.execute()


def measure(server: EmbeddedServer) -> Table:
    few, many = fill(server, "few", FEW), fill(server, "many", MANY)

    def first_pages(store: JobStore) -> Callable[[int], Page]:
        def read(count: int) -> Page:
            for _ in range(count):
                page = store.list(OWNER)
            return page

        return read

    def second_pages(store: JobStore) -> Callable[[int], Page]:
        cursor = store.list(OWNER).cursor

        def read(count: int) -> Page:
            for _ in range(count):
                page = store.list(OWNER, cursor=cursor)
            return page

        return read

    def row(what: str, timings: list[Timing], at_most: float) -> Row:
        of_many, of_few = timings
        note = f"{of_many} / {of_few}"
        return Row(what, of_many.over(of_few), at_most=at_most, note=note)

    rows = []
    for name, pages in ("first", first_pages), ("second", second_pages):
        what = f"the {name} page of {MANY:,} jobs / of {FEW:,}"
        timings = side_by_side((20, pages(many)), (20, pages(few)))
        rows.append(row(what, timings, at_most=1.5))
    few.client.flushdb()
    few = fill_statuses(server, "few", FEW)
    many = fill_statuses(server, "many", MANY)

    def by_status(store: JobStore, status: str) -> Callable[[int], Page]:
        def read(count: int) -> Page:
            for _ in range(count):
                page = store.list(status=status, limit=10)
            return page

        return read

    for status in SHARES:
        what = f"the first page of those with the status {status} / with fewer jobs"
        timings = side_by_side(
            (20, by_status(many, status)), (20, by_status(few, status))
        )
        rows.append(row(what, timings, at_most=1.1))
    few.client.flushdb()
    return Table("A page of 50 jobs of one owner, or of 10 by status", rows)
