"""The view predicates of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPNotFound

from ..job import JobState
from .resources import JobStates
from .urls import ROUTES

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request

#: The names of our views.
VIEW_NAMES = ("", "cancel")


def add_predicates(config: Configurator) -> None:
    """Add the predicates, and keep the order of those that the application uses."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
    # Between two of Pyramid's that are neighbours. Elsewhere it would move others, and
    # with them the weight of the application's views.
    config.add_view_predicate(
        "jobstate_batch",
        BatchPredicate,
        weighs_more_than="request_method",
        weighs_less_than="path_info",
    )


class BatchPredicate:
    """The view predicate `jobstate_batch`: whether a request asks for several jobs by
    their uuids.

    Pyramid's own ``request_param`` would do less: it raises for a query that cannot be
    decoded, and for a body in another charset than UTF-8. It would also weigh more than
    a view of the application for a container that is mounted in its tree.
    """

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"jobstate_batch = {self.value}"

    phash = text

    def __call__(self, context: Any, request: Request) -> bool:
        environ = request.environ
        is_batch = (
            environ["REQUEST_METHOD"] in ("GET", "HEAD")
            and bool(environ.get("QUERY_STRING"))
            and is_readable(request)
            and "uuid" in request.GET
        )
        return is_batch is self.value


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


def is_readable(request: Request) -> bool:
    """Return whether the query of a request can be decoded."""
    try:
        # It is decoded when it is first read.
        request.GET  # noqa: B018
    except UnicodeDecodeError:
        return False
    return True
