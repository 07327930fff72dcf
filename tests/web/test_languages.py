"""Titles and errors that are translation strings, in the viewer's language."""

from __future__ import annotations

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
from tests.jobs import RunMarathon
from tests.web.operating import OPERATOR
from tests.web.paging import paged_config
from tests.web.reading import put
from tests.webapp import ask, get, make_app, make_config

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


def test_words_are_in_the_language_of_the_request(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
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


def test_every_answer_is_translated(translated_app: TestApp, store: JobStore) -> None:
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


def test_names_of_unknown_languages_are_not_kept(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
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
