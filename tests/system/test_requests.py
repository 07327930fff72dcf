"""Jobs with a request on real databases: transactions that conflict, are interrupted,
cancelled or stopped, and worker processes that die.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Interrupt, Middleware
from dramatiq.middleware.threading import raise_thread_exception
from pyramid.request import Request

from pyramid_jobstate import JobState
from tests.counters import SQL, Database, Zodb, make_app, mark
from tests.jobs import job_actor, make_broker, store_of, wait_until, working
from tests.support import UUID, load_job, wait_for
from tests.web.databases import Manager
from tests.web.visits import NOT_SENT
from tests.workerprocess import PATIENCE, start_worker
from tests.workerprocess import make_broker as make_worker_broker

#: The sort keys of data managers before and after the databases, and after ours.
FIRST, TWO_PHASE_DONE, DATABASES_DONE = "!", "}", "~~"
LAST = chr(sys.maxunicode) + "~"


class Place(NamedTuple):
    """A moment in the life of a job, and what an interrupt there leaves.

    Attributes:
      key, phase: The sort key of the data manager that is interrupted, and the phase.
        Other moments have a name instead of a phase.
      one_phase, two_phase: Whether a database of that kind has committed.
      child: What becomes of the job that was to be sent: "unknown", "not sent" or
        "sent".
    """

    key: str
    phase: str
    one_phase: bool = False
    two_phase: bool = False
    child: str = "unknown"


PLACES = [
    Place("", "root factory"),
    Place("", "actor"),
    Place(FIRST, "tpc_begin"),
    Place(LAST, "tpc_begin"),
    Place(FIRST, "commit"),
    Place(DATABASES_DONE, "commit"),
    Place(LAST, "commit"),
    Place(FIRST, "tpc_vote"),
    Place(TWO_PHASE_DONE, "tpc_vote"),
    Place(DATABASES_DONE, "tpc_vote", True, False, "not sent"),
    Place(LAST, "tpc_vote", True, False, "not sent"),
    Place(FIRST, "tpc_finish", True, False, "not sent"),
    Place(DATABASES_DONE, "tpc_finish", True, True, "not sent"),
    Place("", "before the broker", True, True, "not sent"),
    Place("", "behind the broker", True, True, "sent"),
    Place(LAST, "tpc_finish", True, True, "sent"),
    Place("", "finished callback", True, True, "sent"),
]


class SlowBroker(Middleware):
    """Calls `reach` before the broker accepts a message, and when it has."""

    def __init__(self, reach: Callable[[str], object]) -> None:
        self.reach = reach

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.actor_name == "follow":
            self.reach("before the broker")

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.actor_name == "follow":
            self.reach("behind the broker")


class Scene:
    """An application with a database, and a broker.

    Attributes:
      place: Where the next job that gets there is interrupted, or None.
      children: The job that each job was to send, by uuid.
      followed: The jobs that those have run for.
    """

    def __init__(self, redis_url: str, database: Database, is_explicit: bool) -> None:
        self.broker: RedisBroker = make_broker(redis_url)
        self.store = store_of(self.broker)
        self.place: Place | None = None
        self.children: dict[str, str] = {}
        self.followed: list[str] = []
        self.database = database
        root_factory = database.root_factory

        def slow_root_factory(request: Request) -> Any:
            root = root_factory(request)
            self.reach("root factory")
            return root

        vars(database)["root_factory"] = slow_root_factory
        make_app(self.broker, redis_url, database, is_explicit=is_explicit)
        self.broker.add_middleware(SlowBroker(self.reach))

        @job_actor(broker=self.broker)
        def follow(parent: str, *, job_state: Any) -> None:
            self.followed.append(parent)

        self.follow = follow

    def save_actor(self, **options: Any) -> dramatiq.Actor:
        """Declare an actor that leaves a mark and sends a job."""

        @job_actor(broker=self.broker, **options)
        def save(*, request: Request, job_state: Any) -> None:
            mark(request, job_state.uuid)
            child = request.job_states.send(self.follow, job_state.uuid)
            self.children[job_state.uuid] = child.uuid
            place = self.place
            if place is not None and place.key:
                reach = partial(self.reach, place.phase)
                request.tm.get().join(Manager(place.key, place.phase, reach))
            request.add_finished_callback(lambda _: self.reach("finished callback"))
            self.reach("actor")

        return save

    def reach(self, phase: str) -> None:
        """Interrupt the job, if it is to be here, and run Python code until then."""
        if self.place is not None and self.place.phase == phase:
            self.place = None
            raise_thread_exception(threading.get_ident(), Interrupt)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                time.sleep(0.002)
            raise AssertionError("No interrupt came.")

    def end(self, message: dramatiq.Message) -> JobState:
        """Wait until a job has ended, and return it."""
        return wait_until(self.broker, message, "success", "error")

    def child(self, parent: str) -> str:
        """Return what has become of the job that a job was to send."""
        state = self.store.load(self.children.get(parent, UUID))
        if state is None:
            return "unknown"
        if state.is_error:
            assert state.error is not None and state.error.message == NOT_SENT
            return "not sent"
        return "sent" if state.is_success else state.status

    def marks(self, uuid: str) -> int:
        """Return how often a job has committed."""
        return self.database.read()[1].count(uuid)

    def check(self, state: JobState, place: Place) -> None:
        """Check what a job that was interrupted at a place has left."""
        one_phase = self.database.has_one_phase
        is_committed = place.one_phase if one_phase else place.two_phase
        assert self.marks(state.uuid) == int(is_committed)
        assert self.child(state.uuid) == place.child
        assert self.followed.count(state.uuid) == int(place.child == "sent")

    def check_next(self, save: dramatiq.Actor) -> None:
        """Check that the thread's next job does what it should."""
        state = self.end(save.send())
        assert state.is_success
        assert self.marks(state.uuid) == 1
        wait_for(lambda: self.child(state.uuid) == "sent")


