"""Members that a running member sends: they join its batch at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dramatiq import Message, group
from redis.exceptions import RedisError

from ..errors import StoreUnavailable
from ..job import NOT_SENT, JobState, Member, Run, check_key, check_weight
from ..store import JobStore, redis_errors
from .finding import middleware_of
from .outgoing import Outgoing, failure_to_send

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy


log = logging.getLogger("pyramid_jobstate")

#: The options of a message that tell an actor with a request where it comes from.
ORIGIN = ("job_url", "job_app")

#: Why a batch takes no members, by what the script `add_members` says. The run that
#: sends them has to stop in the last two cases.
UNKNOWN = -1
REFUSALS = {
    -2: "it is over",
    -3: "it was cancelled",
    -4: "the run that sends them is over",
}
STOPS = (-3, -4)


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
            options.get("job_owner"),
            broker=broker,
            delay=delay,
            origin=lambda: {k: options[k] for k in ORIGIN if k in options},
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
        """
        members = [Member(job, weight) for job in outgoing.jobs]
        store = middleware_of(self._broker).store_for(self._broker)
        outgoing.check(store)
        if self._ask(lambda: self._is_to_send(store, outgoing, members)):
            self._enqueue(store, outgoing)

    def _is_to_send(
        self, store: JobStore, outgoing: Outgoing, members: Sequence[Member]
    ) -> bool:
        """Add members to the batch, and write that their jobs are queued. Return
        whether they have to be sent: no earlier run of this job has sent them.
        """
        own = self._message.message_id
        # A run that is not stored yet does not count as an earlier one.
        if self._run.token in store.records.earlier_runs(own):
            self._refuse(-4)
        (reply, *_) = store.records.batches.add(self._batch, members, own)
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
        first, *_ = found = store.records.create_new(*outgoing.jobs)
        outgoing.note(store, found)
        if first is True:
            return True
        # An earlier run has sent it, or has failed to.
        record = store.records.record(outgoing.jobs[0].uuid)
        return record is not None and record.error == NOT_SENT

    def _enqueue(self, store: JobStore, outgoing: Outgoing) -> None:
        try:
            outgoing.send(confirms=False)
        except BaseException:
            with contextlib.suppress(RedisError):
                store.records.write([failure_to_send(job) for job in outgoing.left()])
            raise
        # Else the batch looks at its members when it is silent.
        with contextlib.suppress(RedisError):
            sent = [job for job in outgoing.jobs if not job.waits]
            store.records.confirm_members(sent)

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

    def _ask(self, question: Callable[[], bool]) -> bool:
        """Return the answer of the store.

        Raises:
          StoreUnavailable: It does not answer.
        """
        try:
            with redis_errors():
                return question()
        except RedisError as e:
            raise StoreUnavailable(None) from e
