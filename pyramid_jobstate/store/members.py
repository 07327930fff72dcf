"""Batches: what each knows of its members, which tell it of their changes.

Every change of a member's record has a number, and a batch applies only those that are
newer than the last one that it knows. So it does no harm to tell it twice, late or out
of order, and what was not told can be told later: see :meth:`Members.look`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..job import CANCELLED, JobInfo, Member, NewBatch, dumps
from .calls import millis
from .connection import text
from .scripts import Call, Script

if TYPE_CHECKING:
    from .calls import Calls
    from .index import Index
    from .reading import Reader

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

#: What the script `tell_batch` says has changed.
ENDED, REOPENED, MOVED, AGED = 1, 2, 3, 4

#: How many members are added in one call.
PORTION = 500


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
      known: If set, the number of the change that the batch must know last: the record
        of the member is gone.
    """

    batch: str
    uuid: str
    rev: str
    status: str
    millionths: int | None = None
    delay: int = 0
    is_unsent: bool = False
    known: str | None = None

    @property
    def letter(self) -> str:
        return UNSENT if self.is_unsent else LETTERS[self.status]


class Heard(NamedTuple):
    """What a batch answers to a change.

    Attributes:
      rev: The number of the change that it knows now, or "" if it does not know the
        member.
      is_stopped: Whether it was cancelled.
    """

    rev: str
    is_stopped: bool


def changes_of(
    jobs: Iterable[tuple[str, JobInfo]], replies: Sequence[Any]
) -> tuple[list[Any], list[Change]]:
    """Return the replies of scripts that change jobs, and the changes of members.

    Parameters:
      jobs: The uuid of each job, and what is known of it.
      replies: The reply to each, also with the number of the change and the status if
        the job is a member of a batch: see lua/member.lua.
    """
    plain: list[Any] = []
    changes = []
    for (uuid, info), reply in zip(jobs, replies, strict=True):
        if not info.is_member or not isinstance(reply, list):
            plain.append(reply)
            continue
        first, rev, status = reply
        plain.append(first)
        if text(status) in LETTERS:
            assert info.batch is not None
            changes.append(Change(info.batch, uuid, text(rev), text(status)))
    return plain, changes


