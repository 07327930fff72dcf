"""Pages of jobs from the store."""

import random
import uuid
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.changes import NewJob
from pyramid_jobstate.store.reading import Reader
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.listed import Diary, begin, commands, create, finish, pages, uuids_of
from tests.support import INFO, UUID, key_of


def flat(found: list[list[str]]) -> list[str]:
    return [job for page in found for job in page]


def listed(client: redis.Redis, name: str) -> set[str]:
    members: Any = client.zrange(f"jobstate:{name}", 0, -1)
    return {member.decode() for member in members}


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
def test_invalid_status_is_refused(store: JobStore, status: str) -> None:
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
def test_invalid_cursor_is_refused(store: JobStore, cursor: str) -> None:
    """A cursor that was never issued is refused."""
    with pytest.raises(ValueError, match="cursor was not issued by this list"):
        store.list(cursor=cursor)


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"kind": RunMarathon}, r"^kind must be a str, such as RunMarathon\.kind, not <"),
    ({"kind": 5}, "^kind must be a str, .*, not 5"),
    ({"owner": [1]}, r"^owner must be a string or a finite number, not \[1\]"),
    ({"owner": True}, "^owner must be .*, not True"),
    ({"params": [1]}, r"^params must be a dict .*, not \[1\]"),
    ({"cursor": 5}, "^cursor must be a str from the call before, not 5"),
]


@pytest.mark.parametrize(("wrong", "match"), FILTERS)
def test_argument_of_the_wrong_type_is_refused(
    store: JobStore, wrong: dict[str, Any], match: str
) -> None:
    """What no job can match is an error, not an empty list."""
    with pytest.raises(TypeError, match=match):
        store.list(**wrong)
    if "cursor" in wrong:
        with pytest.raises(TypeError, match=match):
            store.members(UUID, **wrong)
    if "kind" in wrong:
        with pytest.raises(TypeError, match=match):
            store.counts(**wrong)
        with pytest.raises(TypeError, match=match):
            store.throughput(**wrong)


@pytest.mark.parametrize(("wrong", "match"), FILTERS)
def test_argument_of_the_wrong_type_is_refused_for_many_jobs(
    store: JobStore, wrong: dict[str, Any], match: str
) -> None:
    """A call that acts on many jobs does not find that it has nothing to do."""
    with pytest.raises(TypeError, match=match):
        store.cancel_all(everything=True, **wrong)
    if "params" not in wrong:
        with pytest.raises(TypeError, match=match):
            store.clear(everything=True, **wrong)


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


def test_paging_shows_a_job_that_ends_once(
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


def test_entry_in_the_index_of_another_owner_is_not_shown(
    store: JobStore, client: redis.Redis
) -> None:
    """The record determines the lists in which a job appears, not the index."""
    (job,) = create(store, 1)
    client.zadd('jobstate:active:owner:"bob"', {job: 5})
    client.zadd("jobstate:active:kind:Diary", {job: 5})

    assert store.list("bob") == store.list(kind="Diary") == ([], None)


def test_search_among_hidden_jobs_is_limited(
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
    """A page that ends with the last entry of the list is the last page."""
    create(store, 1000)

    assert store.list(status="working") == ([], None)


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
    name = "zrevrange" if status in ("queued", "success") else "zrevrangebyscore"
    assert (calls[name], calls["hgetall"]) == (1, 10)
