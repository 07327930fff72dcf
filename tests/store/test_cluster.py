"""JobStore, recorder and a complete job on a Cluster."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import dramatiq
import pytest
import redis
from redis import RedisCluster

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
)
from pyramid_jobstate.job import record_of
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import FINISHED, UNFINISHED
from pyramid_jobstate.store import newest_uuids
from pyramid_jobstate.store.commands import Command
from pyramid_jobstate.store.connection import connect, execute, redis_errors
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.testing import put_job
from tests.cluster import PRIMARIES, Cluster, running_cluster
from tests.jobs import (
    Gate,
    RunMarathon,
    job_actor,
    make_broker,
    messages,
    new_id,
    wait_until,
    working,
)
from tests.listed import create, finish
from tests.store.test_batches import Bed
from tests.support import INFO, key_of, wait_for
from tests.webapp import get, make_app, make_config, make_request


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster_store(cluster: Cluster) -> Iterator[JobStore]:
    store = JobStore(cluster.url)
    with contextlib.suppress(redis.RedisError):
        store.client.flushall()
    yield store
    store.client.close()


def test_store_writes_and_reads_across_nodes(cluster_store: JobStore) -> None:
    """Jobs on all nodes are created, written, read, listed and cancelled."""
    jobs = [new_id() for _ in range(30)]
    assert cluster_store.create(*(NewJob(job, INFO) for job in jobs)) == [True] * 30
    updates = [
        Update(job, "a", 1, INFO, {"m:number": str(i)}, begins=True)
        for i, job in enumerate(jobs)
    ]
    assert cluster_store.write(updates) == [Reply.OK] * 30
    *states, unknown = cluster_store.load_many([*jobs, new_id()])
    assert unknown is None
    assert [s and s.progress_metrics["number"] for s in states] == list(range(30))
    assert len(cluster_store.list("alice", limit=100).items) == 30
    assert cluster_store.cancel(jobs[0], INFO)
    cancelled = cluster_store.load(jobs[0])
    assert cancelled is not None and cancelled.status == "cancelling"
    assert cluster_store.cancels(0)[0] == {jobs[0]}


def test_batches_on_a_cluster(cluster_store: JobStore) -> None:
    """The keys of a batch lie in one slot, and its members on any nodes."""
    store = cluster_store
    bed = Bed(store, 12)
    assert bed.counts() == {"queued": 12}
    for place in range(6):
        bed.end(place, "error" if place < 2 else "success")
    assert bed.counts() == {"queued": 6, "success": 4, "error": 2}
    failed = store.members(bed.uuid, status="error").items
    assert [job.uuid for job in failed] == bed.uuids[:2]
    bed.run(6)
    bed.change(6, status="success")
    bed.grow_old()
    assert bed.counts() == {"queued": 5, "success": 5, "error": 2}
    assert bed.load().cancel()
    statuses = [job and job.status for job in store.load_many(bed.uuids)]
    assert statuses[7:] == ["cancelled"] * 5
    assert store.clear(everything=True).done > 0
    assert store.load(bed.uuid) is None


def test_unique_jobs_on_a_cluster(cluster_store: JobStore) -> None:
    """A claim, the job that it names and an alias of it lie on any nodes."""
    store = cluster_store
    info = INFO._replace(unique='["run_marathon","nightly"]')
    assert info.unique is not None
    jobs = [NewJob(new_id(), info, sender="me") for _ in range(12)]
    store.create(*jobs)
    winner, *losers = jobs
    for job in jobs:
        assert store.claims.take(info.unique, job.uuid) == winner.uuid
    for job in losers:
        store.claims.make_alias(job, winner.uuid)
    found = store.load_many([job.uuid for job in jobs])
    assert [job and record_of(job).uuid for job in found] == [winner.uuid] * 12
    assert [job.uuid for job in store.list().items] == [winner.uuid]
    begins = Update(winner.uuid, "0" * 12, 1, info, begins=True, end=End("success"))
    assert store.write([begins]) == [Reply.OK]
    again = Update(winner.uuid, "1" * 12, 1, info, begins=True)
    assert store.write([again]) == [Reply.OK]
    assert store.claims.take(info.unique, new_id()) == winner.uuid


def test_statuses_are_listed_and_counted_on_a_cluster(cluster_store: JobStore) -> None:
    """Jobs are listed by status and counted, wherever they lie."""
    for status in UNFINISHED + FINISHED:
        jobs = [put_job(cluster_store, RunMarathon, status).uuid for _ in range(5)]
        found = cluster_store.list(status=status, kind="RunMarathon").items
        assert sorted(job.uuid for job in found) == sorted(jobs)
    assert cluster_store.counts() == (5,) * 8
    assert cluster_store.kinds() == ["RunMarathon"]
    assert sum(bucket.error for bucket in cluster_store.throughput()) == 5


def test_newest_jobs_are_found_across_nodes(cluster_store: JobStore) -> None:
    """The two lists of all jobs lie on different nodes, and make one order."""
    ended, queued = create(cluster_store, 2), create(cluster_store, 2)
    finish(cluster_store, *ended)
    assert newest_uuids(cluster_store, 10) == [*ended, *queued]


def test_store_takes_a_client_that_is_handed_over(cluster: Cluster) -> None:
    """The application may pass its own RedisCluster."""
    with RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        store = JobStore(client)
        job = new_id()
        store.create(NewJob(job, INFO))
        assert store.load(job) is not None
        assert all(f"127.0.0.1:{node.port}" in repr(store) for node in cluster.nodes)


def test_the_web_side_shows_a_job_on_a_cluster(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """The setting `jobstate.redis_url` may be the URL of a Cluster."""
    job_state = put_job(
        cluster_store, RunMarathon, owner="alice", metrics={"miles_run": 3}
    )
    app = make_app(make_config(cluster.url))
    assert get(app, f"/job_state/{job_state.uuid}", "alice").json["miles_run"] == 3
    (item,) = get(app, "/job_state", "alice").json["items"]
    assert item["job"]["uuid"] == job_state.uuid


def test_slot_that_was_not_covered_is_looked_for_again(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """A client that learnt the nodes while none held a slot finds the one that does."""
    job = new_id()
    cluster_store.create(NewJob(job, INFO))
    # It also reads the clock, with a command that refreshes what the client knows.
    assert cluster_store.load(job) is not None
    client = cluster_store.client
    assert isinstance(client, RedisCluster)
    client.nodes_manager.slots_cache.clear()
    assert cluster_store.load(job) is not None


def test_tracker_connects_to_the_primary_of_a_key(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """A tracker names the primary that holds a key, and makes a link to it."""
    key = key_of(cluster_store, new_id())
    owner = cluster.owner_of(key)
    tracker = cluster_store.track()
    link = tracker.connect(tracker.server_of(key))
    try:
        for i in range(PRIMARIES):
            with cluster.client(i) as client:
                assert client.info("clients")["tracking_clients"] == int(i == owner)
    finally:
        link.close()


def test_tracker_does_not_connect_to_a_node_that_has_left(
    cluster_store: JobStore,
) -> None:
    """A link to a node that the Cluster does not know is refused as an outage is."""
    with pytest.raises(redis.ConnectionError, match="has left the Cluster"):
        cluster_store.track().connect("127.0.0.1:1")


def test_tracker_learns_anew_who_holds_a_key(cluster_store: JobStore) -> None:
    """The primary of a slot that the client knows nothing of is known after a
    refresh.
    """
    key = key_of(cluster_store, new_id())
    tracker = cluster_store.track()
    before = tracker.server_of(key)
    client = cluster_store.client
    assert isinstance(client, RedisCluster)
    client.nodes_manager.slots_cache.clear()
    with pytest.raises(redis.RedisError):
        tracker.server_of(key)
    tracker.refresh()
    assert tracker.server_of(key) == before


def test_a_key_that_is_moving_is_found(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """While a slot moves to another node, and afterwards, all commands succeed."""
    job = new_id()
    cluster_store.create(NewJob(job, INFO))
    key = key_of(cluster_store, job)
    source = cluster.owner_of(key)
    target = (source + 1) % PRIMARIES
    names = {i: cluster.node_id(i) for i in (source, target)}
    with cluster.client(source) as old, cluster.client(target) as new:
        slot = old.execute_command("CLUSTER KEYSLOT", key)

        def setslot(client: redis.Redis, *words: str) -> None:
            client.execute_command("CLUSTER SETSLOT", slot, *words)

        setslot(new, "IMPORTING", names[source])
        setslot(old, "MIGRATING", names[target])
        old.execute_command(
            "MIGRATE", "127.0.0.1", cluster.nodes[target].port, key, 0, 5000
        )
        # The old node replies ASK.
        begin = Update(job, "a", 1, INFO, {"m:x": "1"}, begins=True)
        assert cluster_store.write([begin]) == [Reply.OK]
        setslot(new, "NODE", names[target])
        setslot(old, "NODE", names[target])
        # It replies MOVED.
        assert cluster_store.write([Update(job, "a", 2, INFO, {"m:x": "2"})]) == [
            Reply.OK
        ]
        moved = cluster_store.load(job)
        assert moved is not None and moved.progress_metrics == {"x": 2}
        # Back again, for the other tests.
        setslot(old, "IMPORTING", names[target])
        setslot(new, "MIGRATING", names[source])
        new.execute_command(
            "MIGRATE", "127.0.0.1", cluster.nodes[source].port, key, 0, 5000
        )
        setslot(old, "NODE", names[source])
        setslot(new, "NODE", names[source])


def test_a_command_that_fails_where_it_was_sent_on_has_its_error(
    cluster: Cluster, cluster_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirected command on a key of another type returns its error as the reply."""
    key = key_of(cluster_store, new_id())
    client = cluster_store.client
    assert isinstance(client, RedisCluster)
    owner = cluster.owner_of(key)
    with cluster.client(owner) as node:
        node.set(key, "no hash")
    elsewhere = client.get_node(
        host="127.0.0.1", port=cluster.nodes[(owner + 1) % PRIMARIES].port
    )
    monkeypatch.setattr(client, "get_node_from_key", lambda key: elsewhere)
    (reply,) = execute(client, [Command(key, ("HGETALL", key))])
    assert isinstance(reply, redis.ResponseError)
    assert "WRONGTYPE" in str(reply)


