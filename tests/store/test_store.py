"""JobStore with a real server."""

import itertools
import os
import signal
import threading
import time
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.job.changes import End, Failure, NewJob, Update
from pyramid_jobstate.job.record import CANCELLED, NOT_REACHED, JobError
from pyramid_jobstate.store.scripts import NAMES, Reply, read_scripts
from pyramid_jobstate.testing import pass_time
from tests.jobs import RunMarathon, new_id
from tests.support import INFO, SENT, key_of, load_job, wait_for


class Writer:
    """A run whose updates the test writes."""

    def __init__(self, store: JobStore, job: str, token: str = "a") -> None:
        self.store, self.job, self.token, self.seq = store, job, token, 0

    def write(self, update: Update) -> Reply | Exception:
        (reply,) = self.store.write([update])
        return reply

    def update(self, **options: Any) -> Update:
        self.seq += 1
        return Update(self.job, self.token, self.seq, INFO, **options)

    def begin(self, **options: Any) -> Reply | Exception:
        return self.write(self.update(begins=True, **options))

    def record(self, **fields: str) -> Reply | Exception:
        return self.write(self.update(fields=fields))

    def end(self, status: str, **options: Any) -> Reply | Exception:
        end = End(status, **options)
        return self.write(self.update(end=end))


def members(client: redis.Redis, pattern: str) -> dict[str, set[str]]:
    """Return the jobs that each index lists."""
    keys: Any = client.keys(f"jobstate:{pattern}")
    found: Any = {key: client.zrange(key, 0, -1) for key in keys}
    return {
        key.decode().removeprefix("jobstate:"): {name.decode() for name in names}
        for key, names in found.items()
    }


def test_create_writes_a_queued_job(store: JobStore) -> None:
    """A new job reads queued, with everything that was sent."""
    job = new_id()
    assert store.create(NewJob(job, INFO)) == [True]
    state = load_job(store, job)
    assert isinstance(state, RunMarathon)
    assert (state.uuid, state.kind, state.status) == (job, "RunMarathon", "queued")
    assert (state.actor, state.owner, state.attempt) == ("run_marathon", "alice", 1)
    assert state.job_params == {"miles": 26}
    assert state.queued_at is not None and state.queued_at == state.updated_at
    assert state.started_at is state.due_at is state.finished_at is None


def test_create_with_a_delay_says_when_it_is_due(store: JobStore) -> None:
    """A delayed job is due at the server's time plus the delay."""
    job = new_id()
    store.create(NewJob(job, INFO, delay=60))
    state = load_job(store, job)
    assert state.status == "queued" and state.due_at and state.queued_at
    assert (state.due_at - state.queued_at).total_seconds() == 60


def test_create_leaves_a_record_alone(store: JobStore) -> None:
    """A late "queued" overwrites neither a run that has begun nor a cancelled job."""
    job = new_id()
    Writer(store, job).begin()
    assert store.create(NewJob(job, INFO)) == [False]
    assert load_job(store, job).status == "working"
    cancelled = new_id()
    store.create(NewJob(cancelled, INFO))
    assert store.cancel(cancelled, INFO)
    assert store.create(NewJob(cancelled, INFO)) == [False]
    assert load_job(store, cancelled).status == "cancelled"


@pytest.mark.parametrize("status", ["success", "error"])
def test_create_queues_an_ended_job_again(store: JobStore, status: str) -> None:
    """A job that an operator puts back in the queue is queued without its old run, but
    with its owner.
    """
    job = new_id()
    run = Writer(store, job)
    run.begin(fields={"m:miles_run": "7"})
    run.end(status)
    assert store.create(NewJob(job, INFO._replace(owner=None))) == [True]
    state = load_job(store, job)
    assert (state.status, state.owner) == ("queued", "alice")
    assert state.progress_metrics == {} and state.finished_at is None
    assert run.record(**{"m:miles_run": "8"}) is Reply.FENCED


def test_create_that_comes_late_does_not_queue_a_job_again(
    store: JobStore, client: redis.Redis
) -> None:
    """A job is not put back if another run has ended since it was read."""
    job = new_id()
    run = Writer(store, job, "new")
    run.begin()
    run.end("success")
    assert store.queue_again([(NewJob(job, INFO), "old")]) == [False]
    assert load_job(store, job).status == "success"


def test_confirm_keeps_a_sent_job_from_stalling(store: JobStore) -> None:
    """A job whose message was never confirmed reads stalled after a while. A confirmed
    one stays queued.
    """
    sent, lost = new_id(), new_id()
    for job in (sent, lost):
        store.create(NewJob(job, INFO))
    assert load_job(store, lost).status == "queued"
    store.confirm(sent, INFO.kind)
    pass_time(store, 20)
    assert load_job(store, lost).status == "stalled"
    assert load_job(store, sent).status == "queued"


def test_confirm_changes_nothing_of_a_run(store: JobStore) -> None:
    """A confirmation that arrives after the worker has begun changes nothing."""
    job = new_id()
    store.create(NewJob(job, INFO))
    Writer(store, job).begin()
    store.confirm(job, INFO.kind)
    assert load_job(store, job).status == "working"
    store.confirm(unknown := new_id(), INFO.kind)
    assert store.load(unknown) is None


def test_write_records_values(store: JobStore) -> None:
    """The reports of a run are read as they were written."""
    job = new_id()
    run = Writer(store, job)
    assert run.begin() is Reply.OK
    fields = {
        "m:miles_run": "12",
        "progress": '[12,26,"miles",14.2]',
        "message": '"On we go"',
        "log": '["a","b"]',
    }
    assert run.record(**fields) is Reply.OK
    state = load_job(store, job)
    assert state.status == "working" and state.is_working
    assert state.progress_metrics == {"miles_run": 12}
    assert state.progress and state.progress.fraction == 12 / 26
    assert (state.message, state.log) == ("On we go", ["a", "b"])
    assert state.started_at is not None and state.updated_at is not None


