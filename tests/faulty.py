"""A connection to Redis that fails as networks do, when and how the test decides."""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from tests.relay import Relay

#: What happens to a server's reply: it passes, it is lost with its connection, half of
#: it arrives, or it arrives after the client gave up; or the request never arrives.
FAULTS = ("pass", "lose", "cut", "late", "refuse")

#: Seconds, longer than a client of the store waits.
LATE = 0.7

Judge = Callable[[bytes], str]


class FaultyProxy(Relay):
    """A relay whose connections fail.

    Attributes:
      judge: Returns which of FAULTS happens to a request.
      faults: The number of requests by fault.
    """

    def __init__(self, url: str) -> None:
        self.judge: Judge = lambda request: "pass"
        self.faults = dict.fromkeys(FAULTS, 0)
        self._current: dict[socket.socket, str] = {}
        super().__init__(url)

    def lose_replies(self, word: str) -> None:
        self.judge = lambda request: "lose" if word.encode() in request else "pass"

    def lose_each_reply_once(self) -> None:
        """Lose the first reply to each call of a script, which the client repeats."""
        called: set[bytes] = set()

        def judge(request: bytes) -> str:
            if b"EVAL" not in request or request in called:
                return "pass"
            called.add(request)
            return "lose"

        self.judge = judge

    def _pass(
        self, client: socket.socket, server: socket.socket, request: bytes
    ) -> None:
        fault = self.judge(request)
        self.faults[fault] += 1
        if fault == "refuse":
            raise ConnectionError
        self._current[client] = fault
        server.sendall(request)

    def _pass_back(self, client: socket.socket, data: bytes) -> None:
        fault = self._current[client]
        if fault == "late":
            time.sleep(LATE)
        if fault == "cut":
            client.sendall(data[: len(data) // 2])
        if fault in ("lose", "cut"):
            raise ConnectionError
        client.sendall(data)


class Moment:
    """A judge that counts requests, as `asked`, and does something before the server
    hears of one, from 0. What `act` has returned is in `results`.
    """

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self._number, self._act = number, act
        self.asked = 0
        self.results: list[Any] = []

    def __call__(self, request: bytes) -> str:
        self.asked += 1
        if self.asked - 1 == self._number:
            self.results.append(self._act())
        return "pass"


def faulty(url: str) -> contextlib.closing[FaultyProxy]:
    """Run a proxy in front of a server."""
    return contextlib.closing(FaultyProxy(url))
