"""RequestMiddleware: an actor's request, and the transaction that it commits."""

import asyncio
import functools
import gc
import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import TimeLimitExceeded
from pyramid.authorization import Everyone
from pyramid.config import Configurator, global_registries
from pyramid.events import NewRequest
from pyramid.request import Request
from pyramid.threadlocal import get_current_request
from pyramid_retry import RetryableException
from transaction.interfaces import TransientError

from pyramid_jobstate import JobState, JobStateMiddleware, RequestMiddleware
from pyramid_jobstate.errors import ActorError
from tests.incaller import InCallerBroker
from tests.jobs import job_actor, make_broker, messages, store_of, wait_until, working
from tests.support import load_job, wait_for
from tests.web.databases import Manager, fail
from tests.web.visits import visit
from tests.webapp import EXPLICIT, made_config, make_request, make_tm_config

LOGGER = "pyramid_jobstate"
HOUR = 3_600_000

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
    """Override: an application whose root and transaction say what happens to them."""
    return make_app_config(events)


def make_app_config(
    events: Events, package: str | None = None, **settings: Any
) -> Configurator:
    def root(request: Request) -> Any:
        request.tm.get()  # It has begun.
        told: Any = Manager("a", "tpc_finish", lambda: events.append("commit"))
        told.abort = lambda transaction: events.append("abort")
        request.tm.get().join(told)
        request.add_finished_callback(lambda request: events.append("finished"))
        events.append("root")
        return {"the": "root"}

    settings = {**EXPLICIT, **settings}
    config = make_tm_config(None, settings, root_factory=root, package=package)
    config.include("pyramid_jobstate")
    config.add_route("page", "/page")
    config.add_subscriber(lambda event: events.append("new"), NewRequest)
    config.make_wsgi_app()
    return config


def run(
    broker: Broker, actor: Any, *args: Any, status: str = "success", **options: Any
) -> JobState:
    """Run a job to its end, and return its state."""
    with working(broker, threads=1):
        return wait_until(broker, actor.send_with_options(args=args, **options), status)


def error_of(job: JobState) -> tuple[str, str]:
    """Return the class of a job's error, without its module, and its message."""
    assert job.error is not None
    return str(job.error.type).rpartition(".")[2], job.error.message


def wait_for_attempt(broker: Broker, message: Any, attempt: int) -> JobState:
    """Wait until an attempt has failed and another will follow, and return the job."""

    def reached() -> JobState | None:
        job = wait_until(broker, message, "retrying")
        return job if job.attempt >= attempt else None

    return wait_for(reached)


def test_actor_runs_in_a_request_with_a_root_and_a_transaction(broker, config, events):
    """It commits before callbacks and the end, and nothing stays in the thread."""

    @job_actor(broker=broker)
    def visit(miles: int, *, request: Any, job_state: JobState) -> None:
        assert get_current_request() is request
        assert request.environ["tm.active"] and request.registry is config.registry
        assert request.root == request.context == {"the": "root"}
        assert not hasattr(request, "invoke_subrequest")
        request.add_finished_callback(lambda _: events.append(job_state.is_working))
        events.append((miles, request.tm.get().description))

    @job_actor(broker=broker)
    def look(*, job_state: JobState) -> None:
        events.append(get_current_request())

    with working(broker, threads=1):
        message = visit.send(26)
        wait_until(broker, look.send(), "success")
        job = wait_until(broker, message, "success")
    assert events == ["root", (26, "visit"), "commit", "finished", True, None]
    assert job.job_params == {"miles": 26}


def test_url_of_the_application_comes_from_the_setting_or_the_sender(
    broker, events, caplog
):
    """The setting wins over the sender's URL. A wrong one is logged and not used."""

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: JobState) -> None:
        job_state.set_message(request.route_url("page"))

    def url_of_sent(config: Configurator) -> str | None:
        request = make_request(config)
        request.host = "shop.example.com:8443"
        request.job_states.send_immediately(message := visit.message())
        return wait_until(broker, message, "success").message

    with working(broker):
        config = make_app_config(events)
        assert url_of_sent(config) == "http://shop.example.com:8443/page"
        for option in None, "javascript:alert(1)", "http://u@host", ["http://h"]:
            options: Any = {} if option is None else {"job_url": option}
            job = wait_until(broker, visit.send_with_options(**options), "success")
            assert job.message == "http://localhost/page", option
        base = {"jobstate.base_url": "https://example.com/shop/"}
        config = make_app_config(events, **base)
        assert url_of_sent(config) == "https://example.com/shop/page"
    lines = messages(caplog, LOGGER)
    assert len(lines) == 3 and all("invalid job_url" in line for line in lines)


