"""The state of a job over HTTP: its JSON and headers, and what it reveals; and the
header of all answers with the store's time.
"""

import datetime
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator
from pyramid.i18n import TranslationStringFactory
from pyramid.interfaces import ILocalizer
from pyramid.renderers import JSON
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import pass_time
from tests.catalogs import write_catalog
from tests.jobs import RunMarathon
from tests.support import ROOT, UUID, load_job, write
from tests.web.operating import OPERATOR
from tests.web.paging import paged_config
from tests.web.reading import FORBIDDEN, put
from tests.webapp import ADMIN, ask, get, make_app, make_config

#: Texts, numbers and collections that jobs may report.
VALUES: list[Any] = [
    *("", "Ümläut", "\u2028", "\ud800", 'a"\\\n', "\x00\x7f", "👍", "__proto__"),
    *(0, -1, 2**53 + 1, 2**64, 10**400, True, None, 0.1, -0.0, 1e16, 5e-324),
    *([], {}, [[1, [2.5]], {"a": {"b": [None]}}], {"ü": "\ud800"}, {"a": 10**30}),
]


class Confession(JobState):
    def public_error(self, exception_type: str, message: str) -> str:
        if exception_type == "ValueError":
            return message
        return super().public_error(exception_type, message)


@pytest.fixture
def job(store: JobStore) -> str:
    """The uuid of a running job of Alice's."""
    return put(store)


def test_get_answers_the_state(app, store, job):
    """It is the job's JSON, which no cache keeps, and no browser renders."""
    for end in "", "/":
        response = get(app, f"/job_state/{job}{end}", "alice", Range="bytes=0-9")
        assert response.status_code == 200
        state = response.json
        assert (state["job_state"], state["job"]["uuid"]) == ("working", job)
        assert state["job"]["url"] == f"http://localhost/job_state/{job}/"
        assert state["job"]["params"] == {"miles": 26}
        assert state["job"]["cancellable"] is True
        headers = response.headers
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == "private, no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
    head = ask(app, "HEAD", f"/job_state/{job}", "alice")
    assert (head.status_code, head.body) == (200, b"")
    assert head.headers["ETag"] == headers["ETag"]
    forbidden = get(app, f"/job_state/{job}", "bob")
    assert (forbidden.status_code, forbidden.json) == (403, FORBIDDEN)
    assert forbidden.headers["Cache-Control"] == "private, no-store"


@pytest.mark.promise("poll-says-when-nothing-changed")
def test_current_etag_is_a_304(app, store, job):
    """Viewers get a 304 until something changes, which may be the passing of time."""
    etag = get(app, f"/job_state/{job}", "alice").headers["ETag"]
    for form in "{}", "W/{}", '"other", {}':
        known = form.format(etag)
        response = get(app, f"/job_state/{job}", "alice", If_None_Match=known)
        assert (response.status_code, response.body) == (304, b""), form
        assert response.headers["ETag"] == etag
        assert response.headers["Cache-Control"] == "private, no-store"
    for known in etag, "*":
        response = get(app, f"/job_state/{job}", "bob", If_None_Match=known)
        assert response.status_code == 403
        assert "ETag" not in response.headers
    assert load_job(store, job).cancel()
    response = get(app, f"/job_state/{job}", "alice", If_None_Match=etag)
    assert response.json["job"]["status"] == "cancelling"
    etag = response.headers["ETag"]
    pass_time(store, store.stalled_after + 1)
    response = get(app, f"/job_state/{job}", "alice", If_None_Match=etag)
    assert response.json["job"]["status"] == "stalled"
    assert response.json["job_state"] == "working"


def test_state_in_an_answer_of_the_application(redis_url, store, job):
    """A job has the same JSON in a view of the application, however it was loaded."""
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


def test_error_is_told_as_far_as_the_class_says(app, store):
    """By default it is hidden from every viewer. Markup stays text."""
    error = JobError("myapp.SecretError", "password=hush")
    uuid = put(store, status="error", error=error)
    for user in "alice", ADMIN:
        response = get(app, f"/job_state/{uuid}", user, Accept="text/html")
        assert response.json["job"]["error"] == {"message": "The job failed."}
        assert "hush" not in response.text
        assert "SecretError" not in response.text
    markup = "</script><img src=x onerror=alert(1)>"
    for error, text in (
        (JobError("ValueError", markup), markup),
        (JobError("OSError", "/etc/shoes"), "The job failed."),
    ):
        uuid = put(store, Confession, "error", error=error)
        response = get(app, f"/job_state/{uuid}", "alice", Accept="text/html")
        assert response.json["job"]["error"] == {"message": text}
        assert response.content_type == "application/json"


