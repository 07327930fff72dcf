"""The round trips of threads to servers: counted, met, or the last one of a thread that
acts as a process that dies.
"""

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from redis.connection import AbstractConnection

#: The commands of a handshake.
HANDSHAKE = re.compile(rb"\*\d+\r\n\$\d+\r\n(AUTH|CLIENT|HELLO|SELECT)\r\n")


class Killed(BaseException):
    """Raised in a process that has died, whatever it tries to do."""


@contextlib.contextmanager
def met(
    meet: Callable[[Any, Callable[[], Any]], Any],
    is_ours: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Have a function meet each round trip of this thread, or of those that another
    function takes, but not a handshake. It is passed the connection, and what sends.
    """
    me, send = threading.current_thread(), AbstractConnection.send_packed_command
    is_ours = is_ours or (lambda: threading.current_thread() is me)

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        go = functools.partial(send, self, command, *args, **kwargs)
        packed = command if isinstance(command, bytes) else b"".join(command)
        return meet(self, go) if is_ours() and not HANDSHAKE.match(packed) else go()

    with mock.patch.object(
        AbstractConnection, "send_packed_command", send_packed_command
    ):
        yield


@contextlib.contextmanager
def counting_trips(
    number: int = 0, meanwhile: Callable[[], object] = list
) -> Iterator[list[Any]]:
    """Collect the connection of each round trip of this thread to a server, and have
    something happen before the one of a number, from 1.
    """
    trips: list[Any] = []
    is_others = False

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        nonlocal is_others
        if not is_others:
            trips.append(connection)
            if len(trips) == number:
                is_others = True
                meanwhile()
                is_others = False
        return go()

    with met(meet):
        yield trips


@contextlib.contextmanager
def dying(
    number: int = 0, moment: str = "before", is_dead: Callable[[], bool] = bool
) -> Iterator[Callable[[], bool]]:
    """Have this thread act as a process that dies: "before" or "after" a round trip of
    a number, from 1, or once a function says so. Yields a function that tells whether
    it came so far.
    """
    count = 0

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        nonlocal count
        count += 1
        if not is_dead() and not 0 < number <= count:
            return go()
        if count == number and moment == "after":
            go()
            connection.read_response()
        # Another thread must not get a connection that is half open.
        connection.disconnect()
        raise Killed

    with met(meet), contextlib.suppress(Killed):
        yield lambda: count >= number
