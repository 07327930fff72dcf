"""What GET and POST below the path of the job states answer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from pyramid.response import Response

from .resources import ROUTE, JobStates
from .state import JobState
from .store import StoreUnavailable

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

#: The names of our views.
VIEW_NAMES = ("", "cancel")

#: Seconds after which to ask again when the store does not answer.
RETRY_AFTER = 5


def show(context: JobState, request: Request) -> Response:
    """The state of a job; 304 for who has it already."""
    response = render(context.__json__(request))
    response.etag = hashlib.sha1(response.body, usedforsecurity=False).hexdigest()
    response.conditional_response = True
    return response


def not_found(exc: HTTPNotFound, request: Request) -> Response:
    return render({"error": "There is no such job."}, 404)


def forbidden(exc: HTTPForbidden, request: Request) -> Response:
    return render({"error": "You may not do this with the job."}, 403)


def unavailable(exc: StoreUnavailable, request: Request) -> Response:
    response = render({"error": str(exc)}, 503)
    response.retry_after = RETRY_AFTER
    return response


def render(value: dict[str, Any], status: int = 200) -> Response:
    """Return a response that no cache keeps and no browser takes for anything else."""
    response = Response(
        body=json.dumps(value).encode(),
        status=status,
        content_type="application/json",
        charset="utf-8",
    )
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


class OursPredicate:
    """The view predicate `jobstate_ours`: whether an exception answers a request for one
    of our views in a container that is mounted in the application's tree, rather than
    one for the application's own, be its context a job or not."""

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"jobstate_ours = {self.value}"

    phash = text

    def __call__(self, exc: Exception, request: Request) -> bool:
        context = request.__dict__.get("context")
        if context is None and isinstance(exc, StoreUnavailable):
            # Traversal was stopped in a container other than the application's own.
            ours = exc.container is not request.job_states
        elif isinstance(context, JobStates) and isinstance(exc, HTTPNotFound):
            # The name is that of a job which there is not.
            ours = True
        else:
            ours = (
                isinstance(context, (JobState, JobStates))
                and request.view_name in VIEW_NAMES
            )
        return ours is self.value


def add_views(config: Configurator) -> None:
    """Register each view for our route, and for containers mounted elsewhere."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
    for route, ours in (({"route_name": ROUTE}, {}), ({}, {"jobstate_ours": True})):
        config.add_view(
            show, context=JobState, request_method="GET", permission="view_job", **route
        )
        for exception, view in (
            (HTTPNotFound, not_found),
            (HTTPForbidden, forbidden),
            (StoreUnavailable, unavailable),
        ):
            config.add_exception_view(view, context=exception, **route, **ours)
