"""POST …/clear, …/cancel and …/rerun for many jobs: who may, and which jobs."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import dramatiq.broker
import pytest
from dramatiq import Message
from pyramid.authorization import Allow
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.scripts import read_scripts
from pyramid_jobstate.testing import put_job
from tests.batched import put_batch
from tests.faulty import faulty
from tests.jobs import RunMarathon
from tests.support import UUID, load_job
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    Marathons,
    OperatedRoot,
    Refusing,
    act,
    at_once,
    csrf_app,
    operated_root,
)
from tests.webapp import ADMIN, PLACES, Policy, ask, make_app, make_config

FORBIDDEN = {"error": "You may not do this with the job."}
ALL: dict[str, Any] = {"all": 1, "everything": 1}

#: The requests that act on many jobs, and a status of the jobs on which each acts.
REQUESTS = [("clear", "success"), ("cancel", "queued"), ("rerun", "error")]


class Own(JobState):
    """A kind whose owner may do everything with a job."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        acts = ("delete_job", "cancel_job", "rerun_job")
        return [*super().__acl__(), (Allow, self.owner, acts)]


def statuses(store: JobStore, *uuids: str) -> list[str | None]:
    """Return the statuses of jobs, with None for each that is unknown."""
    jobs = store.load_many(uuids)
    return [None if job is None else job.status for job in jobs]


def put(store: JobStore, *owners: Any, kind: Any = Own, status: str) -> list[str]:
    """Store a job of each owner and return their uuids."""
    return [put_job(store, kind, status, owner=owner).uuid for owner in owners]


# What each does.


@pytest.mark.parametrize("place", PLACES)
def test_clear_deletes_ended_jobs(
    operated: TestApp, store: JobStore, place: str
) -> None:
    """Who may list all jobs deletes the ended ones of all owners, and no others."""
    ended = [
        *put(store, "alice", None, status="success"),
        *put(store, "bob", status="error"),
        *put(store, 7, status="cancelled"),
    ]
    other = put(store, "alice", status="working")

    response = act(operated, f"{place}/clear", **ALL)

    assert response.status_code == 200
    assert response.json == {"done": 4, "refused": 0, "cursor": None}
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert statuses(store, *ended, *other) == [None] * 4 + ["working"]


@pytest.mark.parametrize("place", PLACES)
def test_cancel_ends_waiting_jobs_and_asks_running_ones(
    operated: TestApp, store: JobStore, place: str
) -> None:
    """Every unfinished job of a kind is cancelled, or about to be."""
    jobs = [
        *put(store, "alice", kind=RunMarathon, status="queued"),
        *put(store, "bob", kind=RunMarathon, status="working"),
        *put(store, "bob", status="working"),
        *put(store, "bob", kind=RunMarathon, status="success"),
    ]

    response = act(operated, f"{place}/cancel", kind="RunMarathon", all=1)

    assert response.json == {"done": 2, "refused": 0, "cursor": None}
    assert statuses(store, *jobs) == ["cancelled", "cancelling", "working", "success"]


@pytest.mark.parametrize("place", PLACES)
def test_rerun_runs_failed_jobs_again(
    operated: TestApp, store: JobStore, marathons: Marathons, place: str
) -> None:
    """The failed jobs run again. Those whose message is not kept are counted."""
    jobs = marathons.fail("alice", "bob")
    lost = put(store, "alice", kind=RunMarathon, status="error")

    response = act(operated, f"{place}/rerun", kind="RunMarathon", all=1)

    assert response.json == {"done": 2, "refused": 1, "cursor": None}
    assert statuses(store, *jobs, *lost) == ["queued", "queued", "error"]
    marathons.is_mended = True
    for job in jobs:
        marathons.wait_for(job, "success")
    assert sorted(marathons.ran) == sorted(jobs * 2)


