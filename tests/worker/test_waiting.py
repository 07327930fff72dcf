"""Jobs that wait for others, and what they may not wait for."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
from dramatiq import pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from transaction import TransactionManager

from pyramid_jobstate import Batch, JobCancelled, JobState
from pyramid_jobstate.testing import put_job
from tests.jobs import job_actor, make_broker, new_id, store_of, wait_until, working
from tests.support import load_job, wait_for, write
from tests.worker.floors import idle_actor


@pytest.fixture
def broker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> RedisBroker:
    """Override: Dramatiq's global broker, with actors for asyncio."""
    broker = make_broker(redis_url, others=(AsyncIO(),))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture(params=["thread", "asyncio"])
def declare(
    request: pytest.FixtureRequest, broker: RedisBroker
) -> Callable[..., dramatiq.Actor[..., Any]]:
    """Declares an actor that waits for jobs, and does something with what it gets or
    with what is raised.
    """
    store = store_of(broker)

    def declare(act: Callable[[JobState, Any], object]) -> dramatiq.Actor[..., Any]:
        @job_actor(broker=broker, max_retries=0)
        def wait(*uuids: str, job_state: JobState) -> None:
            try:
                found: Any = store.wait(*uuids)
            except BaseException as e:
                act(job_state, e)
                raise
            act(job_state, found)

        @job_actor(broker=broker, max_retries=0)
        async def follow(*uuids: str, job_state: JobState) -> None:
            try:
                found: Any = await store.follow(*uuids)
            except BaseException as e:
                act(job_state, e)
                raise
            act(job_state, found)

        return wait if request.param == "thread" else follow

    return declare


def test_actor_waits_for_another_job(broker, declare):
    """It gets the ended job, with what that has reported."""
    seen: list[Any] = []
    waiting = declare(lambda job_state, found: seen.append(found))

    @job_actor(broker=broker, max_retries=0)
    def run(*, job_state: JobState) -> None:
        job_state.set_progress_metric("miles", 26)

    with working(broker):
        first = run.send()
        message = waiting.send(first.message_id)
        wait_until(broker, message, "success")
    assert [(job.status, job.progress_metrics) for job in seen] == [
        ("success", {"miles": 26})
    ]


def test_cancelled_job_stops_waiting(broker, declare):
    """Each look raises JobCancelled as a report does, once: what cleans up may wait."""
    store = store_of(broker)
    seen: list[Any] = []
    other = put_job(store, JobState, "working").uuid

    def clean_up(job_state: JobState, error: Any) -> None:
        seen.append(type(error))
        with contextlib.suppress(TimeoutError):
            store.wait(other, timeout=0)
        seen.append("cleaned up")

    waiting = declare(clean_up)
    with working(broker):
        message = waiting.send(other)
        assert wait_until(broker, message, "working").cancel()
        wait_until(broker, message, "cancelled")
    assert seen == [JobCancelled, "cleaned up"]
    assert load_job(store, other).status == "working"


def test_job_cannot_wait_for_itself(broker, declare):
    """It would never end: a RuntimeError says so."""
    seen: list[Any] = []
    waiting = declare(lambda job_state, found: seen.append(str(found)))
    own = new_id()
    message = waiting.message(own).copy(message_id=own)
    with working(broker):
        broker.enqueue(message)
        wait_until(broker, message, "error")
    assert len(seen) == 1
    assert seen[0].startswith(f"The job {own} cannot wait for {own}, which ends after")


def test_member_cannot_wait_for_its_batch(broker, declare, alice):
    """A batch ends after its members. Another member may be waited for."""
    seen: dict[str, Any] = {}
    waiting = declare(lambda job_state, found: seen.update({job_state.uuid: found}))
    idle = idle_actor(broker)
    alice.request.tm = TransactionManager(explicit=True)
    batch: Batch = alice.batch()
    with alice.request.tm, batch:
        other: str = batch.send(idle).uuid
        in_vain: str = batch.send(waiting, batch.uuid).uuid
        well: str = batch.send(waiting, other).uuid
    with working(broker):
        assert store_of(broker).wait(batch.uuid).status == "error"
    assert "its batch" in str(seen[in_vain])
    assert seen[well].uuid == other


def test_step_cannot_wait_for_a_later_one(broker, declare, alice):
    """Neither for the next step of its pipeline nor for one after that. A later step
    may wait for an earlier one.
    """
    seen: dict[str, Any] = {}
    waiting = declare(lambda job_state, found: seen.update({job_state.uuid: found}))
    idle = idle_actor(broker)
    for place in 3, 4:
        uuids = [new_id() for _ in range(5)]
        awaited = {1: uuids[0], 2: uuids[place]}
        steps = []
        for number, uuid in enumerate(uuids):
            actor = waiting if number in awaited else idle
            args = [awaited[number]] if number in awaited else []
            step = actor.message_with_options(args=args, pipe_ignore=True)
            steps.append(step.copy(message_id=uuid))
        jobs = alice.send_immediately(pipeline(steps, broker=broker))
        with working(broker):
            ends = store_of(broker).wait(*[job.uuid for job in jobs])
        statuses = [job.status for job in ends]
        assert statuses == ["success", "success", "error", "cancelled", "cancelled"]
        assert seen[uuids[1]].uuid == uuids[0]
        assert "a later step" in str(seen[uuids[2]])


def test_task_may_outlive_its_actor(broker):
    """A task that goes on after its job waits as outside a job, even for that."""
    store = store_of(broker)
    other = put_job(store, JobState, "working").uuid
    tasks: list[asyncio.Task[JobState]] = []
    seen: list[Any] = []

    async def follow(own: str) -> JobState:
        await wait_for_end(own)
        seen.append((await store.follow(own)).status)
        return await store.follow(other)

    async def wait_for_end(own: str) -> None:
        while not load_job(store, own).is_finished:
            await asyncio.sleep(0.05)

    @job_actor(broker=broker, max_retries=0)
    async def run(*, job_state: JobState) -> None:
        tasks.append(asyncio.create_task(follow(job_state.uuid)))

    with working(broker):
        wait_until(broker, run.send(), "success")
        wait_for(lambda: seen)
        write(store, other, status="success")
        wait_for(lambda: tasks[0].done())
    assert seen == ["success"]
    assert tasks[0].result().status == "success"
