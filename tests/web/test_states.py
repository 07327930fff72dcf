"""The state of a job over HTTP: its JSON and headers, and what it reveals."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import subprocess
import sys
import uuid
from typing import Any

import pytest
import redis
from pyramid.renderers import JSON
from webtest import TestApp

from pyramid_jobstate import Batch, JobError, JobState, JobStore
from pyramid_jobstate.testing import pass_time, put_batch
from tests.jobs import RunMarathon
from tests.support import ROOT, UUID, key_of, load_job
from tests.web.reading import FORBIDDEN, NOT_FOUND, put, put_odd
from tests.webapp import ADMIN, ask, get, make_app, make_config

#: Texts, numbers and collections that jobs may report.
VALUES: list[Any] = [
    *("", "Ümläut", "\u2028", "\ud800", 'a"\\\n', "\x00\x7f", "👍", "__proto__"),
    *(0, -1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, True, False, None),
    *(0.1, -0.0, 1e16, 1e-7, 5e-324, 1.7976931348623157e308, 1 / 3),
    *([], {}, [[1, [2.5]], {"a": {"b": [None]}}], {"ü": "\ud800"}, {"a": 10**30}),
]


class Confession(JobState):
    """A kind of job that shows the message of one type of error."""

    def public_error(self, exception_type: str, message: str) -> str:
        if exception_type == "ValueError":
            return message
        return super().public_error(exception_type, message)


@pytest.fixture
def job(store: JobStore) -> str:
    """The uuid of a running job of Alice's."""
    return put(store)


# The answer


def test_get_answers_the_state(app: TestApp, job: str) -> None:
    """The response is the job's JSON, with or without a trailing slash. No cache keeps
    it, no browser renders it as a page, and part of it is not served.
    """
    for end in "", "/":
        for headers in {}, {"Range": "bytes=0-9", "If_None_Match": '"other"'}:
            response = get(app, f"/job_state/{job}{end}", "alice", **headers)
            assert response.status_code == 200
            state = response.json
            assert state["job_state"] == "working"
            assert state["job"]["uuid"] == job
            assert state["job"]["url"] == f"http://localhost/job_state/{job}/"
            assert state["job"]["params"] == {"miles": 26}
            assert state["job"]["cancellable"] is True
            headers = response.headers
            assert headers["Content-Type"] == "application/json"
            assert headers["Cache-Control"] == "private, no-cache"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["ETag"].startswith('"')
            # Where pages are included, one URL has both.
            assert "Accept" in headers.get("Vary", "Accept")


def test_head_answers_without_the_state(app: TestApp, job: str) -> None:
    """HEAD is GET without a body and needs the same permission."""
    full = get(app, f"/job_state/{job}", "alice")

    response = ask(app, "HEAD", f"/job_state/{job}", "alice")

    assert (response.status_code, response.body) == (200, b"")
    assert response.headers["ETag"] == full.headers["ETag"]
    assert ask(app, "HEAD", f"/job_state/{job}", "bob").status_code == 403


def test_current_etag_is_a_304(app: TestApp, job: str) -> None:
    """A viewer who has the current state gets a 304, also if a proxy has weakened the
    tag or the client names several. Whoever may not see the job gets a 403.
    """
    etag = get(app, f"/job_state/{job}", "alice").headers["ETag"]
    for form in "{}", "W/{}", '"other", {}':
        known = form.format(etag)
        response = get(app, f"/job_state/{job}", "alice", If_None_Match=known)
        assert (response.status_code, response.body) == (304, b""), form
        assert response.headers["ETag"] == etag
        assert response.headers["Cache-Control"] == "private, no-cache"
    for known in etag, "*":
        response = get(app, f"/job_state/{job}", "bob", If_None_Match=known)
        assert response.status_code == 403
        assert "ETag" not in response.headers


def test_changed_job_has_another_etag(
    app: TestApp, redis_url: str, store: JobStore, job: str
) -> None:
    """After a change of the job, and after one that is due to time alone, the former
    tag returns the new state.
    """
    etag = get(app, f"/job_state/{job}", "alice").headers["ETag"]
    assert load_job(store, job).cancel()
    response = get(app, f"/job_state/{job}", "alice", If_None_Match=etag)
    assert response.status_code == 200
    assert response.json["job"]["status"] == "cancelling"
    assert response.headers["ETag"] != etag
    etag = response.headers["ETag"]

    pass_time(store, store.stalled_after + 1)
    response = get(app, f"/job_state/{job}", "alice", If_None_Match=etag)
    assert response.status_code == 200
    assert response.json["job"]["status"] == "stalled"
    assert response.json["job_state"] == "working"


def test_state_in_an_answer_of_the_application(
    redis_url: str, store: JobStore, job: str
) -> None:
    """In the response of an application's view, a job has the same JSON, also one that
    was loaded from the store itself.
    """
    config = make_config(redis_url)
    config.add_renderer("app_json", JSON(indent=4))
    config.add_view(
        lambda c, r: {"job": r.job_states[job], "loaded": store.load(job)},
        name="page",
        renderer="app_json",
    )
    app = make_app(config)
    state = get(app, f"/job_state/{job}", "alice").json
    assert get(app, "/page", "alice").json == {"job": state, "loaded": state}


