"""Streams among an application's tweens and subscribers, and in WSGI applications."""

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
from tests.web.streaming import one, put, statuses
from tests.webapp import make_config, make_tm_config

Change = Callable[[Request, Response], Response | None]


def changing_tween(handler: Callable[[Request], Response], registry: Any) -> Any:
    """A tween that changes responses as the test says, or returns others."""

    def tween(request: Request) -> Response:
        response = handler(request)
        for change in registry["changes"]:
            response = change(request, response) or response
        return response

    return tween


def with_tween(config: Configurator, **where: Any) -> Configurator:
    config.registry["changes"] = []
    config.add_tween(f"{__name__}.changing_tween", **where)
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    return config


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application with a session, the subscriber and the tween."""
    config = with_tween(make_config(redis_url))
    config.add_subscriber(lambda e: e.response.headers.add("X-Mark", "1"), NewResponse)
    with pushing(config) as server:
        yield server


def test_headers_of_the_application_are_kept(server: Server, store: JobStore) -> None:
    """A stream and a 204 bear what the application adds. What describes a poll goes."""

    def decorate(request: Request, response: Response) -> None:
        request.session["seen"] = 1
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        response.headers["Access-Control-Allow-Origin"] = "https://other.example"
        response.vary = ["Accept", "Origin"]
        response.etag = "other"
        request.add_response_callback(lambda _, r: r.headers.add("X-Callback", "1"))

    server.config.registry["changes"] = [decorate]
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
        assert (headers["x-mark"], headers["x-callback"]) == ("1", "1")
        assert not {"etag", "content-length"} & headers.keys()


def test_tween_that_replaces_the_answer(server: Server, store: JobStore) -> None:
    """What a tween makes of a poll's answer is sent as it is."""
    job = put(store)
    replacements: dict[str, Change] = {
        "copy": lambda request, response: response.copy(),
        "status": lambda request, response: setattr(response, "status", 500),
        "encoding": lambda request, response: response.encode_content("gzip"),
    }
    for name, replace in replacements.items():
        server.config.registry["changes"] = [replace]
        answer = server.ask(one(job))
        assert answer.status == (500 if name == "status" else 200), name
        body = answer.body
        body = gzip.decompress(body) if name == "encoding" else body
        assert json.loads(body)["job"]["uuid"] == job, name


def test_request_ends_before_its_stream(redis_url: str, store: JobStore) -> None:
    """The transaction and the request end, and are freed, before their stream."""
    ended: list[str] = []
    kept: list[weakref.ref[Any]] = []

    def keep(request: Request, response: Response) -> None:
        request.tm.get().addAfterCommitHook(lambda ok: ended.append("transaction"))
        request.add_finished_callback(lambda request: ended.append("request"))
        kept.extend(map(weakref.ref, (request, response, request.context)))

    def is_free() -> bool:
        gc.collect()
        return [ref() for ref in kept] == [None] * 3

    config = with_tween(make_tm_config(redis_url), under="pyramid_tm.tm_tween_factory")
    with pushing(config) as server:
        config.registry["changes"] = [keep]
        stream = server.watch(one(put(store)))
        assert ended == ["transaction", "request"]
        # The thread that ran the view may be about to forget it.
        wait_for(is_free)
        assert not stream.is_done


def buffered(app: Any) -> Any:
    """Return a WSGI application that sends, compresses or drops whole answers."""

    def application(environ: Any, start_response: Any) -> Any:
        found: list[Any] = []
        body = b"".join(app(environ, lambda *start: found.extend(start)))
        status, headers = found
        if environ.get("HTTP_X_THEN") == "fail":
            raise LookupError("too late")
        if environ.get("HTTP_X_THEN") == "zip":
            headers = [*headers, ("Content-Encoding", "gzip")]
            body = gzip.compress(body)
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body, b""]

    return application


def test_wsgi_application_around_pyramids(redis_url: str, store: JobStore) -> None:
    """A stream passes one that buffers, or makes something else of it, or fails."""
    with pushing(make_config(redis_url), buffered, rooms=1) as server:
        job, other = put(store, "queued"), one(put(store))
        stream = server.open(one(job))
        assert stream.at(0).name == "message"
        assert "content-length" not in stream.headers
        load_job(store, job).cancel()
        assert statuses(stream.wait()) == ["queued", "cancelled"]
        with pytest.raises(LookupError, match="too late"):
            server.ask(other, x_then="fail")
        body = gzip.decompress(server.ask(other, x_then="zip").body)
        assert body.startswith(b"retry: ")
        assert b"\ndata: {" not in body
        assert server.open(other).is_stream
