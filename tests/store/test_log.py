"""The log of a job lives and goes with its record."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, MiddlewareError
from redis import RedisCluster

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
    current_job_state,
    rerun,
)
from pyramid_jobstate.testing import away, pass_time, put_batch, put_job
from tests.cluster import cluster_of_one
from tests.faulty import Moment, faulty
from tests.jobs import Gate, working
from tests.support import key_of, load_job, wait_for, write

log = logging.getLogger("tests.archive")

#: For how many seconds unfinished and ended jobs are kept.
ACTIVE, ENDED = 1000, 60


class Archive(JobState):
    log_level = "WARNING"


class ToldArchive(JobState):
    log_level = "WARNING"
    gate = Gate()
    problem: ClassVar[Exception | None] = None

    def on_success(self) -> None:
        self.gate.wait()
        if self.problem is not None:
            raise self.problem


class Refusing(Middleware):
    """Refuses messages that are to be tried again."""

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        if message.options.get("retries"):
            raise MiddlewareError("The queue is full.")


class Desk:
    """A broker whose jobs log their argument and end as a test says.

    Attributes:
      end: Is called at the end of each run.
    """

    def __init__(
        self, store: JobStore, cls: type[JobState] = Archive, **options: Any
    ) -> None:
        self.store, self.broker = store, StubBroker()
        options = {"interval": 0.01, **options}
        self.broker.add_middleware(JobStateMiddleware(store, **options))
        self.end: Callable[[], object] = list

        def keep_archive(text: str = "a line") -> None:
            if text:
                log.warning(text)
            self.end()

        declare = dramatiq.actor(
            broker=self.broker, job_state=cls, max_retries=1, min_backoff=500_000
        )
        self.actor: Any = declare(keep_archive)

    def work(self) -> None:
        with working(self.broker):
            self.broker.join("default", fail_fast=False)

    def send(self, **options: Any) -> Any:
        return self.actor.send_with_options(**options)

    def fail(self, **options: Any) -> Any:
        """Send a job that fails, and return its message."""
        self.end = lambda: 1 / 0
        message = self.send(max_retries=0, **options)
        self.work()
        self.end = list
        return message

    def texts(self, message: Any) -> list[str]:
        return [line.text for line in self.store.log(message.message_id)]

    def keys(self, message: Any) -> tuple[str, str]:
        """Return the keys of the record and of its log."""
        key = key_of(self.store, message.message_id)
        return key, f"{key}:log" if "{" in key else f"{{{key}}}:log"

    def lives(self, message: Any) -> list[int]:
        """Return how many milliseconds the record and its log live, at one moment."""
        text = "return { redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2]) }"
        found: list[int] = self.store.client.eval(text, 2, *self.keys(message))
        return found

    def agree(self, message: Any, seconds: float) -> None:
        """Check that the record and its log both live for some seconds from now."""
        lives = self.lives(message)
        assert lives[0] == pytest.approx(seconds * 1000, abs=5000), lives
        assert lives[1] == pytest.approx(lives[0], abs=100), lives


STORES = ("single", "tagged", "cluster", "tagged cluster")


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with cluster_of_one() as node:
        yield node.url.replace("redis://", "redis+cluster://")


@pytest.fixture(params=STORES)
def archives(request: pytest.FixtureRequest, redis_url: str) -> Iterator[JobStore]:
    """A store on a server or a Cluster, whose keys share a slot or do not."""
    url = redis_url
    if "cluster" in request.param:
        url = request.getfixturevalue("cluster_url")
    namespace = "{app}:jobs" if "tagged" in request.param else "jobstate"
    store = JobStore(url, namespace=namespace, expire_in=ENDED, active_expire_in=ACTIVE)
    store.client.flushall()
    yield store
    store.client.close()


@pytest.fixture
def desk(archives: JobStore) -> Desk:
    return Desk(archives)


def test_log_lives_as_long_as_the_record(desk: Desk) -> None:
    """After an end, while the job waits to run again, and if the broker refuses that.
    Each run adds to it.
    """
    message = desk.fail(args=("first",))
    desk.agree(message, ENDED)
    pass_time(desk.store, 30)
    refused = mock.patch.object(
        desk.broker, "enqueue", side_effect=ConnectionClosed("No")
    )
    with refused, pytest.raises(ConnectionClosed):
        rerun(desk.store, desk.broker, message.message_id)
    desk.agree(message, ENDED)
    assert rerun(desk.store, desk.broker, message.message_id)
    desk.agree(message, ACTIVE)
    desk.work()
    assert load_job(desk.store, message.message_id).is_success
    desk.agree(message, ENDED)
    lines = desk.store.log(message.message_id)
    assert [(line.number, line.text) for line in lines] == [(1, "first"), (2, "first")]
    pass_time(desk.store, ENDED + 1)
    assert desk.store.log(message.message_id) == []


def test_log_is_deleted_with_the_record(desk: Desk) -> None:
    """Of a job that another one outlives."""
    kept, message = desk.fail(), desk.fail()
    assert desk.store.delete(message.message_id)
    assert desk.store.log(message.message_id) == []
    assert len(desk.store.client.keys("*:log")) == 1
    desk.broker.enqueue(message)
    desk.work()
    assert desk.store.log(message.message_id) == []
    assert desk.store.clear(everything=True).done == 1
    assert desk.store.log(kept.message_id) == []
    assert desk.store.client.keys("*:log") == []


def test_log_of_a_job_that_waits_again(desk: Desk) -> None:
    """Put back after a failure, it lives until the job is due. A cancel keeps it for
    the message that may still come, and so does one that comes.
    """
    desk.end = lambda: 1 / 0
    message = desk.send()
    with working(desk.broker):
        wait_for(lambda: load_job(desk.store, message.message_id).status == "retrying")
        due = load_job(desk.store, message.message_id).due_at
        assert due is not None
    key = key_of(desk.store, message.message_id)
    life = desk.store.client.pttl(key) / 1000
    assert life > ACTIVE + 100
    desk.agree(message, life)
    assert load_job(desk.store, message.message_id).cancel()
    desk.agree(message, life)
    desk.broker.enqueue(message.copy())
    desk.agree(message, life)
    pass_time(desk.store, life - 10)
    desk.broker.enqueue(message.copy())
    desk.agree(message, ACTIVE)


def test_log_of_a_job_whose_hook_runs(archives: JobStore) -> None:
    """It lives until the hook has returned, and then as after any end. The hook may
    begin late.
    """
    if archives.namespace == "jobstate" and isinstance(archives.client, RedisCluster):
        pytest.skip("There, classes have no hooks.")
    desk = Desk(archives, ToldArchive, hooks_queue="told")
    gate = ToldArchive.gate = Gate()
    message = desk.send()
    worker = dramatiq.Worker(desk.broker, queues={"default"}, worker_timeout=20)
    worker.start()
    desk.broker.join("default")
    worker.stop()
    desk.agree(message, ACTIVE)
    # To turn the clock would make it another end.
    for key in desk.keys(message):
        archives.client.pexpire(key, 700_000)
    with working(desk.broker):
        gate.wait_for_job()
        desk.agree(message, ACTIVE)
        gate.open()
        desk.broker.join("told")
    desk.agree(message, ENDED)


def test_log_of_a_job_whose_hook_is_told_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is lost, so that another one is to come."""
    store = JobStore(redis_url, expire_in=ENDED, active_expire_in=ACTIVE)
    desk = Desk(store, ToldArchive, heartbeat=60)
    desk.broker.add_middleware(Refusing())
    gate = ToldArchive.gate = Gate()
    # As long as the worker lives: its first look for ends may come late, and tell it.
    monkeypatch.setattr(ToldArchive, "problem", OSError("No mail today."))
    message = desk.send()
    with working(desk.broker):
        gate.wait_for_job()
        for key in desk.keys(message):
            store.client.pexpire(key, 700_000)
        gate.open()
        desk.broker.join("default", fail_fast=False)
    desk.agree(message, ACTIVE)


