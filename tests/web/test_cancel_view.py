"""POST …/cancel: who may cancel a job, and the responses."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import CANCELLED
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import UUID, key_of, load_job
from tests.webapp import ADMIN, PLACES, ask, get, make_app, make_config, mounted_root

ENDED = {"error": "The job has ended."}


def cancel(app: TestApp, path: str, user: str | None = "alice", **headers: str) -> Any:
    """Return the response to the request that job-state.js sends."""
    headers = {"X_Requested_With": "XMLHttpRequest", **headers}
    return ask(app, "POST", f"{path}/cancel", user, **headers)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("status", "becomes"),
    [
        ("queued", "cancelled"),
        ("retrying", "cancelled"),
        ("working", "cancelling"),
        ("stalled", "cancelled"),
        ("cancelling", "cancelling"),
    ],
)
def test_cancel_answers_the_new_state(
    app: TestApp, store: JobStore, place: str, status: str, becomes: str
) -> None:
    """The response to a cancellation is the new state: cancelled or cancelling."""
    job = put_job(store, RunMarathon, status, owner="alice").uuid

    response = cancel(app, f"{place}/{job}")

    assert response.status_code == 202
    assert response.json["job"]["status"] == becomes
    assert response.json == get(app, f"{place}/{job}", "alice").json
    assert response.json["job"]["cancellable"] is (becomes == "cancelling")
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert load_job(store, job).status == becomes


def test_cancel_is_logged(
    app: TestApp, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """A cancellation is logged with its user; unsuccessful ones are not."""
    job = put_job(store, RunMarathon, "queued", owner="alice").uuid
    said()

    cancel(app, f"/job_state/{job}", "bob")
    cancel(app, f"/job_state/{job}", "alice")
    cancel(app, f"/job_state/{job}", "alice")

    assert said() == [f"'alice' cancelled the job {job}."]


def test_cancel_by_a_visitor_is_logged(
    redis_url: str, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """Without a login, the log does not name the owner, which may be a secret."""
    settings = {"jobstate.owner": lambda request: "visitor 7"}
    app = make_app(make_config(redis_url, settings=settings))
    job = put_job(store, RunMarathon, "queued", owner="visitor 7").uuid
    said()

    cancel(app, f"/job_state/{job}", None)

    assert said() == [f"A visitor without a login cancelled the job {job}."]


def test_cancelled_job_says_why_and_is_listed_as_ended(
    app: TestApp, store: JobStore
) -> None:
    """A job cancelled in the queue says why, and lists show it as ended."""
    job = put_job(store, RunMarathon, "queued", owner="alice").uuid

    response = cancel(app, f"/job_state/{job}")

    assert response.json["job_state"] == "error"
    assert response.json["job"]["error"] == {"message": CANCELLED.message}
    assert [j.uuid for j in store.list("alice", status="cancelled").items] == [job]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("status", ["success", "error", "cancelled"])
def test_cancel_of_a_job_that_has_ended_is_a_409(
    app: TestApp, store: JobStore, client: redis.Redis, place: str, status: str
) -> None:
    """A job that has ended does not change."""
    job = put_job(store, status=status, owner="alice").uuid
    before = client.hgetall(key_of(store, job))

    response = cancel(app, f"{place}/{job}")

    assert response.status_code == 409
    assert response.json == ENDED
    assert client.hgetall(key_of(store, job)) == before


def test_cancel_of_a_job_that_is_gone_meanwhile_is_a_404(
    app: TestApp, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that expires during the request is a 404."""
    job = put_job(store, owner="alice").uuid

    def expire(store: JobStore, uuid: str, info: Any, **options: Any) -> bool:
        store.client.delete(key_of(store, uuid))
        return False

    monkeypatch.setattr(JobStore, "cancel", expire)

    for place in PLACES:
        response = cancel(app, f"{place}/{job}")
        assert response.status_code == 404
        assert response.json == {"error": "The job does not exist."}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("user", "status"), [("alice", 202), (ADMIN, 202), ("bob", 403), (None, 403)]
)
def test_cancel_needs_cancel_job(
    app: TestApp, store: JobStore, place: str, user: str | None, status: int
) -> None:
    """The owner and those whom the root allows may cancel a job, and nobody else."""
    job = put_job(store, RunMarathon, owner="alice").uuid

    response = cancel(app, f"{place}/{job}", user)

    assert response.status_code == status
    if status == 403:
        assert response.json == {"error": "You may not do this with the job."}
        assert load_job(store, job).status == "working"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [UUID, "x", UUID.upper(), f"{UUID}/x"])
def test_cancel_of_no_job_is_a_404(app: TestApp, place: str, name: str) -> None:
    """Cancelling an unknown job or an invalid name is a 404."""
    response = cancel(app, f"{place}/{name}")

    assert response.status_code == 404
    assert response.json == {"error": "The job does not exist."}


@pytest.mark.parametrize("place", PLACES)
def test_cancel_needs_the_header(app: TestApp, store: JobStore, place: str) -> None:
    """Nobody can cancel without a header that forms cannot send."""
    job = put_job(store, owner="alice").uuid

    response = ask(app, "POST", f"{place}/{job}/cancel", "alice")

    assert response.status_code == 400
    assert "X-Requested-With" in response.json["error"]
    assert load_job(store, job).status == "working"


