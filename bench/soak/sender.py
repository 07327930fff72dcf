"""Sends the jobs."""

from __future__ import annotations

import random
import time

from .actors import declare, make_broker
from .pollers import Watched
from .sights import Job
from .weather import Weather

#: The share of the jobs that are cancelled.
CANCELLED = 0.15

#: The sorts of jobs: their share, the steps and the pause in each, the metrics reported
#: in each, the attempts that fail, and the longest delay in seconds.
SORTS = {
    "quick": (0.30, (1, 3), 0.01, 1, 0, 0.0),
    "longer": (0.20, (40, 120), 0.1, 1, 0, 0.0),
    "fails once": (0.15, (3, 30), 0.05, 1, 1, 0.0),
    "fails for good": (0.10, (3, 30), 0.05, 1, 99, 0.0),
    "delayed": (0.15, (2, 20), 0.05, 1, 0, 12.0),
    "many metrics": (0.10, (10, 60), 0.05, 100, 0, 0.0),
}


class Sender:
    """Sends the jobs, evenly spread over a time."""

    def __init__(self, urls: tuple[str, str], weather: Weather, watched: Watched):
        self.broker = make_broker(*urls)
        self.work = declare(self.broker)
        self.weather = weather
        self.watched = watched

    def send(self, count: int, seconds: float) -> None:
        begun = time.monotonic()
        weights = [share for share, *_ in SORTS.values()]
        for i in range(count):
            time.sleep(max(0.0, begun + i * seconds / count - time.monotonic()))
            (what,) = random.choices(list(SORTS), weights)
            _, steps, pause, width, fails, delay = SORTS[what]
            before = time.time()
            owner = f"user{i}"
            args = (random.randint(*steps), pause, width, fails)
            message = self.work.send_with_options(
                args=args,
                delay=int(random.uniform(0.1, 1) * delay * 1000) or None,
                job_owner=owner,
            )
            uuid = message.message_id
            job = Job(uuid, owner, what, args[0], fails, time.time(), recorded=True)
            job.recorded = self.weather.was_fine(before)
            if random.random() < CANCELLED:
                job.cancel_in = random.uniform(0.0, 8.0)
            self.watched.jobs.append(job)
            self.watched.fresh.append(job)
