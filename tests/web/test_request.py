"""RequestMiddleware: an actor's request, and the transaction that it commits."""

import asyncio
import functools
import gc
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, GenericActor
from dramatiq.errors import Retry
from dramatiq.middleware import TimeLimitExceeded
from pyramid.config import Configurator, global_registries
from pyramid.request import Request
from pyramid.threadlocal import get_current_request
from pyramid_retry import RetryableException
from transaction.interfaces import TransientError
from webtest import TestApp

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
    RequestMiddleware,
    current_job_state,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import release_broker, run_jobs
from tests.incaller import InCallerBroker
from tests.jobs import job_actor, make_broker, messages, wait_until, working
from tests.support import load_job, wait_for
from tests.web.databases import Manager, fail
from tests.webapp import EXPLICIT, make_config, make_request, make_tm_config

LOGGER = "pyramid_jobstate"
HOUR = 3_600_000

#: What the jobs of a test have done, in order.
Events = list[Any]


class Ouch(Exception):
    """What the actors of these tests raise."""


@pytest.fixture
def broker(redis_url: str, set_broker: Callable[[Any], None]) -> Broker:
    """The global broker, with both middlewares."""
    broker = make_broker(redis_url, others=(RequestMiddleware(),))
    set_broker(broker)
    return broker


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
def config(broker: Broker, events: Events) -> Configurator:
    """Override: a finished application whose root and transaction say what happens to
    them.
    """
    return make_app_config(events)


class Told(Manager):
    """A data manager that notes the end of its transaction."""

    def __init__(self, events: Events) -> None:
        super().__init__("a", "", lambda: None)
        self._events = events

    def tpc_finish(self, transaction: Any) -> None:
        self._events.append("commit")

    def abort(self, transaction: Any) -> None:
        self._events.append("abort")


def make_app_config(events: Events, *includes: str, **settings: Any) -> Configurator:
    def root(request: Request) -> Any:
        request.tm.get()  # It has begun.
        request.tm.get().join(Told(events))
        request.add_finished_callback(lambda request: events.append("finished"))
        events.append("root")
        return {"the": "root"}

    config = make_tm_config(None, {**EXPLICIT, **settings}, root_factory=root)
    config.include("pyramid_jobstate")
    for name in includes:
        config.include(name)
    config.add_route("page", "/page")
    config.make_wsgi_app()
    return config


def run(
    broker: Broker, actor: Any, *args: Any, status: str = "success", **options: Any
) -> JobState:
    """Run a job to its end, and return its state."""
    with working(broker, threads=1):
        message = actor.send_with_options(args=args, **options)
        return wait_until(broker, message, status)


def error_of(job: JobState) -> tuple[str, str]:
    """Return the class of a job's error, without its module, and its message."""
    assert job.error is not None
    return str(job.error.type).rpartition(".")[2], job.error.message


def ended(store: JobStore, uuid: str) -> JobState:
    """Wait until a job has ended, and return it."""
    wait_for(lambda: load_job(store, uuid).is_finished)
    return load_job(store, uuid)


# The request.


