"""What is wrong with an application at its start."""

from __future__ import annotations

import itertools
import logging
import re
from typing import TYPE_CHECKING

import dramatiq.broker
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import (
    IRequestExtensions,
    IRequestFactory,
    ISecurityPolicy,
)
from pyramid.request import Request

from ..store import refusal
from ..worker import middleware_of
from .interfaces import IOwner
from .permits import authenticated_userid
from .resources import JOB_STATES
from .urls import LIST, path_of

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.events import ApplicationCreated
    from pyramid.registry import Registry

    from ..store import JobStore

log = logging.getLogger("pyramid_jobstate")


#: What a job's URL has behind our path. Any uuid will do.
_UUID = "0b7e2f6c-5d1a-4c3e-9f80-3a5d7c9e1b2f"
_PATHS = ("", "/", f"/{_UUID}", f"/{_UUID}/", f"/{_UUID}/cancel")


def check_route_prefix(config: Configurator) -> None:
    """Raise ConfigurationError unless our path would be one fixed path."""
    prefix = config.route_prefix or ""
    # As Pyramid writes a placeholder, and as it once did.
    if re.search(r"\{|:[A-Za-z_]", prefix):
        raise ConfigurationError(
            f"The route_prefix {prefix!r} of pyramid_jobstate has a placeholder, so "
            "that no URL of a job could be made. Include it outside of the prefix, or "
            "with one that is a plain path."
        )


def check_routes(config: Configurator) -> None:
    """Raise ConfigurationError where an earlier route answers requests for jobs; warn
    where one with predicates may.
    """
    mapper = config.get_routes_mapper()
    ours = mapper.get_route(LIST)
    path = path_of(ours)
    for route in itertools.takewhile(lambda r: r is not ours, mapper.get_routes()):
        if all(route.match(path + rest) is None for rest in _PATHS):
            continue
        where = (
            f"The route {route.name!r} ({route.pattern}) stands before that of "
            f"pyramid_jobstate, and matches {path}."
        )
        if not route.predicates:
            raise ConfigurationError(
                f'{where} Call config.include("pyramid_jobstate") before that route is '
                "added, or set jobstate.path to a path that it does not match."
            )
        log.warning(
            "%s Requests for jobs that fulfil its predicates are not answered.", where
        )


def check_store(store: JobStore) -> None:
    """Raise ConfigurationError where jobs are certainly read elsewhere than they are
    written; warn where they may be.
    """
    broker = dramatiq.broker.global_broker
    if broker is None:
        return
    try:
        written = middleware_of(broker).store_for(broker)
    except TypeError:
        # No middleware, or none that could be sent anything.
        return
    error = refusal(store, written, "Dramatiq's global broker")
    if error is not None:
        raise ConfigurationError(error)


def check_request_method(registry: Registry) -> None:
    """Raise ConfigurationError where `request.job_states` is the application's own."""
    extensions = registry.queryUtility(IRequestExtensions)
    if extensions is None:
        return
    ours = extensions.descriptors.get("job_states", JOB_STATES)
    if ours is not JOB_STATES or "job_states" in extensions.methods:
        raise ConfigurationError(
            "The application adds a request method job_states. pyramid_jobstate adds "
            "one itself: give yours another name."
        )


def check_application(event: ApplicationCreated) -> None:
    """Raise ConfigurationError where `request.job_states` is the application's own.
    Warn where no job has an owner whom the application would know.
    """
    registry = event.app.registry
    check_request_method(registry)
    factory = registry.queryUtility(IRequestFactory, default=Request)
    if hasattr(factory, "job_states"):
        raise ConfigurationError(
            f"The application's request factory, {factory!r}, has an attribute "
            "job_states. pyramid_jobstate adds one to each request: give yours another "
            "name."
        )
    if (
        registry.queryUtility(ISecurityPolicy) is None
        and registry.getUtility(IOwner) is authenticated_userid
    ):
        log.warning(
            "The application has neither a security policy nor the setting "
            "jobstate.owner: nobody owns a job, and whoever asks for one is refused "
            "(403), unless its __acl__ lets Everyone in. Call "
            "config.set_security_policy(...), or set jobstate.owner to a function "
            "that returns the owner of a request."
        )