def test_request_stands_for_the_owner_of_the_job(broker, config, caplog):
    """What an actor sends belongs to the owner of its own job, if that can be one."""
    sent = []

    @job_actor(broker=broker)
    def follow(*, job_state: JobState) -> None: ...

    @job_actor(broker=broker)
    def lead(*, request: Any, job_state: JobState) -> None:
        sent.append(request.job_states.send(follow))

    for option, owner in ("alice", "alice"), (7, 7), (["bob"], None), (Everyone, None):
        assert run(broker, lead, job_owner=option).owner == owner
        assert load_job(store_of(broker), sent[-1].uuid).owner == owner
    assert any("has no owner" in line for line in messages(caplog, LOGGER))


def test_job_is_a_success_only_if_its_transaction_has_committed(
    broker, config, events, store
):
    """Whatever aborts it, what was to be sent is neither sent nor recorded."""

    def cancel(request: Any, job_state: JobState) -> None:
        request.job_states[job_state.uuid].cancel()
        wait_for(lambda: job_state.cancel_requested)
        job_state.raise_if_cancelled()

    def throw(error: type[BaseException]) -> None:
        raise error

    database = Manager("b", "tpc_vote", fail)
    ways: list[tuple[str, str, Callable[[Any, JobState], object]]] = [
        ("ZeroDivisionError", "abort", lambda request, job: fail()),
        ("TimeLimitExceeded", "abort", lambda request, job: throw(TimeLimitExceeded)),
        ("SystemExit", "abort", lambda request, job: throw(SystemExit)),
        ("", "abort", cancel),
        ("ZeroDivisionError", "abort", lambda r, job: r.tm.get().join(database)),
        ("DoomedTransaction", "abort", lambda request, job: request.tm.doom()),
        ("NoTransaction", "commit", lambda request, job: request.tm.commit()),
    ]
    sent = []

    @job_actor(broker=broker)
    def follow(*, job_state: JobState) -> None: ...

    @job_actor(broker=broker, max_retries=0)
    def lead(number: int, *, request: Any, job_state: JobState) -> None:
        sent.append(request.job_states.send(follow))
        ways[number][2](request, job_state)

    for number, (error, end, _) in enumerate(ways):
        events.clear()
        job = run(broker, lead, number, status="error" if error else "cancelled")
        assert not error or error_of(job)[0] == error
        assert list(dict.fromkeys(events)) == ["root", end, "finished"], number
        assert (store.load(sent[-1].uuid) is None) is (end == "abort"), number


def test_trouble_after_the_end_is_logged(broker, config, events, caplog):
    """An abort or a finished callback that fails changes no end."""

    @job_actor(broker=broker, max_retries=0)
    def abort(*, request: Any, job_state: JobState) -> None:
        request.tm.abort = fail
        raise ValueError

    @job_actor(broker=broker)
    def finish(*, request: Any, job_state: JobState) -> None:
        request.finished_callbacks.appendleft(lambda request: 1 / 0)

    assert error_of(run(broker, abort, status="error"))[0] == "ValueError"
    events.clear()
    run(broker, finish)
    assert events == ["root", "commit", "finished"]
    assert messages(caplog, LOGGER, logging.ERROR) == [
        "The transaction of a job could not be aborted.",
        "A finished callback of a job failed.",
    ]


def test_interrupts_leave_no_database_locked(broker, config, events):
    """If an interrupt strikes while one takes back a commit, the others still do."""

    @job_actor(broker=broker, max_retries=0)
    def visit(*, request: Any, job_state: JobState) -> None:
        for name in "b", "c":
            abort = functools.partial(note, name)
            request.tm.get().join(Manager(name, "tpc_abort", abort))
        raise TimeLimitExceeded

    def note(name: str) -> None:
        events.append(name)
        if name == "c":
            raise TimeLimitExceeded

    run(broker, visit, status="error")
    assert {"b", "c", "abort", "finished"} <= {*events}


