"""A stream: the states of jobs as events, and how each is rendered."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol
from urllib.parse import quote

from pyramid.threadlocal import manager

from ...job.once import Once
from ...job.state import JobState, note_trouble, record_of, set_container, url_in
from ..answers import encode_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyramid.request import Request

log = logging.getLogger("pyramid_jobstate")

#: The kinds that were logged because they cannot be streamed.
_polled = Once()

#: Bytes that a stream is given at a time, unless one event is larger.
CHUNK = 64 * 1024

#: The store has not answered for a while. The empty id makes a client that reconnects
#: get all states again: it does not show them any more.
AWAY = b"id:\nevent: away\ndata: 503\n\n"


class Stream:
    """The state of one response. Only the hub's thread touches it after it has joined.

    Parameters:
      viewers: How the request sees each job that it was shown, by the uuid under which
        it asked.
      sent: The frames that the client has, or gets with the first chunk.
      first: The first chunk.
      max_age: Seconds after which it ends.

    Attributes:
      missed: The jobs whose newest state the client lacks, in order.
      is_ready: Whether its carrier has sent all that it was given.
      given_at: When it was last given something.
      unsent: The bytes that it was given last and has not sent yet.
      is_away: Whether the client was told that the store does not answer.
      left: The jobs that may still change.
    """

    __slots__ = (
        "_sent",
        "_tag",
        "carrier",
        "ends_at",
        "first",
        "given_at",
        "is_away",
        "is_ready",
        "left",
        "missed",
        "unsent",
        "viewers",
    )

    def __init__(
        self,
        viewers: Mapping[str, Viewer],
        sent: Mapping[str, Frame],
        first: bytes,
        max_age: float,
    ) -> None:
        self.viewers = viewers
        self.first = first
        self._sent = {uuid: frame.digest for uuid, frame in sent.items()}
        self._tag = tag_of(sent)
        self.carrier: Carrier
        self.missed: dict[str, None] = {}
        self.is_ready = True
        self.given_at = time.monotonic()
        self.unsent = 0
        self.is_away = False
        self.left = len(viewers)
        # Not all at once: the clients of a process that was just started come again.
        self.ends_at = self.given_at + max_age * random.uniform(0.8, 1)

    def has(self, uuid: str, frame: Frame) -> bool:
        """Return whether the client has this state of a job."""
        return self._sent.get(uuid) == frame.digest

    def forget(self) -> None:
        """Send all states again, since the client no longer shows them."""
        self._sent.clear()
        self._tag = 0

    def next_chunk(self, news: Callable[[str], Frame | None]) -> bytes:
        """Return the next events of the jobs in `missed`: at most CHUNK bytes of them,
        or one.

        Parameters:
          news: Returns the frame of a job, or None if it is gone.
        """
        parts: list[bytes] = []
        size = 0
        is_alone = len(self.viewers) == 1
        while self.missed:
            uuid = next(iter(self.missed))
            frame = news(uuid)
            if frame is None:
                part = gone(uuid)
            elif self.has(uuid, frame):
                part = b""
            else:
                part = frame.alone if is_alone else frame.block
            if parts and size + len(part) > CHUNK:
                break
            del self.missed[uuid]
            if part:
                parts.append(part)
                size += len(part)
            if frame is None:
                self._tag ^= self._sent.pop(uuid, 0)
            elif part:
                self._tag ^= frame.digest ^ self._sent.get(uuid, 0)
                self._sent[uuid] = frame.digest
        if parts and not is_alone:
            parts[-1] = identified(self._tag, parts[-1])
        return b"".join(parts)


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

    def _url_of(self, job_state: object) -> str:
        """As a container: the URL of the job."""
        return self.resource_url(job_state)

    def permits(self, context: object, permission: str) -> bool:
        """As a container: whether the viewer may cancel the job."""
        if not self._is_job(context) or permission != "cancel_job":
            self._refuse(f"the permission {permission!r}")
        return self._viewer.may_cancel

    def _principals_of(self, owner: str | float) -> Sequence[str | float]:
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
      block: The event without an id. Empty once it is forgotten.
    """

    __slots__ = ("_alone", "block", "digest")

    def __init__(self, body: bytes) -> None:
        sha = hashlib.sha1(body, usedforsecurity=False).digest()
        self.digest = int.from_bytes(sha[:8])
        self.block = b"data: %b\n\n" % body
        self._alone = b""

    @property
    def text(self) -> str:
        """The state as JSON."""
        return self.block.removeprefix(b"data: ").removesuffix(b"\n\n").decode()

    def forget(self) -> None:
        """Keep nothing but the digest."""
        self.block = b""

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
    if job_state.is_success and type(job_state).result_url is not JobState.result_url:
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


def _note_polled(cls: type[JobState], what: str) -> None:
    """Log that jobs of a class cannot be streamed, once a kind."""
    if _polled.is_new(cls.kind):
        log.info(
            "Jobs of kind %r are polled: a stream has no request for %s.",
            cls.kind,
            what,
        )


class Carrier(Protocol):
    """What brings a stream's bytes to its client."""

    def give(self, data: bytes, is_over: bool) -> None:
        """Send data, and end the response if it is over. Called by the hub's thread,
        and only when the carrier has sent what it was given before.
        """

    def drop(self) -> None:
        """End the response, whatever has not been sent. Called by the hub's thread."""


def tag_of(frames: Mapping[str, Frame]) -> int:
    """Return the id of a client that has these states, whatever their order."""
    tag = 0
    for frame in frames.values():
        tag ^= frame.digest
    return tag


def gone(uuid: str) -> bytes:
    """Return the event that tells a client to ask for a job by a poll.

    Parameters:
      uuid: The uuid under which it was asked for. What cannot be one is quoted: a line
        break would begin another event.
    """
    return b"event: gone\ndata: %b\n\n" % quote(uuid).encode()


def beat(millis: int) -> bytes:
    """Return a sign of life.

    Parameters:
      millis: The store's time.
    """
    return b"event: beat\ndata: %d\n\n" % millis


def opening(millis: int) -> bytes:
    """Return the beginning of a stream: when to come again after its end, and a beat.
    A client that hears nothing would suspect its proxy of buffering.
    """
    return b"retry: %d\n%b" % (random.randint(1000, 3000), beat(millis))
