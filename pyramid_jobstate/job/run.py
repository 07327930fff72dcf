"""The reports of one execution of a job.

The writer stores a value, then raises the flag `dirty`. The recorder lowers the flag,
then copies the values. The copy contains every value stored before it; a value stored
later raises the flag again. Nothing is lost and neither side needs a lock, because each
step (storing into a dict, updating a dict from another, copying a dict) is atomic.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .phases import Phases
from .steps import AsyncSteps
from .told import Told
from .values import (
    AMOUNTS,
    LOG_LINE_LENGTH,
    LOG_LINES,
    MAX_JOB_BYTES,
    NUMBER_BYTES,
    Json,
    check_amount,
    check_name,
    check_text,
    encode_value,
    is_plain,
    loads,
)

T = TypeVar("T")

#: A metric's value as it is kept: a plain number, or JSON text.
Value = int | float | Json

#: Stands for a total that was not checked.
UNCHECKED: Any = object()


class Run:
    """The reports of one execution of a job.

    Until a recorder takes it over, a run is detached: it keeps its values in memory.

    Parameters:
      closed: If given, the run is closed for this reason: see :meth:`close`.

    Attributes:
      token: Identifies this run among all runs of the job.
      metrics: The value of each metric.
      phases: The open phases.
      report: The other reports: `progress` as (done, total, unit), `phase` as (base,
        span, names), `message` and `log`.
      dirty: The flag: whether anything was set since the recorder lowered it.
      known: The metrics that may be set to a number without further checks.
      barred: Whether each call must first :meth:`check` that it may continue.
      cancel_requested: Whether cancellation of the job was requested.
      total, unit: The total and the unit that set_progress() need not check again.
      size: The bytes that the metrics take as JSON, including their names.
      sync: Waits up to the given seconds until everything is stored and returns
        whether it is. None while the run is detached.
    """

    __slots__ = (
        "_closed",
        "_lines",
        "_lock",
        "_sizes",
        "_told",
        "barred",
        "cancel_requested",
        "dirty",
        "known",
        "metrics",
        "phases",
        "report",
        "size",
        "sync",
        "token",
        "total",
        "unit",
    )

    def __init__(self, *, closed: str = "") -> None:
        self.token = secrets.token_hex(6)
        self.metrics: dict[str, Value] = {}
        self.report: dict[str, object] = {}
        self.dirty = False
        self.known: set[str] = set()
        #: The last total that was checked. There is a progress then.
        self.total: float | None = UNCHECKED
        self.unit: str | None = None
        self.barred = False
        self.sync: Callable[[float], bool] | None = None
        self.cancel_requested = False
        self._closed = ""
        self.phases = Phases()
        self._told = Told()
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        # Reentrant: a finalizer may report while this thread encodes a value.
        self._lock = threading.RLock()
        self._sizes: dict[str, int] = {}
        self.size = 0
        if closed:
            self.close(closed)

    def close(self, reason: str) -> None:
        """Make every further call raise a RuntimeError with the message `reason`."""
        self._closed = reason
        self._bar()

    def _bar(self) -> None:
        self.barred = True
        # With no known names, every call takes the slow path, which checks.
        self.known = set()

    def cancel(self) -> None:
        """Make further calls raise JobCancelled as :meth:`check` does."""
        self.cancel_requested = True
        self._bar()

    def check(self) -> None:
        """Raise if the job may no longer report.

        Raises:
          RuntimeError: The run is closed.
          JobCancelled: Cancellation was requested and is new to the caller: see
            :class:`.told.Told`.
        """
        if self._closed:
            raise RuntimeError(self._closed)
        if self.cancel_requested:
            self._told.tell()

    def ask(self) -> bool:
        """Return whether cancellation was requested, and make the recorder query the
        store at its next write.
        """
        self.dirty = True
        return self.cancel_requested

    def set_metrics(self, values: Mapping[str, object]) -> None:
        if self.barred:
            self.check()
        with self._lock:
            self._set_metrics(values)

    def increment(self, name: str, by: float) -> None:
        if self.barred:
            self.check()
        with self._lock:
            old = self.metrics.get(check_name(name), 0)
            if isinstance(old, Json):
                old = loads(old)
            for number in (by, old):
                if isinstance(number, bool) or not isinstance(number, (int, float)):
                    raise TypeError(
                        f"The progress metric {name!r} cannot be incremented: "
                        f"{number!r} is not a number."
                    )
            try:
                total = old + by
            except OverflowError as e:
                raise ValueError(
                    f"The progress metric {name!r} cannot be incremented: {e}"
                ) from None
            self._set_metrics({name: total})

    def _set_metrics(self, values: Mapping[str, object]) -> None:
        kept: dict[str, Value] = {}
        sizes: dict[str, int] = {}
        total = self.size
        for name, value in values.items():
            size = len(check_name(name).encode())
            if isinstance(value, (int, float)) and is_plain(value):
                kept[name] = value
                size += NUMBER_BYTES
            else:
                kept[name] = text = encode_value(f"The progress metric {name!r}", value)
                size += max(len(text.encode()), NUMBER_BYTES)
            sizes[name] = size
            total += size - self._sizes.get(name, 0)
            if total > MAX_JOB_BYTES:
                raise ValueError(
                    f"With the progress metric {name!r} the job's metrics would take "
                    f"{total} bytes. The limit is {MAX_JOB_BYTES} bytes."
                )
        known = self.known
        self._sizes.update(sizes)
        self.size = total
        self.metrics.update(kept)
        self.dirty = True
        if self.barred:
            return
        for name, value in kept.items():
            # The size of any other value must be computed again at the next call.
            (known.discard if isinstance(value, Json) else known.add)(name)

    def set_progress(
        self, done: float, total: float | None, unit: str | None, message: str | None
    ) -> None:
        if self.barred:
            self.check()
        if total is not None:
            total = check_amount("The total of the progress", total)
        if unit is not None and unit is not self.unit:
            encode_value("The unit of the progress", check_text("The unit", unit))
        report: dict[str, object] = {
            "progress": (check_amount("The progress", done), total, unit)
        }
        if message is not None:
            if message is not self.report.get("message"):
                encode_value("The message", check_text("The message", message))
            report["message"] = message
        if "phase" in self.report:
            # The bar may have come further than this.
            self.phases.hold(self.report.copy())
        self.report.update(report)
        self.unit = unit
        # An object of another class may change, such as a NumPy array.
        self.total = total if total is None or type(total) in AMOUNTS else UNCHECKED
        self.dirty = True

    def track(
        self,
        iterable: Iterable[T] | AsyncIterable[T],
        total: float | None,
        unit: str | None,
        message: str | None,
    ) -> Iterator[T] | AsyncSteps[T]:
        if not (
            isinstance(iterable, (Iterable, AsyncIterable))
            or hasattr(iterable, "__getitem__")
        ):
            raise TypeError(
                f"track() takes an iterable or an async iterable, not {iterable!r}."
            )
        if total is None:
            # The length of a range may exceed what len() can return.
            with contextlib.suppress(TypeError, OverflowError):
                total = len(iterable)  # type: ignore[arg-type]
        else:
            total = check_amount("The total of the progress", total)
        self.set_progress(0, total, unit, message)
        if isinstance(iterable, AsyncIterable):
            return AsyncSteps(
                iterable,
                functools.partial(self.step, total=total, unit=unit),
                functools.partial(self.steps, total=total, unit=unit),
            )
        return self.steps(iterable, total, unit)

    def steps(
        self, iterable: Iterable[T], total: float | None, unit: str | None
    ) -> Iterator[T]:
        report = self.report
        for done, item in enumerate(iterable, 1):
            yield item
            # step(), inlined for speed.
            if self.barred:
                self.check()
            report["progress"] = (done, total, unit)
            self.dirty = True

    def step(self, done: int, total: float | None, unit: str | None) -> None:
        """Set the progress of a tracked loop."""
        if self.barred:
            self.check()
        self.report["progress"] = (done, total, unit)
        self.dirty = True

    def set_message(self, text: str | None) -> None:
        if self.barred:
            self.check()
        if text is not None:
            encode_value("The message", check_text("The message", text))
        self.report["message"] = text
        self.dirty = True

    def append_log(self, line: str) -> None:
        if self.barred:
            self.check()
        check_text("A line of the log", line)
        with self._lock:
            self._lines.append(line[:LOG_LINE_LENGTH])
            self.report["log"] = tuple(self._lines)
        self.dirty = True

    def flush(self, timeout: float) -> bool:
        self.dirty = True
        if self.sync is not None:
            return self.sync(timeout)
        # A detached run has nothing to store. The run of a loaded JobState raises.
        self.check()
        return True
