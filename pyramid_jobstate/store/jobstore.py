"""JobStore: loads and lists the jobs in Redis, and acts on many of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from redis import Redis, RedisCluster

from ..job.record import FINISHED, UNFINISHED, Counts, Record, is_uuid
from ..job.state import JobState, record_of
from .arguments import (
    check_int,
    check_seconds,
    checked_namespace,
    client_of,
    positive,
)
from .bulk import Act, Bulk, BulkResult, Tell
from .connection import MAX_CONNECTIONS, impatient, name_of
from .durations import Durations, read_durations
from .lists import (
    MAX_BUCKETS,
    MAX_SPAN,
    Bucket,
    Filter,
    Page,
    has_status,
    list_page,
    resolved,
)
from .looks import FollowedJobs, Looks, Queue, Unended
from .reader import Failures, LogLine
from .records import Records
from .scripts import Lives, millis
from .whereabouts import Whereabouts
from .workers import WorkerInfo

if TYPE_CHECKING:
    from .watch import Tracker


class JobStore:
    """The jobs in a Redis or Valkey server: a hash for each job, and sorted sets that
    list all jobs, by owner and by kind.

    The methods raise `redis.exceptions.RedisError` if the server does not answer, or
    if all connections stay in use. Each parameter but `max_connections` is an
    attribute, too.

    Parameters:
      client: A `redis.Redis` or `redis.RedisCluster`, or a URL, whose client then has
        half-second timeouts and one retry.
      namespace: The prefix of each key.
      expire_in: Seconds that a job is kept after its end.
      active_expire_in: Seconds that an unfinished job is kept after it is due or after
        the last sign of life from its worker.
      stalled_after: Seconds without a sign of life after which a job reads "stalled".
      max_connections: The most connections to a server that the client of a URL has,
        by default 100. A call that finds all in use waits for one, for half a second.
        An option `max_connections` in the URL wins.

    Raises:
      TypeError: An argument has the wrong type, or `max_connections` comes with a
        client.
      ValueError: A duration is not positive or is over 1e12 seconds, the namespace is
        empty or has a brace that is not part of a hash tag, or the URL is invalid.
    """

    def __init__(
        self,
        client: Redis | RedisCluster | str,
        *,
        namespace: str = "jobstate",
        expire_in: float = 24 * 3600,
        active_expire_in: float = 8 * 24 * 3600,
        stalled_after: float = 15,
        max_connections: int | None = None,
    ) -> None:
        self.client = client_of(client, max_connections)
        self.namespace = checked_namespace(namespace)
        self.expire_in = positive("expire_in", expire_in)
        self.active_expire_in = positive("active_expire_in", active_expire_in)
        self.stalled_after = positive("stalled_after", stalled_after)
        lives = Lives(*map(millis, (active_expire_in, expire_in, stalled_after)))
        self._records = Records(self.client, namespace, lives)
        self._queue = Queue(shares=not isinstance(self.client, RedisCluster))

    def replace(self, **options: Any) -> JobStore:
        """Return a store on the same server with some options replaced.

        Parameters:
          options: The options, such as `expire_in`.

        Raises:
          TypeError, ValueError: As the class.
        """
        mine = {
            "namespace": self.namespace,
            "expire_in": self.expire_in,
            "active_expire_in": self.active_expire_in,
            "stalled_after": self.stalled_after,
        }
        return JobStore(self.client, **{**mine, **options})

    def load(self, uuid: str) -> JobState | None:
        """Return a job, or None if the store has no record of it."""
        record = self._records.record(uuid)
        return None if record is None else self._records.job(record)

    def load_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs in one round trip, or in two if some are aliases or wait
        as members of a batch, with None for each unknown job. A job whose class raises
        an exception is also None, and is logged.
        """
        return self._make(self._records.records(uuids))

    @overload
    def wait(
        self, uuid: str, /, *, timeout: float | None = ..., stalled: float | None = ...
    ) -> JobState: ...

    @overload
    def wait(
        self, *uuids: str, timeout: float | None = ..., stalled: float | None = ...
    ) -> Sequence[JobState]: ...

    def wait(
        self, *uuids: str, timeout: float | None = 60, stalled: float | None = 60
    ) -> JobState | Sequence[JobState]:
        """Wait until a job has ended, or all of several::

            job_state = store.wait(uuid, timeout=600)

        The arguments and errors are those of :meth:`follow`.

        Returns:
          The ended job, or a list of several in the order of the uuids.
        """
        jobs = self.follow(*uuids, timeout=timeout, stalled=stalled)
        for _ in jobs:
            pass
        return jobs._ends()

    @overload
    def follow(
        self, uuid: str, /, *, timeout: float | None = ..., stalled: float | None = ...
    ) -> FollowedJobs[JobState]: ...

    @overload
    def follow(
        self, *uuids: str, timeout: float | None = ..., stalled: float | None = ...
    ) -> FollowedJobs[Sequence[JobState]]: ...

    def follow(
        self, *uuids: str, timeout: float | None = 60, stalled: float | None = 60
    ) -> FollowedJobs[Any]:
        """Return an object that follows jobs until they have ended. Iterate over it for
        each change that it sees, the end of each job last, or await it for the ends::

            for job_state in store.follow(uuid, timeout=None):
                print(job_state.status, job_state.progress)

            async for job_state in store.follow(uuid):
                ...

            job_state = await store.follow(uuid)

        It asks for all jobs that have not ended in one round trip, ten times a second
        while something changes and once a second while nothing does. While the store is
        away, it asks again. In asyncio, one thread asks for all tasks in turn. An end
        that it has seen counts, even if the job runs again. After an error about one
        job, the next item is that of another.

        Parameters:
          uuids: The jobs. `await` returns the ended job, or a list of several in the
            order of the uuids.
          timeout: How many seconds to wait, or None for no limit. A store that does not
            answer can delay the error by a second, or, outside asyncio, for ever if
            `client` has no socket timeout.
          stalled: How many seconds a job may be stalled, or None for no limit.

        Raises:
          KeyError: A job is unknown at the first look, or its record has been gone for
            longer than `stalled_after`, or its class raises an exception, which is
            logged. The argument is the uuid.
          JobStalled: A job has been stalled for longer than `stalled`.
          TimeoutError: The jobs have not ended in time. Its cause is the error of the
            store if that could not be asked at the end.
          JobCancelled: The job that waits was cancelled.
          RuntimeError: A job cannot end: it was sent in a transaction that has not
            committed, or it is the job that waits, its batch or a later step of its
            pipeline. Or another thread or task waits for the next item of the same
            object.
          redis.exceptions.RedisError: The store refuses to answer.
          TypeError: A uuid is not a string, or a duration not a number.
          ValueError: A duration is negative.
        """
        for uuid in uuids:
            if not isinstance(uuid, str):
                raise TypeError(f"A job is named by its uuid, a str, not {uuid!r}.")
            if not is_uuid(uuid):
                raise KeyError(uuid)
        for name, seconds in (("timeout", timeout), ("stalled", stalled)):
            if seconds is not None:
                check_seconds(name, seconds)
        unended = Unended(uuids, self.stalled_after, stalled)
        looks = Looks(
            lambda: self.load_many([*unended.jobs]),
            timeout,
            overdue=unended.overdue,
            queue=self._queue,
        )
        return FollowedJobs(uuids, unended, looks)

    def list(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
        *,
        members: bool = False,
    ) -> Page:
        """Return a page of jobs: first the unfinished, then the ended ones, each with
        the newest first. The cost depends on the size of the page, not on the number of
        jobs in the store.

        A job that ends, or runs again, between two pages may appear on both.

        Parameters:
          owner: Only list jobs of this owner.
          status: Only list jobs of this status.
          kind: Only list jobs of this class or, if their actor declares none, of this
            actor: one of :meth:`kinds`, or its name alone, which with an owner may be
            that of both.
          params: Only list jobs that were sent with these values.
          limit: The maximum number of jobs, from 1 to 200.
          cursor: The `cursor` of the previous page, or None for the first.
          members: Whether to list members of batches. A batch stands for its members
            otherwise.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid, or `owner` is None and a class
            and an actor are named `kind`.
        """
        wanted = Filter(owner, kind, status, params, members=members)
        wanted.check()
        access = self._records.access
        page = list_page(resolved(wanted, access), access, self._make, limit, cursor)
        # Members of a cancelled batch are found by the status that they had.
        fits = [
            job
            for job in page.items
            if status is None or has_status(record_of(job), status)
        ]
        return dataclasses.replace(page, items=fits)

    def members(
        self,
        batch: str,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of the members of a batch, in the order in which they were
        sent. Members whose records have expired are left out.

        Parameters:
          batch: The uuid of the batch.
          status: Only list members of this status.
          limit: The maximum number of members, from 1 to 200.
          cursor: The `cursor` of the previous page, or None for the first.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid.
        """
        Filter(status=status).check()
        records, next_cursor = self._records.batches.page(batch, status, limit, cursor)
        jobs = map(self._records.try_job, records)
        return Page([job for job in jobs if job is not None], next_cursor)

    def failures(self, uuid: str) -> Failures:
        """Return what operators read of a job's failures. Nothing is kept of a job that
        has not failed.
        """
        records = self._records
        return records.at_target(uuid, records.failures) or Failures()

    def ask_where(self, uuid: str) -> bool:
        """Ask the worker of a running job where it is. It answers within about a
        second: see :meth:`where`. A job is asked once a second at most.

        Returns:
          False if the job does not run.
        """

        def ask(each: str) -> bool | None:
            return self._records.ask_where(each) or None

        return self._records.at_target(uuid, ask) is True

    def where(self, uuid: str) -> Whereabouts | None:
        """Return where a job is, or was, as its worker has answered the last
        :meth:`ask_where`, or None if nobody has asked within five minutes. A worker
        does not answer while it is paused, holds the interpreter in one call, or cannot
        reach the store, or if its version is older.
        """
        return self._records.at_target(uuid, self._records.where)

    def log(self, uuid: str, after: int = 0) -> Sequence[LogLine]:
        """Return the lines of a job's log, the oldest first: what its class captures,
        and the lines of `append_log()` between. The newest 64 KiB are kept. A job whose
        class sets no `log_level` has none.

        Parameters:
          after: Only return lines with higher numbers.

        Raises:
          TypeError: after is not an int.
          ValueError: after is negative, or over 1e15.
        """
        check_int("after", after, 0, 10**15)
        records = self._records
        return records.at_target(uuid, lambda each: records.log(each, after)) or []

    def clear(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        older_than: float | None = None,
        limit: int = 1000,
        cursor: str | None = None,
        *,
        everything: bool = False,
        permits: Callable[[JobState], bool] | None = None,
        tell: Callable[[str, bool], object] | None = None,
    ) -> BulkResult:
        """Delete ended jobs, as :meth:`delete` does. Those whose hooks have yet to
        return stay, and count as refused.

        Parameters:
          owner: Only jobs of this owner. Members of batches are among them.
          kind: Only jobs of this kind: see :meth:`list`.
          status: Only jobs of this status.
          older_than: Only jobs that ended at least so many seconds ago.
          limit: The maximum number of jobs, up to 1,000. 0 acts on none: pass the
            cursor that it returns to act, for example after a confirmation, on the jobs
            that match now.
          cursor: The cursor that the previous call with the same arguments returned.
          everything: Whether all ended jobs are meant, if no filter is given.
          permits: Returns whether a job may be deleted.
          tell: Is called for each job that was, or may have been, deleted, with its
            uuid and whether that is certain: False if a reply was lost.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: No filter is given, or status, older_than, limit or cursor is
            invalid, or `owner` is None and a class and an actor are named `kind`.
        """
        act = Act("clear", FINISHED, self._records.delete_records)
        wanted = Filter(owner, kind, status)
        bulk = Bulk(act, wanted, older_than, everything=everything)
        return run_bulk(self, bulk, limit, cursor, permits, tell)

    def cancel_all(
        self,
        owner: str | float | None = None,
        kind: str | None = None,
        status: str | None = None,
        params: Mapping[str, Any] | None = None,
        limit: int = 1000,
        cursor: str | None = None,
        *,
        everything: bool = False,
        permits: Callable[[JobState], bool] | None = None,
        tell: Callable[[str, bool], object] | None = None,
    ) -> BulkResult:
        """Request cancellation of unfinished jobs, as :meth:`.JobState.cancel` does.

        The other arguments and errors are those of :meth:`clear`, for unfinished jobs
        in place of ended ones.

        Parameters:
          params: Only jobs that were sent with these values.
        """
        act = Act("cancel_all", UNFINISHED, self._records.cancel_records)
        wanted = Filter(owner, kind, status, params)
        bulk = Bulk(act, wanted, everything=everything)
        return run_bulk(self, bulk, limit, cursor, permits, tell)

    def counts(
        self, kind: str | None = None, *, anew: bool = False, members: bool = False
    ) -> Counts:
        """Return how many jobs have which status, and how long they wait. That is at
        most a second old, and knows of what this store object has cancelled, deleted
        and run again.

        Parameters:
          kind: Only count jobs of this kind: see :meth:`list`.
          anew: Count now, even if this process has counted within the last second.
          members: Whether to count members of batches.

        Raises:
          TypeError: kind is not a string.
          ValueError: A class and an actor are named `kind`.
        """
        wanted = Filter(kind=kind, members=members)
        wanted.check()
        return self._records.counter.counts(
            resolved(wanted, self._records.access), anew=anew
        )

    def kinds(self) -> Sequence[str]:
        """Return the kinds of the jobs that are listed, in alphabetical order:
        "class:" and the kind of a class, or "actor:" and the name of an actor that
        declares none.
        """
        return self._records.counter.kinds()

    def durations(self, kind: str) -> Durations:
        """Return how long the newest jobs of a kind that succeeded have run, members of
        batches included, as it was within the last minute. It is unknown until 20 of
        them began over more than twice the longest duration: of jobs that begin
        together, the short ones end first.

        Parameters:
          kind: The kind: see :meth:`list`.

        Raises:
          TypeError: kind is not a string.
          ValueError: A class and an actor are named `kind`.
        """
        if kind is None:
            raise TypeError(
                "kind must be a str: jobs of all kinds have little in common."
            )
        wanted = Filter(kind=kind)
        wanted.check()
        access = self._records.access
        return read_durations(access, resolved(wanted, access).scope)

    def workers(self) -> Sequence[WorkerInfo]:
        """Return the worker processes that were heard of within the last hour, by host
        and pid. A process that shuts down is forgotten at once.
        """
        return self._records.workers.read()

    def throughput(
        self,
        kind: str | None = None,
        seconds: float = 86400,
        buckets: int = 96,
        *,
        members: bool = False,
    ) -> Sequence[Bucket]:
        """Return how many jobs ended in each of some periods of equal length, the last
        of which ends now. Jobs that ended more than `expire_in` ago are not counted.

        Parameters:
          kind: Only count jobs of this kind: see :meth:`list`.
          seconds: The length of all periods together, at most 1e9, about 30 years.
          buckets: How many periods, at most 1,000.
          members: Whether to count members of batches.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: seconds is not positive, or over 1e9, buckets is not from 1 to
            1,000, or a class and an actor are named `kind`.
        """
        wanted = Filter(kind=kind, members=members)
        wanted.check()
        positive("seconds", seconds, MAX_SPAN)
        check_int("buckets", buckets, 1, MAX_BUCKETS)
        wanted = resolved(wanted, self._records.access)
        return self._records.counter.throughput(wanted, seconds, buckets)

    def delete(self, uuid: str) -> bool:
        """Delete a job that has ended: it is unknown from now on, and does not run if
        its message comes again.

        Returns:
          Whether this call deleted it. It did not if the job has not ended or is
          unknown.

        Raises:
          RuntimeError: A hook of the job runs here.
        """
        return self._records.delete(uuid)

    def _make(self, records: Iterable[Record | None]) -> Sequence[JobState | None]:
        """Return the jobs of records, with None for each whose class raises."""
        found = self._records.batches.read([*records])
        return [
            None if record is None else self._records.try_job(record)
            for record in found
        ]

    def __repr__(self) -> str:
        return f"<JobStore {self.namespace!r} at {name_of(self.client)}>"


def records_of(store: JobStore) -> Records:
    """Return what senders and workers use of a store."""
    return store._records


def load_some(store: JobStore, uuids: Sequence[str]) -> Sequence[JobState | None]:
    """Return the first of several jobs, and at least one: all of them, unless their
    records are large. None stands for each unknown one.
    """
    return store._make(store._records.some_records(uuids))


def tracker_of(store: JobStore) -> Tracker:
    """Return what reads jobs and hears of their changes. Only push imports it."""
    from .watch import Tracker

    records = store._records
    return Tracker(store.client, records.reader, records.try_job, records.batches)


def run_bulk(
    store: JobStore,
    bulk: Bulk,
    limit: int,
    cursor: str | None,
    permits: Callable[[JobState], bool] | None,
    tell: Tell | None,
) -> BulkResult:
    """Act on many jobs: see :class:`.bulk.Bulk`."""

    def permitted(records: Sequence[Record]) -> Sequence[Record]:
        if permits is None:
            return records
        found: list[Record] = []
        while records:
            jobs = load_some(store, [record.uuid for record in records])
            found += [
                record
                for record, job_state in zip(records, jobs, strict=False)
                if job_state is not None and permits(job_state)
            ]
            records = records[len(jobs) :]
        return found

    access = store._records.access
    return bulk.run(limit, cursor, access=access, permits=permitted, tell=tell)


def store_beside(
    client: object, *, max_connections: int | None = None, **options: Any
) -> JobStore | None:
    """Return a store on the server of a `redis.Redis`, or None for any other object.
    If possible, the store has its own connections, which fail sooner than the client's.

    Parameters:
      max_connections: The most that it has then, or None for 100.
    """
    if not isinstance(client, Redis):
        return None
    own = impatient(client, max_connections or MAX_CONNECTIONS)
    return JobStore(own or client, **options)
