"""Who may do what to whose job, and who reads what: tables, and attempts to get round
them.
"""

import html
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pyramid.authorization import Allow, Authenticated, Deny, Everyone
from webtest import TestApp

from pyramid_jobstate import Batch, JobError, JobState, JobStore
from pyramid_jobstate.testing import put_batch, put_job
from tests.asgi import EVENTS, Server, pushing
from tests.durations import put_runs
from tests.jobs import RunMarathon, make_broker, working
from tests.running import Run, Runs
from tests.support import UUID, key_of, wait_for, write
from tests.web.minutes import take_minutes
from tests.web.operating import (
    ACTS,
    OPERATOR,
    Asked,
    LockedDiary,
    Marathons,
    act,
    put,
    statuses,
    uuids_of,
)
from tests.web.paging import CHROMIUM, Visit, browse, paged_app, paged_config
from tests.web.reading import FORBIDDEN
from tests.web.streaming import one
from tests.web.test_usual import settle
from tests.webapp import ADMIN, Root, ask, get, make_alias

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
    """A root that gives each user but Alice and Bob their rights, and no others."""

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
def test_rights_on_one_job(roles, store):
    """Each request needs its own right. A refusal depends on nothing else."""
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


def test_act_shows_the_state_to_viewers(roles, store):
    """The others read uuid and status alone, also if they ask again."""
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


def test_rights_on_the_jobs_of_others(roles, store):
    """Naming another owner, or all, takes list_jobs, and each job its own right."""
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
def test_lists_show_what_may_be_viewed(roles, store):
    """Only those jobs, each with whether the viewer may cancel it."""
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


def test_page_of_a_job_offers_what_its_viewer_may_do(roles, store):
    """Each of its acts needs its own right, beside that to see the page."""
    for status, acts in ("working", ["cancel"]), ("error", ["rerun", "delete"]):
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        for user, rights in USERS.items():
            may = [act for act in acts if f"{act}_job" in rights]
            if "view_job" in rights:
                assert Visit(roles, f"/job_state/{job}", user).acts == may, user
            else:
                assert browse(roles, f"/job_state/{job}", user).status_code == 403


def test_list_tells_nothing_of_others(roles, store):
    """Without list_jobs, a list neither counts nor names the jobs of others."""
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


def test_beginning_of_an_id_tells_nothing_of_others(roles, store):
    """It neither leads to a hidden job nor reveals that one exists."""
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


