"""JobState: the resource that viewers read and the handle that an actor writes to."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import datetime
import logging
import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, TypeVar, overload

from ..errors import StoreUnavailable
from .hooks import hooks_of
from .members import MemberSender, OwnBatch
from .once import Once
from .progress import Progress, phase_of, progress_json, progress_of
from .record import BATCH_MARK, FINISHED, JobError, JobInfo, Record
from .run import NO_RUN, Run, check_phase
from .texts import FAILED, REASONS, SKIPPED, humanized, sentence_of, translated
from .values import AMOUNTS, LIMIT, NUMBERS, plain

log = logging.getLogger("pyramid_jobstate")

T = TypeVar("T")

#: The value of `pyramid.authorization.Allow`, without importing Pyramid in a worker.
ALLOW = "Allow"

#: The JobState classes by kind.
_kinds: dict[str, type[JobState]] = {}

current_state: contextvars.ContextVar[JobState | None] = contextvars.ContextVar(
    "pyramid_jobstate.current", default=None
)


def current_job_state() -> JobState | None:
    """Return the JobState of the job that runs here, or None outside a tracked job.

    Threads that the job starts get None: pass the JobState to them.
    """
    return current_state.get()


class Store(Protocol):
    """The interface of the store from which a JobState was loaded."""

    def cancel(self, uuid: str, info: JobInfo, /) -> bool:
        """Request cancellation of a job. Return False if it had already ended."""

    def delete(self, uuid: str, /) -> bool:
        """Delete a job. Return False if it has not ended."""

    def tell_usual(self, record: Record, /) -> None:
        """Have the record of a working job say soon how long jobs of its kind usually
        run, without waiting.
        """


class Container(Protocol):
    """The interface of the container through which a request found a JobState."""

    @property
    def request(self) -> Any:
        """The request."""

    @property
    def localizer(self) -> Any:
        """What translates for the request."""

    def permits(self, context: Any, permission: str, /) -> object:
        """Return a true value if the request has the permission on a job."""

    def _principals_of(self, owner: str | float, /) -> Sequence[str | float]:
        """Return the principals that represent a job's owner in the request."""

    def _url_of(self, job_state: Any, /) -> str:
        """Return the URL of a job that the container has loaded."""

    def rerun(self, job_state: Any, /) -> bool:
        """Run a job again. Return False if it has not failed."""


@dataclasses.dataclass(slots=True)
class Inner:
    """What the package keeps of a JobState.

    Attributes:
      record: The record of the job.
      run: The run to which it writes, in the worker.
      store: The store from which it was loaded, or None.
      container: The container that loaded it, even if the application changes
        ``__parent__``, or None.
      members: What sends the members of a batch: this one or, in the worker, that of
        the running job. Else None.
      later_steps: Returns the uuids of the later steps of its pipeline, in the worker.
    """

    record: Record
    run: Run = NO_RUN
    store: Store | None = None
    container: Container | None = None
    members: MemberSender | None = None
    later_steps: Callable[[], Iterable[str]] = tuple


