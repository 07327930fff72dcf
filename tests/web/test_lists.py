"""GET of many jobs: lists, which jobs they have, and requests for several jobs."""

from typing import Any
from urllib.parse import quote

import pytest
from webtest import TestApp

from pyramid_jobstate import JobState
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import LockedDiary, act, operated_app, put, statuses, uuids_of
from tests.web.paging import put_batch
from tests.webapp import ADMIN, NOWHERE, get, made_config, make_request

EMPTY: dict[str, Any] = {"items": [], "cursor": None}


def listed(app: TestApp, query: str = "", user: str = ADMIN) -> list[str]:
    """Return the uuids of the jobs that a user's request lists."""
    return uuids_of(get(app, f"/job_state{query}", user).json["items"])


def test_get_answers_the_callers_own_jobs(app, store):
    """GET, and list(), have the user's own jobs, newest first."""
    jobs = put(store, "alice", "alice", "alice", cls=RunMarathon)
    put(store, "bob", None)
    response = get(app, "/job_state", "alice")
    assert response.status_code == 200
    assert response.json["cursor"] is None
    assert uuids_of(response.json["items"]) == jobs[::-1]
    for item in response.json["items"]:
        assert item == get(app, f"/job_state/{item['job']['uuid']}", "alice").json
    for path in "/job_state/", "/job_state?_=17":
        assert get(app, path, "alice").json == response.json
    for user in None, "carol", ADMIN:
        assert get(app, "/job_state", user).json == EMPTY
    # An anonymous request has no jobs, and is answered without the store.
    without_store = operated_app(NOWHERE)
    assert get(without_store, "/job_state").json == EMPTY
    assert get(without_store, "/job_state", "alice").status_code == 503
    container = make_request(app.app, "carol").job_states
    page = container.list("alice", kind="RunMarathon", params={"miles": 26}, limit=1)
    assert uuids_of(page.items) == jobs[2:] and page.cursor is not None
    assert page.items[0].__parent__ is container


def test_list_jobs_lists_anyones(app, store):
    """With list_jobs, a user lists all jobs that they may see, or those of anyone."""
    (diary,) = put(store, "alice", cls=LockedDiary)
    alices, bobs, nobodys = put(store, "alice", "bob", None)
    batch, members = put_batch(store, "queued", "error")
    assert listed(app, "", "alice") == [batch, alices]
    assert listed(app, "?owner=alice") == [batch, alices, diary]
    assert listed(app, "?owner=bob&all=1") == [bobs]
    assert listed(app, "?owner=nobody") == listed(app, "?owner=") == []
    assert listed(app, "?all=1") == [batch, nobodys, bobs, alices, diary]
    assert {*listed(app, "?members=1", "alice")} == {batch, *members, alices}
    assert {*listed(app, "?owner=alice&members=1")} == {batch, *members, alices, diary}
    assert {*members} < {*listed(app, "?all=1&members=1")}
    assert get(app, "/job_state?members=yes", "alice").status_code == 400


def test_get_filters_and_pages(app, store):
    """Any name may be a kind. A page has 50 jobs by default, and up to 200."""
    working = put(store, "alice", "alice", "alice", cls=RunMarathon)
    (error,) = put(store, "alice", cls=RunMarathon, status="error")
    (other,) = put(store, "alice", cls=JobState)
    assert listed(app, "?kind=run_marathon", "alice") == [other]
    assert listed(app, "?kind=actor:run_marathon", "alice") == [other]
    assert listed(app, "?kind=class:RunMarathon", "alice") == [*working[::-1], error]
    assert listed(app, "?status=error", "alice") == [error]
    assert listed(app, "?kind=RunMarathon&status=working", "alice") == working[::-1]
    for kind in "Nothing", "", "%00", "*":
        assert get(app, f"/job_state?kind={kind}&all=1", ADMIN).json == EMPTY
    found, query = [], "?limit=2"
    while query:
        page = get(app, f"/job_state{query}", "alice").json
        found.append(uuids_of(page["items"]))
        query = page["cursor"] and f"?limit=2&cursor={page['cursor']}"
    assert found == [[other, working[2]], [working[1], working[0]], [error]]
    put(store, *["bob"] * 51)
    assert len(listed(app, "?owner=bob")) == 50
    assert len(listed(app, "?owner=bob&limit=200")) == 51


