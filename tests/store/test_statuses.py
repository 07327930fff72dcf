"""Lists of one status, and the counts."""

from __future__ import annotations

import concurrent.futures
import itertools
import random
import sys
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import FINISHED, UNFINISHED, JobInfo
from pyramid_jobstate.store import entries, sweeping
from pyramid_jobstate.store import pages as pages_module
from pyramid_jobstate.store.counting import Counter, Counts
from pyramid_jobstate.store.entries import Entries
from pyramid_jobstate.store.filters import ACTIVE, ENDED, Filter, Place
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.store.statuses import Found, indexes_of
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon, new_id
from tests.listed import Diary, create, finish, pages, uuids_of
from tests.support import INFO, key_of, wait_for

STATUSES = UNFINISHED + FINISHED


def put(store: JobStore, status: str, count: int = 1) -> list[str]:
    """Store jobs in a status and return their uuids, newest first."""
    return [put_job(store, RunMarathon, status).uuid for _ in range(count)][::-1]


def flat(found: list[list[str]]) -> list[str]:
    return list(itertools.chain(*found))


def all_of(store: JobStore, limit: int = 3, **wanted: Any) -> list[str]:
    """Return the uuids of a list, read page by page."""
    return flat(pages(lambda cursor: store.list(**wanted, limit=limit, cursor=cursor)))


def index(store: JobStore, status: str, scope: str = "all") -> dict[str, float]:
    """Return the entries of a status index."""
    key = store._index.status_key(scope, status)
    rows: Any = store.client.zrange(key, 0, -1, withscores=True)
    return {uuid.decode(): score for uuid, score in rows}


def enter(store: JobStore, status: str, uuid: str) -> None:
    """List a job in a status index where it does not belong."""
    for scope in ("all", "kind:RunMarathon"):
        store.client.zadd(store._index.status_key(scope, status), {uuid: 1e15})


def forget_statuses(store: JobStore) -> None:
    """Leave the store as the version left it that knew no status indexes."""
    client: Any = store.client
    names = [f"{store.namespace}:swept", f"{store.namespace}:kinds"]
    client.delete(*names, *client.keys(f"{{{store.namespace}:*}}:*"))


@pytest.mark.parametrize("kind", [None, "RunMarathon"])
@pytest.mark.parametrize("status", STATUSES)
def test_each_status_lists_its_jobs(
    store: JobStore, status: str, kind: str | None
) -> None:
    """A list by status has the jobs of that status, page by page, the newest first."""
    wanted = []
    for _ in range(4):
        for each in STATUSES:
            jobs = put(store, each)
            wanted += jobs if each == status else []
    put_job(store, Diary, status)
    found = all_of(store, status=status, kind=kind or "RunMarathon")
    assert found == wanted[::-1]
    assert set(all_of(store, status=status, kind=kind)) >= set(wanted)


