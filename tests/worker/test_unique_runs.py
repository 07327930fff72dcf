"""Unique jobs in a worker: a message that comes again never makes two of them."""

from typing import Any

import pytest
from dramatiq.errors import Retry

from pyramid_jobstate.testing import away, pass_time
from tests.lost import keys_without_end
from tests.support import wait_for
from tests.worker.floors import Floor, Held, records

#: Seconds.
DAY = 24 * 3600


def press(floor: Floor, **options: Any) -> Held:
    """Send a unique job, and hold its run once there is a worker."""
    held = floor.hold_next("unique")
    uuid = floor.press(**options)
    (held.message,) = [m for m in floor.waiting() if m.message_id == uuid]
    return held


def run(floor: Floor) -> Held:
    """Send a unique job, and run it to its end."""
    held = press(floor)
    floor.start()
    held.wait().end()
    floor.stop()
    return held


def is_under_way(floor: Floor, uuid: str) -> bool:
    """Return whether a second press gets a job."""
    return floor.press() == uuid


@pytest.mark.parametrize("how", ["redelivered", "put back"])
def test_ended_job_does_not_run_while_another_is_under_way(floor, how, logged):
    """Its message is redelivered, or put back by an operator. Its record stays."""
    first = run(floor)
    before = first.load()
    second = press(floor)
    floor.start()
    second.wait()
    again = floor.deliver if how == "redelivered" else floor.broker.enqueue
    again(first.message)
    (said,) = wait_for(lambda: logged())
    assert said == (
        f"This process no longer records job {first.uuid}: another job with its unique "
        "key is under way."
    )
    wait_for(lambda: floor.is_idle(but=1))
    assert floor.ran["unique"] == 2
    after = first.load()
    assert (after.status, after.finished_at) == ("success", before.finished_at)
    assert is_under_way(floor, second.uuid)


@pytest.mark.parametrize("how", ["redelivered", "put back"])
def test_ended_job_runs_again_if_no_other_is_under_way(floor, how):
    """And is under way from then on, also if another one has ended meanwhile."""
    first, second = run(floor), run(floor)
    assert first.uuid != second.uuid
    again = floor.hold(first.message)
    deliver = floor.deliver if how == "redelivered" else floor.broker.enqueue
    deliver(first.message)
    floor.start()
    again.wait()
    assert is_under_way(floor, first.uuid)
    assert again.load().status == "working"
    again.end()
    assert again.load().status == "success"
    assert floor.press() not in (first.uuid, second.uuid)


def test_job_that_is_tried_again_is_under_way(make_floor):
    """From a failed try to the end of the next one, and while its run is stalled, since
    Dramatiq delivers its message again.
    """
    floor = make_floor(heartbeat=3600)
    held = press(floor, max_retries=1, min_backoff=1, max_backoff=1)
    again = floor.hold(held.message)
    floor.start()
    held.wait()
    pass_time(floor.store, 16)
    assert held.reads("stalled")
    assert is_under_way(floor, held.uuid)
    held.end(ValueError("a cramp"))
    again.wait()
    assert again.load().attempt == 2
    assert is_under_way(floor, held.uuid)
    again.end()
    assert again.load().status == "success"
    assert floor.press() != held.uuid


def test_late_run_is_stopped_if_another_job_is_under_way(make_floor, own, logged):
    """The store was away when its message came: it is told when that is back."""
    floor = make_floor(own)
    first = run(floor)
    second = press(floor)
    before = first.load()
    floor.start()
    second.wait()
    with away(own):
        again = floor.begin(first.message)
    wait_for(lambda: any("unique key" in line for line in logged()))
    wait_for(lambda: again.job_state.cancel_requested)
    again.end(lambda job_state: job_state.raise_if_cancelled())
    assert first.load().finished_at == before.finished_at
    assert is_under_way(floor, second.uuid)


def test_lost_record_does_not_make_two_jobs(floor, client):
    """It is evicted while the message waits, or expires before that is put back."""
    for how in floor.deliver, floor.broker.enqueue:
        client.flushall()
        first = press(floor)
        floor.take(first.message)
        client.delete(f"jobstate:{first.uuid}")
        second = press(floor)
        how(first.message)
        floor.start()
        second.wait()
        wait_for(lambda: floor.is_idle(but=1))
        assert floor.store.load(first.uuid) is None
        second.end()
        floor.stop()
        assert second.load().status == "success"


def test_job_is_found_for_as_long_as_its_record_lives(floor):
    """While it is put back, and after its end."""
    held = press(floor, max_retries=1)
    floor.start()
    held.wait().end(Retry("Later.", delay=30 * DAY * 1000))
    assert held.load().status == "retrying"
    pass_time(floor.store, 29 * DAY)
    assert keys_without_end(floor.store.client) == []
    assert floor.last() == held.uuid and is_under_way(floor, held.uuid)
    again = floor.begin(held.message)
    again.end()
    pass_time(floor.store, 0.9 * DAY)
    assert floor.last() == held.uuid
    pass_time(floor.store, 0.2 * DAY)
    assert floor.last() is None


def test_lost_claim_is_taken_again(make_floor, store, client):
    """By the run that is under way, when it renews its place in the lists, also after
    another job that took it meanwhile.
    """
    floor = make_floor(store.replace(active_expire_in=2), heartbeat=0.05)
    first = press(floor)
    floor.start()
    first.wait()

    def lose() -> bool:
        # A full server drops all that it holds beside the jobs themselves.
        client.delete(*set(client.keys()) - records(client))
        return True

    def take() -> bool:
        return lose() and floor.press() != first.uuid

    for change in lose, take:
        wait_for(change)
        wait_for(lambda: floor.last() == first.uuid)
        assert is_under_way(floor, first.uuid)


def test_stalled_run_is_under_way(make_floor):
    """Dramatiq delivers its message again."""
    floor = make_floor(heartbeat=3600)
    held = press(floor)
    floor.start()
    held.wait()
    pass_time(floor.store, 16)
    assert held.reads("stalled")
    assert is_under_way(floor, held.uuid)
