"""The routes to the jobs, and the URL of a job."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPNotFound
from pyramid.interfaces import IResourceURL, IRoutesMapper, ITraverser
from pyramid.traversal import ResourceTreeTraverser, ResourceURL
from zope.interface import Interface, implementer

from ..errors import StoreUnavailable
from ..job import JobState
from .resources import JobStates

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.request import Request


#: The names of our routes.
LIST = "pyramid_jobstate"
COUNTS = "pyramid_jobstate.counts"
CLEAR = "pyramid_jobstate.clear"
CANCEL_ALL = "pyramid_jobstate.cancel_all"
RERUN_ALL = "pyramid_jobstate.rerun_all"
JOB = "pyramid_jobstate.job"
CANCEL = "pyramid_jobstate.cancel"
RERUN = "pyramid_jobstate.rerun"
INSPECT = "pyramid_jobstate.inspect"
OTHER = "pyramid_jobstate.other"

#: The patterns below our path, by route name. Some have a twin with a trailing slash.
#: The last one keeps the application's own views from matching anything else there.
ROUTES = {
    LIST: "",
    f"{LIST}/": "/",
    COUNTS: "/counts",
    CLEAR: "/clear",
    CANCEL_ALL: "/cancel",
    RERUN_ALL: "/rerun",
    JOB: "/{uuid}",
    f"{JOB}/": "/{uuid}/",
    CANCEL: "/{uuid}/cancel",
    RERUN: "/{uuid}/rerun",
    INSPECT: "/{uuid}/inspect",
    OTHER: r"{other:(?s:/.*)\Z}",
}

#: The names of our views, by the route that leads to one. The others have no name.
VIEW_NAMES = {
    name: ROUTES[name].rpartition("/")[2]
    for name in (COUNTS, CLEAR, CANCEL_ALL, RERUN_ALL, CANCEL, RERUN, INSPECT)
}


class PathPredicate:
    """The route predicate `jobstate_path`: whether a request is for one of our routes.

    A CORS preflight is left to the application.

    Parameters:
      value: "all", or "exact" to reject a path that ends in a newline, which the `$` in
        Pyramid's patterns lets through.
    """

    def __init__(self, value: str, config: Configurator) -> None:
        self.value = value
        self._is_exact = value == "exact"

    def text(self) -> str:
        return f"jobstate_path = {self.value}"

    phash = text

    def __call__(self, info: Any, request: Request) -> bool:
        environ = request.environ
        if self._is_exact and environ["PATH_INFO"][-1:] == "\n":
            return False
        return not (
            environ["REQUEST_METHOD"] == "OPTIONS"
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        )


def add_routes(config: Configurator, path: str) -> None:
    """Add our routes below a path."""
    config.add_route_predicate("jobstate_path", PathPredicate)
    for name, pattern in ROUTES.items():
        config.add_route(
            name,
            path + pattern,
            factory=JobStates,
            use_global_views=False,
            jobstate_path="all" if name == OTHER else "exact",
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
            except StoreUnavailable:
                context = container.unread(uuid)
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


@implementer(IResourceURL)
class JobStatesURL:
    """The URL of a container or of a job in it: our route's, unless the container is
    mounted in the application's own tree.
    """

    def __init__(self, resource: JobStates | JobState, request: Request) -> None:
        container = resource if isinstance(resource, JobStates) else resource.__parent__
        if isinstance(container, JobStates) and container.is_mounted:
            url = ResourceURL(resource, request)
            self.physical_path = url.physical_path
            self.virtual_path = url.virtual_path
            self.physical_path_tuple = url.physical_path_tuple
            self.virtual_path_tuple = url.virtual_path_tuple
            return
        route = request.registry.getUtility(IRoutesMapper).get_route(f"{LIST}/")
        path = path_of(route)
        if resource is not container:
            path = f"{path}{resource.uuid}/"  # type: ignore[union-attr]
        self.physical_path = self.virtual_path = path
        self.physical_path_tuple = self.virtual_path_tuple = tuple(path.split("/"))


@functools.lru_cache(256)
def path_of(route: Any) -> str:
    """Return the path of one of our routes that has no placeholder."""
    path: str = route.generate({})
    return path
