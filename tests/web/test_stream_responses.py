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
import redis
from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from tests.asgi import Exchange, pushing
from tests.support import wait_for
from tests.webapp import make_config, make_tm_config, put_job

Handler = Callable[[Request], Response]


def with_tween(
    redis_url: str, change: Callable[[Request, Response], Response | None]
) -> Configurator:
    """Return an application's configurator with a tween.

    Parameters:
      change: Changes a response, or returns another one.
    """

    def factory(handler: Handler, registry: Any) -> Handler:
        def tween(request: Request) -> Response:
            response = handler(request)
            return change(request, response) or response

        return tween

    config = make_config(redis_url)
    globals()["_tween"] = factory
    config.add_tween(f"{__name__}._tween")
    return config


def assert_polled(answer: Exchange, uuid: str) -> None:
    """Assert that a request for a stream got JSON."""
    assert answer.wait().status == 200
    assert not answer.is_stream
    assert json.loads(answer.body)["job"]["uuid"] == uuid


def test_cookies_of_a_session(redis_url: str, job: str) -> None:
    """A stream sets the cookies that its session and the application set."""

    def touch(request: Request, response: Response) -> None:
        request.session["seen"] = 1
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")

    config = with_tween(redis_url, touch)
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    with pushing(config) as server:
        stream = server.open(f"/job_state/{job}")
        assert stream.at(0).state["job"]["uuid"] == job
        cookies = [v for k, v in stream.header_list if k == "set-cookie"]
    assert sorted(cookie[:2] for cookie in cookies) == ["a=", "b=", "se"]


def test_cors_headers_of_a_tween(redis_url: str, client: redis.Redis) -> None:
    """A stream and a 204 bear the headers that a tween adds for other origins."""

    def allow(request: Request, response: Response) -> None:
        response.headers["Access-Control-Allow-Origin"] = "https://other.example"
        response.vary = ["Accept", "Origin"]

    uuid = put_job(client, status="success")
    with pushing(with_tween(redis_url, allow)) as server:
        stream = server.ask(f"/job_state/{uuid}")
        over = server.ask(f"/job_state/{uuid}", last_event_id=stream.at(0).id)
    assert (stream.status, over.status) == (200, 204)
    for answer in stream, over:
        origin = answer.headers["access-control-allow-origin"]
        assert origin == "https://other.example"
        assert answer.headers["vary"] == "Accept, Origin"


def test_header_of_a_subscriber(redis_url: str, job: str) -> None:
    """A stream bears what a subscriber of NewResponse and a callback add."""

    def mark(event: NewResponse) -> None:
        event.response.headers["X-Mark"] = "new"
        event.response.etag = "other"

    def welcome(request: Request, response: Response) -> None:
        request.add_response_callback(
            lambda request, response: response.headers.add("X-Callback", "1")
        )

    config = with_tween(redis_url, welcome)
    config.add_subscriber(mark, NewResponse)
    with pushing(config) as server:
        stream = server.open(f"/job_state/{job}")
        assert stream.is_stream
        assert stream.headers["x-mark"] == "new"
        assert "etag" not in stream.headers
        assert "content-length" not in stream.headers


def encode(request: Request, response: Response) -> None:
    response.encode_content("gzip")


@pytest.mark.parametrize(
    "change",
    [
        lambda request, response: response.copy(),
        lambda request, response: Response(response.body, headerlist=[]),
        lambda request, response: setattr(response, "body", response.body + b" "),
        lambda request, response: setattr(
            response, "app_iter", iter([response.body, b" "])
        ),
        lambda request, response: setattr(
            response, "json_body", {**response.json_body, "more": 1}
        ),
        lambda request, response: setattr(response, "content_encoding", "identity"),
    ],
    ids=["copy", "other", "body", "app_iter", "json", "encoding"],
)
def test_tween_that_replaces_the_answer(
    redis_url: str, job: str, change: Callable[[Request, Response], Response]
) -> None:
    """What a tween makes of a poll's answer is sent as it is."""
    with pushing(with_tween(redis_url, change)) as server:
        assert_polled(server.ask(f"/job_state/{job}"), job)


def test_tween_that_encodes_the_answer(redis_url: str, job: str) -> None:
    """What a tween has compressed is sent as it is."""
    with pushing(with_tween(redis_url, encode)) as server:
        answer = server.ask(f"/job_state/{job}")
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer.body))["job"]["uuid"] == job


