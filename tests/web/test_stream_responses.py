"""Streams of states among the tweens and subscribers of an application, and in WSGI
applications around it.
"""

from __future__ import annotations

import gc
import gzip
import json
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from pyramid_jobstate import JobStore
from tests.asgi import Server, pushing
from tests.support import load_job, wait_for
from tests.web.streaming import one, put
from tests.webapp import make_config, make_tm_config

Change = Callable[[Request, Response], Response | None]

#: What the tween below does to responses: it changes them, or returns another one.
changes: list[Change] = []


def changing_tween(handler: Callable[[Request], Response], registry: Any) -> Any:
    """A tween that does what the test says."""

    def tween(request: Request) -> Response:
        response = handler(request)
        for change in changes:
            response = change(request, response) or response
        return response

    return tween


@pytest.fixture
def change(request: pytest.FixtureRequest) -> Iterator[Callable[[Change], None]]:
    """Has the tween do something with each response."""
    changes.clear()
    yield changes.append
    changes.clear()


def with_tween(config: Configurator, **where: Any) -> Configurator:
    """Return the configurator of an application with the tween."""
    config.add_tween(f"{__name__}.changing_tween", **where)
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    return config


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application with a session and the tween."""
    with pushing(with_tween(make_config(redis_url))) as server:
        yield server


def test_headers_of_the_application_are_kept(
    server: Server, store: JobStore, change: Callable[[Change], None]
) -> None:
    """A stream and a 204 bear the cookies of the session and of a tween, its headers
    for other origins, and what a callback adds. What describes a poll's answer goes.
    """

    def decorate(request: Request, response: Response) -> None:
        request.session["seen"] = 1
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        response.headers["Access-Control-Allow-Origin"] = "https://other.example"
        response.vary = ["Accept", "Origin"]
        response.etag = "other"
        request.add_response_callback(
            lambda request, response: response.headers.add("X-Callback", "1")
        )

    change(decorate)
    path = one(put(store, "success"))
    stream = server.ask(path)
    over = server.ask(path, last_event_id=stream.at(0).id)
    assert (stream.status, over.status) == (200, 204)
    for answer in stream, over:
        headers = answer.headers
        cookies = [v for k, v in answer.header_list if k == "set-cookie"]
        assert sorted(cookie[:2] for cookie in cookies) == ["a=", "b=", "se"]
        assert headers["access-control-allow-origin"] == "https://other.example"
        assert headers["vary"] == "Accept, Origin"
        assert headers["x-callback"] == "1"
        assert not {"etag", "content-length"} & headers.keys()


def test_header_of_a_subscriber_is_kept(redis_url: str, store: JobStore) -> None:
    """A stream bears what a subscriber of NewResponse adds."""

    def mark(event: NewResponse) -> None:
        event.response.headers["X-Mark"] = "new"

    config = make_config(redis_url)
    config.add_subscriber(mark, NewResponse)
    with pushing(config) as server:
        stream = server.open(one(put(store)))
        assert stream.is_stream
        assert stream.headers["x-mark"] == "new"


def test_tween_that_replaces_the_answer(
    server: Server, store: JobStore, change: Callable[[Change], None]
) -> None:
    """What a tween makes of a poll's answer is sent as it is."""
    job = put(store)
    replacements: dict[str, Change] = {
        "copy": lambda request, response: response.copy(),
        "other": lambda request, response: Response(response.body, headerlist=[]),
        "body": lambda request, response: setattr(
            response, "body", response.body + b" "
        ),
        "app_iter": lambda request, response: setattr(
            response, "app_iter", iter([response.body, b" "])
        ),
        "status": lambda request, response: setattr(response, "status", 500),
        "encoding": lambda request, response: response.encode_content("gzip"),
        "identity": lambda request, response: setattr(
            response, "content_encoding", "identity"
        ),
    }
    for name, replace in replacements.items():
        changes.clear()
        change(replace)
        answer = server.ask(one(job))
        assert answer.status == (500 if name == "status" else 200), name
        body = answer.body
        body = gzip.decompress(body) if name == "encoding" else body
        assert json.loads(body)["job"]["uuid"] == job, name


