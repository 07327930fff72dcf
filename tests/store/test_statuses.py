"""Lists of one status, how many jobs have which, and how many ended when."""

import itertools
import time
from collections.abc import Callable
from dataclasses import astuple
from typing import Any
from unittest import mock

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import Batch, Counts, JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.jobs import working
from tests.store.jobs import Diary, all_of, put, put_crowd, put_unsent, uuids_of
from tests.support import FINISHED, STATUSES, load_job, wait_for


@pytest.mark.promise("counts-agree-with-lists")
def test_each_status_lists_and_counts_its_jobs(store):
    """A list by status has the jobs of that status, page by page, the newest first, of
    all kinds or of one. The counts say how many those are.
    """
    jobs: dict[str, list[str]] = {}
    for number, status in enumerate(STATUSES, 4):
        jobs[status] = [put(store, status) for _ in range(number)][::-1]
    others = {status: put_job(store, Diary, status).uuid for status in STATUSES}
    for status in STATUSES:
        found = all_of(store, status=status, kind="RunMarathon")
        assert found == jobs[status], status
        assert all_of(store, status=status) == [others[status], *jobs[status]]
    assert all_of(store, status="error", owner="alice") == jobs["error"]
    numbers = {status: len(uuids) for status, uuids in jobs.items()}
    assert store.counts("RunMarathon") == Counts(**numbers)
    assert store.counts("Diary") == Counts(*[1] * 8)
    assert store.counts() == Counts(**{k: v + 1 for k, v in numbers.items()})
    assert store.counts("Nothing") == Counts()


@pytest.mark.parametrize("reads", ["load", "load_many"])
def test_clock_that_was_set_back_stalls_no_job_for_long(store, reads):
    """A server has taken over whose clock is behind by more than `stalled_after`, as
    the process finds out within a second.
    """
    uuid, viewer = put(store, "working"), JobStore(store.client)

    def status() -> Any:
        found = viewer.load(uuid) if reads == "load" else viewer.load_many([uuid])[0]
        return found and found.status

    before = int(time.time()) + 60, 0
    with mock.patch.object(store.client, "time", return_value=before):
        assert status() == "stalled"
    since = time.monotonic()
    wait_for(lambda: status() == "working")
    assert time.monotonic() - since < 5


def test_status_starts_on_its_first_page(store):
    """The oldest of more than a thousand jobs stands on the first page of its status,
    whatever the statuses of the others.
    """
    jobs = {status: put(store, status) for status in STATUSES if status != "queued"}
    put_crowd(store, 1010)
    for status, uuid in jobs.items():
        assert uuids_of(store.list(status=status, limit=1).items) == [uuid]
    assert store.cancel_all(status="queued", kind="RunMarathon", limit=1000).done
    for status in "success", "error":
        page = store.list(status=status, kind="RunMarathon", limit=1)
        assert uuids_of(page.items) == [jobs[status]]


def test_job_whose_class_has_a_new_name_leaves_the_old_one(store):
    """A list of the old name drops a job that runs under the new one, and lists it
    there.
    """

    class Old(JobState):
        kind = "OldName"

    class New(JobState):
        kind = "NewName"

    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(store))

    @dramatiq.actor(broker=broker, job_state=New)
    def act() -> None: ...

    job, other = (put_job(store, Old, "queued").uuid for _ in range(2))
    with working(broker, threads=1):
        broker.enqueue(act.message().copy(message_id=job))
        wait_for(lambda: load_job(store, job).is_finished)
    assert all_of(store, kind="OldName", status="success") == []
    assert all_of(store, kind="OldName") == [other]
    assert all_of(store, kind="NewName", status="success") == [job]
    assert store.counts("OldName") == Counts(queued=1)
    assert store.counts("NewName") == Counts(success=1)


@pytest.mark.promise("counts-agree-with-lists")
def test_counts_are_kept_for_a_second(store, monkeypatch):
    """Counts are read again after a second, or if they are to be new."""
    clock = [1e9]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert store.counts() == Counts()
    put(store, "error")
    clock[0] += 0.9
    assert store.counts() == Counts()
    clock[0] += 0.2
    assert store.counts() == Counts(error=1)
    put(store, "error")
    assert store.counts() == Counts(error=1)
    assert store.counts(anew=True) == store.counts() == Counts(error=2)


