"""What a store keeps of ends until they are told to the hooks of their classes."""

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import working
from tests.lost import keys_of, take_over
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


def make_desk(store: JobStore) -> tuple[StubBroker, dramatiq.Actor[..., Any]]:
    """Return a broker, and an actor. Its worker looks for ends when it boots, and then
    not for a minute.
    """
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(store, heartbeat=60))

    @dramatiq.actor(broker=broker, job_state=Odd, max_retries=0)
    def work() -> None: ...

    return broker, work


def outbox(store: JobStore) -> list[str]:
    """Return the keys of the sets of ends that are to be told."""
    return [key for key in keys_of(store.client) if ":untold:" in key]


def test_end_is_told_though_the_clock_was_set_back(store: JobStore) -> None:
    """A server has taken over whose clock is an hour behind."""
    broker, work = make_desk(store)
    uuid = work.send().message_id
    assert load_job(store, uuid).cancel()
    (key,) = outbox(store)
    client: Any = store.client
    client.zincrby(key, 3600 * 1_000_000, uuid)
    with working(broker):
        wait_for(lambda: told)
        wait_for(lambda: not outbox(store))
    assert told == [("on_cancelled", uuid)]


def test_outbox_of_another_program(
    store: JobStore, said: Callable[[], list[str]]
) -> None:
    """If another program has taken the keys of the outbox, nothing fails: the worker
    that has written an end tells it, and says once what is wrong with each key.
    """
    broker, work = make_desk(store)
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
    (_, work), (broker, _) = make_desk(store), make_desk(store)
    uuids = [work.send().message_id for _ in range(3)]
    for uuid in uuids:
        assert load_job(store, uuid).cancel()
    take_over(store.client, key_of(store, uuids[0]))
    store.client.hdel(key_of(store, uuids[1]), "status")
    with working(broker):
        wait_for(lambda: told)
    assert told == [("on_cancelled", uuids[2])]
    assert outbox(store) == []
