"""Where jobs are, as worker processes say: several, frozen, busy, and gevent's."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from pyramid_jobstate import JobStateMiddleware, JobStore, Whereabouts
from pyramid_jobstate.testing import pass_time
from tests.jobs import make_broker
from tests.processes import Process
from tests.support import frozen_process, load_job, wait_for
from tests.workerprocess import PATIENCE, STALLED_AFTER, start_worker

pytestmark = pytest.mark.system


class Sender:
    """Sends jobs to worker processes, and asks where they are."""

    def __init__(self, url: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.store = JobStore(url, stalled_after=STALLED_AFTER)
        self.broker = make_broker(url, JobStateMiddleware(self.store))
        self._url = url
        self._folder = folder
        self._stack = stack
        self._workers = 0

    def start(self, threads: int = 2, **options: Any) -> Process:
        """Start a worker process."""
        # No worker holds a message that another one could run.
        prefetch = {"dramatiq_queue_prefetch": str(threads)}
        environ = {"BROKER_URL": self._url, "STORE_URL": self._url, **prefetch}
        self._workers += 1
        log = self._folder / f"{self._workers}.log"
        worker = start_worker(environ, log, threads=threads, **options)
        return self._stack.enter_context(worker)

    def send(self, name: str = "run_marathon") -> str:
        """Send a job, and return its uuid."""
        actor = dramatiq.actor(broker=self.broker, actor_name=name, job_state=True)
        with contextlib.suppress(ValueError):
            return actor(lambda: None).send().message_id
        return self.broker.get_actor(name).send().message_id

    def pid(self, uuid: str) -> int:
        """Return the process that runs a job, once one does."""
        pid = wait_for(
            lambda: load_job(self.store, uuid).get_progress_metric("pid"), PATIENCE
        )
        assert isinstance(pid, int)
        return pid

    def answer(self, uuid: str) -> Whereabouts:
        """Return where a job is, once its worker answers."""

        def where() -> Whereabouts | None:
            found = self.store.where(uuid)
            return found if found is not None and found.taken_at else None

        return wait_for(where, PATIENCE)


@pytest.fixture
def sender(redis_url: str, tmp_path: Path) -> Iterator[Sender]:
    with contextlib.ExitStack() as stack:
        yield Sender(redis_url, tmp_path, stack)
        redis.Redis.from_url(redis_url).set("gate", 1)


def delay_of(where: Whereabouts) -> float:
    """Return how long a worker has taken to answer, in seconds."""
    assert where.taken_at is not None
    return (where.taken_at - where.asked_at).total_seconds()


@pytest.mark.parametrize("by_gevent", [False, True])
def test_each_worker_answers_for_its_jobs(sender: Sender, by_gevent: bool) -> None:
    """Within a second, with the stack of the thread or greenlet of each."""
    for _ in range(2):
        sender.start(threads=1, by_gevent=by_gevent)
    uuids = [sender.send(), sender.send()]
    pids = [sender.pid(uuid) for uuid in uuids]
    assert len({*pids}) == 2
    for uuid in uuids:
        assert sender.store.ask_where(uuid)
    for uuid, pid in zip(uuids, pids, strict=True):
        where = sender.answer(uuid)
        assert where.worker is not None and where.worker.split(":")[1] == str(pid)
        assert where.stack is not None
        assert where.stack.index("in run_marathon") < where.stack.index("wait_at_gate")
        assert "in wait_at_gate\n" in where.stack and delay_of(where) < 2


def test_frozen_worker_answers_when_it_goes_on(sender: Sender) -> None:
    """Until then it does not answer, whatever the job has said before."""
    sender.start()
    uuid = sender.send()
    pid = sender.pid(uuid)
    assert sender.store.ask_where(uuid)
    sender.answer(uuid)
    time.sleep(1)
    with frozen_process(pid):
        assert sender.store.ask_where(uuid)
        time.sleep(1.5)
        where = sender.store.where(uuid)
        assert where is not None and (where.taken_at, where.stack) == (None, None)
    assert delay_of(sender.answer(uuid)) > 1.5


def test_worker_that_holds_the_interpreter_answers_late(sender: Sender) -> None:
    """No other thread of the process runs meanwhile."""
    sender.start()
    uuid = sender.send("hold_the_interpreter")
    sender.pid(uuid)
    assert sender.store.ask_where(uuid)
    assert delay_of(sender.answer(uuid)) > 1


@pytest.mark.parametrize(
    "rounds",
    [10, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(400)])],
)
def test_answers_freeze_no_worker(sender: Sender, rounds: int) -> None:
    """Its threads begin and end meanwhile, and the garbage collector comes between."""
    sender.start(threads=16)
    uuids = [sender.send("keep_the_collector_busy")]
    sender.pid(uuids[0])
    uuids += [sender.send() for _ in range(15)]
    for uuid in uuids:
        sender.pid(uuid)
    for _ in range(rounds):
        assert all(map(sender.store.ask_where, uuids))
        for uuid in uuids:
            sender.answer(uuid)
        pass_time(sender.store, 1)