def test_counts_know_of_what_this_process_has_done(store):
    """Whoever clears, deletes or cancels jobs sees that in the counts at once."""
    acts: list[tuple[str, Callable[[JobState], object], Counts]] = [
        ("success", lambda job: store.clear(kind=job.kind), Counts()),
        ("error", lambda job: job.delete(), Counts()),
        ("queued", lambda job: store.cancel_all(kind=job.kind), Counts(cancelled=1)),
        ("working", lambda job: job.cancel(), Counts(cancelled=1, cancelling=1)),
    ]
    for status, act, after in acts:
        job = load_job(store, put(store, status))
        assert getattr(store.counts(anew=True), status) == 1
        act(job)
        assert store.counts() == after


def test_kinds(store, monkeypatch):
    """The store knows the kinds of its jobs, also those that only wait, or whose sender
    has died, and forgets them with their jobs. A process names a kind anew once a
    minute.
    """
    assert store.kinds() == []
    put_unsent(store)
    put_job(store, Diary, "queued")
    assert store.kinds() == ["class:Diary", "class:RunMarathon"]
    store.client.flushall()
    assert store.kinds() == []
    clock = [1e9]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    put(store, "success")
    clock[0] += 61
    put(store, "success")
    assert store.kinds() == ["class:RunMarathon"]
    pass_time(store, 3 * store.active_expire_in)
    assert store.kinds() == []


def test_jobs_of_plain_actors_have_kinds_of_their_own(store):
    """An actor without a class lists its jobs under its own name. A filter takes the
    name alone unless a class has it, too.
    """
    jobs = {
        name: put_job(store, status="queued", actor=name).uuid
        for name in ("mow", "Diary")
    }
    of_class = put_job(store, Diary, "queued").uuid
    assert store.kinds() == ["actor:Diary", "actor:mow", "class:Diary"]
    for kind, expected in {
        "mow": jobs["mow"],
        "actor:mow": jobs["mow"],
        "actor:Diary": jobs["Diary"],
        "class:Diary": of_class,
    }.items():
        assert uuids_of(store.list(kind=kind).items) == [expected]
        assert store.counts(kind) == Counts(queued=1)
    assert store.list(kind="class:mow").items == store.list(kind="JobState").items == []
    calls: list[Callable[..., object]] = [
        store.list,
        store.counts,
        store.throughput,
        store.clear,
        store.cancel_all,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="'class:Diary' or 'actor:Diary'"):
            call(kind="Diary")
    assert store.cancel_all(kind="actor:Diary").done == 1
    assert load_job(store, of_class).status == "queued"


def test_silent_batch_is_listed_under_the_status_that_it_had(store):
    """Its members wait, so it reads as if it did; no act misses it."""
    batch = put_batch(store, Batch, ["success", "queued", "retrying"]).uuid
    pass_time(store, 20)
    assert load_job(store, batch).status == "retrying"
    assert store.counts() == Counts(working=1)
    assert uuids_of(store.list(status="working").items) == [batch]
    assert store.list(status="retrying").items == []
    assert store.cancel_all(kind="class:Batch", status="working").done == 1


def test_throughput(store):
    """The throughput has the jobs that ended in each period, by outcome."""
    numbers = [(0, 2, 1), (3, 0, 0), (0, 0, 0), (0, 1, 3)]
    for bucket in numbers:
        for status, number in zip(FINISHED, bucket, strict=True):
            for _ in range(number):
                put(store, status)
        pass_time(store, 600 if bucket != numbers[-1] else 300)
    put(store, "working")
    for kind in None, "RunMarathon":
        buckets = store.throughput(kind, seconds=2400, buckets=4)
        assert [astuple(bucket)[1:] for bucket in buckets] == numbers
        starts = [bucket.start.timestamp() for bucket in buckets]
        assert [round(b - a) for a, b in itertools.pairwise(starts)] == [600] * 3
        seconds: Any = store.client.time()
        assert abs(starts[0] - (seconds[0] - 2400)) < 60
    assert len(store.throughput()) == 96
    assert not any(any(astuple(each)[1:]) for each in store.throughput("Nothing"))
