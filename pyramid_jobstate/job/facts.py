"""Facts: the reading half of a JobState."""

from __future__ import annotations

import datetime
from typing import Any

from .handle import NO_RUN, Handle
from .membership import OwnBatch
from .progress import Phase, Progress, in_phase
from .protocols import MemberSender
from .record import BATCH, FINISHED, JobError, Record
from .run import Run
from .values import Json, loads


class Facts(Handle):
    """The state of a job: its stored record and, if it runs in this process, what it
    has reported since.
    """

    #: What sends further members of its batch, in the worker that runs it.
    _member_sender: MemberSender | None = None

    def __init__(self, record: Record, run: Run = NO_RUN) -> None:
        self._run = run
        self._record = record
        self.uuid = self.__name__ = record.name

    @property
    def status(self) -> str:
        """One of queued, working, retrying, stalled, cancelling, success, error and
        cancelled.
        """
        return self._record.status

    @property
    def is_working(self) -> bool:
        """Whether the job has not ended."""
        return not self.is_finished

    @property
    def is_success(self) -> bool:
        """Whether the job has succeeded."""
        return self.status == "success"

    @property
    def is_error(self) -> bool:
        """Whether the job has failed or was cancelled."""
        return self.is_finished and not self.is_success

    @property
    def is_finished(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINISHED

    @property
    def actor(self) -> str:
        """The name of the actor."""
        return self._record.actor

    @property
    def owner(self) -> str | float | None:
        """The owner, who by default may see and cancel the job, or None."""
        owner: str | float | None = self._record.owner
        return owner

    @property
    def batch(self) -> OwnBatch | None:
        """The batch of the job, or None. While the job runs, it can send further
        members with it::

            job_state.batch.send(import_part, name, key=name)

        Each needs a key, which other jobs of the batch may use too. If the job runs
        again, it finds the members that it has sent before, and sends only those that
        may not have been sent.
        """
        batch = self._record.info.batch
        if batch is None or batch == BATCH:
            return None
        return OwnBatch(batch, self._member_sender)

    def _own_json(self, url: str, request: Any, states: Any) -> dict[str, Any]:
        """Return what the JSON of a batch has beside that of a job.

        Parameters:
          url: The URL of the job.
          states: The container of the job in the request.
        """
        return {}

    @property
    def job_params(self) -> dict[str, Any]:
        """The values that were sent, by the names of the actor's parameters. Values
        over 16 KiB, and those without a JSON form, are left out.
        """
        return self._record.params

    def get_job_param(self, name: str, default: Any = None) -> Any:
        """Return the value that was sent for a parameter, or `default`."""
        return self.job_params.get(name, default)

    @property
    def progress_metrics(self) -> dict[str, Any]:
        """The latest value of each metric."""
        if self._run is NO_RUN:
            return self._record.metrics
        return {k: _plain(v) for k, v in self._run.metrics.copy().items()}

    def get_progress_metric(self, name: str, default: Any = None) -> Any:
        """Return the latest value of a metric, or `default`."""
        return self.progress_metrics.get(name, default)

    @property
    def progress(self) -> Progress | None:
        """How far the job has come, or None if it has not reported any progress."""
        # At once: a phase that begins changes both.
        report: Any = self._run.report.copy()
        if "progress" not in report:
            return self._record.progress
        progress = Progress(*report["progress"])
        if "phase" not in report:
            return progress
        self._run.phases.hold(report)
        return in_phase(progress, Phase(*report["phase"]))

    @property
    def message(self) -> str | None:
        """The latest message, or None."""
        report: Any = self._run.report
        message: str | None = report.get("message", self._record.message)
        return message

    @property
    def log(self) -> list[str]:
        """The last 20 lines of the log."""
        lines: Any = self._run.report.get("log", self._record.log)
        return list(lines)

    @property
    def error(self) -> JobError | None:
        """Why the job failed, is retried or was cancelled, or None. For the application
        only: viewers see what :meth:`public_error` returns.
        """
        return self._record.error

    @property
    def attempt(self) -> int:
        """The attempt number of the newest run that called the actor, from 1, or 0 if
        none has.
        """
        return self._record.attempt

    @property
    def queued_at(self) -> datetime.datetime | None:
        """When the job was sent, in UTC, or None if that is unknown."""
        return self._record.time("queued")

    @property
    def due_at(self) -> datetime.datetime | None:
        """When the job is due, in UTC, or None if it was not delayed or has started."""
        return self._record.time("due")

    @property
    def started_at(self) -> datetime.datetime | None:
        """When the newest run that called the actor began, in UTC, or None."""
        return self._record.time("started")

    @property
    def updated_at(self) -> datetime.datetime | None:
        """When the job last changed or reported, in UTC, or None if unknown."""
        return self._record.time("updated")

    @property
    def finished_at(self) -> datetime.datetime | None:
        """When the job ended, in UTC, or None."""
        return self._record.time("finished")

    @property
    def cancel_requested(self) -> bool:
        """Whether cancellation of the job was requested."""
        if self._run is NO_RUN:
            return self._record.is_cancel_requested
        return self._run.ask()


def _plain(value: object) -> Any:
    return loads(value) if isinstance(value, Json) else value
