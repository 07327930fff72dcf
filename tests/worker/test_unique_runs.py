"""Unique jobs in a worker: a message that comes again never makes two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware, JobStore, rerun
from pyramid_jobstate.job import record_of
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.store import claims
from pyramid_jobstate.store.connection import text
from pyramid_jobstate.store.scripts import Reply, read_scripts
from tests.faulty import faulty
from tests.jobs import Gate, load, messages, middleware_of, new_id, working
from tests.support import key_of, load_job, wait_for

IDENTITY = '["errand","nightly"]'


class Floor:
    """A broker with an actor, whose jobs are unique.

    Attributes:
      runs: The uuids of all runs.
      gates: The gates at which jobs wait, by uuid.
      fails: How many of the next runs fail.
    """

    def __init__(self, url: str, middleware: JobStateMiddleware | None = None) -> None:
        self.client = redis.Redis.from_url(url)
        make_broker: Any = RedisBroker
        self.broker: RedisBroker = make_broker(url=url)
        self.broker.add_middleware(middleware or JobStateMiddleware(interval=0.01))
        self.store = JobStore(url)
        self.runs: list[str] = []
        self.gates: dict[str, Gate] = {}
        self.fails = 0

        @dramatiq.actor(broker=self.broker, max_retries=1, min_backoff=1, max_backoff=1)
        def errand(*, job_state: Any = None) -> None:
            self.runs.append(job_state.uuid)
            gate = self.gates.get(job_state.uuid)
            if gate is not None:
                gate.wait()
            job_state.raise_if_cancelled()
            if self.fails:
                self.fails -= 1
                raise ValueError

        self.errand = errand

    def send(self) -> Message[Any]:
        """Send a unique job, as a request that commits does."""
        message: Any = self.errand.message_with_options(job_unique=IDENTITY)
        middleware = middleware_of(self.broker)
        info = middleware.functions["errand"].info_of(message)
        self.store.create(NewJob(message.message_id, info))
        holder = self.store.claims.take(IDENTITY, message.message_id)
        assert holder == message.message_id
        with middleware.announced({message.message_id}):
            self.broker.enqueue(message)
        return message

    def work(self) -> None:
        """Have a worker process all messages."""
        with working(self.broker):
            waiting = ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs")
            wait_for(lambda: not self.client.exists(*waiting))

    def work_beside(self, message: Message[Any], left: int = 0) -> None:
        """Have a worker process all messages while the job of one is running.

        Parameters:
          left: How many messages it will not receive.
        """
        gate = self.gates[message.message_id] = Gate()
        with working(self.broker):
            gate.wait_for_job()
            wait_for(lambda: self.client.hlen("dramatiq:default.msgs") == 1 + left)
            gate.open()

    def redeliver(self, message: Message[Any]) -> None:
        """Have a message delivered as after the death of its worker."""
        options = {"redis_message_id": new_id()}
        message = message.copy(options=options)
        queue, place = message.queue_name, options["redis_message_id"]
        self.broker.do_enqueue(queue, place, message.encode())

    def record(self, message: Message[Any]) -> dict[bytes, bytes]:
        found: Any = self.client.hgetall(key_of(self.store, message.message_id))
        return found

    def holder(self) -> str:
        """Return the job that the claim names."""
        record = self.store.claims.find(IDENTITY)
        return "" if record is None else record.uuid

    def under_way(self) -> str:
        record = self.store.claims.under_way(IDENTITY)
        return "" if record is None else record.uuid


@pytest.fixture
def floor(redis_url: str) -> Iterator[Floor]:
    floor = Floor(redis_url)
    yield floor
    floor.broker.close()


@pytest.mark.parametrize("how", ["redelivered", "put back"])
def test_an_ended_job_does_not_run_while_another_is_under_way(
    floor: Floor, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its worker died before the message was acknowledged, or an operator put it back
    in the queue. Its record stays as it was.
    """
    first = floor.send()
    floor.work()
    before = floor.record(first)
    second = floor.send()
    waiting: Any = floor.client.lindex("dramatiq:default", 0)
    again = floor.redeliver if how == "redelivered" else floor.broker.enqueue
    again(first)
    assert floor.record(first) == before
    assert floor.holder() == second.message_id
    # The second one waits longer.
    floor.client.lrem("dramatiq:default", 0, waiting)
    with working(floor.broker):
        warnings = wait_for(lambda: messages(caplog, "pyramid_jobstate.worker.flush"))
        wait_for(lambda: floor.client.hlen("dramatiq:default.msgs") == 1)
    assert warnings == [
        f"This process no longer records job {first.message_id}: another job with "
        "its unique key is under way."
    ]
    assert floor.runs == [first.message_id]
    assert floor.record(first) == before
    assert floor.under_way() == second.message_id


