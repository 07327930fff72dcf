"""``python -m dramatiq bench.peers.dramatiq_worker``."""

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware

from .work import BROKER, STATE, TASKS

broker = RedisBroker(url=BROKER)
broker.add_middleware(JobStateMiddleware(url=STATE))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def work(name: str, args: list[Any], *, job_state: JobState) -> None:
    TASKS[name](job_state.set_progress, *args)
