"""What only operators read: counts, workers, inspections, logs, and where a job is."""

import datetime
import enum
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import dramatiq.broker
import pytest
from dramatiq.brokers.stub import StubBroker
from webtest import TestApp

from pyramid_jobstate import Batch, JobState, JobStateMiddleware
from pyramid_jobstate.testing import away, pass_time, put_batch, put_job
from tests.jobs import RunMarathon, job_actor, make_broker, wait_until, working
from tests.running import Runs
from tests.store.jobs import Diary
from tests.support import STATUSES, key_of, wait_for, write
from tests.trips import counting_trips
from tests.web.minutes import Minutes, OpenMinutes, log, take_minutes
from tests.web.operating import KEEPER, OPERATOR, Blister, act, put
from tests.web.paging import shape_of
from tests.web.test_pages_texts import HOSTILE
from tests.web.visits import Refusing
from tests.webapp import ADMIN, ask, get, make_request, queued
from tests.worker.floors import idle_actor

#: A text that looks like HTML.
SECRET = "</script><img src=x onerror=alert(1)>hunter2\x00\u2028"


def test_counts_of_all_jobs_and_of_a_kind(operated, store):
    """An operator reads the counts of all kinds or of one, and fresh ones on demand."""
    for status in "queued", "working", "error":
        put_job(store, RunMarathon, status, owner="alice")
    for status in "error", "success":
        put_job(store, Diary, status, owner="alice")
    put_batch(store, Batch, ["success"])
    pass_time(store, 1)
    path, nothing = "/job_state/counts", dict.fromkeys(STATUSES, 0)
    for query, expected in (
        ("", {"queued": 1, "working": 1, "error": 2, "success": 2}),
        ("?members=1", {"queued": 1, "working": 1, "error": 2, "success": 3}),
        ("?kind=Diary", {"error": 1, "success": 1}),
        ("?kind=actor:Diary", {}),
        ("?kind=a%00%0d%0a*&_LOCALE_=de", {}),
    ):
        found = get(operated, path + query, OPERATOR).json
        assert found.pop("counts") == nothing | expected, query
        names = [f"class:{name}" for name in ("Batch", "Diary", "JobState")]
        assert found.pop("kinds") == [*names, "class:RunMarathon"]
        assert found.keys() == {"oldest_wait", "recent_wait"}
        known = [found["oldest_wait"] is not None, found["recent_wait"] is not None]
        assert known == ["queued" in expected, bool(expected)]
    response = get(operated, path, OPERATOR)
    assert response.headers["Cache-Control"] == "private, no-store"
    tag = response.headers["ETag"]
    assert get(operated, path, OPERATOR, If_None_Match=tag).status_code == 304
    put_job(store, Diary, "error")
    path, header = f"{path}?kind=Diary", {"Cache-Control": "no-cache"}
    assert get(operated, path, OPERATOR).json["counts"]["error"] == 1
    assert get(operated, path, OPERATOR, **header).json["counts"]["error"] == 2


@pytest.mark.promise("operators-see-more")
def test_inspect_tells_all_of_an_error(operated, marathons):
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


def test_inspect_names_the_actor_and_the_queue(operated, store, marathons):
    """The queue is that of the message, or if nobody knows it that of the actor."""
    broker, actor = marathons.broker, "run_marathon"

    def told(uuid: str) -> Any:
        found = get(operated, f"/job_state/{uuid}/inspect", OPERATOR).json
        return found["actor"], found["queue"]

    assert told(put_batch(store, Batch, ["error"]).uuid) == (None, None)
    # Before a worker has run: it would consume what is declared after its end.
    broker.declare_queue("night")
    for is_forgotten, runs_in in (False, "night"), (True, "default"):
        message = marathons.run_marathon.message().copy(queue_name="night")
        uuid = message.message_id
        broker.enqueue(message, delay=100)
        assert told(uuid) == (actor, "night")
        marathons.wait_for(uuid, "error")
        if is_forgotten:
            store.client.hdel(key_of(store, uuid), "queue")
            assert told(uuid) == (actor, None)
        act(operated, f"/job_state/{uuid}/rerun")
        assert [m.message_id for m in queued(broker.client, runs_in)] == [uuid]
        assert told(uuid) == (actor, runs_in)
        marathons.wait_for(uuid, "error")


