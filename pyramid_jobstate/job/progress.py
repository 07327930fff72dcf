"""How far a job has come, and its phases, each with a share of the bar."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from .values import AMOUNTS, MAX_AMOUNT, check_text, is_number, parse_json


class Progress(NamedTuple):
    """How far a job has come.

    Attributes:
      done: How much is done, in `unit`.
      total: How much there is to do, or None if unknown.
      unit: What is counted, such as "rows".
      eta: The worker's estimate of the seconds from `updated_at` to the end, or None.
    """

    done: float
    total: float | None = None
    unit: str | None = None
    eta: float | None = None

    @property
    def fraction(self) -> float | None:
        """The share that is done, from 0 to 1, or None if the total is unknown."""
        if self.total is None:
            return None
        return min(self.done / self.total, 1.0) if self.total else 1.0


class Phase(NamedTuple):
    """Where the current loop of a job lies on its bar.

    Attributes:
      base: Where it begins, as a share of the whole bar.
      span: Its share of the whole bar.
      names: The names of the open phases, from the outermost one to the innermost.
    """

    base: float
    span: float
    names: tuple[str, ...]


class PartOfProgress(Progress):
    """The progress of a job that has phases: what its current loop counts, and how far
    the whole job has come.

    Attributes:
      phase: Where the loop lies on the bar.
    """

    phase: Phase

    @property
    def fraction(self) -> float:
        """The share of the whole job that is done, from 0 to 1."""
        share = super().fraction or 0
        return min(self.phase.base + self.phase.span * share, 1.0)


def in_phase(progress: Progress, phase: Phase | None) -> Progress:
    """Return the progress of a loop as that of its job."""
    if phase is None:
        return progress
    found = PartOfProgress(*progress)
    found.phase = phase
    return found


def share_of(report: Mapping[str, Any]) -> float:
    """Return how much of a job is done by the report of its run, from 0 to 1."""
    if "progress" not in report:
        return 0.0
    phase = report.get("phase")
    progress = in_phase(Progress(*report["progress"]), phase and Phase(*phase))
    return progress.fraction or 0.0


def parse_progress(text: str | None) -> Progress | None:
    value = parse_json(text)
    if not isinstance(value, list) or len(value) != 4:
        return None
    done, total, unit, eta = value
    is_valid = (
        is_amount(done)
        and (total is None or is_amount(total))
        and (unit is None or isinstance(unit, str))
        and (eta is None or is_amount(eta))
    )
    return Progress(done, total, unit, eta) if is_valid else None


def parse_phase(text: str | None) -> Phase | None:
    match parse_json(text):
        case [base, span, [*names]]:
            shares = (base, span)
            if all(map(is_amount, shares)) and max(shares) <= 1:
                return Phase(base, span, tuple(map(str, names)))
    return None


def is_amount(value: Any) -> bool:
    """Return whether a value of JSON could be a result of :func:`.check_amount`."""
    return type(value) in AMOUNTS and 0 <= value <= MAX_AMOUNT


log = logging.getLogger("pyramid_jobstate")

#: The most characters of a phase's name that viewers see.
NAME_LENGTH = 200

#: Shares that differ by less are equal: binary fractions do not add up exactly.
NOISE = 1e-9

#: What is reported where a phase begins or ends: nothing of the next loop is done.
NOTHING = (0, None, None)


class Reports(Protocol):
    """What a phase needs of the run of its job."""

    report: dict[str, object]
    dirty: bool

    def check(self) -> None: ...


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
    def open(self, run: Reports, name: str, percent: float) -> Iterator[None]:
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
        report(run, part)
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

    def _standing(self, run: Reports) -> float:
        """Return where the bar of a run stands."""
        report = run.report.copy()
        if "phase" in report:
            self.hold(report)
        return share_of(report)

    def _close(self, run: Reports, part: Part, at: float) -> None:
        """Leave a phase, and those left open in it, with the bar at a place."""
        if part not in self._parts:
            # It was left with the phase around it, such as by an async generator.
            return
        del self._parts[self._parts.index(part) :]
        around = self._parts[-1]
        around.at = at
        report(run, around)


def report(run: Reports, part: Part) -> None:
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


def phase_of(progress: Progress | None) -> dict[str, Any] | None:
    """Return the JSON of the innermost phase, or None if no phase is open.

    Parameters:
      progress: The progress of the job.
    """
    if not isinstance(progress, PartOfProgress) or not progress.phase.names:
        return None
    names = progress.phase.names
    share = Progress(*progress).fraction
    return {"name": names[-1], "path": [*names], "fraction": share}
