"""Runs that are late: another has begun, or the job was cancelled meanwhile."""

import functools
import logging
import subprocess
import sys
import threading
from typing import Any
from unittest import mock

import pytest
from dramatiq import Message, pipeline
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Interrupt
from dramatiq.middleware.threading import raise_thread_exception

from pyramid_jobstate import JobError, JobStore
from pyramid_jobstate.testing import away, pass_time
from tests.support import ROOT, unmeasured, wait_for
from tests.worker.floors import Ear, Floor, Held

# A newer run.


@pytest.mark.promise("new-run-starts-clean")
@pytest.mark.promise("newest-run-writes")
def test_older_run_changes_nothing(make_floor, logged):
    """It logs one warning. That it failed is kept among the tries of its job. The new
    run shows nothing of it.
    """
    floor = make_floor(heartbeat=0.05)
    old = floor.begin(max_retries=1, min_backoff=3_600_000)
    old.job_state.set_progress_metric("miles", 1)
    old.job_state.set_progress(1, 2, message="old")
    assert old.job_state.flush(10)
    new = make_floor().begin(old.message)
    state = new.load()
    assert (state.progress_metrics, state.progress, state.message) == ({}, None, None)
    new.job_state.set_message("new")
    assert new.job_state.flush(10)
    (said,) = wait_for(lambda: logged())
    assert said == (
        f"This process no longer records job {old.uuid}: a newer run of it has begun."
    )
    old.job_state.set_message("old")
    assert not old.job_state.flush(10)
    old.end(ValueError("a cramp"))
    (each,) = tries(old)
    assert each.error == JobError("ValueError", "a cramp")
    assert (new.load().status, new.load().message) == ("working", "new")
    new.end()
    assert new.load().status == "success"
    assert len(logged()) == 1


def test_flush_of_a_run_that_was_replaced_is_false(make_floor, slow, relay):
    """Even if the run learns of the other one only then."""
    old = make_floor(slow).begin()
    with relay.frozen():
        new = make_floor().begin(old.message)
        old.job_state.set_message("old")
        flushed: list[bool] = []
        flush = functools.partial(old.job_state.flush, 30)
        thread = threading.Thread(target=lambda: flushed.append(flush()))
        thread.start()
    thread.join()
    assert flushed == [False]
    assert new.load().message is None


def tries(held: Held) -> list[Any]:
    return list(held.floor.store.failures(held.uuid).tries)


def test_failure_that_comes_with_a_late_report_is_among_the_tries(
    make_floor, slow, relay, logged
):
    """A run fails while a report of it is on its way, which a retry has overtaken."""
    old = make_floor(slow).begin(max_retries=1, min_backoff=3_600_000)
    with relay.frozen():
        old.job_state.set_message("old")
        assert not old.job_state.flush(0.1)
        new = make_floor().begin(old.message)
        old.leave(ValueError("a cramp"))
        # It waits for the store, in vain.
        assert not old.settled.wait(0.2)
    assert old.settled.wait(10)
    (each,) = wait_for(lambda: tries(new))
    assert each.error == JobError("ValueError", "a cramp")
    assert (new.load().status, new.load().message) == ("working", None)
    assert not logged(logging.ERROR)


def test_late_deliveries_leave_the_later_steps_alone(make_floor):
    """A delivery that fails after a newer run has begun, or that AgeLimit drops while
    another runs, ends neither that run nor the steps of its pipeline.
    """
    floor, other = make_floor(), make_floor()
    steps = [floor.message(name, pipe_ignore=True) for name in "ast"]
    request = floor.request()
    with request.tm:
        request.job_states.send_message(pipeline(steps, broker=floor.broker))
    (first,) = floor.waiting()
    old = floor.hold(first)
    floor.start()
    new = other.begin(old.wait().message)
    old.end(ValueError("late"))
    floor.deliver(first.copy(options={"max_age": 1}, message_timestamp=1))
    wait_for(floor.is_idle)
    assert floor.statuses(*steps) == ["working", "queued", "queued"]
    new.end()
    wait_for(lambda: floor.statuses(*steps) == ["success"] * 3)


def test_redelivered_job_that_was_cancelled_is_skipped(make_floor):
    """It was cancelled while a worker ran it, from which it is then taken away."""
    floor, other = make_floor(interval=60), make_floor()
    held = floor.begin()
    began = held.load()
    assert began.cancel()
    assert held.load().status == "cancelling"
    other.deliver(held.message)
    other.work()
    assert held.load().status == "cancelled" and not other.ran
    assert (held.load().attempt, held.load().started_at) == (1, began.started_at)


def test_start_that_is_written_late_does_not_take_over(make_floor, own, logged):
    """A run that began without the store, before another one, does not own the job: its
    failure begins nothing, even if the job is put back in the queue meanwhile.
    """
    floor, other = make_floor(own), make_floor()
    message = floor.message()
    make_waiting(floor, message)
    with away(own):
        old = floor.begin(message)
        new = other.begin(message)
    wait_for(lambda: any(old.uuid in m for m in logged()))
    assert not old.job_state.flush(10)
    new.end()
    assert new.load().status == "success"
    other.stop()
    other.broker.enqueue(message)
    assert new.load().status == "queued"
    old.end(ValueError("late"))
    assert new.load().status == "queued"


