"""``pjobs … show ID``: all that the record of a job says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..job import Batch, JobState, record_of
from ..store import Failures, JobStore
from .arguments import Operation, add_ids
from .batches import batch_of, counted
from .faults import DONE
from .ids import find
from .output import Output, json_text
from .states import (
    as_json,
    duration,
    failures_as_json,
    refusal_of,
    times,
    title_of,
    try_text,
)
from .texts import clean, error_text, local, owner_text, progress_text, span


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    add_ids(parser, None, "the job to show")


def show_job(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    job = find(store, args.id)
    failures = store.failures(job.uuid)
    if output.draws:
        from .draw import draw_card

        draw_card(job, [*facts(job), *failed(job, failures)])
    elif output.is_json:
        output.tell("", **as_json(job), failures=failures_as_json(job, failures))
    else:
        for name, text in (*facts(job), *failed(job, failures)):
            output.tell(f"{name}: {text}")
    return DONE


def facts(job: JobState) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of what a record says, in reading order."""
    yield "id", job.uuid
    yield "title", clean(title_of(job))
    yield "kind", clean(job.kind) or "-"
    yield "actor", clean(job.actor) or "-"
    yield "status", job.status
    if job.cancel_requested:
        yield "cancel", "requested"
    yield "owner", owner_text(job.owner)
    if (identity := record_of(job).info.unique) is not None:
        yield "unique", clean(identity)
    if (batch := batch_of(job)) is not None:
        yield "batch", clean(batch)
    yield "attempt", str(job.attempt)
    if job.progress is not None:
        yield "progress", progress_text(job.progress)
        if job.progress.eta is not None and not job.is_finished:
            yield "left", span(job.progress.eta)
    if isinstance(job, Batch):
        yield "jobs", ", ".join(counted(job)) or "none"
    if job.message is not None:
        yield "message", clean(job.message)
    if job.error is not None:
        yield "error", clean(error_text(job.error))
    for name, moment in times(job).items():
        if moment is not None:
            yield name.removesuffix("_at"), local(moment)
    took = duration(job)
    if took is not None:
        yield "took", span(took)
    for name, value in job.job_params.items():
        yield f"param {clean(name)}", json_text(value)
    for name, value in job.progress_metrics.items():
        yield f"metric {clean(name)}", json_text(value)
    for line in job.log:
        yield "log", clean(line)


def failed(job: JobState, failures: Failures) -> Iterator[tuple[str, str]]:
    """Yield what is known about the failures of a job."""
    for each in failures.tries:
        yield "try", try_text(each)
    for line in failures.traceback.rstrip("\n").split("\n"):
        if line:
            yield "traceback", clean(line)
    if reason := refusal_of(job, failures):
        yield "rerun", f"impossible: {clean(reason)}"


SHOW = Operation(
    """\
Show all that is known about a job, with its failures: the last ten tries, the end of
the last traceback, and why it cannot run again. Times are local, with their offsets.
""",
    add_show_arguments,
    show_job,
    draws=True,
)
