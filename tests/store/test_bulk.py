"""Deleting and cancelling many jobs, a bounded number at a time."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import BulkResult, JobState, JobStore, rerun
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import FINISHED, UNFINISHED
from pyramid_jobstate.store import bulk
from pyramid_jobstate.store.counting import Counts
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon, new_id
from tests.listed import Diary, finish
from tests.support import INFO, key_of, load_job
from tests.web.operating import Marathons

#: The calls that act on many jobs, and the status of jobs on which each acts.
ACTS = [
    pytest.param(JobStore.clear, "success", id="clear"),
    pytest.param(JobStore.cancel_all, "queued", id="cancel_all"),
]

Act = Callable[..., BulkResult]


def put(store: JobStore, status: str, count: int = 1, **options: Any) -> list[str]:
    """Store jobs in a status and return their uuids."""
    jobs = [put_job(store, RunMarathon, status, **options) for _ in range(count)]
    return [job.uuid for job in jobs]


def left(store: JobStore, uuids: list[str]) -> int:
    """Return how many jobs are neither deleted nor cancelled."""
    jobs = store.load_many(uuids)
    return sum(job is not None and job.status != "cancelled" for job in jobs)


def repeat(act: Act, store: JobStore, **options: Any) -> Iterator[BulkResult]:
    """Call until all is done, and yield the results."""
    cursor = None
    while True:
        result = act(store, cursor=cursor, **options)
        yield result
        cursor = result.cursor
        if cursor is None:
            return


@pytest.mark.parametrize("status", FINISHED)
def test_clear_deletes_ended_jobs(store: JobStore, status: str) -> None:
    """Jobs of a status are deleted, and no others."""
    jobs = {each: put(store, each, 3) for each in UNFINISHED + FINISHED}
    assert store.clear(status=status) == (3, 0, None)
    for each, uuids in jobs.items():
        assert left(store, uuids) == (0 if each in (status, "cancelled") else 3)
    assert all(job is None for job in store.load_many(jobs[status]))
    assert store.list(status=status).items == []


@pytest.mark.parametrize("status", UNFINISHED)
def test_cancel_all_cancels_unfinished_jobs(store: JobStore, status: str) -> None:
    """Jobs of a status are cancelled, and no others."""
    jobs = {each: put(store, each, 3) for each in UNFINISHED + FINISHED}
    assert store.cancel_all(status=status) == (3, 0, None)
    for each, uuids in jobs.items():
        found = {job.status for job in store.load_many(uuids) if job is not None}
        if each != status:
            assert found == {each}
        else:
            assert found <= {"cancelled", "cancelling"}


@pytest.mark.parametrize(("act", "status"), ACTS)
@pytest.mark.parametrize(
    "wanted",
    [
        {"owner": "alice"},
        {"kind": "RunMarathon"},
        {"owner": "alice", "kind": "RunMarathon"},
        {"everything": True},
    ],
    ids=str,
)
def test_filters(
    store: JobStore, act: Act, status: str, wanted: dict[str, Any]
) -> None:
    """A filter chooses the jobs. None but `everything` chooses all."""
    mine = put(store, status, 2, owner="alice")
    others = put(store, status, 2, owner="bob")
    diary = [put_job(store, Diary, status, owner="alice").uuid]
    act(store, **wanted)
    assert left(store, mine) == 0
    assert left(store, others) == (2 if "owner" in wanted else 0)
    assert left(store, diary) == (1 if "kind" in wanted else 0)


def test_cancel_all_by_parameters(store: JobStore) -> None:
    """Jobs that were sent with certain values are cancelled."""
    mine = put(store, "queued", params={"miles": 26})
    others = put(store, "queued", params={"miles": 5})
    assert store.cancel_all(params={"miles": 26}) == (1, 0, None)
    assert (left(store, mine), left(store, others)) == (0, 1)


def test_clear_older_than(store: JobStore) -> None:
    """Only jobs that ended long enough ago are deleted."""
    old, new, odd = put(store, "error", 3)
    store.client.hset(key_of(store, old), "finished", 1000)
    store.client.hset(key_of(store, odd), "finished", "never")
    assert store.clear(older_than=60) == (1, 0, None)
    assert left(store, [old, new, odd]) == 2
    assert store.clear(older_than=0).done == 1
    assert left(store, [old, new, odd]) == 1


@pytest.mark.parametrize(("act", "status"), ACTS)
@pytest.mark.parametrize("limit", [1, 3, 7, 10, 11])
def test_calls_go_on_with_the_cursor(
    store: JobStore, act: Act, status: str, limit: int
) -> None:
    """Each call acts on at most so many jobs, and the next one goes on."""
    uuids = put(store, status, 10)
    results = list(repeat(act, store, kind="RunMarathon", limit=limit))
    assert [each.done for each in results[:-1]] == [limit] * (len(results) - 1)
    assert sum(each.done for each in results) == 10
    assert len(results) == -(-10 // limit)
    assert left(store, uuids) == 0


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_jobs_of_later_are_safe(store: JobStore, act: Act, status: str) -> None:
    """Jobs that are sent after the first call stay, delayed ones as well. Those that
    were scheduled before are found.
    """
    early = put(store, status, 4)
    if status == "queued":
        early += put(store, "queued", 2, delay=3600)
    first = act(store, kind="RunMarathon", limit=2)
    late = put(store, status, 3) + put(store, "queued", 2, delay=3600)
    done = first.done + sum(
        each.done for each in repeat_from(act, store, first.cursor, limit=2)
    )
    assert done == len(early)
    assert left(store, early) == 0
    assert left(store, late) == 5


@pytest.mark.parametrize(
    "options",
    [{"kind": "RunMarathon"}, {"kind": "RunMarathon", "status": "success"}],
    ids=["kind", "status"],
)
def test_jobs_that_end_later_are_safe(store: JobStore, options: Any) -> None:
    """A call that only begins says which jobs had ended by then."""
    running, *ended = put(store, "working") + put(store, "success", 2)
    begun = store.clear(limit=0, **options)
    assert begun[:2] == (0, 0)
    assert store.clear(limit=0, cursor=begun.cursor, **options) == begun
    assert left(store, ended) == 2
    time.sleep(0.002)
    finish(store, running)

    assert store.clear(cursor=begun.cursor, **options) == (2, 0, None)

    assert left(store, [running]) == 1
    assert left(store, ended) == 0


@pytest.mark.parametrize("status", ["working", "retrying"])
def test_jobs_that_change_later_do_not_match(store: JobStore, status: str) -> None:
    """An act on jobs of a status spares those that get it after its beginning."""
    before = put(store, status, 2)
    other = put(store, "queued" if status == "working" else "working")[0]
    begun = store.cancel_all(limit=0, status=status)
    time.sleep(0.002)
    end = End("retrying", delay=60) if status == "retrying" else None
    store.write([Update(other, "0" * 12, 1, INFO, begins=True, end=end)])
    assert store.cancel_all(status=status, cursor=begun.cursor) == (2, 0, None)
    loaded = load_job(store, other)
    assert (loaded.status, loaded.cancel_requested) == (status, False)
    assert left(store, before) == (2 if status == "working" else 0)
    # Whoever begins now means it.
    assert store.cancel_all(status=status).done == 1


@pytest.mark.parametrize("options", [{"everything": True}, {"status": "queued"}])
def test_job_that_runs_again_later_does_not_match(
    store: JobStore, marathons: Marathons, options: Any
) -> None:
    """A failed job that somebody runs again after an act began was not unfinished."""
    (failed,) = marathons.fail("alice")
    (queued,) = put(store, "queued")
    begun = store.cancel_all(limit=0, **options)
    time.sleep(0.002)
    assert rerun(store, marathons.broker, failed)

    acted = store.cancel_all(cursor=begun.cursor, **options)

    assert acted == (1, 0, None)
    assert load_job(store, failed).status == "queued"
    assert load_job(store, queued).status == "cancelled"
    assert store.cancel_all(**options).done == 1


def test_age_is_that_of_the_beginning(store: JobStore) -> None:
    """A job that becomes old enough after an act began is spared."""
    uuids = put(store, "success")
    begun = store.clear(limit=0, older_than=60)
    assert begun.cursor is not None
    since = int(begun.cursor.split(".")[1]) - 60_000
    # A millisecond too young when the act began.
    store.client.hset(key_of(store, uuids[0]), "finished", since + 1)
    time.sleep(0.01)
    assert store.clear(older_than=60, cursor=begun.cursor).done == 0
    assert left(store, uuids) == 1
    assert store.clear(older_than=60).done == 1


def test_no_later_job_is_as_old_as_the_first_call(store: JobStore) -> None:
    """When the first call returns, the millisecond of its upper time has passed."""
    put(store, "queued", 2)
    for _ in range(50):
        result = store.cancel_all(everything=True, limit=1, permits=lambda job: False)
        assert result.cursor is not None
        until = int(result.cursor.split(".")[1])
        assert store._reader.exact_clock() > until


def repeat_from(
    act: Act, store: JobStore, cursor: str | None, limit: int
) -> Iterator[BulkResult]:
    """Go on with a cursor, and yield the results."""
    while cursor is not None:
        result = act(store, kind="RunMarathon", limit=limit, cursor=cursor)
        yield result
        cursor = result.cursor


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_permits(store: JobStore, act: Act, status: str) -> None:
    """Jobs that the caller may not touch stay, and count as refused."""
    mine = put(store, status, 3, owner="alice")
    others = put(store, status, 2, owner="bob")

    def is_mine(job_state: JobState) -> bool:
        return job_state.owner == "alice"

    result = act(store, kind="RunMarathon", permits=is_mine)
    assert result == BulkResult(3, 2, None)
    assert (left(store, mine), left(store, others)) == (0, 2)


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_caller_is_told_of_each_job(
    store: JobStore, act: Act, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told of the jobs that were acted on, some at a time, and of no
    others.
    """
    monkeypatch.setattr(bulk, "MAX_READ", 2)
    mine = put(store, status, 3, owner="alice")
    put(store, status, 2, owner="bob")
    told: list[Any] = []
    left_when_told: list[int] = []

    def tell(*acted: Any) -> None:
        told.append(acted)
        left_when_told.append(left(store, mine))

    act(store, kind="RunMarathon", permits=lambda job: job.owner == "alice", tell=tell)
    assert told == [(uuid, True) for uuid in mine[::-1]]
    assert left_when_told == [1, 1, 0]


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_job_that_another_program_overwrites_is_refused(
    store: JobStore, act: Act, status: str
) -> None:
    """The caller is told of the others, and these are listed where they belong."""
    first, broken, last = put(store, status, 3, owner="alice")
    told: list[Any] = []

    def spoil(job_state: JobState) -> bool:
        if job_state.uuid == broken:
            store.client.set(key_of(store, broken), "x")
        return True

    def tell(*acted: Any) -> None:
        told.append(acted)

    result = act(store, owner="alice", permits=spoil, tell=tell)
    assert result == BulkResult(2, 1, None)
    assert told == [(last, True), (first, True)]
    key = store._index.key("all", ended=act is JobStore.clear)
    assert store.client.zrange(key, 0, -1) == [broken.encode()]


