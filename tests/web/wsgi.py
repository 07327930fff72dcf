"""A WSGI server in this process."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import waitress.server


@contextlib.contextmanager
def serving_wsgi(app: Any) -> Iterator[int]:
    """Serve a WSGI application with waitress in a thread, and give its port."""
    server = waitress.server.create_server(app, host="127.0.0.1", port=0, threads=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        # What its own tests call, too.
        server.trigger.pull_trigger(server.close)
        server.task_dispatcher.shutdown()
        server.asyncore.close_all(server._map, ignore_all=True)
        thread.join(5)
