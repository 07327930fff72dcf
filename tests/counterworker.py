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

from tests.counters import Database, make_app, open_database
from tests.jobs import job_actor
from tests.workerprocess import make_broker


def declare(broker: RedisBroker, database: Database) -> None:
    """Declare the actors, in the sending process as in the workers."""
    client = redis.Redis.from_url(os.environ.get("BROKER_URL", "redis://"))

    @job_actor(broker=broker)
    def follow(name: str, *, job_state: Any) -> None:
        client.rpush("followed", name)

    @job_actor(broker=broker)
    def die_at_first(*, request: Request, job_state: Any) -> None:
        run = client.incr("runs")
        request.root["counter"].value += 1
        database.mark(request, job_state.uuid)
        request.job_states.send(follow, f"run {run}")
        if run == 1:
            request.add_finished_callback(
                lambda _: os.kill(os.getpid(), signal.SIGKILL)
            )


if "DATABASE_URL" in os.environ:
    url = os.environ["BROKER_URL"]
    broker = make_broker(url)
    dramatiq.set_broker(broker)
    database = open_database(os.environ["DATABASE_URL"])
    make_app(broker, url, database)
    declare(broker, database)
