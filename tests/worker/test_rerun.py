"""Running failed jobs again, and deleting jobs, while a worker is at work."""

from __future__ import annotations

import concurrent.futures
import enum
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message, group, pipeline
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend

from pyramid_jobstate import (
    BulkResult,
    JobStateMiddleware,
    JobStore,
    NotRepeatable,
    rerun,
    rerun_all,
)
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job import record_of
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import JobInfo
from pyramid_jobstate.store.counting import Counts
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.testing import pass_time, put_job
from pyramid_jobstate.worker import failures, options
from tests.batched import put_batch
from tests.jobs import (
    load,
    messages,
    middleware_of,
    new_id,
    record_steps,
    store_of,
    wait_until,
    working,
)
from tests.rerunapp import FAILS, RUNS, Errand, make
from tests.support import ROOT, UUID, key_of, load_job, wait_for
from tests.web.operating import Marathons
from tests.webapp import queued


class Mode(enum.StrEnum):
    """A text that is more than a text."""

    FAST = "fast"


class Pace(float):
    """A number that is more than a number."""


class Site:
    """A broker with its actor, and the store of its jobs.

    Attributes:
      client: The server.
    """

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.url = url
        self.broker, self.errand = make(url)
        self.store = store_of(self.broker)

    def send(self, number: int = 1, **options: Any) -> Message[Any]:
        """Send a job of Alice's."""
        options = {"job_owner": "alice", **options}
        message: Message[Any] = self.errand.send_with_options(args=(number,), **options)
        return message

    def fail(self, count: int = 1) -> list[Message[Any]]:
        """Have jobs fail, and return their messages. No worker runs afterwards."""
        self.client.set(FAILS, 1)
        sent = [self.send(i) for i in range(count)]
        with working(self.broker):
            for message in sent:
                wait_until(self.broker, message, "error")
        self.client.delete(FAILS)
        return sent

    def message(self, number: int, **options: Any) -> Message[Any]:
        """Return the message of a job."""
        message: Message[Any] = self.errand.message_with_options(
            args=(number,), **options
        )
        return message

    def fail_pipeline(
        self, *, cancels: int | None = None, **options: Any
    ) -> list[Message[Any]]:
        """Have the first step of a pipeline fail, and return all steps. A user cancels
        the later step of the given index before that.
        """
        steps = [self.message(i, **options) for i in (1, 2, 4)]
        record_steps(self.broker, steps[1:])
        if cancels is not None:
            load(self.broker, steps[cancels]).cancel()
        self.client.set(FAILS, 1)
        pipeline(steps, broker=self.broker).run()
        with working(self.broker):
            wait_until(self.broker, steps[0], "error")
            wait_until(self.broker, steps[2], "cancelled")
        self.client.delete(FAILS)
        return steps

    def redeliver(self, message: Message[Any]) -> None:
        """Have a message delivered as after the death of its worker."""
        options = {"redis_message_id": new_id()}
        message = message.copy(options=options)
        queue, place = message.queue_name, options["redis_message_id"]
        self.broker.do_enqueue(queue, place, message.encode())

    def runs(self, message: Message[Any] | None = None) -> int:
        """Return how many runs of a job have begun, or of all."""
        runs: Any = self.client.lrange(RUNS, 0, -1)
        if message is None:
            return len(runs)
        return sum(run.decode() == message.message_id for run in runs)

    def errand_info(self) -> JobInfo:
        """Return what is known of a job of Alice's."""
        return JobInfo("Errand", "errand", 1, '"alice"', "{}")

    def queued(self) -> int:
        """Return how many messages wait in the queue."""
        size: Any = self.broker.do_qsize("default")
        return int(size)

    def work(self) -> None:
        """Have a worker process all messages."""
        with working(self.broker):
            # The broker keeps a message until it is settled.
            waiting = ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs")
            wait_for(lambda: not self.client.exists(*waiting))

    def record(self, uuid: str) -> dict[str, str]:
        """Return a record, but for the words that its message has to bear or not."""
        fields: Any = self.client.hgetall(key_of(self.store, uuid))
        record = {name.decode(): value.decode() for name, value in fields.items()}
        record.pop("rerun", None)
        record.pop("refused", None)
        return record

    def failure_key(self, message: Message[Any]) -> str:
        return self.store._calls.failure_key(message.message_id)

    def forge(
        self,
        message: Message[Any],
        change: Callable[[Any], None] = lambda fields: None,
        **changes: Any,
    ) -> None:
        """Change the message that the store holds."""
        text: Any = self.client.hget(self.failure_key(message), "message")
        fields = {**json.loads(text), **changes}
        change(fields)
        self.client.hset(self.failure_key(message), "message", json.dumps(fields))

    def rerun(self, message: Message[Any]) -> bool:
        return rerun(self.store, self.broker, message.message_id)


