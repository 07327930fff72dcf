"""Members of batches in a worker: they report, are cancelled, and send further ones."""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import dramatiq
import pytest
from dramatiq import group, pipeline

from pyramid_jobstate import Batch, JobCancelled, JobStore, StoreUnavailable
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import pass_time
from tests.lost import disagreements
from tests.support import wait_for
from tests.trips import dying
from tests.worker.floors import Ear, Floor, Held


def begin_batch(floor: Floor, *names: str, **options: Any) -> tuple[Batch, Held]:
    """Send a batch, and begin a run of its first member."""
    names = names or ("a",)
    held = floor.hold_next(names[0])
    batch = floor.send_batch(*names, **options)
    floor.start()
    return batch, held.wait()


def send(held: Held, name: str, actor: Any = None, **options: Any) -> Any:
    """Send a further member with its name as its key."""
    return held.job_state.batch.send_with_options(
        actor or held.floor.errand, (name,), **{"key": name, **options}
    )


def sends(floor: Floor, *names: str) -> Callable[[Any], object]:
    """Return what a member does that sends others."""

    def run(job_state: Any) -> None:
        for name in names:
            job_state.batch.send(floor.errand, name, key=name)

    return run


def end_sending(held: Held, *names: str) -> list[str]:
    """Have a member send others, and return what that raised."""
    raised = []

    def run(job_state: Any) -> None:
        for name in names:
            try:
                job_state.batch.send(held.floor.errand, name, key=name)
            except (JobCancelled, RuntimeError) as e:
                raised.append(f"{type(e).__name__}: {e}")

    held.end(run)
    return raised


def fraction_of(floor: Floor, batch: Batch) -> float | None:
    progress = floor.batch(batch.uuid).progress
    return None if progress is None else progress.fraction


def worked(floor: Floor, batch: Batch) -> Batch:
    """Have a worker run the members of a batch, and return the batch."""
    with floor.working():
        wait_for(lambda: floor.batch(batch.uuid).is_finished)
    return floor.batch(batch.uuid)


# The bar.


def test_reports_of_a_member_move_the_bar(make_floor):
    """What a running member reports counts in its batch, phases included, and long
    before the next beat.
    """
    floor = make_floor(heartbeat=3600)
    batch, held = begin_batch(floor, "a", "b")
    job_state = held.job_state
    job_state.set_progress(1, 4)
    with job_state.phase("second half", 50):
        job_state.set_progress(1, 2)
        # It begins at a quarter, and half of half the bar is another one.
        wait_for(lambda: fraction_of(floor, batch) == 0.75, 5)
        assert floor.counts(batch) == {"working": 1, "success": 1}
        job_state.set_progress(2, 2)
        wait_for(lambda: fraction_of(floor, batch) == 0.875, 5)
        held.end()
    assert floor.batch(batch.uuid).status == "success"


# Further members.


def test_running_member_sends_further_ones(floor):
    """They join its batch and have its owner, who need not be that of the batch. This
    ends when all are over.
    """
    shown = []

    def fan_out(job_state: Any) -> None:
        shown.append(repr(job_state.batch))
        sends(floor, "x", "y")(job_state)
        job_state.batch.send_with_options(floor.errand, ("z",), key="z", weight=2)
        job_state.batch.send_message(floor.message("v"), key="v", broker=floor.broker)
        steps = pipeline(map(floor.message, "st"), broker=floor.broker)
        job_state.batch.send_message(steps, key="st")

    floor.scripts["a"] = fan_out
    batch = worked(floor, floor.send_batch("a", job_owner="carol"))
    assert shown == [f"<OwnBatch {batch.uuid}>"]
    assert batch.status == "error"
    # A step gets the result of the one before, which this actor does not take.
    assert floor.counts(batch) == {"success": 6, "error": 1}
    assert floor.ran == dict.fromkeys("axyzvs", 1)
    members = floor.store.members(batch.uuid).items
    assert {member.owner for member in members} == {"carol"}
    # They do not crowd out what an owner looks for.
    assert [job.uuid for job in floor.store.list(owner="alice").items] == [batch.uuid]
    assert floor.store.list(owner="carol").items == []


def test_member_that_was_sent_is_known_to_be(make_floor):
    """While it waits for a worker it reads queued, however long that takes."""
    floor = make_floor(threads=1)
    batch, held = begin_batch(floor, "a", "b")
    job = send(held, "x")
    pass_time(floor.store, 100)
    assert floor.load(job.uuid).status == "queued"
    waits = floor.store.members(batch.uuid, "queued").items
    assert len(waits) == 2 and job.uuid in {each.uuid for each in waits}


