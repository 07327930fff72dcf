"""A relay between clients and a server, which the test can hold up, cut and censor."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit


class Relay:
    """Passes on bytes in both directions, as soon as they come.

    Parameters:
      url: The server's URL.
      refused: The replies to commands that the server never sees, by their first
        words in upper case. Each must be sent alone.

    Attributes:
      url: Where clients connect to.
      connections: How many connections it has accepted.
    """

    def __init__(self, url: str, refused: Mapping[str, str] | None = None) -> None:
        place = urlsplit(url)
        self._target = (place.hostname or "", place.port or 0)
        self._refused = {
            b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words.encode().split()): (
                b"-%b\r\n" % reply.encode()
            )
            for words, reply in (refused or {}).items()
        }
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._passes, self._takes = threading.Event(), threading.Event()
        self._passes.set()
        self._takes.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold up all that the server says."""
        self._passes.clear()
        try:
            yield
        finally:
            self._passes.set()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold up all that clients say: the server hears of it when this ends."""
        self._takes.clear()
        try:
            yield
        finally:
            self._takes.set()

    def cut(self) -> None:
        """Cut all connections."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut all connections and accept none."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._passes.set()
        self._takes.set()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for run in self._ask, self._answer:
                    threading.Thread(
                        target=run, args=(client, server), daemon=True
                    ).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := client.recv(1 << 20):
                reply = next(
                    (r for words, r in self._refused.items() if words in request), None
                )
                self._takes.wait()
                if reply is None:
                    server.sendall(request)
                else:
                    client.sendall(reply)
        self._end(client, server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                self._passes.wait()
                client.sendall(data)
            # Closing a socket does not wake the thread that reads from it.
            self._end(client, server)

    def _end(self, *sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relaying(url: str, refused: Mapping[str, str] | None = None) -> Iterator[Relay]:
    """Run a relay in front of a server."""
    relay = Relay(url, refused)
    try:
        yield relay
    finally:
        relay.close()


class Puppet:
    """A server on which the test pulls the strings: it accepts one connection.

    Attributes:
      heard: All that it was sent.
    """

    def __init__(self, *replies: bytes) -> None:
        self._replies = list(replies)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.heard = b""
        self._sock: socket.socket
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._sock, _ = self._listener.accept()
            while self._replies and (data := self._sock.recv(1 << 20)):
                self.heard += data
                self.say(self._replies.pop(0))

    def say(self, data: bytes) -> None:
        """Send bytes."""
        self._sock.sendall(data)

    def hang_up(self) -> None:
        """Close the connection."""
        self._sock.close()

    def __enter__(self) -> Puppet:
        return self

    def __exit__(self, *args: object) -> None:
        self._listener.close()
        with contextlib.suppress(OSError, AttributeError):
            self._sock.close()
