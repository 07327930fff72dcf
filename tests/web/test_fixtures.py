"""The pytest fixtures and helpers, in an application whose tests look like the
cookiecutter's.
"""

import asyncio
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
import redis
import transaction
from dramatiq import pipeline
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from pyramid.authorization import Everyone
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.router import Router
from webtest import TestApp

from pyramid_jobstate import (
    ActorError,
    Batch,
    JobError,
    JobState,
    JobStateMiddleware,
    JobStore,
    Progress,
    RequestMiddleware,
    rerun,
    testing,
)
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import outbox, put_job, values
from tests.jobs import RunMarathon, job_actor, wait_until, working
from tests.support import FINISHED, STATUSES, key_of, load_job
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

    @job_actor(broker=broker)
    def nest(*, request: Request, job_state: JobState) -> None:
        testing.run_jobs(request.registry)

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
def test_jobs_run_in_the_transaction_of_the_test(testapp, tm, job_outbox, run_jobs):
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


def test_plain_send_is_in_the_outbox(job_outbox, run_jobs):
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
    job_store, request, monkeypatch, is_tracking
):
    """Untracked messages, jobs that run again, and what a middleware puts back."""
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


@pytest.mark.usefixtures("app")
def test_worker_beside_the_test_sends_what_is_its_own(job_store, request, monkeypatch):
    """It gets what is due, retries and later steps. What an actor sends there is in the
    outbox.
    """
    broker = StubBroker()
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    broker.add_middleware(JobStateMiddleware(job_store))

    @job_actor(broker=broker, max_retries=1, min_backoff=1)
    def stumble(*, job_state: JobState) -> None:
        assert job_state.attempt == 2

    @job_actor(broker=broker)
    def greet(name: str | None = None, *, job_state: JobState) -> None:
        if name is None:
            greet.send("bob")

    steps = pipeline([stumble.message(), greet.message()]).run(delay=1).messages
    job_outbox = request.getfixturevalue("job_outbox")
    with working(broker):
        wait_until(broker, steps[1], "success")
    assert [sent.message.args for sent in job_outbox] == [("bob",)]


def test_plain_pipeline_is_in_the_outbox(job_outbox, run_jobs):
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


def test_error_of_a_job_reaches_the_test(testapp, job_outbox, run_jobs):
    """It is raised, later steps do not run, and the next call goes on after them."""
    testapp.get("/fail")
    with pytest.raises(ZeroDivisionError):
        run_jobs()
    (job,) = run_jobs()
    assert values(job, "miles_run") == [1]
    assert [sent.job_state.status for sent in job_outbox] == [
        *("error", "cancelled", "success")
    ]


def test_jobs_are_not_run_inside_a_job(job_outbox, run_jobs):
    """The error says what to do, and fails the job that has called it."""
    dramatiq.get_broker().get_actor("nest").send()
    with pytest.raises(RuntimeError, match="after the job"):
        run_jobs()
    assert [sent.job_state.status for sent in job_outbox] == ["error"]


@pytest.fixture
def left_over(jobstate_server: EmbeddedServer) -> None:
    """A job of the test before."""
    put_job(JobStore(jobstate_server.url))


@pytest.mark.usefixtures("left_over")
def test_job_store_is_empty(job_store):
    """A test finds no job of the test before."""
    assert job_store.list(members=True).items == []


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
def test_application_has_its_own_again(job_outbox, job_store, app):
    """It reads the store of the test, and then where its settings say."""
    assert outbox(app.registry) is job_outbox
    job = put_job(job_store, status="retrying", owner="alice", attempt=2)
    state = TestApp(app).get(f"/job_state/{job.uuid}").json
    assert state["job"]["status"] == "retrying"


# The helpers without the fixtures


@pytest.mark.promise("testing-tools-need-no-server")
def test_outbox_keeps_what_requests_send(job_store):
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


class PutFiles(Batch):
    """A kind of batch."""


def test_detached_records_an_asynchronous_loop():
    """A detached JobState has its class and parameters, and all of an `async for`."""
    job_state = testing.detached(RunMarathon, miles=2)
    assert type(job_state) is RunMarathon and job_state.job_params == {"miles": 2}

    async def read() -> AsyncIterator[str]:
        yield "a"

    async def work() -> None:
        async for _ in job_state.track(read(), 1, "rows"):
            pass

    asyncio.run(work())
    recorded = [("progress", done, 1, "rows") for done in (0, 1)]
    assert testing.history(job_state) == recorded


