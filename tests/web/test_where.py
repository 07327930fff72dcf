"""POST …/stack, and what operators read of where a job is."""

from __future__ import annotations

import datetime
from typing import Any

from webtest import TestApp

from pyramid_jobstate import Batch, JobStore
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.running import Runs
from tests.support import wait_for, write
from tests.web.operating import KEEPER, act
from tests.web.paging import Visiting
from tests.webapp import get


def answer(app: TestApp, uuid: str) -> Any:
    """Return where a job is, as who may inspect it reads it, once that is known."""

    def where() -> Any:
        found = get(app, f"/job_state/{uuid}/inspect", KEEPER).json["where"]
        return found if found["taken_at"] else None

    return wait_for(where)


def test_inspectors_ask_where_a_job_is(operated: TestApp, runs: Runs) -> None:
    """They read the answer beside all else that is theirs to read."""
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


def test_page_says_where_a_job_is(
    operated: TestApp, runs: Runs, visit: Visiting
) -> None:
    """While it runs, the page has a button that asks. Frames of libraries are folded.
    The names and the sources of its functions, and what another program has written,
    may be anything.
    """
    job = runs.start()
    path, where = f"/job_state/{job.uuid}/", "[data-jobstate=where]"
    page = visit(path, KEEPER)
    assert page.texts("[data-jobstate=ask-where]") == ["Where is it now?"]
    assert not page.has(where)
    act(operated, f"{path[:-1]}/stack", KEEPER)
    found = answer(operated, job.uuid)
    page = visit(path, KEEPER)
    at = datetime.datetime.fromisoformat(found["taken_at"])
    assert page.texts(f"{where} time") == [f"{at:%b %-d, %Y, %-I:%M %p} UTC"]
    note = f"{found['thread']} · {found['memory'] / 1e6:.0f} MB"
    assert page.texts(".jobstate-where") == [note]
    assert page.one("[data-jobstate=stack]").get_text().count("in live") == 1
    assert page.texts("[data-jobstate=stack] summary")

    key = f"{{jobstate:{job.uuid}}}:where"
    hostile = "<script>alert(1)</script> \x00 \u202e"
    runs.store.client.hset(key, mapping={"stack": hostile, "thread": hostile})
    page = visit(path, KEEPER)
    assert "<script>alert" not in page.response.text
    assert "<script>alert(1)</script>" in page.one("[data-jobstate=stack]").get_text()
    runs.store.client.hdel(key, "stack")
    assert visit(path, KEEPER).texts(where)
    runs.store.client.delete(key)
    runs.store.client.set(key, "text")
    assert get(operated, f"{path}inspect", KEEPER).json["where"] is None


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
    (no_answer,) = says()
    assert no_answer.startswith("The worker did not answer: it is paused,")
    write(store, job.uuid, status="success")
    assert says() == []


def test_job_that_cannot_run_is_not_asked(
    operated: TestApp, store: JobStore, visit: Visiting
) -> None:
    """One that was never sent shows as stalled, but no worker runs it. A batch has no
    place: its jobs have.
    """
    job = put_job(store, status="queued")
    write(store, job.uuid, status="sending")
    pass_time(store, 3600)
    assert [job.status for job in store.load_many([job.uuid]) if job] == ["stalled"]
    for uuid in job.uuid, put_batch(store, Batch, ["working"]).uuid:
        assert act(operated, f"/job_state/{uuid}/stack").status_code == 409
        assert not visit(f"/job_state/{uuid}/").has("[data-jobstate=ask-where]")
