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
        self._refused = refusals(refused or {})
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

    def refusal_of(self, request: bytes) -> bytes | None:
        """Return the reply to a command that the server never sees, or None."""
        found = (r for words, r in self._refused.items() if words in request)
        return next(found, None)

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
                reply = self.refusal_of(request)
                self._takes.wait()
                (server if reply is None else client).sendall(reply or request)
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


def refusals(replies: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the replies to commands, by their first words, as bytes."""
    return {
        b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words.encode().split()): (
            b"-%b\r\n" % reply.encode()
        )
        for words, reply in replies.items()
    }


@contextlib.contextmanager
def relaying(url: str, refused: Mapping[str, str] | None = None) -> Iterator[Relay]:
    """Run a relay in front of a server."""
    relay = Relay(url, refused)
    try:
        yield relay
    finally:
        relay.close()


class TrackingRelay(Relay):
    """A relay that leaves commands alone, and holds up, loses or falsifies the
    connections on which clients are told of changes.

    Attributes:
      asked: What was asked on them.
      is_holding: Whether it holds back what the server has said there.
      greeting: What it says by itself when such a connection begins.
    """

    def __init__(self, url: str) -> None:
        self._told: list[socket.socket] = []
        self._reads = threading.Event()
        self._reads.set()
        self.asked = b""
        self.is_holding = False
        self.greeting = b""
        super().__init__(url, {})

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._told)

    def refuse(self, **replies: str) -> None:
        """Answer commands there from now on: `HELLO_3="ERR no"`. Without replies, none.
        Those before it are answered on all connections: `HELLO_3` and
        `CLIENT_TRACKING`.
        """
        given = {words.replace("_", " "): reply for words, reply in replies.items()}
        self._refused = refusals(given)

    def lose(self) -> None:
        """Cut them."""
        for sock in self._told:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def say(self, data: bytes) -> None:
        """Send bytes as if the server said them."""
        for sock in self._told:
            sock.sendall(data)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Read nothing of what is asked there."""
        self._reads.clear()
        try:
            yield
        finally:
            self._reads.set()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := client.recv(1 << 20):
                if client in self._told:
                    self.asked += request
                    self._reads.wait()
                elif b"TRACKING" in request:
                    self._told.append(client)
                    client.sendall(self.greeting)
                is_told = client in self._told or b"HELLO" in request
                reply = self.refusal_of(request) if is_told else None
                (server if reply is None else client).sendall(reply or request)
        with contextlib.suppress(ValueError):
            self._told.remove(client)
        self._end(client, server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if client in self._told and not self._passes.is_set():
                    self.is_holding = True
                    self._passes.wait()
                    self.is_holding = False
                client.sendall(data)
            self._end(client, server)


@contextlib.contextmanager
def tracking(url: str) -> Iterator[TrackingRelay]:
    """Run a relay of this kind in front of a server."""
    relay = TrackingRelay(url)
    try:
        yield relay
    finally:
        relay.close()
