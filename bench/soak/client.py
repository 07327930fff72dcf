"""A persistent connection to a web server on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

#: The seconds that a response, or the head of a stream, may take.
TIMEOUT = 15.0

EVENTS = "text/event-stream"


class Answer(NamedTuple):
    """A response.

    Attributes:
      status: The status code.
      headers: The headers, with names in lower case.
      body: The body; empty if it is a stream.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith(EVENTS)


class Event(NamedTuple):
    """An event of a stream.

    Attributes:
      name: "message" for a state.
      data: Its data.
      id: Its id, or None.
      at: When it arrived.
    """

    name: str
    data: str
    id: str | None
    at: float


class Connection:
    """Sends one request after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._text = b""
        self._chunk: int | None = None

    async def ask(self, method: str, path: str, **headers: str) -> Answer:
        """Return the response to a request. If it is a stream, `next_event` reads it.

        Raises:
          OSError: The connection failed, or no response came in time.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._ask(method, path, headers)
        except (OSError, EOFError) as e:
            self.close()
            raise OSError(str(e)) from e

    async def next_event(self, timeout: float) -> Event | None:
        """Return the next event of the stream, or None if none comes in time.

        Raises:
          EOFError: The server has ended the stream.
          OSError: The stream broke off.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    block = await self._next_block()
                    fields = dict(parse_field(line) for line in block.split("\n"))
                    if "data" in fields:
                        name = fields.get("event", "message")
                        id_ = fields.get("id")
                        return Event(name, fields["data"], id_, time.time())
        except TimeoutError:
            return None
        except asyncio.IncompleteReadError as e:
            raise OSError(str(e)) from e

    async def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 0"]
        lines += [f"{name.replace('_', '-')}: {v}" for name, v in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.rstrip().split("\r\n")
        pairs = (line.partition(":") for line in rest)
        found = {name.lower(): value.strip() for name, _, value in pairs}
        answer = Answer(int(first.split()[1]), found, b"")
        if answer.is_stream:
            return answer
        body = await reader.readexactly(int(found.get("content-length", 0)))
        if found.get("connection", "").lower() == "close":
            self.close()
        return answer._replace(body=body)

    async def _next_block(self) -> str:
        """Return the lines up to the next empty one. A call that is cancelled loses
        nothing.
        """
        assert self._streams is not None
        reader, _ = self._streams
        while b"\n\n" not in self._text:
            if self._chunk is None:
                self._chunk = int(await reader.readuntil(b"\r\n"), 16)
            data = await reader.readexactly(self._chunk + 2)
            if not self._chunk:
                raise EOFError
            self._text += data[:-2]
            self._chunk = None
        block, _, self._text = self._text.partition(b"\n\n")
        return block.decode()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        self._text = b""
        self._chunk = None


def parse_field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.removeprefix(" ")