@pytest.mark.parametrize("status", STATUSES)
def test_status_starts_on_its_first_page(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The oldest of thousands of jobs stands on the first page of its status, whatever
    the statuses of the others.
    """
    monkeypatch.setattr(pages_module, "MAX_EXAMINED", 10)
    # A job that is stalled has an entry among those that are running.
    alike = ("working", "stalled", "cancelling")
    others = [
        each
        for each in STATUSES
        if each != status and not (each in alike and status in alike)
    ]
    for each in others:
        put(store, each, 6)
    oldest = put(store, status)
    for each in others:
        put(store, each, 20)
    assert uuids_of(store.list(status=status, limit=1).items) == oldest


def test_success_behind_thousands_of_failures(store: JobStore) -> None:
    """The successes and the queued jobs are found behind thousands of others, of which
    the server looks at few.
    """
    # None of the running ones is silent for so long.
    store = store.replace(stalled_after=3600)
    ended, queued = create(store, 1), create(store, 1)
    finish(store, *ended)
    finish(store, *create(store, 3000), status="error")
    store.write(
        [Update(u, "a", 1, INFO, begins=True) for u in create(store, 3000)],
    )
    for status, jobs in {"success": ended, "queued": queued}.items():
        assert uuids_of(store.list(status=status).items) == jobs
        entries = Entries(Filter(status=status), store._access, skips=True)
        sought = entries.seek(Place(PARTS[status]), 50)
        assert sought is not None
        found, looked, last = sought
        assert [place.uuid for place, _ in found] == jobs
        assert looked < 300
        assert last is None


#: The part of the lists that holds the jobs of a status.
PARTS = {"queued": ACTIVE, "success": ENDED}


@pytest.mark.parametrize("status", PARTS)
@pytest.mark.parametrize("seed", range(6))
def test_jobs_are_found_among_any_others(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, status: str, seed: int
) -> None:
    """However jobs of other statuses lie between them, and whatever scores they share,
    all jobs of a status are found in their order, page by page.
    """
    rng = random.Random(seed)
    monkeypatch.setattr(entries, "MAX_LOOKED", rng.choice([1, 100, 2000]))
    ended = PARTS[status] == ENDED
    others = indexes_of(ended=ended)[1 if status == "queued" else 0 :]
    fields: Any = {"status": status, "kind": "RunMarathon"}
    score, wanted = 1e15, []
    with store.client.pipeline(transaction=False) as pipe:
        for _ in range(rng.randrange(1, 12)):
            is_wanted = rng.random() < 0.5
            sizes = [1, 1, 2, 64, 200] if is_wanted else [1, 63, 64, 65, 200, 900]
            for _ in range(rng.choice(sizes)):
                score -= rng.choice([0, 1, 1, 1])
                job, other = new_id(), rng.choice(others)
                pipe.zadd(store._index.key("all", ended=ended), {job: score})
                if not is_wanted:
                    pipe.zadd(store._index.status_key("all", other), {job: score})
                    continue
                pipe.hset(key_of(store, job), mapping=fields)
                wanted.append((-score, job))
        pipe.execute()
    wait_for(store._sweep.is_done)
    found = all_of(store, limit=rng.choice([7, 50, 200]), status=status)
    # Entries with equal scores come in descending order of uuids.
    wanted.sort(key=lambda each: each[1], reverse=True)
    wanted.sort(key=lambda each: each[0])
    assert found == [job for _, job in wanted]


def test_page_that_skips_too_many_goes_on(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that has skipped its share of entries may be empty, and has a cursor."""
    monkeypatch.setattr(pages_module, "MAX_SKIPPED", 20)
    monkeypatch.setattr(entries, "MAX_LOOKED", 10)
    ended = create(store, 3)
    finish(store, *ended)
    finish(store, *create(store, 90), status="error")
    finish(store, *(newer := create(store, 2)))
    first = store.list(status="success", limit=3)
    assert uuids_of(first.items) == newer
    assert first.cursor is not None
    assert all_of(store, status="success") == newer + ended


@pytest.mark.parametrize("status", ["working", "error", "success", "queued", "stalled"])
def test_entry_of_another_status_is_moved(store: JobStore, status: str) -> None:
    """A list by status leaves out a job that is listed wrongly, and lists it where it
    belongs.
    """
    jobs = put(store, status, 3)
    wrong = {"error": "cancelled", "success": "error"}.get(status, "retrying")
    enter(store, wrong, jobs[1])
    for each in ("sending", "working", "error"):
        key = store._index.status_key("all", each)
        store.client.zrem(key, jobs[1])
    assert all_of(store, status=wrong) == []
    assert sorted(all_of(store, status=status)) == sorted(jobs)
    assert all_of(store, status=wrong) == []


@pytest.mark.parametrize(
    ("was", "now"), [("error", "working"), ("working", "error"), ("error", "success")]
)
def test_job_that_its_worker_could_not_list_is_moved(
    store: JobStore, was: str, now: str
) -> None:
    """A list by status leaves out a job whose worker died before it had listed the job
    anew, and lists it where it belongs.
    """
    jobs = put(store, was, 2)
    changes: Any = {"status": now, "updated": 1, "finished": 1}
    if now == "working":
        changes["seen"] = store._reader.exact_clock()
    store.client.hset(key_of(store, jobs[0]), mapping=changes)
    assert all_of(store, status=was) == jobs[1:]
    assert all_of(store, status=now) == jobs[:1]
    assert len(all_of(store)) == 2
    ended = was in FINISHED
    assert jobs[0] not in index(store, was)
    in_list = store.client.zscore(store._index.key("all", ended=ended), jobs[0])
    assert (in_list is not None) == (ended == (now in FINISHED))


@pytest.mark.parametrize(
    ("status", "of_others"), [("working", "queued"), ("error", "success")]
)
def test_job_that_no_status_lists_is_found_by_others(
    store: JobStore, status: str, of_others: str
) -> None:
    """A job whose worker died before it had listed the job under its status is listed
    there once its entry is read among the jobs that are in no status index.
    """
    (job,) = put(store, status)
    for scope in ("all", "kind:RunMarathon"):
        store.client.zrem(store._index.status_key(scope, status), job)
    assert all_of(store, status=of_others) == []
    assert all_of(store, status=status) == [job]
    assert index(store, status, "kind:RunMarathon").keys() == {job}


@pytest.mark.parametrize("change", ["end", "requeue"])
def test_job_has_a_place_whenever_its_process_dies(
    store: JobStore, change: str
) -> None:
    """A job stays in the lists if a process dies between the calls that move it from
    the unfinished to the ended jobs, or back.
    """
    was, now = ("working", "error") if change == "end" else ("error", "sending")
    for count in range(1, 7):
        (job,) = put(store, was)
        record = store.record(job)
        assert record is not None
        calls = {
            "end": lambda uuid, info: store._index.end(uuid, info, "error"),
            "requeue": store._index.requeue,
        }[change](job, record.info)
        changes: Any = {"status": now, "updated": store._reader.exact_clock()}
        store.client.hset(key_of(store, job), mapping=changes)
        store._run(itertools.islice(calls, count))
        assert job in all_of(store)
        assert job in all_of(store, status="error" if now == "error" else "queued")


def test_delay_of_centuries_is_listed(store: JobStore) -> None:
    """A job that is due after the last time that a score can tell is listed."""
    store.create(NewJob(job := new_id(), INFO, delay=1e10))
    assert all_of(store) == all_of(store, status="queued") == [job]


def test_entry_that_moves_meanwhile_stays(store: JobStore) -> None:
    """A repair that comes too late changes nothing: the job has moved on."""
    (job,) = put(store, "working")
    record = store._reader.read([job])[0]
    assert record is not None
    found = Found("retrying", "all", 5)
    store._run(store._index.relist(job, record, found))
    assert list(index(store, "working")) == [job]
    # It is where it was found, but was listed again since.
    enter(store, "retrying", job)
    before = index(store, "retrying")
    store._run(store._index.relist(job, record, found))
    assert index(store, "retrying") == before


def test_expired_job_is_dropped_from_its_status(store: JobStore) -> None:
    """The entry of an expired job goes when its status is listed."""
    gone, stays = put(store, "error", 2)
    store.client.delete(key_of(store, gone))
    assert uuids_of(store.list(status="error").items) == [stays]
    assert list(index(store, "error")) == [stays]


@pytest.mark.parametrize("status", ["working", "error", "success"])
def test_job_whose_class_has_a_new_name_leaves_the_old_one(
    store: JobStore, status: str
) -> None:
    """A list of the old name drops the job, which is listed under the new one."""
    old, new = INFO._replace(kind="OldName"), INFO._replace(kind="NewName")
    other, job = create(store, 2, old)
    for uuid in job, other:
        store.confirm(uuid, "OldName")
    end = None if status == "working" else End(status)
    store.write([Update(job, "0" * 12, 1, new, begins=True, end=end)])

    assert all_of(store, kind="OldName") == [other]
    assert all_of(store, kind="OldName", status=status) == []

    assert store.counts(kind="OldName") == Counts(queued=1)
    assert all_of(store, kind="NewName") == [job]
    assert set(all_of(store)) == {job, other}


def test_success_leaves_nothing_in_the_indexes(store: JobStore) -> None:
    """A job that succeeds is in no status index."""
    put(store, "success", 3)
    assert store.client.keys("{jobstate:*}:*") == []


def test_withdrawn_job_leaves_nothing(store: JobStore) -> None:
    """A job that was not sent after all leaves no key behind."""
    job = NewJob(new_id(), INFO, sender="me")
    store.create(job)
    store.forget(job)
    assert store.client.keys() == []


def test_entries_expire(client: redis.Redis) -> None:
    """An entry lives as long as its job is listed, and the index expires with it."""
    store = JobStore(client, expire_in=1000, active_expire_in=5000)
    for status, seconds in {"error": 1000, "working": 5000}.items():
        put(store, status)
        key = store._index.status_key("all", status)
        assert seconds - 10 < client.ttl(key) <= seconds
        for each in (key, store._index.key("all", ended=status == "error")):
            client.zadd(each, {"old": 1})
        put(store, status)
        assert "old" not in index(store, status)


def wait_to_run(store: JobStore, how: str, delay: float) -> str:
    """Store a job that is due later: it is tried again after one update of its worker
    or two, or because its message was stopped, or it was sent, unconfirmed.
    """
    job = new_id()
    end = End("retrying", None, delay)
    store.create(NewJob(job, INFO, delay=delay if how == "unsent" else 0))
    if how == "two updates":
        store.write([Update(job, "a", 1, INFO, begins=True)])
        store.write([Update(job, "a", 2, INFO, end=end)])
    elif how == "one update":
        store.write([Update(job, "a", 1, INFO, begins=True, end=end)])
    elif how == "stopped":
        store.write([Update(job, "a", 1, INFO, end=end, dropped=True)])
    return job


def wait_until_gone(store: JobStore, job: str) -> None:
    wait_for(lambda: store.load(job) is None)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("two updates", "retrying"),
        ("one update", "retrying"),
        ("stopped", "retrying"),
        ("unsent", "stalled"),
    ],
)
def test_job_that_is_due_late_stays_listed(
    client: redis.Redis, how: str, status: str
) -> None:
    """A job that is due later than others are listed stays in all lists, and counts,
    while others come and go, until half the time of a job after it is due.
    """
    store = JobStore(client, expire_in=0.1, active_expire_in=0.4, stalled_after=0.1)
    job = wait_to_run(store, how, 60)
    for _ in range(2):
        # The second one trims the indexes.
        wait_until_gone(store, wait_to_run(store, how, 0.001))

    scopes: list[dict[str, Any]] = [
        {},
        {"kind": INFO.kind},
        {"owner": "alice"},
        {"owner": "alice", "kind": INFO.kind},
    ]
    for wanted in scopes:
        assert all_of(store, **wanted) == [job]
        assert all_of(store, **wanted, status=status) == [job]
    for kind in (None, INFO.kind):
        assert store.counts(kind) == Counts(**{status: 1})
    if how != "unsent":
        assert store.kinds() == [INFO.kind]

    record = store.record(job)
    assert record is not None
    stored, due = record.stored_status, record.millis("due") or 0
    keys = [store._index.status_key(f"kind:{INFO.kind}", stored)]
    keys += [store._index.key(name, ended=False) for name in ("all", 'owner:"alice"')]
    for key in keys:
        score: Any = client.zscore(key, job)
        assert score / 1000 >= due - 400 / 2 - 1
        assert client.pttl(key) > 50_000


