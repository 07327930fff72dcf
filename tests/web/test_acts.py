"""DELETE and POST …/rerun: who may delete a job or run it again, and the responses."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import dramatiq.broker
import pytest
import redis
from pyramid.authorization import ALL_PERMISSIONS, Allow
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_job
from tests.asgi import pushing
from tests.jobs import RunMarathon, messages
from tests.support import UUID, key_of, load_job
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    Marathons,
    Refusing,
    act,
    at_once,
    csrf_app,
    kept,
    operated_root,
)
from tests.webapp import (
    ADMIN,
    PLACES,
    Policy,
    ask,
    get,
    make_alias,
    make_app,
    make_config,
)

UNKNOWN = {"error": "The job does not exist."}
FORBIDDEN = {"error": "You may not do this with the job."}

#: The requests that act on one job.
REQUESTS = [("DELETE", ""), ("POST", "/rerun")]


# Deleting.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("status", ["success", "error", "cancelled"])
def test_delete_of_an_ended_job(
    operated: TestApp, store: JobStore, place: str, status: str
) -> None:
    """A deleted job is unknown, by itself, among others and in lists."""
    job = put_job(store, RunMarathon, status, owner="alice").uuid

    response = act(operated, f"{place}/{job}", method="DELETE")

    assert (response.status_code, response.body) == (204, b"")
    assert "Content-Type" not in response.headers
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["Vary"] == "Accept"
    assert get(operated, f"{place}/{job}", "alice").json == UNKNOWN
    assert get(operated, f"{place}?uuid={job}", "alice").json == {"jobs": {job: None}}
    assert get(operated, place, "alice").json["items"] == []
    again = act(operated, f"{place}/{job}", method="DELETE")
    assert (again.status_code, again.json) == (404, UNKNOWN)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "status", ["queued", "working", "retrying", "stalled", "cancelling"]
)
def test_delete_of_an_unfinished_job_is_a_409(
    operated: TestApp, store: JobStore, place: str, status: str
) -> None:
    """A job that has not ended stays."""
    job = put_job(store, RunMarathon, status).uuid

    response = act(operated, f"{place}/{job}/", method="DELETE")

    assert response.status_code == 409
    assert response.json == {"error": "The job has not ended."}
    assert load_job(store, job).status == status


def test_two_operators_delete_a_job_once(operated: TestApp, store: JobStore) -> None:
    """Of two operators who delete a job at once, one has deleted it, and for the other
    it is unknown.
    """
    for _ in range(5):
        path = f"/job_state/{put_job(store, RunMarathon, 'success').uuid}"
        delete = functools.partial(act, operated, path, method="DELETE")

        answers = at_once(delete, delete)

        assert sorted(answer.status_code for answer in answers) == [204, 404]


def test_stream_of_a_deleted_job_says_that_it_is_gone(
    redis_url: str, store: JobStore
) -> None:
    """A stream that begins after a job was deleted says that it is gone."""
    job = put_job(store, RunMarathon, "success", owner="alice").uuid
    other = put_job(store, RunMarathon, "working", owner="alice").uuid
    config = make_config(redis_url, root_factory=operated_root)
    with pushing(config) as server:
        options = {"method": "DELETE", "accept": None, "X_Requested_With": "x"}
        response = server.ask(f"/job_state/{job}", OPERATOR, **options)
        assert (response.status, response.body) == (204, b"")

        stream = server.open(f"/job_state?uuid={job}&uuid={other}")

        assert stream.until(lambda event: event.name == "gone").data == job
        assert stream.at(1).state["job"]["uuid"] == other


# Running again.


@pytest.mark.parametrize("place", PLACES)
def test_job_that_failed_runs_again(
    operated: TestApp, marathons: Marathons, place: str
) -> None:
    """The job is queued under its uuid at once, with its owner and its parameters, and
    runs as it did before.
    """
    (job,) = marathons.fail("alice")
    path = f"{place}/{job}"
    assert get(operated, path, "alice").json["job_state"] == "error"

    response = act(operated, f"{path}/rerun")

    assert response.status_code == 202
    assert response.json["job"]["status"] == "queued"
    assert get(operated, path, "alice").json["job"]["status"] == "queued"
    marathons.is_mended = True
    marathons.wait_for(job, "success")
    state = get(operated, path, "alice").json
    assert (state["job_state"], state["job"]["params"]) == ("success", {"miles": 26})
    assert state["job"]["error"] is None
    assert marathons.ran == [job, job]


def test_two_operators_run_a_job_again_once(
    operated: TestApp, marathons: Marathons
) -> None:
    """Of two operators who run a job again at once, one is told that it did not fail,
    and the job runs once.
    """
    (job,) = marathons.fail("alice")
    path = f"/job_state/{job}/rerun"

    rerun = functools.partial(act, operated, path)

    answers = at_once(rerun, rerun)

    assert sorted(answer.status_code for answer in answers) == [202, 409]
    marathons.is_mended = True
    marathons.wait_for(job, "success")
    assert marathons.ran == [job, job]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "status", ["queued", "working", "retrying", "stalled", "success", "cancelled"]
)
def test_rerun_of_a_job_that_has_not_failed_is_a_409(
    operated: TestApp, store: JobStore, marathons: Marathons, place: str, status: str
) -> None:
    """Only a job that failed runs again. Others do not change."""
    job = put_job(store, RunMarathon, status).uuid
    before = kept(store, job)

    response = act(operated, f"{place}/{job}/rerun")

    assert response.status_code == 409
    assert response.json == {"error": "The job has not failed."}
    assert kept(store, job) == before


@pytest.mark.parametrize("place", PLACES)
def test_rerun_of_a_job_without_a_message_is_a_410(
    operated: TestApp, store: JobStore, marathons: Marathons, place: str
) -> None:
    """A job whose message is not kept cannot run again, and the answer says why."""
    job = put_job(store, RunMarathon, "error").uuid

    response = act(operated, f"{place}/{job}/rerun")

    assert response.status_code == 410
    assert response.json == {"error": "The store does not hold its message."}
    assert load_job(store, job).status == "error"


def test_rerun_of_a_message_that_json_cannot_say_is_a_410(
    operated: TestApp, marathons: Marathons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was sent with what only another encoder can say does not run again."""
    monkeypatch.setattr(dramatiq, "get_encoder", dramatiq.PickleEncoder)
    monkeypatch.setattr(dramatiq.message, "global_encoder", dramatiq.PickleEncoder())
    (job,) = marathons.fail("alice", args=({26},))

    response = act(operated, f"/job_state/{job}/rerun")

    assert response.status_code == 410
    assert response.json["error"].startswith("Its message cannot be kept as JSON")


