"""The views: responses to requests for jobs, lists of jobs and cancels."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from typing import TYPE_CHECKING, Any

from pyramid.exceptions import BadCSRFOrigin, BadCSRFToken
from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED
from zope.interface import classImplements

from ..errors import StoreUnavailable
from ..job import JobState, is_owner, note_trouble, record_of
from .answers import (
    View,
    answering,
    bad_csrf,
    bad_request,
    encode,
    forbidden,
    not_found,
    nothing,
    other_method,
    render,
    render_state,
    unavailable,
    unavailable_elsewhere,
)
from .interfaces import IMaxUuids, IStoreUnavailable
from .permits import permits
from .predicates import OursPredicate
from .resources import JobStates
from .unavailable import UnreadRecord
from .urls import CANCEL, JOB, LIST, OTHER

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

log = logging.getLogger("pyramid_jobstate")


def show(context: JobState, request: Request) -> Response:
    """Respond with the state of a job, or 304 if the client has it already."""
    require(request, context, "view_job")
    return render_state(request, encode(context.__json__(request)))


def cancel(context: JobState, request: Request) -> Response:
    """Cancel a job. Respond with 202 and its state, or 409 if it has ended."""
    if request.subpath:
        raise HTTPNotFound
    require(request, context, "cancel_job")
    # A page of another site can send this header only after a CORS preflight.
    if "X-Requested-With" not in request.headers:
        return bad_request("The header X-Requested-With is missing.")
    container = context.__parent__
    userid = request.authenticated_userid
    # An owner that is not a user may be a secret of the visitor's.
    who = "A visitor without a login" if userid is None else repr(userid)
    is_cancelled = container.ask(
        lambda store: store.cancel(context.uuid, record_of(context).info)
    )
    job_state = container.find(context.uuid)
    if is_cancelled:
        log.info("%s cancelled the job %s.", who, context.uuid)
    if job_state is None:
        raise HTTPNotFound
    if not is_cancelled:
        return render({"error": "The job has ended."}, 409)
    return render(job_state.__json__(request), 202)


def show_many(context: JobStates, request: Request) -> Response:
    """Respond with the states of the jobs that the query names, or with a page of a
    list.

    One view for both: an application that overrides it overrides both, and a predicate
    such as ``request_param`` would raise for a query that cannot be decoded.
    """
    return (show_batch if "uuid" in request.GET else show_list)(context, request)


def show_batch(context: JobStates, request: Request) -> Response:
    """Respond with the states of several jobs, with null for each unknown or forbidden
    one.
    """
    most = request.registry.getUtility(IMaxUuids)
    uuids = list(dict.fromkeys(request.GET.getall("uuid")))
    if len(uuids) > most:
        return bad_request(f"uuid is given {len(uuids)} times, more than {most}.")
    found = zip(uuids, context.find_many(uuids), strict=True)
    states = {
        uuid: visible_state(context, request, job_state) for uuid, job_state in found
    }
    jobs = ",".join(f"{encode(k)}:{state or 'null'}" for k, state in states.items())
    return render_state(request, f'{{"jobs":{{{jobs}}}}}')


def show_list(context: JobStates, request: Request) -> Response:
    """Respond with a page of a list of jobs."""
    query = request.GET
    limit = query.get("limit", "50")
    if not re.fullmatch(r"[0-9]{1,9}", limit):
        return bad_request(f"limit must be a number, not {limit!r}.")
    if query.get("all", "1") != "1":
        return bad_request(f"all can only be 1, not {query['all']!r}.")
    owner = None
    if "owner" in query or "all" in query:
        require(request, context, "list_jobs")
        if "owner" in query:
            owner = parse_owner(query["owner"], context.current_owner)
    else:
        owner = context.current_owner
        if not is_owner(owner):
            # A request without an owner does not own the jobs without an owner.
            return render_state(request, '{"items":[],"cursor":null}')
    try:
        page = context.list(
            owner,
            kind=query.get("kind"),
            status=query.get("status"),
            limit=int(limit),
            cursor=query.get("cursor"),
        )
    except ValueError as e:
        return bad_request(str(e))
    states = [visible_state(context, request, job_state) for job_state in page.items]
    items = ",".join(state for state in states if state is not None)
    return render_state(
        request, f'{{"items":[{items}],"cursor":{encode(page.cursor)}}}'
    )


def visible_state(
    context: JobStates, request: Request, job_state: JobState | None
) -> str | None:
    """Return the JSON of one job among others. None if the request may not see it, or
    if the application's code raises for it, which must not affect the others.
    """
    if job_state is None:
        return None
    try:
        if context.permits(job_state, "view_job"):
            state = job_state.__json__(request)
            return None if state is None else encode(state)
    except StoreUnavailable:
        raise
    except Exception:
        note_trouble(type(job_state), record_of(job_state).uuid)
    return None


def require(request: Request, context: JobState | JobStates, permission: str) -> None:
    """Require a permission on a job or a container.

    Our views call this instead of declaring a permission: Pyramid does not check one
    if no policy was set when the view was registered.

    Raises:
      HTTPForbidden: The request does not have the permission.
      StoreUnavailable: The job could not be read.
    """
    if isinstance(context, JobState) and isinstance(record_of(context), UnreadRecord):
        # A policy that looks only at the class might refuse the request for good.
        raise StoreUnavailable(context.__parent__)
    result = permits(request, context, permission)
    if not result:
        log.debug("%s was refused on %r: %s", permission, context, result)
        raise HTTPForbidden


def parse_owner(text: str, example: object) -> str | float:
    """Return the owner that a query names.

    Parameters:
      text: The owner in the query.
      example: The owner of the request. If it is a number, `text` is read as one.
    """
    if is_owner(example) and isinstance(example, (int, float)):
        with contextlib.suppress(ValueError):
            number = int(text) if isinstance(example, int) else float(text)
            return number if is_owner(number) else text
    return text


#: Our views: the routes, context and name of each, and its views by method.
VIEWS: tuple[tuple[tuple[str, ...], type, str, dict[str, View]], ...] = (
    ((LIST, f"{LIST}/"), JobStates, "", {"GET": show_many}),
    ((JOB, f"{JOB}/"), JobState, "", {"GET": show}),
    ((CANCEL,), JobState, "cancel", {"POST": cancel}),
)


def add_views(config: Configurator) -> None:
    """Register each view for our routes, and for containers mounted elsewhere."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
    classImplements(StoreUnavailable, IStoreUnavailable)
    config.add_exception_view(unavailable_elsewhere, context=IStoreUnavailable)
    for exception, answer in (
        (HTTPNotFound, not_found),
        (HTTPForbidden, forbidden),
        (BadCSRFToken, bad_csrf),
        (BadCSRFOrigin, bad_csrf),
        (StoreUnavailable, unavailable),
    ):
        config.add_exception_view(answer, context=exception, jobstate_ours=True)
    for exception in BadCSRFToken, BadCSRFOrigin:
        # On our own route these win over the application's exception views.
        config.add_exception_view(bad_csrf, context=exception, route_name=CANCEL)
    # The views check permissions themselves: see require(). Without a CSRF check,
    # other methods and unknown jobs get their own 405 and 404.
    add = functools.partial(config.add_view, permission=NO_PERMISSION_REQUIRED)
    for routes, context, name, views in VIEWS:
        allowed = [*views, "HEAD"] if "GET" in views else [*views]
        for place in ({}, *({"route_name": route} for route in routes)):
            options: dict[str, Any] = {"name": name, "context": context, **place}
            for method, view in views.items():
                add(answering(view), request_method=method, **options)
            add(other_method(*allowed), require_csrf=False, **options)
            if place and context is JobState:
                options["context"] = JobStates
                add(nothing, require_csrf=False, **options)
    add(nothing, route_name=OTHER, require_csrf=False)
