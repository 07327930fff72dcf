"""Running failed jobs again, each under its uuid."""

import concurrent.futures
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import dramatiq
import pytest
import redis
from dramatiq import Message, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed

from pyramid_jobstate import (
    Batch,
    BulkResult,
    Counts,
    JobError,
    JobState,
    JobStateMiddleware,
    JobStore,
    NotRepeatable,
    rerun,
    rerun_all,
)
from pyramid_jobstate.testing import away, pass_time, put_batch, put_job
from tests.support import STATUSES, UUID, wait_for
from tests.trips import dying
from tests.worker.floors import (
    Chore,
    Floor,
    fail,
    failed,
    records,
    standing_still,
)

#: A member that may run again.
FAILED = {"status": "error", "actor": "errand", "error": JobError("ValueError", "x")}


def again(floor: Floor, message: Message[Any]) -> bool:
    return rerun(floor.store, floor.broker, message.message_id)


def breaks(floor: Floor, name: str = "a", error: BaseException | None = None) -> None:
    """Let the jobs of an argument fail from now on."""
    found = error or ValueError(f"{name} failed")
    floor.scripts[name] = lambda job_state: fail(found)


def failed_pipeline(floor: Floor, *, cancels: int | None = None) -> list[Message[Any]]:
    """Return a pipeline's steps. The first failed, after a user cancelled `cancels`."""
    steps = [floor.message(name, pipe_ignore=True) for name in "ast"]
    request = floor.request()
    with request.tm:
        sent = request.job_states.send_message(pipeline(steps, broker=floor.broker))
    if cancels is not None:
        assert floor.load(sent[cancels].uuid).cancel()
    breaks(floor)
    floor.work()
    del floor.scripts["a"]
    floor.ran.clear()
    assert floor.statuses(*steps) == ["error", "cancelled", "cancelled"]
    return steps


def refuse(*args: Any, **options: Any) -> Any:
    raise ConnectionClosed("No broker here")


def refusing(floor: Floor, call: Callable[..., Any] = refuse) -> Any:
    """Have the broker do something else with what it is sent."""
    return mock.patch.object(floor.broker, "enqueue", call)


# What runs again.


@pytest.mark.promise("job-is-put-back")
@pytest.mark.promise("new-run-starts-clean")
def test_failed_job_runs_again(floor):
    """It keeps its owner, its parameters and the time at which it was sent, and its
    tries, and nothing that it has reported. Its message is kept for as long as it has
    failed.
    """

    def report(job_state: JobState) -> None:
        job_state.set_progress_metric("first", 1)
        job_state.set_progress(1, 2, message="first")
        job_state.append_log("first")

    succeeded, (sent,) = floor.post("b"), failed(floor, report=report)
    found = floor.store.failures(succeeded.message_id)
    assert (found.message, found.traceback, len(found.tries)) == ("", "", 0)
    before = floor.load(sent.message_id)
    assert floor.store.failures(sent.message_id).message
    assert again(floor, sent)
    queued = floor.load(sent.message_id)
    assert (queued.status, queued.error, queued.finished_at) == ("queued", None, None)
    floor.scripts["a"] = lambda job_state: job_state.set_progress_metric("number", 1)
    floor.work()
    after = floor.load(sent.message_id)
    assert (after.status, after.attempt, after.error) == ("success", 1, None)
    assert (before.progress_metrics, before.log) == ({"first": 1}, ["first"])
    assert after.progress_metrics == {"number": 1}
    assert (after.progress, after.message, after.log) == (None, None, [])
    for name in ("owner", "kind", "actor", "job_params", "queued_at"):
        assert getattr(after, name) == getattr(before, name), name
    kept = floor.store.failures(sent.message_id)
    assert (kept.message, len(kept.tries)) == ("", 1)
    assert floor.ran == {"a": 1}


