"""JobStateMiddleware: how it declares actors, calls them and follows their jobs."""

import concurrent.futures
import contextlib
import datetime
import gc
import logging
import threading
import weakref
from typing import Any

import dramatiq
import pytest
import redis
import redis.asyncio
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import (
    AgeLimit,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    Pipelines,
    Retries,
    SkipMessage,
)
from dramatiq.middleware.time_limit import TimeLimit
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import RedisBackend

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
)
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import NewJob, Update
from pyramid_jobstate.job.record import NOT_REACHED, JobError
from pyramid_jobstate.worker.recorder import Recorder
from tests.faulty import faulty
from tests.jobs import (
    Alarm,
    Gate,
    RunMarathon,
    job_actor,
    load,
    make_broker,
    make_placed_broker,
    messages,
    middleware_of,
    record_steps,
    store_of,
    wait_until,
    working,
)
from tests.support import INFO, SENT, key_of, wait_for

# Which actors are tracked.


# Direct calls.


# Parameters.


@pytest.mark.parametrize(
    ("args", "kwargs", "params"),
    [
        ((1,), {}, {"a": 1}),
        ((1, 2), {}, {"a": 1, "b": 2}),
        ((1, 2, 3, 4), {}, {"a": 1, "b": 2, "more": [3, 4]}),
        ((), {"a": 1, "x": 2}, {"a": 1, "x": 2}),
        ((), {"x": 2}, {"x": 2}),
    ],
)
def test_params_are_named_as_the_actor_names_them(
    broker: RedisBroker, args: Any, kwargs: Any, params: Any
) -> None:
    """The sent values are stored under the names of the actor's parameters, even if the
    call is going to fail.
    """

    @dramatiq.actor(broker=broker, job_state=True)
    def run(a: int, b: int = 0, *more: int, **options: int) -> None: ...

    assert load(broker, run.send(*args, **kwargs)).job_params == params


def test_params_leave_out_what_is_too_long(broker: RedisBroker) -> None:
    """A parameter of more than 16 KiB is not stored with the state."""

    @dramatiq.actor(broker=broker, job_state=True)
    def run(text: str, miles: int) -> None: ...

    assert load(broker, run.send("x" * 20_000, 26)).job_params == {"miles": 26}


def test_params_leave_out_what_json_cannot_say(broker: RedisBroker) -> None:
    """Another encoder allows any value in a message; one that JSON cannot represent is
    omitted.
    """

    @dramatiq.actor(broker=broker, job_state=True)
    def run(thing: object, miles: int) -> None: ...

    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        assert load(broker, run.send({1, 2}, 26)).job_params == {"miles": 26}
    finally:
        dramatiq.set_encoder(dramatiq.JSONEncoder())


# Sending.


def test_a_plain_send_is_queued_before_it_is_visible(broker: RedisBroker) -> None:
    """A job is queued when its message is sent, with the owner that the send names."""

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int) -> None: ...

    state = load(broker, run_marathon.send(26))
    assert (state.status, state.attempt, state.owner) == ("queued", 0, None)
    message = run_marathon.send_with_options(args=(26,), job_owner="alice")
    assert load(broker, message).owner == "alice"


def test_a_delayed_send_says_when_it_is_due(broker: RedisBroker) -> None:
    """A delayed message reads queued with the time it is due, and then runs."""

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int) -> None: ...

    message = run_marathon.send_with_options(args=(26,), delay=300)
    state = load(broker, message)
    assert state.status == "queued" and state.due_at and state.queued_at
    assert abs((state.due_at - state.queued_at).total_seconds() - 0.3) < 0.01
    with working(broker):
        wait_until(broker, message, "success")


@pytest.mark.parametrize("short", ["stalled_after", "active_expire_in"])
def test_a_silent_job_is_confirmed_before_it_stalls(redis_url: str, short: str) -> None:
    """A store whose durations are short has its workers confirm jobs more often."""
    options: Any = {short: 0.3}
    store = JobStore(redis_url, **options)
    broker = make_broker(redis_url, JobStateMiddleware(store))
    gate = Gate()

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        gate.wait()

    seen: set[Any] = set()

    def is_confirmed() -> bool:
        seen.add(store.client.hget(key_of(store, message.message_id), "seen"))
        return len(seen) > 5

    message = run_marathon.send()
    with working(broker):
        gate.wait_for_job()
        wait_for(is_confirmed, 10)
        gate.open()


def test_a_plain_send_with_an_endless_delay_is_queued(broker: RedisBroker) -> None:
    """A delay that Dramatiq accepts and no time can say is cut short in the record."""

    @job_actor(broker=broker, job_state=True)
    def run() -> None: ...

    uuid = run.send_with_options(delay=10**30).message_id
    job_state = middleware_of(broker).store_for(broker).load(uuid)
    assert job_state is not None and job_state.status == "queued"
    assert job_state.due_at is not None and job_state.due_at.year > 5000


