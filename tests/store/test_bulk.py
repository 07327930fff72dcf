"""Deleting and cancelling many jobs, a bounded number at a time."""

from __future__ import annotations

import concurrent.futures
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import BulkResult, Counts, JobState, JobStore, rerun
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import RunMarathon
from tests.listed import Diary, finish, make_desk
from tests.lost import (
    counting_trips,
    losing_lists,
    places_of,
    take_over,
)
from tests.store import jobs
from tests.store.jobs import put_crowd
from tests.support import key_of, load_job

UNFINISHED = ("queued", "working", "retrying", "stalled", "cancelling")
FINISHED = ("success", "error", "cancelled")

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


def repeat(
    act: Act, store: JobStore, cursor: str | None = None, **options: Any
) -> Iterator[BulkResult]:
    """Call until all is done, and yield the results."""
    while True:
        result = act(store, cursor=cursor, **options)
        yield result
        cursor = result.cursor
        if cursor is None:
            return


def test_statuses(store: JobStore) -> None:
    """Jobs of a status are deleted or cancelled, and no others."""
    for status in STATUSES:
        store.client.flushall()
        uuids = {each: put(store, each, 2) for each in STATUSES}
        act = JobStore.clear if status in FINISHED else JobStore.cancel_all
        assert act(store, status=status) == (2, 0, None)
        for each in STATUSES:
            found = {job and job.status for job in store.load_many(uuids[each])}
            if each != status:
                assert found == {each}, status
            elif status in FINISHED:
                assert found == {None}
            else:
                assert found <= {"cancelled", "cancelling"}


STATUSES = UNFINISHED + FINISHED