def test_other_jobs_do_not_run_again(floor):
    """Only a job that failed does, and nobody knows one without a record."""
    for status in set(STATUSES) - {"error"}:
        job = put_job(floor.store, Chore, status, actor="errand")
        assert rerun(floor.store, floor.broker, job.uuid) is False, status
        assert floor.load(job.uuid).status == status
    assert not again(floor, floor.message())
    # It was never sent, and never ran.
    unsent = floor.message()
    floor.broker.emit_before("enqueue", unsent, None)
    pass_time(floor.store, 16)
    assert floor.statuses(unsent) == ["stalled"]
    assert not again(floor, unsent)
    assert floor.waiting() == []


def test_tries_of_a_job_are_kept(floor):
    """Each attempt of Dramatiq's is one, and each run by request. The last ten are
    kept, and the last traceback. The record that a poll reads has nothing of it.
    """
    breaks(floor)
    sent = floor.post("a", max_retries=2, min_backoff=1, max_backoff=2)
    floor.start()
    for count in (3, 6, 9, 10):
        wait_for(floor.is_idle)
        assert floor.statuses(sent) == ["error"]
        found = floor.store.failures(sent.message_id)
        assert len(found.tries) == count
        assert again(floor, sent)
    wait_for(floor.is_idle)
    assert found.traceback.endswith("ValueError: a failed\n")
    assert "raise error" in found.traceback
    for each in found.tries:
        assert each.error == JobError("ValueError", "a failed")
        assert each.started_at is not None and each.ended_at is not None
        assert each.started_at <= each.ended_at
    starts = [each.started_at for each in found.tries if each.started_at]
    assert starts == sorted(starts)
    record: Any = floor.store.client.hgetall(f"jobstate:{sent.message_id}")
    assert "Traceback" not in str(record)


def test_age_limit_skips_nothing_that_runs_again(floor, monkeypatch):
    """A message that runs again counts as new, and so do the later steps."""
    then = int(time.time() * 1000) - 120_000
    with monkeypatch.context() as patch:
        patch.setattr("dramatiq.middleware.age_limit.current_millis", lambda: then)
        steps = [floor.message(name, pipe_ignore=True, max_age=60_000) for name in "as"]
        old = [step.copy(message_timestamp=then) for step in steps]
        breaks(floor)
        pipeline(old, broker=floor.broker).run()
        floor.work()
    del floor.scripts["a"]
    assert again(floor, steps[0])
    floor.work()
    assert floor.statuses(*steps) == ["success"] * 2


# Brokers that fail.


def test_broker_that_refuses_leaves_the_failure(floor, client):
    """A broker that does not accept the message leaves all as it was."""
    (sent,) = failed(floor)
    before, keys = floor.load(sent.message_id), sorted(client.keys())
    for _ in range(2):
        with refusing(floor), pytest.raises(ConnectionClosed):
            again(floor, sent)
        after = floor.load(sent.message_id)
        for name in ("status", "error", "finished_at", "started_at", "attempt"):
            assert getattr(after, name) == getattr(before, name), name
        assert sorted(client.keys()) == keys
        assert floor.store.counts() == Counts(error=1)
        page = floor.store.list(status="error")
        assert [job.uuid for job in page.items] == [sent.message_id]
    assert again(floor, sent)
    floor.work()
    assert floor.statuses(sent) == ["success"]


@pytest.mark.promise("job-is-put-back")
def test_message_that_the_broker_took_after_all_does_not_run(floor):
    """The broker says that it did not take it, so the failure stays."""
    (sent,) = failed(floor)

    def lose_reply(message: Message[Any]) -> None:
        floor.deliver(message)
        refuse()

    with refusing(floor, lose_reply), pytest.raises(ConnectionClosed):
        again(floor, sent)
    assert len(floor.waiting()) == 1
    floor.work()
    assert floor.statuses(sent) == ["error"]
    assert not floor.ran


# Messages that come again.


