"""RequestMiddleware: an actor's request, and the transaction that it commits."""

import asyncio
import contextlib
import functools
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, GenericActor
from dramatiq.brokers.stub import StubBroker
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
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import release_broker
from pyramid_jobstate.web.applications import (
    Applications,
    last_application,
    name_of,
)
from pyramid_jobstate.web.request import with_request
from tests.incaller import InCallerBroker
from tests.jobs import job_actor, load, make_broker, messages, wait_until, working
from tests.support import load_job, wait_for
from tests.web.databases import Manager, fail
from tests.webapp import EXPLICIT, make_config, make_request, make_tm_config

LOGGER = "pyramid_jobstate"

#: What the jobs of a test have done, in order.
Events = list[Any]


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


def make_app_config(events: Events, **settings: Any) -> Configurator:
    def root(request: Request) -> Any:
        request.tm.get()  # It has begun.
        request.tm.get().join(Told(events))
        request.add_finished_callback(lambda request: events.append("finished"))
        events.append("root")
        return {"the": "root"}

    config = make_tm_config(None, {**EXPLICIT, **settings}, root_factory=root)
    config.include("pyramid_jobstate")
    config.add_route("page", "/page")
    config.make_wsgi_app()
    return config


class Told(Manager):
    """A data manager that notes the end of its transaction."""

    def __init__(self, events: Events) -> None:
        super().__init__("a", "", lambda: None)
        self._events = events

    def tpc_finish(self, transaction: Any) -> None:
        self._events.append("commit")

    def abort(self, transaction: Any) -> None:
        self._events.append("abort")


def run(
    broker: Broker, actor: Any, *args: Any, status: str = "success", **options: Any
) -> JobState:
    """Run a job to its end, and return its state."""
    with working(broker, threads=1):
        message = actor.send_with_options(args=args, **options)
        return wait_until(broker, message, status)


# The request.