def test_kind_tells_nothing_of_the_jobs_of_others(app, store):
    """A name of a class and an actor means both, whoever has such jobs."""
    query = "?kind=RunMarathon"
    (job,) = put(store, "alice", cls=RunMarathon)
    (member,) = put_batch(store, "queued", member=RunMarathon)[1]
    for others in None, "bob":
        if others is not None:
            put(store, others, cls=JobState, actor="RunMarathon")
        assert {*listed(app, f"{query}&members=1", "alice")} == {job, member}
        assert get(app, f"/job_state{query}", "carol").json == EMPTY
        assert listed(app, f"{query}&owner=alice") == [job]
    (other,) = put(store, "alice", cls=JobState, actor="RunMarathon")
    assert listed(app, query, "alice") == [other, job]
    assert listed(app, "?kind=actor:RunMarathon", "alice") == [other]
    assert get(app, f"/job_state{query}&all=1", ADMIN).status_code == 400
    response = act(app, f"/job_state/cancel{query}", "alice")
    assert response.json == {"done": 3, "cursor": None}
    assert statuses(store, job, other, member) == ["cancelling"] * 2 + ["cancelled"]


def test_owners_may_be_numbers(redis_url, store):
    """If users are numbers, the owner in a query is a number, too."""
    numbers = {"7": 7, ADMIN: 1}
    owner = {"jobstate.owner": lambda request: numbers[request.authenticated_userid]}
    app = operated_app(redis_url, settings=owner)
    job, _, _ = put(store, 7, "7", 8, cls=JobState)
    assert listed(app, "", "7") == listed(app, "?owner=7") == [job]
    for other in "x", "inf", quote("٧"), "0_7":
        assert listed(app, f"?owner={other}") == [], other
    assert len(listed(app, "?all=1")) == 3


@pytest.mark.promise("many-jobs-in-one-poll")
def test_several_jobs_are_those_that_may_be_seen(app, store):
    """The states come in the order of the query, with null for what is not shown."""
    mine = put(store, "alice", "alice", cls=RunMarathon)
    (others,) = put(store, "bob")
    asked = [mine[1], others, UUID, "x", "", mine[1].upper(), mine[0], mine[1]]
    response = get(app, "/job_state?" + "&".join(f"uuid={u}" for u in asked), "alice")
    jobs = response.json["jobs"]
    assert list(jobs) == asked[:-1]
    for job in mine:
        assert jobs.pop(job) == get(app, f"/job_state/{job}", "alice").json
    assert set(jobs.values()) == {None}
    assert list(response.json) == ["jobs"]


@pytest.mark.promise("many-jobs-in-one-poll")
def test_max_uuids_is_a_limit(redis_url, app, store):
    """A request may name max_uuids jobs, or 100; a bad number stops the start."""
    few = operated_app(redis_url, settings={"jobstate.max_uuids": "3"})

    def several(app: TestApp, *uuids: object) -> Any:
        return get(app, "/job_state?" + "&".join(f"uuid={u}" for u in uuids), "alice")

    assert several(few, 1, 2, 3, 2, 1).status_code == 200
    assert "uuid is given 4 times" in several(few, 1, 2, 3, 4).json["error"]
    assert several(app, *range(100)).status_code == 200
    assert several(app, *range(101)).status_code == 400
    for value in "0", "-1", "1.5", None, True, "1٣":
        with pytest.raises(Exception, match=r"jobstate\.max_uuids"):
            made_config(NOWHERE, settings={"jobstate.max_uuids": value})


#: The bytes that an answer may have: 4 MiB, and one job more.
MOST = 4 * 1024 * 1024 + 300_000

#: The metrics of a large job.
LARGE = {f"metric_{n}": "x" * 16_000 for n in range(16)}


