"""The thread of a worker process that looks after it, once a heartbeat."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dramatiq.common import q_name
from redis.exceptions import RedisError

from .recorder import Outage

if TYPE_CHECKING:
    from dramatiq.worker import Worker

log = logging.getLogger("pyramid_jobstate")

AWAY = (
    "The job state store does not say which ends are to be told. Hooks wait until it "
    "does: %s: %s"
)


class Presence:
    """Calls a function at once and then once a heartbeat, in a thread that lives from
    the boot of a worker to its shutdown. It waits for nothing that the recorder does.

    Parameters:
      look: Is called with the queues that the worker consumes.
      heartbeat: Seconds between two calls.
    """

    def __init__(
        self, worker: Worker, look: Callable[[set[str]], None], heartbeat: float
    ) -> None:
        self._worker = worker
        self._look = look
        self._heartbeat = heartbeat
        self._outage = Outage(log, AWAY, None)
        self._is_over = threading.Event()
        self._thread = threading.Thread(
            target=self._loop, name="pyramid_jobstate.presence", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it a second at most."""
        self._is_over.set()
        self._thread.join(1.0)

    def _loop(self) -> None:
        while True:
            try:
                # Those of delayed messages are no queues of their own.
                self._look({q_name(name) for name in [*self._worker.consumers]})
                self._outage.recover()
            except RedisError as e:
                self._outage.complain(e)
            except Exception:
                log.exception("A worker could not look for ends that are to be told.")
            if self._is_over.wait(self._heartbeat):
                return
