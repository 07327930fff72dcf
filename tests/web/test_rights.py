"""Who may do what to whose job: the table, and attempts to get round it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

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
from tests.web.paging import browse, paged_app
from tests.webapp import ADMIN, PLACES, Root, ask, get, make_app, make_config

SECRET = "hush-4711"

FORBIDDEN = {"error": "You may not do this with the job."}

#: What each user may do with a job of Alice's, and with all jobs.
USERS: dict[str | None, set[str]] = {
    None: set(),
    "bob": set(),
    "alice": {"view_job", "cancel_job"},
    "viewer": {"view_job"},
    "canceller": {"cancel_job"},
    "deleter": {"delete_job"},
    "runner": {"rerun_job"},
    "inspector": {"inspect_job"},
    "lister": {"list_jobs"},
    ADMIN: {"view_job", "cancel_job", "list_jobs"},
    KEEPER: {"view_job", "cancel_job", "delete_job", "rerun_job", "inspect_job"},
    OPERATOR: {
        *("view_job", "cancel_job", "delete_job", "rerun_job", "inspect_job"),
        "list_jobs",
    },
}


class Roles(Root):
    """A root that gives each user but Alice and Bob their rights. It gives everybody
    what other resources need.
    """

    __acl__ = (
        (Allow, Everyone, ("view", "edit", "read", "list", "cancel", "delete", "add")),
        *((Allow, u, [*may]) for u, may in USERS.items() if u not in (None, "alice")),
    )


@pytest.fixture
def roles(redis_url: str, marathons: Marathons) -> TestApp:
    """An application with pages whose users have the rights of the table."""
    return paged_app(redis_url, root_factory=Roles)


#: Requests for one job in a status: the right that each needs, and the status of the
#: answer to those who have it.
ON_ONE = [
    ("GET", "/{job}", "working", "view_job", 200),
    ("GET", "/{job}/inspect", "error", "inspect_job", 200),
    ("GET", "/{job}/inspect?x=1", "error", "inspect_job", 400),
    ("POST", "/{job}/cancel", "working", "cancel_job", 202),
    ("POST", "/{job}/cancel", "success", "cancel_job", 409),
    ("POST", "/{job}/rerun", "error", "rerun_job", 202),
    ("POST", "/{job}/rerun", "working", "rerun_job", 409),
    ("POST", "/{job}/rerun?x=1", "error", "rerun_job", 400),
    ("DELETE", "/{job}", "error", "delete_job", 204),
    ("DELETE", "/{job}", "working", "delete_job", 409),
    ("DELETE", "/{job}?x=1", "error", "delete_job", 400),
]


def test_rights_on_one_job(roles: TestApp, store: JobStore) -> None:
    """Each request for a job needs its own right, which no other includes. A refusal
    depends on nothing else: not on the job's status, the header or the query.
    """
    for method, end, status, right, code in ON_ONE:
        for user, may in USERS.items():
            (job,) = put(store, "alice", cls=RunMarathon, status=status)
            path = "/job_state" + end.format(job=job)

            response = act(roles, path, user, method)

            case = method, end, status, user
            if right in may:
                assert response.status_code == code, case
                continue
            assert (response.status_code, response.json) == (403, FORBIDDEN), case
            if method != "GET":
                assert ask(roles, method, path, user).status_code == 403, case
            assert statuses(store, job) == [status], case


#: Requests for many jobs: the right that each needs, whether it names everybody's jobs
#: or those of one owner.
ON_MANY = [
    ("GET", "", None),
    ("GET", "/counts", None),
    ("POST", "/clear", "delete_job"),
    ("POST", "/cancel", "cancel_job"),
    ("POST", "/rerun", "rerun_job"),
]


def test_rights_on_the_jobs_of_others(roles: TestApp, store: JobStore) -> None:
    """Whatever names others, or all, needs list_jobs, even of users whom each single
    job would let do it. Whoever has list_jobs acts on those jobs that let them, and
    reads how many do not.
    """
    acted_on = {"/clear": "success", "/cancel": "queued", "/rerun": "error"}
    listers = {user for user, may in USERS.items() if "list_jobs" in may}
    for method, end, right in ON_MANY:
        status = acted_on.get(end, "success")
        more = "&everything=1" if method == "POST" else ""
        queries = ["", "x=1"] if end == "/counts" else ["all=1", "owner=carol"]
        paths = [f"/job_state{end}?{query}{more}" for query in queries]
        (job,) = put(store, "carol", cls=RunMarathon, status=status)
        for user in USERS.keys() - listers:
            for path in paths:
                response = act(roles, path, user, method)
                assert response.status_code == 403, (path, user)
                assert response.json == FORBIDDEN, (path, user)
        assert statuses(store, job) == [status], end
        for user in listers if right else ():
            for path in paths:
                store.client.flushdb()
                (job,) = put(store, "carol", cls=RunMarathon, status=status)

                response = act(roles, path, user, method)

                done = int(right in USERS[user])
                answer = {"done": done, "refused": 1 - done, "cursor": None}
                assert response.json == answer, (path, user)
                assert (statuses(store, job) == [status]) is not bool(done)


def test_lists_show_what_may_be_viewed(roles: TestApp, store: JobStore) -> None:
    """A list, and a request for several jobs, have those jobs alone that the viewer may
    view, and say of each whether the viewer may cancel it.
    """
    put(store, "bob", None, cls=RunMarathon)
    (job,) = put(store, "alice", cls=RunMarathon)
    for user, may in USERS.items():
        state = get(roles, f"/job_state?uuid={job}", user).json["jobs"][job]
        items = get(roles, "/job_state?limit=5", user).json["items"]
        assert (state is not None) is ("view_job" in may), user
        own = {"alice": 1, "bob": 1}.get(user or "", 0)
        assert len(items) == own, user
        if state is not None:
            assert state["job"]["cancellable"] is ("cancel_job" in may), user
        page = browse(roles, f"/job_state/{job}", user)
        assert (page.status_code == 200) is ("view_job" in may), user
        if "list_jobs" in may:
            found = get(roles, "/job_state?all=1", user).json["items"]
            assert len(found) == (3 if "view_job" in may else 0), user


def test_application_without_a_policy_opens_nothing(
    redis_url: str, store: JobStore, marathons: Marathons
) -> None:
    """Without a security policy, nobody reads or changes anything, whatever the root
    allows. Of many jobs, nobody owns any.
    """
    options = {"root_factory": operated_root, "security_policy": None}
    app = make_app(make_config(redis_url, **options))
    for user in "alice", OPERATOR, None:
        for method, end, status, _, _ in ON_ONE:
            (job,) = put(store, "alice", cls=RunMarathon, status=status)
            response = act(app, "/job_state" + end.format(job=job), user, method)
            assert response.status_code == 403, (method, end)
            assert statuses(store, job) == [status]
        for method, end, right in ON_MANY:
            query = "all=1&everything=1" if right else "" if end else "all=1"
            path = f"/job_state{end}?{query}"
            assert act(app, path, user, method).status_code == 403, path
            if right is not None:
                response = act(app, f"/job_state{end}?everything=1", user)
                assert response.json == {"done": 0, "cursor": None}


# Attempts.


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
    {"X_Forwarded_User": "alice", "Remote_User": "alice", "X_Remote_User": "alice"},
    {"X_HTTP_Method_Override": "GET", "X_Original_Method": "GET"},
    {"If_None_Match": "*"},
    {"If_Modified_Since": "Thu, 01 Jan 2030 00:00:00 GMT", "Range": "bytes=0-9"},
    {"Origin": "https://evil.example", "Access_Control_Request_Method": "GET"},
    {"Cookie": "auth_tkt=alice; user=alice", "Authorization": "Basic YWxpY2U6"},
    {"X_Forwarded_For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "Host": "localhost"},
]


def assert_shows_nothing(
    app: TestApp, method: str, path: str, user: str | None, **headers: str
) -> None:
    """Assert that a request tells nothing of the secret, and does not fail."""
    response = ask(app, method, path, user, **headers)
    case = method, path, user, headers
    assert SECRET not in response.text, case
    assert SECRET not in str(response.headers), case
    assert response.status_code in (200, 304, 400, 403, 404, 405, 409), case
    if response.status_code == 200 and method == "GET" and response.body:
        assert not response.json.get("items"), case
        assert not any(response.json.get("jobs", {}).values()), case


@pytest.fixture
def unlinted(app: TestApp) -> TestApp:
    """The shared application without lint, as WebTest refuses odd methods."""
    return TestApp(app.app, lint=False)


def test_others_learn_nothing(
    unlinted: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """No path, query or method lets other users see or change anything, and no header
    makes somebody Alice.
    """
    job = put_secret(store)
    before = client.hgetall(key_of(store, job))

    for place in PLACES:
        for method, path in ways_in(place, job):
            assert_shows_nothing(unlinted, method, path, "bob", X_Requested_With="x")
    for headers in HEADERS:
        for method, end in (
            ("GET", f"/{job}"),
            ("GET", ""),
            ("GET", f"?uuid={job}"),
            ("GET", "?all=1"),
            ("POST", f"/{job}/cancel"),
        ):
            assert_shows_nothing(unlinted, method, PLACES[0] + end, None, **headers)

    assert client.hgetall(key_of(store, job)) == before


@pytest.mark.parametrize("user", ["Alice", "alice ", "ALICE", "", None])
def test_similar_names_are_others(
    unlinted: TestApp, store: JobStore, user: str | None
) -> None:
    """A user whose name is nearly that of the owner learns nothing either."""
    job = put_secret(store)

    for method, path in ways_in("/job_state", job):
        assert_shows_nothing(unlinted, method, path, user, X_Requested_With="x")
    assert load_job(store, job).status == "working"


def test_owner_is_let_in_by_the_same_ways(unlinted: TestApp, store: JobStore) -> None:
    """Many of these requests do show the job to its owner: they could leak it."""
    job = put_secret(store)

    shown = [
        path
        for method, path in ways_in("/job_state", job)
        if method == "GET" and SECRET in ask(unlinted, method, path, "alice").text
    ]

    assert len(shown) >= 10


def test_forged_uuids_find_nothing(
    app: TestApp, store: JobStore, client: redis.Redis
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
        for path in f"/job_state/{name}", f"/jobs/{name}", f"/job_state?uuid={name}":
            response = get(app, path, "bob")
            assert SECRET not in response.text
            assert response.status_code in (200, 404)


# Rights of a class, and of a policy.


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


def test_acl_of_a_class_may_use_the_parameters(app: TestApp, store: JobStore) -> None:
    """The class decides by the parameters who may view, list and cancel its jobs."""
    params = {"next_runner": "bob", "coach": "carol"}
    job = put_secret(store, Relay, params=params)
    path = f"/job_state/{job}"

    def rights(user: str) -> tuple[int, bool, int, int]:
        batch = get(app, f"/job_state?uuid={job}", user).json["jobs"]
        listed = get(app, "/job_state", user).json["items"]
        return (
            get(app, path, user).status_code,
            batch[job] is not None,
            len(listed),
            act(app, f"{path}/cancel", user).status_code,
        )

    assert rights("bob") == (200, True, 0, 403)
    assert rights("alice") == (403, False, 0, 403)
    assert rights("dave") == (403, False, 0, 403)
    assert rights(ADMIN) == (200, True, 0, 403)
    items = get(app, "/job_state?owner=alice", ADMIN).json["items"]
    assert uuids_of(items) == [job]
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
        assert act(app, path, None, method).status_code in (200, 202)
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
        assert_shows_nothing(app, method, path, "alice", X_Requested_With="x")
    assert load_job(store, job).status == "working"


# Records that are strange.


def test_unknown_kind_has_only_the_lineages_rights(
    unlinted: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """The root alone decides about a kind that this process has not imported."""
    job = put_secret(store)
    client.hset(key_of(store, job), "kind", "NeverImported")

    for method, path in ways_in("/job_state", job):
        assert_shows_nothing(unlinted, method, path, "alice", X_Requested_With="x")
    assert load_job(store, job).status == "working"
    for place in PLACES:
        assert_shows_nothing(unlinted, "GET", f"{place}/{job}", "alice")
        for end in f"/{job}", f"?uuid={job}", "?owner=alice":
            assert SECRET in get(unlinted, place + end, ADMIN).text
    assert act(unlinted, f"/job_state/{job}/cancel", ADMIN).status_code == 202


HOSTILE: list[tuple[str, str | bytes]] = [
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
]


def test_hostile_record_gives_no_rights(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """An owner or kind that cannot be parsed gives nobody rights, and does not break a
    request for several jobs, or a list.
    """
    for field, value in HOSTILE:
        job = put_secret(store)
        client.hset(key_of(store, job), field, value)

        for user in "bob", "alice", None:
            for method, end in (
                ("GET", f"/{job}"),
                ("GET", f"?uuid={job}"),
                ("GET", ""),
                ("POST", f"/{job}/cancel"),
            ):
                path = f"/job_state{end}"
                assert_shows_nothing(app, method, path, user, X_Requested_With="x")
        assert get(app, f"/job_state?uuid={job}", ADMIN).json["jobs"][job]
        assert get(app, "/job_state?owner=alice", ADMIN).status_code == 200


def test_hostile_status_is_not_cancelled(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """A job with an invalid status cannot be cancelled."""
    for status in "", "<b>", "waiting ", "SUCCESS", b"\xff":
        job = put_secret(store)
        client.hset(key_of(store, job), "status", status)

        response = act(app, f"/job_state/{job}/cancel", "alice")

        assert response.status_code == 409, status
        assert response.json == {"error": "The job has ended."}, status


# Users who are called like everybody.


def test_user_named_like_everybody_owns_nothing(
    redis_url: str, marathons: Marathons
) -> None:
    """If somebody could choose such a userid, everybody would own their jobs. Instead,
    these have no owner, as with Pyramid's own authentication policies.
    """
    actor = marathons.run_marathon
    config = make_config(redis_url)

    def send(context: Any, request: Request) -> dict[str, Any]:
        job_state = request.job_states.send_immediately(actor, 1)
        return {"uuid": job_state.uuid, "owner": job_state.owner}

    config.add_view(send, name="send", renderer="json")
    app = make_app(config)
    for name in Everyone, Authenticated:
        sent = get(app, "/send", name).json

        assert sent["owner"] is None
        assert get(app, f"/job_state/{sent['uuid']}", "bob").status_code == 403
        assert get(app, f"/job_state/{sent['uuid']}", name).status_code == 403
        assert get(app, "/job_state", name).json["items"] == []


def test_application_may_open_a_job_to_everybody(
    app: TestApp, marathons: Marathons
) -> None:
    """A send may name any principal as the owner explicitly, even Everyone."""
    message = marathons.run_marathon.send_with_options(args=(1,), job_owner=Everyone)

    assert get(app, f"/job_state/{message.message_id}").status_code == 200