def test_retry_keeps_its_place(store: JobStore) -> None:
    """A job that fails stays where it was in the list of all jobs, unless it is due so
    late that it would not stay listed.
    """
    first, second, third = (wait_to_run(store, "one update", 9) for _ in range(3))
    assert all_of(store) == [third, second, first]
    soon, late = End("retrying", None, 60), End("retrying", None, 5 * 86400)
    store.write([Update(first, "b", 1, INFO, begins=True, end=soon)])
    assert all_of(store) == [third, second, first]
    assert all_of(store, status="retrying") == [third, second, first]
    store.write([Update(second, "b", 1, INFO, begins=True, end=late)])
    assert all_of(store)[0] == all_of(store, status="retrying")[0] == second


def test_job_that_has_waited_long_stays_listed_while_it_runs(store: JobStore) -> None:
    """A job that begins is listed for at least as long as its worker takes to renew
    that. Before, it keeps its place.
    """
    queued = create(store, 3)
    day = 86400 * 10**6
    seconds, micros = store.client.time()
    now = seconds * 10**6 + micros
    for job, days in zip(queued, (1, 3, 5), strict=True):
        store.client.zadd("jobstate:active:all", {job: now - days * day})
        store.write([Update(job, "a", 1, INFO, begins=True)])
    assert all_of(store) == [queued[2], *queued[:2]]


