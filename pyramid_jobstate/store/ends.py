"""The ends of jobs that are to be told to hooks: see lua/untold.lua."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..job.hooks import HookInfo
from .connection import text
from .lists import escaped
from .reader import Reader
from .scripts import Call, Calls

#: For how many milliseconds a process takes an end that it is about to tell.
LEASE = 15_000

#: The most ends that a process takes at once.
MAX_TAKEN = 100


class UntoldEnd(NamedTuple):
    """The end of a job that is to be told.

    Attributes:
      uuid: The job, or the batch.
      hooks: What its record says of its hooks.
      kind: Its kind.
      status: The status with which it has ended.
      finished: When it ended, as it is stored. With the uuid, it tells two ends apart.
      owner: Its owner as JSON, or None.
    """

    uuid: str
    hooks: HookInfo
    kind: str
    status: str
    finished: str
    owner: str | None


class Ends:
    """The ends that are to be told.

    Parameters:
      run: Runs calls and returns their replies: see :meth:`.Runner.run`.
      calls: Makes them.
      reader: Reads keys.
    """

    def __init__(
        self, run: Callable[[Iterable[Call]], list[Any]], calls: Calls, reader: Reader
    ) -> None:
        self._run = run
        self._calls = calls
        self._reader = reader

    @property
    def can_be_kept(self) -> bool:
        """Whether all keys share a slot, so that a script can write an end and note
        that it is to be told.
        """
        return not self._calls.is_spread

    def take(self, queues: Iterable[str], kinds: Sequence[str]) -> list[UntoldEnd]:
        """Take ends that are due, at most MAX_TAKEN. For a while, no other process
        takes them.

        Parameters:
          queues: The queues of the messages that tell them.
          kinds: The kinds of the jobs.
        """
        own = {_name(queue, kind) for queue in queues for kind in kinds}
        names = [*own & self._reader.members(self._calls.untold_key)]
        # Those of a busy kind must not hold up the others.
        random.shuffle(names)
        return self._take(names, MAX_TAKEN) if names else []

    def take_one(self, uuid: str) -> UntoldEnd | None:
        """Take the end of a job. Return None if it is not to be told, or another
        process has taken it.
        """
        found = self._take([], 1, uuid)
        return found[0] if found else None

    def _take(
        self, names: Sequence[str], limit: int, uuid: str = ""
    ) -> list[UntoldEnd]:
        (rows,) = self._run([self._calls.take_ends(names, LEASE, limit, uuid)])
        found = []
        for row in rows or ():
            uuid, own, kind, status, finished, owner = map(text, row)
            hooks = HookInfo.parse(own)
            if hooks is not None:
                end = UntoldEnd(uuid, hooks, kind, status, finished, owner or None)
                found.append(end)
        return found

    def mark_sent(self, ends: Iterable[UntoldEnd]) -> None:
        """Write that the broker has accepted the messages that tell ends."""
        self._run(self._calls.end_sent(end.uuid, end.finished) for end in ends)

    def begin(self, uuid: str, finished: str, message_id: str) -> bool:
        """Write that a hook is about to run. Return whether it may: the job has still
        the end that the message tells, and no other message has told it.
        """
        call = self._calls.begin_hook(uuid, finished, message_id)
        return self._run([call]) == [1]

    def tell_again(self, uuid: str, finished: str, message_id: str) -> None:
        """Write that another message is to tell an end, as this one is lost."""
        self._run([self._calls.tell_again(uuid, finished, message_id)])

    def tell(self, uuid: str) -> None:
        """Write that the end of a batch is to be told, which nobody has been told."""
        fields = self._reader.fields(self._reader.key(uuid), ("finished",))
        self.tell_again(uuid, fields.get("finished", ""), "")

    def finish(
        self, uuid: str, finished: str, message_id: str, *, is_given_up: bool
    ) -> None:
        """Write that a message that tells an end is settled, and is not tried again.

        Parameters:
          is_given_up: Whether the hook has not returned, and may not have begun. Else
            the message may have run nothing, as the job had no such end.
        """
        call = self._calls.end_hook(uuid, finished, message_id, is_given_up=is_given_up)
        self._run([call])


def _name(queue: str, kind: str) -> str:
    """Return the name of a set: see untold_in() in lua/untold.lua."""
    return f"{queue}:{escaped(kind)}"
