"""What the page of a batch has of its members, and that of a member of its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...job import Batch, is_owner, record_of
from ..acts import RERUN, Acting
from ..views import members_page, visible
from .rows import Row, Tab, rows_of, tabs_of, url_maker
from .shown import job_of

if TYPE_CHECKING:
    from pyramid.request import Request

    from ...job import JobState
    from ..jobstates import JobStates
    from .words import Words

#: The parameters that say which members are listed, and how many on a page.
FILTERS = ("status", "limit")

#: The most failed members that are examined for one which the viewer may run again.
EXAMINED = 50


class Members(NamedTuple):
    """The members of a batch.

    Attributes:
      tabs, rows: What the page lists.
      none: What it says in place of rows.
      first, next: The URLs of other pages of the list, or None.
      is_unsent: Whether some of them were never sent.
      failed: How many have failed, if the viewer may run some of them again, else 0.
      bulk: What the script needs to run them again.
    """

    tabs: Sequence[Tab]
    rows: Sequence[Row]
    none: str
    first: str | None
    next: str | None
    is_unsent: bool
    failed: int
    bulk: Mapping[str, Any]


def members_of(
    context: JobState,
    container: JobStates,
    job: Mapping[str, Any],
    words: Words,
    *,
    may_list: bool,
) -> Members | None:
    """Return the members of a batch as far as the viewer may see them, or None for any
    other job.

    Parameters:
      job: The JSON of the job.
      may_list: Whether the viewer may list all jobs.

    Raises:
      BadRequest: A parameter of the request is invalid.
    """
    if not isinstance(context, Batch):
        return None
    query = container.request.GET
    page = members_page(container, context, query)
    url = url_maker(job["url"], query, FILTERS)
    status = query.get("status")
    counts = job["counts"] or {}
    rows = rows_of(container, page.items, words, with_owners=may_list)
    listed = sum(counts.values()) if status is None else counts.get(status, 0)
    none = words("hidden-members" if listed else "none")
    failed = counts.get("error", 0)
    if failed and not may_rerun(context, container, may_list=may_list):
        failed = 0
    return Members(
        tabs_of(words, status, counts, url),
        rows,
        words("none-here-yet") if page.cursor else none,
        url() if "cursor" in query else None,
        url(cursor=page.cursor) if page.cursor else None,
        record_of(context).was_never_sent,
        failed,
        {"rerun": rerun_of(context, container, job, words, may_list=may_list)},
    )


def may_rerun(context: Batch, container: JobStates, *, may_list: bool) -> bool:
    """Return whether the viewer may run failed members again, as far as the first of
    them tell.
    """
    if context.cancel_requested:
        return False
    acting = Acting(container, RERUN, "")
    own = container.current_owner
    page = container.members(context.uuid, "error", EXAMINED)
    return any(
        acting.permits(member)
        for member in page.items
        # Without the right to list all jobs, the request acts on the viewer's own.
        if may_list or (is_owner(own) and member.owner == own)
    )


def rerun_of(
    context: Batch,
    container: JobStates,
    job: Mapping[str, Any],
    words: Words,
    *,
    may_list: bool,
) -> dict[str, Any]:
    """Return what the script needs to run the failed members again: see
    :func:`.acts_on_all`.
    """
    query = {"batch": context.uuid, **({"all": "1"} if may_list else {})}
    return {
        "url": container.request.resource_url(container, "rerun", query=query),
        "question": words.about_all("rerun"),
        "counts": job["url"],
        "statuses": ["error"],
    }


def batch_of(
    context: JobState, container: JobStates, request: Request
) -> dict[str, Any] | None:
    """Return the JSON of the batch of a job, or None if it has none that the viewer may
    see.
    """
    info = record_of(context).info
    if not info.is_member:
        return None
    (batch,) = container.find_many([str(info.batch)])
    return visible(
        container, request, batch, lambda found, state: job_of(found, request, state)
    )
