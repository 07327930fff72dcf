"""A persistent connection to a web server on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

#: The seconds that a response may take.
TIMEOUT = 15.0


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Sends one request after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, **headers: str) -> Answer:
        """Return the response to a request.

        Raises:
          OSError: The connection failed, or no response came in time.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._ask(method, path, headers)
        except (OSError, EOFError) as e:
            self.close()
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
        body = await reader.readexactly(int(found.get("content-length", 0)))
        if found.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(first.split()[1]), found, body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
