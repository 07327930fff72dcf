"""The way to a job by URL, and the URL of a job."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pyramid.interfaces import IResourceURL, IRoutesMapper, ITraverser
from pyramid.traversal import ResourceTreeTraverser, ResourceURL
from zope.interface import Interface, implementer

from .resources import ROUTE, JobStates
from .state import JobState

if TYPE_CHECKING:
    from pyramid.request import Request


class JobStatesTraverser(ResourceTreeTraverser):  # type: ignore[misc]
    """Traverses the container of our route. As for every route, a virtual root of the
    application's own tree has no say in it.

    A traverser that the application registered for all of its resources enters its
    root first: such traversers announce the root to subscribers, and PyAMS, for one,
    knows no users before.
    """

    VH_ROOT_KEY = "pyramid_jobstate.no_virtual_root"

    def __call__(self, request: Request) -> dict[str, Any]:
        traverser = request.registry.adapters.lookup((Interface,), ITraverser)
        if traverser is not None:
            ours, request.matchdict = request.matchdict, {"traverse": "/"}
            try:
                traverser(self.root.__parent__)(request)
            finally:
                request.matchdict = ours
        return super().__call__(request)  # type: ignore[no-any-return]


@implementer(IResourceURL)
class JobStatesURL:
    """The URL of a container, or of a job in it: that of the route unless the container
    is mounted in the application's own tree.
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
        route = request.registry.getUtility(IRoutesMapper).get_route(ROUTE)
        path = path_of(route)
        if resource is not container:
            path = f"{path}{resource.uuid}/"  # type: ignore[union-attr]
        self.physical_path = self.virtual_path = path
        self.physical_path_tuple = self.virtual_path_tuple = tuple(path.split("/"))


@functools.lru_cache(256)
def path_of(route: Any) -> str:
    """Return the path of the container at our route."""
    path: str = route.generate({"traverse": "/"})
    return path
