"""An ASGI server without sockets, for tests that decide what a client does and when."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.asgi import AsgiApplication, asgi_app
from pyramid_jobstate.testing import put_job
from tests.support import UUID, wait_for
from tests.webapp import make_request

#: The form of a request's Accept header that asks for a stream.
EVENTS = "text/event-stream"

#: The names of the threads that the package runs for streams: that which feeds them,
#: and those that connect to a server, and look at the members of a batch.
THREADS = FEEDS, LINKS, LOOKS = "jobstate-hub", "jobstate-link", "jobstate-look"

#: The bytes that arrive at a client at a time even if it does not read.
BUFFER = 100

#: The clock, by how much tests have put it forward, and how many applications run.
MONOTONIC = time.monotonic
CLOCK = {"ahead": 0.0, "users": 0}


@contextlib.contextmanager
def movable_clock() -> Iterator[None]:
    """Let the clock be put forward. It goes back when no application runs any more."""
    CLOCK["users"] += 1
    try:
        yield
    finally:
        CLOCK["users"] -= 1
        if CLOCK["users"] == 0:
            CLOCK["ahead"] = 0.0
            vars(time)["monotonic"] = MONOTONIC


def stream_threads() -> set[threading.Thread]:
    """Return the threads that run for the streams of any application."""
    return {t for t in threading.enumerate() if t.name in THREADS}


class Event(NamedTuple):
    """An event of a stream: its name ("message" for a state), its data and its id."""

    name: str
    data: str
    id: str | None

    @property
    def state(self) -> dict[str, Any]:
        assert self.name == "message", self
        return dict(json.loads(self.data))


def events_of(body: bytes) -> list[Event]:
    """Return the events that have come in whole, without the opening of a stream."""
    found = []
    for block in body.split(b"\n\n")[:-1]:
        lines = (line.partition(": ") for line in block.decode().split("\n"))
        fields = {name.rstrip(":"): value for name, _, value in lines}
        if "data" in fields and "retry" not in fields:
            name = fields.get("event", "message")
            found.append(Event(name, fields["data"], fields.get("id")))
    return found


class Exchange:
    """A request, and what its client has been sent so far: ASGI messages, and the sizes
    of the bodies, received or not. Sending raises an OSError once it `is_broken`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, is_reading: bool, is_there: bool
    ) -> None:
        self._loop = loop
        self._asked = self.is_broken = False
        self._gone, self._flows = asyncio.Event(), asyncio.Event()
        if not is_there:
            self._gone.set()
        if is_reading or not is_there:
            self._flows.set()
        self.messages: list[dict[str, Any]] = []
        self.sending: list[int] = []
        self.future: concurrent.futures.Future[None]

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sending.append(len(message.get("body", b"")))
        if self.sending[-1] > BUFFER:
            await self._flows.wait()
        if self.is_broken:
            raise BrokenPipeError
        # Like uvicorn, discard what is sent to a client that has gone.
        if not self._gone.is_set():
            self.messages.append(dict(message))

    def go(self) -> Exchange:
        """Go, as a page does that is closed."""
        for event in self._gone, self._flows:
            self._loop.call_soon_threadsafe(event.set)
        return self

    def stop(self) -> None:
        """Read no more."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def resume(self) -> None:
        """Read again."""
        self._loop.call_soon_threadsafe(self._flows.set)

    @property
    def is_done(self) -> bool:
        return self.future.done()

    def wait(self, timeout: float = 20) -> Exchange:
        """Wait until the application has returned, and raise what it has raised."""
        self.future.result(timeout)
        return self

    @property
    def _start(self) -> dict[str, Any]:
        return wait_for(lambda: self.messages)[0]

    @property
    def status(self) -> int:
        return int(self._start["status"])

    @property
    def header_list(self) -> list[tuple[str, str]]:
        return [(k.decode(), v.decode()) for k, v in self._start["headers"]]

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.header_list)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith(EVENTS)

    @property
    def events(self) -> list[Event]:
        return events_of(self.body)

    def is_held(self) -> bool:
        """Return whether something was sent that a client holds up if it stops."""
        return max(self.sending, default=0) > BUFFER

    @property
    def opening(self) -> int:
        """The store's time that the stream tells at its beginning, in milliseconds."""
        beginning = rb"retry: \d+\nevent: beat\ndata: (\d+)\n\n"
        return int(wait_for(lambda: re.match(beginning, self.body))[1])

    def until(self, condition: Callable[[Event], object], timeout: float = 20) -> Event:
        """Return the first event for which a condition holds."""
        return wait_for(lambda: next(filter(condition, self.events), None), timeout)

    def at(self, number: int) -> Event:
        wait_for(lambda: len(self.events) > number or self.is_done)
        return self.events[number]


