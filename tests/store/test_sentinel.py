"""Redis Sentinel."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from tests.jobs import Gate, job_actor, make_broker, wait_until, working
from tests.support import load_job, wait_for

pytestmark = pytest.mark.system

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


def test_a_failover_in_mid_job_loses_nothing(redis_url: str, tmp_path: Path) -> None:
    """When the primary dies, the replica takes over and receives the job's end."""
    with contextlib.ExitStack() as stack:
        at_once = ["--repl-diskless-sync-delay", "0"]
        primary = stack.enter_context(EmbeddedServer(arguments=at_once))
        follow = ["--replicaof", f"127.0.0.1 {primary.port}"]
        replica = stack.enter_context(EmbeddedServer(arguments=follow))
        sentinel = stack.enter_context(sentinels(primary, tmp_path))
        wait_for(lambda: knows(sentinel, replica.port), 20)
        client = sentinel.master_for("jobs", socket_timeout=0.5)
        store = JobStore(client)
        broker = make_broker(redis_url, JobStateMiddleware(store))
        gate = Gate()

        @job_actor(broker=broker)
        def run_marathon(*, job_state: JobState) -> None:
            job_state.set_progress_metric("before", 1)
            job_state.flush()
            gate.wait()
            job_state.set_progress_metric("after", 2)

        with working(broker):
            message = run_marathon.send()
            wait_until(broker, message, "working")
            with redis.Redis.from_url(primary.url) as direct:
                assert direct.wait(1, 2000) == 1
            # Until then, the replica lists jobs and cannot mend its lists.
            reader = JobStore(replica.url)
            assert [job.uuid for job in reader.list().items] == [message.message_id]
            os.kill(primary.pid, signal.SIGKILL)
            gate.open()

            def is_done() -> bool:
                with contextlib.suppress(redis.RedisError):
                    return load_job(store, message.message_id).is_success
                return False

            wait_for(is_done, 40)
        metrics = load_job(store, message.message_id).progress_metrics
        assert metrics == {"before": 1, "after": 2}


def knows(sentinel: Sentinel, port: int) -> bool:
    """Return whether all sentinels know each other and the replica."""
    with contextlib.suppress(redis.RedisError):
        for client in sentinel.sentinels:
            replicas = [each["port"] for each in client.sentinel_slaves("jobs")]
            primary: Any = client.sentinel_master("jobs")
            if replicas != [port] or primary["num-other-sentinels"] != 2:
                return False
        return True
    return False
