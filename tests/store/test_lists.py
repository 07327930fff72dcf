"""Lists and batches of jobs, from the store and in the responses to GET."""

import json
import random
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Deny
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import NewJob
from pyramid_jobstate.store.reading import Reader
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.store.listed import begin, create, finish
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
    mounted_root,
)

EMPTY: dict[str, Any] = {"items": [], "cursor": None}


class Diary(JobState):
    """A kind of job that its owner may cancel but not see."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Deny, self.owner, "view_job"), *super().__acl__()]


def uuids_of(items: Any) -> list[str]:
    return [
        item.uuid if isinstance(item, JobState) else item["job"]["uuid"]
        for item in items
    ]


def pages(
    list_page: Callable[..., Any], between: Callable[[], Any] | None = None
) -> list[list[str]]:
    """Return all pages of a list, calling `between` between two of them."""
    found = []
    cursor = None
    while True:
        items, cursor = list_page(cursor)
        found.append(uuids_of(items))
        if cursor is None:
            return found
        if between is not None:
            between()


def flat(found: list[list[str]]) -> list[str]:
    return [job for page in found for job in page]


def listed(client: redis.Redis, name: str) -> set[str]:
    members: Any = client.zrange(f"jobstate:{name}", 0, -1)
    return {member.decode() for member in members}


# From the store.


def test_list_is_unfinished_first_and_newest_first(store: JobStore) -> None:
    """Unfinished jobs precede ended ones. Each part has the newest first, by the time
    they were queued or ended.
    """
    active = create(store, 5)
    ended = create(store, 5)
    order = [ended[i] for i in (3, 0, 4, 1, 2)]
    finish(store, *order)

    page = store.list()

    assert uuids_of(page.items) == active + order
    assert page.cursor is None
    assert [job_state.status for job_state in page.items] == ["queued"] * 5 + [
        "success"
    ] * 5


def test_list_of_nothing_is_empty(store: JobStore) -> None:
    """An empty store has a single, empty page."""
    assert store.list() == ([], None)


@pytest.mark.parametrize("limit", [1, 3, 5, 9, 10, 11, 200])
def test_pages_join_without_a_gap(store: JobStore, limit: int) -> None:
    """Pages of any size contain each job once, and only the last has no cursor."""
    active, ended = create(store, 5), create(store, 5)
    finish(store, *ended)

    found = pages(lambda cursor: store.list(limit=limit, cursor=cursor))

    assert flat(found) == active + ended
    assert all(len(page) == limit for page in found[:-1])
    assert len(found) == -(-10 // limit)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"owner": "alice"}, "abc"),
        ({"owner": "bob"}, "de"),
        ({"owner": 7}, "f"),
        ({"owner": "7"}, ""),
        ({"owner": ""}, ""),
        ({"kind": "RunMarathon"}, "acdf"),
        ({"kind": "Diary"}, "be"),
        ({"kind": "Nothing"}, ""),
        ({"status": "success"}, "cd"),
        ({"status": "working"}, "ae"),
        ({"status": "stalled"}, "f"),
        ({"status": "cancelling"}, ""),
        ({"owner": "alice", "kind": "RunMarathon"}, "ac"),
        ({"owner": "alice", "kind": "RunMarathon", "status": "working"}, "a"),
        ({"owner": "bob", "status": "working"}, "e"),
        ({"params": {"miles": 26}}, "ad"),
        ({"params": {"miles": 26, "shoes": ["red"]}}, "a"),
        ({"params": {"miles": 26}, "owner": "bob"}, "d"),
        ({"params": {"kilometres": None}}, ""),
        ({"params": {}}, "abcdef"),
    ],
)
def test_list_is_filtered(store: JobStore, wanted: Any, expected: str) -> None:
    """A list contains only jobs of the given owner, kind, status and parameters."""
    miles = {"miles": 26}
    names = {
        put_job(store, cls, status, owner=owner, params=params).uuid: name
        for name, cls, status, owner, params in (
            ("a", RunMarathon, "working", "alice", {**miles, "shoes": ["red"]}),
            ("b", Diary, "queued", "alice", {}),
            ("c", RunMarathon, "success", "alice", {"miles": 27}),
            ("d", RunMarathon, "success", "bob", miles),
            ("e", Diary, "working", "bob", {"miles": "26"}),
            ("f", RunMarathon, "stalled", 7, {}),
        )
    }

    for limit in 1, 50:
        found = pages(
            lambda c, limit=limit: store.list(**wanted, limit=limit, cursor=c)
        )
        assert sorted(names[job] for job in flat(found)) == list(expected)


def test_delayed_job_is_listed_by_when_it_is_due(store: JobStore) -> None:
    """A job that is due later precedes those that are due now."""
    late, soon = str(uuid.uuid4()), str(uuid.uuid4())
    store.create(NewJob(late, INFO, delay=3600))
    store.create(NewJob(soon, INFO))

    assert uuids_of(store.list().items) == [late, soon]


@pytest.mark.parametrize("limit", [0, -1, 201, 10**30])
def test_limit_is_bounded(store: JobStore, limit: int) -> None:
    """A page has from 1 to 200 jobs."""
    with pytest.raises(ValueError, match="limit must be from 1 to 200"):
        store.list(limit=limit)


@pytest.mark.parametrize("limit", ["5", 5.0, True, None])
def test_limit_is_a_number(store: JobStore, limit: Any) -> None:
    """A limit that is not an int is an error that names it."""
    with pytest.raises(TypeError, match="limit must be an int"):
        store.list(limit=limit)


@pytest.mark.parametrize("status", ["", "done", "waiting", "sending"])
def test_status_must_be_one(store: JobStore, status: str) -> None:
    """A status that no job can have is an error that names it."""
    with pytest.raises(ValueError, match="status must be a status of a job"):
        store.list(status=status)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "a1",
        f"a.{UUID}",
        f"b1.{UUID}",
        f"a-1.{UUID}",
        f"a1.{UUID}\n",
        "a" * 9999,
        f"a{'9' * 17}.{UUID}",
        f"a²1.{UUID}",
        "e1.12345678",
    ],
)
def test_cursor_must_be_one(store: JobStore, cursor: str) -> None:
    """A cursor that was never issued is refused."""
    with pytest.raises(ValueError, match="cursor was not issued by this list"):
        store.list(cursor=cursor)


def test_cursor_of_another_list_does_no_harm(store: JobStore) -> None:
    """A cursor is a position that is valid in any list."""
    jobs = create(store, 4)
    finish(store, *jobs[2:])
    first, last = store.list(limit=1).cursor, store.list(limit=3).cursor

    assert uuids_of(store.list(status="success", cursor=first).items) == jobs[2:]
    assert uuids_of(store.list(status="queued", cursor=last).items) == []
    assert uuids_of(store.list("bob", cursor=last).items) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("decode", [False, True])
def test_ties_are_told_apart(
    client: redis.Redis, redis_url: str, limit: int, decode: bool
) -> None:
    """Jobs of the same microsecond are neither lost nor repeated between pages, with
    any kind of client.
    """
    with redis.Redis.from_url(redis_url, decode_responses=decode) as other:
        store = JobStore(other)
        jobs = create(store, 8)
        client.zadd("jobstate:active:all", dict.fromkeys(jobs[1:7], 1e15))

        found = pages(lambda cursor: store.list(limit=limit, cursor=cursor))

        assert len(flat(found)) == 8
        assert set(flat(found)) == set(jobs)


def test_cursor_survives_its_entry(store: JobStore, client: redis.Redis) -> None:
    """A page continues after the previous one even if that page's last job is gone."""
    jobs = create(store, 6)
    page = store.list(limit=3)
    store.forget(NewJob(jobs[2], INFO))
    client.delete(key_of(store, jobs[3]))

    assert uuids_of(store.list(limit=3, cursor=page.cursor).items) == jobs[4:]


