"""Requests that are wrong: bad URLs, methods, parameters and bodies."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.jobs import RunMarathon
from tests.support import UUID, key_of
from tests.web.operating import OPERATOR, Marathons, csrf_app, put, statuses
from tests.web.paging import CHROMIUM
from tests.webapp import ask

#: The requests that act on all jobs that match.
MANY = ["clear", "cancel", "rerun"]


def each(names: str, values: str, says: str = "{name}") -> list[tuple[str, str]]:
    """Return queries of parameters with each of some values, and what is said."""
    return [
        (f"{name}={value.strip(chr(39))}", says.format(name=name))
        for name in names.split()
        for value in values.split()
    ]


#: Queries of GET, and what the error says.
LIST_QUERIES = [
    *each("limit", f"'' 0 201 -1 x %D9%A5 {'9' * 5000}"),
    *each("status", "'' done"),
    *each("cursor", f"x a{'9' * 30}.{UUID}"),
    *each("all", "'' 0"),
    *each("kind uuid %FF owner", "%FF", "parameter"),
    *each("status=error&group", "'' kind", "group must be error"),
    *each("group=error&status", "'' success", "group=error needs status=error"),
    ("group=error", "group=error needs status=error"),
    *each("status=error&group=error&limit", "5", "'limit' is not a parameter"),
    (f"status=error&group=error&batch={UUID}", "'batch'"),
    (f"batch={UUID}&kind=x", "'kind'"),
    (f"batch={UUID}&all=1", "'all'"),
    (f"batch={UUID}&batch={UUID}", "batch is given more than once"),
]

#: Queries of each request that acts on many jobs.
BULK_QUERIES = [
    *((query, "everything=1") for query in ("", "limit=5", "all=1", "_LOCALE_=de")),
    *each("everything", "true ''", "everything can only be 1"),
    *each("everything=1&all", "0 ''", "all can only be 1"),
    ("owner=alice&all=1", "all and owner"),
    *each("everything=1&limit", "1001", "limit must be from 0 to 1000"),
    *each("everything=1&limit", "-1 1e3 9999999999", "limit must be a number"),
    *each("everything=1&cursor", "'' %00 a9.1", "cursor"),
    *((f"everything=1&{name}=a", f"'{name}'") for name in ["Kind", "params", "store"]),
    ("kind=a&kind=b", "kind is given more than once"),
    ("everything=1&kind=%ff", "not UTF-8"),
]

#: Queries of one of them.
FILTERS = [
    ("clear?status=working", "status must be one of success, error, cancelled"),
    ("clear?status=", "status must be one of"),
    ("clear?status=Failed", "not 'Failed'. Did you mean 'error'?"),
    ("cancel?status=success", "status must be one of queued, working"),
    *each("cancel?older_than rerun?older_than", "1h", "'older_than'"),
    ("rerun?status=error", "'status'"),
    *each(
        "clear?older_than",
        f"'' 0 -1s 1w 1e3 nan {'9' * 400} 1h1m %D9%A3s 3%C2%A0s",
        "older_than =",
    ),
]

#: Queries of requests that take none.
NO_QUERIES = [
    ("limit=1", "'limit' is not a parameter of this request. It has none."),
    ("a%00%22b=1", "'a\\x00\"b'"),
    ("%ff=1", "not UTF-8"),
]

#: Bad requests, each with what its error says. {job} has failed, and {run} is running.
BAD = [
    *(("GET", f"?{query}", says) for query, says in LIST_QUERIES),
    ("GET", "/counts?status=error", "'status'"),
    ("GET", "/counts?kind=a&kind=b", "kind is given more than once"),
    ("GET", "/counts?kind=%ff", "not UTF-8"),
    *(
        (method, f"/{{job}}{end}?{query}", says)
        for method, end in (
            *(("GET", "/inspect"), ("DELETE", "")),
            *(("POST", "/rerun"), ("POST", "/stack")),
        )
        for query, says in NO_QUERIES
    ),
    *(("POST", f"/{name}?{q}", says) for name in MANY for q, says in BULK_QUERIES),
    *(("POST", f"/{path}", says) for path, says in FILTERS),
]

#: What acts, and so needs the header X-Requested-With. Nothing else replaces it.
ACTS = [
    *(("POST", "/{run}/cancel"), ("DELETE", "/{job}"), ("POST", "/{job}/rerun")),
    ("POST", "/{run}/stack"),
    *(("POST", f"/{name}?all=1&everything=1") for name in MANY),
]

Refused = Callable[..., None]


@pytest.fixture
def refused(operated: TestApp, store: JobStore, marathons: Marathons) -> Refused:
    """Asserts that a request is refused with a code, and changes no job."""
    (job,) = put(store, OPERATOR, cls=RunMarathon, status="error")
    (run,) = put(store, OPERATOR, cls=RunMarathon)

    def records() -> list[object]:
        return [store.client.hgetall(key_of(store, each)) for each in (job, run)]

    before = records()

    def refuse(method: str, path: str, code: int, says: str, **headers: str) -> None:
        path = path.replace("{job}", job).replace("{run}", run)
        response = ask(operated, method, path, OPERATOR, **headers)
        case = method, path[:200]
        assert response.status_code == code, case
        assert response.headers["Content-Type"] == "application/json", case
        assert says in response.json["error"], (case, response.json)
        assert response.headers["Cache-Control"] == "private, no-store", case
        assert response.headers["X-Content-Type-Options"] == "nosniff", case
        assert records() == before, case

    return refuse


@pytest.mark.promise("bad-request-names-the-culprit")
def test_bad_parameter_is_a_400_that_names_it(refused):
    """A bad parameter, or a cookie that is not UTF-8, is a 400 and does nothing."""
    for method, end, named in BAD:
        refused(method, f"/job_state{end}", 400, named, X_Requested_With="x")
    sent = {"says": "A cookie is not UTF-8.", "Cookie": 'name="\\377"'}
    refused("GET", "/job_state/{job}", 400, **sent)


def test_act_needs_the_header(refused):
    """Acts need a header that forms cannot send, and no parameter replaces it."""
    missing = "The header X-Requested-With is missing."
    for method, end in ACTS:
        sign = "&" if "?" in end else "?"
        for path in end, f"{end}{sign}X-Requested-With=x":
            refused(method, f"/job_state{path}", 400, missing)


# With a body that nobody asked for, or that cannot be read.


FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"

#: Types of a body at which WebOb raises an exception when it looks for fields.
TYPES = [f"{FORM}; charset=latin-1", "; charset=x", "multipart/form-data"]

FIELD = b"--x\r\nContent-Disposition: form-data; name=a\r\n%s\r\n--x--\r\n"

#: Requests that act on a job in a status.
UNSAFE = [
    ("POST", "/{job}/cancel", "working"),
    ("POST", "/{job}/rerun", "error"),
    ("DELETE", "/{job}", "success"),
    ("POST", "/clear?everything=1&owner=alice", "success"),
]

TOO_LONG = "The form in the body has more than 8,192 bytes."


class Untouched(io.RawIOBase):
    """A body that must not be read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise AssertionError("The body was read.")


