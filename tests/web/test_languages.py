"""Titles and errors that are translation strings, in the viewer's language."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator
from pyramid.i18n import TranslationStringFactory
from pyramid.interfaces import ILocalizer
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from tests.catalogs import write_catalog
from tests.support import load_job
from tests.web.operating import OPERATOR
from tests.web.paging import paged_config
from tests.web.reading import put
from tests.webapp import ask, get, make_app, make_config

_ = TranslationStringFactory("marathons")

ENGLISH, TRANSLATED = "Marathon over 26 miles", "Marathon über 26 Meilen"

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


def translated(
    config: Configurator, folder: Path, *languages: str, domain: str = "marathons"
) -> Configurator:
    """Add catalogs with German texts to an application."""
    texts = OURS if domain == "pyramid_jobstate" else GERMAN
    for name in languages or ("de",):
        write_catalog(folder / name / "LC_MESSAGES" / f"{domain}.mo", texts)
    config.add_translation_dirs(str(folder))
    return config


@pytest.fixture
def translated_app(redis_url: str, tmp_path: Path) -> TestApp:
    """An application with a German catalog."""
    return make_app(translated(make_config(redis_url), tmp_path))


def in_german(path: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}_LOCALE_=de"


def put_relay(store: JobStore, status: str = "working", **options: Any) -> str:
    return put(store, TranslatedRelay, status, **options)


def title_of(app: TestApp, path: str, **headers: str) -> str:
    title: str = get(app, path, **headers).json["job"]["title"]
    return title


def localizers(config: Configurator) -> set[str]:
    """Return the names of the localizers that Pyramid keeps."""
    return {name for name, _ in config.registry.getUtilitiesFor(ILocalizer)}


# Texts


def test_words_are_in_the_language_of_the_request(
    translated_app: TestApp, store: JobStore
) -> None:
    """The request's localizer translates titles and errors, with their mappings. A
    string with a default never reaches the browser as its message id.
    """
    failed = put_relay(store, "error", error=JobError("ValueError", "hush"))
    skipped = put_relay(store, "cancelled", error=JobError(SKIPPED, "x"))
    for job, english, german in (
        (failed, "The runner fell.", "Der Läufer ist gestürzt."),
        (skipped, "Skipped <b>early</b>.", "Übersprungen."),
    ):
        path = f"/job_state/{job}"
        for url, title, error in (
            (path, ENGLISH, english),
            (in_german(path), TRANSLATED, german),
        ):
            state = get(translated_app, url).json["job"]
            assert (state["title"], state["error"]) == (title, {"message": error})


def test_words_of_ours_are_in_the_language_of_the_request(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """An application's catalog for our domain translates what we say of an end."""
    config = make_config(redis_url)
    app = make_app(translated(config, tmp_path, domain="pyramid_jobstate"))
    failed = "The job failed."
    for status, error, english, german in (
        ("error", JobError("ValueError", "hush"), failed, "Gescheitert."),
        ("cancelled", JobError(SKIPPED, "x"), "The job was skipped.", "Ausgelassen."),
        ("cancelled", JobError(None, "The job was cancelled."), None, "Abgebrochen."),
        (
            "error",
            JobError(None, "The job could not be sent."),
            None,
            "Nicht gesendet.",
        ),
        ("error", JobError(None, "An earlier step did not succeed."), None, "Zu früh."),
        ("error", JobError(None, "The message was rejected."), None, "Abgelehnt."),
        (
            "error",
            JobError(None, "No worker knows the actor '${x}'."),
            None,
            "'${x}': wer?",
        ),
        ("error", JobError(None, "Something else."), None, "Something else."),
        ("error", JobError("E", "The message was rejected."), failed, "Gescheitert."),
    ):
        path = f"/job_state/{put(store, status=status, error=error)}"
        for url, text in (path, english or error.message), (in_german(path), german):
            state = get(app, url, "alice").json["job"]
            assert state["error"]["message"] == text, error


def test_default_of_public_error_may_be_part_of_a_text(store: JobStore) -> None:
    """What a class gets from its parent is an English string."""
    job = put(store, status="error", error=JobError("ValueError", "hush"))

    text = load_job(store, job).public_error("ValueError", "hush")

    assert text == "The job failed."
    assert f"{text} Sorry." == "The job failed. Sorry."
    assert json.dumps(text) == '"The job failed."'
    assert pickle.loads(pickle.dumps(text)).interpolate() == text


