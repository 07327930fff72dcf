"""Unique jobs in a worker: a message that comes again never makes two of them."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore, NotUnique, rerun
from pyramid_jobstate.testing import away, pass_time
from tests.faulty import FaultyProxy, Moment
from tests.jobs import messages
from tests.support import wait_for
from tests.worker.floors import Floor, Held, evict, records, spoil, standing_still

MakeFloor = Callable[..., Floor]

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
def test_ended_job_does_not_run_while_another_is_under_way(
    floor: Floor, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its worker died before the message was acknowledged, or an operator put it back
    in the queue. Its record stays as it was.
    """
    first = run(floor)
    before = first.load()
    second = press(floor)
    floor.start()
    second.wait()
    again = floor.deliver if how == "redelivered" else floor.broker.enqueue
    again(first.message)
    (said,) = wait_for(lambda: messages(caplog, "pyramid_jobstate"))
    assert said == (
        f"This process no longer records job {first.uuid}: another job with its unique "
        "key is under way."
    )
    wait_for(floor.is_idle_but(1))
    assert floor.ran["unique"] == 2
    after = first.load()
    assert (after.status, after.finished_at) == ("success", before.finished_at)
    assert is_under_way(floor, second.uuid)


@pytest.mark.parametrize("how", ["redelivered", "put back"])
def test_ended_job_runs_again_if_no_other_is_under_way(floor: Floor, how: str) -> None:
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


def test_job_that_is_tried_again_is_under_way(floor: Floor) -> None:
    held = press(floor, max_retries=1, min_backoff=1, max_backoff=1)
    again = floor.hold(held.message)
    floor.start()
    held.wait().end(ValueError("a cramp"))
    again.wait()
    assert again.load().attempt == 2
    assert is_under_way(floor, held.uuid)
    again.end()
    assert again.load().status == "success"
    assert floor.press() != held.uuid


