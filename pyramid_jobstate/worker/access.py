"""How a process reaches the store: to change something now, or by its recorder."""

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
      store: Where the states are kept, or None for the server that a RedisBroker uses.
      namespace: What the name of each key begins with there.
      interval: Seconds between two writes of the recorder.
      heartbeat: Seconds of silence after which a job is said to be running still.
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
        """Return where the states are kept.

        Raises:
          ActorError: No store was given and the broker is not a RedisBroker.
        """
        if self._store is None:
            client = getattr(broker, "client", None)
            self._store = store_beside(client, namespace=self._namespace)
        if self._store is None:
            raise ActorError(
                f"JobStateMiddleware() shares the Redis server of a RedisBroker, but "
                f"this is a {type(broker).__name__}. Say where job states are to be "
                'kept: JobStateMiddleware(url="redis://…").'
            )
        return self._store

    def recorder_for(self, broker: Broker) -> Recorder:
        """Return the recorder of this process, which the first call makes."""
        # The lock is not for every call: a process may fork while it is held.
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
        """Whether a sender should ask the store: see :meth:`.Outage.may_ask`."""
        return self._outage.may_ask()

    def ask(self, broker: Broker, change: Callable[[JobStore], object]) -> bool:
        """Have the store change something for a sender, and return whether it did."""
        try:
            with redis_errors():
                change(self.store_for(broker))
        except (exceptions.ConnectionError, exceptions.TimeoutError) as e:
            self._outage.begin()
            self._outage.complain(e)
            return False
        except RedisError as e:
            # This job's own trouble: another program has written its key, perhaps.
            log.warning("A job is sent without a state until it starts: %s", e)
            return False
        self._outage.end()
        if self._recorder is None or not self._recorder.is_troubled:
            self._outage.recover()
        return True

    def stop(self) -> None:
        """Have the recorder write what is left, for some seconds at the most."""
        if self._recorder is not None:
            self._recorder.stop()