def test_inspect_says_why_a_job_cannot_run_again(operated, store, marathons):
    """The reason is the one that running it again would give."""
    (job,) = put(store, "alice", cls=RunMarathon, status="error")
    failed = put_job(store, RunMarathon, "error").uuid

    def reason(job: str) -> Any:
        found = get(operated, f"/job_state/{job}/inspect", OPERATOR).json
        assert found["repeatable"] is (found["reason"] is None)
        return found["reason"]

    marathons.broker.add_middleware(Refusing())
    assert reason(job) is None
    del marathons.broker.actors["run_marathon"]
    assert reason(job) == "The broker does not know the actor 'run_marathon'."
    assert reason(failed) == "The store does not hold its message."
    for uuid in job, failed:
        response = act(operated, f"/job_state/{uuid}/rerun")
        assert (response.status_code, response.json) == (410, {"error": reason(uuid)})
    dramatiq.broker.global_broker = StubBroker()
    assert "has no JobStateMiddleware" in reason(job)
    dramatiq.broker.global_broker = None
    assert reason(job) == "This process has no Dramatiq broker."


# Workers.


def test_operators_read_who_works(redis_url, operated, store, visit):
    """Those who may list all jobs read of workers, in JSON and on pages."""

    def line(user: str = OPERATOR, query: str = "") -> list[str]:
        return visit(f"/job_state/{query}", user).texts(".jobstate-workers")

    put_job(store, status="queued", owner="alice")
    assert line() == ["1 job waits, and no worker has been heard of"]
    runs = Runs(make_broker(redis_url, JobStateMiddleware(heartbeat=0.05)))
    runs.actor(RunMarathon)
    with working(runs.broker):
        (worker,) = wait_for(store.workers)
        (found,) = get(operated, "/job_state/workers", ADMIN).json["workers"]
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
        for path, user, status in (
            ("/job_state/workers", KEEPER, 403),
            ("/job_state/workers?kind=a", OPERATOR, 400),
            ("/jobs/workers", OPERATOR, 200),
        ):
            assert get(operated, path, user).status_code == status
        job = runs.start()
        path = f"/job_state/{job.uuid}/"
        assert get(operated, f"{path}inspect", KEEPER).json["worker"] == worker.name
        said = visit(path, KEEPER).texts(".jobstate-worker")
        assert said == [f"Worker: {worker.name}"]
        wait_for(lambda: store.workers()[0].busy)
        assert line() == ["1 worker, 1 of 4 threads busy with tracked jobs"]
        assert line("alice") == line(query="?owner=alice") == []
        job.succeed()
    silent = make_broker(redis_url, JobStateMiddleware(heartbeat=3600))
    idle_actor(silent)
    with working(silent):
        wait_for(store.workers)
        pass_time(store, 16)
        # It may come back.
        assert line() == ["1 worker has not been heard of lately"]


def test_page_of_all_jobs_says_how_late_they_are(store, visit):
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


# Where a job is.


def test_inspectors_ask_where_a_job_is(operated, runs, visit):
    """A button asks, and the answer stands on the page, whatever was written."""
    job = runs.start()
    path, where = f"/job_state/{job.uuid}/", "[data-jobstate=where]"
    page = visit(path, KEEPER)
    assert page.texts("[data-jobstate=ask-where]") == ["Where is it now?"]
    assert not page.has(where)

    def read() -> Any:
        return get(operated, f"{path}inspect", KEEPER).json["where"]

    assert read() is None
    asked = act(operated, f"{path}stack", KEEPER)
    assert asked.status_code == 202
    unanswered = dict.fromkeys(("taken_at", "worker", "thread", "memory", "stack"))
    asked_at = asked.json["where"]["asked_at"]
    assert asked.json == {"where": {"asked_at": asked_at, **unanswered}}
    wait_for(lambda: read()["taken_at"])
    found = read()
    assert found["taken_at"] >= found["asked_at"] == asked_at
    assert "in live\n" in found["stack"] and found["memory"] > 1_000_000
    # Within a second, the answer stays.
    assert act(operated, f"{path}stack", KEEPER).json == {"where": found}

    page = visit(path, KEEPER)
    at = datetime.datetime.fromisoformat(found["taken_at"])
    assert page.texts(f"{where} time") == [f"{at:%b %-d, %Y, %-I:%M %p} UTC"]
    note = f"{found['thread']} · {found['memory'] / 1e6:.0f} MB"
    assert page.texts(".jobstate-where") == [note]
    assert page.one("[data-jobstate=stack]").get_text().count("in live") == 1
    assert page.texts("[data-jobstate=stack] summary")

    client, key = runs.store.client, f"{{jobstate:{job.uuid}}}:where"
    hostile = "<script>alert(1)</script> \x00 \u202e"
    client.hset(key, mapping={"stack": hostile, "thread": hostile})
    page = visit(path, KEEPER)
    assert "<script>alert" not in page.response.text
    assert "<script>alert(1)</script>" in page.one("[data-jobstate=stack]").get_text()


