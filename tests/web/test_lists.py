"""Lists and batches of jobs, as request.job_states and GET give them."""

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
import redis
from pyramid.authorization import Allow
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import NewJob
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.listed import Diary, commands, create, pages, uuids_of
from tests.support import INFO, UUID, key_of
from tests.webapp import (
    ADMIN,
    NOWHERE,
    PLACES,
    Policy,
    Root,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    mounted_root,
)

EMPTY: dict[str, Any] = {"items": [], "cursor": None}


def test_job_states_list_gives_jobs_that_can_be_shown(
    redis_url: str, store: JobStore
) -> None:
    """The parent of jobs from request.job_states.list() is that container."""
    config = made_config(redis_url)
    job = put_job(store, RunMarathon, owner="bob", params={"miles": 26}).uuid
    put_job(store, RunMarathon, owner="alice")
    job_states = make_request(config, "carol").job_states

    page = job_states.list("bob", kind="RunMarathon", params={"miles": 26}, limit=5)

    assert uuids_of(page.items) == [job]
    assert page.items[0].__parent__ is job_states
    assert page.cursor is None
    with pytest.raises(ValueError, match="limit"):
        job_states.list(limit=0)


@pytest.mark.parametrize("place", PLACES)
def test_get_answers_the_callers_own_jobs(
    app: TestApp, store: JobStore, place: str
) -> None:
    """Without a query, GET lists the user's own jobs, newest first, each as it is shown
    by itself.
    """
    jobs = [put_job(store, RunMarathon, owner="alice").uuid for _ in range(3)]
    put_job(store, owner="bob")

    response = get(app, place, "alice")

    assert response.status_code == 200
    assert response.json["cursor"] is None
    assert uuids_of(response.json["items"]) == jobs[::-1]
    for item in response.json["items"]:
        assert item == get(app, f"{place}/{item['job']['uuid']}", "alice").json
        assert item["job"]["cancellable"] is True
    assert get(app, place + "/", "alice").json == response.json


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", [None, "carol", ADMIN])
def test_get_answers_nobody_elses_jobs(
    app: TestApp, store: JobStore, place: str, user: str | None
) -> None:
    """A user without jobs gets an empty list, and nobody gets jobs without an owner."""
    put_job(store, owner="alice")
    put_job(store, owner=None)

    assert get(app, place, user).json == EMPTY


def test_anonymous_list_spares_the_store() -> None:
    """An anonymous request is answered without the store."""
    app = make_app(make_config(NOWHERE))

    assert get(app, "/job_state").json == EMPTY
    assert get(app, "/job_state", "alice").status_code == 503


def test_get_asks_view_job_of_each(app: TestApp, store: JobStore) -> None:
    """A job that its owner may not see is missing from that owner's lists only."""
    put_job(store, Diary, owner="alice")
    put_job(store, RunMarathon, owner="alice")

    def kinds(query: str, user: str) -> list[str]:
        items = get(app, f"/job_state{query}", user).json["items"]
        return [item["job"]["kind"] for item in items]

    assert kinds("", "alice") == ["RunMarathon"]
    assert kinds("?owner=alice", ADMIN) == ["RunMarathon", "Diary"]


def test_get_asks_cancel_job_of_each(redis_url: str, store: JobStore) -> None:
    """A list shows for each job whether the viewer may cancel it."""

    class Readers(Root):
        __acl__ = ((Allow, "reader", ("view_job", "list_jobs")),)

    app = make_app(make_config(redis_url, root_factory=Readers))
    put_job(store, owner="alice")
    put_job(store, owner="alice", status="success")

    def cancellable(query: str, user: str) -> list[bool]:
        items = get(app, f"/job_state{query}", user).json["items"]
        return [item["job"]["cancellable"] for item in items]

    assert cancellable("", "alice") == [True, False]
    assert cancellable("?all=1", "reader") == [False, False]