def test_a_job_lives_on_a_cluster(cluster: Cluster, redis_url: str) -> None:
    """A job goes from queued to success with its record on a Cluster and its message on
    another server.
    """
    broker = make_broker(redis_url, JobStateMiddleware(url=cluster.url))

    @job_actor(broker=broker)
    def run_marathon(miles: int, *, job_state: JobState) -> None:
        for mile in job_state.track(range(miles)):
            job_state.set_progress_metric("miles_run", mile + 1)

    with working(broker):
        state = wait_until(broker, run_marathon.send(26), "success")
    assert state.progress_metrics == {"miles_run": 26}


def test_undecodable_bytes_do_not_fail_a_read(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """A client with strict decoding reads any bytes, and correct replies afterwards, on
    a Cluster as well.
    """
    jobs = [new_id() for _ in range(12)]
    cluster_store.create(*(NewJob(job, INFO) for job in jobs))
    for job in jobs:
        cluster_store.client.hset(key_of(cluster_store, job), "m:x", b'"\xff"')
    cluster_store.client.zadd("jobstate:active:all", {b"\xff": 2e15})
    url = cluster.url.replace("redis+cluster", "redis")
    with redis.RedisCluster.from_url(url, decode_responses=True) as client:
        own = JobStore(client)
        for _ in range(2):
            states = own.load_many(jobs)
            assert [s and s.progress_metrics for s in states] == [{"x": "\ufffd"}] * 12
            assert {s.uuid for s in own.list().items} == set(jobs)


def test_cluster_beside_another_server_is_warned_of(
    cluster: Cluster,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An application that reads where the middleware may not write starts with a
    warning that names both stores.
    """
    broker = make_broker(redis_url, JobStateMiddleware(url=cluster.url))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)

    make_app(make_config(redis_url))

    (warning,) = messages(caplog, "pyramid_jobstate")
    assert repr(JobStore(redis_url)) in warning
    assert repr(JobStore(cluster.url)) in warning


def test_job_on_a_cluster_is_sent_beside_a_node(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose record is on a Cluster is sent even if the application names only one
    node.
    """
    node = cluster.nodes[0].url
    app_config = make_config(node)
    make_app(app_config)
    broker = make_broker(redis_url, JobStateMiddleware(url=cluster.url))

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        pass

    job_states = make_request(app_config).job_states
    for _ in range(2):
        with contextlib.suppress(redis.RedisError, StoreUnavailable):
            job_states.send_immediately(run_marathon)

    (line,) = [x for x in messages(caplog, "pyramid_jobstate") if "are read" in x]
    assert repr(JobStore(node)) in line


def test_what_a_cluster_raises_is_a_redis_error() -> None:
    """A redis-py error that is not a RedisError is raised as one."""
    with pytest.raises(redis.ConnectionError), redis_errors():
        raise redis.exceptions.RedisClusterException("no node answers")


def test_a_cluster_that_is_away_is_a_redis_error(cluster: Cluster) -> None:
    """Connecting to a Cluster that is away is an ordinary error."""
    with pytest.raises(redis.RedisError):
        connect("redis+cluster://127.0.0.1:1")


def test_a_primary_is_killed_in_mid_job(cluster: Cluster, redis_url: str) -> None:
    """When a primary dies, its replica takes over: jobs go on by themselves, and no end
    is lost.
    """
    broker = make_broker(redis_url, JobStateMiddleware(url=cluster.url))
    gate = Gate()

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("before", 1)
        job_state.flush()
        gate.wait()
        job_state.set_progress_metric("after", 2)

    with working(broker, threads=8):
        sent = [run_marathon.send() for _ in range(8)]
        for message in sent:
            wait_until(broker, message, "working")
        store = JobStore(cluster.url)
        victim = cluster.owner_of(key_of(store, sent[0].message_id))
        os.kill(cluster.nodes[victim].pid, signal.SIGKILL)
        threading.Timer(0.2, gate.open).start()

        def all_done() -> bool:
            try:
                states = store.load_many([m.message_id for m in sent])
            except redis.RedisError:
                return False
            return all(
                s is not None
                and s.status == "success"
                and s.progress_metrics == {"before": 1, "after": 2}
                for s in states
            )

        wait_for(all_done, 40)
    # Without any node, commands fail rather than hang.
    for i, node in enumerate(cluster.nodes):
        if i != victim:
            os.kill(node.pid, signal.SIGKILL)
    keys = [key_of(store, new_id()) for _ in range(2)]
    with pytest.raises(redis.RedisError):
        execute(store.client, [Command(key, ("HGETALL", key)) for key in keys])