def test_rerun_in_a_process_without_a_broker_is_a_410(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no broker is set, none is made to run a job again."""
    (job,) = marathons.fail("alice")
    ended = put_job(store, RunMarathon, "success")
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)

    response = act(operated, f"/job_state/{job}/rerun")

    assert response.status_code == 410
    assert response.json == {"error": "This process has no Dramatiq broker."}
    assert dramatiq.broker.global_broker is None
    assert act(operated, f"/job_state/{ended.uuid}/rerun").status_code == 409


def test_broker_that_refuses_is_a_503(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the broker refuses its message, a job has failed as before, and the log says
    what happened.
    """
    (job,) = marathons.fail("alice")
    before, path = kept(store, job), f"/job_state/{job}"
    shown = get(operated, path, "alice").json
    marathons.broker.add_middleware(Refusing())

    response = act(operated, f"{path}/rerun")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json == {
        "error": "The broker did not accept the message of the job."
    }
    assert get(operated, path, "alice").json == shown
    assert kept(store, job) == before
    (record,) = (r for r in caplog.records if r.name == "pyramid_jobstate")
    assert job in record.getMessage() and record.exc_info
    assert "The queue is full." not in response.text


@pytest.mark.parametrize("is_away", [True, False])
def test_broker_whose_server_fails_is_a_503(
    operated: TestApp,
    store: JobStore,
    server: EmbeddedServer,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], list[str]],
    is_away: bool,
) -> None:
    """While the server of the broker is away, or refuses messages, a job has failed as
    before, and runs again later. That is not taken for an outage of the store.
    """
    (job,) = marathons.fail("alice")
    before = kept(store, job)
    elsewhere = Marathons(server.url, store)
    monkeypatch.setattr(dramatiq.broker, "global_broker", elsewhere.broker)
    if is_away:
        server.stop()
        error = "The broker does not answer."
    else:
        elsewhere.broker.client.config_set("min-replicas-to-write", 1)
        error = "The broker did not accept the message of the job."

    response = act(operated, f"/job_state/{job}/rerun")

    assert response.status_code == 503
    assert response.json == {"error": error}
    assert response.headers["Retry-After"] == "5"
    assert kept(store, job) == before
    assert said()[-1] == f"The job {job} could not be sent to run again."
    if is_away:
        server.start()
    elsewhere.broker.client.config_set("min-replicas-to-write", 0)
    assert act(operated, f"/job_state/{job}/rerun").status_code == 202


