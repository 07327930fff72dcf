"""Opens the store that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from ..store import JobStore, namespace_fault
from .faults import CouldNot, Refused


class Place(NamedTuple):
    """Where the command line says that the jobs are.

    Attributes:
      ini: The ini of the application, or "" with a URL.
      variables: The variables for the ini, as ``name=value``.
      url: The URL of the store, or None.
      namespace: The prefix of its keys, or None for the default.
    """

    ini: str
    variables: Sequence[str] = ()
    url: str | None = None
    namespace: str | None = None


class Opened(NamedTuple):
    """A store, and the application that it belongs to, which must live as long."""

    store: JobStore
    application: object = None


def open_store(place: Place) -> Opened:
    """Return the store of the command line.

    Raises:
      Refused: The URL, the namespace or the ini is wrong.
      CouldNot: The application does not start or has no store, or the Cluster does not
        answer.
    """
    if place.url is None:
        # Only now are Pyramid and the application's classes imported.
        from .application import open_application

        return Opened(*open_application(place.ini, place.variables))
    if place.namespace is not None:
        fault = namespace_fault(place.namespace)
        if fault is not None:
            raise Refused(f"--namespace {place.namespace!r} {fault}.")
    try:
        if place.namespace is None:
            return Opened(JobStore(place.url))
        return Opened(JobStore(place.url, namespace=place.namespace))
    except ValueError as e:
        raise Refused(f"--url: {e}") from None
    except RedisError as e:
        raise CouldNot(f"--url: {e}") from None
