"""Batches to be sent, and their members."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dramatiq import Message, group
from dramatiq.common import q_name
from redis.exceptions import RedisError

from ..errors import ActorError, StoreUnavailable
from ..job.batch import Batch
from ..job.members import check_key, check_weight
from ..job.record import BATCH_MARK, NOT_SENT, JobInfo, Member, NewBatch, NewJob, Record
from ..job.run import Run
from ..job.state import Inner, JobState, class_hooks, inner_of, record_of
from ..job.values import encode_owner
from ..store.connection import ConnectionsInUse, redis_errors
from ..store.jobstore import JobStore, records_of
from .hooks import check_hooks
from .ledger import global_broker, ledger_of
from .message import APPLICATION, OWNER, URL, check_owner, hook_text
from .outgoing import Outgoing, failure_to_send

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

log = logging.getLogger("pyramid_jobstate")

NOT_OPEN = (
    "A batch takes members only within its block, until its transaction is committed "
    "or aborted: with request.job_states.batch() as batch: batch.send(...)"
)

T = TypeVar("T")

#: How many jobs are written in one round trip.
PORTION = 500

#: How many messages are sent before it is written that the broker has accepted them.
CONFIRMED = 100

#: The most characters of a title that one batch is given.
TITLE_LENGTH = 200

#: Why a batch takes no members, by what the script `add_members` says. The run that
#: sends them has to stop in the last two cases.
UNKNOWN = -1

REFUSALS = {
    -2: "it is over",
    -3: "it was cancelled",
    -4: "the run that sends them is over",
}

STOPS = (-3, -4)


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
      ValueError: The owner is one of Pyramid's own principals.
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
        self._info, self._own = describe_batch(
            batch_class, title, checked, allow_failures=allow_failures
        )
        self._sender = secrets.token_hex(6)
        now = str(int(time.time() * 1000))
        fields = {**self._info.fields(), **self._own, "queued": now, "updated": now}
        inner = Inner(Record(str(uuid.uuid4()), fields, "queued"))
        self.batch = batch_class(inner)
        self.job_states = [self.batch]
        self.members = Gathering(self.batch, fields, checked, **options)
        inner.members = self.members
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
        self._info = self._info._replace(hooks=self._hooks())
        records_of(store).batches.open(self._new())
        replies: list[bool | str] = []
        for portion in portions(members.jobs(), PORTION):
            # The batch knows already that they are being sent.
            replies += records_of(store).create_new(*portion, tells=False)
        rest = iter(replies)
        for outgoing, _ in members.items:
            outgoing.note(store, [next(rest) for _ in outgoing.jobs])
        inner_of(self.batch).store = records_of(store)

    def forget(self, store: JobStore) -> None:
        """Undo :meth:`record`: nothing was sent."""
        jobs = [job for item, _ in self.members.items for job in item.left()]
        for portion in portions(jobs, PORTION):
            records_of(store).forget(*portion)
        records_of(store).batches.forget(self._new())

    @property
    def unsent(self) -> set[str]:
        """The uuids of the batch and its members, unless nothing is sent."""
        members = self.members
        return set() if members.is_withdrawn else {self.batch.uuid, *members.uuids}

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
        if self._info.hooks is not None and not self.members.items:
            self._tell()

    def fail(self, store: JobStore) -> None:
        """Write the failure of the members that the broker did not accept."""
        left = [job for outgoing, _ in self.members.items for job in outgoing.left()]
        for portion in portions(left, PORTION):
            records_of(store).write([failure_to_send(job) for job in portion])

    def _confirm(self, accepted: list[NewJob]) -> None:
        """Write that the broker has accepted messages."""
        if self._confirms:
            try:
                records_of(self.store).confirm_members(accepted)
            except RedisError:
                # A batch that stays silent looks at its members. Do not wait for a
                # failing store again and again.
                self._confirms = False
        accepted.clear()

    def _tell(self) -> None:
        """Have the hooks of an empty batch told that it is over."""
        try:
            records_of(self.store).ends.tell(self.batch.uuid)
        except RedisError as e:
            log.error(
                "The hooks of the empty batch %s are not called, since the store does "
                "not answer: %s",
                self.batch.uuid,
                e,
            )

    def _hooks(self) -> str | None:
        """Return what the record of the batch says of its hooks, or None.

        Raises:
          ActorError: They cannot be told.
          TypeError: The batch is empty, and no broker is set.
        """
        cls, items = type(self.batch), self.members.items
        if not class_hooks(cls):
            return None
        broker = items[0][0].broker if items else global_broker()
        if broker is None:
            raise TypeError("No Dramatiq broker is set. Call dramatiq.set_broker(...).")
        check_hooks(cls, broker, self.store)
        hooks = ledger_of(broker).hooks
        queue = hooks.queue or next(
            (q_name(outgoing.messages[0].queue_name) for outgoing, _ in items),
            hooks.queue_of(broker),
        )
        if queue is None:
            raise ActorError(
                f"The broker {broker!r} has no tracked actor, whose queue would take "
                f"the hooks of the empty batch {self.batch.uuid}. Import the modules "
                "of the actors, or name a hooks_queue."
            )
        return hook_text(cls, queue, self.members.origin())

    def _new(self) -> NewBatch:
        members = [
            Member(job, weight)
            for outgoing, weight in self.members.items
            for job in outgoing.jobs
        ]
        return NewBatch(self.batch.uuid, self._info, self._own, self._sender, members)


class Gathering:
    """The members of a batch, gathered in its `with` block. See :class:`.MemberSender`.

    Parameters:
      batch: The batch.
      fields: The fields of its record, which show the members once the block has ended.
      owner: The owner of the batch and of its members.
      origin: As for :class:`.Outgoing`.
      begin: Is called when the block begins.
      end: Is called when it ends, with whether the batch is to be sent.
      check: Checks an Outgoing before it becomes a member.

    Attributes:
      origin: As it was given.
      items: What is to be sent, in order, each with its weight in thousandths.
      uuids: The uuids of the members.
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
        self.origin = origin
        self._begin = begin
        self._end = end
        self._check = check
        self.uuids: set[str] = set()

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
            self.uuids.difference_update(job.uuid for job in outgoing.jobs)
        del self.items[count:]
        self.show()

    def jobs(self) -> list[NewJob]:
        """Return the members, in order."""
        return [job for outgoing, _ in self.items for job in outgoing.jobs]

    def show(self) -> None:
        """Let the batch that the sender has show its members."""
        weights = [weight * len(outgoing.jobs) for outgoing, weight in self.items]
        size = str(len(self.uuids))
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
            origin=self.origin,
            batch=self._batch.uuid,
            key=key,
        )
        self._check(outgoing)
        uuids = [job.uuid for job in outgoing.jobs]
        if not self.uuids.isdisjoint(uuids) or len({*uuids}) < len(uuids):
            raise ValueError(
                f"The message {what!r} is in the batch already."
                if key is None
                else f"The key {key!r} was used before in this batch, for the same "
                "actor."
            )
        self.uuids.update(uuids)
        self.items.append((outgoing, checked))
        return outgoing.job_states