@pytest.mark.parametrize(
    ("query", "gone"),
    [
        ({"kind": "Own"}, [True, True, False, False]),
        ({"status": "error"}, [True, False, True, False]),
        ({"kind": "Own", "status": "error"}, [True, False, False, False]),
        ({"owner": "bob"}, [False, True, False, True]),
        ({"owner": "bob", "kind": "RunMarathon"}, [False, False, False, True]),
        ({"older_than": "1h"}, [False] * 4),
        ({"older_than": "1s", "status": "success"}, [False, True, False, True]),
        ({"kind": ""}, [False] * 4),
        ({"kind": "Own\r\n*"}, [False] * 4),
        ({"owner": ""}, [False] * 4),
        ({"owner": "bob", "everything": 1}, [False, True, False, True]),
    ],
)
def test_filters(
    operated: TestApp, store: JobStore, query: Mapping[str, Any], gone: list[bool]
) -> None:
    """Jobs that a filter does not match stay."""
    jobs = [
        *put(store, "alice", status="error"),
        *put(store, "bob", status="success"),
        *put(store, "alice", kind=RunMarathon, status="error"),
        *put(store, "bob", kind=RunMarathon, status="success"),
    ]
    for job in jobs:
        finished = load_job(store, job).finished_at
        assert finished is not None
        earlier = int(finished.timestamp() * 1000) - 60_000
        store.client.hset(f"jobstate:{job}", "finished", earlier)
    if "owner" not in query:
        query = {**query, "all": 1}

    response = act(operated, "/job_state/clear", **query)

    assert response.json == {"done": sum(gone), "refused": 0, "cursor": None}
    assert [status is None for status in statuses(store, *jobs)] == gone


@pytest.mark.parametrize("act_name", ["clear", "cancel", "rerun"])
def test_number_is_an_owner_of_its_own_type(
    redis_url: str, store: JobStore, marathons: Marathons, act_name: str
) -> None:
    """A user whose owner is a number acts on the jobs of that number only."""
    settings = {"jobstate.owner": lambda request: 7}
    app = make_app(make_config(redis_url, settings=settings))
    status = dict(REQUESTS)[act_name]
    jobs = put(store, 7, 7.5, "7", None, status=status)

    response = act(app, f"/job_state/{act_name}", "alice", owner="7")

    assert response.status_code == 200
    for owner in "7.0", "7.5", "True", "null", "":
        response = act(app, f"/job_state/{act_name}", "alice", owner=owner)
        assert (response.status_code, response.json) == (403, FORBIDDEN)
    assert statuses(store, *jobs[1:]) == [status] * 3


def test_pages_of_a_bulk_request(operated: TestApp, store: JobStore) -> None:
    """The cursor leads to the other jobs, but not to those that were sent later."""
    jobs = put(store, *"abcde", status="queued")
    first = act(operated, "/job_state/cancel", kind="Own", all=1, limit=2).json
    late = put(store, "f", status="queued")
    done = [first["done"]]

    cursor = first["cursor"]
    while cursor:
        answer = act(
            operated, "/job_state/cancel", kind="Own", all=1, limit=2, cursor=cursor
        ).json
        done.append(answer["done"])
        cursor = answer["cursor"]

    assert sum(done) == 5 and max(done) == 2
    assert statuses(store, *jobs, *late) == ["cancelled"] * 5 + ["queued"]


@pytest.mark.parametrize(("name", "status"), REQUESTS)
def test_two_operators_share_the_work(
    operated: TestApp, store: JobStore, marathons: Marathons, name: str, status: str
) -> None:
    """Two operators who act on the same jobs at once act on each job once."""
    if name == "rerun":
        jobs = marathons.fail(*"abcdefgh")
    else:
        jobs = put(store, *"abcdefgh", status=status)
    ask_for_all = functools.partial(act, operated, f"/job_state/{name}", **ALL)

    answers = at_once(ask_for_all, ask_for_all)

    assert [answer.status_code for answer in answers] == [200, 200]
    done = sum(answer.json["done"] for answer in answers)
    assert done == len(jobs)
    assert status not in statuses(store, *jobs)
    if name == "rerun":
        marathons.is_mended = True
        for job in jobs:
            marathons.wait_for(job, "success")
        assert sorted(marathons.ran) == sorted(jobs * 2)


# Whose jobs.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "status"), REQUESTS)
@pytest.mark.parametrize("user", ["alice", KEEPER, "bob", None])
@pytest.mark.parametrize("whose", [{"owner": "carol"}, {"all": 1}, {"owner": ""}])
def test_jobs_of_others_need_list_jobs(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    place: str,
    name: str,
    status: str,
    user: str | None,
    whose: Mapping[str, Any],
) -> None:
    """Who may not list the jobs of others may not name another owner, or all, even if
    every single job would let them.
    """
    job = put(store, "carol", status=status)

    response = act(operated, f"{place}/{name}", user, everything=1, **whose)

    assert (response.status_code, response.json) == (403, FORBIDDEN)
    assert statuses(store, *job) == [status]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "status"), REQUESTS[:2])
