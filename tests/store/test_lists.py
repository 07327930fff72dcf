"""Pages of jobs."""

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobStateMiddleware, JobStore, Page, rerun
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import Gate, RunMarathon, messages, working
from tests.lost import losing, places_of
from tests.store.jobs import (
    Diary,
    all_of,
    create,
    finish,
    make_desk,
    pages,
    put,
    put_crowd,
    put_unsent,
    uuids_of,
)
from tests.support import STATUSES, UUID, key_of, load_job, wait_for
from tests.trips import counting_trips


def put_many(store: JobStore, count: int, status: str = "success") -> list[str]:
    """Store jobs in a status and return their uuids, newest first."""
    return [put(store, status) for _ in range(count)][::-1]


@pytest.mark.promise("list-shows-what-may-be-seen")
def test_list_is_unfinished_first_and_newest_first(store):
    """Unfinished jobs precede ended ones. Each part has the newest first, by the time
    they were queued, are due or ended.
    """
    assert store.list() == Page([], None)
    late = put(store, "queued", delay=3600)
    active, ended = put_many(store, 3, "working"), create(store, 4)
    order = [ended[i] for i in (3, 0, 2, 1)]
    finish(store, *order)
    page = store.list()
    assert uuids_of(page.items) == [late, *active, *order]
    assert page.cursor is None


def test_pages_join_without_a_gap(store):
    """Pages of any size contain each job once, and only the last has no cursor. They
    go on after the previous one even if that page's last job is gone.
    """
    jobs = put_many(store, 5)
    jobs = put_many(store, 5, "queued") + jobs
    for limit in 1, 3, 10, 200:
        found = pages(
            lambda cursor, limit=limit: store.list(limit=limit, cursor=cursor)
        )
        assert list(itertools.chain(*found)) == jobs, limit
        assert all(len(page) == limit for page in found[:-1])
        assert len(found) == -(-10 // limit)
    page = store.list(limit=7)
    assert store.delete(jobs[6])
    store.client.delete(key_of(store, jobs[7]))
    assert uuids_of(store.list(cursor=page.cursor).items) == jobs[8:]


def test_jobs_of_one_moment_are_told_apart(redis_url):
    """Jobs that are due at the same time are neither lost nor repeated between pages,
    with any kind of client.
    """
    for decode in False, True:
        with redis.Redis.from_url(redis_url, decode_responses=decode) as client:
            client.flushall()
            store = JobStore(client)
            # After the last time that a place in a list can tell.
            jobs = [put(store, "queued", delay=1e10) for _ in range(6)]
            for limit in 1, 2, 5:
                for status in None, "queued":
                    found = all_of(store, limit, status=status)
                    assert len(found) == 6
                    assert set(found) == set(jobs)


@pytest.mark.promise("list-shows-what-may-be-seen")
def test_paging_misses_no_job_while_others_change(store):
    """While jobs are sent, end and are run again between pages, no job that
    exists throughout is missed, and no page shows a job twice.
    """
    rng = random.Random(1)
    broker, _ = make_desk(store)
    active, ended = create(store, 40), put_many(store, 40, "error")
    everything = {*active, *ended}
    rng.shuffle(active)
    rng.shuffle(ended)

    def change() -> None:
        create(store, rng.randrange(4))
        for _ in range(rng.randrange(4)):
            assert load_job(store, active.pop()).cancel()
        for _ in range(rng.randrange(4)):
            assert rerun(store, broker, ended.pop())

    found = pages(lambda cursor: store.list(limit=9, cursor=cursor), change)
    assert {*itertools.chain(*found)} >= everything
    assert all(len(set(page)) == len(page) for page in found)


#: Filters, and the jobs that each shows.
FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"owner": "alice"}, "abc"),
    ({"owner": 7}, "f"),
    ({"owner": "7"}, ""),
    ({"kind": "RunMarathon"}, "acdf"),
    ({"kind": "Nothing"}, ""),
    ({"status": "success"}, "cd"),
    ({"status": "stalled"}, "f"),
    ({"status": "success", "owner": "alice"}, "c"),
    ({"owner": "alice", "kind": "RunMarathon"}, "ac"),
    ({"owner": "alice", "kind": "RunMarathon", "status": "working"}, "a"),
    ({"params": {"miles": 26}}, "ad"),
    ({"params": {"miles": 26, "shoes": ["red"]}}, "a"),
    ({"params": {"miles": 26}, "owner": "bob"}, "d"),
    ({"params": {"kilometres": None}}, ""),
    ({"params": {}}, "abcdef"),
]


def test_list_is_filtered(store):
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
    for wanted, expected in FILTERS:
        for limit in 1, 50:
            found = all_of(store, limit, **wanted)
            assert sorted(names[job] for job in found) == list(expected), wanted


