"""Follows the messages of tracked actors through Dramatiq."""

from __future__ import annotations

import abc
import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware, MiddlewareError, SkipMessage

from ..errors import ActorError
from ..job import End, JobError, JobInfo, is_uuid
from ..store import store_beside
from .access import StoreAccess, given_store
from .actors import TrackedFunction, TrackedFunctions, job_state_class
from .current import CurrentJob, ThreadState, skip
from .ends import Ends
from .enqueueing import Enqueueing
from .message import attempts_before, batch_of, sends_for, word_of

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message
    from dramatiq.broker import MessageProxy
    from dramatiq.worker import Worker

    from ..job import MemberSender, Run
    from ..store import Client, JobStore

log = logging.getLogger("pyramid_jobstate.worker.middleware")


class Follower(Middleware, abc.ABC):
    """The JobStateMiddleware without the sending of members."""

    def __init__(
        self,
        store: JobStore | None = None,
        *,
        url: str | None = None,
        client: Client | None = None,
        namespace: str = "jobstate",
        interval: float = 0.1,
        heartbeat: float | None = None,
    ) -> None:
        self._store = given_store(store, url, client, namespace)
        self._namespace = namespace
        self._access = StoreAccess(self, interval, heartbeat)
        #: The functions of the tracked actors, by actor name.
        self.functions = TrackedFunctions()
        self._ends = Ends(self._access, self.functions)
        self._thread = ThreadState()
        #: The jobs that this process runs, by message id.
        self._jobs: dict[str, CurrentJob] = {}
        self._enqueueing = Enqueueing(self._access, self._thread, self._jobs)

    def store_for(self, broker: Broker) -> JobStore:
        """Return the store of the job states.

        Raises:
          ActorError: No store was given and the broker is not a RedisBroker.
        """
        if self._store is None:
            client = getattr(broker, "client", None)
            self._store = store_beside(client, namespace=self._namespace)
        if self._store is None:
            raise ActorError(
                f"JobStateMiddleware() shares the Redis server of a RedisBroker, but "
                f"this broker is a {type(broker).__name__}. Pass the URL of a Redis "
                'server: JobStateMiddleware(url="redis://…").'
            )
        return self._store

    @property
    def actor_options(self) -> set[str]:
        return {"job_state"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        # Only an error from a before_ hook reaches the code that declares the actor.
        if job_state_class(actor) is not None:
            self._refuse_twice(broker)
            self.store_for(broker)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        cls = job_state_class(actor)
        if cls is not None:
            # For a middleware added after its actors, Dramatiq calls only this hook.
            self._refuse_twice(broker)
            self.store_for(broker)
            function = TrackedFunction(actor, cls, self._thread)
            self.functions[actor.actor_name] = function
            actor.fn = function

    def _refuse_twice(self, broker: Broker) -> None:
        found = [m for m in broker.middleware if isinstance(m, Follower)]
        if len(found) > 1:
            raise ActorError(
                f"The broker {broker!r} has {len(found)} JobStateMiddleware instances. "
                "Add only one: each would report every job."
            )

    # Sending.

    def before_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        function = self.functions.find(message)
        if function is not None:
            self._enqueueing.before(broker, message, delay, function)

    def after_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        self._enqueueing.after(broker, message, delay)

    def announced(
        self, message_ids: set[str], *, confirms: bool = True
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context within which this thread sends messages whose records exist.
        Each message that the broker accepts is removed from `message_ids`.

        Parameters:
          confirms: Whether to write each time that the broker has accepted a message.
        """
        return self._enqueueing.announced(message_ids, confirms=confirms)

    def drop(self, broker: Broker, uuid: str, info: JobInfo, end: End) -> None:
        """Write how a job ended that is not sent, as soon as the store answers."""
        self._ends.write_dropped(broker, uuid, info, end)

    # Processing.

    def current_job(self) -> CurrentJob | None:
        """Return the message that this thread processes, and its job, or None."""
        return self._thread.job

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        job = self._enter(broker, message)
        if job.tracked is None:
            return
        # From here on the message ends in _end(), even if this thread is interrupted.
        self._jobs[job.uuid] = job
        job.unsaved = job.tracked.unsaved(message)
        batch = sends_for(message)
        if batch is not None:
            run = job.unsaved.run
            job.members = self.members_of(broker, message, batch, run)
        for outer in self._thread.jobs[:-1]:
            if outer.uuid == job.uuid:
                # A broker that runs jobs in the caller nests a retry in the attempt
                # that failed.
                outer.put_back(0)
                if not outer.is_running:
                    self._end(broker, outer)
        self._access.recorder_for(broker).begin(job.unsaved)
        if job.unsaved.run.cancel_requested:
            skip(message)

    @abc.abstractmethod
    def members_of(
        self, broker: Broker, message: MessageProxy, batch: str, run: Run
    ) -> MemberSender:
        """Return what sends further members of the batch of a job that runs."""

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
        self._leave(broker, self._thread.find_abandoned())
        return self._thread.enter(message, self.functions.find(message))

    def _stopped(
        self, broker: Broker, message: MessageProxy, exception: BaseException | None
    ) -> CurrentJob | None:
        """Return the job of a message that a middleware before this one has stopped, or
        None if it is not tracked.
        """
        if exception is None or self.functions.find(message) is None:
            return None
        due = dict(self._thread.returned).get(message.message_id)
        job = self._enter(broker, message)
        job.raised, job.due = exception, due
        return job

    def _job_of(self, broker: Broker, message: MessageProxy) -> CurrentJob | None:
        """Return the job of a message that this thread processes, or None. Jobs begun
        since then are finished first: the broker called no hook at their ends.
        """
        place = self._thread.find(message)
        if place is None:
            return None
        self._leave(broker, place + 1)
        return self._thread.jobs[place]

    def _leave(self, broker: Broker, place: int) -> None:
        """Finish the jobs from index `place` on, and return to the one around them."""
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
            # The actor is unknown here, but known where the message was sent.
            error = JobError(None, f"No worker knows the actor {name!r}.")
            attempts = attempts_before(message)
            word, batch = word_of(message), batch_of(message)
            info = JobInfo("", name, attempts, None, "{}", word, batch=batch)
            self._ends.drop(broker, message, info, End("error", error))

    # A broker that runs jobs in the caller may call none of the hooks but these.

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=True, is_last=True)

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._settle(broker, message, acknowledged=False, is_last=True)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._access.stop()

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
            self._end(broker, job, acknowledged=acknowledged)
        finally:
            if is_last:
                self._thread.leave(self._thread.jobs.index(job))

    def _end(
        self, broker: Broker, job: CurrentJob, *, acknowledged: bool = True
    ) -> None:
        """Write how a job ended, unless that is done."""
        if job.is_over or job.tracked is None:
            return
        job.is_over = True
        if self._jobs.get(job.uuid) is job:
            del self._jobs[job.uuid]
        self._ends.end(broker, job, job.tracked, acknowledged)
