"""Jobs as the command line names and shows them."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..job.batch import Batch, member_counts
from ..job.progress import phase_of, progress_json
from ..job.record import is_uuid
from ..job.state import JobState, record_of
from ..job.values import iso_time
from ..store.jobstore import JobStore, records_of
from ..store.lists import kind_name, kind_texts, newest_uuids
from ..store.reader import Failures, Try
from ..store.workers import worker_name
from .terminal import (
    CouldNot,
    clean,
    error_text,
    local,
    number,
    owner_text,
    percent,
    progress_text,
    short,
    span,
)

#: Among how many of the newest jobs the beginning of an id must be unique.
NEWEST = 1000

#: The most candidates to name.
CANDIDATES = 5

#: The statuses of members, in the order in which they are shown.
MEMBER_STATUSES = ("success", "error", "cancelled", "working", "queued", "retrying")

#: Those of members whose number is told beside how many are over.
BAD = ("error", "cancelled")

#: Why a batch that failed cannot run again.
NOT_REPEATABLE = "A batch cannot run again. Rerun its failed jobs."

#: The statuses of a job that a worker has begun, or is about to begin again.
RUNNING = ("stalled", "cancelling", "working", "retrying")

#: Seconds between two lines that only differ in how much is done.
QUIET = 10.0


def find(store: JobStore, name: str) -> JobState:
    """Return the job that a name means.

    Parameters:
      store: The store.
      name: The uuid, or its beginning.

    Raises:
      CouldNot: The name means no job, or several.
      redis.exceptions.RedisError: The store does not answer.
    """
    if is_uuid(name):
        (job,) = store.load_many([name])
        if job is None:
            raise CouldNot(f"The job {name} is unknown, or has expired.")
        if record_of(job).uuid != name:
            # An alias leads to it.
            return find(store, record_of(job).uuid)
        return job
    uuids = [
        u for u in newest_uuids(records_of(store).access, NEWEST) if u.startswith(name)
    ]
    found = [job for job in store.load_many(uuids[: 4 * CANDIDATES]) if job is not None]
    if not found:
        raise CouldNot(
            f"The id of none of the newest {NEWEST:,} jobs begins with {name}. Give "
            "the full id of an older one."
        )
    if len(found) > 1:
        named = _named(found, Kinds(store).texts(found))
        raise CouldNot(f"{name} is the beginning of several ids: {named}.")
    return found[0]


def find_all(store: JobStore, names: Sequence[str]) -> list[JobState]:
    """Return the jobs that names mean, each once."""
    jobs = [find(store, name) for name in names]
    return list({job.uuid: job for job in jobs}.values())


def _named(jobs: Sequence[JobState], kinds: Sequence[str]) -> str:
    shown = [
        f"{job.uuid} ({kind}, {job.status})"
        for job, kind in zip(jobs[:CANDIDATES], kinds, strict=False)
    ]
    return ", ".join(shown) + (", …" if len(jobs) > len(shown) else "")


class Kinds:
    """What people read for the kinds of jobs: see :func:`.kind_texts`.

    Parameters:
      store: The store of the jobs.
    """

    def __init__(self, store: JobStore) -> None:
        self._texts = kind_texts(store.kinds())

    def texts(self, jobs: Sequence[JobState]) -> list[str]:
        """Return the text for the kind of each job, "-" if it has none."""
        kinds = [kind_name(record_of(job)) for job in jobs]
        if not self._texts.keys() >= {*kinds}:
            # Jobs of further kinds were sent since.
            self._texts = kind_texts({*self._texts, *kinds})
        return [clean(self._texts[kind]) or "-" for kind in kinds]


def shortened(uuids: Sequence[str]) -> dict[str, str]:
    """Return for each uuid a beginning that tells it from the others."""
    length = 8
    while len({uuid[:length] for uuid in uuids}) < len(set(uuids)):
        length += 1
    return {uuid: uuid[:length] for uuid in uuids}


def find_batch(store: JobStore, name: str) -> str:
    """Return the uuid of the batch that a name means: see :func:`.find`.

    Raises:
      CouldNot: The name means no job, several, or one that is not a batch.
      redis.exceptions.RedisError: The store does not answer.
    """
    job = find(store, name)
    if not isinstance(job, Batch):
        raise CouldNot(f"The job {job.uuid} is not a batch.")
    return job.uuid


def over_text(batch: Batch) -> str:
    """Return how many members are over, and how badly: "118 of 120 jobs, 2 error"."""
    over = f"{number(batch.progress.done)} of {number(batch.size)} jobs"
    return ", ".join([over, *counted(batch, BAD)])


def counted(batch: Batch, statuses: Sequence[str] = MEMBER_STATUSES) -> list[str]:
    """Return how many members have each of some statuses, such as "2 error", without
    zeros.
    """
    counts = batch.counts
    numbers = {status: getattr(counts, status) for status in statuses}
    return [f"{number(n)} {status}" for status, n in numbers.items() if n]


def bad_counts(job: JobState) -> tuple[int, ...]:
    """Return how many members have failed or were cancelled."""
    if not isinstance(job, Batch):
        return ()
    return tuple(getattr(job.counts, status) for status in BAD)


def batch_as_json(job: JobState) -> dict[str, Any]:
    """Return the counts of a batch, or the uuid of the batch of a member."""
    record = record_of(job)
    if isinstance(job, Batch):
        return {"counts": member_counts(record)}
    return {"batch": record.batch} if record.is_member else {}


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
    progress, error, record = job.progress, job.error, record_of(job)
    return {
        "uuid": job.uuid,
        "kind": job.kind,
        "title": title_of(job),
        "actor": job.actor,
        "queue": record.queue,
        "worker": record.worker and worker_name(record.worker),
        "status": job.status,
        "cancel_requested": job.cancel_requested,
        "owner": job.owner,
        "unique": record.info.unique,
        "attempt": job.attempt,
        **{name: iso_time(moment) for name, moment in times(job).items()},
        "progress": progress and progress_json(progress),
        "phase": phase_of(progress),
        **batch_as_json(job),
        "message": job.message,
        "metrics": job.progress_metrics,
        "params": job.job_params,
        "error": error and dataclasses.asdict(error),
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
                "error": each.error and dataclasses.asdict(each.error),
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
    of a batch "working 98% 118 of 120 jobs, 2 error".
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


def row(job: JobState, kind: str) -> str:
    """Return a job as one line: its id, the time at which it was queued, the text for
    its kind, its owner and its state.
    """
    queued = job.queued_at
    since = "-" if queued is None else local(queued, "T")
    return f"{job.uuid} {since} {kind} {owner_text(job.owner)} {state_text(job)}"


class LastLine(NamedTuple):
    """What was last said of a job.

    Attributes:
      main: What gets a line whenever it changes.
      text: The whole text.
      at: When it was said.
    """

    main: tuple[object, ...]
    text: str
    at: float


class Changes:
    """Tells what has changed: a status, an attempt, a message, a whole percent and the
    failures of a batch at once, other progress every ten seconds.
    """

    def __init__(self) -> None:
        self._last: dict[str, LastLine] = {}

    def text(self, job: JobState) -> str | None:
        """Return the state of a job if it is worth a line, else None."""
        progress = job.progress
        share = None if progress is None else percent(progress)
        main = (job.status, job.attempt, share, job.message, bad_counts(job))
        text, now = state_text(job), time.monotonic()
        last = self._last.get(job.uuid)
        is_new = last is None or last.main != main
        if last is not None and not is_new:
            is_new = last.text != text and now - last.at >= QUIET
        if not is_new:
            return None
        self._last[job.uuid] = LastLine(main, text, now)
        return text
