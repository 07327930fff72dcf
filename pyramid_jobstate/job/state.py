"""JobState: the resource that viewers read and the handle that an actor writes to."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Collection
from typing import Any

from ..errors import StoreUnavailable
from .declared import check_declaration
from .facts import Facts
from .phases import phase_of
from .protocols import Container, Store
from .record import JobError, Record
from .result import result_of
from .texts import FAILED, REASONS, SKIPPED, humanized, sentence_of, translated

log = logging.getLogger(__name__)

#: The value of `pyramid.authorization.Allow`, without importing Pyramid in a worker.
ALLOW = "Allow"

#: The maximum number of unknown kinds to warn about, once each.
MAX_UNKNOWN = 100

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


class JobState(Facts):
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
    * :meth:`public_error`: the text that viewers see for an exception;
    * :meth:`result_url`: the URL of what the job has made; by default none;
    * :meth:`__acl__`: who may do what with a job.

    Attributes:
      uuid: The ``message_id`` of the job's Dramatiq message.
      __parent__: The container through which a request found the job.
    """

    kind: str = "JobState"
    public_params: Collection[str] = ()
    __parent__: Any = None
    _store: Store | None = None
    #: The container that loaded it, even if the application changes __parent__.
    _container: Container | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__
        check_declaration(cls)
        old = _kinds.get(cls.kind, cls)
        if (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"Two JobState classes have the kind {cls.kind!r}: "
                f"{old.__module__}.{old.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}. Give one a different `kind`."
            )
        _kinds[cls.kind] = cls

    @classmethod
    def class_of(cls, record: Record) -> type[JobState]:
        """Return the JobState class for the kind of a record."""
        found = _kinds.get(record.kind)
        # Under the name BATCH is the class of batches of an unknown kind.
        return found or _kinds.get(record.text("batch") or "", _UnknownKind)

    @classmethod
    def from_record(cls, record: Record) -> JobState:
        """Return a record's job as an instance of the class for its kind.

        Raises:
          TypeError: The class overrides ``__init__()`` without calling its parent's.
        """
        kind = record.kind
        found = cls.class_of(record)
        job_state = found(record)
        if getattr(job_state, "_record", None) is None:
            raise TypeError(
                f"{found.__qualname__}.__init__() must call super().__init__()."
            )
        if not kind or kind not in _kinds:
            job_state.kind = kind
            if kind not in _unknown and len(_unknown) < MAX_UNKNOWN:
                _unknown.add(kind)
                log.warning(
                    "A job has the kind %r, but this process has not imported a "
                    "JobState class of that kind: only the job's lineage grants "
                    "access. Import the module that defines the class.",
                    kind,
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
        """The heading that viewers see: "Run marathon" for the kind RunMarathon or,
        without a JobState class, for the actor run_marathon.
        """
        return humanized(self.actor if type(self) is JobState else self.kind)

    def cancel(self) -> bool:
        """Request cancellation of the job. A running job learns of it a moment later;
        any other unfinished job is cancelled at once.

        Returns:
          False if the job had already ended, else True.

        Raises:
          RuntimeError: This JobState was not loaded from a store.
          redis.exceptions.RedisError: The store does not answer.
        """
        if self._store is None:
            raise RuntimeError(
                "Only a JobState loaded from a store can cancel its job. To end a "
                "running job from its actor, raise an exception."
            )
        return self._store.cancel(self._record.uuid, self._record.info)

    def delete(self) -> bool:
        """Delete the job if it has ended: it is unknown from then on.

        Returns:
          False if the job has not ended, else True.

        Raises:
          RuntimeError: This JobState was not loaded from a store.
          redis.exceptions.RedisError: The store does not answer.
        """
        if self._store is None:
            raise RuntimeError("Only a JobState loaded from a store can be deleted.")
        return self._store.delete(self._record.uuid)

    def rerun(self) -> bool:
        """Run the job again, under its uuid, if it has failed.

        Returns:
          False if the job has not failed, else True.

        Raises:
          NotRepeatable: The job cannot run again. The error says why.
          RuntimeError: No request has loaded this JobState. Elsewhere, call
            ``pyramid_jobstate.rerun(store, broker, uuid)``.
          redis.exceptions.RedisError: The store does not answer.
          dramatiq.errors.BrokerError: The server of a RedisBroker does not answer, or
            refuses the message. The job stays as it was.
          Exception: What else the broker raises. The job stays as it was.
        """
        if self._container is None:
            raise RuntimeError(
                "Only a JobState loaded in a request knows the broker of its job. Call "
                "pyramid_jobstate.rerun(store, broker, uuid)."
            )
        return self._container.rerun(self)

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
        container = self._container
        principals = (owner,) if container is None else container.principals_of(owner)
        return [(ALLOW, name, ("view_job", "cancel_job")) for name in principals]

    def __json__(self, request: Any) -> dict[str, Any]:
        """Return the state as viewers see it, for the JSON renderer."""
        progress, error, public = self.progress, self.error, self.public_params
        params = self.job_params if public else {}
        is_finished = self.is_finished
        is_success = is_finished and self.is_success
        states, url = self._container, self._url_in(request)
        if states is None or states.request is not request:
            states = request.job_states
        job = {
            "uuid": self.uuid,
            "kind": self.kind,
            "title": translated(self.title, states),
            "status": self.status,
            "url": url,
            "params": {k: params[k] for k in public if k in params},
            "progress": progress
            and {
                "done": progress.done,
                "total": progress.total,
                "unit": progress.unit,
                "eta": progress.eta,
                "fraction": progress.fraction,
            },
            "phase": phase_of(progress),
            "message": self.message,
            "log": self.log,
            "attempt": self.attempt,
            **self._record.iso_times(),
            "cancellable": not is_finished and bool(states.permits(self, "cancel_job")),
            "error": error
            and {"message": translated(self._public_reason(error), states)},
            "result": self._result(request) if is_success else None,
            **self._own_json(url, request, states),
        }
        coarse = "success" if is_success else "error" if is_finished else "working"
        return {**self.progress_metrics, "job_state": coarse, "job": job}

    def _url_in(self, request: Any) -> str:
        """Return the URL of the job in the state that a request gets."""
        states = self._container
        if states is not None and states.request is request:
            return states.url_of(self)
        url: str = request.resource_url(self)
        return url

    def _result(self, request: Any) -> dict[str, str] | None:
        return result_of(type(self), self.uuid, lambda: self.result_url(request))

    def _public_reason(self, error: JobError) -> str:
        if error.type is None:
            return sentence_of(error.message, REASONS) or error.message
        return self.public_error(error.type, error.message)


_kinds[JobState.kind] = JobState
#: The unknown kinds that a warning was logged for.
_unknown: set[str] = set()


class _UnknownKind(JobState):
    """A job of a kind unknown to this process. Only its lineage grants access."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


# The kind that no other class can declare.
_kinds[""] = _kinds.pop(_UnknownKind.kind)
_UnknownKind.kind = ""
