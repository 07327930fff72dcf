"""What GET and POST below the path of the job states answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED

from .resources import ROUTE, IMaxBatch, JobStates
from .state import JobState
from .store import StoreUnavailable

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

#: The names of our views.
VIEW_NAMES = ("", "cancel")

#: The headers of every answer: no cache keeps it, and it is nothing but JSON.
HEADERS = (
    ("Content-Type", "application/json"),
    ("Cache-Control", "private, no-cache"),
    ("X-Content-Type-Options", "nosniff"),
)

_encode = json.JSONEncoder(separators=(",", ":")).encode

#: Seconds after which to ask again when the store does not answer.
RETRY_AFTER = 5


def show(context: JobState, request: Request) -> Response:
    """The state of a job; 304 for who has it already."""
    return render_state(request, context.__json__(request))


def cancel(context: JobState, request: Request) -> Response:
    """Ask to cancel a job: 202 with its state, 409 if it has ended."""
    # No page of another site can send it without the browser asking us first.
    if "X-Requested-With" not in request.headers:
        return bad_request("The header X-Requested-With is missing.")
    container = context.__parent__
    is_cancelled = container.ask(
        lambda store: store.cancel(context.uuid, context._record.start)
    )
    job_state = container.find(context.uuid)
    if job_state is None:
        raise HTTPNotFound
    if not is_cancelled:
        return render({"error": "The job has ended."}, 409)
    return render(job_state.__json__(request), 202)


def show_many(context: JobStates, request: Request) -> Response:
    """The states of the jobs that are asked for, or a page of a list."""
    try:
        query = request.GET
    except UnicodeDecodeError:
        return bad_request("A parameter is no UTF-8.")
    if "uuid" in query:
        return show_batch(context, request, query.getall("uuid"))
    limit = query.get("limit", "50")
    if not re.fullmatch(r"[0-9]{1,9}", limit):
        return bad_request(f"limit is no number: {limit!r}.")
    if query.get("all", "1") != "1":
        return bad_request(f"all can only be 1, not {query['all']!r}.")
    owner = context.current_owner
    if "owner" in query or "all" in query:
        allowed = request.has_permission("list_jobs", context)
        if not allowed:
            raise HTTPForbidden(result=allowed)
        owner = parse_owner(query.get("owner"), owner)
    elif owner is None:
        # Nobody: the jobs without an owner are not theirs.
        return render_state(request, {"items": [], "cursor": None})
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
    items = [
        job_state.__json__(request)
        for job_state in page.items
        if request.has_permission("view_job", job_state)
    ]
    return render_state(request, {"items": items, "cursor": page.cursor})


def parse_owner(text: str | None, example: object) -> str | float | None:
    """Return the owner that a query names: a number where the application's owners are
    numbers, as that of the request is.
    """
    if text is not None and isinstance(example, (int, float)):
        with contextlib.suppress(ValueError):
            return type(example)(text)
    return text


def show_batch(context: JobStates, request: Request, uuids: list[str]) -> Response:
    """The states of several jobs: null hides unknown and forbidden ones alike."""
    most = request.registry.getUtility(IMaxBatch)
    uuids = list(dict.fromkeys(uuids))
    if len(uuids) > most:
        return bad_request(f"uuid is given {len(uuids)} times, more than {most}.")
    return render_state(
        request,
        {
            "jobs": {
                uuid: job_state.__json__(request)
                if job_state and request.has_permission("view_job", job_state)
                else None
                for uuid, job_state in zip(uuids, context.find_many(uuids), strict=True)
            }
        },
    )


def not_found(exc: HTTPNotFound, request: Request) -> Response:
    return render({"error": "There is no such job."}, 404)


def forbidden(exc: HTTPForbidden, request: Request) -> Response:
    return render({"error": "You may not do this with the job."}, 403)


def bad_request(message: str) -> Response:
    return render({"error": message}, 400)


def unavailable(exc: StoreUnavailable, request: Request) -> Response:
    response = render({"error": str(exc)}, 503)
    response.retry_after = RETRY_AFTER
    return response


def render_state(request: Request, value: dict[str, Any]) -> Response:
    """Return a response that is 304 for who has the same already."""
    body = _encode(value).encode()
    etag = hashlib.sha1(body, usedforsecurity=False).hexdigest()
    response = Response(
        body=body, headerlist=[*HEADERS, ("ETag", f'"{etag}"')], status="200 OK"
    )
    # Only then is it worth the look.
    response.conditional_response = "HTTP_IF_NONE_MATCH" in request.environ
    return response


def render(value: dict[str, Any], status: int = 200) -> Response:
    body = _encode(value).encode()
    return Response(body=body, headerlist=list(HEADERS), status=status)


class OursPredicate:
    """The view predicate `jobstate_ours`: whether an exception answers a request for
    one of our views in a container that is mounted in the application's tree, rather
    than one for a view of the application, be its context a job or not.
    """

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"jobstate_ours = {self.value}"

    phash = text

    def __call__(self, exc: Exception, request: Request) -> bool:
        context = request.__dict__.get("context")
        container = context.__parent__ if isinstance(context, JobState) else context
        if context is None and isinstance(exc, StoreUnavailable):
            # Traversal was stopped in a container other than the application's own.
            ours = exc.container is not request.job_states
        elif not isinstance(container, JobStates) or not container.is_mounted:
            # The application reached it in a way of its own.
            ours = False
        elif container is context and isinstance(exc, HTTPNotFound):
            # The name is that of a job which there is not.
            ours = True
        else:
            ours = request.view_name in VIEW_NAMES
        return ours is self.value


def add_views(config: Configurator) -> None:
    """Register each view for our route, and for containers mounted elsewhere."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
    for route, ours in (({"route_name": ROUTE}, {}), ({}, {"jobstate_ours": True})):
        config.add_view(
            show, context=JobState, request_method="GET", permission="view_job", **route
        )
        config.add_view(
            cancel,
            name="cancel",
            context=JobState,
            request_method="POST",
            permission="cancel_job",
            **route,
        )
        # Each job in it is asked for its own permission.
        config.add_view(
            show_many,
            context=JobStates,
            request_method="GET",
            permission=NO_PERMISSION_REQUIRED,
            **route,
        )
        for exception, view in (
            (HTTPNotFound, not_found),
            (HTTPForbidden, forbidden),
            (StoreUnavailable, unavailable),
        ):
            config.add_exception_view(view, context=exception, **route, **ours)