def test_late_run_is_stopped_if_another_job_is_under_way(
    make_floor: MakeFloor, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The store was away when its message came again: it learns of the other job when
    it is back.
    """
    own = JobStore(redis_url)
    floor = make_floor(own)
    first = run(floor)
    second = press(floor)
    before = first.load()
    floor.start()
    second.wait()
    with away(own):
        again = floor.begin(first.message)
    wait_for(
        lambda: any("unique key" in m for m in messages(caplog, "pyramid_jobstate"))
    )
    wait_for(lambda: again.job_state.cancel_requested)
    again.end(lambda job_state: job_state.raise_if_cancelled())
    assert first.load().finished_at == before.finished_at
    assert is_under_way(floor, second.uuid)


# Records that are gone.


def test_lost_record_does_not_make_two_jobs(floor: Floor, client: redis.Redis) -> None:
    """The record was evicted while the message waited, and another job was sent; or it
    has expired, and the message is put back.
    """
    for how in floor.deliver, floor.broker.enqueue:
        client.flushall()
        first = press(floor)
        floor.take(first.message)
        client.delete(f"jobstate:{first.uuid}")
        second = press(floor)
        how(first.message)
        floor.start()
        second.wait()
        wait_for(floor.is_idle_but(1))
        assert floor.store.load(first.uuid) is None
        second.end()
        floor.stop()
        assert second.load().status == "success"


def test_message_without_a_record_takes_its_claim_at_its_start(
    floor: Floor, client: redis.Redis
) -> None:
    """If another job is sent before that, the message is skipped."""
    first = run(floor)
    client.delete(f"jobstate:{first.uuid}")
    again = floor.hold(first.message)
    floor.broker.enqueue(first.message)
    floor.start()
    again.wait()
    assert is_under_way(floor, first.uuid)
    again.end()
    assert again.load().status == "success"
    floor.stop()
    client.flushall()
    floor.broker.enqueue(first.message)
    second = press(floor)
    assert second.uuid != first.uuid
    floor.start()
    second.wait().end()
    wait_for(floor.is_idle)
    assert floor.ran["unique"] == 3


def test_deleted_job_stays_deleted(floor: Floor) -> None:
    """A message that is put back late finds that it was deleted."""
    first = run(floor)
    assert first.load().delete()
    floor.broker.enqueue(first.message, delay=10 * DAY * 1000)
    pass_time(floor.store, 9 * DAY)
    floor.deliver(first.message)
    with floor.working():
        wait_for(floor.is_idle_but(1))
    assert floor.ran["unique"] == 1
    assert floor.store.load(first.uuid) is None


# How long a key is taken.


def test_key_of_a_delayed_job_is_taken_until_it_is_due(floor: Floor) -> None:
    """Also if its message is put back for later."""
    first = floor.press(delay=30 * DAY * 1000)
    pass_time(floor.store, 29 * DAY)
    assert floor.press() == first
    second = run_other(floor)
    floor.broker.enqueue(second.message, delay=30 * DAY * 1000)
    pass_time(floor.store, 29 * DAY)
    assert floor.press("other") == second.uuid


def run_other(floor: Floor) -> Held:
    held = floor.hold_next("unique")
    uuid = floor.press("other")
    (held.message,) = [m for m in floor.waiting() if m.message_id == uuid]
    floor.start()
    held.wait().end()
    floor.stop()
    return held


def test_job_is_found_for_as_long_as_its_record_lives(floor: Floor) -> None:
    """While it is put back, and after its end."""
    held = press(floor, max_retries=1, min_backoff=30 * DAY * 1000, max_backoff=10**12)
    floor.start()
    held.wait().end(ValueError("a cramp"))
    assert held.load().status == "retrying"
    pass_time(floor.store, 5 * DAY)
    assert floor.last() == held.uuid and is_under_way(floor, held.uuid)
    again = floor.begin(held.message)
    again.end()
    pass_time(floor.store, 0.9 * DAY)
    assert floor.last() == held.uuid
    pass_time(floor.store, 0.2 * DAY)
    assert floor.last() is None


@pytest.mark.parametrize("is_taken", [False, True])
def test_lost_claim_is_taken_again(
    make_floor: MakeFloor, store: JobStore, client: redis.Redis, is_taken: bool
) -> None:
    """By the run that is under way, when it renews its place in the lists; from another
    job only once that has ended.
    """
    floor = make_floor(store.replace(active_expire_in=2), heartbeat=0.05, threads=2)
    first = press(floor)
    floor.start()
    first.wait()
    evict(client)
    if is_taken:
        second = floor.hold_next("unique")
        assert floor.press() != first.uuid
        second.wait()
        assert is_under_way(floor, second.uuid)
        second.end()
    wait_for(lambda: floor.last() == first.uuid)
    assert is_under_way(floor, first.uuid)


# Trouble.


def test_foreign_claim_is_its_own_trouble(
    make_floor: MakeFloor, client: redis.Redis
) -> None:
    """A job whose claim another program has written runs, and so do other jobs that are
    written with it. Nobody waits for ever.
    """
    floor = make_floor()
    first = press(floor)
    spoil(client, "hash")
    plain = floor.hold(floor.post("plain"))
    floor.start()
    for held in first, plain:
        held.wait().end()
        assert held.load().status == "success"
    done = []
    thread = threading.Thread(target=lambda: done.append(floor.press()))
    thread.start()
    thread.join(20)
    assert done


def test_garbage_in_a_claim_is_no_obstacle(floor: Floor, client: redis.Redis) -> None:
    """Whatever its fields say, a job can be sent, and is then the only one."""
    run(floor)
    for garbage in "x", str(10**18), "-1", "":
        for key in set(client.keys()) - records(client):
            if client.type(key) == b"hash":
                fields: Any = client.hkeys(key)
                client.hset(key, mapping=dict.fromkeys(fields, garbage))
        taken = press(floor)
        floor.start()
        taken.wait()
        assert is_under_way(floor, taken.uuid)
        taken.end()
        floor.stop()


def test_claims_that_a_full_server_refuses_are_taken_later(
    make_floor: MakeFloor, client: redis.Redis
) -> None:
    """A full server refuses the start of an ended job that comes again, which takes its
    key as soon as there is room.
    """
    floor = make_floor()
    first = run(floor)
    again = floor.hold(first.message)
    client.config_set("maxmemory", 1)
    try:
        floor.deliver(first.message)
        floor.start()
        again.wait()
        assert again.load().status == "success"
    finally:
        client.config_set("maxmemory", 0)
    wait_for(lambda: again.reads("working"))
    assert is_under_way(floor, first.uuid)
    again.end()


def test_store_that_goes_away_is_not_asked_for_each_claim(
    make_floor: MakeFloor, proxy: FaultyProxy
) -> None:
    """Several unique jobs that come again while it is away do not each wait for it."""
    floor = make_floor(JobStore(proxy.url), threads=6, interval=3600)
    uuids = [floor.press(f"key {number}") for number in range(5)]
    sent = floor.waiting()
    floor.work()
    assert [m.message_id for m in sent] == uuids
    proxy.judge = lambda request: "refuse"
    runs = [floor.hold(message) for message in sent]
    for message in sent:
        floor.deliver(message)
    floor.start()
    for held in runs:
        held.wait()
    refused = proxy.faults["refuse"]
    assert refused < 40
    proxy.judge = lambda request: "pass"
    for held in runs:
        held.end()
    wait_for(lambda: all(held.load().attempt == 1 for held in runs))


def test_key_of_a_sender_that_hangs_is_free(floor: Floor) -> None:
    """Its job is cancelled, and its message does nothing if it comes after all."""
    pressed: list[str] = []
    with standing_still(floor, lambda: pressed.append(floor.press())):
        (waiting,) = floor.store.list(owner="alice").items
        pass_time(floor.store, 16)
        assert floor.load(waiting.uuid).status == "stalled"
        second = floor.press()
        assert second != waiting.uuid
        assert floor.load(waiting.uuid).status == "cancelled"
    assert pressed == [waiting.uuid]
    floor.work()
    assert floor.ran == {"unique": 1}
    assert floor.load(second).status == "success"


def test_two_requests_at_once_send_one_job(floor: Floor) -> None:
    """The uuid of the other leads to it, and a message of that runs nothing."""
    requests = [floor.request(), floor.request()]
    jobs = []
    for request in requests:
        request.tm.begin()
        jobs.append(
            request.job_states.send_with_options(floor.errand, ("x",), unique="nightly")
        )
    for request in requests:
        request.tm.commit()
    winner, loser = (job.uuid for job in jobs)
    assert len(floor.waiting()) == 1
    alias = floor.waiting()[0].copy(message_id=loser)
    floor.deliver(alias)
    floor.work()
    assert floor.ran == {"x": 1}
    found = floor.load(loser)
    assert (found.uuid, found.status) == (loser, "success")
    assert floor.last() == winner


# Jobs that run again by request.


def failed(floor: Floor) -> Held:
    """Send a unique job, and have it fail."""
    held = press(floor)
    floor.start()
    held.wait().end(ValueError("a cramp"))
    floor.stop()
    return held


@pytest.mark.parametrize("is_kept", [True, False])
def test_rerun_that_was_never_sent_gives_way(
    floor: Floor, client: redis.Redis, is_kept: bool
) -> None:
    """Its operator has died. The press that takes its place leaves it as it failed, or
    cancelled if what was kept of the failure is gone.
    """
    first = failed(floor)
    before = first.load()
    with standing_still(floor, lambda: rerun(floor.store, floor.broker, first.uuid)):
        assert first.load().status == "queued"
        pass_time(floor.store, 20)
        assert first.load().status == "stalled"
        if not is_kept:
            delete_kept(client, first.uuid)
        second = press(floor)
        after = first.load()
        if not is_kept:
            assert after.status == "cancelled"
            return
        assert (after.status, after.error) == ("error", before.error)
        listed = floor.store.list(status="error").items
        assert [job.uuid for job in listed] == [first.uuid]
    floor.start()
    second.wait().end()
    assert second.load().status == "success"
    assert rerun(floor.store, floor.broker, first.uuid)
    wait_for(lambda: first.load().status == "success")


def delete_kept(client: redis.Redis, uuid: str) -> None:
    """Have a full server drop what it holds of a job beside the job itself."""
    for key in client.keys(f"*{uuid}*"):
        if key not in records(client):
            client.delete(key)


def test_press_while_an_ended_job_is_put_back(
    make_floor: MakeFloor, proxy: FaultyProxy
) -> None:
    """Wherever a press comes between two commands of an operator who runs a failed job
    again, one job of the key is sent, and the operator is told whether it is theirs.
    """
    operator = JobStore(proxy.url)
    floor = make_floor(JobStore(proxy.url))
    for number in itertools.count():
        first = failed(floor)
        pressed: list[str] = []
        begin = functools.partial(begin_press, floor, pressed)
        proxy.judge = moment = Moment(number, begin)
        try:
            is_sent = rerun(operator, floor.broker, first.uuid)
        except NotUnique:
            is_sent = False
        proxy.judge = lambda request: "pass"
        if moment.asked <= number:
            break
        wait_for(functools.partial(bool, pressed))
        (sent,) = floor.waiting()
        assert (sent.message_id == first.uuid) is is_sent, number
        floor.work()
    assert number > 5


def begin_press(floor: Floor, pressed: list[str]) -> None:
    """Begin a press, and wait for its end for a moment."""
    press = threading.Thread(target=lambda: pressed.append(floor.press()))
    press.start()
    press.join(0.1)


def test_odd_option_is_ignored(floor: Floor) -> None:
    """A message whose key is none runs as any other."""
    sent = [floor.post("a", job_unique=odd) for odd in (7, "", None)]
    floor.work()
    assert floor.statuses(*sent) == ["success"] * 3
