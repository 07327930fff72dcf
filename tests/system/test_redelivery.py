"""Messages that a broker delivers again while their job runs, and which are skipped."""

import contextlib
import logging
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, SkipMessage

from pyramid_jobstate import JobStateMiddleware
from tests.jobs import Gate, job_actor, load, wait_until
from tests.support import wait_for

#: The seconds that a broker may take to deliver a message again.
PATIENCE = 60


class RunOnce(Middleware):
    """Skips the messages of jobs that have begun before."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.skipped: list[str] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        if not self.client.set(f"begun:{message.message_id}", 1, nx=True):
            self.skipped.append(message.message_id)
            raise SkipMessage("It has begun before.")


@pytest.mark.system
@pytest.mark.promise("skipped-copy-changes-nothing")
@pytest.mark.parametrize(
    "kind", ["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
def test_copy_that_is_delivered_while_its_job_runs(
    request, redis_url, client, caplog, kind
):
    """With Redis, another worker takes it from one that it has not heard of for a
    minute. RabbitMQ delivers it again once it has come back.
    """
    caplog.set_level(logging.CRITICAL)
    once, gate = RunOnce(client), Gate()
    brokers: list[Any]
    if kind == "rabbitmq":
        rabbitmq = request.getfixturevalue("rabbitmq")
        brokers = [RabbitmqBroker(url=rabbitmq.url, confirm_delivery=True)]
    else:
        # It looks for lost messages whenever it asks for more.
        other = RedisBroker(url=redis_url, maintenance_chance=1_000_000)
        brokers = [RedisBroker(url=redis_url), other]
    actors = []
    for broker in brokers:
        broker.add_middleware(JobStateMiddleware(url=redis_url))
        broker.add_middleware(once)

        @job_actor(broker=broker)
        def run_marathon(*, job_state: Any) -> None:
            job_state.set_progress_metric("miles", 13)
            gate.wait()

        actors.append(run_marathon)
    with contextlib.ExitStack() as stack:

        def work(broker: dramatiq.Broker, threads: int) -> None:
            worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=threads)
            worker.start()
            stack.callback(worker.stop)

        message = actors[0].send()
        work(brokers[0], 2 if kind == "rabbitmq" else 1)
        stack.callback(gate.open)
        gate.wait_for_job()
        if kind == "rabbitmq":
            rabbitmq.stop()
            rabbitmq.start()
        else:
            work(brokers[1], 1)

        def is_skipped() -> bool:
            if kind == "redis":
                # The worker was last heard of long ago.
                beats = {brokers[0].broker_id: 0}
                client.zadd("dramatiq:__heartbeats__", beats)
            return once.skipped == [message.message_id]

        wait_for(is_skipped, PATIENCE)
        assert load(brokers[0], message).status == "working"
        gate.open()
        state = wait_until(brokers[0], message, "success", "error", "cancelled")
        assert (state.status, state.progress_metrics) == ("success", {"miles": 13})
        assert load(brokers[0], message).attempt == 1
    for broker in brokers:
        broker.close()
