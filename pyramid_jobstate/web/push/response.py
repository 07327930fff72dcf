"""Turns a view's answer into a stream, and carries it to the server's loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import resource
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.response import Response

from ...job.once import Once
from ...job.values import is_owner
from ...worker.recorder import watch_forks
from ..answers import STREAM, TIME, Answer, TimedResponse, wants_stream
from ..interfaces import IJobStore
from .hub import Hub
from .stream import (
    CHUNK,
    Frame,
    Stream,
    Viewer,
    gone,
    identified,
    is_streamable,
    opening,
    render,
    tag_of,
    viewer_of,
)

if TYPE_CHECKING:
    from pyramid.registry import Registry
    from pyramid.request import Request

    from ...job.state import JobState

log = logging.getLogger("pyramid_jobstate")

#: The most streams that one owner may have open in a process.
MAX_OF_OWNER = 20

#: How many sites may have streams open in a process.
MAX_SITES = 8

#: The default of max_streams where descriptors are unlimited.
MAX_STREAMS = 100_000

Message = MutableMapping[str, Any]

Receive = Callable[[], Awaitable[Message]]

Send = Callable[[Message], Awaitable[None]]

#: Bytes that a server is given at a time, so that it holds no more of what a slow
#: client has not received.
PIECE = 64 * 1024

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

#: The name of the streams in the registry's own attributes.
STREAMS = "_jobstate_streams"


class AsgiOffer:
    """Offers the connection of one request. Implements :class:`..answers.Offer`.

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

    def answer(self, request: Request) -> Answer:
        """Implement :class:`..answers.Offer`."""
        if request.registry.jobstate.limits.max_streams == 0:
            return Answer(request)
        streams = streams_of(request.registry)
        if streams.hub.is_refused:
            return Answer(request)
        try:
            owner = request.job_states.current_owner
            site = site_of(request)
        except Exception:
            # A poll may need neither.
            return Answer(request)
        asker = Asker(streams, owner if is_owner(owner) else None, site)
        is_asked = wants_stream(request.environ.get("HTTP_ACCEPT", ""))
        if is_asked and request.method == "GET":
            return StreamAnswer(request, asker, self)
        return HintAnswer(request, asker)

    def take(self, plan: Plan, last_id: str | None) -> bool:
        """Have the response become a stream. Return False if too many are open, or the
        process has no descriptor or thread left.
        """
        # A WSGI application may have discarded an earlier response to this request.
        self._leave()
        streams, owner, site = plan.asker
        try:
            streams.hub.start()
        except OSError:
            return False
        if not streams.rooms.take(owner, site):
            return False
        self._taken.append((streams.rooms, owner, site))
        if self._is_over:
            # The server has cancelled the request while its view ran.
            self._leave()
            return False
        self._carrier = AsgiCarrier(streams.hub, plan.stream(last_id), self._queue)
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


