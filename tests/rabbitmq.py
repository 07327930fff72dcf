"""A RabbitMQ node for the tests."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.support import free_ports, wait_for

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

#: Runs a command until the other end of its stdin is closed, which only the tests hold.
#: Then it kills all that it has started, and removes $0.
SUPERVISOR = '"$@" </dev/null & read -r _; rm -rf "$0"; kill -KILL 0'


class RabbitMQ:
    """An empty RabbitMQ node on free ports of 127.0.0.1.

    Stopping it is as if the machine had failed. It can be started again, on the same
    port and with everything durable.

    Parameters:
      binary: The node's command, such as :func:`find_binary` finds.
    """

    def __init__(self, binary: str) -> None:
        self.port, epmd_port, dist_port = free_ports(3)
        directory = Path(tempfile.mkdtemp(prefix="jobstate-rabbitmq-"))
        config = directory / "rabbitmq.conf"
        config.write_text(CONFIG.format(port=self.port))
        # Share nothing with a node of the system: no name daemon, configuration or
        # directory.
        environ = {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "HOME": str(directory),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_LOG_BASE": str(directory),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
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
        self._binary = binary
        self._log = directory / "log"
        self._options: dict[str, Any] = {"cwd": directory, "env": others | environ}
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd = self._run(str(directory), "epmd")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._epmd.communicate()

    @property
    def url(self) -> str:
        """The node's URL for Dramatiq and pika."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def start(self) -> None:
        """Start the node and wait until it answers."""
        self._node = self._run("", self._binary)
        try:
            wait_for(lambda: _answers(self.port), START_TIMEOUT)
        except AssertionError as e:
            e.add_note(self._log.read_text(errors="replace")[-3000:])
            raise

    def _run(self, removed: str, command: str) -> "subprocess.Popen[bytes]":
        """Run a command that ends with the tests, however they end."""
        with self._log.open("ab") as output:
            return subprocess.Popen(
                ["sh", "-c", SUPERVISOR, removed, command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **self._options,
            )

    def stop(self) -> None:
        """Kill the node and wait for its end. Do nothing if it is not running."""
        if self._node is not None:
            self._node.communicate()
            self._node = None


def find_binary() -> str | None:
    """Return the command that runs a node, or None."""
    if shutil.which("epmd") is None:
        return None
    return next(filter(None, map(shutil.which, (DEBIAN, "rabbitmq-server"))), None)


def _answers(port: int) -> bool:
    """Return whether a server that speaks AMQP answers at a port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"AMQP\0\0\x09\x01")
            # The reply is a method frame, of the class "connection".
            return connection.recv(9)[:1] == b"\x01"
    except OSError:
        return False
