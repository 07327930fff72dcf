"""Recorder: collects the updates of a worker process and writes them together."""

from __future__ import annotations

import _thread
import contextlib
import functools
import logging
import os
import queue
import threading
import time
import weakref

from ..job import End
from ..store import JobStore
from .backlog import Backlog
from .flush import Flush, disregard
from .outage import Outage
from .unsaved import Unsaved

log = logging.getLogger(__name__)

#: Seconds that the start and the end of a job each may wait for the store.
PATIENCE = 1.0

#: The longest pause between two attempts while the store is away, in seconds.
MAX_PAUSE = 1.0

#: The clock for all times in this module.
_now = time.monotonic


class Recorder:
    """Writes the updates of all running jobs of this process at intervals, in one round
    trip, and confirms that each job is still running.

    It has one daemon thread, started by the first job. While the store is away it keeps
    everything, but only the latest value of each metric.

    Parameters:
      store: The store to write to.
      interval: Seconds between two flushes.
      heartbeat: Seconds without an update before a job is confirmed to be running.
      outage: Whether the store answers this process. Made here if not shared.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        interval: float = 0.1,
        heartbeat: float = 5.0,
        outage: Outage | None = None,
    ) -> None:
        self.store = store
        self.interval = interval
        self._heartbeat = heartbeat
        self._outage = outage or Outage(log)
        self._backlog = Backlog()
        self._reset()
        watch_forks().add(self)

    def _reset(self) -> None:
        # No Event: see Backlog.
        self._lock = threading.Lock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self._flush = Flush(self._backlog, self.store, self._heartbeat, self._outage)

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
        if patience == PATIENCE and not is_stored and not unsaved.lost:
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


@functools.cache
def watch_forks() -> weakref.WeakSet[Recorder]:
    """Have a forked child abandon the recorders of its parent, and return these."""
    recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()

    def abandon() -> None:
        for recorder in recorders:
            recorder.abandon()

    os.register_at_fork(after_in_child=abandon)
    return recorders
