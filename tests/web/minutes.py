"""Jobs that have logged, for the tests of what is shown of that."""

import logging
from collections.abc import Callable
from typing import Any

from pyramid_jobstate import JobState
from tests.jobs import job_actor, make_broker, wait_until, working

log = logging.getLogger("tests.minutes")


class Minutes(JobState):
    log_level = "WARNING"


class OpenMinutes(JobState):
    log_level = "WARNING"
    public_log = True


def say_three(job_state: JobState) -> None:
    """Log two lines, and append one between them."""
    log.warning("secret")
    job_state.append_log("plain")
    log.error("more")


def take_minutes(
    url: str, cls: type[JobState] = Minutes, say: Callable[[Any], object] = say_three
) -> str:
    """Run a job of Alice's that does something, and return its uuid."""
    broker = make_broker(url)

    @job_actor(broker=broker, job_state=cls, max_retries=0)
    def take_minutes(*, job_state: JobState) -> None:
        say(job_state)

    with working(broker):
        message = take_minutes.send_with_options(job_owner="alice")
        wait_until(broker, message, "success", "error")
    return message.message_id
