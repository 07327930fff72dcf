"""An ASGI server in this process, and clients that read its streams."""

import contextlib
import http.client
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
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sent = {} if user is None else {"X-User": user}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", path, headers={"Accept": EVENTS, **sent})
        self._sock: Any = self._connection.sock
        self._response = self._connection.getresponse()
        self.status, self.headers = self._response.status, self._response.headers
        self.is_stream = self.headers.get_content_type() == EVENTS
        self.is_over = threading.Event()
        self.body, self._count = b"", 0
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        if not self.is_stream:
            thread.join()

    def _read(self) -> None:
        # The last two if it is closed meanwhile.
        errors = OSError, http.client.HTTPException, ValueError, AttributeError
        with contextlib.suppress(*errors):
            while data := self._response.read1(65536):
                self.body += data
        self.is_over.set()

    def next(self) -> Event:
        count = self._count
        wait_for(lambda: self.is_over.is_set() or len(events_of(self.body)) > count)
        self._count += 1
        return events_of(self.body)[count]

    def until(self, condition: Callable[[Event], object]) -> Event:
        """Return the first event for which a condition holds."""
        while not condition(event := self.next()):
            pass
        return event

    def __exit__(self, *args: object) -> None:
        """Go, as a page does that is closed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


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
