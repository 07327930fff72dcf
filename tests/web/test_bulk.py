"""POST …/clear, …/cancel and …/rerun: what they do to the jobs that match."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import redis
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import away, pass_time, put_batch
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import Marathons, act, operated_app, put, statuses

ALL: dict[str, Any] = {"all": 1, "everything": 1}

#: The requests that act on many jobs, and a status of the jobs on which each acts.
REQUESTS = [("clear", "success"), ("cancel", "queued"), ("rerun", "error")]


def test_clear_deletes_ended_jobs(operated: TestApp, store: JobStore) -> None:
    """Who may list all jobs deletes the ended ones that match, whoever owns them."""
    cases: list[tuple[dict[str, Any], list[int]]] = [
        (ALL, [0, 1, 2]),
        ({"kind": "Letter", "status": "error", "all": 1}, [0]),
        ({"owner": "bob", "kind": "RunMarathon"}, [2]),
        ({"owner": "bob", "everything": 1}, [1, 2]),
        ({"older_than": "1h", "all": 1}, []),
        ({"older_than": "1s", "status": "success", "all": 1}, [1]),
    ]
    for query, gone in cases:
        store.client.flushdb()
        jobs = [
            *put(store, "alice", status="error"),
            *put(store, "bob", status="success"),
            *put(store, "bob", cls=RunMarathon, status="cancelled"),
            *put(store, "bob", "alice", status="working"),
        ]
        pass_time(store, 60)
        response = act(operated, "/job_state/clear", **query)
        assert response.json == {"done": len(gone), "refused": 0, "cursor": None}, query
        assert response.headers["Cache-Control"] == "private, no-cache"
        found = [i for i, status in enumerate(statuses(store, *jobs)) if status is None]
        assert found == gone, query


def test_acts_tell_a_class_from_an_actor(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """A name that both have is refused. With what it is, an act takes no other jobs."""
    for name, status in REQUESTS:
        (job,) = put(store, "bob", cls=RunMarathon, status=status)
        (alike,) = put(store, "bob", cls=JobState, status=status, actor="RunMarathon")
        path = f"/job_state/{name}"
        error = act(operated, path, kind="RunMarathon", all=1).json["error"]
        assert error.endswith("Pass 'class:RunMarathon' or 'actor:RunMarathon'."), name
        answer = act(operated, path, kind="class:RunMarathon", all=1)
        assert answer.json == {"done": 1, "refused": 0, "cursor": None}, name
        after = {"clear": None, "cancel": "cancelled", "rerun": "queued"}[name]
        assert statuses(store, job, alike) == [after, status]
        store.client.flushdb()


def test_cursor_leads_to_the_other_jobs(operated: TestApp, store: JobStore) -> None:
    """The cursor leads to jobs that were sent before; with limit=0, to all of them."""
    jobs = put(store, *"abcde", status="queued")
    cancel = functools.partial(act, operated, "/job_state/cancel", kind="Letter", all=1)
    first = cancel(limit=0).json
    late = put(store, "f", status="queued")
    done = [first["done"]]
    cursor = first["cursor"]
    while cursor:
        answer = cancel(limit=2, cursor=cursor).json
        done.append(answer["done"])
        cursor = answer["cursor"]
    assert done[0] == 0 and sum(done) == 5 and max(done) == 2
    assert statuses(store, *jobs, *late) == ["cancelled"] * 5 + ["queued"]


class Closed(JobState):
    """A kind whose owner may do nothing with a job."""

    kind = "Letter closed"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


def test_users_act_on_their_own_jobs(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """Who may not list all jobs acts on their own, and reads nothing of refusals."""
    for name, status in REQUESTS:
        for query in {"kind": "Letter"}, {"owner": "alice", "everything": 1}:
            store.client.flushdb()
            jobs = put(store, "alice", "bob", None, "Alice", status=status)
            put(store, "alice", cls=Closed, status=status)
            path = f"/job_state/{name}"
            of_operator = act(operated, path, everything=1).json
            assert of_operator == {"done": 0, "refused": 0, "cursor": None}
            of_alice = act(operated, path, "alice", **query).json
            assert of_alice == {"done": 1, "cursor": None}, (name, query)
            assert statuses(store, *jobs[1:]) == [status] * 3
            assert statuses(store, jobs[0]) != [status]


def test_owner_of_a_request_decides(redis_url: str, store: JobStore) -> None:
    """A visitor without an owner acts on nothing, not even on jobs without one."""
    for own, done in (None, 0), (True, 0), (["alice"], 0), (7, 1):
        settings = {"jobstate.owner": lambda request, own=own: own}
        app = operated_app(redis_url, settings=settings)
        store.client.flushdb()
        jobs = put(store, 7, None, "7", "alice", 1, status="queued")
        for owner in "alice", "True", "7.0", "":
            response = act(app, "/job_state/cancel", "alice", owner=owner)
            assert response.status_code == 403, (own, owner)
        response = act(app, "/job_state/cancel", "alice", everything=1)
        assert response.json == {"done": done, "cursor": None}
        assert statuses(store, *jobs[1:]) == ["queued"] * 4


def test_cursor_of_another_call_is_a_400(operated: TestApp, store: JobStore) -> None:
    """A cursor leads on only in the request that returned it, for the same user."""
    put(store, *["alice"] * 3, *["bob"] * 3, cls=RunMarathon, status="queued")
    cancel = functools.partial(act, operated, "/job_state/cancel")
    cursor = cancel("alice", everything=1, limit=1).json["cursor"]
    jobs = put(store, "alice", "bob", status="queued")
    for user, query in ("bob", {"everything": 1}), ("alice", {"kind": "Letter"}):
        response = cancel(user, **query, cursor=cursor)
        assert response.status_code == 400
        assert "cursor" in response.json["error"]
    assert statuses(store, *jobs) == ["queued"] * 2


def test_rerun_tells_nothing_of_a_foreign_batch(
    operated: TestApp, store: JobStore, client: redis.Redis, marathons: Marathons
) -> None:
    """A foreign batch looks like an unknown one, also in what the store is asked."""
    member = {"status": "error", "job_state_class": RunMarathon}
    batch = put_batch(store, members=[member] * 5, owner="alice").uuid

    def rerun(user: str, batch: str) -> tuple[Any, dict[str, int]]:
        client.config_resetstat()
        response = act(operated, "/job_state/rerun", user, batch=batch)
        stats: Any = client.info("commandstats")
        return response.json, {name: each["calls"] for name, each in stats.items()}

    rerun("bob", batch)
    hidden, unknown = rerun("bob", batch), rerun("bob", UUID)
    assert hidden == unknown
    assert hidden[0] == {"done": 0, "cursor": None}
    assert rerun("alice", batch)[1] != hidden[1]
    assert rerun("bob", "x")[0]["error"] == "batch must be a uuid, not 'x'."
    for name, value in ("cursor", "x"), ("limit", 10**9):
        wrong: Any = {name: value}
        for each in batch, UUID:
            response = act(operated, "/job_state/rerun", "bob", batch=each, **wrong)
            assert response.status_code == 400, (each, wrong)
            assert name in response.json["error"]


def test_interruption_loses_no_line_of_what_was_done(
    redis_url: str, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """If the store goes away amid a request, the log has the jobs that were done."""

    def interrupt(request: Request, context: Any, permission: str) -> None:
        asked.append(context)
        if len(asked) == 202:
            stack.enter_context(away(request.job_states.store))

    asked: list[Any] = []
    app = operated_app(redis_url, interrupt)
    # Not all are read at once.
    jobs = put(store, *["carol"] * 202, status="queued")[::-1]
    said()
    with contextlib.ExitStack() as stack:
        response = act(app, "/job_state/cancel", **ALL)
    assert response.status_code == 503
    count = statuses(store, *jobs).count("cancelled")
    assert 0 < count < len(jobs)
    *lines, last = said()
    done = [f"'operator' cancelled the job {job}." for job in jobs[:count]]
    assert lines[:count] == done
    assert last == f"'operator' cancelled {count} of all jobs until that failed."
