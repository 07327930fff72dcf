"""Batches: what each knows of its members, which tell it of their changes.

Every change of a member's record has a number, and a batch applies only those that are
newer than the last one that it knows. So it does no harm to tell it twice, late or out
of order, and what was not told can be told later: see :meth:`.BatchReads.look`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from ..job import CANCELLED, JobInfo, Member, NewBatch, dumps
from .calls import millis
from .commands import Command
from .connection import execute, text
from .filters import OUTLINE
from .scripts import Call, Script, run_scripts
from .told import ENDED, LETTERS, MOVED, REOPENED, Change, Heard
from .trouble import checked

if TYPE_CHECKING:
    from .calls import Calls
    from .connection import Client
    from .index import Index
    from .reading import Reader

#: How many members are added in one call.
PORTION = 500


class Members:
    """The members of the batches of a store.

    Parameters:
      client: The server.
      scripts: The scripts by name.
      calls: Makes the calls that change jobs.
      reader: Reads records.
      index: The lists.
      silence: Milliseconds without a sign of life after which a batch is looked at.
    """

    def __init__(
        self,
        client: Client,
        scripts: Mapping[str, Script],
        calls: Calls,
        reader: Reader,
        index: Index,
        silence: int,
    ) -> None:
        self._client = client
        self._scripts = scripts
        self._calls = calls
        self._reader = reader
        self._index = index
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
        self._add(batch.uuid, batch.members)
        delay = max((millis(member.job.delay) for member in batch.members), default=0)
        self._run(self._index.batch(batch.uuid, batch.info, status, delay))

    def add(
        self, batch: str, members: Sequence[Member], sender: str = ""
    ) -> Sequence[int]:
        """Add members to a batch that are about to be sent, and list it anew if they
        are due late.

        Parameters:
          sender: The running member that sends them, or "" if the batch is being sent.

        Returns:
          The reply to each: see the script.
        """
        change, found = self._add(batch, members, sender)
        if change is not None:
            self._list([batch], [change])
        return found

    def _add(
        self, batch: str, members: Sequence[Member], sender: str = ""
    ) -> tuple[Sequence[Any] | None, list[int]]:
        """Return how the batch has changed, if it takes them, and those replies."""
        change: Sequence[Any] | None = None
        replies: list[int] = []
        for i in range(0, len(members), PORTION):
            words: list[str | int] = []
            for job, weight in members[i : i + PORTION]:
                letter = "q" if job.waits else "n"
                words += [job.uuid, letter, weight, millis(job.delay)]
            call = self._tell("add_members", batch, sender, *words)
            (found,) = self._run([call])
            found = found or [-1]
            if found[0] < 0:
                return None, found
            change, replies = found[:5], replies + found[5:]
        return change, replies

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
        return [text(word) for word in found or ()]

    def tell(self, change: Change) -> Call:
        """Return the call that tells a batch of a change."""
        done = "" if change.millionths is None else change.millionths
        words: list[str | int] = [
            change.uuid,
            change.rev,
            change.letter,
            done,
            change.delay,
            "" if change.heard is None else change.heard,
        ]
        if change.known is not None:
            words.append(change.known)
        return self._tell("tell_batch", change.batch, *words)

    def tell_all(self, changes: Sequence[Change]) -> None:
        """Tell batches of changes.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        if not changes:
            return
        replies = self._run(map(self.tell, changes))
        pairs = zip(changes, replies, strict=True)
        sound = [(change, reply) for change, reply in pairs if reply is not None]
        self.settle([change for change, _ in sound], [reply for _, reply in sound])

    def settle(self, changes: Sequence[Change], replies: Sequence[Any]) -> list[Heard]:
        """Take the replies of batches that were told of changes: move the batches in
        the lists, and tell those again that know of a later change than the record of
        their member, which the store has lost. A member whose batch the store has lost
        is a job of its own from now on.

        Returns:
          What each has answered.
        """
        heard = [Heard(text(reply[0]), reply[1] == 1) for reply in replies]
        self._list([change.batch for change in changes], [r[2:] for r in replies])
        # Otherwise the next change of the member does.
        with contextlib.suppress(RedisError):
            pairs = zip(changes, replies, strict=True)
            self._part([change.uuid for change, reply in pairs if not reply[3]])
        ahead = [
            (change, answer.rev)
            for change, answer in zip(changes, heard, strict=True)
            if answer.rev and int(answer.rev) > int(change.rev)
        ]
        # Else a look at the members finds them.
        with contextlib.suppress(RedisError):
            # What they know then is not ahead of the records.
            self.tell_all(self._raised(ahead))
        return heard

    def _part(self, uuids: Sequence[str]) -> None:
        """List members whose batches are gone as jobs of their own."""
        if not uuids:
            return
        keys = map(self._reader.key, uuids)
        execute(self._client, [Command(key, ("HDEL", key, "batch")) for key in keys])
        records = self._reader.read(uuids, *OUTLINE)
        self._run(
            call
            for record in records
            if record is not None
            for call in self._index.relist(record.uuid, record)
        )

    def _raised(self, ahead: Sequence[tuple[Change, str]]) -> list[Change]:
        """Number the changes of records above those that their batches know. Return
        those of records that were behind.
        """
        replies = self._run(
            Call.of(self._scripts["raise"], self._reader.key(change.uuid), (rev,))
            for change, rev in ahead
        )
        return [
            change._replace(rev=text(reply[0]), status=text(reply[1]))
            for (change, _), reply in zip(ahead, replies, strict=True)
            if reply and text(reply[1]) in LETTERS
        ]

    def _list(self, batches: Sequence[str], changes: Sequence[Sequence[Any]]) -> None:
        """Move batches in the lists that have changed.

        Parameters:
          changes: What has changed of each, its status, kind and owner, and the
            milliseconds until it is due.
        """
        # Lists move what they find in a wrong place.
        with contextlib.suppress(RedisError):
            self._run(
                call
                for batch, (what, *words) in zip(batches, changes, strict=True)
                if what
                for call in self._move(batch, what, *map(text, words))
            )

    def _move(
        self, batch: str, what: int, status: str, kind: str, owner: str, due: str
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
            yield from self._index.batch(batch, info, status, int(due))

    def _run(self, calls: Iterable[Call]) -> Sequence[Any]:
        """Run calls and return their replies: see :func:`.checked`."""
        calls = list(calls)
        return checked(calls, run_scripts(self._client, calls) if calls else [])

    def _call(self, script: str, batch: str, *args: str | int) -> Call:
        calls = self._calls
        return Call.of(
            self._scripts[script], calls.key(batch), args, calls.batch_keys(batch)
        )

    def _tell(self, script: str, batch: str, *args: str | int) -> Call:
        """Return a call with the lifetimes of a batch."""
        index = self._index
        return self._call(script, batch, index.active_ttl, index.ended_ttl, *args)
