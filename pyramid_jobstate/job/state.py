"""JobState: the resource that a viewer sees, the handle that an actor writes to."""

from __future__ import annotations

import contextvars
import copy
import logging
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from ..errors import StoreUnavailable
from .facts import Facts
from .record import JobError, JobInfo, Record
from .run import Run
from .texts import humanized, translated

log = logging.getLogger(__name__)

#: `pyramid.authorization.Allow`: a worker is spared the import.
ALLOW = "Allow"

#: The most unknown kinds that are warned of, each once.
MAX_UNKNOWN = 100

#: The JobState classes by the kind of job that they are for.
_kinds: dict[str, type[JobState]] = {}

current_job: contextvars.ContextVar[JobState | None] = contextvars.ContextVar(
    "pyramid_jobstate.current", default=None
)


def current_job_state() -> JobState | None:
    """Return the JobState of the job that runs here, or None outside a tracked job.

    A thread that the job starts itself has none: hand the JobState over to it.
    """
    return current_job.get()


class Store(Protocol):
    """What a JobState asks of the store that it was loaded from."""

    def cancel(self, uuid: str, info: JobInfo, /) -> bool:
        """Ask to cancel a job, and return whether it had not ended."""


class Container(Protocol):
    """What a JobState asks of the container that a request reached it through."""

    request: Any

    def permits(self, context: Any, permission: str, /) -> object:
        """Return whether the request has a permission on a job."""

    def principals_of(self, owner: str | float, /) -> Sequence[str | float]:
        """Return the principals that stand for a job's owner in the request."""


