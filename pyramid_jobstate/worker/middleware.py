"""JobStateMiddleware: what an application adds to its broker."""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware, MiddlewareError, SkipMessage

from ..errors import ActorError
from ..job.record import UNKNOWN_ACTOR, End, JobError, JobInfo, is_uuid
from ..job.texts import filled
from ..store.arguments import check_connections, checked_namespace, type_name
from ..store.jobstore import JobStore
from .actors import TrackedFunction, job_state_class
from .batches import RunningMember
from .current import CurrentJob
from .hooks import check_hooks
from .ledger import Ledger
from .message import attempts_before, batch_of, check_queue, sends_for, word_of
from .presence import Presence

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message
    from dramatiq.broker import MessageProxy
    from dramatiq.worker import Worker
    from redis import Redis, RedisCluster

    from ..job.state import JobState
    from ..store.connection import Client

log = logging.getLogger("pyramid_jobstate")


class JobStateMiddleware(Middleware):
    """Keeps the state of every job of the tracked actors. An actor is tracked if it has
    a parameter `job_state`, or the actor option of that name.

    Add it to the broker before declaring actors that use the option::

        broker.add_middleware(JobStateMiddleware())

    Without a store, URL or client it shares the Redis server of a RedisBroker.

    Parameters:
      store: The store of the job states.
      url: The URL of the Redis server to keep them in.
      client: A `redis.Redis` or `redis.RedisCluster` to keep them with.
      namespace: The prefix of all keys, unless `store` is given.
      interval: Seconds between two flushes of a worker process.
      heartbeat: Seconds without an update before a worker confirms that a job is still
        running. By default 5, or less with a store whose `stalled_after` or
        `active_expire_in` is short.
      hooks_queue: The queue of the messages that run hooks, such as `on_success`. By
        default that of the job. Set it alike wherever jobs are sent and run, and have
        a worker consume it.
      max_connections: The most connections to a server, unless `store` or `client` is
        given: see :class:`JobStore`.

    Raises:
      TypeError: More than one of store, url and client is given, or max_connections
        with a store or a client, or an argument has the wrong type.
      ValueError: The URL, the namespace or the name of the queue is invalid, or
        interval or heartbeat is not positive, or over 86,400 seconds (a day), or
        max_connections out of range.
    """

    def __init__(
        self,
        store: JobStore | None = None,
        *,
        url: str | None = None,
        client: Redis | RedisCluster | None = None,
        namespace: str = "jobstate",
        interval: float = 0.1,
        heartbeat: float | None = None,
        hooks_queue: str | None = None,
        max_connections: int | None = None,
    ) -> None:
        given = _given_store(store, url, client, namespace, max_connections)
        # What is written of the messages: ledger_of() finds it here.
        self._ledger = Ledger(
            given,
            namespace,
            interval,
            heartbeat,
            check_queue(hooks_queue),
            max_connections,
        )
        #: What tells of the workers of this process.
        self._presence: Presence | None = None

    def store_for(self, broker: Broker) -> JobStore:
        """Return the store of the job states, for a script that has a broker and no
        application: :func:`rerun` takes both.

        Parameters:
          broker: The broker that has this middleware.

        Raises:
          ActorError: No store was given and the broker is not a RedisBroker.
        """
        return self._ledger.store_for(broker)

    @property
    def actor_options(self) -> set[str]:
        return {"job_state"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        # Only an error from a before_ hook reaches the code that declares the actor.
        cls = job_state_class(actor)
        if cls is not None:
            self._refuse_twice(broker)
            check_hooks(cls, broker, self.store_for(broker))
            self._track(broker, actor, cls)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        cls = job_state_class(actor)
        if cls is not None:
            # For a middleware added after its actors, Dramatiq calls only this hook.
            self._refuse_twice(broker)
            self.store_for(broker)
            self._track(broker, actor, cls)

    def _track(
        self, broker: Broker, actor: Actor[Any, Any], cls: type[JobState]
    ) -> None:
        """Replace the function of an actor. Done before the actor is declared, so that
        what other middleware wrap around it stands outside.
        """
        known = self._ledger.functions.get(actor.actor_name)
        if known is not None and known.actor is actor:
            return
        function = TrackedFunction(
            actor,
            cls,
            self._ledger.thread,
            self._ledger.hooks.queue,
            functools.partial(self._ledger.begin, broker),
        )
        self._ledger.functions[actor.actor_name] = function
        actor.fn = function

    def _refuse_twice(self, broker: Broker) -> None:
        found = [m for m in broker.middleware if isinstance(m, JobStateMiddleware)]
        if len(found) > 1:
            raise ActorError(
                f"The broker {broker!r} has {len(found)} JobStateMiddleware instances. "
                "Add only one: each would report every job."
            )

    def before_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        self._ledger.note_sending(broker, message, delay)

    def after_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        self._ledger.note_sent(broker, message, delay)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        job = self._enter(broker, message)
        if job.tracked is None:
            return
        worker = None if self._presence is None else self._presence.token
        # Taken now: what a later middleware does to the message, such as decrypting it,
        # must not be stored.
        job.unsaved = job.tracked.unsaved(message, worker)
        batch = sends_for(message)
        if batch is not None:
            job.members = RunningMember(broker, message, batch, job.unsaved.run)
        for outer in self._ledger.thread.jobs[:-1]:
            if outer.uuid == job.uuid:
                # A broker that runs jobs in the caller nests a retry in the attempt
                # that failed.
                outer.put_back(0)
                if not outer.is_running:
                    self._ledger.end(broker, outer)

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
        # The exception being handled may be the sender's.
        found = (job and job.raised, sys.exception())
        reasons = [e for e in found if isinstance(e, SkipMessage)]
        reason = reasons[0] if reasons else SkipMessage("The message was skipped.")
        if job is not None:
            job.raised = reason
        else:
            self._stopped(broker, message, reason)

    def _enter(self, broker: Broker, message: MessageProxy) -> CurrentJob:
        """Start processing a message."""
        self._leave(broker, self._ledger.thread.find_abandoned())
        return self._ledger.thread.enter(message, self._ledger.functions.find(message))

    def _stopped(
        self, broker: Broker, message: MessageProxy, exception: BaseException | None
    ) -> CurrentJob | None:
        """Return the job of a message that a middleware before this one has stopped, or
        None if it is not tracked.
        """
        if exception is None or self._ledger.functions.find(message) is None:
            return None
        due = dict(self._ledger.thread.returned).get(message.message_id)
        job = self._enter(broker, message)
        job.raised, job.due = exception, due
        if due is not None:
            # Retries has counted this attempt, if it stands behind this middleware.
            job.attempts = max(0, job.attempts - 1)
        return job

    def _job_of(self, broker: Broker, message: MessageProxy) -> CurrentJob | None:
        """Return the job of a message that this thread processes, or None. Jobs begun
        since then are finished first: the broker called no hook at their ends.
        """
        place = self._ledger.thread.find(message)
        if place is None:
            return None
        self._leave(broker, place + 1)
        return self._ledger.thread.jobs[place]

    def _leave(self, broker: Broker, place: int) -> None:
        """Finish the jobs from index `place` on, and return to the one around them."""
        for job in reversed(self._ledger.thread.leave(place)):
            try:
                self._ledger.end(broker, job, acknowledged=job.was_called)
            except Exception:
                log.exception("The end of job %s could not be written.", job.uuid)

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=True)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=False)
        name = message.actor_name
        if name not in broker.get_declared_actors() and is_uuid(message.message_id):
            # The actor is unknown here, but known where the message was sent.
            error = JobError(None, filled(UNKNOWN_ACTOR, {"actor": repr(name)}))
            attempts = attempts_before(message)
            word, batch = word_of(message), batch_of(message)
            info = JobInfo("", name, attempts, rerun=word, batch=batch)
            self._ledger.drop(broker, message, info, End("error", error))

    # A broker that runs jobs in the caller may call none of the hooks but these.

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=True, is_last=True)

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=False, is_last=True)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._ledger.hooks.declare(broker)
        if self._ledger.functions and not (self._presence and self._presence.is_alive):
            # Its first jobs begin before it has booted.
            self._presence = Presence(broker, self._ledger)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if self._presence is not None:
            self._presence.add(worker)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._presence is not None and self._presence.remove(worker):
            self._presence = None
        self._ledger.stop()

    def _settle(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        acknowledged: bool,
        is_last: bool = False,
    ) -> None:
        """Write how a message ended. Wherever this middleware stands among the others,
        that is known only now.
        """
        raised = sys.exception()
        job = self._job_of(broker, message)
        if job is None and isinstance(raised, MiddlewareError):
            job = self._stopped(broker, message, raised)
        if job is None:
            return
        if not job.was_called and job.raised is None and raised is not job.handled:
            # The broker raises it in the sender without calling a hook.
            job.raised = raised
        try:
            self._ledger.end(broker, job, acknowledged=acknowledged)
        finally:
            if is_last:
                place = self._ledger.thread.find(message)
                # A hook that has run in the caller may have left it already.
                if place is not None:
                    self._ledger.thread.leave(place)


def _given_store(
    store: JobStore | None,
    url: str | None,
    client: Client | None,
    namespace: str,
    max_connections: int | None,
) -> JobStore | None:
    """Return the store that the arguments of a JobStateMiddleware name, or None if they
    leave it to the broker.

    Raises:
      TypeError: Several of them name a store, or one has the wrong type, or
        max_connections is for none of our clients.
      ValueError: The URL or the namespace is invalid, or max_connections out of range.
    """
    if sum(x is not None for x in (store, url, client)) > 1:
        raise TypeError("Pass JobStateMiddleware one of store, url and client.")
    # Without the value: a URL may contain a password.
    if store is not None and not isinstance(store, JobStore):
        raise TypeError(
            f"store must be a JobStore, not {type_name(store)}. Pass a URL as url=, or "
            "a Redis client as client=."
        )
    if url is not None and not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type_name(url)}.")
    checked_namespace(namespace)
    if store is not None and max_connections is not None:
        raise TypeError("Pass max_connections to the JobStore, not beside it.")
    place = url if client is None else client
    if place is not None:
        return JobStore(place, namespace=namespace, max_connections=max_connections)
    if max_connections is not None:
        check_connections(max_connections)
    return store
