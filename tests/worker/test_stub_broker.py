"""Jobs of Dramatiq's StubBroker, with which applications test their actors."""

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobStateMiddleware
from tests.jobs import job_actor, load


@pytest.fixture
def stub_broker(redis_url: str) -> Iterator[StubBroker]:
    """A broker with the middleware, as in Dramatiq's guide to unit tests."""
    broker = StubBroker()
    broker.emit_after("process_boot")
    broker.add_middleware(JobStateMiddleware(url=redis_url))
    yield broker
    broker.flush_all()
    broker.close()


@pytest.fixture
def stub_worker(stub_broker: StubBroker) -> Iterator[dramatiq.Worker]:
    """A worker as in Dramatiq's guide to unit tests."""
    worker = dramatiq.Worker(stub_broker, worker_timeout=100)
    worker.start()
    yield worker
    worker.stop()


def test_a_stub_broker_runs_jobs(
    stub_broker: StubBroker, stub_worker: dramatiq.Worker
) -> None:
    """After the two joins of Dramatiq's guide, a job's end is in the store."""

    @job_actor(broker=stub_broker)
    def run_marathon(miles: int, *, job_state: Any = None) -> None:
        for mile in job_state.track(range(miles)):
            job_state.set_progress_metric("miles_run", mile)

    message = run_marathon.send_with_options(args=(26,), delay=50)
    assert load(stub_broker, message).status == "queued"
    stub_broker.join(run_marathon.queue_name)
    stub_worker.join()
    state = load(stub_broker, message)
    assert state.status == "success"
    assert state.progress_metrics == {"miles_run": 25}
