"""Application code that raises for one job, beside others that are fine."""

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_jobstate import JobError, JobState, JobStore, StoreUnavailable
from tests.web.operating import act, uuids_of
from tests.web.reading import put
from tests.webapp import ADMIN, get

ERROR = JobError("ValueError", "too far")


class Broken(Exception):
    """The error that the classes below raise."""


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any) -> Any:
        raise error

    return fail


def adding(x: object) -> Callable[..., Any]:
    return lambda job, request: {**JobState.__json__(job, request), "x": x}


#: What a class may have that fails for each of its jobs.
TROUBLES: dict[str, dict[str, Any]] = {
    "title": {"title": property(raising(Broken()))},
    "acl": {"__acl__": raising(Broken())},
    "error": {"public_error": raising(Broken())},
    "json": {"__json__": raising(Broken())},
    "nan": {"__json__": adding(float("nan"))},
    "odd": {"__json__": adding(object())},
    "nothing": {"__json__": lambda job, request: None},
    "init": {"__init__": raising(Broken())},
}

_numbers = itertools.count()


def kind(name: str, **members: Any) -> tuple[type[JobState], Callable[[], None]]:
    """Return a class of jobs without trouble, and what gives it some later."""
    cls = type(f"Trouble{next(_numbers)}", (JobState,), {"kind": f"{name}{_numbers}"})

    def spoil() -> None:
        for member, value in members.items():
            setattr(cls, member, value)

    return cls, spoil


def fail(store: JobStore, *classes: type[JobState]) -> list[str]:
    """Store failed jobs of Alice's, the first as the newest."""
    return [put(store, cls, "error", error=ERROR) for cls in classes[::-1]][::-1]


def test_job_in_trouble_is_left_out(app, store, caplog):
    """It is null among several, missing in lists, and logged once a kind."""
    for name, members in TROUBLES.items():
        store.client.flushdb()
        caplog.clear()
        cls, spoil = kind(name, **members)
        one, two, three, four = fail(store, JobState, cls, JobState, cls)
        spoil()
        for place in "/job_state", "/jobs":
            query = f"uuid={one}&uuid={two}&uuid={three}&uuid={four}"
            jobs = get(app, f"{place}?{query}", "alice").json["jobs"]
            assert list(jobs) == [one, two, three, four]
            assert jobs[two] is jobs[four] is None, name
            for job in one, three:
                assert jobs[job] == get(app, f"{place}/{job}", "alice").json
            for query, user in ("", "alice"), ("?all=1", ADMIN):
                items = get(app, place + query, user).json["items"]
                assert uuids_of(items) == [one, three], (name, query)
        if name == "nothing":
            continue
        (record,) = (r for r in caplog.records if r.levelno == logging.ERROR)
        assert cls.__qualname__ in record.getMessage()
        assert two in record.getMessage() or four in record.getMessage()
        assert record.exc_info is not None, name
        with pytest.raises((Broken, ValueError, TypeError)):
            get(app, f"/job_state/{two}", "alice")
        # It stays in its list: the class may be mended.
        assert store.counts().error == 4


def test_bulk_act_leaves_a_job_in_trouble(operated, store):
    """A job whose class or ACL raises is refused, and the others are acted on."""
    for name in "acl", "init":
        store.client.flushdb()
        cls, spoil = kind(name, **TROUBLES[name])
        fail(store, JobState, cls, JobState)
        spoil()
        response = act(operated, "/job_state/clear?status=error&all=1")
        assert response.json == {"done": 2, "refused": 1, "cursor": None}, name
        assert store.counts(anew=True).error == 1, name


def test_key_error_of_a_class_is_not_a_404(app, store):
    """Traversal does not mistake the error of a class for an unknown job."""
    cls, spoil = kind("key", __init__=raising(KeyError("colour")))
    (job,) = fail(store, cls)
    spoil()
    for place in "/job_state", "/jobs":
        with pytest.raises(RuntimeError, match="colour"):
            get(app, f"{place}/{job}", "alice")


def test_store_that_is_away_for_one_job_is_a_503(app, operated, store):
    """StoreUnavailable concerns all jobs, so the response is a 503."""
    away = raising(StoreUnavailable(None))
    for members in {"title": property(away)}, {"__init__": away}, {"result_url": away}:
        cls, spoil = kind("away", **members)
        job = put(store, cls, "success")
        spoil()
        for path in f"?uuid={job}", "", f"/{job}":
            response = get(app, f"/job_state{path}", "alice")
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "5"
        store.delete(job)
    cls, spoil = kind("away", __acl__=away)
    put(store, cls, "error")
    spoil()
    assert act(operated, "/job_state/clear?status=error&all=1").status_code == 503
