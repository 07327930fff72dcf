"""An application under ASGI: it finds there what WSGI servers give it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import FileResponse, Response

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import AsgiApplication, asgi_app
from tests.running import Runs
from tests.streams import StreamClient, serving
from tests.support import ROOT, load_job
from tests.web.streaming import PublicRun, one, put, serving_sockets, wait_until
from tests.web.wsgi import serving_wsgi
from tests.webapp import make_config

#: What servers say of themselves and of the connection, and how they frame a body.
OF_SERVER = {
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
    "via",
}

#: What no application should look at.
OF_ENVIRON = {
    "CONTENT_LENGTH",
    "HTTP_TRANSFER_ENCODING",
    "REMOTE_HOST",
    "REMOTE_PORT",
    "REQUEST_URI",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_SOFTWARE",
    "wsgi.multiprocess",
}

#: The parsers of uvicorn.
HTTP = ["h11", "httptools"]

UPLOAD = b"\r\n--x\0".join(b"%d" % number for number in range(500_000))


class Answer(NamedTuple):
    """A response, without what differs from server to server."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def environ(request: Request) -> Response:
    """Show the environment of the request."""
    shown = {
        name: value
        for name, value in request.environ.items()
        if isinstance(value, (str, int, tuple))
        and name.startswith(("HTTP_", "wsgi.", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        and name not in OF_ENVIRON
    }
    return Response(json_body=shown)


def digest(request: Request) -> Response:
    """Show what has arrived of a body."""
    return Response(json_body=[hashlib.sha256(request.body).hexdigest()])


def fields(request: Request) -> Response:
    """Show what has arrived of a form."""
    found = {
        name: hashlib.sha256(value.file.read()).hexdigest()
        if hasattr(value, "file")
        else value
        for name, value in request.POST.items()
    }
    return Response(json_body=found)


def parse(request: Request) -> Response:
    """Show what JSON has arrived."""
    return Response(json_body=request.json_body)


def raw(request: Request) -> Response:
    """Read the body as a file is read."""
    file = request.environ["wsgi.input"]
    how = request.GET["how"]
    parts: list[bytes]
    if how == "readline":
        parts = list(iter(lambda: file.readline(5), b""))
    elif how == "readlines":
        parts = file.readlines()
    elif how == "iter":
        parts = list(file)
    else:
        parts = list(iter(lambda: file.read(3), b""))
    return Response(body=b"|".join(parts))


def cookies(request: Request) -> Response:
    """Set two cookies, and show those of the request."""
    response = Response(json_body=dict(request.cookies))
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


def file(request: Request) -> Response:
    """Send this file."""
    return FileResponse(__file__, request)


def conditional(request: Request) -> Response:
    """Send what has an ETag."""
    return Response("text", etag="1", conditional_response=True)


def fail(request: Request) -> Response:
    """Raise an exception."""
    raise ValueError("meant")


class Chunks:
    """Is asked for chunks, and notes that it is closed."""

    def __init__(self, *chunks: bytes, error: str = "", endless: bytes = b"") -> None:
        self.chunks = iter(chunks)
        self.error = error
        self.endless = endless
        self.closed = threading.Event()

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.chunks)
        except StopIteration:
            if self.error:
                raise ValueError(self.error) from None
            if self.endless:
                time.sleep(0.001)
                return self.endless
            raise

    def close(self) -> None:
        self.closed.set()


def chunks(request: Request) -> Response:
    """Send several chunks, some of them empty."""
    return Response(app_iter=Chunks(b"", b"one", b"", b"two"))


VIEWS = (
    chunks,
    conditional,
    cookies,
    digest,
    environ,
    fail,
    fields,
    file,
    parse,
    raw,
)


def make_views() -> Any:
    """Return an application with the views above, each at its name."""
    with Configurator() as config:
        for view in VIEWS:
            config.add_route(view.__name__, f"/{view.__name__}*rest")
            config.add_view(view, route_name=view.__name__)
        return config.make_wsgi_app()


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The ports of servers of the same application."""
    app = make_views()
    with (
        serving_wsgi(app) as waitress,
        serving(asgi_app(app), http="h11") as h11,
        serving(asgi_app(app), http="httptools") as httptools,
    ):
        yield {"waitress": waitress, "h11": h11, "httptools": httptools}


def ask(port: int, sent: str | bytes, body: bytes = b"") -> Answer:
    """Return the answer to a request.

    Parameters:
      sent: Its lines, without those that each request has.
    """
    data = sent.encode() if isinstance(sent, str) else sent
    first, *lines = data.split(b"\n")
    if body and b"Transfer-Encoding: chunked" not in lines:
        lines.append(b"Content-Length: %d" % len(body))
    lines = [first + b" HTTP/1.1", b"Host: a.example", b"Connection: close", *lines]
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(b"\r\n".join([*lines, b"", body]))
        response = http.client.HTTPResponse(
            sock, method=first.partition(b" ")[0].decode()
        )
        response.begin()
        found = response.read()
        headers = [
            (name.lower(), value)
            for name, value in response.getheaders()
            if name.lower() not in OF_SERVER
        ]
    return Answer(response.status, sorted(headers), found)


def in_chunks(*parts: bytes) -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nf\xc3\xbcr\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n"
    + UPLOAD[:200_000]
    + b"\r\n--x--\r\n"
)

#: Requests, and their bodies.
REQUESTS: dict[str, tuple[str | bytes, bytes]] = {
    "a plain request": ("GET /environ", b""),
    "non-ASCII path and query": ("GET /environ/caf%C3%A9?q=caf%C3%A9&r=%E9", b""),
    "a path that is not UTF-8": ("GET /environ/caf%E9", b""),
    "a percent-encoded slash": ("GET /environ/a%2Fb%25%3F", b""),
    "a semicolon and a plus": ("GET /environ/a;b+c?d;e=f+g", b""),
    "an empty query": ("GET /environ?", b""),
    "two leading slashes": ("GET //environ//a", b""),
    "an unknown path": ("GET /nothing", b""),
    "duplicate headers": ("GET /environ\nX-A: 1\nX-B: 0\nX-A: 2\nX-C:", b""),
    "non-ASCII headers": ("GET /environ\nX-A: café".encode(), b""),
    "header names with underscores": ("GET /environ\nX_User: eve\nA_B-C: 1", b""),
    "both kinds of names": ("GET /environ\nX_User: eve\nX-User: bob", b""),
    "an underscore in the length": ("GET /environ\nContent_Length: 5", b""),
    "cookies": ("GET /cookies\nCookie: c=3; d=4", b""),
    "a body": ("POST /digest", b"abc"),
    "an empty body": ("POST /digest\nContent-Length: 0", b""),
    "no body": ("POST /digest", b""),
    "an upload": ("POST /digest", UPLOAD),
    "an upload in chunks": (
        "POST /digest\nTransfer-Encoding: chunked",
        in_chunks(UPLOAD, b"end"),
    ),
    "JSON": ("POST /parse\nContent-Type: application/json", b'{"a": "\xc3\xa9"}'),
    "JSON in chunks": (
        "POST /parse\nContent-Type: application/json\nTransfer-Encoding: chunked",
        in_chunks(b'{"a"', b": 1}"),
    ),
    "a form": ("POST /fields\nContent-Type: multipart/form-data; boundary=x", FORM),
    "a form in chunks": (
        "POST /fields\nContent-Type: multipart/form-data; boundary=x\n"
        "Transfer-Encoding: chunked",
        in_chunks(FORM[:1000], FORM[1000:]),
    ),
    "a query with a form": (
        "POST /fields?a=1\nContent-Type: application/x-www-form-urlencoded",
        b"a=2&b=%C3%A9",
    ),
    "lines of a body": ("POST /raw?how=readline", b"abcdefg\nhi\n\nj"),
    "all lines of a body": ("POST /raw?how=readlines", b"abcdefg\nhi\n\nj"),
    "all lines of no body": ("POST /raw?how=readlines", b""),
    "the lines that a body yields": ("POST /raw?how=iter", b"abcdefg\nhi\n\nj"),
    "parts of a body": ("POST /raw?how=read", b"abcdefgh"),
    "a HEAD": ("HEAD /file", b""),
    "a file": ("GET /file", b""),
    "an ETag": ("GET /conditional", b""),
    "an ETag that the client has": ('GET /conditional\nIf-None-Match: "1"', b""),
    "an iterator": ("GET /chunks", b""),
}


# WebOb leaves large bodies to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("server", HTTP)
def test_answer_is_that_under_waitress(ports: dict[str, int], server: str) -> None:
    """A request gets the same answer under uvicorn as under waitress."""
    for name, (sent, body) in REQUESTS.items():
        expected = ask(ports["waitress"], sent, body)
        found = ask(ports[server], sent, body)
        if expected.body.startswith(b'{"') and found.body.startswith(b'{"'):
            # A difference reads better.
            assert json.loads(found.body) == json.loads(expected.body), name
            expected, found = expected._replace(body=b""), found._replace(body=b"")
        if expected.status == 500:
            # Servers have pages of their own.
            expected, found = expected._replace(body=b""), found._replace(body=b"")
        assert found == expected, name


def test_exception_is_a_500(
    ports: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of a view is logged with its traceback, and its client gets a 500,
    which says nothing of it.
    """
    answer = ask(ports["h11"], "GET /fail")
    assert answer.status == 500
    assert b"meant" not in answer.body
    assert "ValueError: meant" in caplog.text


def test_client_is_told_to_continue(ports: dict[str, int]) -> None:
    """A client that waits for it is told to send its body."""
    for server in HTTP:
        with socket.create_connection(("127.0.0.1", ports[server]), 20) as sock:
            sock.sendall(
                b"POST /digest HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n"
                b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
            )
            assert sock.recv(12) == b"HTTP/1.1 100", server
            sock.sendall(b"abc")
            file = sock.makefile("rb")
            assert hashlib.sha256(b"abc").hexdigest().encode() in file.read()


# What no client of uvicorn's can send


def call(
    app: AsgiApplication,
    *received: Any,
    error: type[OSError] | None = None,
    **scope: Any,
) -> list[Any]:
    """Call an ASGI application, and return what it has sent.

    Parameters:
      received: What it receives. After that, the client says nothing.
      error: What sending raises once, after the response has started.
    """
    whole = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/environ",
        "query_string": b"",
        "headers": [],
        **scope,
    }
    messages = [*received]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.Future[Any]()

    async def send(message: Any) -> None:
        nonlocal error
        if error is not None and sent:
            raised, error = error, None
            raise raised("gone")
        sent.append(message)

    async def run() -> None:
        await asyncio.wait_for(app(whole, receive, send), 20)
        # What was cancelled ends in the next rounds.
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    return sent