@pytest.mark.system
@pytest.mark.parametrize(
    "query",
    ["", "?all=1", "?kind=RunMarathon", "?members=1", "?all=1&status=error", "?batch="],
)
def test_page_of_large_jobs_ends_early(app, store, query):
    """It has a cursor, and the pages have all jobs, each once."""
    if query == "?batch=":
        members = [{"status": "working", "metrics": LARGE}] * 40
        query = f"?batch={put_batch(store, *members)[0]}"
    else:
        options = {"cls": RunMarathon, "status": "error", "metrics": LARGE}
        jobs = put(store, *["alice"] * 40, **options)[::-1]
    found: list[str] = []
    cursor, pages = "", 0
    while cursor is not None:
        also = f"{query or '?'}&limit=200{cursor}".replace("?&", "?")
        user = ADMIN if "all=1" in query else "alice"
        response = get(app, f"/job_state{also}", user)
        assert len(response.json["items"]) > 0 and len(response.body) < MOST
        found += uuids_of(response.json["items"])
        cursor, pages = response.json["cursor"], pages + 1
        cursor = cursor and f"&cursor={cursor}"
    assert (len({*found}), pages) == (len(found), 3) == (40, 3)
    assert "batch" in query or found == jobs


@pytest.mark.promise("answers-are-bounded")
@pytest.mark.system
def test_answer_about_large_jobs_ends_early(app, store):
    """A job that it leaves out is missing, not null, so that the page asks again. A
    request for those that it has gets its ETag.
    """
    small = put(store, *["alice"] * 60, cls=RunMarathon)
    large = put(store, *["alice"] * 20, cls=RunMarathon, metrics=LARGE)
    huge = put(store, *["alice"] * 2, cls=RunMarathon, params={"x": "x" * 5_000_000})
    for jobs, sizes in (
        (small, [60]),
        (["x", *large, "y"], [18, 4]),
        (huge, [1, 1]),
        (large + small, [17, 63]),
        (small + large, [77, 3]),
    ):
        rest, found = jobs, []
        while rest:
            query = "&".join(f"uuid={job}" for job in rest)
            response = get(app, f"/job_state?{query}", "alice")
            states = response.json["jobs"]
            assert [*states] == rest[: len(states)] and len(response.body) < MOST
            assert [job for job in states if states[job] is None] == [
                job for job in states if job in ("x", "y")
            ]
            named = "&".join(f"uuid={job}" for job in states)
            tag = {"If_None_Match": response.headers["ETag"]}
            again = get(app, f"/job_state?{named}", "alice", **tag)
            assert again.status_code == 304
            found.append(len(states))
            rest = rest[len(states) :]
        assert found == sizes


@pytest.mark.system
def test_answer_ends_early_whatever_fills_it(app, store):
    """Characters beyond ASCII take several bytes, and names of metrics count, too."""
    for metrics in (
        *({f"m{n}": text for n in range(16)} for text in ("é" * 8000, "東" * 5000)),
        {f"m{n}": "😀" * 4000 for n in range(16)},
        {f"{n:04}".rjust(300, "m"): 1 for n in range(700)},
    ):
        store.client.flushdb()
        jobs = put(store, *["alice"] * 70, cls=RunMarathon, metrics=metrics)
        named = "&".join(f"uuid={job}" for job in jobs)
        for query in "limit=200", "kind=RunMarathon&limit=200", named:
            response = get(app, f"/job_state?{query}", "alice")
            found = response.json.get("items") or response.json["jobs"]
            assert 5 <= len(found) < 70
            # The last job has 16 metrics of 48,000 bytes in JSON at most.
            assert len(response.body) < MOST + 500_000, query


def test_lists_have_an_etag(app, store):
    """A viewer who has the current response gets a 304, until something changes."""
    (job,) = put(store, "alice", cls=RunMarathon)
    queries = ["", f"?uuid={job}", "?kind=RunMarathon"]
    first = {query: get(app, f"/job_state{query}", "alice") for query in queries}

    def again(query: str, user: str = "alice") -> Any:
        tag = first[query].headers["ETag"]
        return get(app, f"/job_state{query}", user, If_None_Match=tag)

    for query in queries:
        assert first[query].headers["Cache-Control"] == "private, no-store"
        assert (again(query).status_code, again(query).body) == (304, b"")
        assert again(query, "bob").status_code == 200
    store.cancel_all(everything=True)
    for query in queries:
        assert '"status":"cancelling"' in again(query).text