# Both.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("method", "end"), REQUESTS)
@pytest.mark.parametrize("status", ["error", "success", "working"])
@pytest.mark.parametrize("user", ["alice", "bob", ADMIN, None])
def test_act_needs_a_permission_that_nobody_has_by_default(
    operated: TestApp,
    store: JobStore,
    place: str,
    method: str,
    end: str,
    status: str,
    user: str | None,
) -> None:
    """Neither the owner nor who may view and cancel all jobs may do more, and the
    answer does not depend on the job, the header or the query.
    """
    job = put_job(store, RunMarathon, status, owner="alice").uuid
    before = kept(store, job)

    for response in (
        act(operated, f"{place}/{job}{end}", user, method),
        act(operated, f"{place}/{job}{end}", user, method, x=1),
        ask(operated, method, f"{place}/{job}{end}", user),
    ):
        assert (response.status_code, response.json) == (403, FORBIDDEN)
    assert kept(store, job) == before


@pytest.mark.parametrize("root", [None, operated_root])
@pytest.mark.parametrize(("method", "end"), REQUESTS)
def test_application_without_a_policy_opens_nothing(
    redis_url: str, store: JobStore, method: str, end: str, root: Any
) -> None:
    """Without a security policy, nobody acts on a job."""
    options = {"root_factory": root, "security_policy": None}
    app = make_app(make_config(redis_url, **options))
    job = put_job(store, RunMarathon, "error", owner="alice").uuid

    assert act(app, f"/job_state/{job}{end}", OPERATOR, method).status_code == 403
    assert load_job(store, job).status == "error"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("method", "end"), REQUESTS)
@pytest.mark.parametrize("user", [OPERATOR, None])
@pytest.mark.parametrize("name", [UUID, "x", UUID.upper(), f"{UUID}/x"])
def test_act_on_no_job_is_a_404(
    operated: TestApp, place: str, method: str, end: str, user: str | None, name: str
) -> None:
    """An unknown job or an invalid name is a 404, whoever asks."""
    response = act(operated, f"{place}/{name}{end}", user, method)

    assert (response.status_code, response.json) == (404, UNKNOWN)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("method", "end"), REQUESTS)
def test_act_needs_the_header(
    operated: TestApp, store: JobStore, place: str, method: str, end: str
) -> None:
    """Nobody acts on a job without a header that forms cannot send."""
    job = put_job(store, RunMarathon, "error").uuid

    response = ask(operated, method, f"{place}/{job}{end}?X-Requested-With=x", OPERATOR)

    assert response.status_code == 400
    assert response.json == {"error": "The header X-Requested-With is missing."}
    assert load_job(store, job).status == "error"


@pytest.mark.parametrize(("method", "end"), REQUESTS)
@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=1", "'limit'"),
        ("=", "''"),
        ("_method=DELETE", "'_method'"),
        ("a%00%22b=1", "'a\\x00\"b'"),
        ("uuid=x&uuid=y", "'uuid'"),
        ("%ff=1", "not UTF-8"),
    ],
)
def test_act_takes_no_parameters(
    operated: TestApp, store: JobStore, method: str, end: str, query: str, named: str
) -> None:
    """A parameter is a 400 that names it."""
    job = put_job(store, RunMarathon, "error").uuid

    response = act(operated, f"/job_state/{job}{end}?{query}", method=method)

    assert response.status_code == 400
    assert named in response.json["error"]
    assert load_job(store, job).status == "error"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "x"])
@pytest.mark.parametrize("body", [b"", b"\xff{", b'{"uuid": "x"}', b"a" * 100_000])
def test_body_of_an_act_on_one_job_is_ignored(
    operated: TestApp, store: JobStore, content_type: str, body: bytes
) -> None:
    """Whatever body a request has, it acts on the job in its path."""
    job = put_job(store, RunMarathon, "error").uuid
    headers = {
        "X-User": OPERATOR,
        "X-Requested-With": "x",
        "Content-Type": content_type,
    }

    response = operated.request(
        f"/job_state/{job}", method="DELETE", headers=headers, body=body
    )

    assert response.status_code == 204


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("method", "end"), REQUESTS)
def test_csrf_options_of_the_application_apply(
    redis_url: str,
    store: JobStore,
    marathons: Marathons,
    place: str,
    method: str,
    end: str,
) -> None:
    """If the application requires CSRF tokens, an act needs one."""
    app = csrf_app(redis_url)
    job = put_job(store, RunMarathon, "success").uuid
    token = app.get("/token").text
    headers = {"X_Requested_With": "x"}

    for wrong in {}, {"X_CSRF_Token": "wrong"}:
        response = ask(app, method, f"{place}/{job}{end}", OPERATOR, **headers, **wrong)
        assert response.status_code == 400
        assert response.json["error"].startswith("The CSRF check refused the request.")
        assert load_job(store, job).status == "success"

    headers["X_CSRF_Token"] = token
    response = ask(app, method, f"{place}/{job}{end}", OPERATOR, **headers)
    assert response.status_code in (204, 409)


