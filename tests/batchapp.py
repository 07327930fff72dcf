"""The workers of the tests of batches: ``python -m dramatiq tests.batchapp``."""

import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore

#: The seconds of silence after which a job reads stalled.
STALLED_AFTER = 1.0

# A dead worker's messages are redelivered soon.
broker = RedisBroker(
    url=os.environ["REDIS_URL"], heartbeat_timeout=1000, maintenance_chance=1_000_000
)
store = JobStore(os.environ["REDIS_URL"], stalled_after=STALLED_AFTER)
broker.add_middleware(JobStateMiddleware(store, interval=0.02, heartbeat=0.2))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
def part(number: int, *, job_state: JobState) -> None:
    """Report for a moment. One in seven sends another, and one in eleven fails."""
    for step in job_state.track(range(5)):
        time.sleep(0.004)
        if step == 2 and number % 7 == 0 and number < 10_000:
            assert job_state.batch is not None
            job_state.batch.send(part, number + 10_000, key=f"after {number}")
    if number % 11 == 0:
        raise ValueError(number)