def test_job_that_left_the_lists_gets_no_status(store: JobStore) -> None:
    """A job that has left the lists enters no status index later."""
    (job,) = create(store, 1)
    begin(store, job)
    for scope in ("all", "kind:RunMarathon"):
        store.client.zrem(store._index.key(scope, ended=False), job)
        store.client.zrem(store._index.status_key(scope, "working"), job)
    store.cancel(job, INFO)
    assert index(store, "cancelling") == {}
    (other,) = create(store, 1)
    begin(store, other)
    store._run([store._index.drop("all", other, ended=False)])
    end = End("retrying", None, 0.0)
    assert store.write([Update(other, "a", 2, INFO, end=end)]) == [Reply.OK]
    assert index(store, "retrying") == {}
    assert other not in all_of(store)


def begin(store: JobStore, *jobs: str) -> None:
    """Begin a run of each job."""
    store.write([Update(job, "a", 1, INFO, begins=True) for job in jobs])


def test_cursor_of_a_status_is_refused_elsewhere(store: JobStore) -> None:
    """Other lists refuse the cursor of a list by status."""
    put(store, "error", 3)
    cursor = store.list(status="error", limit=1).cursor
    assert cursor is not None
    others: list[dict[str, Any]] = [
        {},
        {"status": "success"},
        {"status": "error", "owner": "alice"},
    ]
    for wanted in others:
        with pytest.raises(ValueError, match=r"cursor was not issued by this list"):
            store.list(**wanted, cursor=cursor)