def test_context_after_a_stream_was_made(
    server: Server, store: JobStore, change: Callable[[Change], None]
) -> None:
    """A tween finds the job of a request for a stream as that of a poll."""
    found: list[Any] = []

    def look(request: Request, response: Response) -> None:
        container = request.context.__parent__
        may_cancel = container.permits(request.context, "cancel_job")
        found.append((container.request is request, bool(may_cancel)))

    job = put(store)
    change(look)
    server.open(one(job)).at(0)
    assert found == [(True, True)]


def test_request_ends_before_its_stream(
    redis_url: str, store: JobStore, change: Callable[[Change], None]
) -> None:
    """The transaction and the request of a stream end when its view has answered, and
    nothing of the request stays in memory.
    """
    ended: list[str] = []
    kept: list[weakref.ref[Any]] = []

    class Session(dict[str, Any]):
        """What a request's finish has to close."""

    def keep(request: Request, response: Response) -> None:
        request.session_of_database = Session(request=request)
        request.tm.get().addAfterCommitHook(lambda ok: ended.append("transaction"))
        request.add_finished_callback(lambda request: ended.append("request"))
        known = (request, response, request.session_of_database, request.context)
        kept.extend(map(weakref.ref, known))

    def is_free() -> bool:
        gc.collect()
        return [ref() for ref in kept] == [None] * 4

    config = with_tween(make_tm_config(redis_url), under="pyramid_tm.tm_tween_factory")
    job = put(store)
    with pushing(config) as server:
        change(keep)
        stream = server.open(one(job))
        stream.at(0)
        assert ended == ["transaction", "request"]
        # The thread that ran the view may be about to forget it.
        wait_for(is_free)
        assert not stream.is_done
        changes.clear()


def test_subrequest_for_a_stream(redis_url: str, store: JobStore) -> None:
    """An application's view may ask ours for the JSON, and pass its answer on."""
    job = put(store)

    def ask(request: Request) -> Response:
        inner = request.copy()
        inner.path_info = one(job)
        response = request.invoke_subrequest(inner)
        assert response.json_body["job"]["uuid"] == job
        if "own" in request.GET:
            return Response(json={"title": response.json_body["job"]["title"]})
        return response

    config = make_config(redis_url)
    config.add_route("mine", "/mine")
    config.add_view(ask, route_name="mine")
    with pushing(config) as server:
        answer = server.ask("/mine?own=1")
        assert json.loads(answer.body) == {"title": "Run marathon"}
        assert server.open("/mine").at(0).state["job"]["uuid"] == job


# WSGI applications around it


class Around:
    """A WSGI application around Pyramid's that does what the test says.

    Attributes:
      act: Answers a request, given Pyramid's application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.act: Callable[[Any, Any, Any], Any]

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if "HTTP_X_AROUND" not in environ:
            return self._app(environ, start_response)
        return self.act(self._app, environ, start_response)


@pytest.fixture
def around(redis_url: str) -> Iterator[tuple[Server, Around]]:
    """An application, and what is around it."""
    made: list[Around] = []

    def make(app: Any) -> Any:
        made.append(Around(app))
        return made[0]

    with pushing(make_config(redis_url), make) as server:
        yield server, made[0]


def run(app: Any, environ: Any) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return all of an application's answer, without its length, and close it."""
    found: list[Any] = []

    def start(status: str, headers: Any, exc_info: Any = None) -> Any:
        found[:] = status, [h for h in headers if h[0].lower() != "content-length"]
        return lambda data: None

    answer = app(environ, start)
    try:
        body = b"".join(answer)
    finally:
        getattr(answer, "close", lambda: None)()
    return found[0], found[1], body


