"""A server that is far away.

``python -m bench.far HOST PORT SECONDS`` relays to it, each way in so many seconds, and
prints its own port.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit


@contextlib.contextmanager
def far_away(url: str, seconds: float) -> Iterator[str]:
    """Yield the URL of a server for clients to which a round trip takes so long."""
    place = urlsplit(url)
    words = (str(place.hostname), str(place.port), str(seconds / 2))
    with subprocess.Popen(
        [sys.executable, "-m", __name__, *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"redis://127.0.0.1:{int(process.stdout.readline())}/0"
        finally:
            process.kill()


async def relay(host: str, port: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 18):
            loop.call_later(seconds, writer.write, data)
        loop.call_later(seconds, writer.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(host, port)
        await asyncio.gather(carry(reader, ours), carry(theirs, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
