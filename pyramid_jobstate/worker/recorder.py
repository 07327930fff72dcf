"""The thread of a worker process that writes the updates of its jobs."""

from __future__ import annotations

import _thread
import contextlib
import functools
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from logging import Logger
from typing import Protocol

from redis.exceptions import RedisError

from ..job.record import End, Update
from ..store.connection import LOST, ConnectionsInUse
from ..store.jobstore import JobStore, records_of
from ..store.reader import is_foreign
from ..store.scripts import Reply
from .current import CurrentJob
from .unsaved import Unsaved
from .whereabouts import Answers

log = logging.getLogger("pyramid_jobstate")

#: Seconds before a store that has failed is asked again.
PAUSE = 1.0

#: What workers and senders log at the beginning of an outage, and at its end.
AWAY = (
    "The job state store does not accept updates. They are kept until it does, but "
    "jobs sent meanwhile have no state until they start: %s: %s "
    '(See "The job is stalled" in the troubleshooting guide.)'
)

BACK = "The job state store accepts updates again."

#: What they log if no connection to it becomes free.
CROWDED = (
    "%s Updates wait until one is free, but jobs sent meanwhile have no state until "
    "they start. Allow more: see max_connections in the reference of settings."
)

#: Seconds between two log lines of that.
CROWD_PAUSE = 60.0

#: How many bytes of memory ended runs may take while the store is away.
MAX_PENDING = 64 * 1024 * 1024

REFUSED = (
    "The job state store refuses to list cancels. Jobs learn of theirs with the next "
    "heartbeat: %s: %s"
)

#: The maximum number of updates in one round trip. Fewer would spare the garbage
#: collector work, but cost more round trips to a far store.
MAX_UPDATES = 1000

#: About how many bytes the updates in one round trip may have. As Python objects they
#: take some ten times as much.
MAX_BYTES = 2 * 1024 * 1024

#: Seconds between two looks for requests while all jobs report.
QUESTION_SECONDS = 1.0

#: How many runs' threads one tick checks.
CHECKED = 250

#: Why a run is neither recorded nor goes on.
NOT_RUN = {
    Reply.STALE: "it runs again from another message",
    Reply.HELD: "another job with its unique key is under way",
}

#: The clock for all times in this module.
_now = time.monotonic

#: Seconds that the start and the end of a job each may wait for the store.
PATIENCE = 1.0

#: The longest pause between two attempts while the store is away, in seconds.
MAX_PAUSE = 1.0


