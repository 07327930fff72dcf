"""JobStore: writes, loads, lists and counts jobs in Redis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis import Redis

from ..errors import StoreUnavailable
from ..job import FINISHED, UNFINISHED, JobState, Record, note_trouble, set_store
from .acts import JobActs
from .bulk import Act, Bulk, BulkResult, Tell
from .connection import impatient, name_of
from .counting import MAX_BUCKETS, Bucket, Counter, Counts
from .failures import FIELDS, Failures, read_failures
from .filters import OUTLINE, Filter
from .pages import Lister, Page
from .writes import positive

if TYPE_CHECKING:
    from .tracking import Tracker


class JobStore(JobActs):
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

    def replace(self, **options: Any) -> JobStore:
        """Return a store on the same server with some options replaced."""
        mine = {
            "namespace": self.namespace,
            "expire_in": self.expire_in,
            "active_expire_in": self.active_expire_in,
            "stalled_after": self.stalled_after,
        }
        return JobStore(self.client, **{**mine, **options})

    def now(self) -> int | None:
        """Return the server's time in milliseconds, as this process knows it from what
        it has read, or None if it has read nothing yet. Asks nothing of the server.
        """
        return self._reader.now() if self._reader.has_clock else None

    def load(self, uuid: str) -> JobState | None:
        """Return a job, or None if the store has no record of it."""
        record = self.record(uuid)
        return None if record is None else self._job(record)

    def record(self, uuid: str) -> Record | None:
        """Return the record of a job, whatever its class, or None if it is unknown."""
        (record,) = self.claims.follow([uuid])
        return record

    def has_record(self, uuid: str) -> bool:
        """Return whether there is a record of a job, even of one that was deleted."""
        return self._reader.exists(uuid)

    def load_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs in one round trip, or in two if some are aliases, with
        None for each unknown job. A job whose class raises an exception is also None,
        and is logged.
        """
        return self._make(self.claims.follow(uuids))

    def track(self) -> Tracker:
        """Return what reads jobs and hears of their changes. Only push imports it."""
        from .tracking import Tracker

        return Tracker(self.client, self._reader, self._try_job)

    def unique_job(self, identity: str, *, ended: bool) -> JobState | None:
        """Return the job of an identity that is under way or, with `ended`, the last
        one, or None.
        """
        record = (self.claims.find if ended else self.claims.under_way)(identity)
        return None if record is None else self._job(record)

    def _make(self, records: Iterable[Record | None]) -> Sequence[JobState | None]:
        """Return the jobs of records, with None for each whose class raises."""
        return [None if record is None else self._try_job(record) for record in records]

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
        lister = Lister(wanted, self._access, self._make, self._sweep.is_done)
        return lister.page(limit, cursor)

    def delete(self, uuid: str) -> bool:
        """Delete a job that has ended: it is unknown from now on, and does not run if
        its message comes again.

        Returns:
          Whether this call deleted it: False if it has not ended or is unknown.
        """
        (record,) = self._reader.read([uuid], *OUTLINE)
        record = record or self.claims.target_of(uuid)
        return record is not None and bool([*self.delete_records([record])])

    def failures(self, uuid: str) -> Failures:
        """Return what operators read of a job's failures. Nothing is kept of a job that
        has not failed.
        """
        return read_failures(self._reader.fields(self._calls.failure_key(uuid), FIELDS))

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
        tell: Tell | None = None,
    ) -> BulkResult:
        """Delete ended jobs, as :meth:`delete` does.

        Parameters:
          owner, kind, status: Only jobs of this owner, kind or status.
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
          TypeError: limit is not an int.
          ValueError: No filter is given, or status, older_than, limit or cursor is
            invalid.
        """
        act = Act("clear", FINISHED, self.delete_records)
        wanted = Filter(owner, kind, status)
        bulk = Bulk(act, wanted, older_than, everything=everything)
        return self.run_bulk(bulk, limit, cursor, permits, tell)

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
        tell: Tell | None = None,
    ) -> BulkResult:
        """Request cancellation of unfinished jobs, as :meth:`.JobState.cancel` does.

        The other arguments and errors are those of :meth:`clear`, for unfinished jobs
        in place of ended ones.

        Parameters:
          params: Only jobs that were sent with these values.
        """
        act = Act("cancel_all", UNFINISHED, self.cancel_records)
        wanted = Filter(owner, kind, status, params)
        bulk = Bulk(act, wanted, everything=everything)
        return self.run_bulk(bulk, limit, cursor, permits, tell)

    def run_bulk(
        self,
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
            jobs = self.load_many([record.uuid for record in records])
            return [
                record
                for record, job_state in zip(records, jobs, strict=True)
                if job_state is not None and permits(job_state)
            ]

        return bulk.run(
            limit,
            cursor,
            access=self._access,
            knows_statuses=self._sweep.is_done,
            permits=permitted,
            tell=tell,
        )

    def counts(self, kind: str | None = None, *, anew: bool = False) -> Counts:
        """Return how many jobs have which status, at most a second old and approximate:
        see :class:`.counting.Counts`.

        Parameters:
          kind: Only count jobs of this kind.
          anew: Count now, even if this process has counted within the last second.
        """
        self._sweep.is_done()
        return self._counter.counts(kind, anew=anew)

    def kinds(self) -> Sequence[str]:
        """Return the kinds of the jobs that are listed, in alphabetical order."""
        return self._counter.kinds()

    def throughput(
        self, kind: str | None = None, seconds: float = 86400, buckets: int = 96
    ) -> Sequence[Bucket]:
        """Return how many jobs ended in each of some periods of equal length, the last
        of which ends now. Jobs that ended more than `expire_in` ago are not counted.

        Parameters:
          kind: Only count jobs of this kind.
          seconds: The length of all periods together.
          buckets: How many periods, at most 1,000.

        Raises:
          ValueError: seconds is not positive, or buckets not from 1 to 1,000.
        """
        positive("seconds", seconds)
        if not 1 <= buckets <= MAX_BUCKETS:
            raise ValueError(f"buckets must be from 1 to {MAX_BUCKETS}, not {buckets}.")
        self._sweep.is_done()
        return self._counter.throughput(kind, seconds, buckets)

    @functools.cached_property
    def _counter(self) -> Counter:
        return Counter(self.client, self._access)

    def __repr__(self) -> str:
        return f"<JobStore {self.namespace!r} at {name_of(self.client)}>"

    def _job(self, record: Record) -> JobState:
        job_state = JobState.from_record(record)
        set_store(job_state, self)
        return job_state

    def _try_job(self, record: Record) -> JobState | None:
        try:
            return self._job(record)
        except StoreUnavailable:
            raise
        except Exception:
            note_trouble(JobState.class_of(record), record.uuid)
            return None


def store_beside(client: object, **options: Any) -> JobStore | None:
    """Return a store on the server of a `redis.Redis`, or None for any other object.
    If possible, the store has its own connections, which fail sooner than the client's.
    """
    if not isinstance(client, Redis):
        return None
    return JobStore(impatient(client) or client, **options)
