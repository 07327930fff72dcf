"""JobStateMiddleware: what an application adds to its broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .batches import RunningMember
from .following import Follower

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from ..job import MemberSender, Run


class JobStateMiddleware(Follower):
    """Keeps the state of every job of the tracked actors. An actor is tracked if it has
    a parameter `job_state`, or the actor option of that name.

    Add it to the broker before declaring actors that use the option::

        broker.add_middleware(JobStateMiddleware())

    Without a store, URL or client it shares the Redis server of a RedisBroker.

    Parameters:
      store: The store of the job states.
      url: The URL of the Redis server to keep them in.
      client: A `redis.Redis` or `redis.RedisCluster` to keep them with.
      namespace: The prefix of all keys, unless `store` is given.
      interval: Seconds between two flushes of a worker process.
      heartbeat: Seconds without an update before a worker confirms that a job is still
        running. By default 5, or less with a store whose `stalled_after` or
        `active_expire_in` is short.

    Raises:
      TypeError: More than one of store, url and client is given, or an argument has the
        wrong type.
      ValueError: The URL or the namespace is invalid, or interval or heartbeat is not
        positive, or over 86,400 seconds (a day).
    """

    def members_of(
        self, broker: Broker, message: MessageProxy, batch: str, run: Run
    ) -> MemberSender:
        return RunningMember(broker, message, batch, run)
