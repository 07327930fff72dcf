"""`pjobs … cancel`."""

import json
from collections.abc import Callable

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.cli import act, ids
from tests.operated import Operator, end, put, run
from tests.support import UUID, key_of, load_job


def test_jobs_are_cancelled(redis_url: str, store: JobStore) -> None:
    """A queued job is cancelled at once, a running one is being stopped, and each has
    a line; a prefix is enough.
    """
    queued, working = put(store, "queued"), put(store)
    ran = run("--url", redis_url, "cancel", queued.uuid[:13], working.uuid)
    assert ran == (0, [f"{queued.uuid} cancelled", f"{working.uuid} cancelling"], [])
    assert load_job(store, queued.uuid).status == "cancelled"
    assert load_job(store, working.uuid).status == "cancelling"


def test_jobs_that_cannot_be_cancelled(pjobs: Operator, store: JobStore) -> None:
    """A job that is over or unknown has a line on stderr; the others are cancelled,
    and the exit code is 1.
    """
    done, queued = put(store, "success"), put(store, "queued")
    ran = pjobs("cancel", done.uuid, UUID, queued.uuid, queued.uuid)
    assert ran.code == 1
    assert ran.out == [f"{queued.uuid} cancelled"]
    assert ran.err == [
        f"pjobs: The job {done.uuid} is already over: success.",
        f"pjobs: The job {UUID} is unknown, or has expired.",
    ]


def test_names_of_one_job_are_one(pjobs: Operator, store: JobStore) -> None:
    """A job that is named in full and by its beginning is cancelled once, and refused
    once.
    """
    queued, done = put(store, "queued"), put(store, "success")
    ran = pjobs("cancel", queued.uuid, queued.uuid[:13], done.uuid[:13], done.uuid)
    assert ran == (
        1,
        [f"{queued.uuid} cancelled"],
        [f"pjobs: The job {done.uuid} is already over: success."],
    )


def test_json_has_an_object_a_job(pjobs: Operator, store: JobStore) -> None:
    """With --json, each job has an object, whether it was cancelled or not."""
    done, queued = put(store, "error"), put(store, "queued")
    ran = pjobs("cancel", "--json", done.uuid, queued.uuid)
    assert ran.code == 1
    assert [json.loads(line) for line in ran.out] == [
        {
            "uuid": done.uuid,
            "done": False,
            "dry_run": False,
            "error": f"The job {done.uuid} is already over: error.",
        },
        {"uuid": queued.uuid, "done": True, "dry_run": False, "status": "cancelled"},
    ]


def test_a_dry_run_changes_nothing(
    pjobs: Operator, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """--dry-run says what would be done, and what could not."""
    queued, done = put(store, "queued"), put(store, "success")
    ran = pjobs("cancel", "--dry-run", queued.uuid, done.uuid)
    assert ran.code == 1
    assert ran.out == [f"{queued.uuid} would be cancelled, is queued"]
    assert len(ran.err) == 1
    assert load_job(store, queued.uuid).status == "queued"
    assert said() == []


def test_a_job_that_ends_first(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the look and the cancel is already over."""
    job = put(store)

    def find(store: JobStore, name: str) -> JobState:
        found = ids.find(store, name)
        end(store, found)
        return found

    monkeypatch.setattr(act, "find", find)
    ran = pjobs("cancel", job.uuid)
    assert ran.code == 1
    assert ran.err == [f"pjobs: The job {job.uuid} is already over: success."]


@pytest.mark.parametrize("status", ["queued", "success"])
def test_a_record_that_goes(
    pjobs: Operator,
    store: JobStore,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    """A record that expires right after the cancel leaves its outcome."""
    job = put(store, status)
    cancel = JobState.cancel

    def find(store: JobStore, name: str) -> JobState:
        found = ids.find(store, name)
        if found.is_finished:
            client.delete(key_of(store, name))
        return found

    def cancel_and_go(job_state: JobState) -> bool:
        try:
            return cancel(job_state)
        finally:
            client.delete(key_of(store, job_state.uuid))

    monkeypatch.setattr(act, "find", find)
    monkeypatch.setattr(JobState, "cancel", cancel_and_go)
    ran = pjobs("cancel", job.uuid)
    if status == "queued":
        assert ran == (0, [f"{job.uuid} cancelled"], [])
    else:
        assert ran == (1, [], [f"pjobs: The job {job.uuid} is already over."])


def test_cancels_are_logged(
    pjobs: Operator, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """The log has who cancelled what."""
    job = put(store, "queued")
    pjobs("cancel", job.uuid)
    assert said() == [f"ops (pjobs) cancelled the job {job.uuid}."]
