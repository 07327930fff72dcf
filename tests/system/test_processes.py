"""Real worker processes: killed, frozen, stopped, and asked where their jobs are."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore, Whereabouts
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import pass_time
from tests.jobs import make_broker
from tests.processes import Process
from tests.support import frozen, frozen_process, load_job, wait_for
from tests.workerprocess import PATIENCE, STALLED_AFTER, start_worker


class Sender:
    """The process that sends jobs to worker processes, and shows them.

    Attributes:
      uuid: The last job that it has sent.
    """

    def __init__(
        self, url: str, store_url: str, folder: Path, stack: contextlib.ExitStack
    ) -> None:
        self.store = JobStore(store_url, stalled_after=STALLED_AFTER)
        self.broker = make_broker(url, JobStateMiddleware(self.store))
        self.client = redis.Redis.from_url(url)
        self._environ = {"BROKER_URL": url, "STORE_URL": store_url}
        self._folder = folder
        self._stack = stack
        self._workers = 0

    def start(self, threads: int = 2, **options: Any) -> Process:
        """Start a worker process, which ends with the test."""
        # No worker holds a message that another one could run.
        environ = {**self._environ, "dramatiq_queue_prefetch": str(threads)}
        self._workers += 1
        log = self._folder / f"{self._workers}.log"
        worker = start_worker(environ, log, threads=threads, **options)
        return self._stack.enter_context(worker)

    def send(self, name: str = "run_marathon") -> str:
        """Send a message to an actor of the workers, and return its job's uuid."""
        if name not in self.broker.actors:
            declare = dramatiq.actor(
                broker=self.broker, actor_name=name, job_state=True
            )
            declare(lambda: None)
        self.uuid: str = self.broker.get_actor(name).send().message_id
        return self.uuid

    def load(self) -> JobState:
        return load_job(self.store, self.uuid)

    def metric(self, name: str) -> Any:
        return self.load().get_progress_metric(name)

    def wait_until(self, status: str) -> JobState:
        wait_for(lambda: self.load().status == status, PATIENCE)
        return self.load()

    def open_gate(self) -> None:
        self.client.set("gate", 1)

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
def sender(redis_url: str, server: EmbeddedServer, tmp_path: Path) -> Iterator[Sender]:
    """A sender, whose store is not where its broker is."""
    with contextlib.ExitStack() as stack:
        yield Sender(redis_url, server.url, tmp_path, stack)


@pytest.mark.promise("new-run-starts-clean")
@pytest.mark.promise("redelivered-job-runs-again")
def test_a_worker_that_is_killed(sender):
    """The job of a killed worker stalls, and runs again without its former values."""
    sender.send("run_marathon")
    worker = sender.start()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    first = sender.load()
    assert (first.status, first.attempt) == ("working", 1)
    assert first.progress_metrics["first"] is True
    worker.kill(signal.SIGKILL)
    state = sender.wait_until("stalled")
    assert state.progress_metrics == first.progress_metrics
    assert state.is_working and state.finished_at is None
    sender.start()
    wait_for(lambda: sender.metric("pid") not in (None, first.progress_metrics["pid"]))
    state = sender.load()
    assert (state.status, state.attempt) == ("working", 1)
    assert state.progress_metrics.keys() == {"pid"}
    assert state.started_at and first.started_at
    assert state.started_at > first.started_at
    assert state.queued_at == first.queued_at
    sender.open_gate()
    assert sender.wait_until("success").progress_metrics["done"] is True


def test_a_worker_that_was_frozen(sender):
    """A worker whose message has run elsewhere changes nothing, and warns once."""
    sender.send("run_marathon")
    sleeper = sender.start()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    pid = sender.metric("pid")
    sleeper.kill(signal.SIGSTOP)
    sender.wait_until("stalled")
    worker = sender.start()
    wait_for(lambda: sender.metric("pid") not in (None, pid), PATIENCE)
    before = sender.load()
    sleeper.kill(signal.SIGCONT)
    wait_for(lambda: sleeper.lines("a newer run of it has begun"), PATIENCE)
    assert sender.load().progress_metrics == before.progress_metrics
    assert sender.load().started_at == before.started_at
    sender.open_gate()
    state = sender.wait_until("success")
    for process in (sleeper, worker):
        assert process.stop() == 0
    assert sender.load().finished_at == state.finished_at
    assert state.progress_metrics == {**before.progress_metrics, "done": True}
    assert len(sleeper.lines("[WARNING]")) == len(sleeper.lines("a newer run")) == 1
    assert not worker.lines("no longer records")


@pytest.mark.parametrize("weather", ["fine", "frozen", "frozen for good"])
def test_a_worker_that_is_stopped(sender, server, weather):
    """A job interrupted by its worker's shutdown reads retrying, with all that it
    reported, even if the store was frozen at that moment. A worker that cannot store
    that still stops, in time for any service manager, and logs it.
    """
    sender.send("run_until_shutdown")
    worker = sender.start()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    if weather == "fine":
        worker.terminate()
    else:
        with frozen(server):
            worker.terminate()
            wait_for(lambda: worker.lines("does not accept updates"), PATIENCE)
            if weather == "frozen for good":
                assert worker.end() == 0
    assert worker.end() == 0
    is_lost = weather == "frozen for good"
    assert len(worker.lines(": 1 job outcome is lost.")) == is_lost
    if not is_lost:
        state = sender.load()
        assert (state.status, state.attempt) == ("retrying", 1)
        assert state.progress_metrics["swept"] is True
        assert state.error is not None
        assert state.error.type == "dramatiq.middleware.shutdown.Shutdown"


def delay_of(where: Whereabouts) -> float:
    """Return how long a worker has taken to answer, in seconds."""
    assert where.taken_at is not None
    return (where.taken_at - where.asked_at).total_seconds()


@pytest.mark.parametrize("by_gevent", [False, True])
def test_each_worker_answers_for_its_jobs(sender, by_gevent):
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


def test_frozen_worker_answers_when_it_goes_on(sender):
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


def test_worker_that_holds_the_interpreter_answers_late(sender):
    """No other thread of the process runs meanwhile."""
    sender.start()
    uuid = sender.send("hold_the_interpreter")
    sender.pid(uuid)
    assert sender.store.ask_where(uuid)
    assert delay_of(sender.answer(uuid)) > 1


@pytest.mark.promise("where-a-job-is")
@pytest.mark.parametrize(
    "rounds",
    [10, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(400)])],
)
def test_answers_freeze_no_worker(sender, rounds):
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
