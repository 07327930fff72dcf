"""What a type checker knows of the jobs that were sent. mypy reads this module, too."""

from collections.abc import Sequence
from typing import assert_type

from dramatiq import Broker, group

from pyramid_jobstate import JobState
from pyramid_jobstate.resources import JobStates


def test_send_returns_one_job_or_all(
    job_states: JobStates, global_broker: Broker
) -> None:
    """An actor and a message are one job, a pipeline and a group are several."""
    run = global_broker.get_actor("run_marathon")
    for send in job_states.send_message, job_states.send_immediately:
        one = assert_type(send(run.message(26)), JobState)
        several = assert_type(send(run.message(1) | run.message(2)), Sequence[JobState])
        members = assert_type(send(group([run.message(3)])), Sequence[JobState])
        assert one.job_params == {"miles": 26}
        assert [len(several), len(members)] == [2, 1]
    sent = assert_type(job_states.send_immediately(run, 26, shoes="blue"), JobState)
    assert sent.job_params == {"miles": 26, "shoes": "blue"}
