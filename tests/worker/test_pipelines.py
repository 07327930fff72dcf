"""How a worker runs pipelines and groups that were sent from a request."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
from dramatiq import Broker, group, pipeline
from dramatiq.middleware import (
    AgeLimit,
    GroupCallbacks,
    Middleware,
    Pipelines,
    SkipMessage,
)
from dramatiq.rate_limits.backends import StubBackend

from pyramid_jobstate import JobState, JobStateMiddleware, rerun
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import pass_time
from tests.jobs import Gate, RunMarathon, make_broker, working
from tests.support import wait_for
from tests.webapp import queued
from tests.worker.floors import idle_actor


class SkipNinetyNine(Middleware):
    def before_process_message(self, broker: Broker, message: Any) -> None:
        if message.args[:1] == (99,):
            raise SkipMessage("Too far.")


@pytest.fixture(params=["appended", "first"])
def broker(
    request: pytest.FixtureRequest, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Broker:
    """Override: Dramatiq's global broker, with our middleware first or last."""
    before = AgeLimit if request.param == "first" else None
    others = (SkipNinetyNine(), GroupCallbacks(StubBackend()))
    ours = JobStateMiddleware(interval=0.01)
    broker = make_broker(redis_url, ours, before=before, others=others)
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def step(broker: Broker, gate: Gate) -> Any:
    """An actor that adds, waits at the gate at 7, and fails at 13."""

    @dramatiq.actor(broker=broker, job_state=RunMarathon, max_retries=0)
    def step(miles: int, before: int = 0, *, job_state: JobState) -> int:
        if miles == 7:
            gate.wait()
        if miles == 13:
            raise ValueError("Bad luck")
        job_state.set_progress_metric("before", before)
        return miles + before

    return step


@pytest.fixture
def ended(alice: JobStates) -> Callable[..., list[JobState]]:
    """Waits until jobs have ended, and returns them."""

    def wait(sent: Any) -> list[JobState]:
        wait_for(lambda: all(alice[job.uuid].is_finished for job in sent))
        return [alice[job.uuid] for job in sent]

    return wait


def outcome(jobs: list[JobState]) -> list[tuple[str, str | None]]:
    return [(j.status, None if j.error is None else j.error.message) for j in jobs]


CANCELLED = "The job was cancelled."
GOOD, BAD = ("success", None), ("error", "Bad luck")
NOT_RUN = ("cancelled", "An earlier step did not succeed.")


@pytest.mark.promise("pipelines-are-tracked")
def test_steps_succeed_in_their_turn(broker, alice, step, gate, ended):
    """Each is queued until then, gets the result of the last, and is the sender's."""
    sent = alice.send_immediately(step.message(7) | step.message(2) | step.message(3))
    with working(broker):
        gate.wait_for_job()
        first, *others = (alice[job_state.uuid] for job_state in sent)
        assert first.status == "working"
        assert [job_state.status for job_state in others] == ["queued", "queued"]
        assert alice.list("alice").items[0].uuid == others[1].uuid
        gate.open()
        jobs = ended(sent)
    assert outcome(jobs) == [GOOD] * 3
    assert [j.progress_metrics["before"] for j in jobs] == [0, 7, 9]
    assert {j.owner for j in jobs} == {"alice"}
    assert len(alice.list("alice").items) == 3


@pytest.mark.promise("pipelines-are-tracked")
def test_steps_after_one_that_does_not_succeed_are_cancelled(
    broker, alice, step, ended
):
    """If it fails or is skipped, they say so. One cancelled before keeps its reason."""
    cases = [
        ([1, 13, 2, 3], [GOOD, BAD, NOT_RUN, NOT_RUN]),
        ([1, 99, 1, 1], [GOOD, ("cancelled", "Too far."), NOT_RUN, NOT_RUN]),
        ([13, 2], [BAD, ("cancelled", CANCELLED)]),
    ]
    pipes = [pipeline([step.message(n) for n in miles]) for miles, _ in cases]
    sent = [alice.send_immediately(pipe) for pipe in pipes]
    assert sent[-1][1].cancel()
    with working(broker):
        assert [outcome(ended(jobs)) for jobs in sent] == [ends for _, ends in cases]


def test_steps_after_a_message_that_is_put_back_run(broker, alice, ended, client):
    """An operator may put back that of a job that failed, or was skipped. It runs."""
    troubles = ["fail", "skip"]

    class Skipping(Middleware):
        def before_process_message(self, broker: Broker, message: Any) -> None:
            if message.args[0] == "skip" and troubles:
                raise SkipMessage("Not today.")

    @dramatiq.actor(broker=broker, job_state=True, max_retries=0, throws=ValueError)
    def run(name: str, before: None = None) -> None:
        if name in troubles:
            raise ValueError("Bad luck")

    broker.add_middleware(Skipping())
    pipes = [run.message(name) | run.message("then") for name in troubles]
    sent = [job for pipe in pipes for job in alice.send_immediately(pipe)]
    messages = queued(client)
    skipped = ("cancelled", "Not today.")
    with working(broker):
        assert outcome(ended(sent)) == [BAD, NOT_RUN, skipped, NOT_RUN]
    troubles.clear()
    for message in messages:
        broker.enqueue(message)
    with working(broker):
        wait_for(lambda: outcome([alice[job.uuid] for job in sent]) == [GOOD] * 4)


