"""A job as a JSON object, and as a line of text."""

from __future__ import annotations

import datetime
from typing import Any

from ..job import Batch, JobState, iso_time
from ..store import Failures, Try
from .batches import NOT_REPEATABLE, batch_as_json, over_text
from .texts import (
    clean,
    error_text,
    local,
    owner_text,
    percent,
    progress_text,
    short,
    span,
)

#: The statuses of a job that a worker has begun, or is about to begin again.
RUNNING = ("stalled", "cancelling", "working", "retrying")


def title_of(job: JobState) -> str:
    """Return the title of a job, or its kind if the application's code fails."""
    try:
        title: Any = job.title
        # A translation string knows its English text.
        return str(title.interpolate() if hasattr(title, "interpolate") else title)
    except Exception:
        return job.kind


def as_json(job: JobState) -> dict[str, Any]:
    """Return all that the record says, as an operator may read it."""
    progress, error = job.progress, job.error
    return {
        "uuid": job.uuid,
        "kind": job.kind,
        "title": title_of(job),
        "actor": job.actor,
        "status": job.status,
        "cancel_requested": job.cancel_requested,
        "owner": job.owner,
        "attempt": job.attempt,
        **{name: iso_time(moment) for name, moment in times(job).items()},
        "progress": progress and {**progress._asdict(), "fraction": progress.fraction},
        **batch_as_json(job),
        "message": job.message,
        "metrics": job.progress_metrics,
        "params": job.job_params,
        "error": error and error._asdict(),
        "log": job.log,
    }


def failures_as_json(job: JobState, failures: Failures) -> dict[str, Any]:
    """Return what an operator may read of a job's failures. Its message stays out: it
    has all of the arguments.
    """
    return {
        "tries": [
            {
                "started_at": iso_time(each.started_at),
                "ended_at": iso_time(each.ended_at),
                "error": each.error and each.error._asdict(),
            }
            for each in failures.tries
        ],
        "traceback": failures.traceback,
        "rerun_refusal": refusal_of(job, failures),
    }


def refusal_of(job: JobState, failures: Failures) -> str:
    """Return why a job that failed cannot run again, or "" for any other job."""
    if job.status != "error" or failures.message:
        return ""
    if isinstance(job, Batch):
        return NOT_REPEATABLE
    return failures.refusal or "The store does not hold its message."


def try_text(each: Try) -> str:
    """Return a run that failed as its end, its duration and its error."""
    began, ended = each.started_at, each.ended_at
    text = "-" if ended is None else local(ended)
    if began is not None and ended is not None:
        text += f" after {span((ended - began).total_seconds())}"
    return f"{text}: {clean(error_text(each.error))}"


def times(job: JobState) -> dict[str, datetime.datetime | None]:
    """Return the times of a job, in the order in which they usually come."""
    return {
        "queued_at": job.queued_at,
        "due_at": job.due_at,
        "started_at": job.started_at,
        "updated_at": job.updated_at,
        "finished_at": job.finished_at,
    }


def duration(job: JobState) -> float | None:
    """Return how long the last run of an ended job took, or None."""
    if job.started_at is None or job.finished_at is None:
        return None
    return (job.finished_at - job.started_at).total_seconds()


def state_text(job: JobState) -> str:
    """Return a job's status and what belongs to it, such as "working 10% 2,000 of
    20,000 rows: Reading", "success after 9 s" or "error after 9 s: ValueError: wrong";
    of a batch "working 98% 118 of 120 jobs, 2 failed".
    """
    return job.status + remarks(job)


def remarks(job: JobState) -> str:
    """Return what follows a job's status, "" or a text that begins as it continues."""
    took, due = duration(job), job.due_at
    if isinstance(job, Batch):
        after = "" if took is None else f" after {span(took)},"
        share = after if job.is_finished else f" {percent(job.progress)}%"
        return f"{share} {over_text(job)}"
    if job.is_finished:
        text = "" if took is None else f" after {span(took)}"
    elif job.status in ("queued", "retrying"):
        text = "" if due is None else f", due {local(due)}"
    else:
        text = progress_text(job.progress)
        text = f" {text}" if text else ""
    reason = job.message or ""
    if job.is_finished or job.status == "retrying":
        reason = "" if job.is_success else error_text(job.error)
    return f"{text}: {short(reason)}" if reason else text


def row(job: JobState) -> str:
    """Return a job as one line: its id, the time at which it was queued, its kind, its
    owner and its state.
    """
    kind = clean(job.kind) or "-"
    queued = job.queued_at
    since = "-" if queued is None else local(queued, "T")
    return f"{job.uuid} {since} {kind} {owner_text(job.owner)} {state_text(job)}"