@pytest.mark.parametrize("status", [201, 404, 500])
def test_tween_that_changes_the_status(redis_url: str, job: str, status: int) -> None:
    """A tween's other status is sent with the poll's answer."""

    def change(request: Request, response: Response) -> None:
        response.status = status

    with pushing(with_tween(redis_url, change)) as server:
        answer = server.ask(f"/job_state/{job}")
    assert answer.status == status
    assert json.loads(answer.body)["job"]["uuid"] == job


def test_tween_that_discards_the_answer(redis_url: str, job: str) -> None:
    """A tween may answer a request for a stream with anything else."""

    def change(request: Request, response: Response) -> Response:
        return Response("Closed", status=503)

    with pushing(with_tween(redis_url, change)) as server:
        answer = server.ask(f"/job_state/{job}")
    assert (answer.status, answer.body) == (503, b"Closed")


def test_context_after_a_stream_was_made(redis_url: str, job: str) -> None:
    """A tween finds the job of a request for a stream as that of a poll."""
    found: list[Any] = []

    def look(request: Request, response: Response) -> None:
        may_cancel = request.context.__parent__.permits(request.context, "cancel_job")
        found.append((request.context.__parent__.request is request, bool(may_cancel)))

    with pushing(with_tween(redis_url, look)) as server:
        server.open(f"/job_state/{job}").at(0)
    assert found == [(True, True)]


def test_request_ends_before_its_stream(redis_url: str, job: str) -> None:
    """The transaction and the request of a stream end when its view has answered, and
    nothing of the request stays in memory.
    """
    ended: list[str] = []
    kept: list[weakref.ref[Any]] = []

    class Session(dict[str, Any]):
        """What a request's finish has to close."""

    def keep(request: Request, response: Response) -> None:
        request.session_of_database = Session()
        request.session_of_database["request"] = request
        request.tm.get().addAfterCommitHook(lambda ok: ended.append("transaction"))
        request.add_finished_callback(lambda request: ended.append("request"))
        kept.extend(map(weakref.ref, (request, response, request.session_of_database)))
        kept.append(weakref.ref(request.context))

    config = make_tm_config(redis_url)

    def factory(handler: Handler, registry: Any) -> Handler:
        def tween(request: Request) -> Response:
            response = handler(request)
            keep(request, response)
            return response

        return tween

    globals()["_keeping"] = factory
    config.add_tween(f"{__name__}._keeping", under="pyramid_tm.tm_tween_factory")
    with pushing(config) as server:
        stream = server.open(f"/job_state/{job}")
        stream.at(0)
        assert ended == ["transaction", "request"]

        def is_free() -> bool:
            gc.collect()
            return [ref() for ref in kept] == [None] * 4

        # The thread that ran the view may be about to forget it.
        wait_for(is_free)
        assert not stream.is_done


