"""The pytest fixtures, in an application whose tests look like the cookiecutter's."""

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
import transaction
from dramatiq import pipeline
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.router import Router
from webtest import TestApp

from pyramid_jobstate import (
    ActorError,
    JobError,
    JobState,
    JobStateMiddleware,
    JobStore,
    RequestMiddleware,
    rerun,
    testing,
)
from pyramid_jobstate.testing import Outbox, outbox, put_job, values
from tests.jobs import job_actor
from tests.webapp import EXPLICIT, NOWHERE, make_broker, make_request, make_tm_config

# `run_jobs` is a fixture and a function: the fixture is requested by its name.
pytest_plugins = ["pyramid_jobstate.fixtures"]

#: What the jobs have done.
done: list[Any] = []


@pytest.fixture(scope="module")
def app() -> Iterator[Router]:
    """Override: an application that keeps its jobs where nothing answers."""
    before = dramatiq.broker.global_broker
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=NOWHERE))
    broker.add_middleware(RequestMiddleware())
    dramatiq.set_broker(broker)

    @job_actor(broker=broker)
    def follow(miles: int, *, job_state: JobState) -> int:
        job_state.set_progress_metric("miles_run", miles)
        return miles + 1

    @job_actor(broker=broker)
    def lead(miles: int, *, request: Any, job_state: JobState) -> None:
        done.append((request.tm, request.application_url))
        job_state.set_progress_metric("owner", request.job_states.current_owner)
        request.job_states.send(follow, miles)

    @job_actor(broker=broker)
    def pass_on(miles: int, *, job_state: JobState) -> None:
        follow.send(miles)

    @job_actor(broker=broker)
    def broken(*, job_state: JobState) -> None:
        raise ZeroDivisionError

    job_actor(actor_name="untracked", broker=broker)(lambda: None)

    def send(request: Request) -> Any:
        return {"uuid": request.job_states.send(lead, 26).uuid}

    def fail(request: Request) -> None:
        steps = broken.message() | follow.message()
        request.job_states.send_message(steps)
        request.job_states.send(follow, 1)

    settings: Any = {**EXPLICIT, "jobstate.owner": lambda request: "alice"}
    with Configurator(settings=settings) as config:
        config.include("pyramid_tm")
        config.include("pyramid_jobstate")
        for view in send, fail:
            config.add_route(view.__name__, f"/{view.__name__}")
            config.add_view(view, route_name=view.__name__, renderer="json")
        yield config.make_wsgi_app()
    dramatiq.broker.global_broker = before


@pytest.fixture
def tm() -> Iterator[transaction.TransactionManager]:
    tm = transaction.TransactionManager(explicit=True)
    tm.begin()
    tm.doom()
    yield tm
    tm.abort()


@pytest.fixture
def testapp(app: Router, tm: transaction.TransactionManager) -> TestApp:
    environ = {"HTTP_HOST": "example.com", "tm.active": True, "tm.manager": tm}
    return TestApp(app, extra_environ=environ)


RunJobs = Callable[[], list[JobState]]


@pytest.mark.promise("testing-tools-need-no-server")
def test_jobs_run_in_the_transaction_of_the_test(
    testapp: TestApp,
    tm: transaction.TransactionManager,
    job_outbox: Outbox,
    run_jobs: RunJobs,
) -> None:
    """What it sends is in the outbox alone, and runs in the test's environ."""
    assert job_outbox == []
    uuid = testapp.get("/send").json["uuid"]
    (sent,) = job_outbox
    assert (sent.message.actor_name, sent.message.args) == ("lead", (26,))
    assert (sent.job_state.uuid, sent.job_state.owner) == (uuid, "alice")
    lead, follow = run_jobs()
    assert lead.uuid == uuid and done.pop() == (tm, "http://example.com")
    assert values(lead, "owner") == ["alice"] and follow.owner == "alice"
    assert values(follow, "miles_run") == [26]
    assert len(job_outbox) == 2 and run_jobs() == []