def test_every_answer_is_translated(translated_app: TestApp, store: JobStore) -> None:
    """Every response that contains a job is in the viewer's language, and each language
    has an ETag of its own.
    """
    job = put_relay(store)
    for path in f"/job_state/{job}", f"/job_state?uuid={job}":
        english = get(translated_app, path)
        known = english.headers["ETag"]
        german = get(translated_app, in_german(path), If_None_Match=known)
        assert german.status_code == 200
        assert TRANSLATED in german.text and ENGLISH in english.text
        known = german.headers["ETag"]
        again = get(translated_app, in_german(path), If_None_Match=known)
        assert again.status_code == 304
    (item,) = get(translated_app, in_german("/job_state"), "alice").json["items"]
    assert item["job"]["title"] == TRANSLATED
    path = in_german(f"/job_state/{job}/cancel")
    cancelled = ask(translated_app, "POST", path, X_Requested_With="x")
    assert cancelled.json["job"]["title"] == TRANSLATED


# Languages


def test_application_without_translations_shows_the_default(
    app: TestApp, store: JobStore
) -> None:
    """Without a catalog, the mapping is still applied."""
    assert title_of(app, in_german(f"/job_state/{put_relay(store)}")) == ENGLISH


def test_language_that_cannot_be_read_is_a_bad_request(
    translated_app: TestApp, store: JobStore
) -> None:
    """A parameter that is not UTF-8 does not break the application's negotiator."""
    job = put_relay(store)
    for path in f"/job_state/{job}?", f"/job_state?uuid={job}&":
        response = get(translated_app, f"{path}_LOCALE_=%FF")
        assert response.status_code == 400
        assert response.json == {"error": "A parameter is not UTF-8."}


#: Names of languages for which no application has a catalog.
UNKNOWN = ["xx", "de_", "de_X1", "de-AT", "..", "%00", "%22x", "LC_MESSAGES", "*"]


def test_names_of_unknown_languages_are_not_kept(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """Whatever languages requests name, nothing is kept but those that the application
    has catalogs for. Others are shown the default.
    """
    config = translated(paged_config(redis_url), tmp_path)
    app = make_app(config)
    job = put_relay(store)
    for path in f"/job_state/{job}?", f"/job_state?uuid={job}&", "/job_state?all=1&":
        for name in UNKNOWN:
            text = TRANSLATED if "de_" in name else ENGLISH
            for accept in "application/json", "text/html":
                for query, cookie in ("", f"_LOCALE_={name}"), (f"_LOCALE_={name}", ""):
                    sent = {"Accept": accept, **({"Cookie": cookie} if cookie else {})}
                    response = get(app, path + query, OPERATOR, **sent)
                    assert response.status_code == 200, (path, name)
                    assert text in response.text
    assert localizers(config) <= {"en", "de"}


def test_catalog_of_a_region_comes_before_that_of_its_language(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """A catalog serves the regions of its language that have none of their own."""
    for name, miles in ("de", "Meilen"), ("de_AT", "Miglien"):
        texts = {**GERMAN, "Marathon over ${miles} miles": f"${{miles}} {miles}"}
        write_catalog(tmp_path / name / "LC_MESSAGES" / "marathons.mo", texts)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    app = make_app(config)
    path = f"/job_state/{put_relay(store)}?_LOCALE_="
    for name, title in (
        ("de", "26 Meilen"),
        ("de_AT", "26 Miglien"),
        ("de_CH", "26 Meilen"),
    ):
        assert title_of(app, path + name) == title
    assert localizers(config) == {"de", "de_AT"}


def test_default_and_english_need_no_catalog(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """An unknown language is shown the default. English is what texts say that have no
    translation.
    """
    settings = {"pyramid.default_locale_name": "de_AT"}
    config = translated(make_config(redis_url, settings=settings), tmp_path)
    app = make_app(config)
    path = f"/job_state/{put_relay(store)}"
    for query, title in (
        ("", TRANSLATED),
        ("?_LOCALE_=fr", TRANSLATED),
        ("?_LOCALE_=en", ENGLISH),
        ("?_LOCALE_=en_GB", ENGLISH),
    ):
        assert title_of(app, path + query) == title, query
    assert localizers(config) == {"de_AT", "en"}


def test_negotiator_and_localizer_of_the_application_stay_in_force(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """Only what the application's own negotiator returns is restricted. One that
    translates in its own way is not asked for catalogs.
    """
    path = f"/job_state/{put_relay(store)}?_LOCALE_=en"
    config = translated(make_config(redis_url), tmp_path)
    config.set_locale_negotiator(lambda request: request.headers["X-Language"])
    app = make_app(config)
    assert title_of(app, path, X_Language="de") == TRANSLATED
    assert title_of(app, path, X_Language="x") == ENGLISH
    assert localizers(config) == {"de", "en"}

    class Shouting:
        def translate(self, text: Any) -> str:
            return str(text.interpolate()).upper()

    config = make_config(redis_url)
    config.add_request_method(lambda request: Shouting(), "localizer", reify=True)
    assert title_of(make_app(config), path) == ENGLISH.upper()
    assert localizers(config) == set()
