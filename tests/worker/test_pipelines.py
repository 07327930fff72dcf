"""How a worker runs pipelines and groups that were sent from a request."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
import redis
from dramatiq import Broker, group, pipeline
from dramatiq.middleware import AgeLimit, GroupCallbacks, Middleware, SkipMessage
from dramatiq.rate_limits.backends import StubBackend

from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.job.record import CANCELLED, NOT_REACHED, JobError
from tests.jobs import Gate, RunMarathon, make_broker, working
from tests.support import wait_for
from tests.webapp import made_config, make_request


class SkipNinetyNine(Middleware):
    """Skips a message before a worker begins it."""

    def before_process_message(self, broker: Broker, message: Any) -> None:
        if message.args[:1] == (99,):
            raise SkipMessage("Too far.")


@pytest.fixture(params=["appended", "first"])
def broker(
    request: pytest.FixtureRequest, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Broker:
    """Override: Dramatiq's global broker, with our middleware first or last."""
    before = AgeLimit if request.param == "first" else None
    broker = make_broker(
        redis_url,
        JobStateMiddleware(interval=0.01),
        before=before,
        others=(SkipNinetyNine(), GroupCallbacks(StubBackend())),
    )
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def step(broker: Broker, gate: Gate) -> Any:
    """An actor that adds, waits at the gate at 7, never ends at 8, and fails at 13."""

    @dramatiq.actor(broker=broker, job_state=RunMarathon, max_retries=0)
    def step(miles: int, before: int = 0, *, job_state: JobState) -> int:
        if miles == 7:
            gate.wait()
        while miles == 8:
            job_state.raise_if_cancelled()
            time.sleep(0.005)
        if miles == 13:
            raise ValueError("Bad luck")
        job_state.set_progress_metric("before", before)
        return miles + before

    return step


@pytest.fixture
def states_of_alice(broker: Broker, redis_url: str) -> Any:
    """The job_states of a request of Alice's."""
    config = made_config(redis_url)
    return make_request(config, "alice").job_states


@pytest.fixture
def ended(states_of_alice: Any) -> Callable[..., list[JobState]]:
    """Waits until jobs have ended, and returns them."""

    def load(sent: Any) -> list[JobState]:
        return [states_of_alice[job_state.uuid] for job_state in sent]

    def wait(sent: Any) -> list[JobState]:
        wait_for(lambda: all(job_state.is_finished for job_state in load(sent)))
        return load(sent)

    return wait


def outcome(jobs: list[JobState]) -> list[tuple[str, str | None]]:
    return [(j.status, j.error and j.error.message) for j in jobs]


NOT_RUN = ("cancelled", NOT_REACHED.message)


def test_steps_succeed_in_their_turn(
    broker: Broker, states_of_alice: Any, step: Any, gate: Gate, ended: Any
) -> None:
    """Each step is queued until its turn comes, gets the result of the step before, and
    belongs to the sender.
    """
    sent = states_of_alice.send_immediately(
        step.message(7) | step.message(2) | step.message(3)
    )
    with working(broker):
        gate.wait_for_job()
        first, *others = (states_of_alice[job_state.uuid] for job_state in sent)
        assert first.status == "working"
        assert [job_state.status for job_state in others] == ["queued", "queued"]
        assert states_of_alice.list("alice").items[0].uuid == others[1].uuid
        gate.open()
        jobs = ended(sent)
    assert outcome(jobs) == [("success", None)] * 3
    assert [j.progress_metrics for j in jobs] == [
        {"before": 0},
        {"before": 7},
        {"before": 9},
    ]
    assert {j.owner for j in jobs} == {"alice"}
    assert all(
        j.queued_at and j.started_at and j.queued_at <= j.started_at for j in jobs
    )
    assert len(states_of_alice.list("alice").items) == 3


