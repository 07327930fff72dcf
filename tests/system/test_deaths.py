"""Unique jobs and the jobs of a batch, while senders, workers and operators die between
any two round trips, and replies are lost.
"""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from redis.exceptions import RedisError

from pyramid_jobstate import (
    Batch,
    Counts,
    JobError,
    JobStateMiddleware,
    JobStore,
    NotRepeatable,
    StoreUnavailable,
    rerun,
)
from pyramid_jobstate.job.record import End
from pyramid_jobstate.store import claims
from pyramid_jobstate.store.jobstore import records_of
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.testing import pass_time
from pyramid_jobstate.worker.ledger import ledger_of
from pyramid_jobstate.worker.message import failure_of
from tests.stepped import World, aside, stepped
from tests.support import load_job, wait_for
from tests.trips import Killed
from tests.web.databases import Manager, fail
from tests.webapp import make_app, make_request, make_tm_config

#: Why a job has failed whose message the broker refused.
NOT_SENT = JobError(None, "The job could not be sent.")

#: The statuses of a job whose message is on its way, or that runs.
ALIVE = ("queued", "working", "retrying", "cancelling")


class Run:
    """A run of a message in a worker of one thread, which may die at any round trip.

    This class alone knows how workers speak with the store.
    """

    def __init__(
        self, broker: StubBroker, store: JobStore, message: Message[Any]
    ) -> None:
        self._store = store
        self._message = MessageProxy(message)
        self._unsaved = ledger_of(broker).functions["nightly"].unsaved(self._message)

    def begin(self) -> str | None:
        """Return the token of the run, or None if it may not begin."""
        while (reply := self._write()) is Reply.UNCLAIMED:
            pass
        if reply is not Reply.OK:
            return None
        self._unsaved.mark_stored(time.monotonic())
        return self._unsaved.run.token

    def report(self) -> None:
        self._unsaved.run.set_progress(1, 2, None, None)
        self._unsaved.tell_soon()
        self._write()

    def end(self, *, fails: bool) -> None:
        self._unsaved.end = End("success")
        if fails:
            failure = failure_of(self._message, ValueError("x"), is_final=True)
            cause = JobError("ValueError", "x")
            self._unsaved.end = End("error", cause, failure=failure)
        while self._write() not in (Reply.OK, Reply.CANCELLING, Reply.FENCED):
            self._unsaved.begin_again()

    def _write(self) -> Reply:
        while True:
            with contextlib.suppress(RedisError):
                (reply,) = records_of(self._store).write(
                    [self._unsaved.take(time.monotonic())]
                )
                if isinstance(reply, Reply):
                    return reply
            self._unsaved.mark_unconfirmed()


class Vetoed(Exception):
    """Raised by a database that refuses to commit."""


@dataclasses.dataclass
class Press:
    """A press of the button.

    Attributes:
      uuid: The job with which it was answered.
      is_new: Whether that is a job of its own.
      at: When, by the number of ends before.
      is_certain: Whether its transaction has committed, as far as it lived to see.
    """

    uuid: str
    is_new: bool
    at: int
    is_certain: bool = False