# A cancel.


def test_silent_job_hears_of_its_cancel_at_once(make_floor, proxy):
    """It is announced, long before the next beat. Other jobs are left alone."""
    floor = make_floor(JobStore(proxy.url), heartbeat=3600)
    silent, other = floor.begin(), floor.begin()
    ear = Ear(proxy)
    assert silent.load().cancel()
    wait_for(lambda: ear.about(silent.uuid))
    assert not ear.about(other.uuid)
    # What is written later is read later.
    assert other.job_state.flush(10)
    assert silent.job_state.cancel_requested
    assert not other.job_state.cancel_requested


@pytest.mark.promise("stalled-job-can-be-cancelled")
def test_run_that_was_cancelled_while_it_was_silent_is_told(
    make_floor, slow, relay, logged
):
    """It stays cancelled even if it returns, which is logged."""
    floor = make_floor(slow, heartbeat=0.05)
    held = floor.begin()
    with relay.frozen():
        pass_time(floor.store, 16)
        assert held.reads("stalled") and held.load().cancel()
        assert held.reads("cancelled")
    wait_for(lambda: held.job_state.cancel_requested)
    held.end()
    assert held.load().status == "cancelled"
    assert logged() == [
        f"Job {held.uuid} returned after it was cancelled while its worker was silent: "
        "it stays cancelled."
    ]


@pytest.mark.parametrize("is_over", [False, True])
def test_cancelled_job_that_began_without_the_store(
    make_floor, slow, relay, logged, is_over
):
    """It hears when that is back, and stays cancelled, logged once, if it succeeded."""
    floor = make_floor(slow)
    floor.start()
    message = floor.message()
    assert make_waiting(floor, message).cancel()
    with relay.frozen():
        held = floor.begin(message)
        if is_over:
            held.end()
    if not is_over:
        wait_for(lambda: held.job_state.cancel_requested)
        held.end()
    (said,) = wait_for(lambda: [m for m in logged() if "returned after" in m])
    assert held.uuid in said
    assert held.load().status == "cancelled"


def make_waiting(floor: Floor, message: Message[Any]) -> Any:
    """Record the job of a message that is delivered later."""
    floor.broker.emit_before("enqueue", message, None)
    floor.broker.emit_after("enqueue", message, None)
    return floor.load(message.message_id)


# Interrupts, threads that die, and faults of others.


def test_worker_survives_the_unforeseen(make_floor, logged):
    """If logging itself fails, for one, that is logged, and reports go on."""
    floor = make_floor(heartbeat=0.05)
    other = floor.begin()

    error = ZeroDivisionError("in a handler")
    logger = logging.getLogger("pyramid_jobstate")
    with mock.patch.object(logger, "warning", side_effect=error):
        old = floor.begin()
        make_floor().begin(old.message)
        wait_for(lambda: logged(logging.ERROR))
    assert "Job states could not be written." in logged()
    other.job_state.set_message("on we go")
    assert other.job_state.flush(10)
    other.end()
    assert other.load().status == "success"


# It ends Dramatiq's thread.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_interrupt_at_the_end_loses_no_end(make_floor, slow, relay):
    """A job's end is written even if its thread is interrupted while waiting for it."""
    held = make_floor(slow).begin()
    threads: list[int] = []
    with relay.frozen():
        held.leave(lambda job_state: threads.append(threading.get_ident()))
        assert not held.settled.wait(0.2)
        raise_thread_exception(threads[0], Interrupt)
    wait_for(lambda: held.reads("success"))


def test_job_whose_thread_is_gone_stalls(make_floor, logged):
    """An interrupt at the wrong time kills it. Nothing that the job set is written."""
    floor = make_floor(heartbeat=0.05, interval=0.05)
    gone, alive = floor.message("gone"), floor.begin()
    floor.scripts["gone"] = lambda job_state: job_state.set_message("last words")

    def die() -> None:
        floor.broker.emit_before("process_message", MessageProxy(gone))
        floor.errand("gone")

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    (said,) = wait_for(lambda: logged())
    assert said == (
        f"This process no longer records job {gone.message_id}: the thread that ran it "
        "is gone."
    )
    pass_time(floor.store, 16)
    wait_for(lambda: alive.reads("working"))
    assert floor.load(gone.message_id).status == "stalled"


@pytest.mark.system
@pytest.mark.parametrize("rounds", [80, pytest.param(400, marks=pytest.mark.long)])
def test_interrupts_at_any_time_do_no_harm(redis_url, rounds):
    """The worker goes on with other jobs, and keeps nothing of the interrupted runs."""
    command = [sys.executable, "-m", "tests.interrupts", redis_url, str(rounds)]
    subprocess.run(command, cwd=ROOT, env=unmeasured(), check=True, timeout=100)