def test_a_message_whose_id_is_not_a_uuid_is_not_tracked(
    broker: RedisBroker, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A message whose id is not a uuid gets a detached JobState, with one warning."""
    ran = threading.Semaphore(0)

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("x", 1)
        ran.release()

    with working(broker):
        for number in range(2):
            message = run_marathon.message()
            message = message.__class__(
                **{**message.asdict(), "message_id": f"n{number}"}
            )
            broker.enqueue(message)
            assert ran.acquire(timeout=5)
    assert client.keys("jobstate*") == []
    assert messages(caplog, "pyramid_jobstate") == [
        "Messages whose id is not a uuid are not tracked, such as 'n0'."
    ]


def test_a_worker_faster_than_the_senders_hook_wins(redis_url: str) -> None:
    """A job that began before the sender's after_enqueue hook keeps its status."""
    gate = Gate()

    class Slow(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            gate.wait_for_job()

    broker = make_broker(redis_url, others=(Slow(),))
    # After-hooks run in reverse: move Slow to the end so that it runs first.
    broker.middleware.append(broker.middleware.pop(-2))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None:
        gate.wait()

    with working(broker):
        message = run_marathon.send()
        assert load(broker, message).status == "working"
        gate.open()
        wait_until(broker, message, "success")


def test_a_send_that_the_broker_refuses_reads_stalled(
    redis_url: str, client: redis.Redis, server: EmbeddedServer
) -> None:
    """A job whose message the broker never took does not read queued for ever."""
    store = JobStore(client, stalled_after=0.05)
    broker = make_broker(server.url, JobStateMiddleware(store))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    run_marathon.send()
    server.stop()
    message = run_marathon.message()
    with pytest.raises(redis.ConnectionError):
        broker.enqueue(message)
    assert wait_until(broker, message, "stalled").is_working


def test_a_send_without_the_store_goes_out(
    redis_url: str, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store is away, plain sends still go out, with one warning for all; once
    it is back, their jobs appear when they start.
    """
    broker = make_broker(redis_url, JobStateMiddleware(url=server.url))

    @job_actor(broker=broker)
    def run_marathon(miles: int, *, job_state: JobState) -> None:
        job_state.set_progress_metric("miles_run", miles)

    server.stop()
    sent = [run_marathon.send(i) for i in range(3)]
    assert len(messages(caplog, "pyramid_jobstate")) == 1
    server.start()
    with working(broker):
        for message in sent:
            assert wait_until(broker, message, "success").owner is None
        run_marathon.send(3)
    server.stop()
    caplog.clear()
    run_marathon.send(4)
    assert len(messages(caplog, "pyramid_jobstate.worker")) == 1


def test_a_send_that_cannot_be_confirmed_goes_out(
    redis_url: str, server: EmbeddedServer
) -> None:
    """A store that goes away between the two hooks of a send does not fail the send."""

    class Breaker(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            server.stop()

    broker = make_broker(redis_url, JobStateMiddleware(url=server.url))
    broker.add_middleware(Breaker())

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    assert run_marathon.send().message_id
    assert broker.do_qsize("default") == 1


# How a job ends, wherever the middleware stands.


@pytest.fixture(params=["appended", "before", "without"])
def place(request: pytest.FixtureRequest, redis_url: str) -> tuple[str, RedisBroker]:
    """A broker with the middleware after Retries, before it, or without Retries, and
    the name of that place.
    """
    broker = make_placed_broker(redis_url, request.param)
    broker.add_middleware(Results(backend=RedisBackend(url=redis_url)))
    return request.param, broker


def test_an_exception_is_an_error_once_dramatiq_gives_up(
    place: tuple[str, RedisBroker],
) -> None:
    """A failing job retries, with its attempts and the time it is due, and ends in
    error when Dramatiq gives up: at once if nothing retries it.
    """
    name, broker = place
    broker.add_middleware(alarm := Alarm())
    gates = [Gate(), Gate()]
    retried = {"max_retries": 1, "min_backoff": 60_000, "max_backoff": 60_001}
    options = {} if name == "without" else retried

    @job_actor(broker=broker, **options)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("try", job_state.attempt)
        job_state.set_progress(3, 26)
        gates[job_state.attempt - 1].wait()
        raise ValueError("secret")

    with working(broker):
        message = run_marathon.send()
        gates[0].wait_for_job()
        assert load(broker, message).status == "working"
        gates[0].open()
        if name != "without":
            state = wait_until(broker, message, "retrying", "error")
            assert (state.status, state.attempt) == ("retrying", 1)
            assert state.due_at and state.updated_at and state.finished_at is None
            assert 10 < (state.due_at - state.updated_at).total_seconds() < 61
            alarm.ring()
            gates[1].wait_for_job()
            state = load(broker, message)
            assert (state.status, state.attempt, state.due_at) == ("working", 2, None)
            gates[1].open()
        state = wait_until(broker, message, "error")
    assert state.attempt == (1 if name == "without" else 2)
    assert state.error == JobError("ValueError", "secret")
    assert state.progress and state.progress.done == 3
    assert state.progress_metrics == {"try": state.attempt}


def test_a_late_success_counts_its_attempts(redis_url: str) -> None:
    """A job that succeeds at its third attempt is a success with three attempts."""
    for before in (None, Retries):
        broker = make_broker(redis_url, before=before)

        @job_actor(broker=broker, max_retries=3, min_backoff=10, max_backoff=20)
        def run_marathon(*, job_state: JobState) -> None:
            if job_state.attempt < 3:
                raise ValueError

        with working(broker):
            message = run_marathon.send()
            state = wait_until(broker, message, "success", "error")
        assert (state.status, state.attempt, state.error) == ("success", 3, None)


def test_throws_and_retry_when_end_in_error(redis_url: str) -> None:
    """An exception that Dramatiq does not retry ends the job at its first attempt."""
    for before in (None, Retries):
        broker = make_broker(redis_url, before=before)

        @dramatiq.actor(broker=broker, throws=ValueError, job_state=True)
        def throws() -> None:
            raise ValueError

        @dramatiq.actor(broker=broker, retry_when=lambda *_: False, job_state=True)
        def retry_when() -> None:
            raise ValueError

        with working(broker):
            for actor in (throws, retry_when):
                state = wait_until(broker, actor.send(), "error", "retrying")
                assert (state.status, state.attempt) == ("error", 1)


def test_retry_reads_retrying(broker: RedisBroker) -> None:
    """A job that asks to be retried later reads retrying until then."""
    broker.add_middleware(alarm := Alarm())

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        if job_state.attempt == 1:
            raise dramatiq.errors.Retry("not yet", delay=60_000)

    with working(broker):
        message = run_marathon.send()
        state = wait_until(broker, message, "retrying")
        assert state.due_at and state.updated_at
        assert 50 < (state.due_at - state.updated_at).total_seconds() <= 60
        alarm.ring()
        assert wait_until(broker, message, "success").attempt == 2


def test_a_time_limit_is_an_error(redis_url: str) -> None:
    """A job that Dramatiq interrupts at its time limit ends in error."""
    broker = make_broker(redis_url, without=TimeLimit)
    broker.add_middleware(TimeLimit(interval=20), before=JobStateMiddleware)
    broker.emit_after("process_boot")

    @job_actor(broker=broker, time_limit=50, max_retries=0)
    def run_marathon(*, job_state: JobState) -> None:
        for i in job_state.track(range(5000)):
            threading.Event().wait(0.01)
            job_state.set_progress_metric("i", i)

    with working(broker):
        state = wait_until(broker, run_marathon.send(), "error", timeout=8)
    assert state.error and state.error.type == (
        "dramatiq.middleware.time_limit.TimeLimitExceeded"
    )


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [Unspeakable(), ValueError("x" * 5000)])
def test_an_error_is_kept_short(broker: RedisBroker, error: Exception) -> None:
    """An exception's text is cut to a thousand characters, and is empty if str()
    fails.
    """

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def run_marathon() -> None:
        raise error

    logging.getLogger("dramatiq").setLevel(logging.CRITICAL)
    try:
        with working(broker):
            state = wait_until(broker, run_marathon.send(), "error")
    finally:
        logging.getLogger("dramatiq").setLevel(logging.NOTSET)
    assert state.error and len(state.error.message) in (0, 1000)


def test_a_rejected_message_is_an_error(redis_url: str) -> None:
    """A message that another middleware fails without an exception ends in error."""

    class Rejecter(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.fail()

    broker = make_broker(redis_url, others=(Rejecter(),))

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    with working(broker):
        state = wait_until(broker, run_marathon.send(), "error", "success")
    assert state.error == JobError(None, "The message was rejected.")


#: The stored type of the exception with which a message is skipped.
SKIPPED = "dramatiq.middleware.middleware.SkipMessage"


@pytest.mark.parametrize("before", [None, AgeLimit])
def test_the_age_limit_cancels_with_a_reason(redis_url: str, before: Any) -> None:
    """A message that AgeLimit skips, before or after this middleware, ends in cancelled
    with the reason.
    """
    broker = make_broker(redis_url, before=before)

    @dramatiq.actor(broker=broker, max_age=1, job_state=True)
    def run_marathon() -> None: ...

    message = run_marathon.send()
    threading.Event().wait(0.01)
    with working(broker):
        state = wait_until(broker, message, "cancelled", "success", "error")
    assert state.status == "cancelled"
    assert state.error == JobError(SKIPPED, "Message age limit exceeded")


class Stopping(Middleware):
    """Stops a message at its nth delivery and later ones, in the given way."""

    def __init__(self, nth: int, how: str) -> None:
        self.nth = nth
        self.how = how

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.options.get("retries", 0) + 1 < self.nth:
            return
        if self.how != "refuse":
            message.fail()
        if self.how == "skip":
            raise SkipMessage("not today")
        if self.how == "refuse":
            raise Refusing.RefusedError("not today")


@pytest.mark.parametrize("how", ["skip", "refuse", "fail"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("order", ["after", "before", "first"])
def test_attempt_is_that_of_the_last_run_that_began(
    redis_url: str, order: str, nth: int, how: str
) -> None:
    """A job that another middleware stops has the attempt and the start of the last run
    whose actor was called, wherever that middleware stands. It keeps that run's reports
    if the message is stopped before this middleware sees it.
    """
    broker = make_broker(redis_url, before=None if order == "after" else AgeLimit)
    where: Any = JobStateMiddleware if order != "before" else None
    broker.add_middleware(Stopping(nth, how), before=where)
    began: list[datetime.datetime] = []

    # The end of an attempt is written before the next one begins.
    @job_actor(broker=broker, min_backoff=100, max_backoff=200, max_retries=nth)
    def run_marathon(*, job_state: JobState) -> None:
        assert job_state.started_at is not None
        began.append(job_state.started_at)
        job_state.set_progress_metric("attempt", job_state.attempt)
        job_state.set_progress(job_state.attempt, 5)
        raise ValueError("a cramp")

    message = run_marathon.send()
    with working(broker):
        status = "cancelled" if how == "skip" else "error"
        state = wait_until(broker, message, "cancelled", "error")
        assert state.status == status
    assert state.error is not None
    reason = "The message was rejected." if how == "fail" else "not today"
    assert state.error.message == reason
    assert (state.attempt, len(began)) == (nth - 1, nth - 1)
    if order != "before" and how != "fail":
        assert state.progress_metrics == ({"attempt": 1} if nth == 2 else {})
        assert (state.progress is not None) == (nth == 2)
    assert state.finished_at is not None
    if nth == 1:
        assert state.started_at is None
    else:
        assert state.started_at is not None
        assert abs(state.started_at - began[0]) < datetime.timedelta(seconds=0.2)


@pytest.mark.parametrize("retries", [None, [], "many", -1, True], ids=repr)
def test_odd_number_of_retries_harms_no_other_job(redis_url: str, retries: Any) -> None:
    """A foreign message with an invalid number of retries affects only its own job."""
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    odd = run_marathon.message().copy(actor_name="unheard_of")
    broker.enqueue(odd.copy(options={"retries": retries}))
    with working(broker):
        state = wait_until(broker, run_marathon.send(), "success", "error")
    assert state.status == "success"


class Lingering(Middleware):
    """Holds the first delivery of a message, just before its end is written, until the
    next delivery is settled.
    """

    def __init__(self) -> None:
        self.deliveries: list[Any] = []
        self.is_settled = threading.Event()

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.deliveries.append(message)

    def before_ack(self, broker: Any, message: Any) -> None:
        if message is self.deliveries[0]:
            self.is_settled.wait(20)

    def after_ack(self, broker: Any, message: Any) -> None:
        # Dramatiq also acknowledges a delayed message when it is due.
        if message in self.deliveries[1:]:
            self.is_settled.set()

    after_nack = after_ack


@pytest.mark.parametrize("how", ["skip", "refuse"])
def test_a_message_is_stopped_while_its_last_attempt_is_about_to_end(
    redis_url: str, how: str
) -> None:
    """A message may come again and be stopped before its last attempt has written its
    end. The job has the outcome of the last delivery, and all reports.
    """
    broker = make_broker(redis_url)
    for middleware in (Lingering(), Stopping(2, how)):
        broker.add_middleware(middleware, before=JobStateMiddleware)

    @job_actor(broker=broker, min_backoff=1, max_backoff=2, max_retries=1)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("attempt", job_state.attempt)
        raise ValueError("a cramp")

    message = run_marathon.send()
    with working(broker):
        state = wait_until(broker, message, "cancelled", "error")
    assert state.status == ("cancelled" if how == "skip" else "error")
    assert state.error is not None
    assert state.error.message == "not today"
    assert state.progress_metrics == {"attempt": 1}
    assert state.attempt == 1


def test_a_skipped_message_that_nobody_recorded_is_left_alone(
    redis_url: str, client: redis.Redis
) -> None:
    """A message without a record, or with an expired one, gets none if it is skipped
    before this middleware.
    """
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, max_age=1, job_state=RunMarathon)
    def run_marathon(miles: int) -> None: ...

    message = run_marathon.message(26)
    threading.Event().wait(0.01)
    sender = RedisBroker(url=redis_url)
    sender.declare_queue("default")
    sender.enqueue(message)
    with working(broker):
        broker.join("default", timeout=20_000)
    assert client.keys("jobstate*") == []


@pytest.mark.parametrize("order", ["before", "first"])
def test_a_message_that_is_refused_for_good_is_an_error(
    redis_url: str, order: str
) -> None:
    """Without Retries, a message that another middleware refuses is acknowledged: its
    job ends in error rather than reading queued for ever.
    """
    broker = make_broker(redis_url, before=AgeLimit, without=Retries)
    where: Any = JobStateMiddleware if order == "first" else None
    broker.add_middleware(Refusing(), before=where)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    with working(broker):
        state = wait_until(broker, run_marathon.send(), "error")
    assert state.error is not None and state.error.message == "not today"
    assert (state.attempt, state.started_at) == (0, None)


@pytest.mark.parametrize("order", ["after", "before", "first", "last"])
def test_a_message_that_is_refused_and_put_back_waits(
    redis_url: str, order: str
) -> None:
    """A job that another middleware refuses at first runs at its retry, wherever the
    middlewares stand. Until then it reads retrying, with the time it is due.
    """
    places: dict[str, Any] = {"before": AgeLimit, "first": AgeLimit, "last": Retries}
    broker = make_broker(redis_url, before=places.get(order))
    seen: list[str] = []

    class RefusingOnce(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            seen.append(load(broker, message).status)
            if len(seen) == 1:
                raise Refusing.RefusedError("not today")

    where: Any = None if order == "before" else JobStateMiddleware
    broker.add_middleware(RefusingOnce(), before=where)
    broker.add_middleware(alarm := Alarm())
    backoff: Any = {"min_backoff": 60_000, "max_backoff": 60_001}

    @dramatiq.actor(broker=broker, job_state=True, **backoff)
    def run_marathon() -> None: ...

    message = run_marathon.send()
    with working(broker):
        state = wait_until(broker, message, "retrying")
        assert (state.attempt, state.started_at) == (0, None)
        assert state.error is not None and state.error.message == "not today"
        assert state.due_at is not None and state.updated_at is not None
        assert 10 < (state.due_at - state.updated_at).total_seconds() < 61
        alarm.ring()
        state = wait_until(broker, message, "success", "error", "cancelled")
    assert (state.status, state.attempt, state.due_at) == ("success", 2, None)
    waiting = ["working"] * 2 if order == "before" else ["queued", "retrying"]
    assert seen == waiting


@pytest.mark.parametrize("order", ["before", "after", "first"])
def test_a_retry_that_is_refused_is_due_again(redis_url: str, order: str) -> None:
    """If another middleware refuses the retry of a job, the job shows when the next one
    is due, and keeps the attempt of its last run.
    """
    broker = make_broker(redis_url, before=AgeLimit if order == "first" else None)
    where: Any = None if order == "after" else JobStateMiddleware
    broker.add_middleware(Stopping(2, "refuse"), before=where)

    @dramatiq.actor(broker=broker, min_backoff=60_000, job_state=True)
    def run_marathon() -> None:
        raise dramatiq.errors.Retry("a cramp", delay=10)

    def refused() -> JobState | None:
        state = load(broker, message)
        reason = state.error and state.error.message
        return state if (state.status, reason) == ("retrying", "not today") else None

    message = run_marathon.send()
    with working(broker):
        state = wait_for(refused)
        assert state is not None and state.attempt == 1
        assert state.due_at is not None and state.updated_at is not None
        assert state.due_at > state.updated_at
        assert state.started_at is not None


class Limiter(Middleware):
    """Puts the first deliveries back for a while, and skips them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.seen.append(message.message_id)
        if len(self.seen) < 3:
            broker.enqueue(message, delay=60_000)
            raise SkipMessage("not now")


@pytest.mark.parametrize("order", ["before", "after", "first"])
def test_a_message_that_a_limiter_puts_back_waits(redis_url: str, order: str) -> None:
    """A job whose message is put back and skipped is not finished, and the next step of
    its pipeline waits, wherever the limiter stands.
    """
    broker = make_broker(redis_url, before=AgeLimit if order == "first" else None)
    where: Any = None if order == "after" else JobStateMiddleware
    broker.add_middleware(limiter := Limiter(), before=where)
    broker.add_middleware(alarm := Alarm())
    over: list[Any] = []

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(*args: Any) -> None: ...

    steps = [run_marathon.message() for _ in range(2)]
    record_steps(broker, steps)

    def delivered(times: int) -> bool:
        over.extend(load(broker, m) for m in pipe.messages)
        return len(limiter.seen) >= times

    with working(broker):
        pipe = dramatiq.pipeline(steps, broker=broker).run()
        state = wait_until(broker, pipe.messages[0], "retrying")
        assert (state.attempt, state.error) == (0, None)
        assert state.due_at is not None and state.updated_at is not None
        # The put-back is written a moment after it happened.
        assert 50 < (state.due_at - state.updated_at).total_seconds() <= 60
        alarm.ring()
        assert wait_for(lambda: delivered(3))
        assert not {state.status for state in over} & {"cancelled", "error"}
        for message in pipe.messages:
            wait_until(broker, message, "success")


class EarlyLimiter(Limiter):
    """Gets the message before its sender has recorded that the broker took it."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.client = client

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.client.hset(f"jobstate:{message.message_id}", "status", "sending")
        super().before_process_message(broker, message)


def test_a_message_that_is_put_back_before_it_is_confirmed_waits(
    redis_url: str, client: redis.Redis
) -> None:
    """A job whose message is put back before its sender confirms it is retrying."""
    broker = make_broker(redis_url)
    broker.add_middleware(EarlyLimiter(client), before=JobStateMiddleware)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    message = run_marathon.send()
    with working(broker):
        wait_until(broker, message, "retrying")


class SendsNext(Middleware):
    """Sends a message from the worker's thread when another has been acknowledged."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.next: Any = None

    def after_ack(self, broker: Any, message: Any) -> None:
        if self.next is not None:
            following, self.next = self.next, None
            self.sent.append(broker.enqueue(following))


@pytest.mark.parametrize("stop", [SkipMessage, MiddlewareError])
def test_a_message_that_its_own_thread_has_sent_is_not_put_back(
    redis_url: str, stop: type[Exception]
) -> None:
    """A message stopped in the thread that sent it ends, rather than reading as put
    back.
    """

    class Stops(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if message.args == ("stop",):
                raise stop("not here")

    broker = make_broker(redis_url)
    broker.add_middleware(sends := SendsNext(), before=JobStateMiddleware)
    broker.add_middleware(Stops(), before=JobStateMiddleware)

    @dramatiq.actor(broker=broker, job_state=True, max_retries=0)
    def run_marathon(*args: Any) -> None: ...

    sends.next = run_marathon.message("stop")
    with working(broker, threads=1):
        run_marathon.send()
        wait_for(lambda: sends.sent)
        status = "cancelled" if stop is SkipMessage else "error"
        state = wait_until(broker, sends.sent[0], status)
    assert (state.attempt, state.due_at) == (0, None)


class Stubborn(dramatiq.Actor[Any, Any]):
    """Tries again when its function raises, and then gives up silently."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(3):
            with contextlib.suppress(Exception):
                return super().__call__(*args, **kwargs)
        return None


def test_a_cancelled_job_does_not_run_whatever_wraps_it(redis_url: str) -> None:
    """A job cancelled while queued is skipped before anything that wraps its actor: the
    actor does not run, and no callback is sent.
    """
    broker = make_broker(redis_url)
    ran: list[str] = []

    @dramatiq.actor(broker=broker)
    def call_back(*args: Any) -> None:
        ran.append("callback")

    @dramatiq.actor(
        broker=broker,
        job_state=True,
        actor_class=Stubborn,
        on_success=call_back.actor_name,
    )
    def run_marathon() -> None:
        ran.append("actor")

    message = run_marathon.send()
    assert load(broker, message).cancel()
    with working(broker):
        broker.join("default", timeout=20_000)
    assert load(broker, message).status == "cancelled"
    assert ran == []


def test_a_job_whose_actor_is_called_in_another_thread_is_working(
    redis_url: str,
) -> None:
    """A job reads working during its run, whichever thread its function runs in."""
    broker = make_broker(redis_url)
    gate = Gate()

    class InThread(dramatiq.Actor[Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                return pool.submit(super().__call__, *args, **kwargs).result()

    @dramatiq.actor(broker=broker, job_state=True, actor_class=InThread, max_retries=0)
    def run_marathon(fails: bool) -> None:
        gate.wait()
        if fails:
            raise ValueError("a cramp")

    with working(broker):
        message = run_marathon.send(False)
        gate.wait_for_job()
        assert load(broker, message).status == "working"
        gate.open()
        assert wait_until(broker, message, "success").attempt == 1
        state = wait_until(broker, run_marathon.send(True), "error")
        assert state.attempt == 1 and state.started_at is not None


def test_a_job_whose_beginning_cannot_be_written_runs(
    broker: RedisBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If no thread can be started to write a job's start, the job runs anyway, and is
    written as soon as possible.
    """
    start = Recorder._start
    failures = [RuntimeError("can't start new thread")]

    def fail_once(recorder: Recorder) -> None:
        if failures:
            raise failures.pop()
        start(recorder)

    monkeypatch.setattr(Recorder, "_start", fail_once)

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("miles", 26)

    with working(broker):
        state = wait_until(broker, run_marathon.send(), "success")
    assert (state.progress_metrics, state.attempt) == ({"miles": 26}, 1)


def test_an_actor_that_skips_itself_is_cancelled(broker: RedisBroker) -> None:
    """A job that raises SkipMessage ends in cancelled with the exception's text."""

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        raise SkipMessage

    with working(broker):
        state = wait_until(broker, run_marathon.send(), "cancelled", "success")
    assert state.error == JobError(SKIPPED, "")


def test_a_message_for_an_unknown_actor_is_an_error(redis_url: str) -> None:
    """A message whose actor no worker knows ends in error."""
    sender, worker = make_broker(redis_url), make_broker(redis_url)

    @dramatiq.actor(broker=sender, job_state=RunMarathon)
    def run_marathon() -> None: ...

    @dramatiq.actor(broker=worker, job_state=RunMarathon)
    def other() -> None: ...

    message = run_marathon.send()
    with working(worker):
        state = wait_until(sender, message, "error")
    assert state.error == JobError(None, "No worker knows the actor 'run_marathon'.")


def test_results_are_stored_before_the_job_ends(place: tuple[str, RedisBroker]) -> None:
    """Once a job reads success, its result is available."""
    _, broker = place

    @dramatiq.actor(broker=broker, job_state=True, store_results=True)
    def run_marathon() -> int:
        return 26

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "success")
        backend = broker.get_results_backend()
        assert message.get_result(backend=backend) == 26


def test_a_job_put_back_by_an_operator_is_queued(broker: RedisBroker) -> None:
    """A failed job that is put back in the queue reads queued and runs again."""
    fails = [True]

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def run_marathon() -> None:
        if fails.pop():
            raise ValueError

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "error")
    fails.append(False)
    broker.enqueue(message)
    assert load(broker, message).status == "queued"
    with working(broker):
        assert wait_until(broker, message, "success", "error").status == "success"


def test_params_of_a_pipelines_step_hold_the_result(redis_url: str) -> None:
    """The second step of a pipeline has the first one's result among its parameters."""
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, job_state=True)
    def add(a: int, b: int) -> int:
        return a + b

    pipeline = dramatiq.pipeline(
        [add.message(1, 2), add.message_with_options(args=(3,))], broker=broker
    )
    with working(broker):
        pipeline.run()
        state = wait_until(broker, pipeline.messages[1], "success")
    assert state.job_params == {"a": 3, "b": 3}


@pytest.mark.parametrize("before", [None, Retries])
def test_a_failed_job_has_no_result(redis_url: str, before: Any) -> None:
    """The result of a failed job reads as a failure."""
    broker = make_broker(redis_url, before=before)
    broker.add_middleware(Results(backend=RedisBackend(url=redis_url)))

    @dramatiq.actor(broker=broker, job_state=True, store_results=True, max_retries=0)
    def run_marathon() -> int:
        raise ValueError

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "error")
        with pytest.raises(ResultFailure):
            message.get_result(
                backend=broker.get_results_backend(), block=True, timeout=1000
            )


