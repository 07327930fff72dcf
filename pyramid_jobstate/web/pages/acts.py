"""What a viewer may do with the jobs of a page, and what the script needs for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyramid.csrf import get_csrf_token
from pyramid.interfaces import IDefaultCSRFOptions

from ...job import FINISHED
from .words import encode

if TYPE_CHECKING:
    from pyramid.request import Request

    from ...job import JobState
    from ..resources import JobStates

#: What can be done with jobs.
ACTS = ("cancel", "rerun", "delete")


def acts_on(
    context: JobStates, job_state: JobState, job: Mapping[str, Any]
) -> list[str]:
    """Return what a viewer may do with a job, as it is now.

    Parameters:
      job: Its JSON.
    """
    acts = []
    if job["cancellable"] and job["status"] != "cancelling":
        acts.append("cancel")
    if job["status"] == "error" and context.permits(job_state, "rerun_job"):
        acts.append("rerun")
    if job["status"] in FINISHED and context.permits(job_state, "delete_job"):
        acts.append("delete")
    return acts


def for_script(request: Request, **values: Any) -> str:
    """Return what the script of a page needs beside its words, as JSON.

    Parameters:
      values: What only this page needs.
    """
    return encode({"csrf": csrf_of(request), **values})


def csrf_of(request: Request) -> dict[str, str | None] | None:
    """Return what a request needs to pass the application's CSRF checks: the token, and
    the header or else the field of a form for it. None if it checks nothing.
    """
    options = request.registry.queryUtility(IDefaultCSRFOptions)
    if options is None or not options.require_csrf:
        return None
    return {
        "token": get_csrf_token(request),
        "header": options.header,
        "field": options.token,
    }
