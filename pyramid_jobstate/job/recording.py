"""A run that keeps every report, for tests of an application's actors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from .handle import NO_RUN
from .phases import Phases, Reports
from .run import UNCHECKED, Run
from .values import loads

T = TypeVar("T")


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
            value = self.metrics[name]
            plain = loads(value) if isinstance(value, str) else value
            self.history.append(("metric", name, plain))

    def set_progress(
        self, done: float, total: float | None, unit: str | None, message: str | None
    ) -> None:
        super().set_progress(done, total, unit, message)
        # JobState.set_progress() would bypass this class: see Handle.
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


def live_run_of(job_state: object) -> Run:
    """Return the run of a JobState that was not loaded from a store.

    Raises:
      TypeError: It was, or it is not a JobState.
    """
    run = getattr(job_state, "_run", None)
    if not isinstance(run, Run) or run is NO_RUN:
        raise TypeError(f"{job_state!r} does not belong to a job that runs here.")
    return run


def recording_of(job_state: object) -> RecordingRun:
    """Return the run of a JobState that keeps every report.

    Raises:
      TypeError: It does not.
    """
    run = getattr(job_state, "_run", None)
    if not isinstance(run, RecordingRun):
        raise TypeError(f"{job_state!r} was not created by detached() or run_jobs().")
    return run


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
    def open(self, run: Reports, name: str, percent: float) -> Iterator[None]:
        with super().open(run, name, percent):
            self._history.append(("phase", name, percent))
            yield