def test_history_and_cancel_are_not_of_loaded_ones(job_store):
    """They are of a JobState that keeps its reports, and of a job that runs here."""
    wrongs: list[Any] = [testing.put_job(job_store), None]
    for wrong in wrongs:
        with pytest.raises(TypeError, match=f"^{wrong} was not created by detached"):
            testing.history(wrong)
        with pytest.raises(TypeError, match=f"^{wrong} does not belong to a job"):
            testing.cancel(wrong)
    assert not wrongs[0].cancel_requested


def test_put_job_reaches_every_status(job_store):
    """A job can be put into any status, with all that a page may show of it."""
    bad, cancelled = JobError("ValueError", "bad"), "The job was cancelled."
    who: Any = {"actor": "run_marathon", "owner": "alice", "params": {"miles": 26}}
    how_far: Any = {"metrics": {"miles_run": 12}, "progress": Progress(12, 26, "miles")}
    rest: Any = {"message": "On we go", "log": ["a", "b"], "attempt": 3, "delay": 60}
    for status in STATUSES:
        error = bad if status in ("retrying", "error") else None
        options = {**who, **how_far, **rest, "error": error}
        job_state = testing.put_job(job_store, RunMarathon, status, **options)
        assert isinstance(job_state, RunMarathon)
        assert (job_state.status, job_state.owner) == (status, "alice")
        assert job_state.job_params == {"miles": 26}
        assert job_state.actor == "run_marathon"
        if status == "queued":
            assert job_state.attempt == 0 and job_state.due_at
            continue
        assert job_state.attempt == 3
        assert job_state.progress_metrics == {"miles_run": 12}
        assert job_state.progress and job_state.progress.fraction == 12 / 26
        assert (job_state.message, job_state.log) == ("On we go", ["a", "b"])
        wanted = JobError(None, cancelled) if status == "cancelled" else error
        assert job_state.error == wanted
        assert (job_state.due_at is not None) is (status == "retrying")
        assert (job_state.finished_at is not None) is (status in FINISHED)


def test_wrong_argument_is_named(job_store):
    """The error names the argument and its value, and nothing is stored."""
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("error", {}, "^job_state_class must be a JobState class, not 'error'"),
        (Batch, {}, r"^put_job\(\) makes no batches\. Use put_batch\(\)"),
        (JobState, {"status": "done"}, r"'done'.*success"),
        (JobState, {"status": "failed"}, r"'failed'.* Did you mean 'error'\?$"),
        (JobState, {"actor": None}, "^actor must be a str, not None"),
        (JobState, {"owner": [1]}, r"owner of a job must be .*, not \[1\]"),
        (JobState, {"owner": Everyone}, "must be a single user, not 'system.Everyone'"),
        (JobState, {"params": [1]}, r"^params must be .*, not \[1\]"),
        (JobState, {"progress": (1, 2)}, r"^progress must be .*, not \(1, 2\)"),
        (JobState, {"log": "abc"}, "^log must be a list .*, not the string 'abc'"),
        (JobState, {"attempt": 0}, "^attempt must be .*, not 0"),
        (JobState, {"attempt": "2"}, "^attempt must be an int, not '2'"),
        (JobState, {"error": ValueError("x")}, "^error must be a JobError, not Val"),
        (JobState, {"status": "queued", "delay": "60"}, "^delay must be .* sec"),
    ]
    for cls, options, match in wrong:
        with pytest.raises((TypeError, ValueError), match=match):
            testing.put_job(job_store, cls, **options)
    cases: list[tuple[tuple[Any, Any], str]] = [
        ((RunMarathon, []), "^A batch needs a subclass of Batch, not "),
        ((Batch, "error"), "^members must be a list of statuses, not 'error'"),
        ((Batch, [{"weight": "1"}]), "^The weight of a member must be a number"),
        ((Batch, [{"state": "error"}]), "unexpected keyword argument 'state'"),
    ]
    for arguments, match in cases:
        with pytest.raises(TypeError, match=match):
            testing.put_batch(job_store, *arguments)
    assert job_store.client.dbsize() == 0
    url: Any = "redis://:hush@localhost"
    with pytest.raises(TypeError, match=r"^store must be a JobStore, not str\.$"):
        testing.put_job(url)


