"""A store, the web side and complete jobs on a Cluster."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from redis import RedisCluster

from pyramid_jobstate import (
    Batch,
    JobError,
    JobState,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
)
from pyramid_jobstate.testing import pass_time, put_batch, put_job
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
from tests.store.bed import Bed
from tests.store.jobs import put
from tests.support import key_of, load_job, wait_for
from tests.webapp import get, make_app, make_config, make_request, make_tm_config

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("cluster")]

STATUSES = (
    *("queued", "working", "retrying", "stalled", "cancelling"),
    *("success", "error", "cancelled"),
)


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


def tm_config(cluster: Cluster) -> Configurator:
    """Return the configurator of an application that sends in transactions."""
    config = make_tm_config(cluster.url)
    make_app(config)
    return config


def test_store_writes_and_reads_across_nodes(cluster_store: JobStore) -> None:
    """Jobs on all nodes are written, read, listed, cancelled, cleared and run again."""
    jobs = [put(cluster_store, "working", metrics={"number": i}) for i in range(30)]
    *states, unknown = cluster_store.load_many([*jobs, new_id()])
    assert unknown is None
    assert [s and s.progress_metrics["number"] for s in states] == list(range(30))
    assert len(cluster_store.list("alice", limit=100).items) == 30
    assert load_job(cluster_store, jobs[0]).cancel()
    assert load_job(cluster_store, jobs[0]).status == "cancelling"
    assert cluster_store.cancel_all(status="working").done == 29
    failed = [put(cluster_store, "error") for _ in range(5)]
    assert all(cluster_store.failures(uuid).message for uuid in failed)
    assert cluster_store.clear(status="error").done == 5


def test_batches_on_a_cluster(cluster: Cluster, cluster_store: JobStore) -> None:
    """The keys of a batch lie in one slot, and its members on any nodes."""
    store = cluster_store
    with Bed(tm_config(cluster), store, 12) as bed:
        assert bed.counts() == {"queued": 12}
        for place in range(6):
            bed.end(place, "error" if place < 2 else "success")
        assert bed.counts() == {"queued": 6, "success": 4, "error": 2}
        failed = store.members(bed.uuid, status="error").items
        assert [job.uuid for job in failed] == bed.uuids[:2]
        store.client.delete(key_of(store, bed.uuids[6]))
        pass_time(store, 20)
        assert bed.counts() == {"queued": 5, "success": 4, "error": 3}
        assert bed.load().cancel()
        statuses = [job and job.status for job in store.load_many(bed.uuids)]
        assert statuses[7:] == ["cancelled"] * 5
        assert store.clear(everything=True).done > 0
        assert store.load(bed.uuid) is None


def test_unique_jobs_on_a_cluster(cluster: Cluster, cluster_store: JobStore) -> None:
    """A claim, the job that it names and those that lead to it lie on any nodes."""
    broker = make_broker(cluster.nodes[0].url, JobStateMiddleware(cluster_store))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def nightly() -> None: ...

    config = tm_config(cluster)
    broker.enqueue = lambda message, *, delay=None: message  # type: ignore[method-assign]
    requests = []
    for _ in range(8):
        request = make_request(config, "alice")
        request.tm.begin()
        job = request.job_states.send_with_options(nightly, unique="nightly")
        requests.append((request, job))
    for request, _ in requests:
        request.tm.commit()
    found = cluster_store.load_many([job.uuid for _, job in requests])
    assert [job and job.status for job in found] == ["queued"] * 8
    (listed,) = cluster_store.list().items
    assert listed.cancel()
    again = cluster_store.load_many([job.uuid for _, job in requests])
    assert [job and job.status for job in again] == ["cancelled"] * 8


def test_statuses_are_listed_and_counted_on_a_cluster(cluster: Cluster) -> None:
    """Jobs are listed by status and counted, wherever they lie, whatever the names of
    their kinds and of the namespace.
    """

    class Odd(JobState):
        kind = "odd}{name"

    for namespace in "jobstate", "{app}:jobs", "a b":
        store = JobStore(cluster.url, namespace=namespace)
        store.client.flushall()
        for status in STATUSES:
            jobs = [put_job(store, Odd, status).uuid for _ in range(3)]
            found = store.list(status=status, kind=Odd.kind).items
            assert sorted(job.uuid for job in found) == sorted(jobs)
        assert store.counts() == store.counts(Odd.kind) == (3,) * 8
        assert store.kinds() == [Odd.kind]
        assert sum(bucket.error for bucket in store.throughput()) == 3
        store.client.close()


def test_lists_mend_what_was_lost(cluster_store: JobStore) -> None:
    """If what lists a job on another node is lost, lists find it and mend that."""
    uuid = put(cluster_store, "queued")
    client: Any = cluster_store.client
    keys = [key for key in client.scan_iter("*") if client.type(key) == b"zset"]
    kept = {key: (max(0, client.pttl(key)), client.dump(key)) for key in keys}
    assert load_job(cluster_store, uuid).cancel()
    for key in client.scan_iter("*"):
        if client.type(key) == b"zset":
            client.delete(key)
    for key, (ttl, value) in kept.items():
        client.restore(key, ttl, value)
    assert cluster_store.list(status="queued").items == []
    (found,) = cluster_store.list(status="cancelled").items
    assert found.uuid == uuid
    assert cluster_store.counts(anew=True).cancelled == 1


def test_store_takes_a_client_that_is_handed_over(cluster: Cluster) -> None:
    """The application may pass its own RedisCluster."""
    with RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        store = JobStore(client)
        assert store.load(put(store, "working")) is not None
        assert all(f"127.0.0.1:{node.port}" in repr(store) for node in cluster.nodes)


def test_the_web_side_shows_a_job_on_a_cluster(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """The setting `jobstate.redis_url` may be the URL of a Cluster."""
    uuid = put(cluster_store, "working", metrics={"miles_run": 3})
    app = make_app(make_config(cluster.url))
    assert get(app, f"/job_state/{uuid}", "alice").json["miles_run"] == 3
    (item,) = get(app, "/job_state", "alice").json["items"]
    assert item["job"]["uuid"] == uuid


def test_slot_that_was_not_covered_is_looked_for_again(
    cluster_store: JobStore,
) -> None:
    """A client that learnt the nodes while none held a slot finds the one that does."""
    uuid = put(cluster_store, "working")
    client = cluster_store.client
    assert isinstance(client, RedisCluster)
    client.nodes_manager.slots_cache.clear()
    assert cluster_store.load(uuid) is not None


def test_a_key_that_is_moving_is_found(
    cluster: Cluster, cluster_store: JobStore
) -> None:
    """While a slot moves to another node, and afterwards, all commands succeed."""
    broker = make_broker(
        cluster.nodes[0].url, JobStateMiddleware(cluster_store, interval=0.01)
    )
    gates = [Gate(), Gate()]

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        for mile, gate in enumerate(gates):
            gate.wait()
            job_state.set_progress_metric("miles_run", mile)
            assert job_state.flush()

    broker.enqueue = lambda message, *, delay=None: message  # type: ignore[method-assign]
    message = run_marathon.message()
    other = make_broker_of(cluster_store, run_marathon)
    with working(other):
        other.enqueue(message)
        gates[0].wait_for_job()
        key = key_of(cluster_store, message.message_id)
        source = cluster.owner_of(key)
        target = (source + 1) % PRIMARIES
        names = {i: cluster.node_id(i) for i in (source, target)}
        with cluster.client(source) as old, cluster.client(target) as new:
            slot = old.execute_command("CLUSTER KEYSLOT", key)

            def setslot(client: redis.Redis, *words: str) -> None:
                client.execute_command("CLUSTER SETSLOT", slot, *words)

            def migrate(client: redis.Redis, node: int) -> None:
                port = cluster.nodes[node].port
                client.execute_command("MIGRATE", "127.0.0.1", port, key, 0, 5000)

            setslot(new, "IMPORTING", names[source])
            setslot(old, "MIGRATING", names[target])
            migrate(old, target)
            # The old node replies ASK.
            gates[0].open()
            gates[1].wait_for_job()
            setslot(new, "NODE", names[target])
            setslot(old, "NODE", names[target])
            # It replies MOVED.
            gates[1].open()
            wait_for(lambda: load_job(cluster_store, message.message_id).is_success)
            # Back again, for the other tests.
            setslot(old, "IMPORTING", names[target])
            setslot(new, "MIGRATING", names[source])
            migrate(new, source)
            setslot(old, "NODE", names[source])
            setslot(new, "NODE", names[source])
    job = load_job(cluster_store, message.message_id)
    assert job.progress_metrics == {"miles_run": 1}


def make_broker_of(store: JobStore, actor: Any) -> Any:
    """Return a broker in memory with an actor's function."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(store, interval=0.01))
    dramatiq.actor(broker=broker, actor_name=actor.actor_name)(actor.fn)
    return broker


