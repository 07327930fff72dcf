"""Jobs through other brokers than Redis: RabbitMQ, and Dramatiq's own for tests."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, Retries

from pyramid_jobstate import JobStateMiddleware, JobStore, rerun
from tests.jobs import Alarm, Gate, RunMarathon, job_actor, load, wait_until, working
from tests.rabbitmq import RabbitMQ, find_binary
from tests.support import wait_for
from tests.workerprocess import StartWorker, starting

#: The seconds that a worker may take to start on a busy machine, or a consumer to
#: reconnect.
PATIENCE = 30


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ node."""
    binary = find_binary()
    if binary is None:
        reason = "No RabbitMQ is installed (Debian: apt-get install rabbitmq-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with RabbitMQ(binary) as node:
        yield node


#: Makes brokers with the middleware, which are closed at the end of the test.
MakeBroker = Callable[..., RabbitmqBroker]


@pytest.fixture
def make_broker(
    rabbitmq: RabbitMQ, redis_url: str, caplog: pytest.LogCaptureFixture
) -> Iterator[MakeBroker]:
    """Returns a broker with the middleware."""
    brokers: list[RabbitmqBroker] = []

    def make_broker(
        store: JobStore | None = None,
        *,
        before: type[Middleware] | None = None,
        **options: Any,
    ) -> RabbitmqBroker:
        broker = RabbitmqBroker(url=rabbitmq.url, **options)
        brokers.append(broker)
        store = store or JobStore(redis_url)
        broker.add_middleware(JobStateMiddleware(store, heartbeat=0.5), before=before)
        return broker

    yield make_broker
    caplog.set_level(logging.CRITICAL, "pika")
    for broker in brokers:
        with contextlib.suppress(Exception):
            broker.flush_all()
        broker.close()


@pytest.fixture
def rabbitmq_broker(make_broker: MakeBroker) -> RabbitmqBroker:
    """A broker with the middleware appended to Dramatiq's own."""
    return make_broker()


def waiting(broker: RabbitmqBroker) -> int:
    """Return how many messages wait in the queue, delayed ones included."""
    return sum(broker.get_queue_message_counts("default")[:2])


def dead(broker: RabbitmqBroker) -> int:
    """Return how many rejected messages the broker keeps."""
    return broker.get_queue_message_counts("default")[2]


# The life of a job.


def test_a_failed_job_runs_again(
    rabbitmq_broker: RabbitmqBroker, redis_url: str
) -> None:
    """A job that failed runs again, and the message that was rejected does not."""
    runs = []

    @job_actor(broker=rabbitmq_broker, job_state=RunMarathon, max_retries=0)
    def run_marathon(miles: int) -> None:
        runs.append(miles)
        if len(runs) == 1:
            raise ValueError("Too far")

    message = run_marathon.send(26)
    with working(rabbitmq_broker):
        wait_until(rabbitmq_broker, message, "error", timeout=PATIENCE)
        assert rerun(JobStore(redis_url), rabbitmq_broker, message.message_id)
        wait_until(rabbitmq_broker, message, "success", timeout=PATIENCE)
        # As an operator of RabbitMQ moves it back: no hook tells of it.
        rabbitmq_broker.channel.basic_publish("", "default", message.encode())
        rabbitmq_broker.join("default")
    assert runs == [26, 26]
    assert load(rabbitmq_broker, message).status == "success"


@pytest.mark.parametrize("confirm_delivery", [False, True])
def test_a_job_from_its_delay_to_its_end(
    make_broker: MakeBroker, confirm_delivery: bool
) -> None:
    """A delayed job is queued until it is due, shows its progress while it works, and
    succeeds.
    """
    broker = make_broker(confirm_delivery=confirm_delivery)
    gate = Gate()

    @job_actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int, *, job_state: Any = None) -> None:
        for mile in job_state.track(range(miles), unit="miles", message="running"):
            job_state.set_progress_metric("miles_run", mile)
            if mile == 13:
                gate.wait()

    soonest = datetime.now(UTC) + timedelta(milliseconds=499)
    message = run_marathon.send_with_options(args=(26,), delay=500, job_owner="alice")
    state = load(broker, message)
    assert (state.status, state.owner, state.attempt) == ("queued", "alice", 0)
    assert state.job_params == {"miles": 26} and state.started_at is None
    assert state.due_at and state.due_at >= soonest
    with working(broker):
        gate.wait_for_job()
        wait_for(lambda: load(broker, message).get_progress_metric("miles_run") == 13)
        state = load(broker, message)
        assert (state.status, state.message, state.attempt) == ("working", "running", 1)
        assert state.progress and state.progress.done == 13
        assert state.started_at and state.started_at >= soonest
        gate.open()
        state = wait_until(broker, message, "success", "error")
        broker.join("default", timeout=20_000)
    assert state.status == "success" and state.finished_at
    assert state.progress and state.progress.done == state.progress.total == 26
    assert state.progress_metrics == {"miles_run": 25}
    assert (waiting(broker), dead(broker)) == (0, 0)


