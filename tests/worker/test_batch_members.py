"""Members of batches in a worker: they report, are cancelled, and send further ones."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import group, pipeline
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import (
    Batch,
    JobCancelled,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
    rerun,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.job import End, JobError
from pyramid_jobstate.job.membership import OwnBatch
from pyramid_jobstate.job.record import Record
from pyramid_jobstate.store.connection import text
from pyramid_jobstate.store.told import Change
from pyramid_jobstate.worker import unsaved
from pyramid_jobstate.worker.batching import OutgoingBatch
from pyramid_jobstate.worker.fanout import RunningMember
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.faulty import faulty
from tests.jobs import (
    Gate,
    job_actor,
    messages,
    middleware_of,
    wait_until,
    working,
)
from tests.rerunapp import HANDSHAKE
from tests.support import wait_for
from tests.webapp import queued


def nothing(*arguments: object) -> None:
    """Do nothing when the block of a batch begins or ends."""


class Floor:
    """A broker with actors, and a worker.

    Attributes:
      ran: How often a job ran for each argument.
      scripts: What a job does, by its argument.
    """

    def __init__(self, url: str, middleware: JobStateMiddleware | None = None) -> None:
        self.client = redis.Redis.from_url(url)
        make_broker: Any = RedisBroker
        self.broker: RedisBroker = make_broker(url=url)
        self.broker.add_middleware(middleware or JobStateMiddleware(interval=0.01))
        self.store = JobStore(url)
        self.ran: Counter[str] = Counter()
        self.scripts: dict[str, Callable[[Any], object]] = {}

        @job_actor(broker=self.broker, max_retries=0)
        def part(name: str, *, job_state: Any = None) -> object:
            self.ran[name] += 1
            return self.scripts.get(name, nothing)(job_state)

        @job_actor(broker=self.broker, max_retries=2, min_backoff=1, max_backoff=1)
        def stubborn(name: str, *, job_state: Any = None) -> object:
            self.ran[name] += 1
            return self.scripts.get(name, nothing)(job_state)

        self.part: Any = part
        self.stubborn: Any = stubborn

    def send(self, *names: str, owner: str | None = None, **options: Any) -> Batch:
        """Send a batch of parts, as a request that commits does."""
        outgoing = OutgoingBatch(
            Batch,
            None,
            owner,
            allow_failures=False,
            origin=dict,
            begin=nothing,
            end=nothing,
            check=nothing,
        )
        actor = options.pop("actor", self.part)
        with outgoing.batch as batch:
            for name in names:
                batch.send_with_options(actor, (name,), **options)
        outgoing.record(self.store)
        outgoing.send()
        return batch

    def load(self, batch: Batch) -> Batch:
        loaded = self.store.load(batch.uuid)
        assert isinstance(loaded, Batch)
        return loaded

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many members have each status that any has."""
        counts = self.load(batch).counts
        return {status: count for status, count in counts.items() if count}

    def records(self, batch: Batch) -> list[Record]:
        found: Any = self.client.lrange(f"{{jobstate:{batch.uuid}}}:order", 0, -1)
        records = [self.store.record(text(uuid)) for uuid in found]
        return [record for record in records if record is not None]

    def work(self, batch: Batch) -> Batch:
        """Have a worker run the members of a batch, and return the batch."""
        with working(self.broker):
            wait_for(lambda: self.load(batch).is_finished)
        return self.load(batch)

    def member(self, batch: Batch) -> tuple[Unsaved, RunningMember]:
        """Return a run of the first member that has just begun, and what it sends
        further members with.
        """
        message = queued(self.client)[0]
        proxy = MessageProxy(message)
        function = middleware_of(self.broker).functions[message.actor_name]
        begun = function.unsaved(proxy)
        self.store.write([begun.take(time.monotonic())])
        begun.mark_stored(time.monotonic())
        run = begun.run
        return begun, RunningMember(self.broker, proxy, batch.uuid, run)


@pytest.fixture
def floor(redis_url: str) -> Floor:
    return Floor(redis_url)


def own(member: RunningMember) -> OwnBatch:
    """Return the batch of a running member as its actor has it."""
    return OwnBatch(member._batch, member)


def send(member: RunningMember, actor: Any, name: str, **options: Any) -> Any:
    """Send a further member with its name as its key."""
    options = {"key": name, **options}
    return own(member).send_with_options(actor, (name,), **options)