class Server:
    """Serves an application, of a configurator, on an event loop in a thread."""

    config: Configurator

    def __init__(self, app: AsgiApplication, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop
        self.others: set[threading.Thread] = set()
        self._exchanges: list[Exchange] = []

    def open(
        self,
        path: str,
        user: str | None = "alice",
        *,
        method: str = "GET",
        accept: str | None = EVENTS,
        is_reading: bool = True,
        is_there: bool = True,
        **headers: str | None,
    ) -> Exchange:
        """Begin a request, whose client may not read, or have gone already."""
        path, _, query = path.partition("?")
        given = {"host": "example.com", "x_user": user, "accept": accept, **headers}
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": unquote(path),
            "query_string": query.encode("latin-1"),
            "headers": [
                (name.replace("_", "-").encode(), value.encode())
                for name, value in given.items()
                if value is not None
            ],
        }
        exchange = Exchange(self.loop, is_reading, is_there)
        serve: Any = self.app(scope, exchange.receive, exchange.send)
        exchange.future = asyncio.run_coroutine_threadsafe(serve, self.loop)
        self._exchanges.append(exchange)
        return exchange

    def watch(
        self, path: str, user: str | None = "alice", count: int = 1, **options: Any
    ) -> Exchange:
        """Open a stream, and wait for so many events."""
        stream = self.open(path, user, **options)
        stream.at(count - 1)
        return stream

    def ask(self, path: str, user: str | None = "alice", **options: Any) -> Exchange:
        """Make a request, and wait for the end of the answer."""
        return self.open(path, user, **options).wait()

    def poll(self, path: str, user: str | None = "alice", **options: Any) -> Exchange:
        """Make a request for JSON."""
        return self.ask(path, user, accept="application/json", **options)

    @property
    def threads(self) -> set[threading.Thread]:
        """The threads that run for the streams, without those of `others`."""
        return stream_threads() - self.others

    def pass_time(self, seconds: float) -> None:
        """Let time pass at once, and have the streams notice it."""
        # What the server has been asked before does not count as unanswered.
        for ahead in 0.0, 0.0, seconds:
            CLOCK["ahead"] += ahead
            vars(time)["monotonic"] = lambda: MONOTONIC() + CLOCK["ahead"]
            # For a stream of nothing, their thread looks at all that has come.
            self.ask(f"/job_state?uuid={UUID}&uuid=y", None)

    def end(self) -> None:
        """End the thread of the streams, by a job that raises SystemExit in it."""
        request = make_request(self.config)
        job = put_job(request.job_states.store, Last)
        logging.disable(logging.CRITICAL)
        try:
            self.ask(urlsplit(request.resource_url(job)).path, None)
        finally:
            logging.disable(logging.NOTSET)

    def close(self) -> None:
        """Have all clients go."""
        for exchange in self._exchanges:
            exchange.go()
        for exchange in self._exchanges:
            # Its test knows of what it raised.
            with contextlib.suppress(Exception, concurrent.futures.CancelledError):
                exchange.future.result(20)
        self._exchanges.clear()


@contextlib.contextmanager
def serving(app: AsgiApplication) -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Server(app, loop)
    try:
        yield server
    finally:
        server.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Last(JobState):
    """A kind of job that ends the thread which feeds streams."""

    show_usual = False

    @property
    def title(self) -> str:
        if threading.current_thread().name == FEEDS:
            raise SystemExit
        return "Last"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, "view_job")]


@contextlib.contextmanager
def pushing(
    config: Configurator,
    around: Callable[[Any], Any] = lambda app: app,
    store: JobStore | None = None,
    rooms: int | None = 6,
) -> Iterator[Server]:
    """Serve the application of a configurator, with a WSGI application around it, and a
    store and so many rooms for streams of its own. Its threads end with it.
    """
    if rooms is not None:
        config.get_settings().setdefault("jobstate.max_streams", rooms)
    config.include("pyramid_jobstate")
    if store is not None:
        config.set_job_store(store)
    app = around(config.make_wsgi_app())
    with movable_clock(), serving(asgi_app(app)) as server:
        server.config, server.others = config, server.threads
        yield server
        server.close()
        if server.threads:
            server.end()
            wait_for(lambda: not server.threads)
