"""Titles and errors that are translation strings, in the viewer's language."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Everyone
from pyramid.i18n import TranslationStringFactory
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from tests.catalogs import write_catalog
from tests.webapp import ask, get, make_app, make_config, put_job

_ = TranslationStringFactory("marathons")

GERMAN = {
    "": "Content-Type: text/plain; charset=UTF-8\n",
    "Marathon over ${miles} miles": "Marathon über ${miles} Meilen",
    "The runner fell.": "Der Läufer ist gestürzt.",
    "skipped": "Übersprungen.",
}

OURS = {
    "": GERMAN[""],
    "The job failed.": "Gescheitert.",
    "The job was skipped.": "Ausgelassen.",
    "The job was cancelled.": "Abgebrochen.",
    "The job could not be sent.": "Nicht gesendet.",
    "An earlier step did not succeed.": "Zu früh.",
    "The message was rejected.": "Abgelehnt.",
    "No worker knows the actor ${actor}.": "${actor}: wer?",
}

SKIPPED = "dramatiq.middleware.middleware.SkipMessage"


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


@pytest.fixture
def translated_app(redis_url: str, tmp_path: Path) -> TestApp:
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    return make_app(config)


def in_german(path: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}_LOCALE_=de"


def put_relay(client: redis.Redis, **fields: str | bytes | int) -> str:
    return put_job(client, kind="TranslatedRelay", params='{"miles": 26}', **fields)


def test_words_are_in_the_language_of_the_request(
    translated_app: TestApp, client: redis.Redis
) -> None:
    """The request's localizer translates titles and errors, with their mappings."""
    error = '["ValueError", "hush"]'
    job = put_relay(client, status="error", error=error)

    english = get(translated_app, f"/job_state/{job}").json["job"]
    german = get(translated_app, in_german(f"/job_state/{job}")).json["job"]

    assert english["title"] == "Marathon over 26 miles"
    assert english["error"] == {"message": "The runner fell."}
    assert german["title"] == "Marathon über 26 Meilen"
    assert german["error"] == {"message": "Der Läufer ist gestürzt."}


def test_default_of_a_translation_string_stands_for_a_missing_text(
    translated_app: TestApp, client: redis.Redis
) -> None:
    """A string with a default never reaches the browser as its message id."""
    error = '["dramatiq.middleware.middleware.SkipMessage", "x"]'
    job = put_relay(client, status="cancelled", error=error)

    english = get(translated_app, f"/job_state/{job}").json["job"]
    german = get(translated_app, in_german(f"/job_state/{job}")).json["job"]

    assert english["error"] == {"message": "Skipped <b>early</b>."}
    assert german["error"] == {"message": "Übersprungen."}


def put_ended(client: redis.Redis, status: str, error: list[Any]) -> str:
    return put_job(client, status=status, error=json.dumps(error))


@pytest.mark.parametrize(
    ("status", "error", "english", "german"),
    [
        ("error", ["ValueError", "hush"], "The job failed.", "Gescheitert."),
        ("cancelled", [SKIPPED, "x"], "The job was skipped.", "Ausgelassen."),
        ("cancelled", [None, "The job was cancelled."], None, "Abgebrochen."),
        ("error", [None, "The job could not be sent."], None, "Nicht gesendet."),
        ("error", [None, "An earlier step did not succeed."], None, "Zu früh."),
        ("error", [None, "The message was rejected."], None, "Abgelehnt."),
        ("error", [None, "No worker knows the actor '${x}'."], None, "'${x}': wer?"),
        ("error", [None, "Something else."], None, "Something else."),
        (
            "error",
            ["E", "The message was rejected."],
            "The job failed.",
            "Gescheitert.",
        ),
    ],
    ids=str,
)
def test_words_of_ours_are_in_the_language_of_the_request(
    redis_url: str,
    client: redis.Redis,
    tmp_path: Path,
    status: str,
    error: list[Any],
    english: str | None,
    german: str,
) -> None:
    """An application's catalog for our domain translates what we say of an end."""
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "pyramid_jobstate.mo", OURS)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    app = make_app(config)
    job = put_ended(client, status, error)

    def shown(path: str) -> Any:
        return get(app, path, "alice").json["job"]["error"]["message"]

    assert shown(f"/job_state/{job}") == (english or error[1])
    assert shown(in_german(f"/job_state/{job}")) == german


def test_default_of_public_error_may_be_part_of_a_text(client: redis.Redis) -> None:
    """What a class gets from its parent is an English string."""
    state = JobStore(client).load(put_ended(client, "error", ["ValueError", "hush"]))
    assert state is not None

    text = state.public_error("ValueError", "hush")

    assert text == "The job failed."
    assert f"{text} Sorry." == "The job failed. Sorry."
    assert json.dumps(text) == '"The job failed."'
    assert pickle.loads(pickle.dumps(text)).interpolate() == text


@pytest.mark.parametrize("path", ["/job_state/{}", "/job_state?uuid={}"])
def test_answers_in_two_languages_have_two_etags(
    translated_app: TestApp, client: redis.Redis, path: str
) -> None:
    """A change of the language returns the new texts, not a 304."""
    path = path.format(put_relay(client))
    english = get(translated_app, path)

    german = get(translated_app, in_german(path), If_None_Match=english.headers["ETag"])

    assert german.status_code == 200
    assert "Meilen" in german.text and "miles" in english.text
    again = get(translated_app, in_german(path), If_None_Match=german.headers["ETag"])
    assert again.status_code == 304


def test_lists_and_cancels_are_translated(
    translated_app: TestApp, client: redis.Redis
) -> None:
    """Every response that contains a job is in the viewer's language."""
    job = put_relay(client)
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})

    (item,) = get(translated_app, in_german("/job_state"), "alice").json["items"]
    cancelled = ask(
        translated_app,
        "POST",
        in_german(f"/job_state/{job}/cancel"),
        X_Requested_With="x",
    )

    assert item["job"]["title"] == "Marathon über 26 Meilen"
    assert cancelled.json["job"]["title"] == "Marathon über 26 Meilen"


def test_application_without_translations_shows_the_default(
    redis_url: str, client: redis.Redis
) -> None:
    """Without a catalog, the mapping is still applied."""
    app = make_app(make_config(redis_url))
    job = put_relay(client)

    title = get(app, in_german(f"/job_state/{job}")).json["job"]["title"]

    assert title == "Marathon over 26 miles"


def test_language_that_cannot_be_read_is_a_bad_request(
    translated_app: TestApp, client: redis.Redis
) -> None:
    """A parameter that is not UTF-8 does not break the application's negotiator."""
    job = put_relay(client)

    for path in f"/job_state/{job}", f"/job_state?uuid={job}":
        response = get(
            translated_app, f"{path}{'&' if '?' in path else '?'}_LOCALE_=%FF"
        )

        assert response.status_code == 400
        assert response.json == {"error": "A parameter is not UTF-8."}


def test_language_that_cannot_be_looked_up_is_the_default(
    translated_app: TestApp, client: redis.Redis
) -> None:
    """A language name that cannot be a folder's name does not cause an error."""
    job = put_relay(client)

    state = get(translated_app, f"/job_state/{job}?_LOCALE_=%00").json

    assert state["job"]["title"] == "Marathon over 26 miles"
