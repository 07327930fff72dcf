"""An application under ASGI: it finds there what WSGI servers give it."""

import asyncio
import contextlib
import hashlib
import http.client
import importlib
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from webtest.http import StopableWSGIServer

from pyramid_jobstate.asgi import asgi_app
from tests import asgi
from tests.jobs import messages
from tests.streams import StreamClient, serving
from tests.support import ROOT
from tests.web.streaming import PublicRun, one, wait_until
from tests.webapp import make_config

#: What servers say of themselves and of the connection, and how they frame a body.
OF_SERVER = re.compile(r"connection|content-length|date|server|transfer-encoding|via")

#: What no application should look at.
OF_ENVIRON = re.compile(
    r"CONTENT_LENGTH|HTTP_TRANSFER_ENCODING|REMOTE_HOST|REMOTE_PORT|REQUEST_URI|"
    r"SERVER_(NAME|PORT|SOFTWARE)|wsgi.multiprocess"
)

#: The parsers of uvicorn.
HTTP = ["h11", "httptools"]

CHUNKED = "Transfer-Encoding: chunked"

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
        and not OF_ENVIRON.fullmatch(name)
    }
    return Response(json_body=shown)


def digest(request: Request) -> Response:
    """Show what has arrived of a body."""
    found = hashlib.sha256(request.body).hexdigest()
    # WebOb leaves the file of a large body to the garbage collector.
    request.body_file_raw.close()
    return Response(found)


def raw(request: Request) -> Response:
    """Read the body as a file is read."""
    file = request.environ["wsgi.input"]
    return Response(body=b"|".join([file.readline(5), file.read(3), *file]))


def make_views() -> Any:
    """Return an application with the views above, each at its name."""
    with Configurator() as config:
        for view in digest, environ, raw:
            config.add_route(view.__name__, f"/{view.__name__}*rest")
            config.add_view(view, route_name=view.__name__)
        return config.make_wsgi_app()


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The ports of servers of the same application."""
    app = make_views()
    waitress = StopableWSGIServer.create(app)
    with (
        serving(asgi_app(app), http="h11") as h11,
        serving(asgi_app(app), http="httptools") as httptools,
    ):
        yield {"waitress": waitress.effective_port, "h11": h11, "httptools": httptools}
    waitress.shutdown()


def ask(port: int, sent: str | bytes, body: bytes = b"") -> Answer:
    """Return the answer to a request, of lines without those that each has."""
    data = sent.encode() if isinstance(sent, str) else sent
    first, *lines = data.split(b"\n")
    if body and CHUNKED.encode() not in lines:
        lines.append(b"Content-Length: %d" % len(body))
    lines = [first + b" HTTP/1.1", b"Host: a.example", b"Connection: close", *lines]
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(b"\r\n".join([*lines, b"", body]))
        method = first.partition(b" ")[0].decode()
        response = http.client.HTTPResponse(sock, method=method)
        response.begin()
        found = response.read()
    headers = ((name.lower(), value) for name, value in response.getheaders())
    kept = sorted(each for each in headers if not OF_SERVER.fullmatch(each[0]))
    return Answer(response.status, kept, found)


def in_chunks(*parts: bytes) -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


#: Requests, and their bodies.
REQUESTS: dict[str, tuple[str | bytes, bytes]] = {
    "non-ASCII path and query": ("GET /environ/caf%C3%A9?q=caf%C3%A9&r=%E9", b""),
    "a percent-encoded slash": ("GET /environ/a%2Fb%25%3F;b=e+f", b""),
    "two leading slashes": ("GET //environ//a", b""),
    "duplicate headers": ("GET /environ\nX-A: 1\nX-B: 0\nX-A: 2\nX-C:", b""),
    "non-ASCII headers": ("GET /environ\nX-A: café".encode(), b""),
    "header names with underscores": ("GET /environ\nX_User: eve\nA_B-C: 1", b""),
    "both kinds of names": ("GET /environ\nX_User: eve\nX-User: bob", b""),
    "an upload": ("POST /digest", UPLOAD),
    "an upload in chunks": (f"POST /digest\n{CHUNKED}", in_chunks(UPLOAD, b"end")),
    "parts of a body": ("POST /raw", b"abcdefg\nhi\n\nj"),
    "a HEAD": ("HEAD /environ\nCookie: c=3; d=4", b""),
}


@pytest.mark.promise("asgi-finds-what-wsgi-finds")
@pytest.mark.parametrize("server", HTTP)
def test_answer_is_that_under_waitress(ports, server):
    """A request gets the same answer under uvicorn as under waitress."""
    for name, (sent, body) in REQUESTS.items():
        expected = ask(ports["waitress"], sent, body)
        found = ask(ports[server], sent, body)
        if expected.body.startswith(b'{"') and found.body.startswith(b'{"'):
            # A difference reads better.
            assert json.loads(found.body) == json.loads(expected.body), name
            expected, found = expected._replace(body=b""), found._replace(body=b"")
        assert found == expected, name


# What no client of uvicorn's can send


def call(wsgi_app: Any, **scope: Any) -> list[Any]:
    """Return what an application sends in answer to a request."""
    usual = {"type": "http", "http_version": "2", "method": "GET", "path": "/environ"}
    sent: list[Any] = []

    async def receive() -> Any:
        return await asyncio.Future[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        await app({**usual, "query_string": b"", "headers": [], **scope}, receive, send)

    app: Any = asgi_app(wsgi_app)
    asyncio.run(run())
    return sent


def body_of(sent: list[Any]) -> bytes:
    """Return the body of an answer."""
    return b"".join(message.get("body", b"") for message in sent)


def environ_of(**scope: Any) -> dict[str, Any]:
    """Return the environment that an application sees."""
    return dict(json.loads(body_of(call(make_views(), **scope))))


def test_environment_that_no_client_of_uvicorn_brings_about():
    """The cookies that HTTP/2 has split are one again. The scheme is the client's."""
    headers = [(b"cookie", b"a=1"), (b"x-a", b"1"), (b"cookie", b"b=2")]
    found = environ_of(scheme="https", headers=headers)
    assert found["HTTP_COOKIE"] == "a=1; b=2"
    assert found["wsgi.url_scheme"] == "https"
    # The prefix of an application is its SCRIPT_NAME, and not in its PATH_INFO.
    for root, path, *expected in (
        # uvicorn's --root-path is part of the path
        ("/api", "/api/environ/a", "/api", "/environ/a"),
        # hypercorn's and granian's only if the client has sent it
        ("/env", "/environ", "/env", "/environ"),
        ("/caf\u00e9", "/caf\u00e9/environ", "/caf\u00c3\u00a9", "/environ"),
    ):
        found = environ_of(root_path=root, path=path)
        assert [found["SCRIPT_NAME"], found["PATH_INFO"]] == expected