@pytest.mark.promise("forbidden-tells-only-that-it-exists")
def test_others_learn_nothing(app, store):
    """No path, query, method or header lets other users see or change anything. A job
    differs from an unknown one only in that its URL is not a 404.
    """
    hidden: Any = {"params": {"miles": SECRET}, "metrics": {"secret": SECRET}}
    (job,) = put(store, "alice", cls=RunMarathon, message=SECRET, **hidden)
    before = store.client.hgetall(key_of(store, job))
    lists = ["", f"uuid={job}", f"uuid=x&uuid={job}"]
    lists.append("status=working&kind=RunMarathon&limit=200")
    ways = [
        (403, "HEAD", f"/{job}"),
        (403, "POST", f"/{job}/cancel"),
        *((403, "GET", f"/{job}{end}") for end in ("", "/", "%2f")),
        *((405, m, f"/{job}") for m in ("POST", "OPTIONS", "PROPFIND", "get")),
        *((404, "GET", f"/{job}{end}") for end in ("/@@cancel", ";x=y")),
        *((404, "GET", f"/{at}/{job}") for at in ("", "x/..", "%2e%2e/job_state")),
        *((403, "GET", f"?{query}") for query in ("owner=alice", "all=1", "owner=")),
        *((200, "GET", f"?{query}") for query in lists),
        (400, "GET", f"?cursor=a9000000000000000.{job}"),
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
    for code, method, path in ways:
        for user in "bob", "Alice", "alice ", "", None:
            response = ask(unlinted, method, "/job_state" + path, user, **headers)
            case = method, path, user
            assert SECRET not in response.text + str(response.headers), case
            # Nobody's list is empty, whatever its cursor.
            expected = 200 if (code, user) == (400, None) else code
            assert response.status_code == expected, case
            other = "/job_state" + path.replace(job, UUID)
            unknown = ask(unlinted, method, other, user, **headers)
            if job in path and code in (403, 405):
                assert unknown.status_code == 404, case
            else:
                assert unknown.text.replace(UUID, job) == response.text, case
            if response.status_code == 200 and response.body:
                assert not response.json.get("items"), case
                assert not any(response.json.get("jobs", {}).values()), case
    assert store.client.hgetall(key_of(store, job)) == before
    hers = [ask(unlinted, m, "/job_state" + path, "alice").text for _, m, path in ways]
    assert sum(SECRET in text for text in hers) >= 7


class Relay(JobState):
    """A kind that the next runner may see and the coach cancel, but not its owner."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [
            (Allow, self.get_job_param("next_runner"), "view_job"),
            (Allow, self.job_params["coach"], ("view_job", "cancel_job")),
            (Deny, Everyone, "cancel_job"),
            (Deny, self.owner, "view_job"),
        ]


def test_acl_of_a_class_may_use_the_parameters(app, store):
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


def test_strange_record_has_only_the_lineages_rights(app, store):
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


# What operators read of workers, stacks, logs and waits, and others by no path.


log = logging.getLogger("tests.voyages")


class Voyage(JobState):
    """A kind that captures what its jobs log."""

    log_level = "WARNING"
    public_params = ("port",)

    def public_error(self, exception_type: str, message: str) -> str:
        return "Shipwreck"


#: The facts, by the rights that it takes to read them at a path.
Facts = dict[tuple[str, ...], set[str]]

#: These rights. Alice has "own": all jobs are hers.
OWN, SEE, INSPECT, LIST = "own", "view_job", "inspect_job", "list_jobs"
READS = LIST, SEE, INSPECT

SAID = {"message", "appended"}
JOB = {*SAID, "usual"}
FAILED = {"failure", "public"}
ALL = {*JOB, *FAILED, "batch"}
ROWS = {"message", *FAILED, "batch"}
EXCEPTION = {"failure", "exception", "text"}
RAISED = {*EXCEPTION, "hidden", "trace", "worker"}
WHERE = {"worker", "asked", "stack", "thread", "memory"}
CAPTURED = {"captured", "level", "logger"}
WAITS = {"oldest wait", "recent wait"}
WORKER = ("is_silent", "threads", "busy", "queues", "versions")

#: The paths to jobs and lists: what the request accepts, and what the path tells whom.
JSON = "application/json"
PATHS: list[tuple[str, str, Facts]] = [
    (JSON, "/{job}", {(SEE,): JOB}),
    (JSON, "/{member}", {(SEE,): {"message", "usual"}}),
    (JSON, "/{batch}", {(SEE,): {"batch"}}),
    (JSON, "/{failed}", {(SEE,): FAILED}),
    (JSON, "?uuid={job}&uuid={failed}", {(SEE,): {*JOB, *FAILED}}),
    (JSON, "", {(OWN,): ALL}),
    (JSON, "?all=1", {(LIST, SEE): ALL}),
    (JSON, "?owner=alice&status=working", {(LIST, SEE): {*JOB, "batch"}}),
    (JSON, "?batch={batch}", {(SEE,): {"message", "usual"}}),
    (
        JSON,
        "?group=error&status=error&all=1",
        {(LIST, SEE): {"failure"}, READS: EXCEPTION},
    ),
    (JSON, "/{job}/log", {(SEE,): {"appended"}, (SEE, INSPECT): CAPTURED}),
    (JSON, "/{job}/inspect", {(INSPECT,): WHERE}),
    (JSON, "/{member}/inspect", {(INSPECT,): {"worker"}}),
    (JSON, "/{failed}/inspect", {(INSPECT,): RAISED | {"public"}}),
    (JSON, "/counts", {(LIST,): WAITS}),
    (JSON, "/workers", {(LIST,): {"worker", "workers", "memory"}}),
    (EVENTS, "/{job}", {(SEE,): JOB}),
    (EVENTS, "?uuid={job}&uuid={failed}", {(SEE,): {*JOB, *FAILED}}),
    (
        CHROMIUM,
        "/{job}/",
        {
            (SEE,): SAID,
            (SEE, LIST): {"owner"},
            (SEE, INSPECT): WHERE | CAPTURED | {"button"},
        },
    ),
    (
        CHROMIUM,
        "/{failed}/",
        {(SEE,): FAILED, (SEE, LIST): {"owner"}, (SEE, INSPECT): RAISED},
    ),
    (CHROMIUM, "/{batch}/", {(SEE,): {"message", "batch"}, (SEE, LIST): {"owner"}}),
    (CHROMIUM, "/", {(OWN,): ROWS}),
    (CHROMIUM, "/?owner=alice", {(LIST, SEE): ROWS | {"owner"}, READS: EXCEPTION}),
    (
        CHROMIUM,
        "/?all=1",
        {(LIST,): {*WAITS, "workers"}, (LIST, SEE): ROWS | {"owner"}, READS: EXCEPTION},
    ),
    (
        CHROMIUM,
        "/?all=1&kind=class:Voyage",
        {
            (LIST,): {*WAITS, "workers", "durations"},
            (LIST, SEE): ROWS - {"batch"} | {"owner"},
            READS: EXCEPTION,
        },
    ),
    (
        CHROMIUM,
        "/?all=1&group=error&status=error",
        {(LIST, SEE): {"failure"}, READS: EXCEPTION},
    ),
    # At the end, since the job changes.
    ("cancel", "/{job}/cancel", {("cancel_job", SEE): SAID}),
]


def sail(job_state: JobState) -> None:
    """Log a line, append one, and set the message."""
    log.warning("off course")
    job_state.append_log("Land ho")
    job_state.set_message("Under way")


def ask_where(run: Run, store: JobStore) -> Any:
    """Ask a job where it is, and return its answer."""
    assert store.ask_where(run.uuid)

    def answer() -> Any:
        where = store.where(run.uuid)
        return where if where and where.taken_at else None

    return wait_for(answer)


@pytest.fixture
def voyage(redis_url: str) -> Iterator[Run]:
    """A job of Alice's that runs and has logged."""
    runs = Runs(make_broker(redis_url))
    runs.actor(Voyage)
    with working(runs.broker):
        wait_for(runs.store.workers)
        run = runs.start(Voyage)
        assert run.do(sail)
        yield run
        run.succeed()


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application with pages and streams, and the users of the table of rights."""
    with pushing(paged_config(redis_url, root_factory=Roles)) as server:
        yield server


def answer_to(server: Server, accept: str, path: str, user: str | None) -> str:
    """Return all that the answer to a request says."""
    path = f"/job_state{path}"
    if accept == "cancel":
        answer = server.ask(path, user, method="POST", x_requested_with="x")
    elif accept == EVENTS:
        answer = server.open(path, user)
        if answer.is_stream:
            answer.at(max(0, path.count("uuid=") - 1))
            answer.go()
        answer.wait()
    else:
        answer = server.ask(path, user, accept=accept)
    return html.unescape(f"{answer.header_list} {answer.body.decode()}")


@pytest.mark.promise("operators-see-more")
@pytest.mark.promise("secrets-stay-inside")
@pytest.mark.parametrize("is_page", [False, True])
def test_each_path_tells_what_the_rights_are_for(server, store, voyage, is_page):
    """On each path, users learn what they may read, and nothing else."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    failed = put_job(
        store,
        Voyage,
        "error",
        owner="alice",
        params={"port": "Lisbon", "cargo": "opium"},
        error=JobError("ships.Capsized", "in a storm"),
        traceback="Traceback",
    ).uuid
    each = {"status": "working", "job_state_class": Voyage, "message": "Under way"}
    batch = put_batch(store, Batch, [each], owner="alice", title="Armada").uuid
    (member,) = (job.uuid for job in store.members(batch).items)
    for uuid in failed, member:
        write(store, uuid, worker=f"{worker}:x")
    put_runs(store, cls=Voyage)
    put_job(store, Voyage, "queued")
    uuids = {"job": voyage.uuid, "failed": failed, "batch": batch, "member": member}
    where = ask_where(voyage, store)
    # Once somebody has looked, working jobs say how long such jobs usually run.
    answer_to(server, JSON, f"?uuid={voyage.uuid}&uuid={member}", "viewer")
    settle()
    # Texts that tell each fact, as JSON or in a page.
    tell = {
        "message": ["Under way"],
        "failure": ["Shipwreck", "Capsized"],
        "exception": ["Capsized"],
        "text": ["in a storm"],
        "trace": ["Traceback"],
        "public": ["Lisbon"],
        "owner": ["jobstate-owner", "jobstate-whose"],
        "hidden": ["opium"],
        "batch": ["Armada"],
        "appended": ["Land ho"],
        "worker": [worker],
        "asked": ['"asked_at"', '"taken_at"', 'data-jobstate="where"'],
        "stack": ["in live"],
        "thread": [where.thread],
        "memory": ['"memory"', " MB"],
        "button": ['data-jobstate="ask-where"'],
        "captured": ["off course"],
        "level": ["WARNING", "log_level"],
        "logger": [log.name],
        "workers": [*map('"{}"'.format, WORKER), "jobstate-workers"],
        "oldest wait": ['"oldest_wait"', "oldest job in the queue"],
        "recent wait": ['"recent_wait"', '"waited"', "started lately"],
        "durations": ["jobstate-durations", '"p50"'],
        "usual": ['"usual":{'],
    }
    for accept, path, facts in PATHS:
        if is_page != (accept == CHROMIUM):
            continue
        for user, rights in USERS.items():
            may = {*rights, OWN} if user == "alice" else rights
            told = answer_to(server, accept, path.format(**uuids), user)
            found = {fact for fact in tell if any(text in told for text in tell[fact])}
            expected = [facts[needed] for needed in facts if may.issuperset(needed)]
            assert found == set().union(*expected), (accept, path, user)


