"""The helpers for the tests of applications."""

from typing import Any

import pytest
from pyramid.authorization import Everyone

from pyramid_jobstate import Batch, JobState, JobStore, testing
from tests.jobs import RunMarathon
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
    for seconds in "1", -1, float("nan"):
        bad: Any = seconds
        with pytest.raises((TypeError, ValueError), match="seconds must be a"):
            testing.pass_time(job_store, bad)
    url: Any = "redis://:hush@localhost"
    with pytest.raises(TypeError, match=r"^store must be a JobStore, not str\.$"):
        testing.put_job(url)
