"""POST …/cancel, DELETE and POST …/rerun: what they do to one job, and answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import dramatiq.broker
import pytest
import redis
from pyramid.authorization import ALL_PERMISSIONS, Allow
from pyramid.csrf import CookieCSRFStoragePolicy, LegacySessionCSRFStoragePolicy
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import away, put_job
from tests.asgi import pushing
from tests.jobs import RunMarathon, messages
from tests.support import key_of, load_job
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    Marathons,
    act,
    operated_root,
    put,
    statuses,
    uuids_of,
)
from tests.webapp import Policy, ask, get, make_alias, make_app, make_config

UNKNOWN = {"error": "The job does not exist."}

#: The requests that act on one job.
REQUESTS = [("POST", "/cancel"), ("DELETE", ""), ("POST", "/rerun")]

RUNNING = ["queued", "working", "retrying", "stalled", "cancelling"]
ENDED = ["success", "error", "cancelled"]


# Cancelling.


def test_cancel_answers_the_new_state(app: TestApp, store: JobStore) -> None:
    """An unfinished job is cancelled at once, or asked to end if it runs, and the
    answer is its new state.
    """
    for status in RUNNING:
        becomes = "cancelling" if status in ("working", "cancelling") else "cancelled"
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        path = f"/job_state/{job}"
        assert get(app, path, "alice").json["job"]["cancellable"] is True

        response = act(app, f"{path}/cancel", "alice")

        assert response.status_code == 202, status
        assert response.json["job"]["status"] == becomes, status
        assert response.json == get(app, path, "alice").json
        assert response.json["job"]["cancellable"] is (becomes == "cancelling")
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert statuses(store, job) == [becomes]
        if becomes == "cancelled":
            assert response.json["job_state"] == "error"
            error = {"message": "The job was cancelled."}
            assert response.json["job"]["error"] == error
            assert uuids_of(store.list("alice", status=becomes).items)[0] == job


def test_cancel_of_a_job_that_has_ended_is_a_409(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """A job that has ended does not change."""
    for status in ENDED:
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        before = client.hgetall(key_of(store, job))
        shown = get(app, f"/job_state/{job}", "alice").json
        assert shown["job"]["cancellable"] is False

        response = act(app, f"/job_state/{job}/cancel", "alice")

        assert response.status_code == 409
        assert response.json == {"error": "The job has ended."}
        assert client.hgetall(key_of(store, job)) == before


def test_cancel_takes_any_value_of_the_header(app: TestApp, store: JobStore) -> None:
    """Only the presence of X-Requested-With counts."""
    for value in "", "XMLHttpRequest", "fetch":
        (job,) = put(store, "alice", cls=RunMarathon)

        path = f"/job_state/{job}/cancel"
        response = ask(app, "POST", path, "alice", X_Requested_With=value)

        assert response.status_code == 202


# Deleting.


def test_delete_of_an_ended_job(operated: TestApp, store: JobStore) -> None:
    """A deleted job is unknown, by itself, among others and in lists."""
    for status in ENDED:
        job = put_job(store, RunMarathon, status, owner="alice").uuid
        path = f"/job_state/{job}"

        response = act(operated, path, method="DELETE")

        assert (response.status_code, response.body) == (204, b"")
        assert "Content-Type" not in response.headers
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["Vary"] == "Accept"
        assert get(operated, path, "alice").json == UNKNOWN
        several = get(operated, f"/job_state?uuid={job}", "alice").json
        assert several == {"jobs": {job: None}}
        assert get(operated, "/job_state", "alice").json["items"] == []
        again = act(operated, path, method="DELETE")
        assert (again.status_code, again.json) == (404, UNKNOWN)


def test_delete_of_an_unfinished_job_is_a_409(
    operated: TestApp, store: JobStore
) -> None:
    """A job that has not ended stays."""
    for status in RUNNING:
        job = put_job(store, RunMarathon, status).uuid

        response = act(operated, f"/job_state/{job}/", method="DELETE")

        assert response.status_code == 409
        assert response.json == {"error": "The job has not ended."}
        assert statuses(store, job) == [status]


def test_stream_of_a_deleted_job_says_that_it_is_gone(
    redis_url: str, store: JobStore
) -> None:
    """A stream that begins after a job was deleted says that it is gone."""
    job, other = put(store, "alice", "alice", cls=RunMarathon, status="success")
    config = make_config(redis_url, root_factory=operated_root)
    with pushing(config) as server:
        options = {"method": "DELETE", "accept": None, "X_Requested_With": "x"}
        response = server.ask(f"/job_state/{job}", OPERATOR, **options)
        assert (response.status, response.body) == (204, b"")

        stream = server.open(f"/job_state?uuid={job}&uuid={other}")

        assert stream.until(lambda event: event.name == "gone").data == job
        assert stream.at(1).state["job"]["uuid"] == other


# Running again.


def test_job_that_failed_runs_again(operated: TestApp, marathons: Marathons) -> None:
    """The job is queued under its uuid at once, with its owner and its parameters, and
    runs as it did before.
    """
    (job,) = marathons.fail("alice")
    path = f"/job_state/{job}"
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


def test_rerun_of_a_job_that_has_not_failed_is_a_409(
    operated: TestApp, store: JobStore, client: redis.Redis, marathons: Marathons
) -> None:
    """Only a job that failed runs again. Others do not change."""
    for status in *RUNNING, "success", "cancelled":
        (job,) = put(store, "alice", status=status)
        before = client.hgetall(key_of(store, job))

        response = act(operated, f"/job_state/{job}/rerun")

        assert response.status_code == 409
        assert response.json == {"error": "The job has not failed."}
        assert client.hgetall(key_of(store, job)) == before


def test_rerun_of_a_job_without_a_message_is_a_410(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """A job whose message is not kept cannot run again, and the answer says why."""
    job = put_job(store, RunMarathon, "error").uuid

    response = act(operated, f"/job_state/{job}/rerun")

    assert response.status_code == 410
    assert response.json == {"error": "The store does not hold its message."}
    assert statuses(store, job) == ["error"]


def test_rerun_of_a_message_that_json_cannot_say_is_a_410(
    operated: TestApp, marathons: Marathons
) -> None:
    """A job that was sent with what only another encoder can say does not run again."""
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        (job,) = marathons.fail("alice", args=({26},))

        response = act(operated, f"/job_state/{job}/rerun")
    finally:
        dramatiq.set_encoder(before)

    assert response.status_code == 410
    assert response.json["error"].startswith("Its message cannot be kept as JSON")


# All of them.


@pytest.mark.parametrize(
    "storage", [CookieCSRFStoragePolicy, LegacySessionCSRFStoragePolicy]
)
def test_csrf_options_of_the_application_apply(
    redis_url: str, store: JobStore, marathons: Marathons, storage: Any
) -> None:
    """If the application requires CSRF tokens, an act needs one, wherever it keeps
    them, and reading does not. An act on many jobs may have it in a form.
    """
    config = make_config(redis_url, root_factory=operated_root)
    config.set_session_factory(SignedCookieSessionFactory("hush"))
    config.set_csrf_storage_policy(storage())
    config.set_default_csrf_options(require_csrf=True)
    config.add_view(
        lambda c, r: Response(storage().get_csrf_token(r)),
        name="token",
    )
    app = make_app(config)
    token = app.get("/token").text
    headers = {"X-User": OPERATOR, "X-Requested-With": "x"}
    for method, end, status in (
        ("POST", "/jobs/{job}/cancel", "working"),
        ("POST", "/job_state/{job}/cancel", "working"),
        ("POST", "/job_state/{job}/rerun", "error"),
        ("DELETE", "/job_state/{job}", "error"),
        ("POST", "/job_state/clear?all=1&everything=1", "success"),
        ("POST", "/job_state/clear?all=1&everything=1&form", "success"),
    ):
        (job,) = put(store, "alice", status=status)
        path, is_form = end.format(job=job).removesuffix("&form"), "form" in end
        for wrong in {}, {"X-CSRF-Token": "wrong"}:
            response = app.request(
                path, method=method, headers={**headers, **wrong}, status=400
            )
            text = "The CSRF check refused the request."
            assert response.json["error"].startswith(text), end
            assert statuses(store, job) == [status], end
        assert get(app, f"/job_state/{job}", OPERATOR).status_code == 200

        if is_form:
            response = app.post(path, {"csrf_token": token}, headers=headers)
        else:
            sent = {**headers, "X-CSRF-Token": token}
            response = app.request(path, method=method, headers=sent)

        assert response.status_code in (200, 202, 204), end
        assert statuses(store, job) != [status], end


def app_that(redis_url: str, call: Callable[[Request], object]) -> TestApp:
    """Return an application that calls something when a permission is asked for."""

    class Calling(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            call(request)
            return super().permits(request, context, permission)

    return make_app(
        make_config(redis_url, root_factory=operated_root, security_policy=Calling())
    )


def test_act_on_a_job_that_is_gone_meanwhile_is_a_404(
    redis_url: str, store: JobStore, marathons: Marathons
) -> None:
    """A record that expires during the request is a 404."""
    app = app_that(redis_url, lambda request: store.client.flushdb())
    for method, end in REQUESTS:
        for status in "success", "error", "working":
            (job,) = put(store, "alice", status=status)

            response = act(app, f"/job_state/{job}{end}", OPERATOR, method)

            assert (response.status_code, response.json) == (404, UNKNOWN)


def test_store_that_goes_away_meanwhile_is_a_503(
    redis_url: str, store: JobStore, marathons: Marathons, caplog: Any
) -> None:
    """A store that goes away after the job was found is a 503, and is not taken for a
    fault of the broker.
    """
    for method, end in REQUESTS:
        (job,) = put(store, "alice", status="error")
        with contextlib.ExitStack() as stack:
            app = app_that(
                redis_url,
                lambda request: stack.enter_context(away(request.job_states.store)),
            )

            response = act(app, f"/job_state/{job}{end}", OPERATOR, method)

        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        assert response.json == {"error": "The job state store does not answer."}
        assert messages(caplog, "pyramid_jobstate", logging.ERROR) == []
        assert statuses(store, job) == ["error"]


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
    # Its sender is between the two steps of a send.
    client.hset(key_of(store, own), "status", "sending")
    app = app_that(
        redis_url, lambda request: make_alias(client, key_of(store, own), theirs)
    )

    response = act(app, f"/job_state/{own}{end}", "alice", method)

    assert response.status_code == expected
    assert "secret" not in response.text
    assert load_job(store, theirs).status == status


# The log.


def test_acts_are_logged(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    said: Callable[[], list[str]],
) -> None:
    """What was done is logged with the user; what was refused is not."""
    (job,) = put(store, "alice", cls=RunMarathon, status="error")
    (other,) = put(store, "alice", cls=RunMarathon, status="working")
    said()

    act(operated, f"/job_state/{job}/rerun", "bob")
    act(operated, f"/job_state/{job}/rerun")
    act(operated, f"/job_state/{job}/rerun")
    act(operated, f"/job_state/{other}", method="DELETE")
    act(operated, f"/job_state/{job}/cancel", "bob")
    act(operated, f"/job_state/{job}/cancel", "alice")
    act(operated, f"/job_state/{job}/cancel", "alice")
    act(operated, f"/job_state/{job}", KEEPER, "DELETE")

    assert said() == [
        f"'operator' ran the job {job} again.",
        f"'alice' cancelled the job {job}.",
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
