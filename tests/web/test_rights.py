"""Attempts to see, list or cancel jobs without permission."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq.broker
import pytest
import redis
from pyramid.authorization import Allow, Authenticated, Deny, Everyone
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import key_of, load_job
from tests.webapp import (
    ADMIN,
    PLACES,
    Root,
    ask,
    get,
    make_app,
    make_broker,
    make_config,
    make_request,
)

SECRET = "hush-4711"


class Relay(JobState):
    """A kind of job that the next runner may see and the coach may cancel. Its owner
    may do neither.
    """

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [
            (Allow, self.get_job_param("next_runner"), "view_job"),
            (Allow, self.job_params["coach"], ("view_job", "cancel_job")),
            (Deny, Everyone, "cancel_job"),
            (Deny, self.owner, "view_job"),
        ]


@pytest.fixture
def app(app: TestApp) -> TestApp:
    """Override: the shared application without lint, as WebTest refuses odd methods."""
    return TestApp(app.app, lint=False)


def put_secret(
    store: JobStore, cls: type[JobState] = RunMarathon, **options: Any
) -> str:
    """Write a job of Alice's with a secret in every field that can hold one."""
    usual: dict[str, Any] = {
        "owner": "alice",
        "params": {"miles": SECRET},
        "metrics": {"secret": SECRET},
        "message": SECRET,
        "log": [SECRET],
    }
    return put_job(store, cls, **{**usual, **options}).uuid


def ways_in(place: str, job: str) -> Iterator[tuple[str, str]]:
    """Yield every request that could show something of a job."""
    for method in "GET", "HEAD", "POST", "OPTIONS", "TRACE", "PROPFIND", "get":
        yield method, f"{place}/{job}"
    yield "POST", f"{place}/{job}/cancel"
    for query in (
        f"uuid={job}",
        f"uuid=x&uuid={job}",
        f"uuid={job}&all=1",
        "",
        "owner=alice",
        "all=1",
        "owner=",
        "kind=RunMarathon",
        "status=working",
        "status=working&kind=RunMarathon&limit=200",
        f"cursor=a9000000000000000.{job}",
        "Owner=alice",
        "owner%00=alice",
        "owner[]=alice",
    ):
        yield "GET", f"{place}?{query}"
    for path in (
        f"/{job}/",
        f"//{job}",
        f"/./{job}",
        f"/x/../{job}",
        f"/{job}/.",
        f"/{job}%2f",
        f"/%2e%2e/job_state/{job}",
        f"/{job}/@@",
        f"/{job}/@@cancel",
        f"/{job}/@@cancel/",
        f"/{job}?view=show",
        f"/{job}#x",
        f"/{job};user=alice",
    ):
        yield "GET", place + path


