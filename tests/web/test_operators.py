"""GET …/counts and …/inspect: what only operators read."""

from __future__ import annotations

import datetime
import os
from typing import Any

import dramatiq.broker
from dramatiq.brokers.stub import StubBroker
from webtest import TestApp

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.jobs import RunMarathon, job_actor
from tests.store.jobs import Diary
from tests.support import STATUSES, key_of
from tests.web.operating import OPERATOR, Blister, Marathons, act, put
from tests.web.visits import Refusing
from tests.webapp import get, queued

#: What a viewer must not read. Part of it looks like HTML.
SECRET = "</script><img src=x onerror=alert(1)>hunter2\x00\u2028"


def test_counts_of_all_jobs_and_of_a_kind(operated: TestApp, store: JobStore) -> None:
    """An operator reads the counts of all kinds or of one, and fresh ones on demand."""
    for status in "queued", "working", "error":
        put_job(store, RunMarathon, status, owner="alice")
    for status in "error", "success":
        put_job(store, Diary, status, owner="alice")
    put_batch(store, Batch, ["success"])
    pass_time(store, 1)
    kinds = ["class:Batch", "class:Diary", "class:JobState", "class:RunMarathon"]
    nothing = dict.fromkeys(STATUSES, 0)
    path = "/job_state/counts"
    for query, expected in (
        ("", {"queued": 1, "working": 1, "error": 2, "success": 2}),
        ("?members=1", {"queued": 1, "working": 1, "error": 2, "success": 3}),
        ("?kind=Diary", {"error": 1, "success": 1}),
        ("?kind=class:Diary&members=1", {"error": 1, "success": 1}),
        ("?kind=actor:Diary", {}),
        ("?kind=Unknown&_LOCALE_=de", {}),
        ("?kind=a%00%0d%0a*", {}),
    ):
        found = get(operated, path + query, OPERATOR).json
        assert found["counts"] == nothing | expected, query
        assert found["kinds"] == kinds
        waits = [found["oldest_wait"], found["recent_wait"]]
        assert [wait is not None for wait in waits] == [
            "queued" in expected,
            bool(expected),
        ]
        assert found.keys() == {"counts", "kinds", "oldest_wait", "recent_wait"}
    response = get(operated, path, OPERATOR)
    assert response.headers["Cache-Control"] == "private, no-cache"
    tag = response.headers["ETag"]
    assert get(operated, path, OPERATOR, If_None_Match=tag).status_code == 304
    put_job(store, Diary, "error")
    path, header = f"{path}?kind=Diary", {"Cache-Control": "no-cache"}
    assert get(operated, path, OPERATOR).json["counts"]["error"] == 1
    assert get(operated, path, OPERATOR, **header).json["counts"]["error"] == 2


def test_inspect_tells_all_of_an_error(operated: TestApp, marathons: Marathons) -> None:
    """An operator reads each parameter, the exception, the traceback and all tries."""
    (job,) = marathons.fail("alice", kwargs={"shoes": SECRET})
    path = f"/job_state/{job}"

    found = get(operated, f"{path}/inspect", OPERATOR).json

    (tried,) = found.pop("tries")
    trace = found.pop("traceback")
    name = f"{Blister.__module__}.Blister"
    error = {"type": name, "message": f"after 26 miles in {SECRET} shoes"}
    params = {"miles": 26, "shoes": SECRET}
    again = {"repeatable": True, "reason": None}
    assert (found.pop("actor"), found.pop("queue")) == ("run_marathon", "default")
    assert found.pop("worker").endswith(f":{os.getpid()}")
    assert found.pop("where") is None
    assert found == {"uuid": job, "params": params, "error": error, **again}
    assert trace.startswith("Traceback (most recent call last):")
    assert "run_marathon" in trace and SECRET in trace
    assert {key: tried.pop(key) for key in error} == error
    times = [datetime.datetime.fromisoformat(tried.pop(k)) for k in [*tried]]
    assert tried == {} and times == sorted(times)
    assert all(time.tzinfo == datetime.UTC for time in times)

    act(operated, f"{path}/rerun")
    marathons.wait_for(job, "error")

    first, second = get(operated, f"{path}/inspect", OPERATOR).json["tries"]
    assert first["ended_at"] <= second["started_at"] <= second["ended_at"]
    assert first["ended_at"].endswith("Z")


def test_inspect_names_the_actor_and_the_queue(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """The queue is that of the message, also while that is delayed, and stays when the
    job runs again. Only if that is not known, to the record or the broker, the job runs
    again in that of its actor, and names it from then on. A batch has neither.
    """
    broker = marathons.broker

    @job_actor(actor_name="mail", broker=broker, max_retries=0, queue_name="mails")
    def mail(*, job_state: JobState) -> None:
        raise Blister

    def told(uuid: str) -> Any:
        found = get(operated, f"/job_state/{uuid}/inspect", OPERATOR).json
        return found["actor"], found["queue"]

    assert told(put_batch(store, Batch, ["error"]).uuid) == (None, None)
    # Before a worker has run: it would consume what is declared after its end.
    broker.declare_queue("night")
    for sent_to, forgotten, runs_in in (
        ("night", None, "night"),
        ("default", None, "default"),
        ("mails", "by the record", "mails"),
        ("night", "by the broker", "mails"),
    ):
        message = mail.message().copy(queue_name=sent_to)
        uuid = message.message_id
        broker.enqueue(message, delay=100)
        assert told(uuid) == ("mail", sent_to)
        marathons.wait_for(uuid, "error")
        if forgotten == "by the record":
            store.client.hdel(key_of(store, uuid), "queue")
            assert told(uuid) == ("mail", None)
        elif forgotten:
            broker.queues.remove(sent_to)
        act(operated, f"/job_state/{uuid}/rerun")
        assert [m.message_id for m in queued(broker.client, runs_in)] == [uuid]
        assert told(uuid) == ("mail", runs_in)
        marathons.wait_for(uuid, "error")


def test_inspect_says_why_a_job_cannot_run_again(
    operated: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """The reason is the one that running it again would give."""
    (job,) = put(store, "alice", cls=RunMarathon, status="error")
    failed = put_job(store, RunMarathon, "error").uuid

    def reason(job: str) -> Any:
        found = get(operated, f"/job_state/{job}/inspect", OPERATOR).json
        assert found["repeatable"] is (found["reason"] is None)
        return found["reason"]

    assert reason(put_job(store, Diary).uuid) == "The job has not failed."
    assert reason(failed) == "The store does not hold its message."
    marathons.broker.add_middleware(Refusing())
    assert reason(job) is None
    del marathons.broker.actors["run_marathon"]
    assert reason(job) == "The broker does not know the actor 'run_marathon'."
    for uuid in job, failed:
        response = act(operated, f"/job_state/{uuid}/rerun")
        assert (response.status_code, response.json) == (410, {"error": reason(uuid)})
    dramatiq.broker.global_broker = StubBroker()
    assert "has no JobStateMiddleware" in reason(job)
    dramatiq.broker.global_broker = None
    assert reason(job) == "This process has no Dramatiq broker."
