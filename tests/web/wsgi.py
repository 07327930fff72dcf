"""A WSGI server in this process."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import waitress.server


@contextlib.contextmanager
def serving_wsgi(app: Any) -> Iterator[int]:
    """Serve a WSGI application with waitress in a thread, and give its port."""
    sockets: dict[int, Any] = {}
    server = waitress.server.create_server(
        app, map=sockets, host="127.0.0.1", port=0, threads=2
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.task_dispatcher.shutdown()

        def close() -> None:
            server.close()
            server.asyncore.close_all(sockets, ignore_all=True)

        # In its own thread, which may be waiting for the sockets.
        server.trigger.pull_trigger(close)
        thread.join(5)
