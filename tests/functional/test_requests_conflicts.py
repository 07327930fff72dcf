"""Jobs with a request whose transactions conflict, on real databases."""

import threading
import time
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import Middleware
from pyramid.request import Request

from pyramid_jobstate import JobState
from tests.counters import SQL, Database, Zodb, make_app
from tests.jobs import job_actor, make_broker, wait_until, working

#: The class of the conflicts in each database.
CONFLICTS: dict[type[Database], str] = {
    SQL: "sqlalchemy.orm.exc.StaleDataError",
    Zodb: "ZODB.POSException.ConflictError",
}


class Delays(Middleware):
    """Collects the delays with which each message has been sent, in milliseconds."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        # A delayed message is enqueued again, without a delay, when it is due.
        if delay is not None:
            self.of.setdefault(message.message_id, []).append(delay)


class Scene:
    """An application with a database, and its broker.

    Attributes:
      seen: What each run of a job has seen at its start: the attempt, that of
        pyramid_retry, and whether the attempt before has left its metric.
    """

    def __init__(self, redis_url: str, database: Database, manager: str) -> None:
        self.delays = Delays()
        self.broker: RedisBroker = make_broker(redis_url, others=(self.delays,))
        self.database = database
        self.config = make_app(self.broker, redis_url, database, manager)
        self.seen: list[tuple[int, int, float]] = []

    @property
    def conflict(self) -> str:
        """The name of the class of its conflicts."""
        return CONFLICTS[type(self.database)]

    def increment_actor(self, conflicts: int, **options: Any) -> dramatiq.Actor:
        """Declare an actor that increments the counter. At its first attempts another
        transaction does so, too.
        """

        @job_actor(broker=self.broker, **options)
        def increment(*, request: Request, job_state: Any) -> None:
            attempt = job_state.attempt
            counter = request.root["counter"]
            tried = request.environ["retry.attempt"]
            self.seen.append((attempt, tried, time.monotonic()))
            job_state.set_progress_metric(f"attempt{attempt}", True)
            if attempt <= conflicts:
                self.database.interfere()
            counter.value += 1

        return increment

    def run(self, actor: dramatiq.Actor, *statuses: str) -> JobState:
        """Run a job until it reaches one of the statuses, and return it."""
        message = actor.send()
        with working(self.broker, threads=1):
            return wait_until(self.broker, message, *statuses)


@pytest.fixture
def scene(redis_url: str, database: Database, manager: str) -> Scene:
    """An application for each database and each manager."""
    return Scene(redis_url, database, manager)


def test_every_success_is_counted(scene: Scene) -> None:
    """Four threads increment one counter: transactions conflict, every job succeeds in
    the end, and the counter is their number.
    """
    meeting = threading.Barrier(4)

    @job_actor(broker=scene.broker, min_backoff=20, max_backoff=200)
    def increment(*, request: Request, job_state: Any) -> None:
        assert request.environ["tm.active"] is True
        counter = request.root["counter"]
        value = counter.value
        if job_state.attempt == 1:
            # The transactions of four jobs overlap.
            meeting.wait(20)
        counter.value = value + 1
        scene.database.mark(request, job_state.uuid)

    sent = [increment.send() for _ in range(24)]
    with working(scene.broker, threads=4):
        ended = [wait_until(scene.broker, m, "success", "error") for m in sent]

    assert [state.status for state in ended] == ["success"] * 24
    counter, marks = scene.database.read()
    assert counter == 24
    assert sorted(marks) == sorted(state.uuid for state in ended)
    # Of four that overlap, one can commit.
    assert sum(state.attempt > 1 for state in ended) >= 3 * 24 // 4


def test_conflict_is_tried_again_at_once_and_later_after_a_pause(scene: Scene) -> None:
    """A conflict is a real attempt, whose metrics are cleared. The next follows at once
    while pyramid_retry would try again, and then as Dramatiq retries.
    """
    increment = scene.increment_actor(4, min_backoff=20, max_backoff=200)

    state = scene.run(increment, "success", "error")

    assert (state.status, state.attempt) == ("success", 5)
    assert [seen[:2] for seen in scene.seen] == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)]
    assert state.progress_metrics == {"attempt5": True}
    first, second, *later = scene.delays.of[state.uuid]
    assert (first, second) == (0, 0)
    assert len(later) == 2 and all(delay >= 20 for delay in later)
    assert scene.database.counter == 5


def test_max_retries_hold_for_conflicts(scene: Scene) -> None:
    """A job gives up after `max_retries`, also while pyramid_retry would try again. Its
    error is the conflict.
    """
    increment = scene.increment_actor(9, max_retries=1)

    state = scene.run(increment, "success", "error")

    assert (state.status, state.attempt, len(scene.seen)) == ("error", 2, 2)
    assert state.error is not None and state.error.type == scene.conflict
    # The other transactions' increments.
    assert scene.database.counter == 2


def test_retry_when_sees_the_conflict(scene: Scene) -> None:
    """The predicate `retry_when` receives a Retry whose cause is the conflict and, when
    pyramid_retry would give up, the conflict itself.
    """
    asked: list[tuple[int, BaseException]] = []

    def retry_when(retries: int, exception: BaseException) -> bool:
        asked.append((retries, exception))
        return retries < 2

    increment = scene.increment_actor(9, retry_when=retry_when)

    state = scene.run(increment, "success", "error")

    assert (state.status, state.attempt) == ("error", 3)
    assert [retries for retries, _ in asked] == [0, 1, 2]
    found = [exception for _, exception in asked]
    assert [isinstance(e, Retry) for e in found] == [True, True, False]
    for e in (found[0].__cause__, found[1].__cause__, found[2]):
        name = f"{type(e).__module__}.{type(e).__qualname__}"
        assert name == scene.conflict
