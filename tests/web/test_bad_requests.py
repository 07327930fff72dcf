"""Requests that are wrong: the table of bad URLs, methods and parameters."""

from __future__ import annotations

import pytest
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.jobs import RunMarathon
from tests.support import UUID, key_of
from tests.web.operating import OPERATOR, Marathons, put
from tests.webapp import NOWHERE, PLACES, ask, make_app, make_config, mounted_root

#: The requests that act on all jobs that match.
MANY = ["clear", "cancel", "rerun"]

#: Durations that are none.
DURATIONS = [
    *("", "0", "-1s", "1w", "1e3", "nan", "9" * 400, "1h1m"),
    *("%D9%A3s", "3%C2%A0s"),
]

#: Queries of GET, and what the error says.
LIST_QUERIES = [
    *((f"limit={value}", r"limit") for value in ("", "0", "201", "-1", "+5", "5.0")),
    *((f"limit={value}", r"limit") for value in ("x", "1_0", "%D9%A5", "9" * 5000)),
    *((f"status={value}", r"status") for value in ("", "done", "sending")),
    *((f"cursor={value}", r"cursor") for value in ("", "x", f"a{'9' * 30}.{UUID}")),
    *((f"all={value}", r"all") for value in ("", "0", "true")),
    *((f"{query}=%FF", "parameter") for query in ("kind", "uuid", "%FF")),
    ("owner=%C3", "parameter"),
    ("batch=x&kind=x", "'kind'"),
    (f"batch={UUID}&all=1", "'all'"),
]

#: Queries of each request that acts on many jobs.
BULK_QUERIES = [
    ("", "everything=1"),
    ("limit=5", "everything=1"),
    ("all=1", "everything=1"),
    ("_LOCALE_=de", "everything=1"),
    ("everything=true", "everything can only be 1"),
    ("everything=", "everything can only be 1"),
    ("everything=1&all=0", "all can only be 1"),
    ("everything=1&all=", "all can only be 1"),
    ("owner=alice&all=1", "all and owner"),
    ("everything=1&limit=1001", "limit must be from 0 to 1000"),
    *(
        (f"everything=1&limit={value}", "limit must be a number")
        for value in ("-1", "%D9%A3", "1e3", "9999999999")
    ),
    *((f"everything=1&cursor={value}", "cursor") for value in ("", "%00", "a9.1")),
    *(
        (f"everything=1&{name}=a", f"'{name}'")
        for name in ("kinds", "Kind", "params", "uuid", "permits", "store")
    ),
    ("kind=a&kind=b", "kind is given more than once"),
    ("all=1&all=1&kind=a", "all is given more than once"),
    ("owner=a&owner=a", "owner is given more than once"),
    ("kind=a;everything=1&=x", "''"),
    ("everything=1&kind=%ff", "not UTF-8"),
]

#: Queries of one of them.
FILTERS = [
    ("clear?status=working", "status must be one of success, error, cancelled"),
    ("clear?status=", "status must be one of"),
    ("cancel?status=success", "status must be one of queued, working"),
    ("cancel?older_than=1h", "'older_than'"),
    ("rerun?status=error", "'status'"),
    ("rerun?older_than=1h", "'older_than'"),
    *((f"clear?older_than={value}", "older_than =") for value in DURATIONS),
]

#: Queries of requests that take none.
NO_QUERIES = [
    ("limit=1", "'limit' is not a parameter of this request. It has none."),
    ("=", "''"),
    ("_method=DELETE", "'_method'"),
    ("a%00%22b=1", "'a\\x00\"b'"),
    ("uuid=x&uuid=y", "'uuid'"),
    ("%ff=1", "not UTF-8"),
]

COUNTS_QUERIES = [
    ("status=error", "'status'"),
    ("kind=a&kind=b", "kind is given more than once"),
    ("Kind=a", "'Kind'"),
    ("kind=%ff", "not UTF-8"),
]

#: Bad requests below a place, each with what its error says. {job} has failed, and
#: {run} is running.
BAD = [
    *(("GET", f"?{query}", named) for query, named in LIST_QUERIES),
    *(("GET", f"/counts?{query}", named) for query, named in COUNTS_QUERIES),
    *(("GET", f"/{{job}}/inspect?{query}", named) for query, named in NO_QUERIES),
    *(("DELETE", f"/{{job}}?{query}", named) for query, named in NO_QUERIES),
    *(("POST", f"/{{job}}/rerun?{query}", named) for query, named in NO_QUERIES),
    *(
        ("POST", f"/{name}?{query}", says)
        for name in MANY
        for query, says in BULK_QUERIES
    ),
    *(("POST", f"/{path}", named) for path, named in FILTERS),
]

#: What acts, and so needs the header X-Requested-With. Nothing else replaces it.
ACTS = [
    ("POST", "/{run}/cancel"),
    ("DELETE", "/{job}"),
    ("POST", "/{job}/rerun"),
    *(("POST", f"/{name}?all=1&everything=1") for name in MANY),
]

#: Names that no job has, for {no}.
NO_JOBS = [UUID, UUID.upper(), "x", f"{UUID}/x", "%00", "%F0%9F%8F%83"]

UNKNOWN = [
    *(("GET", "/{no}"), ("GET", "/{no}/inspect"), ("POST", "/{no}/cancel")),
    *(("POST", "/{no}/rerun"), ("DELETE", "/{no}")),
]

