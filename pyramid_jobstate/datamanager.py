"""Sending at once, or with the transaction: when that has committed."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from .enqueue import Outgoing
from .errors import StoreUnavailable

if TYPE_CHECKING:
    from .resources import JobStates

log = logging.getLogger(__name__)


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
      container: Whose request it is.
      outgoing: What is to be sent.
      manager: The transaction manager.

    See `transaction.interfaces.ISavepointDataManager`.
    """

    def __init__(self, container: JobStates, outgoing: Outgoing, manager: Any) -> None:
        self.transaction_manager = manager
        self._container = container
        self._outgoing = outgoing
        self._is_recorded = False

    def abort(self, transaction: Any) -> None:
        pass

    def tpc_begin(self, transaction: Any) -> None:
        pass

    def commit(self, transaction: Any) -> None:
        self._is_recorded = True
        self._container.ask(self._outgoing.record)

    def tpc_vote(self, transaction: Any) -> None:
        pass

    def tpc_finish(self, transaction: Any) -> None:
        self._is_recorded = False
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
        if self._is_recorded:
            self._is_recorded = False
            self._try(self._outgoing.forget)

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        # After all databases: "~sqlalchemy:…" is the last of them.
        return "~~pyramid_jobstate"

    def savepoint(self) -> JobSavepoint:
        return JobSavepoint()

    def _try(self, change: Any) -> None:
        try:
            change(self._container.store)
        except RedisError:
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


def send_now(container: JobStates, outgoing: Outgoing) -> None:
    """Have something sent at once.

    Raises:
      StoreUnavailable: The store does not answer.
      Exception: The broker did not take it.
    """
    container.ask(outgoing.record)
    try:
        outgoing.send()
    except BaseException:
        # Whoever called knows of it: nobody will ask for the job.
        with contextlib.suppress(StoreUnavailable):
            container.ask(outgoing.forget)
        raise


def join(container: JobStates, outgoing: Outgoing) -> None:
    """Have something sent when the transaction of the container's request commits.

    Raises:
      RuntimeError: Nobody would commit it.
      transaction.interfaces.NoTransaction: There is none, under an explicit manager.
    """
    request = container.request
    manager = getattr(request, "tm", None)
    if manager is None:
        raise RuntimeError(
            "There is no request.tm to send with. Include pyramid_tm in the "
            "application, or call request.job_states.send_immediately(...)."
        )
    environ = request.environ
    is_active = environ.get("tm.active") or environ.get("repoze.tm.active")
    if not is_active and not getattr(manager, "explicit", False):
        raise RuntimeError(
            "pyramid_tm does not manage a transaction for this request, so that "
            "nothing would ever be sent. Call request.job_states.send_immediately(...),"
            " or begin a transaction of an explicit manager (tm.manager_hook = "
            "pyramid_tm.explicit_manager)."
        )
    transaction = manager.get()
    transaction.join(JobDataManager(container, outgoing, manager))
