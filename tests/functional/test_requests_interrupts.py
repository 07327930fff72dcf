"""Jobs with a request that are interrupted, cancelled or stopped while they commit."""

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import (
    Interrupt,
    Middleware,
    Shutdown,
    TimeLimit,
    TimeLimitExceeded,
)
from dramatiq.middleware.threading import raise_thread_exception
from pyramid.request import Request
from transaction.interfaces import TransientError

from pyramid_jobstate import JobState, current_job_state
from pyramid_jobstate.job.record import NOT_SENT
from tests.counters import Database, make_app
from tests.jobs import (
    job_actor,
    make_broker,
    messages,
    middleware_of,
    store_of,
    wait_until,
    working,
)
from tests.support import load_job, wait_for
from tests.web.databases import Manager, fail

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
    one_phase: bool
    two_phase: bool
    child: str


PLACES = [
    Place("", "root factory", False, False, "unknown"),
    Place("", "actor", False, False, "unknown"),
    Place(FIRST, "tpc_begin", False, False, "unknown"),
    Place(LAST, "tpc_begin", False, False, "unknown"),
    Place(FIRST, "commit", False, False, "unknown"),
    Place(DATABASES_DONE, "commit", False, False, "unknown"),
    Place(LAST, "commit", False, False, "unknown"),
    Place(FIRST, "tpc_vote", False, False, "unknown"),
    Place(TWO_PHASE_DONE, "tpc_vote", False, False, "unknown"),
    Place(DATABASES_DONE, "tpc_vote", True, False, "not sent"),
    Place(LAST, "tpc_vote", True, False, "not sent"),
    Place(FIRST, "tpc_finish", True, False, "not sent"),
    Place(DATABASES_DONE, "tpc_finish", True, True, "not sent"),
    Place("", "before the broker", True, True, "not sent"),
    Place("", "behind the broker", True, True, "sent"),
    Place(LAST, "tpc_finish", True, True, "sent"),
    Place("", "finished callback", True, True, "sent"),
]


def name_of(place: Place) -> str:
    return f"{place.phase}{place.key and f' {place.key!a}'}"


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


#: Each database and each manager, if not each pair of them in every run of the tests.
each_kind = pytest.mark.parametrize(
    ("database", "manager"),
    [
        ("sqlite", "explicit"),
        ("zodb", "thread"),
        pytest.param("sqlite", "thread", marks=pytest.mark.long),
        pytest.param("zodb", "explicit", marks=pytest.mark.long),
    ],
    indirect=["database"],
)


class Scene:
    """An application with a database, and a worker with one thread.

    Attributes:
      place: Where the next job that gets there is trapped, or None.
      trap: What is done there.
      children: The jobs that each job was to send, by uuid.
      followed: The jobs that those have run for.
    """

    def __init__(self, redis_url: str, database: Database, manager: str) -> None:
        self.limit = TimeLimit(interval=10)
        self.broker: RedisBroker = make_broker(
            redis_url, without=TimeLimit, others=(self.limit,)
        )
        self.place: Place | None = None
        self.trap: Callable[[], object] = lambda: None
        self.trapped = threading.Event()
        self.children: dict[str, list[str]] = {}
        self.followed: list[str] = []
        self.database = database
        root_factory = database.root_factory

        def slow_root_factory(request: Request) -> Any:
            root = root_factory(request)
            self.reach("root factory")
            return root

        vars(database)["root_factory"] = slow_root_factory
        make_app(self.broker, redis_url, database, manager)
        self.broker.add_middleware(SlowBroker(self.reach))

        @job_actor(broker=self.broker)
        def follow(parent: str, *, job_state: Any) -> None:
            self.followed.append(parent)

        self.follow = follow

    def save_actor(self, **options: Any) -> dramatiq.Actor:
        """Declare an actor that leaves a mark and sends a job."""

        @job_actor(broker=self.broker, **options)
        def save(*, request: Request, job_state: Any) -> None:
            self.database.mark(request, job_state.uuid)
            child = request.job_states.send(self.follow, job_state.uuid)
            self.children.setdefault(job_state.uuid, []).append(child.uuid)
            place = self.place
            if place is not None and place.key:
                manager = Manager(FIRST, "abort", lambda: self.reach("abort"))
                vars(manager)["tpc_abort"] = lambda _: self.reach("tpc_abort")
                request.tm.get().join(manager)
                reach = partial(self.reach, place.phase)
                request.tm.get().join(Manager(place.key, place.phase, reach))
            request.add_finished_callback(lambda _: self.reach("finished callback"))
            self.reach("actor")

        return save

    def reach(self, phase: str) -> None:
        """Spring the trap, if it is set here."""
        if self.place is not None and self.place.phase == phase:
            self.place = None
            self.trapped.set()
            self.trap()

    def child(self, parent: str, run: int = 0) -> str:
        """Return what has become of the job that a run of a job was to send."""
        uuids = self.children.get(parent, [])
        state = store_of(self.broker).load(uuids[run]) if len(uuids) > run else None
        if state is None:
            return "unknown"
        if state.is_error:
            assert state.error == NOT_SENT
            return "not sent"
        return "sent" if state.is_success else state.status

    def check(self, state: JobState, place: Place) -> None:
        """Check what a job that was interrupted at a place has left."""
        is_committed = (
            place.one_phase if self.database.has_one_phase else place.two_phase
        )
        assert self.database.marks(state.uuid) == int(is_committed)
        assert self.child(state.uuid) == place.child
        assert self.followed.count(state.uuid) == int(place.child == "sent")

    def check_next(self, save: dramatiq.Actor) -> None:
        """Check that the thread's next job does what it should."""
        state = wait_until(self.broker, save.send(), "success", "error")
        assert state.is_success
        assert self.database.marks(state.uuid) == 1
        wait_for(lambda: self.child(state.uuid) == "sent")