def describe_batch(
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
    info = JobInfo(batch_class.kind, owner=encode_owner(owner), batch=BATCH_MARK)
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


class RunningMember:
    """Sends members of a batch from a running one. See :class:`.MemberSender`.

    Parameters:
      broker: The broker that has delivered its message.
      message: Its message.
      batch: The uuid of its batch.
      run: Its run.
    """

    def __init__(
        self,
        broker: Broker,
        message: Message[Any] | MessageProxy,
        batch: str,
        run: Run,
    ) -> None:
        self._broker = broker
        self._message = message
        self._batch = batch
        self._run = run
        #: The members that this run has sent or is sending, by their ids. The values
        #: tell its threads apart.
        self._sent: dict[str, object] = {}

    def take(
        self,
        what: Any,
        *,
        broker: Broker | None,
        key: str | None,
        weight: float,
        delay: Any,
    ) -> Sequence[JobState]:
        self._run.check()
        if isinstance(what, group):
            raise TypeError(
                "A running member sends the parts of a group one by one, each with a "
                "key of its own."
            )
        if isinstance(what, Message):
            broker = broker or self._broker
        if key is None:
            raise TypeError(
                "batch.send() from a running job needs a key, such as "
                "job_state.batch.send(actor, name, key=name): if the job runs again, "
                "it finds the members that it has sent before."
            )
        options = self._message.options
        outgoing = Outgoing(
            what,
            options.get(OWNER),
            broker=broker,
            delay=delay,
            origin=lambda: {k: options[k] for k in (URL, APPLICATION) if k in options},
            batch=self._batch,
            key=check_key(key),
            sender=self._message.message_id,
        )
        first = outgoing.jobs[0].uuid
        weighed = check_weight(weight)
        if self._sent.setdefault(first, outgoing) is not outgoing:
            raise ValueError(
                f"The key {key!r} was used before in this job, for the same actor."
            )
        try:
            self.dispatch(outgoing, weighed)
        except BaseException:
            del self._sent[first]
            raise
        return outgoing.job_states

    def dispatch(self, outgoing: Outgoing, weight: int) -> None:
        """Add members to the batch and send them, unless an earlier run has.

        Parameters:
          weight: The weight of each, in thousandths.

        Raises:
          StoreUnavailable: The store does not answer.
        """
        members = [Member(job, weight) for job in outgoing.jobs]
        store = ledger_of(self._broker).store_for(self._broker)
        outgoing.check(store)
        try:
            with redis_errors():
                is_to_send = self._is_to_send(store, outgoing, members)
        except ConnectionsInUse as e:
            raise StoreUnavailable(None, str(e)) from e
        except RedisError as e:
            raise StoreUnavailable(None) from e
        if is_to_send:
            self._enqueue(store, outgoing)

    def _is_to_send(
        self, store: JobStore, outgoing: Outgoing, members: Sequence[Member]
    ) -> bool:
        """Add members to the batch, and write that their jobs are queued. Return
        whether they have to be sent: no earlier run of this job has sent them.
        """
        own = self._message.message_id
        # A run that is not stored yet does not count as an earlier one.
        if self._run.token in records_of(store).earlier_runs(own):
            self._refuse(-4)
        (reply, *_) = records_of(store).batches.add(self._batch, members, own)
        if reply in REFUSALS:
            self._refuse(reply)
        if reply == UNKNOWN:
            log.warning(
                "The store has lost the batch %s. Jobs that its members send now run "
                "outside it.",
                self._batch,
            )
            outgoing.leave_batch()
        if not reply:
            return False
        first, *_ = found = records_of(store).create_new(*outgoing.jobs)
        outgoing.note(store, found)
        if first is True:
            return True
        # An earlier run has sent it, or has failed to.
        record = records_of(store).record(outgoing.jobs[0].uuid)
        return record is not None and record.error == NOT_SENT

    def _enqueue(self, store: JobStore, outgoing: Outgoing) -> None:
        try:
            outgoing.send(confirms=False)
        except BaseException:
            with contextlib.suppress(RedisError):
                records_of(store).write(
                    [failure_to_send(job) for job in outgoing.left()]
                )
            raise
        # Else the batch looks at its members when it is silent.
        with contextlib.suppress(RedisError):
            sent = [job for job in outgoing.jobs if not job.waits]
            records_of(store).confirm_members(sent)

    def _refuse(self, reply: int) -> NoReturn:
        """Send nothing. A run that is over, or whose batch was cancelled, ends now,
        without a retry.

        Raises:
          JobCancelled, RuntimeError: Always.
        """
        if reply in STOPS:
            self._run.cancel()
            self._run.check()
        raise RuntimeError(
            f"The batch {self._batch} takes no members: {REFUSALS[reply]}."
        )