class JobState:
    """The state of one job, both in the worker that runs it and in the process that
    shows it.

    Subclass it to give a kind of job its own rights and behaviour::

        class RunMarathon(JobState):
            public_params = ("miles",)

    A class may set or override:

    * `kind`: the name of this kind of job, stored with each job; by default the name
      of the class;
    * `title`: the heading that viewers see, a string or a translation string; by
      default derived from the kind;
    * `public_params`: the names of the parameters that viewers may see; by default
      none;
    * `show_usual`: whether viewers of a working job see how long jobs of this kind
      usually run, whoever owns these; by default they do;
    * `log_level`: the lowest level, such as "INFO", of the records of :mod:`logging`
      that are kept for operators; by default none are kept;
    * `public_log`: whether everybody who may view the job reads those, too; by default
      not;
    * :meth:`public_error`: the text that viewers see for an exception;
    * :meth:`result_url`: the URL of what the job has made; by default none;
    * :meth:`__acl__`: who may do what with a job;
    * `on_success`, `on_error` and `on_cancelled`: hooks. When a job has ended, a worker
      calls the one that fits, at least once. A hook may ask for a request, as in
      ``def on_success(self, request)``. By default a class has none.

    The methods that report, from :meth:`set_progress_metric` to :meth:`append_log`,
    raise RuntimeError if the JobState was loaded from a store or its job has ended, and
    JobCancelled once the job has been cancelled.

    Attributes:
      uuid: The ``message_id`` of the job's Dramatiq message.
      __parent__: The container through which a request found the job.
    """

    uuid: str
    kind: str = "JobState"
    public_params: Collection[str] = ()
    show_usual: bool = True
    log_level: str | int | None = None
    public_log: bool = False
    __parent__: Any = None
    #: Whether each hook receives a request, by the status that it is told of.
    _hooks: Mapping[str, bool] = {}
    #: The number of `log_level`.
    _log_level: int | None = None

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self.uuid = self.__name__ = inner.record.name

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__
        check_declaration(cls)
        cls._hooks = hooks_of(cls)
        cls._log_level = level_number(cls)
        old = _kinds.get(cls.kind, cls)
        if (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"Two JobState classes have the kind {cls.kind!r}: "
                f"{old.__module__}.{old.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}. Give one a different `kind`."
            )
        _kinds[cls.kind] = cls

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        copied._inner = copy.copy(self._inner)
        return copied

    def __repr__(self) -> str:
        try:
            status = self.status
        except StoreUnavailable:
            status = "unread"
        return f"<{type(self).__name__} {self.uuid} {status}>"

    @property
    def title(self) -> str:
        """The heading that viewers see, such as "Run marathon" for the kind RunMarathon
        or, without a JobState class, for the actor run_marathon.
        """
        return humanized(self.actor if type(self) is JobState else self.kind)

    @property
    def status(self) -> str:
        """One of queued, working, retrying, stalled, cancelling, success, error and
        cancelled.
        """
        return self._inner.record.status

    @property
    def is_working(self) -> bool:
        """Whether the job has not ended, even if no worker has begun it. Its status is
        queued, working, retrying, stalled or cancelling.
        """
        return not self.is_finished

    @property
    def is_finished(self) -> bool:
        """Whether the job has ended. Its status is success, error or cancelled."""
        return self.status in FINISHED

    @property
    def is_success(self) -> bool:
        """Whether the job has succeeded. Its status is success."""
        return self.status == "success"

    @property
    def is_error(self) -> bool:
        """Whether the job has ended without success. Its status is error or cancelled.
        To tell these apart, use :attr:`has_failed` and :attr:`is_cancelled`.
        """
        return self.is_finished and not self.is_success

    @property
    def has_failed(self) -> bool:
        """Whether the job has failed. Its status is error."""
        return self.status == "error"

    @property
    def is_cancelled(self) -> bool:
        """Whether the job was cancelled and has ended. Its status is cancelled. Until
        then, see :attr:`cancel_requested`.
        """
        return self.status == "cancelled"

    @property
    def actor(self) -> str:
        """The name of the actor."""
        return self._inner.record.actor

    @property
    def owner(self) -> str | float | None:
        """The owner, who by default may see and cancel the job, or None."""
        owner: str | float | None = self._inner.record.owner
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
        if not self._inner.record.is_member:
            return None
        return OwnBatch(self._inner.record.batch, self._inner.members)

    @property
    def job_params(self) -> dict[str, Any]:
        """The values that were sent, by the names of the actor's parameters. Values
        over 16 KiB, and those without a JSON form, are left out.
        """
        return self._inner.record.params

    def get_job_param(self, name: str, default: Any = None) -> Any:
        """Return the value that was sent for a parameter, or `default`."""
        return self.job_params.get(name, default)

    @property
    def progress_metrics(self) -> dict[str, Any]:
        """The latest value of each metric."""
        if self._inner.run is NO_RUN:
            return self._inner.record.metrics
        return {k: plain(v) for k, v in self._inner.run.metrics.copy().items()}

    def get_progress_metric(self, name: str, default: Any = None) -> Any:
        """Return the latest value of a metric, or `default`."""
        return self.progress_metrics.get(name, default)

    @property
    def progress(self) -> Progress | None:
        """How far the job has come, or None if it has not reported any progress."""
        # At once: a phase that begins changes both.
        report: Any = self._inner.run.report.copy()
        if "progress" not in report:
            return self._inner.record.progress
        if "phase" in report:
            self._inner.run.phases.hold(report)
        return progress_of(report)

    @property
    def message(self) -> str | None:
        """The latest message, or None."""
        report: Any = self._inner.run.report
        message: str | None = report.get("message", self._inner.record.message)
        return message

    @property
    def log(self) -> list[str]:
        """The last 20 lines of the log."""
        lines: Any = self._inner.run.report.get("log", self._inner.record.log)
        return list(lines)

    @property
    def error(self) -> JobError | None:
        """Why the job failed, is retried or was cancelled, or None. For the application
        only: viewers see what :meth:`public_error` returns.
        """
        return self._inner.record.error

    @property
    def attempt(self) -> int:
        """The attempt number of the newest run that called the actor, from 1, or 0 if
        none has.
        """
        return self._inner.record.attempt

    @property
    def queued_at(self) -> datetime.datetime | None:
        """When the job was sent, in UTC, or None if that is unknown."""
        return self._inner.record.time("queued")

    @property
    def due_at(self) -> datetime.datetime | None:
        """When the job is due, in UTC, or None if it was not delayed or has started."""
        return self._inner.record.time("due")

    @property
    def started_at(self) -> datetime.datetime | None:
        """When the newest run that called the actor began, in UTC, or None."""
        return self._inner.record.time("started")

    @property
    def updated_at(self) -> datetime.datetime | None:
        """When the job last changed or reported, in UTC, or None if unknown."""
        return self._inner.record.time("updated")

    @property
    def finished_at(self) -> datetime.datetime | None:
        """When the job ended, in UTC, or None."""
        return self._inner.record.time("finished")

    @property
    def cancel_requested(self) -> bool:
        """Whether cancellation of the job was requested."""
        if self._inner.run is NO_RUN:
            return self._inner.record.is_cancel_requested
        return self._inner.run.ask()

    def cancel(self) -> bool:
        """Request cancellation of the job. A running job learns of it a moment later;
        any other unfinished job is cancelled at once.

        Returns:
          False if the job had already ended, else True.

        Raises:
          RuntimeError: This JobState was not loaded from a store.
          redis.exceptions.RedisError: The store does not answer.
        """
        inner = self._inner
        if inner.store is None:
            if self.is_finished:
                # A test runs one of its hooks.
                return False
            raise RuntimeError(
                "Only a JobState loaded from a store can cancel its job. To end a "
                "running job from its actor, raise an exception."
            )
        return inner.store.cancel(inner.record.uuid, inner.record.info)

    def delete(self) -> bool:
        """Delete the job if it has ended: it is unknown from then on.

        Returns:
          False if the job has not ended, else True.

        Raises:
          RuntimeError: This JobState was not loaded from a store, or a hook of the job
            runs here.
          redis.exceptions.RedisError: The store does not answer.
        """
        if self._inner.store is None:
            raise RuntimeError("Only a JobState loaded from a store can be deleted.")
        return self._inner.store.delete(self._inner.record.uuid)

    def rerun(self) -> bool:
        """Run the job again, under its uuid, if it has failed.

        Returns:
          False if the job has not failed, else True.

        Raises:
          NotRepeatable: The job cannot run again. The error says why.
          RuntimeError: No request has loaded this JobState, or a hook of the job runs
            here. Elsewhere, call ``pyramid_jobstate.rerun(store, broker, uuid)``.
          StoreUnavailable: The store does not answer.
          dramatiq.errors.BrokerError: The server of a RedisBroker does not answer, or
            refuses the message. The job stays as it was.
          Exception: What else the broker raises. The job stays as it was.
        """
        if self._inner.container is None:
            raise RuntimeError(
                "Only a JobState loaded in a request knows the broker of its job. Call "
                "pyramid_jobstate.rerun(store, broker, uuid)."
            )
        return self._inner.container.rerun(self)

    def public_error(self, exception_type: str, message: str) -> str:
        """Return the text that viewers see for the exception that ended the job, or for
        the SkipMessage with which a middleware or the actor dropped its message.

        Parameters:
          exception_type: The qualified name of the class, such as "ValueError",
            "myapp.jobs.BadFile" or "dramatiq.middleware.middleware.SkipMessage".
          message: The exception's text. It may contain secrets: do not show it to
            viewers unless the type is one of your own.

        Returns:
          A string or a translation string.
        """
        if self.status == "cancelled":
            return SKIPPED
        return FAILED

    def result_url(self, request: Any) -> str | None:
        """Return the URL of what a job that succeeded has made, or None.

        Everybody who may view the job is told the URL, so its view must check its own
        permission. A metric can carry what the URL needs.

        Parameters:
          request: The request of the viewer.

        Returns:
          An http or https URL, such as ``request.route_url("report", uuid=self.uuid)``.
          Anything else is logged as an error, and not shown.
        """
        return None

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        """Return the job's ACL: the owner may `view_job` and `cancel_job`, and the
        lineage decides the rest.

        In a request of the owner, it begins with an ACE for Pyramid's Authenticated
        (for Everyone with the setting ``jobstate.owner``), for that request only.
        """
        owner = self.owner
        if owner is None:
            return []
        container = self._inner.container
        principals = (owner,) if container is None else container._principals_of(owner)
        return [(ALLOW, name, ("view_job", "cancel_job")) for name in principals]

    def __json__(self, request: Any) -> dict[str, Any]:
        """Return the state as viewers see it, for the JSON renderer."""
        progress, error, public = self.progress, self.error, self.public_params
        params = self.job_params if public else {}
        is_finished = self.is_finished
        is_success = is_finished and self.is_success
        status = self.status
        states, url = self._inner.container, self._url_in(request)
        if states is None or states.request is not request:
            states = request.job_states
        job = {
            "uuid": self.uuid,
            "kind": self.kind,
            "title": translated(self.title, states),
            "status": status,
            "url": url,
            "params": {k: params[k] for k in public if k in params},
            "progress": progress and progress_json(progress),
            "phase": phase_of(progress),
            "message": self.message,
            "log": self.log,
            "attempt": self.attempt,
            "usual": self._usual() if status == "working" and self.show_usual else None,
            **self._inner.record.iso_times(),
            "cancellable": not is_finished and bool(states.permits(self, "cancel_job")),
            "error": error
            and {"message": translated(self._public_reason(error), states)},
            "result": self._result(request) if is_success else None,
            **self._own_json(url, request, states),
        }
        coarse = "success" if is_success else "error" if is_finished else "working"
        return {**self.progress_metrics, "job_state": coarse, "job": job}

    def _own_json(self, url: str, request: Any, states: Any) -> dict[str, Any]:
        """Return what the JSON of a batch has beside that of a job.

        Parameters:
          url: The URL of the job.
          states: The container of the job in the request.
        """
        return {}

    def _usual(self) -> dict[str, float] | None:
        """Return how long jobs of this kind usually run, or None. The first time that a
        run is shown, the store is asked to write this into its record, so that all
        processes say the same, and streams hear of it.
        """
        record = self._inner.record
        if record.text("usual") is not None:
            return record.usual
        if self._inner.store is not None:
            self._inner.store.tell_usual(record)
        return None

    def _url_in(self, request: Any) -> str:
        """Return the URL of the job in the state that a request gets."""
        states = self._inner.container
        if states is not None and states.request is request:
            return states._url_of(self)
        url: str = request.resource_url(self)
        return url

    def _result(self, request: Any) -> dict[str, str] | None:
        """Return the JSON of the result of a job that succeeded, or None without one.
        Faults in the application's code are logged once per kind; the state is still
        returned.
        """
        try:
            url = self.result_url(request)
        except StoreUnavailable:
            raise
        except Exception:
            _note_fault(self, "raised an exception.", exc_info=True)
            return None
        if url is None:
            return None
        if is_link(url):
            return {"url": str(url)}
        what = "returned %r, not an http or https URL, such as request.route_url(…)."
        _note_fault(self, what, url)
        return None

    def _public_reason(self, error: JobError) -> str:
        if error.type is None:
            return sentence_of(error.message, REASONS) or error.message
        return self.public_error(error.type, error.message)

    # What an actor calls.

    def set_progress_metric(self, name: str, value: Any) -> None:
        """Set the latest value of one metric.

        Parameters:
          name: The name of the metric.
          value: Any JSON value, or a date, UUID, Decimal, enum or NumPy scalar. A
            copy is kept.

        Raises:
          TypeError: The value has no JSON form, or the name is not a string.
          ValueError: The value is NaN, infinite or over 16 KiB, the job's metrics take
            over 256 KiB, or the name is empty or reserved.
        """
        run = self._inner.run
        # A loop may call this a million times: values.py says why these checks suffice.
        if (
            type(value) in NUMBERS
            and -LIMIT < value < LIMIT
            and type(name) is str
            and name in run.known
        ):
            run.metrics[name] = value
            run.dirty = True
        else:
            run.set_metrics({name: value})

    def set_progress_metrics(
        self, mapping: Mapping[str, Any] = {}, /, **values: Any
    ) -> None:
        """Set several metrics at once: a viewer sees all of them or none.

        Parameters:
          mapping: Values by the names of their metrics.
          values: Further ones.

        Raises:
          TypeError, ValueError: As :meth:`set_progress_metric`. No metric is set then.
        """
        self._inner.run.set_metrics({**mapping, **values})

    def increment_progress_metric(self, name: str, by: float = 1) -> None:
        """Add to a counter, which starts at 0. Exact even when several threads count.

        Parameters:
          name: The name of the metric.
          by: The number to add.

        Raises:
          TypeError: The metric's value or `by` is not a number.
          ValueError: As :meth:`set_progress_metric`, or the sum overflows a float.
        """
        self._inner.run.increment(name, by)

    def set_progress(
        self,
        done: float,
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> None:
        """Set how far the job has come.

        Parameters:
          done: How much is done.
          total: How much there is to do, or None if unknown.
          unit: What is counted, such as "rows".
          message: A message to set along with the progress, or None.

        Raises:
          TypeError: An amount is not a number, or a text is not a string.
          ValueError: An amount is negative, NaN, infinite or too large for a float, or
            a text is over 16 KiB.
        """
        run = self._inner.run
        report: dict[str, Any] = run.report
        # As in set_progress_metric(). The bar of a phase must not go back.
        if (
            type(done) in AMOUNTS
            and 0 <= done < LIMIT
            and total is run.total
            and report["progress"][0] <= done
            and unit is run.unit
            and (message is None or message is report.get("message"))
            and not run.barred
        ):
            report["progress"] = (done, total, unit)
            run.dirty = True
        else:
            run.set_progress(done, total, unit, message)

    @overload
    def track(
        self,
        iterable: AsyncIterable[T],
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> AsyncIterator[T]: ...

    @overload
    def track(
        self,
        iterable: Iterable[T],
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> Iterator[T]: ...

    def track(
        self,
        iterable: Any,
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> Any:
        """Yield the items of an iterable and keep the progress current: an item counts
        as done when the next one is requested.

        Parameters:
          iterable: An iterable, or an async iterable for ``async for``. An async
            generator is closed before JobCancelled is raised.
          total: The number of items; by default the iterable's `len()`, if it has one.
          unit, message: As for :meth:`set_progress`.

        Raises:
          TypeError: `iterable` is neither iterable nor async iterable.
          TypeError, ValueError: As :meth:`set_progress`.
        """
        return self._inner.run.track(iterable, total, unit, message)

    def phase(self, name: str, percent: float) -> AbstractContextManager[None]:
        """Return a context in which everything that reports progress, called functions
        included, fills a part of the bar. The bar never moves back: in a second
        :meth:`track` it waits until that has come as far. A phase that raises leaves
        the bar where it stands.

        Parameters:
          name: What is done in the phase, for viewers; the first 200 characters count.
          percent: Its share of what encloses it: of the whole job, or of another phase.
            More than is left is cut, with a warning.

        Raises:
          TypeError: The name is not a string, or the percentage not a number.
          ValueError: The name is empty, or the percentage not above 0 and at most 100.
          RuntimeError: On entry, if a phase is open in another thread.
        """
        return self._inner.run.phases.open(self._inner.run, *check_phase(name, percent))

    def set_message(self, text: str | None) -> None:
        """Set the message, of at most 16 KiB; None removes it.

        Raises:
          TypeError: The text is not a string.
          ValueError: The text is too long.
        """
        self._inner.run.set_message(text)

    def append_log(self, line: str) -> None:
        """Append a line to the job's log, which keeps the last 20 lines, each cut to
        200 characters.

        Raises:
          TypeError: The line is not a string.
        """
        self._inner.run.append_log(line)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until everything set so far is stored.

        Parameters:
          timeout: Seconds to wait at most.

        Returns:
          Whether everything is stored.

        Raises:
          RuntimeError: This JobState was loaded from a store.
        """
        return self._inner.run.flush(timeout)

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled if cancellation of the job was requested, as every call
        that reports does.

        The exception is raised once in the thread that runs the job, once in each
        asyncio task, and at every call in any other thread, so that a pool stops its
        remaining work. It is not raised while a JobCancelled is being handled.

        Raises:
          JobCancelled: Cancellation was requested.
          RuntimeError: The JobState was loaded from a store, or its job has ended.
        """
        self._inner.run.ask()
        self._inner.run.check()


def check_declaration(cls: type[Any]) -> None:
    """Check what a JobState class declares.

    Raises:
      TypeError: Its `kind` is not a string that the store keeps, its `public_params`
        are a string, or its `show_usual` or its `public_log` is not a bool.
    """
    kind: object = cls.kind
    # The store keeps str(kind), which differs for the member of a str Enum.
    if not isinstance(kind, str) or not kind or str(kind) != kind:
        raise TypeError(
            f"{cls.__qualname__}.kind must be a str that is not empty, not {kind!r}. "
            "Leave it out to use the name of the class."
        )
    if isinstance(cls.public_params, str):
        raise TypeError(
            f"{cls.__qualname__}.public_params must be a tuple of names, not the "
            f"string {cls.public_params!r}. Is a comma missing?"
        )
    for name in ("show_usual", "public_log"):
        value = getattr(cls, name)
        if not isinstance(value, bool):
            raise TypeError(
                f"{cls.__qualname__}.{name} must be True or False, not {value!r}."
            )


def level_number(cls: type[Any]) -> int | None:
    """Return the number of the `log_level` of a JobState class, or None without one.

    Raises:
      TypeError: It is neither a string nor an int.
      ValueError: It names no level, or is not positive.
    """
    level: object = cls.log_level
    if level is None:
        return None
    if isinstance(level, bool) or not isinstance(level, (str, int)):
        raise TypeError(
            f'{cls.__qualname__}.log_level must be a level of logging, such as "INFO", '
            f"or None, not {level!r}."
        )
    names = logging.getLevelNamesMapping()
    number = names.get(level, 0) if isinstance(level, str) else level
    if number <= 0:
        known = ", ".join(name for name in names if names[name])
        raise ValueError(
            f"{cls.__qualname__}.log_level must be a level of logging above 0 or the "
            f"name of one ({known}), not {level!r}."
        )
    # The text of an enum's member would be its name.
    return int(number)


#: An absolute http or https URL, which is safe in a link.
_HTTP = re.compile(r"https?://[^\s/?#\x00-\x1f\x7f][^\s\x00-\x1f\x7f]*", re.IGNORECASE)

#: The kinds whose results were logged as faults.
_faulty = Once()


def _note_fault(
    job_state: JobState, what: str, *args: object, exc_info: bool | None = None
) -> None:
    """Log a fault in ``result_url()``, unless one was logged for this kind before."""
    cls = type(job_state)
    if _faulty.is_new(cls.kind):
        log.error(
            f"%s.%s.result_url() for the job %s {what} The job has no result. Further "
            "faults for jobs of kind %r are not logged.",
            cls.__module__,
            cls.__qualname__,
            job_state.uuid,
            *args,
            cls.kind,
            exc_info=exc_info,
        )


def is_link(url: object) -> bool:
    """Return whether something is an http or https URL."""
    return isinstance(url, str) and _HTTP.fullmatch(url) is not None


#: The kinds whose code was logged. All unknown kinds count as one.
_troubled = Once()


def note_trouble(
    cls: type[JobState], uuid: str, consequence: str = "which is left out"
) -> None:
    """Log the current exception, unless one was logged for this kind before.

    Parameters:
      consequence: What follows from it for the job, as the end of a sentence.
    """
    if _troubled.is_new(cls.kind):
        log.exception(
            "The application's code for %s.%s raised an exception for the job %s, "
            "%s. Further exceptions for jobs of kind %r are not logged.",
            cls.__module__,
            cls.__qualname__,
            uuid,
            consequence,
            cls.kind,
        )


_kinds[JobState.kind] = JobState
#: The unknown kinds that a warning was logged for.
_unknown = Once(100)


class _UnknownKind(JobState):
    """A job of a kind unknown to this process. Only its lineage grants access."""

    # Its class may forbid it.
    show_usual = False

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


# The kind that no other class can declare.
_kinds[""] = _kinds.pop(_UnknownKind.kind)
_UnknownKind.kind = ""


def imported_class(kind: str) -> type[JobState] | None:
    """Return the class of a kind, or None if this process has not imported it."""
    return None if kind in ("", BATCH_MARK) else _kinds.get(kind)


def class_hooks(cls: type[JobState]) -> Mapping[str, bool]:
    """Return for each status of which a class has a hook whether that receives a
    request.
    """
    return cls._hooks


def log_level_of(cls: type[JobState]) -> int | None:
    """Return the number of the lowest level that a class captures, or None."""
    return cls._log_level


def kinds_with_hooks(*, has_requests: bool) -> list[str]:
    """Return the kinds with hooks whose classes this process has imported.

    Parameters:
      has_requests: Whether hooks can receive a request. Else kinds are left out that
        have such a hook.
    """
    return [
        kind
        for kind, cls in [*_kinds.items()]
        if cls._hooks and (has_requests or not any(cls._hooks.values()))
    ]


def class_of(record: Record) -> type[JobState]:
    """Return the JobState class for the kind of a record."""
    found = _kinds.get(record.kind)
    # Under the name BATCH_MARK is the class of batches of an unknown kind.
    return found or _kinds.get(record.batch, _UnknownKind)


def job_state_of(record: Record, store: Store) -> JobState:
    """Return a record's job as an instance of the class for its kind.

    Parameters:
      store: The store from which it was read.

    Raises:
      TypeError: The class overrides ``__init__()`` without calling its parent's.
    """
    kind = record.kind
    found = class_of(record)
    job_state = found(Inner(record, store=store))
    if getattr(job_state, "_inner", None) is None:
        raise TypeError(
            f"{found.__qualname__}.__init__() must call super().__init__()."
        )
    if not kind or kind not in _kinds:
        job_state.kind = kind
        if _unknown.is_new(kind):
            log.warning(
                "A job has the kind %r, but this process has not imported a JobState "
                "class of that kind: only the job's lineage grants access. Import the "
                'module that defines the class. See "403" in the troubleshooting '
                "guide.",
                kind,
            )
    return job_state


class Guard:
    """Keeps an exception of the application's code for one job from the others: within
    the context it is logged, once per kind. The store's errors pass.

    Parameters:
      consequence: As for :func:`note_trouble`.
    """

    def __init__(
        self, job_state: JobState, consequence: str = "which is left out"
    ) -> None:
        self._job_state = job_state
        self._consequence = consequence

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: object, _traceback: object) -> bool:
        if not isinstance(error, Exception) or isinstance(error, StoreUnavailable):
            return False
        job_state = self._job_state
        note_trouble(type(job_state), record_of(job_state).uuid, self._consequence)
        return True


def inner_of(job_state: JobState) -> Inner:
    """Return what the package keeps of a job."""
    return job_state._inner


def record_of(job_state: JobState) -> Record:
    """Return the record of a job."""
    return job_state._inner.record


def run_of(job_state: JobState) -> Run:
    """Return the run to which a JobState writes."""
    return job_state._inner.run


def ends_after(job_state: JobState, uuid: str) -> bool:
    """Return whether a job cannot end before one that runs: it is that job itself, its
    batch or a later step of its pipeline.
    """
    record = job_state._inner.record
    return uuid in (record.uuid, record.batch, *job_state._inner.later_steps())


def set_container(job_state: JobState, container: Container) -> None:
    """Set the container that a JobState uses, which becomes its parent."""
    job_state.__parent__ = job_state._inner.container = container


def container_of(job_state: JobState) -> Any:
    """Return the container of a job, even if the application has given it another
    parent.
    """
    container = job_state._inner.container
    return job_state.__parent__ if container is None else container


def url_in(job_state: JobState, request: Any) -> str:
    """Return the URL of a job in the state that a request gets."""
    return job_state._url_in(request)


def as_seen_from(job_state: JobState, request: Any) -> JobState:
    """Return a job for use in a request: a copy if another request loaded it."""
    container = job_state._inner.container
    if container is None or container.request is request:
        return job_state
    job_state = copy.copy(job_state)
    job_state._inner.container = request.job_states
    return job_state
