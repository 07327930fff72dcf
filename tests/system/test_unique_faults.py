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
    JobError,
    JobState,
    JobStateMiddleware,
    JobStore,
    NotRepeatable,
    StoreUnavailable,
    rerun,
)
from pyramid_jobstate.job.changes import End
from pyramid_jobstate.store import claims
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.worker.failures import failure_of
from tests.stepped import Killed, World, aside, stepped
from tests.web.databases import Manager, fail
from tests.webapp import make_app, make_request, make_tm_config

#: Why a job has failed whose message the broker refused.
NOT_SENT = JobError(None, "The job could not be sent.")

#: The statuses of a job whose message is on its way, or that runs.
ALIVE = ("queued", "working", "retrying", "cancelling")

PRESSERS, PRESSES, WORKERS = 4, 5, 2


class Run:
    """A run of a message in a worker of one thread, which may die at any round trip.

    This class alone knows how workers speak with the store.
    """

    def __init__(
        self, broker: StubBroker, store: JobStore, message: Message[Any]
    ) -> None:
        middleware = next(
            m for m in broker.middleware if isinstance(m, JobStateMiddleware)
        )
        self._store = store
        self._message = MessageProxy(message)
        self._unsaved = middleware.functions["nightly"].unsaved(self._message)

    def begin(self) -> str | None:
        """Return the token of the run, or None if it may not begin."""
        while (reply := self._write()) is Reply.UNCLAIMED:
            pass
        if reply is not Reply.OK:
            return None
        self._unsaved.mark_stored(time.monotonic())
        return self._unsaved.run.token

    def report(self) -> None:
        self._unsaved.run.set_metrics({"n": 1})
        self._write()

    def end(self, *, fails: bool) -> None:
        self._unsaved.end = End("success")
        if fails:
            error = ValueError("x")
            failure = failure_of(self._message, error, is_final=True)
            cause = JobError("ValueError", "x")
            self._unsaved.end = End("error", cause, failure=failure)
        over = (Reply.OK, Reply.CANCELLING, Reply.FENCED)
        while self._write() not in over:
            self._unsaved.begin_again()

    def _write(self) -> Reply:
        while True:
            with contextlib.suppress(RedisError):
                (reply,) = self._store.write([self._unsaved.take(time.monotonic())])
                if isinstance(reply, Reply):
                    return reply
            self._unsaved.mark_unconfirmed()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have claims be held so briefly that a process which stands still misses it."""
    monkeypatch.setattr(claims, "HOLD", 60)
    monkeypatch.setattr(claims, "MARGIN", 30)


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
        store = make_request(self.config).job_states.store
        run, uuid = Run(self.broker, store, message), message.message_id
        token = run.begin()
        if token is None:
            return
        with aside():
            newest = self.client.hget(f"jobstate:{uuid}", "run")
        if newest != token:
            # Its message was put back, and has run, while this worker stood still.
            return
        self.running.add(uuid)
        self.ran[uuid] += 1
        assert len(self.running) == 1, "Two jobs run at once."
        self.messages[uuid] = message
        # Its actor reports once, and returns.
        run.report()
        self.running.discard(uuid)
        try:
            run.end(fails=self.rng.random() < 0.3)
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

    def job(self, uuid: str) -> JobState:
        """Return the job that answers to a uuid."""
        job = self.store.load(uuid)
        assert job is not None, uuid
        return job

    def name(self, uuid: str) -> str:
        """Return the uuid of that job."""
        target: Any = self.client.hget(f"jobstate:{uuid}", "target")
        return str(target or uuid)

    def was_never_sent(self, uuid: str) -> bool:
        return self.status(self.name(uuid)) == "sending"


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
            job, never = scene.job(press.uuid), scene.was_never_sent(press.uuid)
            has_run = scene.name(press.uuid) in scene.ends[press.at :]
            assert has_run or job.error == NOT_SENT or never, job.status
            assert job.is_finished or never, job.status
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
    hurry(monkeypatch)

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
            certain = [p.uuid for p in scene.presses if p.is_certain]
            seen["pressed"] += len(scene.presses)
            seen["ran"] += len(scene.ran)
            seen["aliases"] += sum(scene.name(uuid) != uuid for uuid in certain)
            seen["winners"] += len({*map(scene.name, certain)})
            scene.client.flushdb()
        return seen

    return play_all


@pytest.mark.system
def test_never_two_jobs_of_a_key(scenes: Any) -> None:
    """Four pressers and two workers a key, with votes that fail, and operators."""
    seen = scenes(10)
    for what in "lose", "die before", "die after", "aliases", "ran":
        assert seen[what] > 3, what


@pytest.mark.long
def test_never_two_jobs_of_many_keys(scenes: Any) -> None:
    seen = scenes(10, 70)
    assert seen["aliases"] > 20
