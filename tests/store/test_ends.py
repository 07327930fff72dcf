"""What a store keeps of ends until they are told to the hooks of their classes."""

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import working
from tests.lost import keys_of, keys_without_end, take_over
from tests.support import key_of, load_job, wait_for

#: The hooks that have run, and the uuids of their jobs.
told: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    told.clear()
    yield
    told.clear()


class Odd(JobState):
    """A kind that nobody would choose."""

    kind = "a}:%\"' \\{é"

    def on_success(self) -> None:
        told.append(("on_success", self.uuid))

    def on_cancelled(self) -> None:
        told.append(("on_cancelled", self.uuid))


class Worried(JobState):
    """Is told of failures alone."""

    def on_error(self) -> None:
        told.append(("on_error", self.uuid))


def make_desk(
    store: JobStore, cls: type[JobState], hooks_queue: str | None = None
) -> tuple[StubBroker, dramatiq.Actor[..., Any]]:
    """Return a broker, and an actor that fails if it is told to. Its worker looks for
    ends when it boots, and then not for a minute.
    """
    broker = StubBroker()
    broker.add_middleware(
        JobStateMiddleware(store, heartbeat=60, hooks_queue=hooks_queue)
    )

    @dramatiq.actor(broker=broker, job_state=cls, max_retries=0)
    def work(end: str = "success") -> None:
        if end != "success":
            raise ValueError("A cramp.")

    return broker, work


def outbox(store: JobStore) -> list[str]:
    """Return the keys of the sets of ends that are to be told."""
    return [key for key in keys_of(store.client) if ":untold:" in key]


def test_kind_may_have_any_name(store: JobStore) -> None:
    """The ends of its jobs are told, by the worker that has written them, and by one
    that finds them.
    """
    broker, work = make_desk(store, Odd)
    uuids = [work.send().message_id for _ in range(2)]
    assert load_job(store, uuids[0]).cancel()
    assert len(outbox(store)) == 1
    with working(broker):
        wait_for(lambda: len(told) == 2)
    assert sorted(told) == [("on_cancelled", uuids[0]), ("on_success", uuids[1])]
    assert outbox(store) == []


def test_end_is_told_though_the_clock_was_set_back(store: JobStore) -> None:
    """A server has taken over whose clock is an hour behind."""
    broker, work = make_desk(store, Odd)
    uuid = work.send().message_id
    assert load_job(store, uuid).cancel()
    (key,) = outbox(store)
    client: Any = store.client
    client.zincrby(key, 3600 * 1_000_000, uuid)
    with working(broker):
        wait_for(lambda: told)
        wait_for(lambda: not outbox(store))
    assert told == [("on_cancelled", uuid)]


def test_end_without_a_hook_is_not_kept(store: JobStore) -> None:
    """A job of a class with one hook that ends in another way enters nothing."""
    broker, work = make_desk(store, Worried)
    waiting = work.send().message_id
    assert load_job(store, waiting).cancel()
    assert outbox(store) == []
    with working(broker):
        failed = work.send("error").message_id
        wait_for(lambda: told)
        assert work.send().message_id
        broker.join("default", fail_fast=False)
    assert told == [("on_error", failed)]
    assert outbox(store) == []


def test_outbox_of_another_program(
    store: JobStore, said: Callable[[], list[str]]
) -> None:
    """If another program has taken the keys of the outbox, nothing fails: the worker
    that has written an end tells it, and says once what is wrong with each key.
    """
    broker, work = make_desk(store, Odd)
    work.send()
    assert load_job(store, work.send().message_id).cancel()
    (entries,) = outbox(store)
    take_over(store.client, entries, "jobstate:untold")
    with working(broker):
        wait_for(lambda: len(told) == 1)
        work.send()
        wait_for(lambda: len(told) == 2)
    assert {hook for hook, _ in told} == {"on_success"}
    lines = [line for line in said() if "Another program" in line]
    assert sorted("jobstate:untold:" in line for line in lines) == [False, True]
    job = load_job(store, work.send().message_id)
    assert job.cancel()
    assert store.delete(job.uuid)
    assert said() == []


def test_record_of_another_program(store: JobStore) -> None:
    """What another program has made of ended jobs holds up no others."""
    (_, work), (broker, _) = make_desk(store, Odd), make_desk(store, Odd)
    uuids = [work.send().message_id for _ in range(3)]
    for uuid in uuids:
        assert load_job(store, uuid).cancel()
    take_over(store.client, key_of(store, uuids[0]))
    store.client.hdel(key_of(store, uuids[1]), "status")
    with working(broker):
        wait_for(lambda: told)
    assert told == [("on_cancelled", uuids[2])]
    assert outbox(store) == []


def test_record_keeps_the_hooks_of_its_sender(store: JobStore) -> None:
    """A job is told as its sender has written it, in whichever queue the worker would
    tell others.
    """
    _, work = make_desk(store, Odd, "first")
    message = work.message()
    work.broker.enqueue(message)
    newer, _ = make_desk(store, Odd, "second")
    newer.declare_queue("first")
    newer.enqueue(message)
    with working(newer):
        wait_for(lambda: told)
        newer.join("first")
        newer.join("second")
    assert told == [("on_success", message.message_id)]
    assert outbox(store) == keys_without_end(store.client) == []
