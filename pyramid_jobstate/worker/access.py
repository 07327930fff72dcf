"""How a process reaches its store: directly, or through its recorder."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from redis import exceptions
from redis.exceptions import RedisError

from ..store import JobStore, checked_namespace, positive, redis_errors, type_name
from .recorder import Outage, Recorder, watch_forks

if TYPE_CHECKING:
    from dramatiq import Broker

    from ..store import Client, Records

log = logging.getLogger(__name__)

#: The longest interval or heartbeat in seconds: a day. No thread can wait for ever.
LONGEST = 86400.0


def given_store(
    store: JobStore | None, url: str | None, client: Client | None, namespace: str
) -> JobStore | None:
    """Return the store that the arguments of a JobStateMiddleware name, or None if they
    leave it to the broker.

    Raises:
      TypeError: Several of them name a store, or one has the wrong type.
      ValueError: The URL or the namespace is invalid.
    """
    if sum(x is not None for x in (store, url, client)) > 1:
        raise TypeError("Pass JobStateMiddleware one of store, url and client.")
    # Without the value: a URL may contain a password.
    if store is not None and not isinstance(store, JobStore):
        raise TypeError(
            f"store must be a JobStore, not {type_name(store)}. Pass a URL as url=, or "
            "a Redis client as client=."
        )
    if url is not None and not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type_name(url)}.")
    checked_namespace(namespace)
    place = url if client is None else client
    return store if place is None else JobStore(place, namespace=namespace)


def usual_heartbeat(store: JobStore) -> float:
    """Return after how many seconds without an update a running job is confirmed: 5, or
    less if the job would otherwise read stalled, or its record expire.
    """
    return min(5.0, store.stalled_after / 3, store.active_expire_in / 3)


class StoreOwner(Protocol):
    """A JobStateMiddleware, which knows its store."""

    def store_for(self, broker: Broker, /) -> JobStore:
        """Return the store for a broker."""


class StoreAccess:
    """The store of a JobStateMiddleware, and the recorder that writes to it.

    Parameters:
      owner: The middleware, which owns this object and is therefore referenced weakly.
      interval: Seconds between two flushes of the recorder.
      heartbeat: Seconds without an update before the recorder confirms that a job is
        still running, or None: see :func:`usual_heartbeat`.

    Raises:
      TypeError, ValueError: interval or heartbeat is not a positive number of seconds.
    """

    def __init__(
        self,
        owner: StoreOwner,
        interval: float,
        heartbeat: float | None,
    ) -> None:
        self._owner = weakref.ref(owner)
        self._interval = positive("interval", interval, LONGEST)
        if heartbeat is not None:
            positive("heartbeat", heartbeat, LONGEST)
        self._heartbeat = heartbeat
        self._outage = Outage(log)
        self._recorder: Recorder | None = None
        self._lock = threading.Lock()
        # Early, so that the fork hooks of the application run after this.
        watch_forks()

    def _store(self, broker: Broker) -> JobStore:
        owner = self._owner()
        assert owner is not None
        return owner.store_for(broker)

    def recorder_for(self, broker: Broker) -> Recorder:
        """Return the recorder of this process, creating it on first use."""
        # Later calls take no lock: a process may fork while it is held.
        if self._recorder is None:
            with self._lock:
                store = self._store(broker)
                self._recorder = self._recorder or Recorder(
                    store,
                    interval=self._interval,
                    heartbeat=self._heartbeat or usual_heartbeat(store),
                    outage=self._outage,
                )
        return self._recorder

    def may_ask(self) -> bool:
        """Return whether a sender should ask the store: see :meth:`.Outage.may_ask`."""
        return self._outage.may_ask()

    def ask(self, broker: Broker, change: Callable[[Records], object]) -> bool:
        """Apply a sender's change to the store, and return whether that succeeded."""
        try:
            with redis_errors():
                change(self._store(broker).records)
        except (exceptions.ConnectionError, exceptions.TimeoutError) as e:
            self._outage.begin()
            self._outage.complain(e)
            return False
        except RedisError as e:
            # Only this job is affected: another program may have written its key.
            log.warning(
                "The store refused to note that a job is sent. Until the job starts, "
                "its state may be missing or read stalled: %s",
                e,
            )
            return False
        self._outage.end()
        if self._recorder is None or not self._recorder.is_troubled:
            self._outage.recover()
        return True

    def stop(self) -> None:
        """Have the recorder write what is left, within a few seconds."""
        if self._recorder is not None:
            self._recorder.stop()
