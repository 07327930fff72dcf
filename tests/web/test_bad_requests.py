"""Requests that are wrong: the table of bad URLs, methods and parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.jobs import RunMarathon
from tests.support import UUID, key_of
from tests.web.operating import OPERATOR, Marathons, put
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
    """Asserts that an application with a failed and a running job refuses a request
    with a code, which changes nothing.
    """
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
        assert response.headers["Cache-Control"] == "private, no-cache", case
        assert response.headers["X-Content-Type-Options"] == "nosniff", case
        assert records() == before, case

    return refuse


@pytest.mark.promise("bad-request-names-the-culprit")
def test_bad_parameter_is_a_400_that_names_it(refused: Refused) -> None:
    """A bad parameter, or a cookie that is not UTF-8, is a 400 and does nothing."""
    for method, end, named in BAD:
        refused(method, f"/job_state{end}", 400, named, X_Requested_With="x")
    sent = {"says": "A cookie is not UTF-8.", "Cookie": 'name="\\377"'}
    refused("GET", "/job_state/{job}", 400, **sent)


def test_act_needs_the_header(refused: Refused) -> None:
    """Acts need a header that forms cannot send, and no parameter replaces it."""
    missing = "The header X-Requested-With is missing."
    for method, end in ACTS:
        sign = "&" if "?" in end else "?"
        for path in end, f"{end}{sign}X-Requested-With=x":
            refused(method, f"/job_state{path}", 400, missing)
