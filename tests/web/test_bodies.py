"""Requests with a body that nobody asked for, or that cannot be read."""

from __future__ import annotations

import io
import re
from typing import Any

from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.web.operating import OPERATOR, Marathons, csrf_app, put, statuses
from tests.web.paging import CHROMIUM

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"

#: Types of a body at which WebOb raises an exception when it looks for fields.
TYPES = [f"{FORM}; charset=latin-1", "; charset=x", "multipart/form-data"]

FIELD = b"--x\r\nContent-Disposition: form-data; name=a\r\n%s\r\n--x--\r\n"

#: Requests that act on a job in a status.
ACTS = [
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
    """Return the response to a request whose body is a file.

    Parameters:
      length: What the request says of its length.
    """
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


def test_body_that_nobody_wants_is_not_read(paged: TestApp, store: JobStore) -> None:
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


def test_refused_request_is_not_read(operated: TestApp) -> None:
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


def test_body_is_refused_unread(operated: TestApp, store: JobStore) -> None:
    """A body's length and type suffice to refuse it; it is not read to its end. One
    that has parameters is refused lest more jobs are acted on than were meant.
    """
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


def test_malformed_form_is_a_400(redis_url: str, store: JobStore) -> None:
    """A form that no CSRF check can read is a 400, and too long a form is not read."""
    app = csrf_app(redis_url)
    (job,) = put(store, "alice", status="queued")
    malformed: list[tuple[str, bytes]] = [
        ("multipart/form-data", b"--x--"),
        (f"{FORM}; charset=latin-1", b"a=1"),
        (MULTIPART, FIELD % b"Content-Type: text/plain; charset=x\r\n\r\n1"),
        (MULTIPART, FIELD % b"Content-Transfer-Encoding: base64\r\n\r\na"),
    ]
    for method, end, _ in ACTS:
        path = f"/job_state{end.format(job=job)}"
        for content_type, body in malformed:
            response = send(app, path, io.BytesIO(body), content_type, method=method)
            assert response.status_code == 400, (content_type, path)
            assert response.headers["Cache-Control"] == "private, no-cache"
            assert re.search("valid form|in UTF-8", response.json["error"]), body
        response = send(app, path, Untouched(), length="8193", method=method)
        assert response.status_code == 400
        assert response.json["error"].startswith(TOO_LONG)


def test_token_in_a_form(redis_url: str, store: JobStore, marathons: Marathons) -> None:
    """Acts need a token. It passes in a form, in chunks or not, even if read before."""
    app = csrf_app(redis_url)
    token = app.get("/token").text
    body = f"csrf_token={token}".encode()

    def reading(environ: dict[str, Any], start_response: Any) -> Any:
        assert Request(environ).POST["csrf_token"] == token
        return app.app(environ, start_response)

    for each, length in (app, str(len(body))), (app, ""), (TestApp(reading), ""):
        for method, end, status in ACTS:
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
