"""Real worker processes: killed, frozen and stopped."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.jobs import make_broker
from tests.support import frozen, load_job, wait_for
from tests.workerprocess import PATIENCE, STALLED_AFTER, StartWorker, starting


class Sender:
    """The process that sends jobs and shows them.

    Attributes:
      start: Starts a worker.
    """

    def __init__(self, url: str, store: JobStore, start: StartWorker) -> None:
        self.broker = make_broker(url, JobStateMiddleware(store))
        self.store = store
        self.client = redis.Redis.from_url(url)
        self.start = start

    def send(self, name: str) -> None:
        """Send a message to an actor of the workers."""
        actor = dramatiq.actor(broker=self.broker, actor_name=name, job_state=True)
        self.uuid = actor(lambda: None).send().message_id

    def load(self) -> JobState:
        return load_job(self.store, self.uuid)

    def metric(self, name: str) -> Any:
        return self.load().get_progress_metric(name)

    def wait_until(self, status: str) -> JobState:
        wait_for(lambda: self.load().status == status, PATIENCE)
        return self.load()

    def open_gate(self) -> None:
        self.client.set("gate", 1)


@pytest.fixture
def sender(redis_url: str, server: EmbeddedServer, tmp_path: Path) -> Iterator[Sender]:
    """A sender, whose workers end with the test."""
    environ = {"BROKER_URL": redis_url, "STORE_URL": server.url}
    with starting(environ, tmp_path) as start:
        store = JobStore(server.url, stalled_after=STALLED_AFTER)
        yield Sender(redis_url, store, start)


def test_a_worker_that_is_killed(sender: Sender) -> None:
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


def test_a_worker_that_was_frozen(sender: Sender) -> None:
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
def test_a_worker_that_is_stopped(
    sender: Sender, server: EmbeddedServer, weather: str
) -> None:
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
