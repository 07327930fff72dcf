"""A stream: what one response has been told of its jobs, and what it is told next."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from .frames import Frame, Viewer, identified

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes that a stream is given at a time, unless one event is larger.
CHUNK = 64 * 1024

#: The store has not answered for a while. The empty id makes a client that reconnects
#: get all states again: it does not show them any more.
AWAY = b"id:\nevent: away\ndata: 503\n\n"


class Carrier(Protocol):
    """What brings a stream's bytes to its client."""

    def give(self, data: bytes, is_over: bool) -> None:
        """Send data, and end the response if it is over. Called by the hub's thread,
        and only when the carrier has sent what it was given before.
        """

    def drop(self) -> None:
        """End the response, whatever has not been sent. Called by the hub's thread."""


class Stream:
    """The state of one response. Only the hub's thread touches it after it has joined.

    Parameters:
      viewers: How the request sees each job that it was shown, by the uuid under which
        it asked.
      sent: The frames that the client has, or gets with the first chunk.
      first: The first chunk.
      max_age: Seconds after which it ends.

    Attributes:
      missed: The jobs whose newest state the client lacks, in order.
      is_ready: Whether its carrier has sent all that it was given.
      given_at: When it was last given something.
      unsent: The bytes that it was given last and has not sent yet.
      is_away: Whether the client was told that the store does not answer.
      left: The jobs that may still change.
    """

    __slots__ = (
        "_sent",
        "_tag",
        "carrier",
        "ends_at",
        "first",
        "given_at",
        "is_away",
        "is_ready",
        "left",
        "missed",
        "unsent",
        "viewers",
    )

    def __init__(
        self,
        viewers: Mapping[str, Viewer],
        sent: Mapping[str, Frame],
        first: bytes,
        max_age: float,
    ) -> None:
        self.viewers = viewers
        self.first = first
        self._sent = {uuid: frame.digest for uuid, frame in sent.items()}
        self._tag = tag_of(sent)
        self.carrier: Carrier
        self.missed: dict[str, None] = {}
        self.is_ready = True
        self.given_at = time.monotonic()
        self.unsent = 0
        self.is_away = False
        self.left = len(viewers)
        # Not all at once: the clients of a process that was just started come again.
        self.ends_at = self.given_at + max_age * random.uniform(0.8, 1)

    def has(self, uuid: str, frame: Frame) -> bool:
        """Return whether the client has this state of a job."""
        return self._sent.get(uuid) == frame.digest

    def forget(self) -> None:
        """Send all states again, since the client no longer shows them."""
        self._sent.clear()
        self._tag = 0

    def next_chunk(self, news: Callable[[str], Frame | None]) -> bytes:
        """Return the next events of the jobs in `missed`: at most CHUNK bytes of them,
        or one.

        Parameters:
          news: Returns the frame of a job, or None if it is gone.
        """
        parts: list[bytes] = []
        size = 0
        is_alone = len(self.viewers) == 1
        while self.missed:
            uuid = next(iter(self.missed))
            frame = news(uuid)
            if frame is None:
                part = gone(uuid)
            elif self.has(uuid, frame):
                part = b""
            else:
                part = frame.alone if is_alone else frame.block
            if parts and size + len(part) > CHUNK:
                break
            del self.missed[uuid]
            if part:
                parts.append(part)
                size += len(part)
            if frame is None:
                self._tag ^= self._sent.pop(uuid, 0)
            elif part:
                self._tag ^= frame.digest ^ self._sent.get(uuid, 0)
                self._sent[uuid] = frame.digest
        if parts and not is_alone:
            parts[-1] = identified(self._tag, parts[-1])
        return b"".join(parts)


def tag_of(frames: Mapping[str, Frame]) -> int:
    """Return the id of a client that has these states, whatever their order."""
    tag = 0
    for frame in frames.values():
        tag ^= frame.digest
    return tag


def gone(uuid: str) -> bytes:
    """Return the event that tells a client to ask for a job by a poll.

    Parameters:
      uuid: The uuid under which it was asked for. What cannot be one is quoted: a line
        break would begin another event.
    """
    return b"event: gone\ndata: %b\n\n" % quote(uuid).encode()


def beat(millis: int) -> bytes:
    """Return a sign of life.

    Parameters:
      millis: The store's time.
    """
    return b"event: beat\ndata: %d\n\n" % millis


def opening(millis: int) -> bytes:
    """Return the beginning of a stream: when to come again after its end, and a beat.
    A client that hears nothing would suspect its proxy of buffering.
    """
    return b"retry: %d\n%b" % (random.randint(1000, 3000), beat(millis))