@pytest.mark.parametrize("whose", [{}, {"owner": "alice"}])
@pytest.mark.parametrize("more", [{"kind": "Own"}, {"everything": 1}])
def test_other_users_act_on_their_own_jobs(
    operated: TestApp,
    store: JobStore,
    place: str,
    name: str,
    status: str,
    whose: Mapping[str, Any],
    more: Mapping[str, Any],
) -> None:
    """Without list_jobs, a user acts on their own jobs, named or not, and reads nothing
    of how many were refused.
    """
    jobs = put(store, "alice", "bob", None, "Alice", status=status)
    put_job(store, Closed, status, owner="alice")

    response = act(operated, f"{place}/{name}", "alice", **whose, **more)

    assert response.json == {"done": 1, "cursor": None}
    assert statuses(store, *jobs[1:]) == [status] * 3
    assert statuses(store, jobs[0]) != [status]


class Closed(JobState):
    """A kind whose owner may do nothing with a job."""

    kind = "Own closed"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


def test_users_run_their_own_jobs_again(
    redis_url: str, store: JobStore, marathons: Marathons
) -> None:
    """A user whom a kind lets run jobs again does so with their own jobs alone."""

    class Generous(OperatedRoot):
        __acl__ = ((Allow, "alice", "rerun_job"),)

    jobs = marathons.fail("alice", "bob")
    app = make_app(make_config(redis_url, root_factory=Generous))

    response = act(app, "/job_state/rerun", "alice", everything=1)

    assert response.json == {"done": 1, "cursor": None}
    assert statuses(store, *jobs) == ["queued", "error"]


@pytest.mark.parametrize(("name", "status"), REQUESTS)
@pytest.mark.parametrize("own", [{}, {"owner": OPERATOR}])
def test_operators_own_jobs_are_the_default(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    name: str,
    status: str,
    own: Mapping[str, Any],
) -> None:
    """Even who may list all jobs acts on their own, unless the query says otherwise."""
    jobs = put(store, "alice", status=status)

    response = act(operated, f"/job_state/{name}", everything=1, **own)

    assert response.json == {"done": 0, "refused": 0, "cursor": None}
    assert statuses(store, *jobs) == [status]


@pytest.mark.parametrize(("name", "status"), REQUESTS)
@pytest.mark.parametrize("own", [None, True, math.nan, ["alice"]])
@pytest.mark.parametrize("user", [None, "alice"])
def test_request_without_an_owner_has_no_jobs(
    redis_url: str,
    store: JobStore,
    marathons: Marathons,
    name: str,
    status: str,
    user: str | None,
    own: Any,
) -> None:
    """A visitor whom the application knows no owner for acts on nothing, and not on the
    jobs without an owner. Invalid parameters are a 400, as for everybody else.
    """
    settings = {"jobstate.owner": lambda request: own}
    app = make_app(
        make_config(redis_url, root_factory=operated_root, settings=settings)
    )
    jobs = put(store, None, "None", "alice", 1, status=status)

    response = act(app, f"/job_state/{name}", user, everything=1)

    assert (response.status_code, response.json) == (200, {"done": 0, "cursor": None})
    assert act(app, f"/job_state/{name}", user).status_code == 400
    other = make_app(make_config(redis_url, root_factory=operated_root))
    for wrong in (
        {"limit": "x"},
        {"limit": 1001},
        {"cursor": ""},
        {"cursor": f"00000000.1.a1.{jobs[0]}"},
    ):
        answer = act(app, f"/job_state/{name}", user, kind="a", **wrong)
        expected = act(other, f"/job_state/{name}", kind="a", **wrong)
        assert (answer.status_code, answer.json) == (400, expected.json)
    for owner in "alice", "1", "True":
        assert act(app, f"/job_state/{name}", user, owner=owner).status_code == 403
    assert statuses(store, *jobs) == [status] * 4


def test_operator_without_an_owner_reads_what_was_refused(
    redis_url: str, store: JobStore
) -> None:
    """The shape of the answer depends on the permission alone."""
    settings = {"jobstate.owner": lambda request: None}
    app = make_app(
        make_config(redis_url, root_factory=operated_root, settings=settings)
    )

    response = act(app, "/job_state/clear", everything=1)

    assert response.json == {"done": 0, "refused": 0, "cursor": None}