def conflicting(
    broker: Broker, events: Events, error: Callable[[], Exception], **options: Any
) -> Any:
    """Declare an actor that conflicts in each of its first attempts."""

    @job_actor(broker=broker, min_backoff=HOUR, **options)
    def conflict(times: int, *, request: Any, job_state: JobState) -> None:
        attempt = job_state.attempt
        events.append((attempt, job_state.get_progress_metric("left")))
        job_state.set_progress_metric("left", attempt)
        if attempt <= times:
            raise error()

    return conflict


def test_conflict_runs_the_job_again_at_once(broker, config, events):
    """What pyramid_retry would retry is a new attempt, whose metrics start empty."""

    @job_actor(broker=broker, min_backoff=HOUR)
    def commit(*, request: Any, job_state: JobState) -> None:
        if job_state.attempt == 1:
            request.tm.commit()
            raise RetryableException

    assert run(broker, commit).attempt == 2
    events.clear()
    for error in TransientError, RetryableException:
        actor = conflicting(broker, events, error, actor_name=error.__name__)
        assert run(broker, actor, 2).attempt == 3
        tries = [e for e in events if isinstance(e, tuple)]
        assert tries == [(1, None), (2, None), (3, None)]
        assert events.count("commit") == 1 and events.count("abort") == 2
        events.clear()


def test_transaction_says_what_is_a_conflict(broker, config, monkeypatch):
    """A data manager knows its database's errors, also without pyramid_retry."""

    @job_actor(broker=broker, min_backoff=HOUR)
    def visit(*, request: Any, job_state: JobState) -> None:
        database: Any = Manager("b", "", lambda: None)
        database.should_retry = lambda error: isinstance(error, ZeroDivisionError)
        request.tm.get().join(database)
        if job_state.attempt == 1:
            raise ZeroDivisionError
        if job_state.attempt == 2:
            raise RetryableException

    monkeypatch.setitem(sys.modules, "pyramid_retry", None)
    with working(broker):
        job = wait_for_attempt(broker, visit.send(), 2)
    assert error_of(job)[0] == "RetryableException"
    assert job.due_at and job.updated_at
    assert job.due_at - job.updated_at > timedelta(minutes=20)


def test_conflict_beyond_the_attempts_waits_like_any_failure(broker, events):
    """Beyond retry.attempts, Dramatiq waits, and the state names the conflict."""
    make_app_config(events, **{"retry.attempts": "2"})
    in_use = functools.partial(TransientError, "in use")
    actor = conflicting(broker, events, in_use)
    with working(broker):
        job = wait_for_attempt(broker, actor.send(9), 2)
    assert events.count("abort") == 2 and (2, None) in events
    assert error_of(job) == ("TransientError", "in use")
    assert job.due_at and job.updated_at
    assert job.due_at - job.updated_at > timedelta(minutes=20)
    job = run(broker, actor, 9, status="error", max_retries=0)
    assert (job.attempt, error_of(job)) == (1, ("TransientError", "in use"))


def test_actor_decides_about_conflicts(broker, config, events):
    """`retry_when` gets a Retry with the conflict as its cause. An error listed in
    `throws` fails the job at once, even a conflict.
    """
    seen: list[BaseException] = []

    def retry_when(retries: int, exception: BaseException) -> bool:
        seen.append(exception)
        return True

    run(broker, conflicting(broker, events, TransientError, retry_when=retry_when), 1)
    assert isinstance(seen[0], Retry) and seen[0].delay == 0
    assert isinstance(seen[0].__cause__, TransientError)
    error = RetryableException
    throwing = conflicting(broker, events, error, throws=error, actor_name="throwing")
    assert run(broker, throwing, 9, status="error").attempt == 1


def test_use_of_the_parameter(broker, config):
    """An actor that cannot receive a request is refused. A message carries none."""

    async def later(*, request: Any) -> None:
        await asyncio.sleep(0)

    with pytest.raises(ActorError, match=r"'later' is async .* Declare it with `def`"):
        job_actor(broker=broker)(later)
    with pytest.raises(ActorError, match=r"def go\(miles, \*, request\)"):

        @job_actor(broker=broker)
        def go(request, miles): ...

    @job_actor(broker=broker)
    def visit(*, request: Any, job_state: Any = None) -> Any:
        return request

    send_immediately = make_request(config).job_states.send_immediately
    for send in visit.send, functools.partial(send_immediately, visit):
        with pytest.raises(ActorError, match="'visit' cannot carry the argument reque"):
            send(request="mine")
    assert visit(request="mine") == "mine"
    with pytest.raises(TypeError, match="request"):
        visit()