class Members:
    """The members of the batches of a store.

    Parameters:
      scripts: The scripts by name.
      calls: Makes the calls that change jobs.
      reader: Reads records.
      index: The lists.
      run: Runs calls, and raises the first error among their replies.
      silence: Milliseconds without a sign of life after which a batch is looked at.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script],
        calls: Calls,
        reader: Reader,
        index: Index,
        run: Callable[[Iterable[Call]], Sequence[Any]],
        silence: int,
    ) -> None:
        self._scripts = scripts
        self._calls = calls
        self._reader = reader
        self._index = index
        self._run = run
        self._silence = silence

    def open(self, batch: NewBatch) -> None:
        """Write a new batch, and which members it has. It lists the batch."""
        status, life = "queued", self._index.active_ttl
        if not batch.members:
            status, life = "success", self._index.ended_ttl
        fields = {**batch.info.fields(), **batch.fields}
        words = [word for field in fields.items() for word in field]
        call = self._call(
            "open_batch", batch.uuid, life, 0, status, batch.sender, *words
        )
        self._run([call])
        self.add(batch.uuid, batch.members)
        self._run(self._index.batch(batch.uuid, batch.info, status))

    def add(
        self, batch: str, members: Sequence[Member], sender: str = ""
    ) -> Sequence[int]:
        """Add members to a batch that are about to be sent.

        Parameters:
          sender: The running member that sends them, or "" if the batch is being sent.

        Returns:
          The reply to each: see the script.
        """
        replies: list[int] = []
        for i in range(0, len(members), PORTION):
            words: list[str | int] = []
            for job, weight in members[i : i + PORTION]:
                letter = "q" if job.waits else "n"
                words += [job.uuid, letter, weight, millis(job.delay)]
            call = self._tell("add_members", batch, sender, *words)
            (found,) = self._run([call])
            replies += found
            if found[0] < 0:
                break
        return replies

    def forget(self, batch: NewBatch) -> None:
        """Delete a batch that was not sent after all."""
        call = self._call("forget_batch", batch.uuid, batch.sender)
        if self._run([call]) == [1]:
            for ended in (False, True):
                self._run(self._index.leave(batch.uuid, batch.info, ended=ended))

    def stop(self, batch: str, word: str) -> Call:
        """Return the call that cancels a batch."""
        silence = self._silence
        return self._tell("stop_batch", batch, silence, dumps(CANCELLED), word)

    def look(self, batch: str, pause: int, most: int, through: int) -> Sequence[str]:
        """Return the next members of a silent batch to look at: see the script.

        Parameters:
          pause: Milliseconds since the look before.
          most, through: The most members to choose, and to go through.
        """
        words = (self._silence, pause, most, through)
        (found,) = self._run([self._call("look_batch", batch, *words)])
        return [text(word) for word in found]

    def tell(self, change: Change) -> Call:
        """Return the call that tells a batch of a change."""
        done = "" if change.millionths is None else change.millionths
        words: list[str | int] = [
            change.uuid,
            change.rev,
            change.letter,
            done,
            change.delay,
        ]
        if change.known is not None:
            words.append(change.known)
        return self._tell("tell_batch", change.batch, *words)

    def tell_all(self, changes: Sequence[Change]) -> None:
        """Tell batches of changes.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        if changes:
            self.settle(changes, self._run(map(self.tell, changes)))

    def settle(self, changes: Sequence[Change], replies: Sequence[Any]) -> list[Heard]:
        """Take the replies of batches that were told of changes: move the batches in
        the lists, and tell those again that know of a later change than the record of
        their member, which the store has lost.

        Returns:
          What each has answered.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        heard = [Heard(text(reply[0]), reply[1] == 1) for reply in replies]
        self._list(changes, replies)
        ahead = [
            (change, answer.rev)
            for change, answer in zip(changes, heard, strict=True)
            if answer.rev and int(answer.rev) > int(change.rev)
        ]
        if ahead:
            again = self._raised(ahead)
            self._list(again, self._run(map(self.tell, again)))
        return heard

    def _raised(self, ahead: Sequence[tuple[Change, str]]) -> list[Change]:
        """Number the changes of records above those that their batches know. Return
        those of records that were behind.
        """
        replies = self._run(
            Call(self._scripts["raise"], self._reader.key(change.uuid), (rev,))
            for change, rev in ahead
        )
        return [
            change._replace(rev=text(reply[0]), status=text(reply[1]))
            for (change, _), reply in zip(ahead, replies, strict=True)
            if reply and text(reply[1]) in LETTERS
        ]

    def _list(self, changes: Sequence[Change], replies: Sequence[Any]) -> None:
        """Move batches in the lists that have changed."""
        self._run(
            call
            for change, (_, _, what, status, kind, owner) in zip(
                changes, replies, strict=True
            )
            if what
            for call in self._move(
                change.batch, what, text(status), text(kind), text(owner)
            )
        )

    def _move(
        self, batch: str, what: int, status: str, kind: str, owner: str
    ) -> Iterator[Call]:
        """Yield the calls that list a batch that has changed."""
        info = JobInfo(kind, "", 0, owner or None, "{}")
        if what == ENDED:
            yield from self._index.end(batch, info, status)
        elif what == REOPENED:
            yield from self._index.requeue(batch, info, status)
        elif what == MOVED:
            yield from self._index.move(batch, kind, status)
        else:
            yield from self._index.batch(batch, info, status)

    def _call(self, script: str, batch: str, *args: str | int) -> Call:
        calls = self._calls
        return Call(
            self._scripts[script], calls.key(batch), args, calls.batch_keys(batch)
        )

    def _tell(self, script: str, batch: str, *args: str | int) -> Call:
        """Return a call with the lifetimes of a batch."""
        index = self._index
        return self._call(script, batch, index.active_ttl, index.ended_ttl, *args)