@each_act
def test_filters(store: JobStore, act: Act, status: str) -> None:
    """A filter chooses the jobs. None but `everything` chooses all."""
    filters: list[dict[str, Any]] = [
        {"owner": "alice"},
        {"kind": "RunMarathon"},
        {"owner": "alice", "kind": "RunMarathon"},
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


def test_cancel_all_by_parameters(store: JobStore) -> None:
    """Jobs that were sent with certain values are cancelled."""
    mine, others = put(store, "queued"), put(store, "queued", params={"miles": 5})
    assert store.cancel_all(params={"miles": 26}) == (1, 0, None)
    assert (left(store, mine), left(store, others)) == (0, 1)


def test_clear_older_than(store: JobStore) -> None:
    """Only jobs that ended long enough ago, by the time of the first call, are
    deleted.
    """
    (old,) = put(store, "error")
    pass_time(store, 61)
    (middle,) = put(store, "error")
    pass_time(store, 59)
    (new,) = put(store, "error")
    assert store.clear(older_than=60) == (1, 0, None)
    assert left(store, [old, middle, new]) == 2
    begun = store.clear(limit=0, older_than=58.9)
    pass_time(store, 59)
    assert store.clear(older_than=58.9, cursor=begun.cursor) == (2, 0, None)
    assert store.clear(older_than=0) == (0, 0, None)


@each_act
def test_calls_go_on_with_the_cursor(store: JobStore, act: Act, status: str) -> None:
    """Each call acts on at most so many jobs, and the next one goes on."""
    for limit in 1, 3, 10, 11:
        uuids = put(store, status, 10)
        results = list(repeat(act, store, kind="RunMarathon", limit=limit))
        assert [each.done for each in results[:-1]] == [limit] * (len(results) - 1)
        assert sum(each.done for each in results) == 10
        assert len(results) == -(-10 // limit)
        assert left(store, uuids) == 0


@each_act
def test_jobs_of_later_are_safe(store: JobStore, act: Act, status: str) -> None:
    """Jobs that are sent after the first call stay, delayed ones as well. Those that
    were scheduled before are found.
    """
    early = put(store, status, 4)
    if status == "queued":
        early += put(store, "queued", 2, delay=3600)
    first = act(store, kind="RunMarathon", limit=2)
    late = put(store, status, 3) + put(store, "queued", 2, delay=3600)
    rest = repeat(act, store, first.cursor, kind="RunMarathon", limit=2)
    assert first.done + sum(each.done for each in rest) == len(early)
    assert left(store, early) == 0
    assert left(store, late) == 5


def test_no_job_is_sent_in_the_moment_of_the_first_call(store: JobStore) -> None:
    """A job that is sent as soon as the first call has returned is safe."""
    put(store, "queued", 2)
    for _ in range(10):
        begun = store.cancel_all(everything=True, limit=0)
        late = put(store, "queued")
        assert store.cancel_all(everything=True, cursor=begun.cursor).cursor is None
        assert left(store, late) == 1
        store.cancel_all(everything=True)


def test_jobs_that_end_later_are_safe(store: JobStore) -> None:
    """A call that only begins says which jobs had ended by then."""
    for status in None, "success":
        options: dict[str, Any] = {"kind": "RunMarathon", "status": status}
        store.client.flushall()
        running, *ended = put(store, "working") + put(store, "success", 2)
        begun = store.clear(limit=0, **options)
        assert begun[:2] == (0, 0)
        assert store.clear(limit=0, cursor=begun.cursor, **options) == begun
        assert left(store, ended) == 2
        finish(store, running)
        assert store.clear(cursor=begun.cursor, **options) == (2, 0, None)
        assert (left(store, [running]), left(store, ended)) == (1, 0)


def test_jobs_that_change_later_do_not_match(store: JobStore) -> None:
    """An act on jobs of a status spares those that get it after it began."""
    before = put(store, "working", 2)
    begun = store.cancel_all(limit=0, status="working")
    time.sleep(0.002)
    later = put(store, "working")
    assert store.cancel_all(status="working", cursor=begun.cursor) == (2, 0, None)
    assert load_job(store, later[0]).status == "working"
    assert all(load_job(store, uuid).cancel_requested for uuid in before)
    # Whoever begins now means it.
    assert store.cancel_all(status="working").done == 1


def test_job_that_runs_again_later_does_not_match(store: JobStore) -> None:
    """A failed job that somebody runs again after an act began was not unfinished."""
    broker, _ = make_desk(store)
    for options in {"everything": True}, {"status": "queued"}:
        store.client.flushall()
        (failed,), (queued,) = put(store, "error"), put(store, "queued")
        begun = store.cancel_all(limit=0, **options)
        time.sleep(0.002)
        assert rerun(store, broker, failed)
        acted = store.cancel_all(cursor=begun.cursor, **options)
        assert acted == (1, 0, None)
        assert load_job(store, failed).status == "queued"
        assert load_job(store, queued).status == "cancelled"
        assert store.cancel_all(**options).done == 1


@each_act
def test_caller_is_asked_and_told_of_each_job(
    store: JobStore, act: Act, status: str
) -> None:
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


def test_caller_is_told_before_all_is_done(store: JobStore) -> None:
    """The caller is told of some jobs while others are still to come."""
    put_crowd(store, 450)
    counts: list[Counts] = []
    store.cancel_all(
        kind="RunMarathon",
        tell=lambda *acted: counts.append(store.counts(anew=len(counts) % 50 == 0)),
    )
    assert counts[0].cancelled < 450
    assert store.counts("RunMarathon", anew=True) == Counts(cancelled=450)


@each_act
def test_job_that_another_program_overwrites_is_refused(
    store: JobStore, act: Act, status: str
) -> None:
    """The others are acted on, and the caller is told of these alone."""
    first, broken, last = put(store, status, 3)
    told: list[Any] = []

    def spoil(job_state: JobState) -> bool:
        if job_state.uuid == broken:
            take_over(store.client, key_of(store, broken))
        return True

    def tell(*acted: Any) -> None:
        told.append(acted)

    result = act(store, owner="alice", permits=spoil, tell=tell)
    assert result == BulkResult(2, 1, None)
    assert told == [(last, True), (first, True)]
    assert left(store, [first, last]) == 0


@each_act
def test_job_whose_class_raises_is_refused(
    store: JobStore, act: Act, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose class fails stays, if the caller's rights have to be asked."""
    uuids = put(store, status, 2)

    def fail(self: Any, *args: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(RunMarathon, "__init__", fail)
        result = act(store, kind="RunMarathon", permits=lambda job: True)
    assert result == BulkResult(0, 2, None)
    assert left(store, uuids) == 2


#: Arguments of both calls, and their errors.
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ValueError, r"without a filter .* everything=True"),
    ({"owner": None, "status": None}, ValueError, "without a filter"),
    ({"status": "deleted"}, ValueError, "acts on jobs .*, not 'deleted'"),
    ({"kind": "X", "limit": -1}, ValueError, "limit must be from 0 to 1000"),
    ({"kind": "X", "limit": 1001}, ValueError, "limit must be from 0 to 1000"),
    *[
        ({"kind": "X", "limit": limit}, TypeError, "limit must be an int")
        for limit in ("1", 2.0, True, None)
    ],
]

WRONG_AGES: list[tuple[Any, type[Exception], str]] = [
    *[
        (age, TypeError, "^older_than must be a number of seconds")
        for age in ("6h", True)
    ],
    *[
        (age, ValueError, "older_than must be 0 seconds or more")
        for age in (-1, float("nan"), float("inf"), 1e30)
    ],
]


def test_wrong_arguments_are_refused(store: JobStore) -> None:
    """An error names what is wrong, and nothing happens. Without a filter, everything
    has to be meant.
    """
    uuids = put(store, "success", 2) + put(store, "queued", 2)
    for (act, _), (options, error, match) in itertools.product(ACTS, WRONG):
        with pytest.raises(error, match=match):
            act(store, **options)
    for act, status in (JobStore.clear, "working"), (JobStore.cancel_all, "success"):
        with pytest.raises(ValueError, match=f"acts on jobs .*, not '{status}'"):
            act(store, status=status)
    with pytest.raises(ValueError, match="without a filter"):
        store.cancel_all(params={})
    for age, error, match in WRONG_AGES:
        with pytest.raises(error, match=match):
            store.clear(older_than=age)
    assert left(store, uuids) == 4


def test_cursor_of_another_call_is_refused(store: JobStore) -> None:
    """A cursor serves the call that returned it, with the same arguments."""
    uuids = put(store, "success", 3)
    cursor = store.clear(kind="RunMarathon", limit=1).cursor
    put(store, "queued", 3)
    page = store.list(limit=1).cursor
    calls: list[tuple[Act, dict[str, Any]]] = [
        (JobStore.clear, {"kind": "Diary", "cursor": cursor}),
        (JobStore.clear, {"everything": True, "cursor": cursor}),
        (JobStore.clear, {"kind": "RunMarathon", "older_than": 1, "cursor": cursor}),
        (JobStore.cancel_all, {"kind": "RunMarathon", "cursor": cursor}),
        (JobStore.clear, {"kind": "RunMarathon", "cursor": page}),
        (JobStore.clear, {"kind": "RunMarathon", "cursor": "x"}),
    ]
    for act, options in calls:
        with pytest.raises(ValueError, match="cursor was not returned by a call"):
            act(store, **options)
    assert left(store, uuids) == 2


def test_forged_cursor_leads_to_no_other_jobs(store: JobStore) -> None:
    """A forged cursor does not lead from the jobs of an owner to those of others, or to
    those of a status that is not wanted.
    """
    for act, status in (JobStore.clear, "error"), (JobStore.cancel_all, "working"):
        filters: list[dict[str, Any]] = [
            {"owner": "alice"},
            {"owner": "alice", "status": status},
            {"kind": "RunMarathon"},
        ]
        for wanted in filters:
            put(store, status, 2)
            cursor = act(store, **wanted, limit=1).cursor
            assert cursor is not None
            mark, until, place = cursor.split(".", 2)
            with pytest.raises(ValueError, match="cursor was not returned by a call"):
                act(store, **wanted, cursor=f"{mark}.{until}.s{place[1:]}")


@each_act
def test_two_operators_share_the_work(
    redis_url: str, store: JobStore, act: Act, status: str
) -> None:
    """Two calls at the same time act once on each job, whoever comes first."""
    put_crowd(store, 300)
    if status == "success":
        store.cancel_all(kind="RunMarathon")

    def run() -> BulkResult:
        return act(JobStore(redis_url), kind="RunMarathon")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [each.result() for each in [pool.submit(run) for _ in range(2)]]
    assert sum(each.done for each in results) == 300
    expected = Counts() if status == "success" else Counts(cancelled=300)
    assert store.counts("RunMarathon", anew=True) == expected


def test_clear_leaves_no_trace_in_the_lists(store: JobStore) -> None:
    """After clearing, neither lists nor counts know of the jobs."""
    uuids = [uuid for status in FINISHED for uuid in put(store, status, 2)]
    store.clear(everything=True)
    assert store.list().items == store.list("alice").items == []
    assert store.counts() == Counts()
    assert [places_of(store.client, uuid) for uuid in uuids] == [[]] * 6


def test_expired_jobs_are_dropped_from_the_lists(store: JobStore) -> None:
    """A call repairs the entries that it examines, as lists do."""
    gone, stays = put(store, "error", 2)
    store.client.delete(key_of(store, gone))
    assert store.clear(status="error", older_than=1000) == (0, 0, None)
    assert store.counts(anew=True).error == 1
    assert left(store, [stays]) == 1


def test_losing_the_lists_harms_nothing(store: JobStore) -> None:
    """If the server fails after the jobs have been deleted, the call has succeeded."""
    put(store, "success", 3)
    with counting_trips() as trips:
        assert store.clear(kind="RunMarathon") == (3, 0, None)
    uuids = put(store, "success", 3)

    def fail() -> None:
        raise redis.ConnectionError

    with counting_trips(len(trips), fail):
        assert store.clear(kind="RunMarathon") == (3, 0, None)
    assert left(store, uuids) == 0
    assert store.list().items == []


def test_job_that_has_begun_again_is_not_deleted(store: JobStore) -> None:
    """A job that is still listed as ended, but waits to run again, stays."""
    broker, _ = make_desk(store)
    (ended,), (begun,) = put(store, "success"), put(store, "error")
    with losing_lists(store.client):
        assert rerun(store, broker, begun)
    assert store.clear(everything=True) == (1, 0, None)
    assert (left(store, [ended]), left(store, [begun])) == (0, 1)
    assert store.counts(anew=True) == Counts(queued=1)
