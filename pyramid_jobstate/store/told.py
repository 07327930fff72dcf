"""The changes that members report to their batches, and the replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..job import JobInfo, NewJob
from .calls import millis
from .connection import text

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
      heard: When it was last heard of, in milliseconds of the store's clock, or None
        for now.
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
    heard: int | None = None
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


def delayed(changes: Iterable[Change], jobs: Iterable[NewJob]) -> list[Change]:
    """Return the changes of jobs that are sent, with the times until they are due."""
    delays = {job.uuid: millis(job.delay) for job in jobs}
    return [change._replace(delay=delays[change.uuid]) for change in changes]


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
