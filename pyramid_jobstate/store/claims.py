"""Unique jobs: which job of an identity is under way, and aliases that lead to it.

A claim names a job of an identity, and the record of that job says whether it is under
way. No lock has to be released when it ends.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from ..job import FINISHED, JobInfo, NewJob, Record, Update
from .calls import millis
from .connection import text
from .reading import Alias
from .scripts import Reply

if TYPE_CHECKING:
    from .calls import Calls
    from .index import Index
    from .reading import Reader
    from .scripts import Call

#: Milliseconds for which an ended job holds its claim while it is about to run again.
HOLD = 10_000

#: The milliseconds that must be left of them: the clocks of a Cluster's nodes differ.
MARGIN = HOLD // 2


#: What a script is told of a job that needs no claim, and of one that does not get it:
#: see :meth:`Claims.reopened`.
NOT_UNIQUE, REFUSED = "", "0"

#: No sender: the call only renews an alias.
RENEWS = "-"


class Claim(NamedTuple):
    """What a claim says.

    Attributes:
      uuid: The job.
      version: The version of the claim.
      held: Until when no other job may take it, whatever the record of the job says, in
        milliseconds of the server's clock, or 0.
    """

    uuid: str
    version: str
    held: int

    @property
    def until(self) -> str:
        """Until when the job may begin anew, for the scripts."""
        return str(self.held - MARGIN)


class Claims:
    """The claims of a store, and its aliases.

    Parameters:
      calls: Makes the calls of scripts.
      reader: Reads records.
      index: The lists.
      run: Runs calls, and raises the first error among their replies.
    """

    def __init__(
        self,
        calls: Calls,
        reader: Reader,
        index: Index,
        run: Callable[[Iterable[Call]], Sequence[Any]],
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._index = index
        self._run = run
        #: A claim outlives the record, whose life is lengthened more often.
        self._ttl = 2 * index.active_ttl

    def find(self, identity: str) -> Record | None:
        """Return the record of the last job of an identity, or None."""
        return self._find(identity)[0]

    def under_way(self, identity: str) -> Record | None:
        """Return the record of the job of an identity that is under way, or None."""
        record, held = self._find(identity)
        if record is None or held > self._reader.now():
            return record
        return None if record.is_finished or record.was_never_sent else record

    def take(
        self, identity: str, uuid: str, delay: float = 0.0, *, hold: int | None = None
    ) -> Claim:
        """Take the claim for a job, unless another one is under way. Return the claim,
        which names the job or the other one.

        Parameters:
          delay: Seconds until the job is due.
          hold: Milliseconds to hold it for, although the record says that the job has
            ended.
        """
        version = ""
        while True:
            call = self._calls.claim(identity, uuid, version, self._life(delay), hold)
            claim = self._claim(call)
            if claim.uuid == uuid or claim.held or not self._is_over(claim.uuid):
                return claim
            version = claim.version

    @contextlib.contextmanager
    def reopened(
        self, jobs: Iterable[tuple[str, JobInfo]]
    ) -> Iterator[Mapping[str, str]]:
        """Hold the claims of those jobs that are unique, while they are about to run
        again after they have ended. Gives until when each may begin, by uuid, for the
        scripts: NOT_UNIQUE for any other job, and REFUSED if another one is under way.
        """
        until: dict[str, str] = {}
        held: list[tuple[str, Claim]] = []
        try:
            for uuid, info in jobs:
                until[uuid] = NOT_UNIQUE
                if info.unique is not None:
                    claim = self.take(info.unique, uuid, hold=HOLD)
                    until[uuid] = REFUSED
                    if claim.uuid == uuid:
                        until[uuid] = claim.until
                        held.append((info.unique, claim))
            yield until
        finally:
            # The records say again whether the jobs are under way. Otherwise that is so
            # in a moment.
            with contextlib.suppress(RedisError):
                self._run(
                    self._calls.claim(identity, claim.uuid, claim.version, self._ttl, 0)
                    for identity, claim in held
                )

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
            yield self._calls.claim(identity, update.uuid, "", self._index.ended_ttl)
        else:
            life = self._life(0.0 if end is None else end.delay or 0.0)
            yield self._calls.claim(identity, update.uuid, "", life)

    def follow(self, uuids: Sequence[str]) -> Sequence[Record | None]:
        """Return the records of several jobs, with None for each unknown job. An alias
        takes a second round trip: its record is that of the job to which it leads.
        """
        found = self._reader.read_any(uuids)
        aliases = [record for record in found if isinstance(record, Alias)]
        if not aliases:
            return [record if isinstance(record, Record) else None for record in found]
        self._renew_aliases(aliases)
        targets = self._reader.read([alias.target for alias in aliases])
        led = {
            alias: record and named(record, alias.uuid)
            for alias, record in zip(aliases, targets, strict=True)
        }
        return [
            led[record] if isinstance(record, Alias) else record for record in found
        ]

    def target_of(self, uuid: str) -> Record | None:
        """Return the record of the job to which an alias leads, or None if it is none,
        or the job is unknown.
        """
        (record,) = self.follow([uuid])
        return None if record is None or record.uuid == uuid else record

    def make_alias(self, job: NewJob, target: str) -> None:
        """Let the record of a job that is not sent lead to another job."""
        (record,) = self._reader.read([target])
        due = record and record.millis("due")
        life = self._ttl + max(0, (due or 0) - self._reader.now())
        self._run([self._calls.alias(job.uuid, target, life, job.sender)])
        # Lists drop it when they read it.
        with contextlib.suppress(RedisError):
            self._run(self._index.forget(job))

    def _renew_aliases(self, aliases: Sequence[Alias]) -> None:
        """Lengthen the lives of aliases of which half is over."""
        now = self._reader.now()
        # On a read-only server they live on for a while.
        with contextlib.suppress(RedisError):
            self._run(
                self._calls.alias(alias.uuid, alias.target, self._ttl, RENEWS)
                for alias in aliases
                if now - alias.updated > self._ttl / 2
            )

    def _find(self, identity: str) -> tuple[Record | None, int]:
        """Return the last job of an identity, and until when it holds the claim."""
        key = self._calls.claim_key(identity)
        claim = self._reader.fields(key, ("job", "held"))
        if "job" not in claim:
            return None, 0
        (record,) = self._reader.read([claim["job"]])
        return record, int(claim.get("held", 0))

    def _claim(self, call: Call) -> Claim:
        ((uuid, version, held),) = self._run([call])
        return Claim(text(uuid), text(version), int(held))

    def _is_over(self, uuid: str) -> bool:
        """Return whether a job has ended or is unknown. One that was never sent is
        cancelled, so that its message does nothing if it comes after all.
        """
        (record,) = self._reader.read([uuid])
        if record is not None and record.was_never_sent:
            word = secrets.token_hex(4)
            self._run([self._calls.cancel(uuid, word, if_unsent=True)])
            (record,) = self._reader.read([uuid])
        return record is None or record.is_finished

    def _life(self, delay: float) -> int:
        return self._ttl + millis(delay)


def named(record: Record, name: str) -> Record:
    """Return a record that was asked for by the uuid of an alias."""
    record.name = name
    return record
