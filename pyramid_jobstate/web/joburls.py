"""The URL of a job, and of a container."""

from __future__ import annotations

import functools
from typing import Any

from pyramid.interfaces import IResourceURL, IRoutesMapper
from pyramid.request import Request
from pyramid.traversal import ResourceURL
from zope.interface import implementer, providedBy

from ..job import JobState
from .access import Access
from .interfaces import IBaseUrl
from .routenames import LIST

#: The variables of a request's environment of which WebOb makes the application's URL.
URL_OF = ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "SCRIPT_NAME")


@implementer(IResourceURL)
class JobStatesURL:
    """The URL of a container or of a job in it: our route's, unless the container is
    mounted in the application's own tree.
    """

    def __init__(self, resource: Access | JobState, request: Request) -> None:
        container = resource if isinstance(resource, Access) else resource.__parent__
        if isinstance(container, Access) and container.is_mounted:
            url = ResourceURL(resource, request)
            self.physical_path = url.physical_path
            self.virtual_path = url.virtual_path
            self.physical_path_tuple = url.physical_path_tuple
            self.virtual_path_tuple = url.virtual_path_tuple
            return
        path = _path(request)
        if isinstance(resource, JobState):
            path = f"{path}{resource.uuid}/"
        self.physical_path = self.virtual_path = path
        self.physical_path_tuple = self.virtual_path_tuple = tuple(path.split("/"))


@functools.lru_cache(256)
def path_of(route: Any) -> str:
    """Return the path of one of our routes that has no placeholder."""
    path: str = route.generate({})
    return path


def url_of(container: Access) -> str:
    """Return the URL of a container, with which those of its jobs begin."""
    request = container.request
    is_mounted = container.is_mounted
    path = (
        ResourceURL(container, request).virtual_path if is_mounted else _path(request)
    )
    base_url = request.registry.queryUtility(IBaseUrl)
    return f"{base_url or request.application_url}{path}"


def _path(request: Request) -> str:
    """Return the path of our route to the container."""
    mapper = request.registry.getUtility(IRoutesMapper)
    return path_of(mapper.get_route(f"{LIST}/"))


def is_below(job_state: JobState, container: Access) -> bool:
    """Return whether the URL of a job is that of its container and its uuid: its parent
    is the container, and the application does not give it another URL.
    """
    request = container.request
    return (
        job_state.__parent__ is container
        and job_state.__name__ == job_state.uuid
        and not hasattr(job_state, "__resource_url__")
        and getattr(request.resource_url, "__func__", None) is Request.resource_url
        # A virtual root may lie below the container.
        and not (container.is_mounted and "HTTP_X_VHM_ROOT" in request.environ)
        and request.registry.adapters.lookup(
            (providedBy(job_state), providedBy(request)), IResourceURL
        )
        is JobStatesURL
    )
