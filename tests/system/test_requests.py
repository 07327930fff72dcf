"""Jobs with a request on real databases: transactions that conflict, are interrupted,
cancelled or stopped, and worker processes that die.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dramatiq
import pytest
import redis
import ZEO
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import (
    Interrupt,
    Middleware,
    Shutdown,
    TimeLimit,
    TimeLimitExceeded,
)
from dramatiq.middleware.threading import raise_thread_exception
from pyramid.config import Configurator
from pyramid.request import Request
from transaction.interfaces import TransientError

from pyramid_jobstate import JobState, current_job_state
from tests.counters import SQL, Database, Zodb, make_app, make_database
from tests.counterworker import declare, open_database
from tests.counterworker import make_broker as make_worker_broker
from tests.jobs import job_actor, make_broker, store_of, wait_until, working
from tests.postgres import Postgres, find_folder
from tests.support import ROOT, load_job, unmeasured, wait_for
from tests.web.databases import Manager, fail
from tests.web.visits import NOT_SENT
from tests.workerprocess import PATIENCE, StartWorker, starting

pytestmark = pytest.mark.system

#: The class of the conflicts in each database.
CONFLICTS: dict[type[Database], str] = {
    SQL: "sqlalchemy.orm.exc.StaleDataError",
    Zodb: "ZODB.POSException.ConflictError",
}

#: The sort keys of data managers before and after the databases, and after ours.
FIRST, TWO_PHASE_DONE, DATABASES_DONE = "!", "}", "~~"
LAST = chr(sys.maxunicode) + "~"

#: How many jobs two processes run.
JOBS = 40


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


ACTOR = Place("", "actor")

PLACES = [
    Place("", "root factory"),
    ACTOR,
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
    """Calls `reach` before the broker accepts a message, and when it has. Collects the
    delays with which each message has been sent, in milliseconds.
    """

    def __init__(self, reach: Callable[[str], object]) -> None:
        self.reach = reach
        self.delays: dict[str, list[int]] = {}

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        # A delayed message is enqueued again, without a delay, when it is due.
        if delay is not None:
            self.delays.setdefault(message.message_id, []).append(delay)
        if message.actor_name == "follow":
            self.reach("before the broker")

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.actor_name == "follow":
            self.reach("behind the broker")


class Scene:
    """An application with a database, and a broker.

    Attributes:
      place: Where the next job that gets there is trapped, or None.
      trap: What is done there.
      children: The jobs that each job was to send, by uuid.
      followed: The jobs that those have run for.
    """

    def __init__(self, redis_url: str, database: Database, manager: str) -> None:
        limit = TimeLimit(interval=10)
        self.broker: RedisBroker = make_broker(
            redis_url, without=TimeLimit, others=(limit,)
        )
        self.store = store_of(self.broker)
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
        self.slow = SlowBroker(self.reach)
        self.broker.add_middleware(self.slow)

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

    def set_trap(self, place: Place, trap: Callable[[], object]) -> None:
        """Have the next job that gets to a place do something there."""
        self.trapped.clear()
        self.place, self.trap = place, trap

    def reach(self, phase: str) -> None:
        """Spring the trap, if it is set here."""
        if self.place is not None and self.place.phase == phase:
            self.place = None
            self.trapped.set()
            self.trap()

    def end(self, message: dramatiq.Message, *statuses: str) -> JobState:
        """Wait until a job has ended, and return it."""
        return wait_until(self.broker, message, "success", "error", *statuses)

    def child(self, parent: str, run: int = 0) -> str:
        """Return what has become of the job that a run of a job was to send."""
        uuids = self.children.get(parent, [])
        state = self.store.load(uuids[run]) if len(uuids) > run else None
        if state is None:
            return "unknown"
        if state.is_error:
            assert state.error is not None and state.error.message == NOT_SENT
            return "not sent"
        return "sent" if state.is_success else state.status

    def is_sent(self, parent: str, run: int = 0) -> bool:
        """Return whether the job that a run of a job was to send has run."""
        return self.child(parent, run) == "sent"

    def check(self, state: JobState, place: Place) -> None:
        """Check what a job that was interrupted at a place has left."""
        one_phase = self.database.has_one_phase
        is_committed = place.one_phase if one_phase else place.two_phase
        assert self.database.marks(state.uuid) == int(is_committed)
        assert self.child(state.uuid) == place.child
        assert self.followed.count(state.uuid) == int(place.child == "sent")

    def check_next(self, save: dramatiq.Actor) -> None:
        """Check that the thread's next job does what it should."""
        state = self.end(save.send())
        assert state.is_success
        assert self.database.marks(state.uuid) == 1
        wait_for(partial(self.is_sent, state.uuid))


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


