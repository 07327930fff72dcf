"""What a type checker knows of the jobs that were sent. mypy reads this module, too."""

from collections.abc import Sequence
from typing import assert_type

from dramatiq import Broker, group

from pyramid_jobstate import JobState
from pyramid_jobstate.resources import JobStates


def test_send_message_returns_one_job_or_all(
    job_states: JobStates, global_broker: Broker
) -> None:
    """A message is one job, a pipeline and a group are several."""
    run = global_broker.get_actor("run_marathon")
    one = assert_type(job_states.send_message(run.message(26)), JobState)
    steps = assert_type(
        job_states.send_message(run.message(1) | run.message(2), broker=global_broker),
        Sequence[JobState],
    )
    members = assert_type(
        job_states.send_message(group([run.message(3)])), Sequence[JobState]
    )
    assert one.job_params == {"miles": 26}
    assert [len(steps), len(members)] == [2, 1]


def test_send_immediately_returns_one_job_or_all(
    job_states: JobStates, global_broker: Broker
) -> None:
    """An actor and a message are one job, a pipeline and a group are several."""
    run = global_broker.get_actor("run_marathon")
    sent = assert_type(job_states.send_immediately(run, 26, shoes="blue"), JobState)
    one = assert_type(job_states.send_immediately(run.message(26)), JobState)
    steps = assert_type(
        job_states.send_immediately(run.message(1) | run.message(2)),
        Sequence[JobState],
    )
    members = assert_type(
        job_states.send_immediately(group([run.message(3)]), broker=global_broker),
        Sequence[JobState],
    )
    assert sent.job_params == {"miles": 26, "shoes": "blue"}
    assert one.job_params == {"miles": 26}
    assert [len(steps), len(members)] == [2, 1]