class Recorder:
    """Writes the updates of all running jobs of this process at intervals, in one round
    trip, and confirms that each job is still running.

    It has one daemon thread, started by the first job. While the store is away it keeps
    everything, but only the latest value of each metric.

    Parameters:
      store: The store to write to.
      jobs: The jobs that this process runs, by message id.
      interval: Seconds between two flushes.
      heartbeat: Seconds without an update before a job is confirmed to be running.
      outage: Whether the store answers this process. Made here if not shared.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: Mapping[str, CurrentJob],
        *,
        interval: float = 0.1,
        heartbeat: float = 5.0,
        outage: Outage | None = None,
    ) -> None:
        self.store = store
        self.interval = interval
        self._heartbeat = heartbeat
        self._outage = outage or Outage(log)
        self._jobs = jobs
        self._backlog = Backlog()
        self._reset()
        watch_forks().add(self)

    def _reset(self) -> None:
        # No Event: see Backlog.
        self._lock = threading.RLock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self._flush = Flush(
            self._backlog, self.store, self._heartbeat, self._outage, self._jobs
        )

    @property
    def is_troubled(self) -> bool:
        """Whether any of the last updates failed."""
        return self._flush.is_troubled

    def begin(self, unsaved: Unsaved) -> None:
        """Take over a run and write that it has begun. Waits at most a second for the
        store; if it is away, the beginning is written as soon as it is back.
        """
        unsaved.run.sync = functools.partial(self.sync, unsaved)
        self._backlog.add(unsaved)
        with self._lock:
            self._stop_at = None
        patience = PATIENCE
        if not self._outage.may_ask():
            # The store has just failed for another caller. The job should still learn
            # of a cancel if that is quick.
            patience = 0.0 if self._flush.failures else min(PATIENCE, 2 * self.interval)
        self._wait(unsaved, patience)
        # From here on the job runs, and a newer run of it may begin.
        unsaved.is_late = True

    def end(self, unsaved: Unsaved, end: End) -> bool:
        """Write that a run has ended, with everything it has set. Waits at most a
        second for the store; if it is away, the end is written as soon as it is back.

        Returns:
          Whether the end is stored.
        """
        unsaved.run.close("The job has ended: it can no longer report.")
        if not self._backlog.end(unsaved, end):
            disregard(unsaved)
            return False
        return self._wait(unsaved, PATIENCE if self._outage.may_ask() else 0.0)

    def _wait(self, unsaved: Unsaved, patience: float) -> bool:
        """Do what :meth:`sync` does, and note an outage if it takes too long."""
        is_stored = self.sync(unsaved, patience)
        is_late = patience == PATIENCE and not is_stored and not unsaved.lost
        if is_late and not self._flush.is_crowded:
            self._outage.begin()
        return is_stored

    def sync(self, unsaved: Unsaved, timeout: float) -> bool:
        """Wait until everything a run has set is stored, and return whether it is.

        Parameters:
          timeout: The most seconds to wait.
        """
        # Not a context manager: an interrupt could leave its generator to be closed by
        # a garbage collection, which may come while this thread holds the lock.
        waiter = self._backlog.add_waiter(unsaved)
        if waiter is None:
            return not unsaved.lost
        try:
            with self._lock:
                if self._thread is None:
                    self._start()
            self._wake.put(None)
            if threading.current_thread() is self._thread:
                # A finalizer, which would wait for itself.
                timeout = 0.0
            timeout = min(max(0.0, timeout), threading.TIMEOUT_MAX)
            return waiter.acquire(timeout=timeout) and not unsaved.lost
        finally:
            self._backlog.discard_waiter(unsaved, waiter)

    def stop(self, timeout: float = 5.0) -> None:
        """Write what is left and end the thread. The next job starts a new one.

        The thread continues if jobs still run: those of another worker in this process,
        or one that its worker did not wait for.

        Parameters:
          timeout: The most seconds to wait.
        """
        with self._lock:
            thread = self._thread
            self._stop_at = stop_at = _now() + timeout
        self._wake.put(None)
        while thread is not None and thread.is_alive() and self._stop_at == stop_at:
            if _now() >= stop_at:
                break
            thread.join(0.01)
        lost = len(self._backlog.ended())
        if lost:
            log.error(
                "The job state store did not answer in time: %d %s lost.",
                lost,
                "job outcome is" if lost == 1 else "job outcomes are",
            )

    def _start(self) -> None:
        """Start a thread, which exits if another has taken over by then."""
        self._stop_at = None
        thread = threading.Thread(target=self._loop, name=__name__, daemon=True)
        # Started from a thread that is never interrupted: an interrupt during start()
        # may end the new thread, for which start() would then wait forever.
        _thread.start_new_thread(thread.start, ())

    def _loop(self) -> None:
        thread = threading.current_thread()
        with self._lock:
            if self._thread is None:
                self._thread = thread
        due = 0.0
        while True:
            with self._lock:
                if self._thread is not thread:
                    return
                if self._stop_at is not None and self._is_done(self._stop_at):
                    self._stop_at = None
                    if not any(unsaved.is_running for unsaved in self._backlog.all()):
                        self._thread = None
                        return
                is_idle = not self._backlog
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=None if is_idle else max(0.0, due - _now()))
                while True:
                    # A thread that has been replaced may take them, too.
                    self._wake.get_nowait()
            now = _now()
            # Waiters are flushed now, the rest on the next tick. While the store fails
            # all are, so that what was kept goes first.
            is_stopping = self._stop_at is not None
            everyone = now >= due or is_stopping or self._flush.failures > 0
            try:
                self._flush.tick(now, everyone)
            except Exception:
                log.exception("Job states could not be written.")
            if everyone:
                pause = min(self.interval * 2**self._flush.failures, MAX_PAUSE)
                due = _now() + (pause if is_stopping else max(pause, self.interval))

    def _is_done(self, stop_at: float) -> bool:
        is_late = _now() >= stop_at
        return is_late or not any(unsaved.is_new for unsaved in self._backlog.all())

    def abandon(self) -> None:
        """Start again. Called in a forked child, where the thread does not run."""
        self._backlog.abandon()
        self._reset()


class Outage:
    """Whether the store answers, as reported by everything in this process that asks.

    After a failure one caller a second asks the store, and the others do without it.
    A fork or an interrupted thread could leave a lock locked, so this takes none: in a
    race several callers may ask.

    Parameters:
      log: The logger for the beginning and the end of an outage.
      away: The warning at the beginning, with two %s for the type and the text of an
        error.
      back: The message at the end, or None to log nothing.
      crowded: The warning that all connections are in use, with a %s for the error.

    Attributes:
      is_logged: Whether the beginning of an outage was logged, but not yet its end.
    """

    def __init__(
        self,
        log: Logger,
        away: str = AWAY,
        back: str | None = BACK,
        crowded: str = CROWDED,
    ) -> None:
        self._log = log
        self._away = away
        self._back = back
        self._crowded = crowded
        self._next_crowded = 0.0
        self._is_on = False
        self.is_logged = False
        self._next = 0.0

    def may_ask(self) -> bool:
        """Return whether the caller should ask the store. If so, it reports the result
        with :meth:`begin` or :meth:`end`.
        """
        if not self._is_on:
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + PAUSE
        return True

    def begin(self) -> None:
        """Report that the store did not answer."""
        self._next = time.monotonic() + PAUSE
        self._is_on = True

    def end(self) -> None:
        """Report that the store answered."""
        self._is_on = False

    def complain(self, error: Exception) -> None:
        """Log an error of the store, only once until it recovers."""
        if self.is_logged:
            return
        self.is_logged = True
        self._log.warning(self._away, type(error).__name__, error)

    def complain_of_crowd(self, error: ConnectionsInUse) -> None:
        """Log that no connection becomes free, at most once a minute."""
        now = time.monotonic()
        if now >= self._next_crowded:
            self._next_crowded = now + CROWD_PAUSE
            self._log.warning(self._crowded, error)

    def recover(self) -> None:
        """Log the end of the outage if its beginning was logged."""
        if self.is_logged:
            self.is_logged = False
            if self._back is not None:
                self._log.info(self._back)


class Backlog:
    """The runs that have something to write now or later. Thread-safe.

    Dramatiq may interrupt a worker thread between any two bytecodes. Hence the locks,
    which are written in C: an interrupt can leave an Event, written in Python, locked
    for good. They are reentrant, since a finalizer may flush while a thread holds one.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Unsaved] = {}
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, unsaved: Unsaved) -> None:
        with self._lock:
            self._runs[unsaved.run.token] = unsaved

    def end(self, unsaved: Unsaved, end: End) -> bool:
        """Set how a run ended, and return whether that has yet to be written."""
        with self._lock:
            unsaved.end = end
            if (unsaved.is_cancelled and end.delay is not None) or (
                unsaved.is_fenced and end.failure is not None
            ):
                # A message put back must still find the record, and a failure is listed
                # among the tries: see finish.lua.
                unsaved.lost = ""
            if not unsaved.lost:
                self._runs[unsaved.run.token] = unsaved
            return not unsaved.lost

    def give_up(self, unsaved: Unsaved, why: str) -> bool:
        """Stop writing a run, and return whether it had ended."""
        with self._lock:
            unsaved.lost = why
            del self._runs[unsaved.run.token]
            self._release(unsaved, tuple(unsaved.waiters))
            return unsaved.end is not None

    def remove(self, unsaved: Unsaved) -> None:
        """Remove a run whose end is stored."""
        with self._lock:
            del self._runs[unsaved.run.token]
            self._release(unsaved, tuple(unsaved.waiters))

    def all(self) -> list[Unsaved]:
        with self._lock:
            return list(self._runs.values())

    def ended(self) -> list[Unsaved]:
        """Return the runs that have ended, oldest first."""
        return [unsaved for unsaved in self.all() if unsaved.end is not None]

    def excess(self) -> Iterator[Unsaved]:
        """Pack the ended runs, and yield the oldest until the rest fit into
        MAX_PENDING.
        """
        ended = self.ended()
        sizes = [unsaved.pack() for unsaved in ended]
        excess = sum(sizes) - MAX_PENDING
        for unsaved, size in zip(ended, sizes, strict=True):
            if excess <= 0:
                break
            excess -= size
            yield unsaved

    def add_waiter(self, unsaved: Unsaved) -> threading.Lock | None:
        """Begin to wait for a run to be stored.

        Returns:
          A lock, released once everything set before is stored or given up, or None if
          the backlog has dropped the run.
        """
        waiter = threading.Lock()
        waiter.acquire()
        with self._lock:
            if unsaved.run.token not in self._runs:
                return None
            unsaved.waiters.add(waiter)
        return waiter

    def discard_waiter(self, unsaved: Unsaved, waiter: threading.Lock) -> None:
        """Stop waiting for a run."""
        with self._lock:
            unsaved.waiters.discard(waiter)

    def waiters(
        self, batch: Sequence[Unsaved]
    ) -> dict[Unsaved, tuple[threading.Lock, ...]]:
        """Return the current waiters of those runs that have any."""
        waited = [unsaved for unsaved in batch if unsaved.waiters]
        if not waited:
            return {}
        with self._lock:
            return {unsaved: tuple(unsaved.waiters) for unsaved in waited}

    def release(self, unsaved: Unsaved, waiters: Sequence[threading.Lock]) -> None:
        """Release those of the waiters that are still waiting for a run."""
        with self._lock:
            self._release(unsaved, waiters)

    def _release(self, unsaved: Unsaved, waiters: Sequence[threading.Lock]) -> None:
        for waiter in unsaved.waiters.intersection(waiters):
            unsaved.waiters.remove(waiter)
            waiter.release()

    def abandon(self) -> None:
        """Leave all runs to the parent process. Called in a forked child."""
        # Another thread of the parent may have held the lock.
        self._lock = threading.RLock()
        for unsaved in self._runs.values():
            unsaved.lost = "it runs in another process"
            unsaved.run.close(
                "This job runs in another process, the one that forked this process. "
                "Only that one may report."
            )
        self._runs.clear()


