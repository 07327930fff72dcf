"""The helpers for the tests of applications."""

import asyncio
import types
from collections.abc import AsyncIterator
from typing import Any

import dramatiq
import pytest
import redis
from pyramid.authorization import Everyone
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import Batch, JobError, JobState, JobStore, Progress, testing
from tests.jobs import RunMarathon, make_broker
from tests.support import FINISHED, STATUSES, load_job
from tests.webapp import make_tm_config

pytest_plugins = ["pyramid_jobstate.fixtures"]


class PutFiles(Batch):
    """A kind of batch."""


def application(job_store: JobStore, *includes: str) -> TestApp:
    """Return an application whose view sends a job with the transaction."""
    broker = make_broker("redis://127.0.0.1:1/0")

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int) -> None: ...

    def send(request: Request) -> Any:
        request.job_states.send_with_options(run_marathon, (26,), owner="bob")
        request.job_states.send_immediately(run_marathon, 1)
        return request.job_states.send(run_marathon, int(request.params["miles"]))

    config = make_tm_config(None)
    for name in includes:
        config.include(name)
    config.set_job_store(job_store)
    config.add_view(send, name="send", renderer="json")
    return TestApp(config.make_wsgi_app())


def test_detached_records_an_asynchronous_loop() -> None:
    """A detached JobState has its class and parameters, and all of an `async for`."""
    job_state = testing.detached(RunMarathon, miles=2)
    assert type(job_state) is RunMarathon and job_state.job_params == {"miles": 2}

    async def read() -> AsyncIterator[str]:
        yield "a"

    async def work() -> None:
        async for _ in job_state.track(read(), 1, "rows"):
            pass

    asyncio.run(work())
    recorded = [("progress", done, 1, "rows") for done in (0, 1)]
    assert testing.history(job_state) == recorded


def test_history_and_cancel_are_not_of_loaded_ones(job_store: JobStore) -> None:
    """Only a JobState that keeps its reports has a history, and only one of a job that
    runs here can be cancelled.
    """
    wrongs: list[Any] = [testing.put_job(job_store), None]
    for wrong in wrongs:
        with pytest.raises(TypeError, match=f"^{wrong} was not created by detached"):
            testing.history(wrong)
        with pytest.raises(TypeError, match=f"^{wrong} does not belong to a job"):
            testing.cancel(wrong)
    assert not wrongs[0].cancel_requested


def test_put_job_reaches_every_status(job_store: JobStore) -> None:
    """A job can be put into any status, with all that a page may show of it."""
    bad, cancelled = JobError("ValueError", "bad"), "The job was cancelled."
    who: Any = {"actor": "run_marathon", "owner": "alice", "params": {"miles": 26}}
    how_far: Any = {"metrics": {"miles_run": 12}, "progress": Progress(12, 26, "miles")}
    rest: Any = {"message": "On we go", "log": ["a", "b"], "attempt": 3, "delay": 60}
    for status in STATUSES:
        error = bad if status in ("retrying", "error") else None
        options = {**who, **how_far, **rest, "error": error}
        job_state = testing.put_job(job_store, RunMarathon, status, **options)
        assert isinstance(job_state, RunMarathon)
        assert (job_state.status, job_state.owner) == (status, "alice")
        assert job_state.job_params == {"miles": 26}
        assert job_state.actor == "run_marathon"
        if status == "queued":
            assert job_state.attempt == 0 and job_state.due_at
            continue
        assert job_state.attempt == 3
        assert job_state.progress_metrics == {"miles_run": 12}
        assert job_state.progress and job_state.progress.fraction == 12 / 26
        assert (job_state.message, job_state.log) == ("On we go", ["a", "b"])
        wanted = JobError(None, cancelled) if status == "cancelled" else error
        assert job_state.error == wanted
        assert (job_state.due_at is not None) is (status == "retrying")
        assert (job_state.finished_at is not None) is (status in FINISHED)


