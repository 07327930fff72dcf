"""Cancelling a running job, in a real worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from pyramid_jobstate import JobCancelled, JobError, JobState
from pyramid_jobstate.testing import pass_time
from tests.jobs import (
    Alarm,
    job_actor,
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


@pytest.mark.promise("running-job-hears-of-a-cancel")
def test_running_job_ends_quietly(place, caplog):
    """It learns of its cancel at its next call, whichever that is. Whatever it raises,
    no retry, no callback and no traceback in the log follow.
    """
    _, broker = place
    called = []

    @dramatiq.actor(broker=broker)
    def call_back(*args: Any) -> None:
        called.append(args)

    options: dict[str, Any] = {"on_failure": call_back, "on_success": call_back}
    works = [report_for_ever, track_for_ever, look_for_ever]

    @job_actor(broker=broker)
    def run_marathon(number: int, *, job_state: JobState) -> None:
        works[number](job_state)

    with working(broker):
        sent = [run_marathon.send_with_options(args=(n,), **options) for n in (0, 1, 2)]
        for message in sent:
            state = wait_until(broker, message, "working")
            assert state.cancel() and not state.cancel_requested
        for message in sent:
            state = wait_until(broker, message, "cancelled", "error", "retrying")
            assert (state.status, state.error) == ("cancelled", CANCELLED)
            assert state.is_error and not state.cancel()
        broker.join("default", timeout=20_000)
    assert called == []
    assert broker.do_qsize("default.DQ") == 0
    assert not [r for r in caplog.records if r.exc_info]
    assert len(messages(caplog, "dramatiq.worker")) == 3


@pytest.mark.promise("cancelled-job-is-not-retried")
def test_exception_before_the_job_heard_of_it_is_a_cancel(make_floor):
    """A job that fails before it hears of its cancel is cancelled, and not retried. Its
    result reads as a failure.
    """
    floor = make_floor(interval=10)
    backend = StubBackend()
    floor.broker.add_middleware(Results(backend=backend))
    held = floor.begin(
        max_retries=1, min_backoff=50, max_backoff=60, store_results=True
    )
    assert held.load().cancel()
    held.end(ValueError("secret"))
    assert (held.load().status, held.load().error) == ("cancelled", CANCELLED)
    wait_for(floor.is_idle)
    assert floor.ran == {"": 1}
    assert held.load().status == "cancelled"
    with pytest.raises(ResultFailure):
        held.message.get_result(backend=backend, block=True, timeout=2000)


def test_job_that_shields_itself_is_a_success(floor):
    """A job that returns normally after its cancel ends as a success."""

    def shield(job_state: JobState) -> None:
        with pytest.raises(JobCancelled):
            report_for_ever(job_state)
        job_state.set_progress_metric("shielded", True)

    held = floor.begin()
    assert held.load().cancel()
    held.end(shield)
    assert held.load().status == "success"
    assert held.load().progress_metrics["shielded"] is True


@pytest.mark.promise("cancelled-while-it-waited-does-not-run")
def test_waiting_job_never_begins(floor, caplog):
    """Queued or delayed, it is skipped: no actor, callback or log line comes of it. Its
    message may come days later.
    """
    called: list[Any] = []

    @dramatiq.actor(broker=floor.broker)
    def call_back(*args: Any) -> None:
        called.append(args)

    sent = [floor.message(on_success="call_back") for _ in range(2)]
    for message, delay in zip(sent, (None, 200), strict=True):
        floor.broker.enqueue(message, delay=delay)
        assert floor.load(message.message_id).cancel()
    pass_time(floor.store, 7 * 86_400)
    assert floor.statuses(*sent) == ["cancelled"] * 2
    floor.work()
    assert floor.statuses(*sent) == ["cancelled"] * 2
    assert not floor.ran
    assert called == messages(caplog, "pyramid_jobstate") == []


def test_async_job_stops_and_cleans_up(redis_url, caplog):
    """A cancel stops `async for` at its next step. The generator and the actor may
    report while they clean up, which may take longer than a second.
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
    async def run_marathon(*, job_state: JobState) -> None:
        try:
            async for mile in job_state.track(miles(job_state), unit="miles"):
                assert mile >= 0
        finally:
            await asyncio.sleep(1.2)
            job_state.set_progress_metric("swept", 2)

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "working").cancel()
        state = wait_until(broker, message, "cancelled", "error", "retrying")
    assert (state.status, state.message) == ("cancelled", "swept up")
    assert state.progress_metrics == {"swept": 2}
    assert not [r for r in caplog.records if r.exc_info]


def test_retry_that_was_cancelled_keeps_what_the_first_try_said(floor):
    """It never begins again, and keeps the reports, attempt and start of its run."""
    floor.broker.add_middleware(alarm := Alarm())
    held = floor.begin(max_retries=1, min_backoff=60_000)
    held.job_state.set_progress_metric("attempt", held.job_state.attempt)
    held.end(ValueError("a cramp"))
    first = held.load()
    assert first.status == "retrying" and first.cancel()
    alarm.ring()
    wait_for(floor.is_idle)
    state = held.load()
    assert (state.status, state.error, state.attempt) == ("cancelled", CANCELLED, 1)
    assert state.progress_metrics == {"attempt": 1}
    assert state.started_at == first.started_at
    assert floor.ran == {"": 1}