def test_status_of_an_owner(store: JobStore) -> None:
    """A list by status and owner has that owner's jobs alone."""
    mine = put_job(store, RunMarathon, "error", owner="alice").uuid
    put_job(store, RunMarathon, "error", owner="bob")
    put_job(store, RunMarathon, "success", owner="alice")
    assert all_of(store, status="error", owner="alice") == [mine]


def test_jobs_of_the_last_version_are_listed(store: JobStore) -> None:
    """After an upgrade, old jobs appear in the lists by status, in their order."""
    jobs = {status: put(store, status, 5) for status in STATUSES}
    # `put()` cancels some of them: the order is that of the indexes.
    wanted = {status: all_of(store, status=status) for status in STATUSES}
    forget_statuses(store)
    upgraded = JobStore(store.client)
    for status, uuids in jobs.items():
        assert sorted(wanted[status]) == sorted(uuids)
        assert all_of(upgraded, status=status) == wanted[status]
    counts = upgraded.counts()
    assert counts == Counts(*[5] * 8)
    assert upgraded.kinds() == ["RunMarathon"]


def test_large_store_of_the_last_version_is_listed_meanwhile(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While old jobs are not all listed by status, lists examine every job."""
    monkeypatch.setattr(sweeping, "PORTION", 20)
    monkeypatch.setattr(sweeping, "BATCH", 10)
    jobs = {status: put(store, status, 15) for status in STATUSES}
    forget_statuses(store)
    upgraded = JobStore(store.client)
    for status, uuids in jobs.items():
        found = all_of(upgraded, limit=7, status=status)
        assert sorted(found) == sorted(uuids), status
    assert upgraded._sweep.is_done()
    assert upgraded.counts() == Counts(*[15] * 8)


def test_sweep_leaves_jobs_that_have_moved_on(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that workers of this version have listed meanwhile keep their places."""
    jobs = put(store, "error", 3)
    forget_statuses(store)
    begun = Update(jobs[0], "b", 1, INFO, begins=True)
    assert store.write([begun]) == [Reply.OK]
    upgraded = JobStore(store.client)
    assert upgraded._sweep.is_done()
    assert list(index(store, "working")) == [jobs[0]]
    assert sorted(index(store, "error")) == sorted(jobs[1:])


def test_new_store_has_nothing_to_sweep(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was empty when its first job was sent is not swept."""
    put(store, "error", 3)

    def fail(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(sweeping.Sweep, "_advance", fail)
    assert len(all_of(JobStore(store.client), status="error")) == 3


def test_store_that_was_emptied_is_swept_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the store has lost its data, the jobs in it are listed by status."""
    put(store, "error", 3)
    assert len(all_of(store, status="error")) == 3
    store.client.flushall()
    monkeypatch.setattr(sweeping, "DONE_SECONDS", 0)
    jobs = put(store, "error", 2)
    assert all_of(store, status="error") == jobs
    assert store.counts() == Counts(error=2)


def test_read_only_server_lists_by_status(server: EmbeddedServer) -> None:
    """On a server that refuses writes, lists of an earlier version's jobs examine every
    job. Its failures count as successes.
    """
    store = JobStore(server.url)
    jobs = put(store, "error", 3)
    forget_statuses(JobStore(redis.Redis.from_url(server.url)))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("min-replicas-to-write", 1)
    reader = JobStore(server.url)
    assert all_of(reader, status="error") == jobs
    assert not reader._sweep.is_done()
    assert reader.counts().success == 3


def test_read_only_server_lists_successes(server: EmbeddedServer) -> None:
    """A server that refuses writes finds successes among failures."""
    store = JobStore(server.url)
    (success,) = put(store, "success")
    put(store, "error", 3)
    assert store._sweep.is_done()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("min-replicas-to-write", 1)
        client.script_flush()
    assert all_of(JobStore(server.url), status="success") == [success]


def test_counts_of_every_status(store: JobStore) -> None:
    """The counts say how many jobs have which status: of all kinds, or of one."""
    numbers = {status: i + 1 for i, status in enumerate(STATUSES)}
    for status, number in numbers.items():
        put(store, status, number)
        put_job(store, Diary, status)
    assert store.counts("RunMarathon")._asdict() == numbers
    assert store.counts("Diary") == Counts(*[1] * 8)
    assert store.counts()._asdict() == {k: v + 1 for k, v in numbers.items()}
    assert store.counts("Nothing") == Counts()


def test_counts_are_kept_for_a_second(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts are read again after a second, or if they are to be new."""
    assert store.counts() == Counts()
    put(store, "error")
    assert store.counts() == Counts()
    clock = [1e9]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert store.counts() == Counts(error=1)
    put(store, "error")
    clock[0] += 0.9
    assert store.counts() == Counts(error=1)
    clock[0] += 0.2
    assert store.counts() == Counts(error=2)
    put(store, "error")
    assert store.counts() == Counts(error=2)
    assert store.counts(anew=True) == Counts(error=3)
    assert store.counts() == Counts(error=3)


@pytest.mark.parametrize(
    ("act", "before", "after"),
    [
        (lambda store, job: store.clear(kind=job.kind), "success", Counts()),
        (lambda store, job: job.delete(), "error", Counts()),
        (lambda store, job: store.cancel_all(kind=job.kind), "queued", "cancelled"),
        (lambda store, job: job.cancel(), "working", "cancelling"),
    ],
)
def test_counts_know_of_what_this_process_has_done(
    store: JobStore, act: Any, before: str, after: Any
) -> None:
    """Whoever clears, deletes or cancels jobs sees that in the counts at once."""
    job = put_job(store, RunMarathon, before)
    assert getattr(store.counts(), before) == 1
    act(store, job)
    assert store.counts() == (Counts(**{after: 1}) if isinstance(after, str) else after)


def test_counts_are_never_negative(store: JobStore) -> None:
    """Entries left behind make a count too high or too low, but not negative."""
    for status in ("working", "error"):
        for _ in range(3):
            enter(store, status, new_id())
    assert min(store.counts()) == 0


def test_unsent_job_counts_as_stalled(client: redis.Redis) -> None:
    """A job whose message was never confirmed counts as queued, and then as stalled."""
    store = JobStore(client, stalled_after=1000)
    create(store, 2)
    assert store.counts() == Counts(queued=2)
    impatient = JobStore(client, stalled_after=0.0001)
    assert impatient.counts() == Counts(stalled=2)
    assert len(all_of(impatient, status="stalled")) == 2
    assert all_of(impatient, status="queued") == []


def test_entries_that_are_too_old_do_not_count(store: JobStore) -> None:
    """Entries that are older than a job is listed do not count."""
    put(store, "queued", 2)
    put(store, "error", 2)
    for key in ("jobstate:active:all", "jobstate:ended:all"):
        store.client.zadd(key, {new_id(): 1, new_id(): 2})
    store.client.zadd(store._index.status_key("all", "error"), {new_id(): 1})
    assert store.counts() == Counts(queued=2, error=2)


def test_kinds(store: JobStore) -> None:
    """The store knows the kinds of its jobs, also those that only wait."""
    assert store.kinds() == []
    put(store, "success")
    put_job(store, Diary, "queued")
    nameless = INFO._replace(kind="")
    finish_one(store, nameless)
    assert store.kinds() == ["Diary", "RunMarathon"]
    store.client.zadd("jobstate:kinds", {"Past": 1})
    assert store.kinds() == ["Diary", "RunMarathon"]


def finish_one(store: JobStore, info: JobInfo) -> str:
    job = new_id()
    store.write([Update(job, "a", 1, info, begins=True, end=End("success"))])
    return job


def test_kinds_are_listed_once_a_minute(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process lists a kind again after a minute, for a store that was emptied."""
    put(store, "success")
    store.client.flushall()
    put(store, "success")
    assert store.kinds() == []
    monkeypatch.setattr("pyramid_jobstate.store.index.KIND_SECONDS", 0)
    JobStore(store.client)
    store._index._noted.clear()
    put(store, "success")
    assert store.kinds() == ["RunMarathon"]


def test_throughput(store: JobStore) -> None:
    """The throughput has the jobs that ended in each period, by outcome."""
    rng = random.Random(5)
    numbers: dict[str, list[int]] = {}
    seconds, micros = store.client.time()
    now = seconds * 10**6 + micros
    for status in FINISHED:
        numbers[status] = [rng.randrange(4) for _ in range(6)]
        for i, number in enumerate(numbers[status]):
            for job in put(store, status, number):
                # In the middle of one of six periods of ten minutes.
                score = now - (6 - i) * 600 * 10**6 + 300 * 10**6
                for scope in ("all", "kind:RunMarathon"):
                    keys = [store._index.key(scope, ended=True)]
                    if status != "success":
                        keys.append(store._index.status_key(scope, status))
                    for key in keys:
                        assert store.client.zadd(key, {job: score}, xx=True, ch=True)
    for kind in (None, "RunMarathon"):
        buckets = store.throughput(kind, seconds=3600, buckets=6)
        for status in FINISHED:
            assert [getattr(b, status) for b in buckets] == numbers[status]
        starts = [bucket.start.timestamp() for bucket in buckets]
        assert [round(b - a) for a, b in itertools.pairwise(starts)] == [600] * 5
        assert abs(starts[0] - (seconds - 3600)) < 60
    assert len(store.throughput()) == 96
    assert sum(map(sum, (b[1:] for b in store.throughput("Nothing")))) == 0


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"seconds": 0}, ValueError),
        ({"seconds": -1}, ValueError),
        ({"seconds": 10**12}, ValueError),
        ({"seconds": "1h"}, TypeError),
        ({"buckets": 0}, ValueError),
        ({"buckets": 1001}, ValueError),
        ({"buckets": 1.5}, TypeError),
        ({"buckets": True}, TypeError),
    ],
)
def test_throughput_refuses_odd_periods(
    store: JobStore, wrong: dict[str, Any], error: type[Exception]
) -> None:
    """The periods must have a length of at most some 30 years, and there must be
    between 1 and 1,000.
    """
    with pytest.raises(error, match=f"^{next(iter(wrong))} must be "):
        store.throughput(**wrong)