@pytest.fixture
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A new database with a counter."""
    with contextlib.closing(make_database(request.param, tmp_path)) as database:
        yield database


@pytest.fixture
def scene(redis_url: str, database: Database, manager: str) -> Scene:
    """An application for each database and each manager."""
    return Scene(redis_url, database, manager)


def error_type(state: JobState) -> str:
    """Return the name of the class of a job's error."""
    assert state.error is not None
    return str(state.error.type)


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


# Conflicts.


@each_kind
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

    messages = [increment.send() for _ in range(24)]
    with working(scene.broker, threads=4):
        ended = [scene.end(message) for message in messages]
    assert [state.status for state in ended] == ["success"] * 24
    counter, marks = scene.database.read()
    assert counter == 24
    assert sorted(marks) == sorted(state.uuid for state in ended)
    # Of four that overlap, one can commit.
    assert sum(state.attempt > 1 for state in ended) >= 3 * 24 // 4


@each_kind
def test_conflict_is_tried_again(scene: Scene) -> None:
    """A conflict is a real attempt, whose metrics are cleared. The next follows at once
    while pyramid_retry would try again, and then as Dramatiq retries, `max_retries`
    times. `retry_when` is asked with a Retry caused by the conflict and, when
    pyramid_retry would give up, with the conflict itself.
    """
    seen: list[tuple[int, int]] = []
    asked: list[BaseException] = []
    conflict = CONFLICTS[type(scene.database)]

    def retry_when(retries: int, exception: BaseException) -> bool:
        asked.append(exception)
        return retries < 2

    @job_actor(broker=scene.broker, min_backoff=20, max_backoff=200)
    def increment(conflicts: int, *, request: Request, job_state: Any) -> None:
        attempt = job_state.attempt
        counter = request.root["counter"]
        seen.append((attempt, request.environ["retry.attempt"]))
        job_state.set_progress_metric(f"attempt{attempt}", True)
        if attempt <= conflicts:
            scene.database.interfere()
        counter.value += 1

    @job_actor(broker=scene.broker, retry_when=retry_when)
    def picky(*, request: Request, job_state: Any) -> None:
        request.root["counter"].value += 1
        scene.database.interfere()

    with working(scene.broker, threads=1):
        state = scene.end(increment.send(4))
        assert (state.status, state.attempt) == ("success", 5)
        assert seen == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)]
        assert state.progress_metrics == {"attempt5": True}
        first, second, *later = scene.slow.delays[state.uuid]
        assert (first, second) == (0, 0)
        assert len(later) == 2 and all(delay >= 20 for delay in later)
        assert scene.database.counter == 5

        state = scene.end(increment.send_with_options(args=(9,), max_retries=1))
        assert (state.status, state.attempt) == ("error", 2)
        assert error_type(state) == conflict
        # The other transactions' increments.
        assert scene.database.counter == 7

        state = scene.end(picky.send())
        assert (state.status, state.attempt) == ("error", 3)
    assert [isinstance(error, Retry) for error in asked] == [True, True, False]
    for error in (asked[0].__cause__, asked[1].__cause__, asked[2]):
        assert f"{type(error).__module__}.{type(error).__qualname__}" == conflict


# Interrupts.


@each_kind
def test_interrupt(scene: Scene, subtests: pytest.Subtests) -> None:
    """An interrupt before the vote has passed aborts. A later one does not undo the
    commit: the job reads error, and so does what it had not sent yet.
    """
    save = scene.save_actor(max_retries=0)
    with working(scene.broker, threads=1):
        for place in PLACES:
            with subtests.test(msg=f"{place.phase} {place.key!a}"):
                scene.set_trap(place, interrupt_now)
                state = scene.end(save.send())
                assert error_type(state).endswith(".Interrupt")
                scene.check_next(save)
                scene.check(state, place)


