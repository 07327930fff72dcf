"""The actor of the application whose jobs run in the web process, and its view."""

import contextlib
import os
from typing import Any

import dramatiq
from dramatiq.middleware import default_middleware
from dramatiq_eager_broker import EagerBroker
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import JobStateMiddleware, current_job_state

broker = EagerBroker([middleware() for middleware in default_middleware])
broker.add_middleware(JobStateMiddleware(url=os.environ["REDIS_URL"]))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def run_leg(miles: int, fails: bool, *, job_state: Any = None) -> None:
    for mile in job_state.track(range(miles)):
        job_state.set_progress_metric("miles_run", mile + 1)
    if fails:
        raise ValueError("a blister")


@dramatiq.actor(max_retries=0)
def run_relay(fails: bool, *, job_state: Any = None) -> None:
    with contextlib.suppress(ValueError):
        run_leg.send(2, fails)
    job_state.set_progress_metric("goes_on", current_job_state() is job_state)


def view(request: Request) -> Any:
    fails = "fails" in request.params
    if "relay" in request.params:
        return request.job_states.send(run_relay, fails)
    return request.job_states.send(run_leg, 2, fails)


def includeme(config: Configurator) -> None:
    config.add_route("run", "/run")
    config.add_view(view, route_name="run", renderer="json")
