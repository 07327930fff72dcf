"""Pairs of stores that are at one place, at two, or at what may be one."""

from __future__ import annotations

from collections.abc import Iterator

import redis
from redis.sentinel import Sentinel

from pyramid_jobstate import JobStore
from tests.web.streaming import OwnPool

Pairs = Iterator[tuple[JobStore, JobStore]]


def other_places(host: str) -> Iterator[tuple[JobStore, JobStore, str]]:
    """Yield stores at two places, with the word for the difference.

    Parameters:
      host: A URL of port 7000 of localhost, which may have a password.
    """
    for ours, theirs, word in (
        (host, f"{host}/1", "database"),
        (f"{host}?db=2", f"{host}/1", "database"),
        (f"{host}/1", "redis://127.0.0.1:7000/0", "database"),
        ("redis://[::1]:7000/1", f"{host}/0", "database"),
        ("redis://db.example/1", "redis://DB.example/0", "database"),
        ("redis://localhost", f"{host}/0", "port"),
        ("rediss://localhost:7001", "rediss://localhost:7000", "port"),
        ("unix:///tmp/a.sock?db=1", "unix:///tmp/a.sock?db=2", "database"),
    ):
        yield JobStore(ours), JobStore(theirs), word
    pool = redis.BlockingConnectionPool(port=7000, db="1")
    for client in (
        redis.Redis("localhost", 7000, db=1, password="hush"),
        redis.Redis(connection_pool=pool),
    ):
        yield JobStore(client), JobStore(f"{host}/0"), "database"


def same_places(host: str) -> Pairs:
    """Yield stores at one place."""
    for ours, theirs in (
        (f"{host}/0", "redis://127.0.0.1:7000"),
        ("redis://[::1]:7000/0", "redis://bob:other@localhost:7000/0"),
        ("redis://DB.example/1", "redis://db.example:6379/1"),
        (f"rediss{host[5:]}/0", f"{host}/0"),
    ):
        yield JobStore(ours), JobStore(theirs)
    yield JobStore(f"{host}/0"), JobStore(redis.Redis("127.0.0.1", 7000))


def unclear_places(host: str) -> Pairs:
    """Yield stores at two places whose names may stand for one."""
    for ours, theirs in (
        ("redis://a.example/0", "redis://b.example/0"),
        ("unix:///tmp/a.sock", f"{host}/0"),
        (f"{host}/0", "rediss://localhost:7001/0"),
    ):
        yield JobStore(ours), JobStore(theirs)


def private_stores(host: str) -> Pairs:
    """Yield stores of which only the application knows how to connect, each with
    another, in both orders.
    """
    other = JobStore(f"{host}/0")
    sentinel = Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": "hush"})
    pool = OwnPool.from_url(f"{host}/1")
    found = sentinel.master_for("jobs", password="hush", db=1)
    for client in found, redis.Redis(connection_pool=pool):
        store = JobStore(client)
        yield store, other
        yield other, store