@pytest.mark.parametrize("how", ["redelivered", "put back"])
def test_an_ended_job_runs_again_if_no_other_is_under_way(
    floor: Floor, how: str
) -> None:
    """And is under way from then on, also if another one has ended meanwhile."""
    first = floor.send()
    floor.work()
    second = floor.send()
    floor.work()
    gate = floor.gates[first.message_id] = Gate()
    (floor.redeliver if how == "redelivered" else floor.broker.enqueue)(first)
    with working(floor.broker):
        gate.wait_for_job()
        assert floor.under_way() == first.message_id
        assert load(floor.broker, first).status == "working"
        assert floor.store.claims.take(IDENTITY, new_id()) == first.message_id
        gate.open()
        wait_for(lambda: load(floor.broker, first).status == "success")
    assert floor.runs == [first.message_id, second.message_id, first.message_id]
    assert floor.under_way() == ""


def test_a_job_that_is_tried_again_is_under_way(floor: Floor) -> None:
    floor.fails = 1
    first = floor.send()
    gate = floor.gates[first.message_id] = Gate()
    with working(floor.broker):
        gate.wait_for_job()
        gate.reached.clear()
        gate.open()
        wait_for(lambda: load(floor.broker, first).attempt == 2)
        wait_for(lambda: load(floor.broker, first).status == "success")
    assert load(floor.broker, first).attempt == 2
    assert record_of(load(floor.broker, first)).info.unique == IDENTITY
    assert floor.holder() == first.message_id


def test_a_late_run_is_stopped_if_another_job_is_under_way(redis_url: str) -> None:
    """The store was away when its message came again: it learns of the other job when
    it is back.
    """
    with faulty(redis_url) as proxy:
        floor = Floor(redis_url, JobStateMiddleware(url=proxy.url, interval=0.01))
        first = floor.send()
        floor.work()
        second = floor.send()
        floor.client.delete("dramatiq:default")
        gate = floor.gates[first.message_id] = Gate()
        stopped: list[BaseException] = []

        class Watch(dramatiq.Middleware):
            def after_skip_message(self, broker: Any, message: Any) -> None:
                stopped.append(message)

        floor.broker.add_middleware(Watch())
        before = floor.record(first)
        floor.redeliver(first)
        proxy.swallow()
        with working(floor.broker):
            gate.wait_for_job()
            proxy.judge = lambda request: "pass"
            recorder = middleware_of(floor.broker)._access.recorder_for(floor.broker)
            wait_for(lambda: not recorder._backlog)
            gate.open()
            wait_for(lambda: stopped)
        assert floor.record(first) == before
        assert floor.under_way() == second.message_id
        floor.broker.close()


def test_a_lost_record_does_not_make_two_jobs(floor: Floor) -> None:
    """The record was evicted while the message waited, and another job was sent."""
    first = floor.send()
    floor.client.delete(key_of(floor.store, first.message_id))
    second = floor.send()
    waiting: Any = floor.client.lindex("dramatiq:default", 0)
    floor.client.lrem("dramatiq:default", 0, waiting)
    floor.redeliver(first)
    # One message was never delivered.
    floor.work_beside(second, left=1)
    assert floor.runs == [second.message_id]
    assert floor.store.load(first.message_id) is None


def put_back(floor: Floor, message: Message[Any]) -> None:
    """Put a message back in the queue, as an operator or a delay that is over does."""
    message = message.copy(options={"redis_message_id": new_id()})
    floor.broker.enqueue(message)


def test_a_message_put_back_without_a_record_does_not_make_two_jobs(
    floor: Floor,
) -> None:
    """Its record has expired, and another job is under way."""
    first = floor.send()
    floor.work()
    floor.client.delete(key_of(floor.store, first.message_id))
    second = floor.send()
    put_back(floor, first)
    assert floor.store.load(first.message_id) is None
    floor.work_beside(second)
    assert floor.runs == [first.message_id, second.message_id]
    assert floor.store.load(first.message_id) is None


