"""An ASGI server without sockets, for tests that decide what a client does and when.

The thread that feeds an application's streams goes on for as long as its process. Here
it ends with its server, and so tells whether anything was left in it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.asgi import AsgiApplication, asgi_app
from pyramid_jobstate.testing import put_job
from tests.support import UUID, wait_for
from tests.webapp import make_request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

T = TypeVar("T")

#: The form of a request's Accept header that asks for a stream.
EVENTS = "text/event-stream"

#: How many streams an application may have open unless its test says so.
ROOMS = 6

#: The bytes that arrive at a client at a time even if it does not read.
BUFFER = 100


class Clock:
    """The clock of this process, `time.monotonic`, which tests put forward while
    applications are served. It is put back when all have ended: for their threads, time
    does not run backwards.
    """

    def __init__(self) -> None:
        self._real = time.monotonic
        self._ahead = 0.0
        self._count = 0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        assert self._count
        vars(time)["monotonic"] = self
        self._ahead += seconds

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Let the clock be put forward during the block."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                vars(time)["monotonic"] = self._real
                self._ahead = 0.0


CLOCK = Clock()


class Event(NamedTuple):
    """An event of a stream.

    Attributes:
      name: "message" for a state.
      data: Its data.
      id: Its id, or None.
    """

    name: str
    data: str
    id: str | None

    @property
    def state(self) -> dict[str, Any]:
        """The state of a job that it holds."""
        assert self.name == "message", self
        state: dict[str, Any] = json.loads(self.data)
        return state


class Exchange:
    """A request, and what has been sent in answer to it so far.

    Attributes:
      messages: The ASGI messages that the client has received.
      sending: The sizes of the bodies that were given to the server, received or not.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_reading: bool = True,
        is_there: bool = True,
    ) -> None:
        self._loop = loop
        self._gone = asyncio.Event()
        if not is_there:
            self._gone.set()
        self._reads = asyncio.Event()
        if is_reading:
            self._reads.set()
        self._asked = False
        self._is_broken = False
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
        if len(message.get("body", b"")) > BUFFER and not self._gone.is_set():
            # Like uvicorn, discard what is sent to a client that has gone.
            reads = asyncio.ensure_future(self._reads.wait())
            gone = asyncio.ensure_future(self._gone.wait())
            try:
                await asyncio.wait((reads, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                reads.cancel()
                gone.cancel()
        if self._is_broken:
            raise BrokenPipeError
        if not self._gone.is_set():
            self.messages.append(dict(message))

    def _call(self, act: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(act)

    def go(self) -> None:
        """Go, as a page does that is closed."""
        self._call(self._gone.set)

    def stop(self) -> None:
        """Read no more."""
        self._call(self._reads.clear)

    def resume(self) -> None:
        """Read again."""
        self._call(self._reads.set)

    def break_down(self) -> None:
        """Have what is sent raise an OSError."""
        self._is_broken = True

    def cancel(self) -> None:
        """Cancel the task, as a server may at its end."""
        self.future.cancel()

    @property
    def is_done(self) -> bool:
        """Whether the application has returned."""
        return self.future.done()

    def wait(self, timeout: float = 20) -> Exchange:
        """Wait until the application has returned.

        Raises:
          Exception: It has raised it.
        """
        self.future.result(timeout)
        return self

    @property
    def is_started(self) -> bool:
        return bool(self.messages)

    @property
    def status(self) -> int:
        wait_for(lambda: self.is_started)
        status: int = self.messages[0]["status"]
        return status

    @property
    def header_list(self) -> list[tuple[str, str]]:
        wait_for(lambda: self.is_started)
        return [(k.decode(), v.decode()) for k, v in self.messages[0]["headers"]]

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
        """The events that were received in whole."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            lines = (line.partition(": ") for line in block.split("\n"))
            fields = {name.rstrip(":"): value for name, _, value in lines}
            # The opening of a stream has no news.
            if "data" in fields and "retry" not in fields:
                name = fields.get("event", "message")
                found.append(Event(name, fields["data"], fields.get("id")))
        return found

    def is_held(self) -> bool:
        """Return whether something was sent that a client holds up if it stops."""
        return max(self.sending, default=0) > BUFFER

    def has_begun(self) -> bool:
        """Return whether an event has come, or none will."""
        return self.is_done or bool(self.events)

    @property
    def opening(self) -> int:
        """The store's time that the stream tells at its beginning, in milliseconds."""
        wait_for(lambda: b"\n\n" in self.body)
        beginning = rb"retry: \d+\nevent: beat\ndata: (\d+)\n\n"
        found = re.match(beginning, self.body)
        assert found is not None, self.body
        return int(found[1])

    def until(self, condition: Callable[[Event], object], timeout: float = 20) -> Event:
        """Return the first event for which a condition holds."""

        def found() -> Event | None:
            return next(filter(condition, self.events), None)

        return wait_for(found, timeout)

    def at(self, number: int) -> Event:
        """Return an event by its number."""
        wait_for(lambda: len(self.events) > number or self.is_done)
        return self.events[number]


class Server:
    """Serves an application on an event loop in a thread.

    Attributes:
      config: The application's configurator, if :func:`pushing` has made it.
      wsgi_app: That application.
      others: The threads for streams that are not its own.
    """

    config: Configurator
    wsgi_app: WSGIApplication
    others: set[threading.Thread]

    def __init__(self, app: AsgiApplication, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop
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
        """Begin a request.

        Parameters:
          accept: The header Accept.
          is_reading: Whether its client reads.
          is_there: Whether its client has not gone yet.
          headers: Further headers, unless they are None.
        """
        path, _, query = path.partition("?")
        given = {"host": "example.com", **headers}
        sent = {k.replace("_", "-"): v for k, v in given.items() if v is not None}
        if user is not None:
            sent["x-user"] = user
        if accept is not None:
            sent["accept"] = accept
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode("latin-1"),
            "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
            "server": ("example.com", 80),
            "client": ("127.0.0.1", 1),
        }

        async def begin() -> Exchange:
            # The events of asyncio belong to the loop.
            return Exchange(self.loop, is_reading, is_there)

        exchange = self.run(begin())
        serve: Any = self.app(scope, exchange.receive, exchange.send)
        exchange.future = asyncio.run_coroutine_threadsafe(serve, self.loop)
        self._exchanges.append(exchange)
        return exchange

    def ask(self, path: str, user: str | None = "alice", **options: Any) -> Exchange:
        """Make a request, and wait for the end of the answer."""
        return self.open(path, user, **options).wait()

    def poll(self, path: str, user: str | None = "alice", **options: Any) -> Exchange:
        """Make a request for JSON."""
        return self.ask(path, user, accept="application/json", **options)

    @property
    def streams(self) -> list[Exchange]:
        """The streams that are open."""
        return [e for e in self._exchanges if not e.is_done and e.is_stream]

    @property
    def threads(self) -> set[threading.Thread]:
        """The threads that run for the streams."""
        return stream_threads() - self.others

    def pass_time(self, seconds: float) -> None:
        """Let time pass at once, and have the streams notice it."""
        # What the server has been asked before does not count as unanswered.
        for _ in range(2):
            self._wake()
        CLOCK.advance(seconds)
        self._wake()

    def _wake(self) -> None:
        """Have the thread of the streams look at all that has come, by a stream of
        nothing.
        """
        self.ask(f"/job_state?uuid={UUID}&uuid=y", None)

    def put_last(self) -> str:
        """Store a job that ends the thread of the streams once it is watched. Return
        its path.
        """
        request = make_request(self.config)
        job = put_job(request.job_states.store, Last)
        return urlsplit(request.resource_url(job)).path

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

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
    """Serve an application."""
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
    """A kind of job that ends the thread which feeds streams, as any code may that
    raises SystemExit.
    """

    @property
    def title(self) -> str:
        if threading.current_thread().name == "jobstate-hub":
            raise SystemExit
        return "Last"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, "view_job")]


def stream_threads() -> set[threading.Thread]:
    """Return the threads that the package runs for streams."""
    names = "jobstate-hub", "jobstate-link", "jobstate-look"
    return {thread for thread in threading.enumerate() if thread.name in names}


@contextlib.contextmanager
def pushing(
    config: Configurator,
    around: Callable[[WSGIApplication], WSGIApplication] = lambda app: app,
    store: JobStore | None = None,
    rooms: int | None = ROOMS,
) -> Iterator[Server]:
    """Serve the application of a configurator, with pyramid_jobstate included. At the
    end, as many streams as it may have open can be had, and its threads have ended.

    Parameters:
      around: Returns a WSGI application around it.
      store: Where it keeps its jobs, if not where its settings say.
      rooms: How many streams may be open if its settings do not say it, or None for the
        default.
    """
    settings = config.get_settings()
    if rooms is not None:
        rooms = int(settings.setdefault("jobstate.max_streams", rooms))
    config.include("pyramid_jobstate")
    if store is not None:
        config.set_job_store(store)
    views = Views(around(config.make_wsgi_app()))
    with CLOCK.used(), serving(asgi_app(views)) as server:
        server.config, server.wsgi_app = config, views
        server.others = stream_threads()
        try:
            yield server
        finally:
            # Without its loop, the thread of a view would wait for ever.
            wait_for(lambda: not views.running)
        server.close()
        if server.threads:
            end(server, rooms or ROOMS)
            wait_for(lambda: not server.threads)


def end(server: Server, rooms: int) -> None:
    """Open as many streams as there may be, and end the thread that feeds them."""
    path = server.put_last()
    logging.disable(logging.CRITICAL)
    try:
        streams = [server.open(path, None, is_reading=False) for _ in range(rooms)]
        assert [stream.is_stream for stream in streams] == [True] * rooms, "A leak."
        for stream in streams:
            stream.resume()
            stream.wait()
    finally:
        logging.disable(logging.NOTSET)


class Views:
    """A WSGI application that knows which of its answers are being made.

    Parameters:
      app: Makes them.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self.running: list[Any] = []

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.running.append(environ)
        answer: Any = ()
        try:
            answer = self._app(environ, start_response)
            yield from answer
        finally:
            getattr(answer, "close", lambda: None)()
            self.running.remove(environ)
