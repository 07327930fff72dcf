"""An ASGI server in this process, and clients that read its streams."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pyramid_jobstate.asgi import AsgiApplication
from tests.asgi import EVENTS, Event, events_of
from tests.support import wait_for


class StreamClient(contextlib.AbstractContextManager["StreamClient"]):
    """A client that has asked for a stream. A thread reads what it is sent."""

    def __init__(
        self, port: int, path: str, user: str | None = "alice", **headers: str
    ) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sent = {} if user is None else {"X-User": user}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", path, headers={"Accept": EVENTS, **sent})
        self._sock: Any = self._connection.sock
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers
        self.body = b""
        self.is_stream = self.headers.get_content_type() == EVENTS
        self.is_over = threading.Event()
        if self.is_stream:
            threading.Thread(target=self._read, daemon=True).start()
        else:
            self.body = self._response.read()
            self.is_over.set()

    def _read(self) -> None:
        text = ""
        # The last two if it is closed meanwhile.
        errors = OSError, http.client.HTTPException, ValueError, AttributeError
        with contextlib.suppress(*errors):
            while line := self._response.readline():
                text += line.decode()
                if line == b"\n":
                    for event in events_of(text):
                        self._events.put(event)
                    text = ""
        self.is_over.set()
        self._events.put(None)

    def next(self, timeout: float = 20) -> Event:
        """Return the next event, or raise EOFError if the stream is over."""
        event = self._events.get(timeout=timeout)
        if event is None:
            self._events.put(None)
            raise EOFError
        return event

    def until(self, condition: Callable[[Event], object], timeout: float = 20) -> Event:
        """Return the first event for which a condition holds."""
        while not condition(event := self.next(timeout)):
            pass
        return event

    def rest(self, timeout: float = 20) -> list[Event]:
        """Return the events until the stream is over."""
        events = []
        with contextlib.suppress(EOFError):
            while True:
                events.append(self.next(timeout))
        return events

    def close(self) -> None:
        """Go, as a page does that is closed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def __exit__(self, *args: object) -> None:
        self.close()


@contextlib.contextmanager
def serving(app: AsgiApplication, **options: Any) -> Iterator[int]:
    """Serve an application with uvicorn in a thread, and give its port."""
    config = uvicorn.Config(
        app, port=0, log_config=None, timeout_graceful_shutdown=2, **options
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