#: Fields that another program has written: not in the form of ours, or like our keys.
NONSENSE: dict[str, list[str | bytes]] = {
    "m:x": ["{bad", "[1e999]", "9" * 5000, "[" * 100_000, b"\xff", '"\\ud800"'],
    "m:__proto__": ['{"isAdmin": true}'],
    "m:job": ['{"status": "success"}'],
    "m:job_state": ['"success"'],
    "status": ["<b>"],
    "queued": ["9" * 30],
    "due": ["1e400"],
    "attempt": ["9" * 5000],
    "params": ['{"miles": 1e999}'],
    "progress": ["[NaN, -1, null, null]", "[1" + "0" * 400 + ", 3, null, null]"],
    "error": ["[1, 2]", '{"message": "hush"}'],
}


def test_nonsense_in_the_store_is_not_an_error(app, store):
    """What another program writes breaks neither the JSON nor the job's own part."""
    for field, values in NONSENSE.items():
        for value in values:
            job = put(store)
            write(store, job, **{field: value})
            response = get(app, f"/job_state/{job}", "alice")
            assert response.status_code == 200, (field, value)
            state = json.loads(response.body, parse_constant=pytest.fail)
            assert state["job"]["uuid"] == job
            assert state["job_state"] == "working", (field, value)
            assert '"hush"' not in response.text


class Own(JobState):
    kind = "tests.web.test_states.Own"
    extra: Any = None

    def __json__(self, request: Any) -> dict[str, Any]:
        return {**super().__json__(request), "extra": self.extra}


def test_each_value_is_encoded_alike(app, store):
    """Polls, batches and lists show a value alike, also where a class adds to it."""
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
def test_speed_need_not_be_installed(app, redis_url, store):
    """Without orjson, the standard library encodes everything."""
    metrics = {str(n): value for n, value in enumerate(VALUES)}
    job = put(store, status="success", metrics=metrics)
    command = [sys.executable, "-c", WITHOUT_SPEED, redis_url, job]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == get(app, f"/job_state/{job}", "alice").json


def test_what_cannot_be_encoded_is_an_error(app, store, monkeypatch):
    """What the application adds is checked, and not written as null."""
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
    today = datetime.date(2026, 11, 26)
    monkeypatch.setattr(Own, "extra", None)
    for cls, name, value in (
        (Own, "title", today),
        (Confession, "title", today),
        (Confession, "public_error", lambda job, kind, message: today),
    ):
        job = put(store, cls, "error", error=JobError("ValueError", "wrong"))
        with monkeypatch.context() as patch:
            patch.setattr(cls, name, value)
            with pytest.raises(TypeError):
                get(app, f"/job_state/{job}", "alice")


TIME = "JobState-Time"


def millis(store: JobStore) -> int:
    """Return the time of the server."""
    seconds, micros = store.client.time()
    return int(seconds * 1000 + micros // 1000)


def test_every_answer_tells_the_time(app, store, monkeypatch):
    """The time is the store's. A bad query is refused before the store is asked."""
    job, ended = put(store), put(store, status="success")
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    monkeypatch.setattr("time.time_ns", lambda: 10**15)
    place = f"/job_state/{job}"
    etag = get(app, place, "alice").headers["ETag"]
    asking = {"X_Requested_With": "x"}
    for status, method, path, user, headers in (
        (304, "GET", place, "alice", {"If_None_Match": etag}),
        (200, "GET", f"/jobs/{job}", "alice", {}),
        (200, "GET", f"/site/jobs?uuid={job}&uuid={UUID}", "alice", {}),
        (200, "GET", "/job_state", "alice", {}),
        (200, "GET", "/job_state/counts", ADMIN, {}),
        (202, "POST", f"{place}/cancel", "alice", asking),
        (409, "POST", f"/job_state/{ended}/cancel", "alice", asking),
        (404, "GET", f"/job_state/{UUID}", "alice", {}),
        (403, "GET", "/job_state?owner=bob", "alice", {}),
        (400, "GET", "/job_state?limit=x", "alice", {}),
    ):
        before = millis(store)
        response = ask(app, method, path, user, **headers)
        assert response.status_code == status, path
        times = response.headers.getall(TIME)
        assert len(times) == (status != 400)
        for time in times:
            assert before - 100 <= int(time) <= millis(store) + 100, path


# Titles and errors that are translation strings, in the viewer's language.


_ = TranslationStringFactory("marathons")

ENGLISH, TRANSLATED = "Marathon over 26 miles", "Marathon über 26 Meilen"

GERMAN = {
    "Marathon over ${miles} miles": "Marathon über ${miles} Meilen",
    "The runner fell.": "Der Läufer ist gestürzt.",
    "skipped": "Übersprungen.",
}

SKIPPED = JobError("dramatiq.middleware.middleware.SkipMessage", "hush")


class TranslatedRelay(JobState):
    """A kind of job whose texts are translation strings."""

    public_params = ("miles",)

    @property
    def title(self) -> Any:
        return _("Marathon over ${miles} miles", mapping=self.job_params)

    def public_error(self, exception_type: str, message: str) -> Any:
        if self.status == "cancelled":
            return _("skipped", default="Skipped <b>early</b>.")
        return _("The runner fell.")

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, ("view_job", "cancel_job"))]


