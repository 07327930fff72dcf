"""Rendering: a job's state as an event, without the request that asked for it."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pyramid.threadlocal import manager

from ...job import JobState, note_trouble, record_of, set_container, url_in
from ..answers import encode_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyramid.request import Request

log = logging.getLogger("pyramid_jobstate")

#: The kinds that were logged because they cannot be streamed.
_polled: set[str] = set()


class Viewer(NamedTuple):
    """What of a job's JSON depends on the request. Equal viewers see equal bytes.

    Attributes:
      job: The uuid of the job. That of an alias of the job is another.
      url: The job's URL.
      may_cancel: Whether the request had the permission `cancel_job` when the stream
        was authorised.
      localizer: Translates for the request.
    """

    job: str
    url: str
    may_cancel: bool
    localizer: Any


class Unstreamable(Exception):
    """The application's code asks for what only a request has."""


class Standin:
    """Stands for the request, and for its container of jobs, while one job is rendered.

    It answers only what :meth:`.JobState.__json__` asks. For anything else it raises
    Unstreamable, which `getattr()` with a default does not hide.

    Parameters:
      viewer: Who sees the job.
      job_state: The job.

    Attributes:
      refusal: What it has raised, which the application's code may have caught.
    """

    def __init__(self, viewer: Viewer, job_state: JobState) -> None:
        self._viewer = viewer
        # Not the job, which refers to this object: a circle waits for the collector.
        self._uuid = job_state.uuid
        self.refusal: Unstreamable | None = None
        self.localizer = viewer.localizer

    @property
    def request(self) -> Standin:
        """As a container: its request."""
        return self

    def resource_url(self, resource: object, *elements: object, **more: object) -> str:
        """As a request: the URL of the job."""
        if not self._is_job(resource) or elements or more:
            self._refuse("the URL of another resource")
        return self._viewer.url

    def url_of(self, job_state: object) -> str:
        """As a container: the URL of the job."""
        return self.resource_url(job_state)

    def permits(self, context: object, permission: str) -> bool:
        """As a container: whether the viewer may cancel the job."""
        if not self._is_job(context) or permission != "cancel_job":
            self._refuse(f"the permission {permission!r}")
        return self._viewer.may_cancel

    def principals_of(self, owner: str | float) -> Sequence[str | float]:
        """As a container: nobody asks for an ACL while a job is rendered."""
        self._refuse("the principals of an owner")

    def rerun(self, job_state: object) -> bool:
        """As a container: nobody runs a job while it is rendered."""
        self._refuse("running a job again")

    def _is_job(self, resource: object) -> bool:
        return isinstance(resource, JobState) and resource.uuid == self._uuid

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse(f"the attribute {name!r} of the request")

    def _refuse(self, what: str) -> NoReturn:
        self.refusal = Unstreamable(what)
        raise self.refusal


class Frame:
    """A state as an event.

    Parameters:
      body: The state as JSON, in one line.

    Attributes:
      digest: A hash of the state. The id of a stream's last event is made of the
        digests of all states that it shows.
      block: The event without an id.
    """

    __slots__ = ("_alone", "block", "digest")

    def __init__(self, body: bytes) -> None:
        sha = hashlib.sha1(body, usedforsecurity=False).digest()
        self.digest = int.from_bytes(sha[:8])
        self.block = b"data: %b\n\n" % body
        self._alone = b""

    @property
    def alone(self) -> bytes:
        """The event with its id, for streams of this job alone. They share it."""
        if not self._alone:
            self._alone = identified(self.digest, self.block)
        return self._alone


def identified(tag: int, event: bytes) -> bytes:
    """Return an event with an id."""
    return b"id: %016x\n%b" % (tag, event)


def viewer_of(request: Request, job_state: JobState) -> Viewer | None:
    """Return how a request sees a job that it may view, or None if the application's
    code raises an exception, which is logged once a kind.
    """
    try:
        may_cancel = bool(request.job_states.permits(job_state, "cancel_job"))
        url = url_in(job_state, request)
        job = record_of(job_state).uuid
        viewer = Viewer(job, url, may_cancel, request.job_states.localizer)
        # A localizer of the application's may not allow it.
        hash(viewer)
    except Exception:
        note_trouble(type(job_state), job_state.uuid)
        return None
    return viewer


def is_streamable(cls: type[JobState]) -> bool:
    """Return whether jobs of a class can be streamed: not if it overrides ``__json__``,
    which may ask its request for anything. Logged once a kind.
    """
    if cls.__json__ is JobState.__json__:
        return True
    _note_polled(cls, f"{cls.__module__}.{cls.__qualname__}.__json__()")
    return False


def render(job_state: JobState, viewer: Viewer) -> Frame | None:
    """Return a job's state as a viewer sees it, or None if the application's code
    raises an exception or asks for what only a request has. Logged once a kind.

    The success of a job that may have a result is None as well: its URL is made from a
    request, and the page polls once for it. So is a job that has become an alias since
    the stream was authorised: the rights are those of the job to which it leads.
    """
    if record_of(job_state).uuid != viewer.job:
        return None
    if job_state.is_success and has_result(type(job_state)):
        return None
    standin = Standin(viewer, job_state)
    set_container(job_state, standin)
    # Code that looks for the current request must not find that of the view.
    manager.push({"request": standin, "registry": standin})
    try:
        text = encode_state(job_state, job_state.__json__(standin))
        frame = Frame(text.encode())
        if standin.refusal is None:
            return frame
    except Exception:
        if standin.refusal is None:
            note_trouble(type(job_state), job_state.uuid)
            return None
    finally:
        manager.pop()
    cls = type(job_state)
    _note_polled(
        cls, f"{standin.refusal}, which {cls.__module__}.{cls.__qualname__} asks for"
    )
    return None


def has_result(cls: type[JobState]) -> bool:
    """Return whether jobs of a class may have a result."""
    return cls.result_url is not JobState.result_url


def _note_polled(cls: type[JobState], what: str) -> None:
    """Log that jobs of a class cannot be streamed, once a kind."""
    if cls.kind not in _polled:
        _polled.add(cls.kind)
        log.info(
            "Jobs of kind %r are polled: a stream has no request for %s.",
            cls.kind,
            what,
        )
