"""The JSON of states, with the extra ``speed`` and without it."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import math
import sys
import uuid
from typing import Any

import pytest
from webtest import TestApp

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.job.record import Record
from pyramid_jobstate.testing import put_job
from pyramid_jobstate.web import encoding
from pyramid_jobstate.web.encoding import encode_state
from tests.support import UUID
from tests.webapp import get

#: A kind of job whose JSON is ours.
OURS = JobState(Record(UUID, {}))

#: What all states have.
NOTHING: dict[str, Any] = {"job": {"title": "Job", "error": None}}

#: Texts, numbers and collections that jobs may report.
VALUES: list[Any] = [
    *("", "Ümläut", "\u2028", "\ud800", 'a"\\\n', "\x00\x7f", "👍", "__proto__"),
    *(0, -1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, True, False, None),
    *(0.1, -0.0, 1e16, 1e-7, 5e-324, 1.7976931348623157e308, 1 / 3),
    *([], {}, [[1, [2.5]], {"a": {"b": [None]}}], {"ü": "\ud800"}, {"a": 10**30}),
]


@dataclasses.dataclass
class Place:
    name: str


class Own(JobState):
    """A kind of job whose JSON is the application's."""

    kind = "tests.web.test_encoding.Own"

    def __json__(self, request: Any) -> dict[str, Any]:
        return {**super().__json__(request), "share": math.nan}


@pytest.fixture(params=[True, False], ids=["with speed", "without"])
def _encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra ``speed``, and without it."""
    if request.param:
        pytest.importorskip("orjson")
        assert encoding.fast is not None
    else:
        monkeypatch.setattr(encoding, "fast", None)


@pytest.mark.usefixtures("_encoder")
@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_each_value_is_encoded_alike(value: Any) -> None:
    """Whatever encodes it, a value reads the same."""
    state = {"value": value, "list": [value], **NOTHING}

    text = encode_state(OURS, state)

    assert json.loads(text) == state
    assert repr(json.loads(text)["value"]) == repr(value)
    # The text can be sent.
    text.encode()


@pytest.mark.usefixtures("_encoder")
def test_what_cannot_be_encoded_is_an_error() -> None:
    """Neither an object nor a circle nor a very deep list is JSON."""
    circle: list[Any] = []
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in object(), circle, deep, {(1, 2): 3}:
        with pytest.raises((TypeError, ValueError, RecursionError)):
            encode_state(OURS, {"value": value, **NOTHING})


class OwnMetrics(JobState):
    """A kind of job that works out one of its metrics."""

    kind = "tests.web.test_encoding.OwnMetrics"

    @property
    def progress_metrics(self) -> dict[str, Any]:
        return {**super().progress_metrics, "share": math.nan}


class OwnTitle(JobState):
    """A kind of job whose class has what most have."""

    kind = "tests.web.test_encoding.OwnTitle"
    public_params = ("miles",)
    title = "Title"

    def public_error(self, exception_type: str, message: str) -> str:
        return message


class OwnBatch(Batch):
    kind = "tests.web.test_encoding.OwnBatch"
    title = "Import"


@pytest.mark.usefixtures("_encoder")
@pytest.mark.parametrize("cls", [Own, OwnMetrics])
def test_own_values_must_not_be_nan(cls: type[JobState]) -> None:
    """What the application adds to the JSON is checked, and not written as null."""
    with pytest.raises(ValueError, match="JSON"):
        encode_state(cls(Record(UUID, {})), {"share": math.nan, **NOTHING})


@pytest.mark.usefixtures("_encoder")
def test_own_values_of_one_job_must_not_be_nan() -> None:
    """A job may have a ``__json__`` of its own, beside its class's."""
    job_state: Any = JobState(Record(UUID, {}))
    job_state.__json__ = lambda request: {"share": math.nan}
    with pytest.raises(ValueError, match="JSON"):
        encode_state(job_state, job_state.__json__(None))


@pytest.mark.parametrize("cls", [JobState, OwnTitle, Batch, OwnBatch])
def test_own_titles_take_no_longer(
    cls: type[JobState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual methods of a class do not slow its polls down."""
    pytest.importorskip("orjson")
    monkeypatch.setattr(encoding, "encode", None)
    assert json.loads(encode_state(cls(Record(UUID, {})), NOTHING)) == NOTHING


@pytest.mark.usefixtures("_encoder")
@pytest.mark.parametrize(
    "value",
    [datetime.date(2026, 11, 26), Place("Paris"), uuid.UUID(UUID), object(), math.nan],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["title", "error"])
def test_text_that_is_no_text_is_an_error(name: str, value: object) -> None:
    """With any encoder."""
    job = {**NOTHING["job"], name: {"message": value} if name == "error" else value}
    with pytest.raises((TypeError, ValueError)):
        encode_state(OURS, {"job": job})


class Computed:
    """A descriptor that works for jobs, and not for their class."""

    def __get__(self, job_state: JobState, cls: object = None) -> str:
        return f"Job {job_state.uuid}"


class OwnMessage(JobState):
    """A kind of job whose message is computed."""

    kind = "tests.web.test_encoding.OwnMessage"
    message: Any = Computed()


@pytest.mark.usefixtures("_encoder")
def test_odd_class_does_not_affect_other_jobs(app: TestApp, redis_url: str) -> None:
    """A job whose class is read only through its jobs is shown, as are the others."""
    store = JobStore(redis_url)
    odd = put_job(store, OwnMessage, owner="alice").uuid
    plain = put_job(store, owner="alice").uuid

    alone = get(app, f"/job_state/{odd}", "alice").json
    several = get(app, f"/job_state?uuid={odd}&uuid={plain}", "alice").json["jobs"]

    assert alone["job"]["message"] == f"Job {odd}"
    assert several[odd] == alone
    assert several[plain]["job"]["uuid"] == plain


@pytest.mark.usefixtures("_encoder")
def test_poll_shows_all_that_was_reported(app: TestApp, redis_url: str) -> None:
    """A poll, a batch of polls and a list show the same values."""
    metrics = {str(n): value for n, value in enumerate(VALUES)}
    job = put_job(JobStore(redis_url), owner="alice", metrics=metrics).uuid

    alone = get(app, f"/job_state/{job}", "alice").json
    several = get(app, f"/job_state?uuid={job}", "alice").json
    listed = get(app, "/job_state", "alice").json

    assert {name: alone[name] for name in metrics} == metrics
    assert several == {"jobs": {job: alone}}
    assert listed["items"] == [alone]


def test_extra_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without orjson, the standard library encodes everything."""
    monkeypatch.setitem(sys.modules, "orjson", None)
    try:
        importlib.reload(encoding)
        assert encoding.fast is None
        assert encoding.encode_state(OURS, NOTHING) == encoding.encode(NOTHING)
    finally:
        monkeypatch.undo()
        importlib.reload(encoding)