def test_old_message_that_comes_again_does_not_run(floor):
    """That of the failed run may come again when its worker has died: it runs nothing,
    before and after the wanted run. AgeLimit, which skips it, does not cancel the job.
    """
    (sent,) = failed(floor)
    assert again(floor, sent)
    (new,) = floor.waiting()
    floor.take(new)
    floor.deliver(sent)
    floor.deliver(sent.copy(options={"max_age": 1}, message_timestamp=1))
    floor.work()
    waiting = floor.load(sent.message_id)
    assert (waiting.status, waiting.error) == ("queued", None)
    floor.deliver(new)
    floor.deliver(sent)
    floor.work()
    assert floor.statuses(sent) == ["success"]
    floor.deliver(sent)
    floor.work()
    assert floor.statuses(sent) == ["success"]
    assert floor.ran == {"a": 1}


def test_store_that_goes_away_after_the_message_has_left(floor):
    """The job runs again as far as anybody knows."""
    (sent,) = failed(floor)
    enqueue = floor.broker.enqueue

    def send(message: Message[Any]) -> Any:
        stack.enter_context(away(floor.store))
        return enqueue(message)

    with contextlib.ExitStack() as stack, refusing(floor, send):
        assert again(floor, sent)
    floor.work()
    assert floor.statuses(sent) == ["success"]
    assert floor.ran == {"a": 1}


# Pipelines.


def test_later_steps_of_a_pipeline_run(floor):
    """They wait again, but stay cancelled if the broker refuses the first one."""
    steps = failed_pipeline(floor)
    before = [floor.load(step.message_id).error for step in steps]

    def interrupt(message: Any) -> None:
        raise KeyboardInterrupt

    with refusing(floor, interrupt), pytest.raises(KeyboardInterrupt):
        again(floor, steps[0])
    assert floor.statuses(*steps) == ["error", "cancelled", "cancelled"]
    assert [floor.load(step.message_id).error for step in steps] == before
    assert again(floor, steps[0])
    assert floor.statuses(*steps) == ["queued"] * 3
    assert floor.load(steps[1].message_id).error is None
    assert floor.store.counts() == Counts(queued=3)
    floor.work()
    assert floor.statuses(*steps) == ["success"] * 3
    assert floor.ran == dict.fromkeys("ast", 1)


def test_later_step_that_a_user_cancelled_stays_so(floor):
    """A step that was cancelled does not run after a rerun one, nor what follows it."""
    steps = failed_pipeline(floor, cancels=1)
    assert again(floor, steps[0])
    assert floor.statuses(steps[1]) == ["cancelled"]
    floor.work()
    assert floor.statuses(*steps) == ["success", "cancelled", "cancelled"]
    assert floor.ran == {"a": 1}


def test_pipeline_whose_later_step_was_deleted_does_not_run(floor):
    """A step does not run again if a later one would be skipped in silence."""
    steps = failed_pipeline(floor)
    assert floor.load(steps[2].message_id).delete()
    with pytest.raises(NotRepeatable, match="later step of its pipeline was deleted"):
        again(floor, steps[0])
    assert floor.statuses(*steps[:2]) == ["error", "cancelled"]
    assert floor.waiting() == []


# Operators who were taken for dead.


def test_operator_who_died_is_followed_by_another(floor):
    """A job whose operator died before the message left may run again, but not while
    that one may still be at work. What the first one sends then runs nothing.
    """
    (sent,) = failed(floor)
    error = floor.load(sent.message_id).error
    answers: list[bool] = []
    with standing_still(floor, lambda: answers.append(again(floor, sent))):
        assert not again(floor, sent)
        assert rerun_all(floor.store, floor.broker, everything=True) == BulkResult(
            0, 0, None
        )
        pass_time(floor.store, 16)
        assert floor.statuses(sent) == ["stalled"]
        with refusing(floor), pytest.raises(ConnectionClosed):
            again(floor, sent)
        assert floor.load(sent.message_id).error == error
        assert again(floor, sent)
    # The first one was only frozen.
    assert answers == [False]
    floor.work()
    assert floor.statuses(sent) == ["success"]
    assert floor.ran == {"a": 1}


