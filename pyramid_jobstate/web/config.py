"""The include, and the directive that sets the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import IApplicationCreated

from ..store import JobStore
from .checks import (
    check_application,
    check_request_method,
    check_route_prefix,
    check_routes,
    check_store,
)
from .interfaces import IJobStore, IMaxUuids, IOutbox, IOwner, IPermits, IWebOutage
from .permits import authenticated_userid, policy_permits
from .resources import JOB_STATES
from .settings import PREFIX, Settings, read_path
from .unavailable import WebOutage
from .urls import LIST, add_routes, path_of
from .views import add_views

if TYPE_CHECKING:
    from pyramid.config import Configurator

log = logging.getLogger("pyramid_jobstate")

#: The category of our introspectables.
CATEGORY = "job states"


def include(config: Configurator) -> None:
    """Implement :func:`pyramid_jobstate.includeme`."""
    # Routes are added now, so the path is read now: a route added in an action would
    # come after a catch-all of the application.
    path = read_path(config.registry.settings)
    check_route_prefix(config)
    config.add_static_view(f"{path}/static", "pyramid_jobstate:static")
    add_routes(config, path)
    check_request_method(config.registry)
    config.add_request_method(JOB_STATES, "job_states", property=True)
    config.add_directive("set_job_store", set_job_store)
    add_views(config)

    intr = config.introspectable(CATEGORY, "jobstate", "pyramid_jobstate", "settings")
    intr["path"] = path

    def register() -> None:
        # The application may set these, and its broker, after the include.
        settings = Settings(config.registry.settings)
        if read_path(config.registry.settings) != path:
            raise ConfigurationError(
                f"The setting {PREFIX}path must be set before pyramid_jobstate is "
                "included."
            )
        owner = settings.function("owner", authenticated_userid)
        permits = settings.function("permits", policy_permits)
        max_uuids = settings.max_uuids()
        config.registry.registerUtility(owner, IOwner)
        config.registry.registerUtility(permits, IPermits)
        config.registry.registerUtility(WebOutage(), IWebOutage)
        config.registry.registerUtility(max_uuids, IMaxUuids)
        store = config.registry.queryUtility(IJobStore)
        if store is None:
            store = settings.store()
            config.registry.registerUtility(store, IJobStore)
        if config.registry.queryUtility(IOutbox) is None:
            # With an outbox, an application's tests write nothing.
            check_store(store)
        check_routes(config)
        intr.update(store=store, owner=owner, permits=permits, max_uuids=max_uuids)
        log.info(
            "Job states are stored in %r and served at %s. Their owner is %s(request).",
            store,
            path_of(config.get_routes_mapper().get_route(LIST)),
            getattr(owner, "__qualname__", owner),
        )

    if config.registry.queryUtility(IOwner) is None:
        # Checked at the end, since a policy may be set after a commit; and once only,
        # even if the package is included repeatedly.
        config.add_subscriber(check_application, IApplicationCreated)
    config.action("pyramid_jobstate", register, order=5, introspectables=(intr,))


def set_job_store(config: Configurator, store: JobStore) -> None:
    """Keep the job states in `store`, a JobStore or the dotted name of one.

    Raises:
      ConfigurationError: `store` is neither.
    """
    if "://" in str(store):
        # Not repeated: it may contain a password.
        raise ConfigurationError(
            "set_job_store needs a JobStore, not a URL. Pass it JobStore(url)."
        )
    store = config.maybe_dotted(store)
    if not isinstance(store, JobStore):
        raise ConfigurationError(f"set_job_store needs a JobStore, not {store!r}.")

    def register() -> None:
        config.registry.registerUtility(store, IJobStore)
        if config.autocommit:
            # The include has already checked another store.
            check_store(store)

    intr = config.introspectable(CATEGORY, "store", repr(store), "store")
    intr["store"] = store
    config.action(IJobStore, register, introspectables=(intr,))
