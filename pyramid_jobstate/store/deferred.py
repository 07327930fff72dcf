"""A client whose server's port is found when it first connects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import ConnectionPool, Redis

from .connection import FAIL_FAST


class DeferredPool(ConnectionPool):
    """Connections to a server on 127.0.0.1.

    Parameters:
      find_port: Returns the server's port. Called for each new connection.
    """

    def __init__(self, find_port: Callable[[], int]) -> None:
        super().__init__(host="127.0.0.1", port=0, **FAIL_FAST)
        self._find_port = find_port

    def make_connection(self) -> Any:
        self.connection_kwargs["port"] = self._find_port()
        return super().make_connection()


def deferred_client(find_port: Callable[[], int]) -> Redis:
    """Return a client that asks for its server's port when it connects.

    Parameters:
      find_port: Returns the port of a server on 127.0.0.1, which it may start.
    """
    return Redis(connection_pool=DeferredPool(find_port))
