"""Streams of jobs whose server changes: failovers by Sentinel, and a Cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis import RedisCluster
from redis.sentinel import Sentinel

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import NewJob
from pyramid_jobstate.web.push.hub import Hub
from tests.cluster import PRIMARIES, Cluster, running_cluster
from tests.hubs import Basket, hub_of
from tests.store.test_sentinel import sentinels
from tests.support import INFO, wait_for
from tests.webapp import put_job

LOGGER = "pyramid_jobstate"


def write(client: Any, job: str, mile: int) -> bool:
    """Write a job's metric `miles_run`. Return whether that was possible."""
    try:
        client.hset(f"jobstate:{job}", "m:miles_run", mile)
    except (redis.RedisError, redis.exceptions.RedisClusterException):
        return False
    return True


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged, without the reasons."""
    texts = [r.getMessage() for r in caplog.records if r.name == LOGGER]
    return [text.partition(".")[0] for text in texts]


OUTAGE = [
    "The connection on which the job state store tells of changes is lost",
    "The job state store tells of changes again",
]


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
def test_a_stream_outlives_a_failover(
    pair: Pair, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When a replica takes over, because the primary has died or by an operator's
    command, the stream goes on with the new primary.
    """
    caplog.set_level(logging.INFO, LOGGER)
    client = pair.sentinel.master_for("jobs", socket_timeout=0.5)
    job = put_job(client, **{"m:miles_run": 1})
    with (
        hub_of(JobStore(client)) as hub,
        redis.Redis.from_url(pair.primary.url) as old,
        redis.Redis.from_url(pair.replica.url) as new,
    ):
        basket = Basket(hub, job)
        basket.wait_for_mile(1)
        assert old.execute_command("WAIT", 1, 2000) == 1
        if how == "dies":
            os.kill(pair.primary.pid, signal.SIGKILL)
        else:
            pair.sentinel.sentinels[0].sentinel_failover("jobs")
        wait_for(lambda: is_primary(new), 30)
        wait_for(lambda: write(new, job, 2))
        wait_for(lambda: links(new) == 1, 40)
        basket.wait_for_mile(2)
        wait_for(lambda: write(new, job, 3))
        basket.wait_for_mile(3)
        assert "gone" not in basket.events
        assert basket.events.count("away") <= 1
        wait_for(lambda: messages(caplog)[-1:] == OUTAGE[1:])
        assert messages(caplog) == OUTAGE * (len(messages(caplog)) // 2)
        basket.leave()


def is_primary(client: redis.Redis) -> bool:
    """Return whether a server is a primary. Sentinels may cut the connection."""
    with contextlib.suppress(redis.RedisError):
        role: Any = client.role()[0]
        return role in ("master", b"master")
    return False


def links(client: redis.Redis) -> int:
    """Return how many links a server has."""
    with contextlib.suppress(redis.RedisError):
        return sum("t" in c["flags"] for c in client.client_list())
    return -1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


class Scene:
    """Streams of jobs on all primaries of a Cluster.

    Attributes:
      jobs: A job on each primary.
      basket: A stream of all of them.
    """

    def __init__(self, cluster: Cluster, store: JobStore, hub: Hub) -> None:
        self.cluster = cluster
        self.store = store
        client = store.client
        assert isinstance(client, RedisCluster)
        self.client = client
        self.hub = hub
        self.jobs = [self.put(i) for i in range(PRIMARIES)]
        self.basket = Basket(self.hub, *self.jobs)
        for job in self.jobs:
            self.wait_for_mile(job, 1)

    def put(self, primary: int) -> str:
        """Write a job whose key a primary holds."""
        while True:
            job = str(uuid.uuid4())
            if self.cluster.owner_of(f"jobstate:{job}") == primary:
                self.store.create(NewJob(job, INFO))
                assert write(self.client, job, 1)
                return job

    def mile(self, job: str) -> int:
        """Return the last `miles_run` that the stream was told of a job."""
        states = [s for s in self.basket.states if s["job"]["uuid"] == job]
        return int(states[-1].get("miles_run", 0)) if states else 0

    def wait_for_mile(self, job: str, mile: int) -> None:
        """Wait until the stream is told of a `miles_run` of a job."""
        wait_for(lambda: self.mile(job) == mile, 30)


@contextlib.contextmanager
def on_stage(cluster: Cluster) -> Iterator[Scene]:
    """Have streams of jobs on all primaries of a Cluster."""
    store = JobStore(cluster.url)
    with hub_of(store) as hub:
        scene = Scene(cluster, store, hub)
        yield scene
        scene.basket.leave()
    store.client.close()


@pytest.fixture
def scene(cluster: Cluster) -> Iterator[Scene]:
    """Streams of jobs on all primaries of the module's Cluster."""
    with on_stage(cluster) as scene:
        yield scene


def check_promptness(scene: Scene, job: str, first: int) -> None:
    """Check that a job's changes are told at once."""
    for mile in range(first, first + 5):
        begun = time.monotonic()
        assert write(scene.client, job, mile)
        scene.wait_for_mile(job, mile)
        # The machine may be busy.
        assert time.monotonic() - begun < 2


def reads(client: redis.Redis) -> int:
    """Return how often a node was asked for a hash."""
    found: Any = client.info("commandstats")
    return int(found.get("cmdstat_hgetall", {}).get("calls", 0))


def test_a_stream_shows_jobs_of_all_primaries(scene: Scene) -> None:
    """One stream is told of the changes of jobs on several nodes."""
    for job in scene.jobs:
        write(scene.client, job, 2)
    for job in scene.jobs:
        scene.wait_for_mile(job, 2)
    for i in range(PRIMARIES):
        with scene.cluster.client(i) as client:
            assert links(client) == 1
            client.delete(f"jobstate:{scene.jobs[i]}")


def test_a_job_is_followed_while_its_slot_moves(scene: Scene) -> None:
    """A job whose slot moves to another node is shown again when it has arrived.
    Meanwhile other jobs are told as before, and read only when they change.
    """
    cluster, (job, other, _) = scene.cluster, scene.jobs
    names = [cluster.node_id(i) for i in range(2)]
    key = f"jobstate:{job}"
    with (
        cluster.client(0) as old,
        cluster.client(1) as new,
        cluster.client(2) as bystander,
    ):
        slot = old.execute_command("CLUSTER KEYSLOT", key)

        def setslot(client: redis.Redis, *words: str) -> None:
            client.execute_command("CLUSTER SETSLOT", slot, *words)

        def migrate(client: redis.Redis, to: int) -> None:
            place = "127.0.0.1", cluster.nodes[to].port
            client.execute_command("MIGRATE", *place, key, 0, 5000)

        bystander.config_resetstat()
        setslot(new, "IMPORTING", names[0])
        setslot(old, "MIGRATING", names[1])
        migrate(old, 1)
        # The old node replies ASK.
        assert write(scene.client, job, 2)
        check_promptness(scene, other, 2)
        assert reads(bystander) == 0
        setslot(new, "NODE", names[1])
        setslot(old, "NODE", names[1])
        scene.wait_for_mile(job, 2)
        assert write(scene.client, job, 3)
        scene.wait_for_mile(job, 3)
        # Back again, for the other tests.
        setslot(old, "IMPORTING", names[1])
        setslot(new, "MIGRATING", names[0])
        migrate(new, 0)
        setslot(old, "NODE", names[0])
        setslot(new, "NODE", names[0])
        assert write(scene.client, job, 4)
        scene.wait_for_mile(job, 4)
    assert "gone" not in scene.basket.events


def test_a_slot_that_nobody_holds_is_looked_for_again(scene: Scene) -> None:
    """A job whose slot is missing in what the client knows is read once it has learnt
    better.
    """
    job = scene.put(0)
    scene.client.nodes_manager.slots_cache.clear()
    basket = Basket(scene.hub, job)
    basket.wait_for_mile(1)
    basket.leave()


def test_a_primary_may_step_down(cluster: Cluster) -> None:
    """When a replica takes over by an operator's command, while polls of the same
    process find that out first, the stream goes on.
    """
    check_takeover(cluster, 0, PRIMARIES)
    # Back again, for the other tests.
    check_takeover(cluster, PRIMARIES, 0)


def check_takeover(cluster: Cluster, leaving: int, coming: int) -> None:
    """Have a replica take over, and check that a stream goes on."""
    with (
        on_stage(cluster) as scene,
        cluster.client(coming) as replica,
        cluster.client(leaving) as primary,
    ):
        job = scene.jobs[0]
        wait_for(lambda: primary.info("replication")["connected_slaves"])
        replica.execute_command("CLUSTER FAILOVER")
        wait_for(lambda: is_primary(replica) and not is_primary(primary))
        # As a poll does.
        assert scene.store.load(job) is not None
        wait_for(lambda: write(scene.client, job, 2))
        scene.wait_for_mile(job, 2)
        assert write(scene.client, job, 3)
        scene.wait_for_mile(job, 3)
        assert "gone" not in scene.basket.events


def test_a_primary_may_die(caplog: pytest.LogCaptureFixture) -> None:
    """When a primary dies, the jobs of the others go on at once, and its own jobs when
    its replica has taken over. The log says so once.
    """
    caplog.set_level(logging.INFO, LOGGER)
    with running_cluster() as cluster, on_stage(cluster) as scene:
        os.kill(cluster.nodes[0].pid, signal.SIGKILL)
        for job in scene.jobs[1:]:
            check_promptness(scene, job, 2)
        wait_for(lambda: write(scene.client, scene.jobs[0], 2), 30)
        scene.wait_for_mile(scene.jobs[0], 2)
        assert write(scene.client, scene.jobs[0], 3)
        scene.wait_for_mile(scene.jobs[0], 3)
        wait_for(lambda: len(messages(caplog)) >= 2)
        assert [text for text in messages(caplog) if text in OUTAGE] == OUTAGE
        assert "gone" not in scene.basket.events
        assert scene.basket.events.count("away") <= 1