def test_actor_runs_in_a_request_with_a_root_and_a_transaction(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """The transaction begins before the root is made and commits after the actor; then
    the finished callbacks run, and the job ends. Its note names the actor alone: the
    arguments of a job do not enter the database's log. Nothing of it stays in the
    thread.
    """
    threads = []

    @job_actor(broker=broker)
    def visit(miles: int, *, request: Any, job_state: JobState) -> None:
        assert get_current_request() is request
        assert request.environ["tm.active"] and request.registry is config.registry
        assert request.root == request.context == {"the": "root"}
        assert current_job_state() is job_state
        request.add_finished_callback(
            lambda request: events.append(job_state.is_working)
        )
        events.append((miles, request.tm.get().description))

    @job_actor(broker=broker)
    def look(*, job_state: JobState) -> None:
        threads.append(get_current_request())

    with working(broker, threads=1):
        message = visit.send(26)
        wait_until(broker, look.send(), "success")
        job = wait_until(broker, message, "success")
    assert events == ["root", (26, "visit"), "commit", "finished", True]
    assert job.job_params == {"miles": 26}
    assert threads == [None]


@pytest.mark.parametrize("setting", [None, "https://example.com/shop/"])
def test_url_of_the_application_comes_from_the_setting_or_the_sender(
    broker: Broker,
    events: Events,
    setting: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The setting wins over the URL in the message; a URL that cannot be one is logged
    and not used.
    """
    home, shop = "http://localhost", "https://shop.example.com:8443/a%20b"
    wrong = ["javascript:alert(1)", "http://u@host", "http://h:99999", ["http://h"]]
    cases: list[tuple[Any, str]] = [(None, home), (shop, shop)]
    cases += [(option, home) for option in wrong]
    settings = {}
    if setting is not None:
        settings["jobstate.base_url"] = setting
        cases = [("http://other", "https://example.com/shop")]
    make_app_config(events, **settings)

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.extend([request.application_url, request.route_url("page")])

    with working(broker):
        for option, url in cases:
            options = {} if option is None else {"job_url": option}
            events.clear()
            message = visit.send_with_options(**options)
            wait_until(broker, message, "success")
            assert events[1:3] == [url, f"{url}/page"], option
    lines = messages(caplog, LOGGER)
    assert len(lines) == (0 if setting else len(wrong))
    assert all("invalid job_url" in line for line in lines)


def test_sent_job_is_told_the_url_of_its_sender(
    broker: Broker, config: Configurator, events: Events, store: JobStore
) -> None:
    """A job with a request learns under which URL its sender reached the application,
    also behind a wrapper of the application's own.
    """

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append(request.application_url)

    @functools.wraps(visit.fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    request = make_request(config, "alice")
    request.host = "shop.example.com"
    with working(broker):
        ended(store, request.job_states.send_immediately(visit).uuid)
        inner, visit.fn = visit.fn, wrapper
        with pytest.raises(ActorError, match="cannot carry the argument request"):
            visit.send(request="mine")
        ended(store, request.job_states.send_immediately(visit).uuid)
    assert events.count("http://shop.example.com") == 2


def test_what_a_job_sends_belongs_to_its_owner(
    broker: Broker,
    config: Configurator,
    store: JobStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The request of a job stands for the job's owner, whoever has sent it."""
    sent = []

    @job_actor(broker=broker)
    def follow(*, job_state: JobState) -> None: ...

    @job_actor(broker=broker)
    def lead(*, request: Any, job_state: JobState) -> None:
        sent.append(request.job_states.send(follow))

    cases: list[tuple[Any, Any]] = [("alice", "alice"), (7, 7), (None, None)]
    for option, owner in (*cases, (["bob"], None)):
        job = run(broker, lead, job_owner=option)
        assert job.owner == owner
        assert load_job(store, sent[-1].uuid).owner == owner
    assert any("has no owner" in line for line in messages(caplog, LOGGER))


def test_any_actor_may_receive_a_request(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """One that shows no progress, too, and the `perform` of a GenericActor."""

    @job_actor(broker=broker)
    def visit(miles: int, *, request: Any) -> None:
        events.append(miles)

    class Visit(GenericActor):
        class Meta:
            broker: Any = None

        Meta.broker = broker

        def perform(self, miles: int, *, request: Any, job_state: JobState) -> None:
            events.append(request.root["the"])

    with working(broker):
        visit.send(26)
        wait_for(lambda: events[-1:] == ["finished"])
    assert events == ["root", 26, "commit", "finished"]
    assert run(broker, Visit, 5).job_params == {"miles": 5}
    assert events[4:] == ["root", "root", "commit", "finished"]


def test_application_may_have_no_transactions(
    redis_url: str, broker: Broker, events: Events
) -> None:
    """Without pyramid_tm an actor has a request and no transaction. The request factory
    may be any function of an environ.
    """

    class Mine(Request):
        pass

    config = make_config(None)
    config.set_request_factory(lambda environ: Mine(environ))
    config.include("pyramid_jobstate")
    config.make_wsgi_app()

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append((hasattr(request, "tm"), isinstance(request, Mine)))

    run(broker, visit)
    assert events == [(False, True)]


@pytest.mark.parametrize("key", ["tm.active", "repoze.tm.active"])
def test_transaction_of_a_test_is_left_alone(
    broker: Broker, events: Events, key: str
) -> None:
    """With tm.active in the environ, nothing is begun, committed or aborted."""

    @job_actor(broker=broker)
    def visit(fails: bool, *, request: Any, job_state: JobState) -> None:
        assert request.tm is manager
        if fails:
            raise Ouch

    config = make_app_config(events, "pyramid_jobstate.testing")
    request = make_request(config)
    manager = request.tm
    with manager:
        environ = {key: True, "tm.manager": manager}
        request.job_states.send(visit, False)
        run_jobs(config.registry, environ)
        request.job_states.send(visit, True)
        with pytest.raises(Ouch):
            run_jobs(config.registry, environ)
        assert events == ["root", "finished"] * 2
    assert events[4:] == ["commit", "commit"]


# Success and failure.


def test_whatever_is_raised_aborts(
    broker: Broker,
    config: Configurator,
    events: Events,
    store: JobStore,
    subtests: pytest.Subtests,
) -> None:
    """An exception or an interrupt aborts the transaction; what was to be sent is
    neither sent nor recorded. So does a cancel.
    """
    sent = []
    errors = [Ouch, TimeLimitExceeded, SystemExit]

    @job_actor(broker=broker)
    def follow(*, job_state: JobState) -> None: ...

    @job_actor(broker=broker, max_retries=0)
    def lead(number: int, *, request: Any, job_state: JobState) -> None:
        sent.append(request.job_states.send(follow))
        if number < len(errors):
            raise errors[number]
        request.job_states[job_state.uuid].cancel()
        wait_for(lambda: job_state.cancel_requested)
        job_state.raise_if_cancelled()

    for number, error in enumerate([*errors, None]):
        with subtests.test(msg=str(error)):
            events.clear()
            status = "error" if error else "cancelled"
            job = run(broker, lead, number, status=status)
            assert error is None or error_of(job)[0] == error.__name__
            assert events == ["root", "abort", "finished"]
            assert store.load(sent[-1].uuid) is None


def test_failed_commit_is_the_error_of_the_job(
    broker: Broker, config: Configurator, events: Events, subtests: pytest.Subtests
) -> None:
    """A job is a success only if its transaction has committed: not if a database
    refuses, if it is doomed, or if the actor has ended it.
    """
    ways: list[tuple[str, Callable[[Any], object], list[str]]] = [
        (
            "ZeroDivisionError",
            lambda tm: tm.get().join(Manager("b", "tpc_vote", fail)),
            ["root", "abort", "finished"],
        ),
        ("DoomedTransaction", lambda tm: tm.doom(), ["root", "abort", "finished"]),
        ("NoTransaction", lambda tm: tm.commit(), ["root", "commit", "finished"]),
    ]

    @job_actor(broker=broker, max_retries=0)
    def visit(number: int, *, request: Any, job_state: JobState) -> None:
        ways[number][1](request.tm)

    for number, (error, _, expected) in enumerate(ways):
        with subtests.test(msg=error):
            events.clear()
            job = run(broker, visit, number, status="error")
            assert error_of(job)[0] == error
            assert list(dict.fromkeys(events)) == expected


def test_trouble_after_the_end_is_logged(
    broker: Broker,
    config: Configurator,
    events: Events,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An abort that fails does not hide the actor's error. If a finished callback
    fails, the transaction has committed, so the job is a success; the others run.
    """

    @job_actor(broker=broker, max_retries=0)
    def abort(*, request: Any, job_state: JobState) -> None:
        monkeypatch.setattr(request.tm, "abort", fail)
        raise Ouch

    @job_actor(broker=broker)
    def finish(*, request: Any, job_state: JobState) -> None:
        request.finished_callbacks.appendleft(lambda request: 1 / 0)

    assert error_of(run(broker, abort, status="error"))[0] == "Ouch"
    events.clear()
    run(broker, finish)
    assert events == ["root", "commit", "finished"]
    assert messages(caplog, LOGGER, logging.ERROR) == [
        "The transaction of a job could not be aborted.",
        "A finished callback of a job failed.",
    ]


# Conflicts.


def conflicting(
    broker: Broker, events: Events, error: Callable[[], Exception], **options: Any
) -> Any:
    """Declare an actor that conflicts in each of its first attempts."""

    @job_actor(broker=broker, **options)
    def conflict(times: int, *, request: Any, job_state: JobState) -> None:
        attempt = job_state.attempt
        events.append((attempt, job_state.get_progress_metric("left")))
        job_state.set_progress_metric("left", attempt)
        if attempt <= times:
            raise error()

    return conflict


class Database(Manager):
    """A data manager that knows the errors of its database."""

    def should_retry(self, error: Exception) -> bool:
        return isinstance(error, Ouch)


@pytest.mark.parametrize("error", [TransientError, RetryableException])
def test_conflict_runs_the_job_again_at_once(
    broker: Broker, config: Configurator, events: Events, error: type[Exception]
) -> None:
    """Whatever pyramid_retry would retry runs again at once: a real attempt, whose
    metrics start empty.
    """
    actor = conflicting(broker, events, error, min_backoff=HOUR)
    assert run(broker, actor, 2).attempt == 3
    tries = [e for e in events if isinstance(e, tuple)]
    assert tries == [(1, None), (2, None), (3, None)]
    assert events.count("commit") == 1 and events.count("abort") == 2


def test_transaction_says_what_is_a_conflict(
    broker: Broker,
    config: Configurator,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A data manager knows its database's errors, also without pyramid_retry. An actor
    that has ended its transaction may still raise a conflict.
    """

    @job_actor(broker=broker, min_backoff=HOUR)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.tm.get().join(Database("b", "", lambda: None))
        if job_state.attempt == 1:
            raise Ouch

    @job_actor(broker=broker, min_backoff=HOUR)
    def late(*, request: Any, job_state: JobState) -> None:
        if job_state.attempt == 1:
            request.tm.abort()
            raise RetryableException

    assert run(broker, late).attempt == 2
    monkeypatch.setitem(sys.modules, "pyramid_retry", None)
    assert run(broker, visit).attempt == 2
    failing = conflicting(broker, events, Ouch, min_backoff=HOUR)
    assert run(broker, failing, 1, status="retrying").attempt == 1


def test_conflict_beyond_the_attempts_waits_like_any_failure(
    broker: Broker, events: Events
) -> None:
    """Once retry.attempts is reached, Dramatiq's back-off applies, and the state names
    the conflict. An actor that may not be retried ends with it.
    """
    make_app_config(events, **{"retry.attempts": "2"})
    in_use = functools.partial(TransientError, "in use")
    actor = conflicting(broker, events, in_use, min_backoff=HOUR)
    with working(broker):
        message = actor.send(9)
        wait_for(lambda: (2, None) in events)
        wait_for(lambda: events.count("abort") == 2)
        job = wait_until(broker, message, "retrying")
    assert (job.attempt, error_of(job)) == (2, ("TransientError", "in use"))
    assert job.due_at and job.updated_at
    assert job.due_at - job.updated_at > timedelta(minutes=20)
    job = run(broker, actor, 9, status="error", max_retries=0)
    assert (job.attempt, error_of(job)) == (1, ("TransientError", "in use"))


def test_actor_decides_about_conflicts(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """`retry_when` sees a Retry whose cause is the conflict. An exception that the
    actor `throws` is none, and a Retry of its own keeps its text.
    """
    seen: list[BaseException] = []

    def retry_when(retries: int, exception: BaseException) -> bool:
        seen.append(exception)
        return True

    @job_actor(broker=broker, max_retries=0)
    def busy(*, request: Any, job_state: JobState) -> None:
        raise Retry("busy", delay=1) from ZeroDivisionError()

    run(broker, conflicting(broker, events, TransientError, retry_when=retry_when), 1)
    assert isinstance(seen[0], Retry) and seen[0].delay == 0
    assert isinstance(seen[0].__cause__, TransientError)
    error = RetryableException
    throwing = conflicting(broker, events, error, throws=error, actor_name="throwing")
    assert run(broker, throwing, 9, status="error").attempt == 1
    assert error_of(run(broker, busy, status="error")) == ("Retry", "busy")


# Declarations, messages and calls.


def test_actor_that_cannot_have_a_request_is_refused(broker: Broker) -> None:
    """Thread-locals do not follow coroutines. The message about a positional request
    shows the right signature.
    """

    async def visit(*, request: Any) -> None:
        await asyncio.sleep(0)

    with pytest.raises(ActorError, match=r"'visit' is async .* Declare it with `def`"):
        job_actor(broker=broker)(visit)
    with pytest.raises(ActorError, match=r"def go\(miles, \*, request\)"):

        @job_actor(broker=broker)
        def go(request, miles): ...


def test_message_cannot_carry_a_request(
    broker: Broker, config: Configurator, events: Events, redis_url: str
) -> None:
    """However it is sent, it is refused; one from a sender without the middleware
    cannot hand an actor something else.
    """

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append(isinstance(request, Request))

    @job_actor(broker=broker)
    def other(*, request: Any = None) -> None: ...

    job_states = make_request(config).job_states
    for send, name in (
        (visit.send, "visit"),
        (functools.partial(job_states.send_immediately, visit), "visit"),
        (lambda request: broker.enqueue(visit.message(request=request)), "visit"),
        (other.send, "other"),
    ):
        match = f"'{name}' cannot carry the argument request"
        with pytest.raises(ActorError, match=match):
            send(request="mine")
    elsewhere = make_broker(redis_url)
    elsewhere.declare_queue("default")
    message = visit.message(request="forged")
    with working(broker):
        elsewhere.enqueue(message)
        wait_until(broker, message, "success")
    assert events[1] is True


def test_direct_call_takes_the_request_that_it_is_given(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """Called directly, an actor is a function like any other; also if it calls itself
    or another one from within a job.
    """

    @job_actor(broker=broker)
    def other(*, request: Any, job_state: Any = None) -> Any:
        return request, job_state.get_progress_metric("x", "empty")

    @job_actor(broker=broker)
    def visit(depth: int, *, request: Any, job_state: JobState) -> None:
        if depth:
            visit(depth - 1, request=request)
            events.append(other(request="given"))
            with pytest.raises(TypeError):
                other()

    assert other(request="mine") == ("mine", "empty")
    with pytest.raises(TypeError, match="request"):
        other()
    run(broker, visit, 1)
    assert events == ["root", ("given", "empty"), "commit", "finished"]


@pytest.mark.parametrize("order", ["request first", "job first", "actors first"])
def test_request_comes_inside_whatever_the_order(
    redis_url: str, set_broker: Callable[[Any], None], events: Events, order: str
) -> None:
    """The commit belongs to the job, in whatever order the middleware was added."""
    broker = dramatiq.brokers.redis.RedisBroker(url=redis_url)
    set_broker(broker)
    ours = [JobStateMiddleware(), RequestMiddleware()]
    if order == "request first":
        ours.reverse()

    def declare() -> Any:
        @job_actor(broker=broker)
        def visit(*, request: Any, job_state: JobState) -> None:
            request.add_finished_callback(
                lambda request: events.append(job_state.status)
            )

        return visit

    visit = declare() if order == "actors first" else None
    for middleware in ours:
        broker.add_middleware(middleware)
    visit = visit or declare()
    make_app_config(events)
    job = run(broker, visit)
    assert events == ["root", "commit", "finished", "working"]
    assert job.job_params == {}


# Which application.


@pytest.fixture
def _alone() -> Iterator[None]:
    """No application of this process was made before the test."""
    before = list(global_registries)
    global_registries.empty()
    yield
    for registry in before:
        if registry is not None:
            global_registries.add(registry)


def declare_tell(broker: Broker) -> Any:
    """Declare an actor that tells which application's request it has."""

    @job_actor(broker=broker, max_retries=0)
    def tell(*, request: Any, job_state: JobState) -> None:
        job_state.set_message(request.registry.settings["database"])

    return tell


@pytest.mark.usefixtures("_alone")
def test_last_application_with_the_package_serves_other_brokers(
    redis_url: str, broker: Broker, events: Events
) -> None:
    """A broker beside the global one uses the application that was made last, unless
    that does not include the package. A worker that was started without the
    application's ini says so, and need not keep the one that it has made.
    """
    further = make_broker(redis_url, others=(RequestMiddleware(),))
    tell = declare_tell(further)
    job = run(further, tell, status="error")
    assert "pjobs INI work" in error_of(job)[1]
    config = make_app_config(events, database="shop")
    Configurator().make_wsgi_app()
    assert run(further, tell).message == "shop"
    kept = declare_tell(broker)
    del config
    gc.collect()
    assert run(broker, kept).message == "shop"


def test_applications_that_share_a_broker_keep_their_jobs_apart(
    broker: Broker, events: Events, store: JobStore
) -> None:
    """A job's request belongs to the application that has sent the job, in whichever
    process: the same settings, or the same base URL, make the same application, and the
    last one of them counts. A job that none of them has sent is refused.
    """
    shop = make_app_config(events, database="shop")
    admin = make_app_config(events, database="admin")
    again = make_app_config(events, database="shop")
    base = {"jobstate.base_url": "http://a"}
    moved = [make_app_config(events, database=name, **base) for name in ("old", "new")]
    tell = declare_tell(broker)
    with working(broker):
        for config, name in ((shop, "shop"), (admin, "admin"), (moved[0], "new")):
            job = make_request(config).job_states.send_immediately(tell)
            assert ended(store, job.uuid).message == name
        refused = wait_until(broker, tell.send(), "error")
    text = "several applications of this process share its broker"
    assert text in error_of(refused)[1]
    assert again.registry.settings == shop.registry.settings


def test_application_that_is_gone_is_not_replaced(
    broker: Broker, events: Events, store: JobStore
) -> None:
    """A job of an application that the process has dropped does not run in another. A
    message that names none runs in the only one that is left.
    """
    tell = declare_tell(broker)
    gone = make_app_config(events, database="gone")
    uuid = make_request(gone).job_states.send_immediately(tell).uuid
    registry = weakref.ref(gone.registry)
    kept = make_app_config(events, database="kept")
    del gone
    wait_for(lambda: gc.collect() >= 0 and registry() is None)
    odd: Any = {"job_app": ["x"]}
    with working(broker):
        refused = ended(store, uuid)
        assert wait_until(broker, tell.send(), "success").message == "kept"
        message = tell.send_with_options(**odd)
        assert wait_until(broker, message, "success").message == "kept"
    assert "keep a reference to the application" in error_of(refused)[1]
    assert kept.registry.settings["database"] == "kept"


def test_application_without_the_setting_takes_nothing_over(
    redis_url: str, no_broker: None, events: Events
) -> None:
    """An application that only reads jobs, beside the one whose broker this is, does
    not serve the requests of its jobs.
    """
    owner = make_app_config(
        events, **{"jobstate.broker": redis_url, "database": "owner"}
    )
    reader = make_config(redis_url, settings={"database": "reader"})
    reader.include("pyramid_jobstate")
    reader.make_wsgi_app()
    broker = dramatiq.get_broker()
    assert run(broker, declare_tell(broker)).message == "owner"
    assert owner.registry.settings["database"] == "owner"
    release_broker()


# Brokers that run a job in its sender.


@pytest.fixture
def in_caller(redis_url: str, set_broker: Callable[[Any], None]) -> InCallerBroker:
    """The global broker, which runs a job where it is sent."""
    middleware = [JobStateMiddleware(url=redis_url), RequestMiddleware()]
    broker = InCallerBroker(middleware, tells_all=True)
    set_broker(broker)
    return broker


def test_job_in_the_caller_has_a_transaction_of_its_own(
    in_caller: InCallerBroker, events: Events, store: JobStore
) -> None:
    """With explicit managers, a job that runs in its sender's commit has its own. With
    that of the thread it would end its sender's transaction, so it is refused.
    """

    @job_actor(broker=in_caller)
    def visit(*, request: Any, job_state: JobState) -> None: ...

    request = make_request(make_app_config(events))
    with request.tm:
        job = request.job_states.send(visit)
    assert load_job(store, job.uuid).status == "success"
    assert events == ["root", "commit", "finished"]

    def view(request: Request) -> Any:
        sent.append(request.job_states.send(visit))
        return {}

    sent: list[JobState] = []
    config = make_tm_config(None, {})
    config.add_view(view, name="go", renderer="json")
    config.include("pyramid_jobstate")
    TestApp(config.make_wsgi_app()).get("/go")
    job = load_job(store, sent[0].uuid)
    assert job.status == "error"
    assert "pyramid_tm.explicit_manager" in error_of(job)[1]
