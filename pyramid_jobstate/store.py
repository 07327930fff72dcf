"""JobStore: every key, script and byte in Redis."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.connection import BlockingConnectionPool, ConnectionPool
from redis.exceptions import RedisError
from redis.retry import Retry

from .record import CANCELLED, FINISHED, UUID, Record, Start, Update
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


class StoreUnavailable(Exception):
    """The store does not answer a web request.

    Parameters:
      container: The JobStates that asked it.
    """

    def __init__(self, container: object) -> None:
        super().__init__("The job state store does not answer.")
        self.container = container


class Reply(enum.IntEnum):
    """What the store says to a run's update: see lua/common.lua."""

    CANCELLED = -2
    FENCED = -1
    MISSING = 0
    OK = 1
    CANCELLING = 2


class JobStore:
    """The jobs in a Redis or Valkey server, a hash for each, and sorted sets that list
    them by owner, by kind and all.

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
        self._ended_ttl = _millis(expire_in)
        self._active_ttl = _millis(active_expire_in)
        self._silence = _millis(stalled_after)
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
        """Write that a job is queued. A record of it is left alone, unless the job has
        succeeded or failed.

        Parameters:
          uuid: The id of the message.
          start: What is known of the job.
          delay: Seconds until it is due.

        Returns:
          Whether it was written.
        """
        wait = _millis(delay)
        args: list[str | int] = [self._active_ttl, wait, *_flat(start.fields())]
        created = self._run(self._call("create", uuid, *args))
        if isinstance(created, (str, bytes)):
            # Asked again, with what was read: a call that comes late changes nothing.
            created = self._run(self._call("requeue", uuid, *args, _text(created)))
        if created:
            self._run(*self._index(uuid, start, ended=False, delay=wait))
        return bool(created)

    def confirm(self, uuid: str) -> None:
        """Write that the broker has taken the message of a job."""
        self._run(self._call("confirm", uuid))

    def write(self, updates: Sequence[Update]) -> list[Reply | Exception]:
        """Write what runs have to say, all in one round trip, or two if one begins or
        ends.

        Returns:
          The reply to each, or the exception where it could not be carried out.
        """
        calls: list[Call] = []
        places: list[tuple[int, int]] = []
        for update in updates:
            first = len(calls)
            if update.begins:
                calls.append(self._begin(update))
            if update.fields or update.end or not update.begins:
                calls.append(self._report(update))
            places.append((first, len(calls) - 1))
        replies = run_scripts(self.client, calls)
        results = [_worst(replies[first], replies[last]) for first, last in places]
        self._run(
            *(
                call
                for update, result in zip(updates, results, strict=True)
                if result in (Reply.OK, Reply.CANCELLING)
                for call in self._indexes(update)
            )
        )
        return results

    def cancel(self, uuid: str, start: Start) -> bool:
        """Ask to cancel a job, and say whether it had not ended."""
        call = self._call("cancel", uuid, self._ended_ttl, dumps(CANCELLED))
        done = self._run(call)
        if done == 2:
            self._run(*self._index(uuid, start, ended=True))
        return bool(done)

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

    def index_key(self, name: str, *, ended: bool) -> str:
        """Return the key of the sorted set of the jobs that have ended, or that have
        not, of an index: "all", "kind:" and a kind, or "owner:" and the owner.
        """
        return f"{self.namespace}:{'ended' if ended else 'active'}:{name}"

    def __repr__(self) -> str:
        # Without what may hold a password.
        pool = getattr(self.client, "connection_pool", None)
        place = getattr(pool, "connection_kwargs", {})
        where = place.get("path") or "{host}:{port}/{db}".format_map(
            {"host": "?", "port": "?", "db": 0, **place}
        )
        return f"<JobStore {self.namespace!r} at {where}>"

    def _read(self, uuid: str, fields: Mapping[Any, Any], now: int) -> JobState:
        text = {_text(name): _text(value) for name, value in fields.items()}
        record = Record.read(uuid, text, now, self._silence)
        job_state = JobState.from_record(record)
        job_state._store = self
        return job_state

    def _run(self, *calls: Call) -> Any:
        """Run calls of which none may fail, and return the reply to the last."""
        reply = None
        for reply in run_scripts(self.client, calls) if calls else ():
            if isinstance(reply, RedisError):
                raise reply
        return reply

    def _call(self, script: str, uuid: str, *args: str | int) -> Call:
        return Call(self._scripts[script], self.key(uuid), args)

    def _begin(self, update: Update) -> Call:
        return self._call(
            "start",
            update.uuid,
            update.token,
            _millis(update.age),
            int(update.late),
            self._active_ttl,
            *_flat(update.start.fields()),
        )

    def _report(self, update: Update) -> Call:
        uuid, fields, end = update.uuid, update.fields, update.end
        if end is None:
            return self._call(
                "record",
                uuid,
                update.token,
                update.seq,
                self._active_ttl,
                *_flat(fields),
            )
        error = {} if end.error is None else {"error": dumps(end.error)}
        if update.dropped:
            ttl = self._ended_ttl
            return self._call(
                "drop", uuid, ttl, self._silence, end.status, *error.values()
            )
        args = (
            update.token,
            update.seq,
            self._ended_ttl,
            self._active_ttl,
            end.status,
            _millis(end.delay),
            dumps(CANCELLED),
        )
        return self._call("finish", uuid, *args, *_flat(fields | error))

    def _indexes(self, update: Update) -> Iterable[Call]:
        if update.end is not None and update.end.status in FINISHED:
            return self._index(update.uuid, update.start, ended=True)
        if update.begins:
            return self._index(update.uuid, update.start, ended=False)
        return ()

    def _index(
        self, uuid: str, start: Start, *, ended: bool, delay: int = 0
    ) -> Iterable[Call]:
        """Yield the calls that list a job among those that have ended, or that have
        not.
        """
        script = self._scripts["index"]
        names = ["all"]
        if start.kind:
            names.append(f"kind:{start.kind}")
        if start.owner is not None:
            names.append(f"owner:{start.owner}")
        for name in names:
            if ended:
                key = self.index_key(name, ended=False)
                yield Call(script, key, (uuid, 0, 0, ""))
                key = self.index_key(name, ended=True)
                yield Call(script, key, (uuid, self._ended_ttl, 0, "1"))
            else:
                key = self.index_key(name, ended=False)
                yield Call(script, key, (uuid, self._active_ttl, delay, "1"))


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


def _millis(seconds: float) -> int:
    return int(seconds * 1000)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for field in fields.items() for word in field]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _worst(first: Any, last: Any) -> Reply | Exception:
    """Return what counts of the replies to a start and to what came after it."""
    for reply in (first, last):
        if isinstance(reply, Exception):
            return reply
    return Reply(min(first, last))