# What it reveals


def test_error_is_told_as_far_as_the_class_says(app: TestApp, store: JobStore) -> None:
    """The text and type of an exception are hidden from every viewer, but a class may
    show the errors that it knows.
    """
    error = JobError("myapp.SecretError", "password=hush")
    uuid = put(store, status="error", error=error)
    for user in "alice", ADMIN:
        response = get(app, f"/job_state/{uuid}", user)
        assert response.json["job"]["error"] == {"message": "The job failed."}
        assert "hush" not in response.text
        assert "SecretError" not in response.text
    for error, text in (
        (JobError("ValueError", "No miles."), "No miles."),
        (JobError("OSError", "/etc/shoes"), "The job failed."),
    ):
        uuid = put(store, Confession, "error", error=error)
        state = get(app, f"/job_state/{uuid}", "alice").json
        assert state["job"]["error"] == {"message": text}


def test_others_are_forbidden(app: TestApp, job: str) -> None:
    """A user who may not see a job gets a 403 that reveals nothing."""
    for user in "bob", None:
        response = get(app, f"/job_state/{job}", user)
        assert (response.status_code, response.json) == (403, FORBIDDEN)
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "ETag" not in response.headers


def test_markup_stays_text(app: TestApp, store: JobStore) -> None:
    """Markup in a job's texts is JSON text, of a type that browsers do not render."""
    markup = "</script><img src=x onerror=alert(1)>"
    uuid = put(store, message=markup, metrics={markup: markup})

    response = get(app, f"/job_state/{uuid}", "alice", Accept="text/html")

    assert response.content_type == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.json["job"]["message"] == markup
    assert response.json[markup] == markup


# Arbitrary values in Redis


