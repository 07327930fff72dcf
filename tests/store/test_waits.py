"""How long jobs wait for a worker, and how long those waited that started last."""

import time
from typing import Any

import dramatiq
from dramatiq import pipeline
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import Batch, JobError, JobStateMiddleware, JobStore
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.jobs import Gate, RunMarathon, messages, working
from tests.store.jobs import Diary, all_of, create, finish, put, put_unsent
from tests.support import key_of, load_job, wait_for, write
from tests.trips import counting_trips
from tests.webapp import make_app, make_config, make_request

#: Where the jobs of all kinds are listed that are queued.
QUEUED = "jobstate:{all}:queued"


def oldest_wait(
    store: JobStore, kind: str | None = None, *, members: bool = False
) -> float:
    """Return how long the oldest job has waited, in whole tens of seconds, since the
    tests take time, too, or -1 if none waits.
    """
    wait = store.counts(kind, anew=True, members=members).oldest_wait
    return -1 if wait is None else wait // 10 * 10


def recent_wait(store: JobStore, kind: str | None = None) -> float:
    """Return how long the jobs had waited that started last, in the same way."""
    wait = store.counts(kind, anew=True).recent_wait
    return -1 if wait is None else wait // 10 * 10


def test_oldest_job_that_waits(store):
    """Its wait is told of all jobs and of each kind, until it starts. Members of
    batches are among them, whether or not they are counted.
    """
    assert oldest_wait(store) == oldest_wait(store, "Diary") == -1
    (job,) = create(store, 1)
    pass_time(store, 60)
    put_batch(store, Batch, [{"job_state_class": Diary, "status": "queued"}])
    pass_time(store, 20)
    put_job(store, RunMarathon, "queued")
    pass_time(store, 10)
    for members in False, True:
        assert oldest_wait(store, members=members) == 90
        assert oldest_wait(store, "RunMarathon", members=members) == 90
        assert oldest_wait(store, "Diary", members=members) == 30
        # The batch waits for nothing.
        assert oldest_wait(store, "Batch", members=members) == -1
    finish(store, job)
    assert (oldest_wait(store), oldest_wait(store, "RunMarathon")) == (30, 10)


def test_jobs_that_do_not_wait(store):
    """A job waits once it is due, from then on. One that was never sent, that runs or
    has ended, and a member of a cancelled batch do not.
    """
    put(store, "queued", delay=70)
    put(store, "retrying", delay=90, error=JobError("ValueError", "bad"))
    put_unsent(store)
    for status in "working", "cancelling", "success", "cancelled":
        put(store, status)
    batch = put_batch(store, Batch, ["queued", "queued", {"status": "retrying"}])
    assert batch.cancel()
    pass_time(store, 60)
    assert oldest_wait(store) == -1
    pass_time(store, 40)
    assert oldest_wait(store) == oldest_wait(store, "RunMarathon") == 30
    assert store.cancel_all(status="queued", everything=True).done
    assert oldest_wait(store) == 10


def test_member_waits_whose_batch_is_gone(store):
    """Its message may still run it."""
    batch = put_batch(store, Batch, ["queued"])
    store.client.delete(key_of(store, batch.uuid))
    pass_time(store, 20)
    assert oldest_wait(store) == 20


