"""Which transaction a send joins, and what becomes of it at its commit or abort."""

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator
from typing import Any

import dramatiq.broker
import pytest
import transaction
from dramatiq import Broker
from dramatiq.middleware import Middleware
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.scripting import prepare
from transaction.interfaces import TransientError
from webtest import TestApp

from pyramid_jobstate import JobState
from pyramid_jobstate.testing import away, pass_time
from tests.counters import SQL, Database, Zodb
from tests.jobs import messages
from tests.web.databases import Manager, fail
from tests.web.visits import NOT_SENT, add_view, broker_that_is_away, load, sent, visit
from tests.webapp import (
    EXPLICIT,
    get,
    make_app,
    make_config,
    make_request,
    make_tm_config,
    queued,
)

IMPLICIT: dict[str, str] = {}

#: The sort key of a data manager after ours.
LAST = f"{chr(sys.maxunicode)}~"

#: Keeps the tests of jobs that their transaction forgets apart from those of others.
pytestmark = pytest.mark.usefixtures("global_broker")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Leave nothing in this thread's transaction."""
    transaction.abort()
    yield
    transaction.abort()


@pytest.fixture(params=[EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def either_config(redis_url: str, request: pytest.FixtureRequest) -> Configurator:
    """The configurator of an application, with each of pyramid_tm's managers."""
    return make_tm_config(redis_url, request.param)


@pytest.fixture
def implicit(redis_url: str) -> Configurator:
    return make_tm_config(redis_url, IMPLICIT)


@pytest.fixture(params=["SQL", "Zodb"])
def database(
    request: pytest.FixtureRequest, tm_config: Configurator, sqlite: SQL
) -> Iterator[Database]:
    """A database that commits when it votes, and one that has two phases."""
    database = sqlite if request.param == "SQL" else Zodb("memory://")
    tm_config.add_settings(database.settings)
    tm_config.include(database.includeme)
    with contextlib.closing(database):
        yield database


def write(request: Request, database: Database) -> None:
    """Change a database in the transaction of a request."""
    database.root_factory(request)["counter"].value += 1


def send(request: Request, miles: int = 26, broker: Broker | None = None) -> str:
    """Send a job, by default through the global broker, and return its uuid."""
    run_marathon = (broker or dramatiq.broker.get_broker()).get_actor("run_marathon")
    job_state = request.job_states.send(run_marathon, miles)
    assert isinstance(job_state, JobState)
    return job_state.uuid


# Commit and abort.


@pytest.mark.promise("sent-with-the-commit")
def test_commit_sends_when_the_database_is_durable(
    tm_config, global_broker, store, database
):
    """The message leaves, and is recorded, once others see what the request wrote."""

    class Watch(Middleware):
        def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
            moments.append((database.read()[0], load(tm_config, message.message_id)))

    def view(request: Request) -> str:
        write(request, database)
        uuid = send(request)
        assert store.client.keys() == []
        return uuid

    moments: list[Any] = []
    global_broker.add_middleware(Watch())
    uuid = visit(tm_config, view).text
    (message,) = queued(store.client)
    assert (message.message_id, message.args) == (uuid, (26,))
    ((count, job_state),) = moments
    assert (count, job_state.status, job_state.owner) == (1, "queued", "alice")
    assert [job.uuid for job in store.list(owner="alice").items] == [uuid]
    pass_time(store, 60)
    assert load(tm_config, uuid).status == "queued"


@pytest.mark.promise("sent-with-the-commit")
def test_abort_leaves_nothing(tm_config, client, sqlite):
    """A request whose transaction is aborted, however that happens, sends nothing."""

    def doom(request: Request) -> None:
        request.tm.doom()
        send(request, 27)

    def abort(request: Request) -> None:
        request.tm.abort()
        request.tm.begin()

    def view(request: Request) -> None:
        write(request, sqlite)
        send(request)
        ways[request.headers["X-User"]](request)

    tm_config.include(sqlite.includeme)
    ways: dict[str, Any] = {"doom": doom, "abort": abort, "fail": lambda r: fail()}
    add_view(tm_config, "go", view)
    app = make_app(tm_config)
    for way in ways:
        with contextlib.suppress(ZeroDivisionError):
            get(app, "/go", way)
        assert (client.keys(), sqlite.read()[0]) == ([], 0), way


def test_nobody_waits_for_a_job_before_its_commit(tm_config, global_broker, store):
    """It cannot end: a RuntimeError says so. What was taken back is unknown, also to a
    hook after the abort.
    """

    def after(*uuids: str) -> None:
        for uuid in uuids:
            with pytest.raises(KeyError):
                store.wait(uuid, timeout=0)
            unknown.append(uuid)

    def view(request: Request) -> None:
        for end, error in ("abort", KeyError), ("commit", TimeoutError):
            with request.job_states.batch() as batch:
                member = batch.send(global_broker.get_actor("run_marathon"), 26)
            uuids = [send(request), batch.uuid, member.uuid]
            for uuid in uuids:
                with pytest.raises(RuntimeError, match=f"{uuid} cannot end: it is se"):
                    store.wait(uuid)
            request.tm.get().addAfterAbortHook(after, uuids)
            getattr(request.tm, end)()
            for uuid in uuids:
                with pytest.raises(error):
                    store.wait(uuid, timeout=0)
            request.tm.begin()
        with contextlib.suppress(ZeroDivisionError), request.job_states.batch() as b:
            fail()
        with pytest.raises(KeyError):
            store.wait(b.uuid)

    unknown: list[str] = []
    assert visit(tm_config, view).status_code == 200
    assert len(unknown) == 3


def test_exception_view_shares_the_transaction(tm_config, client):
    """What both views send is taken back, but not what is sent immediately."""

    def view(request: Request) -> None:
        send(request, 1)
        fail()

    def answer(exc: Exception, request: Request) -> Response:
        send(request, 2)
        run_marathon = dramatiq.broker.get_broker().get_actor("run_marathon")
        request.job_states.send_immediately(run_marathon, 9)
        return Response("Sorry")

    tm_config.add_exception_view(answer, ZeroDivisionError)
    assert visit(tm_config, view).text == "Sorry"
    assert sent(client) == [9]


def test_retried_request_sends_once(tm_config, store, client, database):
    """Only the last attempt's job is sent, also after a conflict in the commit."""
    phases = ["tpc_vote", "commit", "view"]
    uuids = []

    def view(request: Request) -> str:
        write(request, database)
        uuids.append(send(request))
        phase = phases.pop() if phases else None
        if phase == "view":
            raise TransientError
        if phase:
            request.tm.get().join(Manager("}", phase, lambda: fail(TransientError)))
        return uuids[-1]

    tm_config.include("pyramid_retry")
    tm_config.add_settings({"retry.attempts": 4})
    response = visit(tm_config, view)
    assert len(set(uuids)) == 4
    assert [m.message_id for m in queued(client)] == [response.text] == uuids[3:]
    assert [job.uuid for job in store.list().items] == uuids[3:]
    assert database.read()[0] == 1


@pytest.mark.promise("savepoint-takes-jobs-back")
def test_savepoint_takes_back_what_was_sent_since(tm_config, client, store):
    """A rollback to a savepoint drops the jobs sent since, but not those before."""

    def view(request: Request) -> None:
        send(request, 1)
        first = request.tm.savepoint()
        send(request, 2)
        request.tm.savepoint()
        send(request, 3)
        first.rollback()
        send(request, 4)
        second = request.tm.savepoint()
        send(request, 5)
        second.rollback()

    visit(tm_config, view)
    assert sent(client) == [1, 4]
    assert len(store.list().items) == 2


# Failures of other data managers.


def test_manager_that_fails_leaves_nothing(tm_config, client, database):
    """If another manager fails before or after ours, nothing is stored or sent."""

    def view(request: Request) -> None:
        write(request, database)
        send(request)
        request.tm.get().join(Manager(key, phase, fail))

    add_view(tm_config, "go", view)
    app = make_app(tm_config)
    for key in "a", "~~~":
        for phase in "tpc_begin", "commit", "tpc_vote":
            with pytest.raises(ZeroDivisionError):
                get(app, "/go")
            assert client.keys() == [], (key, phase)
    # A one-phase database has committed by the last vote.
    assert database.read()[0] == database.has_one_phase


@pytest.mark.parametrize(("key", "status"), [("a", "error"), (LAST, "queued")])
def test_manager_that_fails_to_finish(tm_config, client, store, key, status):
    """If it comes before ours, nothing is sent, and the job says so."""

    def view(request: Request) -> None:
        send(request)
        request.tm.get().join(Manager(key, "tpc_finish", fail))

    with pytest.raises(ZeroDivisionError):
        visit(tm_config, view)
    (job_state,) = store.list().items
    assert job_state.status == status
    assert sent(client) == ([26] if status == "queued" else [])


# The store and the broker.


@pytest.mark.promise("no-commit-without-records")
def test_store_that_is_away_vetoes_the_commit(tm_config, client, database, caplog):
    """Nobody could follow the job. The log says so once."""

    def view(request: Request) -> None:
        write(request, database)
        send(request)
        stack.enter_context(away(request.job_states.store))

    with contextlib.ExitStack() as stack:
        response = visit(tm_config, view)
    assert response.status_code == 503 and "does not answer" in response.text
    assert (database.read()[0], client.keys()) == (0, [])
    (line,) = messages(caplog, "")
    assert line.startswith("The job state store does not answer.")


def test_store_that_goes_away_before_an_abort_is_only_logged(
    made_tm_config, store, caplog
):
    """A record that cannot be deleted hides no error, and its job will read stalled."""
    request = make_request(made_tm_config)
    stack = contextlib.ExitStack()

    def veto() -> None:
        stack.enter_context(away(request.job_states.store))
        fail()

    begun = request.tm.begin()
    uuid = send(request)
    begun.join(Manager("~~~", "tpc_vote", veto))
    with stack:
        with pytest.raises(ZeroDivisionError):
            begun.commit()
        begun.abort()
    (line,) = messages(caplog, "pyramid_jobstate")
    assert "stalled" in line and "RunMarathon" in line
    pass_time(store, store.stalled_after + 1)
    assert load(made_tm_config, uuid).status == "stalled"


@pytest.mark.promise("unsent-job-says-so")
def test_broker_that_is_away_marks_the_job(
    tm_config, redis_url, client, sqlite, caplog
):
    """The commit stands, the job has failed, and the other message is sent."""
    broker = broker_that_is_away(redis_url)
    tm_config.include(sqlite.includeme)

    def view(request: Request) -> str:
        write(request, sqlite)
        uuid = send(request, broker=broker)
        send(request, 2)
        return uuid

    response = visit(tm_config, view)
    assert (response.status_code, sqlite.read()[0]) == (200, 1)
    assert sent(client) == [2]
    job_state = load(tm_config, response.text)
    shown = job_state.__json__(make_request(tm_config, "alice"))["job"]
    assert (shown["status"], shown["error"]) == ("error", {"message": NOT_SENT})
    (line,) = messages(caplog, "pyramid_jobstate", logging.ERROR)
    assert response.text in line


# Scripts.


@contextlib.contextmanager
def script(config: Configurator) -> Iterator[Request]:
    """Yield the request of a script that uses the application."""
    make_app(config)
    with prepare(registry=config.registry) as env:
        yield env["request"]


def refused(request: Request) -> None:
    """Check that a send is refused with an error that says only what to do."""
    with pytest.raises(RuntimeError, match="No transaction has begun") as caught:
        send(request)
    error = caught.value
    for part in "use_tweens=True", "with request.tm:", "send_immediately":
        assert part in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_script_sends_at_its_commit(either_config, client, sqlite):
    """A script's database and jobs commit or abort together. Otherwise none is sent."""
    either_config.include(sqlite.includeme)
    with script(either_config) as request:
        refused(request)
        request.tm.begin()
        write(request, sqlite)
        send(request)
        request.tm.abort()
        refused(request)
        assert (sqlite.read()[0], client.keys()) == (0, [])
        with request.tm:
            write(request, sqlite)
            uuid = send(request)
            assert client.keys() == []
        refused(request)
    assert [m.message_id for m in queued(client)] == [uuid]
    assert sqlite.read()[0] == 1


def test_application_without_a_manager_is_told(redis_url, client):
    """Without pyramid_tm, or its manager, a request has no transaction to join."""
    hook: Any = {"tm.manager_hook": lambda request: None}
    for config in make_config(redis_url), make_tm_config(redis_url, hook):
        with script(config) as request, transaction.manager:
            match = r"no request\.tm\. Include pyramid_tm.*send_immediately"
            with pytest.raises(RuntimeError, match=match):
                send(request)
    assert client.keys() == []


# Subrequests, and sends outside the tween.


def subrequest(request: Request, **options: Any) -> Any:
    sub = Request.blank("/sub", headers={"X-User": "alice"})
    return request.invoke_subrequest(sub, **options)


def test_subrequest_shares_the_threads_transaction(implicit, client):
    """Its message leaves with the outer request's, unless tweens begin anew."""

    def view(request: Request) -> None:
        send(request, 1)
        subrequest(request, use_tweens=request.headers["X-User"] == "tweens")
        sent_by_now.append(sent(client))
        send(request, 27)
        if request.headers["X-User"] == "fails":
            fail()

    sent_by_now: list[Any] = []
    add_view(implicit, "sub", send)
    add_view(implicit, "go", view)
    app = make_app(implicit)
    with pytest.raises(ZeroDivisionError):
        get(app, "/go", "fails")
    assert client.keys() == []
    get(app, "/go", "plain")
    assert sent(client) == [1, 26, 27]
    client.flushall()
    get(app, "/go", "tweens")
    assert sent(client) == [26, 27]
    assert sent_by_now == [[], [], [26]]


def test_transaction_that_nobody_commits_is_told(implicit, client, sqlite, caplog):
    """A session that is used after the commit begins one. The job is logged."""

    def late(request: Request) -> None:
        request.dbsession.connection()
        uuids.append(send(request))

    uuids: list[str] = []
    implicit.include(sqlite.includeme)
    visit(implicit, lambda request: request.add_finished_callback(late))
    transaction.begin()
    (line,) = messages(caplog, "pyramid_jobstate")
    assert uuids[0] in line
    assert sent(client) == []


def test_transaction_that_others_commit_is_not_told(implicit, client, caplog):
    """That of repoze.tm2 commits after the request, and one that a subrequest has begun
    after the outer one. Nobody is warned.
    """

    def commit_and_ask(request: Request) -> None:
        request.tm.commit()
        subrequest(request)

    add_view(implicit, "sub", send)
    add_view(implicit, "go", commit_and_ask)
    app = make_app(implicit)

    def repoze_tm(environ: Any, start_response: Any) -> Any:
        with transaction.manager:
            return app.app({**environ, "repoze.tm.active": True}, start_response)

    assert get(TestApp(repoze_tm), "/sub", "alice").status_code == 200
    assert sent(client) == [26]
    assert get(app, "/go", "alice").status_code == 200
    assert sent(client) == [26, 26]
    assert messages(caplog, "pyramid_jobstate") == []


def test_transaction_that_is_forgotten_is_told(tm_config, caplog):
    """A job whose transaction is dropped with its manager is logged."""

    def begin() -> str:
        with script(tm_config) as request:
            request.tm.begin()
            return send(request)

    uuid = begin()
    gc.collect()
    (line,) = messages(caplog, "pyramid_jobstate")
    assert uuid in line


def test_send_within_a_commit_is_refused(either_config, client):
    """A committing transaction takes sends from before-commit hooks alone."""

    def late(request: Request) -> None:
        with pytest.raises(RuntimeError, match=r"commit.*send_immediately"):
            send(request, 27)
        tried.append(request)

    def view(request: Request) -> str:
        request.tm.get().addBeforeCommitHook(send, (request, 1))
        for phase in "commit", "tpc_vote", "tpc_finish":
            request.tm.get().join(Manager("a", phase, lambda: late(request)))
        return send(request)

    tried: list[Request] = []
    assert visit(either_config, view).status_code == 200
    assert len(tried) == 3
    assert sent(client) == [26, 1]