@pytest.mark.parametrize("place", PLACES)
def test_get_filters_and_pages(app: TestApp, store: JobStore, place: str) -> None:
    """kind, status, limit and cursor select from the user's own jobs."""
    working = [put_job(store, RunMarathon, owner="alice").uuid for _ in range(3)]
    error = put_job(store, RunMarathon, "error", owner="alice").uuid
    other = put_job(store, JobState, owner="alice").uuid

    def found(query: str) -> list[str]:
        return uuids_of(get(app, f"{place}?{query}", "alice").json["items"])

    assert found("kind=JobState") == [other]
    assert found("status=error") == [error]
    assert found("kind=RunMarathon&status=working") == working[::-1]
    assert found("limit=1") == [other]
    assert pages(
        lambda cursor: (
            get(
                app,
                f"{place}?limit=2" + (f"&cursor={cursor}" if cursor else ""),
                "alice",
            ).json[name]
            for name in ("items", "cursor")
        )
    ) == [[other, working[2]], [working[1], working[0]], [error]]


def test_get_lists_fifty_unless_told_otherwise(app: TestApp, store: JobStore) -> None:
    """A page has 50 jobs by default, and up to 200."""
    create(store, 250)

    assert len(get(app, "/job_state", "alice").json["items"]) == 50
    assert len(get(app, "/job_state?limit=200", "alice").json["items"]) == 200


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", ""),
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "-1"),
        ("limit", "+5"),
        ("limit", "5.0"),
        ("limit", "x"),
        ("limit", "1_0"),
        ("limit", "%D9%A5"),
        ("limit", "9" * 5000),
        ("status", ""),
        ("status", "done"),
        ("status", "sending"),
        ("cursor", ""),
        ("cursor", "x"),
        ("cursor", f"a{'9' * 30}.{UUID}"),
        ("all", ""),
        ("all", "0"),
        ("all", "true"),
    ],
)
def test_bad_query_is_a_400(app: TestApp, place: str, name: str, value: str) -> None:
    """An invalid parameter is a 400 that names it."""
    response = get(app, f"{place}?{name}={value}", ADMIN)

    assert response.status_code == 400
    assert re.search(rf"\b{name}\b", response.json["error"])
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("query", ["kind=%FF", "%FF=1", "uuid=%FF", "owner=%C3"])
def test_query_that_is_not_utf_8_is_a_400(app: TestApp, query: str) -> None:
    """A query that is not UTF-8 is a 400."""
    response = get(app, f"/job_state?{query}", "alice")

    assert response.status_code == 400
    assert "parameter" in response.json["error"]


def test_other_parameters_are_ignored(app: TestApp, store: JobStore) -> None:
    """Other parameters, as some libraries add against caching, are ignored."""
    job = put_job(store, owner="alice").uuid

    assert uuids_of(get(app, "/job_state?_=17", "alice").json["items"]) == [job]


@pytest.mark.parametrize("kind", ["Nothing", "", "x:y", "%00", "%F0%9F%8F%83", "*"])
def test_unknown_kind_lists_nothing(app: TestApp, kind: str) -> None:
    """Any name may be a kind: one without jobs has an empty list."""
    assert get(app, f"/job_state?kind={kind}&all=1", ADMIN).json == EMPTY


# Other users' jobs.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("query", ["owner=bob", "owner=alice", "owner=", "all=1"])
@pytest.mark.parametrize("user", ["alice", None])
def test_others_jobs_need_list_jobs(
    app: TestApp, store: JobStore, place: str, query: str, user: str | None
) -> None:
    """Without list_jobs, a user may not name any owner, not even themselves."""
    put_job(store, owner="bob")

    response = get(app, f"{place}?{query}", user)

    assert response.status_code == 403
    assert response.json == {"error": "You may not do this with the job."}


@pytest.mark.parametrize("place", PLACES)
def test_list_jobs_lists_anyones(app: TestApp, store: JobStore, place: str) -> None:
    """With list_jobs, a user may list the jobs of one owner, or all."""
    alices = put_job(store, owner="alice").uuid
    bobs = put_job(store, owner="bob").uuid
    nobodys = put_job(store).uuid

    def found(query: str) -> list[str]:
        return uuids_of(get(app, f"{place}?{query}", ADMIN).json["items"])

    assert found("owner=alice") == [alices]
    assert found("owner=bob") == [bobs]
    assert found("owner=bob&all=1") == [bobs]
    assert found("owner=nobody") == []
    assert found("all=1") == [nobodys, bobs, alices]
    assert found("all=1&limit=1") == [nobodys]


