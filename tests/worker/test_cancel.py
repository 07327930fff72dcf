"""Cancelling a running job, in a real worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import RedisBackend

from pyramid_jobstate import JobCancelled, JobError, JobState, JobStateMiddleware
from tests.jobs import (
    Alarm,
    Gate,
    job_actor,
    load,
    make_broker,
    messages,
    wait_until,
    working,
)
from tests.support import wait_for

CANCELLED = JobError(None, "The job was cancelled.")


def report_for_ever(job_state: JobState) -> None:
    for number in range(1_000_000):
        job_state.set_progress_metric("number", number)
        time.sleep(0.001)


def track_for_ever(job_state: JobState) -> None:
    for _ in job_state.track(range(1_000_000)):
        time.sleep(0.001)


def look_for_ever(job_state: JobState) -> None:
    while not job_state.cancel_requested:
        time.sleep(0.001)
    raise ValueError("as good as any")


def test_job_stops_at_whatever_it_calls_next(broker: RedisBroker) -> None:
    """A running job learns of the cancel at its next call, whichever it is."""
    works = [report_for_ever, track_for_ever, look_for_ever]

    @job_actor(broker=broker)
    def run_marathon(number: int, *, job_state: JobState) -> None:
        works[number](job_state)

    with working(broker, threads=len(works)):
        sent = [run_marathon.send(number) for number in range(len(works))]
        for message in sent:
            state = wait_until(broker, message, "working")
            assert state.cancel() and not state.cancel_requested
        for message in sent:
            state = wait_until(broker, message, "cancelled")
            assert state.error == CANCELLED and state.is_error
            assert not state.cancel()


def test_cancelled_job_ends_quietly(
    place: tuple[str, RedisBroker], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises, no retry, no callback and no traceback in the log follow."""
    _, broker = place
    called = []

    @dramatiq.actor(broker=broker)
    def call_back(*args: Any) -> None:
        called.append(args)

    options: dict[str, Any] = {"on_failure": call_back, "on_success": call_back}
    works = [report_for_ever, look_for_ever]

    @job_actor(broker=broker)
    def run_marathon(number: int, *, job_state: JobState) -> None:
        works[number](job_state)

    with working(broker):
        sent = [run_marathon.send_with_options(args=(n,), **options) for n in (0, 1)]
        for message in sent:
            wait_until(broker, message, "working").cancel()
        for message in sent:
            state = wait_until(broker, message, "cancelled", "error", "retrying")
            assert (state.status, state.error) == ("cancelled", CANCELLED)
        broker.join("default", timeout=20_000)
    assert called == []
    assert broker.do_qsize("default.DQ") == 0
    assert not [r for r in caplog.records if r.exc_info]
    assert len(messages(caplog, "dramatiq.worker")) == 2


def test_exception_before_the_job_heard_of_it_is_a_cancel(redis_url: str) -> None:
    """A job that fails before it hears of its cancel is cancelled, and not retried."""
    middleware = JobStateMiddleware(url=redis_url, interval=10)
    broker = make_broker(redis_url, middleware)
    gate = Gate()
    runs = []

    @dramatiq.actor(broker=broker, min_backoff=50, max_backoff=60, job_state=True)
    def run_marathon() -> None:
        runs.append(1)
        gate.wait()
        raise ValueError("secret")

    with working(broker):
        message = run_marathon.send()
        gate.wait_for_job()
        assert load(broker, message).cancel()
        gate.open()
        state = wait_until(broker, message, "cancelled", "retrying", "error")
        assert (state.status, state.error) == ("cancelled", CANCELLED)
        wait_for(lambda: broker.do_qsize("default.DQ") == 0)
        broker.join("default", timeout=20_000)
    assert runs == [1]
    assert load(broker, message).status == "cancelled"


def test_job_that_shields_itself_is_a_success(broker: RedisBroker) -> None:
    """A job that returns normally after its cancel ends as a success."""

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        try:
            report_for_ever(job_state)
        except JobCancelled:
            job_state.set_progress_metric("shielded", True)

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "working").cancel()
        state = wait_until(broker, message, "success", "cancelled")
    assert state.status == "success"
    assert state.progress_metrics["shielded"] is True


def test_waiting_job_never_begins(
    broker: RedisBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Queued or delayed, it is skipped: no actor, callback or log line comes of it."""
    ran: list[str] = []

    @dramatiq.actor(broker=broker)
    def call_back(*args: Any) -> None:
        ran.append("callback")

    @dramatiq.actor(broker=broker, job_state=True, on_success=call_back.actor_name)
    def run_marathon() -> None:
        ran.append("actor")

    sent = [run_marathon.send_with_options(delay=delay) for delay in (None, 200)]
    for message in sent:
        assert load(broker, message).cancel()
        assert load(broker, message).status == "cancelled"
    with working(broker):
        wait_for(lambda: broker.do_qsize("default.DQ") == 0)
        broker.join("default", timeout=20_000)
    assert [load(broker, message).status for message in sent] == ["cancelled"] * 2
    assert ran == messages(caplog, "pyramid_jobstate") == []


def test_cancelled_job_has_no_result(broker: RedisBroker, redis_url: str) -> None:
    """The result of a cancelled job reads as a failure."""
    backend = RedisBackend(url=redis_url)
    broker.add_middleware(Results(backend=backend))

    @job_actor(broker=broker, store_results=True)
    def run_marathon(*, job_state: JobState) -> None:
        report_for_ever(job_state)

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "working").cancel()
        wait_until(broker, message, "cancelled")
        with pytest.raises(ResultFailure):
            message.get_result(backend=backend, block=True, timeout=2000)


def test_async_job_stops_and_cleans_up(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancel stops `async for` at its next step, and its generator may report while
    it cleans up. Any clean-up may take longer than a second.
    """
    broker = make_broker(redis_url, others=(AsyncIO(),))

    async def miles(job_state: JobState) -> AsyncIterator[int]:
        try:
            for mile in range(1_000_000):
                await asyncio.sleep(0.001)
                yield mile
        finally:
            await asyncio.sleep(0.01)
            job_state.set_message("swept up")

    @job_actor(broker=broker)
    async def run_marathon(is_loop: bool, *, job_state: JobState) -> None:
        if is_loop:
            async for mile in job_state.track(miles(job_state), unit="miles"):
                assert mile >= 0
        try:
            while True:
                job_state.set_progress_metric("number", 1)
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(1.2)
            job_state.set_message("swept up")

    with working(broker):
        sent = [run_marathon.send(is_loop) for is_loop in (True, False)]
        for message in sent:
            wait_until(broker, message, "working").cancel()
        for message in sent:
            state = wait_until(broker, message, "cancelled", "error", "retrying")
            assert (state.status, state.message) == ("cancelled", "swept up")
    assert not [r for r in caplog.records if r.exc_info]


def test_retry_that_was_cancelled_keeps_what_the_first_try_said(
    broker: RedisBroker,
) -> None:
    """It never begins again, and keeps the reports, attempt and start of its run."""
    broker.add_middleware(alarm := Alarm())

    @job_actor(broker=broker, min_backoff=60_000)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("attempt", job_state.attempt)
        raise ValueError("a cramp")

    with working(broker):
        message = run_marathon.send()
        first = wait_until(broker, message, "retrying")
        assert first.cancel()
        alarm.ring()
        wait_for(lambda: broker.do_qsize("default.DQ") == 0)
        broker.join("default", timeout=20_000)
    state = load(broker, message)
    assert (state.status, state.error, state.attempt) == ("cancelled", CANCELLED, 1)
    assert state.progress_metrics == {"attempt": 1}
    assert state.started_at == first.started_at