def test_sender_that_is_tried_again_sends_nothing_twice(floor):
    """Two members with the same keys send two each, and none again when tried again."""

    def fan_out(job_state: Any) -> None:
        sends(floor, "x", "a")(job_state)
        if job_state.attempt < 3 and job_state.job_params["name"] != "a":
            raise ValueError

    floor.scripts["one"] = floor.scripts["two"] = fan_out
    sent = floor.send_batch("one", "two", actor=floor.stubborn, key=None)
    batch = worked(floor, sent)
    assert batch.status == "success"
    assert floor.ran == {"one": 3, "two": 3, "x": 2, "a": 2}
    assert batch.size == 6


def test_steps_of_a_keyed_pipeline_are_jobs_of_their_own(floor):
    """Also if they are of one actor, and each is sent once."""

    def fan_out(job_state: Any) -> None:
        steps = [floor.message(name, pipe_ignore=True) for name in ("s", "t")]
        job_state.batch.send_message(pipeline(steps, broker=floor.broker), key="k")
        if job_state.attempt == 1:
            raise ValueError

    floor.scripts["a"] = fan_out
    batch = worked(floor, floor.send_batch("a", actor=floor.stubborn))
    assert (batch.status, batch.size) == ("success", 3)
    assert floor.ran == {"a": 2, "s": 1, "t": 1}


def test_what_a_running_member_cannot_send(make_floor, redis_url):
    """Each is refused with its reason, and nothing joins the batch."""
    floor = make_floor(threads=1)
    batch, held = begin_batch(floor)
    untracked = dramatiq.actor(broker=floor.broker, actor_name="plain")(lambda: None)
    send(held, "x", key="used")
    other = make_floor(JobStore(redis_url, namespace="shop"))
    own = held.job_state.batch
    parts = group([floor.message("x")], broker=floor.broker)
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: send(held, "y", key=None), TypeError, "needs a key"),
        (lambda: send(held, "y", key=""), ValueError, "1 to 200 characters"),
        (lambda: send(held, "y", key="used"), ValueError, "was used before in this"),
        (lambda: send(held, "y", weight=0), ValueError, "weight of a member"),
        (lambda: send(held, "y", unique="x"), TypeError, "cannot take unique="),
        (lambda: own.send_message(parts, key="k"), TypeError, "one by one"),
        (lambda: own.send(untracked, key="k"), ActorError, "not tracked"),
        (lambda: send(held, "y", other.errand), ActorError, "'errand'"),
    ]
    for call, error, match in cases:
        with pytest.raises(error, match=match):
            call()
    assert floor.batch(batch.uuid).size == 2
    held.end()
    wait_for(floor.is_idle)
    assert floor.ran == {"a": 1, "x": 1}


def test_run_that_was_taken_over_sends_nothing(floor):
    """Its message runs elsewhere: that run sends. This one ends as a cancelled job
    does, without a retry, or is told why if it shields itself.
    """
    _, old = begin_batch(floor)
    new = floor.begin(old.message)
    first, second = end_sending(old, "x", "x")
    assert first.startswith("JobCancelled")
    assert "the run that sends them is over" in second
    send(new, "y")
    wait_for(lambda: floor.ran["y"])
    assert floor.ran["x"] == 0


def test_batch_that_is_over_takes_no_members(floor, client):
    """Its last member runs elsewhere by now, has ended there, and has expired."""
    batch, old = begin_batch(floor)
    floor.begin(old.message).end()
    client.delete(f"jobstate:{old.uuid}")
    (raised,) = end_sending(old, "x")
    assert "it is over" in raised
    assert floor.batch(batch.uuid).size == 1
    assert floor.ran["x"] == 0


@pytest.mark.promise("batch-cancels-its-members")
def test_cancelled_batch_takes_no_members(make_floor):
    """The running member learns of the cancel then."""
    floor = make_floor(interval=60, threads=1)
    batch, held = begin_batch(floor, "a", "b")
    assert floor.batch(batch.uuid).cancel()
    first, second = end_sending(held, "x", "x")
    assert first.startswith("JobCancelled")
    assert "it was cancelled" in second
    assert floor.batch(batch.uuid).size == 2


# Trouble.


