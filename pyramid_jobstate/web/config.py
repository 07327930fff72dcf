"""The include, and the directive that sets the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import dramatiq.broker
from pyramid.exceptions import ConfigurationError

from ..store import JobStore
from ..worker import BrokerFault, is_made, use_broker
from .checks import (
    check_application,
    check_request_method,
    check_route_prefix,
    check_routes,
    check_store,
)
from .creation import at_creation
from .interfaces import (
    IBaseUrl,
    IJobStore,
    IMaxUuids,
    IOutbox,
    IOwner,
    IPermits,
    IStreamLimits,
    IWebOutage,
)
from .joburls import path_of
from .permits import policy_permits
from .request import RequestMiddleware
from .resources import JOB_STATES
from .routenames import LIST
from .settings import BROKER, PREFIX, Settings
from .unavailable import WebOutage
from .urls import add_routes
from .views import add_views

if TYPE_CHECKING:
    from dramatiq import Broker
    from pyramid.config import Configurator
    from pyramid.events import ApplicationCreated

log = logging.getLogger("pyramid_jobstate")

#: The category of our introspectables.
CATEGORY = "job states"


def include(config: Configurator) -> None:
    """Implement :func:`pyramid_jobstate.includeme`."""
    # Routes are added now, so the path is read now: a route added in an action would
    # come after a catch-all of the application.
    at_include = Settings(config.registry.settings)
    path = at_include.path()
    check_route_prefix(config)
    broker = provide_broker(config, at_include)
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
        settings.check()
        if settings.path() != path:
            raise ConfigurationError(
                f"The setting {PREFIX}path must be set before pyramid_jobstate is "
                "included."
            )
        check_broker(broker, at_include, settings)
        owner = settings.owner()
        base_url = settings.base_url()
        permits = settings.function("permits", policy_permits)
        max_uuids = settings.max_uuids()
        limits = settings.stream_limits()
        config.registry.registerUtility(owner, IOwner)
        config.registry.registerUtility(permits, IPermits)
        config.registry.registerUtility(WebOutage(), IWebOutage)
        if base_url is not None:
            config.registry.registerUtility(base_url, IBaseUrl)
        config.registry.registerUtility(max_uuids, IMaxUuids)
        config.registry.registerUtility(limits, IStreamLimits)
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
        at_creation(config, check_application, hand_over)
    config.action("pyramid_jobstate", register, order=5, introspectables=(intr,))


def provide_broker(config: Configurator, settings: Settings) -> Broker | None:
    """Make the broker that the settings name Dramatiq's global broker, and return it.

    Raises:
      ConfigurationError: It cannot be made, or the process uses another.
    """
    spec = settings.broker()
    if spec is None:
        return None
    try:
        return use_broker(spec, config.registry.settings, [RequestMiddleware()])
    except BrokerFault as e:
        raise ConfigurationError(f"The setting {PREFIX}broker {e}") from e


def check_broker(
    broker: Broker | None, at_include: Settings, settings: Settings
) -> None:
    """Check that the broker that was made at the include is still in use, and that it
    would be made so now.

    Parameters:
      broker: That broker, or None if the application has its own.

    Raises:
      ConfigurationError: Another broker or setting has been set since.
    """
    if settings.read("broker") is None and at_include.read("broker") is None:
        return
    for name in BROKER:
        if settings.read(name) != at_include.read(name):
            raise ConfigurationError(
                f"The setting {PREFIX}{name} must be set before pyramid_jobstate is "
                "included, since the broker is made then."
            )
    current = dramatiq.broker.global_broker
    if current is not broker:
        raise ConfigurationError(
            f"Dramatiq's global broker is {current!r}, and not the broker that was "
            f"made for the setting {PREFIX}broker. Remove the application's "
            "dramatiq.set_broker(...), or the setting."
        )


def hand_over(event: ApplicationCreated) -> None:
    """Have the jobs of the global broker use the requests of a new application, unless
    the broker was made for others.
    """
    broker = dramatiq.broker.global_broker
    settings = Settings(event.app.registry.settings)
    if settings.read("broker") is None and is_made(broker):
        return
    for middleware in [] if broker is None else broker.middleware:
        if isinstance(middleware, RequestMiddleware):
            middleware.applications.add(event.app.registry)


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