HEADERS: list[dict[str, str]] = [
    {},
    {"X_Requested_With": "XMLHttpRequest"},
    {"X_Forwarded_User": "alice", "Remote_User": "alice", "X_Remote_User": "alice"},
    {"X_HTTP_Method_Override": "GET", "X_Original_Method": "GET"},
    {"If_None_Match": "*"},
    {"If_Modified_Since": "Thu, 01 Jan 2030 00:00:00 GMT", "Range": "bytes=0-9"},
    {"Origin": "https://evil.example", "Access_Control_Request_Method": "GET"},
    {"Cookie": "auth_tkt=alice; user=alice", "Authorization": "Basic YWxpY2U6"},
    {"X_Forwarded_For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "Host": "localhost"},
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", ["bob", "Alice", "alice ", "ALICE", "", None])
def test_others_learn_nothing(
    app: TestApp, store: JobStore, client: redis.Redis, place: str, user: str | None
) -> None:
    """No path, query, method or header lets other users see or change anything."""
    job = put_secret(store)
    before = client.hgetall(key_of(store, job))

    for method, path in ways_in(place, job):
        for headers in HEADERS if method in ("GET", "POST") else HEADERS[:1]:
            response = ask(app, method, path, user, **headers)
            assert SECRET not in response.text, (method, path, headers)
            assert SECRET not in str(response.headers)
            assert response.status_code in (200, 400, 403, 404, 405), (method, path)
            if response.status_code == 200 and method == "GET":
                assert not response.json.get("items")
                assert not any(response.json.get("jobs", {}).values())

    assert client.hgetall(key_of(store, job)) == before


@pytest.mark.parametrize("place", PLACES)
def test_owner_is_let_in_by_the_same_ways(
    app: TestApp, store: JobStore, place: str
) -> None:
    """Many of these requests do show the job to its owner: the test above is sound."""
    job = put_secret(store)

    shown = [
        path
        for method, path in ways_in(place, job)
        if method == "GET" and SECRET in ask(app, method, path, "alice").text
    ]

    assert len(shown) >= 10


@pytest.mark.parametrize("place", PLACES)
def test_forged_uuids_find_nothing(
    app: TestApp, store: JobStore, client: redis.Redis, place: str
) -> None:
    """No name leads to another key of the store or of another program."""
    put_secret(store)
    client.hset("jobstate:secret", mapping={"owner": '"bob"', "m:x": f'"{SECRET}"'})
    client.hset("secret", mapping={"owner": '"bob"', "m:x": f'"{SECRET}"'})

    for name in (
        "secret",
        "active:all",
        "ended:all",
        "*",
        "active:owner:%22alice%22",
        "..%2Fsecret",
        "%00",
        "00000000-0000-0000-0000-000000000000",
        str(uuid.uuid1()),
        "x" * 36,
        "-" * 36,
    ):
        for path in f"{place}/{name}", f"{place}?uuid={name}":
            response = get(app, path, "bob")
            assert SECRET not in response.text
            assert response.status_code in (200, 404)


def test_root_that_gives_view_to_everyone_opens_nothing(
    redis_url: str, store: JobStore
) -> None:
    """Common permissions such as "view" open no jobs, however they are requested."""

    class OpenRoot(Root):
        __acl__ = (
            (Allow, Everyone, ("view", "edit", "read", "list", "cancel", "add")),
        )

    app = make_app(make_config(redis_url, root_factory=OpenRoot))
    app.lint = False
    job = put_secret(store)

    for user in "bob", None:
        for method, path in ways_in("/job_state", job):
            response = ask(app, method, path, user, X_Requested_With="x")
            assert SECRET not in response.text


def test_acl_of_a_class_may_use_the_parameters(app: TestApp, store: JobStore) -> None:
    """The class decides by the parameters who may view, list and cancel its jobs."""
    params = {"next_runner": "bob", "coach": "carol"}
    job = put_secret(store, Relay, params=params)
    path = f"/job_state/{job}"

    def rights(user: str) -> tuple[int, bool, int, int]:
        batch = get(app, f"/job_state?uuid={job}", user).json["jobs"]
        listed = get(app, "/job_state", user).json["items"]
        cancelled = ask(app, "POST", f"{path}/cancel", user, X_Requested_With="x")
        return (
            get(app, path, user).status_code,
            batch[job] is not None,
            len(listed),
            cancelled.status_code,
        )

    assert rights("bob") == (200, True, 0, 403)
    assert rights("alice") == (403, False, 0, 403)
    assert rights("dave") == (403, False, 0, 403)
    assert rights(ADMIN) == (200, True, 0, 403)
    assert rights("carol") == (200, True, 0, 202)


class Rules:
    """A policy without ACLs or principals."""

    def __init__(self, permits: Callable[[Any, str], bool]) -> None:
        self._permits = permits

    def identity(self, request: Request) -> None:
        return None

    def authenticated_userid(self, request: Request) -> str:
        return "alice"

    def permits(self, request: Request, context: Any, permission: str) -> bool:
        return self._permits(context, permission)


def test_policy_without_acls_decides_by_permission_and_context(
    redis_url: str, store: JobStore
) -> None:
    """Each request asks the policy for the documented permission on the documented
    context.
    """
    asked: set[tuple[type, str]] = set()

    def note(context: Any, permission: str) -> bool:
        asked.add((type(context), permission))
        return True

    job = put_secret(store)
    app = make_app(make_config(redis_url, security_policy=Rules(note)))

    def permissions(method: str, path: str) -> set[tuple[type, str]]:
        asked.clear()
        assert ask(app, method, path, X_Requested_With="x").status_code in (200, 202)
        return set(asked)

    view, cancel = (RunMarathon, "view_job"), (RunMarathon, "cancel_job")
    assert permissions("GET", f"/job_state/{job}") == {view, cancel}
    assert permissions("GET", f"/job_state?uuid={job}") == {view, cancel}
    assert permissions("GET", "/job_state") == {view, cancel}
    assert permissions("POST", f"/job_state/{job}/cancel") == {cancel}
    lists = {(JobStates, "list_jobs"), view, cancel}
    assert permissions("GET", "/job_state?all=1") == lists
    assert permissions("GET", "/job_state?owner=alice") == lists


def test_policy_that_refuses_everything_is_obeyed(
    redis_url: str, store: JobStore
) -> None:
    """Ownership has no effect in a policy that ignores ACLs."""
    job = put_secret(store)
    policy = Rules(lambda context, permission: False)
    app = make_app(make_config(redis_url, security_policy=policy))
    app.lint = False

    for method, path in ways_in("/job_state", job):
        response = ask(app, method, path, "alice", X_Requested_With="x")
        assert SECRET not in response.text
    assert load_job(store, job).status == "working"


@pytest.mark.parametrize("name", [Everyone, Authenticated])
def test_user_named_like_everybody_owns_nothing(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    """If somebody could choose such a userid, everybody would own their jobs. Instead,
    these have no owner, as with Pyramid's own authentication policies.
    """
    config = make_config(redis_url)
    app = make_app(config)
    run_marathon = make_broker(redis_url).get_actor("run_marathon")

    job_state = make_request(config, name).job_states.send_immediately(run_marathon, 1)

    assert job_state.owner is None
    assert get(app, f"/job_state/{job_state.uuid}", "bob").status_code == 403
    assert get(app, f"/job_state/{job_state.uuid}", name).status_code == 403
    assert get(app, "/job_state", name).json["items"] == []


def test_application_may_open_a_job_to_everybody(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view may name any principal as the owner explicitly, even Everyone."""
    broker = make_broker(redis_url)
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    config = make_config(redis_url)
    app = make_app(config)
    message = broker.get_actor("run_marathon").message_with_options(
        args=(1,), job_owner=Everyone
    )

    job_state = make_request(config, "alice").job_states.send_immediately(message)

    assert get(app, f"/job_state/{job_state.uuid}").status_code == 200


@pytest.mark.parametrize("place", PLACES)
def test_unknown_kind_has_only_the_lineages_rights(
    app: TestApp, store: JobStore, client: redis.Redis, place: str
) -> None:
    """The root alone decides about a kind that this process has not imported, wherever
    the job is requested.
    """
    job = put_secret(store)
    client.hset(key_of(store, job), "kind", "NeverImported")

    for method, path in ways_in(place, job):
        response = ask(app, method, path, "alice", X_Requested_With="x")
        assert SECRET not in response.text, (method, path)
    assert load_job(store, job).status == "working"
    assert SECRET in get(app, f"{place}/{job}", ADMIN).text
    assert SECRET in get(app, f"{place}?uuid={job}", ADMIN).text
    assert SECRET in get(app, f"{place}?owner=alice", ADMIN).text
    cancelled = ask(app, "POST", f"{place}/{job}/cancel", ADMIN, X_Requested_With="x")
    assert cancelled.status_code == 202


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("owner", '["bob"]'),
        ("owner", '{"bob": 1}'),
        ("owner", "bob"),
        ("owner", "true"),
        ("owner", '"bob"x'),
        ("owner", "[" * 100_000),
        ("owner", b"\xff"),
        ("kind", ""),
        ("kind", "_UnknownKind"),
        ("kind", "JobState\x00"),
        ("kind", b"\xff"),
    ],
)
def test_hostile_record_gives_no_rights(
    app: TestApp, store: JobStore, client: redis.Redis, field: str, value: str | bytes
) -> None:
    """An owner or kind that cannot be parsed gives nobody rights, and does not break a
    batch or list.
    """
    job = put_secret(store)
    client.hset(key_of(store, job), field, value)

    for user in "bob", "alice", None:
        for method, path in ways_in("/job_state", job):
            response = ask(app, method, path, user, X_Requested_With="x")
            assert SECRET not in response.text, (user, method, path)
            assert response.status_code < 500
    assert get(app, f"/job_state?uuid={job}", ADMIN).json["jobs"][job]


@pytest.mark.parametrize("status", ["", "<b>", "waiting ", "SUCCESS", b"\xff"])
def test_hostile_status_is_not_cancelled(
    app: TestApp, store: JobStore, client: redis.Redis, status: str | bytes
) -> None:
    """A job with an invalid status cannot be cancelled."""
    job = put_secret(store)
    client.hset(key_of(store, job), "status", status)

    response = ask(
        app, "POST", f"/job_state/{job}/cancel", "alice", X_Requested_With="x"
    )

    assert response.status_code == 409
    assert json.loads(response.body) == {"error": "The job has ended."}
