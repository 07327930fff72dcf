"""The watchers: pollers, and followers of streams."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import time
from typing import Any

from .actors import HEARTBEAT_TIMEOUT
from .client import Answer, Connection
from .sights import FINISHED, Job, Sight, see
from .weather import Span

#: The seconds for which a job is watched before another has its turn.
PATIENCE = 40.0

#: The seconds for which a finished job is still watched: it may be redelivered.
LINGER = HEARTBEAT_TIMEOUT / 1000 + 3

#: The seconds after which a response is noted as slow.
SLOW = 1.0


class Watched:
    """What all watchers share. They watch each job at least once, and never rest.

    Attributes:
      port: The port of the web server.
      period: The seconds between two polls.
      count: The number of watchers.
      jobs: All jobs that were sent.
      fresh: Those not watched yet, or not watched to the end.
      codes: The number of responses to polls by status code, and of requests that got
        none under "none".
      cancels: The same of requests to cancel.
      streams: The same of requests for streams.
      events: The number of events by name, and of streams that the server ended under
        "end".
      slow: The requests that took long.
      failures: Why requests got no response.
      lags: When the loop of the watchers was busy.
      wrong: What should not have happened.
      over: Set when they are to stop.
    """

    def __init__(self, port: int, count: int, period: float) -> None:
        self.port = port
        self.count = count
        self.period = period
        self.jobs: list[Job] = []
        self.fresh: collections.deque[Job] = collections.deque()
        self.codes: collections.Counter[str] = collections.Counter()
        self.cancels: collections.Counter[str] = collections.Counter()
        self.streams: collections.Counter[str] = collections.Counter()
        self.events: collections.Counter[str] = collections.Counter()
        self.lags: list[Span] = []
        self.slow: list[str] = []
        self.failures: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.over = asyncio.Event()


class Poller:
    """Watches one job after the other by polls."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.connection = Connection(watched.port)
        self.job: Job
        self.sights: list[Sight]
        self.until = 0.0
        self.etag = ""

    async def run(self) -> None:
        watched = self.watched
        await asyncio.sleep(random.random() * watched.period)
        while not watched.over.is_set():
            if watched.fresh:
                await self.watch(watched.fresh.popleft())
            elif watched.jobs:
                await self.watch(random.choice(watched.jobs[-watched.count :]))
            else:
                await asyncio.sleep(watched.period)
        self.connection.close()

    async def watch(self, job: Job) -> None:
        """Watch a job until it is over, or for a while."""
        self.job, self.sights, self.etag = job, [], ""
        job.sights.append(self.sights)
        self.until = time.time() + PATIENCE
        while not self.is_over:
            if self.is_cancel_due:
                await self.cancel()
            answer = await self.poll()
            if answer is not None:
                await self.go_on(answer)
            await asyncio.sleep(self.watched.period * random.uniform(0.8, 1.2))
        if not self.has_seen_end:
            self.watched.fresh.append(job)

    @property
    def is_over(self) -> bool:
        """Whether it is time for another job."""
        return time.time() >= self.until or self.watched.over.is_set()

    @property
    def has_seen_end(self) -> bool:
        """Whether the job has finished, as far as was seen."""
        return bool(self.sights) and self.sights[-1].status in FINISHED

    async def poll(self) -> Answer | None:
        """Poll the job once."""
        at = time.time()
        answer = await self.ask("", Accept="application/json", If_None_Match=self.etag)
        if answer is None:
            self.watched.codes["none"] += 1
            return None
        self.watched.codes[str(answer.status)] += 1
        if answer.status == 200:
            self.etag = answer.headers["etag"]
            self.see(at, json.loads(answer.body))
        elif answer.status == 404 and self.job.recorded:
            self.blame("is unknown (404)")
        elif answer.status not in (304, 404, 503):
            self.blame(f"gave {answer.status}")
        return answer

    async def go_on(self, answer: Answer) -> None:
        """Do what else the answer to a poll calls for: here, nothing."""

    @property
    def is_cancel_due(self) -> bool:
        """Whether the job is to be cancelled, and nobody has done so yet."""
        job = self.job
        return (
            job.cancel_in is not None
            and not job.cancel_asked
            and time.time() > job.sent + job.cancel_in
        )

    async def cancel(self) -> None:
        """Cancel the job, on another connection than that of a stream."""
        job = self.job
        job.cancel_asked = time.time()
        connection = Connection(self.watched.port)
        answer = await self.ask(
            "/cancel", "POST", connection, X_Requested_With="XMLHttpRequest"
        )
        connection.close()
        if answer is None:
            self.watched.cancels["none"] += 1
            return
        self.watched.cancels[str(answer.status)] += 1
        status = ""
        if answer.status == 202:
            status = json.loads(answer.body)["job"]["status"]
        elif answer.status not in (404, 409, 503) or (
            answer.status == 404 and job.recorded
        ):
            self.blame(f"gave {answer.status} to a cancel")
        job.cancel_answer = (answer.status, status)

    async def ask(
        self,
        place: str,
        method: str = "GET",
        connection: Connection | None = None,
        **headers: str,
    ) -> Answer | None:
        """Return the response to a request of the job's owner, or None."""
        path = f"/job_state/{self.job.uuid}{place}"
        sent = {name: value for name, value in headers.items() if value}
        begun = time.time()
        try:
            return await (connection or self.connection).ask(
                method, path, X_User=self.job.owner, **sent
            )
        except OSError as e:
            self.watched.failures[str(e) or type(e).__name__] += 1
            return None
        finally:
            took = time.time() - begun
            if took > SLOW:
                self.watched.slow.append(
                    f"{took:.2f} s from {begun:.3f}: {method} {path} {sent}"
                )

    def see(self, at: float, state: dict[str, Any]) -> None:
        """Note what was shown of the job, and check what can be checked at once."""
        was_over = self.has_seen_end
        self.watched.wrong += see(self.job, self.sights, at, state)
        if self.has_seen_end and not was_over:
            self.until = min(self.until, time.time() + random.random() * LINGER)

    def blame(self, what: str) -> None:
        self.watched.wrong.append(f"{self.job.uuid} {what}")