@pytest.mark.parametrize(("act", "status"), ACTS)
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


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_no_filter_is_refused(store: JobStore, act: Act, status: str) -> None:
    """Without a filter nothing happens, unless everything is meant."""
    uuids = put(store, status, 2)
    for options in ({}, {"owner": None, "kind": None, "status": None}):
        with pytest.raises(ValueError, match=r"without a filter .* everything=True"):
            act(store, **options)
    assert left(store, uuids) == 2
    with pytest.raises(ValueError, match="without a filter"):
        store.cancel_all(params={})


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (JobStore.clear, "working"),
        (JobStore.clear, "deleted"),
        (JobStore.cancel_all, "success"),
        (JobStore.cancel_all, "nothing"),
    ],
)
def test_wrong_status_is_refused(store: JobStore, act: Act, status: str) -> None:
    """Only ended jobs can be deleted, and only unfinished ones cancelled."""
    with pytest.raises(ValueError, match=f"acts on jobs .*, not '{status}'"):
        act(store, status=status)


@pytest.mark.parametrize("older_than", ["6h", True])
def test_age_must_be_a_number(store: JobStore, older_than: Any) -> None:
    """The age is one in seconds, not one as settings take it."""
    with pytest.raises(TypeError, match=r"^older_than must be a number of seconds"):
        store.clear(older_than=older_than)


