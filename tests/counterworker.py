"""The worker processes that count in a database: ``python -m dramatiq
tests.counterworker``.

They read the URLs of their servers from the environment. A test declares the same
actors with :func:`declare`.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from pyramid.request import Request

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.counters import SQL, Database, Zodb, make_app
from tests.jobs import job_actor

#: The isolation levels at which a database tells conflicts itself.
ISOLATION = {"postgresql": "REPEATABLE READ"}


def open_database(url: str, *, is_new: bool = False) -> Database:
    """Return the database at a URL of SQLAlchemy or ZODB."""
    scheme = url.partition(":")[0].partition("+")[0]
    if scheme in ("zeo", "file"):
        return Zodb(url, is_new=is_new)
    options = {"isolation_level": ISOLATION[scheme]} if scheme in ISOLATION else {}
    return SQL(url, is_new=is_new, **options)


def make_broker(url: str) -> RedisBroker:
    """Return a broker that redelivers the messages of a dead worker soon."""
    broker = RedisBroker(url=url, heartbeat_timeout=1000, maintenance_chance=1_000_000)
    store = JobStore(url, stalled_after=1.0)
    broker.add_middleware(JobStateMiddleware(store, interval=0.05, heartbeat=0.2))
    return broker


def declare(broker: RedisBroker, database: Database) -> None:
    """Declare the actors, in the sending process as in the workers."""
    client = redis.Redis.from_url(os.environ.get("BROKER_URL", "redis://"))

    @job_actor(broker=broker, min_backoff=20, max_backoff=500)
    def increment(*, request: Request, job_state: Any) -> None:
        counter = request.root["counter"]
        counter.value += 1
        database.mark(request, job_state.uuid)
        client.sadd("workers", os.getpid())

    @job_actor(broker=broker)
    def follow(name: str, *, job_state: Any) -> None:
        client.rpush("followed", name)

    @job_actor(broker=broker)
    def die_at_first(*, request: Request, job_state: Any) -> None:
        run = client.incr("runs")
        request.root["counter"].value += 1
        database.mark(request, job_state.uuid)
        child = request.job_states.send(follow, f"run {run}")
        client.rpush("children", child.uuid)
        if run == 1:
            request.add_finished_callback(
                lambda _: os.kill(os.getpid(), signal.SIGKILL)
            )


def main() -> None:
    url = os.environ["BROKER_URL"]
    database = open_database(os.environ["DATABASE_URL"])
    broker = make_broker(url)
    dramatiq.set_broker(broker)
    make_app(broker, url, database)
    declare(broker, database)


if "DATABASE_URL" in os.environ:
    main()
