"""Application code that raises for one job, beside others that are fine."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from pyramid.config import Configurator
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore, StoreUnavailable
from tests.web.reading import put, put_odd
from tests.webapp import ADMIN, get, make_app, make_config, make_request

ERROR = JobError("ValueError", "too far")


class Broken(Exception):
    """The error that the classes below raise."""


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any) -> Any:
        raise error

    return fail


def adding(**values: Any) -> Callable[..., Any]:
    def json(job: JobState, request: Any) -> dict[str, Any]:
        return {**JobState.__json__(job, request), **values}

    return json


def nested() -> list[Any]:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    return nest


#: What a class may have that fails for each of its jobs.
TROUBLES: dict[str, dict[str, Any]] = {
    "title": {"title": property(raising(Broken()))},
    "acl": {"__acl__": raising(Broken())},
    "error": {"public_error": raising(Broken())},
    "json": {"__json__": raising(Broken())},
    "nan": {"__json__": adding(x=float("nan"))},
    "odd": {"__json__": adding(x=object())},
    "deep": {"__json__": adding(x=nested())},
    "init": {"__init__": raising(Broken())},
    "no init": {"__init__": lambda *args: None},
}

ALONE = (Broken, ValueError, TypeError, RecursionError)

_numbers = itertools.count()


def kind(name: str, **members: Any) -> tuple[type[JobState], Callable[[], None]]:
    """Return a class of jobs that has never been in trouble, and what gives it some
    members later, so that jobs can be stored before.
    """
    cls = type(f"Trouble{next(_numbers)}", (JobState,), {"kind": f"{name}{_numbers}"})

    def spoil() -> None:
        for member, value in members.items():
            setattr(cls, member, value)

    return cls, spoil


@pytest.fixture(params=TROUBLES)
def bad(request: pytest.FixtureRequest) -> Any:
    """A class and its trouble."""
    return kind(request.param, **TROUBLES[request.param])


def fail(store: JobStore, *classes: type[JobState]) -> list[str]:
    """Store failed jobs of Alice's, the first as the newest."""
    return [put(store, cls, "error", error=ERROR) for cls in classes[::-1]][::-1]


def troubles(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == logging.ERROR]


def test_job_in_trouble_is_left_out(
    app: TestApp,
    config: Configurator,
    store: JobStore,
    caplog: pytest.LogCaptureFixture,
    bad: Any,
) -> None:
    """A job in trouble is null in a batch of states and missing from lists, and does
    not affect the others; for a single job, the exception is raised. One log line with
    a traceback names the kind, however many jobs and requests it affects.
    """
    cls, spoil = bad
    one, two, three, four = fail(store, JobState, cls, JobState, cls)
    spoil()
    for place in "/job_state", "/jobs":
        query = f"uuid={one}&uuid={two}&uuid={three}&uuid={four}"
        response = get(app, f"{place}?{query}", "alice")
        assert response.status_code == 200
        jobs = response.json["jobs"]
        assert list(jobs) == [one, two, three, four]
        assert jobs[two] is jobs[four] is None
        for job in one, three:
            assert jobs[job] == get(app, f"{place}/{job}", "alice").json
        for query, user in ("", "alice"), ("?all=1", ADMIN), ("?status=error", "alice"):
            items = get(app, place + query, user).json["items"]
            assert [item["job"]["uuid"] for item in items] == [one, three], query
    (record,) = troubles(caplog)
    assert cls.__qualname__ in record.getMessage()
    assert two in record.getMessage() or four in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ALONE)
    with pytest.raises(ALONE):
        get(app, f"/job_state/{two}", "alice")
    # It stays in its list: the class may be mended.
    assert store.counts().error == 4