class Rooms:
    """Counts the open streams of a process. Any thread may ask.

    Parameters:
      max_streams: The most streams, or None for half the descriptors that the process
        may open.
    """

    def __init__(self, max_streams: int | None) -> None:
        self.max_streams = usual_streams() if max_streams is None else max_streams
        self._said = Once()
        self.abandon()
        watch_forks().add(self)

    def abandon(self) -> None:
        """Start anew. Called in a forked child, which has none of the streams."""
        self._lock = threading.Lock()
        self._owners: collections.Counter[Any] = collections.Counter()
        self._sites: collections.Counter[Any] = collections.Counter()
        self.count = 0

    def has(self, owner: object, site: str | None) -> bool:
        """Return whether a request could get a stream: see :meth:`take`."""
        return self._refusal(_key(owner), site) is None

    def take(self, owner: object, site: str | None) -> bool:
        """Count a stream. Return False if there are too many already. The first refusal
        is logged.

        Parameters:
          owner: The owner who asks for it, or None.
          site: How the URLs in its states begin, if its visitor may have made that up,
            or None. For each site, jobs are rendered once more.
        """
        key = _key(owner)
        with self._lock:
            refusal = self._refusal(key, site)
            if refusal is None:
                self.count += 1
                self._owners[key] += 1
                self._sites[site] += 1
                return True
        if self._said.is_new(refusal):
            log.warning("%s Further pages poll.", refusal)
        return False

    def leave(self, owner: object, site: str | None) -> None:
        """Stop counting a stream."""
        with self._lock:
            self.count -= 1
            for counter, key in ((self._owners, _key(owner)), (self._sites, site)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    def _refusal(self, key: object, site: str | None) -> str | None:
        if self.count >= self.max_streams:
            limit = f"{self.max_streams} streams (jobstate.max_streams)"
            return f"The limit of {limit} is reached."
        if key is not None and self._owners[key] >= MAX_OF_OWNER:
            return f"An owner has {MAX_OF_OWNER} streams open in this process."
        is_another = site is not None and site not in self._sites
        if is_another and len(self._sites) >= MAX_SITES:
            limit = f"{MAX_SITES} host names (one with jobstate.base_url)"
            return f"The limit of {limit} is reached."
        return None


def usual_streams() -> int:
    """Return half the number of descriptors that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_STREAMS if soft == resource.RLIM_INFINITY else soft // 2


def _key(owner: object) -> object:
    # Since 1 == True == 1.0 in Python, the type tells owners apart.
    return None if owner is None else (type(owner).__name__, owner)


class LoopQueue:
    """What the hub's thread gives to the carriers of one event loop in a round. The
    loop is woken once for all of it.

    Parameters:
      loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly, since it is a value of a dictionary of which the loop is the key.
        self._loop = weakref.ref(loop)
        self._items: list[tuple[AsgiCarrier, bytes, bool]] = []

    def add(self, carrier: AsgiCarrier, data: bytes, is_over: bool) -> None:
        """Give data to a carrier, and say whether the response is over."""
        self._items.append((carrier, data, is_over))

    def deliver(self) -> None:
        """Hand everything over."""
        items, self._items = self._items, []
        loop = self._loop()
        # A closed loop raises it: the server has stopped.
        with contextlib.suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(_deliver, items)


def _deliver(items: list[tuple[AsgiCarrier, bytes, bool]]) -> None:
    for carrier, data, is_over in items:
        carrier.receive(data, is_over)


class AsgiCarrier:
    """Carries one stream. Implements :class:`.stream.Carrier`.

    Parameters:
      hub: The hub that feeds the stream.
      stream: The stream.
      queue: The queue of the loop in which it runs.
    """

    __slots__ = ("_data", "_hub", "_is_over", "_queue", "_stream", "_waiter")

    def __init__(self, hub: Hub, stream: Stream, queue: LoopQueue) -> None:
        self._hub = hub
        self._stream = stream
        self._queue = queue
        self._data = b""
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None
        stream.carrier = self

    # The hub's thread

    def give(self, data: bytes, is_over: bool) -> None:
        self._queue.add(self, data, is_over)
        self._hub.later(self._queue.deliver)

    def drop(self) -> None:
        # What has not been sent is freed at once.
        self._data = b""
        self.give(b"", True)

    # The loop

    def receive(self, data: bytes, is_over: bool) -> None:
        """Take what the hub's thread has given."""
        self._data = data
        self._is_over = self._is_over or is_over
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self, receive: Receive, send: Send) -> None:
        """Send the stream until it is over or its client has gone. The response has
        been started.

        Parameters:
          receive, send: The channels of the ASGI request.
        """
        watcher = asyncio.ensure_future(self._leave(receive))
        try:
            self._hub.join(self._stream)
            while not self._is_over:
                await self._send_next(send)
                self._hub.taken(self._stream)
            if not watcher.done():
                await send({"type": "http.response.body", "body": b""})
        except OSError:
            # Some servers raise it when the client has gone, and the hub does if the
            # process has no thread or descriptor left for it.
            pass
        finally:
            watcher.cancel()
            self._hub.leave(self._stream)

    async def _send_next(self, send: Send) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            # It keeps the loop.
            self._waiter = None
        start = 0
        while start < len(self._data):
            # Not kept in a variable, so that drop() frees the rest.
            piece = self._data[start : start + PIECE]
            start += PIECE
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._data = b""

    async def _leave(self, receive: Receive) -> None:
        """Wait until the client has gone."""
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self.receive(b"", True)


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


def streams_of(registry: Registry) -> Streams:
    """Return the streams of an application, the same each time."""
    attributes = vars(registry)
    streams: Streams | None = attributes.get(STREAMS)
    if streams is None:
        limits = registry.jobstate.limits
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
    is_named = request.registry.jobstate.base_url is not None
    return None if is_named else request.application_url


class Asker(NamedTuple):
    """For which application, owner and site a stream is counted.

    Attributes:
      streams: The streams of the application.
      owner: The owner who asks, or None.
      site: The site: see :func:`site_of`.
    """

    streams: Streams
    owner: Any
    site: str | None


