"""POST …/clear, …/cancel and …/rerun: what they do to the jobs that match."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis
from dramatiq import Message
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.testing import away, pass_time, put_batch, put_job
from tests.faulty import FaultyProxy, faulty
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import (
    OPERATOR,
    Letter,
    Marathons,
    act,
    at_once,
    operated_root,
    put,
    statuses,
)
from tests.webapp import Policy, make_app, make_config

FORBIDDEN = {"error": "You may not do this with the job."}
ALL: dict[str, Any] = {"all": 1, "everything": 1}

#: The requests that act on many jobs, and a status of the jobs on which each acts.
REQUESTS = [("clear", "success"), ("cancel", "queued"), ("rerun", "error")]


# What each does.


def test_clear_deletes_ended_jobs(operated: TestApp, store: JobStore) -> None:
    """Who may list all jobs deletes the ended ones of all owners, and no others."""
    ended = [
        *put(store, "alice", None, status="success"),
        *put(store, "bob", status="error"),
        *put(store, 7, status="cancelled"),
    ]
    other = put(store, "alice", status="working")

    response = act(operated, "/job_state/clear", **ALL)

    assert response.status_code == 200
    assert response.json == {"done": 4, "refused": 0, "cursor": None}
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert statuses(store, *ended, *other) == [None] * 4 + ["working"]


def test_cancel_ends_waiting_jobs_and_asks_running_ones(
    operated: TestApp, store: JobStore
) -> None:
    """Every unfinished job of a kind is cancelled, or about to be."""
    jobs = [
        *put(store, "alice", cls=RunMarathon, status="queued"),
        *put(store, "bob", cls=RunMarathon, status="working"),
        *put(store, "bob", status="working"),
        *put(store, "bob", cls=RunMarathon, status="success"),
    ]

    response = act(operated, "/job_state/cancel", kind="RunMarathon", all=1)

    assert response.json == {"done": 2, "refused": 0, "cursor": None}
    assert statuses(store, *jobs) == ["cancelled", "cancelling", "working", "success"]


def test_rerun_runs_failed_jobs_again(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """The failed jobs run again. Those whose message is not kept are counted."""
    jobs = marathons.fail("alice", "bob")
    lost = put_job(store, RunMarathon, "error", owner="alice").uuid

    response = act(operated, "/job_state/rerun", kind="RunMarathon", all=1)

    assert response.json == {"done": 2, "refused": 1, "cursor": None}
    assert statuses(store, *jobs, lost) == ["queued", "queued", "error"]
    marathons.is_mended = True
    for job in jobs:
        marathons.wait_for(job, "success")
    assert sorted(marathons.ran) == sorted(jobs * 2)


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"kind": "Letter"}, [0, 1]),
    ({"status": "error"}, [0, 2]),
    ({"kind": "Letter", "status": "error"}, [0]),
    ({"owner": "bob"}, [1, 3]),
    ({"owner": "bob", "kind": "RunMarathon"}, [3]),
    ({"older_than": "1h"}, []),
    ({"older_than": "1s", "status": "success"}, [1, 3]),
    ({"kind": ""}, []),
    ({"kind": "Letter\r\n*"}, []),
    ({"owner": ""}, []),
    ({"owner": "bob", "everything": 1}, [1, 3]),
]


def test_filters(operated: TestApp, store: JobStore) -> None:
    """Jobs that a filter does not match stay."""
    for query, gone in FILTERS:
        store.client.flushdb()
        jobs = [
            *put(store, "alice", status="error"),
            *put(store, "bob", status="success"),
            *put(store, "alice", cls=RunMarathon, status="error"),
            *put(store, "bob", cls=RunMarathon, status="success"),
        ]
        pass_time(store, 60)
        whose: dict[str, Any] = {} if "owner" in query else {"all": 1}

        response = act(operated, "/job_state/clear", **query, **whose)

        answer = {"done": len(gone), "refused": 0, "cursor": None}
        assert response.json == answer, query
        found = [i for i, status in enumerate(statuses(store, *jobs)) if status is None]
        assert found == gone, query


def test_pages_of_a_bulk_request(operated: TestApp, store: JobStore) -> None:
    """The cursor leads to the other jobs, but not to those that were sent later."""
    jobs = put(store, *"abcde", status="queued")
    cancel = functools.partial(
        act, operated, "/job_state/cancel", kind="Letter", all=1, limit=2
    )
    first = cancel().json
    late = put(store, "f", status="queued")
    done = [first["done"]]

    cursor = first["cursor"]
    while cursor:
        answer = cancel(cursor=cursor).json
        done.append(answer["done"])
        cursor = answer["cursor"]

    assert sum(done) == 5 and max(done) == 2
    assert statuses(store, *jobs, *late) == ["cancelled"] * 5 + ["queued"]


@pytest.mark.parametrize(("name", "status"), REQUESTS)
def test_two_operators_share_the_work(
    operated: TestApp, store: JobStore, marathons: Marathons, name: str, status: str
) -> None:
    """Two operators who act on the same jobs at once act on each job once."""
    jobs = put(store, *"abcdefgh", cls=RunMarathon, status=status)
    ask_for_all = functools.partial(act, operated, f"/job_state/{name}", **ALL)

    answers = at_once(ask_for_all, ask_for_all)

    assert [answer.status_code for answer in answers] == [200, 200]
    assert sum(answer.json["done"] for answer in answers) == len(jobs)
    assert status not in statuses(store, *jobs)
    if name == "rerun":
        marathons.is_mended = True
        for job in jobs:
            marathons.wait_for(job, "success")
        assert sorted(marathons.ran) == sorted(jobs)


# Whose jobs.


class Closed(JobState):
    """A kind whose owner may do nothing with a job."""

    kind = "Letter closed"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


@pytest.mark.parametrize(("name", "status"), REQUESTS)
def test_users_act_on_their_own_jobs(
    operated: TestApp, store: JobStore, marathons: Marathons, name: str, status: str
) -> None:
    """Without list_jobs, a user acts on their own jobs, named or not, and reads nothing
    of how many were refused.
    """
    for whose in {}, {"owner": "alice"}:
        for more in {"kind": "Letter"}, {"everything": 1}:
            store.client.flushdb()
            jobs = put(store, "alice", "bob", None, "Alice", status=status)
            put(store, "alice", cls=Closed, status=status)

            response = act(operated, f"/job_state/{name}", "alice", **whose, **more)

            assert response.json == {"done": 1, "cursor": None}
            assert statuses(store, *jobs[1:]) == [status] * 3
            assert statuses(store, jobs[0]) != [status]


def test_operators_own_jobs_are_the_default(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """Even who may list all jobs acts on their own, unless the query says otherwise."""
    for name, status in REQUESTS:
        for own in {}, {"owner": OPERATOR}:
            jobs = put(store, "alice", status=status)

            response = act(operated, f"/job_state/{name}", everything=1, **own)

            assert response.json == {"done": 0, "refused": 0, "cursor": None}
            assert statuses(store, *jobs) == [status]


def owned_app(redis_url: str, own: Any) -> TestApp:
    """Return an application all of whose visitors are one owner."""
    settings = {"jobstate.owner": lambda request: own}
    return make_app(
        make_config(redis_url, root_factory=operated_root, settings=settings)
    )


def test_number_is_an_owner_of_its_own_type(
    redis_url: str, store: JobStore, marathons: Marathons
) -> None:
    """A user whose owner is a number acts on the jobs of that number only."""
    app = owned_app(redis_url, 7)
    for name, status in REQUESTS:
        jobs = put(store, 7, 7.5, "7", None, status=status)

        response = act(app, f"/job_state/{name}", "alice", owner="7")

        # For it is no principal here, the kind lets it do no more.
        answer = {"done": int(name == "cancel"), "cursor": None}
        assert (response.status_code, response.json) == (200, answer)
        for owner in "7.0", "7.5", "True", "null", "":
            response = act(app, f"/job_state/{name}", "alice", owner=owner)
            assert (response.status_code, response.json) == (403, FORBIDDEN)
        assert statuses(store, *jobs[1:]) == [status] * 3


@pytest.mark.parametrize("own", [None, True, math.nan, ["alice"]], ids=str)
def test_request_without_an_owner_has_no_jobs(
    redis_url: str, operated: TestApp, store: JobStore, marathons: Marathons, own: Any
) -> None:
    """A visitor whom the application knows no owner for acts on nothing, and not on the
    jobs without an owner. Invalid parameters are a 400, as for everybody else. The
    shape of the answer depends on list_jobs alone.
    """
    app = owned_app(redis_url, own)
    for name, status in REQUESTS:
        jobs = put(store, None, "None", "alice", 1, status=status)
        for user in None, "alice":
            response = act(app, f"/job_state/{name}", user, everything=1)
            assert (response.status_code, response.json) == (
                200,
                {"done": 0, "cursor": None},
            )
            for owner in "alice", "1", "True":
                response = act(app, f"/job_state/{name}", user, owner=owner)
                assert response.status_code == 403
        response = act(app, f"/job_state/{name}", everything=1)
        assert response.json == {"done": 0, "refused": 0, "cursor": None}
        assert act(app, f"/job_state/{name}", None).status_code == 400
        for wrong in (
            {"limit": "x"},
            {"limit": 1001},
            {"cursor": ""},
            {"cursor": f"00000000.1.a1.{jobs[0]}"},
        ):
            answer = act(app, f"/job_state/{name}", None, kind="a", **wrong)
            expected = act(operated, f"/job_state/{name}", kind="a", **wrong)
            assert (answer.status_code, answer.json) == (400, expected.json)
        assert statuses(store, *jobs) == [status] * 4


class Troubled(JobState):
    """A kind of which a failure was not logged before."""


def test_policy_that_raises_for_one_job_refuses_that_one(
    redis_url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """If the application's code fails for a job, the others are deleted all the same,
    and the log has the failure.
    """

    class Moody(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if getattr(context, "owner", None) == "bob":
                raise LookupError("no such team")
            return super().permits(request, context, permission)

    options = {"root_factory": operated_root, "security_policy": Moody()}
    app = make_app(make_config(redis_url, **options))
    jobs = put(store, "alice", "bob", "carol", cls=Troubled, status="success")

    response = act(app, "/job_state/clear", **ALL)

    assert response.json == {"done": 2, "refused": 1, "cursor": None}
    assert statuses(store, *jobs) == [None, "success", None]
    (record,) = (r for r in caplog.records if r.exc_info)
    assert jobs[1] in record.getMessage()


def test_cursor_of_another_call_is_a_400(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """A cursor leads on only in the request that returned it, and by the same user's
    jobs.
    """
    put(store, *["alice"] * 3, *["bob"] * 3, cls=RunMarathon, status="queued")
    first = act(operated, "/job_state/cancel", "alice", everything=1, limit=1).json
    cursor = first["cursor"]
    assert cursor
    for name, status in REQUESTS:
        jobs = put(store, "alice", "bob", OPERATOR, status=status)
        for user, query in (
            ("bob", {"everything": 1}),
            (OPERATOR, {"everything": 1}),
            (OPERATOR, ALL),
            ("alice", {"kind": "Letter"}),
        ):
            path = f"/job_state/{name}"
            response = act(operated, path, user, **query, cursor=cursor)
            assert response.status_code == 400
            assert "cursor" in response.json["error"]
        assert statuses(store, *jobs) == [status] * 3


def test_rerun_tells_nothing_of_a_foreign_batch(
    operated: TestApp, store: JobStore, client: redis.Redis, marathons: Marathons
) -> None:
    """A batch that the request may not see looks like an unknown one, also in what the
    store is asked, however many of its jobs have failed.
    """
    member = {"status": "error", "job_state_class": RunMarathon}
    batch = put_batch(store, members=[member] * 5, owner="alice").uuid
    (job,) = put(store, "alice", status="error")

    def rerun(user: str, batch: str) -> Any:
        client.config_resetstat()
        response = act(operated, "/job_state/rerun", user, batch=batch)
        stats: Any = client.info("commandstats")
        seen[user, batch] = {name: each["calls"] for name, each in stats.items()}
        return response

    seen: dict[tuple[str, str], Any] = {}
    rerun("bob", batch)
    for uuid in batch, UUID, job:
        assert rerun("bob", uuid).json == {"done": 0, "cursor": None}
        answer = act(operated, "/job_state/rerun", "bob", batch=uuid, cursor="x")
        assert answer.status_code == 400
    rerun("alice", batch)
    assert seen["bob", batch] == seen["bob", UUID] != seen["alice", batch]
    answer = act(operated, "/job_state/rerun", "bob", batch="x")
    assert answer.json["error"] == "batch must be a uuid, not 'x'."


# Bodies.

FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"

BODIES = [
    (FORM, b"kind=Letter", "kind"),
    (FORM, b"token=a&owner=x", "owner"),
    (FORM, b"\xff=%ff&cursor=%ff", "cursor"),
    (
        f"{MULTIPART}; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="limit"\r\n\r\n1\r\n--x--\r\n',
        "limit",
    ),
    (MULTIPART, b"--x--", "The body is not a valid form."),
    (f"{FORM}; charset=latin1; boundary=x", b"a=1", "must be in UTF-8"),
    (f"{MULTIPART}; charset=latin1; boundary=x", b"a=1", "must be in UTF-8"),
    ("application/json", b'{"kind": "Letter"}', "body"),
    ("application/json", b"{}", "body"),
    ("", b"kind=Letter", "body"),
    ("text/plain", b"\xff" * 100_000, "body"),
]


def test_parameters_in_the_body_are_refused(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """Parameters that would be ignored are a 400, so that a request never acts on more
    jobs than were meant. A client may name a type, or send an empty body in chunks.
    """
    headers = {"X-User": OPERATOR, "X-Requested-With": "x"}
    for name, status in REQUESTS:
        path = f"/job_state/{name}?all=1&everything=1"
        jobs = put(store, "alice", status=status)
        for content_type, body, named in BODIES:
            response = operated.request(
                path,
                method="POST",
                headers={**headers, "Content-Type": content_type},
                body=body,
                expect_errors=True,
            )
            assert response.status_code == 400, (content_type, body)
            assert named in response.json["error"], (content_type, body)
        assert statuses(store, *jobs) == [status]
        for content_type in "application/json", FORM, "text/x":
            for environ in (
                {"CONTENT_LENGTH": "0"},
                {"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
            ):
                sent = {**headers, "Content-Type": content_type}
                response = operated.request(
                    path, method="POST", headers=sent, environ=environ
                )
                assert response.status_code == 200


# Interruptions, and the log.


class Interrupting(Policy):
    """Calls something once a request has asked about so many jobs of Carol's."""

    def __init__(self, left: int, call: Callable[[Request], object]) -> None:
        self._left = left
        self._call = call

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        if getattr(context, "owner", None) == "carol":
            if not self._left:
                self._call(request)
            self._left -= 1
        return super().permits(request, context, permission)