def test_a_message_put_back_without_a_record_takes_its_claim_at_its_start(
    floor: Floor,
) -> None:
    """If another job is sent before that, the message is skipped."""
    first = floor.send()
    floor.work()
    floor.client.delete(key_of(floor.store, first.message_id))
    put_back(floor, first)
    gate = floor.gates[first.message_id] = Gate()
    with working(floor.broker):
        gate.wait_for_job()
        assert floor.under_way() == first.message_id
        gate.open()
    wait_for(lambda: load(floor.broker, first).status == "success")
    floor.client.flushdb()
    put_back(floor, first)
    second = floor.send()
    assert floor.under_way() == second.message_id
    floor.work_beside(second)
    assert floor.runs == [first.message_id] * 2 + [second.message_id]


def test_a_delayed_put_back_holds_its_claim_until_it_is_due(floor: Floor) -> None:
    first = floor.send()
    floor.work()
    day = 24 * 3600 * 1000
    floor.broker.enqueue(first, delay=30 * day)
    (claim,) = floor.client.keys("jobstate:unique:*")
    key = key_of(floor.store, first.message_id)
    assert floor.client.pttl(claim) >= floor.client.pttl(key) > 30 * day
    assert floor.client.hget(claim, "held") == b"0"


def test_one_bad_claim_is_its_own_trouble(
    floor: Floor, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own run is written, and so are other jobs of the same flush."""
    first = floor.send()
    floor.work()
    info = record_of(load_job(floor.store, first.message_id)).info
    plain = NewJob(new_id(), info._replace(unique=None))
    floor.store.create(plain)
    (claim,) = floor.client.keys("jobstate:unique:*")
    floor.client.delete(claim)
    floor.client.set(claim, "x")
    updates = [
        Update(first.message_id, "1" * 12, 1, info, begins=True),
        Update(plain.uuid, "2" * 12, 1, plain.info, begins=True),
        Update(first.message_id, "3" * 12, 1, info, begins=True),
    ]
    assert floor.store.write(updates) == [Reply.OK] * 3
    # Losing the renewal of a claim does no harm.
    updates[2].seq, updates[2].begins, updates[2].end = 2, False, End("success")
    assert floor.store.write(updates[2:]) == [Reply.OK]
    assert load(floor.broker, first).status == "success"


def test_each_claim_that_a_server_refuses_is_its_own_trouble(floor: Floor) -> None:
    """A full server refuses claims, and answers all the same."""
    first = floor.send()
    floor.work()
    info = record_of(load_job(floor.store, first.message_id)).info
    updates = [
        Update(first.message_id, token * 12, 1, info, begins=True) for token in "12"
    ]
    floor.client.config_set("maxmemory", 1)
    try:
        replies = floor.store.write(updates)
    finally:
        floor.client.config_set("maxmemory", 0)
    assert all(isinstance(reply, redis.OutOfMemoryError) for reply in replies)
    assert floor.store.write(updates) == [Reply.OK] * 2


def test_a_store_that_goes_away_is_asked_for_one_claim(redis_url: str) -> None:
    """The other jobs of the flush do not each wait for it."""
    with faulty(redis_url) as proxy:
        floor = Floor(redis_url, JobStateMiddleware(url=proxy.url))
        store = JobStore(proxy.url)
        first = floor.send()
        floor.work()
        info = record_of(load_job(floor.store, first.message_id)).info
        updates = [
            Update(first.message_id, str(i) * 12, 1, info, begins=True)
            for i in range(1, 6)
        ]
        proxy.lose_replies(read_scripts()["claim"].sha)
        replies = store.write(updates)
        assert all(isinstance(reply, redis.ConnectionError) for reply in replies)
        # Once, and once more by the client library
        assert proxy.faults["lose"] == 2
        floor.broker.close()


def test_garbage_in_a_claim_is_no_obstacle(floor: Floor) -> None:
    first = floor.send()
    floor.work()
    (claim,) = floor.client.keys("jobstate:unique:*")
    garbages: tuple[dict[Any, Any], ...] = (
        {"held": "x", "version": "y"},
        {"held": str(10**18)},
        {"job": "nobody"},
    )
    for garbage in garbages:
        floor.client.hset(claim, mapping=garbage)
        assert floor.under_way() == ""
        taker = new_id()
        assert floor.store.claims.take(IDENTITY, taker) == taker
    floor.client.hdel(claim, "version")
    assert floor.store.claims.take(IDENTITY, first.message_id) == first.message_id


def test_a_lost_claim_is_taken_again(floor: Floor) -> None:
    """By the run that is under way, when it renews its place in the lists."""
    first = floor.send()
    record = record_of(load_job(floor.store, first.message_id))
    (claim,) = floor.client.keys("jobstate:unique:*")

    def write(**changes: Any) -> None:
        update = Update(first.message_id, "0" * 12, 1, record.info, **changes)
        assert floor.store.write([update]) == [Reply.OK]

    floor.client.delete(claim)
    write(begins=True)
    assert floor.holder() == first.message_id
    floor.client.delete(claim)
    write(renews=True)
    assert floor.holder() == first.message_id
    active = floor.store.active_expire_in * 1000
    assert floor.client.pttl(claim) > active
    floor.client.pexpire(claim, 1000)
    write(renews=True)
    assert floor.client.pttl(claim) > active


def test_a_held_claim_cannot_be_taken(floor: Floor) -> None:
    """Not even by one who has read it since."""
    first = floor.send()
    claim = floor.store.claims._hold(IDENTITY, first.message_id, 0.0, claims.HOLD)
    calls = floor.store._calls
    taken = calls.claim(IDENTITY, new_id(), claim.version, 1000)
    (reply,) = floor.store._run([taken])
    assert text(reply[0]) == first.message_id
    released = calls.claim(IDENTITY, first.message_id, "another", 1000, 0)
    (reply,) = floor.store._run([released])
    assert int(reply[2]) == claim.held_until
    released = calls.claim(IDENTITY, first.message_id, claim.version, 1000, 0)
    assert [int(word) for word in floor.store._run([released])[0][2:]] == [0]
    (reply,) = floor.store._run([taken])
    assert text(reply[0]) != first.message_id


def test_a_claim_that_an_ended_job_has_taken_is_taken_back(floor: Floor) -> None:
    """The claim of a running job was evicted. Another was sent, and has ended."""
    first = floor.send()
    info = record_of(load_job(floor.store, first.message_id)).info
    update = Update(first.message_id, "0" * 12, 1, info, begins=True)
    assert floor.store.write([update]) == [Reply.OK]
    floor.client.delete(*floor.client.keys("jobstate:unique:*"))
    second = floor.send()
    update = Update(first.message_id, "0" * 12, 2, info, renews=True)
    assert floor.store.write([update]) == [Reply.OK]
    assert floor.under_way() == second.message_id
    ended = Update(second.message_id, "1" * 12, 1, info, begins=True)
    ended.end = End("success")
    assert floor.store.write([ended]) == [Reply.OK]
    update = Update(first.message_id, "0" * 12, 3, info, renews=True)
    assert floor.store.write([update]) == [Reply.OK]
    assert floor.under_way() == first.message_id
    assert floor.store.claims.take(IDENTITY, new_id()) == first.message_id


def test_a_deleted_job_stays_deleted(floor: Floor) -> None:
    """Its tombstone outlives a message that is put back late."""
    first = floor.send()
    floor.work()
    assert floor.store.delete(first.message_id)
    key = key_of(floor.store, first.message_id)
    floor.broker.enqueue(first, delay=10 * 24 * 3600 * 1000)
    assert floor.client.pttl(key) > 10 * 24 * 3600 * 1000
    floor.redeliver(first)
    floor.client.delete("dramatiq:default.DQ", "dramatiq:default.DQ.msgs")
    floor.work()
    assert floor.runs == [first.message_id]


def test_a_rerun_that_was_never_sent_is_a_failure_again(floor: Floor) -> None:
    """Its operator died. The press that takes its place does not destroy it."""
    floor.fails = 2
    first = floor.send()
    floor.work()
    wait_for(lambda: load(floor.broker, first).status == "error")
    before = load(floor.broker, first)
    word = floor.store.requeue(record_of(before))
    assert word is not None
    floor.client.hincrby(key_of(floor.store, first.message_id), "updated", -20_000)
    assert load(floor.broker, first).status == "stalled"
    second = floor.send()
    after = load(floor.broker, first)
    assert (after.status, after.error) == ("error", before.error)
    assert [job.uuid for job in floor.store.list(status="error").items] == [
        first.message_id
    ]
    floor.work()
    assert load(floor.broker, second).status == "success"
    assert rerun(floor.store, floor.broker, first.message_id)
    floor.work()
    assert load(floor.broker, first).status == "success"


def test_a_rerun_without_its_failure_is_cancelled(floor: Floor) -> None:
    """What was kept of it has been evicted."""
    floor.fails = 2
    first = floor.send()
    floor.work()
    wait_for(lambda: load(floor.broker, first).status == "error")
    assert floor.store.requeue(record_of(load(floor.broker, first)))
    key = key_of(floor.store, first.message_id)
    floor.client.hincrby(key, "updated", -20_000)
    floor.client.delete(floor.store._calls.failure_key(first.message_id))
    floor.send()
    assert load(floor.broker, first).status == "cancelled"


def test_a_claim_lives_as_long_as_the_record(floor: Floor) -> None:
    """While the job is put back, and after its end."""
    first = floor.send()
    info = record_of(load_job(floor.store, first.message_id)).info
    (claim,) = floor.client.keys("jobstate:unique:*")
    key = key_of(floor.store, first.message_id)
    day = 24 * 3600.0
    for seq, end in (1, End("retrying", None, 30 * day)), (2, End("success")):
        token = str(seq) * 12
        update = Update(first.message_id, token, 1, info, begins=True, end=end)
        assert floor.store.write([update]) == [Reply.OK]
        assert floor.client.pttl(claim) >= floor.client.pttl(key)
    assert floor.client.pttl(claim) <= floor.store.expire_in * 1000


def test_a_start_that_comes_too_late_claims_again(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was frozen while it held the claim."""
    first = floor.send()
    floor.work()
    info = record_of(load_job(floor.store, first.message_id)).info
    update = Update(first.message_id, "1" * 12, 1, info, begins=True)
    with monkeypatch.context() as patched:
        patched.setattr(claims, "HOLD", 1)
        assert floor.store.write([update]) == [Reply.UNCLAIMED]
    assert load(floor.broker, first).status == "success"
    assert floor.store.write([update]) == [Reply.OK]
    assert load(floor.broker, first).status == "working"


def test_a_frozen_worker_is_tried_again(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run waits for the claim, and begins."""
    first = floor.send()
    floor.work()
    late = [1, 1]
    take: Any = claims.Claims._take

    def take_late(self: Any, *args: Any) -> Any:
        hold = late.pop() if late else args[-1]
        return take(self, *args[:-1], hold)

    monkeypatch.setattr(claims.Claims, "_take", take_late)
    floor.redeliver(first)
    floor.work()
    assert floor.runs == [first.message_id] * 2
    assert load(floor.broker, first).status == "success"
    assert late == []


def test_a_message_of_an_alias_runs_nothing(floor: Floor) -> None:
    """No sender sends it, but a foreign program might."""
    first = floor.send()
    other: Any = floor.errand.message_with_options(job_unique=IDENTITY)
    info = middleware_of(floor.broker).functions["errand"].info_of(other)
    job = NewJob(other.message_id, info, sender="me")
    floor.store.create(job)
    floor.store.claims.make_alias(job, first.message_id)
    floor.redeliver(other)
    floor.work()
    assert floor.runs == [first.message_id]
    loaded = load_job(floor.store, other.message_id)
    assert (loaded.uuid, record_of(loaded).uuid) == (
        other.message_id,
        first.message_id,
    )


def test_an_odd_option_is_ignored(floor: Floor) -> None:
    for odd in (7, "", None):
        message = floor.errand.message_with_options(job_unique=odd)
        info = middleware_of(floor.broker).functions["errand"].info_of(message)
        assert info.unique is None


def test_a_record_that_has_changed_becomes_no_alias(floor: Floor) -> None:
    """A user cancelled it, or another sender wrote it."""
    first = floor.send()
    other: Any = floor.errand.message_with_options(job_unique=IDENTITY)
    info = middleware_of(floor.broker).functions["errand"].info_of(other)
    floor.store.create(NewJob(other.message_id, info, sender="another"))
    job = NewJob(other.message_id, info, sender="me")
    floor.store.claims.make_alias(job, first.message_id)
    assert load_job(floor.store, other.message_id).status == "queued"
    assert floor.store.cancel(other.message_id, info)
    floor.store.claims.make_alias(job._replace(sender="another"), first.message_id)
    assert load_job(floor.store, other.message_id).status == "cancelled"
