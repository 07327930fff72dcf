"""Application code that raises for one job, beside others that are fine."""

import logging
from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.job import trouble
from tests.webapp import (
    ADMIN,
    get,
    make_app,
    make_config,
    make_request,
    put_job,
)

ERROR = '["ValueError","too far"]'


class Broken(Exception):
    """The error that the classes below raise."""


class BadTitle(JobState):
    @property
    def title(self) -> str:
        raise Broken


class BadAcl(JobState):
    def __acl__(self) -> list[tuple[str, Any, Any]]:
        raise Broken


class BadError(JobState):
    def public_error(self, exception_type: str, message: str) -> str:
        raise Broken


class BadJson(JobState):
    def __json__(self, request: Any) -> dict[str, Any]:
        raise Broken


class BadInit(JobState):
    def __init__(self, record: Any, *args: Any) -> None:
        raise Broken


class NoInit(JobState):
    """A kind of job that forgets to call super()."""

    def __init__(self, record: Any, *args: Any) -> None:
        pass


class BadBool(JobState):
    def __bool__(self) -> bool:
        raise Broken


class Empty(JobState):
    """A kind of job that is falsy."""

    def __len__(self) -> int:
        return 0


class NanJson(JobState):
    def __json__(self, request: Any) -> dict[str, Any]:
        return {**super().__json__(request), "x": float("nan")}


class NoJson(JobState):
    """A kind of job whose JSON is None."""

    def __json__(self, request: Any) -> Any:
        return None


class OddJson(JobState):
    def __json__(self, request: Any) -> dict[str, Any]:
        return {**super().__json__(request), "x": object()}


class DeepJson(JobState):
    def __json__(self, request: Any) -> dict[str, Any]:
        state = super().__json__(request)
        return {**state, "x": state, "y": [state] * 2} | {"z": nested()}


class Away(JobState):
    """A kind of job whose title asks a store that is away."""

    @property
    def title(self) -> str:
        raise StoreUnavailable(None)


class AwayInit(JobState):
    """A kind of job that asks a store that is away when it is made."""

    def __init__(self, record: Any, *args: Any) -> None:
        raise StoreUnavailable(None)


class KeyInit(JobState):
    """A kind of job that raises a KeyError when it is made."""

    def __init__(self, record: Any, *args: Any) -> None:
        raise KeyError("colour")


def nested() -> list[Any]:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    return nest


BAD = [BadTitle, BadAcl, BadError, BadJson, BadInit, NoInit, NanJson, OddJson, DeepJson]
ALONE = (Broken, ValueError, TypeError, RecursionError)


@pytest.fixture(autouse=True)
def _kinds_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which kinds were logged."""
    monkeypatch.setattr(trouble, "_troubled", set())


def put(client: redis.Redis, *classes: type[JobState]) -> list[str]:
    """Write failed jobs of Alice's, the newest first in every list."""
    jobs = [
        put_job(client, kind=cls.kind, status="error", error=ERROR) for cls in classes
    ]
    scores = {job: 2e15 - i for i, job in enumerate(jobs)}
    client.zadd("jobstate:ended:all", scores)
    client.zadd('jobstate:ended:owner:"alice"', scores)
    return jobs


def troubles(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == logging.ERROR]


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
@pytest.mark.parametrize("bad", BAD)
def test_batch_has_null_for_a_job_in_trouble(
    app: TestApp, client: redis.Redis, bad: type[JobState], place: str
) -> None:
    """A job in trouble does not affect the others in a batch."""
    one, two, three = put(client, JobState, bad, JobState)

    response = get(app, f"{place}?uuid={one}&uuid={two}&uuid={three}", "alice")

    assert response.status_code == 200
    jobs = response.json["jobs"]
    assert list(jobs) == [one, two, three]
    assert jobs[two] is None
    for job in one, three:
        assert jobs[job] == get(app, f"{place}/{job}", "alice").json


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
@pytest.mark.parametrize("bad", BAD)
def test_list_leaves_out_a_job_in_trouble(
    app: TestApp, client: redis.Redis, bad: type[JobState], place: str
) -> None:
    """The other jobs are listed, and the job in trouble stays in its index."""
    one, two, three = put(client, JobState, bad, JobState)

    for query, user in ("", "alice"), ("?all=1", ADMIN), ("?status=error", "alice"):
        items = get(app, place + query, user).json["items"]
        assert [item["job"]["uuid"] for item in items] == [one, three]
    assert client.zscore("jobstate:ended:all", two)


@pytest.mark.parametrize("bad", BAD)
def test_single_job_in_trouble_is_an_error(
    app: TestApp, client: redis.Redis, bad: type[JobState]
) -> None:
    """For a single job, the application's exception is raised."""
    (job,) = put(client, bad)

    with pytest.raises(ALONE):
        get(app, f"/job_state/{job}", "alice")