@pytest.mark.parametrize(("method", "end"), REQUESTS)
def test_act_on_a_job_that_is_gone_meanwhile_is_a_404(
    redis_url: str,
    client: redis.Redis,
    store: JobStore,
    marathons: Marathons,
    method: str,
    end: str,
) -> None:
    """A record that expires during the request is a 404."""

    class Slow(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            client.flushall()
            return super().permits(request, context, permission)

    config = make_config(redis_url, root_factory=operated_root, security_policy=Slow())
    app = make_app(config)
    job = put_job(store, RunMarathon, "success").uuid

    response = act(app, f"/job_state/{job}{end}", OPERATOR, method)

    assert (response.status_code, response.json) == (404, UNKNOWN)


class OwnersJob(JobState):
    """A kind whose owner may do everything with it."""

    def __acl__(self) -> list[Any]:
        return [*super().__acl__(), (Allow, self.owner, ALL_PERMISSIONS)]


@pytest.mark.parametrize(
    ("method", "end", "status", "expected"),
    [
        ("POST", "/cancel", "working", 403),
        ("POST", "/rerun", "error", 409),
        ("DELETE", "", "success", 409),
    ],
)
def test_act_on_a_job_that_becomes_an_alias_does_not_reach_the_job_of_another(
    redis_url: str,
    client: redis.Redis,
    store: JobStore,
    marathons: Marathons,
    method: str,
    end: str,
    status: str,
    expected: int,
) -> None:
    """Another's job may win the claim after the request was found to have the right to
    act on its own: the rights are those of the job that won.
    """
    theirs = put_job(store, OwnersJob, status, owner="bob", message="secret").uuid
    own = put_job(store, OwnersJob, "queued", owner="alice").uuid
    client.hset(key_of(store, own), "status", "sending")

    class Losing(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            allowed = super().permits(request, context, permission)
            make_alias(client, key_of(store, own), theirs)
            return allowed

    app = make_app(make_config(redis_url, security_policy=Losing()))

    response = act(app, f"/job_state/{own}{end}", "alice", method)

    assert response.status_code == expected
    assert "secret" not in response.text
    assert load_job(store, theirs).status == status


@pytest.mark.parametrize(("method", "end"), REQUESTS)
def test_store_that_goes_away_meanwhile_is_a_503(
    server: EmbeddedServer,
    set_broker: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    method: str,
    end: str,
) -> None:
    """A store that goes away after the job was found is a 503, and is not taken for a
    fault of the broker.
    """

    class Unplugging(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            server.stop()
            return super().permits(request, context, permission)

    options = {"root_factory": operated_root, "security_policy": Unplugging()}
    set_broker(Marathons(server.url).broker)
    app = make_app(make_config(server.url, **options))
    job = put_job(JobStore(server.url), RunMarathon, "error").uuid

    response = act(app, f"/job_state/{job}{end}", OPERATOR, method)

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json == {"error": "The job state store does not answer."}
    assert messages(caplog, "pyramid_jobstate", logging.ERROR) == []


def test_acts_are_logged(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    said: Callable[[], list[str]],
) -> None:
    """What an operator did is logged with the user; what was refused is not."""
    (job,) = marathons.fail("alice")
    other = put_job(store, RunMarathon, "working").uuid
    said()

    act(operated, f"/job_state/{job}/rerun", "bob")
    act(operated, f"/job_state/{job}/rerun")
    act(operated, f"/job_state/{job}/rerun")
    act(operated, f"/job_state/{other}", method="DELETE")
    load_job(store, job).cancel()
    act(operated, f"/job_state/{job}", KEEPER, "DELETE")

    assert said() == [
        f"'operator' ran the job {job} again.",
        f"'keeper' deleted the job {job}.",
    ]
