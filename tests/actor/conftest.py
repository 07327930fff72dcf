"""JobStates as actors receive them, and the request of somebody who looks at one."""

from collections.abc import Callable, Iterator

import pytest
from dramatiq.brokers.stub import StubBroker
from pyramid.request import Request

from pyramid_jobstate import JobState, JobStateMiddleware
from tests.incaller import InCallerBroker
from tests.jobs import RunMarathon, job_actor, load
from tests.webapp import NOWHERE, made_config, make_request

#: Runs a function as an actor, and returns the state of its job when that has ended.
RunJob = Callable[[Callable[[JobState], object]], JobState]


@pytest.fixture
def job_state() -> JobState:
    """What an actor that is called directly receives."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=NOWHERE))
    received: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: RunMarathon) -> None:
        received.append(job_state)

    run_marathon()
    return received[0]


@pytest.fixture
def run_job(redis_url: str) -> Iterator[RunJob]:
    """Runs a function as an actor, within the call. What it raises is raised here."""
    middleware = JobStateMiddleware(url=redis_url, interval=0.005)
    broker = InCallerBroker([middleware])
    functions: list[Callable[[JobState], object]] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        functions.pop()(job_state)

    def run(function: Callable[[JobState], object]) -> JobState:
        functions.append(function)
        return load(broker, run_marathon.send())

    yield run
    broker.emit_after("worker_shutdown", None)


@pytest.fixture(scope="session")
def viewer() -> Request:
    """The request of somebody who may see no job."""
    config = made_config(NOWHERE)
    config.add_route("report", "/reports/{file}")
    config.commit()
    return make_request(config)
