"""Messages, the log, and what every report has in common: how it reaches the store,
and after the end of its job no longer does.
"""

from typing import Any

import pytest

from pyramid_jobstate import JobState
from pyramid_jobstate.testing import detached, history, put_job, values
from tests.actor.calls import CALLS, REPORTS
from tests.jobs import RunMarathon
from tests.support import counted, load_job, wait_for


def test_each_report_reaches_the_store(run_job, store):
    """Viewers see it a moment later, whichever call makes it, first and again."""

    def run(job_state: JobState) -> None:
        for name, (call, read) in CALLS.items():
            for _ in range(2):
                call(job_state)
                reported = read(job_state)

                def is_stored(read: Any = read, reported: Any = reported) -> bool:
                    return bool(read(load_job(store, job_state.uuid)) == reported)

                wait_for(is_stored)
            assert reported, name

    run_job(run)


@pytest.mark.promise("called-actor-needs-no-store")
def test_job_reads_what_it_has_set(job_state):
    """The latest message counts, and None removes it. The log keeps the last 20 lines,
    each of 200 characters.
    """
    job_state.set_message("a")
    assert job_state.message == "a"
    job_state.set_message(None)
    assert job_state.message is None
    for i in range(25):
        job_state.append_log(f"{i:02}" + "ü" * 300)
    assert [line[:2] for line in job_state.log] == [f"{i:02}" for i in range(5, 25)]
    assert {len(line) for line in job_state.log} == {200}


def test_every_report_is_kept_for_tests():
    """A detached JobState keeps all in order, repeats too, and log lines as shown."""
    job_state = detached(JobState)
    for value in [1, 2, 2, [4]]:
        job_state.set_progress_metric("a", value)
    job_state.set_progress_metrics(b=None, c=2)
    job_state.increment_progress_metric("c")
    job_state.set_progress(1)
    for _ in range(2):
        job_state.set_progress(1, 3, "rows", "Reading")
    job_state.set_message(None)
    job_state.append_log("line " + "ü" * 300)
    with job_state.phase("Reading", percent=30):
        list(job_state.track("ab", unit="rows"))
    assert values(job_state, "a") == [1, 2, 2, [4]]
    message = ("message", "Reading")
    assert history(job_state) == [
        *[("metric", "a", value) for value in [1, 2, 2, [4]]],
        *[("metric", "b", None), ("metric", "c", 2), ("metric", "c", 3)],
        ("progress", 1, None, None),
        *[("progress", 1, 3, "rows"), message] * 2,
        ("message", None),
        ("log", "line " + "ü" * 195),
        ("phase", "Reading", 30),
        *[("progress", done, 2, "rows") for done in range(3)],
    ]


def test_job_that_has_ended_takes_nothing(run_job):
    """A thread that outlives it is told so at each call. Viewers see no change."""
    received: list[JobState] = []

    def run(job_state: JobState) -> None:
        job_state.set_progress_metric("a", 5)
        job_state.set_progress(1, 2, "rows")
        received.append(job_state)

    run_job(run)
    (ended,) = received
    for call in REPORTS.values():
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^The job has ended"):
                call(ended)
    with pytest.raises(RuntimeError, match=r"^The job has ended"):
        ended.set_progress(2, 2, "rows")
    assert ended.progress_metrics == {"a": 5}
    assert counted(ended.progress) == (1, 2, "rows")
    assert (ended.message, ended.log) == (None, [])
    assert ended.flush()


@pytest.mark.promise("only-the-running-job-reports")
def test_job_that_was_loaded_takes_nothing(store):
    """Each call says so. Nor does it run again by itself, since it knows no broker."""
    state = put_job(store, RunMarathon, metrics={"miles_run": 12}, message="Running")
    for call in [*REPORTS.values(), lambda job_state: job_state.flush()]:
        with pytest.raises(RuntimeError, match=r"was loaded from a store\. Only a"):
            call(state)
    assert state.progress_metrics == {"miles_run": 12}
    assert (state.progress, state.message, state.log) == (None, "Running", [])
    with pytest.raises(RuntimeError, match=r"pyramid_jobstate\.rerun\(store, broker"):
        state.rerun()


def test_running_job_cannot_cancel_or_delete_itself(job_state):
    """Only who has loaded a job can: a running one ends with an exception."""
    for call in (job_state.cancel, job_state.delete):
        with pytest.raises(RuntimeError, match="Only a JobState loaded from a store"):
            call()