def test_write_takes_thousands_of_fields(store: JobStore) -> None:
    """An update may contain more metrics than Lua can unpack at once."""
    job = new_id()
    fields = {f"m:{i}": str(i) for i in range(9000)}
    assert Writer(store, job).begin(fields=fields) is Reply.OK
    assert len(load_job(store, job).progress_metrics) == 9000


def test_write_twice_changes_nothing_the_second_time(
    store: JobStore, client: redis.Redis
) -> None:
    """A script that is sent again, because its reply was lost, does not change the
    hash.
    """
    job = new_id()
    run = Writer(store, job)

    def twice(update: Update) -> None:
        assert run.write(update) is Reply.OK
        first = client.hgetall(key_of(store, job))
        time.sleep(0.002)
        update.late = True
        assert run.write(update) is Reply.OK
        assert client.hgetall(key_of(store, job)) == first

    store.create(NewJob(job, INFO))
    created = client.hgetall(key_of(store, job))
    store.create(NewJob(job, INFO))
    assert client.hgetall(key_of(store, job)) == created
    twice(run.update(begins=True))
    twice(run.update(fields={"m:miles_run": "1"}))
    twice(run.update(fields={"m:miles_run": "2"}, end=End("success")))


def test_write_ignores_what_comes_late(store: JobStore) -> None:
    """An older update that arrives late does not undo a newer one."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    older = run.update(fields={"m:miles_run": "1"})
    run.record(**{"m:miles_run": "2"})
    assert run.write(older) is Reply.OK
    assert load_job(store, job).progress_metrics == {"miles_run": 2}
    run.end("success")
    assert run.write(older) is Reply.OK
    assert load_job(store, job).status == "success"


def test_write_ends_a_job_with_its_last_values(store: JobStore) -> None:
    """The end contains the last reports and the error."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    end = End("error", JobError("ValueError", "bad"))
    run.write(run.update(fields={"m:miles_run": "3"}, end=end))
    state = load_job(store, job)
    assert (state.status, state.error) == ("error", JobError("ValueError", "bad"))
    assert state.is_error and state.is_finished and not state.is_success
    assert state.progress_metrics == {"miles_run": 3}
    assert state.finished_at is not None


def test_write_of_a_retry_says_when(store: JobStore) -> None:
    """A run that Dramatiq has put back reads retrying, with a due time and no end."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    run.end("retrying", delay=5.0)
    state = load_job(store, job)
    assert state.status == "retrying" and state.is_working
    assert state.finished_at is None and state.due_at and state.updated_at
    assert (state.due_at - state.updated_at).total_seconds() == 5


def test_a_newer_run_owns_the_record(store: JobStore) -> None:
    """Once another run has begun, the earlier one is fenced and changes nothing. Its
    reports are gone.
    """
    job = new_id()
    old, new = Writer(store, job, "old"), Writer(store, job, "new")
    old.begin(fields={"m:miles_run": "7"})
    new.begin()
    assert load_job(store, job).progress_metrics == {}
    assert old.record(**{"m:miles_run": "8"}) is Reply.FENCED
    assert old.end("retrying") is Reply.FENCED
    assert load_job(store, job).status == "working"
    new.end("success")
    assert old.end("error") is Reply.FENCED
    assert load_job(store, job).status == "success"


def test_a_start_that_comes_late_does_not_take_over(store: JobStore) -> None:
    """A late start is refused if that run began before the present one. If it began
    after it, it takes over.
    """
    job = new_id()
    old, new, newest = (Writer(store, job, t) for t in ("old", "new", "newest"))
    new.begin(age=1.0)
    assert old.begin(age=2.0, late=True, fields={"m:x": "1"}) is Reply.FENCED
    assert load_job(store, job).progress_metrics == {}
    assert newest.begin(age=0.5, late=True) is Reply.OK


def test_a_start_keeps_the_queued_time_and_the_owner(store: JobStore) -> None:
    """A run that does not know the owner keeps the one that the sender named."""
    job = new_id()
    store.create(NewJob(job, INFO))
    queued_at = load_job(store, job).queued_at
    time.sleep(0.005)
    update = Update(job, "a", 1, INFO._replace(owner=None), begins=True)
    store.write([update])
    state = load_job(store, job)
    assert (state.queued_at, state.owner) == (queued_at, "alice")


def test_an_update_never_makes_a_record(store: JobStore) -> None:
    """An update, an end or a drop does not create an expired record again."""
    job = new_id()
    run = Writer(store, job)
    assert run.record(**{"m:x": "1"}) is Reply.MISSING
    assert run.end("success") is Reply.MISSING
    drop = Update(job, "a", 1, INFO, end=End("cancelled"), dropped=True)
    assert run.write(drop) is Reply.MISSING
    assert not store.cancel(job, INFO)
    assert store.load(job) is None


def test_a_silent_job_reads_stalled(store: JobStore, client: redis.Redis) -> None:
    """A silent job reads stalled without a write, and working after its next update."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    assert load_job(store, job).status == "working"
    pass_time(store, 20)
    assert load_job(store, job).status == "stalled"
    assert client.hget(key_of(store, job), "status") == b"working"
    run.record()
    assert load_job(store, job).status == "working"


