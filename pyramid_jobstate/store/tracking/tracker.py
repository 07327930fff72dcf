"""The jobs that a process watches: which keys they depend on, and where these lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from redis import RedisCluster
from redis import exceptions as errors

from ...job import BATCH
from ..batches import batch_of, is_waiting, stop
from ..claims import named
from ..connection import Client, redis_errors
from ..nodes import node_named, primary_of
from ..passing import PASSING
from ..reading import Reader
from ..trouble import skip
from .link import Link

if TYPE_CHECKING:
    from ...job import JobState, Record
    from ..batches import BatchReads

#: How the errors begin of a Cluster node that does not hold a key, and of a server that
#: does not read it at present.
ELSEWHERE = ("MOVED ", "ASK ", *PASSING)


class Tracker:
    """Reads jobs on links: see :class:`.link.Link`.

    Parameters:
      client: The store's client.
      reader: Its reader.
      make: Makes the job of a record, or returns None if its class raises.
      members: Looks at the members of silent batches.
    """

    def __init__(
        self,
        client: Client,
        reader: Reader,
        make: Callable[[Record], JobState | None],
        members: BatchReads,
    ) -> None:
        # Kept, since isinstance() is slow for classes of redis-py.
        self._cluster = client if isinstance(client, RedisCluster) else None
        self._client = client
        self._reader = reader
        self.make = make
        #: Returns the server's time in milliseconds.
        self.now = reader.now
        self.set_clock = reader.set_clock
        self._members = members

    def keys_of(self, uuid: str, found: Mapping[str, Any]) -> frozenset[str]:
        """Return the keys on which the state of a job depends.

        Parameters:
          found: The replies to those keys that have been read. What they say may add
            further keys.
        """
        key = self._reader.key(uuid)
        reply = found.get(key)
        alias = self._reader.alias(uuid, reply)
        if alias is not None:
            return frozenset((key, self._reader.key(alias.target)))
        batch = self._batch_of(uuid, reply)
        return frozenset((key,) if batch is None else (key, self._reader.key(batch)))

    def record(self, uuid: str, found: Mapping[str, Any]) -> Record | None:
        """Return the record of a job, or None if the store has none.

        Parameters:
          found: The replies to the keys of the job.

        Raises:
          redis.exceptions.RedisError: A reply is an error.
        """
        key = self._reader.key(uuid)
        alias = self._reader.alias(uuid, found[key])
        if alias is None:
            record = self._reader.record(uuid, found[key])
            batch = self._batch_of(uuid, found[key])
            if record is not None and batch is not None:
                stop(record, *self._stop_of(self._reader.key(batch), found))
            return record
        target = alias.target
        record = self._reader.record(target, found[self._reader.key(target)])
        return None if record is None else named(record, uuid)

    def may_look(self, record: Record) -> bool:
        """Return whether to look at the members of a job: see
        :meth:`.BatchReads.may_look`.
        """
        return self._members.may_look(record)

    def look(self, record: Record) -> None:
        """Look at members of a silent batch, which takes round trips: see
        :meth:`.BatchReads.look`.
        """
        self._members.look_at_silent([record])

    def _batch_of(self, uuid: str, reply: Any) -> str | None:
        """Return the uuid of the batch on which a job depends that does not run, or
        None.
        """
        if not isinstance(reply, dict) or reply.get("batch") in (None, BATCH):
            return None
        record = self._reader.record(uuid, reply)
        return batch_of(record) if record and is_waiting(record) else None

    def _stop_of(
        self, key: str, found: Mapping[str, Any]
    ) -> tuple[str | None, str | None]:
        """Return when a batch was cancelled, and its status, as far as they were read.

        Raises:
          redis.exceptions.RedisError: The reply is an error that will pass.
        """
        reply = found.get(key, {})
        if isinstance(reply, Exception):
            skip(key, reply)
            return None, None
        return reply.get("stopped"), reply.get("status")

    def server_of(self, key: str) -> str:
        """Return the name of the server that holds a key: of a Cluster's primary.

        Raises:
          redis.exceptions.RedisError: The Cluster has none.
        """
        if self._cluster is None:
            return ""
        with redis_errors():
            return primary_of(self._cluster, key).name

    def connect(self, server: str) -> Link:
        """Return a new link to a server.

        Raises:
          TrackingRefused: The server does not tell of changes.
          redis.exceptions.RedisError: It does not answer.
        """
        client = self._client
        if not isinstance(client, RedisCluster):
            return Link(client)
        with redis_errors():
            node = node_named(client, server)
            if node is None:
                raise errors.ConnectionError(f"{server} has left the Cluster.")
            return Link(client.get_redis_connection(node))

    def refresh(self) -> None:
        """Learn anew which server of a Cluster holds which keys.

        Raises:
          redis.exceptions.RedisError: No server answers.
        """
        if self._cluster is not None:
            with redis_errors():
                self._cluster.nodes_manager.initialize()


def is_elsewhere(reply: object) -> bool:
    """Return whether a reply says to look for a key again, perhaps elsewhere."""
    return isinstance(reply, errors.ResponseError) and str(reply).startswith(ELSEWHERE)
