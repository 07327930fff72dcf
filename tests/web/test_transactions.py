"""Which transaction a send joins, in views, subrequests and scripts."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq.broker
import pytest
import redis
import transaction
from dramatiq import Broker
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.scripting import prepare
from pyramid.threadlocal import RequestContext
from transaction.interfaces import DoomedTransaction, NoTransaction
from webtest import TestApp

from pyramid_jobstate import JobState
from tests.jobs import messages
from tests.web.databases import Manager, SQLite, fail
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


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Leave nothing in this thread's transaction."""
    transaction.abort()
    yield
    transaction.abort()


@pytest.fixture(params=["explicit", "implicit"])
def either_config(redis_url: str, request: pytest.FixtureRequest) -> Configurator:
    """The configurator of an application, with each of pyramid_tm's managers."""
    return make_tm_config(
        redis_url, EXPLICIT if request.param == "explicit" else IMPLICIT
    )


@pytest.fixture
def implicit(redis_url: str) -> Configurator:
    """The configurator of an application with the thread's manager."""
    return make_tm_config(redis_url, IMPLICIT)


def add(config: Configurator, name: str, view: Callable[[Request], Any]) -> None:
    def answer(context: Any, request: Request) -> Response:
        return Response(str(view(request)))

    config.add_view(answer, name=name)


@contextlib.contextmanager
def script(config: Configurator) -> Iterator[Request]:
    """Yield the request of a script that uses the application."""
    make_app(config)
    with prepare(registry=config.registry) as env:
        yield env["request"]


def call_late(request: Request, kind: str, late: Callable[[Request], object]) -> None:
    """Call back when the request has its response, or when it is over."""
    if kind == "finished":
        request.add_finished_callback(late)
    else:
        request.add_response_callback(lambda request, response: late(request))


def in_transaction(app: TestApp) -> TestApp:
    """Wrap the application in WSGI middleware that begins the thread's transaction, as
    repoze.tm does.
    """

    def middleware(environ: Any, start_response: Any) -> Any:
        with transaction.manager:
            environ["repoze.tm.active"] = True
            return app.app(environ, start_response)

    return TestApp(middleware)


def send(request: Request, miles: int = 26) -> str:
    run_marathon = dramatiq.broker.get_broker().get_actor("run_marathon")
    job_state = request.job_states.send(run_marathon, miles)
    assert isinstance(job_state, JobState)
    return job_state.uuid


def send_and_fail(request: Request, database: SQLite | None = None) -> None:
    with request.tm:
        if database is not None:
            database.write(request)
        send(request)
        fail()


def miles(client: redis.Redis) -> list[Any]:
    """Return the arguments of the messages in the queue, oldest first."""
    return [message.args[0] for message in queued(client)]


def refused(request: Request) -> None:
    """Check that a send is refused with an error that says only what to do."""
    with pytest.raises(RuntimeError) as caught:
        send(request)
    error = caught.value
    for part in "use_tweens=True", "with request.tm:", "send_immediately":
        assert part in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


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


# Scripts.


