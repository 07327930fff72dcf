"""The data manager, which sends jobs with the request's transaction."""

from __future__ import annotations

import contextlib
import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid import threadlocal
from redis.exceptions import RedisError

from ..errors import StoreUnavailable
from ..store.connection import ConnectionsInUse
from ..store.looks import note_sender
from ..worker.batches import OutgoingBatch
from ..worker.outgoing import NotClaimed, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pyramid.request import Request

    from ..store.jobstore import JobStore

    #: Puts a question to the store, or raises StoreUnavailable.
    Ask = Callable[[Callable[[JobStore], object]], object]

log = logging.getLogger("pyramid_jobstate")

#: The request attribute for the data managers whose transaction may stay uncommitted.
_PENDING = "_jobstate_pending"

NO_MANAGER = (
    "The request has no request.tm. Include pyramid_tm in the application, or call "
    "request.job_states.send_immediately(...)."
)

NO_TRANSACTION = (
    "No transaction has begun on request.tm in this thread, so nothing would ever be "
    "sent. pyramid_tm begins one for each view, unless tm.activate_hook refuses, and "
    "ends it before finished callbacks run. A subrequest gets one with "
    "request.invoke_subrequest(subrequest, use_tweens=True). In a script or a thread, "
    "send within `with request.tm:`. To send without a transaction, call "
    'request.job_states.send_immediately(...). See "An error with a request in it" in '
    "the troubleshooting guide."
)

TAKES_NOTHING = (
    "The transaction of request.tm accepts no more jobs: it is being committed, "
    "or an operation in it has failed. Send earlier, or call "
    "request.job_states.send_immediately(...)."
)


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
        note_sender(self, JobDataManager.unsent)

    def unsent(self) -> Collection[str]:
        """Return the uuids of the jobs that it sends once the transaction commits."""
        return () if self._is_over else self._outgoing.unsent

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

    def savepoint(self) -> JobSavepoint | BatchSavepoint:
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
                'request.job_states.send_immediately(...). See "404" in the '
                "troubleshooting guide.",
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
        except RedisError as e:
            # An outage that vetoed the commit has been logged. Its jobs do not matter.
            if not self._is_doubtful:
                is_crowded = isinstance(e, ConnectionsInUse)
                log.warning(
                    "%s These read stalled until they expire: "
                    '%r. See "The job is stalled" in the troubleshooting guide.',
                    e if is_crowded else "The store does not answer.",
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


class JobSavepoint:
    """A savepoint that does nothing when rolled back: what was to be sent before it is
    still sent. (The transaction itself aborts what joined after it.) See
    `transaction.interfaces.IDataManagerSavepoint`.
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


def send_now(ask: Ask, outgoing: Outgoing) -> None:
    """Write the records and send the messages now.

    Raises:
      StoreUnavailable: The store does not answer.
      Exception: The broker did not accept the messages.
    """
    ask(outgoing.record)
    try:
        outgoing.send()
    except BaseException:
        # The caller learns of the failure, so the job is forgotten. One that had ended
        # stays as it was.
        with contextlib.suppress(StoreUnavailable):
            ask(outgoing.forget)
        raise


class Joinable(NamedTuple):
    """A transaction that has begun.

    Attributes:
      manager: Its manager.
      is_watched: Whether it may stay uncommitted until the request ends.
    """

    manager: Any
    transaction: Any
    is_watched: bool


def joinable(request: Request) -> Joinable:
    """Return the transaction of a request.

    It must have begun, no matter by whom: with an implicit manager any `get()` begins
    one, and nothing shows who called it.

    Raises:
      RuntimeError: No transaction has begun.
    """
    manager = getattr(request, "tm", None)
    if manager is None:
        raise RuntimeError(NO_MANAGER)
    is_implicit = not getattr(manager, "explicit", False)
    tween_commits = _is_managed(manager)
    transaction = _begun(manager)
    is_new = transaction is None and is_implicit and tween_commits
    if is_new:
        # The view has ended the tween's transaction. The tween commits this one, but
        # not one begun in a thread that the view has started.
        transaction = manager.get()
    if transaction is None:
        raise RuntimeError(NO_TRANSACTION)
    is_watched = is_new or (is_implicit and not tween_commits)
    return Joinable(manager, transaction, is_watched)


def join(request: Request, ask: Ask, outgoing: Outgoing | OutgoingBatch) -> None:
    """Have something sent when the transaction of a request commits.

    Raises:
      RuntimeError: No transaction has begun, or it can no longer be joined.
    """
    manager, transaction, is_watched = joinable(request)
    # Where a manager exists, the package is installed.
    from transaction.interfaces import TransactionError

    data_manager = JobDataManager(ask, outgoing, manager)
    try:
        data_manager.join(transaction)
    except (TransactionError, ValueError) as e:
        raise RuntimeError(TAKES_NOTHING) from e
    if outgoing.unique is not None:
        outgoing.unique.join(transaction, request.registry)
    if is_watched:
        _watch(data_manager, request)


def _is_managed(manager: Any) -> bool:
    """Return whether pyramid_tm or repoze.tm2 commits what this thread does with a
    manager, for the current request or, if that is a subrequest, for an outer one.
    """
    return any(
        (environ.get("tm.active") or environ.get("repoze.tm.active"))
        and getattr(frame.get("request"), "tm", None) is manager
        for frame in threadlocal.manager.stack
        if (environ := getattr(frame.get("request"), "environ", None))
    )


def is_shared(request: Request, manager: Any) -> bool:
    """Return whether the transaction in progress on a manager is that of a request
    around this one, in the same thread.
    """
    outer = (frame.get("request") for frame in threadlocal.manager.stack)
    return any(
        getattr(r, "tm", None) is manager for r in outer if r not in (None, request)
    ) and bool(_begun(manager))


def _watch(data_manager: JobDataManager, request: Request) -> None:
    """Have a data manager complain at the end of the request, the outermost one if it
    is a subrequest.
    """
    found = [frame.get("request") for frame in threadlocal.manager.stack]
    request = next((r for r in found if r is not None), request)
    pending = request.__dict__.get(_PENDING)
    if pending is None:
        # One callback for everything that a script sends.
        pending = request.__dict__[_PENDING] = weakref.WeakSet()
        request.add_finished_callback(_complain)
    pending.add(data_manager)


def _complain(request: Request) -> None:
    for data_manager in request.__dict__.pop(_PENDING):
        data_manager.complain()


def _begun(manager: Any) -> Any:
    """Return the transaction of a manager, or None if none has begun.

    `get()` would begin one, while `registerSynch()` only reports it (see
    ITransactionManager; since transaction 1.6.1).
    """
    synch = Synch()
    manager.registerSynch(synch)
    manager.unregisterSynch(synch)
    return synch.transaction


class Synch:
    """Keeps the transaction that a manager reports to it. See
    `transaction.interfaces.ISynchronizer`.
    """

    transaction: Any = None

    def newTransaction(self, transaction: Any) -> None:  # noqa: N802, the interface's name
        self.transaction = transaction
