"""POST …/cancel, DELETE and POST …/rerun: what they do to one job, and answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import away
from tests.jobs import RunMarathon, messages
from tests.support import FINISHED, UNFINISHED, key_of
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    Marathons,
    act,
    operated_app,
    put,
    statuses,
)
from tests.web.reading import AWAY, NOT_FOUND
from tests.webapp import get, make_alias, make_app, make_config

#: The requests that act on a job.
ACTS = [("POST", "/cancel"), ("POST", "/rerun"), ("DELETE", "")]


def test_cancel_answers_the_new_state(app: TestApp, store: JobStore) -> None:
    """A job that waits is cancelled at once, and one that runs is asked to end. A page
    may have given its URL any query, as for a poll.
    """
    for status in UNFINISHED:
        becomes = "cancelling" if status in ("working", "cancelling") else "cancelled"
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        path = f"/job_state/{job}"
        assert get(app, path, "alice").json["job"]["cancellable"] is True
        response = act(app, f"{path}/cancel", "alice", tab=1)
        assert response.status_code == 202, status
        assert response.json["job"]["status"] == becomes, status
        assert response.json == get(app, path, "alice").json
        assert response.json["job"]["cancellable"] is (becomes == "cancelling")
        assert response.headers["Cache-Control"] == "private, no-cache"
        if becomes == "cancelled":
            error = response.json["job_state"], response.json["job"]["error"]
            assert error == ("error", {"message": "The job was cancelled."})


def test_delete_of_an_ended_job(operated: TestApp, store: JobStore) -> None:
    """A deleted job is unknown, and cannot be deleted again."""
    for status in FINISHED:
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        path = f"/job_state/{job}"
        response = act(operated, path, method="DELETE")
        assert (response.status_code, response.body) == (204, b"")
        assert "Content-Type" not in response.headers
        for again in get(operated, path), act(operated, path, method="DELETE"):
            assert (again.status_code, again.json) == (404, NOT_FOUND)


def test_act_on_a_job_in_another_status_is_a_409(
    operated: TestApp, store: JobStore, client: redis.Redis, marathons: Marathons
) -> None:
    """An act that a job's status does not allow is a 409 and changes nothing."""
    others = [*UNFINISHED, "success", "cancelled"]
    for method, end, refused, error in (
        ("POST", "/cancel", FINISHED, "The job has ended."),
        ("DELETE", "", UNFINISHED, "The job has not ended."),
        ("POST", "/rerun", others, "The job has not failed."),
        ("POST", "/stack", ("queued", *FINISHED), "The job does not run."),
    ):
        for status in refused:
            (job,) = put(store, "alice", cls=RunMarathon, status=status)
            before = client.hgetall(key_of(store, job))
            response = act(operated, f"/job_state/{job}{end}", method=method)
            assert response.status_code == 409, (method, end, status)
            assert response.json == {"error": error}
            assert client.hgetall(key_of(store, job)) == before


def test_job_or_store_that_goes_away_meanwhile(
    redis_url: str,
    store: JobStore,
    marathons: Marathons,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A record that expires during the request is a 404. A store that goes away is a
    503, and is not taken for a fault of the broker.
    """
    app = operated_app(redis_url, lambda *asked: store.client.flushdb())
    for method, end in ACTS:
        for status in "success", "error", "working":
            (job,) = put(store, "alice", status=status)
            response = act(app, f"/job_state/{job}{end}", method=method)
            assert (response.status_code, response.json) == (404, NOT_FOUND), end
    app = operated_app(
        redis_url, lambda r, *_: stack.enter_context(away(r.job_states.store))
    )
    for method, end in ACTS:
        (job,) = put(store, "alice", status="error")
        with contextlib.ExitStack() as stack:
            response = act(app, f"/job_state/{job}{end}", method=method)
        assert (response.status_code, response.json) == (503, AWAY), end
        assert statuses(store, job) == ["error"]
    assert messages(caplog, "pyramid_jobstate", logging.ERROR) == []


def test_act_on_a_job_that_becomes_an_alias_does_not_reach_the_job_of_another(
    redis_url: str, client: redis.Redis, store: JobStore, marathons: Marathons
) -> None:
    """If another's job wins the claim meanwhile, the rights are those of that job."""
    app = operated_app(
        redis_url, lambda *asked: make_alias(client, key_of(store, own), theirs)
    )
    for method, end, status, expected in (
        ("POST", "/cancel", "working", 403),
        ("POST", "/rerun", "error", 409),
        ("DELETE", "", "success", 409),
        ("POST", "/stack", "working", 409),
    ):
        (theirs,) = put(store, "bob", status=status, message="secret")
        (own,) = put(store, "alice", status="queued")
        # Its sender is between the two steps of a send.
        client.hset(key_of(store, own), "status", "sending")
        response = act(app, f"/job_state/{own}{end}", "alice", method)
        assert response.status_code == expected
        assert "secret" not in response.text
        assert statuses(store, theirs) == [status]
        assert store.where(theirs) is None


def test_acts_are_logged(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    said: Callable[[], list[str]],
) -> None:
    """What was done is logged with the user; what was refused is not. If a request acts
    on many jobs, its filter has a line, too, on which line breaks stay.
    """
    (job,) = put(store, "alice", cls=RunMarathon, status="error")
    (odd,) = put(store, "al\nice", status="queued")
    said()
    for user, method, path in (
        ("bob", "POST", f"{job}/rerun"),
        (OPERATOR, "POST", f"{job}/rerun"),
        (OPERATOR, "POST", f"{job}/rerun"),
        (OPERATOR, "DELETE", job),
        ("alice", "POST", f"{job}/cancel"),
        ("alice", "POST", f"{job}/cancel"),
        (OPERATOR, "POST", "cancel?owner=al%0Aice"),
        (OPERATOR, "POST", "clear?all=1&kind=Letter&status=cancelled"),
        (OPERATOR, "POST", "clear?all=1&kind=None%0A"),
        (KEEPER, "DELETE", job),
    ):
        act(operated, f"/job_state/{path}", user, method)
    assert said() == [
        f"'operator' ran the job {job} again.",
        f"'alice' cancelled the job {job}.",
        f"'operator' cancelled the job {odd}.",
        "'operator' cancelled 1 of the jobs of 'al\\nice'; 0 were refused.",
        f"'operator' deleted the job {odd}.",
        "'operator' deleted 1 of all jobs with kind 'Letter', status 'cancelled'; 0 "
        "were refused.",
        f"'keeper' deleted the job {job}.",
    ]


def test_visitor_is_not_named_in_the_log(
    redis_url: str, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """Without a login, the log does not name the owner, which may be a secret."""
    settings = {"jobstate.owner": lambda request: "visitor 7"}
    app = make_app(make_config(redis_url, settings=settings))
    job, other = put(store, "visitor 7", "visitor 7", status="queued")
    said()
    act(app, f"/job_state/{job}/cancel", None)
    act(app, "/job_state/cancel", None, owner="visitor 7")
    assert said() == [
        f"A visitor without a login cancelled the job {job}.",
        f"A visitor without a login cancelled the job {other}.",
        "A visitor without a login cancelled 1 of their own jobs; 0 were refused.",
    ]
