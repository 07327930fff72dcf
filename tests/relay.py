"""A relay between clients and a server, which the test can hold up, cut and censor."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit


class Relay:
    """Passes on bytes in both directions, as soon as they come."""

    def __init__(self, url: str, refused: Mapping[str, str] = {}) -> None:
        place = urlsplit(url)
        self._target = (place.hostname or "", place.port or 0)
        self.refuse(refused)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._sockets: list[socket.socket] = []
        self._passes, self._takes = threading.Event(), threading.Event()
        self._passes.set()
        self._takes.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self, replies: Mapping[str, str]) -> None:
        """From now on, answer commands, by their first words in upper case, which the
        server never sees. Each must be sent alone.
        """
        self._refused = {
            b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words.encode().split()): (
                b"-%b\r\n" % reply.encode()
            )
            for words, reply in replies.items()
        }

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold up all that the server says."""
        return cleared(self._passes)

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Hold up all that clients say: the server hears of it when this ends."""
        return cleared(self._takes)

    def cut(self) -> None:
        sockets, self._sockets = self._sockets, []
        shut(*sockets)

    def close(self) -> None:
        """Cut all connections and accept none."""
        shut(self._listener)
        self._listener.close()
        self._passes.set()
        self._takes.set()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
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
                reply = self._refusal(client, request)
                self._takes.wait()
                if reply is None:
                    self._pass(client, server, request)
                else:
                    client.sendall(reply)
        shut(client, server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            with contextlib.suppress(OSError):
                while data := server.recv(1 << 20):
                    self._hold(client)
                    self._pass_back(client, data)
            # Closing a socket does not wake the thread that reads from it.
            shut(client, server)

    def _pass(
        self, client: socket.socket, server: socket.socket, request: bytes
    ) -> None:
        """Pass a request on, or raise an OSError, which ends the connection."""
        server.sendall(request)

    def _pass_back(self, client: socket.socket, data: bytes) -> None:
        """Pass on what the server says."""
        client.sendall(data)

    def _refusal(self, client: socket.socket, request: bytes) -> bytes | None:
        return next((r for words, r in self._refused.items() if words in request), None)

    def _hold(self, client: socket.socket) -> None:
        self._passes.wait()


@contextlib.contextmanager
def cleared(event: threading.Event) -> Iterator[None]:
    event.clear()
    try:
        yield
    finally:
        event.set()


def shut(*sockets: socket.socket) -> None:
    """Shut sockets, of which some may have been closed."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def relaying(url: str, refused: Mapping[str, str] = {}) -> contextlib.closing[Relay]:
    """Run a relay in front of a server, which refuses some commands."""
    return contextlib.closing(Relay(url, refused))