@pytest.mark.parametrize("value", ["", "XMLHttpRequest", "fetch"])
def test_cancel_takes_any_value_of_the_header(
    app: TestApp, store: JobStore, value: str
) -> None:
    """Only the presence of the header counts."""
    job = put_job(store, owner="alice").uuid

    response = cancel(app, f"/job_state/{job}", X_Requested_With=value)

    assert response.status_code == 202


def test_form_of_another_site_cancels_nothing(app: TestApp, store: JobStore) -> None:
    """Fields of a form or a query do not replace the header."""
    job = put_job(store, owner="alice").uuid

    response = app.post(
        f"/job_state/{job}/cancel?X-Requested-With=x",
        {"X-Requested-With": "x", "_method": "POST"},
        headers={"X-User": "alice"},
        status=400,
    )

    assert "X-Requested-With" in response.json["error"]
    assert load_job(store, job).status == "working"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_cancel_is_only_posted(
    app: TestApp, store: JobStore, place: str, method: str
) -> None:
    """Only a POST cancels, and method overrides are ignored."""
    job = put_job(store, owner="alice").uuid
    headers = {"X_Requested_With": "x", "X_HTTP_Method_Override": "POST"}

    response = ask(
        app, method, f"{place}/{job}/cancel?_method=POST", "alice", **headers
    )

    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        assert response.json == {"error": f"The method {method} is not allowed here."}
    assert load_job(store, job).status == "working"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", ["/x", "/x/y", "//x"])
def test_nothing_cancels_below_the_cancel(
    app: TestApp, store: JobStore, place: str, end: str
) -> None:
    """A path below …/cancel is a 404."""
    job = put_job(store, owner="alice").uuid

    response = ask(
        app, "POST", f"{place}/{job}/cancel{end}", "alice", X_Requested_With="x"
    )

    assert response.status_code == 404
    assert response.json == {"error": "The job does not exist."}
    assert load_job(store, job).status == "working"


@pytest.mark.parametrize("place", PLACES)
def test_store_that_is_away_is_a_503(server: EmbeddedServer, place: str) -> None:
    """While the store is away, cancelling is a 503."""
    app = make_app(make_config(server.url, root_factory=mounted_root))
    store = JobStore(server.url)
    job = put_job(store, owner="alice").uuid
    server.stop()

    response = cancel(app, f"{place}/{job}")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("place", PLACES)
def test_store_that_goes_away_meanwhile_is_a_503(
    server: EmbeddedServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that goes away after the job was found is a 503, too."""
    app = make_app(make_config(server.url, root_factory=mounted_root))
    job = put_job(JobStore(server.url), owner="alice").uuid
    real = JobStore.cancel

    def stop(store: JobStore, uuid: str, info: Any, **options: Any) -> bool:
        server.stop()
        return real(store, uuid, info, **options)

    monkeypatch.setattr(JobStore, "cancel", stop)

    assert cancel(app, f"{place}/{job}").status_code == 503


# The application's CSRF protection.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("storage", ["session", "cookie"])
def test_csrf_options_of_the_application_apply(
    redis_url: str, store: JobStore, place: str, storage: str
) -> None:
    """If the application requires CSRF tokens, a POST needs one, but a GET does not."""
    config = make_config(redis_url, root_factory=mounted_root)
    config.set_session_factory(SignedCookieSessionFactory("hush"))
    if storage == "cookie":
        config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    config.add_view(lambda c, r: Response(r.session.get_csrf_token()), name="session")
    config.add_view(
        lambda c, r: Response(CookieCSRFStoragePolicy().get_csrf_token(r)),
        name="cookie",
    )
    app = make_app(config)
    job = put_job(store, owner="alice").uuid
    token = app.get(f"/{storage}").text

    for headers in {}, {"X_CSRF_Token": "wrong"}:
        response = cancel(app, f"{place}/{job}", **headers)
        assert response.status_code == 400
        assert "CSRF" in response.text
        assert load_job(store, job).status == "working"
    assert get(app, f"{place}/{job}", "alice").status_code == 200

    assert cancel(app, f"{place}/{job}", X_CSRF_Token=token).status_code == 202


# `cancellable` in the JSON.


@pytest.mark.parametrize(
    ("status", "user", "cancellable"),
    [
        ("working", "alice", True),
        ("working", ADMIN, True),
        ("working", "viewer", False),
        ("queued", "alice", True),
        ("stalled", "alice", True),
        ("retrying", "alice", True),
        ("cancelling", "alice", True),
        ("success", "alice", False),
        ("error", "alice", False),
        ("cancelled", "alice", False),
        ("success", ADMIN, False),
    ],
)
def test_cancellable_says_who_could(
    app: TestApp,
    store: JobStore,
    status: str,
    user: str,
    cancellable: bool,
) -> None:
    """`cancellable` tells a page whether this user could cancel the job."""
    job = put_job(store, Spectacle, status, owner="alice").uuid

    assert get(app, f"/job_state/{job}", user).json["job"]["cancellable"] is cancellable
    status_code = cancel(app, f"/job_state/{job}", user).status_code
    assert (status_code == 202) is cancellable


class Spectacle(JobState):
    """A kind of job that another user may view."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [*super().__acl__(), ("Allow", "viewer", "view_job")]
