"""The part of a run that has not reached the store, and the next update."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import sys
import threading
import time
from typing import Any

from ..job.progress import share_of
from ..job.record import METRIC, End, JobInfo, Update
from ..job.run import Run
from ..job.values import AMOUNTS, MAX_AMOUNT, Json, dumps

#: The least seconds between two reports of a member's progress to its batch.
BATCH_INTERVAL = 1.0

#: The memory that a run takes which has reported nothing, in bytes.
OWN_BYTES = 2560


@dataclasses.dataclass(slots=True, eq=False)
class Unsaved:
    """The part of a run that has not reached the store.

    It is made where a message is about to run or is dropped, and used by the recorder's
    thread. Once the backlog has it, other threads set only `waiters`, `end`, `lost`,
    `is_late` and `is_answered`, the first three under the backlog's lock. All times are
    in seconds of the monotonic clock.

    Attributes:
      uuid: The uuid of the job.
      run: The run.
      info: The job's kind, actor, attempt, owner and parameters.
      dropped: Whether the message was dropped before a run began.
      is_answered: Whether something answered in place of the function. A run that goes
        on elsewhere then stays as it is.
      is_late: Whether a beginning written now would be late: an earlier attempt may
        have failed, or the job is running already.
      is_cancelled: Whether the job stays cancelled, whatever the run does.
      is_fenced: Whether a newer run has begun: of this one only a failure is written.
      is_stored: Whether the store knows that the run, or the drop, has begun.
      end: How the run ended, or None.
      begun: When the run began.
      confirmed: When the store was last known to hold this run as the newest.
      sent_at: When an update was last sent to the store.
      waiters: Locks to release once everything set before is stored or given up.
      lost: Why the recorder gave up this run, or "".
      is_behind: Whether values are stored that the batch of the job does not know.
    """

    uuid: str
    run: Run
    info: JobInfo
    dropped: bool = False
    is_answered: bool = dataclasses.field(default=False, init=False)
    is_late: bool = dataclasses.field(default=False, init=False)
    is_cancelled: bool = dataclasses.field(default=False, init=False)
    is_fenced: bool = dataclasses.field(default=False, init=False)
    is_stored: bool = dataclasses.field(default=False, init=False)
    end: End | None = dataclasses.field(default=None, init=False)
    begun: float = dataclasses.field(init=False)
    confirmed: float = dataclasses.field(init=False)
    sent_at: float = dataclasses.field(init=False)
    waiters: set[threading.Lock] = dataclasses.field(default_factory=set, init=False)
    lost: str = dataclasses.field(default="", init=False)
    _thread: threading.Thread = dataclasses.field(init=False)
    #: When the job's entries in the lists were last renewed.
    _listed: float = dataclasses.field(init=False)
    #: The numbers of the last update known to be stored, and of the last one taken.
    _base: int = dataclasses.field(default=0, init=False)
    _seq: int = dataclasses.field(default=0, init=False)
    #: The last update taken, and the values in it, until it is marked: objects that
    #: outlive a flush keep the garbage collector busy.
    _last: Update | None = dataclasses.field(default=None, init=False)
    _new: dict[str, object] | None = dataclasses.field(default=None, init=False)
    #: The values that are stored.
    _sent: dict[str, object] = dataclasses.field(default_factory=dict, init=False)
    is_behind: bool = dataclasses.field(default=False, init=False)
    #: When the job was last reported to its batch.
    _batch_at: float = dataclasses.field(default=-math.inf, init=False)
    _pace: Pace | None = dataclasses.field(default=None, init=False)
    #: The metrics as they are to be sent, once they are packed.
    _packed: bytes = dataclasses.field(default=b"", init=False)
    #: The memory that this then takes.
    _size: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self._thread = threading.current_thread()
        self.begin()

    def begin(self) -> None:
        """Note that the run begins now."""
        self.begun = self.confirmed = self.sent_at = self._listed = time.monotonic()

    def pack(self) -> int:
        """Keep the metrics of a run that has ended as bytes, and return the approximate
        memory that this takes. As objects they take several times as much, and leave
        holes in the memory of the process.
        """
        if self._packed:
            return self._size
        # The actor's own object may still be read.
        run = self.run = copy.copy(self.run)
        # It refers to this object: a circle waits for the collector.
        run.sync = None
        metrics, report = run.metrics.copy(), run.report.copy()
        texts = {METRIC + name: as_json(value) for name, value in metrics.items()}
        self._packed = dumps(texts).encode()
        run.metrics, self._sent = {}, {}
        failure = () if self.end is None else self.end.failure or ()
        kept = (
            self._packed,
            self.info.params,
            *map(str, report.values()),
            *failure,
        )
        logged = 0 if run.journal is None else run.journal.size
        self._size = OWN_BYTES + sum(map(sys.getsizeof, kept)) + logged
        return self._size

    @property
    def weight(self) -> int:
        """The most bytes that the next update has, approximately."""
        failure = () if self.end is None else self.end.failure or ()
        logged = 0 if self.run.journal is None else self.run.journal.size
        return self.run.size + logged + len(self.info.params) + sum(map(len, failure))

    @property
    def is_new(self) -> bool:
        """Whether there may be something to write."""
        return self.run.dirty or not self.is_stored or self.end is not None

    def is_to_tell(self, now: float) -> bool:
        """Return whether it is time to report values to the batch: see `is_behind`."""
        return now - self._batch_at >= BATCH_INTERVAL

    def tell_soon(self) -> None:
        """Have the next update reported to the batch, which was cancelled."""
        self._batch_at = -math.inf

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
        run, sent, end = self.run, self._sent, self.end
        self.sent_at = now
        # Lower the flag before copying anything: see run.py.
        run.dirty = False
        new: dict[str, object] = {}
        fields: dict[str, str] = json.loads(self._packed) if self._packed else {}
        # Values are immutable: the same object is an unchanged value.
        for name, value in run.metrics.copy().items():
            if sent.get(field := METRIC + name, self) is not value:
                new[field] = value
                # as_json(), inlined for speed.
                is_number = type(value) in AMOUNTS
                fields[field] = repr(value) if is_number else as_json(value)
        report = run.report.copy()
        if "phase" in report:
            run.phases.hold(report)
        for field, what in report.items():
            if sent.get(field, self) is not what:
                new[field] = what
                fields[field] = (
                    self._progress(report, now)
                    if field == "progress"
                    else as_json(what)
                )
        self._new = new
        self._seq += 1
        update = Update(
            self.uuid,
            run.token,
            self._seq,
            self.info,
            fields,
            age=now - self.begun,
            end=end,
            base=self._base,
        )
        if self.dropped:
            update.dropped = True
        elif not self.is_stored and not self.is_fenced:
            update.begins = True
            update.late, self.is_late = self.is_late, True
            update.is_answered = self.is_answered
            update.cancelled = run.cancel_requested
        elif now - self._listed > renew_after:
            update.renews = True
        if self.info.batch is not None and now - self._batch_at >= BATCH_INTERVAL:
            update.tells = True
            update.millionths = int(share_of(report) * 1_000_000)
        if run.journal is not None:
            update.lines = run.journal.take()
        self._last = update
        return update

    def mark_stored(self, now: float) -> None:
        """Mark the last update, taken at `now`, as stored."""
        last, new = self._last, self._new
        self._last = self._new = None
        self.is_stored = True
        self.confirmed = now
        if last is None or new is None:
            return
        self._sent.update(new)
        if last.lines and self.run.journal is not None:
            self.run.journal.forget(last.lines[-1].number)
        if last.reports:
            self._base = last.seq
        if last.renews:
            self._listed = now
        if last.tells:
            self._batch_at, self.is_behind = now, False
        elif self.info.batch is not None and last.fields:
            self.is_behind = True

    def mark_unconfirmed(self) -> None:
        """Mark the last update as unconfirmed: resend everything it names, even a value
        that has changed back by then.
        """
        for name in self._new or ():
            self._sent.pop(name, None)
        self._last = self._new = None
        self.run.dirty = True

    def begin_again(self) -> None:
        """Resend everything: the store has lost the job."""
        self.is_stored = False
        self._sent = {}
        self._base = 0
        self.run.dirty = True

    def _progress(self, report: dict[str, Any], now: float) -> str:
        """Return the JSON of the progress in a report, with the time that is left."""
        done, total, unit = report["progress"]
        unit_text = text_of(unit) if type(unit) is str else dumps(unit)
        start = f"[{as_json(done)},{as_json(total)},{unit_text}"
        if "phase" in report:
            # To the end of the whole job
            done, total = share_of(report), 1.0
        if self._pace is None:
            self._pace = Pace()
        return f"{start},{as_json(self._pace.eta(now, done, total))}]"


def as_json(value: object) -> str:
    """Return a value of a run as JSON."""
    if type(value) in AMOUNTS:
        return repr(value)
    if value is None:
        return "null"
    return value if isinstance(value, Json) else dumps(value)


@functools.lru_cache(64)
def text_of(unit: str) -> str:
    """Return a unit as JSON. Thousands of jobs have the same one."""
    return dumps(unit)


#: The recent pace is measured over at least this many seconds, once a job is that old.
WINDOW = 30.0


class Pace:
    """The recent pace of one job.

    Its numbers are kept one by one: thousands of small objects would keep the garbage
    collector busy. Times are in seconds of the monotonic clock.
    """

    __slots__ = ("_at", "_done", "_last", "_next_at", "_next_done", "_total")

    def __init__(self) -> None:
        #: The current starting point, and the next one.
        self._at = self._next_at = 0.0
        self._done = self._next_done = 0.0
        #: The latest progress and total.
        self._last: float = math.inf
        self._total: float | None = None

    def eta(self, now: float, done: float, total: float | None) -> float | None:
        """Return the seconds to the end, or None if unknown.

        Parameters:
          now: The current time.
          done, total: The progress. If it goes back, or its total changes, the pace is
            measured anew.
        """
        if done < self._last or total != self._total:
            self._at = self._next_at = now
            self._done = self._next_done = done
            self._total = total
        self._last = done
        at, before = self._at, self._done
        if now - self._next_at > WINDOW:
            self._at, self._done = self._next_at, self._next_done
            self._next_at, self._next_done = now, done
        if total is None or done <= before or now <= at:
            return None
        eta = max(total - done, 0.0) * (now - at) / (done - before)
        return round(eta, 1) if eta <= MAX_AMOUNT else None
