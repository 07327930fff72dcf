"""Real worker processes: killed, frozen and stopped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.jobs import make_broker, store_of
from tests.support import frozen, wait_for
from tests.workerprocess import PATIENCE, StartWorker, starting


@pytest.fixture
def start_worker(
    redis_url: str, server: EmbeddedServer, tmp_path: Path
) -> Iterator[StartWorker]:
    """Starts workers, and stops them at the end of the test."""
    environ = {"BROKER_URL": redis_url, "STORE_URL": server.url}
    with starting(environ, tmp_path) as start:
        yield start


class Sender:
    """The process that sends jobs and shows them."""

    def __init__(self, url: str, store: JobStore) -> None:
        self.broker = make_broker(url, JobStateMiddleware(store))
        self.store = store
        self.client = redis.Redis.from_url(url)

    def send(self, name: str) -> str:
        """Send a message to an actor of the workers."""
        actor = dramatiq.actor(broker=self.broker, actor_name=name, job_state=True)
        message = actor(lambda: None).send()
        self.uuid = message.message_id
        return self.uuid

    def load(self) -> JobState:
        state = store_of(self.broker).load(self.uuid)
        assert state is not None
        return state

    def metric(self, name: str) -> Any:
        return self.load().get_progress_metric(name)

    def wait_until(self, status: str) -> JobState:
        wait_for(lambda: self.load().status == status, PATIENCE)
        return self.load()

    def open_gate(self) -> None:
        self.client.set("gate", 1)


@pytest.fixture
def sender(redis_url: str, server: EmbeddedServer) -> Sender:
    return Sender(redis_url, JobStore(server.url, stalled_after=1.5))


def test_a_job_in_another_process(start_worker: StartWorker, sender: Sender) -> None:
    """A viewer sees a job in a worker process progress and end."""
    sender.send("run_marathon")
    assert sender.load().status == "queued"
    worker = start_worker()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    state = sender.load()
    assert (state.status, state.attempt) == ("working", 1)
    assert state.progress_metrics["pid"] != os.getpid()
    sender.open_gate()
    state = sender.wait_until("success")
    assert state.progress_metrics["done"] is True
    worker.terminate()
    assert worker.wait() == 0


def test_a_worker_that_is_killed(start_worker: StartWorker, sender: Sender) -> None:
    """The job of a killed worker stalls, runs again in another worker without the first
    run's values, and ends as that run does.
    """
    sender.send("run_marathon")
    worker = start_worker()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    first = sender.load()
    assert first.progress_metrics["first"] is True
    worker.kill(signal.SIGKILL)
    state = sender.wait_until("stalled")
    assert state.progress_metrics == first.progress_metrics
    assert state.is_working and state.finished_at is None
    start_worker()
    state = sender.wait_until("working")
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    state = sender.load()
    assert state.progress_metrics.keys() == {"pid"}
    assert state.progress_metrics != first.progress_metrics
    assert state.started_at and first.started_at
    assert state.started_at > first.started_at
    assert state.queued_at == first.queued_at
    assert state.attempt == 1
    sender.open_gate()
    sender.wait_until("success")


def test_a_worker_that_was_frozen(start_worker: StartWorker, sender: Sender) -> None:
    """A worker that was frozen while its message ran elsewhere changes nothing when it
    wakes, and logs one warning.
    """
    sender.send("run_marathon")
    sleeper = start_worker()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    pid = sender.metric("pid")
    sleeper.kill(signal.SIGSTOP)
    sender.wait_until("stalled")
    worker = start_worker()
    wait_for(lambda: sender.metric("pid") not in (None, pid), PATIENCE)
    before = sender.load()
    sleeper.kill(signal.SIGCONT)
    wait_for(lambda: sleeper.lines("a newer run of it has begun"), PATIENCE)
    assert sender.load().progress_metrics == before.progress_metrics
    assert sender.load().started_at == before.started_at
    sender.open_gate()
    state = sender.wait_until("success")
    for process in (sleeper, worker):
        process.terminate()
        assert process.wait() == 0
    assert sender.load().finished_at == state.finished_at
    assert state.progress_metrics == {**before.progress_metrics, "done": True}
    assert len(sleeper.lines("[WARNING]")) == len(sleeper.lines("a newer run")) == 1
    assert not worker.lines("no longer records")


@pytest.mark.parametrize("weather", ["fine", "frozen"])
def test_a_worker_that_is_stopped(
    start_worker: StartWorker, sender: Sender, server: EmbeddedServer, weather: str
) -> None:
    """A job interrupted by its worker's shutdown reads retrying, with all that it
    reported, even if the store was frozen at that moment.
    """
    sender.send("run_until_shutdown")
    worker = start_worker()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    if weather == "frozen":
        with frozen(server):
            worker.terminate()
            wait_for(lambda: worker.lines("does not accept updates"), PATIENCE)
    else:
        worker.terminate()
    assert worker.wait() == 0
    state = sender.load()
    assert (state.status, state.attempt) == ("retrying", 1)
    assert state.progress_metrics["swept"] is True
    assert state.error is not None
    assert state.error.type == "dramatiq.middleware.shutdown.Shutdown"
    assert not worker.lines("is lost")


def test_a_worker_does_not_wait_for_ever_for_the_store(
    start_worker: StartWorker, sender: Sender, server: EmbeddedServer
) -> None:
    """A worker that cannot store the ends of its jobs still stops, in time for any
    service manager, and logs how many ends are lost.
    """
    sender.send("run_until_shutdown")
    worker = start_worker()
    wait_for(lambda: sender.metric("pid"), PATIENCE)
    with frozen(server):
        worker.terminate()
        assert worker.wait() == 0
    assert len(worker.lines(": 1 job outcome is lost.")) == 1


def test_a_job_that_forks(start_worker: StartWorker, sender: Sender) -> None:
    """A child that a job forks cannot report for it, and does the job no harm."""
    sender.send("fork")
    worker = start_worker()
    state = sender.wait_until("success")
    assert state.progress_metrics == {"before": True, "exit_code": 3}
    assert not worker.lines("[ERROR]")