class Scene(World):
    """Jobs whose messages a broker without a worker keeps.

    Attributes:
      mail: The messages that wait.
      sent: The jobs whose messages have left.
      ran: How often each job has run.
      messages: The messages of those jobs.
      running: The jobs that run.
      ends: The job of each run that has ended, in order.
      left_failed: The jobs that somebody has begun to run again who died, or could not
        say that their messages had left.
    """

    def __init__(self, seed: int, url: str, broker: StubBroker, config: Any) -> None:
        super().__init__(seed, faults=0.06)
        self.config = config
        self.broker = broker
        self.actor = broker.get_actor("nightly")
        self.store: JobStore = make_request(config).job_states.store
        self.client: Any = redis.Redis.from_url(url, decode_responses=True)
        self.mail: list[Message[Any]] = []
        self.sent: set[str] = set()
        self.ran: Counter[str] = Counter()
        self.messages: dict[str, Message[Any]] = {}
        self.running: set[str] = set()
        self.ends: list[str] = []
        self.left_failed: set[str] = set()

    def deliver(self) -> Message[Any] | None:
        """Return a message for a worker, or None if no message waits."""
        queue = self.broker.queues["default"]
        while not queue.empty():
            self.mail.append(Message.decode(queue.get()))
            self.sent.add(self.mail[-1].message_id)
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
        run, uuid = Run(self.broker, self.store, message), message.message_id
        token = run.begin()
        if token is None:
            return
        with aside():
            newest = self.field(uuid, "run")
        if newest != token:
            # Its message was put back, and has run, while this worker stood still.
            return
        self.running.add(uuid)
        self.ran[uuid] += 1
        self.messages[uuid] = message
        # Its actor reports twice, and returns.
        run.report()
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
        if not failed:
            return
        uuid = self.rng.choice(failed)
        try:
            rerun(self.store, self.broker, uuid)
        except NotRepeatable:
            pass
        except (RedisError, Killed) as e:
            self.left_failed.add(uuid)
            if isinstance(e, Killed):
                raise

    def put_back(self) -> None:
        """Put the message of a job that has run back in the queue."""
        if self.messages:
            uuid = self.rng.choice(sorted(self.messages))
            self.broker.enqueue(self.messages[uuid])

    def field(self, uuid: str, name: str) -> str | None:
        found: str | None = self.client.hget(f"jobstate:{uuid}", name)
        return found

    def status(self, uuid: str) -> str | None:
        return self.field(uuid, "status")

    def check(self) -> None:
        """Check what is always true."""

    def age(self) -> None:
        """Let time pass."""

    def play(self, *acts: Callable[[], None]) -> None:
        """Let these act, and workers and operators, until all is quiet."""
        for act in acts:
            self.start(act)
        while self.step():
            live = sum(not process.is_over for process in self.processes)
            if live < len(acts) + 2 and self.rng.random() < 0.3:
                operates = [self.run_again, self.put_back]
                self.start(self.rng.choice([*operates, *[self.work] * 6]))
            if self.rng.random() < 0.05:
                self.age()
        self.settle()

    def step(self) -> bool:
        is_left = super().step()
        for process in self.processes:
            if process.error is not None:
                raise process.error
        with aside():
            self.check()
        return is_left

    def settle(self) -> None:
        """Deliver what is left, with no more faults."""
        self.faults = 0
        while (message := self.deliver()) is not None:
            self.mail.append(message)
            self.start(self.work)
            while self.step():
                pass