def test_script_sends_at_its_commit(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """In a script, the message is sent when the script's transaction has committed."""
    with script(either_config) as request:
        with request.tm:
            uuid = send(request)
            assert client.keys() == []
        assert [m.message_id for m in queued(client)] == [uuid]
        with request.tm:
            send(request, 27)

    assert miles(client) == [26, 27]
    assert client.exists(f"jobstate:{uuid}")


def test_script_that_fails_leaves_nothing(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """An exception aborts a script's transaction, so nothing is sent."""
    with script(either_config) as request:
        with pytest.raises(ZeroDivisionError):
            send_and_fail(request)
        with request.tm:
            pass

    assert client.keys() == []


def test_script_outside_its_transaction_is_refused(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """Before the transaction begins and after it ends, a send is refused."""
    with script(either_config) as request:
        refused(request)
        with request.tm:
            pass
        refused(request)
        with request.tm:
            pass

    assert client.keys() == []


def test_doomed_script_leaves_nothing(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A doomed transaction accepts sends but does not commit."""
    with script(either_config) as request:
        request.tm.begin()
        request.tm.doom()
        send(request)
        with pytest.raises(DoomedTransaction):
            request.tm.commit()
        request.tm.abort()

    assert client.keys() == []


def test_script_without_pyramid_tm_is_told(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """Without pyramid_tm, the application has no transaction to join."""
    with (
        script(make_config(redis_url)) as request,
        transaction.manager,
        pytest.raises(RuntimeError, match=r"Include pyramid_tm.*send_immediately"),
    ):
        send(request)

    assert client.keys() == []


def test_transaction_that_was_begun_elsewhere_is_joined(
    implicit: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """Whoever began the thread's transaction sends the messages by committing it."""
    with script(implicit) as request:
        transaction.begin()
        send(request)
        assert client.keys() == []
        transaction.commit()

    assert miles(client) == [26]


def test_transaction_that_somebody_has_used_is_joined(
    implicit: Configurator, global_broker: Broker, client: redis.Redis, sqlite: SQLite
) -> None:
    """An implicit manager's transaction begins as soon as anybody asks for it, as a
    session does.
    """
    with script(implicit) as request:
        refused(request)
        sqlite.write(request)
        send(request)
        transaction.commit()

    assert sqlite.count() == 1
    assert miles(client) == [26]


# Subrequests.


def test_subrequest_without_tweens_has_the_threads_transaction(
    implicit: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """With the thread's manager, a subrequest's message is sent when the outer request
    commits.
    """

    def view(request: Request) -> str:
        request.invoke_subrequest(Request.blank("/sub"))
        assert client.keys() == []
        return send(request, 27)

    add(implicit, "sub", send)
    add(implicit, "go", view)

    get(make_app(implicit), "/go")

    assert miles(client) == [26, 27]


def test_subrequest_without_tweens_is_aborted_with_the_request(
    implicit: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """If the outer request fails, the subrequest's message is not sent."""

    def view(request: Request) -> None:
        request.invoke_subrequest(Request.blank("/sub"))
        fail()

    add(implicit, "sub", send)
    add(implicit, "go", view)

    with pytest.raises(ZeroDivisionError):
        get(make_app(implicit), "/go")

    assert client.keys() == []


def test_subrequest_without_tweens_has_no_explicit_transaction(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """Explicit managers belong to one request: a subrequest's has not begun."""
    config = make_tm_config(redis_url)
    add(config, "sub", refused)
    add(config, "go", lambda request: request.invoke_subrequest(Request.blank("/sub")))

    assert get(make_app(config), "/go").status_code == 200

    assert client.keys() == []


def test_subrequest_may_share_its_requests_manager(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """A subrequest that is handed the manager joins the outer transaction."""
    config = make_tm_config(redis_url)

    def view(request: Request) -> None:
        sub = Request.blank("/sub", environ={"tm.manager": request.tm})
        request.invoke_subrequest(sub)
        assert client.keys() == []

    add(config, "sub", send)
    add(config, "go", view)

    assert get(make_app(config), "/go").status_code == 200

    assert miles(client) == [26]


def test_subrequest_with_tweens_has_its_own_transaction(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """With an explicit manager, a subrequest sends even if the outer request fails."""
    config = make_tm_config(redis_url)

    def view(request: Request) -> None:
        send(request, 1)
        request.invoke_subrequest(Request.blank("/sub"), use_tweens=True)
        assert miles(client) == [26]
        fail()

    add(config, "sub", send)
    add(config, "go", view)

    with pytest.raises(ZeroDivisionError):
        get(make_app(config), "/go")

    assert miles(client) == [26]


def test_subrequest_with_tweens_ends_the_threads_transaction(
    implicit: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """With the thread's manager, the subrequest's tween begins again, which aborts what
    the outer request sent before. Later sends leave with the outer commit.
    """

    def view(request: Request) -> str:
        send(request, 1)
        request.invoke_subrequest(Request.blank("/sub"), use_tweens=True)
        return send(request, 27)

    add(implicit, "sub", send)
    add(implicit, "go", view)

    get(make_app(implicit), "/go")

    assert miles(client) == [26, 27]


# Outside the tween.


@pytest.mark.parametrize("kind", ["finished", "response"])
def test_send_after_the_commit_is_refused(
    either_config: Configurator, global_broker: Broker, client: redis.Redis, kind: str
) -> None:
    """A callback that runs after the tween cannot send with the transaction."""

    def view(request: Request) -> str:
        call_late(request, kind, late)
        return send(request)

    def late(request: Request) -> None:
        refused(request)
        seen.append(len(queued(client)))

    seen: list[int] = []
    add(either_config, "go", view)
    app = make_app(either_config)

    get(app, "/go")
    get(app, "/go")

    assert seen == [1, 2]
    assert len(queued(client)) == 2


@pytest.mark.parametrize("kind", ["finished", "response"])
def test_callback_may_begin_its_own_transaction(
    either_config: Configurator, global_broker: Broker, client: redis.Redis, kind: str
) -> None:
    """A callback may begin and commit its own transaction."""

    def view(request: Request) -> str:
        call_late(request, kind, late)
        return send(request)

    def late(request: Request) -> None:
        with request.tm:
            send(request, 27)

    add(either_config, "go", view)

    get(make_app(either_config), "/go")

    assert miles(client) == [26, 27]


def test_inactive_tween_leaves_it_to_the_view(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """If a hook deactivates the tween, a view may begin a transaction itself."""

    def view(request: Request) -> None:
        refused(request)
        with request.tm:
            send(request)
        assert len(queued(client)) == 1
        refused(request)

    either_config.add_settings({"tm.activate_hook": "tests.webapp.inactive"})
    add(either_config, "go", view)

    assert get(make_app(either_config), "/go").status_code == 200

    transaction.commit()
    assert miles(client) == [26]


def test_view_that_ends_the_tweens_transaction(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
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

    add(either_config, "go", view)

    assert get(make_app(either_config), "/go").status_code == 200

    assert miles(client) == [1, 2]


@pytest.mark.parametrize("pushes", [False, True])
def test_thread_of_its_own_has_no_transaction(
    implicit: Configurator,
    global_broker: Broker,
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
    add(implicit, "go", view)

    get(make_app(implicit), "/go")

    assert miles(client) == ([] if pushes else [26])
    lines = messages(caplog, "pyramid_jobstate")
    assert [uuid in line for uuid, line in zip(lost, lines, strict=True)] == (
        [True] if pushes else []
    )


@pytest.mark.parametrize(
    "hook", ["thread_manager", "own_implicit_manager", "explicit_thread_manager"]
)
def test_any_manager_will_do(
    redis_url: str, global_broker: Broker, client: redis.Redis, hook: str
) -> None:
    """Views and scripts can send with any manager that the hook returns."""
    config = make_tm_config(redis_url, {"tm.manager_hook": f"{__name__}.{hook}"})

    def view(request: Request) -> str:
        request.add_finished_callback(refused)
        return send(request)

    add(config, "go", view)
    get(make_app(config), "/go")
    with prepare(registry=config.registry) as env:
        request = env["request"]
        refused(request)
        with request.tm:
            send(request, 27)
        refused(request)

    assert miles(client) == [26, 27]


def test_hook_that_returns_nothing_is_told(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """A hook that returns nothing has the effect of a missing pyramid_tm."""
    config = make_tm_config(redis_url, {"tm.manager_hook": f"{__name__}.no_manager"})

    with (
        script(config) as request,
        pytest.raises(RuntimeError, match=r"no request\.tm"),
    ):
        send(request)


def test_transaction_of_repoze_tm_is_not_an_explicit_managers(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """A WSGI middleware begins the thread's transaction, but not that of an explicit
    manager.
    """
    config = make_tm_config(redis_url)
    add(config, "go", refused)
    app = in_transaction(make_app(config))

    assert app.get("/go").status_code == 200
    assert client.keys() == []


def test_transaction_of_repoze_tm_is_not_complained_of(
    implicit: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A WSGI middleware commits after the last callback of the request."""
    add(implicit, "go", send)
    app = in_transaction(make_app(implicit))

    app.get("/go")

    assert miles(client) == [26]
    assert messages(caplog, "pyramid_jobstate") == []


@pytest.mark.parametrize("hook", [None, "pyramid_tm.explicit_manager"])
@pytest.mark.parametrize("begins", ["script", "thread"])
def test_transaction_that_is_forgotten_is_told(
    redis_url: str,
    global_broker: Broker,
    caplog: pytest.LogCaptureFixture,
    hook: str | None,
    begins: str,
) -> None:
    """A job whose transaction is lost with its manager or thread is logged."""
    config = make_tm_config(
        redis_url, {} if hook is None else {"tm.manager_hook": hook}
    )
    make_app(config)
    uuids = []

    def work() -> None:
        with prepare(registry=config.registry) as env:
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


@pytest.mark.parametrize("ends", ["commit", "abort", "savepoint"])
def test_transaction_that_has_ended_is_not_complained_of(
    either_config: Configurator,
    global_broker: Broker,
    caplog: pytest.LogCaptureFixture,
    ends: str,
) -> None:
    """Nothing is logged for jobs that were sent, aborted or rolled back."""
    with script(either_config) as request:
        manager = request.tm
        manager.begin()
        if ends == "savepoint":
            savepoint = manager.savepoint()
            send(request)
            savepoint.rollback()
            del savepoint
            manager.commit()
        else:
            send(request)
            getattr(manager, ends)()
    del request, manager
    gc.collect()

    assert messages(caplog, "pyramid_jobstate") == []


# Transactions that are over.


@pytest.mark.parametrize("phase", ["commit", "tpc_vote", "tpc_finish"])
def test_send_within_a_commit_is_refused(
    either_config: Configurator, global_broker: Broker, client: redis.Redis, phase: str
) -> None:
    """A transaction that is committing accepts no further sends."""

    def late(request: Request) -> None:
        with pytest.raises(RuntimeError, match=r"commit.*send_immediately") as caught:
            send(request, 27)
        assert not isinstance(caught.value.__context__, NoTransaction)
        tried.append(phase)

    def view(request: Request) -> str:
        request.tm.get().join(Manager("a", phase, lambda: late(request)))
        return send(request)

    tried: list[str] = []
    add(either_config, "go", view)

    assert get(make_app(either_config), "/go").status_code == 200

    assert tried == [phase]
    assert miles(client) == [26]


def test_send_after_a_commit_has_failed_is_refused(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
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
    add(either_config, "go", view)

    assert get(make_app(either_config), "/go").text == "Sorry"

    assert client.keys() == []


def test_send_before_a_commit_hook_is_sent(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A before-commit hook can send with the commit."""

    def view(request: Request) -> None:
        request.tm.get().addBeforeCommitHook(send, (request,))

    add(either_config, "go", view)

    get(make_app(either_config), "/go")

    assert miles(client) == [26]


@pytest.mark.parametrize("is_sub", [False, True])
def test_transaction_that_nobody_commits_is_told(
    implicit: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    sqlite: SQLite,
    caplog: pytest.LogCaptureFixture,
    is_sub: bool,
) -> None:
    """A session used after the commit begins a transaction of the thread, which looks
    like one that somebody will commit. When the request ends, the job that was never
    sent is logged.
    """

    def late(request: Request) -> None:
        session = sqlite.session(request)
        session.connection()
        uuids.append(send(request))

    def view(request: Request) -> None:
        request.add_finished_callback(late)

    uuids: list[str] = []
    add(implicit, "go", view)
    add(implicit, "sub", send)
    add(
        implicit,
        "outer",
        lambda request: request.invoke_subrequest(Request.blank("/sub")),
    )

    get(make_app(implicit), "/outer" if is_sub else "/go")
    transaction.begin()

    lines = messages(caplog, "pyramid_jobstate")
    if is_sub:
        # The request's commit has sent it.
        assert lines == [] and miles(client) == [26]
    else:
        (line,) = lines
        assert uuids[0] in line
        assert client.keys() == []


def test_subrequest_of_a_script_is_not_complained_of(
    implicit: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A subrequest in a script's transaction leaves its message to that commit."""
    add(implicit, "sub", send)
    router = make_app(implicit).app

    with prepare(registry=implicit.registry) as env, env["request"].tm:
        router.invoke_subrequest(Request.blank("/sub"))
        assert client.keys() == []

    assert miles(client) == [26]
    assert messages(caplog, "pyramid_jobstate") == []


def test_script_that_forgets_its_commit_is_told(
    implicit: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
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
    assert miles(client) == [0, 1, 2]


def test_request_of_no_thread_is_complained_of(
    implicit: Configurator, global_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """An unsent job is also logged if its request was never the current one."""
    make_app(implicit)
    request = make_request(implicit)

    request.tm.begin()
    send(request)
    request._process_finished_callbacks()

    assert len(messages(caplog, "pyramid_jobstate")) == 1


def test_zope_sqlalchemy_and_the_job_commit_together(
    either_config: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    sqlite: SQLite,
) -> None:
    """A script's database and its jobs commit in one transaction."""
    with script(either_config) as request:
        with pytest.raises(ZeroDivisionError):
            send_and_fail(request, sqlite)
        assert (sqlite.count(), miles(client)) == (0, [])
        with request.tm:
            sqlite.write(request)
            send(request)

    assert (sqlite.count(), miles(client)) == (1, [26])


def test_savepoint_of_a_script_takes_its_jobs_with_it(
    either_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A rollback to a savepoint drops the jobs that a script has sent since."""
    with script(either_config) as request, request.tm:
        send(request, 1)
        savepoint = request.tm.savepoint()
        send(request, 2)
        savepoint.rollback()
        send(request, 3)

    assert miles(client) == [1, 3]
