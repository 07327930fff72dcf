"""GET …/workers, and what operators read of a job's worker."""

from __future__ import annotations

from typing import Any

import pytest
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import Gate, RunMarathon, job_actor, make_broker, working
from tests.store.jobs import Diary
from tests.support import wait_for
from tests.web.operating import KEEPER, OPERATOR
from tests.web.paging import Visiting
from tests.webapp import ADMIN, get
from tests.worker.floors import idle_actor


@pytest.fixture
def marathon(redis_url: str) -> Any:
    """An actor of Alice's whose job waits for a gate, and the gate."""
    broker = make_broker(redis_url, JobStateMiddleware(heartbeat=0.05))
    gate = Gate()

    @job_actor(broker=broker)
    def run_marathon(*, job_state: RunMarathon) -> None:
        gate.wait()

    return run_marathon, gate


def test_operators_read_the_workers(
    operated: TestApp, store: JobStore, marathon: Any
) -> None:
    """Who may list all jobs gets what the store knows."""
    run_marathon, _ = marathon
    path = "/job_state/workers"
    assert get(operated, path, OPERATOR).json == {"workers": []}
    with working(run_marathon.broker):
        (worker,) = wait_for(store.workers)
        (found,) = get(operated, path, ADMIN).json["workers"]
        assert found.pop("seen_at") >= found.pop("started_at")
        assert found.pop("memory") > 0
        assert found == {
            "id": worker.id,
            "host": worker.host,
            "pid": worker.pid,
            "is_silent": False,
            "threads": 4,
            "busy": 0,
            "queues": ["default"],
            "versions": worker.versions,
        }
        assert get(operated, path, KEEPER).status_code == 403
        assert get(operated, f"{path}?kind=a", OPERATOR).status_code == 400
        assert get(operated, "/jobs/workers", OPERATOR).json["workers"]


def test_worker_of_a_job_is_for_operators(
    operated: TestApp, store: JobStore, visit: Visiting, marathon: Any
) -> None:
    """Who may inspect a job reads it, on its page, too."""
    run_marathon, gate = marathon
    with working(run_marathon.broker):
        uuid = run_marathon.send().message_id
        gate.wait_for_job()
        (worker,) = store.workers()
        path = f"/job_state/{uuid}/"
        assert get(operated, f"{path}inspect", KEEPER).json["worker"] == worker.name
        said = visit(path, KEEPER).texts(".jobstate-worker")
        assert said == [f"Worker: {worker.name}"]
        gate.open()
    queued = put_job(store, status="queued").uuid
    assert get(operated, f"/job_state/{queued}/inspect", KEEPER).json["worker"] is None


def test_page_of_all_jobs_says_who_works(
    redis_url: str, store: JobStore, visit: Visiting, marathon: Any
) -> None:
    """Or that nobody does, if jobs wait. Who sees only their own jobs reads nothing."""
    run_marathon, gate = marathon

    def line(user: str = OPERATOR, query: str = "") -> str | None:
        found = visit(f"/job_state/{query}", user).texts(".jobstate-workers")
        return found[0] if found else None

    put_job(store, status="queued", owner="alice")
    assert line() == "1 job waits, and no worker has been heard of"
    assert line("alice") is None
    with working(run_marathon.broker):
        run_marathon.send()
        gate.wait_for_job()
        wait_for(lambda: store.workers() and store.workers()[0].busy)
        assert line() == "1 worker, 1 of 4 threads busy with tracked jobs"
        assert line(query="?owner=alice") is None
        gate.open()
    silent = make_broker(redis_url, JobStateMiddleware(heartbeat=3600))
    idle_actor(silent)
    with working(silent):
        wait_for(store.workers)
        pass_time(store, 16)
        # It may come back.
        assert line() == "1 worker has not been heard of lately"


def test_page_of_all_jobs_says_how_late_they_are(
    store: JobStore, visit: Visiting
) -> None:
    """Of all kinds, or of the one that is listed, but not of one owner's jobs."""

    def line(query: str = "", user: str = OPERATOR) -> list[str]:
        return visit(f"/job_state/{query}", user).texts(".jobstate-waits")

    put_job(store, RunMarathon, owner="alice")
    pass_time(store, 180)
    put_job(store, Diary, "queued", owner="alice")
    pass_time(store, 120)
    first = "The oldest job in the queue has waited 2 min"
    last = "Jobs that started lately had waited 0 sec"
    assert line() == [f"{first} · {last}"]
    assert line("?kind=Diary") == [first]
    assert line("?kind=RunMarathon") == [last]
    assert line("?kind=Batch") == line("?owner=alice") == line(user="alice") == []
