"""Recorder: what a worker process writes to the store, later and all together."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence

from .delivery import Delivery
from .record import End, Update
from .store import JobStore, Reply

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
    """

    def __init__(
        self, store: JobStore, *, interval: float = 0.1, heartbeat: float = 5.0
    ) -> None:
        self.store = store
        self.interval = interval
        self.heartbeat = heartbeat
        self._deliveries: dict[str, Delivery] = {}
        self._reset()
        _recorders.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self._away_since: float | None = None
        self._troubled = False
        self._failures = 0

    def begin(self, delivery: Delivery) -> None:
        """Take over a run, and write that it has begun. Waits a second for the store at
        the most; if it is away, that is written as soon as it is back.
        """
        delivery.run.sync = functools.partial(self.sync, delivery)
        with self._lock:
            self._deliveries[delivery.run.token] = delivery
        self.sync(delivery, self._patience())

    def end(self, delivery: Delivery, end: End) -> bool:
        """Write that a run has ended, with all that it has set. Waits a second for the
        store at the most; if it is away, that is written as soon as it is back.

        Returns:
          Whether it is stored.
        """
        delivery.run.close("The job has ended: it can no longer report.")
        delivery.end = end
        if not delivery.lost:
            with self._lock:
                self._deliveries[delivery.run.token] = delivery
        return self.sync(delivery, self._patience())

    def sync(self, delivery: Delivery, timeout: float) -> bool:
        """Wait until all that a run has set is stored, and say whether it is."""
        waiter = threading.Event()
        with self._lock:
            if delivery.run.token not in self._deliveries:
                return not delivery.lost
            delivery.waiters.append(waiter)
            if self._thread is None:
                self._stop_at = None
                self._thread = threading.Thread(
                    target=self._loop, name=__name__, daemon=True
                )
                self._thread.start()
        self._wake.set()
        return waiter.wait(timeout) and not delivery.lost

    def stop(self, timeout: float = 5.0) -> None:
        """Write what is left, for `timeout` seconds at the most, and end the thread.
        The next job begins a new one.
        """
        with self._lock:
            thread = self._thread
            self._stop_at = time.monotonic() + timeout
        self._wake.set()
        if thread is not None:
            thread.join(timeout)
        with self._lock:
            left = [d for d in self._deliveries.values() if d.end is not None]
        if left:
            log.error(
                "The job state store did not answer: the end of %d jobs is lost.",
                len(left),
            )

    def _patience(self) -> float:
        """Return for how long a job should wait for the store: not at all once that has
        been away for a while.
        """
        away = self._away_since
        return PATIENCE if away is None else max(0, PATIENCE + away - time.monotonic())

    def _loop(self) -> None:
        due = 0.0
        while True:
            with self._lock:
                if self._stop_at is not None and self._is_done(self._stop_at):
                    self._thread = None
                    return
                idle = not self._deliveries
            self._wake.wait(None if idle else max(0.0, due - time.monotonic()))
            self._wake.clear()
            now = time.monotonic()
            # Who waits is served at once, all others when their time has come.
            everyone = now >= due or self._stop_at is not None
            self._tick(now, everyone)
            if everyone:
                pause = min(self.interval * 2**self._failures, MAX_PAUSE)
                due = time.monotonic() + max(pause, self.interval)

    def _is_done(self, stop_at: float) -> bool:
        return time.monotonic() >= stop_at or not any(
            d.end or d.run.dirty for d in self._deliveries.values()
        )

    def _tick(self, now: float, everyone: bool) -> None:
        with self._lock:
            due = [
                d
                for d in self._deliveries.values()
                if d.waiters
                or (everyone and (d.run.dirty or now - d.heard >= self.heartbeat))
            ]
        for i in range(0, len(due), BATCH):
            if not self._deliver(due[i : i + BATCH]):
                break

    def _deliver(self, deliveries: Sequence[Delivery]) -> bool:
        """Write what is new of some runs, and say whether the store took any of it."""
        with self._lock:
            waiting = [d.waiters for d in deliveries]
            for delivery in deliveries:
                delivery.waiters = []
        now = time.monotonic()
        updates = [d.take(now) for d in deliveries]
        replies: Sequence[Reply | Exception]
        try:
            replies = self.store.write(updates)
        except Exception as e:
            replies = [e] * len(updates)
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        for delivery, update, reply, waiters in zip(
            deliveries, updates, replies, waiting, strict=True
        ):
            if isinstance(reply, Exception):
                delivery.failed()
            elif self._settle(delivery, update, reply, now):
                for waiter in waiters:
                    waiter.set()
                continue
            with self._lock:
                delivery.waiters.extend(waiters)
        self._note(errors, len(updates))
        return len(errors) < len(updates)

    def _settle(
        self, delivery: Delivery, update: Update, reply: Reply, now: float
    ) -> bool:
        """Take note of the store's reply, and say whether it was the last word on the
        update.
        """
        if reply in (Reply.OK, Reply.CANCELLING):
            delivery.landed(now)
            if update.end is None:
                if reply is Reply.CANCELLING:
                    delivery.run.cancel()
                return True
        elif reply is Reply.CANCELLED:
            delivery.lost = "it was cancelled before it began"
            delivery.run.cancel()
        elif reply is Reply.FENCED:
            delivery.lost = "a newer run of it has begun"
        elif update.dropped:
            delivery.lost = "there was nothing to drop"
        elif now - delivery.confirmed < self.store.expire_in:
            # It cannot have ended elsewhere and expired since: the store came back
            # empty, while the job went on.
            delivery.begin_again()
            return False
        else:
            delivery.lost = "its record has expired"
        if delivery.lost and not update.dropped and reply is not Reply.CANCELLED:
            log.warning(
                "Job %s is no longer recorded from here: %s.",
                update.uuid,
                delivery.lost,
            )
        with self._lock:
            del self._deliveries[update.token]
        return True

    def _note(self, errors: Sequence[Exception], count: int) -> None:
        """Say once that the store is away, and once that it is back."""
        if errors and not self._troubled:
            self._troubled = True
            log.warning(
                "The job state store does not take updates, which are kept until it "
                "does: %s: %s",
                type(errors[0]).__name__,
                errors[0],
            )
        if len(errors) == count:
            self._failures = min(self._failures + 1, 10)
            self._away_since = self._away_since or time.monotonic()
            self._shed()
        else:
            self._failures = 0
            self._away_since = None
            if self._troubled and not errors:
                self._troubled = False
                log.info("The job state store takes updates again.")

    def _shed(self) -> None:
        """Forget the oldest ends that wait if they take too much memory."""
        with self._lock:
            ended = [d for d in self._deliveries.values() if d.end is not None]
            room = MAX_PENDING - sum(d.size for d in ended)
            for count, delivery in enumerate(ended):
                if room >= 0:
                    break
                room += delivery.size
                del self._deliveries[delivery.run.token]
                if not count:
                    log.error(
                        "The job state store is away for so long that the ends of "
                        "jobs are lost, from job %s on.",
                        delivery.uuid,
                    )

    def _after_fork(self) -> None:
        for delivery in self._deliveries.values():
            delivery.run.close(
                "This job runs in another process, which forked this one: only that "
                "may report."
            )
        self._deliveries.clear()
        self._reset()


#: For the child of a fork: no thread of the parent goes on there.
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for recorder in _recorders:
        recorder._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
