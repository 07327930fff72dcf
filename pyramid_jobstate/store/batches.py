"""Batches: what each knows of its members, which tell it of their changes.

Every change of a member's record has a number, and a batch applies only those that are
newer than the last one that it knows. So it does no harm to tell it twice, late or out
of order, and what was not told can be told later: see :meth:`.Batches.look`.

Cancelled batches stop their members, silent ones look at theirs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from ..job.record import FINISHED, NOT_SENT, RUNNING, Member, NewBatch, Record
from .arguments import check_int
from .connection import text
from .lists import (
    MAX_EXAMINED,
    MAX_LIMIT,
    Entries,
    Entry,
    bad_cursor,
    check_cursor,
    has_status,
)
from .reader import DELETED, records_in
from .scripts import NEWS, Call, Calls, Runner, beside, millis

if TYPE_CHECKING:
    from .reader import Reader

#: The letters by which a batch knows the statuses of its members, as they are stored.
LETTERS = {
    "waiting": "q",
    "sending": "n",
    "queued": "q",
    "retrying": "r",
    "working": "w",
    "cancelling": "w",
    "success": "s",
    "error": "e",
    "cancelled": "c",
}

#: The letter of a member that failed because it could not be sent.
UNSENT = "x"


class Change(NamedTuple):
    """A change of a member.

    Attributes:
      batch: The uuid of its batch.
      uuid: The member.
      rev: The number of the change, as text.
      status: The status as it is stored.
      millionths: How much of the member is done, if it runs; None for as much as
        before.
      delay: Milliseconds until it is due again.
      is_unsent: Whether it failed because it could not be sent.
      seen_at: When it was last heard from, in milliseconds of the store's clock, or
        None for now.
      known: If set, the number of the change that the batch must know last: the record
        of the member is gone.
      answer: What the batch has answered, if the change told it.
    """

    batch: str
    uuid: str
    rev: str
    status: str
    millionths: int | None = None
    delay: int = 0
    is_unsent: bool = False
    seen_at: int | None = None
    known: str | None = None
    answer: Sequence[Any] | None = None

    @property
    def letter(self) -> str:
        return UNSENT if self.is_unsent else LETTERS[self.status]


class BatchAnswer(NamedTuple):
    """What a batch answers to a change.

    Attributes:
      rev: The number of the change that it knows now, or "" if it does not know the
        member.
      is_stopped: Whether it was cancelled.
    """

    rev: str
    is_stopped: bool


def changes_of(
    calls: Sequence[Call], replies: Sequence[Any]
) -> tuple[list[Any], list[Change]]:
    """Return the replies to calls that change jobs, and the changes of members.

    Parameters:
      replies: The reply to each, also with the number of the change, the status and
        perhaps the answer of the batch if the job is a member: see lua/member.lua.
    """
    plain: list[Any] = []
    changes = []
    for call, reply in zip(calls, replies, strict=True):
        if call.batch is None or not isinstance(reply, list):
            plain.append(reply)
            continue
        first, rev, status, *answer = reply
        plain.append(first)
        if text(status) in LETTERS:
            # Else it is the change of another run.
            news = call.news if first in (1, 2) else NEWS
            change = Change(
                call.batch,
                call.key[-36:],
                text(rev),
                text(status),
                news.part,
                news.delay,
                text(status) == "error" and news.unsent,
            )
            changes.append(change._replace(answer=answer[0]) if answer else change)
    return plain, changes


def answered(changes: Iterable[Change], replies: Iterable[Any]) -> list[Any]:
    """Return the answer of the batch to each change.

    Parameters:
      replies: The replies to calls that tell the changes which have no answer yet.
    """
    rest = iter(replies)
    return [change.answer or next(rest) for change in changes]


#: The most members that one reading of a silent batch looks at, and goes through for
#: them.
LOOKED_AT, GONE_THROUGH = 20, 500

#: How many silent batches a call looks at.
LOOKS = 3

#: Milliseconds between two looks at the members of a batch.
PAUSE = 1000

#: What a look reads of a member.
NAMES = ("status", "rev", "error", "updated", "seen")

#: How many members of a list are read at once.
PORTION = 200

#: The highest number of a member of a batch.
MAX_NUMBER = 10**9 - 1

#: What stands for a member that is not read for a page.
FULL = 0

_CURSOR = re.compile(r"m([0-9]{1,9})")

#: What a batch keeps of a member that runs: see lua/batch.lua. Its number comes last.
_RUNNING = re.compile(r"w(?: [0-9]+){3} ([0-9]{1,9})")


#: How many members are added in one call.
ADDED = 500


class Batches:
    """The batches of a store, and what they know of their members.

    Parameters:
      runner: Runs calls.
      calls: Makes them.
      reader: Reads records.
      silence: Milliseconds without a sign of life after which a batch is looked at.
    """

    def __init__(
        self, runner: Runner, calls: Calls, reader: Reader, silence: int
    ) -> None:
        self._runner = runner
        self._run = runner.run
        self._calls = calls
        self._reader = reader
        self._silence = silence

    def read(self, records: Sequence[Record | None]) -> Sequence[Record | None]:
        """Return records as they read with the batches of their jobs: members of a
        cancelled batch that do not run read "cancelled". That takes another round trip
        if some of the jobs wait.
        """
        waiting = [
            record for record in records if record is not None and is_waiting(record)
        ]
        if waiting:
            batches = list(dict.fromkeys(record.batch for record in waiting))
            found = self._reader.read_stops(batches)
            for record in waiting:
                stop(record, *found[record.batch])
        return records

    def look(self, record: Record) -> bool:
        """Look at some members of a silent batch, and tell it what it does not know of
        them.

        Returns:
          Whether it was told anything.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        batch = record.uuid
        call = self._calls.of_batch("look_batch", batch, PAUSE, LOOKED_AT, GONE_THROUGH)
        (reply,) = self._run([call])
        words = [text(word) for word in reply or ()]
        found = list(zip(words[::3], words[1::3], words[2::3], strict=True))
        uuids = [uuid for uuid, _, _ in found]
        read = zip(uuids, self._reader.read(uuids, *NAMES), strict=True)
        records = [each or self._end(uuid) for uuid, each in read]
        pairs = [*zip(found, records, strict=True)]
        unsent = [each for (_, letter, _), each in pairs if letter == "n"]
        is_left = _is_left(record, len(unsent)) and not any(unsent)
        changes = [
            change
            for (uuid, letter, known), each in pairs
            if letter != "n" or each is not None or is_left
            for change in _unknown(batch, uuid, letter, known, each)
        ]
        self.tell_all(changes)
        return bool(changes)

    def _end(self, uuid: str) -> Record | None:
        """Return how a member had ended that was deleted, or None if nothing is known
        of it. If it was deleted before it was a member, its status is DELETED.
        """
        names = ("status", "was", "rev")
        fields = self._reader.fields(self._reader.key(uuid), names)
        # Without a status it has come back meanwhile.
        is_deleted = fields.get("status") == DELETED
        status = fields.get("was", DELETED if is_deleted else "")
        return Record(uuid, {**fields, "status": status}) if fields else None

    def look_at_silent(self, records: Sequence[Record | None]) -> bool:
        """Look at the members of those batches among some jobs that are silent. Return
        whether any of them was told something.
        """
        silent = [r for r in records if r is not None and self.may_look(r)]
        is_news = False
        # The others have their turn in a moment.
        for record in silent[:LOOKS]:
            # On a read-only server they stay as they are.
            with contextlib.suppress(RedisError):
                is_news = self.look(record) or is_news
        return is_news

    def may_look(self, record: Record) -> bool:
        """Return whether a job is a batch that has not heard for a while of members
        that have not ended, and was last looked at a while ago.
        """
        if not record.is_batch or record.silent_at is not None:
            return False
        if record.is_finished:
            # Members of a cancelled batch may not have ended.
            over = sum(record.number(f"n:{letter}") for letter in "sec")
            if record.text("stopped") is None or over == record.number("size"):
                return False
        now = self._reader.now()
        silence = now - record.number("updated")
        return silence > self._silence and now - record.number("looked") > PAUSE

    def page(
        self, batch: str, status: str | None, limit: int, cursor: str | None
    ) -> tuple[list[Record], str | None]:
        """Return members of a batch, in the order in which they were sent, and the
        cursor for the next ones, or None. Members whose records have expired are left
        out.

        Parameters:
          status: Only members of this status.
          limit: The most members.
          cursor: The cursor of the page before.
        """
        check_int("limit", limit, 1, MAX_LIMIT)
        match = None if cursor is None else _CURSOR.fullmatch(check_cursor(cursor))
        if cursor is not None and match is None:
            raise bad_cursor(cursor)
        at = 0 if match is None else int(match[1])
        found: list[Record] = []
        entries = self._members_after(batch, at, status, limit + 1)
        for examined, (place, record) in enumerate(entries):
            if place == FULL or len(found) == limit or examined == MAX_EXAMINED:
                return found, f"m{at}"
            at = place
            if record is not None and (status is None or has_status(record, status)):
                found.append(record)
        return found, None

    def _members_after(
        self, batch: str, at: int, status: str | None, count: int
    ) -> Iterator[tuple[int, Record | None]]:
        """Yield members of a batch, each with its number, from the next one on. FULL
        stands for the number of one that was not read, since those before it are large.
        """
        _, failed, order = self._calls.batch_keys(batch)
        while True:
            count = min(count, PORTION)
            if status == "error":
                words = (f"({at}", MAX_NUMBER, "LIMIT", 0, count)
                scores = self._reader.scores(failed, *words)
                found = [(number, uuid) for uuid, number in scores]
            else:
                found = [*enumerate(self._reader.entries(order, at, count), at + 1)]
            some = self._reader.read_some([uuid for _, uuid in found])
            records = self.read(records_in(some))
            for (place, _), record in zip(found, records, strict=False):
                yield place, record
            if len(records) < len(found):
                yield FULL, None
            if len(found) < count:
                return
            at = found[-1][0]
            count = PORTION

    def running(self, batch: str, uuids: Sequence[str]) -> list[str]:
        """Return which of some jobs are running members of a batch, as far as it knows,
        in the order in which they were sent.
        """
        if not uuids:
            return []
        members, _, _ = self._calls.batch_keys(batch)
        kept = self._reader.fields(members, uuids)
        found = {uuid: _RUNNING.fullmatch(words) for uuid, words in kept.items()}
        places = {uuid: int(match[1]) for uuid, match in found.items() if match}
        return sorted(places, key=places.__getitem__)

    def open(self, batch: NewBatch) -> None:
        """Write a new batch, and which members it has."""
        status = "queued" if batch.members else "success"
        delay = max((millis(member.job.delay) for member in batch.members), default=0)
        fields = {**batch.info.fields(), **batch.fields}
        words = [word for field in fields.items() for word in field]
        opened = self._calls.of_batch(
            "open_batch", batch.uuid, status, batch.sender, delay, *words
        )
        self._run([opened])
        self.add(batch.uuid, batch.members)

    def add(
        self, batch: str, members: Sequence[Member], sender: str = ""
    ) -> Sequence[int]:
        """Add members to a batch that are about to be sent.

        Parameters:
          sender: The running member that sends them, or "" if the batch is being sent.

        Returns:
          The reply to each, or only one if the batch does not take them: see the
          script.
        """
        replies: list[int] = []
        for i in range(0, len(members), ADDED):
            words: list[str | int] = []
            for job, weight in members[i : i + ADDED]:
                letter = "q" if job.waits else "n"
                words += [job.uuid, letter, weight, millis(job.delay)]
            call = self._calls.of_batch("add_members", batch, sender, *words)
            (found,) = self._run([call])
            found = found or [-1]
            if found[0] < 0:
                return found
            replies += found
        return replies

    def forget(self, batch: NewBatch) -> None:
        """Delete a batch that was not sent after all."""
        self._run([self._calls.of_batch("forget_batch", batch.uuid, batch.sender)])

    def tell(self, change: Change) -> Call:
        """Return the call that tells a batch of a change."""
        done = "" if change.millionths is None else change.millionths
        words: list[str | int] = [
            change.uuid,
            change.rev,
            change.letter,
            done,
            change.delay,
            "" if change.seen_at is None else change.seen_at,
        ]
        if change.known is not None:
            words.append(change.known)
        return self._calls.of_batch("tell_batch", change.batch, *words)

    def take(self, calls: Sequence[Call], replies: Sequence[Any]) -> list[Any]:
        """Take the replies to calls of :meth:`tell`, which list the batches on a
        Cluster. Return what they say.
        """
        found, moves = self._runner.take(calls, replies)
        self._runner.move(moves)
        return found

    def tell_all(self, changes: Sequence[Change]) -> None:
        """Tell batches of changes.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        if not changes:
            return
        pending = [change for change in changes if change.answer is None]
        replies = answered(changes, self._run(map(self.tell, pending)))
        pairs = zip(changes, replies, strict=True)
        sound = [(change, reply) for change, reply in pairs if reply is not None]
        self.settle([change for change, _ in sound], [reply for _, reply in sound])

    def settle(
        self, changes: Sequence[Change], replies: Sequence[Any]
    ) -> list[BatchAnswer]:
        """Take the replies of batches that were told of changes: tell those again that
        know of a later change than the record of their member, which the store has
        lost. A member whose batch the store has lost is a job of its own from now on.

        Returns:
          What each has answered.
        """
        answers = [BatchAnswer(text(reply[0]), reply[1] == 1) for reply in replies]
        # Otherwise the next change of the member does.
        with contextlib.suppress(RedisError):
            pairs = zip(changes, replies, strict=True)
            self._run(self._calls.part(change.uuid) for change, r in pairs if r[2])
        ahead = [
            (change, answer.rev)
            for change, answer in zip(changes, answers, strict=True)
            if answer.rev and int(answer.rev) > int(change.rev)
        ]
        # Else a look at the members finds them.
        with contextlib.suppress(RedisError):
            # What they know then is not ahead of the records.
            self.tell_all(self._raised(ahead))
        return answers

    def _raised(self, ahead: Sequence[tuple[Change, str]]) -> list[Change]:
        """Number the changes of records above those that their batches know. Return
        those of records that were behind.
        """
        replies = self._run(
            self._calls.above(change.uuid, rev) for change, rev in ahead
        )
        return [
            change._replace(rev=text(reply[0]), status=text(reply[1]), answer=None)
            for (change, _), reply in zip(ahead, replies, strict=True)
            if reply and text(reply[1]) in LETTERS
        ]


class FailedMembers(Entries):
    """The entries of the members of a batch that have failed, the last ones first. The
    filter names the batch, and their scores are their numbers.
    """

    def mend(self, entries: Iterable[Entry]) -> None:
        # The batch, and not its list, is told of changes.
        pass

    def _sources(self, name: str) -> Iterator[tuple[str, str]]:
        assert self._wanted.batch is not None
        yield beside(self._reader.key(self._wanted.batch), "failed"), ""

    def _oldest(self, name: str, now: int) -> int:
        return 0


def is_waiting(record: Record) -> bool:
    """Return whether a job is a member of a batch and does not run, as far as the store
    knows: if the batch was cancelled, so is the job.
    """
    return record.status in ("queued", "retrying", "stalled") and (record.is_member)


def stop(record: Record, stopped: str | None, status: str | None) -> None:
    """Have a job that waits read "cancelled" if its batch was cancelled.

    Parameters:
      stopped, status: When its batch was cancelled, or None, and its status.
    """
    if stopped is None:
        return
    is_dead = record.stored_status in RUNNING
    if not is_dead or status in FINISHED or status == "deleted":
        record.stop(stopped)


def _is_left(batch: Record, unsent: int) -> bool:
    """Return whether nobody is about to send members of a batch that have no record
    yet: its sender has sent others, and no member waits or runs that could.

    Parameters:
      unsent: How many of its members are known not to have been sent. If there are
        others, one of these may be the sender.
    """
    if batch.number("n:n") != unsent:
        return False
    counts = {letter: batch.number(f"n:{letter}") for letter in "qrwsec"}
    is_idle = not (counts["q"] or counts["r"] or counts["w"])
    return is_idle and any(counts.values()) and batch.text("stopped") is None


def _unknown(
    batch: str, uuid: str, letter: str, known: str, record: Record | None
) -> Iterator[Change]:
    """Yield the change of a member of which its batch does not know.

    Parameters:
      letter, known: The letter of the member, and the number of its change that the
        batch knows.
      record: The record of the member, or None if it is gone.
    """
    if record is None or record.stored_status == DELETED:
        rev = str(int(known) + 1)
        # The message of a deleted job runs nothing. A member that was not sent may yet
        # be: its sender can run again.
        status = "error" if record is None else "cancelled"
        is_lost = record is None and letter == "n"
        yield Change(
            batch, uuid, rev, status, is_unsent=is_lost, seen_at=0, known=known
        )
        return
    rev = str(record.number("rev"))
    status = record.stored_status
    if rev != known and status in LETTERS:
        is_unsent = status == "error" and record.error == NOT_SENT
        seen_at = max(record.number("updated"), record.number("seen"))
        yield Change(batch, uuid, rev, status, is_unsent=is_unsent, seen_at=seen_at)
