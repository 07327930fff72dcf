"""The members of a batch, gathered in its `with` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..job import Batch, JobState, NewJob, check_weight, record_of
from .outgoing import Outgoing

if TYPE_CHECKING:
    from dramatiq import Broker

NOT_OPEN = (
    "A batch takes members only within its block, until its transaction is committed "
    "or aborted: with request.job_states.batch() as batch: batch.send(...)"
)


class Gathering:
    """The members of a batch, gathered in its `with` block. See :class:`.MemberSender`.

    Parameters:
      batch: The batch.
      fields: The fields of its record, which show the members once the block has ended.
      owner: The owner of the batch and of its members.
      origin: As for :class:`.Prepared`.
      begin: Is called when the block begins.
      end: Is called when it ends, with whether the batch is to be sent.
      check: Checks an Outgoing before it becomes a member.

    Attributes:
      items: What is to be sent, in order, each with its weight in thousandths.
      is_open: Whether the block has begun and has not ended.
      is_withdrawn: Whether nothing is to be sent.
    """

    def __init__(
        self,
        batch: Batch,
        fields: dict[str, str],
        owner: object,
        *,
        origin: Callable[[], Mapping[str, str]],
        begin: Callable[[], None],
        end: Callable[[bool], None],
        check: Callable[[Outgoing], None],
    ) -> None:
        self.items: list[tuple[Outgoing, int]] = []
        self.is_open = self.is_withdrawn = False
        self._is_used = False
        self._batch = batch
        self._fields = fields
        self._owner = owner
        self._origin = origin
        self._begin = begin
        self._end = end
        self._check = check
        self._uuids: set[str] = set()

    def enter(self) -> None:
        if self._is_used:
            raise RuntimeError("The block of a batch can be entered only once.")
        self._begin()
        self._is_used = self.is_open = True
        self.show()

    def leave(self, error: BaseException | None) -> None:
        self.is_open = False
        if error is not None:
            self.truncate(0)
            self.is_withdrawn = True
        self.show()
        self._end(not self.is_withdrawn)

    def truncate(self, count: int) -> None:
        """Keep only the first items: a savepoint is rolled back."""
        for outgoing, _ in self.items[count:]:
            self._uuids.difference_update(job.uuid for job in outgoing.jobs)
        del self.items[count:]
        self.show()

    def jobs(self) -> list[NewJob]:
        """Return the members, in order."""
        return [job for outgoing, _ in self.items for job in outgoing.jobs]

    def show(self) -> None:
        """Let the batch that the sender has show its members."""
        weights = [weight * len(outgoing.jobs) for outgoing, weight in self.items]
        size = str(len(self._uuids))
        self._fields.update({"size": size, "n:q": size, "weight": str(sum(weights))})
        status = "queued" if self.items or self.is_open else "success"
        record_of(self._batch).status = "cancelled" if self.is_withdrawn else status

    def take(
        self,
        what: Any,
        *,
        broker: Broker | None,
        key: str | None,
        weight: float,
        delay: Any,
    ) -> Sequence[JobState]:
        if not self.is_open or self.is_withdrawn:
            raise RuntimeError(NOT_OPEN)
        checked = check_weight(weight)
        outgoing = Outgoing(
            what,
            self._owner,
            broker=broker,
            delay=delay,
            origin=self._origin,
            batch=self._batch.uuid,
            key=key,
        )
        self._check(outgoing)
        uuids = [job.uuid for job in outgoing.jobs]
        if not self._uuids.isdisjoint(uuids) or len({*uuids}) < len(uuids):
            raise ValueError(
                f"The message {what!r} is in the batch already."
                if key is None
                else f"The key {key!r} was used before in this batch, for the same "
                "actor."
            )
        self._uuids.update(uuids)
        self.items.append((outgoing, checked))
        return outgoing.job_states
