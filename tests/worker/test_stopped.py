"""Messages that another middleware skips, refuses or puts back."""

import collections
import datetime
import threading
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import (
    AgeLimit,
    Middleware,
    MiddlewareError,
    Retries,
    SkipMessage,
)

from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.resources import JobStates
from tests.jobs import (
    Alarm,
    RunMarathon,
    job_actor,
    load,
    make_broker,
    wait_until,
    working,
)
from tests.support import wait_for


class Refusing(Middleware):
    """Fails before a message is processed."""

    class RefusedError(MiddlewareError):
        pass

    def before_process_message(self, broker: Any, message: Any) -> None:
        raise self.RefusedError("not today")


class Stopping(Middleware):
    """Stops a message at its nth delivery and later ones, in the way that it says, and
    notes when.
    """

    def __init__(self) -> None:
        self.stopped: dict[str, datetime.datetime] = {}

    def before_process_message(self, broker: Any, message: Any) -> None:
        nth, how = message.args
        if message.options.get("retries", 0) + 1 < nth:
            return
        self.stopped[message.message_id] = datetime.datetime.now(datetime.UTC)
        if how != "refuse":
            message.fail()
        if how == "skip":
            raise SkipMessage("not today")
        if how == "refuse":
            raise Refusing.RefusedError("not today")


@pytest.mark.parametrize("order", ["after", "before", "first"])
def test_attempt_is_that_of_the_last_run_that_began(redis_url: str, order: str) -> None:
    """A job that another middleware stops has the attempt and the start of the last run
    whose actor was called, wherever that middleware stands. It keeps that run's reports
    if the message is stopped before ours sees it.
    """
    broker = make_broker(redis_url, before=None if order == "after" else AgeLimit)
    where: Any = JobStateMiddleware if order != "before" else None
    broker.add_middleware(stopping := Stopping(), before=where)
    began: dict[str, int] = collections.Counter()

    # The end of an attempt is written before the next one begins.
    @job_actor(broker=broker, min_backoff=100, max_backoff=200)
    def run_marathon(nth: int, how: str, *, job_state: JobState) -> None:
        began[job_state.uuid] += 1
        job_state.set_progress_metric("attempt", job_state.attempt)
        job_state.set_progress(job_state.attempt, 5)
        raise ValueError("a cramp")

    def send(nth: int, how: str) -> Any:
        return run_marathon.send_with_options(args=(nth, how), max_retries=nth)

    cases = [(nth, how) for nth in (1, 2) for how in ("skip", "refuse", "fail")]
    with working(broker, threads=6):
        sent = [send(*case) for case in cases]
        states = [wait_until(broker, m, "cancelled", "error") for m in sent]
    for (nth, how), state in zip(cases, states, strict=True):
        assert state.status == ("cancelled" if how == "skip" else "error")
        assert state.error is not None
        reason = "The message was rejected." if how == "fail" else "not today"
        assert state.error.message == reason
        assert (state.attempt, began[state.uuid]) == (nth - 1, nth - 1)
        if order != "before" and how != "fail":
            assert state.progress_metrics == ({"attempt": 1} if nth == 2 else {})
            assert (state.progress is not None) == (nth == 2)
        assert state.finished_at is not None
        assert (state.started_at is None) == (nth == 1)
        if state.started_at is not None:
            # It was put back for a tenth of a second at least.
            before = stopping.stopped[state.uuid] - state.started_at
            assert before > datetime.timedelta(seconds=0.05)


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
def test_message_is_stopped_while_its_last_attempt_is_about_to_end(
    redis_url: str, how: str
) -> None:
    """A message may come again and be stopped before its last attempt has written its
    end. The job has the outcome of the last delivery, and all reports.
    """
    broker = make_broker(redis_url)
    for middleware in (Lingering(), Stopping()):
        broker.add_middleware(middleware, before=JobStateMiddleware)

    @job_actor(broker=broker, min_backoff=1, max_backoff=2, max_retries=1)
    def run_marathon(nth: int, how: str, *, job_state: JobState) -> None:
        job_state.set_progress_metric("attempt", job_state.attempt)
        raise ValueError("a cramp")

    message = run_marathon.send(2, how)
    with working(broker):
        state = wait_until(broker, message, "cancelled", "error")
    assert state.status == ("cancelled" if how == "skip" else "error")
    assert state.error is not None
    assert state.error.message == "not today"
    assert state.progress_metrics == {"attempt": 1}
    assert state.attempt == 1


