"""Which node of a Cluster holds a key. redis-py does not type what finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from redis import RedisCluster
from redis.cluster import ClusterNode
from redis.exceptions import SlotNotCoveredError


def primary_of(client: RedisCluster, key: str) -> ClusterNode:
    """Return the primary that holds a key, as far as the client knows.

    Raises:
      SlotNotCoveredError: The client knows of none.
    """
    find = cast("Callable[[str], ClusterNode]", client.get_node_from_key)
    return find(key)


def fresh_primary_of(client: RedisCluster, key: str) -> ClusterNode:
    """Return the same. If the client knows of none, have it ask the Cluster first.

    Raises:
      redis.exceptions.RedisClusterException: No node holds the key.
    """
    try:
        return primary_of(client, key)
    except SlotNotCoveredError:
        # What the client knows dates from a time when no node held the slot.
        client.nodes_manager.initialize()
        return primary_of(client, key)


def node_named(client: RedisCluster, name: str) -> ClusterNode | None:
    """Return a node by its name, or None if it has left the Cluster."""
    find = cast("Callable[..., ClusterNode | None]", client.get_node)
    return find(node_name=name)