def test_log_of_a_silent_job_that_was_cancelled(archives: JobStore) -> None:
    """While it runs, its log outlives half the time of its record. Its worker lives
    after all, and puts the message back.
    """
    desk, gate = Desk(archives, heartbeat=60), Gate()

    def end() -> None:
        gate.wait()
        raise ValueError

    desk.end = end
    message = desk.send()
    with working(desk.broker):
        gate.wait_for_job()
        wait_for(lambda: desk.texts(message))
        record, beside = desk.lives(message)
        # A run renews it half a life later.
        assert beside > record + ACTIVE * 400
        pass_time(archives, 20)
        assert load_job(archives, message.message_id).cancel()
        assert load_job(archives, message.message_id).is_cancelled
        desk.agree(message, ACTIVE - 20)
        gate.open()
        key, _ = desk.keys(message)
        wait_for(lambda: archives.client.pttl(key) > ACTIVE * 1000)
    desk.agree(message, archives.client.pttl(key) / 1000)


def test_log_of_a_class_that_captures_nothing_any_more(archives: JobStore) -> None:
    """A job that has one keeps it, and it lives as long as the record."""
    before, after = Desk(archives), Desk(archives, JobState)
    message = before.send()
    before.work()
    after.broker.enqueue(message.copy())
    before.agree(message, ACTIVE)
    after.work()
    assert load_job(archives, message.message_id).is_success
    before.agree(message, ENDED)
    assert before.texts(message) == ["a line"]


