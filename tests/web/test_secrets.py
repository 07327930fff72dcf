"""What operators read of workers, stacks, logs and waits, and others by no path."""

from __future__ import annotations

import html
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow

from pyramid_jobstate import Batch, JobError, JobState, JobStore
from pyramid_jobstate.testing import put_batch, put_job
from tests.asgi import EVENTS, Server, pushing
from tests.durations import put_runs
from tests.jobs import make_broker, working
from tests.running import Run, Runs
from tests.support import key_of, wait_for, write
from tests.web.minutes import take_minutes
from tests.web.operating import Asked
from tests.web.paging import CHROMIUM, browse, paged_app, paged_config
from tests.web.streaming import one
from tests.web.test_rights import USERS, Roles
from tests.web.test_usual import settle
from tests.webapp import get, make_alias

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


@pytest.mark.promise("secrets-stay-inside")
@pytest.mark.parametrize("is_page", [False, True])
def test_each_path_tells_what_the_rights_are_for(
    server: Server, store: JobStore, voyage: Run, is_page: bool
) -> None:
    """By no path does anybody learn of what they may not read, and by each operators
    learn of what they may.
    """
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


def test_what_operators_read_is_no_change_for_others(
    server: Server, store: JobStore, voyage: Run
) -> None:
    """While a job is asked where it is, answers and logs, the ETags of others hold, and
    their streams say nothing.
    """
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
    redis_url: str, client: redis.Redis, store: JobStore, end: str
) -> None:
    """If another's job wins the claim once the rights are known, no right on that job
    was asked for.
    """
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