def test_a_heartbeat_is_not_an_update(store: JobStore) -> None:
    """A heartbeat does not change the time of the last report."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    before = load_job(store, job).updated_at
    time.sleep(0.005)
    run.record()
    assert load_job(store, job).updated_at == before
    run.record(**{"m:x": "1"})
    assert load_job(store, job).updated_at != before


@pytest.mark.parametrize("end", ["error", "retrying", "cancelled"])
def test_cancel_of_a_running_job_tells_its_worker(store: JobStore, end: str) -> None:
    """A running job reads cancelling until it ends, which counts as cancelled unless it
    is a success.
    """
    job = new_id()
    run = Writer(store, job)
    run.begin()
    assert store.cancel(job, INFO)
    assert store.cancel(job, INFO)
    assert load_job(store, job).status == "cancelling"
    assert run.record(**{"m:x": "1"}) is Reply.CANCELLING
    reply = run.end(end, error=JobError("ValueError", "secret"))
    assert reply is (Reply.OK if end == "cancelled" else Reply.CANCELLING)
    state = load_job(store, job)
    assert state.status == "cancelled" and state.is_error
    if end != "cancelled":
        assert state.error == JobError(None, "The job was cancelled.")
    assert not store.cancel(job, INFO)


def test_a_cancelled_job_that_shields_itself_is_a_success(store: JobStore) -> None:
    """A job that returns despite its cancellation is a success."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    store.cancel(job, INFO)
    run.end("success")
    assert load_job(store, job).status == "success"


def test_cancel_of_a_stalled_job_is_at_once(client: redis.Redis) -> None:
    """A job whose worker is silent is cancelled at once. If the worker is alive, the
    reply to its next update says so.
    """
    store = JobStore(client, stalled_after=0.01)
    job = new_id()
    run = Writer(store, job)
    run.begin()
    wait_for(lambda: load_job(store, job).status == "stalled")
    assert store.cancel(job, INFO)
    assert load_job(store, job).status == "cancelled"
    assert not store.cancel(job, INFO)
    assert run.record(**{"m:late": "1"}) is Reply.CANCELLED
    assert run.end("success") is Reply.CANCELLED
    assert Writer(store, job, "again").begin() is Reply.CANCELLED
    assert load_job(store, job).status == "cancelled"
    assert load_job(store, job).progress_metrics == {}


def test_a_second_cancel_ends_a_job_whose_worker_died(store: JobStore) -> None:
    """A job whose worker died after the cancellation reads stalled, and a second
    cancellation ends it.
    """
    job = new_id()
    Writer(store, job).begin()
    assert store.cancel(job, INFO)
    assert load_job(store, job).status == "cancelling"
    pass_time(store, 20)
    assert load_job(store, job).status == "stalled"
    assert store.cancel(job, INFO)
    assert load_job(store, job).status == "cancelled"


def test_cancels_lists_those_of_the_last_minute(store: JobStore) -> None:
    """Workers find the running jobs that were cancelled since they last looked."""
    jobs = [new_id() for _ in range(3)]
    for job in jobs:
        Writer(store, job).begin()
    store.create(NewJob(waiting := new_id(), INFO))
    assert store.cancel(waiting, INFO) and store.cancel(jobs[0], INFO)
    told, since = store.cancels(0)
    assert told == {jobs[0]} and since > 0
    assert store.cancels(since) == (set(), since)
    assert store.cancel(jobs[1], INFO)
    assert store.cancels(since)[0] == {jobs[1]}
    ttl = store.client.pttl("jobstate:cancels")
    assert 0 < ttl <= 60_000


@pytest.mark.parametrize("before", ["queued", "delayed", "retrying"])
def test_cancel_of_a_waiting_job_is_at_once(store: JobStore, before: str) -> None:
    """A job that no worker has is cancelled at once, and its message is skipped."""
    job = new_id()
    store.create(NewJob(job, INFO, 60 if before == "delayed" else 0))
    if before == "retrying":
        run = Writer(store, job, "first")
        run.begin()
        run.end("retrying", delay=60)
    assert store.cancel(job, INFO)
    state = load_job(store, job)
    assert state.status == "cancelled" and state.finished_at
    assert state.error == JobError(None, "The job was cancelled.")
    assert Writer(store, job, "second").begin() is Reply.CANCELLED
    assert load_job(store, job).status == "cancelled"


def test_a_run_that_missed_the_cancel_hears_of_it(store: JobStore) -> None:
    """A job that was cancelled, and began while the store was away, is told so. Its
    record stays cancelled, because others have acted on that.
    """
    job = new_id()
    store.create(NewJob(job, INFO))
    store.cancel(job, INFO)
    late = {"age": 3.0, "late": True}
    assert Writer(store, job).begin(**late) is Reply.CANCELLED
    assert load_job(store, job).status == "cancelled"


def test_a_redelivered_job_remembers_the_cancel(store: JobStore) -> None:
    """If a cancelled job's worker dies, the job's next run starts as cancelling."""
    job = new_id()
    Writer(store, job, "dead").begin()
    store.cancel(job, INFO)
    run = Writer(store, job, "new")
    assert run.begin() is Reply.CANCELLING
    again = run.update(begins=True, late=True)
    assert run.write(again) is Reply.CANCELLING
    assert run.end("cancelled") is Reply.OK


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("status", ["cancelled", "retrying"])
def test_a_run_whose_actor_was_not_called_does_not_count(
    store: JobStore, status: str, earlier: int
) -> None:
    """A job that a middleware stops after its run began keeps the attempt and start of
    the previous run, even if that died and its message came again, and if the next run
    does not call its actor either.
    """
    store.create(NewJob(job := new_id(), INFO._replace(attempt=0)))
    if earlier:
        Writer(store, job, "dead").begin(age=100.0)
    before = load_job(store, job)
    for token in ("a", "b"):
        run = Writer(store, job, token)
        run.begin()
        assert load_job(store, job).attempt == 1
        run.end(status, delay=0.0, was_called=False)
        state = load_job(store, job)
        assert (state.status, state.attempt) == (status, earlier)
        assert state.started_at == before.started_at
    assert (before.started_at is None) == (earlier == 0)


