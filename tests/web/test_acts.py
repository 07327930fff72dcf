"""POST …/cancel, …/rerun and …/clear, and DELETE: what they do to jobs, and answer."""

import contextlib
import functools
import logging
from typing import Any

import dramatiq.broker
import pytest
from pyramid.request import Request

from pyramid_jobstate import JobState
from pyramid_jobstate.testing import away, pass_time, put_batch
from tests.jobs import RunMarathon, messages
from tests.relay import relaying
from tests.support import FINISHED, UNFINISHED, UUID, key_of
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
from tests.web.visits import Refusing
from tests.webapp import NOWHERE, get, make_alias, make_app, make_config

#: The requests that act on a job.
ACTS = [("POST", "/cancel"), ("POST", "/rerun"), ("DELETE", "")]

#: Those that act on many jobs, and a status of the jobs on which each acts.
REQUESTS = [("clear", "success"), ("cancel", "queued"), ("rerun", "error")]
ALL: dict[str, Any] = {"all": 1, "everything": 1}


def test_cancel_answers_the_new_state(app, store):
    """A waiting job is cancelled at once, and a running one is asked to end."""
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
        assert response.headers["Cache-Control"] == "private, no-store"
        if becomes == "cancelled":
            error = response.json["job_state"], response.json["job"]["error"]
            assert error == ("error", {"message": "The job was cancelled."})


def test_act_on_a_job_in_another_status_is_a_409(operated, store, client, marathons):
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


def test_job_or_store_that_goes_away_meanwhile(redis_url, store, marathons, caplog):
    """A record that expires amid the request is a 404; a store that goes is a 503."""
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
    redis_url, client, store, marathons
):
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


# On the jobs that match.


def test_clear_deletes_ended_jobs(operated, store):
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
        assert response.headers["Cache-Control"] == "private, no-store"
        found = [i for i, status in enumerate(statuses(store, *jobs)) if status is None]
        assert found == gone, query


class Closed(JobState):
    """A kind whose owner may do nothing with a job."""

    kind = "Letter closed"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


def test_users_act_on_their_own_jobs(operated, store, marathons):
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


def test_owner_of_a_request_decides(redis_url, store):
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


def test_acts_tell_a_class_from_an_actor(operated, store, marathons):
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


def test_cursor_leads_to_the_other_jobs(operated, store):
    """It goes on with older jobs, for the same user and in the same request alone."""
    jobs = put(store, *["alice"] * 3, *["bob"] * 3, cls=RunMarathon, status="queued")
    cancel = functools.partial(act, operated, "/job_state/cancel")
    first = cancel("alice", everything=1, limit=1).json
    late = put(store, "alice", "bob", status="queued")
    own: dict[str, Any] = {"everything": 1, "cursor": first["cursor"]}
    for user, query in ("bob", own), ("alice", {**own, "kind": "Letter"}):
        response = cancel(user, **query)
        assert response.status_code == 400
        assert "cursor" in response.json["error"]
    assert (first["done"], cancel("alice", **own).json["done"]) == (1, 2)
    assert statuses(store, *jobs[:3]) == ["cancelled"] * 3
    assert statuses(store, *jobs[3:], *late) == ["queued"] * 5


def test_rerun_tells_nothing_of_a_foreign_batch(operated, store, client, marathons):
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


# The log.


def test_interruption_loses_no_line_of_what_was_done(redis_url, store, said):
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


@pytest.mark.promise("acts-are-logged")
def test_acts_are_logged(operated, store, marathons, said):
    """What was done is logged with the user and the filter; what was refused is not."""
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


def test_visitor_is_not_named_in_the_log(redis_url, store, said):
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


# Reruns through a broker that fails, or is missing.

#: Where one failed job runs again, and where all do.
RERUNS = "/job_state/{}/rerun", "/job_state/rerun?all=1&everything=1"


@pytest.mark.parametrize("fault", ["middleware", "server", "away"])
def test_broker_that_fails_is_a_503(
    operated, redis_url, store, set_broker, said, caplog, fault
):
    """The job has failed as before, and the log says how many were sent."""
    sound, error = Marathons(redis_url, store).broker, "The broker does not answer."
    if fault != "away":
        error = "The broker did not accept the message of the job."
    with contextlib.ExitStack() as stack:
        url = NOWHERE if fault == "away" else redis_url
        if fault == "server":
            url = stack.enter_context(relaying(url, {"EVALSHA": "NOREPLICAS"})).url
        failing = Marathons(url, store).broker
        if fault == "middleware":
            failing.add_middleware(Refusing())
        for path in RERUNS:
            (job,) = put(store, "alice", status="error")
            set_broker(failing)
            said()
            response = act(operated, path.format(job))
            assert (response.status_code, response.json) == (503, {"error": error})
            assert response.headers["Retry-After"] == "5"
            assert ("The queue is full." in caplog.text) is (fault == "middleware")
            assert statuses(store, job) == ["error"]
            line = "'operator' requeued 0 of all jobs until that failed."
            end = "could not be sent to run again."
            is_one = path == RERUNS[0]
            assert said() == (
                [f"The job {job} {end}"] if is_one else [line, f"A job {end}"]
            )
            set_broker(sound)
            assert act(operated, path.format(job)).status_code in (200, 202)
            assert statuses(store, job) == ["queued"]


def test_process_without_a_broker_runs_nothing_again(operated, store, set_broker):
    """Without a broker, none is made: a 410, or a 409 if the job has not failed."""
    (job,) = put(store, "alice", status="error")
    (ended,) = put(store, "alice", status="success")
    for path in RERUNS:
        response = act(operated, path.format(job))
        assert response.status_code == 410
        assert response.json == {"error": "This process has no Dramatiq broker."}
        assert dramatiq.broker.global_broker is None
    assert act(operated, RERUNS[0].format(ended)).status_code == 409