def with_headers(app: Any) -> Any:
    """A WSGI application that adds headers."""

    def application(environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            return start_response(status, [*headers, ("X-Frame", "no")], exc_info)

        return app(environ, start)

    return application


def run(app: Any, environ: Any) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return all of an application's answer, and close it."""
    found: list[Any] = []

    def start(status: str, headers: Any, exc_info: Any = None) -> Any:
        found[:] = status, headers
        return lambda data: None

    answer = app(environ, start)
    try:
        body = b"".join(answer)
    finally:
        getattr(answer, "close", lambda: None)()
    return found[0], found[1], body


def buffering(app: Any) -> Any:
    """A WSGI application that waits for an answer's end, and says how long it is."""

    def application(environ: Any, start_response: Any) -> Any:
        status, headers, body = run(app, environ)
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return application


def zipping(app: Any) -> Any:
    """A WSGI application that compresses answers, whether clients want it or not."""

    def application(environ: Any, start_response: Any) -> Any:
        status, headers, body = run(app, environ)
        body = gzip.compress(body)
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        start_response(
            status,
            [
                *headers,
                ("Content-Encoding", "gzip"),
                ("Content-Length", str(len(body))),
            ],
        )
        return [body]

    return application


def swallowing(app: Any) -> Any:
    """A WSGI application that answers with a page of its own."""

    def application(environ: Any, start_response: Any) -> Any:
        run(app, environ)
        start_response(
            "200 OK", [("Content-Type", "text/html"), ("Content-Length", "4")]
        )
        return [b"Page"]

    return application


def failing(app: Any) -> Any:
    """A WSGI application that answers with an error of its own."""

    def application(environ: Any, start_response: Any) -> Any:
        run(app, environ)
        start_response("502 Bad Gateway", [("Content-Type", "text/plain")])
        return [b"Bad"]

    return application


def repeating(app: Any) -> Any:
    """A WSGI application that asks twice, as one that retries does."""

    def application(environ: Any, start_response: Any) -> Any:
        run(app, environ)
        return app(environ, start_response)

    return application


class Closing:
    """An answer that knows whether it was closed."""

    closed = 0

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer

    def close(self) -> None:
        Closing.closed += 1


@pytest.mark.parametrize("around", [with_headers, buffering, repeating])
def test_stream_through_wsgi_applications(
    redis_url: str, client: redis.Redis, job: str, around: Callable[[Any], Any]
) -> None:
    """A stream passes a WSGI application that adds headers, buffers or retries."""
    with pushing(make_config(redis_url), around) as server:
        stream = server.open(f"/job_state/{job}")
        assert stream.at(0).state["job_state"] == "working"
        assert server.streams.rooms.count == 1
        client.hset(f"jobstate:{job}", "status", "success")
        assert stream.at(1).state["job_state"] == "success"
        assert ("x-frame" in stream.headers) == (around is with_headers)
        assert "content-length" not in stream.headers
        server.wait_for_count(0)


@pytest.mark.parametrize(
    ("around", "status", "body"),
    [(swallowing, 200, b"Page"), (failing, 502, b"Bad")],
)
def test_other_answer_of_a_wsgi_application(
    redis_url: str, job: str, around: Callable[[Any], Any], status: int, body: bytes
) -> None:
    """A WSGI application's own answer ends where it ends."""
    with pushing(make_config(redis_url), around) as server:
        answer = server.ask(f"/job_state/{job}")
        assert (answer.status, answer.body) == (status, body)
        if around is swallowing:
            assert answer.headers["content-length"] == "4"
        assert server.streams.rooms.count == 0


def test_wsgi_application_that_compresses(redis_url: str, job: str) -> None:
    """Nothing is appended to what a WSGI application has compressed."""
    with pushing(make_config(redis_url), zipping) as server:
        answer = server.ask(f"/job_state/{job}")
        assert gzip.decompress(answer.body).startswith(b"retry: ")
        assert answer.headers["content-length"] == str(len(answer.body))


def test_wsgi_application_that_raises(redis_url: str, job: str) -> None:
    """An exception after our view's answer makes room for other streams."""

    def raising(app: Any) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            run(app, environ)
            raise LookupError("too late")

        return application

    with pushing(make_config(redis_url), raising) as server:
        with pytest.raises(LookupError, match="too late"):
            server.ask(f"/job_state/{job}")
        assert server.streams.rooms.count == 0


def test_start_response_that_raises(redis_url: str, job: str) -> None:
    """So does an exception when the answer is started."""

    def raising(app: Any) -> Any:
        def start(*args: Any) -> Any:
            raise LookupError("no start")

        return lambda environ, start_response: app(environ, start)

    with pushing(make_config(redis_url), raising) as server:
        with pytest.raises(LookupError, match="no start"):
            server.ask(f"/job_state/{job}")
        assert server.streams.rooms.count == 0


def test_answer_that_is_closed(redis_url: str, job: str) -> None:
    """A WSGI application's close() is called before the stream goes on."""
    Closing.closed = 0

    def closing(app: Any) -> Any:
        return lambda environ, start: Closing(app(environ, start))

    with pushing(make_config(redis_url), closing) as server:
        stream = server.open(f"/job_state/{job}")
        stream.at(0)
        assert Closing.closed == 1
        assert not stream.is_done


def test_subrequest_for_a_stream(redis_url: str, job: str) -> None:
    """An application's view may ask ours for the JSON, and pass its answer on."""

    def ask(request: Request) -> Response:
        inner = request.copy()
        inner.path_info = f"/job_state/{job}"
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
        assert server.streams.rooms.count == 0
        assert server.open("/mine").at(0).state["job"]["uuid"] == job


def test_uuid_with_a_line_break_begins_no_event(redis_url: str, job: str) -> None:
    """What cannot be a uuid is quoted in the event that says so."""
    forged = 'x%0A%0Aevent: message%0Adata: {"job_state": "success"}'
    path = f"/job_state?uuid={job}&uuid={forged}".replace(" ", "%20")
    with pushing(make_config(redis_url)) as server:
        stream = server.open(path)
        assert stream.at(0).name == "gone"
        assert stream.at(1).state["job"]["uuid"] == job
        assert b'"success"' not in stream.body