def send(
    app: TestApp,
    path: str,
    body: Any,
    content_type: str = FORM,
    *,
    length: str = "",
    user: str | None = OPERATOR,
    method: str = "POST",
    **headers: str,
) -> Any:
    """Return the response to a request whose body is a file of a length."""
    request = Request.blank(path, method=method)
    sent = {"X-Requested-With": "x", "X-User": user}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    request.headers.update({name: value for name, value in sent.items() if value})
    environ = request.environ
    environ.update(CONTENT_TYPE=content_type, CONTENT_LENGTH=length)
    # As under gunicorn and our ASGI bridge, for a body in chunks.
    environ.update({"wsgi.input": body, "wsgi.input_terminated": True})
    environ.pop("webob.is_body_seekable", None)
    return request.get_response(app.app)


def test_body_that_nobody_wants_is_not_read(paged, store):
    """A GET and an act on one job are answered whatever their body is."""
    job, *others = put(store, *["alice"] * 7, status="queued")
    for content_type in [*TYPES, FORM, "text/plain", ""]:
        sent: Any = {"content_type": content_type, "length": "1000000"}
        for path in f"/job_state/{job}", f"/job_state/{job}/inspect":
            for accept in "application/json", CHROMIUM:
                get = {"method": "GET", "Accept": accept}
                response = send(paged, path, Untouched(), **sent, **get)
                assert response.status_code == 200, (content_type, path)
        path = f"/job_state/{others.pop()}/cancel"
        response = send(paged, path, Untouched(), **sent)
        assert response.status_code == 202, content_type