def rerun_refused(
    site: Site, message: Message[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a job again while the broker accepts nothing."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        assert site.store.counts().error == 0
        raise dramatiq.errors.ConnectionClosed("No broker here")

    with monkeypatch.context() as patch:
        patch.setattr(RedisBroker, "enqueue", refuse)
        with pytest.raises(dramatiq.errors.ConnectionClosed):
            site.rerun(message)


@pytest.fixture
def site(redis_url: str) -> Iterator[Site]:
    site = Site(redis_url)
    yield site
    site.broker.close()


def test_failed_job_runs_again(site: Site) -> None:
    """A job that failed runs again under its uuid. It keeps its owner, its parameters
    and the time at which it was sent.
    """
    (sent,) = site.fail()
    before = load(site.broker, sent)
    assert site.rerun(sent)
    queued = load(site.broker, sent)
    assert (queued.status, queued.error, queued.finished_at) == ("queued", None, None)
    assert queued.progress_metrics == {}
    site.work()
    after = load(site.broker, sent)
    assert (after.status, after.attempt, after.error) == ("success", 1, None)
    assert after.progress_metrics == {"number": 0}
    for name in ("owner", "kind", "actor", "job_params", "queued_at"):
        assert getattr(after, name) == getattr(before, name), name
    assert site.runs(sent) == 2


@pytest.mark.parametrize(
    "status", ["queued", "working", "retrying", "cancelling", "cancelled", "success"]
)
def test_other_jobs_do_not_run_again(site: Site, status: str) -> None:
    """Only a job that failed runs again."""
    job = put_job(site.store, Errand, status, actor="errand")
    before = site.record(job.uuid)
    assert rerun(site.store, site.broker, job.uuid) is False
    assert site.record(job.uuid) == before
    assert site.queued() == 0


def test_unknown_job_does_not_run_again(site: Site) -> None:
    """Nothing happens for a uuid without a job."""
    assert rerun(site.store, site.broker, new_id()) is False


def test_two_operators_run_a_job_once(site: Site) -> None:
    """Of several operators who run a job again at the same time, one does."""
    (sent,) = site.fail()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [pool.submit(site.rerun, sent) for _ in range(8)]
        assert sum(future.result() for future in found) == 1
    site.work()
    assert site.runs(sent) == 2


def test_job_that_fails_again_may_run_again(site: Site) -> None:
    """A job may run again as often as it fails, and its tries are kept."""
    (sent,) = site.fail()
    site.client.set(FAILS, 1)
    for _ in range(11):
        assert site.rerun(sent)
        site.work()
        assert load(site.broker, sent).status == "error"
    found = site.store.failures(sent.message_id)
    assert len(found.tries) == 10
    for each in found.tries:
        assert each.error == ("ValueError", "Number 0 failed")
        assert each.started_at is not None and each.ended_at is not None
        assert each.started_at <= each.ended_at
    starts = [each.started_at for each in found.tries if each.started_at]
    assert starts == sorted(starts)
    assert found.traceback.endswith("ValueError: Number 0 failed\n")
    # What a refusal would put back is needed only until the job runs.
    assert not site.client.hexists(site.failure_key(sent), "former")


def test_attempts_of_one_run_are_tries(site: Site) -> None:
    """Each attempt of Dramatiq's is a try, and the last traceback is kept."""
    site.client.set(FAILS, 1)
    sent = site.send(7, max_retries=2, min_backoff=1, max_backoff=2)
    with working(site.broker):
        wait_until(site.broker, sent, "error")
    found = site.store.failures(sent.message_id)
    assert len(found.tries) == 3
    assert 'raise ValueError(f"Number {number} failed")' in found.traceback


def test_nothing_of_a_failure_stands_in_the_record(site: Site) -> None:
    """The record that a poll reads grows by nothing when the job fails."""
    (sent,) = site.fail()
    record = site.record(sent.message_id)
    assert not {"message", "traceback", "tries", "former"} & set(record) - {"error"}
    assert "Traceback" not in str(record)
    ttls = [
        site.client.pttl(key)
        for key in (key_of(site.store, sent.message_id), site.failure_key(sent))
    ]
    assert abs(ttls[0] - ttls[1]) < 1000


def test_success_keeps_no_message(site: Site) -> None:
    """A job that succeeds at once leaves nothing but its record."""
    sent = site.send()
    site.work()
    assert site.client.exists(site.failure_key(sent)) == 0


def test_age_limit_does_not_skip_it(site: Site) -> None:
    """A message that runs again counts as new."""
    site.client.set(FAILS, 1)
    sent = site.send(max_age=60_000)
    with working(site.broker):
        wait_until(site.broker, sent, "error")
    site.client.delete(FAILS)
    site.forge(sent, message_timestamp=1)
    assert site.rerun(sent)
    site.work()
    assert load(site.broker, sent).status == "success"


def age(message: Any) -> None:
    """Let what follows a message in its pipeline or its group be old."""
    options = message["options"]
    callbacks = options.get("group_completion_callbacks", [])
    following = [options["pipe_target"]] if "pipe_target" in options else []
    for each in following + callbacks:
        each["message_timestamp"] = 1
        age(each)


def test_age_limit_does_not_skip_later_steps(site: Site) -> None:
    """They count as new, too."""
    steps = site.fail_pipeline(max_age=60_000)
    site.forge(steps[0], age)
    assert site.rerun(steps[0])
    site.work()
    assert [load(site.broker, s).status for s in steps] == ["success"] * 3


def test_age_limit_does_not_skip_the_callback_of_a_group(site: Site) -> None:
    """The last member to succeed sends it with what follows it."""
    backend = RedisBackend(url=site.url)
    site.broker.add_middleware(GroupCallbacks(backend))
    steps = [site.message(i, max_age=60_000) for i in (3, 4)]
    parts = group([site.message(i) for i in (1, 2)], broker=site.broker)
    parts.add_completion_callback(pipeline(steps, broker=site.broker).messages[0])
    site.client.set(FAILS, 1)
    members = parts.run().children
    with working(site.broker):
        for each in members:
            wait_until(site.broker, each, "error")
    site.client.delete(FAILS)
    for each in members:
        site.forge(each, age)
        assert site.rerun(each)
    with working(site.broker):
        for each in steps:
            ended = wait_until(site.broker, each, "success", "cancelled")
            assert ended.status == "success"


def test_broker_that_refuses_leaves_the_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not accept the message leaves all as it was."""
    (sent,) = site.fail()
    site.client.hset(key_of(site.store, sent.message_id), "m:large", "1" * 2000)
    before, lists = site.record(sent.message_id), site.client.keys()
    assert site.store.counts() == Counts(error=1)
    rerun_refused(site, sent, monkeypatch)
    assert site.record(sent.message_id) == before
    assert sorted(site.client.keys()) == sorted(lists)
    assert site.store.counts() == Counts(error=1)
    page = site.store.list(status="error")
    assert [job.uuid for job in page.items] == [sent.message_id]
    assert site.rerun(sent)
    site.work()
    assert load(site.broker, sent).status == "success"


def test_message_that_the_broker_took_after_all_does_not_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that accepts the message but says that it did not: the failure stays,
    and nothing runs.
    """
    (sent,) = site.fail()
    before = site.record(sent.message_id)
    enqueue = site.broker.do_enqueue

    def lose_reply(*args: Any) -> None:
        enqueue(*args)
        raise dramatiq.errors.ConnectionClosed("No reply")

    with monkeypatch.context() as patch:
        # Only its instances have it.
        patch.setattr(site.broker, "do_enqueue", lose_reply, raising=False)
        with pytest.raises(dramatiq.errors.ConnectionClosed):
            site.rerun(sent)
    assert site.queued() == 1
    site.work()
    assert site.record(sent.message_id) == before
    assert site.runs(sent) == 1


@pytest.mark.parametrize("is_enqueued", [False, True])
@pytest.mark.parametrize("has_run_again", [False, True])
def test_message_of_the_failure_runs_the_job_after_a_refusal(
    site: Site, monkeypatch: pytest.MonkeyPatch, is_enqueued: bool, has_run_again: bool
) -> None:
    """Its dead letter is put back after the broker has refused to run the job again.
    The job runs as if nobody had tried, and from no other message.
    """
    (dead,) = site.fail()
    others: list[Message[Any]] = []
    if has_run_again:
        site.client.set(FAILS, 1)
        assert site.rerun(dead)
        others.append(dead)
        (dead,) = queued(site.client)
        site.work()
        site.client.delete(FAILS)
    runs = site.runs()

    def refuse(message: Message[Any]) -> None:
        others.append(message)
        raise dramatiq.errors.ConnectionClosed("No broker here")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(site.broker, "enqueue", refuse)
            with pytest.raises(dramatiq.errors.ConnectionClosed):
                site.rerun(dead)
    for message in others:
        site.redeliver(message)
    site.work()
    assert load(site.broker, dead).status == "error"
    if is_enqueued:
        site.broker.enqueue(dead)
    else:
        site.redeliver(dead)
    site.work()
    assert load(site.broker, dead).status == "success"
    for message in others:
        site.redeliver(message)
    site.work()
    assert site.runs() == runs + 1


def test_put_back_after_a_refusal_has_not_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has the message that was put back, though nobody confirmed it: the job
    reads stalled, does not run again by request, and runs from that message.
    """
    (dead,) = site.fail()
    key = key_of(site.store, dead.message_id)

    def refuse(message: Message[Any]) -> None:
        raise dramatiq.errors.ConnectionClosed("No broker here")

    with monkeypatch.context() as patch:
        patch.setattr(site.broker, "enqueue", refuse)
        with pytest.raises(dramatiq.errors.ConnectionClosed):
            site.rerun(dead)
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "confirm", lambda *args: None)
        site.broker.enqueue(dead)
    site.client.hset(key, "updated", 1)
    assert load(site.broker, dead).status == "stalled"
    assert not site.rerun(dead)
    record = site.store.record(dead.message_id)
    assert record is not None and site.store.requeue(record) is None
    runs = site.runs()
    site.work()
    assert load(site.broker, dead).status == "success"
    assert site.runs() == runs + 1


def test_word_of_an_earlier_version_admits_the_dead_letter(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal, that one wrote a word that no message has."""
    (dead,) = site.fail()
    site.client.hset(key_of(site.store, dead.message_id), "rerun", "not 0123456789ab")

    def refuse(message: Message[Any]) -> None:
        raise dramatiq.errors.ConnectionClosed("No broker here")

    with monkeypatch.context() as patch:
        patch.setattr(site.broker, "enqueue", refuse)
        with pytest.raises(dramatiq.errors.ConnectionClosed):
            site.rerun(dead)
    site.redeliver(dead)
    site.work()
    assert load(site.broker, dead).status == "success"


def test_old_message_that_comes_again_does_not_run(site: Site) -> None:
    """The message of the run that failed may be delivered again after its worker has
    died: it runs nothing, before, during and after the run that an operator wants.
    """
    (sent,) = site.fail()
    assert site.rerun(sent)
    site.redeliver(sent)
    site.work()
    assert load(site.broker, sent).status == "success"
    assert site.runs(sent) == 2
    site.redeliver(sent)
    site.work()
    assert load(site.broker, sent).status == "success"
    assert site.runs(sent) == 2


def test_retry_that_a_worker_of_an_older_version_left_runs(site: Site) -> None:
    """A worker that knows no words leaves none in the record: the message runs on."""
    (sent,) = site.fail()
    assert site.rerun(sent)
    site.client.hdel(key_of(site.store, sent.message_id), "rerun")
    site.work()
    assert load(site.broker, sent).status == "success"


def test_old_message_that_is_skipped_changes_nothing(site: Site) -> None:
    """An old message that AgeLimit skips does not cancel the job that waits to run."""
    (sent,) = site.fail()
    word = site.store.requeue(record_of(load(site.broker, sent)))
    site.redeliver(sent.copy(options={"max_age": 1}, message_timestamp=1))
    site.work()
    waiting = load(site.broker, sent)
    assert (waiting.status, waiting.error) == ("queued", None)
    site.broker.enqueue(sent.copy(options={options.WORD: word}))
    site.work()
    assert load(site.broker, sent).status == "success"


def test_job_that_was_cancelled_meanwhile_does_not_run(site: Site) -> None:
    """A job that is cancelled while it waits to run again stays cancelled."""
    (sent,) = site.fail()
    assert site.rerun(sent)
    assert load(site.broker, sent).cancel()
    site.work()
    assert load(site.broker, sent).status == "cancelled"
    assert site.runs(sent) == 1
    assert not site.rerun(sent)


def test_later_steps_of_a_pipeline_run(site: Site) -> None:
    """Steps that were not reached wait again, and run with the result."""
    steps = site.fail_pipeline()
    assert site.rerun(steps[0])
    assert [load(site.broker, s).status for s in steps] == ["queued"] * 3
    assert load(site.broker, steps[1]).error is None
    assert site.store.counts() == Counts(queued=3)
    site.work()
    wait_until(site.broker, steps[2], "success")
    assert [load(site.broker, s).status for s in steps] == ["success"] * 3
    assert site.runs() == 4


def test_later_step_that_a_user_cancelled_stays_so(site: Site) -> None:
    """A later step that a user has cancelled does not wait again."""
    first, second, third = site.fail_pipeline(cancels=1)
    assert site.rerun(first)
    assert load(site.broker, second).status == "cancelled"
    site.work()
    assert load(site.broker, first).status == "success"
    assert load(site.broker, second).status == "cancelled"
    assert load(site.broker, third).status == "cancelled"
    assert site.runs() == 2


def test_pipeline_whose_later_step_was_deleted_does_not_run(site: Site) -> None:
    """A step does not run again if a later one would be skipped in silence."""
    first, second, third = site.fail_pipeline()
    assert load(site.broker, third).delete()
    before = site.record(first.message_id)
    with pytest.raises(NotRepeatable, match="later step of its pipeline was deleted"):
        site.rerun(first)
    assert site.record(first.message_id) == before
    assert load(site.broker, second).status == "cancelled"
    assert site.queued() == 0


def test_pipeline_that_runs_though_the_broker_failed_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a worker has begun the job by the time at which the broker fails, the later
    steps still wait for their turn.
    """
    first, second, _ = site.fail_pipeline()
    enqueue = site.broker.do_enqueue

    def run_and_fail(*args: Any) -> None:
        enqueue(*args)
        site.client.hset(key_of(site.store, first.message_id), "status", "working")
        raise dramatiq.errors.ConnectionClosed("No reply")

    with monkeypatch.context() as patch:
        patch.setattr(site.broker, "do_enqueue", run_and_fail, raising=False)
        with pytest.raises(dramatiq.errors.ConnectionClosed):
            site.rerun(first)
    assert load(site.broker, second).status == "queued"


def test_broker_that_refuses_leaves_the_later_steps(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker does not accept the message, later steps stay cancelled."""
    steps = site.fail_pipeline()
    before = [load(site.broker, s).error for s in steps]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RedisBroker, "enqueue", refuse)
        with pytest.raises(KeyboardInterrupt):
            site.rerun(steps[0])
    statuses = [load(site.broker, s).status for s in steps]
    assert statuses == ["error", "cancelled", "cancelled"]
    assert [load(site.broker, s).error for s in steps] == before
    assert site.rerun(steps[0])
    site.work()
    assert [load(site.broker, s).status for s in steps] == ["success"] * 3


def test_sender_that_died_is_followed_by_another(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose sender died before it had sent the message may run again, but not
    while that sender may still be at work.
    """
    (sent,) = site.fail()
    job_state = load(site.broker, sent)
    word = site.store.requeue(record_of(job_state))
    assert word is not None
    assert not site.rerun(sent)
    site.client.hset(key_of(site.store, sent.message_id), "updated", 1)
    assert load(site.broker, sent).status == "stalled"
    rerun_refused(site, sent, monkeypatch)
    assert load(site.broker, sent).error == job_state.error
    assert site.rerun(sent)
    # The first sender was only frozen.
    site.broker.enqueue(sent.copy(options={options.WORD: word}))
    site.work()
    assert load(site.broker, sent).status == "success"
    assert site.runs(sent) == 2


def test_frozen_operator_does_not_confirm_for_another(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who was taken for dead confirms nothing, so that the job of the next
    one may still be put back.
    """
    (sent,) = site.fail()
    frozen, record = site.store.requeue, record_of(load(site.broker, sent))
    word = frozen(record)

    def refuse(*args: Any) -> None:
        # The first one wakes up meanwhile.
        with middleware_of(site.broker).announced({sent.message_id}):
            RedisBroker.enqueue(site.broker, sent.copy(options={options.WORD: word}))
        raise dramatiq.errors.ConnectionClosed("No broker here")

    site.client.hset(key_of(site.store, sent.message_id), "updated", 1)
    with monkeypatch.context() as patch:
        patch.setattr(site.broker, "enqueue", refuse)
        with pytest.raises(dramatiq.errors.ConnectionClosed):
            site.rerun(sent)
    site.work()
    assert load(site.broker, sent).status == "error"
    assert site.runs(sent) == 1
    assert site.rerun(sent)
    site.work()
    assert load(site.broker, sent).status == "success"


@pytest.mark.parametrize("name", ["cancel", "delete", "rerun"])
def test_operator_who_was_taken_for_dead_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An operator whose message will run nothing, since others have acted meanwhile, is
    told that the job was not sent.
    """
    (sent,) = site.fail()
    enqueue, uuid = site.broker.enqueue, sent.message_id

    def freeze(message: Message[Any]) -> None:
        site.client.hset(key_of(site.store, uuid), "updated", 1)
        if name == "rerun":
            assert site.store.requeue(record_of(load(site.broker, sent)))
            site.client.hset(key_of(site.store, uuid), "updated", 1)
            assert rerun(site.store, make(site.url)[0], uuid)
        else:
            assert load(site.broker, sent).cancel()
        if name == "delete":
            assert load(site.broker, sent).delete()
        enqueue(message)

    with monkeypatch.context() as patch:
        patch.setattr(site.broker, "enqueue", freeze)
        assert not site.rerun(sent)
    site.work()
    assert site.runs(sent) == 1 + (name == "rerun")


def test_operator_whose_message_has_run_is_told_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the job has failed once more and another operator has run it again before
    the store is asked.
    """
    (sent,) = site.fail()
    enqueue = site.broker.enqueue

    def run_twice(message: Message[Any]) -> None:
        monkeypatch.setattr(site.broker, "enqueue", enqueue)
        enqueue(message)
        site.client.set(FAILS, 1)
        site.work()
        site.client.delete(FAILS)
        assert site.rerun(sent)

    monkeypatch.setattr(site.broker, "enqueue", run_twice)
    assert rerun_all(site.store, site.broker, kind="Errand").done == 1
    site.work()
    assert site.runs(sent) == 3


def test_operator_whose_job_is_cancelled_as_it_runs_is_told_that_it_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sent,) = site.fail()

    def run(message: Message[Any]) -> None:
        word = message.options[options.WORD]
        info = site.errand_info()._replace(attempt=1, rerun=word)
        site.store.write([Update(sent.message_id, "run", 1, info, begins=True)])
        assert load(site.broker, sent).cancel()
        end = End("cancelled")
        site.store.write([Update(sent.message_id, "run", 2, info, end=end)])
        assert load(site.broker, sent).status == "cancelled"

    monkeypatch.setattr(site.broker, "enqueue", run)
    assert site.rerun(sent)


def test_store_that_is_away_after_the_message_has_left(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that the broker has accepted counts as sent, store or no store."""
    (sent,) = site.fail()
    enqueue = site.broker.enqueue

    def fail(*args: Any) -> Any:
        raise redis.ConnectionError

    def enqueue_last(message: Message[Any]) -> None:
        enqueue(message)
        monkeypatch.setattr(JobStore, "record", fail)

    monkeypatch.setattr(site.broker, "enqueue", enqueue_last)
    assert site.rerun(sent)


def test_job_that_is_deleted_meanwhile_is_unknown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is deleted while an operator runs it again is unknown, not lost."""
    (sent,) = site.fail()
    read = JobStore.failures

    def delete_first(store: JobStore, uuid: str) -> Any:
        assert store.delete(uuid)
        return read(store, uuid)

    monkeypatch.setattr(JobStore, "failures", delete_first)
    assert not site.rerun(sent)


def test_unsent_job_that_never_failed_does_not_run_again(site: Site) -> None:
    """A job that was never confirmed, and never ran, has no message to run from."""
    job = new_id()
    site.store.create(NewJob(job, site.errand_info()))
    site.client.hset(key_of(site.store, job), "updated", 1)
    assert load_job(site.store, job).status == "stalled"
    assert not rerun(site.store, site.broker, job)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"message_id": UUID}, "belongs to another job"),
        ({"actor_name": "other"}, "belongs to another job"),
        ({"actor_name": "unknown"}, "does not know the actor 'unknown'"),
        ({"actor_name": 7}, "something other"),
        ({"args": "abc"}, "something other"),
        ({"options": None}, "something other"),
        ({"options": {"pipe_target": "x"}}, "something other"),
        (
            {
                "options": {
                    "pipe_target": {
                        "actor_name": "unknown",
                        "message_id": UUID,
                        "args": [],
                        "kwargs": {},
                        "options": {},
                    }
                }
            },
            "does not know the actor 'unknown'",
        ),
    ],
    ids=str,
)
def test_foreign_message_is_refused(
    site: Site, changes: dict[str, Any], reason: str
) -> None:
    """A message in the store that is not one of the job's runs nothing."""

    @dramatiq.actor(broker=site.broker)
    def other() -> None:
        pass

    (sent,) = site.fail()
    before = site.record(sent.message_id)
    site.forge(sent, **changes)
    with pytest.raises(NotRepeatable, match=reason):
        site.rerun(sent)
    assert site.record(sent.message_id) == before
    assert site.queued() == 0


