"""Whether jobs are read where they are written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from .connection import Address, place_of

if TYPE_CHECKING:
    from .jobstore import JobStore

log = logging.getLogger("pyramid_jobstate")


class Difference(NamedTuple):
    """How the place of one store differs from that of another.

    Attributes:
      what: In words, or None where two names may mean one server.
      advice: What to make the same.
    """

    what: str | None
    advice: str


#: The pairs that were compared. Neither store is kept alive.
_compared: WeakKeyDictionary[
    JobStore, WeakKeyDictionary[JobStore, Difference | None]
] = WeakKeyDictionary()


def refusal(read: JobStore, written: JobStore, broker: str) -> str | None:
    """Return what is wrong where jobs are certainly read elsewhere than they are
    written, or None. Where they may be, this is logged, once for each pair of stores.

    Parameters:
      read: The store of the web side.
      written: The store of the JobStateMiddleware on a broker.
      broker: What to call that broker.
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
        f"Job states are read at {read!r}, but the JobStateMiddleware on {broker} "
        f"writes them at {written!r}"
    )
    if difference.what is not None:
        return f"{where}, {difference.what}. {difference.advice}"
    log.warning(
        "%s. If these are not the same server, jobs of that broker will be missing, or "
        "read stalled.",
        where,
    )
    return None


def _difference(read: JobStore, written: JobStore) -> Difference | None:
    if read.namespace != written.namespace:
        return Difference(
            "in another namespace",
            "Make jobstate.namespace, or that of the store in "
            "config.set_job_store(...), and JobStateMiddleware(namespace=...) the "
            "same.",
        )
    here, there = place_of(read.client), place_of(written.client)
    if _is_same(here, there):
        return None
    return Difference(
        _certain(here, there),
        "Make jobstate.redis_url, or the store in config.set_job_store(...), and the "
        "store of the middleware the same.",
    )


def _is_same(here: Address | str, there: Address | str) -> bool:
    if isinstance(here, str) or isinstance(there, str):
        return here == there
    # A server may be reached with TLS and without.
    return here[:3] == there[:3]


def _certain(here: Address | str, there: Address | str) -> str | None:
    """Return what certainly differs between two places, or None."""
    if isinstance(here, str) or isinstance(there, str) or here.host != there.host:
        return None
    if here.port == there.port:
        return "in another database"
    # One server may listen for TLS beside.
    return "at another port" if here.is_tls == there.is_tls else None
