"""A server, its replica, and three processes of Redis Sentinel that watch them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.sentinel import Sentinel

from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from tests.processes import Process
from tests.support import free_ports, wait_for

CONFIGURATION = """
port {port}
dir {directory}
sentinel monitor jobs 127.0.0.1 {primary} 2
sentinel down-after-milliseconds jobs 500
sentinel failover-timeout jobs 3000
"""


@contextlib.contextmanager
def replicated(
    directory: Path,
) -> Iterator[tuple[EmbeddedServer, EmbeddedServer, Sentinel]]:
    """Run a server, its replica, and three sentinels that know both, and each other."""
    with contextlib.ExitStack() as stack:
        at_once = ["--repl-diskless-sync-delay", "0"]
        primary = stack.enter_context(EmbeddedServer(arguments=at_once))
        follow = [*at_once, "--replicaof", f"127.0.0.1 {primary.port}"]
        replica = stack.enter_context(EmbeddedServer(arguments=follow))
        ports = free_ports(3)
        for port in ports:
            home = directory / str(port)
            home.mkdir()
            places = {"port": port, "directory": home, "primary": primary.port}
            file = home / "sentinel.conf"
            file.write_text(CONFIGURATION.format(**places))
            command = [find_binary(), str(file), "--sentinel"]
            stack.enter_context(Process(command, home / "log"))
        hosts = [("127.0.0.1", port) for port in ports]
        sentinel = Sentinel(hosts, socket_timeout=0.5)
        wait_for(lambda: knows(sentinel, replica.port))
        yield primary, replica, sentinel


def knows(sentinel: Sentinel, port: int) -> bool:
    """Return whether all sentinels know each other and the only replica."""
    with contextlib.suppress(redis.RedisError):
        for client in sentinel.sentinels:
            replicas = [each["port"] for each in client.sentinel_slaves("jobs")]
            primary: Any = client.sentinel_master("jobs")
            if replicas != [port] or primary["num-other-sentinels"] != 2:
                return False
        return True
    return False