@pytest.mark.parametrize("text", [b"\x80\x04K\x01.", "null", "[]", "7", '{"a": NaN}'])
def test_message_that_is_no_message_is_refused(site: Site, text: Any) -> None:
    """Whatever the store holds in place of a message, nothing of it is executed."""
    (sent,) = site.fail()
    site.client.hset(site.failure_key(sent), "message", text)
    with pytest.raises(NotRepeatable):
        site.rerun(sent)
    assert site.queued() == 0


def test_message_may_not_choose_owner_or_queue(site: Site) -> None:
    """The owner comes from the record, and the queue from the actor."""
    (sent,) = site.fail()
    site.forge(sent, queue_name="other", options={"job_owner": "mallory"})
    assert site.rerun(sent)
    assert site.queued() == 1
    site.work()
    assert load(site.broker, sent).owner == "alice"


def test_job_without_an_owner_gets_none(site: Site) -> None:
    """A job that nobody owns stays so."""
    (sent,) = site.fail()
    site.client.hdel(key_of(site.store, sent.message_id), "owner")
    site.forge(sent, options={"job_owner": "mallory"})
    assert site.rerun(sent)
    site.work()
    state = load(site.broker, sent)
    assert (state.owner, state.status) == (None, "success")


def test_job_of_an_untracked_actor_is_refused(site: Site) -> None:
    """A broker whose actor is not tracked does not run the job."""
    (sent,) = site.fail()
    make_broker: Any = RedisBroker
    other: RedisBroker = make_broker(url=site.url)
    other.add_middleware(JobStateMiddleware())

    @dramatiq.actor(broker=other, actor_name="errand")
    def errand(number: int) -> None:
        pass

    with pytest.raises(NotRepeatable, match="'errand' is not tracked"):
        rerun(site.store, other, sent.message_id)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((b"bytes",), "bytes is not JSON serializable"),
        (({1: 2},), "it would come back changed"),
        (((1, 2),), "it would come back changed"),
        ((Mode.FAST,), "it would come back changed"),
        ((Pace(2.5),), "it would come back changed"),
        ((float("nan"),), "not JSON compliant"),
        (("x" * 70_000,), "of at most 65536"),
    ],
    ids=["bytes", "keys", "tuple", "enum", "float", "nan", "large"],
)
def test_message_that_json_cannot_hold_is_not_kept(
    site: Site, args: tuple[Any, ...], reason: str
) -> None:
    """What the store cannot hold as JSON, exactly, cannot run again: it says why."""
    message = MessageProxy(site.errand.message(*args))
    failure = failures.failure_of(message, None, is_final=True)
    assert failure.message == failure.traceback == ""
    assert reason in failure.refusal