def test_bad_number_of_threads_is_an_error():
    """An impossible number of threads is an error that says so."""
    bad: list[Any] = [0, True, 2.0, "10", None]
    for threads in bad:
        with pytest.raises(ValueError, match=r"threads must be a whole number .* not"):
            asgi_app(lambda environ, start: [], threads=threads)


# Clients that go


def endless(closed: threading.Event) -> Iterator[bytes]:
    """Yield a download, and note that it is closed."""
    try:
        while True:
            time.sleep(0.001)
            yield b"x" * 1000
    finally:
        closed.set()


@pytest.mark.parametrize("server", HTTP)
def test_client_that_goes_ends_its_download(server, caplog):
    """A gone client's iterator is closed, and its thread serves the next request."""
    closed = [threading.Event() for _ in range(4)]
    downloads = [endless(each) for each in closed]
    left = [*downloads]

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
    for each in closed:
        assert each.wait(5)
    assert messages(caplog, "", logging.ERROR) == []


def test_server_that_raises_for_a_client_that_has_gone():
    """If sending raises an OSError, the download ends, and nothing more is sent."""
    closed = threading.Event()
    with asgi.serving(asgi_app(Response(app_iter=endless(closed)))) as server:
        exchange = server.open("/")
        wait_until(200, lambda: exchange.status)
        exchange.is_broken = True
        exchange.wait()
        assert closed.is_set()


@pytest.mark.parametrize("server", HTTP)
def test_half_of_an_upload_does_not_pass_for_all_of_it(server, caplog):
    """A view whose client goes amid an upload gets an error; nothing is logged."""
    begun: list[bytes] = []
    seen: list[object] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        begun.append(environ["wsgi.input"].read(1))
        try:
            seen.append(environ["wsgi.input"].read())
        except OSError as e:
            seen.append(e)
            raise

    with serving(asgi_app(app), http=server) as port:
        for count, kind in (1, "Content-Length: 500000"), (2, CHUNKED):
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                line = f"POST / HTTP/1.1\r\nHost: a\r\n{kind}\r\n\r\n"
                sock.sendall(line.encode() + in_chunks(b"a" * 100_000)[:-5])
                wait_until(count, len, begun)
            wait_until(count, len, seen)
            assert isinstance(seen[-1], ConnectionError)
    assert messages(caplog, "", logging.ERROR) == []


