"""Writes jobs as they are sent, run, end, are cancelled, deleted and run again."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError

from ..errors import NotRepeatable, NotUnique
from ..job import BATCH, NOT_SENT, JobInfo, NewJob, Record, Update
from .arguments import checked_namespace, client_of, positive
from .batches import Change, Members, changes_of, delayed
from .bulk import Acted
from .claims import UNASKED, Claims, Hold
from .connection import LOST, Client, text
from .lists import OUTLINE, Counter, Index, ListAccess
from .reader import MAX_SCORE, Reader, checked, skipped
from .scripts import Call, Calls, Reply, millis, read_scripts, run_scripts, worst
from .sweeping import Sweep


class JobWrites:
    """The part of a JobStore that writes jobs that are sent. See there for the
    parameters.
    """

    def __init__(
        self,
        client: Client | str,
        *,
        namespace: str = "jobstate",
        expire_in: float = 24 * 3600,
        active_expire_in: float = 8 * 24 * 3600,
        stalled_after: float = 15,
    ) -> None:
        self.client = client_of(client)
        self.namespace = checked_namespace(namespace)
        self.expire_in = positive("expire_in", expire_in)
        self.active_expire_in = positive("active_expire_in", active_expire_in)
        self.stalled_after = positive("stalled_after", stalled_after)
        silence = millis(stalled_after)
        scripts = read_scripts()
        ttls = {"active_ttl": millis(active_expire_in), "ended_ttl": millis(expire_in)}
        self._calls = Calls(scripts, namespace, silence=silence, **ttls)
        self._reader = Reader(self.client, self._calls.key, silence)
        self._index = Index(scripts, namespace, **ttls)
        self._access = ListAccess(self._reader, self._index, self._run)
        self._counter = Counter(self.client, self._access)
        #: Which unique jobs are under way.
        self.claims = Claims(self._calls, *self._access)
        #: What batches know of their members.
        self.batches = Members(
            self.client, scripts, self._calls, self._reader, self._index, silence
        )
        self._sweep = Sweep(
            self.client,
            self._access,
            key=f"{namespace}:swept",
            ttl=2 * sum(ttls.values()),
        )

    def create(self, *jobs: NewJob) -> Sequence[bool]:
        """Write new jobs as queued, in two round trips. Jobs that have ended are queued
        again, in up to two more. A later step of a pipeline is queued when its turn has
        come. The records of other unfinished jobs and of cancelled ones stay unchanged.

        Returns:
          For each job, whether this call queued it or made it wait for its turn.
        """
        replies = self.create_new(*jobs)
        ended = [
            (job, reply)
            for job, reply in zip(jobs, replies, strict=True)
            if isinstance(reply, str)
        ]
        requeued = iter(self.queue_again(ended))
        return [next(requeued) if isinstance(r, str) else r for r in replies]

    def create_new(
        self, *jobs: NewJob, tells: bool = True, marks: bool = False
    ) -> Sequence[bool | str]:
        """Write new jobs as :meth:`create` does, but leave ended jobs alone.

        Parameters:
          tells: Whether to tell batches of their members.
          marks: Whether unique jobs take their claims later.

        Returns:
          As :meth:`create`, or for an ended job the token for :meth:`queue_again`.
        """
        # First, so that no death leaves a record that nobody finds.
        marked = [*self.claims.mark(*jobs)] if marks else []
        replies = self._run([*marked, *map(self._calls.create, jobs)])
        found, changes = changes_of(
            [(job.uuid, job.info) for job in jobs], replies[len(marked) :]
        )
        created = [
            text(reply) if isinstance(reply, (str, bytes)) else bool(reply)
            for reply in found
        ]
        if tells:
            self.batches.tell_all(delayed(changes, jobs))
        self._list_queued(jobs, [reply is True for reply in created])
        return created

    def queue_again(self, ended: Sequence[tuple[NewJob, str]]) -> Sequence[bool]:
        """Write ended jobs as queued again, unless they have changed since
        :meth:`create_new` returned their tokens, or are unique and another job is under
        way.

        Returns:
          For each job, whether it was queued again.
        """
        # The token makes a repeated or late call harmless.
        with contextlib.ExitStack() as stack:
            holds = [
                stack.enter_context(self.claims.held(job.uuid, job.info, job.delay))
                for job, _ in ended
            ]
            replies, changes = self._run_for(
                [(job.uuid, job.info) for job, _ in ended],
                (
                    self._calls.queue_again(job, token, hold.deadline)
                    for (job, token), hold in zip(ended, holds, strict=True)
                ),
            )
        is_queued = [bool(reply) for reply in replies]
        jobs = [job for job, _ in ended]
        self.batches.tell_all(delayed(changes, jobs))
        self._list_queued(jobs, is_queued, again=True)
        return is_queued

    def _list_queued(
        self, jobs: Sequence[NewJob], is_queued: Sequence[bool], *, again: bool = False
    ) -> None:
        self._list(
            call
            for job, is_new in zip(jobs, is_queued, strict=True)
            if is_new
            for call in self._index.queue(job, again=again)
        )

    def forget(self, *jobs: NewJob) -> None:
        """Delete the records that :meth:`create` wrote for jobs that were not sent
        after all. Records of other senders stay.
        """
        forgotten = self._run(self._calls.forget(job) for job in jobs)
        listed = [
            call
            for job, is_gone in zip(jobs, forgotten, strict=True)
            if is_gone
            for call in self._index.forget(job)
        ]
        self._run([*listed, *self.claims.unmark(*jobs)])

    def confirm(
        self, uuid: str, kind: str, word: str | None = None, batch: str | None = None
    ) -> None:
        """Write that the broker has accepted the message of a job.

        Parameters:
          uuid, kind: The job.
          word: The word that its message bears if it runs the job again, or None.
          batch: The uuid of its batch, or None.
        """
        info = JobInfo(kind, "", 0, None, "{}", word, batch=batch)
        call, listed = self._calls.confirm(uuid, info), self._index.confirm
        if word is None and batch is None:
            self._run([call, *listed(uuid, kind)])
        else:
            replies, changes = self._run_for([(uuid, info)], [call])
            self.batches.tell_all(changes)
            if replies == [1]:
                # Else the job waits for the message of a later request.
                self._run(listed(uuid, kind))
        self._sweep.note()

    def confirm_members(self, jobs: Sequence[NewJob]) -> None:
        """Write that the broker has accepted the messages of members of a batch."""
        calls = [self._calls.confirm(job.uuid, job.info) for job in jobs]
        replies = run_scripts(self.client, calls) if calls else []
        _, changes = changes_of([(job.uuid, job.info) for job in jobs], replies)
        listed = [
            call
            for job, reply in zip(jobs, replies, strict=True)
            if not isinstance(reply, Exception)
            for call in self._index.confirm(job.uuid, job.info.kind)
        ]
        self.batches.tell_all(changes)
        if listed:
            # What is wrong with one job does not concern the others.
            run_scripts(self.client, listed)
        self._sweep.note()

    def _run_for(
        self, jobs: Sequence[tuple[str, JobInfo]], calls: Iterable[Call]
    ) -> tuple[list[Any], list[Change]]:
        """Run a call for each of some jobs. Return the replies, and the changes of
        which to tell batches.
        """
        return changes_of(jobs, self._run(calls))

    def _run(self, calls: Iterable[Call]) -> Sequence[Any]:
        """Run calls and return their replies: see :func:`.checked`."""
        calls = list(calls)
        return checked(calls, run_scripts(self.client, calls) if calls else [])

    def _list(self, calls: Iterable[Call]) -> None:
        """Run calls that list jobs."""
        calls = list(calls)
        if calls:
            self._sweep.begin()
            self._run(calls)


class JobUpdates(JobWrites):
    """The part of a JobStore that writes updates of runs."""

    def write(self, updates: Sequence[Update]) -> Sequence[Reply | Exception]:
        """Write updates of runs in one round trip, or in two if the lists change too. A
        unique job whose message comes again takes a few more.

        Returns:
          The reply to each update, or the exception if it failed.
        """
        firsts, results, changes = self._change(updates)
        if Reply.UNCLAIMED in results:
            self._reopen(updates, firsts, results)
        # Most updates leave the lists as they are.
        moved = [
            i
            for i, update in enumerate(updates)
            if update.begins or update.renews or update.end is not None
        ]
        listed = [
            (i, call)
            for i in moved
            for call in self._index.update(
                updates[i], results[i], reopened=firsts[i] == Reply.REOPENED
            )
        ]
        listed += [
            (i, call)
            for i, change in changes.items()
            if results[i] is Reply.CANCELLED and change.status == "cancelled"
            for call in self._index.end(change.uuid, updates[i].info, "cancelled")
        ]
        claimed = [
            (i, call)
            for i in moved
            for call in self.claims.renew(updates[i], results[i])
        ]
        if listed:
            self._sweep.begin()
            self._sweep.note()
        told = list(changes.values())
        more = [call for _, call in (*listed, *claimed)]
        calls = [*more, *map(self.batches.tell, told)]
        # A job must not suffer from what is wrong with its lists or its batch.
        replies = skipped(calls, run_scripts(self.client, calls))
        for (i, _), reply in zip(listed, replies, strict=False):
            if isinstance(reply, Exception):
                results[i] = reply
        for (i, _), reply in zip(claimed, replies[len(listed) :], strict=False):
            self.claims.retake(updates[i], reply)
        if changes:
            self._hear(updates, results, changes, replies[len(more) :])
        return results

    def _change(
        self, updates: Sequence[Update], hold: Hold = UNASKED
    ) -> tuple[list[Any], list[Reply | Exception], dict[int, Change]]:
        """Write updates to the records of their jobs. Return for each the reply to its
        first call, and the reply to the update; and the changes of which to tell
        batches, by the places of the updates.

        Parameters:
          hold: Whether unique jobs may run again that have ended.
        """
        calls: list[Call] = []
        places: list[tuple[int, int]] = []
        members = [i for i, u in enumerate(updates) if u.info.batch is not None]
        stopped = self._stopped([updates[i] for i in members])
        for update in updates:
            first = len(calls)
            if update.begins:
                deadline = "" if update.info.unique is None else hold.deadline
                is_stopped = update.info.batch in stopped
                call = self._calls.start(update, deadline, is_stopped=is_stopped)
                calls.append(call)
            if update.reports:
                calls.append(self._calls.report(update))
            places.append((first, len(calls) - 1))
        replies = run_scripts(self.client, calls)
        changes: dict[int, Change] = {}
        for i in members:
            update, (first, last) = updates[i], places[i]
            jobs = [(update.uuid, update.info)] * (last - first + 1)
            plain, found = changes_of(jobs, replies[first : last + 1])
            replies[first : last + 1] = plain
            if found and (update.tells or update.begins or update.end):
                changes[i] = _with_details(found[-1], update, plain[-1])
        results = [worst(replies[first], replies[last]) for first, last in places]
        return [replies[first] for first, _ in places], results, changes

    def _stopped(self, updates: Sequence[Update]) -> set[str]:
        """Return the cancelled ones among the batches of members that begin. One that
        has ended stays as it is if its message comes again.
        """
        begun = [update.info.batch for update in updates if update.begins]
        if not begun:
            return set()
        batches = [batch for batch in dict.fromkeys(begun) if batch is not None]
        # Else the batch says so in its reply.
        with contextlib.suppress(RedisError):
            found = self._reader.read_stops(batches)
            return {batch for batch, (stopped, _) in found.items() if stopped}
        return set()

    def _hear(
        self,
        updates: Sequence[Update],
        results: list[Reply | Exception],
        changes: Mapping[int, Change],
        replies: Sequence[Any],
    ) -> None:
        """Take the replies of batches that were told of changes: a run whose batch was
        cancelled has to stop.

        Parameters:
          updates, results: The updates, and the reply to each.
          changes: The changes, by the places of the updates.
        """
        heard: dict[int, tuple[Change, Any]] = {}
        for (i, change), reply in zip(changes.items(), replies, strict=True):
            if isinstance(reply, Exception):
                results[i] = reply
            elif reply is not None:
                heard[i] = change, reply
        answers = self.batches.settle(
            [change for change, _ in heard.values()],
            [reply for _, reply in heard.values()],
        )
        for i, answer in zip(heard, answers, strict=True):
            if answer.is_stopped and not updates[i].end and results[i] is Reply.OK:
                results[i] = Reply.CANCELLING

    def _reopen(
        self,
        updates: Sequence[Update],
        firsts: list[Any],
        results: list[Reply | Exception],
    ) -> None:
        """Write the updates that need a claim, and put the replies in place.

        Parameters:
          updates, firsts, results: Updates, and what :meth:`_change` has returned.
        """
        away: RedisError | None = None
        for i, update in enumerate(updates):
            if results[i] is not Reply.UNCLAIMED:
                continue
            try:
                if away is not None:
                    raise away
                with self.claims.held(update.uuid, update.info) as hold:
                    if hold.other is None:
                        ((firsts[i],), (results[i],), _) = self._change([update], hold)
                    else:
                        results[i] = Reply.HELD
            except RedisError as e:
                results[i] = e
                if isinstance(e, LOST):
                    # Do not wait for the server once more for each job.
                    away = e

    def cancels(self, since: int) -> tuple[set[str], int]:
        """Return the uuids of the running jobs whose cancellation was requested after
        `since`, at most a minute ago, and the value for `since` at the next call.
        Times are in microseconds of the server's clock.
        """
        words = (self._index.cancels_key, f"({since}", MAX_SCORE, "WITHSCORES")
        found = self._reader.scores("ZRANGEBYSCORE", *words)
        return {uuid for uuid, _ in found}, max([since, *(time for _, time in found)])


def _with_details(change: Change, update: Update, reply: Any) -> Change:
    """Return a change of a member with what only its update tells.

    Parameters:
      reply: The reply to the update.
    """
    if reply not in (Reply.OK, Reply.CANCELLING, Reply.REOPENED):
        # It is the change of another run.
        return change
    end = update.end
    if end is None:
        return change._replace(millionths=update.millionths)
    return change._replace(
        delay=millis(end.delay or 0),
        is_unsent=change.status == "error" and end.error == NOT_SENT,
    )


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
