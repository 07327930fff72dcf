"""Recorder: what a worker process writes to the store, later and all together."""

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
from collections.abc import Collection, Sequence

from redis import exceptions

from ..job.record import End, Update
from ..store.jobstore import JobStore, Reply, is_hopeless
from .outage import Outage
from .unsaved import Delivery

log = logging.getLogger(__name__)

#: The seconds that a job's start, and its end, may wait for the store.
PATIENCE = 1.0

#: The most seconds between two tries while the store is away.
MAX_PAUSE = 1.0

#: The most updates in one round trip.
BATCH = 1000

#: What the ends of jobs may take in memory while the store is away, in bytes.
MAX_PENDING = 64 * 1024 * 1024


class Recorder:
    """Writes what the running jobs of this process set, a moment later and in one round
    trip for all, and says for each that it still runs.

    It has one daemon thread, which begins with the first job. While the store is away
    everything is kept; only the latest value of a metric counts.

    Parameters:
      store: Where to.
      interval: Seconds between two writes.
      heartbeat: Seconds of silence after which a job is said to be running.
      outage: What this process knows of the store.
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
        self.heartbeat = heartbeat
        self._outage = outage or Outage(log)
        self._deliveries: dict[str, Delivery] = {}
        self._reset()
        _recorders.add(self)

    def _reset(self) -> None:
        # Dramatiq may interrupt a worker thread between any two bytecodes. An Event is
        # written in Python: one that is interrupted may stay locked, for all. These are
        # written in C.
        self._lock = threading.Lock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        #: Whether any of the last updates failed.
        self.is_troubled = False
        self._sheds = False
        self._failures = 0
        self._cancels_since = 0
        self._is_deaf = False

    def begin(self, delivery: Delivery) -> None:
        """Take over a run, and write that it has begun. Waits a second for the store at
        the most; if it is away, that is written as soon as it is back.
        """
        delivery.run.sync = functools.partial(self.sync, delivery)
        with self._lock:
            self._stop_at = None
            self._deliveries[delivery.run.token] = delivery
        patience = PATIENCE
        if not self._outage.may_ask():
            # Somebody else met a failure. The job should hear of a cancel all the same,
            # if that is quick.
            patience = 0.0 if self._failures else min(PATIENCE, 2 * self.interval)
        self._wait(delivery, patience)
        # From here on the job runs, and another run of it may begin.
        delivery.is_late = True

    def end(self, delivery: Delivery, end: End) -> bool:
        """Write that a run has ended, with all that it has set. Waits a second for the
        store at the most; if it is away, that is written as soon as it is back.

        Returns:
          Whether it is stored.
        """
        delivery.run.close("The job has ended: it can no longer report.")
        with self._lock:
            delivery.end = end
            if delivery.is_cancelled and end.delay is not None:
                # The message that was put back must find the record: see finish.lua.
                delivery.lost = ""
            is_lost = bool(delivery.lost)
            if not is_lost:
                self._deliveries[delivery.run.token] = delivery
        if is_lost:
            self._disregard(delivery)
            return False
        return self._wait(delivery, PATIENCE if self._outage.may_ask() else 0.0)

    def _wait(self, delivery: Delivery, patience: float) -> bool:
        """Wait until all that a run has set is stored, and say whether it is."""
        is_stored = self.sync(delivery, patience)
        if patience == PATIENCE and not is_stored and not delivery.lost:
            self._outage.begin()
        return is_stored

    def sync(self, delivery: Delivery, timeout: float) -> bool:
        """Wait until all that a run has set is stored, and say whether it is."""
        waiter = threading.Lock()
        waiter.acquire()
        with self._lock:
            if delivery.run.token not in self._deliveries:
                return not delivery.lost
            delivery.waiters.add(waiter)
            if self._thread is None:
                self._start()
        self._wake.put(None)
        timeout = min(max(0.0, timeout), threading.TIMEOUT_MAX)
        try:
            return waiter.acquire(timeout=timeout) and not delivery.lost
        finally:
            with self._lock:
                delivery.waiters.discard(waiter)

    def stop(self, timeout: float = 5.0) -> None:
        """Write what is left, for `timeout` seconds at the most, and end the thread,
        unless jobs run on: those of another worker in this process, or one that its
        worker did not wait for. The next job begins a new one.
        """
        with self._lock:
            thread = self._thread
            self._stop_at = stop_at = _now() + timeout
        self._wake.put(None)
        while thread is not None and thread.is_alive() and self._stop_at == stop_at:
            if _now() >= stop_at:
                break
            thread.join(0.01)
        with self._lock:
            left = [d for d in self._deliveries.values() if d.end is not None]
        if left:
            log.error(
                "The job state store did not answer: the end of %d jobs is lost.",
                len(left),
            )

    def _start(self) -> None:
        """Start a thread, which ends if there is one by then."""
        self._stop_at = None
        thread = threading.Thread(target=self._loop, name=__name__, daemon=True)
        # In a thread that nobody interrupts. An interrupt that meets a thread while it
        # starts another may end that one, and then the first waits for it for ever.
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
                    if not any(d.is_running for d in self._deliveries.values()):
                        self._thread = None
                        return
                idle = not self._deliveries
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=None if idle else max(0.0, due - _now()))
            while not self._wake.empty():
                self._wake.get()
            now = _now()
            # Who waits is served at once, all others when their time has come; but what
            # was kept while the store was away goes first.
            is_stopping = self._stop_at is not None
            everyone = now >= due or is_stopping or self._failures > 0
            try:
                self._tick(now, everyone)
            except Exception:
                log.exception("The states of jobs could not be written.")
            if everyone:
                pause = min(self.interval * 2**self._failures, MAX_PAUSE)
                due = _now() + (pause if is_stopping else max(pause, self.interval))

    def _is_done(self, stop_at: float) -> bool:
        return _now() >= stop_at or not any(d.is_new for d in self._deliveries.values())

    def _tick(self, now: float, everyone: bool) -> None:
        with self._lock:
            deliveries = list(self._deliveries.values())
        due, silent = [], []
        for delivery in deliveries:
            if everyone and delivery.is_orphaned:
                # An interrupt came where Dramatiq does not expect one.
                self._give_up(delivery, "the thread that ran it is gone")
            elif delivery.waiters or (
                everyone and (delivery.is_new or now - delivery.heard >= self.heartbeat)
            ):
                due.append(delivery)
            else:
                silent.append(delivery)
        if everyone and silent:
            due += self._find_cancelled(silent)
        for i in range(0, len(due), BATCH):
            if not self._deliver(due[i : i + BATCH]):
                break

    def _find_cancelled(self, silent: Sequence[Delivery]) -> list[Delivery]:
        """Return those of the silent runs whose cancel was requested lately. The others
        hear of theirs with the reply to what they report.
        """
        if self._failures or not self._outage.may_ask():
            return []
        try:
            uuids, self._cancels_since = self.store.cancels(self._cancels_since)
        except (exceptions.ConnectionError, exceptions.TimeoutError):
            self._outage.begin()
            return []
        except exceptions.RedisError as e:
            if not self._is_deaf:
                self._is_deaf = True
                log.warning(
                    "The job state store does not tell of cancels, which jobs hear of "
                    "with a heartbeat only: %s: %s",
                    type(e).__name__,
                    e,
                )
            return []
        self._outage.end()
        self._is_deaf = False
        return [d for d in silent if d.uuid in uuids] if uuids else []

    def _deliver(self, deliveries: Sequence[Delivery]) -> bool:
        """Write what is new of some runs, and say whether the store took any of it."""
        with self._lock:
            # Who begins to wait later waits for the next update.
            waiting = [tuple(d.waiters) for d in deliveries]
        now = _now()
        renew_after = self.store.active_expire_in / 2
        updates = [d.take(now, renew_after) for d in deliveries]
        replies: Sequence[Reply | Exception]
        try:
            replies = self.store.write(updates)
        except Exception as e:
            replies = [e] * len(updates)
        errors = []
        for delivery, update, reply, waiters in zip(
            deliveries, updates, replies, waiting, strict=True
        ):
            if isinstance(reply, Reply):
                if self._settle(delivery, update, reply, now):
                    self._release(delivery, waiters)
            elif is_hopeless(reply):
                self._give_up(delivery, str(reply))
            else:
                delivery.failed()
                errors.append(reply)
        self._note(errors, len(updates))
        return len(errors) < len(updates)

    def _settle(
        self, delivery: Delivery, update: Update, reply: Reply, taken: float
    ) -> bool:
        """Take note of the store's reply to an update, and say whether it is stored."""
        if reply in (Reply.CANCELLING, Reply.CANCELLED):
            delivery.run.cancel()
        if reply in (Reply.OK, Reply.CANCELLING):
            delivery.landed(taken)
            if update.end is not None:
                self._remove(delivery)
            return True
        if reply is Reply.FENCED:
            # After a retry that is as it should be.
            is_retried = update.end is not None and update.end.status == "retrying"
            self._give_up(delivery, "a newer run of it has begun", quiet=is_retried)
        elif update.dropped:
            self._give_up(delivery, "there was nothing to drop", quiet=True)
        elif reply is Reply.CANCELLED:
            # Before it began, or while it was silent: others have acted on that.
            delivery.is_cancelled = True
            self._give_up(delivery, "it was cancelled", quiet=True)
        elif reply is Reply.MISSING and not self._can_be_lost(delivery):
            self._give_up(delivery, "its record has expired")
        else:
            # The store came back empty.
            delivery.begin_again()
        return False

    def _can_be_lost(self, delivery: Delivery) -> bool:
        """Whether a record that is missing was lost by the store: it cannot have ended
        elsewhere and expired since.
        """
        return _now() - delivery.confirmed < self.store.expire_in

    def _give_up(self, delivery: Delivery, why: str, *, quiet: bool = False) -> None:
        """Record a run no longer."""
        with self._lock:
            delivery.lost = why
            has_ended = delivery.end is not None
        self._remove(delivery)
        if has_ended:
            self._disregard(delivery)
        if not quiet:
            uuid = delivery.uuid
            log.warning("Job %s is no longer recorded from here: %s.", uuid, why)

    def _disregard(self, delivery: Delivery) -> None:
        """Log that a job has returned, which nobody will see."""
        end = delivery.end
        if delivery.is_cancelled and end is not None and end.status == "success":
            log.warning(
                "Job %s returned after it was cancelled while its worker was silent: "
                "it stays cancelled.",
                delivery.uuid,
            )

    def _remove(self, delivery: Delivery) -> None:
        with self._lock:
            del self._deliveries[delivery.run.token]
        self._release(delivery, tuple(delivery.waiters))

    def _release(self, delivery: Delivery, waiters: Collection[threading.Lock]) -> None:
        with self._lock:
            for waiter in delivery.waiters.intersection(waiters):
                delivery.waiters.remove(waiter)
                waiter.release()

    def _note(self, errors: Sequence[Exception], count: int) -> None:
        """Say once that the store is away, and once that it is back."""
        self.is_troubled = bool(errors)
        if errors:
            self._outage.complain(errors[0])
        if len(errors) == count:
            self._failures = min(self._failures + 1, 10)
            self._outage.begin()
            self._shed()
            return
        self._failures = 0
        self._outage.end()
        self._sheds = False
        if not errors:
            self._outage.recover()

    def _shed(self) -> None:
        """Forget the oldest ends that wait if they take too much memory."""
        with self._lock:
            ended = [d for d in self._deliveries.values() if d.end is not None]
        excess = sum(d.size for d in ended) - MAX_PENDING
        for delivery in ended:
            if excess <= 0:
                break
            excess -= delivery.size
            self._give_up(delivery, "the store is away for too long", quiet=True)
            if not self._sheds:
                self._sheds = True
                log.error(
                    "The job state store is away for so long that the ends of jobs are "
                    "lost, from job %s on.",
                    delivery.uuid,
                )

    def _after_fork(self) -> None:
        for delivery in self._deliveries.values():
            delivery.lost = "it runs in another process"
            delivery.run.close(
                "This job runs in another process, which forked this one: only that "
                "may report."
            )
        self._deliveries.clear()
        self._reset()


#: The clock of all times here.
_now = time.monotonic

#: For the child of a fork: no thread of the parent goes on there.
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for recorder in _recorders:
        recorder._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
