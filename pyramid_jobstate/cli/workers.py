"""``pjobs … workers``: the worker processes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..store.jobstore import JobStore
from ..store.workers import WorkerInfo, worker_as_json
from .arguments import Operation
from .terminal import DONE, Output, clean, joined, local


def add_to(parser: argparse.ArgumentParser) -> None:
    """Accept no arguments but those of every command."""


def run(store: JobStore, args: argparse.Namespace, output: Output) -> int:
    found = store.workers()
    for worker in found:
        output.tell(joined(facts(worker)), **worker_as_json(worker))
    if not found and not output.is_json:
        output.tell("No worker has been heard of.")
    return DONE


def facts(worker: WorkerInfo) -> Sequence[str]:
    """Return what is known of a worker, in reading order."""
    silent = f"silent since {local(worker.seen_at)}" if worker.is_silent else ""
    memory = "" if worker.memory is None else f"{worker.memory / 1e6:.0f} MB"
    since = "" if worker.started_at is None else f"since {local(worker.started_at)}"
    versions = " ".join(f"{name} {text}" for name, text in worker.versions.items())
    return [
        clean(worker.name),
        silent or f"{worker.busy} of {worker.threads} threads busy",
        f"queues {clean(','.join(worker.queues)) or '-'}",
        memory,
        since,
        clean(versions),
    ]


WORKERS = Operation(
    """\
List the worker processes that were heard of within the last hour: host and pid, how
many threads are busy with tracked jobs, the queues, memory, since when, versions.
""",
    add_to,
    run,
)
