"""The reports of one execution of a job.

The writer stores a value, then raises the flag `dirty`. The recorder lowers the flag,
then copies the values. The copy contains every value stored before it; a value stored
later raises the flag again. Nothing is lost and neither side needs a lock, because each
step (storing into a dict, updating a dict from another, copying a dict) is atomic.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import math
import secrets
import sys
import threading
import types
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import JobCancelled, PoolJobCancelled
from .journal import Journal
from .progress import share_of
from .record import CANCELLED
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
    is_number,
    is_plain,
    plain,
)

log = logging.getLogger("pyramid_jobstate")

T = TypeVar("T")

#: A metric's value as it is kept: a plain number, or JSON text.
Value = int | float | Json

#: Stands for a total that was not checked.
UNCHECKED: Any = object()

#: The functions in which a BaseException would end a thread that others wait for: those
#: that call a future's callbacks, and those of multiprocessing's ThreadPool.
CALLBACKS = {
    ("concurrent.futures._base", "_invoke_callbacks"),
    ("multiprocessing.pool", "_handle_results"),
}
POOL = {
    ("multiprocessing.pool", "worker"),
    ("multiprocessing.pool", "_handle_tasks"),
}

#: The most characters of a phase's name that viewers see.
NAME_LENGTH = 200

#: Shares that differ by less are equal: binary fractions do not add up exactly.
NOISE = 1e-9

#: What is reported where a phase begins or ends: nothing of the next loop is done.
NOTHING = (0, None, None)


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
      journal: What it logs, or None if its class captures nothing.
      outer: Of a direct call, the run that logs what is logged in it, or None.
      total, unit: The total and the unit that set_progress() need not check again.
      size: The bytes that the metrics take as JSON, including their names.
      sync: Waits up to the given seconds until everything is stored and returns
        whether it is. None while the run is detached.
    """

    __slots__ = (
        "_closed",
        "_lines",
        "_lock",
        "_notice",
        "_sizes",
        "barred",
        "cancel_requested",
        "dirty",
        "journal",
        "known",
        "metrics",
        "outer",
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
        self.journal: Journal | None = None
        self.outer: Run | None = None
        self._closed = ""
        self.phases = Phases()
        self._notice = CancelNotice()
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
        # They are of no more use, and what has ended may be kept for long.
        self._sizes = {}
        if self.journal is not None:
            self.journal.close()
        self._bar()

    @property
    def is_closed(self) -> bool:
        """Whether every further call raises a RuntimeError."""
        return bool(self._closed)

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
            :class:`CancelNotice`.
        """
        if self._closed:
            raise RuntimeError(self._closed)
        if self.cancel_requested:
            self._notice.give()

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
            old = plain(self.metrics.get(check_name(name), 0))
            for number in (by, old):
                if not is_number(number):
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
        if self.journal is not None:
            self.journal.add(line)
        self.dirty = True

    def flush(self, timeout: float) -> bool:
        self.dirty = True
        if self.sync is not None:
            return self.sync(timeout)
        # A detached run has nothing to store. The run of a loaded JobState raises.
        self.check()
        return True


class AsyncSteps(AsyncIterator[T]):
    """Iterates over an async iterable and keeps a run's progress current. ``for`` works
    too if the iterable is also a plain iterable.

    Parameters:
      iterable: The async iterable.
      step: Called with the number of items done.
      iterate: Returns the iterator for ``for``.

    Not an async generator: a loop that exits early drops this object along with the
    iterable, which is then closed as it would be without tracking. If `step` raises,
    the iterable is closed first.
    """

    def __init__(
        self,
        iterable: AsyncIterable[T],
        step: Callable[[int], None],
        iterate: Callable[[Any], Iterator[T]],
    ) -> None:
        self._iterable = iterable
        self._iterator: AsyncIterator[T] | None = aiter(iterable)
        self._step = step
        self._iterate = iterate
        self._done = 0

    def __iter__(self) -> Iterator[T]:
        return self._iterate(self._iterable)

    async def __anext__(self) -> T:
        if self._iterator is None:
            raise StopAsyncIteration
        if self._done:
            try:
                self._step(self._done)
            except BaseException:
                await self.aclose()
                raise
        item = await anext(self._iterator)
        self._done += 1
        return item

    async def aclose(self) -> None:
        """Stop the iteration and close the iterable if it has an ``aclose()``."""
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


class CancelNotice:
    """Raises JobCancelled in each of a job's threads and tasks.

    It is raised once in the thread that created this object, and once in each asyncio
    task, but not in tasks that this task creates afterwards. In other threads it is
    raised at every call, so that a pool's remaining work stops too. It is not raised
    while a JobCancelled or a task's cancellation is being handled, since the clean-up
    may report, nor in a future's callback.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def give(self) -> None:
        """Raise JobCancelled unless the caller already knows of the cancellation."""
        if last_notice.get() is self:
            return
        handled = sys.exception()
        is_known = _came_of(handled, JobCancelled)
        callers = _callers()
        task = _current_task()
        if task is not None:
            if task.cancelling() and _came_of(handled, asyncio.CancelledError):
                return
        elif threading.get_ident() != self._thread:
            if is_known or callers & CALLBACKS:
                return
            error = PoolJobCancelled if callers & POOL else JobCancelled
            raise error(CANCELLED.message)
        last_notice.set(self)
        if not is_known:
            raise JobCancelled(CANCELLED.message)


#: The object that last raised in this thread or task. Tasks and asyncio.to_thread()
#: inherit it from their creator, so that clean-up code can use them; threads of a pool
#: do not.
last_notice: contextvars.ContextVar[CancelNotice | None] = contextvars.ContextVar(
    "pyramid_jobstate.told", default=None
)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _callers() -> set[tuple[str, str]]:
    """Return the module and name of each function on the call stack."""
    found = set()
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        found.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        frame = frame.f_back
    return found


def _came_of(exception: BaseException | None, cause: type[BaseException]) -> bool:
    """Return whether an exception, or any in its chain or group, is a `cause`."""
    seen: set[int] = set()
    left = [exception]
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        if isinstance(found, cause):
            return True
        seen.add(id(found))
        left += [found.__context__, found.__cause__]
        if isinstance(found, BaseExceptionGroup):
            left += found.exceptions
    return False


class Part:
    """A part of a job's bar. The whole bar is one, and each open phase is another.

    Parameters:
      names: The names of the phases, from the outermost one to this.
      begin, end: Where the part lies, as shares of the whole bar.

    Attributes:
      size: Its share of the whole bar.
      at: Where the next loop or phase in it begins.
    """

    __slots__ = ("at", "end", "names", "size")

    def __init__(self, names: tuple[str, ...], begin: float, end: float) -> None:
        self.names = names
        self.size = end - begin
        self.at = begin
        self.end = end


class Phases:
    """The parts of one run's bar, from the whole bar to the innermost phase."""

    __slots__ = ("_held", "_parts", "_share", "_thread", "_warned")

    def __init__(self) -> None:
        self._parts = [Part((), 0.0, 1.0)]
        #: How far the bar has come, and the `phase` of a report that holds it there.
        self._share = 0.0
        self._held: tuple[object, ...] = ()
        self._thread = 0
        self._warned = False

    @contextmanager
    def open(self, run: Run, name: str, percent: float) -> Iterator[None]:
        """Report inside one more phase. It begins where the bar stands, and what is
        reported in it fills its share of the part around it.

        Raises:
          RuntimeError: A phase is open in another thread.
        """
        run.check()
        if len(self._parts) > 1 and self._thread != threading.get_ident():
            raise RuntimeError(
                f"The phase {name!r} cannot begin in this thread while the phase "
                f"{self._parts[-1].names[-1]!r} is open in another."
            )
        self._thread = threading.get_ident()
        around = self._parts[-1]
        at = self._standing(run)
        end = at + around.size * percent / 100
        if end > around.end + NOISE and not self._warned:
            self._warned = True
            log.warning(
                "The phase %r takes %g percent, more than is left of what encloses "
                "it: it gets the rest.",
                name,
                percent,
            )
        part = Part((*around.names, name), at, min(end, around.end))
        self._parts.append(part)
        _report(run, part)
        try:
            yield
        except BaseException:
            self._close(run, part, self._standing(run))
            raise
        # A loop at its end may stand a rounding error beyond it.
        self._close(run, part, max(part.end, self._standing(run)))

    def hold(self, report: dict[str, Any]) -> None:
        """Let the bar of a copied report with a phase stand no lower than before."""
        share = share_of(report)
        if share >= self._share:
            self._share = share
            return
        held = (self._share, 0.0, report["phase"][2])
        if held != self._held:
            self._held = held
        # The same object is an unchanged value.
        report["phase"] = self._held

    def _standing(self, run: Run) -> float:
        """Return where the bar of a run stands."""
        report = run.report.copy()
        if "phase" in report:
            self.hold(report)
        return share_of(report)

    def _close(self, run: Run, part: Part, at: float) -> None:
        """Leave a phase, and those left open in it, with the bar at a place."""
        if part not in self._parts:
            # It was left with the phase around it, such as by an async generator.
            return
        del self._parts[self._parts.index(part) :]
        around = self._parts[-1]
        around.at = at
        _report(run, around)


def _report(run: Run, part: Part) -> None:
    """Report that the next loop fills what is left of a part."""
    # At once: a viewer must not see the progress of one part in another.
    span = max(0.0, part.end - part.at)
    run.report.update(progress=NOTHING, phase=(part.at, span, part.names))
    run.dirty = True


def check_phase(name: object, percent: object) -> tuple[str, float]:
    """Return the name and the percentage of a phase.

    Raises:
      TypeError: The name is not a string, or the percentage not a number.
      ValueError: The name is empty, or the percentage not above 0 and at most 100.
    """
    name = check_text("The name of a phase", name)[:NAME_LENGTH]
    if not name:
        raise ValueError("The name of a phase must not be empty.")
    if not is_number(percent):
        raise TypeError(
            f"The percentage of the phase {name!r} must be a number, not {percent!r}."
        )
    if not 0 < percent <= 100 or math.isnan(percent):
        raise ValueError(
            f"The percentage of the phase {name!r} must be above 0 and at most 100, "
            f"not {percent}."
        )
    return name, percent


class RecordingRun(Run):
    """A run that keeps every reported value, not only the latest."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[Any, ...]] = []
        self.phases = RecordingPhases(self.history)

    def _set_metrics(self, values: Mapping[str, object]) -> None:
        super()._set_metrics(values)
        # Known names bypass this method: forget them to record every call.
        self.known.clear()
        for name in values:
            self.history.append(("metric", name, plain(self.metrics[name])))

    def set_progress(
        self, done: float, total: float | None, unit: str | None, message: str | None
    ) -> None:
        super().set_progress(done, total, unit, message)
        # JobState.set_progress() would bypass this class.
        self.total = UNCHECKED
        self.history.append(("progress", done, total, unit))
        if message is not None:
            self.history.append(("message", message))

    def steps(
        self, iterable: Iterable[T], total: float | None, unit: str | None
    ) -> Iterator[T]:
        done = 0
        for item in super().steps(iterable, total, unit):
            if done:
                self.history.append(("progress", done, total, unit))
            yield item
            done += 1
        if done:
            self.history.append(("progress", done, total, unit))

    def step(self, done: int, total: float | None, unit: str | None) -> None:
        super().step(done, total, unit)
        self.history.append(("progress", done, total, unit))

    def set_message(self, text: str | None) -> None:
        super().set_message(text)
        self.history.append(("message", text))

    def append_log(self, line: str) -> None:
        super().append_log(line)
        lines: Any = self.report["log"]
        self.history.append(("log", lines[-1]))


class RecordingPhases(Phases):
    """The phases of a run that keeps every report.

    Parameters:
      history: The reports.
    """

    __slots__ = ("_history",)

    def __init__(self, history: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self._history = history

    @contextmanager
    def open(self, run: Run, name: str, percent: float) -> Iterator[None]:
        with super().open(run, name, percent):
            self._history.append(("phase", name, percent))
            yield


#: The run of a JobState that does not belong to a running job: it refuses every report.
NO_RUN = Run(
    closed="This JobState was loaded from a store. Only a running job can report, "
    "through the job_state that its actor receives."
)
