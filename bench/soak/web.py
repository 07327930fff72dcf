"""The web server: ``python -m bench.soak.web`` prints its port and serves the jobs."""

import asyncio
import logging
import os
import socket
import threading

import uvicorn

from pyramid_jobstate.asgi import asgi_app
from tests.webapp import make_config

from .actors import STALLED_AFTER
from .lag import note_lags, note_waits

#: Shorter than a watcher's patience, so that the server ends streams, too, and longer
#: than a silence that is wrong.
STREAM_MAX_AGE = 38

log = logging.getLogger("soak")


async def serve(server: uvicorn.Server, sock: socket.socket) -> None:
    note_waits(lambda *what: log.warning("a thread waited: %s; the process %s", *what))
    lags = asyncio.create_task(
        note_lags(lambda span: log.warning("the event loop was busy: %s", span))
    )
    await server.serve(sockets=[sock])
    lags.cancel()


def main() -> None:
    end = threading.Timer(float(os.environ["SOAK_SECONDS"]), os._exit, (1,))
    end.daemon = True
    end.start()
    logging.basicConfig(
        level=logging.INFO, format="%(created).3f [%(levelname)s] %(name)s %(message)s"
    )
    settings = {
        "jobstate.redis_url": os.environ["SOAK_STORE"],
        "jobstate.stalled_after": str(STALLED_AFTER),
        "jobstate.stream_max_age": f"{STREAM_MAX_AGE}s",
    }
    config = make_config(None, settings=settings)
    config.include("pyramid_jobstate")
    sock = socket.create_server(("127.0.0.1", 0), backlog=2000)
    server = uvicorn.Server(
        uvicorn.Config(
            asgi_app(config.make_wsgi_app()), log_config=None, access_log=False
        )
    )
    print(sock.getsockname()[1], flush=True)
    asyncio.run(serve(server, sock))


if __name__ == "__main__":
    main()
