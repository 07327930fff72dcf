"""The carrier of a stream under ASGI: from the hub's thread to the server's loop."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hub import Hub
    from .stream import Stream

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Bytes that a server is given at a time, so that it holds no more of what a slow
#: client has not received.
PIECE = 64 * 1024


class LoopQueue:
    """What the hub's thread gives to the carriers of one event loop in a round. The
    loop is woken once for all of it.

    Parameters:
      loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly, since it is a value of a dictionary of which the loop is the key.
        self._loop = weakref.ref(loop)
        self._items: list[tuple[AsgiCarrier, bytes, bool]] = []

    def add(self, carrier: AsgiCarrier, data: bytes, is_over: bool) -> None:
        """Give data to a carrier, and say whether the response is over."""
        self._items.append((carrier, data, is_over))

    def deliver(self) -> None:
        """Hand everything over."""
        items, self._items = self._items, []
        loop = self._loop()
        # A closed loop raises it: the server has stopped.
        with contextlib.suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(_deliver, items)


def _deliver(items: list[tuple[AsgiCarrier, bytes, bool]]) -> None:
    for carrier, data, is_over in items:
        carrier.receive(data, is_over)


class AsgiCarrier:
    """Carries one stream. Implements :class:`.stream.Carrier`.

    Parameters:
      hub: The hub that feeds the stream.
      stream: The stream.
      queue: The queue of the loop in which it runs.
    """

    __slots__ = ("_data", "_hub", "_is_over", "_queue", "_stream", "_waiter")

    def __init__(self, hub: Hub, stream: Stream, queue: LoopQueue) -> None:
        self._hub = hub
        self._stream = stream
        self._queue = queue
        self._data = b""
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None
        stream.carrier = self

    # The hub's thread

    def give(self, data: bytes, is_over: bool) -> None:
        self._queue.add(self, data, is_over)
        self._hub.later(self._queue.deliver)

    def drop(self) -> None:
        # What has not been sent is freed at once.
        self._data = b""
        self.give(b"", True)

    # The loop

    def receive(self, data: bytes, is_over: bool) -> None:
        """Take what the hub's thread has given."""
        self._data = data
        self._is_over = self._is_over or is_over
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self, receive: Receive, send: Send) -> None:
        """Send the stream until it is over or its client has gone. The response has
        been started.

        Parameters:
          receive, send: The channels of the ASGI request.
        """
        watcher = asyncio.ensure_future(self._leave(receive))
        try:
            self._hub.join(self._stream)
            while not self._is_over:
                await self._send_next(send)
                self._hub.taken(self._stream)
            if not watcher.done():
                await send({"type": "http.response.body", "body": b""})
        except OSError:
            # Some servers raise it when the client has gone, and the hub does if the
            # process has no thread or descriptor left for it.
            pass
        finally:
            watcher.cancel()
            self._hub.leave(self._stream)

    async def _send_next(self, send: Send) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            # It keeps the loop.
            self._waiter = None
        start = 0
        while start < len(self._data):
            # Not kept in a variable, so that drop() frees the rest.
            piece = self._data[start : start + PIECE]
            start += PIECE
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._data = b""

    async def _leave(self, receive: Receive) -> None:
        """Wait until the client has gone."""
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self.receive(b"", True)
