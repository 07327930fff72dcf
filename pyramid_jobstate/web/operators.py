"""The views that only operators read: the counts, and what is known of a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dramatiq.broker

from ..job import JobError, container_of, iso_time, record_of
from ..worker import why_not_repeatable
from .answers import render_state
from .encoding import encode
from .permits import require
from .queries import BadRequest, read_flag, read_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyramid.request import Request
    from pyramid.response import Response

    from ..job import JobState
    from ..store import Counts, Failures, JobStore
    from .resources import JobStates


def counts(context: JobStates, request: Request) -> Response:
    """Respond with how many jobs have which status, and with all kinds: counted anew
    for a request that no cache may answer.
    """
    require(request, context, "list_jobs")
    query = read_query(request, "kind", "members")
    kind, members = query.get("kind"), read_flag(query, "members")
    anew = "no-cache" in request.headers.get("Cache-Control", "")

    def question(store: JobStore) -> tuple[Counts, Sequence[str]]:
        return store.counts(kind, anew=anew, members=members), store.kinds()

    try:
        counted, kinds = context.ask(question)
    except ValueError as e:
        raise BadRequest(str(e)) from e
    answer = {"counts": counted._asdict(), "kinds": [*kinds]}
    return render_state(request, encode(answer))


def inspect(context: JobState, request: Request) -> Response:
    """Respond with what operators need to know of a job and its failures, all of which
    may be secret.
    """
    require(request, context, "inspect_job")
    read_query(request)
    return render_state(request, encode(inspection(context)))


def inspection(context: JobState) -> dict[str, Any]:
    """Return what operators need to know of a job, without checking permissions."""
    # Not get_broker(), which would create one.
    broker = dramatiq.broker.global_broker

    def question(store: JobStore) -> tuple[Failures, str | None]:
        failures = store.failures(record_of(context).uuid)
        return failures, why_not_repeatable(store, broker, context)

    failures, reason = container_of(context).ask(question)
    return {
        "uuid": context.uuid,
        "params": context.job_params,
        "error": error_of(context.error),
        "traceback": failures.traceback or None,
        "tries": [
            {
                "started_at": iso_time(each.started_at),
                "ended_at": iso_time(each.ended_at),
                **(error_of(each.error) or {}),
            }
            for each in failures.tries
        ],
        "repeatable": reason is None,
        "reason": reason,
    }


def error_of(error: JobError | None) -> dict[str, Any] | None:
    """Return an error with its whole text."""
    return None if error is None else error._asdict()
