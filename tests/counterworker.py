"""The worker processes that count in a database: ``python -m dramatiq
tests.counterworker``.

They read the URLs of their servers from the environment.
"""

import os
import signal
from typing import Any

import dramatiq
import redis
from pyramid.request import Request

from tests.counters import SQL, make_app, mark
from tests.jobs import job_actor
from tests.workerprocess import make_broker

url = os.environ["BROKER_URL"]
broker = make_broker(url)
dramatiq.set_broker(broker)
make_app(broker, url, SQL(os.environ["DATABASE_URL"]))
client = redis.Redis.from_url(url)


@job_actor(broker=broker)
def follow(name: str, *, job_state: Any) -> None:
    client.rpush("followed", name)


@job_actor(broker=broker)
def die_at_first(*, request: Request, job_state: Any) -> None:
    run = client.incr("runs")
    request.root["counter"].value += 1
    mark(request, job_state.uuid)
    request.job_states.send(follow, f"run {run}")
    if run == 1:
        request.add_finished_callback(lambda _: os.kill(os.getpid(), signal.SIGKILL))