@pytest.mark.parametrize(("name", "status"), REQUESTS)
def test_each_job_decides(
    operated: TestApp, store: JobStore, marathons: Marathons, name: str, status: str
) -> None:
    """Who may list all jobs acts on those that let them, and reads how many do not."""
    jobs = put(store, ADMIN, "bob", "carol", kind=RunMarathon, status=status)

    response = act(operated, f"/job_state/{name}", ADMIN, **ALL)

    if name == "cancel":
        # The root lets ADMIN cancel every job.
        assert response.json == {"done": 3, "refused": 0, "cursor": None}
    else:
        assert response.json == {"done": 0, "refused": 3, "cursor": None}
        assert statuses(store, *jobs) == [status] * 3


def test_policy_that_raises_for_one_job_refuses_that_one(
    redis_url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """If the application's code fails for a job, the others are deleted all the same,
    and the log has the failure.
    """

    class Moody(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if getattr(context, "owner", None) == "bob":
                raise LookupError("no such team")
            return super().permits(request, context, permission)

    options = {"root_factory": operated_root, "security_policy": Moody()}
    app = make_app(make_config(redis_url, **options))
    jobs = put(store, "alice", "bob", "carol", kind=Troubled, status="success")

    response = act(app, "/job_state/clear", **ALL)

    assert response.json == {"done": 2, "refused": 1, "cursor": None}
    assert statuses(store, *jobs) == [None, "success", None]
    (record,) = (r for r in caplog.records if r.exc_info)
    assert jobs[1] in record.getMessage()


class Troubled(JobState):
    """A kind of which a failure was not logged before."""


@pytest.mark.parametrize("root", [None, operated_root])
@pytest.mark.parametrize(("name", "status"), REQUESTS)
def test_application_without_a_policy_opens_nothing(
    redis_url: str, store: JobStore, name: str, status: str, root: Any
) -> None:
    """Without a security policy, nobody acts on the jobs of others."""
    app = make_app(make_config(redis_url, root_factory=root, security_policy=None))
    jobs = put(store, "alice", None, status=status)

    for user in "alice", OPERATOR, None:
        assert act(app, f"/job_state/{name}", user, **ALL).status_code == 403
        response = act(app, f"/job_state/{name}", user, everything=1)
        assert response.json == {"done": 0, "cursor": None}
    assert statuses(store, *jobs) == [status] * 2


# What is refused.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "status"), REQUESTS)
@pytest.mark.parametrize("user", [OPERATOR, "alice", None])
@pytest.mark.parametrize("query", ["", "?limit=5", "?owner=", "?_LOCALE_=de"])
def test_request_without_a_filter_needs_everything(
    operated: TestApp,
    store: JobStore,
    place: str,
    name: str,
    status: str,
    user: str | None,
    query: str,
) -> None:
    """Whoever asks, a request that names no filter is a 400 that says what to pass."""
    jobs = put(store, "alice", OPERATOR, status=status)
    if query == "?owner=":
        query = "?all=1" if user == OPERATOR else ""

    response = act(operated, f"{place}/{name}{query}", user)

    assert response.status_code == 400
    assert "everything=1" in response.json["error"]
    assert statuses(store, *jobs) == [status] * 2


@pytest.mark.parametrize(("name", "status"), REQUESTS)
@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("everything=true", "everything can only be 1"),
        ("everything=", "everything can only be 1"),
        ("everything=1&all=0", "all can only be 1"),
        ("everything=1&all=", "all can only be 1"),
        ("owner=alice&all=1", "all and owner"),
        ("everything=1&limit=1001", "limit must be from 0 to 1000"),
        ("everything=1&limit=-1", "limit must be a number"),
        ("everything=1&limit=%D9%A3", "limit must be a number"),
        ("everything=1&limit=1e3", "limit must be a number"),
        ("everything=1&limit=9999999999", "limit must be a number"),
        ("everything=1&cursor=", "cursor"),
        ("everything=1&cursor=%00", "cursor"),
        ("everything=1&cursor=a9.1", "cursor"),
        ("everything=1&kinds=a", "'kinds'"),
        ("everything=1&Kind=a", "'Kind'"),
        ("everything=1&params=a", "'params'"),
        ("everything=1&uuid=a", "'uuid'"),
        ("everything=1&permits=a", "'permits'"),
        ("everything=1&store=a", "'store'"),
        ("kind=a&kind=b", "kind is given more than once"),
        ("all=1&all=1&kind=a", "all is given more than once"),
        ("owner=a&owner=a", "owner is given more than once"),
        ("kind=a;everything=1&", "''"),
        ("everything=1&kind=%ff", "not UTF-8"),
    ],
)
def test_bad_parameter_is_a_400_that_names_it(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    name: str,
    status: str,
    query: str,
    named: str,
) -> None:
    """Nothing is done if a parameter is unknown, repeated or invalid."""
    if query.endswith("&"):
        query += "=x"
    jobs = put(store, OPERATOR, status=status)

    response = act(operated, f"/job_state/{name}?{query}")

    assert response.status_code == 400
    assert named in response.json["error"]
    assert statuses(store, *jobs) == [status]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("clear?status=working", "status must be one of success, error, cancelled"),
        ("clear?status=", "status must be one of"),
        ("cancel?status=success", "status must be one of queued, working"),
        ("cancel?older_than=1h", "'older_than'"),
        ("rerun?status=error", "'status'"),
        ("rerun?older_than=1h", "'older_than'"),
        *(
            (f"clear?older_than={value}", "older_than =")
            for value in (
                "",
                "0",
                "-1s",
                "1w",
                "1e3",
                "nan",
                "9" * 400,
                "1h1m",
                "%D9%A3s",
                "3%C2%A0s",
            )
        ),
    ],
)
def test_bad_filter_of_one_request(operated: TestApp, path: str, named: str) -> None:
    """A filter that this request does not know, or not so, is a 400 that names it."""
    response = act(operated, f"/job_state/{path}")

    assert response.status_code == 400
    assert named in response.json["error"]


