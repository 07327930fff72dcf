"""The actors of the application whose jobs run in the web process, and their views."""

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
def run_relay(legs: int, fails: bool, *, job_state: Any = None) -> None:
    for leg in job_state.track(range(legs)):
        job_state.set_progress_metric("legs_begun", leg + 1)
        try:
            run_leg.send(3, fails)
        except ValueError:
            job_state.increment_progress_metric("legs_failed")
        is_current = current_job_state() is job_state
        assert is_current
        job_state.set_progress_metric("legs_run", leg + 1)


def view(request: Request) -> Any:
    actor = {"leg": run_leg, "relay": run_relay}[request.matchdict["actor"]]
    return request.job_states.send(actor, 2, "fails" in request.params)


def includeme(config: Configurator) -> None:
    config.add_route("run", "/run/{actor}")
    config.add_view(view, route_name="run", renderer="json")
