"""The thread of a worker process that looks after it, once a heartbeat."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import secrets
import socket
import threading
from typing import TYPE_CHECKING

from dramatiq.common import q_name
from redis.exceptions import RedisError, ResponseError

from ..store.connection import LOST, ConnectionsInUse
from ..store.jobstore import records_of
from .recorder import Outage
from .whereabouts import memory_used

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.worker import Worker

    from .ledger import Ledger

log = logging.getLogger("pyramid_jobstate")

REFUSED = (
    "The job state store refuses to say of which ends hooks are to be told. Those that "
    "this process has not written wait until it does: %s: %s"
)


def make_token() -> str:
    """Return a token for this process: see :class:`.WorkerInfo`."""
    # In a container, the pid comes again.
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Presence:
    """The thread of a process with workers, from the boot of the first to the shutdown
    of the last: at once and then once a heartbeat it writes that the process lives, and
    tells the ends of jobs that nobody has told. It waits for nothing that the recorder
    does.

    Parameters:
      broker: The broker of the workers.
      ledger: What is written of the broker's messages.

    Attributes:
      token: The token of the process.
    """

    def __init__(self, broker: Broker, ledger: Ledger) -> None:
        self.token = make_token()
        self._workers: list[Worker] = []
        self._broker = broker
        self._ledger = ledger
        self._store = ledger.store_for(broker)
        self._heartbeat = ledger.heartbeat_for(self._store)
        self._refusal = Outage(log, REFUSED, None)
        self._versions = versions()
        self._is_over = threading.Event()
        self._thread = threading.Thread(
            target=self._loop, name="pyramid_jobstate.presence", daemon=True
        )

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. In a forked child it does not."""
        return self._thread.is_alive()

    def add(self, worker: Worker) -> None:
        """Tell of a worker that has booted."""
        self._workers = [*self._workers, worker]
        if not self.is_alive:
            self._thread.start()

    def remove(self, worker: Worker) -> bool:
        """Tell no more of a worker that has shut down. Return whether it was the last:
        then the thread ends, and is waited for a second at most.
        """
        self._workers = [each for each in self._workers if each is not worker]
        if self._workers:
            return False
        self._is_over.set()
        if self.is_alive:
            self._thread.join(1.0)
        return True

    def _loop(self) -> None:
        while True:
            try:
                self._look()
            except LOST as e:
                self._ledger.note_outage(e)
            except ConnectionsInUse as e:
                self._ledger.note_crowd(e)
            except RedisError as e:
                self._refusal.complain(e)
            except Exception:
                log.exception("A worker could not look for ends that are to be told.")
            else:
                self._ledger.note_answer()
                self._refusal.recover()
            if self._is_over.wait(self._heartbeat):
                break
        # Otherwise it reads silent, and is forgotten later.
        with contextlib.suppress(RedisError):
            records_of(self._store).workers.remove(self.token)

    def _look(self) -> None:
        # The queues of delayed messages do not count.
        workers = self._workers
        queues = {q_name(name) for each in workers for name in [*each.consumers]}
        says = {
            "threads": sum(each.worker_threads for each in workers),
            "busy": len(self._ledger.jobs),
            "queues": sorted(queues),
            "memory": memory_used(),
            "versions": self._versions,
        }
        # Where the store refuses it, the worker is not known.
        with contextlib.suppress(ResponseError):
            records_of(self._store).workers.write(self.token, says)
        records_of(self._store).catch_up()
        self._ledger.hooks.sweep(self._broker, queues)


def versions() -> dict[str, str]:
    """Return the versions of what this process runs, by name, as far as is known."""
    found = {"python": platform.python_version()}
    for name in ("dramatiq", "pyramid_jobstate"):
        # A bundle of an application may have come without the metadata.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
