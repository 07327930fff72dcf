"""Stores that refuse: keys of another program, full servers, missing rights."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from pyramid_jobstate import JobStore
from tests.jobs import messages
from tests.support import wait_for
from tests.worker.floors import Floor, spoil

MakeFloor = Callable[..., Floor]

LOGGER = "pyramid_jobstate"


@pytest.fixture
def named(client: redis.Redis, redis_url: str) -> Iterator[str]:
    """The URL of a user of the server who may do everything at first."""
    client.acl_setuser(
        "worker", enabled=True, passwords=["+word"], categories=["+@all"], keys=["*"]
    )
    yield redis_url.replace("redis://", "redis://worker:word@")
    client.acl_deluser("worker")


@contextlib.contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """Have the server refuse whatever takes memory."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def test_poisoned_record_does_not_hold_up_the_others(
    make_floor: MakeFloor, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose key holds text of another program is given up with a warning, and so
    is its next run. The other jobs are recorded as usual, and their ends waited for.
    """
    floor = make_floor()
    held, poisoned = floor.begin(), floor.begin()
    client.set(f"jobstate:{poisoned.uuid}", "a string")
    poisoned.job_state.set_message("one")
    wait_for(lambda: messages(caplog, LOGGER))
    assert not poisoned.job_state.flush(10)
    poisoned.end()
    floor.begin(poisoned.message).end()
    held.job_state.set_message("one")
    held.end()
    assert (held.load().status, held.load().message) == ("success", "one")
    first, second, *_ = messages(caplog, LOGGER)
    assert first.startswith(f"This process no longer records job {poisoned.uuid}: ")
    assert "WRONGTYPE" in first and "WRONGTYPE" in second


def test_poisoned_lists_hold_up_no_job(
    make_floor: MakeFloor, client: redis.Redis
) -> None:
    """Keys that hold text of another program in place of a list cost the places in it,
    but no report.
    """
    floor = make_floor()
    floor.begin(job_owner="alice")
    spoil(client, "zset")
    held = floor.begin(job_owner="alice")
    held.job_state.set_message("one")
    held.end()
    assert (held.load().status, held.load().message) == ("success", "one")


def test_record_with_holes_is_written(floor: Floor, client: redis.Redis) -> None:
    """A record that lacks what another version did not write can be updated."""
    message = floor.message()
    key = f"jobstate:{message.message_id}"
    client.hset(key, mapping={"status": "working", "run": "other"})
    held = floor.begin(message)
    client.hdel(key, "seq")
    held.job_state.set_message("one")
    wait_for(lambda: held.load().message == "one")
    held.end()
    assert held.load().status == "success"


def test_full_server_is_told_later(
    make_floor: MakeFloor, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """What a full server refuses is written when it has room again."""
    floor = make_floor()
    held = floor.begin()
    with full(client):
        held.job_state.set_progress_metric("miles", 3)
        assert not held.job_state.flush(0.1)
        held.end()
    wait_for(lambda: held.reads("success"))
    assert held.load().progress_metrics == {"miles": 3}
    (said,) = messages(caplog, LOGGER)
    assert "does not accept updates" in said and "OutOfMemoryError" in said


def test_refusal_of_one_job_is_told_and_tried_again(
    make_floor: MakeFloor, client: redis.Redis, named: str
) -> None:
    """If the store refuses the reports of one job alone, the others are stored, and the
    ends of both in the end.
    """
    floor = make_floor(JobStore(named))
    ids = [digit + str(uuid.uuid4())[1:] for digit in "ab"]
    jobs = [floor.begin(floor.message().copy(message_id=each)) for each in ids]
    # Not those whose uuids begin with an "a".
    some = ["jobstate:[^a]*", "{*"]
    client.acl_setuser("worker", enabled=True, reset_keys=True, keys=some)
    for held in jobs:
        held.job_state.set_message("on we go")
    assert jobs[1].job_state.flush(10)
    assert not jobs[0].job_state.flush(0.1)
    assert [held.load().message for held in jobs] == [None, "on we go"]
    client.acl_setuser("worker", enabled=True, keys=["*"])
    for held in jobs:
        held.job_state.set_message("last")
        held.end()
    wait_for(lambda: all(held.reads("success") for held in jobs))
    assert [held.load().message for held in jobs] == ["last"] * 2


def test_cancel_is_heard_though_another_program_has_written_its_list(
    make_floor: MakeFloor, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """If cancels cannot be announced, a beat brings them."""
    floor = make_floor(heartbeat=0.05)
    other, held = floor.begin(), floor.begin()
    assert other.load().cancel()
    spoil(client, "zset")
    wait_for(lambda: messages(caplog, LOGGER))
    state = held.load()
    assert state.cancel()
    wait_for(lambda: held.job_state.cancel_requested)
    held.end(lambda job_state: job_state.raise_if_cancelled())
    assert held.load().status == "cancelled"
    said = [m for m in messages(caplog, LOGGER) if "cancels" in m]
    assert len(said) == 1 and "WRONGTYPE" in said[0]


def test_cancel_is_heard_though_the_store_refuses_its_list(
    make_floor: MakeFloor,
    client: redis.Redis,
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If a worker may not read which jobs were cancelled, the same holds, and it is
    logged once.
    """
    floor = make_floor(JobStore(named), heartbeat=0.05)
    held = floor.begin()
    client.acl_setuser("worker", enabled=True, commands=["-zrangebyscore", "-zrange"])
    (said,) = wait_for(lambda: messages(caplog, LOGGER))
    assert "refuses to list cancels" in said and "next heartbeat" in said
    assert held.load().cancel()
    wait_for(lambda: held.job_state.cancel_requested)
    held.end(lambda job_state: job_state.raise_if_cancelled())
    assert held.load().status == "cancelled"
    assert messages(caplog, LOGGER) == [said]
