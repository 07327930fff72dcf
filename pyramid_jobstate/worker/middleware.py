"""JobStateMiddleware: follows the messages of tracked actors through Dramatiq."""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.middleware import Middleware, MiddlewareError, SkipMessage
from redis import exceptions
from redis.exceptions import RedisError

from ..job.record import NOT_REACHED, NOT_SENT, End, JobError, NewJob, Start
from ..job.run import Run
from ..store.connection import redis_errors
from ..store.jobstore import JobStore, is_uuid, store_of_broker
from .actors import (
    ActorError,
    TrackedFunction,
    job_state_class,
    skip,
)
from .current import CurrentJob, ThreadState
from .outage import Outage
from .recorder import Recorder
from .unsaved import Delivery

if TYPE_CHECKING:
    from dramatiq import Actor, Broker
    from dramatiq.broker import MessageProxy
    from dramatiq.worker import Worker

    from ..store.connection import Client

log = logging.getLogger(__name__)

#: The end of a later step of a pipeline.
UNREACHED = End("cancelled", NOT_REACHED)


class JobStateMiddleware(Middleware):
    """Keeps the state of each job of the tracked actors, which are those that declare a
    parameter `job_state` or the option of that name.

    Add it to the broker before the actors that use the option are declared::

        broker.add_middleware(JobStateMiddleware())

    Parameters:
      store: Where the states are kept. Without it one is made:
      url: in the server at this URL;
      client: in that of this `redis.Redis` or `redis.RedisCluster`;
        with neither, in the server that a RedisBroker uses.
      namespace: What the name of each key begins with.
      interval: Seconds between two writes of a worker process.
      heartbeat: Seconds of silence after which a job is said to be running still.

    Raises:
      TypeError: More than one of store, url and client is given.
    """

    def __init__(
        self,
        store: JobStore | None = None,
        *,
        url: str | None = None,
        client: Client | None = None,
        namespace: str = "jobstate",
        interval: float = 0.1,
        heartbeat: float = 5.0,
    ) -> None:
        if sum(x is not None for x in (store, url, client)) > 1:
            raise TypeError("Give JobStateMiddleware one of store, url and client.")
        if store is None and (place := client or url):
            store = JobStore(place, namespace=namespace)
        self._store = store
        self._namespace = namespace
        self._interval = interval
        self._heartbeat = heartbeat
        self._recorder: Recorder | None = None
        #: The functions of the tracked actors, by the actors' names.
        self.functions: dict[str, TrackedFunction] = {}
        self._thread = ThreadState()
        #: The jobs that this process runs, by the ids of their messages.
        self._jobs: dict[str, CurrentJob] = {}
        self._lock = threading.Lock()
        self._outage = Outage(log)
        self._is_warned = False

    def store_for(self, broker: Broker) -> JobStore:
        """Return where the states are kept.

        Raises:
          ActorError: Nothing said where, and the broker is no RedisBroker.
        """
        if self._store is None:
            self._store = store_of_broker(broker, namespace=self._namespace)
        if self._store is None:
            raise ActorError(
                f"JobStateMiddleware() shares the Redis server of a RedisBroker, but "
                f"this is a {type(broker).__name__}. Say where job states are to be "
                'kept: JobStateMiddleware(url="redis://…").'
            )
        return self._store

    @property
    def actor_options(self) -> set[str]:
        return {"job_state"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        # Only from a before_ hook does an error reach who declares the actor.
        if job_state_class(actor) is not None:
            self._refuse_twice(broker)
            self.store_for(broker)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        cls = job_state_class(actor)
        if cls is not None:
            # A middleware that is added later is shown the actors only here.
            self._refuse_twice(broker)
            self.store_for(broker)
            function = TrackedFunction(actor, cls, self._thread)
            self.functions[actor.actor_name] = function
            actor.fn = function

    def _refuse_twice(self, broker: Broker) -> None:
        found = [m for m in broker.middleware if isinstance(m, JobStateMiddleware)]
        if len(found) > 1:
            raise ActorError(
                f"The broker {broker!r} has {len(found)} JobStateMiddleware. Add one "
                "only: two would both report every job."
            )

    # Sending.

    def before_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        uuid = message.message_id
        function = self._tracked(message)
        if function is None:
            return
        job = self._running_job(message)
        if job is not None:
            self._thread.returning[uuid] = job
            return
        if uuid in self._thread.announced:
            return
        try:
            message.encode()
        except Exception:
            # The broker is about to raise the same: no job is sent.
            return
        start = function.start_of(message)
        sender = secrets.token_hex(6)
        new = NewJob(uuid, start, (delay or 0) / 1000, sender=sender)
        created: list[bool] = []
        if self._outage.may_ask() and self._ask(
            broker, lambda s: created.extend(s.create(new))
        ):
            # Also if there is a record: a RabbitmqBroker comes here once for each try.
            self._thread.sending.append(uuid)
            if created == [False]:
                self._thread.resent.append(uuid)

    @contextlib.contextmanager
    def announced(self, message_ids: set[str]) -> Iterator[None]:
        """Within this context this thread sends messages whose records are made. Those
        that the broker has taken are removed from `message_ids`.
        """
        thread = self._thread
        before = thread.announced, thread.confirms
        thread.announced, thread.confirms = message_ids, True
        try:
            yield
        finally:
            thread.announced, thread.confirms = before

    def after_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        uuid, thread = message.message_id, self._thread
        if thread.job is not None and thread.job.is_followed_by(uuid):
            thread.job.is_next_sent = True
        if uuid in thread.resent:
            # Perhaps by a middleware before this one, which has not seen that it came.
            thread.resent.remove(uuid)
            thread.returned.append((uuid, time.monotonic() + (delay or 0) / 1000))
        job = thread.returning.pop(uuid, None)
        if job is not None:
            job.put_back(delay or 0)
        elif uuid in thread.sending:
            thread.sending.remove(uuid)
            self._ask(broker, lambda s: s.confirm(uuid))
        elif uuid in thread.announced:
            thread.announced.remove(uuid)
            # A hundred messages of a transaction do not wait for a store each.
            if thread.confirms:
                thread.confirms = self._ask(broker, lambda s: s.confirm(uuid))

    def _ask(self, broker: Broker, change: Callable[[JobStore], object]) -> bool:
        """Have the store change something, and say whether it did."""
        try:
            with redis_errors():
                change(self.store_for(broker))
        except (exceptions.ConnectionError, exceptions.TimeoutError) as e:
            self._outage.begin()
            self._outage.complain(e)
            return False
        except RedisError as e:
            # This job's own trouble: another program has written its key, perhaps.
            log.warning("A job is sent without a state until it starts: %s", e)
            return False
        self._outage.end()
        if self._recorder is None or not self._recorder.is_troubled:
            self._outage.recover()
        return True

    # Working.

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        job = self._enter(broker, message)
        if job.tracked is None:
            return
        # From here on the message ends in _end(), also if this thread is interrupted.
        self._jobs[job.uuid] = job
        job.delivery = job.tracked.delivery(message)
        for outer in self._thread.jobs[:-1]:
            if outer.uuid == job.uuid:
                # A broker in the caller runs the retry inside the failed try.
                outer.put_back(0)
                if not outer.is_running:
                    self._end(broker, outer)
        self._recorder_for(broker).begin(job.delivery)
        if job.delivery.run.cancel_requested:
            skip(message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        job = self._job_of(broker, message)
        if job is not None:
            job.raised = exception
        else:
            self._stopped(broker, message, exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        job = self._job_of(broker, message)
        # The one that is handled may be the sender's.
        found = (job and job.raised, sys.exception())
        reasons = [e for e in found if isinstance(e, SkipMessage)]
        reason = reasons[0] if reasons else SkipMessage("The message was skipped.")
        if job is not None:
            job.raised = reason
        else:
            self._stopped(broker, message, reason)

    def _enter(self, broker: Broker, message: MessageProxy) -> CurrentJob:
        """Begin to process a message."""
        self._leave(broker, self._thread.find_abandoned())
        return self._thread.enter(message, self._tracked(message))

    def _stopped(
        self, broker: Broker, message: MessageProxy, exception: BaseException | None
    ) -> CurrentJob | None:
        """Return the job of a message that a middleware before this one has stopped, if
        it is tracked.
        """
        if exception is None or self._tracked(message) is None:
            return None
        due = dict(self._thread.returned).get(message.message_id)
        job = self._enter(broker, message)
        job.raised, job.due = exception, due
        return job

    def _job_of(self, broker: Broker, message: MessageProxy) -> CurrentJob | None:
        """Return what this thread knows of a message that it processes. If it has begun
        others since, nobody has told of their ends.
        """
        place = self._thread.find(message)
        if place is None:
            return None
        self._leave(broker, place + 1)
        return self._thread.jobs[place]

    def _leave(self, broker: Broker, place: int) -> None:
        """Finish the messages from a place on, and return to the one around them."""
        for job in reversed(self._thread.leave(place)):
            try:
                self._end(broker, job, acknowledged=job.was_called)
            except Exception:
                log.exception("The end of job %s could not be written.", job.uuid)

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=True)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=False)
        name = message.actor_name
        if name not in broker.get_declared_actors() and is_uuid(message.message_id):
            # Nobody here knows the actor; where it was sent from somebody did.
            error = JobError(None, f"No worker knows the actor {name!r}.")
            start = Start("", name, 0, None, "{}")
            self._drop(broker, message, start, End("error", error))

    # A broker that runs jobs in the caller may say no more than this.

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=True, is_last=True)

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=False, is_last=True)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._recorder is not None:
            self._recorder.stop()

    def _settle(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        acknowledged: bool,
        is_last: bool = False,
    ) -> None:
        """Write how a message ended. Only now is that known, wherever among the others
        this middleware stands.
        """
        raised = sys.exception()
        job = self._job_of(broker, message)
        if job is None and isinstance(raised, MiddlewareError):
            job = self._stopped(broker, message, raised)
        if job is None:
            return
        if not job.was_called and job.raised is None and raised is not job.handled:
            # The broker raises it in the sender, and tells nobody else.
            job.raised = raised
        try:
            self._end(broker, job, acknowledged=acknowledged)
        finally:
            if is_last:
                self._thread.leave(self._thread.jobs.index(job))

    def _end(
        self, broker: Broker, job: CurrentJob, *, acknowledged: bool = True
    ) -> None:
        """Write how a job ended, once."""
        if job.is_over or job.tracked is None:
            return
        job.is_over = True
        if self._jobs.get(job.uuid) is job:
            del self._jobs[job.uuid]
        message, delivery = job.message, job.delivery
        end = job.verdict(acknowledged)
        if delivery is None:
            self._drop(broker, message, job.tracked.start_of(message), end)
            return
        self._recorder_for(broker).end(delivery, end)
        if delivery.lost and not delivery.is_cancelled:
            # Another run decides what follows.
            return
        if end.status in ("error", "cancelled"):
            self._drop_steps_after(broker, message)
        elif end.status == "success" and not job.is_next_sent:
            # What the broker has raised is only logged by Dramatiq.
            self._drop_steps_after(broker, message, End("error", NOT_SENT))

    def _drop(
        self, broker: Broker, message: MessageProxy, start: Start, end: End
    ) -> None:
        """Write what became of a message that was stopped before a run of it began."""
        is_lost = self._write_dropped(broker, message.message_id, start, end).lost
        if not is_lost and end.status != "retrying":
            self._drop_steps_after(broker, message)

    def _drop_steps_after(
        self,
        broker: Broker,
        message: MessageProxy | Message[Any],
        end: End = UNREACHED,
    ) -> None:
        """Write how the next step of a message's pipeline ends, which will not begin,
        and that those after it are not reached.
        """
        while (target := message.options.get("pipe_target")) is not None:
            message = Message(**target)
            function = self._tracked(message)
            if function is not None:
                start = function.start_of(message)
                self._write_dropped(broker, message.message_id, start, end)
            end = UNREACHED

    def _write_dropped(
        self, broker: Broker, uuid: str, start: Start, end: End
    ) -> Delivery:
        delivery = Delivery(uuid, Run(), start, dropped=True)
        self._recorder_for(broker).end(delivery, end)
        return delivery

    def _recorder_for(self, broker: Broker) -> Recorder:
        # The lock is not for every call: a process may fork while it is held.
        if self._recorder is None:
            with self._lock:
                self._recorder = self._recorder or Recorder(
                    self.store_for(broker),
                    interval=self._interval,
                    heartbeat=self._heartbeat,
                    outage=self._outage,
                )
        return self._recorder

    def _tracked(self, message: Message[Any] | MessageProxy) -> TrackedFunction | None:
        function = self.functions.get(message.actor_name)
        if function is None or is_uuid(message.message_id):
            return function
        if not self._is_warned:
            self._is_warned = True
            log.warning(
                "Messages whose id is no uuid are not tracked, such as %r.",
                message.message_id,
            )
        return None

    def _running_job(self, message: Message[Any]) -> CurrentJob | None:
        """Return the job of a message that this process runs: this thread, or another,
        for a coroutine or a job's own threads may put its message back.
        """
        job = self._thread.job
        if job is not None and job.uuid == message.message_id:
            return job
        return self._jobs.get(message.message_id)
