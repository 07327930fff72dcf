"""The include: it checks an application and registers what it needs."""

from __future__ import annotations

import itertools
import logging
import re
from typing import TYPE_CHECKING

import dramatiq.broker
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import (
    IApplicationCreated,
    IRequestExtensions,
    IRequestFactory,
    ISecurityPolicy,
    ISessionFactory,
)
from pyramid.registry import Registry
from pyramid.request import Request

from ..store.jobstore import JobStore
from ..store.places import refusal
from ..worker.brokers import BrokerFault, is_made, use_broker
from ..worker.ledger import ledger_of
from .interfaces import LIST, OTHER, IJobStore, IOutbox
from .jobstates import JOB_STATES
from .permits import WebOutage, authenticated_userid, policy_permits, session_owner
from .request import RequestMiddleware
from .routes import ROUTES, add_routes
from .settings import BROKER, PREFIX, Settings, Setup
from .views import add_views

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq import Broker
    from pyramid.config import Configurator
    from pyramid.events import ApplicationCreated

log = logging.getLogger("pyramid_jobstate")

#: What follows our path in the URLs of jobs. Any uuid will do.
_UUID = "0b7e2f6c-5d1a-4c3e-9f80-3a5d7c9e1b2f"

_PATHS = [p.replace("{uuid}", _UUID) for name, p in ROUTES.items() if name != OTHER]

#: The category of our introspectables.
CATEGORY = "job states"


def include(config: Configurator) -> None:
    """Implement :func:`pyramid_jobstate.includeme`."""
    # Routes are added now, so the path is read now: a route added in an action would
    # come after a catch-all of the application.
    at_include = Settings(config.registry.settings)
    # Again in the action; but there, Pyramid would bury the error in tracebacks.
    at_include.check_names()
    path = at_include.path()
    check_route_prefix(config)
    broker = provide_broker(config, at_include)
    add_routes(config, path)
    check_request_method(config.registry)
    check_attribute(config.registry)
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
        settings.hooks_queue()
        check_attribute(config.registry)
        setup = config.registry.jobstate = Setup(
            path=path_of(config, f"{LIST}/"),
            owner=settings.owner(),
            permits=settings.function("permits", policy_permits),
            base_url=settings.base_url(),
            max_uuids=settings.max_uuids(),
            limits=settings.stream_limits(),
            outage=WebOutage(),
        )
        store = config.registry.queryUtility(IJobStore)
        if store is None:
            store = settings.store()
            config.registry.registerUtility(store, IJobStore)
        if config.registry.queryUtility(IOutbox) is None:
            # With an outbox, an application's tests write nothing.
            check_store(store)
        check_routes(config)
        intr.update(store=store, owner=setup.owner, permits=setup.permits)
        intr.update(max_uuids=setup.max_uuids)
        log.info(
            "Job states are stored in %r and served at %s. Their owner is %s(request).",
            store,
            path_of(config, LIST),
            getattr(setup.owner, "__qualname__", setup.owner),
        )

    if not hasattr(config.registry, "jobstate"):
        # Checked at the end, since a policy may be set after a commit; and once only,
        # even if the package is included repeatedly.
        at_creation(config, check_application, hand_over)
    config.action("pyramid_jobstate", register, order=5, introspectables=(intr,))


def at_creation(
    config: Configurator, *calls: Callable[[ApplicationCreated], object]
) -> None:
    """Call functions when the application of a configurator is made, and only then.

    A subscriber that stayed would have Pyramid announce each request of the application
    four times, even if nothing else listens.
    """
    registry = config.registry

    def call(event: ApplicationCreated) -> None:
        for each in calls:
            each(event)
        registry.unregisterHandler(call, (IApplicationCreated,))
        # Handlers that come later raise the flag again. Those of a registry on which
        # this one builds are not known here.
        if isinstance(registry, Registry) and not registry.__bases__:
            registry.has_listeners = any(registry.registeredHandlers())

    # In the order in which the application adds its own.
    config.action(None, lambda: registry.registerHandler(call, (IApplicationCreated,)))


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


def path_of(config: Configurator, name: str) -> str:
    """Return the path of one of our routes that has no placeholder."""
    path: str = config.get_routes_mapper().get_route(name).generate({})
    return path


def check_routes(config: Configurator) -> None:
    """Check that no earlier route takes the requests for jobs. Warn if one with
    predicates may.

    Raises:
      ConfigurationError: One without predicates does.
    """
    path, routes = path_of(config, LIST), config.get_routes_mapper().get_routes()
    for route in itertools.takewhile(lambda route: route.name not in ROUTES, routes):
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


def check_attribute(registry: Registry) -> None:
    """Check that `registry.jobstate` is ours, if it is set.

    Raises:
      ConfigurationError: It is the application's own.
    """
    if not isinstance(getattr(registry, "jobstate", None), Setup | None):
        raise ConfigurationError(
            "The application sets registry.jobstate, but pyramid_jobstate sets an "
            "attribute of that name. Rename yours."
        )


def check_application(event: ApplicationCreated) -> None:
    """Check that `request.job_states` and `registry.jobstate` are ours. Warn if the
    application recognises no owner of a job.

    Raises:
      ConfigurationError: One is the application's own.
    """
    registry = event.app.registry
    check_request_method(registry)
    check_attribute(registry)
    factory = registry.queryUtility(IRequestFactory, default=Request)
    if hasattr(factory, "job_states"):
        raise ConfigurationError(
            f"The application's request factory, {factory!r}, has an attribute "
            "job_states, but pyramid_jobstate adds one of that name to each request. "
            "Rename yours."
        )
    if (
        registry.jobstate.owner is session_owner
        and registry.queryUtility(ISessionFactory) is None
    ):
        raise ConfigurationError(
            "The setting jobstate.owner = session needs a session factory. Call "
            "config.set_session_factory(...)."
        )
    if (
        registry.queryUtility(ISecurityPolicy) is None
        and registry.jobstate.owner is authenticated_userid
    ):
        log.warning(
            "The application has neither a security policy nor the setting "
            "jobstate.owner, so it recognises no owner of a job: every request for a "
            "job is refused (403) unless the job's __acl__ lets Everyone in. Call "
            "config.set_security_policy(...), or set jobstate.owner to session or to a "
            'function that returns the owner of a request. See "403" in the '
            "troubleshooting guide."
        )


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
