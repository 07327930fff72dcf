"""Cancels jobs in Redis, deletes them, and queues them to run again."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError

from ..errors import NotRepeatable, NotUnique
from ..job import BATCH, JobInfo, Record
from .bulk import Acted
from .connection import LOST, text
from .filters import OUTLINE
from .scripts import Call, run_scripts
from .told import changes_of
from .trouble import checked
from .updates import JobUpdates

#: The replies to a call that did something.
DONE = (1, 2)


class JobActs(JobUpdates):
    """The part of a JobStore that acts on jobs for users."""

    def cancel(self, uuid: str, info: JobInfo, *, may_follow: bool = True) -> bool:
        """Request cancellation of a job, or of the one to which an alias leads. Return
        False if it had already ended.

        Parameters:
          may_follow: Whether to cancel the job to which an alias leads. If not, nothing
            is done to an alias, and False is returned.
        """
        # The client may repeat the call if a reply is lost: the word identifies it.
        call = self._cancel(uuid, info, secrets.token_hex(4))
        (done,), changes = self._run_for([(uuid, info)], [call])
        if isinstance(done, (str, bytes)):
            if not may_follow:
                return False
            (record,) = self._reader.read([text(done)])
            return record is not None and self.cancel(record.uuid, record.info)
        # Losing these calls does no harm: lists move entries that they find elsewhere,
        # the reply to a heartbeat tells the worker, and a batch looks at its members.
        with contextlib.suppress(RedisError):
            self.batches.tell_all(changes)
        with contextlib.suppress(RedisError):
            self._run(self._cancelled(uuid, info, done))
        self._counter.fresh.forget()
        if done == 2 and info.is_member:
            # With its batch, it was cancelled before.
            with contextlib.suppress(RedisError):
                return not self.is_stopped(info.batch or "")
        return bool(done)

    def _cancel(self, uuid: str, info: JobInfo, word: str) -> Call:
        """Return the call that cancels a job or a batch."""
        if info.batch == BATCH:
            return self.batches.stop(uuid, word)
        return self._calls.cancel(uuid, info, word)

    def _cancelled(self, uuid: str, info: JobInfo, reply: int) -> Iterable[Call]:
        """Return the calls that list a job after a request to cancel it."""
        if reply == 2:
            return self._index.end(uuid, info, self._status_of(uuid, info))
        return self._index.announce(uuid, info.kind) if reply else ()

    def _status_of(self, uuid: str, info: JobInfo) -> str:
        """Return the status of a cancelled job. A batch of which jobs had failed has
        failed.
        """
        if info.batch != BATCH:
            return "cancelled"
        (record,) = self._reader.read([uuid], "status")
        return "cancelled" if record is None else record.stored_status

    def requeue(self, record: Record) -> str | None:
        """Queue a job that failed, which is about to be sent again. It keeps its time
        of queueing, its owner and its tries.

        Returns:
          A word that its message has to bear, or None if the job does not wait to run
          again: it has not failed, somebody else is sending it, or its message is not
          kept.

        Raises:
          NotUnique: Another job with its unique key is under way.
          NotRepeatable: This process has stood still while it held the key.
        """
        uuid, word = record.uuid, secrets.token_hex(6)
        with self.claims.held(uuid, record.info) as hold:
            if hold.other is not None:
                raise NotUnique(hold.other)
            call = self._calls.requeue(uuid, record.info, word, hold.deadline)
            (done,), changes = self._run_for([(uuid, record.info)], [call])
        if not done:
            return None
        if done < 0:
            raise NotRepeatable("Its unique key could not be held for long enough.")
        self.batches.tell_all(changes)
        self._list(self._index.requeue(record.uuid, record.info))
        self._counter.fresh.forget()
        return word

    def was_overtaken(self, uuid: str, word: str) -> bool:
        """Return whether a later :meth:`requeue` has taken the process for dead that
        was about to send the message with a word.
        """
        fields = self._reader.fields(self._calls.failure_key(uuid), ("lost",))
        return word in fields.get("lost", "").split()

    def restore(self, record: Record, word: str) -> bool:
        """Put back the failure of a job that :meth:`requeue` has queued: the broker did
        not accept its message.

        Returns:
          False if the job has changed since.
        """
        uuid, info = record.uuid, record.info
        call = self._calls.restore(uuid, info, word)
        (done,), changes = self._run_for([(uuid, info)], [call])
        self.batches.tell_all(changes)
        if done:
            self._run(self._index.end(uuid, info, "error"))
            self._counter.fresh.forget()
        return bool(done)

    def await_turn(self, steps: Sequence[tuple[str, JobInfo]]) -> bool:
        """Let the later steps of a pipeline, which were cancelled because their turn
        never came, wait for it again.

        Returns:
          False if one of them was deleted, and will never run.
        """
        calls = (self._calls.wait(uuid, info) for uuid, info in steps)
        replies, changes = self._run_for(steps, calls)
        self._list(
            call
            for (uuid, info), reply in zip(steps, replies, strict=True)
            if reply == 1
            for call in self._index.requeue(uuid, info, "waiting")
        )
        self.batches.tell_all(changes)
        return -1 not in replies

    def delete(self, uuid: str) -> bool:
        """Delete a job that has ended: it is unknown from now on, and does not run if
        its message comes again.

        Returns:
          Whether this call deleted it: False if it has not ended or is unknown.
        """
        (record,) = self._reader.read([uuid], *OUTLINE)
        record = record or self.claims.target_of(uuid)
        if record is None:
            return False
        if record.info.is_member and self.is_stopped(record.info.batch or ""):
            # It reads cancelled, and may not have heard of that.
            self.cancel(record.uuid, record.info)
        return bool([*self.delete_records([record])])

    def is_stopped(self, batch: str) -> bool:
        """Return whether a batch was cancelled."""
        ((stopped, _),) = self._reader.read_stops([batch]).values()
        return stopped is not None

    def delete_records(self, records: Sequence[Record]) -> Iterator[Acted]:
        """Delete ended jobs, and yield those that this call has deleted, or may have.

        Raises:
          redis.exceptions.RedisError: The server did not answer, at least for some.
        """
        # The client may repeat a call if its reply is lost: the word identifies it.
        word = secrets.token_hex(8)
        calls = [self._calls.delete(r.uuid, r.info, word) for r in records]
        # Losing what follows does no harm: lists drop entries without a record.
        return self._act(
            records, calls, lambda r, reply: self._index.delete(r.uuid, r.info)
        )

    def cancel_records(self, records: Sequence[Record]) -> Iterator[Acted]:
        """Request cancellation of jobs, and yield those that had not ended, or may not
        have.

        Raises:
          redis.exceptions.RedisError: The server did not answer, at least for some.
        """
        word = secrets.token_hex(4)
        calls = [self._cancel(record.uuid, record.info, word) for record in records]
        return self._act(
            records, calls, lambda r, reply: self._cancelled(r.uuid, r.info, reply)
        )

    def _act(
        self,
        records: Sequence[Record],
        calls: Sequence[Call],
        listed: Callable[[Record, int], Iterable[Call]],
    ) -> Iterator[Acted]:
        """Yield the jobs that calls act on, or may act on, and move them in the lists.

        Parameters:
          records, calls: The jobs, and the call for each.
          listed: Returns the calls that list a job after a reply.
        """
        replies, changes = changes_of(
            [(record.uuid, record.info) for record in records], self._attempt(calls)
        )
        yield from _acted(records, replies)
        with contextlib.suppress(RedisError):
            self.batches.tell_all(changes)
        with contextlib.suppress(RedisError):
            self._run(
                call
                for record, reply in zip(records, replies, strict=True)
                if reply in DONE
                for call in listed(record, reply)
            )
        self._counter.fresh.forget()
        checked(calls, replies)

    def _attempt(self, calls: Sequence[Call]) -> Sequence[Any]:
        """Run calls and return their replies, with the error in place of each that
        failed.
        """
        try:
            return run_scripts(self.client, calls) if calls else []
        except RedisError as e:
            return [e] * len(calls)


def _acted(records: Sequence[Record], replies: Sequence[Any]) -> Iterator[Acted]:
    """Yield the jobs of calls that did something, or may have."""
    for record, reply in zip(records, replies, strict=True):
        if reply in DONE:
            yield Acted(record.uuid, True)
        elif isinstance(reply, LOST):
            yield Acted(record.uuid, False)