def test_wrong_argument_is_named(job_store: JobStore) -> None:
    """The error names the argument and its value, and nothing is stored."""
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("error", {}, "^job_state_class must be a JobState class, not 'error'"),
        (Batch, {}, r"^put_job\(\) makes no batches\. Use put_batch\(\)"),
        (JobState, {"status": "done"}, r"'done'.*success"),
        (JobState, {"status": "failed"}, r"'failed'.* Did you mean 'error'\?$"),
        (JobState, {"actor": None}, "^actor must be a str, not None"),
        (JobState, {"owner": [1]}, r"owner of a job must be .*, not \[1\]"),
        (JobState, {"owner": Everyone}, "must be a single user, not 'system.Everyone'"),
        (JobState, {"params": [1]}, r"^params must be .*, not \[1\]"),
        (JobState, {"progress": (1, 2)}, r"^progress must be .*, not \(1, 2\)"),
        (JobState, {"log": "abc"}, "^log must be a list .*, not the string 'abc'"),
        (JobState, {"attempt": 0}, "^attempt must be .*, not 0"),
        (JobState, {"attempt": "2"}, "^attempt must be an int, not '2'"),
        (JobState, {"error": ValueError("x")}, "^error must be a JobError, not Val"),
        (JobState, {"status": "queued", "delay": "60"}, "^delay must be .* sec"),
    ]
    for cls, options, match in wrong:
        with pytest.raises((TypeError, ValueError), match=match):
            testing.put_job(job_store, cls, **options)
    cases: list[tuple[tuple[Any, Any], str]] = [
        ((RunMarathon, []), "^A batch needs a subclass of Batch, not "),
        ((Batch, "error"), "^members must be a list of statuses, not 'error'"),
        ((Batch, [{"weight": "1"}]), "^The weight of a member must be a number"),
        ((Batch, [{"state": "error"}]), "unexpected keyword argument 'state'"),
    ]
    for arguments, match in cases:
        with pytest.raises(TypeError, match=match):
            testing.put_batch(job_store, *arguments)
    assert job_store.client.dbsize() == 0
    url: Any = "redis://:hush@localhost"
    with pytest.raises(TypeError, match=r"^store must be a JobStore, not str\.$"):
        testing.put_job(url)


def test_put_batch_follows_from_its_members(job_store: JobStore) -> None:
    """A batch is put with members in any status, and reads what follows from these."""
    running = {"job_state_class": RunMarathon, "metrics": {"mile": 2}}
    failed = {"status": "error", "error": JobError("ValueError", "bad")}
    members: list[Any] = ["queued", running, "success", failed]
    named: Any = {"owner": "alice", "title": "Two files"}
    batch = testing.put_batch(job_store, PutFiles, members, **named)
    assert isinstance(batch, PutFiles) and batch.owner == "alice"
    assert (batch.status, batch.title) == ("working", "Two files")
    found = job_store.members(batch.uuid).items
    statuses = [member.status for member in found]
    assert statuses == ["queued", "working", "success", "error"]
    assert isinstance(found[1], RunMarathon)
    assert found[1].progress_metrics == {"mile": 2}
    assert {member.owner for member in found} == {"alice"}


def test_time_passes_for_a_store(job_store: JobStore) -> None:
    """A job that runs stalls, one that is due is due, and an ended one expires."""
    working = testing.put_job(job_store)
    stalled = testing.put_job(job_store, status="stalled")
    retrying = testing.put_job(job_store, status="retrying", delay=60)
    ended = testing.put_job(job_store, status="success")
    others = [job_store.replace(namespace=name) for name in ("other[1]", "jobstate:b")]
    elsewhere = [testing.put_job(other).uuid for other in others]
    testing.pass_time(job_store, job_store.stalled_after + 1)
    for each in working, stalled:
        assert load_job(job_store, each.uuid).status == "stalled"
    late = load_job(job_store, retrying.uuid).due_at
    assert retrying.due_at and late and late < retrying.due_at
    for other, uuid in zip(others, elsewhere, strict=True):
        assert load_job(other, uuid).status == "working"
    testing.pass_time(job_store, job_store.expire_in)
    assert job_store.load(ended.uuid) is None
    # Nor is anything left in the lists by then.
    testing.pass_time(job_store, 3 * job_store.active_expire_in)
    left: Any = job_store.client.keys("jobstate:*")
    assert all(key.startswith("jobstate:b:") for key in left)
    for seconds in "1", -1, float("nan"):
        bad: Any = seconds
        with pytest.raises((TypeError, ValueError), match="seconds must be a"):
            testing.pass_time(job_store, bad)


def test_time_passes_for_a_batch(job_store: JobStore) -> None:
    """Its members keep their order, also in a namespace with a hash tag."""
    for store in job_store, job_store.replace(namespace="{b}:jobs"):
        batch = testing.put_batch(store, members=["success", "error", "error"])
        before = [job.uuid for job in store.members(batch.uuid, "error").items]
        testing.pass_time(store, 1)
        assert len(before) == 2
        assert [job.uuid for job in store.members(batch.uuid, "error").items] == before


def test_store_that_is_away(job_store: JobStore) -> None:
    """Inside the block, a request is a 503. Afterwards, the store has all its jobs."""
    app = application(job_store, "pyramid_jobstate")
    job = testing.put_job(job_store, owner="alice")
    with testing.away(job_store):
        app.get(f"/job_state/{job.uuid}", status=503)
        with pytest.raises(redis.ConnectionError):
            job_store.load(job.uuid)
    assert job_store.load(job.uuid)
    of_a_cluster: Any = types.SimpleNamespace(client=object())
    match = r"must be a redis\.Redis, not <class 'object'>"
    with pytest.raises(TypeError, match=match):
        testing.away(of_a_cluster).__enter__()
