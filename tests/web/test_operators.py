"""GET …/counts and …/inspect: what only operators read."""

from __future__ import annotations

import datetime
import json
from typing import Any

import dramatiq.broker
import pytest
import redis
from pyramid.authorization import Allow, Everyone
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.job.record import JobError
from pyramid_jobstate.testing import put_job
from tests.asgi import pushing
from tests.jobs import RunMarathon
from tests.support import UUID, key_of
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    Blister,
    Marathons,
    Refusing,
    act,
    operated_root,
)
from tests.webapp import ADMIN, PLACES, get, make_app, make_config

NOTHING = {
    "queued": 0,
    "working": 0,
    "retrying": 0,
    "stalled": 0,
    "cancelling": 0,
    "success": 0,
    "error": 0,
    "cancelled": 0,
}

#: What a viewer must not read. Part of it looks like HTML.
SECRET = "</script><img src=x onerror=alert(1)>hunter2\x00\u2028"


class Sprint(JobState):
    """Another kind of job."""


class Open(JobState):
    """A kind that everybody may view and cancel."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, ("view_job", "cancel_job", "list_jobs"))]


# Counts.


@pytest.mark.parametrize("place", PLACES)
def test_counts_of_all_jobs_and_of_a_kind(
    operated: TestApp, store: JobStore, place: str
) -> None:
    """An operator reads how many jobs have which status, of all kinds or of one, and
    which kinds there are.
    """
    for kind, status in (
        (RunMarathon, "queued"),
        (RunMarathon, "working"),
        (RunMarathon, "error"),
        (Sprint, "error"),
        (Sprint, "success"),
    ):
        put_job(store, kind, status, owner="alice")
    kinds = ["RunMarathon", "Sprint"]

    counts = get(operated, f"{place}/counts", OPERATOR).json
    sprints = get(operated, f"{place}/counts?kind=Sprint", OPERATOR).json

    numbers = {"queued": 1, "working": 1, "error": 2, "success": 1}
    assert counts == {"counts": NOTHING | numbers, "kinds": kinds}
    numbers = {"error": 1, "success": 1}
    assert sprints == {"counts": NOTHING | numbers, "kinds": kinds}
    put_job(store, Sprint, "error")
    path, header = f"{place}/counts?kind=Sprint", {"Cache-Control": "no-cache"}
    assert get(operated, path, OPERATOR).json == sprints
    assert get(operated, path, OPERATOR, **header).json["counts"]["error"] == 2


@pytest.mark.parametrize("kind", ["", "Unknown", "a%00%0d%0a{}", "%F0%9F%8F%83", "*"])
def test_counts_of_a_kind_without_jobs_are_zero(
    operated: TestApp, store: JobStore, kind: str
) -> None:
    """Any other text is a kind without jobs."""
    put_job(store, RunMarathon, "success")

    response = get(operated, f"/job_state/counts?kind={kind}&_LOCALE_=de", OPERATOR)

    assert response.json == {"counts": NOTHING, "kinds": ["RunMarathon"]}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", ["alice", KEEPER, None])
@pytest.mark.parametrize("query", ["", "?kind=RunMarathon", "?x=1"])
def test_counts_need_list_jobs(
    operated: TestApp, store: JobStore, place: str, user: str | None, query: str
) -> None:
    """Who may not list the jobs of others reads nothing of their number."""
    put_job(store, RunMarathon, "success", owner="alice")

    response = get(operated, f"{place}/counts{query}", user)

    assert response.status_code == 403
    assert response.json == {"error": "You may not do this with the job."}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("status=error", "'status'"),
        ("kind=a&kind=b", "kind is given more than once"),
        ("Kind=a", "'Kind'"),
        ("kind=%ff", "not UTF-8"),
    ],
)
def test_counts_refuse_other_parameters(
    operated: TestApp, query: str, named: str
) -> None:
    """A parameter that counts do not know is a 400 that names it."""
    response = get(operated, f"/job_state/counts?{query}", OPERATOR)

    assert response.status_code == 400
    assert named in response.json["error"]


@pytest.mark.parametrize("path", ["/counts", "/{job}/inspect"])
@pytest.mark.parametrize("place", PLACES)
def test_operators_answers_have_the_headers_of_all(
    operated: TestApp, store: JobStore, place: str, path: str
) -> None:
    """The answers are JSON, private and revalidated by their ETag."""
    path = place + path.format(job=put_job(store, RunMarathon, "error").uuid)

    response = get(operated, path, OPERATOR)
    again = get(operated, path, OPERATOR, If_None_Match=response.headers["ETag"])

    assert (response.status_code, again.status_code) == (200, 304)
    for name, value in (
        ("Cache-Control", "private, no-cache"),
        ("Vary", "Accept"),
        ("X-Content-Type-Options", "nosniff"),
    ):
        assert response.headers[name] == value
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("end", ["/counts/x", "/counts//x", "/{job}/inspect/x"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_below_operators_views(
    operated: TestApp, store: JobStore, place: str, end: str
) -> None:
    """A path below one of these views is a 404."""
    path = place + end.format(job=put_job(store).uuid)

    response = get(operated, path, OPERATOR)

    assert response.status_code == 404
    assert response.json == {"error": "The job does not exist."}


@pytest.mark.parametrize("path", ["counts", "{job}/inspect"])
def test_operators_answers_are_never_streams(
    redis_url: str, store: JobStore, path: str
) -> None:
    """A client that asks for a stream gets the answer to a poll."""
    job = put_job(store, RunMarathon, "working").uuid
    with pushing(make_config(redis_url, root_factory=operated_root)) as server:
        answer = server.ask(f"/job_state/{path.format(job=job)}", OPERATOR)

    assert answer.status == 200
    assert dict(answer.header_list)["content-type"] == "application/json"


# Inspecting.


@pytest.mark.parametrize("place", PLACES)
def test_inspect_tells_all_of_a_failure(
    operated: TestApp, marathons: Marathons, place: str
) -> None:
    """An operator reads each parameter, the exception, the traceback and the tries."""
    (job,) = marathons.fail("alice", kwargs={"shoes": SECRET})

    found = get(operated, f"{place}/{job}/inspect", OPERATOR).json

    (tried,) = found.pop("tries")
    trace = found.pop("traceback")
    name = f"{Blister.__module__}.Blister"
    error = {"type": name, "message": f"after 26 miles in {SECRET} shoes"}
    assert found == {
        "uuid": job,
        "params": {"miles": 26, "shoes": SECRET},
        "error": error,
        "repeatable": True,
        "reason": None,
    }
    assert trace.startswith("Traceback (most recent call last):")
    assert "run_marathon" in trace and SECRET in trace
    assert {key: tried.pop(key) for key in error} == error
    times = [datetime.datetime.fromisoformat(tried.pop(k)) for k in [*tried]]
    assert tried == {} and times == sorted(times)
    assert all(time.tzinfo == datetime.UTC for time in times)


def test_inspect_tells_of_each_try(operated: TestApp, marathons: Marathons) -> None:
    """A job that ran twice has two tries, the older first."""
    (job,) = marathons.fail("alice")
    act(operated, f"/job_state/{job}/rerun")
    marathons.wait_for(job, "error")

    first, second = get(operated, f"/job_state/{job}/inspect", OPERATOR).json["tries"]

    assert first["ended_at"] <= second["started_at"] <= second["ended_at"]
    assert first["ended_at"].endswith("Z")


def test_try_whose_start_is_unknown(
    operated: TestApp, client: redis.Redis, store: JobStore
) -> None:
    """A try that began while the store was away has no start."""
    job = put_job(store, RunMarathon, "error").uuid
    tried = '[null, 1764112631000, ["E", "m"]]'
    failure = f"{{{key_of(store, job)}}}:failure"
    client.hset(failure, mapping={"try:1": tried})

    (found,) = get(operated, f"/job_state/{job}/inspect", OPERATOR).json["tries"]

    assert found == {
        "started_at": None,
        "ended_at": "2025-11-25T23:17:11.000Z",
        "type": "E",
        "message": "m",
    }


def test_nothing_of_a_failure_leaves_by_other_ways(
    redis_url: str, marathons: Marathons
) -> None:
    """Neither a state nor a batch, a list or a stream has a parameter that is not
    public, or anything of the exception, whoever asks.
    """
    (job,) = marathons.fail("alice", kwargs={"shoes": [SECRET]})
    with pushing(make_config(redis_url, root_factory=operated_root)) as server:
        known = server.ask(f"/job_state/{job}/inspect", OPERATOR)
        assert b"hunter2" in known.body and b"Blister" in known.body
        for user in "alice", OPERATOR:
            for path in (
                f"/{job}",
                f"?uuid={job}",
                "?owner=alice",
                "?all=1&status=error",
                "/counts",
            ):
                for accept in None, "text/event-stream":
                    answer = server.ask(f"/job_state{path}", user, accept=accept)
                    for word in b"Blister", b"Traceback", b"onerror", b"tries":
                        assert word not in answer.body


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", ["alice", "bob", ADMIN, None])
@pytest.mark.parametrize("query", ["", "?x=1"])
def test_inspect_needs_a_permission_that_nobody_has_by_default(
    operated: TestApp, store: JobStore, place: str, user: str | None, query: str
) -> None:
    """Neither the owner of a job nor who may view all jobs may inspect one."""
    for kind in RunMarathon, Open:
        job = put_job(store, kind, "error", owner="alice").uuid

        response = get(operated, f"{place}/{job}/inspect{query}", user)

        assert response.status_code == 403
        assert response.json == {"error": "You may not do this with the job."}


def test_inspect_without_a_policy_is_a_403(redis_url: str, store: JobStore) -> None:
    """In an application without a security policy, nobody inspects a job."""
    app = make_app(make_config(redis_url, security_policy=None))
    job = put_job(store, Open, "error").uuid

    assert get(app, f"/job_state/{job}", None).status_code == 200
    assert get(app, f"/job_state/{job}/inspect", None).status_code == 403
    assert get(app, "/job_state/counts", None).status_code == 403


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [UUID, "x", UUID.upper()])
def test_inspect_of_no_job_is_a_404(operated: TestApp, place: str, name: str) -> None:
    """An unknown job or an invalid name is a 404."""
    assert get(operated, f"{place}/{name}/inspect", OPERATOR).status_code == 404


def test_inspect_takes_no_parameters(operated: TestApp, store: JobStore) -> None:
    """A parameter is a 400 that names it."""
    job = put_job(store).uuid

    response = get(operated, f"/job_state/{job}/inspect?traceback=1", OPERATOR)

    assert response.status_code == 400
    assert response.json == {
        "error": "'traceback' is not a parameter of this request. It has none."
    }


@pytest.mark.parametrize(
    "status", ["queued", "working", "retrying", "stalled", "success", "cancelled"]
)
def test_inspect_of_a_job_that_has_not_failed(
    operated: TestApp, store: JobStore, marathons: Marathons, status: str
) -> None:
    """A job that has not failed cannot run again, and has no tries."""
    job = put_job(store, Sprint, status, params={"miles": 1}).uuid

    found = get(operated, f"/job_state/{job}/inspect", KEEPER).json

    assert found["params"] == {"miles": 1}
    assert (found["tries"], found["traceback"]) == ([], None)
    assert (found["repeatable"], found["reason"]) == (False, "The job has not failed.")


def test_inspect_says_why_a_job_cannot_run_again(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason is the one that running it again would give."""
    (job,) = marathons.fail("alice")
    failed = put_job(store, RunMarathon, "error", error=JobError("E", "e")).uuid

    def reason(job: str = job) -> Any:
        found = get(operated, f"/job_state/{job}/inspect", OPERATOR).json
        assert found["repeatable"] is (found["reason"] is None)
        return found["reason"]

    assert reason() is None
    assert reason(failed) == "The store does not hold its message."
    del marathons.broker.actors["run_marathon"]
    assert reason() == "The broker does not know the actor 'run_marathon'."
    response = act(operated, f"/job_state/{job}/rerun")
    assert (response.status_code, response.json) == (410, {"error": reason()})
    marathons.broker.middleware.clear()
    assert "has no JobStateMiddleware" in reason()
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    assert reason() == "This process has no Dramatiq broker."