@pytest.mark.parametrize("bad", [BadInit, NoInit])
def test_python_list_leaves_out_what_cannot_be_made(
    config: Configurator, app: TestApp, client: redis.Redis, bad: type[JobState]
) -> None:
    """JobStates.list() and find_many() leave out jobs whose classes raise."""
    one, two, three = put(client, JobState, bad, JobState)
    states = make_request(config, "alice").job_states

    assert [found.uuid for found in states.list("alice").items] == [one, three]
    found = states.find_many([one, two, three])
    assert [job_state and job_state.uuid for job_state in found] == [one, None, three]
    with pytest.raises((Broken, TypeError)):
        states.find(two)


@pytest.mark.parametrize("bad", BAD)
def test_trouble_is_logged_once_a_kind(
    app: TestApp,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    bad: type[JobState],
) -> None:
    """One line with a traceback names the kind in trouble, however many jobs and
    requests it affects.
    """
    jobs = put(client, bad, bad, JobState)
    query = "&".join(f"uuid={job}" for job in jobs)

    for _ in range(3):
        get(app, f"/job_state?{query}", "alice")
        get(app, "/job_state", "alice")

    (record,) = troubles(caplog)
    assert bad.kind in record.getMessage()
    assert jobs[0] in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ALONE)


@pytest.mark.parametrize("odd", [BadBool, Empty])
def test_job_is_not_asked_whether_it_is_true(
    app: TestApp, client: redis.Redis, odd: type[JobState]
) -> None:
    """A job that is falsy, or raises in a truth test, is shown like any other."""
    one, two = put(client, JobState, odd)

    jobs = get(app, f"/job_state?uuid={one}&uuid={two}", "alice").json["jobs"]
    items = get(app, "/job_state", "alice").json["items"]

    assert [jobs[job]["job"]["uuid"] for job in (one, two)] == [one, two]
    assert [item["job"]["uuid"] for item in items] == [one, two]


def test_each_kind_in_trouble_is_logged(
    app: TestApp, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Trouble with one kind does not hide trouble with another."""
    put(client, BadTitle, BadJson, BadTitle)

    get(app, "/job_state", "alice")

    assert len(troubles(caplog)) == 2


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
def test_key_error_of_a_class_is_not_a_404(
    app: TestApp, client: redis.Redis, place: str
) -> None:
    """Traversal does not mistake the error of a class for an unknown job."""
    (job,) = put(client, KeyInit)

    with pytest.raises(RuntimeError, match="colour"):
        get(app, f"{place}/{job}", "alice")


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
@pytest.mark.parametrize("away", [Away, AwayInit])
def test_store_that_is_away_for_one_job_is_a_503(
    app: TestApp, client: redis.Redis, place: str, away: type[JobState]
) -> None:
    """StoreUnavailable concerns all jobs, so the response is a 503."""
    (job,) = put(client, away)

    for path in f"{place}?uuid={job}", place, f"{place}/{job}":
        response = get(app, path, "alice")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"


def test_kinds_of_other_programs_are_not_remembered(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A store full of invented kinds fills neither the memory nor the log."""

    class BadPolicy:
        def permits(self, request: Any, context: Any, permission: str) -> bool:
            raise Broken

        def authenticated_userid(self, request: Any) -> str:
            return "alice"

    app = make_app(make_config(redis_url, security_policy=BadPolicy()))
    jobs = [put_job(client, kind=f"Invented{i}") for i in range(50)]

    response = get(app, "/job_state?" + "&".join(f"uuid={job}" for job in jobs))

    assert set(response.json["jobs"].values()) == {None}
    assert len(troubles(caplog)) == 1


def test_one_job_of_the_store_itself_raises(
    redis_url: str, client: redis.Redis
) -> None:
    """store.load() raises the error of a class that store.load_many() skips."""
    store = JobStore(redis_url)
    good, bad = put(client, JobState, BadInit)

    found = store.load_many([bad, good])

    assert found[0] is None and found[1] is not None
    with pytest.raises(Broken):
        store.load(bad)


def test_job_that_shows_nothing_is_left_out(
    redis_url: str, client: redis.Redis
) -> None:
    """A job whose `__json__` returns None is null in a batch and missing from lists."""
    app = make_app(make_config(redis_url))
    job, other = put_job(client, kind="NoJson"), put_job(client)
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15, other: 1e15})

    batch = get(app, f"/job_state?uuid={job}&uuid={other}", "alice").json["jobs"]
    items = get(app, "/job_state", "alice").json["items"]

    assert batch[job] is None and batch[other]
    assert [item["job"]["uuid"] for item in items] == [other]
