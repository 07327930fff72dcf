"""The helpers for the tests of applications."""

import types
from typing import Any

import pytest
import redis
from pyramid.authorization import Everyone

from pyramid_jobstate import Batch, JobError, JobState, JobStore, Progress, testing
from tests.jobs import RunMarathon
from tests.support import FINISHED, STATUSES, load_job
from tests.webapp import NOWHERE, make_broker, make_request, make_tm_config

pytest_plugins = ["pyramid_jobstate.fixtures"]


def test_outbox_keeps_what_requests_send(job_store: JobStore) -> None:
    """It does in whichever order the two are included, and nothing is written."""
    run_marathon = make_broker(NOWHERE).get_actor("run_marathon")
    names = ["pyramid_jobstate.testing", "pyramid_jobstate"]
    for includes in names, names[::-1]:
        config = make_tm_config(None)
        for name in includes:
            config.include(name)
        config.set_job_store(job_store)
        config.make_wsgi_app()
        job_states = make_request(config, "alice").job_states
        sends = job_states.send, job_states.send_immediately
        jobs = [send(run_marathon, 26) for send in sends]
        outbox = testing.outbox(config.registry)
        assert [sent.job_state for sent in outbox] == jobs
        assert outbox[0].message.message_id == jobs[0].uuid
        assert outbox[0].message.options["job_owner"] == jobs[0].owner == "alice"
        ran = testing.run_jobs(config.registry)
        assert [job.status for job in ran] == ["success"] * 2
        assert job_store.client.dbsize() == 0


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
    own = testing.detached(RunMarathon, miles=2)
    assert type(own) is RunMarathon and own.job_params == {"miles": 2}


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
        (JobState, {"progress": (1, 2)}, r"^progress must be .*, not \(1, 2\)"),
        (JobState, {"attempt": "2"}, "^attempt must be an int, not '2'"),
        (JobState, {"status": "queued", "delay": "60"}, "^delay must be .* sec"),
    ]
    for cls, options, match in wrong:
        with pytest.raises((TypeError, ValueError), match=match):
            testing.put_job(job_store, cls, **options)
    cases: list[tuple[tuple[Any, Any], str]] = [
        ((RunMarathon, []), "^A batch needs a subclass of Batch, not "),
        ((Batch, "error"), "^members must be a list of statuses, not 'error'"),
        ((Batch, [{"state": "error"}]), "unexpected keyword argument 'state'"),
    ]
    for arguments, match in cases:
        with pytest.raises(TypeError, match=match):
            testing.put_batch(job_store, *arguments)
    assert job_store.client.dbsize() == 0
    url: Any = "redis://:hush@localhost"
    with pytest.raises(TypeError, match=r"^store must be a JobStore, not str\.$"):
        testing.put_job(url)


def test_time_passes_for_a_store(job_store: JobStore) -> None:
    """A job that runs stalls, one that is due is due, and an ended one expires."""
    working = testing.put_job(job_store)
    stalled = testing.put_job(job_store, status="stalled")
    retrying = testing.put_job(job_store, status="retrying", delay=60)
    ended = testing.put_job(job_store, status="success")
    testing.pass_time(job_store, job_store.stalled_after + 1)
    for each in working, stalled:
        assert load_job(job_store, each.uuid).status == "stalled"
    late = load_job(job_store, retrying.uuid).due_at
    assert retrying.due_at and late and late < retrying.due_at
    testing.pass_time(job_store, job_store.expire_in)
    assert job_store.load(ended.uuid) is None
    for seconds in "1", -1, float("nan"):
        bad: Any = seconds
        with pytest.raises((TypeError, ValueError), match="seconds must be a"):
            testing.pass_time(job_store, bad)


def test_store_that_is_away(job_store: JobStore) -> None:
    """Inside the block, the store does not answer. Afterwards, it has all its jobs."""
    job = testing.put_job(job_store)
    with testing.away(job_store), pytest.raises(redis.ConnectionError):
        job_store.load(job.uuid)
    assert job_store.load(job.uuid)
    of_a_cluster: Any = types.SimpleNamespace(client=object())
    match = r"must be a redis\.Redis, not <class 'object'>"
    with pytest.raises(TypeError, match=match):
        testing.away(of_a_cluster).__enter__()
