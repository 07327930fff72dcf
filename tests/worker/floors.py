"""Workers in this process, whose jobs do what a test says, and trouble for their store.

A Floor has a StubBroker: the messages survive whatever happens to the store.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any
from unittest import mock

import dramatiq
import redis
from dramatiq import Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import Batch, JobState, JobStateMiddleware, JobStore
from tests.faulty import FaultyProxy
from tests.jobs import job_actor
from tests.support import load_job, wait_for
from tests.webapp import make_request, make_tm_config

Script = Callable[[Any], object]

#: Makes floors, with the store of the worker and options.
MakeFloor = Callable[..., "Floor"]


class Chore(JobState):
    public_params = ("name",)


class Held:
    """A run that goes on until the test ends it.

    Attributes:
      message: Its message.
      job_state: What its actor was handed. The test may report with it.
      begun: Set when its actor is called.
      settled: Set when its message is settled.
    """

    message: Message[Any]
    job_state: Any
    _what: Script | BaseException | None

    def __init__(self, floor: Floor) -> None:
        self.floor, self.settled = floor, threading.Event()
        self.begun, self._opened = threading.Event(), threading.Event()

    @property
    def uuid(self) -> str:
        return self.message.message_id

    def run(self, job_state: JobState) -> object:
        self.job_state = job_state
        self.begun.set()
        assert self._opened.wait(60)
        if isinstance(self._what, BaseException):
            raise self._what
        return self._what and self._what(job_state)

    def wait(self) -> Held:
        """Wait until the actor is called."""
        assert self.begun.wait(30)
        return self

    def leave(self, what: Script | BaseException | None = None) -> None:
        """Let the actor call a function and return, or raise an error."""
        self._what = what
        self._opened.set()

    def end(self, what: Script | BaseException | None = None) -> None:
        """Do what `leave` does, and wait until the message is settled."""
        self.leave(what)
        assert self.settled.wait(30)

    def load(self) -> Any:
        """Return the JobState that a viewer sees."""
        return self.floor.load(self.uuid)

    def reads(self, *statuses: str) -> bool:
        state = self.floor.store.load(self.uuid)
        return state is not None and state.status in statuses


def fail(error: Any) -> None:
    raise error


def idle_actor(broker: dramatiq.Broker, **options: Any) -> Any:
    """Declare a tracked actor that does nothing, whatever it is sent."""

    def run_marathon(*args: Any) -> None: ...

    return dramatiq.actor(broker=broker, **{"job_state": True, **options})(run_marathon)


class Settling(Middleware):
    """Notes which messages are sent, and which runs are settled."""

    def __init__(self) -> None:
        self.here = threading.local()
        self.sent: dict[str, Message[Any]] = {}

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.sent[message.message_id] = message

    def after_ack(self, broker: Any, message: Any) -> None:
        held = getattr(self.here, "held", None)
        if held is not None:
            self.here.held = None
            held.settled.set()

    after_nack = after_ack


class Floor:
    """A broker with actors, its worker, and a store.

    Parameters:
      store: The store that viewers read.
      own: The store of the worker, if that is another object.
      threads: How many jobs run at once.
      queues: The queues of the worker, if it does not take all.
      cls: The class of the jobs.
      others: Other middlewares, which are there before the actors.
      options: Those of the JobStateMiddleware.

    Attributes:
      errand: An actor that is not tried again.
      stubborn: One that is tried three times.
      ran: How often a job ran for each argument.
      scripts: What a job does, by its argument. With "fails" it does.
    """

    def __init__(
        self,
        store: JobStore,
        own: JobStore | None = None,
        *,
        threads: int = 4,
        queues: set[str] | None = None,
        cls: type[JobState] = Chore,
        others: Sequence[Middleware] = (),
        **options: Any,
    ) -> None:
        self.store, self.own = store, own or store
        self.broker = StubBroker()
        self.middleware = JobStateMiddleware(self.own, **{"interval": 0.01, **options})
        for each in self.middleware, *others:
            self.broker.add_middleware(each)
        self.ran: Counter[str] = Counter()
        self.scripts: dict[str, Script] = {"fails": lambda _: fail(ValueError("No"))}
        self._held: dict[str, list[Held]] = {}
        self._next: dict[str, Held] = {}
        self._settling = Settling()
        self.broker.add_middleware(self._settling)
        self._options: Any = {"worker_threads": threads, "queues": queues}
        self._worker: dramatiq.Worker | None = None
        self._config: Configurator | None = None

        @job_actor(broker=self.broker, job_state=cls, max_retries=0)
        def errand(name: str = "", *, job_state: JobState) -> object:
            return self.run(name, job_state)

        @job_actor(broker=self.broker, max_retries=2, min_backoff=1, max_backoff=1)
        def stubborn(name: str = "", *, job_state: Chore) -> object:
            return self.run(name, job_state)

        self.errand: Any = errand
        self.stubborn: Any = stubborn

    def run(self, name: str, job_state: JobState) -> object:
        self.ran[name] += 1
        if name in self._next:
            held = self._next.pop(name)
            held.message = self._settling.sent[job_state.uuid]
            self._held.setdefault(held.uuid, []).insert(0, held)
        found = self._held.get(job_state.uuid, ())
        waiting = [held for held in found if not held.begun.is_set()]
        if waiting:
            self._settling.here.held = waiting[0]
            return waiting[0].run(job_state)
        script = self.scripts.get(name)
        return script and script(job_state)

    # Workers.

    def new_worker(self) -> dramatiq.Worker:
        worker = dramatiq.Worker(self.broker, worker_timeout=20, **self._options)
        worker.start()
        return worker

    def start(self) -> None:
        self._worker = self._worker or self.new_worker()

    def stop(self, timeout: int = 10_000) -> None:
        """Stop the worker, which waits for its jobs and writes what is left."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop(timeout=timeout)

    def close(self) -> None:
        for held in [each for group in self._held.values() for each in group]:
            held.leave()
        self.stop()
        self.broker.close()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def work(self) -> None:
        """Have a worker process all messages."""
        with self.working():
            wait_for(self.is_idle)

    def is_idle(self, but: int = 0) -> bool:
        """Return whether all messages are settled, but for those of some jobs."""
        return sum(q.unfinished_tasks for q in self.broker.queues.values()) == but

    # Messages.

    def message(self, name: str = "", **options: Any) -> Any:
        return self.errand.message_with_options(args=(name,), **options)

    def post(self, name: str = "", **options: Any) -> Message[Any]:
        """Send a job outside a request."""
        message = self.message(name, **options)
        self.broker.enqueue(message)
        return message

    def deliver(self, message: Message[Any]) -> None:
        """Have a message delivered as after the death of its worker."""
        queue = self.broker.queues[message.queue_name]
        queue.put(message.encode())

    def waiting(self) -> list[Message[Any]]:
        """Return the messages in the queue. No worker may run."""
        found: list[Any] = list(self.broker.queues["default"].queue)
        return [Message.decode(each) for each in found]

    def hold(self, message: Message[Any]) -> Held:
        """Let the next run of a message be held."""
        held = Held(self)
        held.message = message
        self._held.setdefault(message.message_id, []).insert(0, held)
        return held

    def take(self, message: Message[Any]) -> None:
        """Have the broker lose a message that waits."""
        queue = self.broker.queues[message.queue_name]
        found = [queue.get() for _ in range(queue.qsize())]
        for each in found:
            queue.task_done()
            if Message.decode(each).message_id != message.message_id:
                queue.put(each)

    def hold_next(self, name: str) -> Held:
        """Let the next run with an argument be held."""
        self._next[name] = held = Held(self)
        return held

    def begin(self, message: Message[Any] | None = None, **options: Any) -> Held:
        """Begin a run, of a message that is delivered or of a new one."""
        held = self.hold(message or self.message(**options))
        if message is None:
            self.broker.enqueue(held.message)
        else:
            self.deliver(message)
        self.start()
        return held.wait()

    # Requests.

    def request(self) -> Request:
        """Return a request of Alice's, in no transaction yet."""
        if self._config is None:
            self._config = make_tm_config(None)
            self._config.include("pyramid_jobstate")
            self._config.set_job_store(self.own)
            self._config.make_wsgi_app()
        return make_request(self._config, "alice")

    def press(self, unique: str = "nightly", **options: Any) -> str:
        """Send a unique job from a request of Alice's. Return the uuid of the job."""
        request = self.request()
        with request.tm:
            job = request.job_states.send_with_options(
                self.errand, ("unique",), unique=unique, **options
            )
        return str(job.uuid)

    def last(self, unique: str = "nightly") -> str | None:
        """Return the uuid of the last job that was sent with a key."""
        job = self.request().job_states.find_unique(self.errand, unique)
        return None if job is None else str(job.uuid)

    def send_batch(self, *names: str, actor: Any = None, **options: Any) -> Batch:
        request = self.request()
        with request.tm, request.job_states.batch() as batch:
            for name in names:
                batch.send_with_options(actor or self.errand, (name,), **options)
        return self.batch(batch.uuid)

    # What viewers see.

    def load(self, uuid: str) -> JobState:
        return load_job(self.store, uuid)

    def batch(self, uuid: str) -> Batch:
        loaded = self.load(uuid)
        assert isinstance(loaded, Batch)
        return loaded

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many members have each status that any has."""
        counts = asdict(self.batch(batch.uuid).counts)
        return {status: count for status, count in counts.items() if count}

    def statuses(self, *messages: Message[Any]) -> list[str]:
        return [self.load(message.message_id).status for message in messages]


def failed(
    floor: Floor, count: int = 1, report: Script = lambda _: None, **options: Any
) -> list[Message[Any]]:
    """Have jobs of Alice's report something and fail, which would succeed by now. No
    worker runs.
    """

    def work(job_state: JobState) -> None:
        report(job_state)
        fail(ValueError("a failed"))

    floor.scripts["a"] = work
    options = {"job_owner": "alice", **options}
    sent = [floor.post("a", **options) for _ in range(count)]
    floor.work()
    assert {*floor.statuses(*sent)} == {"error"}
    del floor.scripts["a"]
    floor.ran.clear()
    return sent


# Trouble.


class Ear:
    """Notes what a worker asks its store.

    Attributes:
      requests: What was sent, one round trip each.
    """

    def __init__(self, proxy: FaultyProxy) -> None:
        self.requests: list[bytes] = []
        proxy.judge = self._judge

    def _judge(self, request: bytes) -> str:
        self.requests.append(request)
        return "pass"

    def about(self, *uuids: str) -> list[bytes]:
        """Return the requests that name a job."""
        wanted = [uuid.encode() for uuid in uuids]
        return [r for r in self.requests if any(uuid in r for uuid in wanted)]


@contextlib.contextmanager
def standing_still(
    floor: Floor, call: Callable[[], object], name: str | None = None
) -> Iterator[None]:
    """Make a call in a thread that stands still as it hands a message, or the one with
    an argument of this name, to the broker, until this ends.
    """
    reached, opened = threading.Event(), threading.Event()
    enqueue, thread = floor.broker.enqueue, threading.Thread(target=call)

    def stand_still(message: Any, **options: Any) -> Any:
        if threading.current_thread() is thread and name in (None, *message.args):
            reached.set()
            assert opened.wait(60)
        return enqueue(message, **options)

    with mock.patch.object(floor.broker, "enqueue", stand_still):
        thread.start()
        try:
            assert reached.wait(20)
            yield
        finally:
            opened.set()
            thread.join()


def records(client: redis.Redis) -> set[bytes]:
    """Return the keys of the jobs themselves."""
    found: Any = client.keys("jobstate:" + "-".join("?" * n for n in (8, 4, 4, 4, 12)))
    return set(found)