def test_a_job_that_is_put_back_while_it_runs_is_retrying(redis_url: str) -> None:
    """A job whose message another thread of its process puts back while it runs is not
    finished when it returns; the run of the message put back owns the record.
    """
    broker = make_broker(redis_url)
    gates = [Gate(), Gate()]
    runs = iter(gates)

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        gate = next(runs)
        job_state.set_progress_metric("run", gates.index(gate))
        job_state.flush(10)
        gate.wait()

    with working(broker):
        message = run_marathon.send()
        gates[0].wait_for_job()
        broker.enqueue(message)
        gates[1].wait_for_job()
        gates[0].open()
        wait_for(lambda: broker.client.hlen("dramatiq:default.msgs") == 1)
        state = load(broker, message)
        assert (state.status, state.progress_metrics) == ("working", {"run": 1})
        gates[1].open()
        assert wait_until(broker, message, "success", "retrying").status == "success"


def test_a_next_step_that_is_never_sent_is_an_error(redis_url: str) -> None:
    """On a broker without Pipelines, a pipeline ends with its first step: the next one
    is not sent, and those after it read as not reached.
    """
    broker = make_broker(redis_url, without=Pipelines)
    options = {"pipe_target", "pipe_ignore"}
    broker.actor_options |= options

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    @dramatiq.actor(broker=broker)
    def rest() -> None: ...

    steps = [a.message() for a in (run_marathon, rest, run_marathon, run_marathon)]
    pipe = dramatiq.pipeline(steps, broker=broker)
    record_steps(broker, steps[2:])
    with working(broker):
        pipe.run()
        wait_until(broker, steps[0], "success")
        wait_until(broker, steps[3], "cancelled", "error")
    assert [load(broker, step).error for step in steps[2:]] == [NOT_REACHED] * 2


