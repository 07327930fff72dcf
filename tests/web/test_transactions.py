"""Which transaction a send joins, and what becomes of it when that commits, aborts or
fails.
"""

import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq.broker
import pytest
import redis
import sqlalchemy
import transaction
import zope.sqlalchemy
from dramatiq import Broker, Message, group, pipeline
from dramatiq.middleware import Middleware
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.scripting import prepare
from pyramid.threadlocal import RequestContext
from transaction.interfaces import DoomedTransaction, NoTransaction, TransientError
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.testing import away, pass_time
from pyramid_jobstate.testing import put_job as put
from tests.faulty import faulty
from tests.jobs import RunMarathon, messages
from tests.web.databases import Manager, SQLite, Zodb, fail
from tests.web.visits import (
    NOT_SENT,
    add_view,
    broker_that_is_away,
    committing,
    load,
    sent,
    visit,
)
from tests.webapp import (
    EXPLICIT,
    get,
    make_app,
    make_broker,
    make_config,
    make_request,
    make_tm_config,
    queued,
)

IMPLICIT: dict[str, str] = {}

#: The sort key of a data manager after ours.
LAST = f"{chr(sys.maxunicode)}~"

VETO = {**EXPLICIT, "tm.commit_veto": "pyramid_tm.default_commit_veto"}

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
    """The configurator of an application with the thread's manager."""
    return make_tm_config(redis_url, IMPLICIT)


@pytest.fixture(params=[SQLite, Zodb])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A database that commits when it votes, and one that has two phases."""
    with contextlib.closing(request.param(tmp_path)) as database:
        yield database


def send(request: Request, miles: int = 26, broker: Broker | None = None) -> str:
    """Send a job, by default through the global broker, and return its uuid."""
    run_marathon = (broker or dramatiq.broker.get_broker()).get_actor("run_marathon")
    job_state = request.job_states.send(run_marathon, miles)
    assert isinstance(job_state, JobState)
    return job_state.uuid


def state_of(store: JobStore, uuid: str) -> Any:
    """Return all that a store says of a job."""
    job = store.load(uuid)
    assert job is not None
    names = "status error progress_metrics attempt queued_at updated_at finished_at"
    return [getattr(job, name) for name in names.split()], store.failures(uuid)


def doom(request: Request) -> None:
    request.tm.doom()
    send(request, 27)


def abort(request: Request) -> None:
    request.tm.abort()
    request.tm.begin()


# Commit and abort.


def test_commit_sends_when_the_database_is_durable(
    tm_config: Configurator,
    global_broker: Broker,
    store: JobStore,
    client: redis.Redis,
    database: Any,
) -> None:
    """The message is sent once others see what the request wrote, under the uuid that
    the view got. Before, the store has no record.
    """

    class Watch(Middleware):
        def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
            moments.append((database.count(), load(tm_config, message.message_id)))

    def view(request: Request) -> str:
        database.write(request)
        uuid = send(request)
        assert client.keys() == []
        return uuid

    moments: list[Any] = []
    global_broker.add_middleware(Watch())
    uuid = visit(tm_config, view).text
    (message,) = queued(client)
    assert (message.message_id, message.args) == (uuid, (26,))
    ((count, job_state),) = moments
    assert (count, job_state.status, job_state.owner) == (1, "queued", "alice")
    assert [job.uuid for job in store.list(owner="alice").items] == [uuid]
    pass_time(store, 60)
    assert load(tm_config, uuid).status == "queued"


@pytest.mark.parametrize("how", [fail, doom, abort])
def test_abort_leaves_nothing(
    tm_config: Configurator,
    client: redis.Redis,
    database: Any,
    how: Callable[..., object],
) -> None:
    """A request whose transaction is aborted, however that happens, sends nothing."""

    def view(request: Request) -> None:
        database.write(request)
        send(request)
        how(*(() if how is fail else (request,)))

    with pytest.raises(ZeroDivisionError) if how is fail else contextlib.nullcontext():
        visit(tm_config, view)
    assert client.keys() == []
    assert database.count() == 0


@pytest.mark.parametrize(("settings", "miles"), [(EXPLICIT, []), (VETO, [26, 1])])
def test_exception_view_sends_if_its_transaction_commits(
    redis_url: str, client: redis.Redis, settings: dict[str, str], miles: list[int]
) -> None:
    """A request that is answered by an exception view sends nothing, nor does that
    view, unless the commit veto accepts its response.
    """
    config = make_tm_config(redis_url, settings)

    def apologize(exc: Exception, request: Request) -> Response:
        send(request, 1)
        return Response("Sorry")

    def view(request: Request) -> None:
        send(request)
        fail()

    config.add_exception_view(apologize, context=ZeroDivisionError)
    assert visit(config, view).text == "Sorry"
    assert sent(client) == miles


def test_commit_veto_leaves_nothing(
    redis_url: str, client: redis.Redis, store: JobStore
) -> None:
    """A response that the application's commit veto rejects sends nothing."""
    config = make_tm_config(redis_url, VETO)

    def view(request: Request) -> Response:
        status = int(request.headers["X-User"])
        send(request, status)
        return Response(status=status)

    add_view(config, "go", view)
    app = make_app(config)
    for status in 409, 200, 500, 303:
        assert get(app, "/go", str(status)).status_code == status
    assert sent(client) == [200, 303]
    assert len(store.list().items) == 2