class Key(Scene):
    """One key, and everybody who wants its job to run."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.presses: list[Press] = []

    def press(self) -> None:
        """Press the button a few times, or once when all is quiet."""
        for _ in range(5 if self.faults else 1):
            request = make_request(self.config, "alice")
            request.tm.begin()
            if self.faults and self.rng.random() < 0.15:
                request.tm.get().join(Manager("a", "tpc_vote", lambda: fail(Vetoed)))
            try:
                job = request.job_states.send_with_options(
                    self.actor, (), unique="a key"
                )
                press = Press(job.uuid, job.uuid not in self.known(), len(self.ends))
                self.presses.append(press)
                request.tm.commit()
                press.is_certain = True
            except (StoreUnavailable, Vetoed):
                request.tm.abort()

    def known(self) -> set[str]:
        """Return the uuids that any press was answered with."""
        return {press.uuid for press in self.presses} | self.sent

    def check(self) -> None:
        """Check that at most one job is alive."""
        assert len(self.running) <= 1, "Two jobs run at once."
        alive = [uuid for uuid in self.known() if self.status(uuid) in ALIVE]
        assert len(alive) <= 1, alive

    def age(self) -> None:
        """Let jobs that were not confirmed grow old."""
        for uuid in self.known():
            if self.status(uuid) == "sending":
                self.client.hincrby(f"jobstate:{uuid}", "updated", -20_000)
        for claim in self.client.keys("jobstate:unique:*"):
            for name in self.client.hkeys(claim):
                if "mark:" in name:
                    self.client.hincrby(claim, name, -20_000)

    def name(self, uuid: str) -> str:
        """Return the uuid of the job that answers to a uuid."""
        return self.field(uuid, "target") or uuid


def check_key(scene: Key) -> None:
    """Play a scene, and check how it ended."""
    # Four press, each a few times.
    scene.play(*[scene.press] * 4)
    scene.age()
    for press in scene.presses:
        if not press.is_certain:
            continue
        # What has committed was sent, or is the job of somebody whose message was, or
        # says that it could not be sent: a job that was about to run again, by its
        # failure.
        job, name = load_job(scene.store, press.uuid), scene.name(press.uuid)
        never = scene.status(name) == "sending"
        has_run = name in scene.ends[press.at :]
        says_why = job.error == NOT_SENT or (
            job.status == "error" and name in scene.left_failed
        )
        assert has_run or says_why or never, job.status
        assert job.is_finished or never, job.status
    # The key is free.
    scene.start(scene.press)
    while scene.step():
        pass
    last = scene.presses[-1]
    assert last.is_certain
    assert last.is_new
    scene.settle()
    assert scene.ran[last.uuid] == 1
    # The press has ended all that was never sent.
    assert "sending" not in {scene.status(uuid) for uuid in scene.known()}
    certain = [press.uuid for press in scene.presses if press.is_certain]
    scene.seen["aliases"] += sum(scene.name(uuid) != uuid for uuid in certain)
    # Nothing holds its claim for ever.
    for claim in scene.client.keys("jobstate:unique:*"):
        assert float(scene.client.hget(claim, "held")) < time.time() * 1000 + 100


def numbers_of(counts: Counts) -> dict[str, int]:
    """Return how many jobs have which status."""
    return {k: v for k, v in asdict(counts).items() if not k.endswith("_wait")}


class Members(Scene):
    """A batch whose members run, are cancelled, put back and run again."""

    def send(self) -> None:
        """Send the batch, whose sender lives."""
        request = make_request(self.config, "alice")
        request.tm.begin()
        weights = self.rng.choices([1, 2, 3], k=12)
        with request.job_states.batch() as batch:
            for weight in weights:
                batch.send_with_options(self.actor, (), weight=weight)
        request.tm.commit()
        self.uuid = batch.uuid
        uuids = [job.uuid for job in self.store.members(batch.uuid).items]
        self.weights = dict(zip(uuids, weights, strict=True))

    def load(self) -> Batch:
        batch = self.store.load(self.uuid)
        assert isinstance(batch, Batch)
        return batch

    def check(self) -> None:
        """Check that the batch agrees with itself."""
        batch = self.load()
        counts = numbers_of(batch.counts)
        assert min(counts.values()) >= 0
        assert sum(counts.values()) == batch.size == 12
        # The bar is not beyond what has begun, or never will.
        begun = [
            u for u in self.weights if u in self.ran or self.status(u) == "cancelled"
        ]
        share = sum(self.weights[u] for u in begun) / sum(self.weights.values())
        assert (batch.progress.fraction or 0) <= share + 0.001
        ended = ("success", "error", "cancelled")
        is_over = sum(counts[status] for status in ended) == 12
        assert batch.is_finished == is_over or batch.status == "stalled"

    def cancel_one(self) -> None:
        with contextlib.suppress(RedisError):
            if job := self.store.load(self.rng.choice([*self.weights])):
                job.cancel()

    def is_right(self) -> bool:
        """Return whether the batch counts what its members read as. One that was put
        back, or run again, by somebody who died before its message left counts as
        queued, or as what it was.
        """
        batch = self.load()
        truth = Counter(
            job.status for job in self.store.load_many([*self.weights]) if job
        )
        unsent = truth.pop("stalled", 0)
        missing = Counter(numbers_of(batch.counts))
        missing.subtract(truth)
        left = {status for status, count in missing.items() if count}
        return missing.total() == unsent and "cancelled" not in left


def check_members(scene: Members) -> None:
    """Play a scene, and check that the batch knows what its members read as."""
    scene.send()
    scene.play(scene.work, scene.work, scene.cancel_one)
    pass_time(scene.store, scene.store.stalled_after + 1)
    # Whoever looks at a silent batch has its members looked at.
    wait_for(scene.is_right)
    scene.seen["failed in part"] += 0 < scene.load().counts.error < 12


@pytest.fixture
def broker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> StubBroker:
    """A broker that keeps messages in memory."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=redis_url))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    # Claims are held so briefly that a process which stands still misses that.
    monkeypatch.setattr(claims, "HOLD", 60)
    monkeypatch.setattr(claims, "MARGIN", 30)

    @dramatiq.actor(broker=broker, job_state=True)
    def nightly() -> None:
        pass

    return broker


def play(
    kind: Callable[..., Any],
    check: Callable[[Any], None],
    seeds: range,
    broker: StubBroker,
    url: str,
) -> Counter[str]:
    """Play scenes, and return what has happened how often."""
    config = make_tm_config(url)
    make_app(config)
    seen: Counter[str] = Counter()
    for seed in seeds:
        scene = kind(seed, url, broker, config)
        with stepped():
            check(scene)
        seen += scene.seen
        seen["ran"] += len(scene.ran)
        scene.client.flushdb()
        broker.flush_all()
    for what in "lose", "die before", "die after", "ran":
        assert seen[what] > 3, what
    return seen


#: Those of a usual run, and more.
SEEDS = [range(10), pytest.param(range(10, 70), marks=pytest.mark.long)]


@pytest.mark.promise("one-unique-job-at-a-time")
@pytest.mark.parametrize("seeds", SEEDS)
def test_never_two_jobs_of_a_key(redis_url, broker, seeds):
    """Four pressers and two workers a key, with votes that fail, and operators."""
    assert play(Key, check_key, seeds, broker, redis_url)["aliases"] > 3


@pytest.mark.promise("batch-counts-exactly")
@pytest.mark.parametrize("seeds", SEEDS)
def test_batch_knows_its_members(redis_url, broker, seeds):
    """Whatever happens to its workers, the batch counts what the records read as."""
    seen = play(Members, check_members, seeds, broker, redis_url)
    assert seen["failed in part"] > 0