def test_a_message_that_is_put_back_before_a_run_waits(client: redis.Redis) -> None:
    """A message that is stopped before a run begins, and put back, gets a new due time,
    and its record is kept until then.
    """
    store = JobStore(client, expire_in=100, active_expire_in=1000)
    run = Writer(store, job := new_id())
    run.begin()
    run.end("retrying", delay=0.0)
    end = End("retrying", JobError(None, "Not today"), 5000.0)
    assert run.write(run.update(end=end, dropped=True)) is Reply.OK
    state = load_job(store, job)
    assert (state.status, state.error) == ("retrying", JobError(None, "Not today"))
    assert state.due_at and state.updated_at
    assert (state.due_at - state.updated_at).total_seconds() == 5000
    assert state.finished_at is None
    assert 5990 < ttl(client, store, job) <= 6000
    end = End("retrying", None, 0.0)
    run.write(Update(job, "second", 0, INFO, end=end, dropped=True))
    assert load_job(store, job).error is None


def test_a_dropped_message_is_not_due_any_more(store: JobStore) -> None:
    """A delayed job that ends without a run no longer has a due time."""
    store.create(NewJob(job := new_id(), INFO, delay=60))
    end = End("error", JobError(None, "Not known"))
    store.write([Update(job, "drop", 0, INFO, end=end, dropped=True)])
    state = load_job(store, job)
    assert (state.status, state.due_at) == ("error", None)


def test_a_drop_whose_reply_was_lost_is_answered_alike(store: JobStore) -> None:
    """A drop that is sent twice succeeds both times, so that the later steps of the
    pipeline end. A different drop has nothing to do.
    """
    store.create(NewJob(job := new_id(), INFO))
    end = End("cancelled", JobError(None, "Too old"))
    drop = Update(job, "drop", 0, INFO, end=end, dropped=True)
    other = Update(job, "other", 0, INFO, end=end, dropped=True)
    assert store.write([drop]) == store.write([drop]) == [Reply.OK]
    assert store.write([other]) == [Reply.MISSING]


@pytest.mark.parametrize("status", ["error", "retrying"])
def test_a_dropped_message_of_a_dead_run_that_was_cancelled_is_cancelled(
    client: redis.Redis, status: str
) -> None:
    """A job whose worker died after the cancellation is cancelled, whatever stops its
    message the next time. If that is put back, the record is kept until then.
    """
    store = JobStore(client, expire_in=100, active_expire_in=1000)
    run = Writer(store, job := new_id())
    run.begin()
    store.cancel(job, INFO)
    client.hset(key_of(store, job), "seen", 0)
    assert load_job(store, job).status == "stalled"
    delay = 5000.0 if status == "retrying" else None
    end = End(status, JobError(None, "Not today"), delay)
    dropped = run.update(end=end, dropped=True)
    assert run.write(dropped) is Reply.CANCELLING
    state = load_job(store, job)
    assert (state.status, state.error) == ("cancelled", CANCELLED)
    assert state.finished_at is not None and state.due_at is None
    expected = 6000 if delay else 100
    assert expected - 10 < ttl(client, store, job) <= expected
    assert Writer(store, job, "new").begin() is Reply.CANCELLED


@pytest.mark.parametrize("before", ["queued", "retrying", "dead"])
def test_a_dropped_message_ends_its_job(client: redis.Redis, before: str) -> None:
    """A message that is dropped before a run begins ends its job with the reason."""
    store = JobStore(client, stalled_after=0.01)
    job = new_id()
    run = Writer(store, job)
    if before == "queued":
        store.create(NewJob(job, INFO))
    else:
        run.begin()
    if before == "retrying":
        run.end("retrying")
    if before == "dead":
        wait_for(lambda: load_job(store, job).status == "stalled")
    end = End("cancelled", JobError(None, "Too old"))
    assert run.write(run.update(end=end, dropped=True)) is Reply.OK
    state = load_job(store, job)
    assert (state.status, state.error) == ("cancelled", JobError(None, "Too old"))
    # A run unknown to the store is not fenced, but told to begin.
    expected = Reply.MISSING if before == "queued" else Reply.FENCED
    assert run.record(**{"m:x": "1"}) is expected


@pytest.mark.parametrize("says", ["record", "finish"])
def test_a_run_that_the_store_has_forgotten_begins_again(
    store: JobStore, says: str
) -> None:
    """A run whose start was lost in a failover is told to begin again."""
    job = new_id()
    store.create(NewJob(job, INFO))
    run = Writer(store, job)
    reply = run.record() if says == "record" else run.end("success")
    assert reply is Reply.MISSING
    assert run.begin() is Reply.OK
    assert run.end("success") is Reply.OK
    assert load_job(store, job).status == "success"


@pytest.mark.parametrize("status", ["queued", "working", "retrying"])
def test_a_later_step_that_was_sent_is_not_dropped(
    store: JobStore, status: str
) -> None:
    """Late news of an earlier step changes a step that waits for its turn, but not one
    whose message the broker has taken.
    """
    store.create(NewJob(waiting := new_id(), INFO, waits=True))
    store.create(NewJob(sent := new_id(), INFO))
    store.confirm(sent, INFO.kind)
    run = Writer(store, sent)
    if status != "queued":
        run.begin()
    if status == "retrying":
        run.end("retrying", delay=60)
    end = End("cancelled", NOT_REACHED)
    replies = store.write(
        [Update(job, "", 0, INFO, end=end, dropped=True) for job in (waiting, sent)]
    )
    assert replies == [Reply.OK, Reply.MISSING]
    assert load_job(store, waiting).status == "cancelled"
    assert load_job(store, sent).status == status


def cancel_by_word(store: JobStore, job: str, word: str) -> int:
    """Return the script's reply to a cancellation that may be sent twice."""
    (reply,) = store._run([store._calls.cancel(job, INFO, word.ljust(8, "."))])
    assert isinstance(reply, int)
    return reply