@pytest.mark.parametrize("seed", range(4))
def test_paging_misses_no_job_while_others_change(store: JobStore, seed: int) -> None:
    """While jobs are created, end and start again between pages, no job that exists
    throughout is missed, and no page shows a job twice.
    """
    rng = random.Random(seed)
    active = create(store, 150)
    ended = create(store, 150)
    finish(store, *ended)
    everything = set(active + ended)
    rng.shuffle(active)
    rng.shuffle(ended)

    def change() -> None:
        create(store, rng.randrange(8))
        for _ in range(rng.randrange(6)):
            finish(store, active.pop())
        for _ in range(rng.randrange(6)):
            begin(store, ended.pop())

    found = pages(lambda cursor: store.list(limit=20, cursor=cursor), change)

    assert set(flat(found)) >= everything
    assert all(len(set(page)) == len(page) for page in found)


def test_paging_a_job_that_ends_stands_once_in_a_page(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the two reads of a page appears on it once."""
    jobs = create(store, 3)
    read = Reader.read

    def read_and_end(reader: Reader, uuids: Any) -> Any:
        records = read(reader, uuids)
        monkeypatch.undo()
        finish(store, jobs[1])
        return records

    monkeypatch.setattr(Reader, "read", read_and_end)

    page = store.list()

    assert uuids_of(page.items) == jobs


def test_entries_of_jobs_that_are_gone_are_dropped(
    store: JobStore, client: redis.Redis
) -> None:
    """A job whose record has expired is left out, and its entry is removed."""
    jobs = create(store, 4)
    finish(store, *jobs[2:])
    client.delete(key_of(store, jobs[0]), key_of(store, jobs[2]))

    assert uuids_of(store.list("alice").items) == [jobs[1], jobs[3]]

    assert listed(client, 'active:owner:"alice"') == {jobs[1]}
    assert listed(client, 'ended:owner:"alice"') == {jobs[3]}


def test_job_whose_end_was_not_listed_is_moved(
    store: JobStore, client: redis.Redis
) -> None:
    """A job that has ended without being listed as ended is shown once, among the ended
    jobs, and stays there.
    """
    jobs = create(store, 3)
    client.hset(key_of(store, jobs[1]), mapping={"status": "error", "finished": 1})

    assert uuids_of(store.list().items) == [jobs[0], jobs[2], jobs[1]]

    for name in "all", "kind:RunMarathon", 'owner:"alice"':
        assert listed(client, f"active:{name}") == {jobs[0], jobs[2]}
        assert listed(client, f"ended:{name}") == {jobs[1]}


def test_job_whose_new_run_was_not_listed_is_moved(
    store: JobStore, client: redis.Redis
) -> None:
    """A job that runs again is shown as it is, and later among the unfinished jobs."""
    jobs = create(store, 3)
    finish(store, *jobs)
    client.hset(key_of(store, jobs[1]), "status", "retrying")

    page = store.list()

    assert uuids_of(page.items) == jobs
    assert page.items[1].status == "retrying"
    for name in "all", "kind:RunMarathon", 'owner:"alice"':
        assert listed(client, f"active:{name}") == {jobs[1]}
        assert listed(client, f"ended:{name}") == {jobs[0], jobs[2]}
    assert uuids_of(store.list().items) == [jobs[1], jobs[0], jobs[2]]


def test_job_that_ends_again_is_the_newest(
    store: JobStore, client: redis.Redis
) -> None:
    """A job that has run again is listed by its last end, and for as long as others
    that ended then.
    """
    jobs = create(store, 3)
    finish(store, *jobs)
    before = client.zscore("jobstate:ended:all", jobs[2])

    finish(store, jobs[2])

    after = client.zscore("jobstate:ended:all", jobs[2])
    assert before is not None and after is not None and after > before
    assert uuids_of(store.list().items) == [jobs[2], *jobs[:2]]


def test_nonsense_in_an_index_is_passed_over(
    store: JobStore, client: redis.Redis
) -> None:
    """Entries of an index that another program wrote are skipped."""
    jobs = create(store, 4)
    top, key = 2**53, "jobstate:active:all"
    client.zadd(key, {b"\xff": top})
    client.zadd(key, {"active:all": top - 1, "": 1e15, "x" * 5000: 5})
    client.zadd(key, {UUID: "inf", UUID[:-1] + "c": "-inf", UUID[:-1] + "d": 1e300})

    for limit in 1, 2, 50:
        found = pages(lambda c, limit=limit: store.list(limit=limit, cursor=c))
        assert flat(found) == jobs


def test_much_nonsense_in_an_index_is_passed_over(
    store: JobStore, client: redis.Redis
) -> None:
    """However many such entries precede the jobs, the cursor is valid."""
    jobs = create(store, 2)
    nonsense = {f"x{i}": 2**53 - i for i in range(1200)}
    client.zadd("jobstate:active:kind:RunMarathon", nonsense)

    found = pages(lambda c: store.list(kind="RunMarathon", limit=1, cursor=c))

    assert flat(found) == jobs


def test_entry_in_an_index_of_another_is_not_shown(
    store: JobStore, client: redis.Redis
) -> None:
    """The record determines the lists in which a job appears, not the index."""
    (job,) = create(store, 1)
    client.zadd('jobstate:active:owner:"bob"', {job: 5})
    client.zadd("jobstate:active:kind:Diary", {job: 5})

    assert store.list("bob") == store.list(kind="Diary") == ([], None)


def test_hidden_jobs_are_not_looked_for_for_ever(
    store: JobStore, client: redis.Redis
) -> None:
    """A page of a filtered list examines a thousand entries in a few round trips. It
    may be short, and its cursor goes on from there.
    """
    jobs = create(store, 1500)
    finish(store, jobs[-1])

    client.config_resetstat()
    first = store.list(kind="RunMarathon", params={"miles": 27}, limit=1)
    calls = commands(client)

    assert first.items == [] and first.cursor is not None
    # For each job the outline, then the parameters. No job is read whole.
    assert 2000 <= calls["hmget"] <= 2400
    assert "hgetall" not in calls
    assert calls["zrevrangebyscore"] <= 20

    client.hset(key_of(store, jobs[1400]), "params", '{"miles": 27}')
    second = store.list(params={"miles": 27}, limit=1, cursor=first.cursor)
    assert uuids_of(second.items) == [jobs[1400]]
    assert store.list(params={"miles": 27}, cursor=second.cursor) == ([], None)


def test_exactly_a_thousand_entries_are_a_whole_list(store: JobStore) -> None:
    """If the last examined entry is the last of all, there is no further page."""
    create(store, 1000)

    assert store.list(status="working") == ([], None)


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often the server ran each command since the last reset."""
    stats: Any = client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()
    }


