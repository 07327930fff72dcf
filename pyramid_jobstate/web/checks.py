"""Checks of an application's configuration when it starts."""

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
    ISessionFactory,
)
from pyramid.request import Request

from ..store import refusal
from ..worker import ledger_of
from .interfaces import IOwner
from .joburls import path_of
from .permits import authenticated_userid, session_owner
from .resources import JOB_STATES
from .routenames import LIST, OTHER
from .urls import ROUTES

if TYPE_CHECKING:
    from pyramid.config import Configurator
    from pyramid.events import ApplicationCreated
    from pyramid.registry import Registry

    from ..store import JobStore

log = logging.getLogger("pyramid_jobstate")


#: What follows our path in the URLs of jobs. Any uuid will do.
_UUID = "0b7e2f6c-5d1a-4c3e-9f80-3a5d7c9e1b2f"
_PATHS = [p.replace("{uuid}", _UUID) for name, p in ROUTES.items() if name != OTHER]


def check_route_prefix(config: Configurator) -> None:
    """Refuse a route prefix with a placeholder.

    Raises:
      ConfigurationError: The include has such a prefix.
    """
    prefix = config.route_prefix or ""
    # Placeholders in Pyramid's present and former syntax.
    if re.search(r"\{|:[A-Za-z_]", prefix):
        raise ConfigurationError(
            f"The route_prefix {prefix!r} of pyramid_jobstate has a placeholder, so "
            "the URLs of jobs cannot be generated. Include pyramid_jobstate outside "
            "this prefix, or with a prefix that is a plain path."
        )


def check_routes(config: Configurator) -> None:
    """Check that no earlier route takes the requests for jobs. Warn if one with
    predicates may.

    Raises:
      ConfigurationError: One without predicates does.
    """
    mapper = config.get_routes_mapper()
    path = path_of(mapper.get_route(LIST))
    for route in itertools.takewhile(
        lambda route: route.name not in ROUTES, mapper.get_routes()
    ):
        if all(route.match(path + rest) is None for rest in _PATHS):
            continue
        where = (
            f"The route {route.name!r} ({route.pattern}) comes before those of "
            f"pyramid_jobstate and matches URLs of jobs at {path}."
        )
        if not route.predicates:
            raise ConfigurationError(
                f'{where} Call config.include("pyramid_jobstate") before adding that '
                "route, or set jobstate.path to a path that it does not match."
            )
        log.warning(
            "%s Requests for jobs that satisfy its predicates go to that route.", where
        )


def check_store(store: JobStore) -> None:
    """Check that the workers write to `store`. Warn if they may write elsewhere.

    Raises:
      ConfigurationError: They certainly write elsewhere.
    """
    broker = dramatiq.broker.global_broker
    if broker is None:
        return
    try:
        written = ledger_of(broker).store_for(broker)
    except TypeError:
        # The broker has no middleware, or one without a store.
        return
    error = refusal(store, written, "Dramatiq's global broker")
    if error is not None:
        raise ConfigurationError(error)


def check_request_method(registry: Registry) -> None:
    """Check that the request method `job_states` is ours.

    Raises:
      ConfigurationError: It is the application's own.
    """
    extensions = registry.queryUtility(IRequestExtensions)
    if extensions is None:
        return
    ours = extensions.descriptors.get("job_states", JOB_STATES)
    if ours is not JOB_STATES or "job_states" in extensions.methods:
        raise ConfigurationError(
            "The application adds a request method job_states, but pyramid_jobstate "
            "adds one of that name. Rename yours."
        )


def check_application(event: ApplicationCreated) -> None:
    """Check that `request.job_states` is ours. Warn if the application recognises no
    owner of a job.

    Raises:
      ConfigurationError: `request.job_states` is the application's own.
    """
    registry = event.app.registry
    check_request_method(registry)
    factory = registry.queryUtility(IRequestFactory, default=Request)
    if hasattr(factory, "job_states"):
        raise ConfigurationError(
            f"The application's request factory, {factory!r}, has an attribute "
            "job_states, but pyramid_jobstate adds one of that name to each request. "
            "Rename yours."
        )
    if (
        registry.getUtility(IOwner) is session_owner
        and registry.queryUtility(ISessionFactory) is None
    ):
        raise ConfigurationError(
            "The setting jobstate.owner = session needs a session factory. Call "
            "config.set_session_factory(...)."
        )
    if (
        registry.queryUtility(ISecurityPolicy) is None
        and registry.getUtility(IOwner) is authenticated_userid
    ):
        log.warning(
            "The application has neither a security policy nor the setting "
            "jobstate.owner, so it recognises no owner of a job: every request for a "
            "job is refused (403) unless the job's __acl__ lets Everyone in. Call "
            "config.set_security_policy(...), or set jobstate.owner to session or to a "
            "function that returns the owner of a request."
        )
