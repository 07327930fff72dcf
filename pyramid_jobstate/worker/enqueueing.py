"""Messages on their way to the broker: each gets its record before it leaves."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..job import MAX_DELAY, NewJob
from .access import StoreAccess
from .current import CurrentJob, ThreadState, Tracked
from .message import batch_of, word_of

if TYPE_CHECKING:
    from dramatiq import Broker, Message

    from ..store import Records


class Enqueueing:
    """Acts before and after the broker enqueues a message.

    Parameters:
      access: The access to the store.
      thread: The state of the calling thread.
      jobs: The jobs that this process runs, by message id.
    """

    def __init__(
        self, access: StoreAccess, thread: ThreadState, jobs: Mapping[str, CurrentJob]
    ) -> None:
        self._access = access
        self._thread = thread
        self._jobs = jobs

    def before(
        self,
        broker: Broker,
        message: Message[Any],
        delay: int | None,
        tracked: Tracked,
    ) -> None:
        """Write that a job is queued, unless its record was announced, its message is
        being put back, or its batch was cancelled and it has ended or is unknown.

        Parameters:
          delay: Milliseconds until the message is due, or None.
          tracked: The actor's function.
        """
        uuid = message.message_id
        job = self._running_job(uuid)
        if job is not None:
            self._thread.returning[uuid] = job
            return
        if uuid in self._thread.announced:
            return
        try:
            message.encode()
        except Exception:
            # The broker will raise the same error: no job is sent.
            return
        info = tracked.info_of(message)
        # Dramatiq accepts any delay.
        seconds = min(MAX_DELAY, max(0, delay or 0)) / 1000
        new = NewJob(uuid, info, seconds, sender=secrets.token_hex(6))
        created: list[bool] = []

        def create(records: Records) -> None:
            batch = info.batch
            is_stopped = batch is not None and records.is_stopped(batch)
            # A unique job that has no record, or not any more, gets one at its start,
            # which takes its claim first. What became of a member of a cancelled batch
            # is known to its batch alone.
            is_left = info.unique is not None or is_stopped
            if is_left and not records.has_record(uuid):
                return
            # A member that has ended stays as it is, too.
            replies = records.create_new(new) if is_stopped else records.create(new)
            created.extend(reply is True for reply in replies)

        if self._access.may_ask() and self._access.ask(broker, create) and created:
            # Even for an existing record: a RabbitmqBroker calls this at every attempt.
            self._thread.sending.append(uuid)
            if created == [False]:
                self._thread.resent.append(uuid)

    def after(
        self,
        broker: Broker,
        message: Message[Any],
        delay: int | None,
    ) -> None:
        """Write that the broker has accepted the message of a job."""
        word, batch = word_of(message), batch_of(message)
        uuid, thread = message.message_id, self._thread
        if thread.job is not None and thread.job.is_followed_by(uuid):
            thread.job.is_next_sent = True
        if uuid in thread.resent:
            # A middleware before this one may have put it back, unseen by this one.
            thread.resent.remove(uuid)
            thread.returned.append((uuid, time.monotonic() + (delay or 0) / 1000))
        job = thread.returning.pop(uuid, None)
        if job is not None:
            job.put_back(delay or 0)
        elif uuid in thread.sending:
            thread.sending.remove(uuid)
            self._access.ask(broker, lambda records: records.confirm(uuid, word, batch))
        elif uuid in thread.announced:
            thread.announced.remove(uuid)
            # The messages of a transaction must not each wait for a failing store.
            if thread.confirms:
                thread.confirms = self._access.ask(
                    broker, lambda records: records.confirm(uuid, word, batch)
                )

    @contextlib.contextmanager
    def announced(self, message_ids: set[str], *, confirms: bool) -> Iterator[None]:
        """Implement :meth:`JobStateMiddleware.announced`."""
        thread = self._thread
        before = thread.announced, thread.confirms
        thread.announced, thread.confirms = message_ids, confirms
        try:
            yield
        finally:
            thread.announced, thread.confirms = before

    def _running_job(self, uuid: str) -> CurrentJob | None:
        """Return the running job of a message, or None. It may run in another thread: a
        coroutine or a thread of the job can put the message back, too.
        """
        job = self._thread.job
        if job is not None and job.uuid == uuid:
            return job
        return self._jobs.get(uuid)