@pytest.mark.parametrize(
    ("database", "manager"),
    [("sqlite", "explicit"), ("zodb", "explicit")],
    indirect=["database"],
)
def test_time_limit(scene: Scene, subtests: pytest.Subtests) -> None:
    """Dramatiq's time limit is such an interrupt."""
    scene.broker.emit_after("process_boot")
    save = scene.save_actor(max_retries=0)
    with working(scene.broker, threads=1):
        for place in ACTOR, Place(LAST, "tpc_vote", True, False, "not sent"):
            with subtests.test(msg=place.phase):
                scene.set_trap(place, wait_for_interrupt)
                state = scene.end(save.send_with_options(time_limit=1000))
                assert error_type(state).endswith(f".{TimeLimitExceeded.__name__}")
                scene.check_next(save)
                assert scene.trapped.is_set()
                scene.check(state, place)


@pytest.mark.parametrize(
    ("database", "manager"),
    [("sqlite", "thread"), ("zodb", "thread")],
    indirect=["database"],
)
def test_shutdown(scene: Scene, subtests: pytest.Subtests) -> None:
    """A worker that is stopped interrupts the job, which then runs again from its
    start, even if it had committed.
    """
    save = scene.save_actor(notify_shutdown=True, min_backoff=20, max_backoff=50)
    phases = "actor", "tpc_vote", "before the broker"
    for place in [place for place in PLACES if place.phase in phases]:
        with subtests.test(msg=f"{place.phase} {place.key!a}"):
            scene.set_trap(place, wait_for_interrupt)
            message = save.send()
            with working(scene.broker, threads=1):
                wait_for(scene.trapped.is_set)
            state = load_job(scene.store, message.message_id)
            assert state.status == "retrying"
            assert error_type(state).endswith(f".{Shutdown.__name__}")
            scene.check(state, place)
            before = scene.database.marks(state.uuid)
            with working(scene.broker, threads=1):
                state = scene.end(message)
                wait_for(partial(scene.is_sent, state.uuid, run=1))
            assert (state.status, state.attempt) == ("success", 2)
            assert scene.database.marks(state.uuid) == before + 1
            assert scene.child(state.uuid) == place.child


@each_kind
def test_interrupt_while_a_failed_commit_is_taken_back(
    scene: Scene, subtests: pytest.Subtests
) -> None:
    """Interrupts that arrive while a failed commit is being taken back keep no database
    from being aborted.
    """
    save = scene.save_actor(max_retries=0)

    def be_interrupted() -> None:
        set_next()
        interrupt_now()

    def set_next() -> None:
        phase = next(following, None)
        if phase is not None:
            scene.set_trap(Place("", phase), be_interrupted)

    def fail_and_go_on() -> None:
        set_next()
        fail()

    with working(scene.broker, threads=1):
        for phases in ["abort"], ["tpc_abort"], ["abort", "tpc_abort"]:
            with subtests.test(msg=" ".join(phases)):
                following = iter(phases)
                scene.set_trap(Place(LAST, "commit"), fail_and_go_on)
                state = scene.end(save.send())
                assert error_type(state).endswith(".Interrupt")
                scene.check_next(save)
                assert next(following, None) is None and scene.place is None
                scene.check(state, Place("", ""))


@each_kind
def test_what_fails_beside_the_actor(scene: Scene) -> None:
    """An interrupt in one finished callback keeps no other from being called. If a data
    manager raises while it is asked whether an error is a conflict, the transaction is
    aborted all the same. An actor that has committed itself keeps what it has
    committed if it fails then.
    """
    called: list[Any] = []

    @job_actor(broker=scene.broker, max_retries=0)
    def callbacks(*, request: Request, job_state: Any) -> None:
        request.add_finished_callback(lambda _: interrupt_now())
        request.add_finished_callback(lambda _: called.append(1))
        request.add_finished_callback(lambda _: fail())
        request.add_finished_callback(lambda _: called.append(2))

    @job_actor(broker=scene.broker, max_retries=0)
    def judged(*, request: Request, job_state: Any) -> None:
        manager = Manager(FIRST, "abort", lambda: called.append("aborted"))
        vars(manager)["should_retry"] = lambda error: fail(OverflowError)
        request.tm.get().join(manager)
        fail()

    @job_actor(broker=scene.broker, max_retries=0)
    def commits(*, request: Request, job_state: Any) -> None:
        scene.database.mark(request, job_state.uuid)
        request.tm.commit()
        fail()

    with working(scene.broker, threads=1):
        assert error_type(scene.end(callbacks.send())).endswith(".Interrupt")
        assert called == [1, 2]
        assert error_type(scene.end(judged.send())) == "OverflowError"
        assert called == [1, 2, "aborted"]
        state = scene.end(commits.send())
    assert error_type(state) == "ZeroDivisionError"
    assert scene.database.marks(state.uuid) == 1


