"""The log of a job lives and goes with its record."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import pytest
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, MiddlewareError
from redis import RedisCluster

from pyramid_jobstate import (
    JobState,
    JobStore,
    rerun,
)
from pyramid_jobstate.testing import away, pass_time, put_batch, put_job
from tests.cluster import cluster_of_one
from tests.faulty import Moment, faulty
from tests.jobs import Gate, working
from tests.support import key_of, wait_for, write
from tests.worker.floors import Floor

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


def log_and_fail(job_state: JobState) -> None:
    log.warning("a line")
    raise ValueError


class Desk(Floor):
    """A floor whose jobs log a line."""

    def __init__(
        self, store: JobStore, cls: type[JobState] = Archive, **options: Any
    ) -> None:
        super().__init__(store, cls=cls, **options)
        self.scripts[""] = lambda job_state: log.warning("a line")

    def fail(self, **options: Any) -> Any:
        """Have a job log a line and fail, and return its message. No worker runs."""
        held = self.begin(**options)
        held.end(log_and_fail)
        self.stop()
        return held.message

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

    def set_lives(self, message: Any, millis: int) -> None:
        for key in self.keys(message):
            self.store.client.pexpire(key, millis)

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


#: Makes desks, in a store and with options.
MakeDesk = Callable[..., Desk]


@pytest.fixture
def make_desk(archives: JobStore) -> Iterator[MakeDesk]:
    with contextlib.ExitStack() as stack:

        def make(store: JobStore = archives, *args: Any, **options: Any) -> Desk:
            desk = Desk(store, *args, **options)
            stack.callback(desk.close)
            return desk

        yield make


@pytest.fixture
def desk(make_desk: MakeDesk) -> Desk:
    return make_desk()


#: For tests that need one kind of store.
on_one_server = pytest.mark.parametrize("archives", ["single"], indirect=True)


@pytest.mark.promise("new-run-starts-clean")
def test_log_lives_as_long_as_the_record(desk):
    """After an end, while the job waits to run again, and if the broker refuses that.
    Each run adds to it.
    """
    message = desk.fail()
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
    assert desk.statuses(message) == ["success"]
    desk.agree(message, ENDED)
    numbers = [line.number for line in desk.store.log(message.message_id)]
    assert (numbers, desk.texts(message)) == ([1, 2], ["a line"] * 2)
    pass_time(desk.store, ENDED + 1)
    assert desk.texts(message) == []


def test_log_is_deleted_with_the_record(desk):
    """Of a job that another one outlives."""
    kept, message = desk.fail(), desk.fail()
    assert desk.store.delete(message.message_id)
    assert desk.texts(message) == []
    assert len(desk.store.client.keys("*:log")) == 1
    desk.broker.enqueue(message)
    desk.work()
    assert desk.texts(message) == []
    assert desk.store.clear(everything=True).done == 1
    assert desk.texts(kept) == []
    assert desk.store.client.keys("*:log") == []


def test_log_of_a_job_that_waits_again(desk):
    """Put back after a failure, it lives until the job is due. A cancel keeps it for
    the message that may still come, and so does one that comes.
    """
    message = desk.fail(max_retries=1, min_backoff=500_000)
    assert desk.load(message.message_id).due_at is not None
    life = desk.lives(message)[0] / 1000
    assert life > ACTIVE + 100
    desk.agree(message, life)
    assert desk.load(message.message_id).cancel()
    desk.agree(message, life)
    desk.broker.enqueue(message.copy())
    desk.agree(message, life)
    pass_time(desk.store, life - 10)
    desk.broker.enqueue(message.copy())
    desk.agree(message, ACTIVE)


def test_log_of_a_job_whose_hook_runs(archives, make_desk):
    """It lives until the hook has returned, and then as after any end. The hook may
    begin late.
    """
    if archives.namespace == "jobstate" and isinstance(archives.client, RedisCluster):
        pytest.skip("There, classes have no hooks.")
    options: Any = {"queues": {"default"}, "hooks_queue": "told"}
    desk = make_desk(archives, ToldArchive, **options)
    gate = ToldArchive.gate = Gate()
    (held := desk.begin()).end(lambda job_state: log.warning("a line"))
    desk.stop()
    desk.agree(held.message, ACTIVE)
    # To turn the clock would make it another end.
    desk.set_lives(held.message, 700_000)
    with working(desk.broker):
        gate.wait_for_job()
        desk.agree(held.message, ACTIVE)
        gate.open()
        desk.broker.join("told")
    desk.agree(held.message, ENDED)


@on_one_server
def test_log_of_a_job_whose_hook_is_told_again(archives, make_desk, monkeypatch):
    """Its message is lost, so that another one is to come."""
    desk = make_desk(archives, ToldArchive, heartbeat=60)
    desk.broker.add_middleware(Refusing())
    gate = ToldArchive.gate = Gate()
    # As long as the worker lives: its first look for ends may come late, and tell it.
    monkeypatch.setattr(ToldArchive, "problem", OSError("No mail today."))
    message = desk.post()
    desk.start()
    gate.wait_for_job()
    desk.set_lives(message, 700_000)
    gate.open()
    desk.broker.join("default", fail_fast=False)
    desk.stop()
    desk.agree(message, ACTIVE)


def test_log_of_a_silent_job_that_was_cancelled(make_desk):
    """While it runs, its log outlives half the time of its record. Its worker lives
    after all, and puts the message back.
    """
    desk = make_desk(heartbeat=60)
    held = desk.begin(max_retries=1, min_backoff=500_000)
    held.job_state.append_log("a line")
    assert held.job_state.flush(10)
    record, beside = desk.lives(held.message)
    # A run renews it half a life later.
    assert beside > record + ACTIVE * 400
    pass_time(desk.store, 20)
    assert held.load().cancel()
    assert held.load().is_cancelled
    desk.agree(held.message, ACTIVE - 20)
    held.end(ValueError("x"))
    life = wait_for(lambda: desk.lives(held.message)[0])
    assert life > ACTIVE * 1000
    desk.agree(held.message, life / 1000)


def test_log_of_a_class_that_captures_nothing_any_more(archives, make_desk):
    """A job that has one keeps it, and it lives as long as the record."""
    before, after = make_desk(), make_desk(archives, JobState)
    message = before.post()
    before.work()
    after.broker.enqueue(message.copy())
    before.agree(message, ACTIVE)
    after.work()
    assert before.statuses(message) == ["success"]
    before.agree(message, ENDED)
    assert before.texts(message) == ["a line"]


def test_log_of_a_member_of_a_cancelled_batch(desk):
    """The member waits to run again, and is cancelled as its message comes."""
    member = {"job_state_class": Archive, "status": "retrying", "log": ["a line"]}
    batch = put_batch(desk.store, members=[{**member, "delay": 100}])
    (uuid,) = (each.uuid for each in desk.store.members(batch.uuid).items)
    assert batch.cancel()
    message = desk.message(job_batch=batch.uuid).copy(message_id=uuid)
    desk.broker.enqueue(message)
    pass_time(desk.store, 1000)
    desk.agree(message, 100)
    # Its end is to be told to a hook.
    write(desk.store, uuid, hooks='["c","elsewhere",null,null]')
    desk.work()
    assert desk.statuses(message) == ["cancelled"]
    assert desk.texts(message) == ["a line"]
    desk.agree(message, ACTIVE)


@on_one_server
def test_run_renews_its_log(make_desk):
    """A job runs for longer than a record lives. What is kept of an earlier failure
    lives on, too. An entry of another program that is longer than a log is dropped.
    """
    # From a heartbeat before half the life on, reports renew the log.
    desk = make_desk(heartbeat=ACTIVE / 2)
    held = desk.begin(desk.fail(max_retries=0))
    failure = f"{{{key_of(desk.store, held.uuid)}}}:failure"

    def renewed(number: int) -> list[int]:
        desk.set_lives(held.message, 600_000)
        desk.store.client.pexpire(failure, 600_000)
        held.job_state.set_progress_metric("number", number)
        wait_for(lambda: not 0 < desk.lives(held.message)[1] <= 600_000)
        wait_for(lambda: desk.lives(held.message)[0] > 600_000)
        wait_for(lambda: desk.store.client.pttl(failure) > 600_000)
        return desk.lives(held.message)

    record, beside = renewed(1)
    assert record <= beside
    entry = "1 a 1 900000000 " + "x" * 70_000
    desk.store.client.rpush(desk.keys(held.message)[1], entry)
    assert renewed(2)[1] == -2
    held.end()
    assert held.load().is_success


@on_one_server
def test_line_has_the_time_when_it_was_logged(
    redis_url, archives, make_desk, monkeypatch
):
    """Also if the store was away then, for half a minute."""
    held = make_desk(own=JobStore(redis_url)).begin()
    said, monotonic = threading.Event(), time.monotonic

    def say(job_state: JobState) -> None:
        log.warning("early")
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 30)
        log.warning("late")
        said.set()

    with away(held.floor.own):
        held.leave(say)
        assert said.wait(20)
    # A server that does not know the script of logs yet hears of the end first.
    early, late = wait_for(lambda: archives.log(held.uuid))
    assert (late.time - early.time).total_seconds() == pytest.approx(30, abs=5)


@on_one_server
def test_older_run_adds_nothing(redis_url, archives, make_desk):
    """A run whose job has begun again elsewhere is not heard any more."""
    first, second = (make_desk(own=JobStore(redis_url)) for _ in range(2))
    old = first.begin()
    old.job_state.append_log("one")
    wait_for(lambda: archives.log(old.uuid))
    pass_time(archives, 20)
    new = second.begin(old.message)
    new.job_state.append_log("two")
    wait_for(lambda: len(archives.log(old.uuid)) == 2)
    old.end(lambda job_state: log.warning("stale"))
    new.end()
    lines = archives.log(old.uuid)
    assert [(line.number, line.text) for line in lines] == [(1, "one"), (2, "two")]


def test_lines_after_a_number(store):
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


@on_one_server
def test_lines_that_come_during_a_look(redis_url, archives, desk):
    """A follower asks for what comes after the last line that it has: none may be
    missing before that.
    """
    held = desk.begin()

    def say(*words: str) -> None:
        for word in words:
            held.job_state.append_log(word)
        assert held.job_state.flush(10)

    say("first", "second")
    with faulty(redis_url) as proxy:
        moment = Moment(1, lambda: say(*"abcde"))
        looks = JobStore(proxy.url)
        assert looks.log(held.uuid, 2) == []
        proxy.judge = lambda request: (
            moment(request) if b"LRANGE" in request else "pass"
        )
        lines = looks.log(held.uuid, 1)
    assert [line.number for line in lines] == [2, 3, 4, 5, 6, 7]
