"""What a2wsgi lacks beside other WSGI servers: the connection, the request and the
response as an application finds them there.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..answers import OFFER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

    from .response import AsgiOffer, Message, Receive, Send

#: The name of the connection in the scope of a request.
CONNECTION = "pyramid_jobstate.connection"

#: How much of a body is awaited before a thread is taken for its request.
AHEAD = 64 * 1024

#: How the type of a stream begins.
EVENTS = b"text/event-stream"

ASCII = bytes(range(128))


class ClientGone(ConnectionError):
    """The client has closed the connection before it has sent all of its request."""


class Connection:
    """The connection of one request, with a scope that a2wsgi makes no mistakes with.
    It stays open if the response goes on as a stream.

    Parameters:
      offer: Knows whether a view has made the response a stream.
      scope, receive, send: Those of the ASGI request.

    Attributes:
      scope: The scope for a2wsgi.
      goes_on: Whether the response goes on as a stream.
      is_gone: Whether the client has closed the connection.
    """

    def __init__(
        self,
        offer: AsgiOffer,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        headers = wsgi_headers(scope["headers"])
        self.scope = {
            **scope,
            "headers": list(headers.items()),
            # WSGI's are bytes, in which a2wsgi expects ASCII.
            "query_string": quote_from_bytes(scope["query_string"], ASCII).encode(),
            OFFER: offer,
            CONNECTION: self,
        }
        self._offer = offer
        self._receive = receive
        self._send = send
        #: Whether there may be more of the request's body.
        self._has_body = scope["method"] not in ("GET", "HEAD") or (
            b"content-length" in headers or b"transfer-encoding" in headers
        )
        #: What has come of it, and was not asked for yet.
        self._ahead: deque[Message] = deque()
        self._count = 0
        self._watcher: asyncio.Task[None] | None = None
        self.goes_on = False
        self.is_gone = False

    async def collect(self) -> None:
        """Wait for the request's body, or for the beginning of a large one. No thread
        waits for a client that sends only half of what it has announced.

        Raises:
          ClientGone: The rest will not come.
        """
        size = 0
        ahead: deque[Message] = deque()
        while self._has_body and size < AHEAD:
            message = await self.receive()
            ahead.append(message)
            size += len(message.get("body", b""))
        self._ahead = ahead

    async def receive(self) -> Message:
        """Return the next part of the request's body.

        Raises:
          ClientGone: The rest will not come. What has come must not pass for all of it.
        """
        if self._ahead:
            return self._ahead.popleft()
        if not self._has_body:
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
            raise ClientGone("The client has closed the connection.")
        self._has_body = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the WSGI application's, unless the client has gone."""
        if message["type"] == "http.response.start":
            if self._offer.is_taken:
                message = self._opened(message)
        elif not message.get("more_body"):
            message = {**message, "more_body": self.goes_on}
        else:
            self._count += 1
            # A response in one piece is not worth a task.
            if self._count == 2 and not self._has_body:
                self._watcher = asyncio.ensure_future(self._watch())
        if not self.is_gone:
            try:
                await self._send(message)
            except OSError:
                self.is_gone = True

    def _opened(self, message: Message) -> Message:
        """Return the start of a response that is to go on."""
        headers = dict(message["headers"])
        # A WSGI application around Pyramid's may have changed it.
        self.goes_on = (
            message["status"] == 200
            and headers.get(b"content-type", b"").startswith(EVENTS)
            and b"content-encoding" not in headers
        )
        if not self.goes_on:
            return message
        kept = [h for h in message["headers"] if h[0] != b"content-length"]
        return {**message, "headers": kept}

    async def _watch(self) -> None:
        """Wait until the client has gone. Sending to it need not raise an error."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True

    def unwatch(self) -> None:
        """Leave the channel to others."""
        if self._watcher is not None:
            self._watcher.cancel()


def wsgi_headers(
    headers: list[tuple[bytes, bytes]],
) -> Mapping[bytes, bytes]:
    """Return the headers of a request as WSGI wants them: one of each name, without
    names in which an underscore could pass for a hyphen, and without a length that does
    not count.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in found:
            # HTTP/2 may split cookies.
            found[name] += (b"; " if name == b"cookie" else b", ") + value
        elif b"_" not in name:
            found[name] = value
    if b"transfer-encoding" in found:
        found.pop(b"content-length", None)
    return found


def mended(wsgi_app: WSGIApplication) -> WSGIApplication:
    """Return a WSGI application that finds under a2wsgi what other servers give it."""

    def application(
        environ: dict[str, Any], start_response: StartResponse
    ) -> Iterator[bytes]:
        connection: Connection = environ["asgi.scope"][CONNECTION]
        environ["PATH_INFO"] = path_info(environ["PATH_INFO"], connection.scope)
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.input"] = io.BufferedReader(Body(environ["wsgi.input"].read))
        # Without it WebOb takes no notice of a body in chunks.
        environ["wsgi.input_terminated"] = True
        start = Start(start_response)
        chunks = wsgi_app(environ, start)
        try:
            for chunk in chunks:
                if connection.is_gone:
                    return
                if chunk:
                    start.send()
                    yield chunk
            start.send()
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    return application


def path_info(path: str, scope: Mapping[str, Any]) -> str:
    """Return a request's path below its application.

    Parameters:
      path: The same, as a2wsgi has it.
    """
    whole = scope["path"].encode().decode("latin-1")
    if path and not path.startswith("/"):
        # The application's own path is only a part of its first name.
        path = whole
    if "\ufffd" in scope["path"]:
        # What is not UTF-8 was lost. Below our path the answer is 400.
        raw = unquote_to_bytes(scope.get("raw_path") or b"")
        if raw.decode("utf-8", "replace") == scope["path"]:
            path = raw.decode("latin-1")[len(whole) - len(path) :]
    # As waitress does: a redirect to //name would lead to another host.
    return f"/{path.lstrip('/')}" if path.startswith("/") else path


class Body(io.RawIOBase):
    """The body of a request. That of a2wsgi can only be read in blocks.

    Parameters:
      read: Returns at most so many bytes, and none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer. Return the number of bytes, 0 at the end."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Start:
    """Sends the start of a response with its first bytes, until which the application
    may make another response of it.

    Parameters:
      start_response: Sends it at once.
    """

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], object] | None = None

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        if self._write is not None and exc_info:
            raise exc_info[1]
        self._held = status, headers
        return lambda data: self.send()(data)

    def send(self) -> Callable[[bytes], object]:
        """Send the start, if it has not been sent, and return what sends bytes."""
        if self._write is None:
            if self._held is None:
                raise AssertionError("The application did not call start_response.")
            self._write = self._start_response(*self._held)
        return self._write
