"""Hooks: what a class is told of the ends of its jobs, by real workers."""

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState
from tests.jobs import (
    job_actor,
    load,
    store_of,
    working,
)
from tests.support import wait_for

#: What the hooks of TellingMarathon were told: the hook, the uuid, and more.
told: list[tuple[Any, ...]] = []

#: What they raise, by hook, and what they do instead.
acts: dict[str, Callable[[JobState], object]] = {}


class TellingMarathon(JobState):
    """Notes each end."""

    def _note(self, hook: str) -> None:
        told.append((hook, self.uuid, self.status))
        if hook in acts:
            acts[hook](self)

    def on_success(self) -> None:
        self._note("on_success")

    def on_error(self) -> None:
        self._note("on_error")

    def on_cancelled(self) -> None:
        self._note("on_cancelled")


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    told.clear()
    acts.clear()
    yield
    told.clear()
    acts.clear()


def entries(broker: dramatiq.Broker) -> dict[str, list[str]]:
    """Return which ends are to be told, by queue and kind."""
    client: Any = store_of(broker).client
    names = client.smembers("jobstate:untold")
    return {name: client.zrange(f"jobstate:untold:{name}", 0, -1) for name in names}


def test_each_end_is_told(broker: RedisBroker) -> None:
    """A hook sees the job as the store has it, and nothing is left to be told."""

    @job_actor(broker=broker, max_retries=0)
    def run_marathon(end: str, *, job_state: TellingMarathon) -> None:
        job_state.set_progress_metric("miles", 26)
        if end == "error":
            raise ValueError("blisters")

    seen: list[Any] = []
    acts["on_success"] = lambda job: seen.append(job.get_progress_metric("miles"))
    acts["on_error"] = lambda job: seen.append(job.error and job.error.message)
    cancelled = run_marathon.message("late")
    with working(broker):
        broker.enqueue(cancelled, delay=60_000)
        assert load(broker, cancelled).cancel()
        sent = [run_marathon.send(end) for end in ("success", "error")]
        wait_for(lambda: len(told) == 3)
    assert {(hook, uuid) for hook, uuid, _ in told} == {
        ("on_success", sent[0].message_id),
        ("on_error", sent[1].message_id),
        ("on_cancelled", cancelled.message_id),
    }
    assert seen == [26, "blisters"] or seen == ["blisters", 26]
    assert not any(entries(broker).values())
