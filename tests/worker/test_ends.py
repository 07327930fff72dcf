"""How jobs end, wherever the middleware stands among the others."""

import logging
import threading
import time
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import AgeLimit, SkipMessage
from dramatiq.middleware.time_limit import TimeLimit
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import RedisBackend

from pyramid_jobstate import JobError, JobState, JobStateMiddleware
from tests.jobs import (
    Alarm,
    Gate,
    job_actor,
    load,
    make_broker,
    wait_until,
    working,
)
from tests.worker.floors import idle_actor

#: The stored type of the exception with which a message is skipped.
SKIPPED = "dramatiq.middleware.middleware.SkipMessage"


@pytest.mark.promise("retry-is-told")
@pytest.mark.promise("end-is-true")
def test_exception_is_an_error_once_dramatiq_gives_up(place):
    """A failing job retries, with its attempts and the time it is due, and ends in
    error when Dramatiq gives up: at once if nothing retries it, or if its actor says
    that.
    """
    name, broker = place
    broker.add_middleware(alarm := Alarm())
    gates = [Gate(), Gate()]
    retried = {"max_retries": 1, "min_backoff": 60_000, "max_backoff": 60_001}
    options: dict[str, Any] = {} if name == "without" else retried

    @job_actor(broker=broker, **options)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("try", job_state.attempt)
        job_state.set_progress(3, 26)
        gates[job_state.attempt - 1].wait()
        raise ValueError("secret")

    def give_up() -> None:
        raise ValueError

    giving_up: list[Any] = []
    if name != "without":
        for option in {"throws": ValueError}, {"retry_when": lambda *_: False}:
            options = {"actor_name": f"by {[*option]}", "job_state": True, **option}
            giving_up.append(dramatiq.actor(broker=broker, **options)(give_up))
    with working(broker):
        for actor in giving_up:
            state = wait_until(broker, actor.send(), "retrying", "error")
            assert (state.status, state.attempt) == ("error", 1)
        message = run_marathon.send()
        gates[0].wait_for_job()
        assert load(broker, message).status == "working"
        gates[0].open()
        if name != "without":
            state = wait_until(broker, message, "retrying", "error")
            assert (state.status, state.attempt) == ("retrying", 1)
            assert state.due_at and state.updated_at and state.finished_at is None
            assert 10 < (state.due_at - state.updated_at).total_seconds() < 61
            alarm.ring()
            gates[1].wait_for_job()
            state = load(broker, message)
            assert (state.status, state.attempt, state.due_at) == ("working", 2, None)
            gates[1].open()
        state = wait_until(broker, message, "error")
    assert state.attempt == (1 if name == "without" else 2)
    assert state.error == JobError("ValueError", "secret")
    assert state.progress and state.progress.done == 3
    assert state.progress_metrics == {"try": state.attempt}


def test_time_limit_is_an_error(redis_url):
    """A job that Dramatiq interrupts at its time limit ends in error."""
    broker = make_broker(redis_url, without=TimeLimit)
    broker.add_middleware(TimeLimit(interval=20), before=JobStateMiddleware)
    broker.emit_after("process_boot")

    @job_actor(broker=broker, time_limit=50, max_retries=0)
    def run_marathon(*, job_state: JobState) -> None:
        for i in job_state.track(range(5000)):
            threading.Event().wait(0.01)
            job_state.set_progress_metric("i", i)

    with working(broker):
        state = wait_until(broker, run_marathon.send(), "error", timeout=8)
    said = "dramatiq.middleware.time_limit.TimeLimitExceeded"
    assert state.error and state.error.type == said


class Unspeakable(SyntaxError):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError

    # Its base has an attribute: no type checker lets a property take the place of one.
    @property
    def lineno(self) -> int:  # type: ignore[override]
        raise RuntimeError


def test_error_is_kept_short(floor, caplog):
    """An exception's text is cut to a thousand characters, and is empty if str()
    fails. Of a traceback the end is kept. An actor that raises SkipMessage has
    cancelled itself.
    """
    caplog.set_level(logging.CRITICAL + 1, "dramatiq")
    jobs = []
    for error in Unspeakable(), ValueError("é" * 9000), SkipMessage():
        jobs.append(floor.begin())
        jobs[-1].end(error)
    assert [(held.load().status, held.load().error) for held in jobs] == [
        ("error", JobError(f"{__name__}.Unspeakable", "")),
        ("error", JobError("ValueError", "é" * 1000)),
        ("cancelled", JobError(SKIPPED, "")),
    ]
    traces = [floor.store.failures(held.uuid).traceback for held in jobs[:2]]
    assert traces == ["", "é" * 2047 + "\n"]


@pytest.mark.parametrize("before", [None, AgeLimit])
def test_age_limit_cancels_with_a_reason(redis_url, before):
    """A message that it skips, before or after this middleware, ends as cancelled."""
    broker = make_broker(redis_url, before=before)
    message = idle_actor(broker, max_age=-1).send()
    with working(broker):
        state = wait_until(broker, message, "cancelled", "success", "error")
    assert state.status == "cancelled"
    assert state.error == JobError(SKIPPED, "Message age limit exceeded")


def test_message_for_an_unknown_actor_is_an_error(redis_url):
    """A message whose actor no worker knows ends in error."""
    sender, worker = make_broker(redis_url), make_broker(redis_url)
    idle_actor(worker, actor_name="other")
    message = idle_actor(sender).send()
    with working(worker):
        state = wait_until(sender, message, "error")
    assert state.error == JobError(None, "No worker knows the actor 'run_marathon'.")


def test_result_is_stored_before_the_job_ends(place, redis_url):
    """It is there once the job reads success; that of a failed one is a failure."""
    name, broker = place
    backend = RedisBackend(url=redis_url)
    broker.add_middleware(Results(backend=backend))
    options: dict[str, Any] = {} if name == "without" else {"max_retries": 0}

    @dramatiq.actor(broker=broker, job_state=True, store_results=True, **options)
    def run_marathon(miles: int) -> int:
        if miles == 13:
            raise ValueError("Bad luck")
        return miles

    with working(broker):
        message = run_marathon.send(26)
        wait_until(broker, message, "success")
        assert message.get_result(backend=backend) == 26
        if name != "without":
            message = run_marathon.send(13)
            wait_until(broker, message, "error")
            with pytest.raises(ResultFailure):
                message.get_result(backend=backend, block=True, timeout=1000)


@pytest.mark.promise("retry-is-told")
def test_job_that_puts_itself_back_is_due_from_then_on(floor):
    """`due_at` counts from when the message was put back, not from the run's end."""
    held, times = floor.begin(), []

    def put_back(job_state: Any) -> None:
        put = floor.broker.enqueue(held.message.copy(), delay=60_000)
        threading.Event().wait(0.1)
        times.extend([put.options["eta"] / 1000, time.time()])

    held.end(put_back)
    state, (eta, opened) = held.load(), times
    assert state.status == "retrying"
    # The time counts on until the end of the run is written.
    assert -0.002 <= state.due_at.timestamp() - eta <= time.time() - opened + 0.002