def test_what_operators_read_is_no_change_for_others(server, store, voyage):
    """While a job is asked and logs, ETags hold, and streams say nothing."""
    job = voyage.uuid
    paths = [
        f"/job_state{end}" for end in (f"/{job}", f"?uuid={job}", "", f"/{job}/log")
    ]

    def tags() -> list[str]:
        return [server.poll(path).headers["etag"] for path in paths]

    stream = server.watch(one(job))
    before = tags()
    ask_where(voyage, store)
    assert voyage.do(lambda job_state: log.warning("again"))
    assert len(store.log(job)) == 3
    assert tags() == before
    for path, tag in zip(paths, before, strict=True):
        assert server.poll(path, if_none_match=tag).status == 304
    assert voyage.report(n=1)
    assert stream.at(1).state["n"] == 1


class Logbook(Voyage):
    """A kind whose owner may inspect a job."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, self.owner, "inspect_job"), *super().__acl__()]


def sink(job_state: JobState) -> None:
    """Log a line, and fail."""
    log.warning("Secret reef")
    raise ValueError("Secret reef")


@pytest.mark.parametrize("end", ["/log", "/inspect", "/"])
def test_job_that_becomes_an_alias_shows_nothing_of_the_job_of_another(
    redis_url, client, store, end
):
    """Another user's job may win the claim after the rights were checked."""
    theirs = take_minutes(redis_url, Logbook, sink)
    own = put_job(store, Logbook, owner="bob").uuid
    app = paged_app(
        redis_url,
        security_policy=Asked(
            lambda *asked: make_alias(client, key_of(store, own), theirs)
        ),
    )
    read = browse if end == "/" else get
    answer = read(app, f"/job_state/{own}{end}", "bob")
    assert answer.status_code == 200
    assert "Secret reef" not in answer.text
    assert store.log(own) and store.failures(own).tries
