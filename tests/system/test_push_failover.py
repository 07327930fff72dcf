"""Streams of jobs whose server changes: failovers by Sentinel, and a Cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis.sentinel import Sentinel

from pyramid_jobstate import Batch, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_batch
from tests.asgi import Exchange, Server, pushing
from tests.cluster import PRIMARIES, Cluster, running_cluster
from tests.jobs import RunMarathon, messages
from tests.running import Run, Runs, running
from tests.store.test_sentinel import sentinels
from tests.support import wait_for
from tests.webapp import make_config

pytestmark = pytest.mark.system

OUTAGE = [
    "The connection on which the job state store tells of changes is lost",
    "The job state store tells of changes again",
]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of streams, without the reasons."""
    texts = messages(caplog, "pyramid_jobstate", logging.INFO)
    return [text.partition(".")[0] for text in texts if "tells of changes" in text]


def last(stream: Exchange, run: Run) -> int:
    """Return the metric n in the last state of a job that a stream has shown."""
    states = [event.state for event in stream.events if event.name == "message"]
    found = [s["n"] for s in states if s["job"]["uuid"] == run.uuid]
    return found[-1] if found else -1


def report(run: Run, n: int, stream: Exchange, timeout: float = 40) -> None:
    """Have a job report, and wait until a stream shows it. The store may be away."""
    run.report(n=n)
    wait_for(lambda: last(stream, run) == n, timeout)


def is_primary(client: redis.Redis) -> bool:
    """Return whether a server is a primary. Sentinels may cut the connection."""
    with contextlib.suppress(redis.RedisError):
        role: Any = client.role()[0]
        return role in ("master", b"master")
    return False


def links(client: redis.Redis) -> int:
    """Return how many clients a server tells of changes."""
    return sum("t" in c["flags"] for c in client.client_list())


# Sentinel


class Pair(NamedTuple):
    """A primary and its replica, watched by sentinels."""

    primary: EmbeddedServer
    replica: EmbeddedServer
    sentinel: Sentinel


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two servers that know each other, known by three sentinels."""
    with contextlib.ExitStack() as stack:
        at_once = ["--repl-diskless-sync-delay", "0"]
        primary = stack.enter_context(EmbeddedServer(arguments=at_once))
        follow = [*at_once, "--replicaof", f"127.0.0.1 {primary.port}"]
        replica = stack.enter_context(EmbeddedServer(arguments=follow))
        sentinel = stack.enter_context(sentinels(primary, tmp_path))
        pair = Pair(primary, replica, sentinel)
        wait_for(lambda: all(knows(one, replica.port) for one in sentinel.sentinels))
        yield pair


def knows(sentinel: Any, port: int) -> bool:
    """Return whether a sentinel knows the others and the replica."""
    try:
        ports = [replica["port"] for replica in sentinel.sentinel_slaves("jobs")]
        others = sentinel.sentinel_master("jobs")["num-other-sentinels"]
    except redis.RedisError:
        return False
    return ports == [port] and others == 2


@pytest.mark.parametrize(
    "how",
    [
        "dies",
        # Sentinels take ten seconds to demote the old primary.
        pytest.param("steps-down", marks=pytest.mark.long),
    ],
)
def test_stream_outlives_a_failover(
    pair: Pair, redis_url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When a replica takes over, because the primary has died or by an operator's
    command, the stream goes on with the new primary.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    store, other = (
        JobStore(pair.sentinel.master_for("jobs", socket_timeout=0.5)) for _ in "ab"
    )
    with (
        running(redis_url, store=other) as runs,
        pushing(make_config(None), store=store) as server,
        redis.Redis.from_url(pair.primary.url) as old,
        redis.Redis.from_url(pair.replica.url) as new,
    ):
        run = runs.start(n=0)
        stream = server.open(f"/job_state/{run.uuid}")
        report(run, 1, stream)
        assert old.execute_command("WAIT", 1, 2000) == 1
        if how == "dies":
            os.kill(pair.primary.pid, signal.SIGKILL)
        else:
            pair.sentinel.sentinels[0].sentinel_failover("jobs")
        wait_for(lambda: is_primary(new), 30)
        report(run, 2, stream)
        report(run, 3, stream)
        wait_for(lambda: links(new) == 1)
        names = [event.name for event in stream.events]
        assert "gone" not in names
        assert names.count("away") <= 1
        wait_for(lambda: said(caplog)[-1:] == OUTAGE[1:])
        assert said(caplog) == OUTAGE * (len(said(caplog)) // 2)


# Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


class Scene:
    """Streams of jobs on all primaries of a Cluster.

    Attributes:
      jobs: A job on each primary.
      stream: A stream of all of them.
    """

    def __init__(self, cluster: Cluster, server: Server, runs: Runs) -> None:
        self.server = server
        found: dict[int, Run] = {}
        while len(found) < PRIMARIES:
            run = runs.start(n=0)
            place = cluster.owner_of(f"jobstate:{run.uuid}")
            if found.setdefault(place, run) is not run:
                run.succeed()
        self.jobs = [found[place] for place in range(PRIMARIES)]
        uuids = "&".join(f"uuid={run.uuid}" for run in self.jobs)
        self.stream = server.open(f"/job_state?{uuids}")
        for run in self.jobs:
            self.report(run, 1)

    def report(self, run: Run, n: int) -> None:
        """Have a job report, and wait until the stream shows it."""
        report(run, n, self.stream)

    def report_promptly(self, run: Run, first: int) -> None:
        """Check that a job's changes are told at once."""
        for n in range(first, first + 5):
            begun = time.monotonic()
            self.report(run, n)
            # The machine may be busy.
            assert time.monotonic() - begun < 2

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.stream.events]


