"""What is known of a job, and what may happen to it."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from .journal import NewLine
from .progress import Progress, is_amount, parse_progress
from .values import (
    dumps,
    parse_all,
    parse_json,
    parse_natural,
    parse_time,
    stored_iso_time,
    stored_owner,
)

#: The statuses of a job that has not ended.
UNFINISHED = ("queued", "working", "retrying", "stalled", "cancelling")

#: The statuses of a job that has ended.
FINISHED = ("success", "error", "cancelled")

#: The stored statuses of a job that a worker runs, or may run.
RUNNING = ("working", "cancelling")

#: All statuses that a job reads as.
STATUSES = UNFINISHED + FINISHED

#: The fewest milliseconds without a report after which a running job reads quiet.
QUIET_AFTER = 15_000


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs have which status, of those in a store or in a batch.

    Of a store: a job whose record has expired counts until a list finds out. Only the
    thousand newest jobs of each status are examined for stalled ones. Members of a
    cancelled batch count as queued until a worker skips them, and a silent batch counts
    under the status that it had before. The waits are those of single jobs and of
    members of batches alike, whether or not the members are counted.

    Of a batch: `stalled` and `cancelling` are 0. Members that are stalled or being
    cancelled count as working. Members of a cancelled batch that wait count as
    cancelled. The waits are None.

    Two counts are equal if their numbers of jobs are, whatever the waits.

    Attributes:
      queued: How many wait for a worker, or until they are due.
      working: How many a worker is at work on.
      retrying: How many failed and are to be tried again.
      stalled: How many have not been heard from for too long.
      cancelling: How many are to stop, and have not yet.
      success: How many have succeeded.
      error: How many have failed.
      cancelled: How many were cancelled.
      oldest_wait: For how many seconds the oldest waiting job has waited for a worker,
        or None if no job waits. A job that is not due yet, a step of a pipeline whose
        turn has not come, and a member of a cancelled batch do not wait. Of the jobs
        that are queued or to be tried again, the oldest 300 are examined, the newest
        hundred, and samples of the others. If none of the oldest waits, the true wait
        may be longer, and None means that none of those examined waits.
      recent_wait: The median wait, in seconds, of the last ten jobs to start, or None
        if none has started within the last hour. Of the jobs that run, the newest
        thousand are examined, and of those that have succeeded or failed the last ten
        to end. It says how late the jobs are even if one lost message makes
        `oldest_wait` grow for days.
    """

    queued: int = 0
    working: int = 0
    retrying: int = 0
    stalled: int = 0
    cancelling: int = 0
    success: int = 0
    error: int = 0
    cancelled: int = 0
    oldest_wait: float | None = dataclasses.field(default=None, compare=False)
    recent_wait: float | None = dataclasses.field(default=None, compare=False)


#: The status of a record that leads to the job of another uuid, which is under way in
#: its place, and the field that names it.
ALIAS, TARGET = "alias", "target"

#: Stands in the record of a batch where that of a member names its batch.
BATCH_MARK = "*"

#: The status of a silent batch by its field `seen`: "w" if a member runs or was never
#: confirmed sent, else "r" if one is to be tried again. Without that, it is queued.
SILENT = {"w": "stalled", "r": "retrying"}

#: The fields that hold times, in milliseconds of the server's clock.
TIMES = (
    *("queued", "updated", "started", "seen", "due", "finished"),
    *("listed", "latest", "stopped", "looked"),
)

#: The fields with which a worker says that it lives, a batch looks at its members, or
#: a viewer is told what is usual.
SIGNS = ("seq", "seen", "looked", "cursor", "usual")

#: The prefix of a metric's field in the hash.
METRIC = "m:"

