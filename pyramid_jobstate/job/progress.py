"""How far a job has come, and its phases, each with a share of the bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .values import AMOUNTS, MAX_AMOUNT, parse_json


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
