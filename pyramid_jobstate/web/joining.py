"""Sending with the transaction of a request, or immediately."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid import threadlocal

from ..errors import StoreUnavailable
from ..worker import Outgoing, OutgoingBatch
from .transaction import JobDataManager

if TYPE_CHECKING:
    from pyramid.request import Request

    from .transaction import Ask

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
