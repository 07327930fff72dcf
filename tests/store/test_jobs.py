"""What a store says of one job, and for how long."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from redis.sentinel import Sentinel

from pyramid_jobstate import (
    Batch,
    BulkResult,
    Counts,
    JobError,
    JobStateMiddleware,
    JobStore,
    Page,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import away, pass_time, put_batch
from tests.faulty import faulty
from tests.jobs import new_id
from tests.store.jobs import create, make_desk, put, put_unsent, status_of
from tests.support import FINISHED, UNFINISHED, key_of, load_job
from tests.web.databases import Manager, fail
from tests.worker.floors import Floor


def test_job_that_was_never_sent_reads_stalled(store):
    """A job whose sender died before it could send it reads stalled after a while. One
    whose message was accepted stays queued.
    """
    (sent,), lost = create(store, 1), put_unsent(store)
    assert status_of(store, lost) == "queued"
    pass_time(store, store.stalled_after + 1)
    assert (status_of(store, sent), status_of(store, lost)) == ("queued", "stalled")


def test_thousands_of_metrics_are_kept(store):
    """All that a job sets at once are read, and the page after its end has them too."""
    metrics = {str(number): number for number in range(4000)}
    for status in "working", "success":
        job = load_job(store, put(store, status, metrics=metrics))
        assert job.progress_metrics == metrics


def test_cancel(store):
    """A running job is being cancelled until it ends. One that waits, or is silent, is
    cancelled at once: a second cancel ends a job whose worker has died.
    """
    for status in UNFINISHED:
        job = load_job(store, put(store, status, delay=60 * (status != "working")))
        assert job.cancel()
        if status in ("working", "cancelling"):
            job = load_job(store, job.uuid)
            assert (job.status, job.cancel_requested) == ("cancelling", True)
            pass_time(store, store.stalled_after + 1)
            assert status_of(store, job.uuid) == "stalled"
            assert job.cancel()
        job = load_job(store, job.uuid)
        assert (job.status, job.is_error) == ("cancelled", True), status
        assert job.error == JobError(None, "The job was cancelled.")
        assert job.finished_at is not None
        assert not job.cancel()
    for status in FINISHED:
        assert not load_job(store, put(store, status)).cancel()


def test_cancel_while_the_store_is_away_is_refused(store):
    """cancel() raises an exception while the store is away."""
    job = load_job(store, put(store, "working"))
    with away(store), pytest.raises(redis.ConnectionError):
        job.cancel()
    assert status_of(store, job.uuid) == "working"


@pytest.mark.promise("deleted-job-is-gone")
def test_delete(store):
    """A job that has ended can be deleted, once: it is unknown from then on."""
    for status in FINISHED:
        uuid = put(store, status)
        assert store.delete(uuid)
        assert store.load(uuid) is None
        assert not store.delete(uuid)
        # What stays keeps its message from running.
        assert store.client.keys(f"*{uuid}*") == [key_of(store, uuid).encode()]
        assert {*store.client.hgetall(key_of(store, uuid))} == {b"status", b"asked"}
    for status in UNFINISHED:
        uuid = put(store, status)
        assert not store.delete(uuid)
        assert status_of(store, uuid) == status
    assert not store.delete(new_id())


@pytest.mark.promise("updates-change-nothing-twice")
def test_lost_reply_changes_no_answer(redis_url, store):
    """An act whose reply was lost, and which the client repeats, is answered as if it
    had been the only one.
    """
    queued, running = put(store, "queued"), put(store, "working")
    failed, ended = put(store, "error"), put(store, "success")
    batch = put_batch(store, Batch, ["queued"])
    acts: list[tuple[Callable[[JobStore], object], object]] = [
        (lambda far: load_job(far, queued).cancel(), True),
        (lambda far: load_job(far, running).cancel(), True),
        (lambda far: load_job(far, batch.uuid).cancel(), True),
        (lambda far: far.delete(failed), True),
        (lambda far: far.clear(status="success"), BulkResult(1, 0, None)),
    ]

    with faulty(redis_url) as proxy:
        proxy.lose_each_reply_once()
        for number, (act, answer) in enumerate(acts):
            assert act(JobStore(proxy.url)) == answer, number
        assert proxy.faults["lose"] >= len(acts)
    assert status_of(store, queued) == "cancelled"
    assert status_of(store, running) == "cancelling"
    assert status_of(store, batch.uuid) == "cancelled"
    assert store.load(failed) is store.load(ended) is None


@pytest.fixture
def brief(client: redis.Redis) -> JobStore:
    """A store that keeps ended jobs for 100 seconds, and others for 1,000."""
    return JobStore(client, expire_in=100, active_expire_in=1000)


def assert_lasts(store: JobStore, uuid: str, seconds: float) -> None:
    """Assert that a job is kept for so long, and no longer."""
    pass_time(store, seconds - 5)
    assert store.load(uuid) is not None
    pass_time(store, 6)
    assert store.load(uuid) is None


def test_ended_job_is_kept_for_a_while(brief):
    """An ended job is kept for `expire_in` from its end."""
    for status in "success", "error":
        assert_lasts(brief, put(brief, status), 100)


@pytest.mark.promise("unfinished-jobs-are-kept")
def test_unfinished_job_is_kept_past_its_due_time(brief):
    """An unfinished job is kept for `active_expire_in` after it is due."""
    assert_lasts(brief, put(brief, "working"), 1000)
    for status in "queued", "retrying":
        assert_lasts(brief, put(brief, status, delay=500), 1500)


def test_cancelled_job_outlives_its_message(brief):
    """A cancel never shortens the life of a record: the message that comes later must
    find it.
    """
    for status, delay in ("queued", 500), ("stalled", 0):
        job = load_job(brief, put(brief, status, delay=delay))
        assert job.cancel()
        assert_lasts(brief, job.uuid, 1000 + delay)
    # Somebody may put the message back, for later.
    broker, run_marathon = make_desk(brief)
    message = run_marathon.send(26)
    assert load_job(brief, message.message_id).cancel()
    broker.enqueue(message, delay=500_000)
    assert_lasts(brief, message.message_id, 1500)
    # Nor is it shorter than that of any ended job.
    patient = brief.replace(expire_in=5000)
    job = load_job(patient, put(patient, "queued"))
    assert job.cancel()
    assert_lasts(patient, job.uuid, 5000)


def test_sender_forgets_only_its_own_record(store):
    """A send that fails leaves the record of another one of the same message, which is
    under way.
    """
    floor = Floor(store)
    message = floor.message()
    first, second = floor.request(), floor.request()

    def fail_meanwhile() -> None:
        second.tm.begin()
        second.job_states.send_message(message, broker=floor.broker)
        refusal = Manager("a", "tpc_vote", lambda: fail(ZeroDivisionError))
        second.tm.get().join(refusal)
        with pytest.raises(ZeroDivisionError):
            second.tm.commit()
        second.tm.abort()

    first.tm.begin()
    first.job_states.send_message(message, broker=floor.broker)
    first.tm.get().join(Manager("~", "tpc_vote", fail_meanwhile))
    first.tm.commit()
    assert floor.statuses(message) == ["queued"]
    assert len(floor.waiting()) == 1


@pytest.mark.promise("applications-are-apart")
def test_namespaces_share_a_server(client):
    """Two applications on one server do not see each other's jobs, and all keys tell
    whose they are.
    """
    mine, other = JobStore(client), JobStore(client, namespace="other")
    uuid = put(mine, "error")
    # Some names begin with the tag that keeps keys in one slot of a Cluster.
    prefixes = (b"jobstate:", b"{jobstate:")
    assert all(key.startswith(prefixes) for key in client.scan_iter())
    assert other.load(uuid) is None
    assert other.list() == Page([], None)
    assert other.kinds() == [] and other.counts() == Counts()


def test_namespace_is_text_without_stray_braces():
    """A namespace that is no text, is empty, or has a brace that is not part of a hash
    tag is an error that names it, in the middleware too.
    """
    cases: list[tuple[Any, type[Exception], str]] = [
        ("a}b", ValueError, "not part of a hash tag"),
        ("{}", ValueError, "not part of a hash tag"),
        (5, TypeError, "(?i)namespace must be"),
        ("", ValueError, "(?i)namespace .*is empty"),
    ]
    for wrong, error, match in cases:
        for make in JobStateMiddleware, functools.partial(JobStore, "redis://h"):
            with pytest.raises(error, match=match):
                make(namespace=wrong)
    for namespace in "jobs", "{app}:jobs", "a b:{c}":
        JobStore("redis://localhost", namespace=namespace)


def test_durations_are_positive_numbers():
    """A duration that is zero, negative, no number or too long for the server, or in
    words as settings take it, is an error that names it.
    """
    for name in "expire_in", "active_expire_in", "stalled_after":
        options: dict[str, Any]
        for value in 0, -1, float("nan"), 1e30:
            options = {name: value}
            with pytest.raises(ValueError, match=f"^{name} must be a positive number"):
                JobStore("redis://localhost", **options)
        for wrong in "24h", None, True:
            options = {name: wrong}
            with pytest.raises(TypeError, match=f"^{name} must be a number of seconds"):
                JobStore("redis://localhost", **options)


def test_replace_changes_only_what_is_given(redis_url):
    """A store with other options keeps the rest, and the client."""
    store = JobStore(redis_url, expire_in=1, stalled_after=2)
    other = store.replace(namespace="other", stalled_after=3)
    assert (other.namespace, other.expire_in, other.stalled_after) == ("other", 1, 3)
    assert other.active_expire_in == store.active_expire_in == 8 * 86400
    assert other.client is store.client


def test_middleware_shares_the_server_of_its_broker(redis_url):
    """The store of a RedisBroker's middleware is on its server, with connections that
    fail fast. Only a client that is out of the ordinary is shared itself.
    """
    broker = RedisBroker(url=redis_url)
    store = JobStateMiddleware(namespace="mine").store_for(broker)
    assert store.namespace == "mine"
    assert isinstance(store.client, redis.Redis)
    kwargs = store.client.connection_pool.connection_kwargs
    assert kwargs["port"] == broker.client.connection_pool.connection_kwargs["port"]
    assert kwargs["socket_timeout"] == 0.5
    client = Sentinel([("127.0.0.1", 1)]).master_for("jobs")
    store = JobStateMiddleware().store_for(RedisBroker(client=client))
    assert store.client is client
    with pytest.raises(ActorError, match="StubBroker"):
        JobStateMiddleware().store_for(StubBroker())
