"""A connection to Redis that fails as networks do, when and how the test decides."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

#: What happens to a server's reply: it passes, it is lost with its connection, half of
#: it arrives, or it arrives after the client gave up; or the request never arrives.
FAULTS = ("pass", "lose", "cut", "late", "refuse")

#: Seconds, longer than a client of the store waits.
LATE = 0.7

Judge = Callable[[bytes], str]


class FaultyProxy:
    """A proxy between clients and a server on this machine.

    Attributes:
      url: Where clients connect to.
      judge: Returns which of FAULTS happens to a request.
      faults: The number of requests by fault.
      swallowed: The number of requests swallowed.
    """

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._target = (place.hostname or "", place.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{place.path}"
        self.judge: Judge = lambda request: "pass"
        self.faults = dict.fromkeys(FAULTS, 0)
        self.swallowed = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_replies(self, word: str) -> None:
        """Lose the replies to all requests that contain a word."""
        self.judge = lambda request: "lose" if word.encode() in request else "pass"

    def swallow(self) -> None:
        """Lose every request, as firewalls drop packets: the connections stay open."""
        self.judge = lambda request: "swallow"

    def close(self) -> None:
        self._listener.close()
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(
                    target=self._serve, args=(client,), daemon=True
                ).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(self._target)
            with self._lock:
                self._sockets |= {client, server}
            with server:
                while request := client.recv(1 << 20):
                    fault = self.judge(request)
                    if fault == "swallow":
                        self.swallowed += 1
                        continue
                    self.faults[fault] += 1
                    if fault == "refuse":
                        return
                    server.sendall(request)
                    if not self._answer(client, server, fault):
                        return

    def _answer(self, client: socket.socket, server: socket.socket, fault: str) -> bool:
        """Pass on the server's reply until the client sends its next request."""
        client.setblocking(True)
        while True:
            # A request in several pieces stays one, if they come soon.
            server.settimeout(0.001)
            try:
                reply = server.recv(1 << 20)
            except TimeoutError:
                if _is_readable(client):
                    return True
                continue
            if not reply:
                return False
            if fault == "late":
                time.sleep(LATE)
            if fault == "lose":
                return False
            if fault == "cut":
                client.sendall(reply[: len(reply) // 2])
                return False
            client.sendall(reply)


class Moment:
    """A judge that counts requests, as `asked`, and does something before the server
    hears of one, from 0. Its `fault` happens to that one. What `act` has returned is in
    `results`.
    """

    def __init__(
        self, number: int, act: Callable[[], object] = lambda: None, fault: str = "pass"
    ) -> None:
        self._number, self._act, self._fault = number, act, fault
        self.asked = 0
        self.results: list[Any] = []

    def __call__(self, request: bytes) -> str:
        number = self.asked
        self.asked += 1
        if number != self._number:
            return "pass"
        self.results.append(self._act())
        return self._fault


def _is_readable(sock: socket.socket) -> bool:
    sock.settimeout(0)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(None)
    return True


def at_random(seed: int, share: float) -> Judge:
    """Return a judge that lets a share of the requests fail."""
    dice = random.Random(seed)
    return lambda _: dice.choice(FAULTS[1:]) if dice.random() < share else "pass"


@contextlib.contextmanager
def faulty(url: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of a server."""
    proxy = FaultyProxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
