"""A server, its replica, and three processes of Redis Sentinel that watch them."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.sentinel import Sentinel

from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from tests.support import wait_for

CONFIGURATION = """
port {port}
dir {directory}
sentinel monitor jobs 127.0.0.1 {primary} 2
sentinel down-after-milliseconds jobs 500
sentinel failover-timeout jobs 3000
"""


@contextlib.contextmanager
def sentinels(primary: EmbeddedServer, directory: Path) -> Iterator[Sentinel]:
    """Run three sentinels that watch a server."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in taken]
        stack.close()
        for port in ports:
            home = directory / str(port)
            home.mkdir()
            file = home / "sentinel.conf"
            file.write_text(
                CONFIGURATION.format(port=port, directory=home, primary=primary.port)
            )
            process = subprocess.Popen(
                [find_binary(), str(file), "--sentinel"], stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield Sentinel([("127.0.0.1", port) for port in ports], socket_timeout=0.5)


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
        sentinel = stack.enter_context(sentinels(primary, directory))
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