def test_log_of_a_member_of_a_cancelled_batch(desk: Desk) -> None:
    """The member waits to run again, and is cancelled as its message comes."""
    member = {"job_state_class": Archive, "status": "retrying", "log": ["a line"]}
    batch = put_batch(desk.store, members=[{**member, "delay": 100}])
    (uuid,) = (each.uuid for each in desk.store.members(batch.uuid).items)
    assert batch.cancel()
    message = desk.actor.message_with_options(job_batch=batch.uuid)
    message = message.copy(message_id=uuid)
    desk.broker.enqueue(message)
    pass_time(desk.store, 1000)
    desk.agree(message, 100)
    # Its end is to be told to a hook.
    write(desk.store, uuid, hooks='["c","elsewhere",null,null]')
    desk.work()
    record = load_job(desk.store, uuid)
    assert record.is_cancelled and desk.texts(message) == ["a line"]
    desk.agree(message, ACTIVE)


def test_run_renews_its_log(redis_url: str) -> None:
    """A job that logs once, and then runs for longer than a record lives. What is kept
    of an earlier failure lives on, too. An entry of another program that is longer than
    a log is dropped.
    """
    store = JobStore(redis_url, active_expire_in=ACTIVE)
    # From a heartbeat before half the life on, reports renew the log.
    desk, gates = Desk(store, heartbeat=ACTIVE / 2), [Gate() for _ in range(3)]

    def end() -> None:
        job_state: Any = current_job_state()
        for number, gate in enumerate([*gates]):
            job_state.set_progress_metric("number", number)
            gate.wait()

    def renewed(message: Any) -> list[int]:
        key, log_key = desk.keys(message)
        failure = f"{{{key}}}:failure"
        for each in key, log_key, failure:
            store.client.pexpire(each, 600_000)
        gates.pop(0).open()
        wait_for(lambda: not 0 < desk.lives(message)[1] <= 600_000)
        wait_for(lambda: desk.lives(message)[0] > 600_000)
        wait_for(lambda: store.client.pttl(failure) > 600_000)
        return desk.lives(message)

    message = desk.fail()
    desk.end = end
    assert rerun(store, desk.broker, message.message_id)
    with working(desk.broker):
        gates[0].wait_for_job()
        wait_for(lambda: desk.texts(message))
        record, beside = renewed(message)
        assert record <= beside
        gates[0].wait_for_job()
        entry = "1 a 1 900000000 " + "x" * 70_000
        store.client.rpush(desk.keys(message)[1], entry)
        assert renewed(message)[1] == -2
        gates[0].open()
        desk.broker.join("default", fail_fast=False)
    assert load_job(store, message.message_id).is_success


