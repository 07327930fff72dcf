"""`python -m demo`: everything that the demo needs, in one terminal.

This process is the web server. It starts a Dramatiq worker, and a Redis-compatible
server unless JOBSTATE_REDIS_URL names one that is running. All of them end together,
and their data is deleted unless JOBSTATE_DEMO_DATA names a folder for it.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from demo import main as make_app
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.embedded import EmbeddedServer

HOST = "127.0.0.1"
PORT = 6543

WELCOME = """
  Finish Line, a demo of pyramid_jobstate

    Open     {url}
    Log in   as alice, bob or grace (an admin): one click, no password
    Stop     Ctrl-C
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--host", default=HOST, help=f"by default {HOST}")
    parser.add_argument(
        "--port", type=int, help=f"by default {PORT}, or a free one if that is taken"
    )
    args = parser.parse_args()
    try:
        listener = listen(args.host, args.port)
    except (OSError, OverflowError) as e:
        port = PORT if args.port is None else args.port
        sys.exit(f"The demo cannot listen on {args.host}, port {port}: {e}")

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, leave)
    parts = Parts()
    with listener, contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as up:
        if "JOBSTATE_DEMO_DATA" not in os.environ:
            data = tempfile.TemporaryDirectory(prefix="jobstate-demo-")
            os.environ["JOBSTATE_DEMO_DATA"] = up.enter_context(data)
        if "JOBSTATE_REDIS_URL" not in os.environ:
            server = up.enter_context(EmbeddedServer())
            os.environ["JOBSTATE_REDIS_URL"] = server.url
            parts.add("Redis server", lambda: answers(server.port))
        worker = up.enter_context(start_worker())
        parts.add("worker", lambda: worker.poll() is None)
        up.enter_context(parts)
        serve(listener)
    if parts.failed:
        sys.exit(f"The {parts.failed} has ended, and with it the demo.")


def leave(signum: int, frame: Any) -> None:
    """Shut everything down, once, however many signals arrive."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens at the port, by default the usual one, or a free one
    if that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, PORT if port is None else port), family=family
        )
    except OSError:
        if port is not None:
            raise
        return socket.create_server((host, 0), family=family)


def serve(listener: socket.socket) -> None:
    """Serve the application until a signal stops it."""
    config = uvicorn.Config(
        asgi_app(make_app({})),
        log_level="warning",
        # Without it, a client that reads nothing could keep the server from stopping.
        timeout_graceful_shutdown=2,
    )
    host, port = listener.getsockname()[:2]
    if ":" in host:
        host = f"[{host}]"
    print(WELCOME.format(url=f"http://{host}:{port}"), flush=True)
    uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def start_worker() -> Iterator[subprocess.Popen[bytes]]:
    # In its own session: Ctrl-C must not reach it before this process.
    worker = subprocess.Popen(
        [sys.executable, "-m", "demo.worker"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(4)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def answers(port: int) -> bool:
    """Return whether a server listens at the port."""
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except OSError:
        return False
    return True


class Parts(threading.Thread):
    """Watches the other processes, and ends this one when one of them has ended.

    Attributes:
      failed: The name of the part that ended on its own, or None.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.failed: str | None = None
        self._alive: dict[str, Callable[[], bool]] = {}
        self._over = threading.Event()

    def add(self, name: str, alive: Callable[[], bool]) -> None:
        self._alive[name] = alive

    def __enter__(self) -> "Parts":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Stop watching first: the parts are about to be ended on purpose.
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self.failed and not self._over.wait(0.25):
            for name, alive in self._alive.items():
                if not alive():
                    self.failed = name
                    os.kill(os.getpid(), signal.SIGTERM)
                    break


if __name__ == "__main__":
    main()