class Auditor(Middleware):
    """Sends its own message from each enqueue hook of the others."""

    def __init__(self) -> None:
        self.audit: Any = None

    def send(self, message: Any) -> None:
        if self.audit is not None and message.actor_name == "run_marathon":
            self.audit.send()

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.send(message)

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.send(message)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_send_within_an_enqueue_hook_confuses_nothing(
    redis_url: str, is_last: bool, tracked: bool
) -> None:
    """A middleware that sends a message whenever another is sent does not change that
    one's state, whether it comes before or after this middleware.
    """
    auditor = Auditor()
    broker = make_broker(redis_url, others=() if is_last else (auditor,))
    if is_last:
        broker.add_middleware(auditor)
    broker.add_middleware(alarm := Alarm())

    @job_actor(broker=broker, min_backoff=60_000, max_retries=1)
    def run_marathon(*, job_state: JobState) -> None:
        if job_state.attempt == 1:
            raise ValueError("as planned")

    options: dict[str, Any] = {"job_state": True} if tracked else {}

    @dramatiq.actor(broker=broker, **options)
    def audit() -> None: ...

    auditor.audit = audit
    message = run_marathon.send()
    key = key_of(store_of(broker), message.message_id)
    assert store_of(broker).client.hget(key, "status") == "queued"
    with working(broker):
        state = wait_until(broker, message, "retrying", "error")
        assert state.status == "retrying"
        alarm.ring()
        assert wait_until(broker, message, "success", "error").status == "success"


