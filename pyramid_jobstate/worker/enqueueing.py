"""Messages on their way to the broker: each has its record before it leaves."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..job import NewJob
from .access import StoreAccess
from .current import CurrentJob, ThreadState, Tracked

if TYPE_CHECKING:
    from dramatiq import Broker, Message


class Enqueueing:
    """What happens before and after the broker enqueues a message.

    Parameters:
      access: How this process reaches the store.
      thread: What this thread is at work on.
      jobs: The jobs that this process runs, by the ids of their messages.
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
        """Write that a job is queued, unless its record is made or its message is put
        back.
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
            # The broker is about to raise the same: no job is sent.
            return
        info, seconds = tracked.info_of(message), (delay or 0) / 1000
        new = NewJob(uuid, info, seconds, sender=secrets.token_hex(6))
        created: list[bool] = []
        if self._access.may_ask() and self._access.ask(
            broker, lambda store: created.extend(store.create(new))
        ):
            # Also if there is a record: a RabbitmqBroker comes here once for each try.
            self._thread.sending.append(uuid)
            if created == [False]:
                self._thread.resent.append(uuid)

    def after(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Write that the broker has taken the message of a job."""
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
            self._access.ask(broker, lambda store: store.confirm(uuid))
        elif uuid in thread.announced:
            thread.announced.remove(uuid)
            # A hundred messages of a transaction do not wait for a store each.
            if thread.confirms:
                thread.confirms = self._access.ask(
                    broker, lambda store: store.confirm(uuid)
                )

    @contextlib.contextmanager
    def announced(self, message_ids: set[str]) -> Iterator[None]:
        """Do what :meth:`JobStateMiddleware.announced` says."""
        thread = self._thread
        before = thread.announced, thread.confirms
        thread.announced, thread.confirms = message_ids, True
        try:
            yield
        finally:
            thread.announced, thread.confirms = before

    def _running_job(self, uuid: str) -> CurrentJob | None:
        """Return the job of a message that this process runs: this thread, or another,
        for a coroutine or a job's own threads may put its message back.
        """
        job = self._thread.job
        if job is not None and job.uuid == uuid:
            return job
        return self._jobs.get(uuid)