class HintAnswer(Answer):
    """Answers a poll, and says whether the page could have a stream.

    Parameters:
      asker: Who polls.
    """

    def __init__(self, request: Request, asker: Asker) -> None:
        super().__init__(request)
        self._asker = asker
        self._is_streamable = False

    def state(self, uuid: str, job_state: JobState) -> str | None:
        self._is_streamable = is_streamable(type(job_state)) or self._is_streamable
        return super().state(uuid, job_state)

    def respond(self, text: str, uuids: Sequence[str]) -> Response:
        response = super().respond(text, uuids)
        streams, owner, site = self._asker
        if self._is_streamable and streams.rooms.has(owner, site):
            response.headers[HINT] = "1"
        return response


class StreamAnswer(Answer):
    """Answers a request for a stream. The poll that it gets instead where no stream can
    be had has the texts of the stream's events, so that each state is rendered once.

    Parameters:
      asker: Who asks for the stream.
      offer: The offer of its connection.
    """

    is_for_stream = True

    def __init__(self, request: Request, asker: Asker, offer: AsgiOffer) -> None:
        super().__init__(request)
        self._asker = asker
        self._offer = offer
        self._is_over = True
        self._viewers: dict[str, Viewer] = {}
        self._frames: dict[str, Frame] = {}

    def state(self, uuid: str, job_state: JobState) -> str | None:
        frame = self._frame(uuid, job_state)
        return super().state(uuid, job_state) if frame is None else frame.text

    def note(self, uuid: str, job_state: JobState) -> None:
        frame = self._frame(uuid, job_state)
        if frame is not None:
            # The hub reads the job again, and sends it unless the client has it.
            frame.forget()

    def _frame(self, uuid: str, job_state: JobState) -> Frame | None:
        """Return a job's state if a stream can bring it."""
        viewer = None
        if is_streamable(type(job_state)):
            viewer = viewer_of(self.request, job_state)
        if viewer is None:
            return None
        self._viewers[uuid] = viewer
        # Rendering takes a job away from its request.
        frame = render(copy(job_state), viewer)
        if frame is not None:
            self._frames[uuid] = frame
            self._is_over = self._is_over and job_state.is_finished
        return frame

    def respond(self, text: str, uuids: Sequence[str]) -> Response:
        polled = super().respond(text, uuids)
        if polled.status_code != 200 or not (self._viewers or len(uuids) > 1):
            return polled
        response = StreamResponse(
            body=polled.body, headerlist=list(polled.headerlist), status="200 OK"
        )
        frames = self._frames
        response.offer = self._offer
        response.polled = polled.body
        response.plan = Plan(
            self._asker,
            {uuid: self._viewers[uuid] for uuid in frames},
            frames,
            [uuid for uuid in uuids if uuid not in frames],
            self._is_over,
        )
        return response


class Plan(NamedTuple):
    """What a response needs to become a stream. It keeps no request.

    Attributes:
      asker: Who asks for it.
      viewers: How the request sees each of its jobs, by the uuid under which it asked.
      frames: The states of those jobs. The last ones may have been forgotten.
      hidden: The uuids of the other jobs that it asked for.
      is_over: Whether none of the jobs will change any more.
    """

    asker: Asker
    viewers: Mapping[str, Viewer]
    frames: Mapping[str, Frame]
    hidden: Sequence[str]
    is_over: bool

    @property
    def last_id(self) -> str:
        """The id of a client that has all these states."""
        return f"{tag_of(self.frames):016x}"

    def stream(self, last_id: str | None) -> Stream:
        """Return the stream for a client that has the states of a certain id."""
        if last_id == self.last_id:
            return self._stream(self.frames, b"")
        is_alone = len(self.frames) == 1 and not self.hidden
        events = [gone(uuid) for uuid in self.hidden]
        size = sum(map(len, events))
        sent: dict[str, Frame] = {}
        for uuid, frame in self.frames.items():
            size += len(frame.block)
            if not frame.block or (events and size > CHUNK):
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
        return Stream(viewers, sent, first, self.asker.streams.max_age)


class StreamResponse(TimedResponse):
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
        if plan.is_over and last_id == plan.last_id:
            start_response("204 No Content", [HEADERS[1], *kept])
            return []
        if not offer.take(plan, last_id):
            return super().__call__(environ, start_response)
        start_response("200 OK", [*HEADERS, *kept])
        return [opening(plan.asker.streams.hub.now())]
