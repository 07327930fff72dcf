"""The offer of an ASGI request to our views, and the response that becomes a stream."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.response import Response

from ...job import is_owner
from ..answers import STREAM, TIME, Answer, render_state, wants_stream
from ..interfaces import IBaseUrl, IJobStore, IStreamLimits
from .carrier import AsgiCarrier
from .frames import Frame, Viewer, identified, is_streamable, render, viewer_of
from .hub import Hub
from .rooms import Rooms
from .stream import CHUNK, Stream, gone, opening, tag_of

if TYPE_CHECKING:
    from pyramid.registry import Registry
    from pyramid.request import Request

    from ...job import JobState
    from .carrier import LoopQueue, Receive, Send

#: The headers of a stream.
HEADERS = (
    ("Content-Type", f"{STREAM}; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
)

#: The headers of the answer to a poll that do not describe a stream.
OF_POLL = frozenset(
    {
        "cache-control",
        "content-length",
        "content-type",
        "etag",
        TIME.lower(),
        "last-modified",
        "x-content-type-options",
    }
)

#: Says to a page that polls that it could have a stream.
HINT = "JobState-Stream"


class Streams(NamedTuple):
    """The streams of an application.

    Attributes:
      hub: Feeds them.
      rooms: Counts them.
      max_age: Seconds after which each ends.
    """

    hub: Hub
    rooms: Rooms
    max_age: float


#: The name of the streams in the registry's own attributes.
STREAMS = "_jobstate_streams"


def streams_of(registry: Registry) -> Streams:
    """Return the streams of an application, the same each time."""
    attributes = vars(registry)
    streams: Streams | None = attributes.get(STREAMS)
    if streams is None:
        limits = registry.getUtility(IStreamLimits)
        hub = Hub(registry.getUtility(IJobStore))
        made = Streams(hub, Rooms(limits.max_streams), limits.max_age)
        # Threads that come at the same time get the same. A lock might be held for
        # ever in a forked child.
        streams = attributes.setdefault(STREAMS, made)
    return streams


def site_of(request: Request) -> str | None:
    """Return how the URLs in the states of a request begin, if its sender may have made
    that up: a header `Host` may name anything.
    """
    is_named = request.registry.queryUtility(IBaseUrl) is not None
    return None if is_named else request.application_url


class Plan(NamedTuple):
    """What a response needs to become a stream. It keeps no request.

    Attributes:
      streams: The streams of the application.
      owner: Who asks for it, or None.
      site: For which site: see :func:`site_of`.
      viewers: How the request sees each of its jobs, by the uuid under which it asked.
      frames: The states of those jobs.
      hidden: The uuids of the other jobs that it asked for.
      is_over: Whether none of the jobs will change any more.
    """

    streams: Streams
    owner: Any
    site: str | None
    viewers: Mapping[str, Viewer]
    frames: Mapping[str, Frame]
    hidden: Sequence[str]
    is_over: bool

    def stream(self, last_id: str | None) -> Stream:
        """Return the stream for a client that has the states of a certain id."""
        if last_id == f"{tag_of(self.frames):016x}":
            return self._stream(self.frames, b"")
        is_alone = len(self.frames) == 1 and not self.hidden
        events = [gone(uuid) for uuid in self.hidden]
        size = sum(map(len, events))
        sent: dict[str, Frame] = {}
        for uuid, frame in self.frames.items():
            size += len(frame.block)
            if events and size > CHUNK:
                # The hub sends the rest, once its client has received this.
                break
            events.append(frame.alone if is_alone else frame.block)
            sent[uuid] = frame
        if not is_alone:
            events[-1] = identified(tag_of(sent), events[-1])
        return self._stream(sent, b"".join(events))

    def _stream(self, sent: Mapping[str, Frame], first: bytes) -> Stream:
        is_over = self.is_over and len(sent) == len(self.frames)
        viewers = {} if is_over else self.viewers
        return Stream(viewers, sent, first, self.streams.max_age)


class StreamResponse(Answer):
    """The answer to a poll, for where a stream cannot be had. Where it can, it becomes
    the stream when the router sends it, after all tweens.
    """

    plan: Plan | None = None
    offer: AsgiOffer | None = None
    polled: bytes = b""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        plan, offer = self.plan, self.offer
        if (
            plan is None
            or offer is None
            or self.status_code != 200
            or self.content_encoding
            or self.app_iter != [self.polled]
        ):
            # A tween has made another response of it.
            return super().__call__(environ, start_response)
        kept = [(k, v) for k, v in self.headerlist if k.lower() not in OF_POLL]
        last_id = environ.get("HTTP_LAST_EVENT_ID")
        if plan.is_over and last_id == f"{tag_of(plan.frames):016x}":
            start_response("204 No Content", [HEADERS[1], *kept])
            return []
        if not offer.take(plan, last_id):
            return super().__call__(environ, start_response)
        start_response("200 OK", [*HEADERS, *kept])
        return [opening(plan.streams.hub.now())]


class AsgiOffer:
    """Offers the connection of one request. Implements :class:`..streaming.Offer`.

    Parameters:
      queue: The queue of the loop that serves the request.
    """

    __slots__ = ("_carrier", "_is_over", "_queue", "_taken")

    def __init__(self, queue: LoopQueue) -> None:
        self._queue = queue
        self._carrier: AsgiCarrier | None = None
        #: The rooms of which it has taken one, and for whom. Two threads may empty it.
        self._taken: deque[tuple[Rooms, Any, str | None]] = deque()
        self._is_over = False

    @property
    def is_taken(self) -> bool:
        """Whether the response becomes a stream."""
        return self._carrier is not None

    def answer(
        self, request: Request, text: str, jobs: Mapping[str, JobState | None]
    ) -> Response:
        """Implement :class:`..streaming.Offer`."""
        response = render_state(request, text)
        if request.registry.getUtility(IStreamLimits).max_streams == 0:
            return response
        streams = streams_of(request.registry)
        if streams.hub.is_refused:
            return response
        wanted = {
            uuid: job_state
            for uuid, job_state in jobs.items()
            if job_state is not None and is_streamable(type(job_state))
        }
        try:
            owner = request.job_states.current_owner
            site = site_of(request)
        except Exception:
            # A poll may need neither.
            return response
        owner = owner if is_owner(owner) else None
        is_asked = wants_stream(request.environ.get("HTTP_ACCEPT", ""))
        if not is_asked or request.method != "GET" or response.status_code != 200:
            if wanted and streams.rooms.has(owner, site):
                response.headers[HINT] = "1"
            return response
        viewers: dict[str, Viewer] = {}
        shown: dict[str, Frame] = {}
        for uuid, job_state in wanted.items():
            viewer = viewer_of(request, job_state)
            if viewer is not None:
                viewers[uuid] = viewer
                # Rendering takes a job away from its request.
                frame = render(copy(job_state), viewer)
                if frame is not None:
                    shown[uuid] = frame
        if not viewers and len(jobs) == 1:
            return response
        answer = StreamResponse(
            body=response.body, headerlist=list(response.headerlist), status="200 OK"
        )
        answer.offer = self
        answer.polled = response.body
        answer.plan = Plan(
            streams,
            owner,
            site,
            {uuid: viewers[uuid] for uuid in shown},
            shown,
            [uuid for uuid in jobs if uuid not in shown],
            all(wanted[uuid].is_finished for uuid in shown),
        )
        return answer

    def take(self, plan: Plan, last_id: str | None) -> bool:
        """Have the response become a stream. Return False if too many are open, or the
        process has no descriptor or thread left.
        """
        # A WSGI application may have discarded an earlier response to this request.
        self._leave()
        try:
            plan.streams.hub.start()
        except OSError:
            return False
        if not plan.streams.rooms.take(plan.owner, plan.site):
            return False
        self._taken.append((plan.streams.rooms, plan.owner, plan.site))
        if self._is_over:
            # The server has cancelled the request while its view ran.
            self._leave()
            return False
        self._carrier = AsgiCarrier(plan.streams.hub, plan.stream(last_id), self._queue)
        return True

    async def carry(self, receive: Receive, send: Send) -> None:
        """Send the stream that the response has become."""
        assert self._carrier is not None
        await self._carrier.run(receive, send)

    def release(self) -> None:
        """Make room for another stream. The request is over."""
        self._is_over = True
        self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(IndexError):
            rooms, owner, site = self._taken.pop()
            rooms.leave(owner, site)