def test_key_of_another_program_on_a_cluster(cluster_store: JobStore) -> None:
    """A record that another program has overwritten is unknown, and others are not."""
    bad, good = put(cluster_store, "working"), put(cluster_store, "working")
    cluster_store.client.set(key_of(cluster_store, bad), "no hash")
    found = cluster_store.load_many([bad, good])
    assert [job and job.uuid for job in found] == [None, good]


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
    jobs = [put(cluster_store, "working") for _ in range(12)]
    for job in jobs:
        cluster_store.client.hset(key_of(cluster_store, job), "m:x", b'"\xff"')
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


def test_a_cluster_that_is_away_is_a_redis_error() -> None:
    """Connecting to a Cluster that is away is an ordinary error."""
    with pytest.raises(redis.RedisError):
        JobStore("redis+cluster://127.0.0.1:1")


def test_put_batch_on_a_cluster(cluster_store: JobStore) -> None:
    """Batches for tests are put on a Cluster as well."""
    failed: Any = {"status": "error", "error": JobError("E", "x"), "actor": "a"}
    batch = put_batch(cluster_store, Batch, ["success", failed, "queued"])
    assert batch.counts["error"] == batch.counts["success"] == 1


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
    # Without any node, calls fail rather than hang.
    for i, node in enumerate(cluster.nodes):
        if i != victim:
            os.kill(node.pid, signal.SIGKILL)
    with pytest.raises(redis.RedisError):
        store.load_many([new_id(), new_id()])