def interrupted(
    url: str, call: Callable[[Request], object], after: int = 200
) -> TestApp:
    """Return an application whose bulk requests are interrupted: by default after the
    jobs that they read at once.
    """
    policy = Interrupting(after, call)
    options = {"root_factory": operated_root, "security_policy": policy}
    return make_app(make_config(url, **options))


def test_interruption_loses_no_line_of_what_was_done(
    redis_url: str, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """If the store goes away while a request acts on jobs, or the process ends, the log
    has those jobs that it has acted on.
    """
    # Not all are read at once.
    jobs = put(store, *["carol"] * 202, status="queued")[::-1]
    with contextlib.ExitStack() as stack:
        app = interrupted(
            redis_url,
            lambda request: stack.enter_context(away(request.job_states.store)),
        )
        said()

        response = act(app, "/job_state/cancel", **ALL)

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    count = statuses(store, *jobs).count("cancelled")
    assert 0 < count < len(jobs)
    *lines, last = said()
    done = [f"'operator' cancelled the job {job}." for job in jobs[:count]]
    assert lines[:count] == done
    assert last == f"'operator' cancelled {count} of all jobs until that failed."

    store.cancel_all(everything=True)
    app = interrupted(redis_url, lambda request: sys.exit())
    said()

    with pytest.raises(SystemExit):
        act(app, "/job_state/clear", **ALL)

    gone = [job for job in jobs if store.load(job) is None]
    assert 0 < len(gone) < len(jobs)
    assert sorted(said()) == sorted(f"'operator' deleted the job {j}." for j in gone)


def test_crash_loses_no_line_of_what_ran_again(
    operated: TestApp,
    store: JobStore,
    marathons: Marathons,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs that were sent before the process ended are in the log."""
    jobs = put(store, "alice", "bob", "carol", status="error")
    enqueue = marathons.broker.enqueue
    sent: list[str] = []

    def enqueue_one(message: Message[Any]) -> Any:
        if sent:
            sys.exit()
        sent.append(message.message_id)
        return enqueue(message)

    monkeypatch.setattr(marathons.broker, "enqueue", enqueue_one)
    said()

    with pytest.raises(SystemExit):
        act(operated, "/job_state/rerun", **ALL)

    assert sent[0] in jobs
    assert said() == [f"'operator' ran the job {sent[0]} again."]


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultyProxy]:
    """A proxy in front of the server, which may lose its replies."""
    with faulty(redis_url) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("name", "status", "done"),
    [("clear", "success", "deleted"), ("cancel", "queued", "cancelled")],
)
def test_jobs_that_may_have_changed_are_logged(
    proxy: FaultyProxy,
    store: JobStore,
    said: Callable[[], list[str]],
    name: str,
    status: str,
    done: str,
) -> None:
    """If the store acts on jobs but its reply is lost, the log names them, and says
    that this is not certain.
    """
    # The second of the two jobs is the last thing that is asked about before the act.
    app = interrupted(proxy.url, lambda request: proxy.lose_replies(""), 3)
    # Let the server know the script.
    put(store, "carol", "carol", status=status)
    act(app, f"/job_state/{name}", **ALL)
    jobs = put(store, "carol", "carol", cls=RunMarathon, status=status)
    said()

    response = act(app, f"/job_state/{name}", kind="RunMarathon", all=1)

    assert response.status_code == 503
    assert status not in statuses(store, *jobs)
    doubt = "the store did not answer."
    assert said()[:2] == [
        f"'operator' may have {done} the job {job}: {doubt}" for job in jobs[::-1]
    ]


def test_policy_that_asks_a_store_that_is_away_is_a_503(
    redis_url: str, store: JobStore
) -> None:
    """A policy that cannot read another job refuses nothing for good."""

    class Asking(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if permission == "delete_job":
                raise StoreUnavailable(context)
            return super().permits(request, context, permission)

    options = {"root_factory": operated_root, "security_policy": Asking()}
    app = make_app(make_config(redis_url, **options))
    jobs = put(store, "alice", status="success")

    assert act(app, "/job_state/clear", **ALL).status_code == 503
    assert statuses(store, *jobs) == ["success"]


def test_bulk_requests_are_logged(
    operated: TestApp, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """What was done is logged: a line for each job with the user, and one with the
    filter and the numbers; line breaks in a filter stay on their line.
    """
    of_alice, of_bob = put(store, "alice", "bob", status="success")
    (marathon,) = put(store, "alice", cls=RunMarathon, status="success")
    (odd,) = put(store, "al\nice", status="queued")
    first, second = put(store, "alice", "alice", status="queued")
    said()

    def ask(name: str, user: str = OPERATOR, **query: Any) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = act(
            operated, f"/job_state/{name}", user, **query
        ).json
        return answer

    ask("clear", "bob", everything=1)
    ask("cancel", owner="al\nice")
    ask("cancel", "alice", kind=Letter.kind)
    ask("clear", all=1, kind="Letter", status="success")
    ask("clear", all=1, kind="None\n")
    ask("clear", **ALL)

    assert said() == [
        f"'bob' deleted the job {of_bob}.",
        "'bob' deleted 1 of their own jobs; 0 were refused.",
        f"'operator' cancelled the job {odd}.",
        "'operator' cancelled 1 of the jobs of 'al\\nice'; 0 were refused.",
        f"'alice' cancelled the job {second}.",
        f"'alice' cancelled the job {first}.",
        "'alice' cancelled 2 of their own jobs with kind 'Letter'; 0 were refused.",
        f"'operator' deleted the job {of_alice}.",
        "'operator' deleted 1 of all jobs with kind 'Letter', status 'success'; 0 were "
        "refused.",
        *(f"'operator' deleted the job {job}." for job in (first, second, odd)),
        f"'operator' deleted the job {marathon}.",
        "'operator' deleted 4 of all jobs; 0 were refused.",
    ]
