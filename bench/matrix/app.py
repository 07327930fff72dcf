"""A small application and its jobs, for the smoke runs and the tests of WSGI servers.

Workers run ``python -m dramatiq bench.matrix.app``; WSGI servers call `make_app`. Both
read from the environment where their servers are:

* BROKER_URL: a Redis server or a RabbitMQ node.
* STORE_URL: a Redis server.
* DECODE_RESPONSES: ``1`` if the store's client is to return text, ``0`` if bytes.
  That client is redis-py's own, with its defaults. If unset, the store makes its own.
"""

import os
import time
from typing import Any

import dramatiq
import redis

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore

BROKER_URL = os.environ["BROKER_URL"]
STORE_URL = os.environ["STORE_URL"]


def make_broker() -> dramatiq.Broker:
    """Return a broker of the kind that the URL names."""
    if BROKER_URL.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=BROKER_URL)
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=BROKER_URL)


def make_store() -> JobStore:
    decode = os.environ.get("DECODE_RESPONSES")
    if decode is None:
        return JobStore(STORE_URL)
    client = redis.Redis.from_url(STORE_URL, decode_responses=decode == "1")
    return JobStore(client)


broker = make_broker()
broker.add_middleware(JobStateMiddleware(make_store(), interval=0.05, heartbeat=0.5))
dramatiq.set_broker(broker)

#: Where the jobs look for the keys that the test sets.
gates = redis.Redis.from_url(STORE_URL)


class RunMarathon(JobState):
    """A kind of job with a parameter that everyone may see."""

    public_params = ("miles",)


@dramatiq.actor(job_state=RunMarathon, max_retries=0)
def run_marathon(miles: int, *, job_state: Any = None) -> None:
    """Run to the end, or until someone cancels the job."""
    for mile in job_state.track(range(miles), unit="miles", message="running"):
        job_state.set_progress_metric("miles_run", mile + 1)
        time.sleep(0.02)


@dramatiq.actor(job_state=RunMarathon, max_retries=0)
def wait_at_gate(*, job_state: Any = None) -> None:
    """Wait until the test sets a key. Only the first run reports `first`."""
    if gates.set("first", 1, nx=True):
        job_state.set_progress_metric("first", True)
    job_state.set_progress_metric("group", os.getpgrp())
    deadline = time.monotonic() + 60
    while not gates.exists("gate") and time.monotonic() < deadline:
        time.sleep(0.02)
    job_state.set_progress_metric("done", True)


def make_app() -> Any:
    """Return the WSGI application. ``POST /run?miles=26`` sends a job and answers with
    its state. It trusts the header X-User.
    """
    # A worker does not need Pyramid.
    from pyramid.authorization import ACLHelper, Authenticated, Everyone
    from pyramid.config import Configurator

    class Policy:
        def identity(self, request: Any) -> str | None:
            user: str | None = request.headers.get("X-User")
            return user

        authenticated_userid = identity

        def permits(self, request: Any, context: Any, permission: str) -> Any:
            user = self.identity(request)
            principals = [Everyone] if user is None else [Everyone, Authenticated, user]
            return ACLHelper().permits(context, principals, permission)

    def run(request: Any) -> Any:
        return request.job_states.send(run_marathon, int(request.params["miles"]))

    with Configurator(
        security_policy=Policy(),
        settings={"tm.manager_hook": "pyramid_tm.explicit_manager"},
    ) as config:
        config.include("pyramid_tm")
        config.include("pyramid_jobstate")
        config.add_route("run", "/run", request_method="POST")
        config.add_view(run, route_name="run", renderer="json")
        return config.make_wsgi_app()
