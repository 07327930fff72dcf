"""Sending jobs immediately, or when the transaction has committed."""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import TYPE_CHECKING, Any

from pyramid import threadlocal
from redis.exceptions import RedisError

from ..errors import StoreUnavailable
from .outgoing import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyramid.request import Request

    from ..store import JobStore

    #: Puts a question to the store, or raises StoreUnavailable.
    Ask = Callable[[Callable[[JobStore], object]], object]

log = logging.getLogger(__name__)

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
    "request.job_states.send_immediately(...)."
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
    * `tpc_finish` sends the messages, when every database is durable. It must not
      raise: if the broker is away, that is logged, and the jobs read `error`.
    * An abort takes the records back.

    If the process dies between the two phases, the jobs read `stalled` after a while.

    Parameters:
      ask: Puts a question to the store.
      outgoing: What to send.
      manager: The transaction manager.

    See `transaction.interfaces.ISavepointDataManager`.
    """

    def __init__(self, ask: Ask, outgoing: Outgoing, manager: Any) -> None:
        self.transaction_manager = manager
        self._ask = ask
        self._outgoing = outgoing
        self._is_recorded = False
        self._is_doubtful = False
        self._is_over = False

    def abort(self, transaction: Any) -> None:
        self._is_over = True

    def tpc_begin(self, transaction: Any) -> None:
        pass

    def commit(self, transaction: Any) -> None:
        self._is_recorded = self._is_doubtful = True
        self._ask(self._outgoing.record)
        self._is_doubtful = False

    def tpc_vote(self, transaction: Any) -> None:
        pass

    def tpc_finish(self, transaction: Any) -> None:
        self._is_recorded = False
        self._is_over = True
        try:
            self._outgoing.send()
        except Exception:
            log.exception(
                "The transaction has committed, but the broker did not accept %r.",
                self._outgoing.job_states,
            )
            self._try(self._outgoing.fail)

    def tpc_abort(self, transaction: Any) -> None:
        # Also called after tpc_finish().
        self._is_over = True
        if self._is_recorded:
            self._is_recorded = False
            self._try(self._outgoing.forget)

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        # Sorts after all databases, of which "~sqlalchemy:…" is the last.
        return "~~pyramid_jobstate"

    def savepoint(self) -> JobSavepoint:
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

    def _try(self, change: Callable[[JobStore], object]) -> None:
        try:
            change(self._outgoing.store)
        except RedisError:
            # An outage that vetoed the commit is logged, and nobody expects the jobs.
            if not self._is_doubtful:
                log.warning(
                    "The store does not answer. These read stalled until they expire: "
                    "%r.",
                    self._outgoing.job_states,
                )


class JobSavepoint:
    """A savepoint that does nothing when rolled back: what was to be sent before it is
    still sent. (The transaction itself aborts what joined after it.)
    """

    def rollback(self) -> None:
        pass


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
        # before now reads as not sent.
        with contextlib.suppress(StoreUnavailable):
            ask(outgoing.forget)
            ask(outgoing.fail)
        raise


def join(request: Request, ask: Ask, outgoing: Outgoing) -> None:
    """Have something sent when the transaction of a request commits.

    The transaction must have begun, no matter by whom: with an implicit manager any
    `get()` begins one, and nothing shows who called it.

    Raises:
      RuntimeError: No transaction has begun, or it can no longer be joined.
    """
    manager = getattr(request, "tm", None)
    if manager is None:
        raise RuntimeError(NO_MANAGER)
    # Where a manager exists, the package is installed.
    from transaction.interfaces import TransactionError

    is_implicit = not getattr(manager, "explicit", False)
    is_managed = _is_managed(manager)
    transaction = _begun(manager)
    is_new = transaction is None and is_implicit and is_managed
    if is_new:
        # The view has ended the tween's transaction. The tween commits this one, but
        # not one begun in a thread that the view has started.
        transaction = manager.get()
    if transaction is None:
        raise RuntimeError(NO_TRANSACTION)
    data_manager = JobDataManager(ask, outgoing, manager)
    try:
        transaction.join(data_manager)
    except (TransactionError, ValueError) as e:
        data_manager.abort(transaction)
        raise RuntimeError(TAKES_NOTHING) from e
    if is_new or (is_implicit and not is_managed):
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
