"""GET …/counts and …/inspect: what only operators read."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import away, pass_time, put_job
from tests.asgi import pushing
from tests.jobs import RunMarathon
from tests.support import key_of
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    Blister,
    Marathons,
    Refusing,
    act,
    operated_root,
    put,
)
from tests.webapp import get, make_app, make_config

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


class Trotting(JobState):
    """Another kind of job."""


# Counts.


def test_counts_of_all_jobs_and_of_a_kind(operated: TestApp, store: JobStore) -> None:
    """An operator reads how many jobs have which status, of all kinds or of one, and
    which kinds there are. No cache answers a request that wants no cache.
    """
    for kind, status in (
        (RunMarathon, "queued"),
        (RunMarathon, "working"),
        (RunMarathon, "error"),
        (Trotting, "error"),
        (Trotting, "success"),
    ):
        put_job(store, kind, status, owner="alice")
    kinds = ["RunMarathon", "Trotting"]
    path = "/job_state/counts"

    counts = get(operated, path, OPERATOR).json
    sprints = get(operated, f"{path}?kind=Trotting", OPERATOR).json

    numbers = {"queued": 1, "working": 1, "error": 2, "success": 1}
    assert counts == {"counts": NOTHING | numbers, "kinds": kinds}
    numbers = {"error": 1, "success": 1}
    assert sprints == {"counts": NOTHING | numbers, "kinds": kinds}
    for other in "", "Unknown", "a%00%0d%0a{}", "%F0%9F%8F%83", "*":
        response = get(operated, f"{path}?kind={other}&_LOCALE_=de", OPERATOR)
        assert response.json == {"counts": NOTHING, "kinds": kinds}
    put_job(store, Trotting, "error")
    path, header = f"{path}?kind=Trotting", {"Cache-Control": "no-cache"}
    assert get(operated, path, OPERATOR).json == sprints
    assert get(operated, path, OPERATOR, **header).json["counts"]["error"] == 2


def test_operators_answers_have_the_headers_of_all(
    operated: TestApp, store: JobStore
) -> None:
    """The answers are JSON, private and revalidated by their ETag."""
    (job,) = put(store, "alice", status="error")
    for path in "/job_state/counts", f"/job_state/{job}/inspect":
        response = get(operated, path, OPERATOR)
        tag = response.headers["ETag"]

        again = get(operated, path, OPERATOR, If_None_Match=tag)

        assert (response.status_code, again.status_code) == (200, 304)
        for name, value in (
            ("Cache-Control", "private, no-cache"),
            ("Vary", "Accept"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Type", "application/json"),
        ):
            assert response.headers[name] == value


def test_nothing_of_a_failure_leaves_by_other_ways(
    redis_url: str, marathons: Marathons
) -> None:
    """Neither a state nor a batch, a list or a stream has a parameter that is not
    public, or anything of the exception, whoever asks. What only operators read is
    never a stream.
    """
    (job,) = marathons.fail("alice", kwargs={"shoes": [SECRET]})
    stream = "text/event-stream"
    with pushing(make_config(redis_url, root_factory=operated_root)) as server:
        for path in f"/{job}/inspect", "/counts":
            known = server.ask(f"/job_state{path}", OPERATOR, accept=stream)
            assert known.status == 200
            assert known.headers["content-type"] == "application/json"
            assert (b"hunter2" in known.body) is (path != "/counts")
        for user in "alice", OPERATOR:
            for path in (
                f"/{job}",
                f"?uuid={job}",
                "?owner=alice",
                "?all=1&status=error",
                "/counts",
            ):
                for accept in None, stream:
                    answer = server.ask(f"/job_state{path}", user, accept=accept)
                    for word in b"Blister", b"Traceback", b"onerror", b"tries":
                        assert word not in answer.body


# Inspecting.


def test_inspect_tells_all_of_a_failure(
    operated: TestApp, marathons: Marathons
) -> None:
    """An operator reads each parameter, the exception, the traceback and the tries, the
    oldest first.
    """
    (job,) = marathons.fail("alice", kwargs={"shoes": SECRET})
    path = f"/job_state/{job}"

    found = get(operated, f"{path}/inspect", OPERATOR).json

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

    act(operated, f"{path}/rerun")
    marathons.wait_for(job, "error")

    first, second = get(operated, f"{path}/inspect", OPERATOR).json["tries"]
    assert first["ended_at"] <= second["started_at"] <= second["ended_at"]
    assert first["ended_at"].endswith("Z")


def test_try_whose_start_is_unknown(
    operated: TestApp, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try that began while the store was away has no start."""
    (job,) = put(store, "alice", status="error")
    failures = store.failures(job)
    (tried,) = failures.tries
    at = datetime.datetime(2025, 11, 25, 23, 17, 11, tzinfo=datetime.UTC)
    unknown = failures._replace(tries=(tried._replace(started_at=None, ended_at=at),))
    monkeypatch.setattr(JobStore, "failures", lambda store, uuid: unknown)

    (found,) = get(operated, f"/job_state/{job}/inspect", OPERATOR).json["tries"]

    assert found == {
        "started_at": None,
        "ended_at": "2025-11-25T23:17:11.000Z",
        "type": "ValueError",
        "message": "wrong",
    }