def test_step_waits_from_its_turn_on(redis_url, store):
    """Until then, it is not a worker that a step of a pipeline waits for."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(store))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def start() -> None: ...

    @dramatiq.actor(broker=broker, job_state=Diary, queue_name="late")
    def rest(*args: Any) -> None: ...

    request = make_request(make_app(make_config(redis_url)).app, "alice")
    steps = pipeline([start.message(), rest.message(), rest.message()], broker=broker)
    first, second, _ = request.job_states.send_immediately(steps)
    pass_time(store, 100)
    assert (oldest_wait(store), oldest_wait(store, "Diary")) == (100, -1)
    worker = dramatiq.Worker(broker, queues={"default"}, worker_timeout=20)
    worker.start()
    wait_for(lambda: load_job(store, first.uuid).is_finished)
    worker.stop()
    pass_time(store, 10)
    assert load_job(store, second.uuid).status == "queued"
    assert oldest_wait(store) == oldest_wait(store, "Diary") == 10


def stop_many(store: JobStore, count: int) -> None:
    """Send members of a batch, and cancel it."""
    assert put_batch(store, Batch, ["queued"] * count).cancel()


def test_oldest_job_behind_others_that_do_not_wait(store):
    """It is found behind hundreds of older jobs, in any status."""
    stop_many(store, 110)
    assert oldest_wait(store) == -1
    for _ in range(15):
        put(store, "retrying", delay=3600, error=JobError("ValueError", "bad"))
    put(store, "retrying", delay=10, error=JobError("ValueError", "bad"))
    pass_time(store, 40)
    assert oldest_wait(store) == 30
    # Jobs that are found at once hide no older one.
    put(store, "queued")
    put_batch(store, Batch, ["queued"])
    pass_time(store, 20)
    assert (oldest_wait(store), oldest_wait(store, "JobState")) == (50, 20)


def test_one_of_the_oldest_jobs_behind_very_many(store):
    """Behind more than 300 jobs that do not wait, one that waits is found, whether they
    stand in the middle or at the end.
    """
    stop_many(store, 220)
    batch = put_batch(store, Batch, ["queued"] * 100)
    pass_time(store, 10)
    stop_many(store, 190)
    assert oldest_wait(store) == 10
    assert batch.cancel()
    assert oldest_wait(store) == -1
    put_batch(store, Batch, ["queued"])
    # The clock that the store keeps of its server may be late by some milliseconds.
    wait_for(lambda: oldest_wait(store) == 0)


def test_wait_is_by_the_clock_of_the_server(store, monkeypatch):
    """That of the client may be wrong."""
    create(store, 1)
    pass_time(store, 30)
    now = time.time()
    for clock in now - 1e6, now + 1e6:
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        assert oldest_wait(JobStore(store.client)) == 30


def test_cost_of_counts(store):
    """Counts take one round trip, one more if there are jobs to look at, and one if
    members of batches wait. Behind many jobs that do not wait, they take a few more,
    however many these are.
    """

    def cost() -> int:
        store.counts(anew=True)
        with counting_trips() as trips:
            store.counts(anew=True)
        return len(trips)

    assert cost() == 1
    create(store, 30)
    assert cost() == 2
    put_batch(store, Batch, ["queued"] * 10)
    # The lone jobs are older.
    assert cost() == 2
    assert store.cancel_all(kind="RunMarathon", limit=1000).done
    assert cost() == 3
    store.client.flushall()
    stop_many(store, 420)
    assert cost() == 6


def test_waits_in_records_of_others(store, caplog):
    """A record in which another program has written waits since it was queued, if its
    times cannot be read. Entries of no job, or of one that has expired, are passed
    over.
    """
    jobs = create(store, 12)
    pass_time(store, 60)
    for job in jobs:
        write(store, job, updated="soon", due="1e9", waited="long")
    put(store, "success")
    assert oldest_wait(store) == 60
    finish(store, jobs[5])
    assert load_job(store, jobs[5]).is_finished
    put(store, "queued")
    oldest: Any = store.client.zscore(QUEUED, jobs[-1])
    foreign = {f"{number}": oldest - 1 for number in range(12)} | {"kinds": oldest - 1}
    store.client.zadd(QUEUED, foreign)
    for job in jobs:
        store.client.delete(key_of(store, job))
    pass_time(store, 20)
    assert oldest_wait(store) == 20
    # The expired ones have left the lists.
    assert store.client.zscore(QUEUED, jobs[0]) is None
    assert not messages(caplog, "pyramid_jobstate")
    for key in QUEUED, "jobstate:{all}:retrying", "jobstate:{all}:success":
        store.client.set(key, "x")
    assert (oldest_wait(store), recent_wait(store)) == (-1, -1)


def test_wait_before_a_start(store):
    """It counts from when a job was queued or due, and is told of all jobs and of each
    kind while they run, and for an hour.
    """
    assert recent_wait(store) == -1
    (job,) = create(store, 1)
    other = put(store, "queued", delay=30)
    retried = put(store, "retrying", delay=30, error=JobError("ValueError", "bad"))
    pass_time(store, 40)
    finish(store, job, status="error")
    assert (recent_wait(store), recent_wait(store, "RunMarathon")) == (40, 40)
    assert recent_wait(store, "Diary") == -1
    finish(store, other, retried)
    assert recent_wait(store) == 10
    put_job(store, Diary)
    assert (recent_wait(store), recent_wait(store, "Diary")) == (10, 0)
    pass_time(store, 3590)
    assert recent_wait(store) == 10
    pass_time(store, 11)
    assert recent_wait(store) == -1


def test_only_the_newest_starts_count(store):
    """The median is that of the last ten, so that one that has waited for long does not
    count for long. They may be members of batches.
    """
    jobs = create(store, 10)
    pass_time(store, 100)
    finish(store, *jobs)
    assert recent_wait(store) == 100
    pass_time(store, 1)
    put_batch(store, Batch, ["success", "working", *["error"] * 3])
    assert recent_wait(store) == 50
    put_batch(store, Batch, ["success"])
    assert recent_wait(store) == 0


def test_late_starts_count_beside_jobs_that_run(store):
    """Even if ten of these were queued after them, for another worker."""
    jobs = create(store, 10)
    broker, gate = StubBroker(), Gate()
    broker.add_middleware(JobStateMiddleware(store))

    @dramatiq.actor(broker=broker, job_state=RunMarathon, max_retries=0)
    def run_marathon(miles: int) -> None:
        gate.wait()

    pass_time(store, 1800)
    for _ in range(10):
        put(store, "working")
    for job in jobs:
        broker.enqueue(run_marathon.message(26).copy(message_id=job))
    with working(broker, threads=len(jobs)):
        wait_for(lambda: all(load_job(store, job).status == "working" for job in jobs))
        assert recent_wait(store) == recent_wait(store, "RunMarathon") == 1800
        gate.open()


def test_run_after_one_that_died_has_not_waited(store):
    """The message came again when the broker had missed the worker, not when a worker
    was free.
    """
    put(store, "working")
    pass_time(store, 30)
    (job,) = all_of(store, status="stalled")
    assert recent_wait(store) == 0
    finish(store, job)
    assert recent_wait(store) == -1