def test_search_is_limited(store):
    """A page of a filtered list examines a thousand jobs in a few round trips. It may
    be short, and its cursor goes on from there.
    """
    wanted: dict[str, Any] = {"kind": "RunMarathon", "params": {"miles": 27}}
    wanted["members"] = True
    found = put(store, "queued", params={"miles": 27})
    put_crowd(store, 1000)
    with counting_trips() as trips:
        first = store.list(**wanted, limit=1)
    assert first.items == [] and first.cursor is not None
    assert len(trips) <= 50
    second = store.list(**wanted, limit=1, cursor=first.cursor)
    assert uuids_of(second.items) == [found]


#: Arguments that no job can match, or that are out of range, and their errors.
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("limit", 0, ValueError, "limit must be from 1 to 200"),
    ("limit", 201, ValueError, "limit must be from 1 to 200"),
    ("limit", "5", TypeError, "limit must be an int"),
    ("limit", True, TypeError, "limit must be an int"),
    ("status", "waiting", ValueError, "status must be a status of a job"),
    *(
        ("cursor", cursor, ValueError, "cursor was not issued by this list")
        for cursor in ("", "x", f"a.{UUID}", f"a1.{UUID}\n", "a" * 9999, f"a²1.{UUID}")
    ),
    ("cursor", 5, TypeError, "^cursor must be a str from the call before, not 5"),
    ("kind", RunMarathon, TypeError, r"^kind must be a str, such as RunMarathon\.kind"),
    ("owner", [1], TypeError, r"^owner must be a string or a finite number, not \[1\]"),
    ("owner", True, TypeError, "^owner must be .*, not True"),
    ("params", [1], TypeError, r"^params must be a dict .*, not \[1\]"),
]


def test_invalid_arguments_are_refused(store):
    """An argument out of range, or a cursor that was never issued, is an error that
    names it. So is what no job can match, rather than an empty list.
    """
    calls: list[tuple[Callable[..., Any], str]] = [
        (store.list, "limit status cursor kind owner params"),
        (functools.partial(store.members, UUID), "limit status cursor"),
        (store.counts, "kind"),
        (store.throughput, "kind"),
        (functools.partial(store.cancel_all, everything=True), "kind owner params"),
        (functools.partial(store.clear, everything=True), "kind owner"),
    ]
    for call, names in calls:
        for name, wrong, error, match in WRONG:
            if name in names.split():
                with pytest.raises(error, match=match):
                    call(**{name: wrong})


def test_error_names_the_status_that_a_word_means(store):
    """A word of the pages, or an everyday one, is refused with the status that it
    means, unless the call does not take that.
    """
    list_members = functools.partial(store.members, UUID)
    for call in store.list, list_members, store.cancel_all:
        with pytest.raises(ValueError, match=r"'RUNNING'\. Did you mean 'working'\?$"):
            call(status="RUNNING")
    with pytest.raises(ValueError, match="mean 'success', 'error' or 'cancelled'"):
        store.clear(status="finished")
    with pytest.raises(ValueError, match=r"not 'RUNNING'\.$"):
        store.clear(status="RUNNING")


def test_expired_jobs_are_dropped(store):
    """A job whose record has expired is left out, and loses its places."""
    active, ended = put_many(store, 2, "working"), put_many(store, 2, "error")
    gone = [active[0], ended[0]]
    store.client.delete(*(key_of(store, uuid) for uuid in gone))
    assert all_of(store, owner="alice") == all_of(store) == [active[1], ended[1]]
    assert all_of(store, status="error", kind="RunMarathon") == ended[1:]
    assert all_of(store, status="working", kind="RunMarathon") == active[1:]
    assert [places_of(store.client, uuid) for uuid in gone] == [[], []]


def change_to(store: JobStore, uuid: str, status: str) -> None:
    """Have a job change its status."""
    if status in ("cancelling", "cancelled"):
        assert load_job(store, uuid).cancel()
    elif status == "queued":
        assert rerun(store, make_desk(store)[0], uuid)
    else:
        finish(store, uuid, status=status)


#: Changes that move a job in the lists.
CHANGES = [
    ("working", "cancelling"),
    ("queued", "cancelled"),
    ("error", "queued"),
    ("working", "success"),
]


def test_job_whose_change_was_not_listed_is_moved(store):
    """A job that changed without being listed anew is left out of its former status,
    and is shown once, where it belongs, from then on.
    """
    for was, now in CHANGES:
        store.client.flushall()
        store = JobStore(store.client)
        job, other = put_many(store, 2, was)
        with losing(store.client):
            change_to(store, job, now)
        assert sorted(all_of(store)) == sorted([job, other]), (was, now)
        assert all_of(store, status=was) == [other]
        assert all_of(store, status=now) == [job]
        counts = store.counts(anew=True)
        assert sum(getattr(counts, status) for status in STATUSES) == 2
        assert getattr(store.counts(), now) == getattr(store.counts(), was) == 1