def test_refused_request_is_not_read(operated):
    """A request without the header or the right to act is answered before its body."""
    for user, query, header, status in (
        (OPERATOR, "all=1&everything=1", "", 400),
        (OPERATOR, "all=1", "x", 400),
        ("bob", "all=1&everything=1", "x", 403),
        (None, "owner=alice", "x", 403),
        (None, "everything=1", "x", 200),
    ):
        for length in "100", "":
            sent: Any = {"length": length, "user": user, "X_Requested_With": header}
            for name in "clear", "cancel", "rerun":
                path = f"/job_state/{name}?{query}"
                response = send(operated, path, Untouched(), **sent)
                assert response.status_code == status, (user, query, name)
                if not header:
                    assert "X-Requested-With" in response.json["error"]


def test_body_is_refused_unread(operated, store):
    """Length and type suffice to refuse a body. Parameters belong in the query."""
    path = "/job_state/clear?all=1&everything=1"
    long = io.BytesIO(b"a" * 1_000_000)
    (job,) = put(store, "alice", status="success")
    for content_type, length, body, error in (
        (FORM, "8193", Untouched(), TOO_LONG),
        ("multipart/form-data", "1000000", Untouched(), TOO_LONG),
        ("application/json", "1", Untouched(), "The body must be empty."),
        (FORM, "", long, TOO_LONG),
        ("", "", io.BytesIO(b"kind=Letter"), "The body must be empty."),
        (FORM, "", io.BytesIO(b"kind=Letter"), "kind belongs in the query"),
        (FORM, "", io.BytesIO(b"\xff=%ff&cursor=%ff"), "cursor belongs in the query"),
        ("multipart/form-data", "", io.BytesIO(b"--x--"), "The body is not a valid"),
    ):
        response = send(operated, path, body, content_type, length=length)
        assert response.status_code == 400, content_type
        assert response.json["error"].startswith(error)
    assert long.tell() < 100_000
    assert statuses(store, job) == ["success"]
    response = send(operated, path, io.BytesIO(), "application/json")
    assert response.status_code == 200


def test_malformed_form_is_a_400(redis_url, store):
    """A form that no CSRF check can read is a 400, and too long a form is not read."""
    app = csrf_app(redis_url)
    (job,) = put(store, "alice", status="queued")
    malformed: list[tuple[str, bytes]] = [
        ("multipart/form-data", b"--x--"),
        (f"{FORM}; charset=latin-1", b"a=1"),
        (MULTIPART, FIELD % b"Content-Type: text/plain; charset=x\r\n\r\n1"),
        (MULTIPART, FIELD % b"Content-Transfer-Encoding: base64\r\n\r\na"),
    ]
    for method, end, _ in UNSAFE:
        path = f"/job_state{end.format(job=job)}"
        for content_type, body in malformed:
            response = send(app, path, io.BytesIO(body), content_type, method=method)
            assert response.status_code == 400, (content_type, path)
            assert response.headers["Cache-Control"] == "private, no-store"
            assert re.search("valid form|in UTF-8", response.json["error"]), body
        response = send(app, path, Untouched(), length="8193", method=method)
        assert response.status_code == 400
        assert response.json["error"].startswith(TOO_LONG)


def test_token_in_a_form(redis_url, store, marathons):
    """Acts need a token. It passes in a form, in chunks or not, even if read before."""
    app = csrf_app(redis_url)
    token = app.get("/token").text
    body = f"csrf_token={token}".encode()

    def reading(environ: dict[str, Any], start_response: Any) -> Any:
        assert Request(environ).POST["csrf_token"] == token
        return app.app(environ, start_response)

    for each, length in (app, str(len(body))), (app, ""), (TestApp(reading), ""):
        for method, end, status in UNSAFE:
            sent = {"method": method, "Cookie": f"csrf_token={token}"}
            (job,) = put(store, "alice", status=status)
            path = f"/job_state{end.format(job=job)}"
            for wrong in b"", b"csrf_token=wrong":
                response = send(app, path, io.BytesIO(wrong), **sent)
                assert response.status_code == 400, end
                assert statuses(store, job) == [status], end
            response = send(each, path, io.BytesIO(body), length=length, **sent)
            assert response.status_code in (200, 202, 204), end
            assert statuses(store, job) != [status], end
