"""A client whose server's port is found when it first connects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import ConnectionPool, Redis

from .connection import FAIL_FAST


class DeferredPool(ConnectionPool):
    """Connections to a server on 127.0.0.1.

    Parameters:
      find_port: Returns the server's port.
    """

    def __init__(self, find_port: Callable[[], int]) -> None:
        super().__init__(host="127.0.0.1", port=0, **FAIL_FAST)
        self._find_port = find_port

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        # Not when the connection is made: the pool holds its lock then, and a process
        # that forks meanwhile would keep it locked.
        self.connection_kwargs["port"] = self._find_port()
        return super().get_connection(*args, **kwargs)


def deferred_client(find_port: Callable[[], int]) -> Redis:
    """Return a client that asks for its server's port when it connects.

    Parameters:
      find_port: Returns the port of a server on 127.0.0.1, which it may start.
    """
    return Redis(connection_pool=DeferredPool(find_port))
