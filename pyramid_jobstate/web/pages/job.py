"""The page of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...job import container_of
from ..permits import require
from ..views import inspection
from .acts import acts_on, for_script
from .members import batch_of, members_of
from .rendering import respond
from .shown import job_of, text_of, texts_of
from .timeline import timeline_of
from .words import words_for

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from ...job import JobState


def job_page(context: JobState, request: Request) -> Response:
    """Respond with the page of a job: what its JSON tells this viewer and, with the
    permission, what GET …/inspect does.
    """
    require(request, context, "view_job")
    container = container_of(context)
    words = words_for(request)
    state: dict[str, Any] = context.__json__(request)
    job = job_of(context, request, state)
    inspected: dict[str, Any] = {}
    if container.permits(context, "inspect_job"):
        inspected = inspection(context)
    metrics = {k: v for k, v in state.items() if k not in ("job", "job_state")}
    params = inspected.get("params", job["params"])
    acts = acts_on(container, context, job).now
    may_list = bool(container.permits(container, "list_jobs"))
    members = members_of(context, container, job, words, may_list=may_list)
    has_failures = bool((job["counts"] or {}).get("error"))
    values = {
        "words": words,
        "job": job,
        "acts": acts,
        "owner": context.owner if may_list else None,
        "may_list": may_list,
        "batch": batch_of(context, container, request),
        "members": members,
        "list_url": request.resource_url(container),
        "text": text_of(job, words),
        "steps": timeline_of(job, inspected.get("tries", ()), words),
        "metrics": texts_of(metrics),
        "params": texts_of(params),
        "inspected": inspected,
        "data": for_script(
            request,
            url=job["url"],
            list=request.resource_url(container),
            seen=f"{job['status']} {job['attempt']}{' failed' * has_failures}",
            bulk={} if members is None else members.bulk,
        ),
    }
    return respond(request, "job.jinja2", job["title"], values)
