"""Jobs that are treated roughly, and the worker processes of their test: ``python -m
dramatiq tests.rough``.
"""

import json
import os
import random
import threading
import time
import uuid
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobCancelled, JobState
from tests.workerprocess import make_broker


def make_rough_broker(url: str, store_url: str) -> RedisBroker:
    """Return a broker with its actor, in the sending process as in the workers."""
    broker = make_broker(url, store_url)
    client = redis.Redis.from_url(url)

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=100, max_backoff=200)
    def wander(plan: str, seed: int, *, job_state: JobState) -> None:
        """Report various values, note the end in the journal, and end as planned."""
        run = uuid.uuid4().hex
        dice = random.Random(seed)
        values: dict[str, Any] = {}

        def report(name: str, value: object) -> None:
            values[name] = value
            job_state.set_progress_metric(name, value)

        def note(outcome: str | None = None) -> None:
            line = {"job": job_state.uuid, "run": run, "at": time.time()}
            line |= {"outcome": outcome, "values": values}
            client.rpush("journal", json.dumps(line))

        note()
        try:
            report("run", run)
            for step in range(dice.randrange(2, 30)):
                report("step", step)
                report(dice.choice("abc"), dice.choice([True, False, None, "x", 7]))
                time.sleep(dice.random() * 0.05)
        except JobCancelled:
            if plan != "shield":
                note("cancelled")
                raise
            report("step", "shielded")
        if plan == "error" or (plan == "retry" and job_state.attempt == 1):
            note("error")
            raise ValueError("as planned")
        note("success")

    return broker


if "ROUGH_BROKER" in os.environ:
    # No worker outlives the tests, even if the process that started it is killed.
    end = threading.Timer(400, os._exit, (1,))
    end.daemon = True
    end.start()
    urls = os.environ["ROUGH_BROKER"], os.environ["ROUGH_STORE"]
    dramatiq.set_broker(make_rough_broker(*urls))