def test_request_comes_inside_whatever_the_order(redis_url, set_broker, events):
    """The commit belongs to the job, in whatever order the middleware was added."""
    ours = [JobStateMiddleware, RequestMiddleware]
    for order in ours, ours[::-1]:
        broker = RedisBroker(url=redis_url)
        set_broker(broker)
        for middleware in order:
            broker.add_middleware(middleware())

        @job_actor(broker=broker)
        def visit(*, request: Any, job_state: JobState) -> None:
            request.add_finished_callback(lambda _: events.append(job_state.status))

        make_app_config(events)
        assert run(broker, visit).job_params == {}
    assert events == ["root", "commit", "finished", "working"] * 2


@pytest.mark.system
def test_applications_that_share_a_broker_keep_their_jobs_apart(broker, events):
    """A job's request belongs to the application that sent it, or the job fails."""
    registries = []

    @job_actor(broker=broker, max_retries=0)
    def tell(*, request: Any, job_state: JobState) -> None:
        registries.append(request.registry)

    def send(config: Configurator) -> Any:
        make_request(config).job_states.send_immediately(message := tell.message())
        return message

    def assert_refused(message: Any) -> None:
        refused = wait_until(broker, message, "error")
        assert "several applications" in error_of(refused)[1]

    with working(broker):
        first, again = [make_app_config(events, database="shop") for _ in range(2)]
        wait_until(broker, send(first), "success")
        make_app_config(events, database="admin")
        gc.collect()
        assert_refused(send(first))
        shops = {"jobstate.base_url": "http://shop"}
        admin = make_app_config(events, **{"jobstate.base_url": "http://admin"})
        old, new = [make_app_config(events, database=d, **shops) for d in ("1", "2")]
        other = make_app_config(events, "pyramid", **shops)
        for config in admin, old, new, other:
            wait_until(broker, send(config), "success")
        for message in send(first), tell.send():
            assert_refused(message)
    gone = make_app_config(events, **{"jobstate.base_url": "http://gone"})
    message = send(gone)
    del gone
    make_app_config(events, **shops)
    gc.collect()
    with working(broker):
        assert_refused(message)
    # Registries are dicts, and all equal.
    expected = [config.registry for config in (again, admin, new, new, other)]
    assert list(map(id, registries)) == list(map(id, expected))


def test_request_of_an_application_that_was_made_before_the_broker(
    redis_url, set_broker
):
    """It is the last one made, which may have no transactions. There must be one."""
    registries = []

    def run_with_a_new_broker(status: str) -> JobState:
        broker = make_broker(redis_url, others=(RequestMiddleware(),))
        set_broker(broker)

        @job_actor(broker=broker, max_retries=0)
        def visit(*, request: Any, job_state: JobState) -> None:
            registries.append(request.registry)
            assert not hasattr(request, "tm")

        return run(broker, visit, status=status)

    global_registries.empty()
    refused = run_with_a_new_broker("error")
    assert "has made no Pyramid application" in error_of(refused)[1]
    set_broker(None)
    config, plain = made_config(redis_url), Configurator()
    plain.make_wsgi_app()
    run_with_a_new_broker("success")
    # Registries are dicts, and all equal.
    (found,) = registries
    assert found is config.registry is not plain.registry


def test_job_in_the_caller_has_a_transaction_of_its_own(
    redis_url, set_broker, events, store
):
    """It has an explicit manager, and may not end the transaction of its sender."""
    middleware = [JobStateMiddleware(url=redis_url), RequestMiddleware()]
    broker = InCallerBroker(middleware, tells_all=True)
    set_broker(broker)

    @job_actor(broker=broker)
    def look(*, request: Any, job_state: JobState) -> None: ...

    url = "jobstate.base_url"
    request = make_request(make_app_config(events, **{url: "http://explicit"}))
    with request.tm:
        job = request.job_states.send(look)
    assert load_job(store, job.uuid).status == "success"
    assert events == ["root", "commit", "finished"]

    config = make_tm_config(None, {url: "http://shared"})
    uuid = visit(config, lambda request: request.job_states.send(look).uuid).text
    job = load_job(store, uuid)
    assert job.status == "error"
    assert "pyramid_tm.explicit_manager" in error_of(job)[1]