def test_list_jobs_does_not_show_what_may_not_be_seen(
    redis_url: str, store: JobStore
) -> None:
    """The permission to list does not include the permission to view."""

    class Clerks(Root):
        __acl__ = ((Allow, "clerk", "list_jobs"),)

    app = make_app(make_config(redis_url, root_factory=Clerks))
    put_job(store, owner="alice")
    mine = put_job(store, owner="clerk").uuid

    assert uuids_of(get(app, "/job_state?all=1", "clerk").json["items"]) == [mine]


def number_of(request: Request) -> object:
    """A jobstate.owner whose principals are numbers."""
    userid = request.authenticated_userid
    return None if userid is None else int(userid)


class NumberPolicy(Policy):
    """Users are identified by numbers."""

    def identity(self, request: Request) -> Any:
        return number_of_header(request)

    authenticated_userid = identity


def number_of_header(request: Request) -> int | None:
    user = request.headers.get("X-User")
    return None if user is None else int(user)


def test_owners_may_be_numbers(redis_url: str, store: JobStore) -> None:
    """If users are numbers, the owner in a query is a number, too."""

    class NumberRoot(Root):
        __acl__ = ((Allow, 1, ("view_job", "list_jobs")),)

    app = make_app(
        make_config(redis_url, root_factory=NumberRoot, security_policy=NumberPolicy())
    )
    job = put_job(store, owner=7).uuid
    text = put_job(store, owner="7").uuid
    put_job(store, owner=8)

    def found(query: str, user: str) -> list[str]:
        return uuids_of(get(app, f"/job_state{query}", user).json["items"])

    assert found("", "7") == [job]
    assert found("?owner=7", "1") == [job]
    for other in "x", "inf", quote("٧"), "0_7", "+7%20":
        assert found(f"?owner={other}", "1") == []
    assert len(found("?all=1", "1")) == 3
    assert found("?kind=JobState", "7") == [job]
    assert text not in found("", "7")


def test_owners_may_be_floats(redis_url: str, store: JobStore) -> None:
    """If users are floats, so is the owner in a query, unless it is not finite."""

    class FloatRoot(Root):
        __acl__ = ((Allow, 1.0, ("view_job", "list_jobs")),)

    class FloatPolicy(NumberPolicy):
        def identity(self, request: Request) -> Any:
            return float(request.headers["X-User"])

        authenticated_userid = identity

    app = make_app(
        make_config(redis_url, root_factory=FloatRoot, security_policy=FloatPolicy())
    )
    job = put_job(store, owner=7.5).uuid

    def found(query: str, user: str) -> list[str]:
        return uuids_of(get(app, f"/job_state{query}", user).json["items"])

    assert found("", "7.5") == found("?owner=7.5", "1") == [job]
    for other in "inf", "nan", quote("٧.5"):
        assert found(f"?owner={other}", "1") == []


# Batches.


@pytest.mark.parametrize("place", PLACES)
def test_batch_answers_each_that_may_be_seen(
    app: TestApp, store: JobStore, place: str
) -> None:
    """A batch has the states in the order of the query, each once, and null for what is
    unknown, forbidden or not a uuid.
    """
    mine = [put_job(store, RunMarathon, owner="alice").uuid for _ in range(2)]
    others = put_job(store, owner="bob").uuid
    asked = [mine[1], others, UUID, "x", "", mine[1].upper(), mine[0], mine[1]]

    response = get(app, f"{place}?" + "&".join(f"uuid={u}" for u in asked), "alice")

    jobs = response.json["jobs"]
    assert list(jobs) == asked[:-1]
    for job in mine:
        assert jobs.pop(job) == get(app, f"{place}/{job}", "alice").json
    assert set(jobs.values()) == {None}
    assert list(response.json) == ["jobs"]


def test_batch_of_the_forbidden_looks_like_one_of_the_unknown(
    app: TestApp, store: JobStore
) -> None:
    """A batch does not reveal which jobs exist."""
    others = put_job(store, owner="bob").uuid

    for user in "alice", None:
        forbidden = get(app, f"/job_state?uuid={others}", user)
        unknown = get(app, f"/job_state?uuid={UUID}", user)
        assert forbidden.body == unknown.body.replace(UUID.encode(), others.encode())
        assert forbidden.status_code == 200