@pytest.mark.promise("job-is-put-back")
def test_running_again_while_a_worker_is_at_work(floor):
    """Two operators run all failed jobs again: each runs once more."""
    names = [str(number) for number in range(30)]
    floor.scripts = dict.fromkeys(names, lambda _: fail(ValueError("x")))
    sent = [floor.post(name) for name in names]
    floor.work()
    floor.scripts = {}

    def operate() -> int:
        return rerun_all(floor.store, floor.broker, kind="Chore").done

    with floor.working(), concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [pool.submit(operate) for _ in range(2)]
        assert sum(each.result() for each in found) == 30
        wait_for(floor.is_idle)
    assert {*floor.statuses(*sent)} == {"success"}
    assert floor.ran == dict.fromkeys(names, 2)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("is_bulk", [False, True])
def test_operator_who_dies_runs_a_job_once(floor, is_bulk, moment):
    """The job runs once more, at the latest when another operator does it."""
    for number in itertools.count(1):
        (sent,) = failed(floor)
        with dying(number, moment) as has_died:
            if is_bulk:
                rerun_all(floor.store, floor.broker, kind="Chore")
            else:
                rerun(floor.store, floor.broker, sent.message_id)
        floor.work()
        # If its message never left, it will read stalled.
        pass_time(floor.store, 16)
        if floor.statuses(sent) != ["success"]:
            assert rerun(floor.store, floor.broker, sent.message_id), number
            floor.work()
        assert floor.statuses(sent) == ["success"], number
        assert floor.ran == {"a": 1}, number
        if not has_died():
            break
    assert number > 3


# What cannot run again.


def test_message_that_json_cannot_hold_is_not_kept(floor):
    """What the store cannot hold as JSON, exactly, cannot run again: it says why."""
    cases: list[tuple[Any, str]] = [
        (b"bytes", "bytes is not JSON serializable"),
        ({1: 2}, "it would come back changed"),
        ((1, 2), "it would come back changed"),
        (float("nan"), "not JSON compliant"),
        ("x" * 70_000, "it takes 7.* of at most 65536"),
    ]

    @dramatiq.actor(broker=floor.broker, job_state=True, max_retries=0)
    def always_fails(value: Any) -> None:
        raise ValueError

    before = dramatiq.get_encoder()
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        sent = [always_fails.send(value) for value, _ in cases]
        floor.work()
    finally:
        dramatiq.set_encoder(before)
    for message, (value, reason) in zip(sent, cases, strict=True):
        with pytest.raises(NotRepeatable, match=f"cannot be kept as JSON: .*{reason}"):
            again(floor, message)
        assert floor.store.failures(message.message_id).message == "", value


def test_job_that_this_broker_cannot_run_is_refused(floor, store, make_floor):
    """It is left as it is, and the operator is told why."""
    (sent,) = failed(floor)
    other = StubBroker()
    other.add_middleware(JobStateMiddleware(store))
    dramatiq.actor(broker=other, actor_name="errand")(lambda name: None)
    with pytest.raises(NotRepeatable, match="'errand' is not tracked"):
        rerun(store, other, sent.message_id)
    other.actors.clear()
    with pytest.raises(NotRepeatable, match="does not know the actor 'errand'"):
        rerun(store, other, sent.message_id)
    elsewhere = make_floor(JobStore(store.client, namespace="shop"))
    with pytest.raises(NotRepeatable, match="Job states are read from"):
        rerun(store, elsewhere.broker, sent.message_id)
    lost = put_job(store, Chore, "error")
    with pytest.raises(NotRepeatable, match="does not hold its message"):
        rerun(store, floor.broker, lost.uuid)
    batch = put_batch(store, Batch, ["error"])
    with pytest.raises(NotRepeatable, match="A batch cannot run again"):
        rerun(store, floor.broker, batch.uuid)
    assert floor.statuses(sent) == ["error"]
    assert floor.waiting() == []