def body_of(sent: list[Any]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


def environ_of(**scope: Any) -> dict[str, Any]:
    """Return the environment that an application sees."""
    found: dict[str, Any] = json.loads(body_of(call(asgi_app(make_views()), **scope)))
    return found


def test_cookies_of_http2_are_one_header() -> None:
    """The cookies that HTTP/2 has split are one header again."""
    headers = [(b"cookie", b"a=1"), (b"x-a", b"1"), (b"cookie", b"b=2")]
    found = environ_of(headers=headers, http_version="2")
    assert found["HTTP_COOKIE"] == "a=1; b=2"
    assert found["SERVER_PROTOCOL"] == "HTTP/2"


def test_query_may_be_any_bytes() -> None:
    """Bytes in a query that are not ASCII, which granian lets through, count as
    percent-encoded.
    """
    found = environ_of(query_string=b"q=caf\xc3\xa9&a=%20+%")
    assert found["QUERY_STRING"] == "q=caf%C3%A9&a=%20+%"


def test_length_beside_chunks_does_not_count() -> None:
    """The length of a body that comes in chunks does not cut it."""
    sent = call(
        asgi_app(make_views()),
        {"type": "http.request", "body": b"abcdef"},
        method="POST",
        path="/digest",
        headers=[(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
    )
    assert hashlib.sha256(b"abcdef").hexdigest().encode() in body_of(sent)


def paths_of(**scope: Any) -> tuple[str, str]:
    """Return the SCRIPT_NAME and the PATH_INFO that an application sees."""
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return []

    call(asgi_app(app), **scope)
    return seen["SCRIPT_NAME"], seen["PATH_INFO"]


def test_application_below_a_prefix() -> None:
    """The prefix of an application is its SCRIPT_NAME, and not in its PATH_INFO."""
    for root, path, *expected in (
        # uvicorn's --root-path is part of the path
        ("/api", "/api/environ/a", "/api", "/environ/a"),
        ("/api", "/api/api/environ", "/api", "/api/environ"),
        # hypercorn's and granian's only if the client has sent it
        ("/env", "/environ", "/env", "/environ"),
        ("/caf\u00e9", "/caf\u00e9/environ", "/caf\u00c3\u00a9", "/environ"),
        ("", "/environ", "", "/environ"),
        ("/api", "/api", "/api", ""),
    ):
        assert paths_of(root_path=root, path=path) == tuple(expected)


def test_path_that_is_no_utf8() -> None:
    """The bytes of a path that servers cannot decode come from the raw path, if that is
    the same.
    """
    for raw_path, info in (
        (b"/api/%E9", "/\u00e9"),
        (b"/api/%EF%BF%BD", "/\u00ef\u00bf\u00bd"),
        # Another application has changed the path.
        (b"/other/%E9", "/\u00ef\u00bf\u00bd"),
        (None, "/\u00ef\u00bf\u00bd"),
    ):
        scope = {"root_path": "/api", "path": "/api/\ufffd", "raw_path": raw_path}
        assert paths_of(**scope)[1] == info, raw_path


def test_scheme_and_client_are_those_of_the_scope() -> None:
    """The scheme and the address come from the server, which knows what proxies to
    trust.
    """
    found = environ_of(scheme="https", client=("192.0.2.1", 5), server=None)
    assert found["wsgi.url_scheme"] == "https"
    assert found["REMOTE_ADDR"] == "192.0.2.1"


def test_scheme_of_a_trusted_proxy() -> None:
    """With uvicorn's proxy headers, URLs have the scheme that the proxy names."""
    app = make_views()
    for trusted, scheme in (("127.0.0.1", "https"), ("192.0.2.1", "http")):
        options = {"proxy_headers": True, "forwarded_allow_ips": trusted}
        with serving(asgi_app(app), **options) as port:
            answer = ask(port, "GET /environ\nX-Forwarded-Proto: https")
        assert json.loads(answer.body)["wsgi.url_scheme"] == scheme


def test_errors_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """What an application writes to wsgi.errors is on stderr."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.errors"].write("an error\n")
        start_response("200 OK", [])
        return []

    call(asgi_app(app))
    assert capfd.readouterr() == ("", "an error\n")


def test_websocket_is_closed() -> None:
    """A WebSocket is refused."""
    sent = call(asgi_app(make_views()), {"type": "websocket.connect"}, type="websocket")
    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_lifespan_is_answered() -> None:
    """A server that tells of its start and its end is answered."""
    parts = "startup", "shutdown"
    received = [{"type": f"lifespan.{part}"} for part in parts]
    sent = call(asgi_app(make_views()), *received, type="lifespan")
    assert sent == [{"type": f"lifespan.{part}.complete"} for part in parts]


def test_bad_number_of_threads_is_an_error() -> None:
    """A number of threads that cannot be is named."""
    bad: list[Any] = [0, -1, True, 2.0, "10", None]
    for threads in bad:
        with pytest.raises(ValueError, match=r"threads must be a whole number .* not"):
            asgi_app(lambda environ, start: [], threads=threads)


# Responses


def test_response_may_be_replaced_before_its_first_byte() -> None:
    """A WSGI application may replace a response of which nothing has been sent, for
    instance by an error page.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-A", "1")])
        yield b""
        try:
            raise ValueError("meant")
        except ValueError:
            start_response("500 Oh", [("X-B", "2")], sys.exc_info())
        yield b"page"

    start, *rest = call(asgi_app(app))
    assert (start["status"], start["headers"]) == (500, [(b"x-b", b"2")])
    assert body_of(rest) == b"page"


def test_response_cannot_be_replaced_after_its_first_byte() -> None:
    """A WSGI application that fails after its first byte gets its exception back."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        try:
            raise ValueError("meant")
        except ValueError:
            start_response("500 Oh", [], sys.exc_info())
            yield b"page"

    with pytest.raises(ValueError, match="meant"):
        call(asgi_app(app))


def test_response_may_be_written() -> None:
    """A WSGI application may write its response instead of returning it."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"one")
        write(b"two")
        return [b"three"]

    start, *rest = call(asgi_app(app))
    assert (start["status"], body_of(rest)) == (200, b"onetwothree")


def test_application_that_starts_no_response_is_told() -> None:
    """A WSGI application that does not call start_response gets a clear error."""
    with pytest.raises(AssertionError, match="did not call start_response"):
        call(asgi_app(lambda environ, start_response: [b"one"]))


def test_failed_iterator_is_closed() -> None:
    """An iterator that fails is closed, and its client sees that something is
    missing.
    """
    for server in HTTP:
        iterator = Chunks(b"one", b"two", error="meant")

        def app(
            environ: dict[str, Any], start_response: Any, answer: Chunks = iterator
        ) -> Chunks:
            start_response("200 OK", [("Content-Length", "1000")])
            return answer

        with (
            serving(asgi_app(app), http=server) as port,
            pytest.raises(http.client.IncompleteRead),
        ):
            ask(port, "GET /")
        assert iterator.closed.wait(5)


def test_server_that_cannot_send_frees_the_thread() -> None:
    """A server may raise an error for what is sent to a client that has gone. The
    iterator is closed, and its thread serves the next request.
    """
    for error in OSError, ConnectionResetError:
        iterator = Chunks(endless=b"data")
        responses: list[Any] = [iterator, [b"next"]]

        def app(
            environ: dict[str, Any], start_response: Any, left: Any = responses
        ) -> Any:
            start_response("200 OK", [])
            return left.pop(0)

        application = asgi_app(app, threads=1)
        (start,) = call(application, error=error)
        assert start["status"] == 200
        assert iterator.closed.is_set()
        assert body_of(call(application)) == b"next"


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors that were logged."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("server", HTTP)
def test_client_that_goes_ends_its_download(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The iterator of a client that has gone is closed, however much it has left, and
    its thread serves the next request.
    """
    iterators = [Chunks(endless=b"x" * 1000) for _ in range(4)]
    left = [*iterators]

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"].read()
        start_response("200 OK", [])
        return left.pop() if left else [b"next"]

    with serving(asgi_app(app, threads=2), http=server) as port:
        for method in ("GET", "POST") * 2:
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                line = f"{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
                sock.sendall(line.encode())
                assert sock.recv(5000)
        assert ask(port, "GET /").body == b"next"
    for iterator in iterators:
        assert iterator.closed.wait(5)
    assert errors(caplog) == []


@pytest.mark.parametrize("server", HTTP)
def test_half_of_an_upload_does_not_pass_for_all_of_it(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A view whose client goes amid a large upload gets an error, not the part that has
    come. Nothing is logged.
    """
    begun: list[bytes] = []
    seen: list[object] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.append(environ["wsgi.input"].read(1))
        try:
            seen.append(environ["wsgi.input"].read())
        except OSError as e:
            seen.append(e)
            raise
        start_response("200 OK", [])
        return []

    kinds = "Content-Length: 500000", "Transfer-Encoding: chunked"
    with serving(asgi_app(app), http=server) as port:
        for count, kind in enumerate(kinds, start=1):
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                line = f"POST / HTTP/1.1\r\nHost: a\r\n{kind}\r\n\r\n"
                sock.sendall(line.encode() + in_chunks(b"a" * 100_000)[:-5])
                wait_until(count, len, begun)
            wait_until(count, len, seen)
            assert isinstance(seen[-1], ConnectionError)
    assert errors(caplog) == []


@pytest.mark.parametrize("server", HTTP)
def test_body_that_does_not_come_holds_no_thread(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests with half of a body do not keep others from the views, which see only
    those whose body has come.
    """
    bodies: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"answered"]

    kinds = "Content-Length: 1000", "Transfer-Encoding: chunked"
    with (
        serving(asgi_app(app, threads=2), http=server) as port,
        contextlib.ExitStack() as stack,
    ):
        for kind in kinds * 2:
            sock = socket.create_connection(("127.0.0.1", port), 20)
            stack.enter_context(sock)
            line = f"POST / HTTP/1.1\r\nHost: a\r\n{kind}\r\n\r\n3\r\nabc\r\n"
            sock.sendall(line.encode())
        assert ask(port, "GET /").body == b"answered"
        assert ask(port, "POST /", b"all").body == b"answered"
        assert ask(port, "POST /", UPLOAD).body == b"answered"
    assert bodies == [b"", b"all", UPLOAD]
    assert errors(caplog) == []


def test_request_without_a_body_leaves_the_channel_alone() -> None:
    """A view may read a body that is not there while its response is being sent."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        yield b"two"
        time.sleep(0.1)
        yield environ["wsgi.input"].read() + b"three"

    sent = call(asgi_app(app), {"type": "http.request", "body": b""})
    assert body_of(sent) == b"onetwothree"


# Threads


def test_no_more_views_run_than_threads() -> None:
    """A request waits while all threads are busy."""
    running = threading.Semaphore(2)
    failures: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if running.acquire(blocking=False):
            time.sleep(0.05)
            running.release()
        else:
            failures.append("three at a time")
        start_response("200 OK", [])
        return []

    with serving(asgi_app(app, threads=2)) as port:
        clients = [threading.Thread(target=ask, args=(port, "GET /")) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert failures == []


@contextlib.contextmanager
def streaming(redis_url: str, **settings: str) -> Iterator[tuple[int, threading.Event]]:
    """Serve an application with two threads, and give its port, and an event for which
    each request for /slow waits.
    """
    gate = threading.Event()

    def slow(request: Request) -> Response:
        gate.wait(20)
        return Response("slow")

    def quick(request: Request) -> Response:
        return Response("quick")

    config = make_config(redis_url, settings=settings)
    for view in slow, quick:
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__)
    with serving_sockets(config, threads=2) as port:
        try:
            yield port, gate
        finally:
            gate.set()


def test_slow_views_do_not_stop_streams(redis_url: str, runs: Runs) -> None:
    """While all threads are busy with slow views, open streams go on."""
    run = runs.start(n=0)
    slow: list[threading.Thread] = []
    with streaming(redis_url) as (port, gate):
        with StreamClient(port, one(run.uuid)) as stream:
            stream.next()
            for _ in range(6):
                slow.append(threading.Thread(target=ask, args=(port, "GET /slow")))
                slow[-1].start()
            for n in range(1, 5):
                run.report(n=n)
                assert stream.next().state["n"] == n
        gate.set()
        for thread in slow:
            thread.join()


@pytest.mark.parametrize(
    "count", [50, pytest.param(500, marks=pytest.mark.long)], ids=str
)
def test_streams_hold_no_threads(redis_url: str, store: JobStore, count: int) -> None:
    """Many more streams than threads leave all threads to plain requests."""
    job = put(store, "queued", PublicRun)
    settings = {"jobstate.max_streams": str(count)}
    with (
        streaming(redis_url, **settings) as (port, _),
        contextlib.ExitStack() as stack,
    ):
        streams = [
            stack.enter_context(StreamClient(port, one(job), None))
            for _ in range(count)
        ]
        assert all(stream.is_stream for stream in streams)
        for _ in range(20):
            assert ask(port, "GET /quick").body == b"quick"
        load_job(store, job).cancel()
        for stream in streams:
            stream.until(lambda event: event.state["job"]["status"] == "cancelled")


# Without ASGI


UNDER_WSGI = """
import sys
from tests.webapp import ask, get, make_app, make_config

app = make_app(make_config(sys.argv[1]))
job = sys.argv[2]
for path in f"/job_state/{job}", f"/job_state?uuid={job}", "/job_state":
    for accept in "*/*", "text/event-stream":
        answer = get(app, path, "alice", Accept=accept)
        assert answer.content_type == "application/json", path
        assert "JobState-Stream" not in answer.headers
path = f"/job_state/{job}/cancel"
assert ask(app, "POST", path, "alice", X_Requested_With="a test").status_int == 202
assert "a2wsgi" not in sys.modules
before = {*sys.modules}
import pyramid_jobstate.asgi
ours = [name for name in sys.modules if name.startswith("pyramid_jobstate")]
assert len({*ours} - before) > 1
"""


def run(program: str, *arguments: str) -> str:
    """Run a program, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.system
def test_nothing_of_push_is_imported_under_wsgi(
    redis_url: str, store: JobStore
) -> None:
    """An application that is served under WSGI answers every request by JSON, offers no
    stream, and imports nothing that has to do with streams.
    """
    run(UNDER_WSGI, redis_url, put(store))


@pytest.mark.system
def test_missing_bridge_is_named() -> None:
    """Without a2wsgi, the import says what to install."""
    program = """
import sys
sys.modules["a2wsgi"] = None
try:
    import pyramid_jobstate.asgi
except ImportError as e:
    print(e)
"""
    assert "pyramid_jobstate[asgi]" in run(program)
