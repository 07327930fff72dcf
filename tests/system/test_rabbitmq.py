"""Jobs through RabbitMQ."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed

from pyramid_jobstate import JobError, JobStateMiddleware, JobStore, rerun
from tests.jobs import Alarm, Gate, RunMarathon, job_actor, load, wait_until, working
from tests.rabbitmq import RabbitMQ
from tests.support import wait_for

#: The seconds that a worker may take to start on a busy machine, or a consumer to
#: reconnect.
PATIENCE = 30


@pytest.fixture
def broker(
    rabbitmq: RabbitMQ, redis_url: str, caplog: pytest.LogCaptureFixture
) -> Iterator[RabbitmqBroker]:
    """A broker with the middleware appended to Dramatiq's own."""
    # Without confirmations RabbitMQ may lose even durable messages.
    broker = RabbitmqBroker(url=rabbitmq.url, confirm_delivery=True)
    store = JobStore(redis_url, stalled_after=2)
    broker.add_middleware(JobStateMiddleware(store, heartbeat=0.5))
    yield broker
    caplog.set_level(logging.CRITICAL, "pika")
    with contextlib.suppress(Exception):
        broker.flush_all()
    broker.close()


def counts(broker: RabbitmqBroker) -> tuple[int, int]:
    """Return how many messages wait in the queue, delayed ones included, and how many
    rejected ones the broker keeps.
    """
    ready, delayed, dead = broker.get_queue_message_counts("default")
    return ready + delayed, dead


def test_a_job_that_fails(broker, redis_url):
    """Between two attempts a job reads retrying, and no values of one remain in the
    next. When its retries are used up, it is an error, and the broker keeps its
    message. It runs again for an operator, and the rejected message does not. Neither
    do jobs that were cancelled, while they waited or while they ran.
    """
    broker.add_middleware(alarm := Alarm())
    attempts: list[int] = []

    @job_actor(broker=broker, max_retries=1, min_backoff=60_000)
    def run_marathon(*, job_state: Any) -> None:
        attempts.append(job_state.attempt)
        job_state.set_progress_metric(f"try {len(attempts)}", True)
        if len(attempts) < 3:
            raise ValueError("a cramp")

    @job_actor(broker=broker)
    def run_on(*, job_state: Any) -> None:
        for _ in job_state.track(range(100_000)):
            time.sleep(0.001)

    for delay in None, 300:
        cancelled = run_marathon.send_with_options(delay=delay)
        assert load(broker, cancelled).cancel()
    with working(broker):
        message = run_marathon.send()
        state = wait_until(broker, message, "retrying")
        assert state.due_at and state.updated_at and state.due_at > state.updated_at
        assert state.error == JobError("ValueError", "a cramp")
        assert state.progress_metrics == {"try 1": True}
        alarm.ring()
        state = wait_until(broker, message, "success", "error")
        assert (state.status, state.error) == (
            "error",
            JobError("ValueError", "a cramp"),
        )
        assert state.progress_metrics == {"try 2": True}
        broker.join("default", timeout=20_000)
        running = run_on.send()
        assert wait_until(broker, running, "working").cancel()
        wait_until(broker, running, "cancelled")
        wait_for(lambda: counts(broker) == (0, 4))
        assert rerun(JobStore(redis_url), broker, message.message_id)
        wait_until(broker, message, "success", timeout=PATIENCE)
        # As an operator of RabbitMQ moves it back: no hook tells of it.
        broker.channel.basic_publish("", "default", message.encode())
        broker.join("default", timeout=20_000)
    assert attempts == [1, 2, 1]
    assert load(broker, message).progress_metrics == {"try 3": True}


def test_a_broker_that_fails(rabbitmq, broker, caplog):
    """A job whose broker fails while it runs still ends. Its message, never
    acknowledged, is redelivered, and the second run is shown like the first. A job
    whose message the broker never took reads stalled rather than queued for ever. One
    that leaves by a second connection is queued.
    """
    caplog.set_level(logging.CRITICAL)
    gates = [Gate(), Gate()]
    runs: list[int] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: Any) -> None:
        gate = gates[len(runs)]
        runs.append(1)
        job_state.set_progress_metric(f"run {len(runs)}", True)
        gate.wait()

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def rest() -> None: ...

    rest.send()
    broker.connection.close()
    message, refused = run_marathon.send(), rest.message()
    with working(broker):
        gates[0].wait_for_job()
        first = wait_until(broker, message, "working")
        rabbitmq.stop()
        try:
            gates[0].open()
            state = wait_until(broker, message, "success", "error")
            assert state.status == "success"
            assert state.progress_metrics == {"run 1": True}
            with pytest.raises(ConnectionClosed):
                broker.enqueue(refused)
            assert wait_until(broker, refused, "stalled").is_working
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
        broker.enqueue(refused)
        wait_until(broker, refused, "success", timeout=PATIENCE)