@pytest.mark.parametrize(
    ("how", "kind", "count", "seed"),
    [
        ("steps", "sqlite", 19, 0),
        ("steps", "zodb", 19, 0),
        pytest.param("steps", "sqlite", 1, 0, marks=pytest.mark.long),
        pytest.param("steps", "zodb", 1, 0, marks=pytest.mark.long),
        pytest.param("times", "sqlite", 300, 1, marks=pytest.mark.long),
        pytest.param("times", "zeo", 300, 1, marks=pytest.mark.long),
    ],
)
def test_interrupt_anywhere(
    redis_url: str, tmp_path: Path, how: str, kind: str, count: int, seed: int
) -> None:
    """Wherever a job is interrupted, it reads success only if it has committed. What it
    was to send runs only if it has, and is never left queued. Its thread goes on. See
    tests/requestinterrupts.py.
    """
    arguments = [how, kind, redis_url, tmp_path, count, seed]
    done = subprocess.run(
        [sys.executable, "-m", "tests.requestinterrupts", *map(str, arguments)],
        cwd=ROOT,
        env=unmeasured(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


# Cancels.


@pytest.mark.parametrize(
    ("database", "manager"),
    [("sqlite", "explicit"), ("zodb", "explicit")],
    indirect=["database"],
)
def test_cancel_during_the_commit(scene: Scene, subtests: pytest.Subtests) -> None:
    """A cancel that arrives during the commit changes nothing."""
    save = scene.save_actor()

    def cancel() -> None:
        assert load_job(scene.store, current_state().uuid).cancel()
        wait_for(lambda: current_state().cancel_requested)

    with working(scene.broker, threads=1):
        for place in PLACES[2:]:
            with subtests.test(msg=f"{place.phase} {place.key!a}"):
                scene.set_trap(place, cancel)
                state = scene.end(save.send(), "cancelled")
                wait_for(partial(scene.is_sent, state.uuid))
                assert scene.trapped.is_set()
                assert (state.status, state.attempt) == ("success", 1)
                assert scene.database.marks(state.uuid) == 1


@each_kind
def test_cancel_before_the_commit(scene: Scene) -> None:
    """A job that learns of a cancel before it commits is aborted, and not tried again
    even if its transaction conflicts.
    """
    save = scene.save_actor()

    def ask() -> None:
        assert load_job(scene.store, current_state().uuid).cancel()
        wait_for(lambda: current_state().cancel_requested)

    def cancel() -> None:
        ask()
        current_state().raise_if_cancelled()

    def cancel_and_conflict() -> None:
        ask()
        raise TransientError

    places = (ACTOR, cancel), (Place(FIRST, "tpc_vote"), cancel_and_conflict)
    with working(scene.broker, threads=1):
        for place, trap in places:
            scene.set_trap(place, trap)
            state = scene.end(save.send(), "cancelled")
            scene.check_next(save)
            assert (state.status, state.attempt) == ("cancelled", 1)
            scene.check(state, Place("", ""))


# Worker processes.


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres | None]:
    """A PostgreSQL server, or None if it is not installed."""
    folder = find_folder()
    if folder is None:
        if os.environ.get("CI") == "true":
            pytest.fail(
                "No PostgreSQL is installed (Debian: apt-get install postgresql)"
            )
        yield None
        return
    with Postgres(folder) as server:
        yield server


@pytest.fixture
def zeo_url(tmp_path: Path) -> Iterator[str]:
    """The URL of a new ZEO server in this process."""
    address, stop = ZEO.server(str(tmp_path / "counters.fs"))
    yield f"zeo://127.0.0.1:{address[1]}?wait_timeout=30"
    stop()


class Processes:
    """A database, worker processes, and the process that sends jobs.

    Attributes:
      database: The database, as this process sees it.
      actors: The actors, by name.
    """

    def __init__(self, redis_url: str, database_url: str, start: StartWorker) -> None:
        self.database: Database = open_database(database_url, is_new=True)
        self.database.includeme(Configurator(settings=self.database.settings))
        broker = make_worker_broker(redis_url)
        declare(broker, self.database)
        self.store = store_of(broker)
        self.actors = broker.actors
        self.start = start

    def end(self, uuid: str) -> JobState:
        """Wait until a job has ended, and return it."""

        def ended() -> JobState | None:
            state = self.store.load(uuid)
            return state if state is not None and state.is_finished else None

        return wait_for(ended, 2 * PATIENCE)


MakeProcesses = Callable[..., Processes]


@pytest.fixture
def make_processes(redis_url: str, tmp_path: Path) -> Iterator[MakeProcesses]:
    """Returns processes that use the database at a URL."""
    with contextlib.ExitStack() as stack:

        def make(database_url: str, threads: int = 4) -> Processes:
            environ = {"BROKER_URL": redis_url, "DATABASE_URL": database_url}
            options = (environ, tmp_path, "tests.counterworker", threads)
            start = stack.enter_context(starting(*options))
            made = Processes(redis_url, database_url, start)
            stack.callback(made.database.close)
            return made

        yield make


def test_job_whose_process_dies_after_the_commit_runs_again(
    make_processes: MakeProcesses, client: redis.Redis, tmp_path: Path
) -> None:
    """A worker process that is killed between the commit and the acknowledgement has
    the job redelivered: it commits a second time. What its first run sent was sent
    once.
    """
    scene = make_processes(f"sqlite:///{tmp_path / 'counters.sqlite'}", 1)
    uuid = scene.actors["die_at_first"].send().message_id
    first = scene.start()
    # The worker's process has died, and the command follows.
    wait_for(lambda: scene.database.counter == 1, PATIENCE)
    wait_for(lambda: first.process.poll() is not None, PATIENCE)
    assert not load_job(scene.store, uuid).is_finished
    scene.start()
    assert scene.end(uuid).is_success
    assert scene.database.read() == (2, [uuid] * 2)
    children: Any = client.lrange("children", 0, -1)
    assert len(children) == 2
    for child in children:
        assert scene.end(child.decode()).is_success
    followed: Any = client.lrange("followed", 0, -1)
    assert sorted(followed) == [b"run 1", b"run 2"]


def count_in_two_processes(scene: Processes, client: redis.Redis) -> None:
    """Have two processes increment one counter, and check that nothing is lost."""
    workers = [scene.start(), scene.start()]
    # Both are ready before there is work.
    for worker in workers:
        wait_for(partial(worker.lines, "is ready for action"), PATIENCE)
    uuids = [scene.actors["increment"].send().message_id for _ in range(JOBS)]
    ended = [scene.end(uuid) for uuid in uuids]
    assert [state.status for state in ended] == ["success"] * JOBS
    counter, marks = scene.database.read()
    assert counter == JOBS
    assert sorted(marks) == sorted(uuids)
    assert client.scard("workers") == 2
    assert max(state.attempt for state in ended) > 1


@pytest.mark.long
def test_zeo(make_processes: MakeProcesses, client: redis.Redis, zeo_url: str) -> None:
    """Two worker processes of four threads change one object through ZEO: every job
    succeeds in the end and none is lost.
    """
    count_in_two_processes(make_processes(zeo_url), client)


@pytest.mark.long
def test_postgresql(
    make_processes: MakeProcesses,
    client: redis.Redis,
    postgres: Postgres | None,
    tmp_path: Path,
) -> None:
    """Two worker processes change one row of a PostgreSQL database under REPEATABLE
    READ, or of an SQLite file where PostgreSQL is missing, and lose no job.
    """
    sqlite = f"sqlite:///{tmp_path / 'counters.sqlite'}"
    url = sqlite if postgres is None else postgres.url
    count_in_two_processes(make_processes(url), client)