def test_member_of_a_cancelled_batch_does_not_run_again(floor):
    """A failed member of a batch that was cancelled is refused, and stays failed."""
    batch = put_batch(floor.store, Batch, [FAILED, "working"])
    member = floor.store.members(batch.uuid, "error").items[0]
    assert batch.cancel()
    with pytest.raises(NotRepeatable, match="batch"):
        rerun(floor.store, floor.broker, member.uuid)
    assert floor.load(member.uuid).status == "error"


# What is kept of a failure is data: nothing that another program writes there is
# executed. No public call shows the key, so these tests look for it.


def kept(client: redis.Redis, message: Message[Any]) -> str:
    """Return the key of what is kept of a job's failure."""
    keys: Any = client.keys(f"*{message.message_id}*")
    (key,) = set(keys) - records(client)
    return str(key.decode())


def forge(client: redis.Redis, message: Message[Any], **changes: Any) -> None:
    """Change the message that is kept of a job."""
    key = kept(client, message)
    text: Any = client.hget(key, "message")
    client.hset(key, "message", json.dumps({**json.loads(text), **changes}))


def test_foreign_message_runs_nothing(floor, client):
    """The store holds another job's message, or text that is not a message."""
    dramatiq.actor(broker=floor.broker, actor_name="other")(lambda: None)
    step = {"actor_name": "unknown", "message_id": UUID, "args": []}
    steps = {"pipe_target": {**step, "kwargs": {}, "options": {}}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"message_id": UUID}, "belongs to another job"),
        ({"actor_name": "other"}, "belongs to another job"),
        ({"actor_name": "unknown"}, "does not know the actor 'unknown'"),
        ({"args": "abc"}, "something other"),
        ({"options": {"pipe_target": "x"}}, "something other"),
        ({"options": steps}, "does not know the actor 'unknown'"),
    ]
    (message,) = failed(floor)
    key = kept(client, message)
    before: Any = client.hget(key, "message")
    for changes, reason in cases:
        client.hset(key, "message", before)
        forge(client, message, **changes)
        with pytest.raises(NotRepeatable, match=reason):
            again(floor, message)
        assert floor.statuses(message) == ["error"], changes
    for text in (b"\x80\x04K\x01.", "null", '{"a": NaN}'):
        client.hset(key, "message", text)
        with pytest.raises(NotRepeatable):
            again(floor, message)
    assert floor.waiting() == []


def test_message_may_not_choose_owner_or_queue(floor, client):
    """The owner and the queue come from the record."""
    for owner in "alice", None:
        (message,) = failed(floor)
        if owner is None:
            client.hdel(f"jobstate:{message.message_id}", "owner")
        options = {"job_owner": "mallory"}
        forge(client, message, queue_name="other", options=options)
        assert again(floor, message)
        (sent,) = floor.waiting()
        assert sent.options.get("job_owner") == owner
        floor.work()
        state = floor.load(message.message_id)
        assert (state.owner, state.status) == (owner, "success")


# Many at once.


def each_call(floor: Floor, **options: Any) -> Iterator[BulkResult]:
    """Run failed jobs again, and yield the results of the calls."""
    cursor = None
    while True:
        result = rerun_all(floor.store, floor.broker, cursor=cursor, **options)
        yield result
        cursor = result.cursor
        if cursor is None:
            return


def test_all_failed_jobs_run_again(floor):
    """A few at a time. Jobs that fail meanwhile are left to the next call. The caller
    is told of each job as soon as it was sent, and of no others.
    """
    sent = failed(floor, 6)
    lost = put_job(floor.store, Chore, "error", owner="alice")
    told: list[tuple[str, bool, int]] = []

    def tell(uuid: str, is_certain: bool) -> None:
        told.append((uuid, is_certain, len(floor.waiting())))

    calls = each_call(floor, kind="Chore", limit=3, tell=tell)
    results = [next(calls)]
    later = put_job(floor.store, Chore, "error")
    results += calls
    assert sum(each.done for each in results) == 6
    assert sum(each.refused for each in results) == 1
    assert {each[0] for each in told} == {message.message_id for message in sent}
    assert [each[1:] for each in told] == [(True, n) for n in range(1, 7)]
    floor.work()
    assert {*floor.statuses(*sent)} == {"success"}
    assert [floor.load(job.uuid).status for job in (lost, later)] == ["error"] * 2
    assert floor.store.counts() == Counts(success=6, error=2)