@pytest.mark.parametrize("which", ["first", "second"])
def test_page_does_not_cost_more_where_there_are_more_jobs(
    store: JobStore, client: redis.Redis, which: str
) -> None:
    """A page takes the same commands and similar bytes for 200 jobs as for 4,000."""
    costs = []
    for count in 100, 1900:
        finish(store, *create(store, count))
        create(store, count)
        cursor = None if which == "first" else store.list(limit=20).cursor
        store.load(UUID)
        client.config_resetstat()
        store.list(limit=20, cursor=cursor)
        stats: Any = client.info("stats")
        calls = commands(client)
        calls = {name: calls.get(name, 0) for name in ("hgetall", "zrevrangebyscore")}
        costs.append((calls, stats["total_net_output_bytes"]))

    assert costs[0][0] == costs[1][0] == {"hgetall": 21, "zrevrangebyscore": 1}
    assert costs[1][1] < 1.2 * costs[0][1]


@pytest.mark.parametrize("status", ["queued", "success"])
def test_status_spares_the_other_jobs(
    store: JobStore, client: redis.Redis, status: str
) -> None:
    """A filter by status reads only the index that can contain such jobs."""
    jobs = create(store, 20)
    finish(store, *jobs[:10])

    client.config_resetstat()
    assert len(store.list(status=status).items) == 10

    calls = commands(client)
    assert (calls["zrevrangebyscore"], calls["hgetall"]) == (1, 10)


# From a request.


def test_job_states_list_gives_jobs_that_can_be_shown(
    redis_url: str, store: JobStore
) -> None:
    """The parent of jobs from request.job_states.list() is that container."""
    from tests.webapp import make_request

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
def test_query_that_is_no_utf_8_is_a_400(app: TestApp, query: str) -> None:
    """A query that is not UTF-8 is a 400."""
    response = get(app, f"/job_state?{query}", "alice")

    assert response.status_code == 400
    assert "parameter" in response.json["error"]


def test_other_parameters_are_ignored(app: TestApp, store: JobStore) -> None:
    """Other parameters, as some libraries add against caching, are ignored."""
    job = put_job(store, owner="alice").uuid

    assert uuids_of(get(app, "/job_state?_=17", "alice").json["items"]) == [job]


@pytest.mark.parametrize("kind", ["Nothing", "", "x:y", "%00", "%F0%9F%8F%83", "*"])
def test_kind_that_there_is_not_is_empty(app: TestApp, kind: str) -> None:
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
    assert found("?owner=x", "1") == found("?owner=inf", "1") == []
    assert len(found("?all=1", "1")) == 3
    assert found("?kind=JobState", "7") == [job]
    assert text not in found("", "7")


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


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", None, "9" * 10, True])
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