@contextlib.contextmanager
def on_stage(cluster: Cluster, redis_url: str) -> Iterator[Scene]:
    """Have streams of jobs on all primaries of a Cluster."""
    store = JobStore(cluster.url)
    with (
        running(redis_url, 20, store) as runs,
        pushing(make_config(cluster.url)) as server,
    ):
        yield Scene(cluster, server, runs)
    store.client.close()


def test_streams_of_a_cluster(cluster: Cluster, redis_url: str) -> None:
    """One stream is told of the changes of jobs on several nodes, and of the cancel of
    their batch on another one. A job whose slot moves to another node is shown again
    when it has arrived. Meanwhile other jobs are told as before.
    """
    with on_stage(cluster, redis_url) as scene:
        store = JobStore(cluster.url)
        member = {"status": "queued", "job_state_class": RunMarathon}
        made = put_batch(store, Batch, [member] * 8, owner="alice")
        uuids = [job.uuid for job in store.members(made.uuid).items]
        query = "&".join(f"uuid={uuid}" for uuid in uuids)
        stream = scene.server.open(f"/job_state?{query}")
        stream.at(7)
        made.cancel()
        stream.wait()
        ended = [event for event in stream.events if '"cancelled"' in event.data]
        assert len(ended) == 8
        move_slot(cluster, scene)
        assert "gone" not in scene.names
        store.client.close()


def move_slot(cluster: Cluster, scene: Scene) -> None:
    """Move the slot of a job to another node while it goes on."""
    run, other, _ = scene.jobs
    names = [cluster.node_id(i) for i in range(2)]
    key = f"jobstate:{run.uuid}"
    with cluster.client(0) as old, cluster.client(1) as new:
        slot = old.execute_command("CLUSTER KEYSLOT", key)

        def setslot(client: redis.Redis, *words: str) -> None:
            client.execute_command("CLUSTER SETSLOT", slot, *words)

        def migrate(client: redis.Redis, to: int) -> None:
            place = "127.0.0.1", cluster.nodes[to].port
            keys = client.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
            client.execute_command("MIGRATE", *place, "", 0, 5000, "KEYS", *keys)

        setslot(new, "IMPORTING", names[0])
        setslot(old, "MIGRATING", names[1])
        migrate(old, 1)
        # The old node replies ASK.
        run.report(n=2)
        scene.report_promptly(other, 2)
        setslot(new, "NODE", names[1])
        setslot(old, "NODE", names[1])
        scene.report(run, 3)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)]
)
def test_primary_may_die(
    cluster: Cluster,
    redis_url: str,
    how: signal.Signals,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When a primary dies or hangs, the jobs of the others go on at once, and its own
    when its replica has taken over. The log says so once.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with on_stage(cluster, redis_url) as scene:
        os.kill(cluster.nodes[0].pid, how)
        for run in scene.jobs[1:]:
            scene.report_promptly(run, 2)
        scene.report(scene.jobs[0], 2)
        scene.report(scene.jobs[0], 3)
        wait_for(lambda: len(said(caplog)) >= 2)
        assert said(caplog) == OUTAGE
        assert "gone" not in scene.names
        assert scene.names.count("away") <= 1
