"""Messages that another middleware skips, refuses or puts back."""

import collections
import datetime
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import (
    AgeLimit,
    Middleware,
    MiddlewareError,
    Retries,
    SkipMessage,
)

from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.resources import JobStates
from tests.jobs import Alarm, job_actor, load, make_broker, wait_until, working
from tests.support import wait_for
from tests.worker.floors import idle_actor


class RefusedError(MiddlewareError):
    """A message is refused."""


class Stopping(Middleware):
    """Stops a message from its nth delivery on, in the way it says, and notes when."""

    def __init__(self) -> None:
        self.stopped: dict[str, datetime.datetime] = {}

    def before_process_message(self, broker: Any, message: Any) -> None:
        nth, how = message.args
        if message.options.get("retries", 0) + 1 < nth:
            return
        self.stopped[message.message_id] = datetime.datetime.now(datetime.UTC)
        if how != "refuse":
            message.fail()
        if how == "skip":
            raise SkipMessage("not today")
        if how == "refuse":
            raise RefusedError("not today")


@pytest.mark.parametrize("order", ["after", "before", "first"])
def test_attempt_is_that_of_the_last_run_that_began(redis_url: str, order: str) -> None:
    """Its start is, too, wherever the middleware stands that stops the job. That run's
    reports are kept if the message is stopped before ours sees it.
    """
    broker = make_broker(redis_url, before=None if order == "after" else AgeLimit)
    where: Any = JobStateMiddleware if order != "before" else None
    broker.add_middleware(stopping := Stopping(), before=where)
    began: dict[str, int] = collections.Counter()

    # The end of an attempt is written before the next one begins.
    @job_actor(broker=broker, min_backoff=100, max_backoff=200)
    def run_marathon(nth: int, how: str, *, job_state: JobState) -> None:
        began[job_state.uuid] += 1
        job_state.set_progress_metric("attempt", job_state.attempt)
        job_state.set_progress(job_state.attempt, 5)
        raise ValueError("a cramp")

    def send(nth: int, how: str) -> Any:
        return run_marathon.send_with_options(args=(nth, how), max_retries=nth)

    cases = [(nth, how) for nth in (1, 2) for how in ("skip", "refuse", "fail")]
    with working(broker, threads=6):
        sent = [send(*case) for case in cases]
        states = [wait_until(broker, m, "cancelled", "error") for m in sent]
    for (nth, how), state in zip(cases, states, strict=True):
        assert state.status == ("cancelled" if how == "skip" else "error")
        assert state.error is not None
        reason = "The message was rejected." if how == "fail" else "not today"
        assert state.error.message == reason
        assert (state.attempt, began[state.uuid]) == (nth - 1, nth - 1)
        if order != "before" and how != "fail":
            assert state.progress_metrics == ({"attempt": 1} if nth == 2 else {})
            assert (state.progress is not None) == (nth == 2)
        assert state.finished_at is not None
        assert (state.started_at is None) == (nth == 1)
        if state.started_at is not None:
            # It was put back for a tenth of a second at least.
            before = stopping.stopped[state.uuid] - state.started_at
            assert before > datetime.timedelta(seconds=0.05)


@pytest.mark.parametrize("order", ["after", "before", "last"])
def test_message_that_is_refused_and_put_back_waits(redis_url: str, order: str) -> None:
    """It reads retrying, with the time it is due, wherever the middlewares stand."""
    places: dict[str, Any] = {"before": AgeLimit, "last": Retries}
    broker = make_broker(redis_url, before=places.get(order))
    seen: list[str] = []

    class RefusingOnce(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            seen.append(load(broker, message).status)
            if len(seen) == 1:
                raise RefusedError("not today")

    where: Any = None if order == "before" else JobStateMiddleware
    broker.add_middleware(RefusingOnce(), before=where)
    broker.add_middleware(alarm := Alarm())
    message = idle_actor(broker, min_backoff=60_000, max_backoff=60_001).send()
    with working(broker):
        state: Any = wait_until(broker, message, "retrying")
        assert (state.attempt, state.started_at) == (0, None)
        assert state.error.message == "not today"
        assert 10 < (state.due_at - state.updated_at).total_seconds() < 61
        alarm.ring()
        state = wait_until(broker, message, "success", "error", "cancelled")
    assert (state.status, state.attempt, state.due_at) == ("success", 2, None)
    waiting = ["working"] * 2 if order == "before" else ["queued", "retrying"]
    assert seen == waiting


@pytest.mark.parametrize("order", ["before", "after", "first"])
def test_message_that_a_limiter_puts_back_waits(
    redis_url: str, alice: JobStates, order: str
) -> None:
    """It is not finished, and the next step waits, wherever the limiter stands."""
    broker = make_broker(redis_url, before=AgeLimit if order == "first" else None)
    seen: list[str] = []

    class Limiter(Middleware):
        """Puts the first deliveries back for a while, and skips them."""

        def before_process_message(self, broker: Any, message: Any) -> None:
            seen.append(message.message_id)
            if len(seen) < 3:
                broker.enqueue(message, delay=60_000)
                raise SkipMessage("not now")

    where: Any = None if order == "after" else JobStateMiddleware
    broker.add_middleware(Limiter(), before=where)
    broker.add_middleware(alarm := Alarm())
    over: list[Any] = []
    run_marathon = idle_actor(broker)
    steps = [run_marathon.message() for _ in range(2)]
    pipe = dramatiq.pipeline(steps, broker=broker)

    def delivered(times: int) -> bool:
        over.extend(alice[job.uuid] for job in sent)
        return len(seen) >= times

    with working(broker):
        sent = alice.send_immediately(pipe)
        state: Any = wait_until(broker, steps[0], "retrying")
        assert (state.attempt, state.error) == (0, None)
        # The put-back is written a moment after it happened.
        assert 50 < (state.due_at - state.updated_at).total_seconds() <= 60
        alarm.ring()
        assert wait_for(lambda: delivered(3))
        assert not {state.status for state in over} & {"cancelled", "error"}
        for message in steps:
            wait_until(broker, message, "success")
