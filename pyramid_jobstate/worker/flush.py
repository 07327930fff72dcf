"""Flushing a backlog to the store, and handling the store's replies."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ..job import Update
from ..store import JobStore, Reply, is_foreign
from .backlog import Backlog
from .cancels import Cancels
from .outage import Outage
from .unsaved import Unsaved

log = logging.getLogger(__name__)

#: The maximum number of updates in one round trip. Fewer would spare the garbage
#: collector work, but cost more round trips to a far store.
BATCH = 1000

#: How many runs' threads one tick checks.
CHECKED = 250

#: Why a run is neither recorded nor goes on.
NOT_RUN = {
    Reply.STALE: "it runs again from another message",
    Reply.HELD: "another job with its unique key is under way",
}

#: The clock for all times in this module.
_now = time.monotonic


class Flush:
    """Writes a backlog to the store. Called by one thread only.

    Parameters:
      backlog: The runs to write.
      store: The store to write to.
      heartbeat: Seconds without an update before a job is confirmed to be running.
      outage: Whether the store answers this process.

    Attributes:
      failures: For how many ticks in a row the store has accepted nothing, at most 10.
      is_troubled: Whether any of the last updates failed.
    """

    def __init__(
        self, backlog: Backlog, store: JobStore, heartbeat: float, outage: Outage
    ) -> None:
        self._backlog = backlog
        self._store = store
        self._heartbeat = heartbeat
        self._outage = outage
        self._cancels = Cancels(store, outage)
        self._sheds = False
        #: The place of the first run whose thread the next tick checks.
        self._next_checked = 0
        self.failures = 0
        self.is_troubled = False

    def tick(self, now: float, everyone: bool) -> None:
        """Write the runs that threads wait for, and with `everyone` all that are due.

        Parameters:
          now: The current time.
          everyone: Whether to write all runs that are due.

        Raises:
          Exception: A bug in this package. The next tick continues.
        """
        runs = self._backlog.all()
        if everyone:
            runs = self._drop_orphans(runs)
            due = self._due(runs, now)
            if self._should_ask_for_cancels(runs, due):
                due += self._cancels.find(runs, due)
        else:
            due = [unsaved for unsaved in runs if unsaved.waiters]
        for i in range(0, len(due), BATCH):
            if not self._write(due[i : i + BATCH]):
                break

    def _due(self, runs: Sequence[Unsaved], now: float) -> list[Unsaved]:
        """Return the runs to write now."""
        silent_since = now - self._heartbeat
        # Unsaved.is_new, inlined for speed: there may be thousands of runs.
        return [
            unsaved
            for unsaved in runs
            if unsaved.run.dirty
            or unsaved.heard <= silent_since
            or unsaved.waiters
            or unsaved.end is not None
            or not unsaved.is_stored
            or (unsaved.is_behind and unsaved.is_to_tell(now))
        ]

    def _should_ask_for_cancels(
        self, runs: Sequence[Unsaved], due: Sequence[Unsaved]
    ) -> bool:
        """Return whether to ask the store for cancels. Runs that report learn of theirs
        from the reply, but not of their batch's.
        """
        return (
            (len(due) < len(runs) or any(u.info.batch is not None for u in due))
            and not self.failures
            and self._outage.may_ask()
        )

    def _drop_orphans(self, runs: list[Unsaved]) -> list[Unsaved]:
        """Give up runs whose thread is gone: an interrupt came where Dramatiq does not
        expect one. Return the others.
        """
        start = self._next_checked
        self._next_checked += CHECKED
        if self._next_checked >= len(runs):
            self._next_checked = 0
        orphaned = [u for u in runs[start : start + CHECKED] if u.is_orphaned]
        if not orphaned:
            return runs
        for unsaved in orphaned:
            self._give_up(unsaved, "the thread that ran it is gone")
        return [unsaved for unsaved in runs if not unsaved.lost]

    def _write(self, batch: Sequence[Unsaved]) -> bool:
        """Write the changes of some runs, and return whether the store accepted any."""
        # A thread that starts waiting after this waits for the next update.
        waiting = self._backlog.waiters(batch)
        now = _now()
        renew_after = self._store.active_expire_in / 2
        updates = [unsaved.take(now, renew_after) for unsaved in batch]
        replies: Sequence[Reply | Exception]
        try:
            replies = self._store.records.write(updates)
        except Exception as e:
            replies = [e] * len(updates)
        errors = []
        stored = Reply.OK
        for unsaved, update, reply in zip(batch, updates, replies, strict=True):
            if reply is stored and update.end is None and not waiting:
                # The common case
                unsaved.mark_stored(now)
            elif isinstance(reply, Reply):
                if self._settle(unsaved, update, reply, now) and unsaved in waiting:
                    self._backlog.release(unsaved, waiting[unsaved])
            elif is_foreign(reply):
                self._give_up(unsaved, str(reply))
            else:
                unsaved.mark_unconfirmed()
                errors.append(reply)
        self._note(errors, len(updates))
        return len(errors) < len(updates)

    def _settle(
        self, unsaved: Unsaved, update: Update, reply: Reply, taken: float
    ) -> bool:
        """Act on the store's reply to an update, and return whether it is stored.

        Parameters:
          taken: When the update was taken from the run.
        """
        if reply in (Reply.CANCELLING, Reply.CANCELLED):
            unsaved.run.cancel()
        if reply in (Reply.OK, Reply.CANCELLING):
            unsaved.mark_stored(taken)
            if update.end is not None:
                self._backlog.remove(unsaved)
            return True
        if reply is Reply.FENCED:
            is_known, unsaved.is_fenced = unsaved.is_fenced, True
            # After a retry this is expected.
            is_retried = unsaved.end is not None and unsaved.end.status == "retrying"
            why = "a newer run of it has begun"
            self._give_up(unsaved, why, quiet=is_retried or is_known)
            if unsaved.end is not None and update.end is None:
                # It has come since.
                self._backlog.end(unsaved, unsaved.end)
        elif reply in (Reply.STALE, Reply.HELD):
            # Skipped. What becomes of the job is up to the run of that message.
            unsaved.run.cancel()
            self._give_up(unsaved, NOT_RUN[reply])
        elif update.dropped or unsaved.is_fenced:
            self._give_up(unsaved, "there was nothing to end", quiet=True)
        elif reply is Reply.CANCELLED:
            # It was cancelled before it began or while it was silent, and others have
            # acted on that.
            unsaved.is_cancelled = True
            self._give_up(unsaved, "it was cancelled", quiet=True)
        elif reply is Reply.MISSING and not self._can_be_lost(unsaved):
            self._give_up(unsaved, "its record has expired")
        else:
            # The store has lost its data, or this process has held its claim too long.
            unsaved.begin_again()
        return False

    def _can_be_lost(self, unsaved: Unsaved) -> bool:
        """Return whether the store must have lost a missing record: the job has not had
        the time to end elsewhere and expire.
        """
        return _now() - unsaved.confirmed < self._store.expire_in

    def _give_up(self, unsaved: Unsaved, why: str, *, quiet: bool = False) -> None:
        """Stop recording a run, and log why unless `quiet`."""
        if self._backlog.give_up(unsaved, why):
            disregard(unsaved)
        if not quiet:
            uuid = unsaved.uuid
            log.warning("This process no longer records job %s: %s.", uuid, why)

    def _note(self, errors: Sequence[Exception], count: int) -> None:
        """Count failures, and log the beginning and the end of an outage once each."""
        self.is_troubled = bool(errors)
        if errors:
            self._outage.complain(errors[0])
        if len(errors) == count:
            self.failures = min(self.failures + 1, 10)
            self._outage.begin()
            self._shed()
            return
        self.failures = 0
        self._outage.end()
        self._sheds = False
        if not errors:
            self._outage.recover()

    def _shed(self) -> None:
        """Discard the oldest ended runs if they take too much memory."""
        for unsaved in self._backlog.excess():
            self._give_up(unsaved, "the store was away for too long", quiet=True)
            if not self._sheds:
                self._sheds = True
                log.error(
                    "The job state store has been away for so long that the outcomes "
                    "of jobs are lost, beginning with job %s.",
                    unsaved.uuid,
                )


def disregard(unsaved: Unsaved) -> None:
    """Log the normal return of a cancelled job, which no viewer will see."""
    end = unsaved.end
    if unsaved.is_cancelled and end is not None and end.status == "success":
        log.warning(
            "Job %s returned after it was cancelled while its worker was silent: it "
            "stays cancelled.",
            unsaved.uuid,
        )
