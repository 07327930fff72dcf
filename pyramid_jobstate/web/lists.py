"""Which jobs a list shows a request, and what of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPNotFound

from ..errors import StoreUnavailable
from ..job import Batch, JobState, is_owner, note_trouble, record_of
from ..store import Page
from .permits import may_see, require
from .queries import BadRequest, parse_owner, read_flag, read_limit, read_query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from pyramid.request import Request

    from .resources import JobStates

    T = TypeVar("T")


#: The number of jobs on a page, unless a request names another.
LIMIT = 50

#: The parameters of a request for the members of a batch.
MEMBERS = ("batch", "status", "limit", "cursor")


def asked_page(context: JobStates, request: Request) -> Page:
    """Return the page of a list that the query asks for.

    Raises:
      BadRequest: A parameter is invalid.
      HTTPForbidden: The request may not list the jobs of others.
      StoreUnavailable: The store does not answer.
    """
    query = request.GET
    if "batch" in query:
        return _asked_members(context, request)
    limit = read_limit(query, LIMIT)
    is_all, members = read_flag(query, "all"), read_flag(query, "members")
    owner = None
    if "owner" in query or is_all:
        require(request, context, "list_jobs")
        if "owner" in query:
            owner = parse_owner(query["owner"], context.current_owner)
    else:
        owner = context.current_owner
        if not is_owner(owner):
            # A request without an owner does not own the jobs without an owner.
            return Page([], None)
    try:
        return context.list(
            owner,
            kind=query.get("kind"),
            status=query.get("status"),
            limit=limit,
            cursor=query.get("cursor"),
            members=members,
        )
    except ValueError as e:
        raise BadRequest(str(e)) from e


def _asked_members(context: JobStates, request: Request) -> Page:
    """Return a page of the members of the batch that the query names.

    Raises:
      BadRequest: A parameter is invalid.
      HTTPNotFound: The batch is unknown, or the request may not see it.
      StoreUnavailable: The store does not answer.
    """
    query = read_query(request, *MEMBERS)
    batch = context.find(query["batch"])
    if not isinstance(batch, Batch) or not may_see(request, batch):
        raise HTTPNotFound
    return members_page(context, batch, query)


def members_page(context: JobStates, batch: Batch, query: Mapping[str, str]) -> Page:
    """Return the page of the members of a batch that a query asks for.

    Raises:
      BadRequest: A parameter is invalid.
      StoreUnavailable: The store does not answer.
    """
    try:
        return context.members(
            batch.uuid,
            status=query.get("status"),
            limit=read_limit(query, LIMIT),
            cursor=query.get("cursor"),
        )
    except ValueError as e:
        raise BadRequest(str(e)) from e


def visible(
    context: JobStates,
    request: Request,
    job_state: JobState | None,
    show: Callable[[JobState, dict[str, Any]], T],
) -> T | None:
    """Return what ``show(job_state, state)`` returns for one job among others, or None
    if the request may not see it. None also if the application's code raises for it,
    which must not affect the others.
    """
    if job_state is None:
        return None
    try:
        if context.permits(job_state, "view_job"):
            state = job_state.__json__(request)
            return None if state is None else show(job_state, state)
    except StoreUnavailable:
        raise
    except Exception:
        note_trouble(type(job_state), record_of(job_state).uuid)
    return None
