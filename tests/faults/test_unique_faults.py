"""Unique jobs while senders, workers and operators die between any two round trips, and
replies are lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from redis.exceptions import RedisError

from pyramid_jobstate import (
    JobStateMiddleware,
    JobStore,
    NotRepeatable,
    StoreUnavailable,
    rerun,
)
from pyramid_jobstate.job.changes import End
from pyramid_jobstate.job.record import NOT_SENT, JobError, Record
from pyramid_jobstate.store import claims
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.worker.failures import failure_of
from tests.stepped import Killed, World, aside, stepped
from tests.web.databases import Manager, fail
from tests.webapp import make_app, make_request, make_tm_config

#: The statuses of a job whose message is on its way, or that runs.
ALIVE = ("queued", "working", "retrying", "cancelling")

PRESSERS, PRESSES, WORKERS = 4, 5, 2


class Vetoed(Exception):
    """Raised by a database that refuses to commit."""


@dataclasses.dataclass
class Press:
    """A press of the button.

    Attributes:
      uuid: The job with which it was answered.
      is_new: Whether the press was answered with a job of its own.
      at: When, by the number of ends before.
      is_certain: Whether its transaction has committed, as far as it lived to see.
    """

    uuid: str
    is_new: bool
    at: int
    is_certain: bool = False


class Scene(World):
    """One key, and everybody who wants its job to run.

    Parameters:
      url: The server.
      broker: Dramatiq's global broker, which has no worker.
      config: The configurator of the application.
    """

    def __init__(
        self, seed: int, faults: float, url: str, broker: StubBroker, config: Any
    ) -> None:
        super().__init__(seed, faults)
        self.key = f"key {seed}"
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self.store = JobStore(self.client)
        self.config = config
        self.broker = broker
        self.actor = broker.get_actor("nightly")
        self.presses: list[Press] = []
        self.mail: list[Message[Any]] = []
        self.sent: set[str] = set()
        self.ran: Counter[str] = Counter()
        #: The messages of jobs that have run.
        self.messages: dict[str, Message[Any]] = {}
        self.running: set[str] = set()
        #: The uuid of each run that has ended, in order.
        self.ends: list[str] = []
        self.is_settling = False

    def press(self) -> None:
        """Press the button a few times."""
        for _ in range(1 if self.is_settling else PRESSES):
            request = make_request(self.config, "alice")
            request.tm.begin()
            refuses = not self.is_settling and self.rng.random() < 0.15
            if refuses:
                database = Manager("a", "tpc_vote", lambda: fail(Vetoed))
                request.tm.get().join(database)
            try:
                job = request.job_states.send_with_options(
                    self.actor, (), unique=self.key
                )
                known = {press.uuid for press in self.presses} | self.sent
                press = Press(job.uuid, job.uuid not in known, len(self.ends))
                self.presses.append(press)
                request.tm.commit()
                press.is_certain = True
            except (StoreUnavailable, Vetoed):
                request.tm.abort()

    def deliver(self) -> Message[Any] | None:
        """Return a message for a worker, or None if no message waits."""
        queue = self.broker.queues["default"]
        while not queue.empty():
            message = Message.decode(queue.get())
            self.mail.append(message)
            self.sent.add(message.message_id)
        if not self.mail:
            return None
        return self.mail.pop(self.rng.randrange(len(self.mail)))

    def work(self) -> None:
        """Run the job of one message. If this worker dies, it is delivered again."""
        message = self.deliver()
        if message is None:
            return
        try:
            self.run(message)
        except Killed:
            self.mail.append(message)
            raise
        finally:
            self.running.discard(message.message_id)

    def run(self, message: Message[Any]) -> None:
        middleware = next(
            m for m in self.broker.middleware if isinstance(m, JobStateMiddleware)
        )
        proxy = MessageProxy(message)
        unsaved = middleware.functions["nightly"].unsaved(proxy)
        store = make_request(self.config).job_states.store

        def write() -> Reply:
            while True:
                try:
                    (reply,) = store.write([unsaved.take(time.monotonic())])
                except RedisError:
                    unsaved.mark_unconfirmed()
                    continue
                if isinstance(reply, Reply):
                    return reply
                unsaved.mark_unconfirmed()

        reply = write()
        while reply is Reply.UNCLAIMED:
            reply = write()
        if reply is not Reply.OK:
            return
        unsaved.mark_stored(time.monotonic())
        uuid = message.message_id
        with aside():
            newest = self.client.hget(f"jobstate:{uuid}", "run")
        if newest != unsaved.run.token:
            # Its message was put back, and has run, while this worker stood still.
            return
        self.running.add(uuid)
        self.ran[uuid] += 1
        assert len(self.running) == 1, "Two jobs run at once."
        self.messages[uuid] = message
        # Its actor reports once, and returns.
        unsaved.run.set_metrics({"n": 1})
        write()
        self.running.discard(uuid)
        unsaved.end = End("success")
        if self.rng.random() < 0.3:
            error = ValueError("x")
            failure = failure_of(proxy, error, is_final=True)
            unsaved.end = End("error", JobError("ValueError", "x"), failure=failure)
        try:
            while write() not in (Reply.OK, Reply.CANCELLING, Reply.FENCED):
                unsaved.begin_again()
        finally:
            # It may have died when that was written.
            self.ends.append(uuid)

    def run_again(self) -> None:
        """Run a job again that has failed."""
        with aside():
            failed = [u for u in sorted(self.sent) if self.status(u) == "error"]
        if failed:
            store = make_request(self.config).job_states.store
            with contextlib.suppress(NotRepeatable, RedisError):
                rerun(store, self.broker, self.rng.choice(failed))

    def put_back(self) -> None:
        """Put the message of a job that has run back in the queue."""
        if self.messages:
            uuid = self.rng.choice(sorted(self.messages))
            self.broker.enqueue(self.messages[uuid])

    def status(self, uuid: str) -> str | None:
        found: Any = self.client.hget(f"jobstate:{uuid}", "status")
        return None if found is None else str(found)

    def check(self) -> None:
        """Check that at most one job is alive."""
        uuids = {press.uuid for press in self.presses} | self.sent
        alive = [uuid for uuid in uuids if self.status(uuid) in ALIVE]
        assert len(alive) <= 1, {uuid: self.status(uuid) for uuid in uuids}

    def age(self) -> None:
        """Let jobs that were not confirmed grow old."""
        for uuid in {press.uuid for press in self.presses} | self.sent:
            if self.status(uuid) == "sending":
                self.client.hincrby(f"jobstate:{uuid}", "updated", -20_000)
        for claim in self.client.keys("jobstate:unique:*"):
            marks = [name for name in self.client.hkeys(claim) if "mark:" in name]
            for mark in marks:
                self.client.hincrby(claim, mark, -20_000)

    def play(self) -> None:
        """Let everybody act until all is quiet."""
        for _ in range(PRESSERS):
            self.start(self.press)
        while self.step():
            self.check()
            live = sum(not process.is_over for process in self.processes)
            if live < PRESSERS + WORKERS and self.rng.random() < 0.3:
                operates = [self.run_again, self.put_back]
                acts = [*operates, *[self.work] * 6]
                self.start(self.rng.choice(acts))
            if self.rng.random() < 0.05:
                self.age()
        self.settle()

    def step(self) -> bool:
        is_left = super().step()
        for process in self.processes:
            if process.error is not None:
                raise process.error
        return is_left

    def settle(self) -> None:
        """Deliver what is left, with no more faults."""
        self.faults, self.is_settling = 0, True
        while (message := self.deliver()) is not None:
            self.mail.append(message)
            self.start(self.work)
            while self.step():
                self.check()

    def press_last(self) -> Press:
        """Press once more."""
        self.start(self.press)
        while self.step():
            self.check()
        return self.presses[-1]

    def record(self, uuid: str) -> Record:
        record = self.store.record(uuid)
        assert record is not None, uuid
        return record


def play(seed: int, url: str, broker: StubBroker, config: Configurator) -> Scene:
    """Play a scene, and check how it ended."""
    scene = Scene(seed, 0.06, url, broker, config)
    with stepped():
        scene.play()
        scene.age()
        for press in scene.presses:
            if not press.is_certain:
                continue
            # What has committed was sent, or is the job of somebody whose message was,
            # or says that it could not be sent.
            record = scene.record(press.uuid)
            has_run = record.uuid in scene.ends[press.at :]
            is_unsent = record.error == NOT_SENT or record.was_never_sent
            assert has_run or is_unsent, record.stored_status
            assert record.is_finished or record.was_never_sent, record.stored_status
        # The key is free.
        last = scene.press_last()
        assert last.is_certain
        assert last.is_new
        scene.settle()
        assert scene.ran[last.uuid] == 1
        # The press has ended all that was never sent.
        uuids = {press.uuid for press in scene.presses} | scene.sent
        assert "sending" not in {scene.status(uuid) for uuid in uuids}
    # Nothing holds its claim for ever.
    for claim in scene.client.keys("jobstate:unique:*"):
        held: Any = scene.client.hget(claim, "held")
        assert float(held) < time.time() * 1000 + 100
    return scene


@pytest.fixture
def broker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> StubBroker:
    """A broker that keeps messages in memory."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=redis_url))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    # So short that a process which stands still misses it.
    monkeypatch.setattr(claims, "HOLD", 60)
    monkeypatch.setattr(claims, "MARGIN", 30)

    @dramatiq.actor(broker=broker, job_state=True)
    def nightly() -> None:
        pass

    return broker


@pytest.fixture
def scenes(redis_url: str, broker: StubBroker) -> Any:
    """Plays scenes of the seeds in a range."""
    config = make_tm_config(redis_url)
    make_app(config)

    def play_all(*seeds: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        for seed in range(*seeds):
            scene = play(seed, redis_url, broker, config)
            seen += scene.seen
            winners = {scene.record(p.uuid).uuid for p in scene.presses if p.is_certain}
            seen["pressed"] += len(scene.presses)
            seen["ran"] += len(scene.ran)
            seen["aliases"] += sum(
                scene.record(p.uuid).uuid != p.uuid
                for p in scene.presses
                if p.is_certain
            )
            seen["winners"] += len(winners)
            scene.client.flushdb()
        return seen

    return play_all


def test_never_two_jobs_of_a_key(scenes: Any) -> None:
    """Four pressers and two workers a key, with votes that fail, and operators."""
    seen = scenes(10)
    for what in "lose", "die before", "die after", "aliases", "ran":
        assert seen[what] > 3, what


@pytest.mark.long
def test_never_two_jobs_of_many_keys(scenes: Any) -> None:
    seen = scenes(10, 70)
    assert seen["aliases"] > 20
