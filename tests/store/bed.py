"""Batches that are sent and run as in an application, one step at a time."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dramatiq import Message
from dramatiq.errors import Retry
from dramatiq.middleware import Middleware

from pyramid_jobstate import Batch, JobState, JobStore, rerun
from tests.jobs import job_actor
from tests.support import key_of, load_job, wait_for
from tests.trips import Killed, dying
from tests.worker.floors import Chore, Floor, Held, Script


def loaded(store: JobStore, uuid: str) -> Batch:
    """Return a batch as a poll does."""
    batch = store.load(uuid)
    assert isinstance(batch, Batch)
    return batch


def counts_of(store: JobStore, uuid: str) -> dict[str, int]:
    """Return how many members a batch counts of each status, but for none."""
    counts = asdict(loaded(store, uuid).counts)
    return {status: n for status, n in counts.items() if n}


class Deadly(Middleware):
    """Kills the process that sends messages once the broker has so many."""

    left: int | None = None

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed


class Bed:
    """A batch of Alice's that a request has sent, and a worker that runs its members
    when it is told to.

    Parameters:
      count: How many members it has.
      sent: The number of members whose messages the broker has got when the sender
        dies, or None if it does not.

    Attributes:
      uuid, uuids: The uuids of the batch and of its members.
      messages: The messages that the broker has got, by the uuids of their jobs.
    """

    def __init__(
        self, store: JobStore, count: int = 3, *, sent: int | None = None
    ) -> None:
        self.store = store
        self.client: Any = store.client
        self.floor = Floor(store, threads=8, queues={"default"}, heartbeat=60)
        self.broker = self.floor.broker
        self.broker.add_middleware(deadly := Deadly())
        self._deadly = deadly
        self._runs: dict[str, Held] = {}

        # Its worker takes what is put into another queue.
        @job_actor(
            broker=self.broker, queue_name="sent", max_retries=99, throws=ValueError
        )
        def part(number: int, *, job_state: Chore) -> object:
            return self.floor.run("", job_state)

        self.part = part
        request = self.floor.request()
        request.tm.begin()
        with request.job_states.batch() as batch:
            self.uuids = [batch.send(part, i).uuid for i in range(count)]
        self.uuid: str = batch.uuid
        with self.dying(sent):
            request.tm.commit()
        self.messages: dict[str, Message[Any]] = {}
        self.collect()

    def close(self) -> None:
        self.floor.close()

    @contextlib.contextmanager
    def dying(self, left: int | None = 0) -> Iterator[None]:
        """Have this thread die once the broker has so many more of its messages."""
        deadly = self._deadly
        deadly.left = left
        with dying(is_dead=lambda: deadly.left is not None and deadly.left < 0):
            yield
        deadly.left = None

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

    def message(self, place: int) -> Message[Any]:
        """Return the message of a member, as its worker takes it."""
        return self.messages[self.uuids[place]].copy(queue_name="default")

    def deliver(self, place: int) -> None:
        """Deliver the message of a member that does not run, and have it settled."""
        self.floor.deliver(self.message(place))
        self.floor.start()
        self.settle()

    def run(self, place: int) -> None:
        """Have a member begin to run, once more if it did."""
        before = self._runs.get(self.uuids[place])
        self._runs[self.uuids[place]] = self.floor.begin(self.message(place))
        wait_for(lambda: self.statuses()[place] in ("working", "cancelling"))
        if before is not None:
            # The earlier run is over, whatever it does.
            before.leave()

    def rerun(self, place: int) -> bool:
        """Run a failed member again. Its worker does not take the message."""
        uuid = self.uuids[place]
        self.client.hset(key_of(self.store, uuid), "queue", "sent")
        return rerun(self.store, self.broker, uuid)

    def tell(self, place: int, order: Script | BaseException) -> None:
        """Have a member that runs fail, or do something and return."""
        self._runs.pop(self.uuids[place]).leave(order)

    def end(self, place: int, status: str = "success", delay: float = 60) -> None:
        """Have a member end, or fail that is to be tried again, which begins to run if
        it does not yet, and wait until that is stored.
        """
        uuid = self.uuids[place]
        if uuid not in self._runs:
            self.run(place)
        error: Exception | None = None if status == "success" else ValueError("x")
        if status == "retrying":
            error = Retry("Later.", delay=int(delay * 1000))
        self._runs.pop(uuid).end(error)
        assert self.statuses()[place] == status

    def settle(self) -> None:
        """Wait until all messages that were delivered are done with."""
        self.broker.join("default", fail_fast=False)

    def send(self, place: int, key: str) -> JobState:
        """Have a member that runs send another, and take its message."""
        batch = self._runs[self.uuids[place]].job_state.batch
        sent: JobState = batch.send(self.part, 0, key=key)
        self.collect()
        return sent