class Requests:
    """What is announced in the store. Through it a job with nothing to report learns of
    its cancel before its next heartbeat, and a job is asked where it is.

    Parameters:
      store: The store.
      outage: Whether the store answers this process.
      jobs: The jobs that this process runs, by message id.
    """

    def __init__(
        self, store: JobStore, outage: Outage, jobs: Mapping[str, CurrentJob]
    ) -> None:
        self._store = store
        self._outage = outage
        self._answers = Answers(store, jobs)
        self._since = 0
        self._asked_at = -math.inf
        self._refusal = Outage(log, REFUSED, None)

    def are_due(self, oldest: Unsaved, now: float) -> bool:
        """Return whether to ask though no run is silent: once a second, once the oldest
        has run for as long.
        """
        return now - max(self._asked_at, oldest.begun) >= QUESTION_SECONDS

    def answer(
        self, runs: Sequence[Unsaved], reporting: Sequence[Unsaved], now: float
    ) -> list[Unsaved]:
        """Have the jobs that are asked say where they are. Return the silent runs whose
        cancel, or that of their batch, was announced since the previous call, or none
        of them while the store is away.

        Parameters:
          runs: All runs. If the batch of one was cancelled, its next update asks it.
          reporting: Those that are not silent.
          now: The current time.
        """
        self._asked_at = now
        uuids = self._ask(runs)
        if not uuids:
            return []
        known = set(reporting)
        found = []
        for unsaved in runs:
            of_batch = unsaved.info.batch in uuids
            if of_batch:
                unsaved.tell_soon()
            if (of_batch or unsaved.uuid in uuids) and unsaved not in known:
                found.append(unsaved)
        return found

    def _ask(self, runs: Sequence[Unsaved]) -> set[str]:
        """Return the uuids of the jobs and batches whose cancel is new, and have the
        jobs that are asked say where they are.
        """
        try:
            uuids, asked, self._since = records_of(self._store).requests(self._since)
        except LOST:
            self._outage.begin()
            return set()
        except ConnectionsInUse as e:
            self._outage.complain_of_crowd(e)
            return set()
        except RedisError as e:
            self._refusal.complain(e)
            return set()
        self._outage.end()
        self._refusal.recover()
        if asked:
            # Not the jobs of the process from which this one was forked.
            self._answers.give(asked.intersection(run.uuid for run in runs))
        return uuids


