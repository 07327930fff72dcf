"""Checks that jobs are read from the store that they are written to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from .connection import Address, place_of

if TYPE_CHECKING:
    from .jobstore import JobStore

log = logging.getLogger("pyramid_jobstate")


class Difference(NamedTuple):
    """How the places of two stores differ.

    Attributes:
      what: The difference, in words, or None if both may be the same server.
      advice: How to make them the same.
    """

    what: str | None
    advice: str


#: The pairs of stores compared so far. Weak keys keep neither store alive.
_compared: WeakKeyDictionary[
    JobStore, WeakKeyDictionary[JobStore, Difference | None]
] = WeakKeyDictionary()


def refusal(
    read: JobStore, written: JobStore, broker: str, advice: str | None = None
) -> str | None:
    """Return an error message if jobs are certainly read from another place than they
    are written to, else None. If the places may differ, log a warning once for each
    pair of stores.

    Parameters:
      read: The store of the web side.
      written: The store of the JobStateMiddleware on a broker.
      broker: What to call that broker in the message.
      advice: How to make the places the same, or None to name settings.
    """
    pairs = _compared.get(read)
    if pairs is None:
        pairs = _compared.setdefault(read, WeakKeyDictionary())
    is_new = written not in pairs
    if is_new:
        pairs[written] = _difference(read, written)
    difference = pairs.get(written)
    if difference is None or (difference.what is None and not is_new):
        return None
    where = (
        f"Job states are read from {read!r}, but the JobStateMiddleware on {broker} "
        f"writes them to {written!r}"
    )
    if difference.what is not None:
        return f"{where}, {difference.what}. {advice or difference.advice}"
    log.warning(
        "%s. If these are not the same server, jobs of that broker will be missing or "
        'read as stalled. See "404" in the troubleshooting guide.',
        where,
    )
    return None


def _difference(read: JobStore, written: JobStore) -> Difference | None:
    if read.namespace != written.namespace:
        return Difference(
            "in another namespace",
            "Use the same namespace in jobstate.namespace, or the store in "
            "config.set_job_store(...), and in JobStateMiddleware(namespace=...).",
        )
    here, there = place_of(read.client), place_of(written.client)
    if _is_same(here, there):
        return None
    return Difference(
        _certain(here, there),
        "Point jobstate.redis_url, or the store in config.set_job_store(...), at the "
        "store of the middleware.",
    )


def _is_same(here: Address | str, there: Address | str) -> bool:
    if isinstance(here, str) or isinstance(there, str):
        return here == there
    # TLS is ignored: a server may be reachable both with and without it.
    return here[:3] == there[:3]


def _certain(here: Address | str, there: Address | str) -> str | None:
    """Return the certain difference between two places, in words, or None."""
    if isinstance(here, str) or isinstance(there, str) or here.host != there.host:
        return None
    if here.port == there.port:
        return "in another database"
    # One server may listen for TLS on a second port.
    return "on another port" if here.is_tls == there.is_tls else None