#: A job's uuid in Dramatiq's spelling, the only one that is accepted.
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_uuid(name: object) -> TypeGuard[str]:
    """Return whether a message id or a path segment is a valid job uuid."""
    return isinstance(name, str) and UUID.fullmatch(name) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, is retried or was cancelled.

    Attributes:
      type: The qualified name of the exception's class, or None if the reason is not
        an exception.
      message: The exception's text, or the reason.
    """

    type: str | None
    message: str


#: The reasons that do not come from an exception: the job was cancelled, the broker did
#: not accept its message, or its pipeline stopped at an earlier step.
CANCELLED = JobError(None, "The job was cancelled.")
NOT_SENT = JobError(None, "The job could not be sent.")
NOT_REACHED = JobError(None, "An earlier step did not succeed.")
REJECTED = JobError(None, "The message was rejected.")

#: The reason of a job whose actor no worker knows.
UNKNOWN_ACTOR = "No worker knows the actor ${actor}."

#: The reasons for which a batch reads "error" or "cancelled".
MEMBERS_FAILED = JobError(None, "Some of its jobs failed.")
MEMBERS_CANCELLED = JobError(None, "Some of its jobs were cancelled.")


class JobInfo(NamedTuple):
    """The facts of a job that are fixed when it is sent or when a worker starts it.

    Attributes:
      kind: The kind of its JobState class.
      actor: The name of its actor.
      attempt: The number of the attempt, 0 before the first.
      owner: Its owner as JSON, or None.
      params: The values that were sent, by parameter name, as a JSON object.
      rerun: The word of the request to run the job again that sent its message, or
        None. Only a message with the last such word may run the job, and if a record
        has "", only one without.
      unique: The identity of a unique job, or None: see :func:`.identity_of`.
      batch: The uuid of the job's batch, BATCH_MARK if it is a batch itself, or None.
      queue: The queue of its message, or None if unknown.
      hooks: The :class:`.HookInfo` of a class with hooks as JSON, or None.
      worker: The token of the worker process that runs it, or has run it last, or None.
      log_level: The number of the lowest level that is captured, or None if nothing is.
        In a record, it says that there may be a log beside it.
    """

    kind: str = ""
    actor: str = ""
    attempt: int = 0
    owner: str | None = None
    params: str = "{}"
    rerun: str | None = None
    unique: str | None = None
    batch: str | None = None
    queue: str | None = None
    hooks: str | None = None
    worker: str | None = None
    log_level: int | None = None

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> JobInfo:
        """Return what the fields of a hash say."""
        found: dict[str, Any] = {n: fields[n] for n in cls._fields if n in fields}
        found["attempt"] = parse_natural(fields.get("attempt")) or 0
        found["log_level"] = parse_natural(fields.get("log_level"))
        return cls(**found)

    @property
    def is_batch(self) -> bool:
        """Whether the job is a batch."""
        return self.batch == BATCH_MARK

    @property
    def is_member(self) -> bool:
        """Whether the job is a member of a batch."""
        return self.batch not in (None, BATCH_MARK)

    def fields(self) -> dict[str, str]:
        """Return the hash fields to store."""
        words = self.words()
        return dict(zip(words[::2], words[1::2], strict=True))

    def words(self) -> list[str]:
        """Return their names and values, one after the other."""
        words: list[str] = []
        for name, value in zip(self._fields, self, strict=True):
            if value is not None:
                words += (name, str(value))
        return words


class Record:
    """A job as it is stored, or as its worker knows it at the start.

    A field that cannot be parsed reads as if it were missing.

    Attributes:
      uuid: The uuid of the job.
      name: The uuid under which it was asked for. It differs if that is an alias.
      status: The job's status.
      silent_at: When the job will read "stalled" unless its worker is heard from, in
        milliseconds of the store's clock, or None.
      is_quiet: Whether a running job has reported nothing for so long that neither its
        pace nor the time left holds any more.
    """

    __slots__ = ("_fields", "is_quiet", "name", "silent_at", "status", "uuid")

    def __init__(
        self,
        uuid: str,
        fields: Mapping[str, str],
        status: str | None = None,
        silent_at: int | None = None,
    ) -> None:
        self.uuid = self.name = uuid
        self.status = status or fields.get("status", "")
        self.silent_at = silent_at
        self.is_quiet = False
        self._fields = fields

    @classmethod
    def read(
        cls, uuid: str, fields: Mapping[str, str], now: int, stalled_after: int
    ) -> Record:
        """Return the record as it reads at `now`, in milliseconds of the store's
        clock. After `stalled_after` milliseconds of silence it reads "stalled", and
        without a report for twice the time that was left, it reads quiet.
        """
        status = fields.get("status", "")
        heard, reported = None, now
        silent_status = "stalled"
        if fields.get("batch") == BATCH_MARK and status in UNFINISHED:
            heard = parse_natural(fields.get("updated"))
            silent_status = SILENT.get(fields.get("seen", ""), "queued")
        elif status == "waiting":
            status = "queued"
        elif status == "sending":
            status, heard = "queued", parse_natural(fields.get("updated"))
        elif status in RUNNING:
            heard = parse_natural(fields.get("seen"))
            reported = parse_natural(fields.get("updated")) or now
        elif status not in STATUSES:
            # An unknown status tells nothing about the job.
            status = "stalled"
        silent_at = None if heard is None else heard + stalled_after
        if silent_at is not None and now > silent_at:
            status, silent_at = silent_status, None
        record = cls(uuid, fields, status, silent_at)
        if now - reported > QUIET_AFTER:
            # The progress of jobs that have reported lately is not parsed for it.
            quiet_at = record.quiet_at
            record.is_quiet = quiet_at is not None and now > quiet_at
        return record

    def stop(self, stopped: str) -> None:
        """Read as cancelled: the batch of the job was, and the job does not run.

        Parameters:
          stopped: When the batch was cancelled, as it is stored.
        """
        self.end("cancelled", {"finished": stopped, "error": dump_error(CANCELLED)})

    def end(self, status: str, fields: Mapping[str, str]) -> None:
        """Read as ended.

        Parameters:
          status: The status.
          fields: The fields that differ, as they are stored.
        """
        self.status, self.silent_at = status, None
        self.is_quiet = False
        self._fields = {**self._fields, **fields}

    @property
    def quiet_at(self) -> int | None:
        """When the job will read quiet unless it reports, in milliseconds of the
        store's clock, or None: it does not run, has no progress, or reads quiet.
        """
        progress, updated = self.progress, self.millis("updated")
        is_running = self.stored_status in RUNNING and not self.is_finished
        if not is_running or self.is_quiet or progress is None or updated is None:
            return None
        return updated + max(QUIET_AFTER, int(2000 * (progress.eta or 0)))

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def is_failed_or_lost(self) -> bool:
        """Whether the job has failed, or was about to run again when the process died
        that was sending it.
        """
        is_lost = self.was_never_sent and bool(self._fields.get("rerun"))
        return self.status == "error" or is_lost

    @property
    def was_never_sent(self) -> bool:
        """Whether the process died that was about to send the job or, of a batch, some
        of its members, as far as the store knows.
        """
        is_unsent = self.stored_status == "sending" or self.number("n:n") > 0
        return self.status == "stalled" and is_unsent

    @property
    def stored_status(self) -> str:
        """The status as it is stored: also "sending" and "waiting", never "stalled"."""
        return self._fields.get("status", "")

    @property
    def batch(self) -> str:
        """The uuid of the job's batch, BATCH_MARK if it is a batch itself, or ""."""
        return self._fields.get("batch", "")

    @property
    def is_batch(self) -> bool:
        """Whether the job is a batch."""
        return self.batch == BATCH_MARK

    @property
    def is_member(self) -> bool:
        """Whether the job is a member of a batch."""
        return self.batch not in ("", BATCH_MARK)

    @property
    def kind(self) -> str:
        return self._fields.get("kind", "")

    @property
    def actor(self) -> str:
        return self._fields.get("actor", "")

    @property
    def queue(self) -> str | None:
        return self._fields.get("queue")

    @property
    def worker(self) -> str | None:
        return self._fields.get("worker")

    @property
    def log_level(self) -> int | None:
        """The number of the lowest level that is captured, or None if nothing is."""
        return parse_natural(self._fields.get("log_level"))

    @property
    def owner(self) -> Any:
        return stored_owner(self._fields.get("owner"))

    @property
    def attempt(self) -> int:
        return parse_natural(self._fields.get("attempt")) or 0

    @property
    def is_cancel_requested(self) -> bool:
        return "asked" in self._fields

    @property
    def params(self) -> dict[str, Any]:
        params = parse_json(self._fields.get("params"))
        return params if isinstance(params, dict) else {}

    @property
    def metrics(self) -> dict[str, Any]:
        # METRIC has two characters, and slices are faster than startswith().
        fields = self._fields.items()
        return parse_all({n[2:]: text for n, text in fields if n[:2] == METRIC})

    @property
    def progress(self) -> Progress | None:
        found = parse_progress(self._fields.get("progress"), self._fields.get("phase"))
        if found is not None and self.is_quiet:
            return dataclasses.replace(found, eta=None)
        return found

    @property
    def message(self) -> str | None:
        message = parse_json(self._fields.get("message"))
        return message if isinstance(message, str) else None

    @property
    def log(self) -> list[str]:
        log = parse_json(self._fields["log"]) if "log" in self._fields else None
        if not isinstance(log, list):
            return []
        return [line for line in log if isinstance(line, str)]

    @property
    def error(self) -> JobError | None:
        return parse_error(self._fields["error"]) if "error" in self._fields else None

    @property
    def usual(self) -> dict[str, float] | None:
        """How long jobs of its kind usually run, as viewers see it, or None."""
        match parse_json(self._fields.get("usual")):
            case [low, high, p95] if all(map(is_amount, (low, high, p95))):
                return {"low": low, "high": high, "p95": p95}
        return None

    def reads_like(self, other: Record) -> bool:
        """Return whether it says the same as another, apart from signs of life."""
        if (self.uuid, self.status) != (other.uuid, other.status):
            return False
        if self.is_quiet != other.is_quiet:
            return False
        mine, others = dict(self._fields), dict(other._fields)
        for name in SIGNS:
            mine.pop(name, None)
            others.pop(name, None)
        return mine == others

    @property
    def info(self) -> JobInfo:
        """What was fixed when the job was sent or begun."""
        return JobInfo.of(self._fields)

    def text(self, name: str) -> str | None:
        """Return a field as it is stored."""
        return self._fields.get(name)

    def number(self, name: str) -> int:
        """Return a field of a batch that is a number, by default 0."""
        # A 64-bit counter of the store has up to 19 digits.
        return parse_natural(self._fields.get(name), 19) or 0

    def time(self, name: str) -> datetime.datetime | None:
        """Return when it was "queued", "due", "started", "updated" or "finished"."""
        return parse_time(self._fields.get(name))

    def millis(self, name: str) -> int | None:
        """Return such a time in milliseconds of the store's clock."""
        return parse_natural(self._fields.get(name))

    def iso_times(self) -> dict[str, str | None]:
        """Return all these times as :func:`.iso_time` does, by their names in JSON."""
        get, parse = self._fields.get, stored_iso_time
        return {
            "queued_at": parse(get("queued")),
            "due_at": parse(get("due")),
            "started_at": parse(get("started")),
            "updated_at": parse(get("updated")),
            "quiet_since": parse(get("updated")) if self.is_quiet else None,
            "finished_at": parse(get("finished")),
        }