def add_headers(app: Any, environ: Any, start_response: Any) -> Any:
    """Add headers: one of them a length."""

    def start(status: str, headers: Any, exc_info: Any = None) -> Any:
        more = [("X-Frame", "no"), ("Content-Length", "3")]
        return start_response(status, [*headers, *more], exc_info)

    return app(environ, start)


def buffer(app: Any, environ: Any, start_response: Any) -> Any:
    """Wait for the answer's end, say how long it is, and send it in pieces."""
    status, headers, body = run(app, environ)
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body, b": a\n", b": b\n"]


def repeat(app: Any, environ: Any, start_response: Any) -> Any:
    """Ask twice, as one that retries does."""
    run(app, environ)
    return app(environ, start_response)


def test_stream_passes_wsgi_applications(
    around: tuple[Server, Around], store: JobStore
) -> None:
    """A stream passes a WSGI application that adds headers, buffers or retries."""
    server, made = around
    for act in add_headers, buffer, repeat:
        made.act = act
        job = put(store, "queued")
        stream = server.open(one(job), x_around="1")
        assert stream.at(0).state["job_state"] == "working", act
        load_job(store, job).cancel()
        assert stream.at(1).state["job"]["status"] == "cancelled", act
        assert ("x-frame" in stream.headers) == (act is add_headers)
        assert "content-length" not in stream.headers, act
        stream.wait()


def zip_up(app: Any, environ: Any, start_response: Any) -> Any:
    """Compress the answer, whether the client wants it or not."""
    status, headers, body = run(app, environ)
    body = gzip.compress(body)
    more = [("Content-Encoding", "gzip"), ("Content-Length", str(len(body)))]
    start_response(status, [*headers, *more])
    return [body]


def swallow(app: Any, environ: Any, start_response: Any) -> Any:
    """Answer with a page of its own."""
    run(app, environ)
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", "4")])
    return [b"Page"]


def accept(app: Any, environ: Any, start_response: Any) -> Any:
    """Change the status."""
    _, headers, body = run(app, environ)
    start_response("202 Accepted", headers)
    return [body]


def test_other_answer_of_a_wsgi_application_ends_where_it_ends(
    around: tuple[Server, Around], store: JobStore
) -> None:
    """Nothing is appended to what a WSGI application has made of a stream."""
    server, made = around
    job = put(store)
    for act, status in (swallow, 200), (zip_up, 200), (accept, 202):
        made.act = act
        answer = server.ask(one(job), x_around="1")
        assert answer.status == status, act
        if act is not accept:
            assert answer.headers["content-length"] == str(len(answer.body)), act
        body = gzip.decompress(answer.body) if act is zip_up else answer.body
        assert body == b"Page" or body.startswith(b"retry: "), act
        assert b"\ndata: {" not in body, act


def test_wsgi_application_that_raises(
    around: tuple[Server, Around], store: JobStore
) -> None:
    """An exception after our view's answer, or when that is started, is the server's,
    and makes room for other streams.
    """
    server, made = around

    def late(app: Any, environ: Any, start_response: Any) -> Any:
        run(app, environ)
        raise LookupError("too late")

    def no_start(app: Any, environ: Any, start_response: Any) -> Any:
        def start(*args: Any) -> Any:
            raise LookupError("no start")

        return app(environ, start)

    for act in late, no_start:
        made.act = act
        with pytest.raises(LookupError, match=r"too late|no start"):
            server.ask(one(put(store)), x_around="1")
    # Now the room is looked for.
    assert server.open(one(put(store))).is_stream


def test_answer_is_closed(around: tuple[Server, Around], store: JobStore) -> None:
    """A WSGI application's close() is called before the stream goes on."""
    server, made = around
    closed: list[bool] = []

    class Closing:
        def __init__(self, answer: Any) -> None:
            self._answer = answer

        def __iter__(self) -> Iterator[bytes]:
            yield from self._answer

        def close(self) -> None:
            closed.append(True)

    made.act = lambda app, environ, start: Closing(app(environ, start))
    stream = server.open(one(put(store)), x_around="1")
    stream.at(0)
    assert closed == [True]
    assert not stream.is_done