def test_members_run_and_report(floor: Floor) -> None:
    """What a running member reports moves the bar, phases included."""
    gate = Gate()

    def report(job_state: Any) -> None:
        job_state.set_progress(1, 4)
        with job_state.phase("second half", 50):
            job_state.set_progress(1, 2)
            job_state.flush()
            gate.wait()

    floor.scripts["a"] = report
    batch = floor.send("a", "b")
    with working(floor.broker):
        gate.wait_for_job()
        # It begins at a quarter, and half of half the bar is another one.
        wait_for(lambda: floor.load(batch).progress.fraction == (0.5 + 1) / 2)
        assert floor.counts(batch) == {"working": 1, "success": 1}
        gate.open()
        wait_for(lambda: floor.load(batch).is_finished)
    assert floor.load(batch).status == "success"


def test_progress_is_told_once_a_second(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a member reports; what it reported last is told soon, and not only
    with its next beat.
    """
    floor = Floor(redis_url, JobStateMiddleware(interval=0.01, heartbeat=3600))
    told = []
    execute = floor.store.batches.tell
    store = middleware_of(floor.broker).store_for(floor.broker)

    def note(change: Any) -> Any:
        told.append(change.millionths)
        return execute(change)

    monkeypatch.setattr(store.batches, "tell", note)

    def report(job_state: Any) -> None:
        for n in range(100):
            job_state.set_progress(n, 100)
            time.sleep(0.002)
        job_state.set_progress(1, 2)
        wait_for(lambda: 500_000 in told)

    floor.scripts["a"] = report
    begun = time.monotonic()
    floor.work(floor.send("a"))
    assert told[0] == 0
    assert told[-1] is None
    assert len(told) <= 3 + time.monotonic() - begun, told


def test_running_member_sends_further_ones(floor: Floor) -> None:
    """They join its batch and have its owner. The batch ends when all are over."""

    def fan_out(job_state: Any) -> None:
        for name in ("x", "y"):
            job_state.batch.send(floor.part, name, key=name)
        job_state.batch.send_with_options(floor.part, ("z",), key="z", weight=2)
        job_state.batch.send_message(floor.part.message("v"), key="v")
        steps = pipeline(map(floor.part.message, "st"), broker=floor.broker)
        job_state.batch.send_message(steps, key="st")

    floor.scripts["a"] = fan_out
    batch = floor.work(floor.send("a", owner="alice"))
    assert batch.status == "error"
    # A step gets the result of the one before, which this actor does not take.
    assert floor.counts(batch) == {"success": 6, "error": 1}
    assert floor.ran == dict.fromkeys("axyzvs", 1)
    assert {record.owner for record in floor.records(batch)} == {"alice"}
    assert floor.store.list(owner="alice").items[0].uuid == batch.uuid


def test_member_that_was_sent_is_known_to_be(floor: Floor) -> None:
    """It reads queued, and never as if it had not been sent."""
    batch = floor.send("a")
    _, member = floor.member(batch)
    job = send(member, floor.part, "x")
    record = floor.store.record(job.uuid)
    assert record is not None
    assert record.stored_status == "queued"
    found: Any = floor.client.hget(f"{{jobstate:{batch.uuid}}}:members", job.uuid)
    assert text(found).startswith("q ")


def test_threads_of_a_job_send_a_key_once(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = floor.send("a")
    _, member = floor.member(batch)
    enqueue = floor.broker.enqueue

    def meanwhile(message: Any, **options: Any) -> Any:
        monkeypatch.setattr(floor.broker, "enqueue", enqueue)
        with pytest.raises(ValueError, match="was used before"):
            send(member, floor.part, "x")
        return enqueue(message, **options)

    monkeypatch.setattr(floor.broker, "enqueue", meanwhile)
    send(member, floor.part, "x")
    assert len(queued(floor.client)) == 2


def test_retried_sender_does_not_fan_out_twice(floor: Floor) -> None:
    def fan_out(job_state: Any) -> None:
        for name in ("x", "y"):
            job_state.batch.send(floor.part, name, key=name)
        if floor.ran["a"] < 3:
            raise ValueError("x")

    floor.scripts["a"] = fan_out
    batch = floor.work(floor.send("a", actor=floor.stubborn))
    assert batch.status == "success"
    assert floor.ran == {"a": 3, "x": 1, "y": 1}
    assert batch.size == 3


def test_senders_share_no_keys(floor: Floor) -> None:
    """Two members that send the same keys send two members each, and none again when
    they are tried again.
    """

    def fan_out(job_state: Any) -> None:
        for name in ("x", "y"):
            job_state.batch.send(floor.part, name, key=name)
        if job_state.attempt == 1:
            raise ValueError("x")

    floor.scripts["a"] = floor.scripts["b"] = fan_out
    batch = floor.work(floor.send("a", "b", actor=floor.stubborn))
    assert batch.status == "success"
    assert floor.ran == {"a": 2, "b": 2, "x": 2, "y": 2}
    assert batch.size == 6


def test_block_of_a_batch_shares_no_keys_with_its_members(floor: Floor) -> None:
    floor.scripts["a"] = lambda job_state: job_state.batch.send(
        floor.part, "x", key="k"
    )
    batch = floor.work(floor.send("a", key="k"))
    assert floor.ran == {"a": 1, "x": 1}
    assert batch.size == 2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"key": None}, TypeError, "needs a key"),
        ({"key": ""}, ValueError, "1 to 200 characters"),
        ({"key": "used"}, ValueError, "was used before in this job"),
        ({"weight": 0}, ValueError, "weight of a member"),
        ({"unique": "x"}, TypeError, "cannot take unique="),
    ],
)
def test_what_a_running_member_cannot_send(
    floor: Floor, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    batch = floor.send("a")
    _, member = floor.member(batch)
    send(member, floor.part, "x", key="used")
    options = {"key": "k", **options}
    with pytest.raises(error, match=match):
        send(member, floor.part, "y", **options)
    assert floor.load(batch).size == 2
    assert [m.args for m in queued(floor.client)] == [("a",), ("x",)]


def test_running_member_sends_no_group_and_no_untracked_actor(floor: Floor) -> None:
    batch = floor.send("a")
    _, member = floor.member(batch)

    @dramatiq.actor(broker=floor.broker)
    def untracked() -> None:
        pass

    parts = group([floor.part.message("x")], broker=floor.broker)
    with pytest.raises(TypeError, match="one by one"):
        own(member).send_message(parts, key="k")
    with pytest.raises(ActorError, match="not tracked"):
        own(member).send(untracked, key="k")
    assert floor.load(batch).size == 1


def test_running_member_sends_nothing_whose_states_are_elsewhere(
    floor: Floor, redis_url: str
) -> None:
    batch = floor.send("a")
    _, member = floor.member(batch)
    other = Floor(redis_url, JobStateMiddleware(namespace="shop"))
    with pytest.raises(ActorError, match="'part'"):
        send(member, other.part, "x")
    assert floor.load(batch).size == 1
    assert len(queued(floor.client)) == 1


def test_run_that_was_taken_over_sends_nothing(floor: Floor) -> None:
    """Its message runs elsewhere: that run sends."""
    batch = floor.send("a")
    _, frozen = floor.member(batch)
    _, member = floor.member(batch)
    # As a cancelled job does, it ends without a retry.
    with pytest.raises(JobCancelled):
        send(frozen, floor.part, "x")
    with pytest.raises(RuntimeError, match="the run that sends them is over"):
        send(frozen, floor.part, "x")
    send(member, floor.part, "y")
    assert [m.args for m in queued(floor.client)] == [("a",), ("y",)]


def test_run_that_has_ended_elsewhere_sends_nothing(floor: Floor) -> None:
    """Even if its record is gone."""
    batch = floor.send("a", "b")
    begun, member = floor.member(batch)
    floor.store.batches.tell_all(
        [change(batch, begun, "success", floor.client.time()[0] * 1_000_001)]
    )
    floor.client.delete(f"jobstate:{begun.uuid}")
    with pytest.raises(JobCancelled):
        send(member, floor.part, "x")


def change(batch: Batch, run: Unsaved, status: str, rev: int) -> Change:
    return Change(batch.uuid, run.uuid, str(rev), status)


def test_batch_that_is_over_takes_no_members(floor: Floor) -> None:
    batch = floor.send("a")
    begun, member = floor.member(batch)
    rev = floor.client.time()[0] * 1_000_001
    floor.store.batches.tell_all([change(batch, begun, "error", rev)])
    with pytest.raises(RuntimeError, match="it is over"):
        send(member, floor.part, "x")
    assert len(queued(floor.client)) == 1


def test_store_that_came_back_empty_loses_no_member(
    floor: Floor, caplog: pytest.LogCaptureFixture
) -> None:
    """It has lost the batch. What its members send runs, each once."""
    batch = floor.send("a")
    _, member = floor.member(batch)
    floor.client.flushall()
    send(member, floor.part, "x")
    assert [m.args for m in queued(floor.client)] == [("x",)]
    assert "has lost the batch" in caplog.text
    with working(floor.broker):
        wait_for(lambda: floor.ran["x"])
    assert floor.store.load(batch.uuid) is None


@pytest.mark.parametrize("outcome", ["success", "error"])
def test_running_member_of_a_lost_batch(floor: Floor, outcome: str) -> None:
    """The store came back empty. The list of its owner's jobs shows it, while it runs
    and after its end.
    """
    begun, over = threading.Event(), threading.Event()

    def report(job_state: Any) -> None:
        begun.set()
        while not over.wait(0.01):
            job_state.set_message(str(time.monotonic()))
        if outcome == "error":
            raise ValueError("x")

    def shown() -> list[Any]:
        jobs = floor.store.list(owner="alice").items
        return [(job.uuid, job.status) for job in jobs if not isinstance(job, Batch)]

    floor.scripts["a"] = report
    batch = floor.send("a", owner="alice")
    (message,) = queued(floor.client)
    with working(floor.broker):
        assert begun.wait(10)
        wait_for(lambda: floor.counts(batch) == {"working": 1})
        assert shown() == []
        floor.client.flushall()
        wait_for(lambda: shown() == [(message.message_id, "working")])
        over.set()
        wait_for(lambda: shown() == [(message.message_id, outcome)])
    found = floor.store.list(owner="alice", status=outcome).items
    assert [job.uuid for job in found] == [message.message_id]


def test_message_of_a_member_of_a_lost_batch(floor: Floor) -> None:
    """The store came back empty while the message waited elsewhere. The list of its
    owner's jobs shows the job once it runs.
    """

    def fail_once(job_state: Any) -> None:
        if floor.ran["a"] == 1:
            raise ValueError("x")

    floor.scripts["a"] = fail_once
    floor.send("a", owner="alice", actor=floor.stubborn)
    floor.client.delete(*floor.client.keys("*jobstate:*"))
    with working(floor.broker):
        wait_for(lambda: floor.store.list(owner="alice", status="success").items)
    assert floor.ran == {"a": 2}
    assert len(floor.store.list(owner="alice").items) == 1


def test_jobs_that_members_of_a_lost_batch_send_are_their_owners(floor: Floor) -> None:
    """They belong to no batch, and may send further ones, each once."""

    def fan_out(job_state: Any) -> None:
        job_state.batch.send(floor.part, "y", key="y")

    batch = floor.send("a", owner="alice")
    _, member = floor.member(batch)
    floor.client.flushall()
    first = send(member, floor.part, "x")
    steps = pipeline(map(floor.part.message, "st"), broker=floor.broker)
    later = own(member).send_message(steps, key="st")
    assert [job.batch for job in (first, *later)] == [None] * 3
    floor.scripts["x"] = fan_out
    with working(floor.broker):
        wait_for(lambda: floor.ran["y"] and floor.ran["s"])
    jobs = floor.store.list(owner="alice").items
    assert {job.batch for job in jobs} == {None}
    assert {job.uuid for job in (first, *later)} < {job.uuid for job in jobs}
    assert len(jobs) == 4
    assert floor.ran == dict.fromkeys("xsy", 1)


def test_cancelled_batch_takes_no_members(floor: Floor) -> None:
    """The running member learns of the cancel then."""
    batch = floor.send("a", "b")
    _, member = floor.member(batch)
    assert floor.load(batch).cancel()
    with pytest.raises(JobCancelled):
        send(member, floor.part, "x")
    # It shields itself.
    with pytest.raises(RuntimeError, match="it was cancelled"):
        send(member, floor.part, "x")
    assert floor.load(batch).size == 2


def test_store_that_is_away_raises_in_the_actor(redis_url: str) -> None:
    """The one call that does: nothing is sent, and the job can try again."""
    with faulty(redis_url) as proxy:
        floor = Floor(redis_url, JobStateMiddleware(url=proxy.url))
        batch = floor.send("a")
        _, member = floor.member(batch)
        proxy.swallow()
        with pytest.raises(StoreUnavailable):
            send(member, floor.part, "x")
        assert floor.load(batch).size == 1
        proxy.judge = lambda request: "pass"
        send(member, floor.part, "x")
    assert floor.load(batch).size == 2
    assert len(queued(floor.client)) == 2


def test_broker_that_refuses_a_member(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed, and is sent when the job tries again."""
    batch = floor.send("a")
    _, member = floor.member(batch)
    enqueue = floor.broker.enqueue

    def refuse(*args: Any, **options: Any) -> Any:
        raise ConnectionError("away")

    monkeypatch.setattr(floor.broker, "enqueue", refuse)
    with pytest.raises(ConnectionError, match="away"):
        send(member, floor.part, "x")
    assert floor.counts(batch) == {"working": 1, "error": 1}
    monkeypatch.setattr(floor.broker, "enqueue", enqueue)
    send(member, floor.part, "x")
    assert floor.counts(batch) == {"working": 1, "queued": 1}
    assert floor.load(batch).size == 2
    assert [m.args for m in queued(floor.client)] == [("a",), ("x",)]


def test_member_without_a_record_that_its_sender_gives_up(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed, and is sent when its sender runs again."""
    store = floor.store.replace(stalled_after=0.01)
    floor.scripts["a"] = lambda job_state: job_state.batch.send(
        floor.part, "x", key="x"
    )
    batch = floor.send("a")
    (sender,) = queued(floor.client)

    def fail(*args: Any, **options: Any) -> Any:
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "create_new", fail)
        with working(floor.broker):
            wait_until(floor.broker, sender, "error")
    ended = wait_for(lambda: (b := store.load(batch.uuid)) and b.is_finished and b)
    assert isinstance(ended, Batch)
    assert (ended.status, ended.counts["error"]) == ("error", 2)
    assert rerun(store, floor.broker, sender.message_id)
    assert floor.work(batch).status == "success"
    assert floor.counts(batch) == {"success": 2}
    assert floor.ran == {"a": 2, "x": 1}


class Killed(BaseException):
    """Raised in a process that has died."""


@contextlib.contextmanager
def dying(number: int, moment: str) -> Iterator[Callable[[], bool]]:
    """Let the process die at a round trip. Yield a function that tells whether it
    has.
    """
    count = 0
    send = redis.Connection.send_packed_command

    def send_or_die(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        packed = command if isinstance(command, bytes) else b"".join(command)
        if HANDSHAKE.match(packed) or count >= number:
            if count >= number:
                raise Killed
            return send(self, command, *args, **kwargs)
        count += 1
        if count == number and moment == "before":
            raise Killed
        sent = send(self, command, *args, **kwargs)
        if count == number:
            self.read_response()
            self.disconnect()
            raise Killed
        return sent

    connection: Any = redis.Connection
    connection.send_packed_command = send_or_die
    try:
        yield lambda: count >= number
    finally:
        connection.send_packed_command = send


@pytest.mark.parametrize("moment", ["before", "after"])
def test_sender_that_dies_loses_no_member(floor: Floor, moment: str) -> None:
    """Between any two commands: the run after it sends what is missing, and nothing
    twice of which the broker's answer was written down.
    """
    twice = 0
    for number in range(1, 30):
        floor.client.flushall()
        floor.ran.clear()
        batch = floor.send("a")
        _, member = floor.member(batch)
        with dying(number, moment) as is_dead:
            with contextlib.suppress(Killed):
                for name in ("x", "y"):
                    send(member, floor.part, name)
            died = is_dead()
        floor.scripts["a"] = lambda job_state: [
            job_state.batch.send(floor.part, name, key=name) for name in ("x", "y")
        ]
        assert floor.work(batch).status == "success", number
        assert floor.counts(batch) == {"success": 3}, number
        assert floor.ran["x"] >= 1, number
        assert floor.ran["y"] >= 1, number
        twice += floor.ran["x"] + floor.ran["y"] > 2
        if not died:
            break
    assert number > 10
    # Sent, and dead before that was written: at most for each of the two.
    assert twice <= 8


def test_cancel_of_a_batch_is_heard_soon(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a member that reports all the time, by one that is silent, and by those that
    wait: they do not learn of it only with what their batch is told.
    """
    monkeypatch.setattr(unsaved, "TOLD_EVERY", 3600)
    heard: list[str] = []
    gates = {name: Gate() for name in ("busy", "silent")}

    def busy(job_state: Any) -> None:
        gates["busy"].reached.set()
        try:
            for _ in job_state.track(range(10**9)):
                time.sleep(0.001)
        finally:
            heard.append("busy")

    def silent(job_state: Any) -> None:
        gates["silent"].reached.set()
        while True:
            time.sleep(0.001)
            if job_state._run.cancel_requested:
                heard.append("silent")
                job_state.raise_if_cancelled()

    floor.scripts = {"busy": busy, "silent": silent}
    batch = floor.send("busy", "silent", "waits")
    with working(floor.broker, threads=2):
        for gate in gates.values():
            gate.wait_for_job()
        assert floor.load(batch).cancel()
        # Long before the next beat, after five seconds.
        wait_for(lambda: len(heard) == 2, 4)
        wait_for(lambda: floor.load(batch).is_finished)
        wait_for(lambda: not queued(floor.client))
    assert floor.load(batch).status == "cancelled"
    assert floor.counts(batch) == {"cancelled": 3}
    assert floor.ran["waits"] == 0


def test_second_cancel_ends_a_batch_whose_workers_died(floor: Floor) -> None:
    store = JobStore(floor.client, stalled_after=0.01)
    batch = floor.send("a", "b")
    floor.member(batch)
    assert floor.load(batch).cancel()
    assert floor.load(batch).status == "cancelling"
    time.sleep(0.02)
    stalled = store.load(batch.uuid)
    assert stalled is not None
    assert stalled.status == "stalled"
    assert stalled.cancel()
    ended = store.load(batch.uuid)
    assert isinstance(ended, Batch)
    assert ended.status == "cancelled"
    assert ended.counts["cancelled"] == 2
    member = store.load(floor.records(batch)[0].uuid)
    assert member is not None
    assert member.status == "cancelled"
    assert not stalled.cancel()


def test_plain_send_of_a_member_of_no_batch(
    floor: Floor, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that names a batch that does not know it runs as any other."""
    caplog.set_level(logging.WARNING)
    batch = floor.send("a")
    stranger = floor.part.send_with_options(args=("s",), job_batch=batch.uuid)
    odd = floor.part.send_with_options(args=("o",), job_batch="x")
    assert floor.work(batch).size == 1
    with working(floor.broker):
        for message in (stranger, odd):
            assert wait_until(floor.broker, message, "success")
    assert floor.counts(batch) == {"success": 1}
    assert messages(caplog, "pyramid_jobstate") == []


def test_put_back_of_a_member(floor: Floor) -> None:
    """Its message is sent again, by hand, after it has ended: the bar steps back."""
    batch = floor.send("a", "b")
    sent = queued(floor.client)
    floor.work(batch)
    floor.broker.enqueue(sent[0])
    state = floor.load(batch)
    assert state.status == "working"
    assert floor.counts(batch) == {"queued": 1, "success": 1}
    assert floor.work(batch).status == "success"


@pytest.mark.parametrize("is_kept", [True, False])
def test_put_back_of_a_member_that_ended_before_the_cancel(
    floor: Floor, is_kept: bool
) -> None:
    """It stays as it ended, even if its record has expired, and its batch still counts
    its failure.
    """
    batch = floor.send("a", "b")
    begun, _ = floor.member(batch)
    begun.end = End("error", JobError("ValueError", "wrong"))
    floor.store.write([begun.take(time.monotonic())])
    assert floor.load(batch).cancel()
    sent, _ = queued(floor.client)
    floor.broker.flush(sent.queue_name)
    if not is_kept:
        floor.client.delete(f"jobstate:{begun.uuid}")
    before = floor.client.hgetall(f"jobstate:{begun.uuid}")
    floor.broker.enqueue(sent)
    with working(floor.broker):
        wait_for(lambda: not floor.client.exists("dramatiq:default.msgs"))
    assert floor.client.hgetall(f"jobstate:{begun.uuid}") == before
    assert floor.counts(batch) == {"error": 1, "cancelled": 1}
    failed = floor.store.members(batch.uuid, "error").items
    assert [job.uuid for job in failed] == [begun.uuid] * is_kept
    assert not floor.ran


def test_job_without_a_batch(floor: Floor) -> None:
    """It has none to send members to, and neither has a detached one."""
    seen: list[object] = []
    floor.scripts["lone"] = lambda job_state: seen.append(job_state.batch)
    floor.part.send("lone")
    with working(floor.broker):
        wait_for(lambda: seen)
    assert seen == [None]
    floor.scripts["direct"] = lambda job_state: seen.append(job_state.batch)
    floor.part.fn("direct")
    assert seen == [None, None]