@pytest.mark.parametrize("before", [None, Retries])
def test_a_job_that_is_tried_again(make_broker: MakeBroker, before: Any) -> None:
    """Between two attempts a job reads retrying, with the time it is due and the error;
    no values of one attempt remain in the next.
    """
    broker = make_broker(before=before)
    broker.add_middleware(alarm := Alarm())
    runs = []

    @job_actor(broker=broker, max_retries=2, min_backoff=60_000)
    def run_marathon(*, job_state: Any) -> None:
        runs.append(1)
        job_state.set_progress_metric(f"try {len(runs)}", True)
        if len(runs) < 3:
            raise ValueError("a cramp")

    with working(broker):
        message = run_marathon.send()
        state = wait_until(broker, message, "retrying")
        assert state.due_at and state.updated_at and state.due_at > state.updated_at
        assert state.error and state.error == ("ValueError", "a cramp")
        assert (state.attempt, state.progress_metrics) == (1, {"try 1": True})
        alarm.ring()
        state = wait_until(broker, message, "success", "error")
        broker.join("default", timeout=20_000)
    assert (state.status, state.attempt, state.error) == ("success", 3, None)
    assert state.progress_metrics == {"try 3": True}
    assert len(runs) == 3 and (waiting(broker), dead(broker)) == (0, 0)


@pytest.mark.parametrize("before", [None, Retries])
def test_a_job_that_fails_for_good(make_broker: MakeBroker, before: Any) -> None:
    """A job whose retries are used up is an error and keeps its progress, and the
    broker keeps its message.
    """
    broker = make_broker(before=before)

    @job_actor(broker=broker, max_retries=1, min_backoff=50, max_backoff=60)
    def run_marathon(*, job_state: Any) -> None:
        job_state.set_progress(13, 26)
        raise ValueError("a cramp")

    with working(broker):
        message = run_marathon.send()
        state = wait_until(broker, message, "error")
        broker.join("default", timeout=20_000)
        wait_for(lambda: dead(broker) == 1)
    assert (state.attempt, state.error) == (2, ("ValueError", "a cramp"))
    assert state.progress and (state.progress.done, state.progress.total) == (13, 26)
    assert load(broker, message).status == "error" and waiting(broker) == 0


# Cancelling.


@pytest.mark.parametrize("delay", [None, 300])
def test_a_job_cancelled_while_it_waits(
    rabbitmq_broker: RabbitmqBroker, delay: int | None
) -> None:
    """A job that is cancelled while queued or delayed reads cancelled at once, and its
    message is dropped without running.
    """
    runs = []

    @dramatiq.actor(broker=rabbitmq_broker, job_state=True)
    def run_marathon() -> None:
        runs.append(1)

    message = run_marathon.send_with_options(delay=delay)
    assert load(rabbitmq_broker, message).cancel()
    assert load(rabbitmq_broker, message).status == "cancelled"
    wait_for(lambda: waiting(rabbitmq_broker) == 1)
    with working(rabbitmq_broker):
        wait_for(lambda: dead(rabbitmq_broker) == 1)
    assert runs == [] and waiting(rabbitmq_broker) == 0
    assert load(rabbitmq_broker, message).status == "cancelled"


