"""Streams without a server: what a hub gives to a carrier that only keeps it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from pyramid.i18n import make_localizer
from redis import ConnectionPool

from pyramid_jobstate import JobStore
from pyramid_jobstate.web.push.frames import Viewer
from pyramid_jobstate.web.push.hub import Hub
from pyramid_jobstate.web.push.stream import Stream
from tests.support import wait_for


class Basket:
    """A stream of jobs, and the carrier that keeps what the hub gives it.

    Attributes:
      data: All that it was given.
      is_over: Set when the response is over.
    """

    def __init__(self, hub: Hub, *uuids: str) -> None:
        localizer = make_localizer("en", [])
        viewers = {uuid: Viewer(uuid, f"/{uuid}/", False, localizer) for uuid in uuids}
        self.stream = Stream(viewers, {}, b"", 300)
        self.stream.carrier = self
        self.data = b""
        self.is_over = threading.Event()
        self._hub = hub
        hub.join(self.stream)

    def give(self, data: bytes, is_over: bool) -> None:
        self.data += data
        if is_over:
            self.is_over.set()
        else:
            self._hub.taken(self.stream)

    def drop(self) -> None:
        self.is_over.set()

    def leave(self) -> None:
        """Go, as a client does."""
        self._hub.leave(self.stream)

    @property
    def states(self) -> list[dict[str, Any]]:
        """The states that it was given."""
        lines = self.data.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    @property
    def events(self) -> list[str]:
        """The names of the named events that it was given."""
        lines = self.data.decode().splitlines()
        return [line[7:] for line in lines if line.startswith("event: ")]

    def wait_for_mile(self, mile: int) -> None:
        """Wait until the last state has a certain metric `miles_run`."""
        wait_for(lambda: self.states and self.states[-1].get("miles_run") == mile)


class LendingPool(ConnectionPool):
    """A pool of the application's own, which counts what it lends."""

    lent = 0

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        self.lent += 1
        return super().get_connection(*args, **kwargs)

    def release(self, connection: Any) -> None:
        self.lent -= 1
        super().release(connection)


def end(hub: Hub) -> None:
    """Have a hub's thread end, as after a refusal, and close what it would keep."""
    hub._refused_until = float("inf")
    hub._wake()
    wait_for(lambda: hub._thread is None)
    wait_for(lambda: "jobstate-link" not in [t.name for t in threading.enumerate()])


@contextlib.contextmanager
def hub_of(store: JobStore) -> Iterator[Hub]:
    """Have a hub."""
    hub = Hub(store)
    try:
        yield hub
    finally:
        end(hub)
