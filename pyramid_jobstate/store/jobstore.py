"""JobStore: loads and lists the jobs in Redis, and acts on many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis import Redis

from ..errors import StoreUnavailable
from ..job import (
    FINISHED,
    UNFINISHED,
    JobState,
    Record,
    note_trouble,
    record_of,
    set_store,
)
from .arguments import positive
from .batches import BatchReads
from .bulk import Act, Bulk, BulkResult, Tell
from .connection import impatient, name_of
from .lists import MAX_BUCKETS, MAX_SPAN, Bucket, Counts, Filter, Lister, Page
from .reader import FIELDS, Failures, read_failures
from .records import JobActs
from .scripts import millis

if TYPE_CHECKING:
    from .reader import Alias
    from .watch import Tracker


class JobReads(JobActs):
    """The part of a JobStore that loads and lists jobs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        silence = millis(self.stalled_after)
        self._batch_reads = BatchReads(self._calls, self._reader, self.batches, silence)

    def load(self, uuid: str) -> JobState | None:
        """Return a job, or None if the store has no record of it."""
        record = self.record(uuid)
        return None if record is None else self._job(record)

    def record(self, uuid: str) -> Record | None:
        """Return the record of a job, whatever its class, or None if it is unknown."""
        found = self._reader.read_one(uuid)
        if isinstance(found, Record) and found.text("batch") is None:
            # Most jobs belong to no batch.
            return found
        (record,) = self._batch_reads.read(self._follow([uuid], [found]))
        return record

    def has_record(self, uuid: str) -> bool:
        """Return whether there is a record of a job, even of one that was deleted."""
        return self._reader.exists(uuid)

    def earlier_runs(self, uuid: str) -> Sequence[str]:
        """Return the tokens of the earlier runs of a job, which may write no more."""
        fields = self._reader.fields(self._reader.key(uuid), ("past",))
        return fields.get("past", "").split()

    def load_many(self, uuids: Sequence[str]) -> Sequence[JobState | None]:
        """Return several jobs in one round trip, or in two if some are aliases or wait
        as members of a batch, with None for each unknown job. A job whose class raises
        an exception is also None, and is logged.
        """
        return self._make(self._follow(uuids, self._reader.read_any(uuids)))

    def track(self) -> Tracker:
        """Return what reads jobs and hears of their changes. Only push imports it."""
        from .watch import Tracker

        return Tracker(self.client, self._reader, self._try_job, self._batch_reads)

    def unique_job(self, identity: str, *, ended: bool) -> JobState | None:
        """Return the job of an identity that is under way or, with `ended`, the last
        one, or None.
        """
        record = (self.claims.find if ended else self.claims.under_way)(identity)
        return None if record is None else self._job(record)

    def _make(self, records: Iterable[Record | None]) -> Sequence[JobState | None]:
        """Return the jobs of records, with None for each whose class raises."""
        found = self._batch_reads.read([*records])
        return [None if record is None else self._try_job(record) for record in found]

    def _follow(
        self, uuids: Sequence[str], found: Sequence[Record | Alias | None]
    ) -> Sequence[Record | None]:
        """Return the records of several jobs. A batch that has not heard of its members
        for a while first looks at some of them.

        Parameters:
          found: What was read of the jobs.
        """
        records = self.claims.follow(found)
        if self._batch_reads.look_at_silent(records):
            records = self.claims.follow(self._reader.read_any(uuids))
        return records

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
          TypeError: An argument has the wrong type.
          ValueError: limit, status or cursor is invalid.
        """
        wanted = Filter(owner, kind, status, params)
        lister = Lister(wanted, self._access, self._make, self._sweep.is_done)
        page = lister.page(limit, cursor)
        # Members of a cancelled batch are found by the status that they had.
        fits = [
            job
            for job in page.items
            if status is None or record_of(job).status == status
        ]
        return page._replace(items=fits)

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
        records, next_cursor = self._batch_reads.page(batch, status, limit, cursor)
        jobs = map(self._try_job, records)
        return Page([job for job in jobs if job is not None], next_cursor)

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


class JobStore(JobReads):
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
      TypeError: An argument has the wrong type.
      ValueError: A duration is not positive or is over 1e12 seconds, the namespace is
        empty or has a brace that is not part of a hash tag, or the URL is invalid.
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

    def failures(self, uuid: str) -> Failures:
        """Return what operators read of a job's failures. Nothing is kept of a job that
        has not failed.
        """
        found = read_failures(
            self._reader.fields(self._calls.failure_key(uuid), FIELDS)
        )
        if not found.tries and (target := self.claims.target_of(uuid)) is not None:
            return self.failures(target.uuid)
        return found

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
          TypeError: An argument has the wrong type.
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
        """Return how many jobs have which status, approximately: see
        :class:`.Counts`. They are at most a second old, and know of what this
        store object has cancelled, deleted and run again.

        Parameters:
          kind: Only count jobs of this kind.
          anew: Count now, even if this process has counted within the last second.

        Raises:
          TypeError: kind is not a string.
        """
        Filter(kind=kind).check()
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
          seconds: The length of all periods together, at most 1e9, about 30 years.
          buckets: How many periods, at most 1,000.

        Raises:
          TypeError: An argument has the wrong type.
          ValueError: seconds is not positive, or over 1e9, or buckets is not from 1 to
            1,000.
        """
        Filter(kind=kind).check()
        positive("seconds", seconds, MAX_SPAN)
        if isinstance(buckets, bool) or not isinstance(buckets, int):
            raise TypeError(f"buckets must be an int, not {buckets!r}.")
        if not 1 <= buckets <= MAX_BUCKETS:
            raise ValueError(f"buckets must be from 1 to {MAX_BUCKETS}, not {buckets}.")
        self._sweep.is_done()
        return self._counter.throughput(kind, seconds, buckets)

    def __repr__(self) -> str:
        return f"<JobStore {self.namespace!r} at {name_of(self.client)}>"


def store_beside(client: object, **options: Any) -> JobStore | None:
    """Return a store on the server of a `redis.Redis`, or None for any other object.
    If possible, the store has its own connections, which fail sooner than the client's.
    """
    if not isinstance(client, Redis):
        return None
    return JobStore(impatient(client) or client, **options)