@pytest.fixture
def scene(redis_url: str, database: Database, manager: str) -> Scene:
    """An application for each database and each manager."""
    return Scene(redis_url, database, manager)


def current_state() -> JobState:
    """Return the state of the job that this thread runs."""
    state = current_job_state()
    assert state is not None
    return state


def wait_for_interrupt() -> None:
    """Run Python code until an interrupt arrives."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.002)
    raise AssertionError("No interrupt came.")


def interrupt_now() -> None:
    raise_thread_exception(threading.get_ident(), Interrupt)
    wait_for_interrupt()


def run_interrupted(scene: Scene, save: Any) -> JobState:
    """Run a job that is interrupted, then another one, and return the first."""
    message = save.send()
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")
        assert state.error is not None and state.error.type is not None
        assert state.error.type.endswith(".Interrupt")
        scene.check_next(save)
    return state


@each_kind
@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_interrupt(scene: Scene, place: Place) -> None:
    """An interrupt before the vote has passed aborts. A later one does not undo the
    commit: the job reads error, and so does what it had not sent yet.
    """
    save = scene.save_actor(max_retries=0)
    scene.place, scene.trap = place, interrupt_now

    state = run_interrupted(scene, save)

    scene.check(state, place)


@pytest.mark.parametrize(
    "place",
    [
        p
        if p.phase == "actor" or p.key == LAST
        else pytest.param(p, marks=pytest.mark.long)
        for p in PLACES
        if p.phase in ("actor", "tpc_vote")
    ],
    ids=name_of,
)
@pytest.mark.parametrize("manager", ["explicit"])
def test_time_limit(scene: Scene, place: Place) -> None:
    """Dramatiq's time limit is such an interrupt."""
    scene.broker.emit_after("process_boot")
    save = scene.save_actor(max_retries=0)
    scene.place, scene.trap = place, wait_for_interrupt

    message = save.send_with_options(time_limit=1000)
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")
        assert state.error is not None and state.error.type is not None
        assert state.error.type.endswith(f".{TimeLimitExceeded.__name__}")
        scene.check_next(save)

    assert scene.trapped.is_set()
    scene.check(state, place)


@pytest.mark.parametrize(
    "place",
    [p for p in PLACES if p.phase in ("actor", "tpc_vote", "before the broker")],
    ids=name_of,
)
@pytest.mark.parametrize("manager", ["thread"])
def test_shutdown(scene: Scene, place: Place) -> None:
    """A worker that is stopped interrupts the job, which then runs again from its
    start, even if it had committed.
    """
    save = scene.save_actor(notify_shutdown=True, min_backoff=20, max_backoff=50)
    scene.place, scene.trap = place, wait_for_interrupt

    message = save.send()
    with working(scene.broker, threads=1):
        wait_for(scene.trapped.is_set)
    state = load_job(store_of(scene.broker), message.message_id)
    assert state.status == "retrying" and state.error is not None
    assert str(state.error.type).endswith(f".{Shutdown.__name__}")
    scene.check(state, place)

    before = scene.database.marks(state.uuid)
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")
        wait_for(lambda: scene.child(state.uuid, run=1) == "sent")
    assert (state.status, state.attempt) == ("success", 2)
    assert scene.database.marks(state.uuid) == before + 1
    assert scene.child(state.uuid) == place.child


@pytest.mark.parametrize(
    "place",
    [p for p in PLACES if p.phase not in ("root factory", "actor")],
    ids=name_of,
)
@pytest.mark.parametrize("manager", ["explicit"])
def test_cancel_during_the_commit(scene: Scene, place: Place) -> None:
    """A cancel that arrives during the commit changes nothing."""
    save = scene.save_actor()
    message = save.send()

    def cancel() -> None:
        assert load_job(store_of(scene.broker), message.message_id).cancel()
        (job,) = middleware_of(scene.broker)._jobs.values()
        wait_for(lambda: job.unsaved and job.unsaved.run.cancel_requested)

    scene.place, scene.trap = place, cancel
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error", "cancelled")
        wait_for(lambda: scene.child(state.uuid) == "sent")

    assert scene.trapped.is_set()
    assert (state.status, state.attempt) == ("success", 1)
    assert scene.database.marks(state.uuid) == 1