def test_a_cancel_is_answered_alike_although_another_came_between(
    store: JobStore,
) -> None:
    """The store remembers the word of a cancellation beside those of the next two."""
    run = Writer(store, job := new_id())
    run.begin()
    for word in ("first", "second", "third"):
        assert cancel_by_word(store, job, word) == 1
    run.end("error")
    for word in ("first", "second", "third"):
        assert cancel_by_word(store, job, word) == 2
    assert cancel_by_word(store, job, "fourth") == 0


def test_a_cancelled_job_that_is_sent_with_a_delay_is_kept_until_then(
    client: redis.Redis,
) -> None:
    """The record of a cancelled step whose turn comes outlives its message's delay."""
    store = JobStore(client, expire_in=100, active_expire_in=1000)
    job = new_id()
    store.create(NewJob(job, INFO, waits=True))
    assert store.cancel(job, INFO)
    assert store.create(NewJob(job, INFO, delay=5000)) == [False]
    assert load_job(store, job).status == "cancelled"
    assert 5990 < ttl(client, store, job) <= 6000


def test_a_start_that_is_sent_twice_does_not_undo_a_drop(store: JobStore) -> None:
    """The start of an earlier run that arrives again, after the job has ended without a
    run, changes nothing.
    """
    job = new_id()
    run = Writer(store, job)
    start = run.update(begins=True)
    run.write(start)
    run.end("retrying")
    end = End("error", JobError(None, "Not known"))
    assert run.write(run.update(end=end, dropped=True)) is Reply.OK
    assert run.write(start) is Reply.FENCED
    assert load_job(store, job).status == "error"


@pytest.mark.parametrize("before", ["working", "success"])
def test_a_dropped_message_leaves_others_alone(store: JobStore, before: str) -> None:
    """A second delivery that is dropped does not affect a job that is running or has
    run.
    """
    job = new_id()
    run = Writer(store, job)
    run.begin()
    if before == "success":
        run.end("success")
    end = End("cancelled", JobError(None, "Too old"))
    drop = Update(job, "drop", 0, SENT, end=end, dropped=True)
    assert run.write(drop) is Reply.MISSING
    assert load_job(store, job).status == before


TOO_OLD = JobError(None, "Too old")


@pytest.mark.parametrize(
    ("end", "lasts"),
    [
        (End("cancelled", TOO_OLD), 100),
        (End("error", TOO_OLD), 100),
        (End("retrying", TOO_OLD, 5000.0), 6000),
        (End("retrying", None, 0.0), 1000),
    ],
)
def test_a_drop_waits_for_the_end_of_the_attempt_before(
    client: redis.Redis, end: End, lasts: int
) -> None:
    """A message may be stopped before its last attempt has written its end.
    It decides how the job ends, once that attempt has written its reports. Replies may
    be lost.
    """
    store = JobStore(client, expire_in=100, active_expire_in=1000)
    run = Writer(store, job := new_id())
    run.begin()
    drop = Update(job, "drop", 0, INFO, end=end, dropped=True)
    assert store.write([drop]) == store.write([drop]) == [Reply.OK]
    assert load_job(store, job).status == "working"
    failure = Failure("", "", "a traceback")
    put_back = End("retrying", JobError("ValueError", "a cramp"), 0.0, True, failure)
    last = run.update(end=put_back, fields={"m:x": "1"})
    assert store.write([last]) == store.write([last]) == [Reply.FENCED]
    assert store.write([drop]) == [Reply.OK]
    assert not client.hexists(key_of(store, job), "stop")
    state = load_job(store, job)
    assert (state.status, state.error) == (end.status, end.error)
    assert state.progress_metrics == {"x": 1}
    assert (state.due_at is None) == (end.delay is None)
    assert (state.finished_at is None) == (end.delay is not None)
    assert lasts - 10 < ttl(client, store, job) <= lasts
    assert [each.error for each in store.failures(job).tries] == [put_back.error]
    new = Writer(store, job, "new")
    if end.delay is not None:
        new.begin()
        assert new.end("retrying", delay=0.0) is Reply.OK


def fail(
    run: Writer, number: int, status: str = "retrying", age: float = 0.0
) -> Reply | Exception:
    """End a run with a failure. The reply is lost, and the call repeated."""
    message = "{}" if status == "error" else ""
    failure = Failure(message, "", f"traceback {number}")
    delay = 0.0 if status == "retrying" else None
    end = End(status, JobError("ValueError", str(number)), delay, True, failure)
    update = run.update(end=end, age=age)
    run.write(update)
    return run.write(update)


def tries(store: JobStore, job: str) -> list[int]:
    """Return the numbers of a job's tries, none of which began before the last."""
    found = store.failures(job).tries
    starts = [each.started_at for each in found if each.started_at]
    assert starts == sorted(starts)
    return [int(each.error.message) for each in found if each.error]


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_a_try_is_kept_whose_end_comes_late(
    store: JobStore, client: redis.Redis, order: tuple[int, ...]
) -> None:
    """A run that has put its message back may write its end when later runs have begun,
    or ended. Its failure is listed once, before theirs, and changes nothing else.
    """
    job = new_id()
    runs = [Writer(store, job, f"run{number}") for number in range(4)]
    for number, run in enumerate(runs):
        run.begin(age=4.0 - number)
    for number in order:
        before: Any = client.hgetall(key_of(store, job))
        if number == 3:
            assert fail(runs[number], number, "error") is Reply.OK
        else:
            # Its worker reckons less than the time that has passed.
            assert fail(runs[number], number, age=3.9 - number) is Reply.FENCED
            assert client.hgetall(key_of(store, job)) == before
    assert tries(store, job) == [0, 1, 2, 3]
    failures = store.failures(job)
    assert all(each.started_at for each in failures.tries)
    assert (failures.traceback, failures.message) == ("traceback 3", "{}")
    life: Any = client.ttl(f"{{{key_of(store, job)}}}:failure")
    assert abs(life - ttl(client, store, job)) < 2