@pytest.mark.parametrize("older_than", [-1, float("nan"), float("inf"), 1e30])
def test_wrong_age_is_refused(store: JobStore, older_than: float) -> None:
    """An age is a number of seconds."""
    with pytest.raises(ValueError, match="older_than must be 0 seconds or more"):
        store.clear(older_than=older_than)


@pytest.mark.parametrize("limit", [-1, 1001])
def test_wrong_limit_is_refused(store: JobStore, limit: int) -> None:
    """A call acts on up to 1,000 jobs."""
    with pytest.raises(ValueError, match="limit must be from 0 to 1000"):
        store.clear(kind="RunMarathon", limit=limit)


@pytest.mark.parametrize("limit", ["1", 2.0, True, None])
def test_limit_must_be_an_int(store: JobStore, limit: Any) -> None:
    """The limit is an int."""
    with pytest.raises(TypeError, match="limit must be an int"):
        store.clear(kind="RunMarathon", limit=limit)


def test_cursor_of_another_call_is_refused(store: JobStore) -> None:
    """A cursor serves the call that returned it, with the same arguments."""
    uuids = put(store, "success", 3)
    cursor = store.clear(kind="RunMarathon", limit=1).cursor
    assert cursor is not None
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


@pytest.mark.parametrize(
    ("act", "status"), [(JobStore.clear, "error"), (JobStore.cancel_all, "working")]
)
@pytest.mark.parametrize("names", [["owner"], ["owner", "status"], ["kind"]])
def test_cursor_that_leads_to_another_index_is_refused(
    store: JobStore, act: Act, status: str, names: list[str]
) -> None:
    """A forged cursor does not lead from the jobs of an owner to those of others, or to
    the index of a status that is not wanted.
    """
    put(store, status, 3, owner="alice")
    everything = {"owner": "alice", "kind": "RunMarathon", "status": status}
    wanted = {name: everything[name] for name in names}
    cursor = act(store, **wanted, limit=1).cursor
    assert cursor is not None
    mark, until, place = cursor.split(".", 2)
    with pytest.raises(ValueError, match="cursor was not returned by a call"):
        act(store, **wanted, cursor=f"{mark}.{until}.s{place[1:]}")


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_call_is_bounded(
    store: JobStore, act: Act, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call examines a bounded number of jobs, and may find none of those wanted."""
    monkeypatch.setattr(bulk, "MAX_EXAMINED", 5)
    # Without the indexes by kind, the owner's jobs are examined.
    (oldest,) = put(store, status, owner="alice")
    for _ in range(12):
        put_job(store, Diary, status, owner="alice")
    results = list(repeat(act, store, owner="alice", kind="RunMarathon"))
    assert [each.done for each in results] == [0, 0, 1]
    assert left(store, [oldest]) == 0


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_two_operators_share_the_work(
    redis_url: str, store: JobStore, act: Act, status: str
) -> None:
    """Two calls at the same time act once on each job, whoever comes first."""
    uuids = put(store, status, 300)

    def run() -> BulkResult:
        return act(JobStore(redis_url), kind="RunMarathon")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [each.result() for each in [pool.submit(run) for _ in range(2)]]
    assert sum(each.done for each in results) == 300
    assert left(store, uuids) == 0


@pytest.mark.parametrize(("act", "status"), ACTS)
def test_more_than_a_batch(store: JobStore, act: Act, status: str) -> None:
    """Hundreds of jobs are acted on in one call."""
    jobs = [NewJob(new_id(), INFO) for _ in range(450)]
    store.create(*jobs)
    if status == "success":
        store.cancel_all(everything=True)
    assert act(store, everything=True).done == 450
    assert left(store, [job.uuid for job in jobs]) == 0


def test_clear_leaves_no_trace_in_the_lists(store: JobStore) -> None:
    """After clearing, neither lists nor counts know of the jobs."""
    for status in FINISHED:
        put(store, status, 3, owner="alice")
    store.clear(everything=True)
    assert store.list().items == store.list("alice").items == []
    assert store.counts() == Counts()
    keys: Any = store.client.keys()
    assert [key for key in keys if b":ended:" in key or b"is:" in key] == []


def test_expired_jobs_are_dropped_from_the_lists(store: JobStore) -> None:
    """A call repairs the entries that it examines, as lists do."""
    gone, stays = put(store, "error", 2)
    store.client.delete(key_of(store, gone))
    assert store.clear(status="error", older_than=1000) == (0, 0, None)
    key = store._index.status_key("all", "error")
    assert store.client.zrange(key, 0, -1) == [stays.encode()]


def test_losing_the_lists_harms_nothing(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server fails after the jobs have been deleted, the call has succeeded."""
    uuids = put(store, "success", 3)

    def fail(*args: Any) -> Any:
        raise redis.ConnectionError

    monkeypatch.setattr(type(store._index), "delete", fail)
    assert store.clear(kind="RunMarathon") == (3, 0, None)
    monkeypatch.undo()
    assert left(store, uuids) == 0
    assert store.list().items == []


def test_job_that_has_begun_again_is_not_deleted(store: JobStore) -> None:
    """A job that is still listed as ended, but runs again, stays."""
    ended, begun = put(store, "success"), put(store, "working")
    store.client.zadd("jobstate:ended:all", {begun[0]: 1e15})
    assert store.clear(everything=True) == (1, 0, None)
    assert left(store, ended) == 0
    assert left(store, begun) == 1
    assert store.client.zscore("jobstate:ended:all", begun[0]) is None
