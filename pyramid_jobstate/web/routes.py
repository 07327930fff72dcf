"""The routes to the jobs, and whose request an exception belongs to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pyramid.exceptions import URLDecodeError
from pyramid.httpexceptions import HTTPNotFound
from pyramid.interfaces import ITraverser
from pyramid.traversal import ResourceTreeTraverser
from zope.interface import Interface

from ..errors import StoreUnavailable
from ..job.state import JobState
from .answers import protect, wants_page
from .interfaces import (
    CANCEL,
    CANCEL_ALL,
    CLEAR,
    COUNTS,
    INSPECT,
    JOB,
    LIST,
    LOG,
    OTHER,
    RERUN,
    RERUN_ALL,
    STACK,
    WORKERS,
)
from .jobstates import JOB_VIEWS, JobStates, JobStatesURL, unread

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request


#: The patterns below our path, by route name, in the order in which they are tried: the
#: most frequent first. Some have a twin with a trailing slash. The last one keeps the
#: application's own views from matching anything else there.
ROUTES = {
    JOB: "/{uuid}",
    LIST: "",
    f"{LIST}/": "/",
    COUNTS: "/counts",
    WORKERS: "/workers",
    CLEAR: "/clear",
    CANCEL_ALL: "/cancel",
    RERUN_ALL: "/rerun",
    f"{JOB}/": "/{uuid}/",
    CANCEL: "/{uuid}/cancel",
    RERUN: "/{uuid}/rerun",
    INSPECT: "/{uuid}/inspect",
    STACK: "/{uuid}/stack",
    LOG: "/{uuid}/log",
    OTHER: r"{other:(?s:/.*)\Z}",
}

#: The names of our views, by the route that leads to one. The others have no name.
VIEW_NAMES = {
    name: last
    for name, pattern in ROUTES.items()
    if (last := pattern.rpartition("/")[2]).isalpha()
}

#: The names that stand where a uuid would, and have a route of their own.
RESERVED = frozenset(
    ROUTES[name][1:] for name in (COUNTS, WORKERS, CLEAR, CANCEL_ALL, RERUN_ALL)
)


class PathPredicate:
    """The route predicate `jobstate_path`: whether a request is for one of our routes.

    A CORS preflight is left to the application.

    Parameters:
      value: "all"; "exact" to reject a path that ends in a newline, which the `$` in
        Pyramid's patterns lets through; or "job" to also reject the names that have a
        route of their own.
    """

    def __init__(self, value: str, config: Configurator) -> None:
        self.value = value
        self._is_exact = value != "all"
        self._is_job = value == "job"

    def text(self) -> str:
        return f"jobstate_path = {self.value}"

    phash = text

    def __call__(self, info: Any, request: Request) -> bool:
        environ = request.environ
        if self._is_exact and environ["PATH_INFO"][-1:] == "\n":
            return False
        if self._is_job and info["match"]["uuid"] in RESERVED:
            return False
        return not (
            environ["REQUEST_METHOD"] == "OPTIONS"
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        )


def add_routes(config: Configurator, path: str) -> None:
    """Add our routes, and that of our static files, below a path."""
    config.add_route_predicate("jobstate_path", PathPredicate)
    values = {JOB: "job", OTHER: "all"}
    for name, pattern in ROUTES.items():
        config.add_route(
            name,
            path + pattern,
            factory=JobStates,
            use_global_views=False,
            jobstate_path=values.get(name, "exact"),
        )
        if name == JOB:
            # Before the routes that match what is below a uuid.
            config.add_static_view(
                f"{path}/static",
                "pyramid_jobstate:static",
                request_method=("GET", "HEAD"),
            )
    config.add_traverser(JobStatesTraverser, JobStates)
    config.add_resource_url_adapter(JobStatesURL, JobStates)
    config.add_resource_url_adapter(JobStatesURL, JobState)


class JobStatesTraverser(ResourceTreeTraverser):  # type: ignore[misc]
    """Traverses from the container of our routes to the job in the URL. As with any
    route, a virtual root of the application's tree has no effect.
    """

    VH_ROOT_KEY = "pyramid_jobstate.no_virtual_root"

    def __call__(self, request: Request) -> dict[str, Any]:
        route = getattr(request, "matched_route", None)
        if route is None or route.name not in ROUTES:
            # The application traverses to a container of its own.
            found: dict[str, Any] = super().__call__(request)
            return found
        container = context = self.root
        enter_root(container, request)
        view_name = VIEW_NAMES.get(route.name, "")
        uuid = request.matchdict.get("uuid")
        if uuid is not None:
            try:
                context = container[uuid]
            except StoreUnavailable as e:
                context = unread(container, uuid, e)
            except KeyError:
                # The view for unknown jobs responds.
                context = container
        return {
            "root": container,
            "context": context,
            "view_name": view_name,
            "subpath": (),
            "traversed": () if context is container else (uuid,),
            "virtual_root": container,
            "virtual_root_path": (),
        }


def enter_root(container: JobStates, request: Request) -> None:
    """Let a traverser that the application registered for all resources enter its root,
    as it would for any other request.

    Such a traverser may announce the root to subscribers: without that, PyAMS knows no
    users. It does not matter that it finds nothing at our path.
    """
    traverser = request.registry.adapters.lookup((Interface,), ITraverser)
    if traverser is not None:
        ours, request.matchdict = request.matchdict, {"traverse": "/"}
        try:
            with contextlib.suppress(HTTPNotFound, KeyError):
                traverser(container.__parent__)(request)
        finally:
            request.matchdict = ours


#: The names of the views of a container.
CONTAINER_VIEWS = ("", "counts", "workers", "clear", "cancel", "rerun")


class OursPredicate:
    """The view predicate `jobstate_ours`: whether an exception was raised for a request
    of ours rather than the application's.

    Ours are the requests for our routes, and for our views in a container mounted in
    the application's tree. A request for a view of the application is not ours, even if
    its context is a job. Nor is a request for a page: the application's own error pages
    answer it, unless its path is not UTF-8, for which Pyramid has none.
    """

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"jobstate_ours = {self.value}"

    phash = text

    def __call__(self, exc: Exception, request: Request) -> bool:
        if isinstance(exc, URLDecodeError):
            # No route was tried.
            path: str = request.environ["PATH_INFO"]
            return path.startswith(request.registry.jobstate.path) is self.value
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
            request.add_response_callback(protect)
            ours = False
        return ours is self.value