def test_python_leaves_out_what_cannot_be_made(
    config: Configurator, store: JobStore
) -> None:
    """The lists of a container and of the store leave out jobs whose classes raise.
    Whoever asks for one of them gets the error.
    """
    for name in "init", "no init":
        cls, spoil = kind(name, **TROUBLES[name])
        one, two, three = fail(store, JobState, cls, JobState)
        spoil()
        states = make_request(config, "alice").job_states
        listed = [found.uuid for found in states.list("alice").items]
        assert listed[:2] == [one, three]
        for many in states.find_many, store.load_many:
            found = many([one, two, three])
            assert [job and job.uuid for job in found] == [one, None, three]
        for alone in states.find, store.load:
            with pytest.raises((Broken, TypeError)):
                alone(two)


def test_job_is_not_asked_whether_it_is_true(app: TestApp, store: JobStore) -> None:
    """A job that is falsy, or raises in a truth test, is shown like any other."""
    for member in {"__bool__": raising(Broken())}, {"__len__": lambda job: 0}:
        cls, spoil = kind("odd", **member)
        one, two = fail(store, JobState, cls)
        spoil()
        jobs = get(app, f"/job_state?uuid={one}&uuid={two}", "alice").json["jobs"]
        items = get(app, "/job_state?limit=2", "alice").json["items"]
        assert [jobs[job]["job"]["uuid"] for job in (one, two)] == [one, two]
        assert [item["job"]["uuid"] for item in items] == [one, two]


def test_each_kind_in_trouble_is_logged(
    app: TestApp, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Trouble with one kind does not hide trouble with another."""
    first, spoil_first = kind("title", **TROUBLES["title"])
    second, spoil_second = kind("json", **TROUBLES["json"])
    fail(store, first, second, first)
    spoil_first()
    spoil_second()

    get(app, "/job_state", "alice")

    assert len(troubles(caplog)) == 2


def test_key_error_of_a_class_is_not_a_404(app: TestApp, store: JobStore) -> None:
    """Traversal does not mistake the error of a class for an unknown job."""
    cls, spoil = kind("key", __init__=raising(KeyError("colour")))
    (job,) = fail(store, cls)
    spoil()
    for place in "/job_state", "/jobs":
        with pytest.raises(RuntimeError, match="colour"):
            get(app, f"{place}/{job}", "alice")


def test_store_that_is_away_for_one_job_is_a_503(app: TestApp, store: JobStore) -> None:
    """StoreUnavailable concerns all jobs, so the response is a 503."""
    away = raising(StoreUnavailable(None))
    for members in {"title": property(away)}, {"__init__": away}:
        cls, spoil = kind("away", **members)
        (job,) = fail(store, cls)
        spoil()
        for place in "/job_state", "/jobs":
            for path in f"{place}?uuid={job}", place, f"{place}/{job}":
                response = get(app, path, "alice")
                assert response.status_code == 503
                assert response.headers["Retry-After"] == "5"
        store.delete(job)


def test_kinds_of_other_programs_are_not_remembered(
    redis_url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A store full of invented kinds fills neither the memory nor the log."""

    class BadPolicy:
        def permits(self, request: Any, context: Any, permission: str) -> bool:
            raise Broken

        def authenticated_userid(self, request: Any) -> str:
            return "alice"

    app = make_app(make_config(redis_url, security_policy=BadPolicy()))
    jobs = [put_odd(store, kind=f"Invented{i}") for i in range(50)]

    response = get(app, "/job_state?" + "&".join(f"uuid={job}" for job in jobs))

    assert set(response.json["jobs"].values()) == {None}
    # All of them count as one kind, which another test may have had.
    assert len(troubles(caplog)) <= 1


def test_job_that_shows_nothing_is_left_out(app: TestApp, store: JobStore) -> None:
    """A job whose `__json__` returns None is null in a batch and missing from lists."""
    cls, spoil = kind("none", __json__=lambda job, request: None)
    job, other = fail(store, cls, JobState)
    spoil()

    batch = get(app, f"/job_state?uuid={job}&uuid={other}", "alice").json["jobs"]
    items = get(app, "/job_state", "alice").json["items"]

    assert batch[job] is None and batch[other]
    assert [item["job"]["uuid"] for item in items] == [other]
