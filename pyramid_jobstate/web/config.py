"""The configuration of the web side: settings, the directive, checks at the start."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import dramatiq.broker
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import IApplicationCreated
from pyramid.path import DottedNameResolver

from ..store.jobstore import JobStore
from .checks import (
    check_application,
    check_request_method,
    check_route_prefix,
    check_routes,
    check_store,
)
from .outgoing import middleware_of
from .permits import IOwner, IPermits, authenticated_userid, policy_permits
from .resources import JOB_STATES, IJobStore, IMaxUuids, IOutbox
from .unavailable import IWebOutage, WebOutage
from .urls import LIST, add_routes, path_of
from .views import add_views

if TYPE_CHECKING:
    from pyramid.config import Configurator

log = logging.getLogger("pyramid_jobstate")

#: The category of our introspectables.
CATEGORY = "job states"

PREFIX = "jobstate."
NAMES = frozenset(
    {
        "redis_url",
        "namespace",
        "path",
        "expire_in",
        "active_expire_in",
        "stalled_after",
        "owner",
        "permits",
        "max_uuids",
    }
)
DURATIONS = ("expire_in", "active_expire_in", "stalled_after")
#: As milliseconds such a number is exact everywhere, in Lua as well.
MAX_SECONDS = 1e12
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def include(config: Configurator) -> None:
    """Do what :func:`pyramid_jobstate.includeme` says."""
    # What shapes URLs is read now: a route added in an action would stand behind the
    # application's catch-all.
    path = _path(config.registry.settings)
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
        # The application may still have set these, or its broker, after the include.
        settings = Settings(config.registry.settings)
        if _path(config.registry.settings) != path:
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
            # Else the tests of an application keep what would be written.
            check_store(store)
        check_routes(config)
        intr.update(store=store, owner=owner, permits=permits, max_uuids=max_uuids)
        log.info(
            "Job states are kept in %r, shown below %s, and belong to %s(request).",
            store,
            path_of(config.get_routes_mapper().get_route(LIST)),
            getattr(owner, "__qualname__", owner),
        )

    if config.registry.queryUtility(IOwner) is None:
        # Not in an action: a policy may be set after a commit. Once, however often the
        # package is included.
        config.add_subscriber(check_application, IApplicationCreated)
    config.action("pyramid_jobstate", register, order=5, introspectables=(intr,))


def set_job_store(config: Configurator, store: JobStore) -> None:
    """Keep the job states in `store`, a JobStore or the dotted name of one."""
    if "://" in str(store):
        # It may hold a password.
        raise ConfigurationError(
            "set_job_store needs a JobStore, not a URL: JobStore(url)."
        )
    store = config.maybe_dotted(store)
    if not isinstance(store, JobStore):
        raise ConfigurationError(f"set_job_store needs a JobStore, not {store!r}.")

    def register() -> None:
        config.registry.registerUtility(store, IJobStore)
        if config.autocommit:
            # The include has compared another.
            check_store(store)

    intr = config.introspectable(CATEGORY, "store", repr(store), "store")
    intr["store"] = store
    config.action(IJobStore, register, introspectables=(intr,))


class Settings:
    """The settings of an application.

    Raises:
      ConfigurationError: One is unknown. The methods raise it where one is wrong.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {
            name.removeprefix(PREFIX): value
            for name, value in settings.items()
            if name.startswith(PREFIX)
        }
        for name in self._settings:
            if name not in NAMES:
                raise ConfigurationError(
                    f"There is no setting {PREFIX}{name}. There are: "
                    + ", ".join(PREFIX + known for known in sorted(NAMES))
                )

    def max_uuids(self) -> int:
        value = self._settings.get("max_uuids", 100)
        if not re.fullmatch(r"[1-9]\d{0,8}", str(value)):
            raise _wrong("max_uuids", value, "is not a positive number")
        return int(value)

    def function(self, setting: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that a setting names."""
        name = self._settings.get(setting)
        if name is None:
            return default
        if "://" in str(name):
            # It may hold a password.
            raise _wrong(setting, "…://…", "is a URL, not a function")
        try:
            function: Callable[..., Any] = DottedNameResolver(None).maybe_resolve(name)
        except (ImportError, ValueError) as e:
            raise _wrong(setting, name, f"cannot be imported: {e}") from e
        if not callable(function):
            raise _wrong(setting, name, "is not a function")
        if inspect.iscoroutinefunction(function):
            raise _wrong(setting, name, "is async: it must return its answer")
        return function

    def store(self) -> JobStore:
        """Return the store of the redis_url, or of the middleware on Dramatiq's global
        broker, changed as far as the settings say otherwise.
        """
        options: dict[str, Any] = {
            name: _seconds(name, self._settings[name])
            for name in DURATIONS
            if name in self._settings
        }
        namespace = self._settings.get("namespace")
        if namespace is not None:
            if not isinstance(namespace, str) or not namespace:
                raise _wrong("namespace", namespace, "is no name")
            options["namespace"] = namespace
        url = self._settings.get("redis_url")
        if url is None:
            return _middleware_store().replace(**options)
        try:
            return JobStore(str(url), **options)
        except ValueError as e:
            fault = str(e)
        raise ConfigurationError(f"The setting {PREFIX}redis_url is wrong. {fault}")


def _path(settings: Mapping[str, Any]) -> str:
    path = str(settings.get(PREFIX + "path", "job_state")).strip("/")
    if not re.fullmatch(r"((?!\.\.?/)[\w.~-]+/)+", path + "/", re.ASCII):
        raise _wrong("path", path, "is no path such as job_state or api/jobs")
    return path


def _seconds(name: str, value: object) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(value))
    seconds = float(match[1]) * UNITS[match[2]] if match else 0
    if not 0.001 <= seconds <= MAX_SECONDS:
        raise _wrong(name, value, "is no duration such as 90, 90s, 15m, 24h or 8d")
    return seconds


def _wrong(name: str, value: object, why: str) -> ConfigurationError:
    return ConfigurationError(f"The setting {PREFIX}{name} = {value!r} {why}.")


def _middleware_store() -> JobStore:
    # Not get_broker(), which would make one.
    broker = dramatiq.broker.global_broker
    if broker is None:
        raise ConfigurationError(
            "pyramid_jobstate does not know where job states are kept: no Dramatiq "
            "broker is set. Import the module that calls dramatiq.set_broker(...) "
            "before the application is made, or set jobstate.redis_url."
        )
    try:
        return middleware_of(broker).store_for(broker)
    except TypeError as e:
        raise ConfigurationError(str(e)) from e