def dump_error(error: JobError) -> str:
    """Return an error as it is stored."""
    return dumps((error.type, error.message))


def parse_error(text: str) -> JobError | None:
    match parse_json(text):
        case [str() | None as type_, str() as message]:
            return JobError(type_, message)
    return None


class NewJob(NamedTuple):
    """A job whose message is about to be sent.

    Attributes:
      uuid: The id of the message.
      info: The job's kind, actor, owner and parameters.
      delay: Seconds until the job is due, or the earliest that its turn can come.
      waits: Whether the job is a later step of a pipeline and waits for its turn.
      sender: Identifies the sender, so that it can withdraw its own record, or "".
    """

    uuid: str
    info: JobInfo
    delay: float = 0.0
    waits: bool = False
    sender: str = ""


class NewBatch(NamedTuple):
    """A batch that is about to be sent.

    Attributes:
      uuid: The uuid of the batch.
      info: Its kind and owner.
      fields: The other fields of its record.
      sender: Identifies the sender, so that it can withdraw its own record.
      members: Its members, each with its weight.
    """

    uuid: str
    info: JobInfo
    fields: Mapping[str, str]
    sender: str
    members: Sequence[Member]


class Member(NamedTuple):
    """A member of a batch that is about to be sent.

    Attributes:
      job: The job.
      weight: Its share of the batch's bar, in thousandths.
    """

    job: NewJob
    weight: int