def test_retried_request_sends_once(
    tm_config: Configurator, store: JobStore, client: redis.Redis, database: Any
) -> None:
    """Of the attempts of pyramid_retry, only the last one's job is sent, also if the
    conflict arises in the commit, after the records were written.
    """
    phases = ["tpc_vote", "commit", "view"]
    uuids = []

    def view(request: Request) -> str:
        database.write(request)
        uuids.append(send(request))
        if phases and phases.pop() == "view":
            raise TransientError
        if len(uuids) < 4:
            phase = "commit" if len(uuids) == 2 else "tpc_vote"
            request.tm.get().join(Manager("}", phase, lambda: fail(TransientError)))
        return uuids[-1]

    tm_config.include("pyramid_retry")
    tm_config.add_settings({"retry.attempts": 4})
    response = visit(tm_config, view)
    assert len(set(uuids)) == 4
    assert [m.message_id for m in queued(client)] == [response.text] == uuids[3:]
    assert [job.uuid for job in store.list().items] == uuids[3:]
    assert database.count() == 1


def test_savepoint_takes_back_what_was_sent_since(
    either_config: Configurator, client: redis.Redis, store: JobStore, tmp_path: Path
) -> None:
    """A rollback to a savepoint drops the jobs sent since, but not those before."""

    def view(request: Request) -> None:
        zodb.write(request)
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

    with contextlib.closing(Zodb(tmp_path)) as zodb:
        visit(either_config, view)
    assert sent(client) == [1, 4]
    assert len(store.list().items) == 2


# Failures of other data managers.


@pytest.mark.parametrize("key", ["a", "~~~"])
def test_manager_that_fails_leaves_nothing(
    tm_config: Configurator,
    client: redis.Redis,
    database: Any,
    key: str,
    subtests: pytest.Subtests,
) -> None:
    """If another data manager fails, before or after ours, no record and no place in a
    list stays, and nothing is sent.
    """

    def view(request: Request) -> None:
        database.write(request)
        send(request)
        request.tm.get().join(Manager(key, phase, fail))

    add_view(tm_config, "go", view)
    app = make_app(tm_config)
    for phase in "tpc_begin", "commit", "tpc_vote":
        with subtests.test(msg=phase):
            with pytest.raises(ZeroDivisionError):
                get(app, "/go")
            assert client.keys() == []
    # A one-phase database has committed by the last vote.
    assert database.count() == (key == "~~~" and isinstance(database, SQLite))