#: Paths below what is there.
BELOW = [
    *(("POST", f"/{{run}}/cancel{end}") for end in ("/x", "/x/y", "//x")),
    *(("POST", f"/{{job}}/rerun{end}") for end in ("/x", "//x")),
    *(("GET", f"/{{job}}/inspect{end}") for end in ("/x", "//x")),
    *(("GET", f"/counts{end}") for end in ("/x", "//x")),
    *(("POST", f"/{name}{end}") for name in MANY for end in ("/x", "//x", "/x/y")),
]

#: The methods that each path has.
METHODS = {
    "": ["GET", "HEAD"],
    "/{job}": ["GET", "DELETE", "HEAD"],
    "/counts": ["GET", "HEAD"],
    "/{job}/inspect": ["GET", "HEAD"],
    "/{run}/cancel": ["POST"],
    "/{job}/rerun": ["POST"],
    **{f"/{name}": ["POST"] for name in MANY},
}


class Wrong:
    """Sends bad requests to an application with a failed and a running job.

    Attributes:
      app: The application.
      jobs: The jobs, by their names in paths.
    """

    def __init__(self, app: TestApp, store: JobStore) -> None:
        (job,) = put(store, OPERATOR, cls=RunMarathon, status="error")
        (run,) = put(store, OPERATOR, cls=RunMarathon)
        self.jobs = {"job": job, "run": run}
        self.app = app
        self._store = store
        self._before = self._records()

    def _records(self) -> list[object]:
        client = self._store.client
        return [client.hgetall(key_of(self._store, j)) for j in self.jobs.values()]

    def refused(
        self, method: str, path: str, code: int, says: str = "", **headers: str
    ) -> None:
        """Assert that a request is refused with a code, and changes nothing."""
        for name, job in self.jobs.items():
            path = path.replace(f"{{{name}}}", job)
        response = ask(self.app, method, path, OPERATOR, **headers)
        case = method, path[:200]
        assert response.status_code == code, case
        if method != "HEAD":
            assert response.headers["Content-Type"] == "application/json", case
            assert says in response.json["error"], (case, response.json)
        assert response.headers["Cache-Control"] == "private, no-cache", case
        assert response.headers["X-Content-Type-Options"] == "nosniff", case

    def assert_unchanged(self) -> None:
        assert self._records() == self._before


@pytest.fixture
def wrong(operated: TestApp, store: JobStore, marathons: Marathons) -> Wrong:
    return Wrong(operated, store)


def test_bad_parameter_is_a_400_that_names_it(wrong: Wrong) -> None:
    """Nothing is done if a parameter is unknown, repeated or invalid."""
    for method, end, named in BAD:
        wrong.refused(method, f"/job_state{end}", 400, named, X_Requested_With="x")
    wrong.assert_unchanged()


def test_act_needs_the_header(wrong: Wrong) -> None:
    """Nobody acts on a job without a header that forms cannot send. Fields of a form
    or a query do not replace it.
    """
    missing = "The header X-Requested-With is missing."
    for method, end in ACTS:
        sign = "&" if "?" in end else "?"
        for path in end, f"{end}{sign}X-Requested-With=x":
            wrong.refused(method, f"/job_state{path}", 400, missing)
    response = wrong.app.post(
        f"/job_state/{wrong.jobs['run']}/cancel",
        {"X-Requested-With": "x", "_method": "POST"},
        headers={"X-User": OPERATOR},
        status=400,
    )
    assert response.json == {"error": missing}
    wrong.assert_unchanged()


def test_unknown_paths_are_a_404(wrong: Wrong) -> None:
    """There is nothing for a job that does not exist, and below what is there."""
    says = "The job does not exist."
    for method, end in UNKNOWN:
        for name in NO_JOBS:
            path = end.replace("{no}", name)
            wrong.refused(method, f"/job_state{path}", 404, says, X_Requested_With="x")
    for method, end in BELOW:
        wrong.refused(method, f"/job_state{end}", 404, says, X_Requested_With="x")
    wrong.assert_unchanged()


def test_other_methods_are_a_405(wrong: Wrong) -> None:
    """Each path refuses the methods that it does not have, and names those that it has.
    Method overrides are ignored.
    """
    headers = {"X_Requested_With": "x", "X_HTTP_Method_Override": "POST"}
    for end, methods in METHODS.items():
        allow = ", ".join(methods)
        for method in "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH":
            if method not in methods:
                response = ask(
                    wrong.app,
                    method,
                    f"/job_state{end.format(**wrong.jobs)}?_method=POST",
                    OPERATOR,
                    **headers,
                )
                assert response.status_code == 405, (method, end)
                assert response.headers["Allow"] == allow, (method, end)
                if method != "HEAD":
                    error = f"The method {method} is not allowed here."
                    assert response.json == {"error": error}
    wrong.assert_unchanged()


def test_outage_is_a_503() -> None:
    """While the store is away, each request is a 503 that says when to come back."""
    app = make_app(make_config(NOWHERE, root_factory=mounted_root))
    for place in PLACES:
        for method, end in (
            ("GET", f"/{UUID}"),
            ("GET", ""),
            ("GET", "?limit=5"),
            ("GET", f"?uuid={UUID}"),
            ("GET", "?kind=RunMarathon"),
            ("GET", "?owner=x"),
            ("GET", "?all=1"),
            ("GET", "/counts"),
            ("GET", f"/{UUID}/inspect"),
            ("POST", f"/{UUID}/cancel"),
            ("POST", f"/{UUID}/rerun"),
            ("DELETE", f"/{UUID}"),
            ("POST", "/clear?everything=1"),
            ("POST", "/cancel?all=1&everything=1"),
        ):
            response = ask(app, method, place + end, "admin", X_Requested_With="x")

            assert response.status_code == 503, (method, place, end)
            assert response.headers["Retry-After"] == "5"
            assert response.json == {"error": "The job state store does not answer."}