def test_page_says_that_nobody_answers(operated, store, visit):
    """After five seconds a worker is not expected to answer any more."""
    job = put_job(store)
    path = f"/job_state/{job.uuid}/"
    act(operated, f"{path}stack", KEEPER)

    def says() -> list[str]:
        return visit(path, KEEPER).texts("[data-jobstate=where]")

    assert says() == ["Asking the worker…"]
    pass_time(store, 5)
    (no_answer,) = says()
    assert no_answer.startswith("The worker did not answer: it is paused,")
    later = time.time_ns() // 1_000_000 + 60_000
    write(store, job, started=later)
    assert says() == []
    write(store, job, started=1)
    assert says() == [no_answer]
    write(store, job, status="success")
    assert says() == []


def test_job_that_cannot_run_is_not_asked(operated, store, visit):
    """A job that was never sent, and a batch, run nowhere, so nobody is asked."""
    job = put_job(store, status="queued")
    write(store, job.uuid, status="sending")
    pass_time(store, 3600)
    assert [job.status for job in store.load_many([job.uuid]) if job] == ["stalled"]
    for uuid in job.uuid, put_batch(store, Batch, ["working"]).uuid:
        assert act(operated, f"/job_state/{uuid}/stack").status_code == 409
        assert not visit(f"/job_state/{uuid}/").has("[data-jobstate=ask-where]")


# GET …/log, and what the page of a job shows of its log.


#: Runs a job of Alice's, and returns its path.
Log = Callable[..., str]


@pytest.fixture
def logged(redis_url: str) -> Log:
    return lambda *args: f"/job_state/{take_minutes(redis_url, *args)}"


def texts(app: TestApp, path: str, user: str | None, **headers: str) -> list[str]:
    answer = get(app, path, user, **headers)
    assert answer.status_code == 200
    return [line["text"] for line in answer.json["lines"]]


def test_operators_read_what_a_job_logged(operated, logged):
    """Each line has its number and time, and its level and logger if captured."""
    path = f"{logged()}/log"
    answer = get(operated, path, KEEPER)
    lines = answer.json["lines"]
    assert all(line.pop("time")[-1] == "Z" for line in lines)
    common = {"attempt": 1}
    captured = {"logger": "tests.minutes", **common}
    own = {"level": None, "logger": None, **common}
    assert lines == [
        {"number": 1, "text": "secret", "level": "WARNING", **captured},
        {"number": 2, "text": "plain", **own},
        {"number": 3, "text": "more", "level": "ERROR", **captured},
    ]
    assert answer.headers["Cache-Control"] == "private, no-store"
    again = get(operated, path, KEEPER, If_None_Match=answer.headers["ETag"])
    assert again.status_code == 304
    assert texts(operated, f"{path}?after=1", KEEPER) == ["plain", "more"]
    assert texts(operated, f"{path}?after=3", KEEPER) == []
    mounted = path.replace("/job_state/", "/jobs/")
    assert texts(operated, mounted, OPERATOR) == ["secret", "plain", "more"]


def test_level_may_be_of_an_enum(operated, logged):
    """Such as one whose members are numbers with names of their own."""

    class Severity(int, enum.Enum):
        GRAVE = logging.ERROR

    class GraveMinutes(JobState):
        log_level = Severity.GRAVE

    assert texts(operated, f"{logged(GraveMinutes)}/log", KEEPER) == ["plain", "more"]


def test_class_may_open_its_log(operated, store, logged):
    """Everybody who may view the job then reads its log, and nobody else does."""
    job = logged(OpenMinutes)
    path = f"{job}/log"
    for user in "alice", ADMIN:
        assert texts(operated, path, user) == ["secret", "plain", "more"]
    assert get(operated, path, "bob").status_code == 403
    write(store, job.rpartition("/")[2], kind="NeverHeardOf")
    assert texts(operated, path, ADMIN) == ["plain"]
    assert texts(operated, path, OPERATOR) == ["secret", "plain", "more"]


