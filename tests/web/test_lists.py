"""GET of many jobs: lists, which jobs they have, and requests for several jobs."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
import redis
from pyramid.authorization import Allow
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from tests.jobs import RunMarathon
from tests.support import UUID, key_of
from tests.web.operating import LockedDiary, put, uuids_of
from tests.web.paging import put_batch
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Policy,
    Root,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
)

EMPTY: dict[str, Any] = {"items": [], "cursor": None}


class Listing:
    """Lists jobs as a user."""

    def __init__(self, app: TestApp, user: str | None = ADMIN) -> None:
        self._app = app
        self._user = user

    def __call__(self, query: str = "", user: str | None = None) -> list[str]:
        response = get(self._app, f"/job_state{query}", user or self._user)
        assert response.status_code == 200, query
        return uuids_of(response.json["items"])


def test_job_states_list_gives_jobs_that_can_be_shown(
    redis_url: str, store: JobStore
) -> None:
    """The parent of jobs from request.job_states.list() is that container."""
    (job,) = put(store, "bob", cls=RunMarathon)
    put(store, "alice", cls=RunMarathon)
    job_states = make_request(made_config(redis_url), "carol").job_states

    page = job_states.list("bob", kind="RunMarathon", params={"miles": 26}, limit=5)

    assert uuids_of(page.items) == [job]
    assert page.items[0].__parent__ is job_states
    assert page.cursor is None
    with pytest.raises(ValueError, match="limit"):
        job_states.list(limit=0)


def test_get_answers_the_callers_own_jobs(app: TestApp, store: JobStore) -> None:
    """Without a query, GET lists the user's own jobs, newest first, each as it is shown
    by itself. Others get nothing, and nobody gets jobs without an owner. Parameters
    that it does not know, as some libraries add against caching, are ignored.
    """
    jobs = put(store, "alice", "alice", "alice", cls=RunMarathon)
    put(store, "bob", None)

    response = get(app, "/job_state", "alice")

    assert response.status_code == 200
    assert response.json["cursor"] is None
    assert uuids_of(response.json["items"]) == jobs[::-1]
    for item in response.json["items"]:
        assert item == get(app, f"/job_state/{item['job']['uuid']}", "alice").json
        assert item["job"]["cancellable"] is True
    for path in "/job_state/", "/job_state?_=17":
        assert get(app, path, "alice").json == response.json
    for user in None, "carol", ADMIN:
        assert get(app, "/job_state", user).json == EMPTY


def test_anonymous_list_spares_the_store() -> None:
    """An anonymous request is answered without the store."""
    app = make_app(make_config(NOWHERE))

    assert get(app, "/job_state").json == EMPTY
    assert get(app, "/job_state", "alice").status_code == 503


def test_job_that_its_owner_may_not_see_is_not_in_their_lists(
    app: TestApp, store: JobStore
) -> None:
    """Each job of a list is asked about. Others may see what its owner may not."""
    (diary,) = put(store, "alice", cls=LockedDiary)
    (job,) = put(store, "alice", cls=RunMarathon)
    listed = Listing(app)

    assert listed("", "alice") == [job]
    assert listed("?owner=alice") == [job, diary]


def test_get_filters_and_pages(app: TestApp, store: JobStore) -> None:
    """kind, status, limit and cursor select from the user's own jobs. Any name may be a
    kind: one without jobs has an empty list.
    """
    working = put(store, "alice", "alice", "alice", cls=RunMarathon)
    (error,) = put(store, "alice", cls=RunMarathon, status="error")
    (other,) = put(store, "alice", cls=JobState)
    listed = Listing(app, "alice")

    assert listed("?kind=JobState") == [other]
    assert listed("?status=error") == [error]
    assert listed("?kind=RunMarathon&status=working") == working[::-1]
    assert listed("?limit=1") == [other]
    for kind in "Nothing", "", "x:y", "%00", "%F0%9F%8F%83", "*":
        assert get(app, f"/job_state?kind={kind}&all=1", ADMIN).json == EMPTY
    found, query = [], "?limit=2"
    while query:
        page = get(app, f"/job_state{query}", "alice").json
        found.append(uuids_of(page["items"]))
        query = page["cursor"] and f"?limit=2&cursor={page['cursor']}"
    assert found == [[other, working[2]], [working[1], working[0]], [error]]


def test_list_jobs_lists_anyones(app: TestApp, store: JobStore) -> None:
    """With list_jobs, a user may list the jobs of one owner, or all."""
    alices, bobs, nobodys = put(store, "alice", "bob", None)
    listed = Listing(app)

    assert listed("?owner=alice") == [alices]
    assert listed("?owner=bob") == [bobs]
    assert listed("?owner=bob&all=1") == [bobs]
    assert listed("?owner=nobody") == listed("?owner=") == []
    assert listed("?all=1") == [nobodys, bobs, alices]
    assert listed("?all=1&limit=1") == [nobodys]


def test_members_of_a_hidden_batch_are_unknown(app: TestApp, store: JobStore) -> None:
    """Who may see some members of a batch lists them only if they may see the batch,
    which otherwise looks like an unknown one. Other members are left out.
    """
    theirs = {"status": "success", "owner": "bob"}
    batch, (job, _) = put_batch(store, "success", theirs)
    listed = Listing(app)

    assert listed(f"?batch={batch}", "alice") == [job]
    assert len(listed(f"?batch={batch}")) == 2
    for user in "bob", None:
        for uuid in batch, UUID, job:
            response = get(app, f"/job_state?batch={uuid}", user)
            assert response.status_code == 404
            assert response.json == {"error": "The job does not exist."}


def test_sizes(app: TestApp, store: JobStore) -> None:
    """A page has 50 jobs by default, and up to 200. A request for several jobs may name
    a hundred, which are one read each.
    """
    jobs = put(store, *["alice"] * 201, status="queued")

    assert len(get(app, "/job_state", "alice").json["items"]) == 50
    assert len(get(app, "/job_state?limit=200", "alice").json["items"]) == 200

    def several(count: int) -> Any:
        query = "&".join(f"uuid={u}" for u in jobs[:count])
        store.client.config_resetstat()
        return get(app, f"/job_state?{query}", "alice")

    assert several(101).status_code == 400
    assert None not in several(100).json["jobs"].values()
    stats: Any = store.client.info("commandstats")
    assert stats["cmdstat_hgetall"]["calls"] == 100


# Owners that are numbers.


class NumberPolicy(Policy):
    """Users are identified by numbers of a type."""

    def __init__(self, number: type[float]) -> None:
        self._number = number

    def identity(self, request: Request) -> Any:
        user = request.headers.get("X-User")
        return None if user is None else self._number(user)

    authenticated_userid = identity


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        (int, ["x", "inf", quote("٧"), "0_7", "+7%20"]),
        (float, ["inf", "nan", quote("٧.0")]),
    ],
)
def test_owners_may_be_numbers(
    redis_url: str, store: JobStore, number: type[float], wrong: list[str]
) -> None:
    """If users are numbers, the owner in a query is a number, too, of their type."""

    class NumberRoot(Root):
        __acl__ = ((Allow, number(1), ("view_job", "list_jobs")),)

    policy = NumberPolicy(number)
    app = make_app(
        make_config(redis_url, root_factory=NumberRoot, security_policy=policy)
    )
    job, _, _ = put(store, number(7), "7", number(8), cls=JobState)
    listed = Listing(app, "1")

    assert listed("", "7") == [job]
    assert listed(f"?owner={number(7)}") == [job]
    for other in wrong:
        assert listed(f"?owner={other}") == [], other
    assert len(listed("?all=1")) == 3
    assert listed("?kind=JobState", "7") == [job]


# Several jobs.


def test_several_jobs_are_those_that_may_be_seen(app: TestApp, store: JobStore) -> None:
    """A request for several jobs has the states in the order of the query, each once,
    and null for what is unknown, forbidden or not a uuid.
    """
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


def test_forbidden_job_looks_like_an_unknown_one_among_others(
    app: TestApp, store: JobStore
) -> None:
    """A request for several jobs does not reveal which exist."""
    (others,) = put(store, "bob")

    for user in "alice", None:
        forbidden = get(app, f"/job_state?uuid={others}", user)
        unknown = get(app, f"/job_state?uuid={UUID}", user)
        assert forbidden.body == unknown.body.replace(UUID.encode(), others.encode())
        assert forbidden.status_code == 200


def test_max_uuids_limits_several_jobs(redis_url: str) -> None:
    """More different uuids than max_uuids are a 400 that names the parameter."""
    app = make_app(make_config(redis_url, settings={"jobstate.max_uuids": "3"}))

    def several(*uuids: object) -> Any:
        return get(app, "/job_state?" + "&".join(f"uuid={u}" for u in uuids), "alice")

    assert several(1, 2, 3).status_code == 200
    assert several(1, 2, 3, 2, 1).status_code == 200
    assert several(1, 2, 3, 4).status_code == 400
    assert "uuid is given 4 times" in several(1, 2, 3, 4).json["error"]


def test_bad_max_uuids_stops_the_start() -> None:
    """A max_uuids that is not a positive number is an error at the start."""
    for value in "0", "-1", "x", "", "1.5", None, "9" * 10, True, "1٣":
        config = make_config(NOWHERE, settings={"jobstate.max_uuids": value})
        with pytest.raises(Exception, match=r"jobstate\.max_uuids"):
            make_app(config)


# Both.


def test_lists_have_an_etag(app: TestApp, store: JobStore) -> None:
    """A viewer who has the current response gets a 304, until something changes."""
    (job,) = put(store, "alice", cls=RunMarathon)
    queries = ["", "?limit=5", f"?uuid={job}", "?kind=RunMarathon"]
    first = {query: get(app, f"/job_state{query}", "alice") for query in queries}

    def again(query: str, user: str = "alice") -> Any:
        tag = first[query].headers["ETag"]
        return get(app, f"/job_state{query}", user, If_None_Match=tag)

    for query in queries:
        assert first[query].headers["Cache-Control"] == "private, no-cache"
        assert first[query].headers["X-Content-Type-Options"] == "nosniff"
        assert (again(query).status_code, again(query).body) == (304, b"")
        assert again(query, "bob").status_code == 200
    store.cancel_all(everything=True)
    for query in queries:
        assert again(query).status_code == 200
        assert '"status":"cancelling"' in again(query).text


def test_nonsense_in_a_record_does_not_stop_a_list(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """A hash that another program damaged is shown as far as it can be read."""
    lost, damaged, sound = put(store, "alice", "alice", "alice", status="queued")
    nonsense: Any = {
        "status": "<b>",
        "params": "[",
        "queued": "x",
        "m:x": "NaN",
        "error": "1",
    }
    client.hset(key_of(store, damaged), mapping=nonsense)
    client.delete(key_of(store, lost))
    client.set(key_of(store, lost), "x")

    items = get(app, "/job_state", "alice").json["items"]

    assert uuids_of(items) == [sound, damaged]
    json.dumps(items, allow_nan=False)
