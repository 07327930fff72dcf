"""The workers of the tests of batches: ``python -m dramatiq tests.batchapp``."""

import os
import time

import dramatiq

from pyramid_jobstate import JobState
from tests.workerprocess import make_broker

dramatiq.set_broker(make_broker(os.environ["REDIS_URL"]))


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