def test_batch_is_limited(redis_url: str) -> None:
    """More different uuids than max_uuids are a 400 that names the parameter."""
    app = make_app(make_config(redis_url, settings={"jobstate.max_uuids": "3"}))

    def batch(*uuids: object) -> Any:
        return get(app, "/job_state?" + "&".join(f"uuid={u}" for u in uuids), "alice")

    assert batch(1, 2, 3).status_code == 200
    assert batch(1, 2, 3, 2, 1).status_code == 200
    assert batch(1, 2, 3, 4).status_code == 400
    assert "uuid is given 4 times" in batch(1, 2, 3, 4).json["error"]


def test_batch_may_have_a_hundred(app: TestApp, store: JobStore) -> None:
    """By default, a batch has up to 100 jobs."""
    jobs = create(store, 101)

    def batch(uuids: list[str]) -> Any:
        return get(app, "/job_state?" + "&".join(f"uuid={u}" for u in uuids), "alice")

    assert None not in batch(jobs[:100]).json["jobs"].values()
    assert batch(jobs).status_code == 400


@pytest.mark.parametrize(
    "value", ["0", "-1", "x", "", "1.5", None, "9" * 10, True, "1٣"]
)
def test_bad_max_uuids_stops_the_start(redis_url: str, value: object) -> None:
    """A max_uuids that is not a positive number is an error at the start."""
    config = make_config(redis_url, settings={"jobstate.max_uuids": value})

    with pytest.raises(Exception, match=r"jobstate\.max_uuids"):
        make_app(config)


def test_batch_and_list_are_each_one_round_trip(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """A batch costs the store one read per job."""
    jobs = create(store, 10)
    query = "&".join(f"uuid={u}" for u in jobs)
    get(app, f"/job_state?{query}", "alice")

    client.config_resetstat()
    get(app, f"/job_state?{query}", "alice")

    assert commands(client)["hgetall"] == 10


# Lists and batches.


QUERIES = ["", "?limit=5", f"?uuid={UUID}", "?kind=RunMarathon"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("query", QUERIES)
def test_lists_have_an_etag(
    app: TestApp, store: JobStore, client: redis.Redis, place: str, query: str
) -> None:
    """A viewer who has the current response gets a 304, until something changes."""
    store.create(NewJob(UUID, INFO))
    first = get(app, place + query, "alice")
    etag = first.headers["ETag"]

    again = get(app, place + query, "alice", If_None_Match=etag)
    client.hset(key_of(store, UUID), "m:miles_run", "3")
    changed = get(app, place + query, "alice", If_None_Match=etag)

    assert again.status_code == 304 and again.body == b""
    assert changed.status_code == 200 and '"miles_run":3' in changed.text
    assert get(app, place + query, "bob", If_None_Match=etag).status_code == 200
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert first.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("query", [*QUERIES, "?owner=x", "?all=1"])
def test_store_that_is_away_is_a_503(
    server: EmbeddedServer, place: str, query: str
) -> None:
    """While the store is away, lists and batches are a 503 with a Retry-After."""
    app = make_app(make_config(server.url, root_factory=mounted_root))
    server.stop()

    response = get(app, place + query, ADMIN)

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json == {"error": "The job state store does not answer."}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("place", PLACES)
def test_container_answers_only_get(app: TestApp, place: str, method: str) -> None:
    """Every other method is refused, and the response names the allowed ones."""
    from tests.webapp import ask

    response = ask(app, method, place, ADMIN)

    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert ask(app, "HEAD", place, ADMIN).status_code == 200


def test_nonsense_in_a_record_does_not_stop_a_list(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """A hash that another program damaged is shown as far as it can be read."""
    jobs = create(store, 3)
    client.hset(
        key_of(store, jobs[1]),
        mapping={
            "status": "<b>",
            "params": "[",
            "queued": "x",
            "m:x": "NaN",
            "error": "1",
        },
    )
    client.delete(key_of(store, jobs[2]))
    client.set(key_of(store, jobs[2]), "x")

    items = get(app, "/job_state", "alice").json["items"]

    assert uuids_of(items) == jobs[:2]
    json.dumps(items, allow_nan=False)
