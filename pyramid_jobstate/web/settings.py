"""The settings whose names begin with ``jobstate.``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import dramatiq.broker
from pyramid.exceptions import ConfigurationError
from pyramid.path import DottedNameResolver

from ..store import JobStore
from ..worker import middleware_of

PREFIX = "jobstate."

#: Every setting without its prefix, with its default. The README describes what None
#: stands for.
SETTINGS: Mapping[str, str | None] = MappingProxyType(
    {
        "redis_url": None,
        "namespace": "jobstate",
        "path": "job_state",
        "expire_in": "24h",
        "active_expire_in": "8d",
        "stalled_after": "15s",
        "owner": None,
        "permits": None,
        "max_uuids": "100",
    }
)

DURATIONS = ("expire_in", "active_expire_in", "stalled_after")
#: In milliseconds such a number is still exact everywhere, including Lua.
MAX_SECONDS = 1e12
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Settings:
    """The settings of an application.

    Parameters:
      settings: The settings of its registry.

    Raises:
      ConfigurationError: A setting is unknown. The methods raise it if the value of one
        is invalid.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {
            name.removeprefix(PREFIX): value
            for name, value in settings.items()
            if name.startswith(PREFIX)
        }
        for name in self._settings:
            if name not in SETTINGS:
                known = ", ".join(PREFIX + known for known in sorted(SETTINGS))
                raise ConfigurationError(
                    f"The setting {PREFIX}{name} is unknown. Known settings: {known}."
                )

    def max_uuids(self) -> int:
        """Return how many jobs one request may ask for."""
        value = self._settings.get("max_uuids", SETTINGS["max_uuids"])
        text = str(value)
        if not re.fullmatch(r"[1-9]\d{0,8}", text):
            raise _wrong("max_uuids", value, "is not a positive whole number")
        return int(text)

    def function(self, setting: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that a setting names, or `default` if it is not set."""
        name = self._settings.get(setting)
        if name is None:
            return default
        if "://" in str(name):
            # Not repeated: it may contain a password.
            raise _wrong(setting, "…://…", "is a URL, not a function")
        try:
            function: Callable[..., Any] = DottedNameResolver(None).maybe_resolve(name)
        except (ImportError, ValueError) as e:
            raise _wrong(setting, name, f"cannot be imported: {e}") from e
        if not callable(function):
            raise _wrong(setting, name, "is not a function")
        if inspect.iscoroutinefunction(function):
            raise _wrong(setting, name, "is async, but must be a plain function")
        return function

    def store(self) -> JobStore:
        """Return the store at redis_url or, if unset, that of the middleware on
        Dramatiq's global broker, with the options that the settings change.
        """
        options: dict[str, Any] = {
            name: _seconds(name, self._settings[name])
            for name in DURATIONS
            if name in self._settings
        }
        namespace = self._settings.get("namespace")
        if namespace is not None:
            if not isinstance(namespace, str) or not namespace:
                raise _wrong("namespace", namespace, "is not a non-empty string")
            options["namespace"] = namespace
        url = self._settings.get("redis_url")
        if url is None:
            return _middleware_store().replace(**options)
        try:
            return JobStore(str(url), **options)
        except ValueError as e:
            fault = str(e)
        # Raised outside the handler, so that no traceback shows the original error.
        raise ConfigurationError(f"The setting {PREFIX}redis_url is invalid. {fault}")


def read_path(settings: Mapping[str, Any]) -> str:
    """Return the path below which jobs are served, without slashes at its ends.

    Raises:
      ConfigurationError: The setting is not a path.
    """
    path = str(settings.get(PREFIX + "path", SETTINGS["path"])).strip("/")
    if not re.fullmatch(r"((?!\.\.?/)[\w.~-]+/)+", path + "/", re.ASCII):
        raise _wrong("path", path, "is not a path such as job_state or api/jobs")
    return path


def _seconds(name: str, value: object) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(value))
    seconds = float(match[1]) * UNITS[match[2]] if match else 0
    if not 0.001 <= seconds <= MAX_SECONDS:
        raise _wrong(name, value, "is not a duration such as 90, 90s, 15m, 24h or 8d")
    return seconds


def _wrong(name: str, value: object, why: str) -> ConfigurationError:
    return ConfigurationError(f"The setting {PREFIX}{name} = {value!r} {why}.")


def _middleware_store() -> JobStore:
    # Not get_broker(), which would create one.
    broker = dramatiq.broker.global_broker
    if broker is None:
        raise ConfigurationError(
            "pyramid_jobstate does not know where job states are kept: no Dramatiq "
            "broker is set. Import the module that calls dramatiq.set_broker(...) "
            "before the application is created, or set jobstate.redis_url."
        )
    try:
        return middleware_of(broker).store_for(broker)
    except TypeError as e:
        raise ConfigurationError(str(e)) from e
