"""An ASGI server in this process, and clients that read its streams."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import uvicorn

from pyramid_jobstate.asgi import AsgiApplication
from tests.support import wait_for

#: Seconds that a client waits for an event.
TIMEOUT = 20.0


class Event(NamedTuple):
    """An event of a stream.

    Attributes:
      name: "message" for a state.
      data: Its data.
      id: Its id, or None.
      at: When it arrived, as `time.monotonic()` gives it.
    """

    name: str
    data: str
    id: str | None
    at: float

    @property
    def state(self) -> dict[str, Any]:
        """The state of a job that it holds."""
        assert self.name == "message", self
        state: dict[str, Any] = json.loads(self.data)
        return state


class StreamClient:
    """A client that has asked for a stream. A thread reads what it is sent.

    Attributes:
      status: The status of the response.
      headers: Its headers.
      body: The body, unless it is an event stream.
    """

    def __init__(
        self, port: int, path: str, user: str | None = "alice", **headers: str
    ) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sent = {"Accept": "text/event-stream"}
        if user is not None:
            sent["X-User"] = user
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", path, headers=sent)
        sock = self._connection.sock
        assert sock is not None
        self._sock: socket.socket = sock
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers
        self.body = b""
        self.is_stream = self.headers.get_content_type() == "text/event-stream"
        self.is_over = threading.Event()
        if self.is_stream:
            threading.Thread(target=self._read, daemon=True).start()
        else:
            self.body = self._response.read()
            self.is_over.set()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        with contextlib.suppress(
            # The last two if it is closed meanwhile.
            OSError,
            http.client.HTTPException,
            ValueError,
            AttributeError,
        ):
            while line := self._response.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name.rstrip(":")] = value
                elif "data" in fields and "retry" not in fields:
                    self._events.put(
                        Event(
                            fields.get("event", "message"),
                            fields["data"],
                            fields.get("id"),
                            time.monotonic(),
                        )
                    )
                if not name:
                    fields = {}
        self.is_over.set()
        self._events.put(None)

    def next(self, timeout: float = TIMEOUT) -> Event:
        """Return the next event.

        Raises:
          EOFError: The stream is over.
          queue.Empty: None has come in time.
        """
        event = self._events.get(timeout=timeout)
        if event is None:
            self._events.put(None)
            raise EOFError
        return event

    def until(
        self, condition: Callable[[Event], object], timeout: float = TIMEOUT
    ) -> Event:
        """Return the first event for which a condition holds."""
        deadline = time.monotonic() + timeout
        while True:
            event = self.next(max(0.01, deadline - time.monotonic()))
            if condition(event):
                return event

    def rest(self, timeout: float = TIMEOUT) -> list[Event]:
        """Return the events until the stream is over."""
        events = []
        with contextlib.suppress(EOFError):
            while True:
                events.append(self.next(timeout))
        return events

    def is_silent(self, seconds: float) -> bool:
        """Return whether no event comes for a while."""
        try:
            event = self.next(seconds)
        except queue.Empty:
            return True
        raise AssertionError(f"{event} came")

    def close(self) -> None:
        """Go, as a page does that is closed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def __enter__(self) -> StreamClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


@contextlib.contextmanager
def serving(app: AsgiApplication, **options: Any) -> Iterator[int]:
    """Serve an application with uvicorn in a thread, and give its port.

    Parameters:
      options: Options of uvicorn's Config.
    """
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
