"""What a viewer may do with the jobs of a page, and what the script needs for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.csrf import get_csrf_token

from ...errors import StoreUnavailable
from ...job import FINISHED, Batch, note_trouble
from ..query import csrf_options
from .words import encode

if TYPE_CHECKING:
    from pyramid.request import Request

    from ...job import JobState
    from ..jobstates import JobStates

#: What can be done with jobs.
ACTS = ("cancel", "rerun", "delete")


class Acts(NamedTuple):
    """What a viewer may do with a job.

    Attributes:
      now: As it is.
      permitted: Whatever its status becomes.
    """

    now: list[str]
    permitted: list[str]


def acts_on(context: JobStates, job_state: JobState, job: Mapping[str, Any]) -> Acts:
    """Return what a viewer may do with a job.

    Parameters:
      job: Its JSON.
    """
    status = job["status"]
    fitting = {
        "cancel": status != "cancelling",
        "rerun": status == "error",
        "delete": status in FINISHED,
    }
    permitted = ["cancel"] if job["cancellable"] else []
    try:
        # A success, or a cancelled job, can no longer fail. A batch does not run.
        may_fail = status not in ("success", "cancelled")
        may_run = may_fail and not isinstance(job_state, Batch)
        if may_run and context.permits(job_state, "rerun_job"):
            permitted.append("rerun")
        if context.permits(job_state, "delete_job"):
            permitted.append("delete")
    except StoreUnavailable:
        raise
    except Exception:
        # Code of the application
        consequence = "which is shown without what can be done with it"
        note_trouble(type(job_state), job_state.uuid, consequence)
    return Acts([act for act in permitted if fitting[act]], permitted)


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
    options = csrf_options(request)
    if options is None:
        return None
    return {
        "token": get_csrf_token(request),
        "header": options.header,
        "field": options.token,
    }