@pytest.fixture(params=["sqlite", "zodb"])
def scene(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path
) -> Iterator[Scene]:
    """An application with a new database and either kind of transaction manager."""
    database: Database = Zodb(f"file://{tmp_path / 'counters.fs'}")
    if request.param == "sqlite":
        database = SQL(f"sqlite:///{tmp_path / 'counters.sqlite'}")
    with contextlib.closing(database):
        yield Scene(redis_url, database, request.param == "sqlite")


def test_every_success_is_counted(scene):
    """Jobs whose transactions conflict all succeed in the end, and count once each."""
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
        mark(request, job_state.uuid)

    messages = [increment.send() for _ in range(24)]
    with working(scene.broker, threads=4):
        ended = [scene.end(message) for message in messages]
    assert [state.status for state in ended] == ["success"] * 24
    counter, marks = scene.database.read()
    assert counter == 24
    assert sorted(marks) == sorted(state.uuid for state in ended)
    # Of four that overlap, one can commit.
    assert sum(state.attempt > 1 for state in ended) >= 3 * 24 // 4


def test_interrupt(scene, subtests):
    """An interrupt before the vote has passed aborts. A later one undoes no commit."""
    save = scene.save_actor(max_retries=0)
    with working(scene.broker, threads=1):
        for place in PLACES:
            with subtests.test(msg=f"{place.phase} {place.key!a}"):
                scene.place = place
                state = scene.end(save.send())
                assert state.error and str(state.error.type).endswith(".Interrupt")
                scene.check_next(save)
                scene.check(state, place)


def test_job_whose_process_dies_after_the_commit_runs_again(
    redis_url, client, tmp_path
):
    """A job whose worker dies before the ack runs again, and commits a second time."""
    url = f"sqlite:///{tmp_path / 'counters.sqlite'}"
    broker = make_worker_broker(redis_url)
    store = store_of(broker)
    environ = {"BROKER_URL": redis_url, "DATABASE_URL": url}
    first, second = (
        partial(start_worker, environ, tmp_path / name, "tests.counterworker", 1)
        for name in ("first.log", "second.log")
    )
    with contextlib.closing(SQL(url)) as database, contextlib.ExitStack() as stack:
        actor = dramatiq.actor(broker=broker, actor_name="die_at_first", job_state=True)
        uuid = actor(lambda: None).send().message_id
        died = stack.enter_context(first())
        # The worker's process has died, and the command follows.
        wait_for(lambda: database.read()[0] == 1, PATIENCE)
        wait_for(lambda: died.poll() is not None, PATIENCE)
        assert not load_job(store, uuid).is_finished
        stack.enter_context(second())
        wait_for(lambda: load_job(store, uuid).is_success, PATIENCE)
        assert database.read() == (2, [uuid] * 2)
        wait_for(lambda: client.llen("followed") == 2, PATIENCE)
    followed: Any = client.lrange("followed", 0, -1)
    assert sorted(followed) == [b"run 1", b"run 2"]
