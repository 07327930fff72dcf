"""What a page of a list costs with few jobs, and with many."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.pages import Page
from pyramid_jobstate.testing import put_job
from tests.support import key_of

from .jobs import OWNER
from .timing import Row, Table, side_by_side

FEW, MANY = 1_000, 100_000

#: The number of unfinished jobs, so that a page has some of both.
ACTIVE = 20


def fill(server: EmbeddedServer, namespace: str, count: int) -> JobStore:
    """Return a store with this many jobs, the finished ones all alike."""
    store = JobStore(server.url, namespace=namespace)
    for _ in range(ACTIVE):
        put_job(store, owner=OWNER, metrics={"miles": 12})
    ended = put_job(store, status="success", owner=OWNER, metrics={"miles": 26})
    client = store.client
    fields: Any = client.hgetall(key_of(store, ended.uuid))
    keys = client.keys(f"{namespace}:ended:*")
    (score,) = client.zmscore(keys[0], [ended.uuid])
    assert score is not None
    for first in range(0, count - ACTIVE - 1, 1000):
        uuids = [str(uuid.uuid4()) for _ in range(1000)]
        with client.pipeline(transaction=False) as pipe:
            for job in uuids:
                pipe.hset(key_of(store, job), mapping=fields)
            for key in keys:
                pipe.zadd(key, {job: score - first - i for i, job in enumerate(uuids)})
            pipe.execute()
    return store


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

    rows = []
    for name, pages in ("first", first_pages), ("second", second_pages):
        of_many, of_few = side_by_side((20, pages(many)), (20, pages(few)))
        rows.append(
            Row(
                f"the {name} page of {MANY:,} jobs / of {FEW:,}",
                of_many.over(of_few),
                at_most=1.5,
                note=f"{of_many} / {of_few}",
            )
        )
    few.client.flushdb()
    return Table("A page of 50 jobs of one owner", rows)
