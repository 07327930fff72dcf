"""Deleting and cancelling many jobs, a bounded number at a time."""

import time
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from pyramid_jobstate import BulkResult, Counts, JobState, JobStore, rerun
from pyramid_jobstate.testing import pass_time, put_job
from tests.lost import keys_of, losing, places_of
from tests.store import jobs
from tests.store.jobs import Diary, finish, make_desk, status_of
from tests.support import FINISHED, STATUSES

Act = Callable[..., BulkResult]

#: The calls that act on many jobs, and the status of jobs on which each acts.
ACTS: list[tuple[Act, str]] = [
    (JobStore.clear, "success"),
    (JobStore.cancel_all, "queued"),
]

each_act = pytest.mark.parametrize(("act", "status"), ACTS, ids=["clear", "cancel_all"])


def put(store: JobStore, status: str, count: int = 1, **options: Any) -> list[str]:
    """Store jobs in a status and return their uuids."""
    return [jobs.put(store, status, **options) for _ in range(count)]


def left(store: JobStore, uuids: list[str]) -> int:
    """Return how many jobs are neither deleted nor cancelled."""
    found = store.load_many(uuids)
    return sum(job is not None and job.status != "cancelled" for job in found)


@pytest.mark.promise("ended-jobs-are-cleared")
def test_statuses(store):
    """Jobs of a status are deleted or cancelled, and no others. Neither lists nor
    counts know of what was deleted.
    """
    for status in STATUSES:
        store.client.flushall()
        uuids = {each: put(store, each, 2) for each in STATUSES}
        act = JobStore.clear if status in FINISHED else JobStore.cancel_all
        assert act(store, status=status) == BulkResult(2, 0, None)
        for each in STATUSES:
            found = {job and job.status for job in store.load_many(uuids[each])}
            if each != status:
                assert found == {each}, status
            elif status in FINISHED:
                assert found == {None}
                assert [places_of(store.client, u) for u in uuids[each]] == [[], []]
                assert getattr(store.counts(), status) == 0
            else:
                assert found <= {"cancelled", "cancelling"}


@pytest.mark.promise("ended-jobs-are-cleared")
@each_act
def test_filters(store, act, status):
    """A filter chooses the jobs. None but `everything` chooses all."""
    filters: list[dict[str, Any]] = [
        {"owner": "alice"},
        {"kind": "RunMarathon"},
        {"everything": True},
    ]
    for wanted in filters:
        store.client.flushall()
        mine, others = put(store, status, 2), put(store, status, 2, owner="bob")
        diary = [put_job(store, Diary, status, owner="alice").uuid]
        act(store, **wanted)
        assert left(store, mine) == 0
        assert left(store, others) == (2 if "owner" in wanted else 0)
        assert left(store, diary) == (1 if "kind" in wanted else 0)
    mine, others = put(store, "queued"), put(store, "queued", params={"miles": 5})
    mapping: Any = types.MappingProxyType({"miles": 26})
    assert store.cancel_all(params=mapping) == BulkResult(1, 0, None)
    assert (left(store, mine), left(store, others)) == (0, 1)


@pytest.mark.promise("ended-jobs-are-cleared")
def test_clear_older_than(store):
    """Only jobs that ended long enough ago, by the time of the first call, are
    deleted.
    """
    uuids = []
    for seconds in 3000, 500, 1:
        uuids += put(store, "error")
        pass_time(store, seconds)
    now, client = int(time.time()), store.client
    # The first call comes earlier than it does: none has been over for so long.
    with mock.patch.object(client, "time", return_value=(now - 2000, 0)):
        begun = JobStore(client).clear(limit=0, older_than=2000)
    assert store.clear(older_than=2000, cursor=begun.cursor) == BulkResult(0, 0, None)
    assert store.clear(older_than=2000) == BulkResult(1, 0, None)
    assert left(store, uuids) == 2
    assert store.clear(older_than=0) == BulkResult(2, 0, None)


