"""JobStore: every key, script and byte in Redis."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.connection import BlockingConnectionPool, ConnectionPool
from redis.exceptions import RedisError
from redis.retry import Retry

from .record import FINISHED, UUID, Record, Start, Update
from .scripts import Call, read_scripts, run_scripts
from .state import JobState
from .values import dumps

if TYPE_CHECKING:
    from dramatiq import Broker

#: How a client of our own connects: a user waits for the answer, and the recorder
#: tries again by itself. redis-py's defaults block for seconds.
FAIL_FAST: dict[str, Any] = {
    "socket_timeout": 0.5,
    "socket_connect_timeout": 0.5,
    "retry": Retry(ConstantBackoff(0.05), 1),
}


class Reply(enum.IntEnum):
    """What the store says to a run's update."""

    FENCED = -1
    MISSING = 0
    OK = 1


class StoreUnavailable(Exception):
    """The store does not answer a web request.

    Parameters:
      container: The JobStates that asked it.
    """

    def __init__(self, container: object) -> None:
        super().__init__("The job state store does not answer.")
        self.container = container


class JobStore:
    """The jobs in a Redis or Valkey server, a hash for each.

    Parameters:
      client: A `redis.Redis`, or the URL of a server, for which a client is made that
        gives up after half a second.
      namespace: What the name of each key begins with.
      expire_in: Seconds that a job is kept after its end.
      active_expire_in: Seconds that a job which has not ended is kept after it is due,
        or after its worker was last heard of.
      stalled_after: Seconds without a sign of life after which a job reads `stalled`.

    Raises:
      ValueError: A duration is not positive, or the URL cannot be understood.

    The methods raise `redis.exceptions.RedisError` where the server does not answer.
    """

    def __init__(
        self,
        client: Redis | str,
        *,
        namespace: str = "jobstate",
        expire_in: float = 24 * 3600,
        active_expire_in: float = 8 * 24 * 3600,
        stalled_after: float = 15,
    ) -> None:
        if isinstance(client, str):
            client = Redis.from_url(client, **FAIL_FAST)
        self.client = client
        self.namespace = namespace
        self.expire_in = _positive("expire_in", expire_in)
        self.active_expire_in = _positive("active_expire_in", active_expire_in)
        self.stalled_after = _positive("stalled_after", stalled_after)
        self._scripts = read_scripts()

    def replace(self, **options: Any) -> JobStore:
        """Return a store in the same server, with other options."""
        mine = {
            "namespace": self.namespace,
            "expire_in": self.expire_in,
            "active_expire_in": self.active_expire_in,
            "stalled_after": self.stalled_after,
        }
        return JobStore(self.client, **{**mine, **options})

    def create(self, uuid: str, start: Start, *, delay: float = 0.0) -> bool:
        """Write that a job is queued, unless there is a record of it.

        Parameters:
          uuid: The id of the message.
          start: What is known of the job.
          delay: Seconds until it is due.

        Returns:
          Whether there was none.
        """
        ttl = int(self.active_expire_in * 1000)
        wait = int(delay * 1000)
        call = self._call("create", uuid, ttl, wait, *_flat(start.fields()))
        return bool(self._run(call))

    def confirm(self, uuid: str) -> None:
        """Write that the broker has taken the message of a job."""
        self._run(self._call("confirm", uuid))

    def write(self, updates: Sequence[Update]) -> list[Reply | Exception]:
        """Write what runs have to say, all in one round trip.

        Returns:
          The reply to each, or the exception where it could not be carried out.
        """
        calls: list[Call] = []
        last: list[int] = []
        for update in updates:
            if update.start is not None:
                calls.append(self._begin(update, update.start))
            calls.append(self._report(update))
            last.append(len(calls) - 1)
        replies = run_scripts(self.client, calls)
        return [
            reply if isinstance(reply := replies[i], Exception) else Reply(reply)
            for i in last
        ]

    def load(self, uuid: str) -> JobState | None:
        """Return a job, or None if there is no record of it."""
        return self.load_many([uuid])[0]

    def load_many(self, uuids: Sequence[str]) -> list[JobState | None]:
        """Return several jobs, None for each unknown one, in one round trip."""
        with self.client.pipeline(transaction=False) as pipe:
            for uuid in uuids:
                pipe.hgetall(self.key(uuid))
            pipe.time()
            *hashes, (seconds, micros) = pipe.execute()
        now = int(seconds) * 1000 + int(micros) // 1000
        return [
            self._read(uuid, fields, now) if fields else None
            for uuid, fields in zip(uuids, hashes, strict=True)
        ]

    def key(self, uuid: str) -> str:
        """Return the key of a job's hash."""
        return f"{self.namespace}:{uuid}"

    def __repr__(self) -> str:
        # Without what may hold a password.
        kwargs = getattr(self.client, "connection_pool", None)
        place = getattr(kwargs, "connection_kwargs", {})
        where = place.get("path") or "{host}:{port}/{db}".format_map(
            {"host": "?", "port": "?", "db": 0, **place}
        )
        return f"<JobStore {self.namespace!r} at {where}>"

    def _read(self, uuid: str, fields: Mapping[Any, Any], now: int) -> JobState:
        text = {_text(name): _text(value) for name, value in fields.items()}
        record = Record.read(uuid, text, now, int(self.stalled_after * 1000))
        return JobState.from_record(record)

    def _run(self, call: Call) -> Any:
        (reply,) = run_scripts(self.client, [call])
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def _call(self, script: str, uuid: str, *args: str | int) -> Call:
        return Call(self._scripts[script], self.key(uuid), args)

    def _begin(self, update: Update, start: Start) -> Call:
        return self._call(
            "start",
            update.uuid,
            update.token,
            int(update.age * 1000),
            int(update.late),
            int(self.active_expire_in * 1000),
            *_flat(start.fields()),
        )

    def _report(self, update: Update) -> Call:
        fields = update.fields
        end = update.end
        if end is None:
            ttl = int(self.active_expire_in * 1000)
            args = (update.token, update.seq, ttl)
            return self._call("record", update.uuid, *args, *_flat(fields))
        if end.error is not None:
            fields = {**fields, "error": dumps(end.error)}
        is_over = end.status in FINISHED
        ttl = int((self.expire_in if is_over else self.active_expire_in) * 1000)
        delay = int(end.delay * 1000)
        ending = (update.token, update.seq, ttl, end.status, delay)
        return self._call("finish", update.uuid, *ending, *_flat(fields))


def store_of_broker(broker: Broker, **options: Any) -> JobStore | None:
    """Return a store in the server that a RedisBroker uses, or None for other brokers.

    It has connections of its own, that give up sooner than the broker's.
    """
    client = getattr(broker, "client", None)
    if not isinstance(client, Redis):
        return None
    pool = client.connection_pool
    if type(pool) in (ConnectionPool, BlockingConnectionPool):
        kwargs = {**pool.connection_kwargs, **FAIL_FAST}
        own = ConnectionPool(connection_class=pool.connection_class, **kwargs)
        client = Redis(connection_pool=own)
    return JobStore(client, **options)


def is_uuid(name: object) -> bool:
    """Whether a message id, or a segment of a path, can be a job's uuid."""
    return isinstance(name, str) and UUID.fullmatch(name) is not None


def _positive(name: str, seconds: float) -> float:
    if not seconds > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {seconds}.")
    return seconds


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for field in fields.items() for word in field]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