@each_kind
def test_cancel_before_the_commit(scene: Scene) -> None:
    """A job that learns of a cancel before it commits is aborted."""
    save = scene.save_actor()
    message = save.send()

    def cancel() -> None:
        assert load_job(store_of(scene.broker), message.message_id).cancel()
        wait_for(lambda: current_state().raise_if_cancelled())

    scene.place, scene.trap = Place("", "actor", False, False, "unknown"), cancel
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error", "cancelled")
        scene.check_next(save)

    assert (state.status, state.attempt) == ("cancelled", 1)
    assert scene.database.marks(state.uuid) == 0
    assert scene.child(state.uuid) == "unknown"


@each_kind
def test_cancelled_job_with_a_conflict_is_not_tried_again(scene: Scene) -> None:
    """A cancelled job whose transaction conflicts is aborted and reads cancelled."""
    save = scene.save_actor()
    message = save.send()

    def cancel_and_conflict() -> None:
        assert load_job(store_of(scene.broker), message.message_id).cancel()
        wait_for(lambda: current_state().cancel_requested)
        raise TransientError

    scene.place = Place(FIRST, "tpc_vote", False, False, "unknown")
    scene.trap = cancel_and_conflict
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error", "cancelled")
        scene.check_next(save)

    assert (state.status, state.attempt) == ("cancelled", 1)
    scene.check(state, Place("", "", False, False, "unknown"))


@each_kind
@pytest.mark.parametrize(
    "phases", [["abort"], ["tpc_abort"], ["abort", "tpc_abort"]], ids=" ".join
)
def test_interrupt_while_a_failed_commit_is_taken_back(
    scene: Scene, phases: list[str]
) -> None:
    """Interrupts that arrive while a failed commit is being taken back keep no database
    from being aborted.
    """
    save = scene.save_actor(max_retries=0)
    following = iter(phases)

    def be_interrupted() -> None:
        set_next()
        interrupt_now()

    def set_next() -> None:
        phase = next(following, None)
        if phase is not None:
            scene.place = Place("", phase, False, False, "unknown")
            scene.trap = be_interrupted

    def fail_and_go_on() -> None:
        set_next()
        fail()

    scene.place = Place(LAST, "commit", False, False, "unknown")
    scene.trap = fail_and_go_on

    state = run_interrupted(scene, save)

    assert next(following, None) is None and scene.place is None
    scene.check(state, Place("", "", False, False, "unknown"))


@each_kind
def test_interrupted_callback_spares_the_others(scene: Scene) -> None:
    """An interrupt in one finished callback keeps no other from being called, such as
    one that closes a database.
    """
    called = []

    @job_actor(broker=scene.broker, max_retries=0)
    def save(*, request: Request, job_state: Any) -> None:
        request.add_finished_callback(lambda _: interrupt_now())
        request.add_finished_callback(lambda _: called.append(1))
        request.add_finished_callback(lambda _: fail())
        request.add_finished_callback(lambda _: called.append(2))

    message = save.send()
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")

    assert state.error is not None and str(state.error.type).endswith(".Interrupt")
    assert called == [1, 2]


@each_kind
def test_data_manager_that_fails_to_judge_an_error_is_aborted(scene: Scene) -> None:
    """If a data manager raises while it is asked whether an error is a conflict, the
    transaction is aborted all the same.
    """
    aborted = []

    @job_actor(broker=scene.broker, max_retries=0)
    def save(*, request: Request, job_state: Any) -> None:
        manager = Manager(FIRST, "abort", lambda: aborted.append(job_state.uuid))
        vars(manager)["should_retry"] = lambda error: fail(OverflowError)
        request.tm.get().join(manager)
        fail()

    message = save.send()
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")

    assert state.error is not None and state.error.type == "OverflowError"
    assert aborted == [state.uuid]


@pytest.mark.parametrize("manager", ["explicit"])
def test_actor_may_end_its_transaction_before_it_fails(scene: Scene) -> None:
    """An actor that has committed itself keeps what it has committed if it fails
    then.
    """

    @job_actor(broker=scene.broker, max_retries=0)
    def save(*, request: Request, job_state: Any) -> None:
        scene.database.mark(request, job_state.uuid)
        request.tm.commit()
        fail()

    message = save.send()
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")

    assert state.error is not None and state.error.type == "ZeroDivisionError"
    assert scene.database.marks(state.uuid) == 1


@each_kind
def test_abort_that_fails_hides_no_error(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """If a data manager cannot be aborted, that is logged. The job's error stays what
    the actor raised.
    """

    @job_actor(broker=scene.broker, max_retries=0)
    def save(*, request: Request, job_state: Any) -> None:
        request.tm.get().join(Manager(FIRST, "abort", lambda: fail(OverflowError)))
        fail()

    message = save.send()
    with working(scene.broker, threads=1):
        state = wait_until(scene.broker, message, "success", "error")

    assert state.error is not None and state.error.type == "ZeroDivisionError"
    assert messages(caplog, "pyramid_jobstate") == [
        "The transaction of a job could not be aborted."
    ]