@pytest.mark.parametrize(("name", "status"), REQUESTS)
def test_cursor_of_another_call_is_a_400(
    operated: TestApp, store: JobStore, marathons: Marathons, name: str, status: str
) -> None:
    """A cursor leads on only in the request that returned it, and by the same user's
    jobs.
    """
    put(store, *["alice"] * 3, *["bob"] * 3, kind=RunMarathon, status="queued")
    cursor = act(operated, "/job_state/cancel", "alice", everything=1, limit=1).json[
        "cursor"
    ]
    assert cursor
    jobs = put(store, "alice", "bob", OPERATOR, status=status)

    for user, query in (
        ("bob", {"everything": 1}),
        (OPERATOR, {"everything": 1}),
        (OPERATOR, ALL),
        ("alice", {"kind": "Own"}),
    ):
        response = act(operated, f"/job_state/{name}", user, **query, cursor=cursor)
        assert response.status_code == 400
        assert "cursor" in response.json["error"]
    assert statuses(store, *jobs) == [status] * 3


@pytest.mark.parametrize(("name", "status"), REQUESTS)
@pytest.mark.parametrize(
    ("content_type", "body", "named"),
    [
        ("application/x-www-form-urlencoded", b"kind=Own", "kind"),
        ("application/x-www-form-urlencoded", b"token=a&owner=x", "owner"),
        ("application/x-www-form-urlencoded", b"\xff=%ff&cursor=%ff", "cursor"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; "
            b'name="limit"\r\n\r\n1\r\n--x--\r\n',
            "limit",
        ),
        ("multipart/form-data", b"--x--", "The body is not a valid form."),
        *(
            (f"{form}; charset=latin1; boundary=x", b"a=1", "must be in UTF-8")
            for form in ("application/x-www-form-urlencoded", "multipart/form-data")
        ),
        ("application/json", b'{"kind": "Own"}', "body"),
        ("application/json", b"{}", "body"),
        ("", b"kind=Own", "body"),
        ("text/plain", b"\xff" * 100_000, "body"),
    ],
)
def test_parameters_in_the_body_are_refused(
    operated: TestApp,
    store: JobStore,
    name: str,
    status: str,
    content_type: str,
    body: bytes,
    named: str,
) -> None:
    """Parameters that would be ignored are a 400, so that a request never acts on more
    jobs than were meant.
    """
    jobs = put(store, "alice", status=status)
    headers = {"X-User": OPERATOR, "X-Requested-With": "x"}

    response = operated.request(
        f"/job_state/{name}?all=1&everything=1",
        method="POST",
        headers={**headers, "Content-Type": content_type},
        body=body,
        expect_errors=True,
    )

    assert response.status_code == 400
    assert named in response.json["error"]
    assert statuses(store, *jobs) == [status]


