"""A store on a Cluster."""

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis import RedisCluster

from pyramid_jobstate import Batch, Counts, JobError, JobState, JobStore, rerun
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.cluster import PRIMARIES, Cluster, cluster_of_one, running_cluster
from tests.durations import TWO_MINUTES, put_runs
from tests.jobs import RunMarathon, new_id, working
from tests.store.bed import Bed, counts_of
from tests.store.jobs import finish, make_desk, put, uuids_of
from tests.support import STATUSES, frozen, key_of, load_job, wait_for, write
from tests.trips import counting_trips, met

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("cluster")]


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


@pytest.mark.promise("every-server-works")
def test_store_writes_and_reads_across_nodes(cluster, cluster_store):
    """Jobs on all nodes are written, read, listed, cancelled, cleared and run again,
    also through a client of the application's.
    """
    jobs = [put(cluster_store, "working", metrics={"number": i}) for i in range(30)]
    *states, unknown = cluster_store.load_many([*jobs, new_id()])
    assert unknown is None
    assert [s and s.progress_metrics["number"] for s in states] == list(range(30))
    with RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        store = JobStore(client)
        assert all(f"127.0.0.1:{node.port}" in repr(store) for node in cluster.nodes)
        assert len(store.list("alice", limit=100).items) == 30
        assert load_job(store, jobs[0]).cancel()
    assert load_job(cluster_store, jobs[0]).status == "cancelling"
    assert cluster_store.cancel_all(status="working").done == 29
    failed = [put(cluster_store, "error") for _ in range(5)]
    assert all(cluster_store.failures(uuid).message for uuid in failed)
    broker, _ = make_desk(cluster_store)
    assert rerun(cluster_store, broker, failed[0])
    assert cluster_store.clear(status="error").done == 4


def test_jobs_are_followed_across_nodes(cluster, cluster_store):
    """A wait for jobs on all nodes gets the ends of all, in threads and in asyncio. A
    Cluster that is away is asked again.
    """
    uuids = [put(cluster_store, "working") for _ in range(30)]

    def end() -> None:
        for uuid in uuids:
            write(cluster_store, uuid, status="success")

    async def work() -> Any:
        return await cluster_store.follow(*uuids)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = [pool.submit(cluster_store.wait, *uuids)]
        waits.append(pool.submit(asyncio.run, work()))
        with contextlib.ExitStack() as stack:
            for node in cluster.nodes:
                stack.enter_context(frozen(node))
            time.sleep(0.5)
        end()
        for wait in waits:
            assert [job.uuid for job in wait.result(30)] == uuids


def test_lists_take_one_round_trip(cluster, cluster_store):
    """After the call that changes a record, its lists take one round trip to each
    node, as do the jobs of a page after that of their list.
    """

    def node_of(scope: str) -> int:
        return cluster.owner_of(f"jobstate:{{{scope}}}:cancelling")

    # Two of the lists lie on one node.
    names = (f"owner{number}" for number in range(100))
    owner = next(n for n in names if node_of(f'owner:"{n}"') == node_of("all"))
    jobs = [put(cluster_store, "working", owner=owner) for _ in range(20)]
    job, *others = [load_job(cluster_store, uuid) for uuid in jobs]
    for other in others:
        # From now on each node knows the script.
        other.cancel()
    for act in job.cancel, lambda: cluster_store.list(owner, limit=20).items:
        with counting_trips() as trips:
            assert act()
        _, *ports = [trip.port for trip in trips]
        assert ports
        assert len(set(ports)) == len(ports)


def test_batches_on_a_cluster(cluster_store):
    """The keys of a batch lie in one slot, and its members on any nodes."""
    store = cluster_store
    with contextlib.closing(Bed(store, 12)) as bed:
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
        # A member whose record is lost does not run, and gets no other one.
        store.client.delete(key_of(store, bed.uuids[7]))
        bed.deliver(7)
        assert store.load(bed.uuids[7]) is None
        assert store.clear(everything=True).done > 0
        assert store.load(bed.uuid) is None


def test_change_that_a_batch_hears_of_late(cluster_store):
    """The batch is told in a call of its own, which a later change may overtake: a
    member may be cancelled between any two calls of an operator who runs it again. The
    batch counts what it has become.
    """
    store = cluster_store
    broker, run_marathon = make_desk(store)
    failed: Any = {
        "status": "error",
        "job_state_class": RunMarathon,
        "actor": run_marathon.actor_name,
        "error": JobError("ValueError", "bad"),
    }
    batch = put_batch(store, Batch, [failed] * 15)
    for number, uuid in enumerate(uuids_of(store.members(batch.uuid).items), 1):
        cancelled: list[bool] = []

        def cancel(uuid: str = uuid, cancelled: list[bool] = cancelled) -> None:
            cancelled.append(load_job(store, uuid).cancel())

        with counting_trips(number, cancel):
            rerun(store, broker, uuid)
        statuses = [job.status for job in store.members(batch.uuid).items]
        assert counts_of(store, batch.uuid) == Counter(statuses), number
        if not cancelled:
            break
    assert {"queued", "cancelled"} <= {*statuses}


