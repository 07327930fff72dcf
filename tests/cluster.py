"""A Valkey or Redis Cluster for the tests: three primaries, each with a replica."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import redis

from pyramid_jobstate.embedded import EmbeddedServer
from tests.support import wait_for

SLOTS = 16384
PRIMARIES = 3

ARGUMENTS = [
    *("--cluster-enabled", "yes"),
    *("--cluster-node-timeout", "1000"),
    *("--cluster-replica-validity-factor", "0"),
    *("--repl-diskless-sync-delay", "0"),
]


class Cluster:
    """The nodes: the primaries first, then their replicas in the same order."""

    def __init__(self, nodes: list[EmbeddedServer]) -> None:
        self.nodes = nodes
        self.url = nodes[0].url.replace("redis://", "redis+cluster://")

    def client(self, i: int) -> redis.Redis:
        return redis.Redis.from_url(self.nodes[i].url, decode_responses=True)

    def node_id(self, i: int) -> str:
        with self.client(i) as client:
            return str(client.execute_command("CLUSTER MYID"))

    def owner_of(self, key: str) -> int:
        """Return the index of the primary that holds a key."""
        with self.client(0) as client:
            slot = client.execute_command("CLUSTER KEYSLOT", key)
        return next(i for i in range(PRIMARIES) if slot in slots_of(i))

    def is_fine(self) -> bool:
        """Whether each live node knows all slots, and each primary its replica."""
        for i in range(len(self.nodes)):
            with self.client(i) as client:
                if client.cluster("info")["cluster_state"] != "ok":
                    return False
                if i < PRIMARIES and not client.info("replication")["connected_slaves"]:
                    return False
        return True

    def follow(self, i: int) -> bool:
        """Have a replica follow its primary. Return whether it knows that by now."""
        with self.client(i + PRIMARIES) as client:
            try:
                client.execute_command("CLUSTER REPLICATE", self.node_id(i))
            except redis.ResponseError:
                return False
        return True

    def move(
        self, key: str, source: int, target: int, amid: Callable[[], object]
    ) -> None:
        """Move the slot of a key to another primary, and call a function when its keys
        have moved, but the old primary does not say yet where to.
        """
        with self.client(source) as old, self.client(target) as new:
            slot = old.execute_command("CLUSTER KEYSLOT", key)
            begin = "CLUSTER SETSLOT", slot
            new.execute_command(*begin, "IMPORTING", self.node_id(source))
            old.execute_command(*begin, "MIGRATING", self.node_id(target))
            keys = old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
            place = "127.0.0.1", self.nodes[target].port
            old.execute_command("MIGRATE", *place, "", 0, 5000, "KEYS", *keys)
            amid()
            for client in new, old:
                client.execute_command(*begin, "NODE", self.node_id(target))


def slots_of(i: int) -> range:
    return range(SLOTS * i // PRIMARIES, SLOTS * (i + 1) // PRIMARIES)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(EmbeddedServer(arguments=ARGUMENTS))
            for _ in range(2 * PRIMARIES)
        ]
        cluster = Cluster(nodes)
        for i in range(len(nodes)):
            with cluster.client(i) as client:
                if i < PRIMARIES:
                    slots = slots_of(i)
                    client.execute_command("CLUSTER ADDSLOTSRANGE", slots[0], slots[-1])
                client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        for i in range(PRIMARIES):
            wait_for(functools.partial(cluster.follow, i), 20)
        wait_for(cluster.is_fine, 30)
        yield cluster


@contextlib.contextmanager
def cluster_of_one() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(arguments=["--cluster-enabled", "yes"]) as node:
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
            wait_for(lambda: client.cluster("info")["cluster_state"] == "ok", 20)
        yield node
