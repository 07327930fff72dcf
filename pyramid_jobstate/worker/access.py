"""How a process reaches its store: directly, or through its recorder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis import exceptions
from redis.exceptions import RedisError

from ..errors import ActorError
from ..store import JobStore, redis_errors, store_beside
from .outage import Outage
from .recorder import Recorder

if TYPE_CHECKING:
    from dramatiq import Broker

log = logging.getLogger(__name__)


class StoreAccess:
    """The store of a JobStateMiddleware, and the recorder that writes to it.

    Parameters:
      store: The store, or None to use the server of a RedisBroker.
      namespace: The prefix of all keys if `store` is None.
      interval: Seconds between two flushes of the recorder.
      heartbeat: Seconds without an update before the recorder confirms that a job is
        still running.
    """

    def __init__(
        self, store: JobStore | None, namespace: str, interval: float, heartbeat: float
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._interval = interval
        self._heartbeat = heartbeat
        self._outage = Outage(log)
        self._recorder: Recorder | None = None
        self._lock = threading.Lock()

    def store_for(self, broker: Broker) -> JobStore:
        """Return the store of the job states.

        Raises:
          ActorError: No store was given and the broker is not a RedisBroker.
        """
        if self._store is None:
            client = getattr(broker, "client", None)
            self._store = store_beside(client, namespace=self._namespace)
        if self._store is None:
            raise ActorError(
                f"JobStateMiddleware() shares the Redis server of a RedisBroker, but "
                f"this broker is a {type(broker).__name__}. Pass the URL of a Redis "
                'server: JobStateMiddleware(url="redis://…").'
            )
        return self._store

    def recorder_for(self, broker: Broker) -> Recorder:
        """Return the recorder of this process, creating it on first use."""
        # Later calls take no lock: a process may fork while it is held.
        if self._recorder is None:
            with self._lock:
                self._recorder = self._recorder or Recorder(
                    self.store_for(broker),
                    interval=self._interval,
                    heartbeat=self._heartbeat,
                    outage=self._outage,
                )
        return self._recorder

    def may_ask(self) -> bool:
        """Return whether a sender should ask the store: see :meth:`.Outage.may_ask`."""
        return self._outage.may_ask()

    def ask(self, broker: Broker, change: Callable[[JobStore], object]) -> bool:
        """Apply a sender's change to the store, and return whether that succeeded."""
        try:
            with redis_errors():
                change(self.store_for(broker))
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
