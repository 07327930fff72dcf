"""The part of a run that has not reached the store, and the next update."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from typing import Any, NamedTuple

from ..job import (
    MAX_AMOUNT,
    METRIC,
    End,
    JobInfo,
    Json,
    PartOfProgress,
    Phase,
    Progress,
    Run,
    Update,
    dumps,
    in_phase,
)

#: The least seconds between two reports of a member's progress to its batch.
TOLD_EVERY = 1.0

#: The recent pace is measured over at least this many seconds, once a job is that old.
PACE_WINDOW = 30.0


@dataclasses.dataclass(slots=True, eq=False)
class Unsaved:
    """The part of a run that has not reached the store.

    It is made where a run begins or a message is dropped, and used by the recorder's
    thread. Other threads set only `waiters`, `end`, `lost` and `is_late`, the first
    three under the backlog's lock. All times are in seconds of the monotonic clock.

    Attributes:
      uuid: The uuid of the job.
      run: The run.
      info: The job's kind, actor, attempt, owner and parameters.
      dropped: Whether the message was dropped before a run began.
      is_late: Whether a beginning written now would be late: an earlier attempt may
        have failed, or the job is running already.
      is_cancelled: Whether the job stays cancelled, whatever the run does.
      end: How the run ended, or None.
      begun: When the run began.
      confirmed: When the store was last known to hold this run as the newest.
      heard: When an update was last sent to the store.
      waiters: Locks to release once everything set before is stored or given up.
      lost: Why the recorder gave up this run, or "".
      is_behind: Whether values are stored that the batch of the job does not know.
    """

    uuid: str
    run: Run
    info: JobInfo
    dropped: bool = False
    is_late: bool = dataclasses.field(default=False, init=False)
    is_cancelled: bool = dataclasses.field(default=False, init=False)
    end: End | None = dataclasses.field(default=None, init=False)
    begun: float = dataclasses.field(init=False)
    confirmed: float = dataclasses.field(init=False)
    heard: float = dataclasses.field(init=False)
    waiters: set[threading.Lock] = dataclasses.field(default_factory=set, init=False)
    lost: str = dataclasses.field(default="", init=False)
    _thread: threading.Thread = dataclasses.field(init=False)
    #: When the job's entries in the lists were last renewed.
    _listed: float = dataclasses.field(init=False)
    _started: bool = dataclasses.field(default=False, init=False)
    #: The numbers of the last update known to be stored, and of the last one taken.
    _base: int = dataclasses.field(default=0, init=False)
    _seq: int = dataclasses.field(default=0, init=False)
    _last: Update = dataclasses.field(init=False)
    #: The values in the last update taken, and in the last one stored.
    _new: dict[str, object] = dataclasses.field(default_factory=dict, init=False)
    _sent: dict[str, object] = dataclasses.field(default_factory=dict, init=False)
    is_behind: bool = dataclasses.field(default=False, init=False)
    #: When the job was last reported to its batch.
    _told: float = dataclasses.field(default=-math.inf, init=False)
    #: The mark from which the pace is measured, the next such mark, and the latest.
    _pace: tuple[_Mark, _Mark, _Mark] | None = dataclasses.field(
        default=None, init=False
    )

    def __post_init__(self) -> None:
        self._thread = threading.current_thread()
        self.begun = self.confirmed = self.heard = self._listed = time.monotonic()
        self._last = Update(self.uuid, self.run.token, 0, self.info)

    @property
    def size(self) -> int:
        """The approximate memory that this takes, in bytes."""
        report = [str(value) for value in self.run.report.copy().values()]
        if self.end is not None and self.end.failure is not None:
            report += self.end.failure
        return 1024 + self.run.size + len(self.info.params) + sum(map(len, report))

    @property
    def is_new(self) -> bool:
        """Whether there may be something to write."""
        return self.run.dirty or not self._started or self.end is not None

    def is_to_tell(self, now: float) -> bool:
        """Return whether it is time to report values to the batch: see `is_behind`."""
        return now - self._told >= TOLD_EVERY

    def tell_soon(self) -> None:
        """Have the next update reported to the batch, which was cancelled."""
        self._told = -math.inf

    @property
    def is_running(self) -> bool:
        return self.end is None and self._thread.is_alive()

    @property
    def is_orphaned(self) -> bool:
        """Whether the thread of the run has exited without ending the run."""
        return self.end is None and not self._thread.is_alive()

    def take(self, now: float, renew_after: float = math.inf) -> Update:
        """Return an update with the changes since the last one stored.

        Parameters:
          now: The current time.
          renew_after: Seconds after which the job's entries in the lists are renewed.
        """
        end = self.end
        self.heard = now
        # Lower the flag before copying anything: see run.py.
        self.run.dirty = False
        new: dict[str, object] = {
            METRIC + name: value for name, value in self.run.metrics.copy().items()
        }
        new.update(self.run.report.copy())
        sent = self._sent
        fields: dict[str, str] = {}
        for name, value in new.items():
            # Values are immutable: the same object is an unchanged value.
            if name in sent and sent[name] is value:
                continue
            if name == "progress":
                reported: Any = value
                phase: Any = new.get("phase")
                progress = in_phase(Progress(*reported), phase and Phase(*phase))
                fields[name] = dumps((*reported, self._eta(progress, now)))
            else:
                fields[name] = value if isinstance(value, Json) else dumps(value)
        self._new = new
        self._seq += 1
        update = Update(
            self.uuid,
            self.run.token,
            self._seq,
            self.info,
            fields,
            end=end,
            base=self._base,
        )
        if self.dropped:
            update.dropped = True
        elif not self._started:
            update.begins = True
            update.age = now - self.begun
            update.late, self.is_late = self.is_late, True
            update.cancelled = self.run.cancel_requested
        elif now - self._listed > renew_after:
            update.renews = True
        if self.info.batch is not None and now - self._told >= TOLD_EVERY:
            update.tells, update.millionths = True, self._millionths()
        self._last = update
        return update

    def mark_stored(self, now: float) -> None:
        """Mark the last update, taken at `now`, as stored."""
        self._started = True
        self.confirmed = now
        self._sent = self._new
        if self._last.reports:
            self._base = self._last.seq
        if self._last.renews:
            self._listed = now
        if self._last.tells:
            self._told, self.is_behind = now, False
        elif self.info.batch is not None and self._last.fields:
            self.is_behind = True

    def mark_unconfirmed(self) -> None:
        """Mark the last update as unconfirmed: resend everything it names, even a value
        that has changed back by then.
        """
        for name in self._last.fields:
            self._sent.pop(name, None)
        self.run.dirty = True

    def begin_again(self) -> None:
        """Resend everything: the store has lost the job."""
        self._started = False
        self._sent = {}
        self._base = 0
        self.run.dirty = True

    def _millionths(self) -> int:
        """Return how much of the job is done, as of the last update taken."""
        reported: Any = self._new.get("progress")
        if reported is None:
            return 0
        phase: Any = self._new.get("phase")
        progress = in_phase(Progress(*reported), phase and Phase(*phase))
        return int((progress.fraction or 0.0) * 1_000_000)

    def _eta(self, progress: Progress, now: float) -> float | None:
        """Return the seconds to the end at the recent pace, or None if unknown."""
        done, total, *_ = progress
        if isinstance(progress, PartOfProgress):
            # To the end of the whole job
            done, total = progress.fraction, 1.0
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


class _Mark(NamedTuple):
    """The progress of a job at a point in time."""

    at: float
    done: float
    total: float | None

    def leads_to(self, later: _Mark) -> bool:
        return later.total == self.total and later.done >= self.done