def test_reason_is_told(site: Site) -> None:
    """An operator is told why a job cannot run again."""
    site.client.set(FAILS, 1)
    sent = site.errand.send("x" * 70_000)
    with working(site.broker):
        wait_until(site.broker, sent, "error")
    with pytest.raises(NotRepeatable, match="cannot be kept as JSON: it takes 7"):
        site.rerun(sent)
    site.client.delete(site.failure_key(sent))
    with pytest.raises(NotRepeatable, match="does not hold its message"):
        site.rerun(sent)


def test_traceback_is_cut(site: Site) -> None:
    """Of a long traceback the end is kept."""
    message = MessageProxy(site.errand.message(1))
    failure = failures.failure_of(message, ValueError("é" * 9000), is_final=True)
    assert failure.traceback == "é" * 2047 + "\n"


def test_all_failed_jobs_run_again(site: Site) -> None:
    """Failed jobs run again by a filter, a few at a time. Jobs that fail meanwhile are
    left to the next call.
    """
    sent = site.fail(7)
    site.client.delete(site.failure_key(sent[3]))
    calls = rerun_some(site, kind="Errand", limit=3)
    results = [next(calls)]
    later = put_job(site.store, Errand, "error")
    results += calls
    assert sum(each.done for each in results) == 6
    assert sum(each.refused for each in results) == 1
    site.work()
    assert load(site.broker, sent[3]).status == "error"
    assert load_job(site.store, later.uuid).status == "error"
    assert site.store.counts() == Counts(success=6, error=2)


