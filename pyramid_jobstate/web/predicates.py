"""The view predicate of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyramid.httpexceptions import HTTPNotFound

from ..job import JobState
from .negotiation import never_keep, wants_page
from .resources import JOB_VIEWS, JobStates
from .urls import ROUTES

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

#: The names of the views of a container.
CONTAINER_VIEWS = ("", "counts", "clear", "cancel", "rerun")


class OursPredicate:
    """The view predicate `jobstate_ours`: whether an exception was raised for a request
    of ours rather than the application's.

    Ours are the requests for our routes, and for our views in a container mounted in
    the application's tree. A request for a view of the application is not ours, even if
    its context is a job. Nor is a request for a page: the application's own error pages
    answer it.
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
            # The application reached the context in its own way.
            ours = False
        elif container is context and isinstance(exc, HTTPNotFound):
            # The view name is the uuid of an unknown job.
            ours = True
        else:
            names = CONTAINER_VIEWS if container is context else JOB_VIEWS
            ours = request.view_name in names
        if ours and wants_page(request):
            request.add_response_callback(never_keep)
            ours = False
        return ours is self.value