def test_job_that_was_lost_while_it_was_run_again_is_repeatable(
    operated: TestApp, store: JobStore, client: redis.Redis, marathons: Marathons
) -> None:
    """A process that died before it sent the message again leaves a job that says that
    it can run again, and does, alone or with others.
    """
    job, other = marathons.fail("alice", "alice")
    record = store.record(job)
    assert record is not None and store.requeue(record)
    path = f"/job_state/{job}"
    assert get(operated, f"{path}/inspect", OPERATOR).json["repeatable"] is False
    client.hset(key_of(store, job), "updated", 1)

    assert get(operated, path, OPERATOR).json["job"]["status"] == "stalled"
    assert get(operated, f"{path}/inspect", OPERATOR).json["repeatable"] is True
    assert act(operated, f"{path}/rerun").status_code == 202

    client.hset(key_of(store, job), mapping={"status": "sending", "updated": 1})
    assert act(operated, "/job_state/rerun", owner="alice").json["done"] == 2
    assert get(operated, path, OPERATOR).json["job"]["status"] == "queued"
    assert get(operated, f"/job_state/{other}", OPERATOR).json["job"]["error"] is None


@pytest.mark.parametrize("params", [b"NaN", b"[1]", b"\xff", b'{"a": 1e999}', b"{"])
def test_inspect_of_strange_bytes(
    operated: TestApp, client: redis.Redis, store: JobStore, params: bytes
) -> None:
    """Whatever another program wrote, inspecting shows what can be read."""
    job = put_job(store, RunMarathon, "error").uuid
    client.hset(key_of(store, job), mapping={"params": params, "error": params})
    failure = f"{{{key_of(store, job)}}}:failure"
    for name in "try:1", "try:2", "message", "traceback":
        client.hset(failure, name, params)

    response = get(operated, f"/job_state/{job}/inspect", OPERATOR)

    assert response.status_code == 200
    found = json.loads(response.body, parse_constant=pytest.fail)
    assert (found["params"], found["error"], found["tries"]) == ({}, None, [])
    assert found["repeatable"] is False


def test_broker_that_refuses_is_not_foreseen(
    operated: TestApp, marathons: Marathons
) -> None:
    """Whether the broker takes the message shows when it is sent."""
    (job,) = marathons.fail("alice")
    marathons.broker.add_middleware(Refusing())

    found = get(operated, f"/job_state/{job}/inspect", OPERATOR).json

    assert found["repeatable"] is True
