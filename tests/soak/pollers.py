"""The pollers, and what they saw."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import random
import time
from typing import Any, NamedTuple

from .actors import HEARTBEAT_TIMEOUT
from .client import Answer, Connection

USER = "alice"

#: The seconds for which a job is watched before another has its turn.
PATIENCE = 40.0

#: The seconds for which a finished job is still watched: it may be redelivered.
LINGER = HEARTBEAT_TIMEOUT / 1000 + 3

FINISHED = ("success", "error", "cancelled")


class Sight(NamedTuple):
    """What a response showed of a job.

    Attributes:
      at: When it was requested.
      status: The status.
      run: The run whose metrics it has, if one has reported.
      attempt: The attempt.
      done: The progress.
    """

    at: float
    status: str
    run: str | None
    attempt: int
    done: float


@dataclasses.dataclass
class Job:
    """A job that was sent.

    Attributes:
      uuid: Its message's id.
      what: Its sort.
      steps, fails: How many steps it takes, and in how many attempts it fails.
      sent: When it was sent.
      recorded: Whether the store was available at that time.
      cancel_in: Seconds after which a poller is to cancel it, if at all.
      cancel_asked: When a poller tried to.
      cancel_answer: The result: a status code, 0 for no response, and the job's
        status.
      sights: What each of its watchers saw, in order.
    """

    uuid: str
    what: str
    steps: int
    fails: int
    sent: float
    recorded: bool
    cancel_in: float | None = None
    cancel_asked: float = 0.0
    cancel_answer: tuple[int, str] = (0, "")
    sights: list[list[Sight]] = dataclasses.field(default_factory=list)


class Pollers:
    """The pollers. They watch each job at least once, and never rest.

    Attributes:
      jobs: All jobs that were sent.
      fresh: Those not watched yet, or not watched to the end.
      codes: The number of responses by status code, and of requests that got none under
        "none".
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
        self.wrong: list[str] = []
        self.over = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self._poll_all())

    async def _poll_all(self) -> None:
        connection = Connection(self.port)
        await asyncio.sleep(random.random() * self.period)
        while not self.over.is_set():
            if self.fresh:
                await self._watch(connection, self.fresh.popleft())
            elif self.jobs:
                recent = self.jobs[-self.count :]
                await self._watch(connection, random.choice(recent))
            else:
                await asyncio.sleep(self.period)
        connection.close()

    async def _watch(self, connection: Connection, job: Job) -> None:
        sights: list[Sight] = []
        job.sights.append(sights)
        path = f"/job_state/{job.uuid}"
        headers = {"X_User": USER, "Accept": "application/json"}
        since = time.time()
        until = since + PATIENCE
        while time.time() < until and not self.over.is_set():
            now = time.time()
            if (
                job.cancel_in is not None
                and not job.cancel_asked
                and now > job.sent + job.cancel_in
            ):
                await self._cancel(connection, job)
            at = time.time()
            answer = await self._ask(connection, "GET", path, headers)
            if answer is None:
                self.codes["none"] += 1
            else:
                self.codes[str(answer.status)] += 1
                if answer.status == 200:
                    headers["If_None_Match"] = answer.headers["etag"]
                    self._see(job, sights, at, json.loads(answer.body))
                    if sights[-1].status in FINISHED:
                        until = min(until, time.time() + random.random() * LINGER)
                elif answer.status == 404 and job.recorded:
                    self.wrong.append(f"{job.uuid} is unknown (404)")
                elif answer.status not in (304, 404, 503):
                    self.wrong.append(f"{job.uuid} gave {answer.status}")
            await asyncio.sleep(self.period * random.uniform(0.8, 1.2))
        if not (sights and sights[-1].status in FINISHED):
            self.fresh.append(job)

    async def _cancel(self, connection: Connection, job: Job) -> None:
        job.cancel_asked = time.time()
        headers = {"X_User": USER, "X_Requested_With": "XMLHttpRequest"}
        answer = await self._ask(
            connection, "POST", f"/job_state/{job.uuid}/cancel", headers
        )
        if answer is None:
            self.cancels["none"] += 1
            return
        self.cancels[str(answer.status)] += 1
        status = ""
        if answer.status == 202:
            status = json.loads(answer.body)["job"]["status"]
        elif answer.status not in (404, 409, 503) or (
            answer.status == 404 and job.recorded
        ):
            self.wrong.append(f"{job.uuid}: to cancel it gave {answer.status}")
        job.cancel_answer = (answer.status, status)

    async def _ask(
        self, connection: Connection, method: str, path: str, headers: dict[str, str]
    ) -> Answer | None:
        try:
            return await connection.ask(method, path, **headers)
        except OSError:
            return None

    def _see(
        self, job: Job, sights: list[Sight], at: float, state: dict[str, Any]
    ) -> None:
        """Note a response, and check what can be checked at once."""
        about = state["job"]
        progress = about["progress"] or {"done": 0}
        sight = Sight(
            at, about["status"], state.get("run"), about["attempt"], progress["done"]
        )
        coarse = {"success": "success", "error": "error", "cancelled": "error"}
        if state["job_state"] != coarse.get(sight.status, "working"):
            self.wrong.append(f"{job.uuid} reads {state['job_state']} as {sight}")
        if len({value for name, value in state.items() if name[0] == "m"}) > 1:
            self.wrong.append(f"{job.uuid}: some metrics of a step and not others")
        if sight.status == "success" and sight.done != job.steps:
            self.wrong.append(f"{job.uuid} succeeded after {sight.done} {job.steps=}")
        last = sights[-1] if sights else None
        if last and last.run == sight.run is not None and last.done > sight.done:
            self.wrong.append(f"{job.uuid} went back from {last} to {sight}")
        if last is None or last[1:] != sight[1:]:
            sights.append(sight)
