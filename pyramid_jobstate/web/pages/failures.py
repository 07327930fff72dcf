"""The page of failed jobs, grouped by why they failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...job.batch import Batch
from ..acts import RERUN, may_act
from ..views import asked_groups
from .layout import respond
from .rows import for_script, job_of, url_maker
from .words import words_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyramid.request import Request
    from pyramid.response import Response

    from ...job.state import JobState
    from ..failures import Group
    from ..jobstates import JobStates


#: The parameters that the list of the failed jobs has, too.
FILTERS = ("kind", "owner", "all", "members", "status")


class GroupRow(NamedTuple):
    """A group of failed jobs.

    Attributes:
      group: The group.
      job: The JSON of the job that failed last.
      again: The URLs of the jobs that the viewer may run again.
    """

    group: Group
    job: Mapping[str, Any]
    again: list[str]


def failures_page(context: JobStates, request: Request) -> Response:
    """Respond with the page of groups of failed jobs: those of its JSON."""

    def show(job_state: JobState, state: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        is_batch = isinstance(job_state, Batch)
        may_rerun = not is_batch and may_act(context, job_state, RERUN.permission)
        return job_of(job_state, request, state), may_rerun

    groups, more = asked_groups(context, request, show)
    words = words_for(request)
    rows = [
        GroupRow(
            group,
            group.jobs[0][0],
            [job["url"] for job, may_rerun in group.jobs if may_rerun],
        )
        for group in groups
    ]
    title = words("failures")
    values = {
        "words": words,
        "title": title,
        "filters": {n: request.GET[n] for n in ("kind", "owner") if n in request.GET},
        "list_url": url_maker(request.resource_url(context), request.GET, FILTERS)(),
        "rows": rows,
        "more": more,
        "data": for_script(request, groups=[row.again for row in rows]),
    }
    return respond(request, "failures.jinja2", title, values)