def test_steps_after_one_that_fails_are_cancelled(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """When a step fails for good, those after it are cancelled and give the reason."""
    sent = states_of_alice.send_immediately(
        pipeline([step.message(1), step.message(13), step.message(2), step.message(3)])
    )
    with working(broker):
        jobs = ended(sent)
    assert outcome(jobs) == [
        ("success", None),
        ("error", "Bad luck"),
        NOT_RUN,
        NOT_RUN,
    ]
    # Finished jobs are listed under their status.
    assert {j.uuid for j in states_of_alice.list(status="cancelled").items} == {
        j.uuid for j in jobs[2:]
    }


def test_steps_after_one_that_is_tried_again_wait(
    broker: Broker, states_of_alice: Any, ended: Any
) -> None:
    """Steps after one that will be retried stay queued."""
    tries: list[int] = []
    statuses = []

    @dramatiq.actor(broker=broker, job_state=True, min_backoff=50, max_backoff=50)
    def flaky(n: int, before: int = 0) -> int:
        tries.append(n)
        if len(tries) == 2:
            statuses.append(states_of_alice[sent[1].uuid].status)
        if len(tries) < 3:
            raise ValueError
        return n

    sent = states_of_alice.send_immediately(flaky.message(1) | flaky.message(2))
    with working(broker):
        jobs = ended(sent)
    assert outcome(jobs) == [("success", None)] * 2
    assert statuses == ["queued"]
    assert tries == [1, 1, 1, 2]


@pytest.mark.parametrize("skipped", [0, 1])
def test_steps_after_one_that_is_skipped_are_cancelled(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any, skipped: int
) -> None:
    """A middleware that skips a step ends the pipeline there."""
    members = [step.message(99 if i == skipped else 1) for i in range(3)]
    sent = states_of_alice.send_immediately(pipeline(members))
    with working(broker):
        jobs = ended(sent)
    expected = [("success", None)] * skipped + [("cancelled", "Too far.")]
    assert outcome(jobs) == expected + [NOT_RUN] * (2 - skipped)


def test_steps_after_one_that_is_too_old_are_cancelled(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """A step past its age limit ends the pipeline."""
    old = step.message_with_options(args=(1,), max_age=1)
    sent = states_of_alice.send_immediately(old | step.message(2))
    time.sleep(0.01)
    with working(broker):
        jobs = ended(sent)
    assert [j.status for j in jobs] == ["cancelled", "cancelled"]
    assert jobs[0].error is not None and jobs[0].error != CANCELLED
    assert outcome(jobs)[1] == NOT_RUN


def test_steps_after_one_that_is_cancelled_are_cancelled(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """Cancelling the running step ends the pipeline."""
    sent = states_of_alice.send_immediately(
        step.message(8) | step.message(2) | step.message(3)
    )
    with working(broker):
        wait_for(lambda: states_of_alice[sent[0].uuid].status == "working")
        assert sent[0].cancel()
        jobs = ended(sent)
    assert outcome(jobs) == [("cancelled", CANCELLED.message), NOT_RUN, NOT_RUN]


def test_step_that_waits_can_be_cancelled(
    broker: Broker, states_of_alice: Any, step: Any, gate: Gate, ended: Any
) -> None:
    """A waiting step is cancelled at once; those before it go on, and those after it
    are cancelled when its turn comes.
    """
    sent = states_of_alice.send_immediately(
        step.message(7) | step.message(2) | step.message(3)
    )
    with working(broker):
        gate.wait_for_job()
        assert sent[1].cancel()
        assert states_of_alice[sent[1].uuid].status == "cancelled"
        assert not states_of_alice[sent[1].uuid].cancel()
        gate.open()
        jobs = ended(sent)
    assert outcome(jobs) == [
        ("success", None),
        ("cancelled", CANCELLED.message),
        NOT_RUN,
    ]
    assert jobs[1].started_at is None


def test_first_step_cancelled_in_the_queue_ends_the_pipeline(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """Cancelling the first step before a worker takes it ends the pipeline."""
    sent = states_of_alice.send_immediately(step.message(1) | step.message(2))
    assert sent[0].cancel()
    with working(broker):
        jobs = ended(sent)
    assert outcome(jobs) == [("cancelled", CANCELLED.message), NOT_RUN]


def test_step_of_an_actor_that_is_not_declared_ends_the_pipeline(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """A step whose actor no worker knows fails, and those after it are cancelled."""
    sent = states_of_alice.send_immediately(step.message(1) | step.message(2))
    with contextlib.ExitStack() as stack:
        stack.callback(broker.actors.update, dict(broker.actors))
        broker.actors["other"] = broker.actors.pop("step")
        with working(broker):
            jobs = ended(sent)
    assert [j.status for j in jobs] == ["error", "cancelled"]


def test_groups_and_their_pipelines_succeed(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """The members of a group run side by side, a failing member ends only its own
    pipeline, and groups and pipelines may be nested.
    """
    sent = states_of_alice.send_immediately(
        group(
            [
                step.message(1),
                step.message(13) | step.message(2),
                group([step.message(3), step.message(4) | step.message(5)]),
            ]
        )
    )
    with working(broker):
        jobs = ended(sent)
    good = ("success", None)
    assert outcome(jobs) == [good, ("error", "Bad luck"), NOT_RUN, good, good, good]


def test_completion_callback_is_a_job_of_the_senders(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any
) -> None:
    """A group's completion callback has a state, too, under its message's id, and
    belongs to the group's sender.
    """
    what = group([step.message(1), step.message(2) | step.message(3)])
    last = step.message(4)
    what.add_completion_callback(last)
    sent = states_of_alice.send_immediately(what)
    with working(broker):
        assert outcome(ended(sent)) == [("success", None)] * 3
        wait_for(
            lambda: getattr(states_of_alice.find(last.message_id), "is_success", False)
        )
    assert states_of_alice[last.message_id].owner == "alice"


def test_error_of_a_step_is_its_own(
    broker: Broker, states_of_alice: Any, step: Any, ended: Any, client: redis.Redis
) -> None:
    """A cancelled step keeps its own error, even if an earlier step fails."""
    sent = states_of_alice.send_immediately(step.message(13) | step.message(2))
    assert sent[1].cancel()
    with working(broker):
        jobs = ended(sent)
    assert jobs[0].error == JobError("ValueError", "Bad luck")
    assert jobs[1].error == CANCELLED
