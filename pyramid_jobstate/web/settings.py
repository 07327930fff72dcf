"""The settings whose names begin with ``jobstate.``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import dramatiq.broker
from dramatiq import Broker
from pyramid.exceptions import ConfigurationError
from pyramid.path import DottedNameResolver
from redis.exceptions import RedisError

from ..job.values import parse_duration
from ..store.arguments import namespace_fault
from ..store.jobstore import JobStore
from ..worker.actors import is_async
from ..worker.brokers import STUB, BrokerSpec, is_default, made_store, masked
from ..worker.ledger import global_broker, ledger_of
from ..worker.message import check_queue
from .permits import WebOutage, authenticated_userid, session_owner

Default = TypeVar("Default")

PREFIX = "jobstate."

#: Every setting without its prefix, with its default. "Settings" in the
#: documentation says what None stands for.
SETTINGS: Mapping[str, str | None] = MappingProxyType(
    {
        "broker": None,
        "redis_url": None,
        "namespace": "jobstate",
        "path": "job_state",
        "expire_in": "24h",
        "active_expire_in": "8d",
        "stalled_after": "15s",
        "max_connections": "100",
        "base_url": None,
        "hooks_queue": None,
        "owner": None,
        "owner_label": None,
        "permits": None,
        "max_uuids": "100",
        "max_streams": None,
        "stream_max_age": "5m",
        "pages_layout": None,
    }
)

DURATIONS = ("expire_in", "active_expire_in", "stalled_after")

NUMBERS = ("max_connections", "max_uuids", "max_streams", "stream_max_age")

#: What Python code may set a setting to, beside a string.
TYPES: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys((*DURATIONS, *NUMBERS), int | float),
        **dict.fromkeys(("owner", "owner_label", "permits"), Callable),
        # Checked where it is read.
        "broker": object,
    }
)

#: The settings of which a broker is made.
BROKER = (
    "broker",
    "redis_url",
    "namespace",
    "hooks_queue",
    "max_connections",
    *DURATIONS,
)


class StreamLimits(NamedTuple):
    """The settings of streams.

    Attributes:
      max_streams: The most streams that a process has open, or None for half the
        descriptors that it may open.
      max_age: Seconds after which a stream ends, so that its client is authorised anew.
    """

    max_streams: int | None
    max_age: float


class Setup(NamedTuple):
    """What the include sets up in an application. It is ``registry.jobstate``, and no
    utility, since a poll reads it five times and an attribute is faster.

    Attributes:
      path: The path of our route to the container.
      owner: Returns the owner of a request's jobs.
      permits: Decides what a request may do.
      base_url: The URL of the application for jobs, or None if it is not set.
      max_uuids: The number of jobs that one request may ask for.
      limits: The settings of streams.
      outage: Logs that the store does not answer.
    """

    path: str
    owner: Callable[..., Any]
    permits: Callable[..., Any]
    base_url: str | None
    max_uuids: int
    limits: StreamLimits
    outage: WebOutage


class Settings:
    """The settings of an application.

    Parameters:
      settings: The settings of its registry.

    The methods raise ConfigurationError if the value of a setting is invalid.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {
            name.removeprefix(PREFIX): value
            for name, value in settings.items()
            if name.startswith(PREFIX)
        }

    def check(self) -> None:
        """Check that every setting is known and has a type that it may have.

        Raises:
          ConfigurationError: One is unknown, or has another type.
        """
        self.check_names()
        for name in self._settings:
            self._value(name)

    def check_names(self) -> None:
        """Check that every setting is known.

        Raises:
          ConfigurationError: One is unknown.
        """
        for name in self._settings:
            if name not in SETTINGS:
                known = ", ".join(PREFIX + known for known in sorted(SETTINGS))
                near = difflib.get_close_matches(name.lower(), SETTINGS, 1)
                meant = f" Did you mean {PREFIX}{near[0]}?" if near else ""
                raise ConfigurationError(
                    f"The setting {PREFIX}{name} is unknown.{meant} Known settings: "
                    f"{known}."
                )

    def path(self) -> str:
        """Return the path below which jobs are served, without slashes at its ends."""
        value = self._value("path")
        path: str = value.strip("/")
        if not re.fullmatch(r"((?!\.\.?/)[\w.~-]+/)+", path + "/", re.ASCII):
            raise _wrong("path", value, "is not a path such as job_state or api/jobs")
        return path

    def max_uuids(self) -> int:
        """Return how many jobs one request may ask for."""
        return self._number(
            "max_uuids", r"[1-9]\d{0,8}", "is not a positive whole number"
        )

    def stream_limits(self) -> StreamLimits:
        """Return how many streams there may be, and how long each lasts."""
        value = self._value("max_streams")
        if value is not None and not re.fullmatch(r"\d{1,9}", str(value), re.ASCII):
            raise _wrong("max_streams", value, "is not a whole number")
        return StreamLimits(
            None if value is None else int(value), self._seconds("stream_max_age")
        )

    def owner(self) -> Callable[..., Any]:
        """Return the function that returns the owner of a request's jobs."""
        if self._settings.get("owner") == "session":
            return session_owner
        return self.function("owner", authenticated_userid)

    def function(self, setting: str, default: Default) -> Callable[..., Any] | Default:
        """Return the function that a setting names, or `default` if it is not set."""
        name = self._value(setting)
        if name is None:
            return default
        if "://" in str(name):
            # Not repeated: it may contain a password.
            raise _wrong(setting, "…://…", "is a URL, not a function")
        function: Callable[..., Any] = self._resolved(setting, name)
        if not callable(function):
            raise _wrong(setting, name, "is not a function")
        if is_async(function):
            raise _wrong(setting, name, "is async, but must be a plain function")
        return function

    def store(self) -> JobStore:
        """Return the store at redis_url or, if unset, that of the middleware on
        Dramatiq's global broker, with the options that the settings change.
        """
        options = self._store_options(self._settings)
        if self._value("broker") is not None:
            # It was made with these settings.
            made = made_store(dramatiq.broker.global_broker)
            if made is not None:
                return made
        if self._value("redis_url") is None:
            if "max_connections" in options:
                raise _wrong(
                    "max_connections",
                    self._value("max_connections"),
                    "needs jobstate.broker or jobstate.redis_url. Pass a "
                    "JobStateMiddleware of your own a max_connections=...",
                )
            return _middleware_store().replace(**options)
        return self._redis_store(options)

    def broker(self) -> BrokerSpec | None:
        """Return what the broker is made from, or None if the application makes one."""
        setting = self._value("broker")
        if setting is None:
            return None
        value = setting
        if isinstance(value, str):
            value = value.strip()
            if not value:
                raise _wrong("broker", value, "is empty")
            if value != STUB and ":/" not in value:
                value = self._named_broker(value)
        if isinstance(value, type) and issubclass(value, Broker):
            fault = "is a class"
        elif is_async(value):
            fault = "is async"
        elif not isinstance(value, (str, Broker)) and not callable(value):
            fault = "is neither a broker nor a function"
        else:
            options = self._store_options(SETTINGS)
            return BrokerSpec(
                value,
                self._value("redis_url"),
                options,
                self.hooks_queue(),
                lambda: self._redis_store(options),
            )
        # An object that is not text may contain a password: show its type.
        shown = setting if isinstance(setting, str) else type(setting).__name__
        raise _wrong(
            "broker",
            shown,
            f"{fault}. Name a broker, or a function that takes the settings and "
            "returns one",
        )

    def hooks_queue(self) -> str | None:
        """Return the queue of the messages that run hooks, or None."""
        name: str | None = self._value("hooks_queue")
        if name is None:
            return None
        if self._value("broker") is None:
            raise _wrong(
                "hooks_queue",
                name,
                "needs jobstate.broker. Pass a JobStateMiddleware of your own a "
                "hooks_queue=...",
            )
        try:
            return check_queue(name.strip())
        except ValueError as e:
            raise ConfigurationError(f"The setting {PREFIX}{e}") from None

    def base_url(self) -> str | None:
        """Return the URL of the application for jobs, without a slash at its end."""
        value = self._value("base_url")
        if value is None:
            return None
        url: str = value.strip().rstrip("/")
        if not is_base_url(url):
            raise _wrong(
                "base_url",
                masked(url) if "@" in url else value,
                "is not a URL such as https://example.com/shop",
            )
        return url

    def pages_layout(self) -> str | None:
        """Return the asset specification of the template in which pages appear."""
        value = self._value("pages_layout")
        if value is not None and not re.fullmatch(r"\s*[\w.]+:[^:]+", value):
            raise _wrong(
                "pages_layout",
                value,
                "is not a template such as myapp:templates/jobs.jinja2",
            )
        return None if value is None else value.strip()

    def read(self, name: str) -> object:
        """Return the value of a setting as it stands."""
        return self._settings.get(name)

    def _value(self, name: str) -> Any:
        """Return a setting, or its default."""
        if name not in self._settings:
            return SETTINGS[name]
        value = self._settings[name]
        if value is None or not isinstance(value, str | TYPES.get(name, str)):
            # Other objects may hold a password: only their type is shown.
            is_plain = value is None or isinstance(value, (int, float))
            raise _wrong(
                name,
                value if is_plain else type(value).__name__,
                "is not a string. Write it as in an ini file, or leave it out",
            )
        return value

    def _named_broker(self, name: str) -> Any:
        """Return what the dotted name of a broker refers to."""
        if not re.fullmatch(r"[\w.]+(:[\w.]+)?", name):
            # Not repeated if it may contain a password.
            shown = "…" if re.search("[@:/]", name) else name
            raise _wrong(
                "broker", shown, f"is neither a URL, nor {STUB!r}, nor a dotted name"
            )
        return self._resolved("broker", name)

    def _store_options(self, names: Collection[str]) -> dict[str, Any]:
        options = {name: self._seconds(name) for name in DURATIONS if name in names}
        if "namespace" in names:
            namespace = self._value("namespace")
            fault = namespace_fault(namespace)
            if fault is not None:
                raise _wrong("namespace", namespace, fault)
            options["namespace"] = namespace
        if "max_connections" in names:
            options["max_connections"] = self._number(
                "max_connections", r"[1-9]\d{0,3}", "is not from 1 to 9999"
            )
        return options

    def _redis_store(self, options: Mapping[str, Any]) -> JobStore:
        try:
            return JobStore(self._value("redis_url"), **options)
        except ValueError as e:
            fault = f"is invalid. {e}"
        except RedisError as e:
            # Only the client of a Cluster connects when it is created.
            fault = f"names a Cluster that cannot be reached: {e}"
        # Raised outside the handler, so that no traceback shows the original error.
        raise ConfigurationError(f"The setting {PREFIX}redis_url {fault}")

    def _number(self, name: str, pattern: str, fault: str) -> int:
        value = self._value(name)
        if not re.fullmatch(pattern, str(value), re.ASCII):
            raise _wrong(name, value, fault)
        return int(value)

    def _seconds(self, name: str) -> float:
        value = self._value(name)
        try:
            return parse_duration(str(value))
        except ValueError as e:
            raise _wrong(name, value, str(e)) from None

    def _resolved(self, setting: str, name: object) -> Any:
        """Return what a dotted name refers to."""
        try:
            return DottedNameResolver(None).maybe_resolve(name)
        except (ImportError, ValueError) as e:
            raise _wrong(setting, name, f"cannot be imported: {e}") from e


def is_base_url(url: str) -> bool:
    """Return whether requests can be made with a URL as their application's."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and re.fullmatch(r"[\w.~%:\[\]-]+", parts.netloc, re.ASCII) is not None
        and bool(parts.hostname)
        # Also where urlsplit() would leave out a line break.
        and re.fullmatch(r"[!-~]+", url) is not None
        and not parts.query + parts.fragment
    )


def _wrong(name: str, value: object, why: str) -> ConfigurationError:
    return ConfigurationError(f"The setting {PREFIX}{name} = {value!r} {why}.")


def _middleware_store() -> JobStore:
    broker = global_broker()
    if broker is None or is_default(broker):
        raise ConfigurationError(
            "pyramid_jobstate does not know where job states are kept: no Dramatiq "
            "broker is set. Set jobstate.broker; or import the module that calls "
            "dramatiq.set_broker(...) before the application is created; or set "
            "jobstate.redis_url."
        )
    try:
        return ledger_of(broker).store_for(broker)
    except TypeError as e:
        raise ConfigurationError(str(e)) from e