def test_step_is_told_each_time_that_its_turn_does_not_come(broker, alice):
    """An earlier step may run again, and fail again."""
    told: list[str] = []

    class Baton(JobState):
        def on_cancelled(self) -> None:
            told.append(self.uuid)

    @dramatiq.actor(broker=broker, job_state=Baton, max_retries=0)
    def run(before: None = None) -> None:
        raise ValueError("Bad luck")

    first, second = alice.send_immediately(run.message() | run.message())
    with working(broker):
        wait_for(lambda: told == [second.uuid])
        assert rerun(alice.store, broker, first.uuid)
        wait_for(lambda: told == [second.uuid] * 2)


def test_steps_after_one_that_is_tried_again_wait(broker, alice, ended):
    """Steps after one that will be retried stay queued."""
    tries: list[int] = []
    statuses = []

    @dramatiq.actor(broker=broker, job_state=True, min_backoff=50, max_backoff=50)
    def flaky(n: int, before: int = 0) -> int:
        tries.append(n)
        if len(tries) == 2:
            statuses.append(alice[sent[1].uuid].status)
        if len(tries) < 3:
            raise ValueError
        return n

    sent = alice.send_immediately(flaky.message(1) | flaky.message(2))
    with working(broker):
        jobs = ended(sent)
    assert outcome(jobs) == [("success", None)] * 2
    assert statuses == ["queued"]
    assert tries == [1, 1, 1, 2]


def test_steps_outlast_the_delay_of_the_first(alice, step):
    """A later step is kept for as long as an earlier one may be due."""
    day = 24 * 3600
    first = step.message_with_options(args=(1,), delay=30 * day * 1000)
    sent = alice.send_immediately(first | step.message(2) | step.message(3))
    pass_time(alice.store, 37 * day)
    assert [alice[job_state.uuid].status for job_state in sent] == ["queued"] * 3


def test_step_that_waits_can_be_cancelled(broker, alice, step, gate, ended):
    """It is at once. Those before go on, those after are cancelled in their turn."""
    sent = alice.send_immediately(step.message(7) | step.message(2) | step.message(3))
    with working(broker):
        gate.wait_for_job()
        assert sent[1].cancel()
        assert alice[sent[1].uuid].status == "cancelled"
        gate.open()
        jobs = ended(sent)
    assert outcome(jobs) == [GOOD, ("cancelled", CANCELLED), NOT_RUN]
    assert jobs[1].started_at is None


def test_step_of_an_actor_that_is_not_declared_ends_the_pipeline(
    broker, alice, step, ended
):
    """A step whose actor no worker knows fails, and those after it are cancelled."""
    sent = alice.send_immediately(step.message(1) | step.message(2))
    with contextlib.ExitStack() as stack:
        stack.callback(broker.actors.update, dict(broker.actors))
        broker.actors["other"] = broker.actors.pop("step")
        with working(broker):
            jobs = ended(sent)
    assert [j.status for j in jobs] == ["error", "cancelled"]


def test_step_that_is_not_tracked_does_no_harm(broker, alice, step, caplog):
    """A plain pipeline may have such a step. It ends as quietly as any other."""
    sweep: Any = dramatiq.actor(broker=broker, actor_name="sweep")(lambda *_: None)
    steps = [step.message(13), sweep.message(), step.message(2)]
    pipeline(steps, broker=broker).run()
    with working(broker):
        wait_for(lambda: getattr(alice.find(steps[0].message_id), "is_finished", None))
    assert outcome([alice[steps[0].message_id]]) == [BAD]
    assert [alice.find(each.message_id) for each in steps[1:]] == [None, None]
    assert not [r for r in caplog.records if "Unexpected" in r.getMessage()]


def test_groups_and_their_pipelines_succeed(broker, alice, step, ended):
    """A failing member ends only its own pipeline, and both may be nested."""
    inner = group([step.message(3), step.message(4) | step.message(5)])
    steps = step.message(13) | step.message(2)
    sent = alice.send_immediately(group([step.message(1), steps, inner]))
    with working(broker):
        jobs = ended(sent)
    assert outcome(jobs) == [GOOD, BAD, NOT_RUN, GOOD, GOOD, GOOD]


def test_completion_callback_is_a_job_of_the_senders(broker, alice, step, ended):
    """It has a state under its message's id, and the owner of the group."""
    what = group([step.message(1), step.message(2) | step.message(3)])
    last = step.message(4)
    what.add_completion_callback(last)
    sent = alice.send_immediately(what)
    with working(broker):
        assert outcome(ended(sent)) == [("success", None)] * 3
        wait_for(lambda: getattr(alice.find(last.message_id), "is_success", False))
    assert alice[last.message_id].owner == "alice"


def test_next_step_that_is_never_sent_is_an_error(redis_url, alice, ended):
    """A broker without Pipelines sends none. Those after it read as not reached."""
    broker = make_broker(redis_url, without=Pipelines)
    broker.actor_options |= {"pipe_target", "pipe_ignore"}
    run_marathon = idle_actor(broker)
    steps = [run_marathon.message() for _ in range(3)]
    sent = alice.send_immediately(pipeline(steps, broker=broker))
    with working(broker):
        found = ended(sent)
    lost = ("error", "The job could not be sent.")
    assert outcome(found) == [GOOD, lost, NOT_RUN]
