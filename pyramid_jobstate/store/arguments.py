"""Checks of the arguments of a store, whose errors name the argument."""

from __future__ import annotations

from ..job.values import MAX_SECONDS, is_number
from .connection import MAX_CONNECTIONS, MOST_CONNECTIONS, Client, connect
from .scripts import has_tag


def client_of(client: Client | str, max_connections: int | None = None) -> Client:
    """Return a client, made by :func:`connect` if it is given as a URL.

    Parameters:
      max_connections: Its most connections, if it is made here, or None for 100.

    Raises:
      TypeError: `client` is neither a client nor a URL, or `max_connections` is not an
        int, or comes with a client.
      ValueError: The URL is invalid, or `max_connections` is out of range.
    """
    if max_connections is not None:
        check_connections(max_connections)
    if isinstance(client, str):
        return connect(client, max_connections or MAX_CONNECTIONS)
    if not isinstance(client, Client):
        raise TypeError(
            "client must be a redis.Redis, a redis.RedisCluster or a URL, not "
            f"{type_name(client)}."
        )
    if max_connections is not None:
        raise TypeError(
            "max_connections is for a client that is made from a URL. A client of the "
            "application's has a limit of its own."
        )
    return client


def check_connections(number: int) -> None:
    """Check the most connections that a client may have.

    Raises:
      TypeError: It is not an int.
      ValueError: It is not from 1 to 9,999.
    """
    check_int("max_connections", number, 1, MOST_CONNECTIONS)


def type_name(value: object) -> str:
    """Return the full name of an object's class, such as redis.asyncio.client.Redis,
    for an error message.
    """
    cls = type(value)
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def checked_namespace(namespace: str) -> str:
    """Return the prefix of all keys.

    Raises:
      TypeError: It is not a string.
      ValueError: It is not suitable.
    """
    if not isinstance(namespace, str):
        raise TypeError(f"namespace must be a str, not {namespace!r}.")
    fault = namespace_fault(namespace)
    if fault is not None:
        raise ValueError(f"The namespace {namespace!r} {fault}.")
    return namespace


def namespace_fault(namespace: str) -> str | None:
    """Return what is wrong with a namespace, after its name, or None."""
    if not namespace:
        return "is empty"
    if "}" in namespace and not has_tag(namespace):
        # On a Cluster, keys that belong together would lie in different slots.
        return "has a brace that is not part of a hash tag, such as in '{app}:jobs'"
    return None


def check_int(name: str, value: object, least: int, most: int) -> None:
    """Check an argument.

    Raises:
      TypeError: It is not an int.
      ValueError: It is not from `least` to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}.")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}.")


def positive(name: str, seconds: float, longest: float = MAX_SECONDS) -> float:
    """Return a number of seconds.

    Parameters:
      name: What to call it in an error message.
      longest: The most that it may be.

    Raises:
      TypeError: It is not a number.
      ValueError: It is not positive, or greater than `longest`.
    """
    if not is_number(seconds):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}.")
    if not 0 < seconds <= longest:
        raise ValueError(
            f"{name} must be a positive number of seconds, at most {longest:,.0f}, not "
            f"{seconds}."
        )
    return seconds


def check_seconds(name: str, seconds: float) -> None:
    """Check a number of seconds that may be 0.

    Raises:
      TypeError: It is not a number.
      ValueError: It is negative, or too long for the store's clock.
    """
    if not is_number(seconds):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}.")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"{name} must be 0 seconds or more, at most {MAX_SECONDS:,.0f}, not "
            f"{seconds}."
        )
