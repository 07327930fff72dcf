"""JobStore: the jobs in Redis, and what acts on many of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis import Redis

from ..job import FINISHED, UNFINISHED, JobState, Record
from .arguments import positive
from .bulk import Act, Bulk, BulkResult, Tell
from .connection import impatient, name_of
from .counting import MAX_BUCKETS, MAX_SPAN, Bucket, Counts
from .failures import FIELDS, Failures, read_failures
from .filters import Filter
from .loads import JobReads


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
        :class:`.counting.Counts`. They are at most a second old, and know of what this
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