def test_database_that_refuses_at_its_commit_leaves_nothing(
    tm_config: Configurator, client: redis.Redis, store: JobStore, sqlite: SQLite
) -> None:
    """A one-phase database fails only in its vote, when the record is already written:
    the record is deleted.
    """
    written: list[int] = []

    def view(request: Request) -> None:
        session = sqlite.session(request)
        session.execute(sqlalchemy.text("INSERT INTO runner VALUES (42)"))
        zope.sqlalchemy.mark_changed(session, transaction_manager=request.tm)
        send(request)
        note = Manager("a", "tpc_vote", lambda: written.append(len(store.list().items)))
        request.tm.get().join(note)

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        visit(tm_config, view)
    assert written == [1]
    assert client.keys() == []


@pytest.mark.parametrize(("key", "status"), [("a", "error"), (LAST, "queued")])
def test_manager_that_fails_to_finish(
    tm_config: Configurator, client: redis.Redis, store: JobStore, key: str, status: str
) -> None:
    """If another manager fails in its tpc_finish, contrary to its contract, before ours
    has finished, nothing is sent and, as databases may have committed, the job says so.
    After ours it changes nothing.
    """

    def view(request: Request) -> None:
        send(request)
        request.tm.get().join(Manager(key, "tpc_finish", fail))

    with pytest.raises(ZeroDivisionError):
        visit(tm_config, view)
    (job_state,) = store.list().items
    assert job_state.status == status
    assert sent(client) == ([26] if status == "queued" else [])


# The store and the broker.


def test_store_that_is_away_vetoes_the_commit(
    tm_config: Configurator, client: redis.Redis, database: Any
) -> None:
    """Nobody could follow the job."""

    def view(request: Request) -> None:
        database.write(request)
        send(request)
        stack.enter_context(away(request.job_states.store))

    with contextlib.ExitStack() as stack:
        response = visit(tm_config, view)
    assert response.status_code == 503 and "does not answer" in response.text
    assert database.count() == 0
    assert client.keys() == []


def test_commit_asks_a_store_that_has_just_failed_others(
    redis_url: str, tm_config: Configurator, store: JobStore, client: redis.Redis
) -> None:
    """An earlier failure of another sender, who does not wait for the store for a
    while, vetoes nothing: the record is written.
    """
    broker = make_broker(redis_url, JobStateMiddleware(store))

    def view(request: Request) -> str:
        uuid = send(request, broker=broker)
        with away(store):
            broker.get_actor("run_marathon").send(1)
        return uuid

    uuid = visit(tm_config, view).text
    assert sent(client) == [1, 26]
    pass_time(store, 60)
    assert load(tm_config, uuid).status == "queued"