class Failure(NamedTuple):
    """What an operator needs of a run that failed.

    Attributes:
      message: The Dramatiq message from which the job may run again, as JSON, or "".
      refusal: Why it may not run again, or "".
      traceback: The end of the traceback.
    """

    message: str
    refusal: str
    traceback: str


class End(NamedTuple):
    """How a run ended.

    Attributes:
      status: "success", "error", "cancelled" or "retrying".
      error: The reason, or None.
      delay: Seconds until the message is delivered again, or None if it was not
        requeued.
      failure: What is kept for operators, or None if it did not fail.
    """

    status: str
    error: JobError | None = None
    delay: float | None = None
    failure: Failure | None = None


@dataclasses.dataclass(slots=True)
class Update:
    """The changes of a run since its last update, written to the key of its job.

    Attributes:
      uuid: The uuid of the job.
      token: Identifies the run. Only the newest run may write.
      seq: Increases with each update of a run, so that none is applied twice or late.
      base: The `seq` of the last update known to be stored, on which this one builds.
      info: The job's kind, actor, attempt, owner and parameters.
      fields: The hash fields to set.
      begins: Whether the store has yet to confirm that the run began.
      renews: Whether to renew the job's place in the lists before it expires.
      age: Seconds since the run began.
      late: Whether a newer run may have begun since this one did.
      is_answered: Whether something answered in place of the actor's function. A run
        that goes on then stays as it is.
      cancelled: Whether the run already knows that its job was cancelled.
      end: How the run ended, or None while it continues.
      dropped: Whether the message was stopped before a run began.
      sender: If set, apply the update only to a record written by this sender.
      tells: Whether to report the member's progress to its batch.
      millionths: How much of the job is done, for its batch, or None if unknown.
      lines: What the run has logged.
    """

    uuid: str
    token: str
    seq: int
    info: JobInfo
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    begins: bool = False
    renews: bool = False
    age: float = 0.0
    late: bool = False
    is_answered: bool = False
    cancelled: bool = False
    end: End | None = None
    dropped: bool = False
    base: int = 0
    sender: str = ""
    tells: bool = False
    millionths: int | None = None
    lines: Sequence[NewLine] = ()

    @property
    def reports(self) -> bool:
        """Whether there is more to write than the beginning of the run."""
        return bool(self.fields or self.end or self.lines or not self.begins)
