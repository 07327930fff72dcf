"""What is written of a broker's messages: that jobs are sent, that they run, and how
they end.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import dramatiq.broker
from dramatiq import Message
from redis.exceptions import RedisError

from ..errors import ActorError
from ..job.record import NOT_REACHED, NOT_SENT, End, JobInfo, NewJob
from ..job.run import Run
from ..job.values import MAX_DELAY
from ..store.arguments import positive
from ..store.connection import LOST, ConnectionsInUse
from ..store.jobstore import JobStore, records_of, store_beside
from .actors import TrackedFunctions
from .current import CurrentJob, ThreadState
from .hooks import Hooks, is_hook
from .message import batch_of, steps_after, word_of
from .recorder import Outage, Recorder, watch_forks
from .unsaved import Unsaved

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from ..store.records import Records

log = logging.getLogger("pyramid_jobstate")

T = TypeVar("T")

#: The longest interval or heartbeat in seconds: a day. No thread can wait for ever.
LONGEST = 86400.0

#: The ends of a job that could not be sent, and of a step whose turn never comes.
UNSENT = End("error", NOT_SENT)
UNREACHED = End("cancelled", NOT_REACHED)


class Ledger:
    """Writes what becomes of the messages of a broker: at once that they are sent, and
    through the recorder of this process how their jobs run and end.

    Parameters:
      store: The store, or None to share the Redis server of a RedisBroker.
      namespace: The prefix of all keys in that case.
      interval: Seconds between two flushes of the recorder.
      heartbeat: Seconds without an update before the recorder confirms that a job is
        still running, or None: see :func:`usual_heartbeat`.
      hooks_queue: The queue of the messages that run hooks, or None for those of the
        jobs.
      max_connections: The most connections to the server of a RedisBroker, or None.

    Attributes:
      functions: The functions of the tracked actors, by actor name.
      thread: The state of the calling thread.
      jobs: The jobs that this process runs, by message id.
      hooks: Tells the ends of jobs to the hooks of their classes.

    Raises:
      TypeError, ValueError: interval or heartbeat is not a positive number of seconds.
    """

    def __init__(
        self,
        store: JobStore | None,
        namespace: str,
        interval: float,
        heartbeat: float | None,
        hooks_queue: str | None,
        max_connections: int | None,
    ) -> None:
        self._store = store
        self._max_connections = max_connections
        self._namespace = namespace
        self._interval = positive("interval", interval, LONGEST)
        if heartbeat is not None:
            positive("heartbeat", heartbeat, LONGEST)
        self._heartbeat = heartbeat
        self.functions = TrackedFunctions()
        self.thread = ThreadState()
        self.jobs: dict[str, CurrentJob] = {}
        self.hooks = Hooks(hooks_queue, self.functions, self.store_for, self.thread)
        self._outage = Outage(log)
        self._recorder: Recorder | None = None
        self._lock = threading.Lock()
        # Early, so that the fork hooks of the application run after this.
        watch_forks()

    def store_for(self, broker: Broker) -> JobStore:
        """Return the store of the job states.

        Raises:
          ActorError: No store was given and the broker is not a RedisBroker.
        """
        if self._store is None:
            client = getattr(broker, "client", None)
            self._store = store_beside(
                client,
                namespace=self._namespace,
                max_connections=self._max_connections,
            )
        if self._store is None:
            raise ActorError(
                f"JobStateMiddleware() shares the Redis server of a RedisBroker, but "
                f"this broker is a {type(broker).__name__}. Pass the URL of a Redis "
                'server: JobStateMiddleware(url="redis://…").'
            )
        return self._store

    # Sending.

    def note_sending(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        """Write that a job is queued, unless its record was announced, its message is
        being put back, or its batch was cancelled and it has ended or is unknown.

        Parameters:
          delay: Milliseconds until the message is due, or None.
        """
        function = self.functions.find(message)
        if function is None and not is_hook(message):
            return
        uuid, thread = message.message_id, self.thread
        job = self._running_job(uuid)
        if job is not None:
            thread.returning[uuid] = job
            return
        if function is None:
            return
        if uuid in thread.announced:
            return
        try:
            message.encode()
        except Exception:
            # The broker will raise the same error: no job is sent.
            return
        info = function.info_of(message)
        # Dramatiq accepts any delay.
        seconds = min(MAX_DELAY, max(0, delay or 0)) / 1000
        new = NewJob(uuid, info, seconds, sender=secrets.token_hex(6))
        if not self._outage.may_ask():
            return
        is_new = self._ask(broker, _create, new)
        if is_new is not None:
            # Even for an existing record: a RabbitmqBroker calls this at every attempt.
            thread.sending.append((uuid, new.sender))
            if not is_new:
                thread.resent.append(uuid)

    def note_sent(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        """Write that the broker has accepted the message of a job."""
        uuid, thread = message.message_id, self.thread
        if thread.job is not None and thread.job.is_followed_by(uuid):
            thread.job.is_next_sent = True
        if uuid in thread.resent:
            # A middleware before this one may have put it back, unseen by this one.
            thread.resent.remove(uuid)
            thread.returned.append((uuid, time.monotonic() + (delay or 0) / 1000))
        job = thread.returning.pop(uuid, None)
        # The last attempt is the one that the broker has accepted.
        sending = next((s for s in reversed(thread.sending) if s[0] == uuid), None)
        if job is not None:
            job.put_back(delay or 0)
        elif sending is not None:
            thread.sending.remove(sending)
            self._confirm(broker, message, sending[1])
        elif uuid in thread.announced:
            thread.announced.remove(uuid)
            # The messages of a transaction must not each wait for a failing store.
            if thread.confirms:
                thread.confirms = self._confirm(broker, message, thread.sender)

    @contextlib.contextmanager
    def announced(
        self, message_ids: set[str], sender: str = "", *, confirms: bool = True
    ) -> Iterator[None]:
        """Within this context the thread sends messages whose records exist. Each
        message that the broker accepts is removed from `message_ids`.

        Parameters:
          sender: Who sends them: see :class:`.NewJob`.
          confirms: Whether to write each time that the broker has accepted a message.
        """
        thread = self.thread
        before = thread.announced, thread.sender, thread.confirms
        thread.announced, thread.sender = message_ids, sender
        thread.confirms = confirms
        try:
            yield
        finally:
            thread.announced, thread.sender, thread.confirms = before

    def _running_job(self, uuid: str) -> CurrentJob | None:
        """Return the running job of a message, or None. It may run in another thread: a
        coroutine or a thread of the job can put the message back, too.
        """
        job = self.thread.job
        if job is not None and job.uuid == uuid:
            return job
        return self.jobs.get(uuid)

    def _confirm(self, broker: Broker, message: Message[Any], sender: str) -> bool:
        """Write that the broker has accepted a message. Return whether it worked."""
        uuid, word, batch = message.message_id, word_of(message), batch_of(message)
        return self._ask(broker, _confirm, uuid, word, batch, sender) is not None

    def _ask(self, broker: Broker, change: Callable[..., T], *args: object) -> T | None:
        """Apply a sender's change to the store. Return what it returns, or None if the
        store fails.

        Parameters:
          change: Is called with the records of the store, and with `args`.
        """
        try:
            found = change(records_of(self.store_for(broker)), *args)
        except LOST as e:
            self.note_outage(e)
            return None
        except ConnectionsInUse as e:
            self.note_crowd(e)
            return None
        except RedisError as e:
            # Only this job is affected: another program may have written its key.
            log.warning(
                "The store refused to note that a job is sent. Until the job starts, "
                "its state may be missing or read stalled: %s",
                e,
            )
            return None
        self.note_answer()
        return found

    def note_outage(self, error: RedisError) -> None:
        """Note that the store does not answer this process, and log the first error."""
        self._outage.begin()
        self._outage.complain(error)

    def note_crowd(self, error: ConnectionsInUse) -> None:
        """Note that no connection to the store became free, and log that."""
        self._outage.complain_of_crowd(error)

    def note_answer(self) -> None:
        """Note that it answers, and log that if an error was logged."""
        self._outage.end()
        if self._recorder is None or not self._recorder.is_troubled:
            self._outage.recover()

    # Running.

    def recorder_for(self, broker: Broker) -> Recorder:
        """Return the recorder of this process, creating it on first use."""
        # Later calls take no lock: a process may fork while it is held.
        if self._recorder is None:
            with self._lock:
                store = self.store_for(broker)
                self._recorder = self._recorder or Recorder(
                    store,
                    self.jobs,
                    interval=self._interval,
                    heartbeat=self.heartbeat_for(store),
                    outage=self._outage,
                )
        return self._recorder

    def heartbeat_for(self, store: JobStore) -> float:
        """Return the seconds between two signs of life of this process."""
        return self._heartbeat or usual_heartbeat(store)

    def begin(self, broker: Broker, job: CurrentJob) -> None:
        """Write that a run begins: every middleware has agreed to it. Note whether the
        store forbids it.
        """
        unsaved = job.unsaved
        assert unsaved is not None
        self.jobs[job.uuid] = job
        unsaved.begin()
        self.recorder_for(broker).begin(unsaved)
        job.is_forbidden = unsaved.run.cancel_requested or unsaved.is_fenced

    def stop(self) -> None:
        """Have the recorder write what is left, within a few seconds."""
        if self._recorder is not None:
            self._recorder.stop()

    # Ends.

    def end(
        self, broker: Broker, job: CurrentJob, *, acknowledged: bool = True
    ) -> None:
        """Write how a job ended, unless that is done. Called when its message is
        settled.

        Parameters:
          acknowledged: Whether the message was acknowledged rather than rejected.
        """
        if job.is_over or (job.tracked is None and not is_hook(job.message)):
            return
        job.is_over = True
        if job.tracked is None:
            end, _ = job.verdict(acknowledged)
            self.hooks.end(broker, job.message, end)
            return
        if self.jobs.get(job.uuid) is job:
            del self.jobs[job.uuid]
        message, unsaved = job.message, job.unsaved
        end, has_run = job.verdict(acknowledged)
        if unsaved is None:
            info = job.tracked.info_of(message, job.attempts)
            self.drop(broker, message, info, end)
            return
        if not has_run:
            info = unsaved.info._replace(attempt=job.attempts, worker=None)
            self.drop(broker, message, info, end)
            return
        unsaved.is_answered = not job.was_called
        self._write_end(broker, unsaved, end)
        journal = unsaved.run.journal
        if journal is not None and journal.failures:
            log.warning(
                "%d of the records that job %s logged could not be formatted: they are "
                "missing from its log.",
                journal.failures,
                job.uuid,
            )
        if (unsaved.lost or unsaved.is_fenced) and not unsaved.is_cancelled:
            # Another run decides about the later steps.
            return
        if end.status in ("error", "cancelled"):
            self._drop_steps_after(broker, message)
        elif end.status == "success" and not job.is_next_sent:
            # Dramatiq only logs what the broker raised.
            self._drop_steps_after(broker, message, UNSENT)

    def drop(
        self, broker: Broker, message: MessageProxy, info: JobInfo, end: End
    ) -> None:
        """Write how a job ended when its message was stopped before a run began."""
        unsaved = Unsaved(message.message_id, Run(), info, dropped=True)
        self._write_end(broker, unsaved, end)
        if not unsaved.lost and end.status != "retrying":
            self._drop_steps_after(broker, message)

    def write_unsent(self, broker: Broker, job: NewJob) -> None:
        """Write that a job could not be sent, as soon as the store answers. A worker
        tells its hooks: this process may not be one.
        """
        unsaved = Unsaved(job.uuid, Run(), job.info, dropped=True)
        self.recorder_for(broker).end(unsaved, UNSENT)

    def _write_end(self, broker: Broker, unsaved: Unsaved, end: End) -> None:
        """Write how a job ended, and tell its hooks once that is stored."""
        is_stored = self.recorder_for(broker).end(unsaved, end)
        if is_stored and unsaved.info.hooks is not None and end.status != "retrying":
            self.hooks.tell(broker, unsaved.uuid)

    def _drop_steps_after(
        self,
        broker: Broker,
        message: MessageProxy | Message[Any],
        end: End = UNREACHED,
    ) -> None:
        """Write `end` for the next step of a message's pipeline, and UNREACHED for the
        steps after that.
        """
        for step in steps_after(message):
            function = self.functions.find(step)
            if function is not None:
                info = function.info_of(step)
                unsaved = Unsaved(step.message_id, Run(), info, dropped=True)
                self._write_end(broker, unsaved, end)
            end = UNREACHED


def ledger_of(broker: Broker) -> Ledger:
    """Return the ledger of a broker's JobStateMiddleware.

    Raises:
      TypeError: The broker does not have one.
    """
    for middleware in broker.middleware:
        ledger = getattr(middleware, "_ledger", None)
        if isinstance(ledger, Ledger):
            return ledger
    raise TypeError(
        f"The broker {broker!r} has no JobStateMiddleware. Add one before the actors "
        "are declared: broker.add_middleware(JobStateMiddleware())."
    )


def global_broker() -> Broker | None:
    """Return Dramatiq's global broker, or None: get_broker() would create one."""
    broker: Broker | None = dramatiq.broker.global_broker
    return broker


def usual_heartbeat(store: JobStore) -> float:
    """Return after how many seconds without an update a running job is confirmed: 5, or
    less if the job would otherwise read stalled, or its record expire.
    """
    return min(5.0, store.stalled_after / 3, store.active_expire_in / 3)


def _create(records: Records, job: NewJob) -> bool | None:
    """Write that a job is queued. Return whether this call has queued it, or None if
    nothing is written of it.
    """
    batch = job.info.batch
    is_stopped = batch is not None and records.is_stopped(batch)
    # A unique job that has no record, or not any more, gets one at its start, which
    # takes its claim first. What became of a member of a cancelled batch is known to
    # its batch alone.
    is_left = job.info.unique is not None or is_stopped
    if is_left and not records.reader.exists(job.uuid):
        return None
    # A member that has ended stays as it is, too.
    (reply,) = records.create_new(job) if is_stopped else records.create(job)
    return reply is True


def _confirm(
    records: Records, uuid: str, word: str | None, batch: str | None, sender: str
) -> bool:
    records.confirm(uuid, word, batch, sender)
    return True