def test_log_that_is_not_there(operated, store, logged):
    """If a class captures nothing, nobody asks. A deleted job has no log any more."""
    path = f"/job_state/{put_job(store, log=['plain']).uuid}"
    assert get(operated, path, OPERATOR).status_code == 200
    with counting_trips() as trips:
        assert texts(operated, f"{path}/log", OPERATOR) == []
    assert len(trips) == 1
    job = logged()
    assert act(operated, job, OPERATOR, "DELETE").status_code == 204
    assert get(operated, f"{job}/log", OPERATOR).status_code == 404
    assert store.client.keys("*:log") == []


def test_bad_requests_for_a_log(operated, store):
    """Other parameters, words for numbers, other methods; and a store that is away."""
    path = f"/job_state/{put_job(store).uuid}/log"
    for query in "after=x", "after=-1", "after=1&after=2", "level=INFO", "after=9" * 9:
        assert get(operated, f"{path}?{query}", OPERATOR).status_code == 400, query
    refused = ask(operated, "POST", path, OPERATOR)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
    with away(make_request(operated.app).job_states.store):
        assert get(operated, path, OPERATOR).status_code == 503
    # The next test shares the application, which logs the end of the outage.
    assert get(operated, path, OPERATOR).status_code == 200


def test_page_shows_the_log(visit, logged, store):
    """Operators see all of it, and viewers what the actor appended."""
    shown, element = "[data-jobstate=lines]", "job-state li"
    page = visit(logged(), KEEPER)
    numbers = [line["data-number"] for line in page.all(f"{shown} li")]
    assert numbers == ["1", "2", "3"]
    assert page.texts(f"{shown} span") == ["secret", "plain", "more"]
    assert page.texts(f"{shown} b") == ["WARNING", "ERROR"]
    assert {b["title"] for b in page.all(f"{shown} b")} == {"tests.minutes"}
    assert len(page.all(f"{shown} time")) == 3
    assert not page.one("job-state").has_attr("log") and not page.has("job-state ol")

    def say(job_state: JobState) -> None:
        job_state.append_log("plain")
        for _ in range(80):
            log.warning("secret" * 200)

    plain = put_job(store, owner="alice", log=["plain"]).uuid
    for path in logged(Minutes, say), f"/job_state/{plain}":
        page = visit(path, "alice")
        assert page.one("job-state").has_attr("log")
        assert page.texts(element) == ["plain"]
        assert not page.has("[data-jobstate=log]")
    page = visit(logged(OpenMinutes), "alice")
    assert page.texts(f"{shown} span") == ["secret", "plain", "more"]
    empty = put_job(store, Minutes).uuid
    page = visit(f"/job_state/{empty}", KEEPER)
    assert page.one("[data-jobstate=log]").has_attr("hidden")


def test_job_that_was_sent_by_a_newer_version(redis_url, visit):
    """Its class captures now, which its worker does not know yet: the lines that the
    job appends are shown as before.
    """

    def version(level: str | None) -> Any:
        class Rolled(JobState):
            log_level = level

        @job_actor(broker=make_broker(redis_url), job_state=Rolled)
        def roll(*, job_state: JobState) -> None:
            job_state.append_log("plain")

        return roll

    newer, older = version("INFO"), version(None)
    message = newer.send()
    with working(older.broker):
        wait_until(older.broker, message, "success")
    page = visit(f"/job_state/{message.message_id}", KEEPER)
    assert page.one("job-state").has_attr("log")
    assert page.texts("job-state li") == ["plain"]
    assert not page.has("[data-jobstate=lines]")


def test_hostile_lines_stay_text(visit, logged):
    """Texts and names of loggers add no markup to the page."""

    def visited(text: str) -> Any:
        def say(job_state: Any) -> None:
            logging.getLogger(text).warning(text)
            job_state.append_log(text)

        return visit(logged(Minutes, say), KEEPER)

    page = visited(HOSTILE)
    assert shape_of(page) == shape_of(visited("x"))
    lines = [s.get_text() for s in page.all("[data-jobstate=lines] span")]
    assert lines == [HOSTILE] * 2
    assert page.one("[data-jobstate=lines] b")["title"] == HOSTILE[:100]
