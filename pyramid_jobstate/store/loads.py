"""Loads and lists jobs from Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import StoreUnavailable
from ..job import JobState, Record, note_trouble, record_of, set_store
from .acts import JobActs
from .batches import BatchReads
from .calls import millis
from .filters import Filter
from .pages import Lister, Page

if TYPE_CHECKING:
    from .reading import Alias
    from .tracking import Tracker


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
        from .tracking import Tracker

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