def reject(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


NONSENSE: list[tuple[str, str | bytes]] = [
    ("m:x", "{bad"),
    ("m:x", "NaN"),
    ("m:x", "[1e999]"),
    ("m:x", "9" * 5000),
    ("m:x", "[" * 100_000),
    ("m:x", "[" * 970 + "]" * 970),
    ("m:x", b"\xff"),
    ("m:x", '"\\ud800"'),
    ("m:__proto__", '{"isAdmin": true}'),
    ("m:constructor", "1"),
    ("m:job", '{"status": "success"}'),
    ("m:job_state", '"success"'),
    ("m:", "1"),
    ("status", "<b>"),
    ("status", ""),
    ("seen", "²"),
    ("seen", "9" * 5000),
    ("seen", "soon"),
    ("queued", "²"),
    ("queued", "9" * 30),
    ("updated", "-1"),
    ("due", "1e400"),
    ("attempt", "x"),
    ("attempt", "9" * 5000),
    ("params", "[1]"),
    ("params", '{"miles": 1e999}'),
    ("progress", '"half"'),
    ("progress", '[1, "x", null, null]'),
    ("progress", "[1, [], {}, true]"),
    ("progress", "[NaN, -1, null, null]"),
    ("progress", "[1" + "0" * 400 + ", 3, null, null]"),
    ("message", '["x"]'),
    ("log", '[1, null, {"a": 1}]'),
    ("log", '"abc"'),
    ("error", "[1, 2]"),
    ("error", '{"message": "hush"}'),
    ("unknown", "x"),
]


def test_nonsense_in_the_store_is_not_an_error(app: TestApp, store: JobStore) -> None:
    """Fields written by another program never break the request or the browser's
    JSON.parse, and do not affect the job's own part.
    """
    for field, value in NONSENSE:
        job = put_odd(store, **{field: value})
        response = get(app, f"/job_state/{job}", "alice")
        assert response.status_code == 200, (field, value)
        state = json.loads(response.body, parse_constant=reject)
        assert state["job"]["uuid"] == job
        assert state["job_state"] == "working", (field, value)
        assert '"hush"' not in response.text


def test_nonsense_in_the_store_gives_no_rights(app: TestApp, store: JobStore) -> None:
    """An owner or kind that cannot be parsed gives no rights and causes no error."""
    owners = '["alice"] {"alice":1} alice null "alic\\u0065x" ' + "[" * 100_000
    cases: list[tuple[str, str | bytes]] = [("owner", ""), ("kind", b"\xff")]
    cases += [("owner", each) for each in owners.split()]
    cases += [("kind", each) for each in ("NoSuchKind", "<script>", "")]
    for field, value in cases:
        job = put_odd(store, **{field: value})
        for user in "alice", "bob", None:
            response = get(app, f"/job_state/{job}", user)
            assert response.json == FORBIDDEN, (field, value)
        assert get(app, f"/job_state/{job}", ADMIN).status_code == 200


def test_key_of_another_type_is_not_a_job(
    app: TestApp, store: JobStore, client: redis.Redis
) -> None:
    """A job's key that does not hold a hash is not a job."""
    client.set(key_of(store, UUID), "x")

    assert get(app, f"/job_state/{UUID}", "alice").json == NOT_FOUND
    jobs = get(app, f"/job_state?uuid={UUID}", "alice").json["jobs"]
    assert jobs == {UUID: None}


# The encoders


@dataclasses.dataclass
class Point:
    name: str


class Own(JobState):
    """A kind of job whose JSON has something of the application's."""

    kind = "tests.web.test_states.Own"
    extra: Any = None

    def __json__(self, request: Any) -> dict[str, Any]:
        return {**super().__json__(request), "extra": self.extra}


class OwnMetrics(JobState):
    """A kind of job that works out one of its metrics."""

    kind = "tests.web.test_states.OwnMetrics"

    @property
    def progress_metrics(self) -> dict[str, Any]:
        return {**super().progress_metrics, "share": math.nan}


class OwnTexts(JobState):
    """A kind of job whose texts are the test's."""

    kind = "tests.web.test_states.OwnTexts"
    title: Any = "Title"
    text: Any = "Wrong"

    def public_error(self, exception_type: str, message: str) -> Any:
        return self.text


class OwnBatch(Batch):
    kind = "tests.web.test_states.OwnBatch"
    title = "Import"


class Computed:
    """A descriptor that works for jobs, and not for their class."""

    def __get__(self, job_state: JobState, cls: object = None) -> str:
        return f"Job {job_state.uuid}"


class OwnMessage(JobState):
    """A kind of job whose message is computed."""

    kind = "tests.web.test_states.OwnMessage"
    message: Any = Computed()


class OwnJson(JobState):
    """A kind of job whose jobs each have a ``__json__`` of their own."""

    kind = "tests.web.test_states.OwnJson"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        usual: Any = super().__json__
        self.__json__: Any = lambda request: {**usual(request), "extra": math.nan}


def test_each_value_is_encoded_alike(app: TestApp, store: JobStore) -> None:
    """A poll, a batch of polls and a list show all that was reported, and it reads the
    same, also where the application adds to it.
    """
    metrics = {str(n): value for n, value in enumerate(VALUES)}
    plain, own = (put(store, cls, metrics=metrics) for cls in (RunMarathon, Own))

    states = [get(app, f"/job_state/{job}", "alice").json for job in (plain, own)]
    several = get(app, f"/job_state?uuid={plain}&uuid={own}", "alice").json
    listed = get(app, "/job_state", "alice").json

    for state in states:
        assert repr({name: state[name] for name in metrics}) == repr(metrics)
    assert several == {"jobs": dict(zip((plain, own), states, strict=True))}
    assert listed["items"] == states[::-1]


#: Polls where orjson is not installed.
WITHOUT_SPEED = """
import sys
sys.modules["orjson"] = None
from tests.webapp import get, make_app, make_config
app = make_app(make_config(sys.argv[1]))
print(get(app, f"/job_state/{sys.argv[2]}", "alice").text)
"""


@pytest.mark.system
def test_speed_need_not_be_installed(
    app: TestApp, redis_url: str, store: JobStore
) -> None:
    """Without orjson, the standard library encodes everything."""
    job = put(store, metrics={str(n): value for n, value in enumerate(VALUES)})
    command = [sys.executable, "-c", WITHOUT_SPEED, redis_url, job]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == get(app, f"/job_state/{job}", "alice").json


def test_what_cannot_be_encoded_is_an_error(
    app: TestApp, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the application adds to the JSON is checked, and not written as null: no
    object, circle, very deep list or NaN is JSON. A title or an error must be a text.
    """
    circle: list[Any] = []
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    job = put(store, Own)
    for value in object(), circle, deep, {(1, 2): 3}, math.nan:
        monkeypatch.setattr(Own, "extra", value)
        with pytest.raises((TypeError, ValueError, RecursionError)):
            get(app, f"/job_state/{job}", "alice")
    for cls in OwnMetrics, OwnJson:
        job = put(store, cls)
        with pytest.raises(ValueError, match="JSON"):
            get(app, f"/job_state/{job}", "alice")
    job = put(store, OwnTexts, "error", error=JobError("E", "x"))
    for name in "title", "text":
        day, own = datetime.date(2026, 11, 26), uuid.UUID(UUID)
        for odd in day, Point("Paris"), own, object(), math.nan:
            with monkeypatch.context() as patch:
                patch.setattr(OwnTexts, name, odd)
                with pytest.raises((TypeError, ValueError)):
                    get(app, f"/job_state/{job}", "alice")


def test_odd_class_does_not_affect_other_jobs(app: TestApp, store: JobStore) -> None:
    """A job whose class is read only through its jobs is shown, as are the others, also
    those whose classes have texts of their own.
    """
    odd, plain, own = put(store, OwnMessage), put(store), put(store, OwnTexts)
    batch = put_batch(store, OwnBatch, ["success"], owner="alice").uuid

    alone = get(app, f"/job_state/{odd}", "alice").json
    query = "&".join(f"uuid={each}" for each in (odd, plain, own, batch))
    several = get(app, f"/job_state?{query}", "alice").json["jobs"]

    assert alone["job"]["message"] == f"Job {odd}"
    assert several[odd] == alone
    assert several[plain]["job"]["uuid"] == plain
    titles = several[own]["job"]["title"], several[batch]["job"]["title"]
    assert titles == ("Title", "Import")
