"""Reruns through a broker that fails, or is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import dramatiq.broker
import pytest
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.relay import relaying
from tests.web.operating import Marathons, act, put, statuses
from tests.web.visits import Refusing
from tests.webapp import NOWHERE

#: Where one failed job runs again, and where all do.
ONE, ALL = "/job_state/{}/rerun", "/job_state/rerun?all=1&everything=1"

REFUSED = "The broker did not accept the message of the job."
AWAY = "The broker does not answer."


@pytest.mark.parametrize("fault", ["middleware", "server", "away"])
def test_broker_that_fails_is_a_503(
    operated: TestApp,
    redis_url: str,
    store: JobStore,
    set_broker: Callable[[Any], None],
    said: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    """The job has failed as before, and the log says how many were sent."""
    sound = Marathons(redis_url, store).broker
    for path in ONE, ALL:
        (job,) = put(store, "alice", status="error")
        with contextlib.ExitStack() as stack:
            url = NOWHERE if fault == "away" else redis_url
            if fault == "server":
                url = stack.enter_context(relaying(url, {"EVALSHA": "NOREPLICAS"})).url
            broker = Marathons(url, store).broker
            if fault == "middleware":
                broker.add_middleware(Refusing())
            set_broker(broker)
            said()
            response = act(operated, path.format(job))
        error = AWAY if fault == "away" else REFUSED
        assert (response.status_code, response.json) == (503, {"error": error})
        assert response.headers["Retry-After"] == "5"
        assert statuses(store, job) == ["error"]
        assert ("The queue is full." in caplog.text) is (fault == "middleware")
        line = "'operator' requeued 0 of all jobs until that failed."
        end = "could not be sent to run again."
        wanted = [f"The job {job} {end}"] if path == ONE else [line, f"A job {end}"]
        assert said() == wanted
        set_broker(sound)
        assert act(operated, path.format(job)).status_code in (200, 202)
        assert statuses(store, job) == ["queued"]


def test_process_without_a_broker_runs_nothing_again(
    operated: TestApp, store: JobStore, set_broker: Callable[[Any], None]
) -> None:
    """Without a broker, none is made: a 410, or a 409 if the job has not failed."""
    (job,) = put(store, "alice", status="error")
    (ended,) = put(store, "alice", status="success")
    for path in ONE.format(job), ALL:
        response = act(operated, path)
        assert response.status_code == 410
        assert response.json == {"error": "This process has no Dramatiq broker."}
        assert dramatiq.broker.global_broker is None
    assert act(operated, ONE.format(ended)).status_code == 409
