"""Jobs that are treated roughly, and the worker processes of their tests."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, default_middleware

from pyramid_jobstate import JobCancelled, JobState, JobStateMiddleware, JobStore

#: The seconds of silence after which a job reads stalled.
STALLED_AFTER = 1.0


def make_store(url: str, expire_in: float = 60) -> JobStore:
    return JobStore(url, stalled_after=STALLED_AFTER, expire_in=expire_in)


def make_broker(
    broker_url: str, store: JobStore, heartbeat: float = 0.2
) -> RedisBroker:
    """Return a broker that redelivers the messages of a dead worker soon."""
    own = [m() for m in default_middleware]
    broker = RedisBroker(
        url=broker_url,
        middleware=[*own, AsyncIO(), CurrentMessage()],
        heartbeat_timeout=1000,
        maintenance_chance=1_000_000,
    )
    broker.add_middleware(JobStateMiddleware(store, interval=0.05, heartbeat=heartbeat))
    return broker


class Notes:
    """What the jobs leave for the test, in the broker's server."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True)

    def add(self, name: str, value: object = "") -> None:
        self._client.rpush(f"notes:{name}", str(value))

    def all(self, name: str) -> list[str]:
        notes: Any = self._client.lrange(f"notes:{name}", 0, -1)
        return notes

    def set(self, name: str) -> None:
        self._client.set(f"flag:{name}", 1)

    def has(self, name: str) -> bool:
        return bool(self._client.exists(f"flag:{name}"))

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while not self.has(name) and time.monotonic() < deadline:
            time.sleep(0.01)


def declare(broker: dramatiq.Broker, notes: Notes) -> None:
    """Declare the actors, in the sending process as in the workers."""

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def count() -> None:
        notes.add("count")

    @dramatiq.actor(broker=broker, min_backoff=2000, max_backoff=2001, job_state=True)
    def fail_once() -> None:
        notes.add("count")
        raise ValueError("as planned")

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def hang() -> None:
        notes.add("count", os.getpid())
        time.sleep(30)

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def fail_at_first() -> None:
        notes.add("first")
        if not notes.has("repaired"):
            raise ValueError("as planned")

    @dramatiq.actor(broker=broker, max_retries=0)
    def clean_up(*, job_state: JobState) -> None:
        def step(number: int) -> None:
            job_state.set_progress_metric("step", number)
            time.sleep(0.01)

        with ThreadPoolExecutor(2) as pool:
            try:
                for _ in pool.map(step, range(5000)):
                    pass
            finally:
                job_state.set_message("cleaning up")
                notes.add("clean", "up")

    @dramatiq.actor(broker=broker, max_retries=0)
    def submit(*, job_state: JobState) -> None:
        def step(number: int) -> None:
            time.sleep(0.02)
            job_state.set_progress_metric("step", number)
            notes.add("count")

        with ThreadPoolExecutor(4) as pool:
            for number in range(400):
                pool.submit(step, number)

    @dramatiq.actor(broker=broker, max_retries=0)
    async def gather(*, job_state: JobState) -> None:
        async def step(number: int) -> None:
            try:
                while True:
                    await asyncio.sleep(0.01)
                    job_state.set_progress_metric(f"step{number}", 1)
            except JobCancelled:
                notes.add("count", number)
                raise

        await asyncio.gather(*map(step, range(5)), return_exceptions=True)
        job_state.raise_if_cancelled()

    def put_back() -> None:
        notes.add("count")
        if len(notes.all("count")) == 1:
            message: Any = CurrentMessage.get_current_message()
            broker.enqueue(dramatiq.Message(**message.asdict()), delay=1500)

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def come_back(how: str) -> None:
        put_back()
        if how == "failing" and len(notes.all("count")) == 1:
            raise ValueError("as planned")

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    async def come_back_async(how: str) -> None:
        if how == "thread":
            await asyncio.to_thread(put_back)
        else:
            put_back()

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def kill_broker(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def follow(*args: Any) -> None:
        notes.add("count")

    @dramatiq.actor(broker=broker, max_retries=0)
    def ask_seldom(how: str, *, job_state: JobState) -> None:
        notes.set("begun")
        notes.wait_for("go")
        try:
            if how == "ask":
                job_state.raise_if_cancelled()
            elif how == "look":
                assert not job_state.cancel_requested
            else:
                job_state.set_progress(1)
        finally:
            notes.add("asked")
        notes.add("missed")

    @dramatiq.actor(broker=broker, max_retries=0)
    def toggle(*, job_state: JobState) -> None:
        for value in (True, False, True):
            job_state.set_progress_metric("busy", value)
            job_state.flush(0.3)
        notes.add("toggled")
        notes.wait_for("go")

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=100, max_backoff=200)
    def wander(plan: str, seed: int, *, job_state: JobState) -> None:
        """Report various values, note the end in the journal, and end as planned."""
        run = uuid.uuid4().hex
        dice = random.Random(seed)
        values: dict[str, Any] = {}

        def report(name: str, value: object) -> None:
            values[name] = value
            job_state.set_progress_metric(name, value)

        def note(event: str, **what: object) -> None:
            line = {"event": event, "job": job_state.uuid, "run": run, **what}
            line["at"] = time.time()
            notes.add("journal", json.dumps(line))

        note("start")
        try:
            report("run", run)
            for step in range(dice.randrange(2, 30)):
                report("step", step)
                report(dice.choice("abc"), dice.choice([True, False, None, "x", 7]))
                time.sleep(dice.random() * 0.05)
        except JobCancelled:
            if plan != "shield":
                note("end", outcome="cancelled")
                raise
            values["step"] = "shielded"
            job_state.set_progress_metric("step", "shielded")
        if plan == "error" or (plan == "retry" and job_state.attempt == 1):
            note("end", outcome="error", values=values)
            raise ValueError("as planned")
        note("end", outcome="success", values=values)

    broker_ = broker

    class Marathon(dramatiq.GenericActor):
        class Meta:
            broker = broker_
            max_retries = 0

        def perform(self, miles: int, *, pace: int = 5, job_state: JobState) -> None:
            job_state.set_progress_metric("minutes", miles * pace)


def main() -> None:
    """Set up what ``python -m dramatiq tests.rough`` works with."""
    # No worker outlives the tests, even if the process that started it is killed.
    end = threading.Timer(400, os._exit, (1,))
    end.daemon = True
    end.start()
    store = make_store(os.environ["ROUGH_STORE"], float(os.environ["ROUGH_EXPIRE_IN"]))
    broker = make_broker(
        os.environ["ROUGH_BROKER"], store, float(os.environ["ROUGH_HEARTBEAT"])
    )
    declare(broker, Notes(os.environ["ROUGH_NOTES"]))
    dramatiq.set_broker(broker)


if "ROUGH_BROKER" in os.environ:
    main()