def test_body_that_is_late_holds_no_thread(caplog):
    """Half a body keeps no other request waiting, and reaches no view."""
    bodies: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"answered"]

    with serving(asgi_app(app, threads=2)) as port, contextlib.ExitStack() as stack:
        for kind in ("Content-Length: 1000", CHUNKED) * 2:
            sock = socket.create_connection(("127.0.0.1", port), 20)
            stack.enter_context(sock)
            line = f"POST / HTTP/1.1\r\nHost: a\r\n{kind}\r\n\r\n3\r\nabc\r\n"
            sock.sendall(line.encode())
        for body in b"", b"all", UPLOAD:
            assert ask(port, "POST /", body).body == b"answered"
    assert bodies == [b"", b"all", UPLOAD]
    assert messages(caplog, "", logging.ERROR) == []


# Threads


def test_streams_need_no_threads(redis_url, runs):
    """Many more streams than threads leave all threads to plain requests, and go on."""
    gate, begun = threading.Event(), []

    def slow(request: Request) -> Response:
        begun.append(request.path)
        gate.wait(100)
        return Response("slow")

    config = make_config(redis_url, settings={"jobstate.max_streams": "50"})
    config.add_route("slow", "/slow")
    config.add_view(slow, route_name="slow")
    run = runs.start(owner=None, kind=PublicRun, n=0)
    config.include("pyramid_jobstate")
    app = asgi_app(config.make_wsgi_app(), threads=2)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving(app))
        clients = (StreamClient(port, one(run.uuid), None) for _ in range(50))
        streams = [stack.enter_context(client) for client in clients]
        assert ask(port, "GET /nothing").status == 404
        views = stack.enter_context(ThreadPoolExecutor(6))
        answers = [views.submit(ask, port, "GET /slow") for _ in range(6)]
        wait_until(2, len, begun)
        for n in range(1, 5):
            run.report(n=n)
        for stream in streams:
            stream.until(lambda event: event.state["n"] == 4)
        assert len(begun) == 2
        gate.set()
        assert [each.result().body for each in answers] == [b"slow"] * 6
    with asgi.serving(app) as server:
        server.config = config
        server.end()


#: Makes an application without pages, and then includes what packages are missing for.
PLAIN = """
import sys
from tests.webapp import get, make_app, make_config

assert get(make_app(make_config(sys.argv[1])), "/job_state").status_code == 200
assert not {*sys.modules} & {"a2wsgi", "babel", "jinja2", "markupsafe"}
for name, module in ("babel", "pages"), ("pyramid_jinja2", "pages"), ("a2wsgi", "asgi"):
    sys.modules[name] = None
    try:
        make_config(None).include(f"pyramid_jobstate.{module}")
    except Exception as e:
        print(type(e).__name__, e)
"""


@pytest.mark.system
def test_nothing_of_an_extra_is_loaded_without_need(redis_url):
    """Without need, none is imported. An error names the extra that is missing."""
    command = [sys.executable, "-c", PLAIN, redis_url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        f"{error} pyramid_jobstate.{module} needs the package {name}. Install "
        f"pyramid_jobstate[{module}]."
        for error, module, name in (
            ("ConfigurationError", "pages", "babel"),
            ("ConfigurationError", "pages", "pyramid_jinja2"),
            ("ImportError", "asgi", "a2wsgi"),
        )
    ], done.stderr


def test_path_that_is_no_utf8():
    """Bytes that servers cannot decode come from the raw path, if it is the same."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode("latin-1")]

    for raw_path, info in (
        (b"/api/%E9", b"/\xe9"),
        (b"/api/%EF%BF%BD", "/\ufffd".encode()),
        # Another application has changed the path.
        (b"/other/%E9", "/\ufffd".encode()),
        (None, "/\ufffd".encode()),
    ):
        scope = {"root_path": "/api", "path": "/api/\ufffd", "raw_path": raw_path}
        assert body_of(call(app, **scope)) == info, raw_path


def test_response_may_be_replaced_until_its_first_byte():
    """An application may replace a response of which nothing has been sent yet."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield first
        try:
            raise ValueError("meant")
        except ValueError:
            start_response("500 Oh", [("X-B", "2")], sys.exc_info())
        yield b"page"

    first = b""
    start, *rest = call(app)
    assert (start["status"], start["headers"]) == (500, [(b"x-b", b"2")])
    assert body_of(rest) == b"page"
    first = b"one"
    with pytest.raises(ValueError, match="meant"):
        call(app)
    with pytest.raises(AssertionError, match="did not call start_response"):
        call(lambda environ, start_response: [b"one"])


def test_import_without_a2wsgi(monkeypatch):
    """Without a2wsgi, the import says what to install."""
    monkeypatch.setitem(sys.modules, "a2wsgi", None)
    monkeypatch.delitem(sys.modules, "pyramid_jobstate.asgi")
    with pytest.raises(ImportError, match=r"Install pyramid_jobstate\[asgi\]"):
        importlib.import_module("pyramid_jobstate.asgi")
