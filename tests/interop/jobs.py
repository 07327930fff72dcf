"""The actors of all applications here, imported by their web processes and workers."""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware

broker = RedisBroker(url=os.environ["REDIS_URL"])
broker.add_middleware(JobStateMiddleware())
dramatiq.set_broker(broker)


class InteropMarathon(JobState):
    """The kind of job that the applications send."""

    public_params = ("miles",)


@dramatiq.actor(job_state=InteropMarathon)
def run_marathon(miles: int, *, job_state: Any = None) -> None:
    for mile in job_state.track(range(miles), unit="miles"):
        job_state.set_progress_metric("miles_run", mile + 1)