def test_messages_of_a_transaction_wait_together_for_a_store_that_went_away(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that goes away once the records are written delays a transaction once,
    not once per message, and all messages are sent.
    """
    with faulty(redis_url) as proxy:
        broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
        monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
        many = [broker.get_actor("run_marathon").message(26) for _ in range(20)]

        def view(request: Request) -> None:
            request.job_states.send_message(group(many, broker=broker))
            request.tm.get().join(Manager("~~~~", "tpc_vote", proxy.swallow))

        visit(make_tm_config(proxy.url), view)
        assert len(queued(client)) == 20
        # One confirmation, which the client library has tried twice.
        assert proxy.swallowed == 2


def test_store_that_goes_away_before_an_abort_is_only_logged(
    made_tm_config: Configurator, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """If the record cannot be deleted, the request's own error is raised, and the job
    will read stalled.
    """
    request = make_request(made_tm_config)
    gone = away(request.job_states.store)

    def veto() -> None:
        gone.__enter__()
        fail()

    begun = request.tm.begin()
    uuid = send(request)
    begun.join(Manager("~~~", "tpc_vote", veto))
    with pytest.raises(ZeroDivisionError):
        begun.commit()
    begun.abort()
    gone.__exit__(None, None, None)
    (line,) = messages(caplog, "pyramid_jobstate")
    assert "stalled" in line and "RunMarathon" in line
    pass_time(store, store.stalled_after + 1)
    assert load(made_tm_config, uuid).status == "stalled"


def test_broker_that_is_away_marks_the_job(
    tm_config: Configurator,
    redis_url: str,
    client: redis.Redis,
    database: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The commit stands: the user gets a response and sees that the job failed. Each
    message of a transaction is sent independently.
    """
    broker = broker_that_is_away(redis_url)

    def view(request: Request) -> str:
        database.write(request)
        uuid = send(request, broker=broker)
        send(request, 2)
        return uuid

    response = visit(tm_config, view)
    assert response.status_code == 200
    assert database.count() == 1
    assert sent(client) == [2]
    job_state = load(tm_config, response.text)
    shown = job_state.__json__(make_request(tm_config, "alice"))["job"]
    assert (shown["status"], shown["error"]) == ("error", {"message": NOT_SENT})
    (line,) = messages(caplog, "pyramid_jobstate", logging.ERROR)
    assert response.text in line


def test_broker_and_store_that_are_away_raise_nothing(
    redis_url: str, made_tm_config: Configurator, caplog: pytest.LogCaptureFixture
) -> None:
    """If the store goes away along with the broker, the request still succeeds; the job
    will read stalled.
    """
    request = make_request(made_tm_config)
    gone = away(request.job_states.store)
    with request.tm as begun:
        send(request, broker=broker_that_is_away(redis_url))
        begun.join(Manager("a", "tpc_finish", gone.__enter__))
    gone.__exit__(None, None, None)
    lines = messages(caplog, "pyramid_jobstate")
    assert len(lines) == 2 and "stalled" in lines[1]


def test_sender_that_dies_after_its_commit_leaves_a_stalled_job(
    made_tm_config: Configurator,
    global_broker: Broker,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that dies before sending the message leaves a job that reads stalled
    after a while, rather than queued forever.
    """
    monkeypatch.setattr(global_broker, "enqueue", lambda *args, **options: None)
    with committing(made_tm_config) as job_states:
        uuid = send(job_states.request)
    assert load(made_tm_config, uuid).status == "queued"
    pass_time(store, store.stalled_after + 1)
    assert load(made_tm_config, uuid).status == "stalled"


# Jobs that are sent again.


def put_failed(store: JobStore, broker: Broker) -> Message[Any]:
    """Store a job that has failed, and return its message."""
    error = JobError("ValueError", "a blister")
    metrics = {"miles_run": 12}
    job = put(store, RunMarathon, "error", error=error, metrics=metrics)
    message = broker.get_actor("run_marathon").message(26)
    return message.copy(message_id=job.uuid)


@pytest.mark.parametrize("phase", ["commit", "tpc_vote", "abort"])
def test_abort_leaves_the_end_of_a_job_that_is_put_back(
    made_tm_config: Configurator,
    global_broker: Broker,
    store: JobStore,
    client: redis.Redis,
    phase: str,
) -> None:
    """If the message of a failed job is sent again but the transaction aborts, the
    record of the failure does not change.
    """
    message = put_failed(store, global_broker)
    before = state_of(store, message.message_id)
    request = make_request(made_tm_config, "alice")
    begun = request.tm.begin()
    request.job_states.send_message(message)
    if phase != "abort":
        begun.join(Manager("~~~", phase, fail))
        with pytest.raises(ZeroDivisionError):
            begun.commit()
    begun.abort()
    assert state_of(store, message.message_id) == before
    assert queued(client) == []


def test_job_that_is_put_back_is_queued_when_its_message_leaves(
    made_tm_config: Configurator,
    global_broker: Broker,
    store: JobStore,
    client: redis.Redis,
) -> None:
    """A job that is put back is queued at the commit, without its last run's error,
    also if a vetoed transaction sent it meanwhile.
    """
    message = put_failed(store, global_broker)
    with committing(made_tm_config) as job_states:
        job_states.send_message(message)
        job_states.request.tm.get().join(
            Manager("~~~~", "commit", lambda: resend(made_tm_config, message))
        )
        assert load(made_tm_config, message.message_id).status == "error"
    job_state = load(made_tm_config, message.message_id)
    assert (job_state.status, job_state.error) == ("queued", None)
    assert [m.message_id for m in queued(client)] == [message.message_id]


@pytest.mark.parametrize("immediately", [False, True])
def test_job_that_the_broker_does_not_take_back_keeps_its_record(
    redis_url: str, made_tm_config: Configurator, store: JobStore, immediately: bool
) -> None:
    """A job that cannot be put back reads as not sent, and can be sent again."""
    broker = broker_that_is_away(redis_url)
    message = put_failed(store, broker)
    with committing(made_tm_config) as job_states:
        if immediately:
            with pytest.raises(redis.ConnectionError):
                job_states.send_immediately(message, broker=broker)
        else:
            job_states.send_message(message, broker=broker)
    job_state = load(made_tm_config, message.message_id)
    assert job_state.status == "error"
    assert job_state.error and job_state.error.message == NOT_SENT


def resend(config: Configurator, what: Any, broker: Broker | None = None) -> None:
    """Send something that was sent before, and have the commit vetoed or, if a broker
    that is away is given, the message refused.
    """
    request = make_request(config, "bob")
    begun = request.tm.begin()
    request.job_states.send_message(what, broker=broker)
    if broker is not None:
        begun.commit()
        return
    begun.join(Manager("~~~", "commit", fail))
    with pytest.raises(ZeroDivisionError):
        begun.commit()
    begun.abort()


@pytest.mark.parametrize("is_refused", [False, True])
def test_record_of_another_sender_is_left_alone(
    made_tm_config: Configurator,
    redis_url: str,
    global_broker: Broker,
    store: JobStore,
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second send that fails does not take back the record of the first, be it of a
    message, of a pipeline or of what the first sender has not yet confirmed.
    """
    m = [global_broker.get_actor("run_marathon").message(i) for i in range(5)]
    everything = [m[0], pipeline(m[1:4]), m[4]]
    with committing(made_tm_config) as job_states:
        job_states.send_message(everything[0])
        job_states.send_message(everything[1])
    with monkeypatch.context() as patched, committing(made_tm_config) as job_states:
        job_states.send_message(everything[2])
        patched.setattr(global_broker, "enqueue", lambda *args, **options: None)
        job_states.request.tm.get().join(Manager(LAST, "tpc_finish", patched.undo))
    before = [state_of(store, message.message_id) for message in m]
    for what in everything:
        away_broker = broker_that_is_away(redis_url) if is_refused else None
        resend(made_tm_config, what, away_broker)
    assert [state_of(store, message.message_id) for message in m] == before
    pass_time(store, store.stalled_after + 1)
    statuses = [load(made_tm_config, message.message_id).status for message in m]
    assert statuses == ["queued"] * 4 + ["stalled"]


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


def test_script_sends_at_its_commit(
    either_config: Configurator, client: redis.Redis, sqlite: SQLite
) -> None:
    """A script's database and its jobs commit in one transaction, and abort together.
    Before that begins and after it ends, a send is refused.
    """
    with script(either_config) as request:
        refused(request)
        request.tm.begin()
        sqlite.write(request)
        send(request)
        request.tm.abort()
        refused(request)
        with request.tm:
            pass
        assert (sqlite.count(), client.keys()) == (0, [])
        with request.tm:
            sqlite.write(request)
            uuid = send(request)
            assert client.keys() == []
        assert [m.message_id for m in queued(client)] == [uuid]
        assert sqlite.count() == 1
        with request.tm:
            send(request, 27)
        request.tm.begin()
        request.tm.doom()
        send(request, 28)
        with pytest.raises(DoomedTransaction):
            request.tm.commit()
        request.tm.abort()
    assert sent(client) == [26, 27]


def test_application_without_a_manager_is_told(
    redis_url: str, client: redis.Redis
) -> None:
    """Without pyramid_tm, or with a hook that returns nothing, the application has no
    transaction to join.
    """
    hook = {"tm.manager_hook": f"{__name__}.no_manager"}
    for config in make_config(redis_url), make_tm_config(redis_url, hook):
        with script(config) as request, transaction.manager:
            match = r"no request\.tm\. Include pyramid_tm.*send_immediately"
            with pytest.raises(RuntimeError, match=match):
                send(request)
    assert client.keys() == []


def test_transaction_that_was_begun_elsewhere_is_joined(
    implicit: Configurator, client: redis.Redis, sqlite: SQLite
) -> None:
    """Whoever began the thread's transaction sends the messages by committing it; it
    begins as soon as anybody asks for it, as a session does.
    """
    with script(implicit) as request:
        transaction.begin()
        send(request, 1)
        assert client.keys() == []
        transaction.commit()
        refused(request)
        sqlite.write(request)
        send(request, 2)
        transaction.commit()
    assert sqlite.count() == 1
    assert sent(client) == [1, 2]


# Subrequests.


def subrequest(request: Request, **options: Any) -> Any:
    environ = options.pop("environ", {})
    blank = Request.blank("/sub", environ=environ)
    return request.invoke_subrequest(blank, **options)


def test_subrequest_without_tweens_has_the_threads_transaction(
    implicit: Configurator, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With the thread's manager, a subrequest's message is sent when the outer request
    commits, or the script, and not at all if that fails.
    """

    def view(request: Request) -> None:
        subrequest(request)
        assert client.keys() == []
        send(request, 27)
        if request.headers.get("X-User"):
            fail()

    add_view(implicit, "sub", send)
    add_view(implicit, "go", view)
    app = make_app(implicit)
    with pytest.raises(ZeroDivisionError):
        get(app, "/go", "alice")
    assert client.keys() == []
    get(app, "/go")
    assert sent(client) == [26, 27]
    with prepare(registry=implicit.registry) as env, env["request"].tm:
        app.app.invoke_subrequest(Request.blank("/sub"))
        assert len(sent(client)) == 2
    assert sent(client) == [26, 27, 26]
    assert messages(caplog, "pyramid_jobstate") == []


def test_subrequest_without_tweens_has_no_explicit_transaction(
    redis_url: str, client: redis.Redis
) -> None:
    """Explicit managers belong to one request: a subrequest's has not begun. One that
    is handed the manager joins the outer transaction.
    """
    config = make_tm_config(redis_url)

    def sub(request: Request) -> None:
        (send if "tm.manager" in request.environ else refused)(request)

    def view(request: Request) -> None:
        subrequest(request)
        subrequest(request, environ={"tm.manager": request.tm})
        assert client.keys() == []

    add_view(config, "sub", sub)
    assert visit(config, view).status_code == 200
    assert sent(client) == [26]


@pytest.mark.parametrize(
    ("settings", "miles"), [(EXPLICIT, [26]), (IMPLICIT, [26, 27])]
)
def test_subrequest_with_tweens_has_its_own_transaction(
    redis_url: str, client: redis.Redis, settings: dict[str, str], miles: list[int]
) -> None:
    """A subrequest with an explicit manager sends even if the outer request fails. With
    the thread's manager its tween begins again, which aborts what the outer request
    sent before; later sends leave with the outer commit.
    """
    config = make_tm_config(redis_url, settings)

    def view(request: Request) -> None:
        send(request, 1)
        subrequest(request, use_tweens=True)
        assert sent(client) == [26]
        if settings:
            fail()
        send(request, 27)

    add_view(config, "sub", send)
    with pytest.raises(ZeroDivisionError) if settings else contextlib.nullcontext():
        visit(config, view)
    assert sent(client) == miles


# Outside the tween.


@pytest.mark.parametrize("kind", ["finished", "response"])
def test_callback_after_the_commit_needs_its_own_transaction(
    either_config: Configurator, client: redis.Redis, kind: str
) -> None:
    """A callback that runs after the tween cannot send with the transaction, but may
    begin and commit its own.
    """

    def view(request: Request) -> str:
        if kind == "finished":
            request.add_finished_callback(late)
        else:
            request.add_response_callback(lambda request, response: late(request))
        return send(request)

    def late(request: Request) -> None:
        refused(request)
        with request.tm:
            send(request, 27)

    add_view(either_config, "go", view)
    app = make_app(either_config)
    get(app, "/go")
    get(app, "/go")
    assert sent(client) == [26, 27, 26, 27]


def test_inactive_tween_leaves_it_to_the_view(
    either_config: Configurator, client: redis.Redis
) -> None:
    """If a hook deactivates the tween, nobody would commit, so the view must begin a
    transaction itself.
    """

    def view(request: Request) -> None:
        refused(request)
        with request.tm:
            send(request)
        assert sent(client) == [26]
        refused(request)

    either_config.add_settings({"tm.activate_hook": "tests.webapp.inactive"})
    assert visit(either_config, view).status_code == 200
    transaction.commit()
    assert sent(client) == [26]


def test_view_that_ends_the_tweens_transaction(
    either_config: Configurator, client: redis.Redis
) -> None:
    """The tween commits the transaction that an implicit manager has begun since. An
    explicit one must be begun again.
    """

    def view(request: Request) -> None:
        send(request, 1)
        request.tm.commit()
        if request.tm.explicit:
            refused(request)
            request.tm.begin()
        send(request, 2)

    assert visit(either_config, view).status_code == 200
    assert sent(client) == [1, 2]


@pytest.mark.parametrize("pushes", [False, True])
def test_thread_of_its_own_has_no_transaction(
    implicit: Configurator,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    pushes: bool,
) -> None:
    """A thread started by a view has another transaction, which the tween does not
    commit. If the thread has made the request current, that shows only at the end.
    """

    def view(request: Request) -> None:
        def work() -> None:
            if pushes:
                with RequestContext(request):
                    lost.append(send(request, 1))
                return
            refused(request)
            with request.tm:
                send(request)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    lost: list[str] = []
    visit(implicit, view)
    assert sent(client) == ([] if pushes else [26])
    lines = messages(caplog, "pyramid_jobstate")
    assert [uuid in line for uuid, line in zip(lost, lines, strict=True)] == (
        [True] if pushes else []
    )


def thread_manager(request: Request) -> Any:
    """A tm.manager_hook that returns the thread's manager."""
    return transaction.manager


def own_implicit_manager(request: Request) -> Any:
    """A tm.manager_hook that returns an implicit manager for each request."""
    return transaction.TransactionManager()


def explicit_thread_manager(request: Request) -> Any:
    """A tm.manager_hook that returns an explicit manager of the thread."""
    return EXPLICIT_OF_THREAD


def no_manager(request: Request) -> None:
    """A tm.manager_hook that returns nothing."""


EXPLICIT_OF_THREAD = transaction.ThreadTransactionManager()
EXPLICIT_OF_THREAD.explicit = True


@pytest.mark.parametrize(
    "hook", ["thread_manager", "own_implicit_manager", "explicit_thread_manager"]
)
def test_any_manager_will_do(redis_url: str, client: redis.Redis, hook: str) -> None:
    """Views and scripts can send with any manager that the hook returns."""
    config = make_tm_config(redis_url, {"tm.manager_hook": f"{__name__}.{hook}"})

    def view(request: Request) -> str:
        request.add_finished_callback(refused)
        return send(request)

    visit(config, view)
    with prepare(registry=config.registry) as env:
        request = env["request"]
        refused(request)
        with request.tm:
            send(request, 27)
        refused(request)
    assert sent(client) == [26, 27]


@pytest.mark.parametrize("settings", [EXPLICIT, IMPLICIT])
def test_transaction_of_repoze_tm(
    redis_url: str,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, str],
) -> None:
    """If a WSGI middleware manages the thread's transaction, the message is sent when
    that commits, after the last callback of the request. It is not that of an explicit
    manager.
    """
    config = make_tm_config(redis_url, settings)
    add_view(config, "go", refused if settings else send)
    app = make_app(config).app

    def middleware(environ: Any, start_response: Any) -> Any:
        with transaction.manager:
            environ["repoze.tm.active"] = True
            response = app(environ, start_response)
            assert client.keys() == []
        return response

    assert TestApp(middleware).get("/go").status_code == 200
    assert sent(client) == ([] if settings else [26])
    assert messages(caplog, "pyramid_jobstate") == []


# Transactions that nobody commits.


@pytest.mark.parametrize("begins", ["script", "thread"])
def test_transaction_that_is_forgotten_is_told(
    either_config: Configurator, caplog: pytest.LogCaptureFixture, begins: str
) -> None:
    """A job whose transaction is lost with its manager or thread is logged."""
    uuids = []
    make_app(either_config)

    def work() -> None:
        with prepare(registry=either_config.registry) as env:
            env["request"].tm.begin()
            uuids.append(send(env["request"]))

    if begins == "thread":
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        del thread
    else:
        work()
    gc.collect()
    (line,) = messages(caplog, "pyramid_jobstate")
    assert uuids[0] in line and "with request.tm:" in line


def test_transaction_that_has_ended_is_not_complained_of(
    either_config: Configurator, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged for jobs that were sent, aborted or rolled back."""
    with script(either_config) as request:
        manager = request.tm
        for end in "commit", "abort":
            manager.begin()
            send(request)
            getattr(manager, end)()
        manager.begin()
        savepoint = manager.savepoint()
        send(request)
        savepoint.rollback()
        del savepoint
        manager.commit()
    del request, manager
    gc.collect()
    assert messages(caplog, "pyramid_jobstate") == []


def test_transaction_that_nobody_commits_is_told(
    implicit: Configurator,
    client: redis.Redis,
    sqlite: SQLite,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A session used after the commit begins a transaction of the thread, which looks
    like one that somebody will commit. When the request ends, the job that was never
    sent is logged. A subrequest's job, which the request's commit sends, is not.
    """

    def late(request: Request) -> None:
        sqlite.session(request).connection()
        uuids.append(send(request))

    uuids: list[str] = []
    add_view(implicit, "late", lambda request: request.add_finished_callback(late))
    add_view(implicit, "sub", send)
    add_view(implicit, "outer", subrequest)
    app = make_app(implicit)
    get(app, "/outer")
    assert sent(client) == [26]
    assert messages(caplog, "pyramid_jobstate") == []
    get(app, "/late")
    transaction.begin()
    (line,) = messages(caplog, "pyramid_jobstate")
    assert uuids[0] in line
    assert sent(client) == [26]


def test_script_that_forgets_its_commit_is_told(
    implicit: Configurator, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """If a script forgets its last commit, only that job is logged."""
    with script(implicit) as request:
        for number in range(3):
            with request.tm:
                send(request, number)
        assert len(request.finished_callbacks) == 1
        request.tm.begin()
        uuid = send(request, 3)
    (line,) = messages(caplog, "pyramid_jobstate")
    assert uuid in line and "with request.tm:" in line
    assert sent(client) == [0, 1, 2]


# Transactions that are over.


def test_send_within_a_commit_is_refused(
    either_config: Configurator, client: redis.Redis, subtests: pytest.Subtests
) -> None:
    """A transaction that is committing accepts no further sends, but a before-commit
    hook can send with it.
    """

    def late(request: Request) -> None:
        with pytest.raises(RuntimeError, match=r"commit.*send_immediately") as caught:
            send(request, 27)
        assert not isinstance(caught.value.__context__, NoTransaction)
        tried.append(phase)

    def view(request: Request) -> str:
        request.tm.get().addBeforeCommitHook(send, (request, 1))
        request.tm.get().join(Manager("a", phase, lambda: late(request)))
        return send(request)

    add_view(either_config, "go", view)
    app = make_app(either_config)
    for phase in "commit", "tpc_vote", "tpc_finish":
        with subtests.test(msg=phase):
            client.flushall()
            tried: list[str] = []
            assert get(app, "/go").status_code == 200
            assert tried == [phase]
            assert sent(client) == [26, 1]


def test_send_after_a_commit_has_failed_is_refused(
    either_config: Configurator, client: redis.Redis
) -> None:
    """After a failed commit, an exception view cannot send with the transaction."""

    def apologize(exc: Exception, request: Request) -> Response:
        with pytest.raises(RuntimeError, match=r"send_immediately"):
            send(request, 27)
        return Response("Sorry")

    def view(request: Request) -> None:
        request.tm.get().join(Manager("a", "tpc_vote", fail))
        send(request)

    either_config.add_exception_view(apologize, context=ZeroDivisionError)
    assert visit(either_config, view).text == "Sorry"
    assert client.keys() == []