def test_inspect_of_a_job_that_has_not_failed(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """A job that has not failed cannot run again, and has no tries."""
    for status in "queued", "working", "retrying", "stalled", "success", "cancelled":
        job = put_job(store, Trotting, status, params={"miles": 1}).uuid

        found = get(operated, f"/job_state/{job}/inspect", KEEPER).json

        assert found["params"] == {"miles": 1}
        assert (found["tries"], found["traceback"]) == ([], None)
        reason = "The job has not failed."
        assert (found["repeatable"], found["reason"]) == (False, reason)


def test_inspect_says_why_a_job_cannot_run_again(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    set_broker: Callable[[Any], None],
) -> None:
    """The reason is the one that running it again would give. Whether the broker takes
    the message shows when it is sent.
    """
    set_broker(marathons.broker)
    (job,) = put(store, "alice", cls=RunMarathon, status="error")
    failed = put_job(store, RunMarathon, "error").uuid

    def reason(job: str = job) -> Any:
        found = get(operated, f"/job_state/{job}/inspect", OPERATOR).json
        assert found["repeatable"] is (found["reason"] is None)
        return found["reason"]

    assert reason() is None
    assert reason(failed) == "The store does not hold its message."
    marathons.broker.add_middleware(Refusing())
    assert reason() is None
    del marathons.broker.actors["run_marathon"]
    assert reason() == "The broker does not know the actor 'run_marathon'."
    response = act(operated, f"/job_state/{job}/rerun")
    assert (response.status_code, response.json) == (410, {"error": reason()})
    marathons.broker.middleware.clear()
    assert "has no JobStateMiddleware" in reason()
    set_broker(None)
    assert reason() == "This process has no Dramatiq broker."


def test_job_that_was_lost_while_it_was_run_again_is_repeatable(
    redis_url: str,
    store: JobStore,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that died before it sent the message again leaves a job that says that
    it can run again, and does, alone or with others.
    """
    config = make_config(redis_url, root_factory=operated_root)
    app = make_app(config)
    config.set_job_store(store)
    config.commit()
    job, other = put(store, "alice", "alice", cls=RunMarathon, status="error")
    path = f"/job_state/{job}"

    def lose() -> None:
        """Run the job again, and die before its message leaves."""

        def die(message: Any) -> None:
            stack.enter_context(away(store))
            sys.exit()

        with contextlib.ExitStack() as stack, monkeypatch.context() as patched:
            patched.setattr(marathons.broker, "enqueue", die)
            with pytest.raises(SystemExit):
                act(app, f"{path}/rerun")

    def repeatable() -> bool:
        answer: bool = get(app, f"{path}/inspect", OPERATOR).json["repeatable"]
        return answer

    lose()
    assert repeatable() is False
    pass_time(store, store.stalled_after + 1)
    assert get(app, path, OPERATOR).json["job"]["status"] == "stalled"
    assert repeatable() is True
    assert act(app, f"{path}/rerun").status_code == 202
    marathons.wait_for(job, "error")
    lose()
    pass_time(store, store.stalled_after + 1)
    assert act(app, "/job_state/rerun", owner="alice").json["done"] == 2
    assert get(app, path, OPERATOR).json["job"]["status"] == "queued"
    assert get(app, f"/job_state/{other}", OPERATOR).json["job"]["error"] is None


def test_inspect_of_strange_bytes(
    operated: TestApp, client: redis.Redis, store: JobStore
) -> None:
    """Whatever another program wrote, inspecting shows what can be read."""
    for value in b"NaN", b"[1]", b"\xff", b'{"a": 1e999}', b"{":
        job = put_job(store, RunMarathon, "error").uuid
        client.hset(key_of(store, job), mapping={"params": value, "error": value})

        response = get(operated, f"/job_state/{job}/inspect", OPERATOR)

        assert response.status_code == 200
        found = json.loads(response.body, parse_constant=pytest.fail)
        assert (found["params"], found["error"]) == ({}, None)
        assert found["repeatable"] is False
