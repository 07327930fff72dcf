"""What requests below the path of the job states are answered."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyramid.exceptions import BadCSRFOrigin, BadCSRFToken
from pyramid.httpexceptions import (
    HTTPBadRequest,
    HTTPForbidden,
    HTTPNotFound,
    HTTPServiceUnavailable,
)
from pyramid.interfaces import IException
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED
from zope.interface import classImplements

from ..errors import StoreUnavailable
from ..job.state import JobState
from ..job.trouble import note_trouble
from .permits import permits
from .resources import IMaxUuids, JobStates
from .unavailable import UnreadRecord
from .urls import CANCEL, JOB, LIST, OTHER, ROUTES

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

log = logging.getLogger("pyramid_jobstate")

View = Callable[[Any, "Request"], Response]

#: The names of our views.
VIEW_NAMES = ("", "cancel")

#: The headers of every answer: no cache keeps it, and it is nothing but JSON.
HEADERS = (
    ("Content-Type", "application/json"),
    ("Cache-Control", "private, no-cache"),
    ("X-Content-Type-Options", "nosniff"),
)

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

#: Seconds after which to ask again when the store does not answer.
RETRY_AFTER = 5


class IStoreUnavailable(IException):  # type: ignore[misc]
    """Marks StoreUnavailable. A view for the class itself, the application's, wins over
    ours for the interface, whichever was registered first.
    """


classImplements(StoreUnavailable, IStoreUnavailable)


def show(context: JobState, request: Request) -> Response:
    """The state of a job; 304 for who has it already."""
    require(request, context, "view_job")
    return render_state(request, _encode(context.__json__(request)))


def cancel(context: JobState, request: Request) -> Response:
    """Ask to cancel a job: 202 with its state, 409 if it has ended."""
    if request.subpath:
        raise HTTPNotFound
    require(request, context, "cancel_job")
    # No page of another site can send it without the browser asking us first.
    if "X-Requested-With" not in request.headers:
        return bad_request("The header X-Requested-With is missing.")
    userid, container = request.authenticated_userid, context.__parent__
    is_cancelled = container.ask(
        lambda store: store.cancel(context.uuid, context._record.start)
    )
    job_state = container.find(context.uuid)
    if is_cancelled:
        log.info("%r cancelled the job %s.", userid, context.uuid)
    if job_state is None:
        raise HTTPNotFound
    if not is_cancelled:
        return render({"error": "The job has ended."}, 409)
    return render(job_state.__json__(request), 202)


def show_many(context: JobStates, request: Request) -> Response:
    """The states of the jobs that are asked for, or a page of a list."""
    query = request.GET
    if "uuid" in query:
        return show_batch(context, request, query.getall("uuid"))
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
            # Nobody: the jobs without an owner are not theirs.
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
        request, f'{{"items":[{items}],"cursor":{_encode(page.cursor)}}}'
    )


def visible_state(
    context: JobStates, request: Request, job_state: JobState | None
) -> str | None:
    """Return the JSON of one job among others, None if the request may not see it, or
    if the application's code raises for it: the others are shown all the same.
    """
    if job_state is None:
        return None
    try:
        if context.permits(job_state, "view_job"):
            state = job_state.__json__(request)
            return None if state is None else _encode(state)
    except StoreUnavailable:
        raise
    except Exception:
        note_trouble(type(job_state), job_state._record.uuid)
    return None


def require(request: Request, context: JobState | JobStates, permission: str) -> None:
    """Raise HTTPForbidden unless the request has a permission, and StoreUnavailable
    where nobody knows the job.

    Our views call it, rather than name a permission of their own: Pyramid asks for none
    where no policy was set by the time of the registration.
    """
    if isinstance(context, JobState) and isinstance(context._record, UnreadRecord):
        # A policy that looks no further than the class would refuse it for good.
        raise StoreUnavailable(context.__parent__)
    result = permits(request, context, permission)
    if not result:
        log.debug("%s was refused on %r: %s", permission, context, result)
        raise HTTPForbidden


def is_owner(owner: object) -> bool:
    """Whether jobs can belong to what the owner function returned."""
    is_scalar = isinstance(owner, (str, int, float)) and not isinstance(owner, bool)
    return is_scalar and owner == owner  # no NaN


def parse_owner(text: str, example: object) -> str | float:
    """Return the owner that a query names: a number where the application's owners are
    numbers, as that of the request is.
    """
    if is_owner(example) and not isinstance(example, str):
        with contextlib.suppress(ValueError):
            return type(example)(text)  # type: ignore[call-arg, return-value]
    return text


def show_batch(context: JobStates, request: Request, uuids: list[str]) -> Response:
    """The states of several jobs: null hides unknown and forbidden ones alike."""
    most = request.registry.getUtility(IMaxUuids)
    uuids = list(dict.fromkeys(uuids))
    if len(uuids) > most:
        return bad_request(f"uuid is given {len(uuids)} times, more than {most}.")
    found = zip(uuids, context.find_many(uuids), strict=True)
    states = {
        uuid: visible_state(context, request, job_state) for uuid, job_state in found
    }
    jobs = ",".join(f"{_encode(k)}:{state or 'null'}" for k, state in states.items())
    return render_state(request, f'{{"jobs":{{{jobs}}}}}')


def not_found(exc: HTTPNotFound, request: Request) -> Response:
    return render({"error": "There is no such job."}, 404)


def forbidden(exc: HTTPForbidden, request: Request) -> Response:
    return render({"error": "You may not do this with the job."}, 403)


def bad_request(message: str) -> Response:
    return render({"error": message}, 400)


def bad_csrf(exc: HTTPBadRequest, request: Request) -> Response:
    return bad_request(f"The CSRF check refused the request. {exc.detail}")


def unavailable(exc: StoreUnavailable, request: Request) -> Response:
    response = render({"error": str(exc)}, 503)
    response.retry_after = RETRY_AFTER
    return response


def other_method(*allowed: str) -> View:
    """Return the view for every method but those allowed."""

    def view(context: JobState | JobStates, request: Request) -> Response:
        text = f"The method {request.method} is not allowed here."
        response = render({"error": text}, 405)
        response.allow = allowed
        return response

    return view


def nothing(context: JobStates, request: Request) -> Response:
    """The answer for an unknown job, and for whatever else stands below our path."""
    return not_found(HTTPNotFound(), request)


def answering(view: View) -> View:
    """Return a view that answers what it refuses, rather than raise it: an exception
    passes all tweens, some of which log it, and may find an exception view of the
    application's.
    """

    @functools.wraps(view)
    def answer(context: Any, request: Request) -> Response:
        try:
            if request.environ.get("QUERY_STRING"):
                # The application's own code may read it: a locale negotiator does.
                request.GET  # noqa: B018, it is decoded when it is first read
        except UnicodeDecodeError:
            return bad_request("A parameter is not UTF-8.")
        try:
            return view(context, request)
        except StoreUnavailable as e:
            return unavailable(e, request)
        except HTTPForbidden as e:
            return forbidden(e, request)
        except HTTPNotFound as e:
            return not_found(e, request)

    return answer


def unavailable_elsewhere(exc: StoreUnavailable, request: Request) -> Response:
    """The answer for the application's own views, as a page or as JSON."""
    response = HTTPServiceUnavailable(str(exc))
    response.retry_after = RETRY_AFTER
    return response


