"""How far a job has come, and its phases, each with a share of the bar."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .values import AMOUNTS, MAX_AMOUNT, parse_json


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """Where the current loop of a job lies on its bar.

    Attributes:
      base: Where it begins, as a share of the whole bar, from 0 to 1.
      span: Its share of the whole bar, from 0 to 1.
      names: The names of the open phases, from the outermost one to the innermost.
    """

    base: float
    span: float
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come.

    Attributes:
      done: How much is done, in `unit`.
      total: How much there is to do, or None if unknown.
      unit: What is counted, such as "rows", or None.
      eta: The worker's estimate of the seconds from `updated_at` to the end, or None.
      phase: Where on the bar lies what is counted, or None if that is the whole bar.
    """

    done: float
    total: float | None = None
    unit: str | None = None
    eta: float | None = None
    phase: Phase | None = None

    @property
    def fraction(self) -> float | None:
        """The share of the bar that is filled, from 0 to 1, or None if it is unknown:
        without a phase and a total.
        """
        share, phase = share_done(self.done, self.total), self.phase
        if phase is None:
            return share
        filled = phase.base + phase.span * (share or 0)
        # Faster than min(), at each poll.
        return filled if filled < 1.0 else 1.0


def share_done(done: float, total: float | None) -> float | None:
    """Return the share that is done of what is counted, or None if that is unknown."""
    if total is None:
        return None
    return done / total if done < total else 1.0


def phase_of(progress: Progress | None) -> dict[str, Any] | None:
    """Return the JSON of the innermost phase, or None if no phase is open.

    Parameters:
      progress: The progress of the job.
    """
    if progress is None or progress.phase is None or not progress.phase.names:
        return None
    names = progress.phase.names
    share = share_done(progress.done, progress.total)
    return {"name": names[-1], "path": [*names], "fraction": share}


def share_of(report: Mapping[str, Any]) -> float:
    """Return how much of a job is done by the report of its run, from 0 to 1."""
    return progress_of(report).fraction or 0.0 if "progress" in report else 0.0


def progress_of(report: Mapping[str, Any]) -> Progress:
    """Return the progress in the report of a run."""
    done, total, unit = report["progress"]
    phase = report.get("phase")
    return Progress(done, total, unit, phase=phase and Phase(*phase))


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return the JSON of how far a job has come."""
    return {
        "done": progress.done,
        "total": progress.total,
        "unit": progress.unit,
        "eta": progress.eta,
        "fraction": progress.fraction,
    }


def parse_progress(text: str | None, phase: str | None) -> Progress | None:
    """Return a progress as it is stored, or None.

    Parameters:
      phase: The phase as it is stored, or None.
    """
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
    if not is_valid:
        return None
    found = None if phase is None else parse_phase(phase)
    return Progress(done, total, unit, eta, found)


def parse_phase(text: str) -> Phase | None:
    match parse_json(text):
        case [base, span, [*names]]:
            shares = (base, span)
            if all(map(is_amount, shares)) and max(shares) <= 1:
                return Phase(base, span, tuple(map(str, names)))
    return None


def is_amount(value: Any) -> bool:
    """Return whether a value of JSON could be a result of :func:`.check_amount`."""
    return type(value) in AMOUNTS and 0 <= value <= MAX_AMOUNT
