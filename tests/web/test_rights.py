"""Who may do what to whose job: the table, and attempts to get round it."""

from typing import Any

import pytest
from pyramid.authorization import Allow, Authenticated, Deny, Everyone
from webtest import TestApp

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.testing import put_batch
from tests.jobs import RunMarathon
from tests.support import key_of
from tests.web.operating import (
    ACTS,
    OPERATOR,
    LockedDiary,
    Marathons,
    act,
    operated_root,
    put,
    statuses,
    uuids_of,
)
from tests.web.paging import Visit, browse, paged_app
from tests.web.reading import FORBIDDEN
from tests.webapp import ADMIN, Root, ask, get, make_app, make_config, make_request

SECRET = "hush-4711"

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
    OPERATOR: {"view_job", "cancel_job", "list_jobs", *ACTS},
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
    ("POST", "/{job}/stack", "working", "inspect_job", 202),
    ("POST", "/{job}/stack", "success", "inspect_job", 409),
    ("GET", "/{job}/log", "error", "view_job", 200),
    ("POST", "/{job}/cancel", "working", "cancel_job", 202),
    ("POST", "/{job}/cancel", "success", "cancel_job", 409),
    ("POST", "/{job}/rerun", "error", "rerun_job", 202),
    ("POST", "/{job}/rerun", "working", "rerun_job", 409),
    ("DELETE", "/{job}", "error", "delete_job", 204),
    ("DELETE", "/{job}", "working", "delete_job", 409),
    ("DELETE", "/{job}?x=1", "error", "delete_job", 400),
]


@pytest.mark.promise("owner-sees-own-jobs")
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


def test_act_shows_the_state_to_viewers(roles: TestApp, store: JobStore) -> None:
    """The answer to an act is the state for those who may view the job. It has uuid and
    status alone for the others, also if they ask again, and if the job is a batch.
    """
    for name, before, after, users in (
        ("cancel", "working", "cancelling", ("canceller", "alice", OPERATOR)),
        ("rerun", "error", "queued", ("runner", OPERATOR)),
    ):
        for user in users:
            jobs = put(store, "alice", cls=RunMarathon, status=before)
            if name == "cancel":
                batch = put_batch(store, Batch, ["working"], owner="alice")
                jobs += [*jobs, batch.uuid]
            for uuid in jobs:
                found = act(roles, f"/job_state/{uuid}/{name}", user).json
                expected = {"uuid": uuid, "status": after}
                if "view_job" in USERS[user]:
                    assert expected.items() <= found["job"].items(), (name, user)
                    assert "job_state" in found and "title" in found["job"]
                else:
                    assert found == {"job": expected}, (name, user)


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
            store.client.flushdb()
            (job,) = put(store, "carol", cls=RunMarathon, status=status)

            response = act(roles, paths[0], user, method)

            done = int(right in USERS[user])
            answer = {"done": done, "refused": 1 - done, "cursor": None}
            assert response.json == answer, (path, user)
            assert (statuses(store, job) == [status]) is not bool(done)


@pytest.mark.promise("list-shows-what-may-be-seen")
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
        assert len(items) == int(user in ("alice", "bob")), user
        if state is not None:
            assert state["job"]["cancellable"] is ("cancel_job" in may), user
        if "list_jobs" in may:
            found = get(roles, "/job_state?all=1", user).json["items"]
            assert len(found) == (3 if "view_job" in may else 0), user


def test_page_of_a_job_offers_what_its_viewer_may_do(
    roles: TestApp, store: JobStore
) -> None:
    """Each of its acts needs its own right, beside that to see the page."""
    for status, acts in ("working", ["cancel"]), ("error", ["rerun", "delete"]):
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        for user, rights in USERS.items():
            may = [act for act in acts if f"{act}_job" in rights]
            if "view_job" in rights:
                assert Visit(roles, f"/job_state/{job}", user).acts == may, user
            else:
                assert browse(roles, f"/job_state/{job}", user).status_code == 403


def test_list_tells_nothing_of_others(roles: TestApp, store: JobStore) -> None:
    """Without list_jobs, a list neither counts nor names others' jobs, even visible
    ones.
    """
    (job,) = put(store, "alice", cls=RunMarathon)
    for user, rights in USERS.items():
        if "list_jobs" in rights:
            continue
        for query in "", "?kind=RunMarathon":
            page = Visit(roles, f"/job_state{query}", user)
            assert page.path == f"/job_state{query}"
            assert page.uuids == [job] * (user == "alice")
            assert page.texts("h1") == ["Your jobs"]
            others = ".jobstate-count, .jobstate-chart, select, input[name=owner]"
            assert not page.has(others), user


def test_beginning_of_an_id_tells_nothing_of_others(
    roles: TestApp, store: JobStore
) -> None:
    """The page neither leads to a job that the viewer may not see nor reveals that one
    exists: neither another user's job, nor one of their own that its class hides.
    """
    (hidden,) = put(store, "alice", cls=RunMarathon, status="error")
    (locked,) = put(store, "bob", cls=LockedDiary)
    for user, job, query in (
        ("lister", hidden, "all=1"),
        ("lister", hidden, "owner=alice&status=error&kind=RunMarathon"),
        ("bob", locked, ""),
    ):
        pages = [
            browse(roles, f"/job_state?id={begins}&{query}".rstrip("&"), user)
            for begins in (job[:8], "00000000")
        ]
        assert [page.status_code for page in pages] == [200, 200], user
        told, unknown = (page.text for page in pages)
        assert told.replace(job[:8], "00000000") == unknown
    assert browse(roles, f"/job_state?all=1&id={hidden[:8]}").status_code == 302


