"""Jobs with a request in worker processes that share a database."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import ZEO
from pyramid.config import Configurator

from pyramid_jobstate import JobState
from tests.counters import Database
from tests.counterworker import declare, make_broker, open_database
from tests.jobs import store_of
from tests.postgres import Postgres, find_folder
from tests.support import wait_for
from tests.workerprocess import PATIENCE, StartWorker, starting

JOBS = 40


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


class Scene:
    """A database, worker processes, and the process that sends jobs.

    Attributes:
      database: The database, as this process sees it.
      actors: The actors, by name.
    """

    def __init__(self, redis_url: str, database_url: str, start: StartWorker) -> None:
        self.database: Database = open_database(database_url, is_new=True)
        self.database.includeme(Configurator(settings=self.database.settings))
        self.broker = make_broker(redis_url)
        declare(self.broker, self.database)
        self.actors = self.broker.actors
        self.start = start

    def load(self, uuid: str) -> JobState | None:
        return store_of(self.broker).load(uuid)

    def wait_until(self, uuid: str, *statuses: str) -> JobState:
        def reached() -> JobState | None:
            state = self.load(uuid)
            return state if state is not None and state.status in statuses else None

        return wait_for(reached, 2 * PATIENCE)


MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(redis_url: str, tmp_path: Path) -> Iterator[MakeScene]:
    """Makes a scene with the database at a URL."""
    with contextlib.ExitStack() as stack:

        def make(database_url: str, threads: int = 4) -> Scene:
            environ = {"BROKER_URL": redis_url, "DATABASE_URL": database_url}
            options = (environ, tmp_path, "tests.counterworker", threads)
            start = stack.enter_context(starting(*options))
            scene = Scene(redis_url, database_url, start)
            stack.callback(scene.database.close)
            return scene

        yield make


def test_job_whose_process_dies_after_the_commit_runs_again(
    make_scene: MakeScene, client: redis.Redis, tmp_path: Path
) -> None:
    """A worker process that is killed between the commit and the acknowledgement has
    the job redelivered: it commits a second time. What its first run sent was sent
    once.
    """
    scene = make_scene(f"sqlite:///{tmp_path / 'counters.sqlite'}", 1)
    message = scene.actors["die_at_first"].send()
    first = scene.start()
    # The worker's process has died, and the command follows.
    wait_for(lambda: scene.database.counter == 1, PATIENCE)
    wait_for(lambda: first.process.poll() is not None, PATIENCE)
    state = scene.load(message.message_id)
    assert state is not None and not state.is_finished

    scene.start()
    state = scene.wait_until(message.message_id, "success", "error")

    assert state.is_success
    assert scene.database.read() == (2, [state.uuid] * 2)
    children: Any = client.lrange("children", 0, -1)
    assert len(children) == 2
    for child in children:
        assert scene.wait_until(child.decode(), "success", "error").is_success
    followed: Any = client.lrange("followed", 0, -1)
    assert sorted(followed) == [b"run 1", b"run 2"]


def count_in_two_processes(scene: Scene, client: redis.Redis) -> None:
    """Have two processes increment one counter, and check that nothing is lost."""
    workers = [scene.start(), scene.start()]
    # Both are ready before there is work.
    for worker in workers:
        wait_for(partial(worker.lines, "is ready for action"), PATIENCE)
    uuids = [scene.actors["increment"].send().message_id for _ in range(JOBS)]

    ended = [scene.wait_until(uuid, "success", "error") for uuid in uuids]

    assert [state.status for state in ended] == ["success"] * JOBS
    counter, marks = scene.database.read()
    assert counter == JOBS
    assert sorted(marks) == sorted(uuids)
    assert client.scard("workers") == 2
    attempts = [state.attempt for state in ended]
    print("attempts:", sorted(attempts))
    assert max(attempts) > 1


@pytest.mark.long
def test_zeo(make_scene: MakeScene, client: redis.Redis, zeo_url: str) -> None:
    """Two worker processes of four threads change one object through ZEO: every job
    succeeds in the end and none is lost.
    """
    count_in_two_processes(make_scene(zeo_url), client)


@pytest.mark.long
def test_postgresql(
    make_scene: MakeScene,
    client: redis.Redis,
    postgres: Postgres | None,
    tmp_path: Path,
) -> None:
    """Two worker processes change one row of a PostgreSQL database under REPEATABLE
    READ, or of an SQLite file where PostgreSQL is missing, and lose no job.
    """
    url = (
        f"sqlite:///{tmp_path / 'counters.sqlite'}"
        if postgres is None
        else postgres.url
    )
    count_in_two_processes(make_scene(url), client)
