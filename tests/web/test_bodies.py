"""Requests with a body that nobody asked for, or that cannot be read."""

from __future__ import annotations

import io
import itertools
import logging
import re
from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.i18n import TranslationStringFactory
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.web.operating import KEEPER, OPERATOR, csrf_app
from tests.web.paging import CHROMIUM
from tests.webapp import PLACES, ask, get, make_app, make_config

_ = TranslationStringFactory("slalom")

FORM = "application/x-www-form-urlencoded"

#: Types of a body at which WebOb raises an exception when it looks for fields.
TYPES = [
    f"{FORM}; charset=latin-1",
    f"{FORM}; charset=",
    "; charset=x",
    "multipart/form-data",
    "multipart/form-data; boundary=\xff",
    "multipart/form-data; boundary=x; charset=utf-7",
]

HEAD = b"--x\r\nContent-Disposition: form-data; name=a\r\n"

#: Forms with the boundary x that cannot be read.
MALFORMED = {
    "no boundary": ("multipart/form-data", b"--x--"),
    "charset of the form": (f"{FORM}; charset=latin-1", b"a=1"),
    "charset of no type": ("; charset=latin-1", b"a=1"),
    **{
        name: ("multipart/form-data; boundary=x", HEAD + text + b"\r\n--x--\r\n")
        for name, text in {
            "charset of a field": b"Content-Type: text/plain; charset=x\r\n\r\n1",
            "bytes of a field": b"Content-Type: a/b; charset=utf-16\r\n\r\nabc",
            "base64 of a form": b"Content-Transfer-Encoding: base64\r\n"
            b"Content-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n1\r\n--y--",
            "base64": b"Content-Transfer-Encoding: base64\r\n\r\na",
            "a form in it": b"Content-Type: multipart/mixed; boundary=\r\n\r\n1",
        }.items()
    },
}


class Slalom(JobState):
    """A kind whose title and errors depend on the language of the request."""

    error_text: Any = _("It fell.")

    @property
    def title(self) -> Any:
        return _("Slalom")

    def public_error(self, exception_type: str, message: str) -> Any:
        if isinstance(self.error_text, Exception):
            raise self.error_text
        return self.error_text

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        rights = ("delete_job", "view_job", "cancel_job", "rerun_job")
        return [(Allow, KEEPER, rights), *super().__acl__()]


