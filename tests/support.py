"""What several tests need."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pyramid_jobstate.embedded import EmbeddedServer

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout: float = 20.0) -> T:
    """Wait until a condition holds, and return the true value that it gave.

    Raises:
      AssertionError: It did not hold within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"{name} still gave {value!r} after {timeout} seconds")
        time.sleep(0.01)


@contextlib.contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """Have a server stand still, which keeps its connections and answers nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)
