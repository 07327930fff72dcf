"""Batches: how a request sends them, and reads their members."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from ..job import Batch, translated
from ..store import Page
from ..worker import Outgoing, OutgoingBatch
from .interfaces import IOutbox
from .joining import join
from .permits import name_visitor, sender_of
from .sending import DEFAULT, Default, Sender

AnyBatch = TypeVar("AnyBatch", bound=Batch)

#: The request attribute that says whether the block of a batch is open.
_OPEN = "_jobstate_batch"


class BatchSender(Sender):
    """The methods of :class:`.JobStates` that send batches, and read them."""

    def batch(
        self,
        # mypy takes no default for a type variable: python/mypy#3737.
        batch_class: type[AnyBatch] = Batch,  # type: ignore[assignment]
        *,
        title: str | None = None,
        owner: str | float | Default | None = DEFAULT,
        allow_failures: bool = False,
    ) -> AnyBatch:
        """Send many jobs that are shown as one, when the transaction commits::

            with request.job_states.batch(title="Import of 3 files") as batch:
                for name in names:
                    batch.send(import_file, name)

        An exception in the block sends nothing. A batch without members has succeeded
        at once.

        Parameters:
          batch_class: The class of the batch, which decides who may do what with it.
          title: The heading of this batch, in place of that of its class.
          owner: The owner of the batch and of its members, or None for no owner.
          allow_failures: Whether the batch succeeds even if members fail.

        Returns:
          The batch, which takes members within a `with` block.

        Raises:
          TypeError: The class is not a Batch, the title is not a string, or the owner
            neither a string nor a number.
          RuntimeError: As :meth:`send`, when the block begins; or it begins within the
            block of another batch.
        """
        is_default = owner is DEFAULT
        found: Any = sender_of(self.request) if is_default else owner
        outbox = self.request.registry.queryUtility(IOutbox)

        def begin() -> None:
            if self.request.__dict__.get(_OPEN):
                raise RuntimeError(
                    "Batches cannot be nested. Leave the first block before you enter "
                    "another."
                )
            if outbox is None:
                join(self.request, self.ask, outgoing)
            self.request.__dict__[_OPEN] = True

        def end(is_sent: bool) -> None:
            self.request.__dict__[_OPEN] = False
            if not is_sent:
                return
            if outbox is not None:
                outbox.keep_batch(outgoing)
            if is_default:
                name_visitor(self.request, found)

        def check(item: Outgoing) -> None:
            if outbox is None:
                item.check(self.store)

        outgoing = OutgoingBatch(
            batch_class,
            None if title is None else translated(title, self),
            found,
            allow_failures=allow_failures,
            origin=self._origin,
            begin=begin,
            end=end,
            check=check,
        )
        self._adopt(outgoing.batch)
        return cast("AnyBatch", outgoing.batch)

    def members(
        self,
        batch: str,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of the members of a batch, without checking permissions: see
        :meth:`.JobStore.members`.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid.
          StoreUnavailable: The store does not answer.
        """
        page = self.ask(lambda store: store.members(batch, status, limit, cursor))
        for job_state in page.items:
            self._adopt(job_state)
        return page
