"""JobStore: writes, loads and lists jobs in Redis."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from ..errors import StoreUnavailable
from ..job import (
    FINISHED,
    JobInfo,
    JobState,
    NewJob,
    Record,
    Update,
    note_trouble,
    set_store,
)
from .connection import Client, connect, impatient, name_of, text
from .index import Index
from .pages import Filter, Lister, Page
from .reading import Reader
from .scripts import Call, Calls, Reply, millis, read_scripts, run_scripts, worst


class JobStore:
    """The jobs in a Redis or Valkey server: a hash for each job, and sorted sets that
    list all jobs, by owner and by kind.

    The methods raise `redis.exceptions.RedisError` if the server does not answer.

    Parameters:
      client: A `redis.Redis` or `redis.RedisCluster`, or a URL, whose client then has
        half-second timeouts and one retry: see :func:`.connection.connect`.
      namespace: The prefix of each key.
      expire_in: Seconds that a job is kept after its end.
      active_expire_in: Seconds that an unfinished job is kept after it is due or after
        the last sign of life from its worker.
      stalled_after: Seconds without a sign of life after which a job reads "stalled".

    Raises:
      ValueError: A duration is not a positive number, or the URL is invalid.
    """

    def __init__(
        self,
        client: Client | str,
        *,
        namespace: str = "jobstate",
        expire_in: float = 24 * 3600,
        active_expire_in: float = 8 * 24 * 3600,
        stalled_after: float = 15,
    ) -> None:
        self.client = connect(client) if isinstance(client, str) else client
        self.namespace = namespace
        self.expire_in = _positive("expire_in", expire_in)
        self.active_expire_in = _positive("active_expire_in", active_expire_in)
        self.stalled_after = _positive("stalled_after", stalled_after)
        silence = millis(stalled_after)
        scripts = read_scripts()
        ttls = {"active_ttl": millis(active_expire_in), "ended_ttl": millis(expire_in)}
        self._calls = Calls(scripts, namespace, silence=silence, **ttls)
        self._reader = Reader(self.client, self._calls.key, silence)
        self._index = Index(scripts["index"], namespace, **ttls)

    def replace(self, **options: Any) -> JobStore:
        """Return a store on the same server with some options replaced."""
        mine = {
            "namespace": self.namespace,
            "expire_in": self.expire_in,
            "active_expire_in": self.active_expire_in,
            "stalled_after": self.stalled_after,
        }
        return JobStore(self.client, **{**mine, **options})

    def create(self, *jobs: NewJob) -> Sequence[bool]:
        """Write new jobs as queued, in two round trips. Jobs that have ended are queued
        again, in up to two more. A later step of a pipeline is queued when its turn has
        come. The records of other unfinished jobs and of cancelled ones stay unchanged.

        Returns:
          For each job, whether this call queued it or made it wait for its turn.
        """
        replies = self.create_new(*jobs)
        ended = [
            (job, reply)
            for job, reply in zip(jobs, replies, strict=True)
            if isinstance(reply, str)
        ]
        requeued = iter(self.requeue(ended))
        return [next(requeued) if isinstance(r, str) else r for r in replies]

    def create_new(self, *jobs: NewJob) -> Sequence[bool | str]:
        """Write new jobs as :meth:`create` does, but leave ended jobs alone.

        Returns:
          As :meth:`create`, or for an ended job the token to pass to :meth:`requeue`.
        """
        replies = [
            text(reply) if isinstance(reply, (str, bytes)) else bool(reply)
            for reply in self._run(self._calls.create(job) for job in jobs)
        ]
        self._list_queued(jobs, [reply is True for reply in replies])
        return replies

    def requeue(self, ended: Sequence[tuple[NewJob, str]]) -> Sequence[bool]:
        """Write ended jobs as queued again, unless they have changed since
        :meth:`create_new` returned their tokens.

        Returns:
          For each job, whether it was queued again.
        """
        # The token makes a repeated or late call harmless.
        replies = self._run(self._calls.requeue(job, token) for job, token in ended)
        is_queued = [bool(reply) for reply in replies]
        self._list_queued([job for job, _ in ended], is_queued)
        return is_queued

    def _list_queued(self, jobs: Sequence[NewJob], is_queued: Sequence[bool]) -> None:
        self._run(
            call
            for job, is_new in zip(jobs, is_queued, strict=True)
            if is_new
            for call in self._index.activate(job.uuid, job.info, millis(job.delay))
        )

    def forget(self, *jobs: NewJob) -> None:
        """Delete the records that :meth:`create` wrote for jobs that were not sent
        after all. Records of other senders stay.
        """
        forgotten = self._run(self._calls.forget(job) for job in jobs)
        self._run(
            call
            for job, is_gone in zip(jobs, forgotten, strict=True)
            if is_gone
            for call in self._index.remove(job.uuid, job.info, ended=False)
        )

    def confirm(self, uuid: str) -> None:
        """Write that the broker has accepted the message of a job."""
        self._run([self._calls.confirm(uuid)])

    def write(self, updates: Sequence[Update]) -> Sequence[Reply | Exception]:
        """Write updates of runs in one round trip, or in two if the lists change too.

        Returns:
          The reply to each update, or the exception if it failed.
        """
        calls: list[Call] = []
        places: list[tuple[int, int]] = []
        for update in updates:
            first = len(calls)
            if update.begins:
                calls.append(self._calls.start(update))
            if update.reports:
                calls.append(self._calls.report(update))
            places.append((first, len(calls) - 1))
        replies = run_scripts(self.client, calls)
        results = [worst(replies[first], replies[last]) for first, last in places]
        listed = [
            (i, call)
            for i, update in enumerate(updates)
            if results[i] in (Reply.OK, Reply.CANCELLING)
            for call in self._indexes(update)
        ]
        replies = run_scripts(self.client, [call for _, call in listed])
        for (i, _), reply in zip(listed, replies, strict=True):
            if isinstance(reply, Exception):
                results[i] = reply
        return results

    def cancel(self, uuid: str, info: JobInfo) -> bool:
        """Request cancellation of a job. Return False if it had already ended."""
        # The client may repeat the call if a reply is lost: the word identifies it.
        (done,) = self._run([self._calls.cancel(uuid, secrets.token_hex(4))])
        if done:
            # Losing these calls does no harm: lists move entries that they find in the
            # wrong place, and the reply to a heartbeat tells the worker.
            listed = self._index.end(uuid, info)
            calls = listed if done == 2 else [self._index.announce(uuid)]
            with contextlib.suppress(RedisError):
                self._run(calls)
        return bool(done)

    def cancels(self, since: int) -> tuple[set[str], int]:
        """Return the uuids of the running jobs whose cancellation was requested after
        `since`, at most a minute ago, and the value for `since` at the next call.
        Times are in microseconds of the server's clock.
        """
        key = self._index.cancels_key
        words = (f"({since}", "+inf", "WITHSCORES")
        found = self._reader.scores("ZRANGEBYSCORE", key, *words)
        return {uuid for uuid, _ in found}, max([since, *(time for _, time in found)])

    def load(self, uuid: str) -> JobState | None:
        """Return a job, or None if the store has no record of it."""
        (record,) = self._reader.read([uuid])
        return None if record is None else self._job(record)

    def load_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs in one round trip, with None for each unknown job. A job
        whose class raises an exception is also None, and is logged.
        """
        return self._make(self._reader.read(uuids))

    def _make(self, records: Iterable[Record | None]) -> Sequence[JobState | None]:
        """Return the jobs of records, with None for each whose class raises."""
        return [self._try_job(record) for record in records]

    def list(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of jobs: first the unfinished, then the ended ones, each with
        the newest first. The cost depends on the size of the page, not on the number of
        jobs in the store.

        A job that ends between two pages may appear on both.

        Parameters:
          owner, kind, status: Only list jobs of this owner, kind or status.
          params: Only list jobs that were sent with these values.
          limit: The maximum number of jobs, from 1 to 200.
          cursor: The `cursor` of the previous page, or None for the first.

        Raises:
          TypeError: limit is not an int.
          ValueError: limit, status or cursor is invalid.
        """
        wanted = Filter(owner, kind, status, params)
        lister = Lister(wanted, self._reader, self._index, self._run, self._make)
        return lister.page(limit, cursor)

    def __repr__(self) -> str:
        return f"<JobStore {self.namespace!r} at {name_of(self.client)}>"

    def _job(self, record: Record) -> JobState:
        job_state = JobState.from_record(record)
        set_store(job_state, self)
        return job_state

    def _try_job(self, record: Record | None) -> JobState | None:
        if record is None:
            return None
        try:
            return self._job(record)
        except StoreUnavailable:
            raise
        except Exception:
            note_trouble(JobState.class_of(record), record.uuid)
            return None

    def _run(self, calls: Iterable[Call]) -> Sequence[Any]:
        """Run calls and return their replies. Raise the first error among these."""
        calls = list(calls)
        replies = run_scripts(self.client, calls) if calls else []
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        return replies

    def _indexes(self, update: Update) -> Iterable[Call]:
        if update.end is not None and update.end.status in FINISHED:
            return self._index.end(update.uuid, update.info)
        if update.begins or update.renews:
            renews = update.renews
            return self._index.activate(update.uuid, update.info, renews=renews)
        return ()


def store_beside(client: object, **options: Any) -> JobStore | None:
    """Return a store on the server of a `redis.Redis`, or None for any other object.
    If possible, the store has its own connections, which fail sooner than the client's.
    """
    if not isinstance(client, Redis):
        return None
    return JobStore(impatient(client) or client, **options)


def _positive(name: str, seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds, not {seconds}.")
    return seconds