def translated(config: Configurator, folder: Path) -> Configurator:
    """Add a catalog with German texts to an application."""
    write_catalog(folder, "marathons", "de", GERMAN)
    config.add_translation_dirs(str(folder))
    return config


@pytest.fixture
def translated_app(redis_url: str, tmp_path: Path) -> TestApp:
    """An application with a German catalog."""
    return make_app(translated(make_config(redis_url), tmp_path))


def localizers(config: Configurator) -> set[str]:
    """Return the names of the localizers that Pyramid keeps."""
    return {name for name, _ in config.registry.getUtilitiesFor(ILocalizer)}


def test_words_are_in_the_language_of_the_request(redis_url, store, tmp_path):
    """No browser gets a message id. A catalog for our domain translates our reasons."""
    ours = {
        "The job failed.": "Gescheitert.",
        "No worker knows the actor ${actor}.": "${actor}?",
    }
    write_catalog(tmp_path, "pyramid_jobstate", "de", ours)
    app = make_app(translated(make_config(redis_url), tmp_path))
    hidden, unknown = JobError("ValueError", "hush"), "No worker knows the actor 'x'."
    own, other = TranslatedRelay, RunMarathon
    for cls, status, error, english, german in (
        (own, "error", hidden, "The runner fell.", "Der Läufer ist gestürzt."),
        (own, "cancelled", SKIPPED, "Skipped <b>early</b>.", "Übersprungen."),
        (other, "error", hidden, "The job failed.", "Gescheitert."),
        (other, "error", JobError(None, unknown), unknown, "'x'?"),
        (other, "error", JobError(None, "Rain."), "Rain.", "Rain."),
    ):
        path = f"/job_state/{put(store, cls, status, error=error)}"
        for query, text in ("", english), ("?_LOCALE_=de", german):
            state = get(app, path + query, "alice").json["job"]
            assert state["error"] == {"message": text}


def test_every_answer_is_translated(translated_app, store):
    """Each language has an ETag of its own."""
    job = put(store, TranslatedRelay)
    for path in f"/job_state/{job}?", f"/job_state?uuid={job}&":
        known = get(translated_app, path).headers["ETag"]
        german = f"{path}_LOCALE_=de"
        response = get(translated_app, german, If_None_Match=known)
        assert response.status_code == 200
        assert TRANSLATED in response.text
        known = response.headers["ETag"]
        assert get(translated_app, german, If_None_Match=known).status_code == 304
    listed = get(translated_app, "/job_state?_LOCALE_=de", "alice").json["items"]
    assert [item["job"]["title"] for item in listed] == [TRANSLATED]
    path = f"/job_state/{job}/cancel?_LOCALE_=de"
    cancelled = ask(translated_app, "POST", path, X_Requested_With="x")
    assert cancelled.json["job"]["title"] == TRANSLATED


def test_names_of_unknown_languages_are_not_kept(redis_url, store, tmp_path):
    """Nothing is kept but the languages of catalogs. Others get the default."""
    config = translated(paged_config(redis_url), tmp_path)
    app = make_app(config)
    job = put(store, TranslatedRelay)
    for path in f"/job_state/{job}?", "/job_state?all=1&":
        for name in "xx", "de_X1", "..", "%00":
            text = TRANSLATED if "de_" in name else ENGLISH
            for accept in "application/json", "text/html":
                for query, cookie in ("", f"_LOCALE_={name}"), (f"_LOCALE_={name}", ""):
                    sent = {"Accept": accept, **({"Cookie": cookie} if cookie else {})}
                    response = get(app, path + query, OPERATOR, **sent)
                    assert response.status_code == 200, (path, name)
                    assert text in response.text
    assert localizers(config) <= {"en", "de"}