class Flush:
    """Writes a backlog to the store. Called by one thread only.

    Parameters:
      backlog: The runs to write.
      store: The store to write to.
      heartbeat: Seconds without an update before a job is confirmed to be running.
      outage: Whether the store answers this process.
      jobs: The jobs that this process runs, by message id.

    Attributes:
      failures: For how many ticks in a row the store has accepted nothing, at most 10.
      is_troubled: Whether any of the last updates failed.
      is_crowded: Whether the last ones failed because all connections were in use.
    """

    def __init__(
        self,
        backlog: Backlog,
        store: JobStore,
        heartbeat: float,
        outage: Outage,
        jobs: Mapping[str, CurrentJob],
    ) -> None:
        self._backlog = backlog
        self._store = store
        self._heartbeat = heartbeat
        self._outage = outage
        self._requests = Requests(store, outage, jobs)
        self._sheds = False
        #: The place of the first run whose thread the next tick checks.
        self._next_checked = 0
        self.failures = 0
        self.is_troubled = False
        self.is_crowded = False

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
            if self._should_look_for_requests(runs, due, now):
                due += self._requests.answer(runs, due, now)
        else:
            due = [unsaved for unsaved in runs if unsaved.waiters]
        for portion in _portions(due):
            if not self._write(portion):
                break

    def _due(self, runs: Sequence[Unsaved], now: float) -> list[Unsaved]:
        """Return the runs to write now."""
        silent_since = now - self._heartbeat
        # Unsaved.is_new, inlined for speed: there may be thousands of runs.
        return [
            unsaved
            for unsaved in runs
            if unsaved.run.dirty
            or unsaved.sent_at <= silent_since
            or unsaved.waiters
            or unsaved.end is not None
            or not unsaved.is_stored
            or (unsaved.is_behind and unsaved.is_to_tell(now))
        ]

    def _should_look_for_requests(
        self, runs: Sequence[Unsaved], due: Sequence[Unsaved], now: float
    ) -> bool:
        """Return whether to look for requests. Runs that report learn of their cancel
        from the reply, but not of their batch's.
        """
        return (
            (
                len(due) < len(runs)
                or any(u.info.batch is not None for u in due)
                or (bool(runs) and self._requests.are_due(runs[0], now))
            )
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
        # What lies beside the record is renewed by an update that comes then or later.
        renew_after = self._store.active_expire_in / 2 - self._heartbeat
        updates = [unsaved.take(now, renew_after) for unsaved in batch]
        replies: Sequence[Reply | Exception]
        try:
            replies = records_of(self._store).write(updates)
        except Exception as e:
            # The frames of its traceback have it and the updates, often megabytes. Such
            # a circle waits for the collector, and each try during an outage makes one.
            e.__traceback__ = e.__context__ = e.__cause__ = None
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
            end, why = unsaved.end, "a newer run of it has begun"
            # After a retry this is expected, and so it is if no function was called.
            is_expected = unsaved.is_answered or (
                end is not None and end.status == "retrying"
            )
            self._give_up(unsaved, why, quiet=is_expected or is_known)
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
        crowd = [error for error in errors if isinstance(error, ConnectionsInUse)]
        self.is_crowded = bool(crowd)
        if crowd:
            self._outage.complain_of_crowd(crowd[0])
            if len(crowd) == len(errors):
                # Whether the store accepts updates is not known.
                self._shed()
                return
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


def _portions(runs: Sequence[Unsaved]) -> Iterator[Sequence[Unsaved]]:
    """Yield the runs whose updates go into one round trip."""
    for i in range(0, len(runs), MAX_UPDATES):
        part = runs[i : i + MAX_UPDATES]
        # What most runs weigh is at hand.
        weights = [
            u.run.size if u.end is None and u.run.journal is None else u.weight
            for u in part
        ]
        first, total = 0, 0
        if sum(weights) > MAX_BYTES:
            for place, weight in enumerate(weights):
                if total and total + weight > MAX_BYTES:
                    yield part[first:place]
                    first, total = place, 0
                total += weight
        yield part[first:]


def disregard(unsaved: Unsaved) -> None:
    """Log the normal return of a cancelled job, which no viewer will see."""
    end = unsaved.end
    if unsaved.is_cancelled and end is not None and end.status == "success":
        log.warning(
            "Job %s returned after it was cancelled while its worker was silent: it "
            "stays cancelled.",
            unsaved.uuid,
        )


class Abandoned(Protocol):
    """What belongs to one process."""

    def abandon(self) -> None:
        """Start anew. Called in a forked child."""


@functools.cache
def watch_forks() -> weakref.WeakSet[Abandoned]:
    """Have a forked child abandon what is in a set, and return the set."""
    known: weakref.WeakSet[Abandoned] = weakref.WeakSet()

    def abandon() -> None:
        for each in known:
            each.abandon()

    os.register_at_fork(after_in_child=abandon)
    return known