def test_statuses_are_listed_and_counted_on_a_cluster(cluster):
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
        assert store.counts() == store.counts(Odd.kind) == Counts(*[3] * 8)
        waits = store.counts().oldest_wait, store.counts(Odd.kind).recent_wait
        assert None not in waits
        assert store.kinds() == [f"class:{Odd.kind}"]
        assert sum(bucket.error for bucket in store.throughput()) == 3
        if "{" in namespace:
            assert all(key.startswith("{app}:") for key in store.client.scan_iter())
        store.client.close()


def repeating(number: int) -> contextlib.AbstractContextManager[None]:
    """Repeat the round trip of a number, from 1, as if its reply had been lost."""
    trips = itertools.count(1)

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        if next(trips) == number:
            go()
            connection.read_response()
        return go()

    return met(meet)


def test_call_that_is_repeated_lists_the_job(cluster_store):
    """The reply that says where to list it may have been lost: to the call that creates
    it, or to one that queues it again after its end.
    """
    broker, run_marathon = make_desk(cluster_store)
    failed = [put(cluster_store, "error") for _ in range(20)]
    messages = [run_marathon.send(26) for _ in range(20)]
    uuids = {message.message_id for message in messages}
    finish(cluster_store, *uuids)
    # So that the nodes know the scripts.
    for message, uuid in zip(messages[1:], failed[1:], strict=True):
        broker.enqueue(message)
        assert rerun(cluster_store, broker, uuid)
    with repeating(1):
        uuids.add(run_marathon.send(26).message_id)
    with repeating(2):
        broker.enqueue(messages[0])
    with repeating(3):
        assert rerun(cluster_store, broker, failed[0])
    found = cluster_store.list(status="queued", limit=100).items
    assert {*uuids_of(found)} == uuids | {*failed}


def test_durations_on_a_cluster(cluster_store):
    """They are known with and without a hash tag."""
    for namespace in "jobstate", "{jobstate}":
        store = cluster_store.replace(namespace=namespace)
        put_runs(store)
        assert store.durations("class:RunMarathon") == TWO_MINUTES


def test_a_key_that_is_moving_is_found(cluster, cluster_store):
    """While a slot moves to another node, and afterwards, all commands succeed."""
    uuid = put(cluster_store, "working")
    key = key_of(cluster_store, uuid)
    source = cluster.owner_of(key)
    target = (source + 1) % PRIMARIES

    def cancel() -> None:
        assert load_job(cluster_store, uuid).cancel()
        assert load_job(cluster_store, uuid).status == "cancelling"

    # The old node replies ASK, and then MOVED.
    cluster.move(key, source, target, cancel)
    cancel()
    # Back again, for the other tests.
    cluster.move(key, target, source, cancel)


def test_a_cluster_that_is_away_is_a_redis_error():
    """Connecting to a Cluster that is away is an ordinary error. Calls fail as well,
    rather than hang.
    """
    with cluster_of_one() as node:
        store = JobStore(node.url.replace("redis://", "redis+cluster://"))
    with pytest.raises(redis.RedisError):
        store.load_many([new_id(), new_id()])
    with pytest.raises(redis.RedisError):
        JobStore("redis+cluster://127.0.0.1:1")


def test_callers_share_few_connections_to_a_node(cluster, cluster_store):
    """A client has as many connections to each node as it may. Callers wait for one. A
    node whose connections are all in use is not taken to be away.
    """
    uuids = [put(cluster_store, "queued") for _ in range(5)]
    few = JobStore(cluster.url, max_connections=2)
    assert isinstance(few.client, RedisCluster)

    def read(_: int) -> set[str]:
        found = [*few.load_many(uuids), *map(few.load, uuids)]
        return {job.status if job else "" for job in found}

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert {*map(frozenset, pool.map(read, range(100)))} == {frozenset({"queued"})}
    with contextlib.ExitStack() as stack:
        for node in few.client.get_primaries():
            pool_of_node = few.client.get_redis_connection(node).connection_pool
            for _ in range(2):
                taken = pool_of_node.get_connection()
                stack.callback(pool_of_node.release, taken)
        calls: list[Callable[[], object]] = [
            lambda: few.load(uuids[0]),
            lambda: few.load_many(uuids),
            few.counts,
        ]
        for call in calls:
            with pytest.raises(redis.RedisError, match="connections to the store are"):
                call()
    few.client.close()


def test_job_is_listed_once_the_node_of_a_list_is_back(cluster, cluster_store):
    """Jobs that begin and end while the node of a list does not answer are listed there
    as soon as it does.
    """
    broker, run_marathon = make_desk(cluster_store)
    away = cluster.owner_of('jobstate:{owner:"alice"}:success')
    made: list[Any] = []
    while len(made) < 3:
        message = run_marathon.message_with_options(args=(26,), job_owner="alice")
        if cluster.owner_of(f"jobstate:{message.message_id}") != away:
            made.append(message)
    sent = {message.message_id for message in made}
    with working(broker), cluster.client(away) as admin:
        # It takes no other connection, so that it runs nothing later, either.
        limit = admin.config_get("maxclients")["maxclients"]
        admin.config_set("maxclients", 1)
        try:
            admin.client_kill_filter(_type="normal", skipme=True)
            for message in made:
                broker.enqueue(message)
            broker.join("default", timeout=60_000)
        finally:
            admin.config_set("maxclients", limit)
        listed = functools.partial(cluster_store.list, "alice", status="success")
        wait_for(lambda: sent == {job.uuid for job in listed().items}, 40)
    assert cluster_store.list("alice", status="queued").items == []
    assert cluster_store.counts(anew=True).success == 3
