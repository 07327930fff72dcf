"""POST …/stack, and what operators read of where a job is."""

from __future__ import annotations

import datetime
from typing import Any

from webtest import TestApp

from pyramid_jobstate import Batch, JobStore
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.running import Runs
from tests.support import wait_for, write
from tests.web.operating import KEEPER, OPERATOR, act
from tests.web.paging import Visiting
from tests.webapp import get


def answer(app: TestApp, uuid: str) -> Any:
    """Return where a job is, as who may inspect it reads it, once that is known."""

    def where() -> Any:
        found = get(app, f"/job_state/{uuid}/inspect", KEEPER).json["where"]
        return found if found["taken_at"] else None

    return wait_for(where)


def test_inspectors_ask_where_a_job_is(
    operated: TestApp, store: JobStore, runs: Runs
) -> None:
    """They read the answer beside all else that is theirs to read. What others read
    says nothing of it.
    """
    job = runs.start()
    path = f"/job_state/{job.uuid}"
    assert get(operated, f"{path}/inspect", KEEPER).json["where"] is None
    asked = act(operated, f"{path}/stack", KEEPER)
    assert asked.status_code == 202
    unanswered = dict.fromkeys(("taken_at", "worker", "thread", "memory", "stack"))
    asked_at = asked.json["where"]["asked_at"]
    assert asked.json == {"where": {"asked_at": asked_at, **unanswered}}
    where = answer(operated, job.uuid)
    assert where["asked_at"] == asked_at
    assert where["taken_at"] >= asked_at and where["memory"] > 1_000_000
    assert "in live\n" in where["stack"] and where["thread"]
    # Within a second, the answer stays.
    assert act(operated, f"{path}/stack", KEEPER).json == {"where": where}
    for user in "alice", OPERATOR, KEEPER:
        for read in path, f"/job_state?uuid={job.uuid}", "/job_state?owner=alice":
            found = get(operated, read, user)
            assert "in live" not in found.text and "asked_at" not in found.text


def test_job_that_has_ended_is_not_asked(operated: TestApp, runs: Runs) -> None:
    """What it said before stays to be read. It goes with the job."""
    job = runs.start()
    path = f"/job_state/{job.uuid}"
    act(operated, f"{path}/stack", KEEPER)
    where = answer(operated, job.uuid)
    job.end()
    refused = act(operated, f"{path}/stack", KEEPER)
    assert (refused.status_code, refused.json) == (
        409,
        {"error": "The job does not run."},
    )
    assert answer(operated, job.uuid) == where
    assert act(operated, path, KEEPER, "DELETE").status_code == 204
    assert act(operated, f"{path}/stack", KEEPER).status_code == 404


def test_page_says_where_a_job_is(
    operated: TestApp, store: JobStore, runs: Runs, visit: Visiting
) -> None:
    """While it runs, the page has a button that asks. The frames of libraries are
    folded. Its owner sees neither.
    """
    job = runs.start()
    path = f"/job_state/{job.uuid}/"
    page = visit(path, KEEPER)
    assert page.texts("[data-jobstate=ask-where]") == ["Where is it now?"]
    assert not page.has("[data-jobstate=where]")
    act(operated, f"/job_state/{job.uuid}/stack", KEEPER)
    where = answer(operated, job.uuid)
    page = visit(path, KEEPER)
    at = datetime.datetime.fromisoformat(where["taken_at"])
    assert page.texts("[data-jobstate=where] time") == [
        f"{at:%b %-d, %Y, %-I:%M %p} UTC"
    ]
    (note,) = page.texts(".jobstate-where")
    assert note == f"{where['thread']} · {where['memory'] / 1e6:.0f} MB"
    assert page.one("[data-jobstate=stack]").get_text().count("in live") == 1
    assert page.texts("[data-jobstate=stack] summary")
    for part in "where", "ask-where":
        assert not visit(path, "alice").has(f"[data-jobstate={part}]")


def test_page_says_that_nobody_answers(
    operated: TestApp, store: JobStore, visit: Visiting, runs: Runs
) -> None:
    """After five seconds a worker is not expected to answer any more. Of a job that has
    ended without an answer, nothing is said.
    """
    job = runs.start()
    # This worker does not run it.
    write(store, job.uuid, run="another")
    act(operated, f"/job_state/{job.uuid}/stack", KEEPER)
    path = f"/job_state/{job.uuid}/"

    def says() -> list[str]:
        return visit(path, KEEPER).texts("[data-jobstate=where]")

    assert says() == ["Asking the worker…"]
    pass_time(store, 5)
    no_answer = (
        "The worker did not answer: it is paused, holds the interpreter, has lost the "
        "store, or is older."
    )
    assert says() == [no_answer]
    write(store, job.uuid, status="success")
    assert says() == []


def test_stack_is_text(
    operated: TestApp, store: JobStore, runs: Runs, visit: Visiting
) -> None:
    """Whatever the names and the sources of its functions are."""
    job = runs.start()
    act(operated, f"/job_state/{job.uuid}/stack", KEEPER)
    answer(operated, job.uuid)
    key = f"{{jobstate:{job.uuid}}}:where"
    hostile = "<script>alert(1)</script> \x00 \u202e"
    store.client.hset(key, mapping={"stack": hostile, "thread": hostile})
    page = visit(f"/job_state/{job.uuid}/", KEEPER)
    assert "<script>alert" not in page.response.text
    assert "<script>alert(1)</script>" in page.one("[data-jobstate=stack]").get_text()
    # What another program has written is skipped.
    store.client.hdel(key, "stack")
    assert visit(f"/job_state/{job.uuid}/", KEEPER).texts("[data-jobstate=where]")
    store.client.delete(key)
    store.client.set(key, "text")
    assert get(operated, f"/job_state/{job.uuid}/inspect", KEEPER).json["where"] is None


def test_job_that_was_never_sent_is_not_asked(
    operated: TestApp, store: JobStore, visit: Visiting
) -> None:
    """It shows as stalled, but no worker runs it."""
    job = put_job(store, status="queued")
    write(store, job.uuid, status="sending")
    pass_time(store, 3600)
    assert [job.status for job in store.load_many([job.uuid]) if job] == ["stalled"]
    assert act(operated, f"/job_state/{job.uuid}/stack").status_code == 409
    assert not visit(f"/job_state/{job.uuid}/").has("[data-jobstate=ask-where]")


def test_batch_has_no_place(
    operated: TestApp, store: JobStore, visit: Visiting
) -> None:
    """Its jobs have."""
    batch = put_batch(store, Batch, ["working"])
    assert act(operated, f"/job_state/{batch.uuid}/stack").status_code == 409
    assert not visit(f"/job_state/{batch.uuid}/").has("[data-jobstate=ask-where]")


def test_answer_of_an_earlier_run_is_not_shown(
    operated: TestApp, store: JobStore, runs: Runs, visit: Visiting
) -> None:
    """The job was retried, and is elsewhere now."""
    job = runs.start(options={"max_retries": 1, "min_backoff": 1, "max_backoff": 1})
    act(operated, f"/job_state/{job.uuid}/stack", KEEPER)
    answer(operated, job.uuid)
    job.fail(KeyError())
    assert job.report(miles=1)
    path = f"/job_state/{job.uuid}"
    assert get(operated, f"{path}/inspect", KEEPER).json["where"] is None
    assert not visit(f"{path}/", KEEPER).has("[data-jobstate=where]")
    act(operated, f"{path}/stack", KEEPER)
    assert answer(operated, job.uuid)
