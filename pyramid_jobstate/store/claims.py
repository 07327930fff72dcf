"""Unique jobs: which job of an identity is under way, and aliases that lead to it.

A claim names a job of an identity, and the record of that job says whether it is under
way. No lock has to be released when it ends. Jobs are recorded before they take their
claim; until then each has a mark beside it, by which those are found whose senders have
died.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from ..job.record import FINISHED, JobInfo, NewJob, Record, Update
from .connection import text
from .reader import Alias
from .scripts import Reply, millis

if TYPE_CHECKING:
    from .reader import Reader
    from .scripts import Call, Calls, Lives

log = logging.getLogger("pyramid_jobstate")

#: Milliseconds for which an ended job holds its claim while it is about to run again.
HOLD = 4_000

#: The milliseconds that must be left of them: the clocks of a Cluster's nodes differ.
MARGIN = HOLD // 2

#: Seconds between two looks at a claim that is held.
PAUSE = 0.02

#: The most aliases that are followed one after the other. A job to which one leads
#: becomes an alias, too, if its sender is taken for dead, and lives.
MAX_ALIASES = 5

#: No sender: the call only renews an alias.
RENEWS = "-"


class Claim(NamedTuple):
    """What a claim says.

    Attributes:
      uuid: The job.
      version: The version of the claim.
      held_until: Until when no other job may take it although this one has ended, in
        milliseconds of the server's clock, or 0.
    """

    uuid: str
    version: str
    held_until: int


class Hold(NamedTuple):
    """Whether a job that has ended may run again.

    Attributes:
      deadline: Until when its new run may begin, for the scripts: in milliseconds of
        the server's clock, "" for a job that is not unique, and "0" if another one is
        under way.
      other: The uuid of that other job, or None.
    """

    deadline: str = ""
    other: str | None = None


#: The deadline of a unique job that has not asked for its claim.
UNASKED = Hold("0")


class Claims:
    """The claims of a store, and its aliases.

    Parameters:
      calls: Makes the calls of scripts.
      reader: Reads records.
      lives: The durations of the store.
      run: Runs calls, and raises the first error among their replies.
    """

    def __init__(
        self,
        calls: Calls,
        reader: Reader,
        lives: Lives,
        run: Callable[[Iterable[Call]], Sequence[Any]],
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._run = run
        self._ended_ttl = lives.ended
        #: A claim outlives the record, whose life is lengthened more often.
        self._ttl = 2 * lives.active + lives.ended
        #: An alias is renewed when it is read.
        self._alias_ttl = lives.active + lives.ended

    def find(self, identity: str) -> Record | None:
        """Return the record of the last job of an identity, or None."""
        claim = self._reader.fields(self._calls.claim_key(identity), ("job",))
        if not claim:
            return None
        (record,) = self._reader.read([claim["job"]])
        return record

    def under_way(self, identity: str) -> Record | None:
        """Return the record of the job of an identity that is under way, or None."""
        record = self.find(identity)
        if record is None or record.is_finished or record.was_never_sent:
            return None
        return record

    def mark(self, *jobs: NewJob) -> Iterator[Call]:
        """Yield the calls that mark the unique ones among jobs that are about to be
        recorded. They take their claims later: should their sender die before,
        :meth:`_end_lost` ends them.
        """
        for job in jobs:
            if job.info.unique is not None:
                life = self._life(job.delay)
                yield self._calls.mark(job.info.unique, job.uuid, life)

    def unmark(self, *jobs: NewJob) -> Iterator[Call]:
        """Yield the calls that remove these marks."""
        for job in jobs:
            if job.info.unique is not None:
                yield self._calls.mark(job.info.unique, job.uuid, 0)

    def touch(self, job: NewJob) -> None:
        """Note that the sender of a job lives, even if its commit took long."""
        self._run([self._calls.touch(job)])

    def take(self, identity: str, uuid: str, delay: float = 0.0) -> str:
        """Take the claim for a job, unless another one is under way. If that is about
        to run again, wait until it does.

        Parameters:
          delay: Seconds until the job is due.

        Returns:
          The uuid of the job that has the claim.
        """
        version = ""
        while True:
            claim = self._take(identity, uuid, version, delay)
            if claim.uuid == uuid or not self._is_over(claim.uuid):
                return claim.uuid
            version = claim.version
            if claim.held_until:
                # It may be under way by the time at which the hold ends.
                time.sleep(PAUSE)
                version = ""

    @contextlib.contextmanager
    def held(self, uuid: str, info: JobInfo, delay: float = 0.0) -> Iterator[Hold]:
        """Hold the claim of a job that has ended while it is about to run again, if it
        is unique.

        Parameters:
          delay: Seconds until the job is due.
        """
        if info.unique is None:
            yield Hold()
            return
        claim = self._hold(info.unique, uuid, delay, HOLD)
        if claim.uuid != uuid:
            yield Hold("0", claim.uuid)
            return
        try:
            yield Hold(str(claim.held_until - MARGIN))
        finally:
            # The record says again whether the job is under way. Otherwise that is so
            # in a moment.
            with contextlib.suppress(RedisError):
                life = self._life(delay)
                call = self._calls.claim(info.unique, uuid, claim.version, life, 0)
                self._run([call])

    def retake(self, update: Update, reply: Any) -> None:
        """Take back the claim that was lost, and taken by a job that is over, for a job
        that is under way. End the jobs whose senders have died.

        Parameters:
          update: An update of the job that was renewed.
          reply: The reply to the call of :meth:`renew`.
        """
        if not isinstance(reply, list):
            return
        identity = update.info.unique
        assert identity is not None
        with contextlib.suppress(RedisError):
            self._end_lost(identity, reply[3:])
            if update.end is None and text(reply[0]) != update.uuid:
                self._hold(identity, update.uuid, 0.0, None)

    def renew(self, update: Update, reply: Reply | Exception) -> Iterator[Call]:
        """Yield the call that lets a claim live for as long as the record of its job
        after an update that begins its run, renews its place or ends the run.

        Parameters:
          reply: The store's reply to the update.
        """
        identity, end = update.info.unique, update.end
        if identity is None or reply not in (Reply.OK, Reply.CANCELLING):
            return
        if end is not None and (reply is not Reply.OK or end.status in FINISHED):
            yield self._calls.claim(identity, update.uuid, "", self._ended_ttl)
        else:
            life = self._life(0.0 if end is None else end.delay or 0.0)
            yield self._calls.claim(identity, update.uuid, "", life)

    def follow(self, found: Sequence[Record | Alias | None]) -> Sequence[Record | None]:
        """Return what was read, and the record to which it leads for each alias."""
        led, aliases = [*found], _aliases(found)
        names = {i: alias.uuid for i, alias in aliases}
        for _ in range(MAX_ALIASES):
            if not aliases:
                break
            self._renew_aliases([alias for _, alias in aliases])
            targets = self._reader.read_any([alias.target for _, alias in aliases])
            for (i, _), target in zip(aliases, targets, strict=True):
                led[i] = target
            aliases = _aliases(led)
        records = [record if isinstance(record, Record) else None for record in led]
        for i, name in names.items():
            record = records[i]
            records[i] = record and named(record, name)
        return records

    def target_of(self, uuid: str) -> Record | None:
        """Return the record of the job to which an alias leads, or None if the uuid is
        not an alias, or the job is unknown.
        """
        (record,) = self.follow([self._reader.read_one(uuid)])
        return None if record is None or record.uuid == uuid else record

    def make_alias(self, job: NewJob, target: str) -> None:
        """Let the record of a job that is not sent lead to another job."""
        (record,) = self._reader.read([target])
        due = record and record.millis("due")
        life = self._alias_ttl + max(0, (due or 0) - self._reader.now())
        self._run([self._calls.alias(job.uuid, target, life, job.sender)])
        # Claims forget it otherwise.
        with contextlib.suppress(RedisError):
            self._run(self.unmark(job))

    def _renew_aliases(self, aliases: Sequence[Alias]) -> None:
        """Renew aliases past half their lifetime."""
        now = self._reader.now()
        # On a read-only server they live on for a while.
        with contextlib.suppress(RedisError):
            self._run(
                self._calls.alias(alias.uuid, alias.target, self._alias_ttl, RENEWS)
                for alias in aliases
                if now - alias.updated > self._alias_ttl / 2
            )

    def _hold(self, identity: str, uuid: str, delay: float, hold: int | None) -> Claim:
        """Take the claim for a job, and perhaps hold it, unless another one is under
        way, or about to run again.
        """
        version = ""
        while True:
            claim = self._take(identity, uuid, version, delay, hold)
            if claim.uuid == uuid or claim.held_until or not self._is_over(claim.uuid):
                return claim
            version = claim.version

    def _take(
        self,
        identity: str,
        uuid: str,
        version: str,
        delay: float,
        hold: int | None = None,
    ) -> Claim:
        life = self._life(delay)
        call = self._calls.claim(identity, uuid, version, life, hold)
        (reply,) = self._run([call])
        # One that another program has written says nothing of any other job.
        reply = reply or (uuid, "", self._reader.clock() + HOLD)
        holder, version, held_until, *lost = reply
        # The next call finds them again.
        with contextlib.suppress(RedisError):
            self._end_lost(identity, lost)
        return Claim(text(holder), text(version), int(held_until))

    def _end_lost(self, identity: str, marked: Sequence[str | bytes]) -> None:
        """End those of some marked jobs whose senders have died before they took their
        claim, and remove the marks of all that are not being sent.
        """
        if not marked:
            return
        uuids, gone = [text(uuid) for uuid in marked], []
        for uuid, record in zip(uuids, self._reader.read(uuids), strict=True):
            is_unsent = record is not None and record.stored_status == "sending"
            if record is not None and record.was_never_sent:
                is_unsent = not self._give_up(record)
            if not is_unsent:
                gone.append(uuid)
        self._run(self._calls.mark(identity, uuid, 0) for uuid in gone)

    def _is_over(self, uuid: str) -> bool:
        """Return whether a job has ended or is unknown. One that was never sent is
        cancelled, so that its message does nothing if it comes after all; one that was
        never sent again has failed as before.
        """
        (record,) = self._reader.read([uuid])
        if record is not None and record.was_never_sent:
            self._give_up(record)
            (record,) = self._reader.read([uuid])
        return record is None or record.is_finished

    def _give_up(self, record: Record) -> bool:
        """End a job that was never sent. Return whether it is over: its sender may live
        after all.
        """
        uuid, rerun = record.uuid, record.info.rerun
        call = self._calls.restore(uuid, record.info, rerun or "")
        if not rerun or self._run([call]) != [1]:
            call = self._calls.cancel_unsent(uuid, secrets.token_hex(4))
            if self._run([call]) == [0]:
                return False
        log.info("Job %s was never sent. Another has taken its place.", uuid)
        return True

    def _life(self, delay: float) -> int:
        return self._ttl + millis(delay)


def _aliases(
    found: Sequence[Record | Alias | None],
) -> list[tuple[int, Alias]]:
    """Return the aliases among what was read, with their places."""
    return [(i, alias) for i, alias in enumerate(found) if isinstance(alias, Alias)]


def named(record: Record, name: str) -> Record:
    """Return a record that was asked for by the uuid of an alias."""
    record.name = name
    return record
