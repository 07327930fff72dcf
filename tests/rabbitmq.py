"""A RabbitMQ node for the tests.

This module is also its supervisor, a process in its own session that reads commands
from a pipe whose other end only the tests hold. When they end, however they end, the
pipe closes, and the supervisor kills the node and removes its directory.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from pyramid_jobstate.embedded import PORTS
from tests.support import ROOT

#: The command that Debian's wrapper on PATH finally runs. The wrapper itself runs the
#: system's node as its own user. Other systems have this command on PATH.
DEBIAN = "/usr/lib/rabbitmq/bin/rabbitmq-server"

#: The seconds that a node may take until it answers. Three are usual.
START_TIMEOUT = 60.0

CONFIG = """
listeners.tcp.default = 127.0.0.1:{port}
log.file = false
log.console = true
log.console.level = warning
disk_free_limit.absolute = 1MB
"""

#: Distribution on this machine only, and few threads that wait without spinning.
ERLANG_ARGUMENTS = "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none"


class RabbitMQ:
    """An empty RabbitMQ node on free ports of 127.0.0.1.

    Stopping it is as if the machine had failed. It can be started again, on the same
    port and with everything durable.

    Parameters:
      binary: The node's command, such as :func:`find_binary` finds.
    """

    def __init__(self, binary: str) -> None:
        self.port, epmd_port, dist_port = free_ports(3)
        self._directory = Path(tempfile.mkdtemp(prefix="jobstate-rabbitmq-"))
        config = self._directory / "rabbitmq.conf"
        config.write_text(CONFIG.format(port=self.port))
        # Share nothing with a node of the system: no name daemon, configuration or
        # directory.
        environ = {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "HOME": str(self._directory),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "plugins"),
            "RABBITMQ_LOG_BASE": str(self._directory),
            "RABBITMQ_MNESIA_BASE": str(self._directory / "data"),
            "RABBITMQ_NODENAME": f"jobstate-{self.port}@localhost",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_ARGUMENTS,
            # These two make the started process the node itself.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        others = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))
        }
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.rabbitmq", binary, str(self._directory)],
            cwd=ROOT,
            env={**others, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The node's URL for Dramatiq and pika."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def start(self) -> None:
        """Start the node and wait until it answers.

        Raises:
          RuntimeError: It does not answer in time.
        """
        deadline = time.monotonic() + START_TIMEOUT
        runs = self._tell("start")
        while runs and time.monotonic() < deadline:
            if _answers(self.port):
                return
            time.sleep(0.05)
            runs = self._tell("look")
        log = (self._directory / "log").read_text(errors="replace")
        raise RuntimeError(
            f"RabbitMQ does not start. Its log ends with:\n{log[-3000:]}"
        )

    def stop(self) -> None:
        """Kill the node and wait for its end. Do nothing if it is not running."""
        self._tell("stop")

    def close(self) -> None:
        """Kill the node and remove its directory, for good."""
        with self._supervisor:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()

    def _tell(self, command: str) -> bool:
        """Send a command to the supervisor, and return whether the node is running."""
        stdin, stdout = self._supervisor.stdin, self._supervisor.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{command}\n")
        stdin.flush()
        return stdout.readline() == "True\n"


def find_binary() -> str | None:
    """Return the command that runs a node, or None."""
    if shutil.which("epmd") is None:
        return None
    return next(filter(None, map(shutil.which, (DEBIAN, "rabbitmq-server"))), None)


def free_ports(number: int) -> list[int]:
    """Return ports of 127.0.0.1 at which nothing listens."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == number:
                break
        return found


def _answers(port: int) -> bool:
    """Return whether a server that speaks AMQP answers at a port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"AMQP\0\0\x09\x01")
            # The reply is a method frame, of the class "connection".
            return connection.recv(9)[:1] == b"\x01"
    except OSError:
        return False


class Supervisor:
    """Runs a node and its own name daemon."""

    def __init__(self, binary: str, directory: str) -> None:
        self.binary = binary
        self.directory = directory
        self.log = os.open(os.path.join(directory, "log"), os.O_CREAT | os.O_WRONLY)
        self.epmd = self._run("epmd")
        self.node: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Obey commands until nobody is left to send them."""
        for command in sys.stdin:
            if command == "start\n":
                self._kill(self.node)
                self.node = self._run(self.binary)
            elif command == "stop\n":
                self._kill(self.node)
            runs = self.node is not None and self.node.poll() is None
            print(runs, flush=True)

    def close(self) -> None:
        self._kill(self.node)
        self._kill(self.epmd)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [command],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            process_group=0,
        )

    def _kill(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None and process.poll() is None:
            # The process and its helpers.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    supervisor = Supervisor(*sys.argv[1:])
    try:
        with contextlib.suppress(BrokenPipeError):
            supervisor.serve()
    finally:
        supervisor.close()


if __name__ == "__main__":
    main()
