"""What actors call, and with what."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pyramid_jobstate import JobState
from tests.support import counted

#: The most bytes of one value as JSON, and of all metrics of a job.
VALUE, JOB = 16 * 1024, 256 * 1024

NAN = float("nan")

#: The calls by which an actor reports, and what viewers then read. Most are made twice,
#: since what is set again takes a shorter way.
CALLS: dict[str, tuple[Callable[[JobState], Any], Callable[[JobState], Any]]] = {
    "set_progress_metric": (
        lambda j: j.set_progress_metric("a", j.get_progress_metric("a", 0) + 1),
        lambda j: j.get_progress_metric("a"),
    ),
    "set_progress_metric to a text": (
        lambda j: j.set_progress_metric("b", j.get_progress_metric("b", "") + "b"),
        lambda j: j.get_progress_metric("b"),
    ),
    "set_progress_metrics": (
        lambda j: j.set_progress_metrics(c=j.get_progress_metric("c", 0) + 1),
        lambda j: j.get_progress_metric("c"),
    ),
    "increment_progress_metric": (
        lambda j: j.increment_progress_metric("d"),
        lambda j: j.get_progress_metric("d"),
    ),
    "set_progress": (
        lambda j: j.set_progress((j.progress.done if j.progress else 0) + 1, 9, "rows"),
        lambda j: counted(j.progress),
    ),
    "set_progress with a message": (
        lambda j: j.set_progress(8, 9, "rows", f"{j.message}+"),
        lambda j: j.message,
    ),
    "track": (
        lambda j: list(j.track(range(len(j.log) + 2), 30)),
        lambda j: counted(j.progress),
    ),
    "phase": (
        lambda j: j.phase("Reading", 1).__enter__(),
        lambda j: j.progress and j.progress.fraction,
    ),
    "set_message": (lambda j: j.set_message(f"{j.message}!"), lambda j: j.message),
    "append_log": (lambda j: j.append_log("line"), lambda j: j.log),
}

#: Those that fail once the job has ended or is cancelled.
REPORTS = {name: call for name, (call, _) in CALLS.items()} | {
    "raise_if_cancelled": lambda j: j.raise_if_cancelled()
}


async def letters(log: list[str]) -> AsyncIterator[str]:
    """Yield two letters, and log the end of the generator."""
    try:
        yield "a"
        yield "b"
    finally:
        await asyncio.sleep(0)
        log.append("closed")
