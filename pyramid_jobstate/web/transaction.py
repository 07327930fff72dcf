"""The data manager, which sends jobs when a transaction has committed; and the abort of
a job's own transaction.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError

from ..worker import NotClaimed, Outgoing, OutgoingBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..store import JobStore

    #: Puts a question to the store, or raises StoreUnavailable.
    Ask = Callable[[Callable[[JobStore], object]], object]

log = logging.getLogger(__name__)


class JobDataManager:
    """Sends something when the transaction commits.

    * `commit`, the first phase, writes the records: a store that is away vetoes the
      transaction. (The vote would be too late: one-phase databases have committed by
      then.)
    * `tpc_vote` comes after all other votes.
    * `tpc_finish` sends the messages, when every database is durable. It must not
      raise: if the broker is away, that is logged, and the jobs read `error`.
    * An abort takes the records back. Where a database may have committed, because our
      vote has passed or an interrupt came while databases voted that commit by that,
      the jobs read `error` instead.

    If the process dies between the two phases, the jobs read `stalled` after a while.

    Parameters:
      ask: Puts a question to the store.
      outgoing: What to send.
      manager: The transaction manager.

    Attributes:
      vote: Joins the same transaction, before this.

    See `transaction.interfaces.ISavepointDataManager`.
    """

    # Nothing is left to do until it has joined a transaction.
    _is_over = True

    def __init__(
        self, ask: Ask, outgoing: Outgoing | OutgoingBatch, manager: Any
    ) -> None:
        self.transaction_manager = manager
        self.vote = OnePhaseVote(manager)
        self._ask = ask
        self._outgoing = outgoing
        self._is_recorded = False
        self._is_doubtful = False
        self._is_voted = False

    def join(self, transaction: Any) -> None:
        """Join a transaction.

        Raises:
          TransactionError, ValueError: It can no longer be joined.
        """
        transaction.join(self.vote)
        transaction.join(self)
        self._is_over = False

    def abort(self, transaction: Any) -> None:
        # Also called after a commit, and if a commit was interrupted before tpc_abort.
        self._is_over = True
        self._outgoing.withdraw()
        if self._is_recorded:
            may_be_durable = self._is_voted or (
                self.vote.has_begun and not isinstance(sys.exception(), Exception)
            )
            self._try(self._outgoing.fail if may_be_durable else self._outgoing.forget)
            self._is_recorded = False

    def tpc_begin(self, transaction: Any) -> None:
        pass

    def commit(self, transaction: Any) -> None:
        self._ask(self._record)

    def tpc_vote(self, transaction: Any) -> None:
        self._is_voted = True

    def tpc_finish(self, transaction: Any) -> None:
        # An interrupt leaves the rest to tpc_abort.
        try:
            self._outgoing.send()
        except NotClaimed as e:
            log.error(
                "The transaction has committed, but %r was not sent: the store does "
                "not say whether another job with its unique key is under way: %s",
                self._outgoing.job_states,
                e,
            )
            # A batch is not unique.
            assert isinstance(self._outgoing, Outgoing)
            self._outgoing.fail_soon()
        except Exception:
            log.exception(
                "The transaction has committed, but the broker did not accept %r.",
                self._outgoing.job_states,
            )
            self._try(self._outgoing.fail)
        self._is_recorded = False
        self._is_over = True

    def tpc_abort(self, transaction: Any) -> None:
        # Also called after tpc_finish().
        self.abort(transaction)

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        # The last of all, so that nothing vetoes the commit after our vote.
        return f"{chr(sys.maxunicode)}pyramid_jobstate"

    def savepoint(self) -> Savepoint:
        if isinstance(self._outgoing, OutgoingBatch):
            return BatchSavepoint(self._outgoing)
        return JobSavepoint()

    def complain(self) -> None:
        """Log the jobs that are neither sent nor taken back when the request ends."""
        if not self._is_over:
            self._is_over = True
            log.error(
                "The request is over, but the transaction of request.tm was not "
                "committed. Until it is, these jobs are not sent: %r. Send within "
                "`with request.tm:`, or call "
                "request.job_states.send_immediately(...).",
                self._outgoing.job_states,
            )

    # The transaction may be discarded along with its manager or its thread.
    __del__ = complain

    def _record(self, store: JobStore) -> None:
        # From here on an abort has something to take back, and knows where: nothing can
        # interrupt these two statements.
        self._outgoing.store = store
        self._is_recorded = self._is_doubtful = True
        self._outgoing.record(store)
        self._is_doubtful = False

    def _try(self, change: Callable[[JobStore], object]) -> None:
        try:
            change(self._outgoing.store)
        except RedisError:
            # An outage that vetoed the commit has been logged. Its jobs do not matter.
            if not self._is_doubtful:
                log.warning(
                    "The store does not answer. These read stalled until they expire: "
                    "%r.",
                    self._outgoing.job_states,
                )


class OnePhaseVote:
    """Knows whether databases may have committed that do so when they vote: by
    convention these sort last, with names that begin with "~".
    """

    def __init__(self, manager: Any) -> None:
        self.transaction_manager = manager
        self.has_begun = False

    def tpc_vote(self, transaction: Any) -> None:
        self.has_begun = True

    def nothing(self, transaction: Any) -> None:
        """Do nothing in the other steps."""

    abort = tpc_begin = commit = tpc_finish = tpc_abort = nothing

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        # The first of them in use is "~sqlalchemy:…".
        return "~"

    def savepoint(self) -> JobSavepoint:
        return JobSavepoint()


class Savepoint(Protocol):
    """See `transaction.interfaces.IDataManagerSavepoint`."""

    def rollback(self) -> None:
        """Take back what came after the savepoint."""


class JobSavepoint:
    """A savepoint that does nothing when rolled back: what was to be sent before it is
    still sent. (The transaction itself aborts what joined after it.)
    """

    def rollback(self) -> None:
        pass


class BatchSavepoint:
    """A savepoint of a batch: its rollback takes back the members that came after it.

    Parameters:
      outgoing: The batch.
    """

    def __init__(self, outgoing: OutgoingBatch) -> None:
        self._members = outgoing.members
        self._count = len(outgoing.members.items)

    def rollback(self) -> None:
        self._members.truncate(self._count)


def abort(manager: Any, error: BaseException) -> None:
    """Abort the transaction of a manager, if it has one.

    Parameters:
      error: What was raised by the transaction's owner or by its commit.
    """
    from transaction.interfaces import NoTransaction

    try:
        transaction = manager.get()
    except NoTransaction:
        # The actor has ended it.
        return
    try:
        if not isinstance(error, Exception):
            # The transaction does not go on taking back its commit after an interrupt,
            # and a ZODB would keep the lock that all commits of this process need.
            _abort_commit(transaction, list(getattr(transaction, "_resources", ())))
    finally:
        try:
            manager.abort()
        except Exception:
            log.exception("The transaction of a job could not be aborted.")


def _abort_commit(transaction: Any, data_managers: list[Any]) -> None:
    try:
        while data_managers:
            # Those that did not take part in a commit, or have finished, may complain.
            with contextlib.suppress(Exception):
                data_managers.pop().tpc_abort(transaction)
    finally:
        # Abort the rest even if another interrupt strikes.
        if data_managers:
            _abort_commit(transaction, data_managers)
