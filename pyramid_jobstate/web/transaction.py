"""Sending at once, or with the transaction: when that has committed."""

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

#: Where a request keeps what has joined a transaction that nobody may commit.
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
    "send within `with request.tm:`. Or call "
    "request.job_states.send_immediately(...)."
)

TAKES_NOTHING = (
    "The transaction of request.tm takes nothing more to send: it is being committed, "
    "or an operation in it has failed. Send earlier, or call "
    "request.job_states.send_immediately(...)."
)


class JobDataManager:
    """Sends something when the transaction commits.

    * In `commit`, the first phase, the records are written: a store that is away vetoes
      the transaction. (Not in the vote, which comes after databases that know only one
      phase have committed.)
    * In `tpc_finish`, when every database is durable, it is sent: a broker that is away
      is logged, and the jobs read `error`. Nothing may be raised any more.
    * If the transaction is aborted, the records are taken back.

    Should the process die between the two, the jobs read `stalled` after a while.

    Parameters:
      ask: Puts a question to the store.
      outgoing: What is to be sent.
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
                "The broker did not take %r, whose transaction has committed.",
                self._outgoing.job_states,
            )
            self._try(self._outgoing.fail)

    def tpc_abort(self, transaction: Any) -> None:
        # Called on those that have finished, too.
        self._is_over = True
        if self._is_recorded:
            self._is_recorded = False
            self._try(self._outgoing.forget)

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        # After all databases: "~sqlalchemy:…" is the last of them.
        return "~~pyramid_jobstate"

    def savepoint(self) -> JobSavepoint:
        return JobSavepoint()

    def complain(self) -> None:
        """Log what nobody has sent, or taken back, when the request is over."""
        if not self._is_over:
            self._is_over = True
            log.error(
                "The request is over, and nobody has committed the transaction of "
                "request.tm. Unless somebody does, these jobs are not sent: %r. Send "
                "within `with request.tm:`, or call "
                "request.job_states.send_immediately(...).",
                self._outgoing.job_states,
            )

    # Its transaction may be forgotten together with its manager, or its thread.
    __del__ = complain

    def _try(self, change: Callable[[JobStore], object]) -> None:
        try:
            change(self._outgoing.store)
        except RedisError:
            # The outage that has vetoed the commit is logged, and nobody was promised
            # anything.
            if not self._is_doubtful:
                log.warning(
                    "The store does not answer: %r will read stalled, and expire.",
                    self._outgoing.job_states,
                )


class JobSavepoint:
    """What was to be sent before a savepoint still is when that is rolled back. (What
    joined the transaction after it is aborted by the transaction itself.)
    """

    def rollback(self) -> None:
        pass


def send_now(ask: Ask, outgoing: Outgoing) -> None:
    """Have something sent at once.

    Raises:
      StoreUnavailable: The store does not answer.
      Exception: The broker did not take it.
    """
    ask(outgoing.record)
    try:
        outgoing.send()
    except BaseException:
        # Whoever called knows of it: nobody will ask for the job. One that had ended
        # before says that it was not sent.
        with contextlib.suppress(StoreUnavailable):
            ask(outgoing.forget)
            ask(outgoing.fail)
        raise


def join(request: Request, ask: Ask, outgoing: Outgoing) -> None:
    """Have something sent when the transaction of a request commits.

    It must have begun, whoever began it. With an implicit manager any `get()` begins
    one, and nothing tells who did.

    Raises:
      RuntimeError: No transaction has begun, or it can no longer be joined.
    """
    manager = getattr(request, "tm", None)
    if manager is None:
        raise RuntimeError(NO_MANAGER)
    # It is there where a manager is.
    from transaction.interfaces import TransactionError

    is_implicit = not getattr(manager, "explicit", False)
    is_managed = _is_managed(manager)
    transaction = _begun(manager)
    is_new = transaction is None and is_implicit and is_managed
    if is_new:
        # The view has ended that of the tween, which commits this one. It commits none
        # of a thread that the view has started.
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
    """Whether pyramid_tm, or repoze.tm2, commits what this thread does with a manager:
    for the request at hand or, if that is a subrequest, for an outer one.
    """
    return any(
        (environ.get("tm.active") or environ.get("repoze.tm.active"))
        and getattr(frame.get("request"), "tm", None) is manager
        for frame in threadlocal.manager.stack
        if (environ := getattr(frame.get("request"), "environ", None))
    )


def _watch(data_manager: JobDataManager, request: Request) -> None:
    """Have a data manager complain at the end of the request or, if that is a
    subrequest, of the outermost one.
    """
    found = [frame.get("request") for frame in threadlocal.manager.stack]
    request = next((r for r in found if r is not None), request)
    pending = request.__dict__.get(_PENDING)
    if pending is None:
        # One for all that a script sends.
        pending = request.__dict__[_PENDING] = weakref.WeakSet()
        request.add_finished_callback(_complain)
    pending.add(data_manager)


def _complain(request: Request) -> None:
    for data_manager in request.__dict__.pop(_PENDING):
        data_manager.complain()


def _begun(manager: Any) -> Any:
    """Return the transaction of a manager, or None if none has begun.

    `get()` would make one. `registerSynch()` tells of it (ITransactionManager, since
    transaction 1.6.1).
    """
    synch = Synch()
    manager.registerSynch(synch)
    manager.unregisterSynch(synch)
    return synch.transaction


class Synch:
    """Keeps the transaction that a manager tells it of. See
    `transaction.interfaces.ISynchronizer`.
    """

    transaction: Any = None

    def newTransaction(self, transaction: Any) -> None:  # noqa: N802, the interface's name
        self.transaction = transaction