@pytest.mark.parametrize("wanted", [{"owner": "alice"}, {"everything": True}], ids=str)
def test_jobs_that_were_lost_run_again_with_those_that_failed(floor, wanted):
    """A job whose operator died before its message left runs again with the jobs that
    failed, a few at a time. Others that read "stalled" do not.
    """
    sent = failed(floor, 5)
    unsent = floor.message(job_owner="alice")
    with standing_still(floor, lambda: again(floor, sent[2])):
        floor.broker.emit_before("enqueue", unsent, None)
        pass_time(floor.store, 16)
        assert floor.statuses(sent[2], unsent) == ["stalled"] * 2
        results = list(each_call(floor, limit=2, **wanted))
        assert [each.done for each in results] == [2, 2, 1]
        assert [each.refused for each in results] == [0, 0, 0]
    floor.work()
    assert floor.ran == {"a": 5}
    assert floor.store.counts() == Counts(success=5, stalled=1)


def test_members_that_were_never_sent_are_told(floor, logged):
    """If the sender of a batch died, the log says what to do about the jobs that were
    never sent, once the batch has been silent for a while. The failed ones run again.
    """
    breaks(floor)
    with standing_still(floor, lambda: floor.send_batch(*"abc"), "c"):
        floor.work()
        del floor.scripts["a"]
        (batch,) = [job for job in floor.store.list().items if isinstance(job, Batch)]
        do: dict[str, Any] = {"batch": batch.uuid}
        assert rerun_all(floor.store, floor.broker, **do, limit=0).done == 0
        assert not logged()
        pass_time(floor.store, 20)
        assert rerun_all(floor.store, floor.broker, **do) == BulkResult(1, 0, None)
        (said,) = logged()
        assert said == (
            f"1 of the jobs of batch {batch.uuid} were never sent, and cannot run "
            "again. Cancel the batch, and send again what is cancelled then."
        )


def test_batches_are_not_among_failed_jobs(floor):
    """A batch does not run, so it is not counted as refused: its failed jobs run."""
    batch = put_batch(floor.store, Batch, ["success", FAILED])
    assert batch.status == "error"
    result = rerun_all(floor.store, floor.broker, everything=True)
    assert result == BulkResult(1, 0, None)
    assert floor.counts(batch) == {"success": 1, "queued": 1}
    assert floor.batch(batch.uuid).status == "working"


# Deleting.


@pytest.mark.promise("deleted-job-is-gone")
def test_deleted_job_does_not_come_back(floor):
    """It is unknown, and its message runs nothing if it comes again."""
    (lost,) = failed(floor)
    succeeded, cancelled = floor.post("a"), floor.post("a")
    floor.load(cancelled.message_id).cancel()
    floor.work()
    floor.ran.clear()
    sent = [lost, succeeded, cancelled]
    assert [floor.load(m.message_id).delete() for m in sent] == [True] * 3
    found = floor.store.failures(lost.message_id)
    assert (found.message, found.traceback, len(found.tries)) == ("", "", 0)
    assert [floor.store.delete(m.message_id) for m in sent] == [False] * 3
    for message in sent:
        assert not again(floor, message)
        floor.deliver(message)
        floor.broker.enqueue(message)
    floor.work()
    assert not floor.ran
    assert [floor.store.load(m.message_id) for m in sent] == [None] * 3
    assert floor.store.list().items == []
    assert floor.store.counts() == Counts()