def test_member_that_cannot_be_sent_raises_in_the_actor(make_floor, proxy):
    """Nothing is sent while the store is away. A member that the broker refuses has
    failed. Both are sent when the job tries again.
    """
    floor = make_floor(JobStore(proxy.url), threads=1)
    batch, held = begin_batch(floor)
    proxy.judge = lambda request: "refuse"
    with pytest.raises(StoreUnavailable):
        send(held, "x")
    assert floor.batch(batch.uuid).size == 1
    proxy.judge = lambda request: "pass"
    send(held, "x")
    assert floor.batch(batch.uuid).size == 2
    error = ConnectionError("away")
    away = mock.patch.object(floor.broker, "enqueue", side_effect=error)
    with away, pytest.raises(ConnectionError, match="away"):
        send(held, "y")
    assert floor.counts(batch) == {"working": 1, "queued": 1, "error": 1}
    send(held, "y")
    assert floor.counts(batch) == {"working": 1, "queued": 2}
    held.end()
    wait_for(lambda: floor.batch(batch.uuid).is_finished)
    assert floor.ran == {"a": 1, "x": 1, "y": 1}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_sender_that_dies_loses_no_member(make_floor, client, moment):
    """Between any two commands: the run after it sends what is missing, and nothing
    twice of which the broker's answer was written down.
    """
    floor, twice = make_floor(threads=8), 0
    floor.scripts["a"] = sends(floor, "x", "y")
    for number in range(1, 30):
        client.flushall()
        floor.ran.clear()
        batch, held = begin_batch(floor)
        with dying(number, moment) as has_died:
            sends(floor, "x", "y")(held.job_state)
        floor.deliver(held.message)
        wait_for(lambda: floor.is_idle(but=1))
        held.end()
        assert floor.batch(batch.uuid).status == "success", number
        assert floor.counts(batch) == {"success": 3}, number
        assert floor.ran["x"] >= 1 and floor.ran["y"] >= 1, number
        twice += floor.ran["x"] + floor.ran["y"] > 2
        if not has_died():
            break
    # It has met all round trips of the send.
    assert number > 6
    # Sent, and dead before that was written: at most for each of the two.
    assert twice <= 8


# A batch that the store has lost.


def test_members_of_a_lost_batch_go_on(make_floor, client, logged):
    """The store came back empty. They, and what they send then, each once, are jobs of
    their owner outside it, which may send further ones.
    """
    floor = make_floor(threads=2)
    floor.scripts["x"] = sends(floor, "y")
    batch, held = begin_batch(floor)
    client.flushall()
    first = send(held, "x")
    assert "has lost the batch" in str(logged())
    steps = pipeline(map(floor.message, "st"), broker=floor.broker)
    later = held.job_state.batch.send_message(steps, key="st")
    wait_for(lambda: floor.ran["y"] and floor.ran["s"])
    held.end()
    wait_for(floor.is_idle)
    jobs = floor.store.list(owner="alice").items
    assert {job.batch for job in jobs} == {None}
    assert {held.uuid, *(job.uuid for job in (first, *later))} < {j.uuid for j in jobs}
    assert floor.ran == dict.fromkeys("axsy", 1)
    assert floor.store.load(batch.uuid) is None
    assert disagreements(client) == set()


# Cancels.


def test_cancel_of_a_batch_is_heard_soon(make_floor, proxy):
    """Members that report, are silent or wait hear of it long before the next beat."""
    floor = make_floor(JobStore(proxy.url), heartbeat=3600, threads=2)

    def busy(job_state: Any) -> None:
        for _ in job_state.track(range(10**9)):
            time.sleep(0.001)

    floor.scripts["busy"] = busy
    batch = floor.send_batch("silent", "busy", "waits")
    silent = floor.hold(floor.waiting()[0])
    floor.start()
    silent.wait()
    wait_for(lambda: floor.counts(batch).get("working") == 2)
    ear = Ear(proxy)
    assert floor.batch(batch.uuid).cancel()
    wait_for(lambda: floor.counts(batch).get("working", 0) < 2)
    wait_for(lambda: ear.about(silent.uuid))
    wait_for(lambda: silent.job_state.cancel_requested)
    silent.end(lambda job_state: job_state.raise_if_cancelled())
    wait_for(floor.is_idle)
    assert floor.batch(batch.uuid).status == "cancelled"
    assert floor.counts(batch) == {"cancelled": 3}
    assert floor.ran["waits"] == 0


# Messages that come again.


def test_message_that_names_a_foreign_batch_runs(floor, logged):
    """A message that names a batch that does not know it runs as any other."""
    batch = floor.send_batch("a")
    stranger = floor.post("s", job_batch=batch.uuid)
    floor.work()
    assert floor.statuses(stranger) == ["success"]
    assert floor.counts(batch) == {"success": 1}
    assert logged() == []


def test_job_without_a_batch(floor):
    """It has none to send members to, and neither has a detached one."""
    seen: list[object] = []
    floor.scripts["lone"] = lambda job_state: seen.append(job_state.batch)
    floor.post("lone")
    floor.work()
    floor.errand("lone")
    assert seen == [None, None]