def test_application_without_a_policy_opens_nothing(
    redis_url: str, store: JobStore
) -> None:
    """Whatever the root allows, nobody reads, changes or owns anything."""
    options = {"root_factory": operated_root, "security_policy": None}
    app = make_app(make_config(redis_url, **options))
    ways = [(method, end, status) for method, end, status, _, _ in ON_ONE]
    everyone = [(m, f"{end}?all=1&everything=1", "error") for m, end, _ in ON_MANY]
    for method, end, status in (*ways, *everyone):
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        path = "/job_state" + end.format(job=job)
        assert act(app, path, OPERATOR, method).status_code == 403, (method, end)
        assert statuses(store, job) == [status]
    response = act(app, "/job_state/cancel?everything=1")
    assert response.json == {"done": 0, "cursor": None}


@pytest.mark.promise("forbidden-looks-like-missing")
def test_others_learn_nothing(app: TestApp, store: JobStore) -> None:
    """No path, query or method lets other users see or change anything, and no header
    makes somebody Alice. To her, many of these requests do show the job.
    """
    hidden: Any = {"params": {"miles": SECRET}, "metrics": {"secret": SECRET}}
    (job,) = put(store, "alice", cls=RunMarathon, message=SECRET, **hidden)
    before = store.client.hgetall(key_of(store, job))
    ways = [
        *((m, f"/{job}") for m in ("HEAD", "POST", "OPTIONS", "PROPFIND", "get")),
        ("POST", f"/{job}/cancel"),
        *(("GET", f"/{job}{end}") for end in ("", "/", "%2f", "/@@cancel", ";x=y")),
        *(("GET", f"/{name}/{job}") for name in ("", "x/..", "%2e%2e/job_state")),
        *(("GET", f"?{query}") for query in ("", "owner=alice", "all=1", "owner=")),
        *(("GET", f"?{query}") for query in (f"uuid={job}", f"uuid=x&uuid={job}")),
        ("GET", "?status=working&kind=RunMarathon&limit=200"),
        ("GET", f"?cursor=a9000000000000000.{job}"),
    ]
    # WebTest's lint refuses odd methods.
    unlinted = TestApp(app.app, lint=False)
    headers = {
        "X_Forwarded_User": "alice",
        "Remote_User": "alice",
        "X_HTTP_Method_Override": "GET",
        "Cookie": "auth_tkt=alice; user=alice",
        "Authorization": "Basic YWxpY2U6",
        "X_Requested_With": "x",
    }
    for method, path in ways:
        for user in "bob", "Alice", "alice ", "", None:
            response = ask(unlinted, method, "/job_state" + path, user, **headers)
            case = method, path, user
            assert SECRET not in response.text + str(response.headers), case
            assert response.status_code in (200, 400, 403, 404, 405), case
            if response.status_code == 200 and response.body:
                assert not response.json.get("items"), case
                assert not any(response.json.get("jobs", {}).values()), case
    assert store.client.hgetall(key_of(store, job)) == before
    hers = [ask(unlinted, m, "/job_state" + path, "alice").text for m, path in ways]
    assert sum(SECRET in text for text in hers) >= 7


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
    (job,) = put(store, "alice", cls=Relay, params=params)
    for user in "bob", "alice", "dave", ADMIN, "carol":
        code = 200 if user in ("bob", ADMIN, "carol") else 403
        after = 202 if user == "carol" else 403
        assert get(app, f"/job_state/{job}", user).status_code == code, user
        assert get(app, "/job_state", user).json["items"] == [], user
        assert act(app, f"/job_state/{job}/cancel", user).status_code == after, user
    assert uuids_of(get(app, "/job_state?owner=alice", ADMIN).json["items"]) == [job]


def test_strange_record_has_only_the_lineages_rights(
    app: TestApp, store: JobStore
) -> None:
    """The root alone decides about an unknown kind, and what cannot be parsed."""
    owners = [f'"{Everyone}"', f'"{Authenticated}"', '["bob"]', "true"]
    strange: list[tuple[str, Any]] = [("kind", "NeverImported"), ("kind", b"\xff")]
    for field, value in [*strange, *(("owner", owner) for owner in owners)]:
        batch = put_batch(store, Batch, ["queued"], owner="alice").uuid
        (job,) = put(store, "alice", cls=RunMarathon)
        for uuid in job, batch:
            store.client.hset(key_of(store, uuid), field, value)
            for user in "bob", "alice", ADMIN:
                path, is_admin = f"/job_state/{uuid}", user == ADMIN
                case = field, value, user
                assert get(app, path, user).status_code == (200 if is_admin else 403), (
                    case
                )
                done = act(app, f"{path}/cancel", user).status_code
                assert done == (202 if is_admin else 403), case
        assert get(app, "/job_state", "alice").json["items"] == []


def test_user_named_like_everybody_owns_nothing(
    redis_url: str, marathons: Marathons
) -> None:
    """If somebody could choose such a userid, everybody would own their jobs. Instead,
    these have no owner.
    """
    config = make_config(redis_url)
    app = make_app(config)
    for name in Everyone, Authenticated:
        job_states = make_request(config, name).job_states
        job = job_states.send_immediately(marathons.run_marathon, 1)
        path = f"/job_state/{job.uuid}"
        for user in "bob", name:
            assert get(app, path, user).status_code == 403
        assert get(app, "/job_state", name).json["items"] == []