@pytest.mark.parametrize("order", ["before", "first"])
def test_message_that_is_refused_for_good_is_an_error(
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
def test_message_that_is_refused_and_put_back_waits(redis_url: str, order: str) -> None:
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
def test_retry_that_is_refused_is_due_again(redis_url: str, order: str) -> None:
    """If another middleware refuses the retry of a job, the job shows when the next one
    is due, and keeps the attempt of its last run.
    """
    broker = make_broker(redis_url, before=AgeLimit if order == "first" else None)
    where: Any = None if order == "after" else JobStateMiddleware
    broker.add_middleware(Stopping(), before=where)

    @dramatiq.actor(broker=broker, min_backoff=60_000, job_state=True)
    def run_marathon(nth: int, how: str) -> None:
        raise dramatiq.errors.Retry("a cramp", delay=10)

    def refused() -> JobState | None:
        state = load(broker, message)
        reason = state.error and state.error.message
        return state if (state.status, reason) == ("retrying", "not today") else None

    message = run_marathon.send(2, "refuse")
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
def test_message_that_a_limiter_puts_back_waits(
    redis_url: str, alice: JobStates, order: str
) -> None:
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
    pipe = dramatiq.pipeline(steps, broker=broker)

    def delivered(times: int) -> bool:
        over.extend(alice[job.uuid] for job in sent)
        return len(limiter.seen) >= times

    with working(broker):
        sent = alice.send_immediately(pipe)
        state = wait_until(broker, steps[0], "retrying")
        assert (state.attempt, state.error) == (0, None)
        assert state.due_at is not None and state.updated_at is not None
        # The put-back is written a moment after it happened.
        assert 50 < (state.due_at - state.updated_at).total_seconds() <= 60
        alarm.ring()
        assert wait_for(lambda: delivered(3))
        assert not {state.status for state in over} & {"cancelled", "error"}
        for message in steps:
            wait_until(broker, message, "success")


def test_message_that_is_put_back_before_it_is_confirmed_waits(
    redis_url: str,
) -> None:
    """A job whose message is put back before its sender learns that the broker took it
    is retrying.
    """
    limiter = Limiter()

    class Slow(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                wait_until(broker, message, "retrying")

    broker = make_broker(redis_url)
    broker.add_middleware(limiter, before=JobStateMiddleware)
    # These hooks run in reverse.
    broker.add_middleware(Slow())

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    with working(broker):
        assert load(broker, run_marathon.send()).status == "retrying"


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
def test_message_that_its_own_thread_has_sent_is_not_put_back(
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


def test_odd_number_of_retries_harms_no_other_job(broker: RedisBroker) -> None:
    """A foreign message with an invalid number of retries affects only its own job."""

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    retries: Any
    for retries in (None, [], "many", -1, True):
        odd = run_marathon.message().copy(actor_name="unheard_of")
        broker.enqueue(odd.copy(options={"retries": retries}))
    with working(broker):
        state = wait_until(broker, run_marathon.send(), "success", "error")
    assert state.status == "success"


def test_skipped_message_that_nobody_recorded_is_left_alone(
    redis_url: str, client: redis.Redis
) -> None:
    """A message without a record, or with an expired one, gets none if it is skipped
    before this middleware.
    """
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker, max_age=-1, job_state=RunMarathon)
    def run_marathon(miles: int) -> None: ...

    message = run_marathon.message(26)
    sender = RedisBroker(url=redis_url)
    sender.declare_queue("default")
    sender.enqueue(message)
    with working(broker):
        broker.join("default", timeout=20_000)
    assert client.keys("jobstate*") == []
