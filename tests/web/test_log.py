"""GET …/log, and what the page of a job shows of its log."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import Any

import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import away, put_job
from tests.support import write
from tests.trips import counting_trips
from tests.web.minutes import Minutes, OpenMinutes, log, take_minutes
from tests.web.operating import KEEPER, OPERATOR, act
from tests.web.paging import Visiting, shape_of
from tests.web.test_pages_hostile import HOSTILE
from tests.webapp import ADMIN, ask, get, make_request

#: Runs a job of Alice's, and returns its path.
Log = Callable[..., str]


@pytest.fixture
def logged(redis_url: str) -> Log:
    return lambda *args: f"/job_state/{take_minutes(redis_url, *args)}"


def texts(app: TestApp, path: str, user: str | None, **headers: str) -> list[str]:
    answer = get(app, path, user, **headers)
    assert answer.status_code == 200
    return [line["text"] for line in answer.json["lines"]]


def test_operators_read_what_a_job_logged(operated: TestApp, logged: Log) -> None:
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
    assert answer.headers["Cache-Control"] == "private, no-cache"
    again = get(operated, path, KEEPER, If_None_Match=answer.headers["ETag"])
    assert again.status_code == 304
    assert texts(operated, f"{path}?after=1", KEEPER) == ["plain", "more"]
    assert texts(operated, f"{path}?after=3", KEEPER) == []
    mounted = path.replace("/job_state/", "/jobs/")
    assert texts(operated, mounted, OPERATOR) == ["secret", "plain", "more"]


def test_level_may_be_of_an_enum(operated: TestApp, logged: Log) -> None:
    """Such as one whose members are numbers with names of their own."""

    class Severity(int, enum.Enum):
        GRAVE = logging.ERROR

    class GraveMinutes(JobState):
        log_level = Severity.GRAVE

    assert texts(operated, f"{logged(GraveMinutes)}/log", KEEPER) == ["plain", "more"]


def test_class_may_open_its_log(
    operated: TestApp, store: JobStore, logged: Log
) -> None:
    """To everybody who may view the job, and to nobody else."""
    job = logged(OpenMinutes)
    path = f"{job}/log"
    for user in "alice", ADMIN:
        assert texts(operated, path, user) == ["secret", "plain", "more"]
    assert get(operated, path, "bob").status_code == 403
    write(store, job.rpartition("/")[2], kind="NeverHeardOf")
    assert texts(operated, path, ADMIN) == ["plain"]
    assert texts(operated, path, OPERATOR) == ["secret", "plain", "more"]


def test_log_that_is_not_there(
    operated: TestApp, store: JobStore, logged: Log, client: redis.Redis
) -> None:
    """If a class captures nothing, nobody asks. A deleted job has no log any more."""
    path = f"/job_state/{put_job(store, log=['plain']).uuid}"
    assert get(operated, path, OPERATOR).status_code == 200
    with counting_trips() as trips:
        assert texts(operated, f"{path}/log", OPERATOR) == []
    assert len(trips) == 1
    job = logged()
    assert act(operated, job, OPERATOR, "DELETE").status_code == 204
    assert get(operated, f"{job}/log", OPERATOR).status_code == 404
    assert client.keys("*:log") == []


def test_bad_requests_for_a_log(operated: TestApp, store: JobStore) -> None:
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


def test_page_shows_the_log(visit: Visiting, logged: Log, store: JobStore) -> None:
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


def test_hostile_lines_stay_text(visit: Visiting, logged: Log) -> None:
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