def test_job_that_changes_during_a_list_is_shown_once(store):
    """A job that ends, or expires, between the round trips of a page is shown once, or
    left out if it no longer fits, and stays where the change has put it.
    """
    lists: list[dict[str, Any]] = [{}, {"status": "queued"}]
    place_of = functools.partial(store.client.zscore, "jobstate:{all}:cancelled")
    for wanted in lists:
        for number in itertools.count(1):
            store.client.flushall()
            stays, ends, goes = put_many(store, 3, "queued")
            places: list[Any] = []

            def meanwhile(
                ends: str = ends, goes: str = goes, places: list[Any] = places
            ) -> None:
                assert load_job(store, ends).cancel()
                store.client.delete(key_of(store, goes))
                places.append(place_of(ends))

            expected = [stays] if "status" in wanted else [stays, ends]
            with counting_trips(number, meanwhile) as trips:
                found = uuids_of(store.list(**wanted).items)
            if len(trips) < number:
                break
            assert len({*found}) == len(found) and {*found} >= {*expected}
            assert found == expected or "status" not in wanted
            assert places == [place_of(ends)], number
            assert all_of(store, **wanted) == expected
        assert number > 2


def test_server_that_takes_no_writes_lists(store, caplog):
    """On a server that refuses writes, and has forgotten the scripts, jobs that are
    listed wrongly are shown as they are, no job is missing, and nothing is logged.
    """
    fine, gone, ended, begun = create(store, 4)
    finish(store, begun)
    with losing(store.client):
        assert load_job(store, ended).cancel()
        store.client.delete(key_of(store, gone))
    store.client.script_flush()
    caplog.clear()
    lists: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {fine, begun, ended}),
        ({"kind": "RunMarathon"}, {fine, begun, ended}),
        ({"status": "success"}, {begun}),
    ]
    store.client.config_set("min-replicas-to-write", 1)
    try:
        for wanted, expected in lists:
            assert {*uuids_of(store.list(**wanted).items)} == expected, wanted
        assert store.counts().success == 1
    finally:
        store.client.config_set("min-replicas-to-write", 0)
    assert messages(caplog, "pyramid_jobstate") == []


@pytest.fixture
def brief(client: redis.Redis) -> JobStore:
    """A store that keeps ended jobs for 100 seconds, and others for 400."""
    return JobStore(client, expire_in=100, active_expire_in=400)


def test_job_that_is_due_late_stays_listed(brief):
    """A job that is due later than others are listed stays in all lists, and counts,
    while others come and go, until a while after it is due.
    """
    late = {
        "queued": put(brief, "queued", delay=6000),
        "retrying": put(brief, "retrying", delay=6000),
        "stalled": put_unsent(brief, delay=6000),
    }
    for _ in range(2):
        put(brief, "queued")
        pass_time(brief, 2900)
    put(brief, "queued")
    lists: list[dict[str, Any]] = [{}, {"owner": "alice", "kind": "RunMarathon"}]
    for wanted in lists:
        assert {*all_of(brief, **wanted)} >= {*late.values()}, wanted
        for status, uuid in late.items():
            assert uuid in all_of(brief, **wanted, status=status), wanted
    for kind in None, "RunMarathon":
        counts = brief.counts(kind, anew=True)
        assert (counts.queued, counts.retrying, counts.stalled) == (2, 1, 1)
    assert brief.kinds() == ["class:RunMarathon"]
    pass_time(brief, 700)
    assert all_of(brief) == []


def test_job_that_has_waited_long_stays_listed_while_it_runs(brief):
    """A job that begins is listed for at least as long as its worker takes to renew
    that. One that has waited less keeps its place.
    """
    old = put(brief, "queued")
    pass_time(brief, 300)
    new = put(brief, "queued")
    broker, gate = StubBroker(), Gate()
    broker.add_middleware(JobStateMiddleware(brief))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None:
        gate.wait()

    for uuid in old, new:
        broker.enqueue(run_marathon.message().copy(message_id=uuid))
    with working(broker):
        wait_for(lambda: len(all_of(brief, status="working")) == 2)
        assert all_of(brief) == [old, new]
        pass_time(brief, 180)
        put(brief, "queued")
        assert {old, new} <= {*all_of(brief)}
        assert {*all_of(brief, status="stalled")} == {old, new}
        gate.open()


def test_expired_jobs_leave_no_place(brief):
    """When others are listed, jobs that have expired lose their places. After the time
    of the last one, nothing is left.
    """
    for statuses, seconds in (("success", "error"), 60), (("queued", "working"), 250):
        gone = [put(brief, status) for status in statuses]
        for _ in range(2):
            pass_time(brief, seconds)
            for status in statuses:
                put(brief, status)
        assert [places_of(brief.client, uuid) for uuid in gone] == [[], []]
    pass_time(brief, 3000)
    assert brief.client.dbsize() == 0
