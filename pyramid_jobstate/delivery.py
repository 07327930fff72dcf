"""What of a run has reached the store, and what is to go there next."""

from __future__ import annotations

import math
import threading
import time

from .record import METRIC, End, Start, Update
from .run import Run
from .values import MAX_AMOUNT, Json, dumps

#: The seconds of a job's past that its pace is taken from, at the least.
PACE_WINDOW = 30.0


class Delivery:
    """What of a run has reached the store. Made by the thread that is to run it, used
    by the recorder's, but for `waiters`, `end` and `runs`, which others set.

    Attributes:
      run: The run.
      start: What is known of the job.
      dropped: Whether the message was dropped, so that no run ever began.
      runs: Whether the job runs: it did not hear of a cancel before it began.
      end: How it ended, once it has.
      begun: When it began, in seconds of the monotonic clock, as all times here.
      confirmed: When the store was last known to hold this run as the newest.
      heard: When something of it was last sent there.
      size: About what this takes in memory, in bytes.
      waiters: Released when all that was set before they came is stored, or never will
        be.
      lost: Why nothing of this run is stored any more, if so.
    """

    __slots__ = (
        "_late",
        "_listed",
        "_new",
        "_pace",
        "_renewed",
        "_sent",
        "_seq",
        "_started",
        "_taken",
        "_thread",
        "begun",
        "confirmed",
        "dropped",
        "end",
        "heard",
        "lost",
        "run",
        "runs",
        "start",
        "uuid",
        "waiters",
    )

    def __init__(
        self, uuid: str, run: Run, start: Start, *, dropped: bool = False
    ) -> None:
        self.run = run
        self.dropped = dropped
        self.runs = False
        self.end: End | None = None
        self.begun = self.confirmed = self.heard = time.monotonic()
        self._listed = self.begun
        self._started = False
        self.waiters: set[threading.Lock] = set()
        self.lost = ""
        self.uuid = uuid
        self.start = start
        self._thread = threading.current_thread()
        self._late = False
        self._seq = 0
        self._renewed = self._listed
        self._new: dict[str, object] = {}
        self._sent: dict[str, object] = {}
        self._taken: dict[str, str] = {}
        #: From where the pace is taken, from where it will be next, and the last.
        self._pace: tuple[_Mark, _Mark, _Mark] | None = None

    @property
    def size(self) -> int:
        report = [str(value) for value in self.run.report.copy().values()]
        return 1024 + self.run.size + len(self.start.params) + sum(map(len, report))

    @property
    def is_new(self) -> bool:
        """Whether there may be something to write."""
        return self.run.dirty or not self._started or self.end is not None

    @property
    def is_orphaned(self) -> bool:
        """Whether its thread is gone and left it behind."""
        return not self._thread.is_alive() and self.end is None

    def take(self, now: float, renew_after: float = math.inf) -> Update:
        """Return what is new since the last update that landed.

        Parameters:
          now: The time.
          renew_after: Seconds after which the job's place in the lists is renewed.
        """
        end = self.end
        self.heard = now
        # The flag is lowered before anything is copied: see run.py.
        self.run.dirty = False
        new: dict[str, object] = {
            METRIC + name: value for name, value in self.run.metrics.copy().items()
        }
        new.update(self.run.report.copy())
        sent = self._sent
        fields: dict[str, str] = {}
        for name, value in new.items():
            # Every value is immutable: the same object says the same.
            if name in sent and sent[name] is value:
                continue
            if name == "progress":
                fields[name] = dumps((*value, self._eta(value, now)))  # type: ignore[misc, arg-type]
            else:
                fields[name] = value if isinstance(value, Json) else dumps(value)
        self._new = new
        self._taken = fields
        self._seq += 1
        update = Update(
            self.uuid, self.run.token, self._seq, self.start, fields, end=end
        )
        if self.dropped:
            update.dropped = True
        elif not self._started:
            update.begins = True
            update.age = now - self.begun
            update.late, self._late = self._late or self.runs, True
        elif now - self._listed > renew_after:
            update.renews, self._renewed = True, now
        return update

    def landed(self, now: float) -> None:
        """Take note that the update which was taken last is stored."""
        self._started = True
        self.confirmed = now
        self._sent = self._new
        self._listed = self._renewed

    def failed(self) -> None:
        """Take note that the update which was taken last may be stored or not: what it
        names goes again, even if its value is then what it was before.
        """
        for name in self._taken:
            self._sent.pop(name, None)
        self._renewed = self._listed
        self.run.dirty = True

    def begin_again(self) -> None:
        """The store has lost the job: all that is known of it is to go again."""
        self._started = False
        self._sent = {}
        self.run.dirty = True

    def _eta(
        self, progress: tuple[float, float | None, str | None], now: float
    ) -> float | None:
        """Return the seconds to the end at the pace of late, or None."""
        done, total, _ = progress
        mark = _Mark(now, done, total)
        if self._pace is None or not self._pace[2].leads_to(mark):
            self._pace = (mark, mark, mark)
        since, middle, _ = self._pace
        is_due = now - middle.at > PACE_WINDOW
        self._pace = (middle, mark, mark) if is_due else (since, middle, mark)
        if total is None or done <= since.done or now <= since.at:
            return None
        left = max(total - done, 0.0)
        eta = left * (now - since.at) / (done - since.done)
        return round(eta, 1) if eta <= MAX_AMOUNT else None


class _Mark:
    """How far a job was at a time."""

    __slots__ = ("at", "done", "total")

    def __init__(self, at: float, done: float, total: float | None) -> None:
        self.at = at
        self.done = done
        self.total = total

    def leads_to(self, later: _Mark) -> bool:
        return later.total == self.total and later.done >= self.done
