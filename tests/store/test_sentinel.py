"""Redis Sentinel, and the logins and transports that a URL can name."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from pyramid.config import Configurator
from redis.sentinel import Sentinel

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from pyramid_jobstate.job.changes import NewJob
from tests.jobs import Gate, job_actor, make_broker, new_id, wait_until, working
from tests.support import INFO, wait_for
from tests.tls import tls_server
from tests.webapp import Policy

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
        wait_for(lambda: _knows(sentinel, replica.port), 20)
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
            os.kill(primary.pid, signal.SIGKILL)
            gate.open()

            def is_done() -> bool:
                try:
                    state = store.load(message.message_id)
                except redis.RedisError:
                    return False
                return state is not None and state.status == "success"

            wait_for(is_done, 40)
        state = store.load(message.message_id)
        assert state is not None
        assert state.progress_metrics == {"before": 1, "after": 2}


def _knows(sentinel: Sentinel, port: int) -> bool:
    """Return whether all sentinels know each other and the replica."""
    for client in sentinel.sentinels:
        try:
            replicas = client.sentinel_slaves("jobs")
            primary: Any = client.sentinel_master("jobs")
        except redis.RedisError:
            return False
        if [r["port"] for r in replicas] != [port]:
            return False
        if primary["num-other-sentinels"] != 2:
            return False
    return True


def test_a_broker_behind_sentinel_shares_its_client(redis_url: str) -> None:
    """The store uses a RedisBroker's own client if that asks sentinels."""
    client = Sentinel([("127.0.0.1", 1)]).master_for("jobs")
    broker = RedisBroker(client=client)
    store = JobStateMiddleware().store_for(broker)
    assert store.client is client


@pytest.fixture
def secret_url(server: EmbeddedServer) -> str:
    """The URL of a server, with a user and a password."""
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser(
            "jobs",
            enabled=True,
            passwords=["+hunter2"],
            keys=["*"],
            commands=["+@all"],
        )
        client.acl_setuser("default", enabled=False)
    return server.url.replace("redis://", "redis://jobs:hunter2@")


def test_a_url_may_have_a_user_and_a_password(secret_url: str) -> None:
    """A store logs in with the user and password of its URL."""
    store = JobStore(secret_url)
    job = new_id()
    store.create(NewJob(job, INFO))
    assert store.load(job) is not None


def test_a_password_is_shown_nowhere(
    secret_url: str, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """No log line, error, repr or introspectable contains the password, whether it is
    right or wrong or the server is away.
    """
    caplog.set_level(logging.DEBUG, "pyramid_jobstate")
    said: list[str] = []
    for url in (secret_url, secret_url.replace("hunter2", "hunter22")):
        settings = {"jobstate.redis_url": url}
        config = Configurator(settings=settings, security_policy=Policy())
        config.include("pyramid_jobstate")
        config.make_wsgi_app()
        for category in config.introspector.categorized():
            if category[0].startswith("job state"):
                said.append(repr([dict(i["introspectable"]) for i in category[1]]))
        broker = make_broker(server.url, JobStateMiddleware(url=url))

        @dramatiq.actor(broker=broker, job_state=True)
        def run_marathon() -> None: ...

        store = JobStore(url)
        said.append(repr(store))
        for _ in range(2):
            message = run_marathon.message()
            try:
                store.create(NewJob(message.message_id, INFO))
            except redis.RedisError as e:
                said.append(repr(e))
            broker.emit_before("enqueue", message, None)
    server.stop()
    with pytest.raises(redis.RedisError) as error:
        JobStore(secret_url).load(new_id())
    said.append(repr(error.value))
    assert len(said) >= 5
    assert "hunter" not in "".join(said) + caplog.text


def test_a_url_may_be_a_unix_socket(tmp_path: Path) -> None:
    """A store works over a Unix socket, and its repr shows the path."""
    path = tmp_path / "s"
    with EmbeddedServer(arguments=["--unixsocket", str(path)]):
        store = JobStore(f"unix://{path}")
        job = new_id()
        store.create(NewJob(job, INFO))
        assert store.load(job) is not None
        assert str(path) in repr(store)


def test_a_url_may_ask_for_tls(tmp_path: Path) -> None:
    """A store uses TLS and verifies the server's certificate."""
    with tls_server(tmp_path) as verified:
        url = verified.partition("?")[0]
        store = JobStore(verified)
        job = new_id()
        store.create(NewJob(job, INFO))
        assert store.load(job) is not None
        with pytest.raises(redis.ConnectionError):
            JobStore(url).load(job)
