"""Messages, pipelines and groups to be sent, and the records of their jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from dramatiq import Message
from redis.exceptions import RedisError

from ..errors import ActorError
from ..job import NOT_REACHED, NOT_SENT, End, NewJob, Update, set_store
from ..store import JobStore, refusal
from .finding import middleware_of
from .preparing import Prepared


class Outgoing(Prepared):
    """A message, pipeline or group to be sent, and the records of its jobs.

    The parameters are those of :class:`.Prepared`.

    Attributes:
      unsent: The ids of the messages that the broker has not accepted.
      store: The store to which :meth:`record` has written the jobs.
    """

    store: JobStore

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Looked up last: the error for an unknown actor would be misleading.
        self._middleware = middleware_of(self.broker)
        #: The jobs that had ended before, and the tokens with which to requeue them.
        self._ended: dict[str, tuple[NewJob, str]] = {}
        self.unsent = {job.uuid for job in self.jobs}

    def check(self, store: JobStore) -> None:
        """Check that the worker writes the jobs to `store`. Warn if it may not.

        Raises:
          ActorError: It certainly writes elsewhere.
        """
        if self.messages:
            name = self.messages[0].actor_name
            written = self._middleware.store_for(self.broker)
            error = refusal(store, written, f"the broker of the actor {name!r}")
            if error is not None:
                raise ActorError(error)

    def record(self, store: JobStore) -> None:
        """Write that the jobs are queued. Jobs that had ended before keep that state
        until their messages are sent.
        """
        self.note(store, store.records.create_new(*self.jobs, marks=True))

    def note(self, store: JobStore, replies: Sequence[bool | str]) -> None:
        """Note that the jobs are written: see :meth:`.Records.create_new`."""
        self.store = store
        self._ended = {
            job.uuid: (job, reply)
            for job, reply in zip(self.jobs, replies, strict=True)
            if isinstance(reply, str)
        }
        for job_state in self.job_states:
            set_store(job_state, store.records)

    def forget(self, store: JobStore) -> None:
        """Undo :meth:`record` for the jobs that were not sent."""
        store.records.forget(*self.to_forget())

    def to_forget(self) -> list[NewJob]:
        """Return the jobs whose records tell nothing if they are not sent."""
        return [job for job in self.left() if job.uuid not in self._ended]

    def withdraw(self) -> None:
        """Note that nothing is sent: the transaction is aborted."""
        if self.unique is not None:
            self.unique.withdraw()

    def send(self, *, confirms: bool = True) -> None:
        """Hand the messages to the broker. Call :meth:`record` before.

        Parameters:
          confirms: Whether to write that the broker has accepted each message.

        Raises:
          NotClaimed: The store does not say whether another job with the identity of a
            unique one is under way.
          Exception: The broker did not accept them.
        """
        if self.unique is not None and not self.unique.take(self.store, self.jobs[0]):
            return
        if self._ended:
            # The messages are sent even if this fails.
            with contextlib.suppress(RedisError):
                self.store.records.queue_again([*self._ended.values()])
        with self._middleware.announced(self.unsent, confirms=confirms):
            if isinstance(self.what, Message):
                self.broker.enqueue(self.what, delay=self.delay)
            else:
                self.what.run(delay=self.delay)

    def fail(self, store: JobStore) -> None:
        """Write the failure of the jobs that the broker did not accept: all of them, or
        some parts of a group.
        """
        store.records.write([failure_to_send(job) for job in self.left()])

    def fail_soon(self) -> None:
        """Write that a unique job was not sent, as soon as the store answers."""
        (job,) = self.jobs
        self._middleware.drop(self.broker, job.uuid, job.info, End("error", NOT_SENT))

    def left(self) -> list[NewJob]:
        """Return the jobs that the broker has not accepted. The later steps of a
        pipeline count like its first.
        """
        left = []
        is_left = False
        for job in self.jobs:
            if not job.waits:
                is_left = job.uuid in self.unsent
            if is_left:
                left.append(job)
        return left


def failure_to_send(job: NewJob) -> Update:
    """Return the update of a job whose message the broker has not accepted."""
    end = End("cancelled", NOT_REACHED) if job.waits else End("error", NOT_SENT)
    return Update(job.uuid, "", 0, job.info, end=end, dropped=True, sender=job.sender)
