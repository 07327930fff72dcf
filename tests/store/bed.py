"""Batches that are sent and run as in an application, one step at a time."""

import concurrent.futures
import contextlib
import queue
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import dramatiq
from dramatiq import Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import Retry
from dramatiq.middleware import Middleware
from pyramid.config import Configurator

from pyramid_jobstate import (
    Batch,
    JobState,
    JobStateMiddleware,
    JobStore,
    rerun,
)
from tests.support import key_of, load_job, wait_for
from tests.trips import Killed, dying
from tests.webapp import make_request

Order = Exception | Callable[[Any], object] | None


def loaded(store: JobStore, uuid: str) -> Batch:
    """Return a batch as a poll does."""
    batch = store.load(uuid)
    assert isinstance(batch, Batch)
    return batch


def counts_of(store: JobStore, uuid: str) -> dict[str, int]:
    """Return how many members a batch counts of each status, but for none."""
    counts = asdict(loaded(store, uuid).counts)
    return {status: n for status, n in counts.items() if n}


class Watcher(Middleware):
    """Kills the process that sends messages once the broker has so many, and counts how
    often messages were acknowledged: what became of their jobs is stored by then, and
    told to their batches.
    """

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.acks: Counter[str] = Counter()

    @property
    def is_dead(self) -> bool:
        return self.left is not None and self.left < 0

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.is_dead:
                raise Killed

    def after_ack(self, broker: Any, message: Any) -> None:
        self.acks[message.message_id] += 1

    after_nack = after_ack


class Bed(contextlib.ExitStack):
    """A batch of Alice's that a request has sent, and a worker that runs its members
    when it is told to.

    Parameters:
      config: The configurator of an application with pyramid_tm.
      count: How many members it has.
      sent: The number of members whose messages the broker has got when the sender
        dies, or None if it does not.

    Attributes:
      uuid, uuids: The uuids of the batch and of its members.
      messages: The messages that the broker has got, by the uuids of their jobs.
    """

    def __init__(
        self,
        config: Configurator,
        store: JobStore,
        count: int = 3,
        *,
        sent: int | None = None,
    ) -> None:
        super().__init__()
        self.store = store
        self.client: Any = store.client
        self.broker = StubBroker()
        self.broker.add_middleware(
            JobStateMiddleware(store, interval=0.01, heartbeat=60)
        )
        self.sender = Watcher(sent)
        self.broker.add_middleware(self.sender)
        self._orders: dict[str, queue.SimpleQueue[Order]] = {}
        self._is_working = False
        self.broker.declare_queue("default")

        # Its worker takes what is put into another queue.
        @dramatiq.actor(
            broker=self.broker,
            queue_name="sent",
            job_state=True,
            max_retries=99,
            throws=ValueError,
        )
        def part(number: int, job_state: Any = None) -> None:
            orders = self._orders[job_state.uuid] = queue.SimpleQueue()
            while (order := orders.get(timeout=60)) is not None:
                if isinstance(order, Exception):
                    raise order
                order(job_state)

        self.part = part
        Configurator(registry=config.registry, autocommit=True).set_job_store(store)
        request = make_request(config, "alice")
        request.tm.begin()
        with request.job_states.batch() as batch:
            self.uuids = [batch.send(part, i).uuid for i in range(count)]
        self.uuid = batch.uuid
        with self.dying():
            request.tm.commit()
        self.sender.left = None
        self.messages: dict[str, Message[Any]] = {}
        self.collect()

    def dying(self) -> contextlib.AbstractContextManager[object]:
        """Have this thread die as its sender does."""
        return dying(is_dead=lambda: self.sender.is_dead)

    def collect(self) -> None:
        """Take what was sent from the broker."""
        messages = self.broker.queues["sent"]
        while not messages.empty():
            message = Message.decode(messages.get())
            self.messages[message.message_id] = message

    def load(self) -> Batch:
        return loaded(self.store, self.uuid)

    def counts(self) -> dict[str, int]:
        return counts_of(self.store, self.uuid)

    def fraction(self) -> float | None:
        return self.load().progress.fraction

    def member(self, place: int) -> JobState:
        return load_job(self.store, self.uuids[place])

    def statuses(self) -> list[str | None]:
        """Return the statuses of its members."""
        found = self.store.load_many(self.uuids)
        return [None if job is None else job.status for job in found]

    def deliver(self, place: int) -> None:
        """Deliver the message of a member."""
        if not self._is_working:
            self._is_working = True
            worker = dramatiq.Worker(
                self.broker, queues={"default"}, worker_timeout=20, worker_threads=8
            )
            worker.start()
            self.callback(worker.stop)
            self.callback(self._stop)
        message = self.messages[self.uuids[place]].copy(queue_name="default")
        self.broker.queues["default"].put(message.encode())

    def run(self, place: int) -> None:
        """Have a member begin to run, once more if it did."""
        uuid = self.uuids[place]
        before = self._orders.pop(uuid, None)
        self.deliver(place)
        wait_for(lambda: uuid in self._orders)
        wait_for(lambda: self.statuses()[place] in ("working", "cancelling"))
        if before is not None:
            # The earlier run is over, whatever it does.
            before.put(None)

    def rerun(self, place: int) -> bool:
        """Run a failed member again. Its worker does not take the message."""
        uuid = self.uuids[place]
        self.client.hset(key_of(self.store, uuid), "queue", "sent")
        return rerun(self.store, self.broker, uuid)

    def tell(self, place: int, order: Order) -> None:
        """Have a member that runs fail, act or, with None, return."""
        self._orders[self.uuids[place]].put(order)

    def act(self, place: int, order: Callable[[Any], Any]) -> Any:
        """Have a member that runs do something, and return what that returns."""
        done = concurrent.futures.Future[Any]()

        def act(job_state: JobState) -> None:
            try:
                done.set_result(order(job_state))
            except BaseException as e:
                done.set_exception(e)
                raise

        self.tell(place, act)
        return done.result(30)

    def end(self, place: int, status: str = "success", delay: float = 60) -> None:
        """Have a member end, or fail that is to be tried again, which begins to run if
        it does not yet, and wait until that is stored.
        """
        uuid = self.uuids[place]
        if uuid not in self._orders:
            self.run(place)
        before = self.sender.acks[uuid]
        order: Order = None if status == "success" else ValueError("x")
        if status == "retrying":
            order = Retry("Later.", delay=int(delay * 1000))
        self._orders.pop(uuid).put(order)
        wait_for(lambda: self.sender.acks[uuid] > before)
        assert self.statuses()[place] == status

    def settle(self) -> None:
        """Wait until all messages that were delivered are done with."""
        self.broker.join("default", fail_fast=False)

    def send(self, place: int, key: str) -> JobState:
        """Have a member that runs send another, and take its message."""
        sent: JobState = self.act(
            place, lambda job: job.batch.send(self.part, 0, key=key)
        )
        self.collect()
        return sent

    def _stop(self) -> None:
        for orders in self._orders.values():
            orders.put(None)
