"""The views of states and lists, and the registration of all views."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pyramid.exceptions import BadCSRFOrigin, BadCSRFToken
from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.viewderivers import INGRESS
from zope.interface import classImplements

from ..errors import StoreUnavailable
from ..job import JobState
from .acts import cancel, delete, rerun
from .answers import (
    AnsweringView,
    View,
    bad_csrf,
    bad_request,
    forbidden,
    not_found,
    nothing,
    other_method,
    render_state,
    unavailable,
    unavailable_elsewhere,
)
from .bulk import cancel_many, clear, rerun_many
from .encoding import encode, encode_state
from .interfaces import IMaxUuids, IStoreUnavailable
from .lists import asked_page, visible
from .operators import counts, inspect
from .permits import require
from .predicates import OursPredicate
from .resources import JobStates
from .routenames import (
    CANCEL,
    CANCEL_ALL,
    CLEAR,
    COUNTS,
    INSPECT,
    JOB,
    LIST,
    OTHER,
    RERUN,
    RERUN_ALL,
)
from .streaming import answer_state

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request


def show(context: JobState, request: Request) -> Response:
    """Respond with the state of a job, or 304 if the client has it already."""
    require(request, context, "view_job")
    text = encode_state(context, context.__json__(request))
    return answer_state(request, text, lambda: {context.uuid: context})


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
    jobs = dict(zip(uuids, context.find_many(uuids), strict=True))
    states = {
        uuid: visible(context, request, job_state, encode_state)
        for uuid, job_state in jobs.items()
    }
    text = ",".join(f"{encode(k)}:{state or 'null'}" for k, state in states.items())
    return answer_state(
        request,
        f'{{"jobs":{{{text}}}}}',
        lambda: {u: job if states[u] else None for u, job in jobs.items()},
    )


def show_list(context: JobStates, request: Request) -> Response:
    """Respond with a page of a list of jobs."""
    page = asked_page(context, request)
    states = [visible(context, request, job, encode_state) for job in page.items]
    items = ",".join(state for state in states if state is not None)
    return render_state(
        request, f'{{"items":[{items}],"cursor":{encode(page.cursor)}}}'
    )


#: Our views: the routes, context and name of each, and its views by method.
VIEWS: tuple[tuple[tuple[str, ...], type, str, dict[str, View]], ...] = (
    ((LIST, f"{LIST}/"), JobStates, "", {"GET": show_many}),
    ((COUNTS,), JobStates, "counts", {"GET": counts}),
    ((CLEAR,), JobStates, "clear", {"POST": clear}),
    ((CANCEL_ALL,), JobStates, "cancel", {"POST": cancel_many}),
    ((RERUN_ALL,), JobStates, "rerun", {"POST": rerun_many}),
    ((JOB, f"{JOB}/"), JobState, "", {"GET": show, "DELETE": delete}),
    ((CANCEL,), JobState, "cancel", {"POST": cancel}),
    ((RERUN,), JobState, "rerun", {"POST": rerun}),
    ((INSPECT,), JobState, "inspect", {"GET": inspect}),
)


def add_views(config: Configurator) -> None:
    """Register each view for our routes, and for containers mounted elsewhere."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
    config.add_view_deriver(
        AnsweringView(), "jobstate_answering", under=INGRESS, over="csrf_view"
    )
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
    # The views check permissions themselves: see require(). Without a CSRF check,
    # other methods and unknown jobs get their own 405 and 404.
    add = functools.partial(config.add_view, permission=NO_PERMISSION_REQUIRED)
    for routes, context, name, views in VIEWS:
        allowed = [*views, "HEAD"] if "GET" in views else [*views]
        for place in ({}, *({"route_name": route} for route in routes)):
            options: dict[str, Any] = {"name": name, "context": context, **place}
            for method, view in views.items():
                add(view, request_method=method, jobstate_answers=True, **options)
            add(other_method(*allowed), require_csrf=False, **options)
            if place and context is JobState:
                options["context"] = JobStates
                add(nothing, require_csrf=False, **options)
    add(nothing, route_name=OTHER, require_csrf=False)
