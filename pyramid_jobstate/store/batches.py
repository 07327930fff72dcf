"""Reads batches: cancelled ones stop their members, silent ones look at theirs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from ..job import BATCH, FINISHED, NOT_SENT, Record
from .calls import beside
from .entries import Entries, Entry
from .filters import Place, bad_cursor, check_cursor, has_status
from .pages import MAX_EXAMINED, check_limit
from .reading import DELETED
from .told import LETTERS, Change

if TYPE_CHECKING:
    from .calls import Calls
    from .members import Members
    from .reading import Reader

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

_CURSOR = re.compile(r"m([0-9]{1,9})")


class BatchReads:
    """Reads the batches of a store, and their members.

    Parameters:
      calls: Makes the calls of scripts.
      reader: Reads records.
      members: What batches know of their members.
      silence: Milliseconds without a sign of life after which a batch is looked at.
    """

    def __init__(
        self, calls: Calls, reader: Reader, members: Members, silence: int
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._members = members
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
            batches = list(dict.fromkeys(batch_of(record) for record in waiting))
            found = self._reader.read_stops(batches)
            for record in waiting:
                stop(record, *found[batch_of(record)])
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
        words = self._members.look(batch, PAUSE, LOOKED_AT, GONE_THROUGH)
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
        self._members.tell_all(changes)
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
        is_told = False
        # The others have their turn in a moment.
        for record in silent[:LOOKS]:
            # On a read-only server they stay as they are.
            with contextlib.suppress(RedisError):
                is_told = self.look(record) or is_told
        return is_told

    def may_look(self, record: Record) -> bool:
        """Return whether a job is a batch that has not heard for a while of members
        that have not ended, and was last looked at a while ago.
        """
        if record.text("batch") != BATCH or record.silent_at is not None:
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
        check_limit(limit)
        match = None if cursor is None else _CURSOR.fullmatch(check_cursor(cursor))
        if cursor is not None and match is None:
            raise bad_cursor(cursor)
        at = 0 if match is None else int(match[1])
        found: list[Record] = []
        entries = self._members_after(batch, at, status, limit + 1)
        for examined, (place, record) in enumerate(entries):
            if len(found) == limit or examined == MAX_EXAMINED:
                return found, f"m{at}"
            at = place
            if record is not None and (status is None or has_status(record, status)):
                found.append(record)
        return found, None

    def _members_after(
        self, batch: str, at: int, status: str | None, count: int
    ) -> Iterator[tuple[int, Record | None]]:
        """Yield members of a batch, each with its number, from the next one on."""
        keys, has_failed = self._calls.batch_keys(batch), status == "error"
        while True:
            count = min(count, PORTION)
            found = self._reader.members(keys, at, count, has_failed)
            records = self.read(self._reader.read([uuid for _, uuid in found]))
            for (place, _), record in zip(found, records, strict=True):
                yield place, record
            if len(found) < count:
                return
            at = found[-1][0]
            count = PORTION


class FailedMembers(Entries):
    """The entries of the members of a batch that have failed, the last ones first. The
    filter names the batch.
    """

    def read(self, place: Place, count: int) -> list[tuple[Place, str]]:
        return [(entry, "") for entry in self.read_index(place, count)]

    def repair(self, entries: Sequence[Entry]) -> bool:
        # The batch, and not its list, is told of changes.
        return True

    def _key(self, part: str, status: str = "") -> str:
        assert self._wanted.batch is not None
        return beside(self._reader.key(self._wanted.batch), "failed")


def batch_of(record: Record) -> str:
    """Return the uuid of the batch of a job, "" without one, or BATCH for a batch."""
    return record.text("batch") or ""


def is_waiting(record: Record) -> bool:
    """Return whether a job is a member of a batch and does not run, as far as the store
    knows: if the batch was cancelled, so is the job.
    """
    return record.status in ("queued", "retrying", "stalled") and (
        batch_of(record) not in ("", BATCH)
    )


def stop(record: Record, stopped: str | None, status: str | None) -> None:
    """Have a job that waits read "cancelled" if its batch was cancelled.

    Parameters:
      stopped, status: When its batch was cancelled, or None, and its status.
    """
    if stopped is None:
        return
    is_dead = record.stored_status in ("working", "cancelling")
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
        yield Change(batch, uuid, rev, status, is_unsent=is_lost, heard=0, known=known)
        return
    rev = str(record.number("rev"))
    status = record.stored_status
    if rev != known and status in LETTERS:
        is_unsent = status == "error" and record.error == NOT_SENT
        heard = max(record.number("updated"), record.number("seen"))
        yield Change(batch, uuid, rev, status, is_unsent=is_unsent, heard=heard)