@each_act
def test_calls_go_on_with_the_cursor(store, act, status):
    """Each call acts on at most so many jobs, and the next one goes on."""
    for limit in 1, 3, 10, 11:
        uuids = put(store, status, 10)
        done: list[int] = []
        cursor = None
        while cursor is not None or not done:
            result = act(store, kind="RunMarathon", limit=limit, cursor=cursor)
            done.append(result.done)
            cursor = result.cursor
        assert done[:-1] == [limit] * (len(done) - 1)
        assert (sum(done), len(done)) == (10, -(-10 // limit))
        assert left(store, uuids) == 0


@each_act
def test_jobs_of_later_are_safe(store, act, status):
    """Jobs that are sent after the first call stay, delayed ones as well. Those that
    were scheduled before are found.
    """
    early = put(store, status, 4)
    if status == "queued":
        early += put(store, "queued", 2, delay=3600)
    first = act(store, kind="RunMarathon", limit=2)
    late = put(store, status, 3) + put(store, "queued", 2, delay=3600)
    rest = act(store, kind="RunMarathon", cursor=first.cursor)
    assert first.done + rest.done == len(early)
    assert left(store, early) == 0
    assert left(store, late) == 5


def test_jobs_that_change_later_do_not_match(store):
    """An act spares jobs that end, that get its status or that somebody runs again
    after it began: whoever begins later means them.
    """
    broker, _ = make_desk(store)
    running, *before = put(store, "working", 3)
    ended, (failed,) = put(store, "success", 2), put(store, "error")
    clear = store.clear(limit=0, everything=True)
    assert (clear.done, clear.refused) == (0, 0)
    stop = store.cancel_all(limit=0, status="working")
    cancel = store.cancel_all(limit=0, everything=True)
    time.sleep(0.002)
    (later,) = put(store, "working")
    finish(store, running)
    assert rerun(store, broker, failed)
    assert store.clear(everything=True, cursor=clear.cursor) == BulkResult(2, 0, None)
    assert (left(store, ended), status_of(store, running)) == (0, "success")
    assert store.cancel_all(status="working", cursor=stop.cursor) == BulkResult(
        2, 0, None
    )
    assert store.cancel_all(everything=True, cursor=cancel.cursor) == BulkResult(
        2, 0, None
    )
    found = [status_of(store, uuid) for uuid in (*before, later, failed)]
    assert found == ["cancelling", "cancelling", "working", "queued"]
    assert store.cancel_all(status="working").done == 1
    assert store.cancel_all(status="queued").done == 1


@each_act
def test_caller_is_asked_and_told_of_each_job(store, act, status):
    """Jobs that the caller may not touch stay, and count as refused. The caller is told
    of the others.
    """
    mine, others = put(store, status, 3), put(store, status, 2, owner="bob")
    told: list[Any] = []

    def is_mine(job_state: JobState) -> bool:
        return job_state.owner == "alice"

    def tell(*acted: Any) -> None:
        told.append(acted)

    result = act(store, kind="RunMarathon", permits=is_mine, tell=tell)
    assert result == BulkResult(3, 2, None)
    assert (left(store, mine), left(store, others)) == (0, 2)
    assert told == [(uuid, True) for uuid in mine[::-1]]


#: Wrong arguments of one call or both, and their errors.
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("both", {}, ValueError, r"without a filter .* everything=True"),
    ("both", {"owner": None, "status": None}, ValueError, "without a filter"),
    ("cancel_all", {"params": {}}, ValueError, "without a filter"),
    ("both", {"status": "deleted"}, ValueError, "acts on jobs .*, not 'deleted'"),
    ("clear", {"status": "working"}, ValueError, "acts on jobs .*, not 'working'"),
    ("cancel_all", {"status": "success"}, ValueError, "acts on jobs .*, not 'succ"),
    ("both", {"kind": "X", "limit": -1}, ValueError, "limit must be from 0 to 1000"),
    ("both", {"kind": "X", "limit": 1001}, ValueError, "limit must be from 0 to 1000"),
    ("both", {"kind": "X", "limit": True}, TypeError, "limit must be an int"),
    ("clear", {"older_than": "6h"}, TypeError, "^older_than must be a number of sec"),
    ("clear", {"older_than": -1}, ValueError, "older_than must be 0 seconds or more"),
]


@each_act
def test_wrong_arguments_are_refused(store, act, status):
    """An error names what is wrong, and nothing happens. Without a filter, everything
    has to be meant.
    """
    uuids = put(store, status, 2)
    for call, options, error, match in WRONG:
        if call in ("both", act.__name__):
            with pytest.raises(error, match=match):
                act(store, **options)
    assert left(store, uuids) == 2


def test_cursor_of_another_call_is_refused(store):
    """A cursor serves the call that returned it, with the same arguments. A forged one
    does not lead to jobs of another status, or to a part of the lists that the act does
    not read.
    """
    uuids = put(store, "success", 3)
    cursor = store.clear(kind="RunMarathon", limit=1).cursor
    assert cursor is not None
    put(store, "queued", 3)
    mark, until, place = cursor.split(".", 2)
    forged = ["x", f"{mark}.{until}.s{place[1:]}", f"{mark}.{until}.u1.1"]
    calls: list[tuple[Act, dict[str, Any]]] = [
        (JobStore.clear, {"kind": "Diary", "cursor": cursor}),
        (JobStore.clear, {"kind": "RunMarathon", "older_than": 1, "cursor": cursor}),
        (JobStore.cancel_all, {"kind": "RunMarathon", "cursor": cursor}),
        *(
            (JobStore.clear, {"kind": "RunMarathon", "cursor": wrong})
            for wrong in (store.list(limit=1).cursor, *forged)
        ),
    ]
    for act, options in calls:
        with pytest.raises(ValueError, match="cursor was not returned by a call"):
            act(store, **options)
    assert left(store, uuids) == 2


def test_job_that_has_begun_again_is_not_deleted(store):
    """A job that is still listed as ended, but waits to run again, stays."""
    broker, _ = make_desk(store)
    (ended,), (begun,) = put(store, "success"), put(store, "error")
    with losing(store.client):
        assert rerun(store, broker, begun)
    assert store.clear(everything=True) == BulkResult(1, 0, None)
    assert (left(store, [ended]), left(store, [begun])) == (0, 1)
    assert store.counts(anew=True) == Counts(queued=1)


def test_jobs_of_one_score_are_all_acted_on(store):
    """However few a call acts on, and whatever the act does with their places."""
    acts: list[tuple[str, Act]] = [
        ("working", store.cancel_all),
        ("queued", store.cancel_all),
        ("error", store.clear),
    ]
    for status, act in acts:
        for wanted in {"status": status}, {"kind": "RunMarathon"}:
            scores: dict[Any, float] = {
                uuid: 10**6 * int(time.time()) for uuid in put(store, status, 7)
            }
            for key in keys_of(store.client, "zset"):
                store.client.zadd(key, scores, xx=True)
            result = act(**wanted, limit=2)
            done = result.done
            while result.cursor is not None:
                result = act(**wanted, limit=2, cursor=result.cursor)
                done += result.done
            assert done == 7, (status, wanted)
            store.client.flushall()