def test_rerun_tells_nothing_of_a_foreign_batch(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch that the request may not see looks like an unknown one, however many of
    its jobs have failed.
    """
    monkeypatch.setattr("pyramid_jobstate.store.bulk.MAX_EXAMINED", 3)
    batch = put_batch(store, *["error"] * 5, owner="alice")
    for uuid in batch.uuid, UUID, batch.members[0]:
        answer = act(operated, "/job_state/rerun", "bob", batch=uuid)
        assert answer.json == {"done": 0, "cursor": None}
        answer = act(operated, "/job_state/rerun", "bob", batch=uuid, cursor="x")
        assert answer.status_code == 400
    answer = act(operated, "/job_state/rerun", "alice", batch=batch.uuid)
    assert answer.json["cursor"] is not None
    answer = act(operated, "/job_state/rerun", "bob", batch="x")
    assert answer.json["error"] == "batch must be a uuid, not 'x'."


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize(
    "content_type", ["application/json", "application/x-www-form-urlencoded", "text/x"]
)
def test_empty_body_is_accepted(
    operated: TestApp, content_type: str, is_sized: bool
) -> None:
    """A client may name a type, or send an empty body in chunks."""
    environ = {} if is_sized else {"wsgi.input_terminated": True}

    response = operated.request(
        "/job_state/clear?everything=1",
        method="POST",
        headers={
            "X-User": OPERATOR,
            "X-Requested-With": "x",
            "Content-Type": content_type,
        },
        environ={**environ, "CONTENT_LENGTH": "0" if is_sized else ""},
    )

    assert response.status_code == 200


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["clear", "cancel", "rerun"])
def test_bulk_request_needs_the_header(
    operated: TestApp, store: JobStore, place: str, name: str
) -> None:
    """Nobody acts on jobs without a header that forms cannot send."""
    path = f"{place}/{name}?all=1&everything=1"

    response = ask(operated, "POST", path, OPERATOR)

    assert response.status_code == 400
    assert response.json == {"error": "The header X-Requested-With is missing."}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["clear", "cancel", "rerun"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_bulk_request_is_only_posted(
    operated: TestApp, place: str, name: str, method: str
) -> None:
    """Only a POST acts on jobs, and method overrides are ignored."""
    headers = {"X_Requested_With": "x", "X_HTTP_Method_Override": "POST"}
    path = f"{place}/{name}?all=1&everything=1"

    response = ask(operated, method, path, OPERATOR, **headers)

    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", ["/x", "//x", "/x/y"])
def test_nothing_is_below_a_bulk_request(
    operated: TestApp, place: str, end: str
) -> None:
    """A path below one of these is a 404."""
    for name in "clear", "cancel", "rerun":
        response = act(operated, f"{place}/{name}{end}", **ALL)

        assert response.status_code == 404


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_form", [True, False])
def test_csrf_options_of_the_application_apply(
    redis_url: str, store: JobStore, place: str, is_form: bool
) -> None:
    """If the application requires CSRF tokens, a bulk request needs one, in a header or
    in a form.
    """
    app = csrf_app(redis_url)
    jobs = put(store, "alice", status="success")
    token = app.get("/token").text
    path = f"{place}/clear?all=1&everything=1"
    headers = {"X-User": OPERATOR, "X-Requested-With": "x"}

    for wrong in {}, {"csrf_token": "x"}:
        response = app.post(path, wrong, headers=headers, status=400)
        assert response.json["error"].startswith("The CSRF check refused the request.")
        assert statuses(store, *jobs) == ["success"]

    if is_form:
        response = app.post(path, {"csrf_token": token}, headers=headers)
    else:
        response = app.post(path, headers={**headers, "X-CSRF-Token": token})
    assert response.json["done"] == 1


# Troubles, and the log.


def test_broker_that_refuses_is_a_503(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    said: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the broker refuses a message, its job has failed as before, and the log says
    why, and how many were sent before.
    """
    jobs = marathons.fail("alice", "bob")
    marathons.broker.add_middleware(Refusing())
    said()

    response = act(operated, "/job_state/rerun", **ALL)

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json["error"].startswith("The broker did not accept the message")
    assert statuses(store, *jobs) == ["error"] * 2
    assert "The queue is full." in caplog.text
    assert said() == [
        "'operator' requeued 0 of all jobs until that failed.",
        "A job could not be sent to run again.",
    ]


def test_broker_that_is_away_is_a_503(
    operated: TestApp,
    store: JobStore,
    server: EmbeddedServer,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the broker is away, the jobs have failed as before, and run again later."""
    jobs = marathons.fail("alice", "bob")
    elsewhere = Marathons(server.url, store)
    monkeypatch.setattr(dramatiq.broker, "global_broker", elsewhere.broker)
    server.stop()

    response = act(operated, "/job_state/rerun", **ALL)

    assert response.status_code == 503
    assert response.json == {"error": "The broker does not answer."}
    assert response.headers["Retry-After"] == "5"
    assert statuses(store, *jobs) == ["error"] * 2
    server.start()
    assert act(operated, "/job_state/rerun", **ALL).json["done"] == 2


def test_broker_that_raises_a_value_error_is_a_503(
    operated: TestApp, marathons: Marathons
) -> None:
    """What a broker raises is never taken for a fault of the query."""

    class Odd(dramatiq.Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            raise OddError("odd")

    class OddError(dramatiq.middleware.MiddlewareError, ValueError):
        pass

    marathons.fail("alice")
    marathons.broker.add_middleware(Odd())

    assert act(operated, "/job_state/rerun", **ALL).status_code == 503


def test_rerun_in_a_process_without_a_broker_is_a_410(
    operated: TestApp, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no broker is set, none is made."""
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)

    response = act(operated, "/job_state/rerun", **ALL)

    assert response.status_code == 410
    assert response.json == {"error": "This process has no Dramatiq broker."}
    assert dramatiq.broker.global_broker is None


class Interrupting(Policy):
    """Calls something when a request asks about the third job of Carol's."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._left = 3
        self._call = call

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        if getattr(context, "owner", None) == "carol":
            self._left -= 1
            if not self._left:
                self._call()
        return super().permits(request, context, permission)


def interrupted(url: str, call: Callable[[], object]) -> TestApp:
    """Return an application whose bulk requests are interrupted after two jobs."""
    options = {"root_factory": operated_root, "security_policy": Interrupting(call)}
    return make_app(make_config(url, **options))


@pytest.fixture
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk requests act on two jobs at a time."""
    monkeypatch.setattr("pyramid_jobstate.store.bulk.MAX_READ", 2)


def test_store_that_goes_away_meanwhile_is_a_503(
    server: EmbeddedServer, batches_of_two: None, said: Callable[[], list[str]]
) -> None:
    """If the store goes away while jobs are deleted, the log has those that were."""
    app = interrupted(server.url, server.stop)
    jobs = put(JobStore(server.url), *["carol"] * 4, status="success")
    said()

    response = act(app, "/job_state/clear", **ALL)

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    lines = said()
    assert lines[:2] == [f"'operator' deleted the job {job}." for job in jobs[:1:-1]]
    assert lines[-1] == "'operator' deleted 2 of all jobs until that failed."


@pytest.mark.parametrize(
    ("name", "status", "done"),
    [("clear", "success", "deleted"), ("cancel", "queued", "cancelled")],
)
def test_crash_loses_no_line_of_what_was_done(
    redis_url: str,
    store: JobStore,
    batches_of_two: None,
    said: Callable[[], list[str]],
    name: str,
    status: str,
    done: str,
) -> None:
    """If the process ends while it acts on jobs, the log has those that it has acted
    on.
    """
    app = interrupted(redis_url, sys.exit)
    jobs = put(store, *["carol"] * 4, status=status)
    said()

    with pytest.raises(SystemExit):
        act(app, f"/job_state/{name}", **ALL)

    assert said() == [f"'operator' {done} the job {job}." for job in jobs[:1:-1]]


def test_crash_loses_no_line_of_what_ran_again(
    operated: TestApp,
    marathons: Marathons,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs that were sent before the process ended are in the log."""
    jobs = marathons.fail("alice", "bob", "carol")
    enqueue = marathons.broker.enqueue
    sent: list[str] = []

    def enqueue_one(message: Message[Any]) -> Any:
        if sent:
            sys.exit()
        sent.append(message.message_id)
        return enqueue(message)

    monkeypatch.setattr(marathons.broker, "enqueue", enqueue_one)
    said()

    with pytest.raises(SystemExit):
        act(operated, "/job_state/rerun", **ALL)

    assert sent[0] in jobs
    assert said() == [f"'operator' ran the job {sent[0]} again."]


@pytest.mark.parametrize(
    ("name", "script", "status", "done"),
    [
        ("clear", "delete", "success", "deleted"),
        ("cancel", "cancel", "queued", "cancelled"),
    ],
)
def test_jobs_that_may_have_changed_are_logged(
    redis_url: str,
    store: JobStore,
    said: Callable[[], list[str]],
    name: str,
    script: str,
    status: str,
    done: str,
) -> None:
    """If the store acts on jobs but its reply is lost, the log names them, and says
    that this is not certain.
    """
    with faulty(redis_url) as proxy:
        app = make_app(make_config(proxy.url, root_factory=operated_root))
        # Let the server know the script.
        put(store, "alice", status=status)
        act(app, f"/job_state/{name}", **ALL)
        jobs = put(store, "alice", "bob", kind=RunMarathon, status=status)
        said()
        proxy.lose_replies(read_scripts()[script].sha)

        response = act(app, f"/job_state/{name}", kind="RunMarathon", all=1)

    assert response.status_code == 503
    assert status not in statuses(store, *jobs)
    doubt = "the store did not answer."
    assert said()[:2] == [
        f"'operator' may have {done} the job {job}: {doubt}" for job in jobs[::-1]
    ]


def test_policy_that_asks_a_store_that_is_away_is_a_503(
    redis_url: str, store: JobStore
) -> None:
    """A policy that cannot read another job refuses nothing for good."""

    class Asking(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if permission == "delete_job":
                raise StoreUnavailable(context)
            return super().permits(request, context, permission)

    options = {"root_factory": operated_root, "security_policy": Asking()}
    app = make_app(make_config(redis_url, **options))
    jobs = put(store, "alice", status="success")

    assert act(app, "/job_state/clear", **ALL).status_code == 503
    assert statuses(store, *jobs) == ["success"]


def test_bulk_requests_are_logged(
    operated: TestApp, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """What was done is logged: a line for each job with the user, and one with the
    filter and the numbers; line breaks in a filter stay on their line.
    """
    of_alice, of_bob = put(store, "alice", "bob", status="success")
    (marathon,) = put(store, "alice", kind=RunMarathon, status="success")
    (odd,) = put(store, "al\nice", status="queued")
    first, second = put(store, "alice", "alice", status="queued")
    said()

    act(operated, "/job_state/clear", "bob", everything=1)
    act(operated, "/job_state/cancel", owner="al\nice")
    act(operated, "/job_state/cancel", "alice", kind="Own")
    act(operated, "/job_state/clear", all=1, kind="Own", status="success")
    act(operated, "/job_state/clear", all=1, kind="None\n")
    act(operated, "/job_state/clear", **ALL)

    assert said() == [
        f"'bob' deleted the job {of_bob}.",
        "'bob' deleted 1 of their own jobs; 0 were refused.",
        f"'operator' cancelled the job {odd}.",
        "'operator' cancelled 1 of the jobs of 'al\\nice'; 0 were refused.",
        f"'alice' cancelled the job {second}.",
        f"'alice' cancelled the job {first}.",
        "'alice' cancelled 2 of their own jobs with kind 'Own'; 0 were refused.",
        f"'operator' deleted the job {of_alice}.",
        "'operator' deleted 1 of all jobs with kind 'Own', status 'success'; 0 were "
        "refused.",
        *(f"'operator' deleted the job {job}." for job in (first, second, odd)),
        f"'operator' deleted the job {marathon}.",
        "'operator' deleted 4 of all jobs; 0 were refused.",
    ]


def test_owner_of_a_visitor_is_not_logged(
    redis_url: str, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """Without a login, the log does not name the owner, which may be a secret."""
    settings = {"jobstate.owner": lambda request: "visitor 7"}
    app = make_app(make_config(redis_url, settings=settings))
    (job,) = put(store, "visitor 7", status="queued")

    act(app, "/job_state/cancel", None, owner="visitor 7")

    assert said()[-2:] == [
        f"A visitor without a login cancelled the job {job}.",
        "A visitor without a login cancelled 1 of their own jobs; 0 were refused.",
    ]