def test_a_late_try_takes_its_place_among_the_last_ten(store: JobStore) -> None:
    """The oldest one makes room for it. Repeated much later, it is listed once."""
    job = new_id()
    late = Writer(store, job, "late")
    for number in range(15):
        run = late if number == 9 else Writer(store, job, f"run{number}")
        run.begin(age=20.0 - number)
        if run is not late:
            fail(run, number)
        if number == 12:
            fail(late, 9, age=11.0)
    assert tries(store, job) == [*range(5, 15)]
    fail(late, 9)
    assert tries(store, job) == [*range(5, 15)]


def test_late_tries_take_the_place_of_no_newer_one(store: JobStore) -> None:
    """Of twelve, the last ten stay, though the first two are written last."""
    job = new_id()
    runs = [Writer(store, job, f"run{number}") for number in range(12)]
    for number, run in enumerate(runs):
        run.begin(age=12.0 - number)
        if number > 1:
            fail(run, number)
    for number in (0, 1):
        fail(runs[number], number, age=12.0 - number)
    assert tries(store, job) == [*range(2, 12)]


@pytest.mark.parametrize(("age", "place"), [(9.5, 0), (3.5, 6), (0.5, 9)])
def test_a_try_whose_run_the_record_does_not_name_is_kept(
    store: JobStore, client: redis.Redis, age: float, place: int
) -> None:
    """It was overtaken long ago, or before it could write that it had begun. Its place
    is that of its start, which its worker knows.
    """
    job = new_id()
    for number in range(9):
        run = Writer(store, job, f"run{number}")
        run.begin(age=9.0 - number)
        fail(run, number)
    Writer(store, job, "last").begin()
    assert fail(Writer(store, job, "late"), 99, age=age) is Reply.FENCED
    numbers = [*range(9)]
    numbers.insert(place, 99)
    assert tries(store, job) == numbers
    life: Any = client.ttl(f"{{{key_of(store, job)}}}:failure")
    assert abs(life - ttl(client, store, job)) < 2


def test_a_try_of_a_job_that_was_dropped_meanwhile_is_kept(store: JobStore) -> None:
    """No run owns its record then."""
    job = new_id()
    run = Writer(store, job)
    run.begin()
    pass_time(store, 20)
    end = End("error", TOO_OLD)
    assert store.write([Update(job, "drop", 0, INFO, end=end, dropped=True)]) == [
        Reply.OK
    ]
    assert fail(run, 1) is Reply.FENCED
    assert tries(store, job) == [1]
    assert load_job(store, job).error == TOO_OLD


def test_cancelling_outdoes_a_drop(store: JobStore) -> None:
    """A job that is being cancelled when its next message is stopped is cancelled."""
    run = Writer(store, job := new_id())
    run.begin()
    store.cancel(job, INFO)
    drop = Update(job, "drop", 0, INFO, end=End("error", TOO_OLD), dropped=True)
    assert store.write([drop]) == [Reply.CANCELLING]
    assert run.end("retrying", delay=0.0) is Reply.CANCELLING
    state = load_job(store, job)
    assert (state.status, state.error) == ("cancelled", CANCELLED)


def test_sixteen_threads_of_one_job_lose_nothing(store: JobStore) -> None:
    """No metric is lost when sixteen threads write to one job at the same time."""
    job = new_id()
    Writer(store, job).begin()
    lock = threading.Lock()
    seq = iter(range(2, 10_000))

    def work(number: int) -> None:
        for i in range(25):
            with lock:
                update = Update(job, "a", next(seq), INFO, {f"m:{number}.{i}": "1"})
                assert store.write([update]) == [Reply.OK]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_job(store, job).progress_metrics) == 16 * 25


def test_load_many_keeps_the_order(store: JobStore) -> None:
    """Jobs are returned in the requested order, with None for unknown ones."""
    jobs = [new_id() for _ in range(3)]
    for job in jobs:
        store.create(NewJob(job, INFO))
    loaded = store.load_many([jobs[2], new_id(), jobs[0]])
    assert [state and state.uuid for state in loaded] == [jobs[2], None, jobs[0]]


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_the_store_works_with_any_client(
    redis_url: str, decode: bool, protocol: int
) -> None:
    """A client may decode its responses or not, and use either protocol."""
    client = redis.Redis.from_url(redis_url, decode_responses=decode, protocol=protocol)
    with client:
        store = JobStore(client)
        job = new_id()
        store.create(NewJob(job, INFO))
        run = Writer(store, job)
        run.begin(fields={"m:name": '"Åsa"'})
        assert load_job(store, job).progress_metrics == {"name": "Åsa"}
        run.end("error")
        assert store.create(NewJob(job, INFO)) == [True]


def test_a_server_that_forgot_the_scripts_is_told_them(
    store: JobStore, client: redis.Redis
) -> None:
    """After a restart, the scripts are sent again. Nothing is done twice or lost."""
    job = new_id()
    client.script_flush()
    run = Writer(store, job)
    assert run.begin(fields={"m:x": "1"}) is Reply.OK
    client.script_flush()
    updates = [run.update(fields={f"m:{i}": "1"}) for i in range(3)]
    assert store.write(updates) == [Reply.OK] * 3
    assert len(load_job(store, job).progress_metrics) == 4


def test_missing_start_script_keeps_the_order_of_calls(
    store: JobStore, client: redis.Redis
) -> None:
    """If the server knows all scripts but that of the start, the calls still run in
    their order.
    """
    client.script_flush()
    for name in NAMES:
        if name != "start":
            client.script_load(read_scripts()[name].text)
    job = new_id()
    assert Writer(store, job).begin(fields={"m:x": "1"}) is Reply.OK
    assert load_job(store, job).progress_metrics == {"x": 1}


