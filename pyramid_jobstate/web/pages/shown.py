"""What a page shows of a job before its element does, and without JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...job import is_link

if TYPE_CHECKING:
    from pyramid.request import Request

    from ...job import JobState
    from .words import Words

#: What a page shows in place of what the class of a job leaves out of its JSON.
NOTHING: Mapping[str, Any] = MappingProxyType(
    {
        "params": MappingProxyType({}),
        "counts": None,
        "progress": None,
        "phase": None,
        "message": None,
        "log": (),
        "attempt": 0,
        "queued_at": None,
        "due_at": None,
        "started_at": None,
        "finished_at": None,
        "cancellable": False,
        "error": None,
        "result": None,
    }
)


def job_of(
    job_state: JobState, request: Request, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON of a job with all that a page needs.

    Parameters:
      state: What the class of the job makes of it, as JSON.
    """
    job = {**NOTHING, "status": job_state.status, **(state.get("job") or {})}
    job["uuid"] = job_state.uuid
    # Not that of its JSON: with jobstate.base_url it may be of another origin.
    job["url"] = request.resource_url(job_state)
    # Markup is text, as in JSON. A link needs a name.
    title = str(job.get("title") or "")
    job["title"] = title if title.strip() else job_state.uuid
    if not is_link((job["result"] or {}).get("url")):
        job["result"] = None
    return job


def text_of(job: Mapping[str, Any], words: Words) -> str:
    """Return a job in one line: its status, progress, message and error.

    Parameters:
      job: The JSON of the job.
    """
    parts = [words.status(job["status"])]
    if job["progress"] is not None and (progress := progress_of(job, words)):
        parts.append(progress)
    error = job["error"]
    for text in job["message"], error and error["message"]:
        if text:
            # Isolated: text of another direction does not reorder the line.
            parts.append(f"\u2068{text}\u2069")
    return " · ".join(parts)


def progress_of(job: Mapping[str, Any], words: Words) -> str:
    """Return how far a job has come that has reported it."""
    progress = job["progress"]
    parts = []
    if progress["fraction"] is not None:
        parts.append(words.percent(progress["fraction"]))
    counts = job["counts"] or {}
    unit = words.label("members") if counts else progress["unit"]
    amount = amount_of({**progress, "unit": unit}, words)
    for status in ("error", "cancelled"):
        if number := counts.get(status):
            count = words.label(f"count-{status}", number=words.number(number))
            amount = words.label("amount-count", amount=amount, count=count)
    phase = job["phase"]
    if phase is not None:
        name = f"\u2068{phase['name']}\u2069"
        amount = words.label("phase", phase=name, amount=amount) if amount else name
    return " · ".join([*parts, *filter(None, [amount])])


def amount_of(progress: Mapping[str, Any], words: Words) -> str:
    """Return how much of how much has been done, or "" before a job has counted."""
    done, total, unit = (progress[name] for name in ("done", "total", "unit"))
    if total is None and not done and unit is None:
        return ""
    digits = digits_for(done, total)
    amount = words.label(
        "amount" if total is None else "amount-of",
        done=words.number(done, digits),
        total="" if total is None else words.number(total, digits),
        unit=unit or "",
    )
    return amount.strip()


def digits_for(done: float, total: float | None) -> int:
    """Return how many decimals tell the amount from the total, and the total from 0.
    The element shows the same number. Rounding errors of floats do not count.
    """
    rest = (total or 0) - done
    number = rest if total and rest > total * 1e-9 else total or done
    zeros = -math.floor(math.log10(abs(number))) if number else 0
    return min(1 + max(0, zeros), 20)


def texts_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return metrics or parameters as people read them: texts as they are, everything
    else as JSON.
    """
    return {
        name: str(value)
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in values.items()
    }
