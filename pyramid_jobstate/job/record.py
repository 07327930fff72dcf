"""What is stored of a job, and what a running job adds to it."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .parsing import iso_time, parse_int, parse_json, parse_time
from .values import MAX_AMOUNT

#: The statuses of a job that may still change by themselves.
UNFINISHED = ("queued", "working", "retrying", "stalled", "cancelling")

#: The statuses of a job that is over.
FINISHED = ("success", "error", "cancelled")

STATUSES = frozenset({*UNFINISHED, *FINISHED})

#: What a metric's field in the hash begins with.
METRIC = "m:"

#: A job's uuid, as Dramatiq writes it: the one spelling that is accepted.
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Progress(NamedTuple):
    """How far a job has come.

    Attributes:
      done: How much is done, in `unit`.
      total: How much there is to do, or None where nobody knows.
      unit: What is counted, such as "rows".
      eta: Seconds from `updated_at` to the end, or None, as the worker reckoned.
    """

    done: float
    total: float | None = None
    unit: str | None = None
    eta: float | None = None

    @property
    def fraction(self) -> float | None:
        """The share that is done, from 0 to 1, or None where nobody knows."""
        if self.total is None:
            return None
        return min(self.done / self.total, 1.0) if self.total else 1.0


class JobError(NamedTuple):
    """Why a job failed or was cancelled.

    Attributes:
      type: The qualified name of the exception's class, or None for a reason that
        no exception gave.
      message: The exception's text, or the reason.
    """

    type: str | None
    message: str


#: Why a job ended that somebody cancelled, whose message the broker did not take, or
#: that was a later step of a pipeline that did not get so far.
CANCELLED = JobError(None, "The job was cancelled.")
NOT_SENT = JobError(None, "The job could not be sent.")
NOT_REACHED = JobError(None, "An earlier step did not succeed.")


class Start(NamedTuple):
    """What is known of a job when it is sent, and when a worker starts it.

    Attributes:
      kind: The kind of its JobState class.
      actor: The name of its actor.
      attempt: Which try it is, 0 before the first.
      owner: Its owner as JSON, or None.
      params: What was sent as JSON, by the names of the actor's parameters.
    """

    kind: str
    actor: str
    attempt: int
    owner: str | None
    params: str

    def fields(self) -> dict[str, str]:
        """Return the fields of the hash."""
        return {k: str(v) for k, v in self._asdict().items() if v is not None}


class NewJob(NamedTuple):
    """A job whose message is about to be sent.

    Attributes:
      uuid: The id of the message.
      start: What is known of the job.
      delay: Seconds until it is due, or until its turn comes at the earliest.
      waits: Whether it is a later step of a pipeline, whose turn has not come.
      sender: Names who sends it, if they may want to take back what they have written.
    """

    uuid: str
    start: Start
    delay: float = 0.0
    waits: bool = False
    sender: str = ""


class End(NamedTuple):
    """How a run ended.

    Attributes:
      status: "success", "error", "cancelled" or "retrying".
      error: Why, unless it is a success.
      delay: Seconds until the message comes again, or None if it was not put back.
      was_called: Whether the actor's function was called. If not, the record keeps the
        attempt of the run before.
    """

    status: str
    error: JobError | None = None
    delay: float | None = None
    was_called: bool = True


@dataclasses.dataclass(slots=True)
class Update:
    """What a run has to say since its last update: one write to one key.

    Attributes:
      uuid: The job.
      token: The run. Only the newest may write.
      seq: Rises with each update of a run, so that none is applied twice or late.
      base: The last one that is known to be stored, which this one builds on.
      start: What is known of the job.
      fields: The hash fields to set.
      begins: Whether the store has not yet confirmed that the run began.
      renews: Whether its place in the lists is about to expire.
      age: Seconds since it began.
      late: Whether another run may have begun since this beginning was due.
      cancelled: Whether a run that begins anew has heard that its job was cancelled.
      end: Given when the run is over.
      dropped: Whether the message was stopped before a run began.
      sender: Names whose record alone it is about, if it was not sent.
    """

    uuid: str
    token: str
    seq: int
    start: Start
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    begins: bool = False
    renews: bool = False
    age: float = 0.0
    late: bool = False
    cancelled: bool = False
    end: End | None = None
    dropped: bool = False
    base: int = 0
    sender: str = ""

    @property
    def reports(self) -> bool:
        """Whether it says more than that the run began."""
        return bool(self.fields or self.end or not self.begins)


def parse_progress(text: str | None) -> Progress | None:
    match parse_json(text):
        case [done, total, str() | None as unit, eta]:
            is_valid = is_amount(done) and all(
                amount is None or is_amount(amount) for amount in (total, eta)
            )
            return Progress(done, total, unit, eta) if is_valid else None
    return None


def is_amount(value: object) -> bool:
    """Whether `value` is what :func:`check_amount` returns."""
    return type(value) in (int, float) and 0 <= value <= MAX_AMOUNT  # type: ignore[operator]


def parse_error(text: str | None) -> JobError | None:
    match parse_json(text):
        case [str() | None as type_, str() as message]:
            return JobError(type_, message)
    return None


class Record:
    """A job as it stands in the store, or as a worker began it.

    A field that cannot be understood reads as if it were not there.
    """

    __slots__ = ("_fields", "status", "uuid")

    def __init__(
        self, uuid: str, fields: Mapping[str, str], status: str | None = None
    ) -> None:
        self.uuid = uuid
        self.status = status or fields.get("status", "")
        self._fields = fields

    @classmethod
    def read(
        cls, uuid: str, fields: Mapping[str, str], now: int, stalled_after: int
    ) -> Record:
        """Return the record as it reads at `now`, in milliseconds of the store's
        clock, where a job not heard of for `stalled_after` is stalled.
        """
        status = fields.get("status", "")
        heard = None
        if status == "waiting":
            status = "queued"
        elif status == "sending":
            status, heard = "queued", parse_int(fields.get("updated"))
        elif status in ("working", "cancelling"):
            heard = parse_int(fields.get("seen"))
        elif status not in STATUSES:
            # Nobody knows what goes on there.
            status = "stalled"
        if heard is not None and now - heard > stalled_after:
            status = "stalled"
        return cls(uuid, fields, status)

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def kind(self) -> str:
        return self._fields.get("kind", "")

    @property
    def actor(self) -> str:
        return self._fields.get("actor", "")

    @property
    def owner(self) -> Any:
        owner = parse_json(self._fields.get("owner"))
        return owner if type(owner) in (str, int, float) else None

    @property
    def attempt(self) -> int:
        return parse_int(self._fields.get("attempt")) or 0

    @property
    def is_cancel_requested(self) -> bool:
        return "asked" in self._fields

    @property
    def params(self) -> dict[str, Any]:
        params = parse_json(self._fields.get("params"))
        return params if isinstance(params, dict) else {}

    @property
    def metrics(self) -> dict[str, Any]:
        start = len(METRIC)
        texts = {
            name[start:]: text
            for name, text in self._fields.items()
            if name[:start] == METRIC
        }
        # All in one go, unless one of them is no JSON.
        values = parse_json(f"[{','.join(texts.values())}]")
        if isinstance(values, list) and len(values) == len(texts):
            return dict(zip(texts, values, strict=True))
        parsed = {name: parse_json(text, self) for name, text in texts.items()}
        return {name: value for name, value in parsed.items() if value is not self}

    @property
    def progress(self) -> Progress | None:
        return parse_progress(self._fields.get("progress"))

    @property
    def message(self) -> str | None:
        message = parse_json(self._fields.get("message"))
        return message if isinstance(message, str) else None

    @property
    def log(self) -> list[str]:
        log = parse_json(self._fields.get("log"))
        if not isinstance(log, list):
            return []
        return [line for line in log if isinstance(line, str)]

    @property
    def error(self) -> JobError | None:
        return parse_error(self._fields.get("error"))

    @property
    def start(self) -> Start:
        """What is known of the job whatever becomes of it."""
        return Start(
            self.kind,
            self.actor,
            self.attempt,
            self._fields.get("owner"),
            self._fields.get("params", "{}"),
        )

    def time(self, name: str) -> datetime.datetime | None:
        """Return when it was `queued`, `due`, `started`, `updated` or `finished`."""
        return parse_time(self._fields.get(name))

    def iso_time(self, name: str) -> str | None:
        """Return the same as browsers write it, to the millisecond."""
        return iso_time(self._fields.get(name))