class Untouched(io.RawIOBase):
    """A body that must not be read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise AssertionError("The body was read.")


class Endless(io.RawIOBase):
    """A body without an end.

    Attributes:
      size: How much of it was read.
    """

    size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.size += len(buffer)
        assert self.size < 100_000
        buffer[:] = b"a" * len(buffer)
        return len(buffer)


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


def cancelled(store: JobStore, kind: Any = Slalom, owner: str = "alice") -> str:
    """Put a job whose end has a text in the language of the request."""
    error = JobError("dramatiq.middleware.middleware.SkipMessage", "x")
    return put_job(store, kind, "cancelled", owner=owner, error=error).uuid


# Where no body is wanted


def test_type_of_no_body_changes_nothing(paged: TestApp, store: JobStore) -> None:
    """A GET is answered whatever type it says that a body has, as JSON or as a page."""
    job = cancelled(store)
    for end in f"/{job}", f"?uuid={job}", "?all=1", "", "/counts", f"/{job}/inspect":
        path = f"/job_state{end}"
        for accept in "application/json", CHROMIUM:
            plain = get(paged, path, OPERATOR, Accept=accept)
            for content_type in TYPES:
                for more in {}, {"Content_Length": "5"}:
                    sent = {"Accept": accept, "Content_Type": content_type, **more}
                    response = get(paged, path, OPERATOR, **sent)
                    assert response.status_code == plain.status_code in (200, 302), end
                    assert response.content_type == plain.content_type
                    if plain.content_type == "application/json":
                        assert response.body == plain.body


def test_body_of_an_act_on_one_job_is_not_read(
    operated: TestApp, store: JobStore
) -> None:
    """A job is cancelled or deleted, and the answer says so, whatever the body is."""
    for method, end, status, answer in (
        ("POST", "/cancel", "queued", 202),
        ("POST", "/rerun", "success", 409),
        ("DELETE", "", "success", 204),
    ):
        for content_type in [*TYPES, FORM, "text/plain", ""]:
            job = put_job(store, Slalom, status).uuid
            response = send(
                operated,
                f"/job_state/{job}{end}",
                Untouched(),
                content_type,
                length="1000000",
                user=KEEPER,
                method=method,
            )
            assert response.status_code == answer, (method, content_type)


def test_what_a_request_says_of_its_body_spends_no_log_line(
    operated: TestApp,
    store: JobStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a client sends does not count as trouble with a kind of job, so that a later
    error in its class is logged.
    """
    for place in PLACES:

        class Slalom2(Slalom):
            kind = f"Slalom at {place}"

        job = cancelled(store, Slalom2)
        path = f"{place}?uuid={job}"
        caplog.clear()
        for header in (
            *({"Content_Type": each} for each in TYPES),
            {"Cookie": '_LOCALE_="\\377"'},
            {"Cookie": "_LOCALE_=\xff"},
            {"Accept_Language": "\xff"},
        ):
            get(operated, path, "alice", **header)
            get(operated, f"{path}&_LOCALE_=%00", "alice", **header)
        assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []

        monkeypatch.setattr(Slalom2, "error_text", ValueError("a bug"))
        get(operated, path, "alice")

        (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert "a bug" in str(record.exc_info)


def test_cookie_that_is_no_utf8(paged: TestApp, store: JobStore) -> None:
    """A cookie that cannot be decoded is a 400, as such a query is."""
    job = cancelled(store)
    for end in "", f"/{job}", f"?uuid={job}":
        for accept in "application/json", CHROMIUM:
            sent = {"Cookie": 'a="\\377"', "Accept": accept}
            response = get(paged, f"/job_state{end}", "alice", **sent)
            assert response.status_code == 400
            if accept == CHROMIUM:
                assert response.text == "This page's address is invalid."
            else:
                assert response.json == {"error": "A cookie is not UTF-8."}


# Bulk requests


def test_refused_request_is_not_read(operated: TestApp) -> None:
    """A request without the header or the right to act is answered before its body has
    come.
    """
    for user, query, header, status in (
        (OPERATOR, "all=1&everything=1", "", 400),
        (OPERATOR, "all=1", "x", 400),
        (OPERATOR, "everything=1&x=1", "x", 400),
        ("bob", "all=1&everything=1", "x", 403),
        ("bob", "owner=alice", "x", 403),
        (None, "owner=alice", "x", 403),
        (None, "everything=1", "x", 200),
    ):
        for content_type in FORM, "multipart/form-data; boundary=x", "":
            for length in "100", "1000000", "":
                for name in "clear", "cancel", "rerun":
                    response = send(
                        operated,
                        f"/job_state/{name}?{query}",
                        Untouched(),
                        content_type,
                        length=length,
                        user=user,
                        X_Requested_With=header,
                    )
                    assert response.status_code == status, (user, query, name)
                    if not header:
                        assert "X-Requested-With" in response.json["error"]


def test_body_is_refused_unread(operated: TestApp) -> None:
    """The length and the type of a body are enough to refuse it."""
    too_long = "The form in the body has more than 8,192 bytes."
    for content_type, length, error in (
        (FORM, "8193", too_long),
        ("multipart/form-data", "1000000", too_long),
        ("application/json", "1", "The body must be empty."),
        ("", "1", "The body must be empty."),
    ):
        for name in "clear", "cancel", "rerun":
            path = f"/job_state/{name}?all=1&everything=1"
            response = send(operated, path, Untouched(), content_type, length=length)
            assert response.status_code == 400, (content_type, name)
            assert response.json["error"].startswith(error)


def test_body_of_unknown_length_is_not_read_to_its_end(
    operated: TestApp, redis_url: str
) -> None:
    """A form in chunks may not be longer than any other."""
    for app in operated, csrf_app(redis_url):
        for content_type in FORM, "multipart/form-data; boundary=x":
            path = "/job_state/clear?all=1&everything=1"
            response = send(app, path, Endless(), content_type)
            assert response.status_code == 400
            error = response.json["error"]
            assert error.startswith("The form in the body has more than")


def test_form_without_parameters_is_accepted(
    operated: TestApp, store: JobStore
) -> None:
    """A form may have fields of the application's own, in chunks too."""
    for length in "12", "":
        job = cancelled(store)
        body = io.BytesIO(b"csrf_token=x")

        response = send(
            operated, "/job_state/clear?all=1&everything=1", body, length=length
        )

        assert response.json["done"] == 1
        assert store.load(job) is None


# Under the application's CSRF check

ACTS = [
    ("POST", "/{job}/cancel"),
    ("POST", "/{job}/rerun"),
    ("DELETE", "/{job}"),
    ("POST", "/clear?everything=1"),
    ("POST", "/cancel?everything=1"),
    ("POST", "/rerun?everything=1"),
]


def test_malformed_form_is_a_400(redis_url: str, store: JobStore) -> None:
    """A form that the application's CSRF check cannot read is a bad request."""
    app = csrf_app(redis_url)
    job = put_job(store, RunMarathon, "queued", owner=OPERATOR).uuid
    for name, (content_type, body) in MALFORMED.items():
        for place, (method, end) in itertools.product(PLACES, ACTS):
            path = f"{place}{end.format(job=job)}"
            response = send(app, path, io.BytesIO(body), content_type, method=method)
            assert response.status_code == 400, (name, path)
            assert response.content_type == "application/json"
            assert response.headers["Cache-Control"] == "private, no-cache"
            if (method, content_type[:1]) != ("DELETE", ";"):
                # Where WebOb does not look for fields.
                assert re.search("valid form|in UTF-8", response.json["error"]), name


def test_static_files_take_no_body(redis_url: str, app: TestApp) -> None:
    """Whatever it is: they answer GET and HEAD alone."""
    for each in app, csrf_app(redis_url):
        response = each.post(
            "/job_state/static/job-state.js",
            b"a=1",
            {"Content-Type": f"{FORM}; charset=latin-1"},
            expect_errors=True,
        )
        found = response.status_code, response.content_type
        assert found == (404, "application/json")
        assert each.head("/job_state/static/job-state.js").status_code == 200


def test_csrf_check_reads_no_long_form(redis_url: str, store: JobStore) -> None:
    """What is longer than a form with a token is refused before the check reads it."""
    app = csrf_app(redis_url)
    job = put_job(store, RunMarathon, "queued", owner=OPERATOR).uuid

    for method, end in ACTS:
        path = f"/job_state{end.format(job=job)}"
        response = send(app, path, Untouched(), length="8193", method=method)

        assert response.status_code == 400
        assert response.json["error"].startswith("The form in the body has more than")


def test_csrf_check_reads_nothing_but_forms(redis_url: str, store: JobStore) -> None:
    """With a token in a header, the body of an act may be anything, however long."""
    app = csrf_app(redis_url)
    token = app.get("/token").text
    job = put_job(store, RunMarathon, "queued", owner=OPERATOR).uuid

    response = send(
        app,
        f"/job_state/{job}/cancel",
        Untouched(),
        "application/json",
        length="1000000",
        Cookie=f"csrf_token={token}",
        X_CSRF_Token=token,
    )

    assert response.status_code == 202


def test_token_in_a_form(redis_url: str, store: JobStore) -> None:
    """A token in a form passes the check, in chunks or not, and also if the application
    has read it before.
    """
    app = csrf_app(redis_url)
    token = app.get("/token").text
    body = f"csrf_token={token}".encode()

    def reading(environ: dict[str, Any], start_response: Any) -> Any:
        assert Request(environ).POST["csrf_token"] == token
        return app.app(environ, start_response)

    for each, length in itertools.product((app, TestApp(reading)), (len(body), "")):
        job = put_job(store, RunMarathon, "queued", owner=OPERATOR).uuid
        for method, end in ACTS:
            response = send(
                each,
                f"/job_state{end.format(job=job)}",
                io.BytesIO(body),
                length=str(length),
                method=method,
                Cookie=f"csrf_token={token}",
            )
            # The job cannot run again: this process has no broker.
            assert response.status_code in (200, 202, 204, 409, 410)


def test_other_views_keep_their_errors(redis_url: str) -> None:
    """A form that a view of the application's cannot read stays its own affair."""
    config = make_config(redis_url)
    config.add_view(lambda c, r: Response(str(len(r.POST))), name="post")
    app = make_app(config)

    with pytest.raises(ValueError, match="boundary"):
        send(app, "/post", io.BytesIO(b"--x--"), "multipart/form-data")


def test_error_of_a_class_is_no_bad_request(
    redis_url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError of the application's own code is not taken for a malformed form."""
    app = csrf_app(redis_url)
    token = app.get("/token").text
    monkeypatch.setattr(Slalom, "error_text", ValueError("a bug"))
    job = cancelled(store)

    with pytest.raises(ValueError, match="a bug"):
        ask(app, "GET", f"/job_state/{job}", OPERATOR, X_CSRF_Token=token)