def test_write_tells_which_update_failed(store: JobStore, client: redis.Redis) -> None:
    """An update that fails returns its error, and the others return their replies."""
    good, bad = new_id(), new_id()
    client.set(key_of(store, bad), "a string, where a hash should be")
    replies = store.write(
        [
            Writer(store, job).update(begins=True, fields={"m:x": "1"})
            for job in (bad, good)
        ]
    )
    assert isinstance(replies[0], redis.ResponseError)
    assert replies[1] is Reply.OK
    assert store.create(NewJob(bad, INFO)) == [False]


def ttl(client: redis.Redis, store: JobStore, job: str) -> float:
    return client.pttl(key_of(store, job)) / 1000


def test_expiry_counts_from_the_end(client: redis.Redis) -> None:
    """An unfinished job is kept past its due time, and each heartbeat renews that. An
    ended one is kept for `expire_in`.
    """
    store = JobStore(client, expire_in=100, active_expire_in=1000)
    job = new_id()
    store.create(NewJob(job, INFO, delay=50))
    assert 1040 < ttl(client, store, job) <= 1050
    run = Writer(store, job)
    run.begin()
    assert 990 < ttl(client, store, job) <= 1000
    client.expire(key_of(store, job), 5)
    run.record()
    assert ttl(client, store, job) > 990
    run.end("retrying", delay=500)
    assert 1490 < ttl(client, store, job) <= 1500
    run = Writer(store, job, "b")
    run.begin()
    run.end("success")
    assert 90 < ttl(client, store, job) <= 100


@pytest.mark.parametrize("before", ["delayed", "retrying", "stalled", "cancelling"])
def test_a_cancelled_record_outlives_its_message(
    client: redis.Redis, before: str
) -> None:
    """A cancellation never shortens the life of a record: the message that comes later
    must find it.
    """
    store = JobStore(client, expire_in=100, active_expire_in=1000, stalled_after=0.01)
    job = new_id()
    store.create(NewJob(job, INFO, delay=500 if before == "delayed" else 0))
    run = Writer(store, job)
    if before != "delayed":
        run.begin()
    if before == "retrying":
        run.end("retrying", delay=500)
    elif before == "stalled":
        wait_for(lambda: load_job(store, job).status == "stalled")
    assert store.cancel(job, INFO)
    if before == "cancelling":
        # It failed before it learned of the cancellation: Dramatiq has put it back.
        run.end("retrying", delay=500)
    assert load_job(store, job).status == "cancelled"
    expected = 1000 if before == "stalled" else 1500
    assert expected - 10 < ttl(client, store, job) <= expected
    store = JobStore(client, expire_in=5000, active_expire_in=1000)
    store.create(NewJob(other := new_id(), INFO))
    assert store.cancel(other, INFO)
    assert 4990 < ttl(client, store, other) <= 5000


def test_a_stalled_run_that_is_put_back_after_a_cancel_lengthens_its_record(
    client: redis.Redis,
) -> None:
    """The record of a cancelled run that puts its message back is kept until then."""
    store = JobStore(client, expire_in=100, active_expire_in=1000, stalled_after=0.01)
    run = Writer(store, job := new_id())
    run.begin()
    wait_for(lambda: load_job(store, job).status == "stalled")
    assert store.cancel(job, INFO)
    assert run.end("retrying", delay=500) is Reply.CANCELLING
    assert load_job(store, job).status == "cancelled"
    assert 1490 < ttl(client, store, job) <= 1500


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_that_ends_as_cancelled_expires_like_any_other(
    client: redis.Redis, asked: bool
) -> None:
    """A job that was skipped in its run, or stopped by a cancellation, is kept for
    `expire_in` from its end: its message will not come again.
    """
    store = JobStore(client, expire_in=100, active_expire_in=1000)
    run = Writer(store, job := new_id())
    run.begin()
    if asked:
        assert store.cancel(job, INFO)
    run.end("error" if asked else "cancelled")
    assert load_job(store, job).status == "cancelled"
    assert 90 < ttl(client, store, job) <= 100


def test_a_run_that_was_told_keeps_the_cancel_in_an_empty_store(
    store: JobStore,
) -> None:
    """A run that knows of its cancellation, and begins again in an empty store, is
    still cancelled by a user: its message is skipped for good.
    """
    run = Writer(store, job := new_id())
    run.write(run.update(begins=True, late=True, cancelled=True))
    assert load_job(store, job).status == "cancelling"
    run.end("cancelled")
    assert Writer(store, job, "again").begin() is Reply.CANCELLED


@pytest.mark.parametrize("begins", [False, True])
def test_a_job_that_was_dropped_may_run_again(store: JobStore, begins: bool) -> None:
    """A job that reads cancelled without a user's request is queued again and runs when
    its message comes back.
    """
    job = new_id()
    run = Writer(store, job)
    if begins:
        run.begin()
        run.end("cancelled", error=JobError(None, "skipped"))
    else:
        store.create(NewJob(job, INFO))
        end = End("cancelled", JobError(None, "too old"))
        store.write([Update(job, "", 0, INFO, end=end, dropped=True)])
    assert load_job(store, job).status == "cancelled"
    assert store.create(NewJob(job, INFO)) == [True]
    assert (
        load_job(store, job).status == "queued" and load_job(store, job).error is None
    )
    assert Writer(store, job, "again").begin() is Reply.OK
    assert load_job(store, job).status == "working"