def test_plain_send_is_in_the_outbox(job_outbox: Outbox, run_jobs: RunJobs) -> None:
    """What is sent without a request, in a test or by a job, is in the outbox, too."""
    actor = dramatiq.get_broker().get_actor
    message = actor("pass_on").send_with_options(args=(3,), job_owner="bob", delay=9)
    (sent,) = job_outbox
    assert (sent.message.message_id, sent.message.args) == (message.message_id, (3,))
    assert (sent.job_state.uuid, sent.job_state.owner) == (message.message_id, "bob")
    assert sent.job_state.due_at is not None
    passed, followed = run_jobs()
    assert passed.uuid == message.message_id
    assert values(followed, "miles_run") == [3]


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("is_tracking", [True, False])
def test_what_has_no_place_in_the_outbox_is_sent(
    job_store: JobStore,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    is_tracking: bool,
) -> None:
    """The broker gets the messages of untracked actors, of jobs that run again, and
    what a middleware puts back.
    """
    broker = StubBroker()
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    if is_tracking:
        broker.add_middleware(JobStateMiddleware(job_store))
        job_actor(actor_name="walk", broker=broker)(lambda *, job_state: None)
    sweep = job_actor(actor_name="sweep", broker=broker)(lambda: None)
    job_outbox = request.getfixturevalue("job_outbox")
    sweep.send()
    if is_tracking:
        error = JobError("ValueError", "bad")
        failed = put_job(job_store, status="error", actor="walk", error=error)
        assert rerun(job_store, broker, failed.uuid)
        put_back: Any = MessageProxy(broker.get_actor("walk").message())
        broker.enqueue(put_back)
    assert broker.queues["default"].qsize() == 1 + 2 * is_tracking
    assert job_outbox == []


def test_plain_pipeline_is_in_the_outbox(job_outbox: Outbox, run_jobs: RunJobs) -> None:
    """All steps are, and get the results before them. An untracked one is refused."""
    broker = dramatiq.get_broker()
    follow = broker.get_actor("follow")
    ignoring = follow.message_with_options(args=(9,), pipe_ignore=True)
    pipeline([follow.message(1), follow.message(), ignoring]).run(delay=1000)
    first, second, _ = (sent.job_state for sent in job_outbox)
    assert first.due_at is not None and second.due_at is None
    assert [values(job, "miles_run") for job in run_jobs()] == [[1], [2], [9]]
    with pytest.raises(ActorError, match="'untracked' is not tracked"):
        pipeline([broker.get_actor("untracked").message(), follow.message()]).run()


def test_error_of_a_job_reaches_the_test(
    testapp: TestApp, job_outbox: Outbox, run_jobs: RunJobs
) -> None:
    """It is raised, later steps do not run, and the next call goes on after them."""
    testapp.get("/fail")
    with pytest.raises(ZeroDivisionError):
        run_jobs()
    (job,) = run_jobs()
    assert values(job, "miles_run") == [1]
    assert [sent.job_state.status for sent in job_outbox] == [
        *("error", "cancelled", "success")
    ]


@pytest.mark.xdist_group("job_store")
@pytest.mark.parametrize("number", [1, 2])
def test_job_store_is_empty(job_store: JobStore, number: int) -> None:
    """A test finds no job of the test before."""
    assert job_store.list(members=True).items == []
    put_job(job_store)


@pytest.fixture
def afterwards(app: Router) -> Iterator[None]:
    """Looks at the application once the fixtures that a test names later have ended."""
    yield
    with pytest.raises(LookupError, match="has no outbox"):
        outbox(app.registry)
    TestApp(app).get("/job_state", status=503)
    broker = dramatiq.get_broker()
    assert isinstance(broker, StubBroker)
    broker.get_actor("follow").send(1)
    assert broker.queues["default"].qsize() == 1
    broker.flush_all()


@pytest.mark.usefixtures("afterwards")
def test_application_has_its_own_again(
    job_outbox: Outbox, job_store: JobStore, app: Router
) -> None:
    """It reads the store of the test, and then where its settings say."""
    assert outbox(app.registry) is job_outbox
    job = put_job(job_store, status="retrying", owner="alice", attempt=2)
    state = TestApp(app).get(f"/job_state/{job.uuid}").json
    assert state["job"]["status"] == "retrying"


# The helpers without the fixtures


@pytest.mark.promise("testing-tools-need-no-server")
def test_outbox_keeps_what_requests_send(job_store: JobStore) -> None:
    """It does in whichever order the two are included, and nothing is written."""
    run_marathon = make_broker(NOWHERE).get_actor("run_marathon")
    names = ["pyramid_jobstate.testing", "pyramid_jobstate"]
    for includes in names, names[::-1]:
        config = make_tm_config(None)
        for name in includes:
            config.include(name)
        config.set_job_store(job_store)
        config.make_wsgi_app()
        job_states = make_request(config, "alice").job_states
        sends = job_states.send, job_states.send_immediately
        jobs = [send(run_marathon, 26) for send in sends]
        outbox = testing.outbox(config.registry)
        assert [sent.job_state for sent in outbox] == jobs
        assert outbox[0].message.message_id == jobs[0].uuid
        assert outbox[0].message.options["job_owner"] == jobs[0].owner == "alice"
        ran = testing.run_jobs(config.registry)
        assert [job.status for job in ran] == ["success"] * 2
        assert job_store.client.dbsize() == 0