def test_a_job_cancelled_while_it_runs(
    rabbitmq_broker: RabbitmqBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A running job learns of its cancel, cleans up, and is not retried."""

    @job_actor(broker=rabbitmq_broker)
    def run_marathon(*, job_state: Any) -> None:
        try:
            for _ in job_state.track(range(1_000_000)):
                time.sleep(0.001)
        finally:
            job_state.set_message("swept up")

    with working(rabbitmq_broker):
        message = run_marathon.send()
        state = wait_until(rabbitmq_broker, message, "working")
        assert state.cancel()
        state = wait_until(rabbitmq_broker, message, "cancelled", "error", "retrying")
        wait_for(lambda: dead(rabbitmq_broker) == 1)
    assert state.status == "cancelled" and state.error
    assert state.error.message == "The job was cancelled."
    assert state.message == "swept up" and waiting(rabbitmq_broker) == 0
    assert not [r for r in caplog.records if r.exc_info]


# Hooks that come late or more than once.


def test_a_worker_that_is_faster_than_the_sender(make_broker: MakeBroker) -> None:
    """A sender whose hook runs after the job's end does not change its status."""
    broker = make_broker()
    seen = []

    class Slow(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            seen.append(wait_until(broker, message, "success", "error").status)

    # Added last to run first: after-hooks run in reverse.
    broker.add_middleware(Slow())

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    with working(broker):
        message = run_marathon.send()
        assert seen == ["success"]
        assert load(broker, message).status == "success"
        broker.join("default", timeout=20_000)


def test_a_message_that_is_sent_at_the_second_try(
    make_broker: MakeBroker, redis_url: str
) -> None:
    """A sender whose idle connection was closed opens another and sends again: the job
    stays queued, rather than stalled.
    """
    broker = make_broker(JobStore(redis_url, stalled_after=0.05))
    tries = []

    class Count(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            tries.append(message.message_id)

    broker.add_middleware(Count())

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    run_marathon.send()
    broker.connection.close()
    message = run_marathon.send()
    assert tries.count(message.message_id) == 2
    wait_for(lambda: waiting(broker) == 2)
    # Longer than it takes an unconfirmed job to read stalled.
    time.sleep(0.1)
    assert load(broker, message).status == "queued"


# A broker that fails.


def test_a_message_that_the_broker_refuses(
    rabbitmq: RabbitMQ,
    make_broker: MakeBroker,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose message the broker never took reads stalled rather than queued for
    ever; sent again once the broker is back, it is queued and runs.
    """
    caplog.set_level(logging.CRITICAL, "pika")
    # With confirmations: without them RabbitMQ may lose even durable messages.
    broker = make_broker(JobStore(redis_url, stalled_after=0.3), confirm_delivery=True)

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    first = run_marathon.send()
    message = run_marathon.message()
    rabbitmq.stop()
    try:
        with pytest.raises(ConnectionClosed):
            broker.enqueue(message)
        state = wait_until(broker, message, "stalled")
        assert state.is_working and state.started_at is None
        assert load(broker, first).status == "queued"
    finally:
        rabbitmq.start()
    broker.enqueue(message)
    assert load(broker, message).status == "queued"
    with working(broker):
        wait_until(broker, message, "success", timeout=PATIENCE)
        wait_until(broker, first, "success", timeout=PATIENCE)


def test_a_job_that_outlives_its_broker(
    rabbitmq: RabbitMQ, make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose broker fails while it runs still ends. Its message, never
    acknowledged, is redelivered, and the second run is shown like the first.
    """
    caplog.set_level(logging.CRITICAL)
    broker = make_broker(confirm_delivery=True)
    gates = [Gate(), Gate()]
    runs: list[int] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: Any) -> None:
        gate = gates[len(runs)]
        runs.append(1)
        job_state.set_progress_metric(f"run {len(runs)}", True)
        gate.wait()

    message = run_marathon.send()
    with working(broker):
        gates[0].wait_for_job()
        first = wait_until(broker, message, "working")
        rabbitmq.stop()
        try:
            gates[0].open()
            state = wait_until(broker, message, "success", "error")
            assert state.status == "success"
            assert state.progress_metrics == {"run 1": True}
        finally:
            rabbitmq.start()
        assert gates[1].reached.wait(PATIENCE)
        wait_for(lambda: load(broker, message).get_progress_metric("run 2"))
        state = load(broker, message)
        assert (state.status, state.finished_at) == ("working", None)
        assert state.progress_metrics == {"run 2": True}
        assert state.started_at and first.started_at
        assert state.started_at > first.started_at
        gates[1].open()
        wait_until(broker, message, "success")


# Workers that are killed.


@pytest.fixture
def start_rabbitmq_worker(
    rabbitmq: RabbitMQ, redis_url: str, tmp_path: Path
) -> Iterator[StartWorker]:
    """Starts worker processes, and stops them at the end of the test."""
    environ = {"BROKER_URL": rabbitmq.url, "STORE_URL": redis_url}
    with starting(environ, tmp_path, "bench.matrix.app", 1) as start:
        yield start


def test_a_worker_that_is_killed(
    rabbitmq_broker: RabbitmqBroker,
    client: redis.Redis,
    start_rabbitmq_worker: StartWorker,
) -> None:
    """RabbitMQ redelivers the message of a killed worker at once. The job runs again
    without the first run's values, and ends as that run does.
    """

    def wait_at_gate(*, job_state: Any = None) -> None: ...

    actor = dramatiq.actor(broker=rabbitmq_broker, job_state=True)(wait_at_gate)
    message = actor.send()
    started = (start_rabbitmq_worker(), start_rabbitmq_worker())
    workers = {worker.process.pid: worker for worker in started}

    def group() -> int:
        found: int = load(rabbitmq_broker, message).get_progress_metric("group", 0)
        return found

    first = workers.pop(wait_for(group, PATIENCE))
    before = load(rabbitmq_broker, message)
    assert before.status == "working" and before.progress_metrics["first"] is True
    first.kill(signal.SIGKILL)
    wait_for(lambda: group() in workers, PATIENCE)
    state = load(rabbitmq_broker, message)
    assert (state.status, state.attempt) == ("working", 1)
    assert state.progress_metrics.keys() == {"group"}
    assert state.started_at and before.started_at
    assert state.started_at > before.started_at
    assert state.queued_at == before.queued_at
    client.set("gate", 1)
    state = wait_until(rabbitmq_broker, message, "success", "error")
    assert state.status == "success" and state.progress_metrics["done"] is True
    rabbitmq_broker.join("default", timeout=20_000)
    assert (waiting(rabbitmq_broker), dead(rabbitmq_broker)) == (0, 0)