def test_indexes_list_by_all_kind_and_owner(
    store: JobStore, client: redis.Redis
) -> None:
    """A job is in three indexes, first those of unfinished jobs, then those of ended
    jobs.
    """
    job = new_id()
    store.create(NewJob(job, INFO))
    names = ("all", "kind:RunMarathon", 'owner:"alice"')
    assert members(client, "*:*") == {f"active:{name}": {job} for name in names}
    run = Writer(store, job)
    run.begin()
    run.end("retrying")
    assert members(client, "*:*") == {f"active:{name}": {job} for name in names}
    run = Writer(store, job, "b")
    run.begin()
    run.end("success")
    assert members(client, "*:*") == {f"ended:{name}": {job} for name in names}


def test_indexes_list_a_job_that_its_worker_began(
    store: JobStore, client: redis.Redis
) -> None:
    """A job sent without the middleware is listed from its start, and in no owner's
    list if it has none.
    """
    job = new_id()
    store.write([Update(job, "a", 1, INFO._replace(owner=None), begins=True)])
    assert set(members(client, "*:*")) == {"active:all", "active:kind:RunMarathon"}


def test_indexes_list_a_cancelled_job_as_ended(
    store: JobStore, client: redis.Redis
) -> None:
    """A job that is cancelled while it waits moves to the indexes of ended jobs."""
    job = new_id()
    store.create(NewJob(job, INFO))
    store.cancel(job, INFO)
    assert set(members(client, "*:all")) == {"ended:all"}


def test_nothing_is_left_behind(client: redis.Redis) -> None:
    """After their time, finished jobs leave neither a record nor an index entry, even
    while other jobs arrive.
    """
    store = JobStore(client, expire_in=60, active_expire_in=120)

    def work() -> str:
        run = Writer(store, new_id())
        run.begin()
        run.end("success")
        return run.job

    for _ in range(200):
        work()
    pass_time(store, 40)
    kept = work()
    pass_time(store, 40)
    last = work()
    assert members(client, "ended:all") == {"ended:all": {kept, last}}
    pass_time(store, 400)
    assert client.dbsize() == 0


def test_an_index_outlives_a_delayed_job(client: redis.Redis) -> None:
    """An index lives as long as the job in it that is due last."""
    store = JobStore(client, active_expire_in=10)
    job = new_id()
    store.create(NewJob(job, INFO, delay=100))
    store.create(NewJob(new_id(), INFO))
    assert client.pttl("jobstate:active:all") > 100_000
    assert job in members(client, "active:all")["active:all"]


def test_two_namespaces_share_a_server(client: redis.Redis) -> None:
    """Two applications on one server do not see each other's jobs."""
    mine, other = JobStore(client), JobStore(client, namespace="other")
    job = new_id()
    mine.create(NewJob(job, INFO))
    assert other.load(job) is None
    # The keys of a status begin with the tag that keeps them in one slot of a Cluster.
    prefixes = (b"jobstate:", b"{jobstate:")
    assert all(key.startswith(prefixes) for key in client.scan_iter())


@pytest.mark.parametrize("name", ["expire_in", "active_expire_in", "stalled_after"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e30])
def test_a_duration_must_be_positive(name: str, value: float) -> None:
    """A duration that is zero, negative, NaN or too long for the server is an error
    that names it.
    """
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name} must be a positive number of"):
        JobStore("redis://localhost", **options)


@pytest.mark.parametrize("name", ["expire_in", "active_expire_in", "stalled_after"])
@pytest.mark.parametrize("value", ["24h", None, True])
def test_a_duration_must_be_a_number(name: str, value: Any) -> None:
    """A duration in words, as settings take it, is an error that names it."""
    with pytest.raises(TypeError, match=f"^{name} must be a number of seconds, not "):
        JobStore("redis://localhost", **{name: value})


def test_replace_changes_only_what_is_given(redis_url: str) -> None:
    """A store with other options keeps the rest and the client."""
    store = JobStore(redis_url, expire_in=1, stalled_after=2)
    other = store.replace(namespace="other", stalled_after=3)
    assert (other.namespace, other.expire_in, other.stalled_after) == ("other", 1, 3)
    assert other.client is store.client


def test_repr_shows_no_password() -> None:
    """The repr of a store shows its address, but never a password."""
    store = JobStore("redis://user:hunter2@example.com:7000/3")
    assert repr(store) == "<JobStore 'jobstate' at example.com:7000/3>"
    store = JobStore("unix:///run/redis.sock?password=hunter2")
    assert repr(store) == "<JobStore 'jobstate' at /run/redis.sock>"


def test_a_store_of_ones_own_fails_fast(server: EmbeddedServer) -> None:
    """Without a server, a store fails at once; with a frozen one, soon."""
    store = JobStore(server.url)
    store.create(NewJob(new_id(), INFO))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            store.load(new_id())
        assert time.monotonic() - began < 3
    finally:
        os.kill(server.pid, signal.SIGCONT)
    server.stop()
    with pytest.raises(redis.ConnectionError):
        store.load(new_id())


def test_store_of_a_broker_shares_the_server(redis_url: str) -> None:
    """The store of a RedisBroker is on its server, with connections that fail fast."""
    broker = RedisBroker(url=redis_url)
    store = JobStateMiddleware(namespace="mine").store_for(broker)
    assert store.namespace == "mine"
    assert isinstance(store.client, redis.Redis)
    kwargs = store.client.connection_pool.connection_kwargs
    assert kwargs["port"] == broker.client.connection_pool.connection_kwargs["port"]
    assert kwargs["socket_timeout"] == 0.5
    with pytest.raises(ActorError, match="StubBroker"):
        JobStateMiddleware().store_for(StubBroker())


def test_store_of_a_broker_takes_an_unknown_pool_as_it_is(redis_url: str) -> None:
    """A broker whose client has a pool of another class shares its client."""

    class Pool(redis.ConnectionPool):
        pass

    client = redis.Redis(connection_pool=Pool.from_url(redis_url))
    store = JobStateMiddleware().store_for(RedisBroker(client=client))
    assert store.client is client