def test_an_error_of_one_job_does_not_count_as_an_outage(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose key another program has overwritten is sent without a state; the next
    job gets its record, and one that was cancelled does not run.
    """
    broker = make_broker(redis_url)
    runs = []

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        runs.append(1)

    poisoned = run_marathon.message()
    client.set(f"jobstate:{poisoned.message_id}", "not a hash")
    broker.enqueue(poisoned)
    cancelled = [run_marathon.send() for _ in range(3)]
    assert all(load(broker, message).cancel() for message in cancelled)
    broker.enqueue(poisoned.copy(message_id=poisoned.message_id))
    with working(broker):
        broker.join("default", timeout=20_000)
    assert len(runs) == 2
    assert [load(broker, message).status for message in cancelled] == ["cancelled"] * 3


def test_a_job_that_was_sent_is_confirmed_though_another_met_a_failure(
    redis_url: str,
) -> None:
    """A job whose record was written is confirmed, even if another call meets a failure
    of the store meanwhile.
    """

    class Failing(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            ours._access._outage.begin()

    ours = JobStateMiddleware(url=redis_url)
    broker = make_broker(redis_url, ours)
    # After-hooks run in reverse.
    broker.add_middleware(Failing())

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    message = run_marathon.send()
    key = key_of(store_of(broker), message.message_id)
    assert store_of(broker).client.hget(key, "status") == "queued"


def test_a_long_pipeline_is_dropped_to_its_end(redis_url: str) -> None:
    """All steps after a failed one read cancelled, however many they are."""
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def run_marathon() -> None:
        raise ValueError("as planned")

    steps = [run_marathon.message() for _ in range(340)]
    store = store_of(broker)
    record_steps(broker, steps)
    with working(broker):
        pipe = dramatiq.pipeline(steps, broker=broker).run()
        wait_until(broker, steps[-1], "cancelled", timeout=20)
    found = store.load_many([message.message_id for message in pipe.messages])
    assert [state and state.status for state in found] == [
        "error",
        *["cancelled"] * 339,
    ]


def test_nothing_of_a_failed_run_is_kept(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run's exception, and all that its frames hold, is freed with the run, without
    the garbage collector.
    """
    # caplog would keep the exception until the test ends.
    caplog.set_level(logging.CRITICAL, "dramatiq")
    broker = make_broker(redis_url)

    class Payload:
        """An object that the actor holds."""

    seen: list[weakref.ref[Payload]] = []

    @dramatiq.actor(broker=broker, min_backoff=60_000, job_state=True)
    def run_marathon() -> None:
        payload = Payload()
        seen.append(weakref.ref(payload))
        raise ValueError("as planned")

    gc.disable()
    try:
        with working(broker):
            wait_until(broker, run_marathon.send(), "retrying")
            wait_for(lambda: seen[0]() is None)
    finally:
        gc.enable()


def test_a_job_that_puts_itself_back_is_due_from_then_on(redis_url: str) -> None:
    """`due_at` counts from when the message was put back, not from the run's end."""
    broker = make_broker(redis_url, others=(CurrentMessage(),))
    gate = Gate()
    times = []

    def note_time() -> None:
        times.append(datetime.datetime.now(datetime.UTC))

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        message: Any = CurrentMessage.get_current_message()
        note_time()
        broker.enqueue(message._message, delay=60_000)
        note_time()
        gate.wait()

    with working(broker):
        message = run_marathon.send()
        gate.wait_for_job()
        threading.Event().wait(0.5)
        note_time()
        gate.open()
        state = wait_until(broker, message, "retrying")
        note_time()
    before, after, opened, seen = times
    assert state.due_at is not None
    # The time counts on until the end of the run is written.
    late = state.due_at - datetime.timedelta(seconds=60)
    rounding = datetime.timedelta(milliseconds=2)
    assert before - rounding <= late <= after + (seen - opened) + rounding


def test_a_malformed_next_step_leaves_the_job_its_state(redis_url: str) -> None:
    """A job whose pipe_target is not a message is recorded all the same."""
    broker = make_broker(redis_url, without=Pipelines)
    broker.actor_options |= {"pipe_target"}

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    message = run_marathon.send_with_options(pipe_target="nonsense")
    with working(broker):
        wait_until(broker, message, "success")


def test_an_overtaken_run_leaves_the_later_steps_alone(redis_url: str) -> None:
    """A run that fails after a newer one has begun and has sent the next step does not
    end the steps after it.
    """
    broker = make_broker(redis_url)
    gate = Gate()

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def run_marathon() -> None:
        gate.wait()
        raise ValueError("as planned")

    steps = [run_marathon.message() for _ in range(3)]
    store = store_of(broker)
    record_steps(broker, steps)
    with working(broker):
        pipe = dramatiq.pipeline(steps, broker=broker).run()
        gate.wait_for_job()
        first, second, third = (message.message_id for message in pipe.messages)
        store.write([Update(first, "newer", 1, SENT, begins=True)])
        store.create(NewJob(second, SENT))
        gate.open()
        broker.join("default", timeout=20_000)
    found = store.load_many([first, second, third])
    assert [state and state.status for state in found] == [
        "working",
        "queued",
        "queued",
    ]


def test_a_send_that_the_store_refuses_is_logged(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A full server keeps no message from its actor."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=redis_url))
    gate = Gate()

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        gate.wait()

    client.config_set("maxmemory", 1)
    try:
        message = run_marathon.send()
    finally:
        client.config_set("maxmemory", 0)
    (said,) = messages(caplog, "pyramid_jobstate")
    assert said.startswith("The store refused to note that a job is sent.")
    with working(broker):
        gate.wait_for_job()
        gate.open()
        broker.join("default", timeout=20_000)
    assert load(broker, message).status == "success"


def test_an_overtaken_run_leaves_the_later_steps_alone_in_an_outage(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has learned that a newer run has begun: it writes only its failure."""
    gate = Gate()
    with faulty(redis_url) as proxy:
        middleware = JobStateMiddleware(url=proxy.url, heartbeat=0.05)
        broker = make_broker(redis_url, middleware)
        store = JobStore(redis_url)

        @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
        def run_marathon() -> None:
            gate.wait()
            raise ValueError("as planned")

        steps = [run_marathon.message() for _ in range(2)]
        record_steps(broker, steps)
        with working(broker):
            pipe = dramatiq.pipeline(steps, broker=broker).run()
            gate.wait_for_job()
            first, second = (message.message_id for message in pipe.messages)
            store.write([Update(first, "newer", 1, SENT, begins=True)])
            store.create(NewJob(second, SENT))
            wait_for(lambda: "a newer run of it has begun" in caplog.text)
            proxy.judge = lambda request: "refuse"
            gate.open()
            broker.join("default", timeout=20_000)
            proxy.judge = lambda request: "pass"
            wait_for(lambda: store.failures(first).tries)
    found = store.load_many([first, second])
    assert [state and state.status for state in found] == ["working", "queued"]


def test_a_surplus_delivery_leaves_the_later_steps_alone(redis_url: str) -> None:
    """A message that AgeLimit drops while another delivery of it is running ends
    neither that run nor the steps after it.
    """
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, max_age=1, job_state=True)
    def run_marathon() -> None: ...

    steps = [run_marathon.message() for _ in range(2)]
    store = store_of(broker)
    record_steps(broker, steps)
    pipe = dramatiq.pipeline(steps, broker=broker).run()
    first, second = (message.message_id for message in pipe.messages)
    store.write([Update(first, "elsewhere", 1, INFO, begins=True)])
    threading.Event().wait(0.01)
    with working(broker):
        wait_for(lambda: broker.client.hlen("dramatiq:default.msgs") == 0)
    found = store.load_many([first, second])
    assert [state and state.status for state in found] == ["working", "queued"]


class Refusing(Middleware):
    """Fails before a message is processed."""

    class RefusedError(MiddlewareError):
        pass

    def before_process_message(self, broker: Any, message: Any) -> None:
        raise self.RefusedError("not today")


@pytest.mark.parametrize("before", [AgeLimit, None])
def test_a_middleware_that_fails_before_the_job_ends_it(
    redis_url: str, before: Any
) -> None:
    """A message that another middleware refuses ends in error when Dramatiq gives up,
    wherever that middleware stands, and so does its pipeline.
    """
    broker = make_broker(redis_url, before=before)
    broker.add_middleware(Refusing(), before=None if before else AgeLimit)

    @job_actor(broker=broker, max_retries=1, min_backoff=10, max_backoff=11)
    def run_marathon(*, job_state: JobState) -> None: ...

    steps = [run_marathon.message() for _ in range(2)]
    record_steps(broker, steps)
    with working(broker):
        pipe = dramatiq.pipeline(steps, broker=broker).run()
        state = wait_until(broker, pipe.messages[0], "error", "success", "cancelled")
        assert state.status == "error"
        assert state.error is not None and state.error.message == "not today"
        assert wait_until(broker, pipe.messages[1], "cancelled").error == NOT_REACHED


@pytest.mark.parametrize("owner", [float("nan"), float("inf"), True, ["a"], {}])
def test_an_owner_that_cannot_be_one_owns_nothing(
    redis_url: str, owner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain send with an impossible owner is tracked for nobody, with a warning."""
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    message = run_marathon.send_with_options(job_owner=owner)
    assert load(broker, message).owner is None
    with working(broker):
        wait_until(broker, message, "success")
    said = [m for m in messages(caplog, "pyramid_jobstate") if "has no owner" in m]
    assert said and repr(owner) in said[0]
    assert not [r for r in caplog.records if r.exc_info]


def test_a_send_that_succeeds_does_not_end_the_trouble_of_the_updates(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the updates of running jobs fail, a send that one node of the store takes
    does not log that the store is back.
    """
    caplog.set_level(logging.INFO)
    ours = JobStateMiddleware(url=redis_url)
    broker = make_broker(redis_url, ours)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    recorder = ours._access.recorder_for(broker)
    recorder._flush.is_troubled = True
    ours._access._outage.complain(redis.ConnectionError("one node of several"))
    run_marathon.send()
    assert len(messages(caplog, "pyramid_jobstate", logging.INFO)) == 1
    recorder._flush.is_troubled = False
    run_marathon.send()
    assert "again" in messages(caplog, "pyramid_jobstate", logging.INFO)[-1]


def test_a_cancelled_job_that_put_itself_back_is_kept_until_that_comes(
    redis_url: str,
) -> None:
    """A job that puts its own message back, and is then cancelled, keeps its record
    until the message is due.
    """
    store = JobStore(redis_url, expire_in=100, active_expire_in=1000)
    ours = JobStateMiddleware(store, interval=0.02)
    broker = make_broker(redis_url, ours, others=(CurrentMessage(),))

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        message: Any = CurrentMessage.get_current_message()
        broker.enqueue(message._message, delay=5_000_000)
        while True:
            job_state.set_progress(1)
            threading.Event().wait(0.005)

    with working(broker):
        message = run_marathon.send()
        assert wait_until(broker, message, "working").cancel()
        wait_until(broker, message, "cancelled")
    ttl: Any = store.client.pttl(key_of(store, message.message_id))
    assert 5_900_000 < ttl <= 6_000_000


def test_sends_within_each_other_keep_what_the_outer_one_announced(
    broker: RedisBroker,
) -> None:
    """A middleware that sends other announced messages in between keeps the outer
    sender's messages announced.
    """

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    ours = middleware_of(broker)
    outer, inner = run_marathon.message(), run_marathon.message()
    unsent = [{outer.message_id}, {inner.message_id}]
    with ours.announced(unsent[0]):
        with ours.announced(unsent[1]):
            broker.enqueue(inner)
        broker.enqueue(outer)
    assert unsent == [set(), set()]
    assert ours._thread.announced == set()