def test_actor_runs_in_a_request_with_a_root_and_a_transaction(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """The transaction begins before the root is made and commits after the actor; then
    the finished callbacks run, and the job ends.
    """

    @job_actor(broker=broker)
    def visit(miles: int, *, request: Any, job_state: JobState) -> None:
        assert get_current_request() is request
        assert request.environ["tm.active"] and request.registry is config.registry
        assert request.root == request.context == {"the": "root"}
        assert current_job_state() is job_state
        request.add_finished_callback(
            lambda request: events.append(job_state.is_working)
        )
        events.append(miles)

    job = run(broker, visit, 26)
    assert events == ["root", 26, "commit", "finished", True]
    assert job.job_params == {"miles": 26}
    assert get_current_request() is None


@pytest.mark.parametrize(
    ("setting", "option", "url"),
    [
        (None, None, "http://localhost"),
        (
            None,
            "https://shop.example.com:8443/a%20b",
            "https://shop.example.com:8443/a%20b",
        ),
        ("https://example.com/shop/", "http://other", "https://example.com/shop"),
        (None, "javascript:alert(1)", "http://localhost"),
        (None, "http://u@host", "http://localhost"),
        (None, "http://host:99999", "http://localhost"),
        (None, ["http://host"], "http://localhost"),
    ],
)
def test_url_of_the_application_comes_from_the_setting_or_the_sender(
    broker: Broker,
    events: Events,
    setting: str | None,
    option: Any,
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The setting wins over the URL in the message; a URL that cannot be one is logged
    and not used.
    """
    settings = {} if setting is None else {"jobstate.base_url": setting}
    make_app_config(events, **settings)

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.extend([request.application_url, request.route_url("page")])

    run(broker, visit, **({} if option is None else {"job_url": option}))
    assert events[1:3] == [url, f"{url}/page"]
    assert len(messages(caplog, LOGGER)) == (
        setting is None and option not in (None, url)
    )


def test_sent_job_is_told_the_url_of_its_sender(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """A job with a request learns under which URL its sender reached the application;
    other jobs do not.
    """

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append(request.application_url)

    @job_actor(broker=broker)
    def other(*, job_state: JobState) -> None: ...

    request = make_request(config, "alice")
    request.host = "shop.example.com"
    sent = [request.job_states.send_immediately(actor) for actor in (visit, other)]
    with working(broker):
        wait_for(lambda: all(job.is_finished for job in map(reload, sent)))
    assert "http://shop.example.com" in events
    assert "job_url" not in other.message().options


def reload(job_state: JobState) -> JobState:
    assert isinstance(job_state._store, JobStore)
    return load_job(job_state._store, job_state.uuid)


@pytest.mark.parametrize(
    ("option", "owner"), [("alice", "alice"), (7, 7), (None, None), (["bob"], None)]
)
def test_what_a_job_sends_belongs_to_its_owner(
    broker: Broker, config: Configurator, option: Any, owner: Any
) -> None:
    """The request of a job stands for the job's owner, whoever has sent it."""
    sent = []

    @job_actor(broker=broker)
    def follow(*, job_state: JobState) -> None: ...

    @job_actor(broker=broker)
    def lead(*, request: Any, job_state: JobState) -> None:
        sent.append(request.job_states.send(follow))

    job = run(broker, lead, job_owner=option)
    assert job.owner == owner
    assert reload(sent[0]).owner == owner


def test_untracked_actor_receives_a_request(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """An actor that shows no progress may have a request, too."""

    @job_actor(broker=broker)
    def visit(miles: int, *, request: Any) -> None:
        events.append(miles)

    with working(broker):
        visit.send(26)
        wait_for(lambda: events[-1:] == ["finished"])
    assert events == ["root", 26, "commit", "finished"]


def test_class_based_actor_receives_a_request(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """The `perform` of a GenericActor may have a request."""

    class Visit(GenericActor):
        class Meta:
            broker: Any = None

        Meta.broker = broker

        def perform(self, miles: int, *, request: Any, job_state: JobState) -> None:
            events.append(request.root["the"])

    job = run(broker, Visit, 5)
    assert events == ["root", "root", "commit", "finished"]
    assert job.job_params == {"miles": 5}


def test_application_without_transactions(
    redis_url: str, set_broker: Callable[[Any], None], events: Events
) -> None:
    """Without pyramid_tm an actor has a request and no transaction."""
    broker = make_broker(redis_url, others=(RequestMiddleware(),))
    set_broker(broker)
    config = make_config(None)
    config.include("pyramid_jobstate")
    config.make_wsgi_app()

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append(hasattr(request, "tm"))

    run(broker, visit)
    assert events == [False]


@pytest.mark.parametrize("key", ["tm.active", "repoze.tm.active"])
def test_transaction_of_a_test_is_left_alone(
    broker: Broker, config: Configurator, events: Events, key: str
) -> None:
    """With tm.active in the environ, nothing is begun, committed or aborted."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None: ...

    manager = make_request(config).tm
    with manager:
        environ = {key: True, "tm.manager": manager}
        assert (
            with_request(config.registry, visit.message(), lambda r: r.tm, environ)
            is manager
        )
        with pytest.raises(ZeroDivisionError):
            with_request(config.registry, visit.message(), lambda r: 1 / 0, environ)
        assert events == ["root", "finished"] * 2
    assert events[4:] == ["commit", "commit"]


# Success and failure.


class Ouch(Exception):
    """What the actors of these tests raise."""


@pytest.mark.parametrize("error", [Ouch, TimeLimitExceeded, SystemExit])
def test_whatever_is_raised_aborts(
    broker: Broker, config: Configurator, events: Events, error: type[BaseException]
) -> None:
    """An exception or an interrupt aborts the transaction; what was to be sent is
    neither sent nor recorded.
    """
    sent = []

    @job_actor(broker=broker)
    def follow(*, job_state: JobState) -> None: ...

    @job_actor(broker=broker, max_retries=0)
    def lead(*, request: Any, job_state: JobState) -> None:
        sent.append(request.job_states.send(follow))
        raise error

    job = run(broker, lead, status="error")
    assert job.error is not None
    assert str(job.error.type).rpartition(".")[2] == error.__name__
    assert events == ["root", "abort", "finished"]
    assert config.registry is not None
    assert make_request(config).job_states.find(sent[0].uuid) is None


def test_cancelled_job_aborts(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """JobCancelled aborts the transaction, and the job reads cancelled."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.job_states[job_state.uuid].cancel()
        wait_for(lambda: job_state.cancel_requested)
        job_state.raise_if_cancelled()

    run(broker, visit, status="cancelled")
    assert events == ["root", "abort", "finished"]


def test_failed_commit_is_the_error_of_the_job(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """A job whose commit fails is an error, though its actor returned."""

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.tm.get().join(Manager("b", "tpc_vote", fail))

    job = run(broker, visit, status="error")
    assert job.error is not None and job.error.type == "ZeroDivisionError"
    assert "commit" not in events and "abort" in events


def test_doomed_transaction_is_an_error(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """A job whose transaction is doomed cannot be a success, since that means that it
    has committed.
    """

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.tm.doom()

    job = run(broker, visit, status="error")
    assert job.error is not None
    assert str(job.error.type).endswith("DoomedTransaction")


def test_actor_that_has_ended_its_transaction_is_told(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """With nothing left to commit, the error names the missing transaction."""

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.tm.commit()

    job = run(broker, visit, status="error")
    assert job.error is not None and str(job.error.type).endswith("NoTransaction")
    assert events == ["root", "commit", "finished"]


def test_abort_that_fails_does_not_hide_the_error(
    broker: Broker,
    config: Configurator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of the job is the actor's; that of the abort is logged."""

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        monkeypatch.setattr(request.tm, "abort", fail)
        raise Ouch

    job = run(broker, visit, status="error")
    assert job.error is not None and str(job.error.type).endswith("Ouch")
    assert messages(caplog, LOGGER, logging.ERROR) == [
        "The transaction of a job could not be aborted."
    ]


def test_finished_callback_that_fails_changes_nothing(
    broker: Broker,
    config: Configurator,
    events: Events,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The transaction has committed, so the job is a success. Other callbacks run."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.finished_callbacks.appendleft(lambda request: 1 / 0)

    run(broker, visit)
    assert events == ["root", "commit", "finished"]
    assert messages(caplog, LOGGER, logging.ERROR) == [
        "A finished callback of a job failed."
    ]


def test_note_of_the_transaction_is_the_name_of_the_actor(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """The arguments of a job do not enter the database's log of transactions."""

    @job_actor(broker=broker)
    def visit(secret: str, *, request: Any, job_state: JobState) -> None:
        events.append(request.tm.get().description)

    run(broker, visit, "swordfish")
    assert events[1] == "visit"


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


@pytest.mark.parametrize("error", [TransientError, RetryableException])
def test_conflict_runs_the_job_again_at_once(
    broker: Broker, config: Configurator, events: Events, error: type[Exception]
) -> None:
    """Whatever pyramid_retry would retry runs again at once: a real attempt, whose
    metrics start empty.
    """
    actor = conflicting(broker, events, error, min_backoff=3_600_000)
    job = run(broker, actor, 2)
    assert job.attempt == 3
    assert [e for e in events if isinstance(e, tuple)] == [
        (1, None),
        (2, None),
        (3, None),
    ]
    assert events.count("commit") == 1 and events.count("abort") == 2


def test_database_says_what_is_a_conflict(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """A data manager knows its database's errors."""

    class Database(Manager):
        def should_retry(self, error: Exception) -> bool:
            return isinstance(error, Ouch)

    @job_actor(broker=broker, min_backoff=3_600_000)
    def visit(*, request: Any, job_state: JobState) -> None:
        request.tm.get().join(Database("b", "", lambda: None))
        if job_state.attempt == 1:
            raise Ouch

    assert run(broker, visit).attempt == 2


def test_conflict_beyond_the_attempts_waits_like_any_failure(
    broker: Broker, events: Events
) -> None:
    """Once retry.attempts is reached, Dramatiq's back-off applies, and the state names
    the conflict.
    """
    make_app_config(events, **{"retry.attempts": "2"})
    actor = conflicting(
        broker, events, lambda: TransientError("in use"), min_backoff=3_600_000
    )
    with working(broker):
        message = actor.send(9)
        wait_for(lambda: load(broker, message).attempt == 2)
        job = wait_until(broker, message, "retrying")
    assert job.error is not None
    assert job.error == ("transaction.interfaces.TransientError", "in use")


def test_max_retries_holds_for_conflicts(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """An actor that may not be retried ends with the conflict as its error."""
    actor = conflicting(broker, events, lambda: TransientError("in use"), max_retries=0)
    job = run(broker, actor, 9, status="error")
    assert job.attempt == 1
    assert job.error == ("transaction.interfaces.TransientError", "in use")


def test_retry_when_sees_a_retry_caused_by_the_conflict(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """`retry_when` decides with the exception that Dramatiq sees."""
    seen: list[BaseException] = []

    def retry_when(retries: int, exception: BaseException) -> bool:
        seen.append(exception)
        return True

    actor = conflicting(
        broker, events, lambda: TransientError("in use"), retry_when=retry_when
    )
    run(broker, actor, 1)
    assert isinstance(seen[0], Retry) and seen[0].delay == 0
    assert isinstance(seen[0].__cause__, TransientError)


def test_conflict_without_pyramid_retry(
    broker: Broker,
    config: Configurator,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transaction knows what is a conflict; nothing else is one."""
    monkeypatch.setitem(sys.modules, "pyramid_retry", None)
    actor = conflicting(broker, events, TransientError, min_backoff=3_600_000)
    assert run(broker, actor, 1).attempt == 2
    failing = conflicting(
        broker, events, Ouch, min_backoff=3_600_000, actor_name="failing"
    )
    assert run(broker, failing, 1, status="retrying").attempt == 1


def test_conflict_after_the_end_of_the_transaction(
    broker: Broker, config: Configurator
) -> None:
    """An actor that has ended its transaction may still raise a conflict."""

    @job_actor(broker=broker, min_backoff=3_600_000)
    def visit(*, request: Any, job_state: JobState) -> None:
        if job_state.attempt == 1:
            request.tm.abort()
            raise RetryableException

    assert run(broker, visit).attempt == 2


# Declarations and messages.


def test_async_actor_is_refused(broker: Broker) -> None:
    """Thread-locals do not follow coroutines."""
    with pytest.raises(ActorError, match=r"'visit' is async .* Declare it with `def`"):

        @job_actor(broker=broker)
        async def visit(*, request: Any) -> None:
            await asyncio.sleep(0)


def test_positional_request_is_refused(broker: Broker) -> None:
    """The message shows the right signature."""
    with pytest.raises(ActorError, match=r"def visit\(miles, \*, request\)"):

        @job_actor(broker=broker)
        def visit(request, miles): ...


def test_message_with_a_request_is_refused(
    broker: Broker, config: Configurator
) -> None:
    """However it is sent, a message cannot carry the argument."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None: ...

    @job_actor(broker=broker)
    def other(*, request: Any = None) -> None: ...

    match = "'visit' cannot carry the argument request"
    with pytest.raises(ActorError, match=match):
        visit.send(request="mine")
    job_states = make_request(config).job_states
    with pytest.raises(ActorError, match=match):
        job_states.send_immediately(visit, request="mine")
    with pytest.raises(ActorError, match=match):
        broker.enqueue(visit.message(request="mine"))
    with pytest.raises(ActorError, match="'other' cannot carry"):
        other.send(request="mine")


def test_request_in_a_message_from_elsewhere_is_replaced(
    broker: Broker, config: Configurator, events: Events, redis_url: str
) -> None:
    """A sender without the middleware cannot hand an actor something else."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append(isinstance(request, Request))

    elsewhere = make_broker(redis_url)
    elsewhere.declare_queue("default")
    message = visit.message(request="forged")
    with working(broker):
        elsewhere.enqueue(message)
        wait_until(broker, message, "success")
    assert events[1] is True


def test_direct_call_takes_the_request_that_it_is_given(
    broker: Broker, config: Configurator
) -> None:
    """Called directly, an actor is a function like any other."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: Any = None) -> Any:
        return request, job_state.get_progress_metric("x", "empty")

    assert visit(request="mine") == ("mine", "empty")
    with pytest.raises(TypeError, match="request"):
        visit()


def test_call_from_within_a_job_is_direct(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """An actor that calls itself or another one passes on its own request."""

    @job_actor(broker=broker)
    def other(*, request: Any) -> None:
        events.append(("other", request))

    @job_actor(broker=broker)
    def visit(depth: int, *, request: Any, job_state: JobState) -> None:
        if depth:
            visit(depth - 1, request=request)
            other(request="given")
            with pytest.raises(TypeError):
                other()

    run(broker, visit, 1)
    assert events == ["root", ("other", "given"), "commit", "finished"]


@pytest.mark.parametrize("order", ["request first", "job first", "actors first"])
def test_request_comes_inside_whatever_the_order(
    redis_url: str, set_broker: Callable[[Any], None], events: Events, order: str
) -> None:
    """The commit belongs to the job, in whatever order the middleware was added."""
    broker = make_broker(redis_url, without=None)
    broker.middleware = [
        m for m in broker.middleware if not isinstance(m, JobStateMiddleware)
    ]
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


def test_process_without_an_application_is_told(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was started without the application's ini says so."""
    monkeypatch.setattr("pyramid_jobstate.web.applications.global_registries", [None])

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None: ...

    job = run(broker, visit, status="error")
    assert job.error is not None and "pjobs INI work" in job.error.message


def test_last_application_with_the_package_serves_other_brokers(
    broker: Broker, events: Events
) -> None:
    """A broker beside the global one uses the application that was made last, unless
    that does not include the package.
    """
    config = make_app_config(events)
    other = Configurator()
    other.make_wsgi_app()
    assert global_registries.last is other.registry
    assert last_application() is config.registry


def test_application_is_kept_for_its_jobs(broker: Broker, events: Events) -> None:
    """A worker need not keep the application that it has made."""
    make_app_config(events)
    gc.collect()

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None: ...

    run(broker, visit)
    assert events == ["root", "commit", "finished"]


# Brokers that run a job in its sender.


@contextlib.contextmanager
def in_caller(
    redis_url: str, set_broker: Callable[[Any], None]
) -> Iterator[StubBroker]:
    broker = InCallerBroker(
        [JobStateMiddleware(url=redis_url), RequestMiddleware()], tells_all=True
    )
    set_broker(broker)
    yield broker


def test_job_in_the_caller_has_a_transaction_of_its_own(
    redis_url: str, set_broker: Callable[[Any], None], events: Events
) -> None:
    """With explicit managers, a job that runs in its sender's commit has its own."""
    with in_caller(redis_url, set_broker) as broker:
        config = make_app_config(events)

        @job_actor(broker=broker)
        def visit(*, request: Any, job_state: JobState) -> None: ...

        request = make_request(config)
        with request.tm:
            job = request.job_states.send(visit)
    assert reload(job).status == "success"
    assert events == ["root", "commit", "finished"]


def test_job_in_the_caller_cannot_share_its_manager(
    redis_url: str, set_broker: Callable[[Any], None]
) -> None:
    """With the manager of the thread it would end its sender's transaction, so it is
    refused.
    """
    with in_caller(redis_url, set_broker) as broker:
        config = make_tm_config(None, {})
        sent = []

        @dramatiq.actor(broker=broker)
        def visit(*, request: Any, job_state: JobState) -> None: ...

        def view(request: Request) -> Any:
            sent.append(request.job_states.send(visit))
            return {}

        config.add_view(view, name="go", renderer="json")
        config.include("pyramid_jobstate")
        TestApp(config.make_wsgi_app()).get("/go")
    job = reload(sent[0])
    assert job.status == "error" and job.error is not None
    assert "pyramid_tm.explicit_manager" in job.error.message


def test_expected_exception_is_not_a_conflict(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """An exception that the actor `throws` ends the job, as with any other actor."""
    actor = conflicting(broker, events, RetryableException, throws=RetryableException)
    assert run(broker, actor, 9, status="error").attempt == 1


def test_retry_of_an_actor_keeps_its_text(broker: Broker, config: Configurator) -> None:
    """What an actor raises itself is the error that viewers are told about."""

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        raise Retry("busy", delay=1) from ZeroDivisionError()

    assert run(broker, visit, status="error").error == ("dramatiq.errors.Retry", "busy")


def test_application_without_the_setting_takes_nothing_over(
    redis_url: str, set_broker: Callable[[Any], None]
) -> None:
    """An application that only reads jobs, beside the one whose broker this is, does
    not serve the requests of its jobs.
    """
    set_broker(None)
    owner = make_tm_config(None, {**EXPLICIT, "jobstate.broker": redis_url})
    owner.include("pyramid_jobstate")
    owner.make_wsgi_app()
    reader = make_config(redis_url)
    reader.include("pyramid_jobstate")
    reader.make_wsgi_app()
    global_broker = dramatiq.get_broker()
    (found,) = (m for m in global_broker.middleware if isinstance(m, RequestMiddleware))
    assert found.applications.find({}) is owner.registry
    release_broker()


def test_request_is_found_behind_another_wrapper(
    broker: Broker, config: Configurator, events: Events
) -> None:
    """A middleware of the application's own may wrap the function, too."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        events.append(request.application_url)

    @functools.wraps(visit.fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    inner, visit.fn = visit.fn, wrapper
    with pytest.raises(ActorError, match="cannot carry the argument request"):
        visit.send(request="mine")
    request = make_request(config, "alice")
    request.host = "shop.example.com"
    job = request.job_states.send_immediately(visit)
    with working(broker):
        wait_for(lambda: reload(job).is_success)
    assert events[1] == "http://shop.example.com"


def ended(job: JobState) -> JobState:
    """Wait until a job has ended, and return it."""
    wait_for(lambda: reload(job).is_finished)
    return reload(job)


def test_applications_that_share_a_broker_keep_their_jobs_apart(
    broker: Broker, events: Events
) -> None:
    """A job's request belongs to the application that has sent the job. A job that
    none of them has sent is refused.
    """
    shop = make_app_config(events, database="shop")
    admin = make_app_config(events, database="admin")

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        job_state.set_message(request.registry.settings["database"])

    with working(broker):
        for config in (shop, admin):
            job = make_request(config).job_states.send_immediately(visit)
            assert ended(job).message == config.registry.settings["database"]
        refused = wait_until(broker, visit.send(), "error")
    assert refused.error is not None
    assert "several applications of this process" in refused.error.message


def test_application_is_known_in_another_process(
    broker: Broker, events: Events
) -> None:
    """The same settings make the same application, and the last one of them counts."""
    applications = Applications()
    first, last, other = (
        make_app_config(events, database=name).registry for name in ("a", "a", "b")
    )
    options = []
    for registry in (first, last, other):
        applications.add(registry)
        request = Request.blank("/")
        request.registry = registry
        options.append(JobStates(request)._origin())
    assert applications.find(options[0]) is last
    assert applications.find(options[2]) is other
    applications.add(first)
    assert applications.find(options[1]) is first


def test_application_that_is_gone_is_not_replaced(
    broker: Broker, events: Events
) -> None:
    """A job of an application that the process has dropped does not run in another.
    A message that names none runs in the only one that is left.
    """
    applications = Applications()
    applications.add(make_app_config(events, database="a").registry)
    kept = make_app_config(events, database="b").registry
    applications.add(kept)
    gone = next(name for name in applications._all if name != name_of(kept))
    wait_for(lambda: gc.collect() >= 0 and applications._all[gone]() is None)
    with pytest.raises(LookupError, match="keep a reference to the application"):
        applications.find({"job_app": gone})
    assert applications.find({}) is applications.find({"job_app": ["x"]}) is kept


def test_base_url_names_an_application(broker: Broker, events: Events) -> None:
    """An application with a base URL may change its other settings."""
    one, two, other = (
        make_app_config(events, **{"jobstate.base_url": url, "pool": pool}).registry
        for url, pool in (("http://a", "1"), ("http://a", "2"), ("http://b", "1"))
    )
    assert name_of(one) == name_of(two) != name_of(other)


def test_request_factory_needs_only_an_environ(
    redis_url: str, set_broker: Callable[[Any], None]
) -> None:
    """The application's request factory may be any function of an environ."""

    class Mine(Request):
        pass

    broker = make_broker(redis_url, others=(RequestMiddleware(),))
    set_broker(broker)
    config = make_config(None)
    config.set_request_factory(lambda environ: Mine(environ))
    config.include("pyramid_jobstate")
    config.make_wsgi_app()

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        job_state.set_message(type(request).__bases__[0].__name__)

    assert run(broker, visit).message == "Mine"