def test_batch_whose_sender_died_does_not_run_again(
    store: JobStore, marathons: Marathons, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what to do about the jobs that were never sent. The first of several
    calls says it, once the batch has been silent for a while.
    """
    batch = put_batch(store, "success", "sending", "error", "error", "sending")
    assert rerun_all(store, marathons.broker, batch=batch.uuid, limit=0).done == 0
    assert not messages(caplog, "pyramid_jobstate")
    pass_time(store, 20)

    first = rerun_all(store, marathons.broker, batch=batch.uuid, limit=1)
    assert (first.done, first.refused) == (1, 0)
    pass_time(store, 20)
    last = rerun_all(store, marathons.broker, batch=batch.uuid, cursor=first.cursor)

    assert last == (1, 0, None)
    assert messages(caplog, "pyramid_jobstate") == [
        f"2 of the jobs of batch {batch.uuid} were never sent, and cannot run again. "
        "Cancel the batch, and send again what is cancelled then."
    ]


def test_batches_are_not_among_failed_jobs(
    store: JobStore, marathons: Marathons
) -> None:
    """A batch does not run, so it is not counted as refused: its failed jobs run."""
    batch = put_batch(store, "success", "error")

    result = rerun_all(store, marathons.broker, everything=True)

    assert result == BulkResult(1, 0, None)
    assert load_job(store, batch.members[1]).status == "queued"
    assert load_job(store, batch.uuid).status == "working"


#: Filters that lead rerun_all() to the jobs of the tests, through different indexes.
FILTERS: list[dict[str, Any]] = [
    {"kind": "Errand"},
    {"owner": "alice"},
    {"owner": "alice", "kind": "Errand"},
    {"everything": True},
]


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
@pytest.mark.parametrize("number", [6, 9], ids=["unlisted", "listed"])
def test_jobs_that_were_lost_run_again_with_those_that_failed(
    site: Site, wanted: dict[str, Any], number: int
) -> None:
    """A job whose operator was killed before its message left runs again with the jobs
    that failed, a few at a time. Others that read "stalled" do not.
    """
    sent = site.fail(5)
    lost = sent[2].message_id
    operate(site, "rerun", lost, number, "before")
    unsent = new_id()
    site.store.create(NewJob(unsent, site.errand_info()))
    for uuid in lost, unsent:
        site.client.hset(key_of(site.store, uuid), "updated", 1)
    assert load_job(site.store, lost).status == "stalled"
    results = list(rerun_some(site, limit=2, **wanted))
    assert [each.done for each in results] == [2, 2, 1]
    assert [each.refused for each in results] == [0, 0, 0]
    key = site.store._index.status_key("all", "sending")
    assert site.client.zrange(key, 0, -1) == [unsent.encode()]
    site.work()
    assert {site.runs(each) for each in sent} == {2}
    assert site.store.counts() == Counts(success=5, stalled=1)


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_job_that_an_operator_is_sending_is_left_alone(
    site: Site, wanted: dict[str, Any]
) -> None:
    """A job that is about to be sent does not count as lost."""
    (sent,) = site.fail()
    assert site.store.requeue(record_of(load(site.broker, sent)))
    assert rerun_all(site.store, site.broker, **wanted) == (0, 0, None)


def test_search_for_jobs_that_were_lost_is_bounded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that examines its share of an owner's jobs leaves the others to the next
    one.
    """
    sent = site.fail(4)
    operate(site, "rerun", sent[1].message_id, 9, "before")
    site.client.hset(key_of(site.store, sent[1].message_id), "updated", 1)
    waiting = [site.send(i) for i in range(4)]
    monkeypatch.setattr("pyramid_jobstate.store.bulk.MAX_EXAMINED", 3)
    results = list(rerun_some(site, owner="alice"))
    # The jobs that were just sent stand before the one that was lost, too.
    assert [each.done for each in results] == [3, 0, 0, 1]
    assert {load(site.broker, each).status for each in [*sent, *waiting]} == {"queued"}


def rerun_some(site: Site, **options: Any) -> Iterator[BulkResult]:
    """Run failed jobs again, and yield the results of the calls."""
    cursor = None
    while True:
        result = rerun_all(site.store, site.broker, cursor=cursor, **options)
        yield result
        cursor = result.cursor
        if cursor is None:
            return


def test_caller_is_told_of_each_job_that_runs_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told of each job as soon as it was sent, and of no others."""
    sent = site.fail(3)
    site.client.delete(site.failure_key(sent[1]))
    told: list[tuple[str, bool, int]] = []

    def tell(uuid: str, is_certain: bool) -> None:
        told.append((uuid, is_certain, site.queued()))

    rerun_all(site.store, site.broker, kind="Errand", tell=tell)
    assert [each[1:] for each in told] == [(True, 1), (True, 2)]
    assert {each[0] for each in told} == {sent[0].message_id, sent[2].message_id}


def test_deleted_job_does_not_come_back(site: Site) -> None:
    """A deleted job is unknown, and its message runs nothing if it comes again."""
    (failed,) = site.fail()
    succeeded, cancelled = site.send(), site.send()
    load(site.broker, cancelled).cancel()
    with working(site.broker):
        wait_until(site.broker, succeeded, "success")
    runs = site.runs()
    all_sent = [failed, succeeded, cancelled]
    assert [load(site.broker, sent).delete() for sent in all_sent] == [True] * 3
    assert not site.client.exists(site.failure_key(failed))
    assert [site.store.delete(sent.message_id) for sent in all_sent] == [False] * 3
    for sent in all_sent:
        assert site.store.load(sent.message_id) is None
        assert not site.rerun(sent)
        site.redeliver(sent)
        site.broker.enqueue(sent)
    site.work()
    assert site.runs() == runs
    assert [site.store.load(sent.message_id) for sent in all_sent] == [None] * 3
    assert site.store.list().items == []
    assert site.store.counts() == Counts()


@pytest.mark.parametrize("status", ["queued", "working", "retrying", "stalled"])
def test_unended_job_is_not_deleted(site: Site, status: str) -> None:
    """A job that has not ended stays."""
    job = put_job(site.store, Errand, status)
    assert not job.delete()
    assert not site.store.delete(job.uuid)
    assert load_job(site.store, job.uuid).status == status


def test_tombstone_lives_as_long_as_the_record(site: Site) -> None:
    """What is left of a deleted job expires when its record would have."""
    job = put_job(site.store, Errand, "success")
    key = key_of(site.store, job.uuid)
    site.client.pexpire(key, 50_000)
    assert job.delete()
    assert 40_000 < site.client.pttl(key) <= 50_000
    assert site.record(job.uuid).keys() == {"status", "asked"}
    # A message that is sent again has to find it.
    assert site.store.create(NewJob(job.uuid, site.errand_info())) == [False]
    assert site.client.pttl(key) > 7 * 86_400_000
    endless = put_job(site.store, Errand, "error")
    site.client.persist(key_of(site.store, endless.uuid))
    assert endless.delete()
    assert site.client.pttl(key_of(site.store, endless.uuid)) > 0


def test_run_that_goes_on_after_its_job_was_deleted(site: Site) -> None:
    """A run that was taken for dead is told to stop, and does not write its job again,
    once that was cancelled and deleted.
    """
    run = Update(new_id(), "a", 1, site.errand_info(), begins=True)
    assert site.store.write([run]) == [Reply.OK]
    site.client.hset(key_of(site.store, run.uuid), "seen", 1)
    job_state = load_job(site.store, run.uuid)
    assert job_state.cancel() and job_state.delete()
    report = Update(run.uuid, "a", 2, run.info, {"m:x": "1"})
    end = Update(run.uuid, "a", 3, run.info, end=End("success"))
    assert site.store.write([report, end]) == [Reply.CANCELLED] * 2
    assert site.store.write([run]) == [Reply.CANCELLED]
    assert site.store.load(run.uuid) is None


#: The round trips at which an operator is killed by default, and all of them.
SOME = [(2, "after"), (4, "before"), (5, "after"), (9, "before")]
EVERY = list(itertools.product(range(1, 15), ("before", "after")))


def kills(name: str) -> list[Any]:
    return [
        pytest.param(
            name,
            number,
            moment,
            marks=[] if (number, moment) in SOME else pytest.mark.long,
        )
        for number, moment in EVERY
    ]


def operate(site: Site, name: str, uuid: str, number: int, moment: str) -> None:
    """Act as an operator who is killed at a round trip, if there are so many."""
    command = [sys.executable, "-m", "tests.rerunapp", site.url, name, uuid]
    done = subprocess.run([*command, str(number), moment], cwd=ROOT)
    assert done.returncode in (0, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "number", "moment"), [*kills("rerun"), *kills("rerun_all")]
)
def test_operator_who_is_killed_runs_a_job_once(
    site: Site, name: str, number: int, moment: str
) -> None:
    """Wherever an operator who runs a job again is killed, the job runs once more, at
    the latest when another does it.
    """
    (sent,) = site.fail()
    uuid = sent.message_id
    with working(site.broker):
        operate(site, name, uuid, number, moment)
        time.sleep(0.1)
        if load(site.broker, sent).status == "queued":
            # Its sender has died: it will read stalled.
            site.client.hset(key_of(site.store, uuid), "updated", 1)
        if load(site.broker, sent).status in ("error", "stalled"):
            assert site.rerun(sent)
        wait_until(site.broker, sent, "success")
    site.work()
    assert site.runs(sent) == 2
    assert load(site.broker, sent).status == "success"


@pytest.mark.parametrize(
    ("name", "number", "moment"),
    [*kills("delete"), *kills("clear"), *kills("cancel_all")],
)
def test_operator_who_is_killed_leaves_others_to_the_next(
    site: Site, name: str, number: int, moment: str
) -> None:
    """Wherever an operator who deletes or cancels jobs is killed, nothing runs that was
    deleted or cancelled, and another finishes the work.
    """
    (failed,) = site.fail()
    waiting = site.send()
    runs = site.runs()
    operate(site, name, failed.message_id, number, moment)
    if name == "cancel_all":
        site.store.cancel_all(kind="Errand")
        assert load(site.broker, waiting).status == "cancelled"
    else:
        site.store.clear(kind="Errand")
        assert site.store.load(failed.message_id) is None
        assert load(site.broker, waiting).status == "queued"
        load(site.broker, waiting).cancel()
    site.redeliver(failed)
    site.work()
    expected = runs + (name == "cancel_all")
    assert site.runs() == expected
    assert site.store.list(status="queued").items == []


def test_worker_runs_nothing_that_is_cancelled_meanwhile(site: Site) -> None:
    """Of the jobs that are cancelled while a worker is at work, those that wait never
    run.
    """
    sent = [site.send(i) for i in range(60)]
    with working(site.broker, threads=2):
        wait_for(lambda: site.runs() > 5)
        done = site.store.cancel_all(kind="Errand").done
        runs = site.runs()
        site.broker.join("default")
    # The worker's two threads had begun a job each.
    assert site.runs() <= runs + 2
    statuses = [load(site.broker, each).status for each in sent]
    assert set(statuses) == {"success", "cancelled"}
    assert 0 <= done - statuses.count("cancelled") <= 2


def test_clearing_while_a_worker_is_at_work(site: Site) -> None:
    """Jobs that end are deleted while others run: each runs once, and none is lost."""
    sent = [site.send(i) for i in range(60)]
    deleted = 0
    with working(site.broker, threads=2):
        while deleted < 60:
            deleted += site.store.clear(kind="Errand").done
    assert deleted == 60
    assert site.runs() == 60
    assert {site.runs(each) for each in sent} == {1}
    assert site.store.list().items == []


def test_running_again_while_a_worker_is_at_work(site: Site) -> None:
    """Two operators run all failed jobs again while a worker processes them: each runs
    once more.
    """
    sent = site.fail(30)

    def operate() -> int:
        return rerun_all(site.store, site.broker, kind="Errand").done

    with working(site.broker), concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [pool.submit(operate) for _ in range(2)]
        assert sum(each.result() for each in found) == 30
        for each in sent:
            wait_until(site.broker, each, "success")
    assert {site.runs(each) for each in sent} == {2}


def test_job_that_was_cancelled_is_not_restored(site: Site) -> None:
    """A job that is cancelled while the broker refuses its message stays cancelled."""
    (sent,) = site.fail()
    job_state = load(site.broker, sent)
    word = site.store.requeue(record_of(job_state))
    assert word is not None
    assert load(site.broker, sent).cancel()
    site.store.restore(record_of(job_state), word)
    assert load(site.broker, sent).status == "cancelled"


def test_failure_is_put_back_once(site: Site) -> None:
    """A request to put a failure back whose reply was lost gets the same reply again,
    and lists the job where it belongs.
    """
    (sent,) = site.fail()
    record = record_of(load(site.broker, sent))
    word = site.store.requeue(record)
    assert word is not None
    assert site.store.restore(record, word)
    site.store._list(site.store._index.requeue(sent.message_id, record.info))
    assert site.store.restore(record, word)
    assert not site.store.restore(record, "another")
    assert site.store.counts() == Counts(error=1)


def test_success_after_a_failure_keeps_no_message(site: Site) -> None:
    """What a rerun needed goes when the job has succeeded. Its tries stay."""
    (sent,) = site.fail()
    assert site.rerun(sent)
    site.work()
    fields: Any = site.client.hkeys(site.failure_key(sent))
    assert sorted(fields) == [b"traceback", b"try:0"]


def test_retries_send_no_message(site: Site) -> None:
    """Only the last failure of a job keeps its message."""
    message = MessageProxy(site.errand.message(1))
    failure = failures.failure_of(message, ValueError("x"), is_final=False)
    assert failure == ("", "", "ValueError: x\n")


def test_traceback_that_cannot_be_formatted(site: Site) -> None:
    """An exception whose attributes raise has no traceback, but ends its job."""

    class Odd(Exception):
        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    message = MessageProxy(site.errand.message(1))
    failure = failures.failure_of(message, Odd(), is_final=True)
    assert failure.message
    assert failure.traceback == ""


def test_broker_that_keeps_its_jobs_elsewhere_is_refused(
    site: Site, server: EmbeddedServer
) -> None:
    """A broker whose worker writes to another store does not run the job."""
    (sent,) = site.fail()
    other = JobStore(server.url)
    key = key_of(other, sent.message_id)
    fields: Any = site.client.hgetall(key)
    other.client.hset(key, mapping=fields)
    with pytest.raises(NotRepeatable, match="Job states are read from"):
        rerun(other, site.broker, sent.message_id)
    assert site.queued() == 0


@pytest.mark.parametrize("text", [b"x", b"[1,2]", b'[1,2,["a","b","c"]]', b"\xff"])
def test_try_that_cannot_be_parsed_is_left_out(site: Site, text: bytes) -> None:
    """A try that another program wrote does not keep the others from being read."""
    site.client.set(FAILS, 1)
    sent = site.send(max_retries=1, min_backoff=1, max_backoff=2)
    with working(site.broker):
        wait_until(site.broker, sent, "error")
    assert len(site.store.failures(sent.message_id).tries) == 2
    site.client.hset(site.failure_key(sent), "try:1", text)
    assert len(site.store.failures(sent.message_id).tries) == 1
