"""The view predicate of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyramid.httpexceptions import HTTPNotFound

from ..job import JobState
from .resources import JobStates
from .urls import ROUTES

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

#: The names of our views.
VIEW_NAMES = ("", "cancel")


class OursPredicate:
    """The view predicate `jobstate_ours`: whether an exception was raised for a request
    of ours rather than the application's.

    Ours are the requests for our routes, and for our views in a container mounted in
    the application's tree. A request for a view of the application is not ours, even if
    its context is a job.
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
            ours = request.view_name in VIEW_NAMES
        return ours is self.value
