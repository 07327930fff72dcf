"""Writes jobs as they are sent, run, end, are cancelled, deleted and run again."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from redis import Redis, RedisCluster
from redis.exceptions import RedisError

from ..errors import NotRepeatable, NotUnique, StoreUnavailable
from ..job.hooks import current_hook
from ..job.record import RUNNING, JobInfo, NewJob, Record, Update
from ..job.state import JobState, class_of, job_state_of, note_trouble
from .batches import Batches, Change, answered, changes_of
from .bulk import Acted
from .claims import UNASKED, Claims, Hold
from .connection import LOST, Client, ConnectionsInUse, impatient, text
from .durations import Usual
from .ends import Ends
from .lists import MAX_READ, OUTLINE, Counter, ListAccess, Sets, newest_uuids
from .reader import (
    FIELDS,
    MAX_SCORE,
    Alias,
    Failures,
    LogLine,
    Reader,
    checked,
    log_lines,
    read_failures,
    skipped,
)
from .scripts import (
    Call,
    Calls,
    Lives,
    Reply,
    Runner,
    has_tag,
    read_scripts,
    run_scripts,
    worst,
)
from .whereabouts import PREFIX, WHERE_FIELDS, Whereabouts, read_where
from .workers import Workers

#: The replies to a call that cancels or deletes a job, and the one after which it stays
#: among the unfinished ones.
DONE, STAYS = (1, 2), 1

T = TypeVar("T")


class Records:
    """What senders and workers write of jobs, and what they read of records: their
    protocol with the store.

    Parameters:
      client: The server.
      namespace: The prefix of each key.
      lives: How long the jobs are kept.

    Attributes:
      reader: Reads records.
      access: The access to the lists.
      counter: Counts jobs.
      claims: Which unique jobs are under way.
      batches: The batches, and what they know of their members.
      ends: The ends that are to be told to hooks.
      workers: The worker processes.
    """

    def __init__(self, client: Client, namespace: str, lives: Lives) -> None:
        self._client = client
        is_tagged = has_tag(namespace)
        is_spread = isinstance(client, RedisCluster) and not is_tagged
        scripts = read_scripts(lives, is_tagged=is_tagged, is_spread=is_spread)
        self._calls = Calls(scripts, namespace, is_spread=is_spread)
        self._runner = Runner(client, self._calls)
        self._run = self._runner.run
        self.reader = Reader(client, self._calls.key, lives.silence)
        sets = Sets(namespace, lives)
        self.access = ListAccess(client, self.reader, sets, self._calls, self._runner)
        self.counter = Counter(self.access)
        self.claims = Claims(self._calls, self.reader, lives, self._run)
        self.batches = Batches(self._runner, self._calls, self.reader, lives.silence)
        self.ends = Ends(self._run, self._calls, self.reader)
        self.workers = Workers(
            client, self._calls, self._runner, self.reader, lives.silence
        )
        self._silence = lives.silence
        #: What jobs call: see Store in job/state.py.
        self.tell_usual = Usual(self._aside).tell

    @contextlib.contextmanager
    def _aside(self) -> Iterator[ListAccess]:
        """Yield an access for a thread that no request waits for. Unless only the
        application knows how to connect, it has a connection of its own: a client may
        have no more than the requests need.
        """
        own = impatient(self._client) if isinstance(self._client, Redis) else None
        if own is None:
            yield self.access
            return
        reader = Reader(own, self._calls.key, self._silence)
        runner = Runner(own, self._calls)
        try:
            yield self.access._replace(client=own, reader=reader, runner=runner)
        finally:
            own.connection_pool.disconnect()

    def catch_up(self) -> None:
        """List the jobs on a Cluster that this process could not list."""
        while self._runner.catch_up():
            pass

    def now(self) -> int | None:
        """Return the server's time in milliseconds, as this process knows it from what
        it has read, or None if it has read nothing yet. Asks nothing of the server.
        """
        return self.reader.now() if self.reader.has_clock else None

    def job(self, record: Record) -> JobState:
        """Return the job of a record."""
        return job_state_of(record, self)

    def try_job(self, record: Record) -> JobState | None:
        """Return the job of a record, or None if its class raises, which is logged."""
        try:
            return self.job(record)
        except StoreUnavailable:
            raise
        except Exception:
            note_trouble(class_of(record), record.uuid)
            return None

    def record(self, uuid: str) -> Record | None:
        """Return the record of a job, whatever its class, or None if it is unknown."""
        found = self.reader.read_one(uuid)
        if isinstance(found, Record) and not found.batch:
            # Most jobs belong to no batch.
            return found
        (record,) = self.batches.read(self._follow([uuid], [found]))
        return record

    def records(self, uuids: Sequence[str]) -> Sequence[Record | None]:
        """Return the records of several jobs: see :meth:`.JobStore.load_many`."""
        return self._follow(uuids, self.reader.read_any(uuids))

    def some_records(self, uuids: Sequence[str]) -> Sequence[Record | None]:
        """Return the records of the first of several jobs: see
        :meth:`.Reader.read_some`.
        """
        found = self.reader.read_some(uuids)
        return self._follow(uuids[: len(found)], found)

    def _follow(
        self, uuids: Sequence[str], found: Sequence[Record | Alias | None]
    ) -> Sequence[Record | None]:
        """Return the records of several jobs. A batch that has not heard of its members
        for a while first looks at some of them.

        Parameters:
          found: What was read of the jobs.
        """
        records = self.claims.follow(found)
        if self.batches.look_at_silent(records):
            records = self.claims.follow(self.reader.read_any(uuids))
        return records

    def earlier_runs(self, uuid: str) -> Sequence[str]:
        """Return the tokens of the earlier runs of a job, which may write no more."""
        fields = self.reader.fields(self.reader.key(uuid), ("past",))
        return fields.get("past", "").split()

    def at_target(self, uuid: str, read: Callable[[str], T | None]) -> T | None:
        """Return what `read` returns of a uuid or, if that is None and the uuid is an
        alias, of the job to which it leads.
        """
        found = read(uuid)
        if found is None and (target := self.claims.target_of(uuid)) is not None:
            return read(target.uuid)
        return found

    def failures(self, uuid: str) -> Failures | None:
        """Return what :meth:`.JobStore.failures` does, or None if nothing is kept. Does
        not follow an alias, nor do the following methods.
        """
        key = self._calls.failure_key(uuid)
        found = read_failures(self.reader.fields(key, FIELDS))
        return None if found == Failures() else found

    def ask_where(self, uuid: str) -> bool:
        """Do what :meth:`.JobStore.ask_where` does."""
        return self._run([self._calls.ask_where(uuid)]) == [1]

    def answer_where(self, uuid: str, run: str, says: Mapping[str, str]) -> None:
        """Say where a job is, unless its run is over or nobody has asked.

        Parameters:
          run: The token of the run.
          says: The fields of the answer: see WHERE_FIELDS.
        """
        self._run([self._calls.answer_where(uuid, run, says)])

    def where(self, uuid: str) -> Whereabouts | None:
        """Do what :meth:`.JobStore.where` does."""
        return read_where(self.reader.fields(self._calls.where_key(uuid), WHERE_FIELDS))

    def log(self, uuid: str, after: int) -> Sequence[LogLine] | None:
        """Return what :meth:`.JobStore.log` does, or None if the job has no log."""
        key = self._calls.log_key(uuid)
        most, lines = 0, log_lines(self.reader.entries(key, -1, 1))
        if not lines:
            return None
        # The list may have grown since the last look. Numbers may be missing.
        while lines and most < lines[-1].number - after:
            most = lines[-1].number - after
            lines = log_lines(self.reader.entries(key, -most, most))
        return [line for line in lines if line.number > after]

    def running_members(self, batch: str, limit: int) -> list[str]:
        """Return the uuids of running members of a batch, in the order in which they
        were sent, in two round trips. Only the MAX_READ members of all batches that
        began last are examined.

        Parameters:
          limit: How many at most.
        """
        begun = newest_uuids(self.access, MAX_READ, RUNNING, lone=False)
        return self.batches.running(batch, begun)[:limit]

    def create(self, *jobs: NewJob) -> Sequence[bool]:
        """Write new jobs as queued, in a round trip. Jobs that have ended are queued
        again, in another. A later step of a pipeline is queued when its turn has
        come. The records of other unfinished jobs and of cancelled ones stay unchanged.

        Returns:
          For each job, whether this call queued it or made it wait for its turn.
        """
        replies = [*self.create_new(*jobs)]
        ended = [i for i, reply in enumerate(replies) if isinstance(reply, str)]
        again = self.queue_again([(jobs[i], str(replies[i])) for i in ended])
        for i, reply in zip(ended, again, strict=True):
            replies[i] = reply
        return [bool(reply) for reply in replies]

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
        calls = [self._calls.create(job, tells=tells) for job in jobs]
        if tells:
            replies = self._run([*marked, *calls])[len(marked) :]
        else:
            self._run(marked)
            replies, moves = self._runner.change_members("create", "", calls)
            self._runner.move(moves)
            replies = checked(calls, replies)
        found, changes = changes_of(calls, replies)
        created = [
            text(reply) if isinstance(reply, (str, bytes)) else bool(reply)
            for reply in found
        ]
        if tells:
            self.batches.tell_all(changes)
        return created

    def queue_again(self, ended: Sequence[tuple[NewJob, str]]) -> Sequence[bool]:
        """Write ended jobs as queued again, unless they have changed since
        :meth:`create_new` returned their tokens, or are unique and another job is under
        way.

        Returns:
          For each job, whether it was queued again.
        """
        if not ended:
            return []
        # The token makes a repeated or late call harmless.
        with contextlib.ExitStack() as stack:
            holds = [
                stack.enter_context(self.claims.held(job.uuid, job.info, job.delay))
                for job, _ in ended
            ]
            replies, changes = self._change_jobs(
                self._calls.queue_again(job, token, hold.deadline)
                for (job, token), hold in zip(ended, holds, strict=True)
            )
        self.batches.tell_all(changes)
        return [bool(reply) for reply in replies]

    def forget(self, *jobs: NewJob) -> None:
        """Delete the records that :meth:`create` wrote for jobs that were not sent
        after all. Records of other senders stay.
        """
        self._run(self._calls.forget(job) for job in jobs)
        self._run(self.claims.unmark(*jobs))

    def confirm(
        self,
        uuid: str,
        word: str | None = None,
        batch: str | None = None,
        sender: str = "",
    ) -> None:
        """Write that the broker has accepted the message of a job.

        Parameters:
          word: The word that its message bears if it runs the job again, or None.
          batch: The uuid of its batch, or None.
          sender: Who sends it: see :class:`.NewJob`.
        """
        call = self._calls.confirm(uuid, word, batch, sender)
        _, changes = self._change_jobs([call])
        self.batches.tell_all(changes)

    def confirm_members(self, jobs: Sequence[NewJob]) -> None:
        """Write that the broker has accepted the messages of members of a batch."""
        calls = [
            self._calls.confirm(job.uuid, job.info.rerun, job.info.batch, job.sender)
            for job in jobs
        ]
        # What is wrong with one job does not concern the others.
        batch = jobs[0].info.batch or "" if jobs else ""
        replies, moves = self._runner.change_members("confirm", batch, calls)
        _, changes = changes_of(calls, replies)
        self.batches.tell_all(changes)
        self._runner.move(moves)

    def _change_jobs(self, calls: Iterable[Call]) -> tuple[list[Any], list[Change]]:
        """Run calls that change jobs. Return the replies, and the changes of which to
        tell batches.
        """
        calls = [*calls]
        return changes_of(calls, self._run(calls))

    def write(self, updates: Sequence[Update]) -> Sequence[Reply | Exception]:
        """Write updates of runs in one round trip. Another follows for claims and, on a
        Cluster, for lists and batches; a unique job whose message comes again takes a
        few more.

        Returns:
          The reply to each update, or the exception if it failed.
        """
        results, changes, moves = self._change(updates)
        if Reply.UNCLAIMED in results:
            moves += self._reopen(updates, results)
        claimed = [
            (i, call)
            for i, update in enumerate(updates)
            # Most updates leave the claims as they are.
            if update.begins or update.renews or update.end is not None
            for call in self.claims.renew(update, results[i])
        ]
        pending = [change for change in changes.values() if change.answer is None]
        reports = [self.batches.tell(change) for change in pending]
        calls = [*moves, *(call for _, call in claimed), *reports]
        # A job must not suffer from what is wrong with its lists or its batch.
        found = run_scripts(self._client, calls) if calls else []
        self._runner.log(moves, found[: len(moves)])
        replies = iter(skipped(calls[len(moves) :], found[len(moves) :]))
        for i, _ in claimed:
            self.claims.retake(updates[i], next(replies))
        if changes:
            found = self.batches.take(reports, [*replies])
            answers = answered(changes.values(), found)
            self._hear(updates, results, changes, answers)
        return results

    def _change(
        self, updates: Sequence[Update], hold: Hold = UNASKED
    ) -> tuple[list[Reply | Exception], dict[int, Change], list[Call]]:
        """Write updates to the records of their jobs. Return the reply to each, the
        changes of which to tell batches, by the places of the updates, and the calls
        that move jobs in the lists of a Cluster.

        Parameters:
          hold: Whether unique jobs may run again that have ended.
        """
        calls: list[Call] = []
        places: list[tuple[int, int]] = []
        logs: list[tuple[int, int]] = []
        members = [i for i, u in enumerate(updates) if u.info.batch is not None]
        stopped = self._stopped([updates[i] for i in members])
        for update in updates:
            first = len(calls)
            if update.begins:
                deadline = "" if update.info.unique is None else hold.deadline
                is_stopped = update.info.batch in stopped
                call = self._calls.start(update, deadline, is_stopped=is_stopped)
                calls.append(call)
            if update.lines or (update.renews and update.info.log_level is not None):
                logs.append((len(places), len(calls)))
                calls.append(self._calls.log(update))
                first += not update.begins
            if update.reports:
                calls.append(self._calls.report(update))
            places.append((first, len(calls) - 1))
        replies, moves = self._runner.attempt(calls)
        changes: dict[int, Change] = {}
        for i in members:
            first, last = places[i]
            own = slice(first, last + 1)
            replies[own], found = changes_of(calls[own], replies[own])
            if found:
                changes[i] = found[-1]
        results = [worst(replies[first], replies[last]) for first, last in places]
        for i, place in logs:
            reply = replies[place]
            # What another program made of its log does not concern the job.
            if isinstance(reply, Exception) and skipped([calls[place]], [reply])[0]:
                results[i] = reply
        return results, changes, moves

    def _stopped(self, updates: Sequence[Update]) -> set[str]:
        """Return those batches of members that begin which are, or may be, cancelled. A
        member that has ended stays as it is if its message comes again.
        """
        begun = [update.info.batch for update in updates if update.begins]
        if not begun:
            return set()
        batches = [batch for batch in dict.fromkeys(begun) if batch is not None]
        if not self._calls.is_spread:
            # The script looks itself.
            return {*batches}
        # Else the batch says so in its reply.
        with contextlib.suppress(RedisError):
            found = self.reader.read_stops(batches)
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
        known: dict[int, tuple[Change, Any]] = {}
        for (i, change), reply in zip(changes.items(), replies, strict=True):
            if isinstance(reply, Exception):
                results[i] = reply
            elif reply is not None:
                known[i] = change, reply
        answers = self.batches.settle(
            [change for change, _ in known.values()],
            [reply for _, reply in known.values()],
        )
        for i, answer in zip(known, answers, strict=True):
            if answer.is_stopped and not updates[i].end and results[i] is Reply.OK:
                results[i] = Reply.CANCELLING

    def _reopen(
        self, updates: Sequence[Update], results: list[Reply | Exception]
    ) -> list[Call]:
        """Write the updates that need a claim, and put the replies in place. Return the
        calls that move their jobs in the lists of a Cluster.

        Parameters:
          updates, results: Updates, and the replies to them.
        """
        moves: list[Call] = []
        away: RedisError | None = None
        for i, update in enumerate(updates):
            if results[i] is not Reply.UNCLAIMED:
                continue
            try:
                if away is not None:
                    raise away
                with self.claims.held(update.uuid, update.info) as hold:
                    if hold.other is None:
                        (results[i],), _, more = self._change([update], hold)
                        moves += more
                    else:
                        results[i] = Reply.HELD
            except RedisError as e:
                results[i] = e
                if isinstance(e, (*LOST, ConnectionsInUse)):
                    # Do not wait for the server once more for each job.
                    away = e
        return moves

    def requests(self, since: int) -> tuple[set[str], set[str], int]:
        """Return what was requested of running jobs after `since`, at most a minute
        ago: the uuids of those to be cancelled, and of those that are asked where they
        are; and the value for `since` at the next call. Times are in microseconds of
        the server's clock.
        """
        key = self.access.sets.key("cancels")
        found = self.reader.scores(key, f"({since}", MAX_SCORE)
        names = {name for name, _ in found}
        asked = {name for name in names if name.startswith(PREFIX)}
        latest = max([since, *(time for _, time in found)])
        return names - asked, {name.removeprefix(PREFIX) for name in asked}, latest

    def cancel(self, uuid: str, info: JobInfo, *, may_follow: bool = True) -> bool:
        """Request cancellation of a job, or of the one to which an alias leads. Return
        False if it had already ended.

        Parameters:
          may_follow: Whether to cancel the job to which an alias leads. If not, nothing
            is done to an alias, and False is returned.
        """
        # The client may repeat the call if a reply is lost: the word identifies it.
        call = self._cancel(uuid, info, secrets.token_hex(4))
        (done,), changes = self._change_jobs([call])
        if isinstance(done, (str, bytes)):
            if not may_follow:
                return False
            found = self.reader.read_any([text(done)])
            (record,) = self.claims.follow(found)
            return record is not None and self.cancel(record.uuid, record.info)
        # Losing this does no harm: a batch looks at its members.
        with contextlib.suppress(RedisError):
            self.batches.tell_all(changes)
        self.counter.fresh.forget()
        if done == 2 and info.is_member:
            # With its batch, it was cancelled before.
            with contextlib.suppress(RedisError):
                return not self.is_stopped(info.batch or "")
        return bool(done)

    def _cancel(self, uuid: str, info: JobInfo, word: str) -> Call:
        """Return the call that cancels a job or a batch."""
        if info.is_batch:
            return self._calls.of_batch("stop_batch", uuid, word)
        return self._calls.cancel(uuid, info, word)

    def requeue(self, record: Record, queue: str) -> str | None:
        """Queue a job that failed, which is about to be sent again. It keeps its time
        of queueing, its owner and its tries.

        Parameters:
          queue: The queue to which its message goes.

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
            call = self._calls.requeue(uuid, record.info, queue, word, hold.deadline)
            (done,), changes = self._change_jobs([call])
        if not done:
            return None
        if done < 0:
            raise NotRepeatable("Its unique key could not be held for long enough.")
        self.batches.tell_all(changes)
        self.counter.fresh.forget()
        return word

    def was_overtaken(self, uuid: str, word: str) -> bool:
        """Return whether a later :meth:`requeue` has taken the process for dead that
        was about to send the message with a word.
        """
        fields = self.reader.fields(self._calls.failure_key(uuid), ("lost",))
        return word in fields.get("lost", "").split()

    def restore(self, record: Record, word: str) -> bool:
        """Put back the failure of a job that :meth:`requeue` has queued: the broker did
        not accept its message.

        Returns:
          False if the job has changed since.
        """
        uuid, info = record.uuid, record.info
        call = self._calls.restore(uuid, info, word)
        (done,), changes = self._change_jobs([call])
        self.batches.tell_all(changes)
        if done:
            self.counter.fresh.forget()
        return bool(done)

    def await_turn(self, steps: Sequence[tuple[str, JobInfo]]) -> bool:
        """Let the later steps of a pipeline, which were cancelled because their turn
        never came, wait for it again.

        Returns:
          False if one of them was deleted, and will never run.
        """
        replies, changes = self._change_jobs(
            self._calls.wait(uuid, info) for uuid, info in steps
        )
        self.batches.tell_all(changes)
        return -1 not in replies

    def delete(self, uuid: str) -> bool:
        """Delete a job that has ended: it is unknown from now on, and does not run if
        its message comes again.

        Returns:
          Whether this call deleted it: False if it has not ended or is unknown.

        Raises:
          RuntimeError: A hook of the job runs here.
        """
        (record,) = self.reader.read([uuid], *OUTLINE)
        record = record or self.claims.target_of(uuid)
        if record is None:
            return False
        if record.is_member and self.is_stopped(record.batch):
            # It reads cancelled, and may not have heard of that.
            self.cancel(record.uuid, record.info)
        if record.uuid == current_hook.get():
            raise RuntimeError(
                f"A hook of the job {record.uuid} cannot delete it. Call "
                "store.clear(older_than=...) elsewhere, or wait for it to expire."
            )
        return bool([*self._delete([record])])

    def is_stopped(self, batch: str) -> bool:
        """Return whether a batch was cancelled."""
        ((stopped, _),) = self.reader.read_stops([batch]).values()
        return stopped is not None

    def delete_records(self, records: Sequence[Record]) -> Iterator[Acted]:
        """Delete ended jobs, and yield those that this call has deleted, or may have.
        Those whose hooks have yet to return stay.

        Raises:
          redis.exceptions.RedisError: The server did not answer, at least for some.
        """
        return self._delete(records, spares_awaited=True)

    def _delete(
        self, records: Sequence[Record], *, spares_awaited: bool = False
    ) -> Iterator[Acted]:
        # The client may repeat a call if its reply is lost: the word identifies it.
        word = secrets.token_hex(8)
        calls = [
            self._calls.delete(r.uuid, r.info, word, spares_awaited=spares_awaited)
            for r in records
        ]
        return self._act(records, calls)

    def cancel_records(self, records: Sequence[Record]) -> Iterator[Acted]:
        """Request cancellation of jobs, and yield those that had not ended, or may not
        have.

        Raises:
          redis.exceptions.RedisError: The server did not answer, at least for some.
        """
        word = secrets.token_hex(4)
        calls = [self._cancel(record.uuid, record.info, word) for record in records]
        return self._act(records, calls)

    def _act(self, records: Sequence[Record], calls: Sequence[Call]) -> Iterator[Acted]:
        """Yield the jobs that calls act on, or may act on.

        Parameters:
          records, calls: The jobs, and the call for each.
        """
        try:
            found, moves = self._runner.attempt(calls)
        except RedisError as e:
            found, moves = [e] * len(calls), []
        replies, changes = changes_of(calls, found)
        self.counter.fresh.forget()
        try:
            yield from _acted(records, replies)
        finally:
            # Losing these does no harm: lists move what they find elsewhere, and a
            # batch looks at its members.
            with contextlib.suppress(RedisError):
                self._runner.move(moves)
                self.batches.tell_all(changes)
            self.counter.fresh.forget()
        checked(calls, replies)


def _acted(records: Sequence[Record], replies: Sequence[Any]) -> Iterator[Acted]:
    """Yield the jobs of calls that did something, or may have."""
    for record, reply in zip(records, replies, strict=True):
        if reply in DONE:
            yield Acted(record.uuid, True, stays=reply == STAYS)
        elif isinstance(reply, LOST):
            yield Acted(record.uuid, False)