class JobState(Facts):
    """The state of one job, in the worker that runs it as in the process that shows it.

    Subclass it to give a kind of job rights and behaviour of its own::

        class RunMarathon(JobState):
            public_params = ("miles",)

    A class may set or override:

    * `kind`: the name of this kind of job, stored with each; the class's own name
      unless set;
    * `title`: what a viewer reads above the job, a string or a translation string; made
      from the kind unless set;
    * `public_params`: the names of the parameters that a viewer may see; none unless
      set;
    * :meth:`public_error`: what a viewer reads of an exception;
    * :meth:`__acl__`: who may do what with a job.

    Attributes:
      uuid: The id of the job, which is the ``message_id`` of its Dramatiq message.
      __parent__: The container that a request reached it through.
    """

    kind: str = "JobState"
    public_params: Collection[str] = ()
    __parent__: Any = None
    _store: Store | None = None
    #: What loaded it in a request, wherever the application then puts it.
    _container: Container | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__
        if isinstance(cls.public_params, str):
            raise TypeError(
                f"{cls.__qualname__}.public_params must be a tuple of names, not the "
                f"string {cls.public_params!r}. Is there a comma missing?"
            )
        old = _kinds.get(cls.kind, cls)
        if (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"There are two JobState classes of kind {cls.kind!r}: "
                f"{old.__module__}.{old.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}. Give one another `kind`."
            )
        _kinds[cls.kind] = cls

    @classmethod
    def class_of(cls, record: Record) -> type[JobState]:
        """Return the class for the kind of a record."""
        return _kinds.get(record.kind, _UnknownKind)

    @classmethod
    def from_record(cls, record: Record) -> JobState:
        """Return the job of a record, as an instance of the class of its kind."""
        found = cls.class_of(record)
        job_state = found(record)
        if getattr(job_state, "_record", None) is None:
            raise TypeError(
                f"{found.__qualname__}.__init__() must call super().__init__()."
            )
        if found is _UnknownKind:
            job_state.kind = record.kind
            if record.kind not in _unknown and len(_unknown) < MAX_UNKNOWN:
                _unknown.add(record.kind)
                log.warning(
                    "There is a job of kind %r, but this process has imported no such "
                    "JobState class: it has no rights of its own.",
                    record.kind,
                )
        return job_state

    def __repr__(self) -> str:
        try:
            status = self.status
        except StoreUnavailable:
            status = "unread"
        return f"<{type(self).__name__} {self.uuid} {status}>"

    @property
    def title(self) -> str:
        """What a viewer reads above the job: "Run marathon" for the kind RunMarathon,
        or for the actor run_marathon where no class was given.
        """
        return humanized(self.actor if type(self) is JobState else self.kind)

    def cancel(self) -> bool:
        """Ask to cancel the job. One that runs learns of it a moment later; any other
        is cancelled at once.

        Returns:
          Whether it had not ended.

        Raises:
          RuntimeError: This JobState does not come from a store.
          redis.exceptions.RedisError: The store does not answer.
        """
        if self._store is None:
            raise RuntimeError(
                "Only a JobState that was loaded can cancel its job: a job that runs "
                "ends by raising an exception."
            )
        return self._store.cancel(self.uuid, self._record.info)

    def public_error(self, exception_type: str, message: str) -> str:
        """Return what a viewer reads of the exception that ended the job, or of the
        SkipMessage with which a middleware or the actor itself has dropped its message:
        a string, or a translation string.

        Parameters:
          exception_type: The qualified name of its class, such as "ValueError",
            "myapp.jobs.BadFile" or "dramatiq.middleware.middleware.SkipMessage".
          message: Its text. It may hold anything: keep it from viewers unless the type
            is one of your own.
        """
        if self.status == "cancelled":
            return "The job was skipped."
        return "The job failed."

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        """Return who may do what: the owner may `view_job` and `cancel_job`, and the
        lineage decides the rest.

        In a request of the owner the ACL begins with an ACE for Pyramid's Authenticated
        (for Everyone with the setting ``jobstate.owner``), made for this request alone.
        """
        owner = self.owner
        if owner is None:
            return []
        container = self._container
        principals = (owner,) if container is None else container.principals_of(owner)
        return [(ALLOW, name, ("view_job", "cancel_job")) for name in principals]

    def __json__(self, request: Any) -> dict[str, Any]:
        """Return the state as a viewer sees it."""
        progress = self.progress
        error = self.error
        params = self.job_params if self.public_params else {}
        record, is_finished = self._record, self.is_finished
        states = self._container
        if states is None or states.request is not request:
            states = request.job_states
        job = {
            "uuid": self.uuid,
            "kind": self.kind,
            "title": translated(self.title, request),
            "status": self.status,
            "url": request.resource_url(self),
            "params": {k: params[k] for k in self.public_params if k in params},
            "progress": progress
            and {
                "done": progress.done,
                "total": progress.total,
                "unit": progress.unit,
                "eta": progress.eta,
                "fraction": progress.fraction,
            },
            "message": self.message,
            "log": self.log,
            "attempt": self.attempt,
            "queued_at": record.iso_time("queued"),
            "due_at": record.iso_time("due"),
            "started_at": record.iso_time("started"),
            "updated_at": record.iso_time("updated"),
            "finished_at": record.iso_time("finished"),
            "cancellable": not is_finished and bool(states.permits(self, "cancel_job")),
            "error": error
            and {"message": translated(self._public_reason(error), request)},
        }
        coarse = "working"
        if is_finished:
            coarse = "success" if self.is_success else "error"
        return {**self.progress_metrics, "job_state": coarse, "job": job}

    def _public_reason(self, error: JobError) -> str:
        if error.type is None:
            return error.message
        return self.public_error(error.type, error.message)


def record_of(job_state: JobState) -> Record:
    """Return the record of a job.

    A function, like those below: a subclass of the application's may use any public
    name for something of its own.
    """
    return job_state._record


def run_of(job_state: JobState) -> Run:
    """Return the run that a JobState writes to."""
    return job_state._run


def set_store(job_state: JobState, store: Store) -> None:
    """Have a JobState ask a store."""
    job_state._store = store


def set_container(job_state: JobState, container: Container) -> None:
    """Have a JobState ask a container, and stand in it."""
    job_state.__parent__ = job_state._container = container


def as_seen_from(job_state: JobState, request: Any) -> JobState:
    """Return a job as a request sees it: a copy if another request has loaded it."""
    container = job_state._container
    if container is None or container.request is request:
        return job_state
    job_state = copy.copy(job_state)
    job_state._container = request.job_states
    return job_state


_kinds[JobState.kind] = JobState
#: The kinds that were warned of.
_unknown: set[str] = set()


class _UnknownKind(JobState):
    """A job of a kind that this process does not know: it has no rights of its own."""

    kind = ""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []
