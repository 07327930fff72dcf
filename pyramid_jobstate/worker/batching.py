"""Batches to be sent, with their members."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from ..job import (
    BATCH,
    Batch,
    JobInfo,
    Member,
    NewBatch,
    NewJob,
    Record,
    dumps,
    set_member_sender,
    set_store,
)
from .gathering import Gathering
from .options import check_owner
from .outgoing import failure_to_send

if TYPE_CHECKING:
    from ..store import JobStore

T = TypeVar("T")

#: How many jobs are written in one round trip.
PORTION = 500

#: How many messages are sent before it is written that the broker has accepted them.
CONFIRMED = 100

#: The most characters of a title that one batch is given.
TITLE_LENGTH = 200


class OutgoingBatch:
    """A batch to be sent with its members. A data manager does with it what it does
    with an :class:`.Outgoing`.

    Parameters:
      batch_class: The class of the batch.
      title: The title of this batch, or None for that of the class.
      allow_failures: Whether it succeeds even if members fail.
      owner: The owner of the batch and of its members, or None.
      options: The other parameters of :class:`Gathering`.

    Attributes:
      batch: The batch.
      members: Its members.
      job_states: The batch alone.
      store: The store to which :meth:`record` has written it.
      unique: None, since batches are not unique.

    Raises:
      TypeError: The class is not a Batch, the title not a string, or the owner neither
        a string nor a number.
    """

    unique = None
    store: JobStore

    def __init__(
        self,
        batch_class: type[Batch],
        title: str | None,
        owner: object,
        *,
        allow_failures: bool,
        **options: Any,
    ) -> None:
        checked = check_owner(owner)
        self._info, self._own = describe(
            batch_class, title, checked, allow_failures=allow_failures
        )
        self._sender = secrets.token_hex(6)
        now = str(int(time.time() * 1000))
        fields = {**self._info.fields(), **self._own, "queued": now, "updated": now}
        self.batch = batch_class(Record(str(uuid.uuid4()), fields, "queued"))
        self.job_states = [self.batch]
        self.members = Gathering(self.batch, fields, checked, **options)
        set_member_sender(self.batch, self.members)
        self._confirms = True
        self._is_sent = False

    def record(self, store: JobStore) -> None:
        """Write the batch and its members.

        Raises:
          RuntimeError: The block of the batch has not ended.
        """
        self.store = store
        members = self.members
        if members.is_withdrawn:
            return
        if members.is_open:
            raise RuntimeError(
                "The transaction is being committed inside the block of a batch. "
                "Leave the block first."
            )
        store.records.batches.open(self._new())
        replies: list[bool | str] = []
        for portion in portions(members.jobs(), PORTION):
            # The batch knows already that they are being sent.
            replies += store.records.create_new(*portion, tells=False)
        rest = iter(replies)
        for outgoing, _ in members.items:
            outgoing.note(store, [next(rest) for _ in outgoing.jobs])
        set_store(self.batch, store.records)

    def forget(self, store: JobStore) -> None:
        """Undo :meth:`record`: nothing was sent."""
        jobs = [job for item, _ in self.members.items for job in item.to_forget()]
        for portion in portions(jobs, PORTION):
            store.records.forget(*portion)
        store.records.batches.forget(self._new())

    def withdraw(self) -> None:
        """Note that nothing is sent: the transaction is aborted, unless it has been
        committed.
        """
        if not self._is_sent:
            self.members.is_withdrawn = True
            self.members.show()

    def send(self) -> None:
        """Hand the messages to the broker. Call :meth:`record` before.

        Raises:
          Exception: The broker did not accept them.
        """
        accepted: list[NewJob] = []
        self._is_sent = True
        try:
            for outgoing, _ in self.members.items:
                before = {*outgoing.unsent}
                try:
                    outgoing.send(confirms=False)
                finally:
                    sent = before - outgoing.unsent
                    accepted += [job for job in outgoing.jobs if job.uuid in sent]
                if len(accepted) >= CONFIRMED:
                    self._confirm(accepted)
        finally:
            self._confirm(accepted)

    def fail(self, store: JobStore) -> None:
        """Write the failure of the members that the broker did not accept."""
        left = [job for outgoing, _ in self.members.items for job in outgoing.left()]
        for portion in portions(left, PORTION):
            store.records.write([failure_to_send(job) for job in portion])

    def _confirm(self, accepted: list[NewJob]) -> None:
        """Write that the broker has accepted messages."""
        if self._confirms:
            try:
                self.store.records.confirm_members(accepted)
            except RedisError:
                # A batch that stays silent looks at its members. Do not wait for a
                # failing store again and again.
                self._confirms = False
        accepted.clear()

    def _new(self) -> NewBatch:
        members = [
            Member(job, weight)
            for outgoing, weight in self.members.items
            for job in outgoing.jobs
        ]
        return NewBatch(self.batch.uuid, self._info, self._own, self._sender, members)


def describe(
    batch_class: type[Batch], title: str | None, owner: object, *, allow_failures: bool
) -> tuple[JobInfo, dict[str, str]]:
    """Return what the record of a batch says beside its members.

    Raises:
      TypeError: The class is not a Batch, or the title not a string.
    """
    if not (isinstance(batch_class, type) and issubclass(batch_class, Batch)):
        raise TypeError(f"A batch needs a subclass of Batch, not {batch_class!r}.")
    if not isinstance(title, str | None):
        raise TypeError(f"The title of a batch must be a string, not {title!r}.")
    encoded = None if owner is None else dumps(owner)
    info = JobInfo(batch_class.kind, "", 0, encoded, "{}", batch=BATCH)
    fields = {}
    if title is not None:
        # It may hold a file name that is not valid Unicode.
        title = title.encode("utf-8", "replace").decode()
        fields["title"] = title[:TITLE_LENGTH]
    if allow_failures:
        fields["allow"] = "1"
    return info, fields


def portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items, some at a time."""
    for i in range(0, len(items), size):
        yield items[i : i + size]