def render_state(request: Request, text: str) -> Response:
    """Return a response that is 304 for who has the same already."""
    body = text.encode()
    etag = hashlib.sha1(body, usedforsecurity=False).hexdigest()
    headers = [*HEADERS, ("ETag", f'"{etag}"')]
    # Only then is it worth the look. An asterisk counts as none.
    known = "HTTP_IF_NONE_MATCH" in request.environ and request.if_none_match
    if known and etag in known:
        return Response(status="304 Not Modified", headerlist=headers[1:])
    return Response(body=body, headerlist=headers, status="200 OK")


def render(value: dict[str, Any], status: int = 200) -> Response:
    body = _encode(value).encode()
    return Response(body=body, headerlist=list(HEADERS), status=status)


class OursPredicate:
    """The view predicate `jobstate_ours`: whether an exception answers a request for
    one of our routes, or for one of our views in a container that is mounted in the
    application's tree, rather than one for a view of the application, be its context a
    job or not.
    """

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"jobstate_ours = {self.value}"

    phash = text

    def __call__(self, exc: Exception, request: Request) -> bool:
        route = getattr(request, "matched_route", None)
        context = request.__dict__.get("context")
        container = context.__parent__ if isinstance(context, JobState) else context
        if route is not None and route.name in ROUTES:
            ours = True
        elif not isinstance(container, JobStates) or not container.is_mounted:
            # The application reached it in a way of its own.
            ours = False
        elif container is context and isinstance(exc, HTTPNotFound):
            # The name is that of an unknown job.
            ours = True
        else:
            ours = request.view_name in VIEW_NAMES
        return ours is self.value


#: Our views: the routes that lead to each, its context and name, and what answers which
#: method.
VIEWS: tuple[tuple[tuple[str, ...], type, str, dict[str, View]], ...] = (
    ((LIST, f"{LIST}/"), JobStates, "", {"GET": show_many}),
    ((JOB, f"{JOB}/"), JobState, "", {"GET": show}),
    ((CANCEL,), JobState, "cancel", {"POST": cancel}),
)


def add_views(config: Configurator) -> None:
    """Register each view for our routes, and for containers mounted elsewhere."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
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
        # On our own route no view of the application is more specific.
        config.add_exception_view(bad_csrf, context=exception, route_name=CANCEL)
    # They ask for the permissions by themselves: see require(). Whatever the method or
    # the job, the CSRF check is not the first to refuse it.
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