def test_line_has_the_time_when_it_was_logged(redis_url: str) -> None:
    """Also if the store was away then."""
    store = JobStore(redis_url)
    desk, gate = Desk(JobStore(redis_url)), Gate()

    def end() -> None:
        gate.wait()
        log.warning("early")
        time.sleep(0.3)
        log.warning("late")

    desk.end = end
    message = desk.send(args=("",))
    with working(desk.broker):
        gate.wait_for_job()
        with away(desk.store):
            gate.open()
            time.sleep(0.5)
        desk.broker.join("default")
    early, late = store.log(message.message_id)
    assert (late.time - early.time).total_seconds() >= 0.25


def test_older_run_adds_nothing(redis_url: str, store: JobStore) -> None:
    """A run whose job has begun again elsewhere is not heard any more."""
    own = [JobStore(redis_url) for _ in range(2)]
    desks = [Desk(each) for each in own]
    first, second = Gate(), Gate()

    def end() -> None:
        first.wait()
        log.warning("stale")

    desks[0].end = end
    desks[1].end = second.wait
    with contextlib.ExitStack() as stack:
        message = desks[0].send(args=("one",))
        stack.enter_context(working(desks[0].broker))
        first.wait_for_job()
        wait_for(lambda: store.log(message.message_id))
        pass_time(store, 20)
        desks[1].broker.enqueue(message.copy(args=("two",)))
        stack.enter_context(working(desks[1].broker))
        second.wait_for_job()
        wait_for(lambda: len(store.log(message.message_id)) == 2)
        first.open()
        desks[0].broker.join("default")
        second.open()
    lines = store.log(message.message_id)
    assert [(line.number, line.text) for line in lines] == [(1, "one"), (2, "two")]


def test_lines_after_a_number(store: JobStore) -> None:
    """Followers ask for what is new. Numbers must be counts."""
    job = put_job(store, Archive, log=["a", "b", "c"])
    assert [line.text for line in store.log(job.uuid, 1)] == ["b", "c"]
    client: Any = store.client
    key = f"{{{key_of(store, job.uuid)}}}:log"
    client.lrem(key, 1, client.lindex(key, 1))
    assert [line.text for line in store.log(job.uuid, 1)] == ["c"]
    assert store.log(job.uuid, after=3) == store.log(job.uuid, 10**15) == []
    assert store.log("00000000-0000-4000-8000-000000000000") == []
    for wrong in (-1, 10**15 + 1):
        with pytest.raises(ValueError, match=r"^after must be from 0"):
            store.log(job.uuid, wrong)
    with pytest.raises(TypeError, match=r"^after must be an int"):
        store.log(job.uuid, True)


def test_lines_that_come_during_a_look(redis_url: str, store: JobStore) -> None:
    """A follower asks for what comes after the last line that it has: none may be
    missing before that.
    """
    desk, gate, later = Desk(JobStore(redis_url)), Gate(), Gate()

    def end() -> None:
        log.warning("second")
        gate.wait()
        for number in range(5):
            log.warning("later %d", number)
        later.wait()

    def act() -> None:
        gate.open()
        later.wait_for_job()
        wait_for(lambda: len(store.log(message.message_id)) == 7)

    desk.end = end
    message = desk.send(args=("first",))
    with working(desk.broker), faulty(redis_url) as proxy:
        gate.wait_for_job()
        wait_for(lambda: len(store.log(message.message_id)) == 2)
        moment = Moment(1, act)
        looks = JobStore(proxy.url)
        assert looks.log(message.message_id, 2) == []
        proxy.judge = lambda request: (
            moment(request) if b"LRANGE" in request else "pass"
        )
        lines = looks.log(message.message_id, 1)
        later.open()
    assert [line.number for line in lines] == [2, 3, 4, 5, 6, 7]