def test_throughput_may_be_that_of_30_years(store: JobStore) -> None:
    """The longest span begins at a time that a datetime can say."""
    (bucket,) = store.throughput(seconds=1e9, buckets=1)
    assert bucket.start.year < 2026


@pytest.mark.parametrize("namespace", ["jobs", "{app}:jobs", "a b:{c}"])
def test_status_keys_share_a_slot(namespace: str) -> None:
    """The status indexes lie in the slot of theirs, whatever the namespace."""
    store = JobStore("redis://127.0.0.1:1/0", namespace=namespace)
    for scope in ("all", "kind:RunMarathon", "kind:odd}{name"):
        for ended in (False, True):
            keys = [store._index.key(scope, ended=ended)]
            keys += [store._index.status_key(scope, s) for s in indexes_of(ended=ended)]
            slots = {redis.crc.key_slot(key.encode()) for key in keys}
            assert len(slots) == 1, keys


def test_counts_of_several_threads(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that count different kinds at the same time get their counts."""
    monkeypatch.setattr("pyramid_jobstate.store.counting.FRESH_SECONDS", 0.001)
    # The server would make the threads take turns.
    monkeypatch.setattr(Counter, "_count", lambda self, wanted: Counts(error=1))
    kinds = [f"Kind{i}" for i in range(100)]

    def count(thread: int) -> int:
        found = (store.counts(kinds[(7 * thread + i) % 100]) for i in range(2000))
        return sum(counts.error for counts in found)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert list(pool.map(count, range(4))) == [2000] * 4
    finally:
        sys.setswitchinterval(interval)