def test_put_batch_follows_from_its_members(job_store):
    """A batch is put with members in any status, and reads what follows from these."""
    running = {"job_state_class": RunMarathon, "metrics": {"mile": 2}}
    failed = {"status": "error", "error": JobError("ValueError", "bad")}
    members: list[Any] = ["queued", running, "success", failed]
    named: Any = {"owner": "alice", "title": "Two files"}
    batch = testing.put_batch(job_store, PutFiles, members, **named)
    assert isinstance(batch, PutFiles) and batch.owner == "alice"
    assert (batch.status, batch.title) == ("working", "Two files")
    found = job_store.members(batch.uuid).items
    statuses = [member.status for member in found]
    assert statuses == ["queued", "working", "success", "error"]
    assert isinstance(found[1], RunMarathon)
    assert found[1].progress_metrics == {"mile": 2}
    assert {member.owner for member in found} == {"alice"}


def test_time_passes_for_a_store(job_store):
    """A job that runs stalls, one that is due is due, and an ended one expires."""
    working = testing.put_job(job_store)
    stalled = testing.put_job(job_store, status="stalled")
    retrying = testing.put_job(job_store, status="retrying", delay=60)
    ended = testing.put_job(job_store, status="success")
    others = [job_store.replace(namespace=name) for name in ("other[1]", "jobstate:b")]
    elsewhere = [testing.put_job(other).uuid for other in others]
    testing.pass_time(job_store, job_store.stalled_after + 1)
    for each in working, stalled:
        assert load_job(job_store, each.uuid).status == "stalled"
    late = load_job(job_store, retrying.uuid).due_at
    assert retrying.due_at and late and late < retrying.due_at
    for other, uuid in zip(others, elsewhere, strict=True):
        assert load_job(other, uuid).status == "working"
    testing.pass_time(job_store, job_store.expire_in)
    assert job_store.load(ended.uuid) is None
    # Nor is anything left in the lists by then.
    testing.pass_time(job_store, 3 * job_store.active_expire_in)
    left: Any = job_store.client.keys("jobstate:*")
    assert all(key.startswith("jobstate:b:") for key in left)
    for seconds in "1", -1, float("nan"):
        bad: Any = seconds
        with pytest.raises((TypeError, ValueError), match="seconds must be a"):
            testing.pass_time(job_store, bad)


def test_time_passes_over_a_slow_connection(client, proxy):
    """A record loses just as much of its life as passes, also meanwhile."""

    def dawdle(request: bytes) -> str:
        time.sleep(0.1)
        return "pass"

    store = JobStore(proxy.url)
    key = key_of(store, put_job(store).uuid)
    proxy.judge = dawdle
    before, begun = client.pttl(key), time.monotonic()
    testing.pass_time(store, 100)
    passed = 100 + time.monotonic() - begun
    assert client.pttl(key) <= before - int(passed * 1000) + 2


def test_time_passes_for_a_batch(job_store):
    """Its members keep their order, also in a namespace with a hash tag."""
    for store in job_store, job_store.replace(namespace="{b}:jobs"):
        batch = testing.put_batch(store, members=["success", "error", "error"])
        before = [job.uuid for job in store.members(batch.uuid, "error").items]
        testing.pass_time(store, 1)
        assert len(before) == 2
        assert [job.uuid for job in store.members(batch.uuid, "error").items] == before


def test_store_that_is_away(job_store):
    """Inside the block it refuses. Afterwards, it has all its jobs."""
    job = testing.put_job(job_store, owner="alice")
    with testing.away(job_store), pytest.raises(redis.ConnectionError):
        job_store.load(job.uuid)
    assert job_store.load(job.uuid)
    of_a_cluster: Any = types.SimpleNamespace(client=object())
    match = r"must be a redis\.Redis, not <class 'object'>"
    with pytest.raises(TypeError, match=match):
        testing.away(of_a_cluster).__enter__()
