"""What the jobs of all peers do, given a function that reports `(done, total)`."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable

import redis

from bench.timing import side_by_side

Report = Callable[[int, int], object]

#: Where the driver runs its servers.
BROKER = os.environ.get("BENCHMARK_BROKER", "")
STATE = os.environ.get("BENCHMARK_STATE", "")

#: The list in the broker's server to which a job adds its measurements.
MEASURED = "benchmark:measured"


def measure_updates(report: Report, count: int) -> None:
    """Time `count` updates, side by side with `HSET`, the least that one can cost."""
    with redis.Redis.from_url(STATE) as state, redis.Redis.from_url(BROKER) as broker:

        def update(count: int) -> None:
            for i in range(count):
                report(i, count)

        def hset(count: int) -> None:
            for i in range(count):
                state.hset("benchmark:floor", "done", i)

        theirs, floor = side_by_side((count, update), (300, hset), rounds=9)
        broker.rpush(MEASURED, json.dumps([theirs.rounds, floor.rounds]))


def take_steps(report: Report, count: int, pause: float) -> None:
    """Report after each of some steps."""
    for i in range(count):
        time.sleep(pause)
        report(i + 1, count)


def tell_the_time(report: Report, count: int) -> None:
    """Report the time in microseconds, at unpredictable moments."""
    for _ in range(count):
        time.sleep(random.uniform(0.12, 0.28))
        report(int(time.time() * 1e6), 2**52)


TASKS = {f.__name__: f for f in (measure_updates, take_steps, tell_the_time)}
