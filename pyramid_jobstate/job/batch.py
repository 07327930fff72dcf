"""Batches: one bar for many jobs."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Self

from .members import Block, MemberSender, SendsMembers
from .progress import Progress
from .record import (
    BATCH_MARK,
    CANCELLED,
    MEMBERS_CANCELLED,
    MEMBERS_FAILED,
    Counts,
    JobError,
    Record,
)
from .state import Inner, JobState

#: The statuses of members that are counted, and the fields of a batch's record that
#: count them: see store/lua/batch.lua.
COUNTED = {
    "queued": ("n:n", "n:q"),
    "working": ("n:w",),
    "retrying": ("n:r",),
    "success": ("n:s",),
    "error": ("n:e",),
    "cancelled": ("n:c",),
}

#: The statuses of members that never run once the batch is cancelled.
WAITING = ("queued", "retrying")

#: The fields that count the members that are over.
OVER = ("n:s", "n:e", "n:c")


@dataclasses.dataclass(frozen=True, slots=True)
class BatchProgress(Progress):
    """The progress of a batch: how many of its members are over, and how much of the
    work is done, by the weights of the members.

    Attributes:
      share: The share that is done, from 0 to 1.
    """

    share: float = 0.0

    @property
    def fraction(self) -> float:
        """The share that is done, from 0 to 1."""
        return self.share


class Batch(SendsMembers, JobState):
    """Many jobs that are shown as one: its members.

    ``request.job_states.batch()`` returns one, and takes the members in a `with`
    block::

        with request.job_states.batch(ImportAll, title="Import of 3 files") as batch:
            for name in names:
                batch.send(import_file, name)

    Subclass it, like :class:`.JobState`, to give a kind of batch its own rights and
    hooks. Workers call these when the batch ends, and again if it goes on and ends once
    more. They must have imported the subclass.

    Batches of a kind may differ in size, so `show_usual` is False by default.
    """

    show_usual = False

    def __init__(self, inner: Inner) -> None:
        super().__init__(inner)
        own = inner.record.text("title")
        if own is not None:
            # In place of the attribute of a subclass, unless that is a property.
            vars(self)["title"] = own

    @property
    def _member_sender(self) -> MemberSender | None:
        return self._inner.members

    @property
    def title(self) -> str:
        """The heading that viewers see, that of this batch or else of its class."""
        own = self._inner.record.text("title")
        return super().title if own is None else own

    @property
    def size(self) -> int:
        """The number of members."""
        return self._inner.record.number("size")

    @property
    def allow_failures(self) -> bool:
        """Whether the batch succeeds even if members fail."""
        return self._inner.record.text("allow") is not None

    @property
    def counts(self) -> Counts:
        """How many members have which status."""
        return Counts(**member_counts(self._inner.record))

    @property
    def progress(self) -> Progress:
        """How many of the members are over, and how much of the work is done."""
        record = self._inner.record
        over = sum(map(record.number, OVER))
        if self.is_finished:
            # Also those that waited when the batch was cancelled.
            over = self.size
        weight = record.number("weight") * 1_000_000
        # A job that runs again takes work back. The bar waits until it is done again.
        done, held = (
            min(record.number(name) / weight, 1.0) if weight else 1.0
            for name in ("sum", "held")
        )
        eta = None if self.is_finished else self._eta(done)
        share = 1.0 if self.is_finished else max(done, held)
        return BatchProgress(over, self.size, "jobs", eta, share=share)

    def _eta(self, share: float) -> float | None:
        """Return the seconds to the end at the pace since the beginning."""
        started, updated = map(self._inner.record.millis, ("started", "updated"))
        if not share or self.status != "working" or not started or not updated:
            return None
        seconds = (updated - started) / 1000
        return round(seconds * (1 - share) / share, 1) if seconds >= 1 else None

    @property
    def error(self) -> JobError | None:
        """Why the batch did not succeed, or None."""
        if self.status != "cancelled":
            return MEMBERS_FAILED if self.status == "error" else None
        # Nobody may have cancelled the batch, but one of its members.
        is_own = self._inner.record.text("stopped") is not None
        return CANCELLED if is_own or not self.size else MEMBERS_CANCELLED

    def __enter__(self) -> Self:
        block: Block = self._members
        block.enter()
        return self

    def __exit__(
        self,
        cls: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        block: Block = self._members
        block.leave(error)

    def _own_json(self, url: str, request: Any, states: Any) -> dict[str, Any]:
        own = f"{self.uuid}/"
        if url.endswith(own):
            # To build it anew costs a poll as much as its permission.
            members = f"{url.removesuffix(own)}?batch={self.uuid}"
        else:
            members = request.resource_url(states, query={"batch": self.uuid})
        return {"counts": member_counts(self._inner.record), "members": members}


def member_counts(record: Record) -> dict[str, int]:
    """Return how many members of a batch have which status, as in its JSON."""
    number = record.number
    counts = {status: sum(map(number, fields)) for status, fields in COUNTED.items()}
    if record.text("stopped") is not None:
        stopped = (*WAITING, "working") if record.is_finished else WAITING
        for status in stopped:
            counts["cancelled"] += counts[status]
            counts[status] = 0
    return counts


class UnknownBatch(Batch):
    """A batch of a kind unknown to this process. Only its lineage grants access."""

    kind = BATCH_MARK

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []
