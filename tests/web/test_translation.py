"""Titles and errors that are translation strings, in the viewer's language."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator
from pyramid.i18n import TranslationStringFactory
from pyramid.interfaces import ILocalizer
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import put_job as add_job
from tests.catalogs import write_catalog
from tests.web.operating import OPERATOR
from tests.web.paging import paged_config
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


#: Names of languages for which no application has a catalog.
UNKNOWN = ["xx", "de_", "de_X1", "de-AT", "..", "%00", "%22x", "LC_MESSAGES", "*"]


def localizers(config: Configurator) -> set[str]:
    """Return the names of the localizers that Pyramid keeps."""
    return {name for name, _ in config.registry.getUtilitiesFor(ILocalizer)}


@pytest.mark.parametrize("sender", ["query", "cookie"])
@pytest.mark.parametrize(
    "path", ["/job_state/{}", "/job_state?uuid={}", "/job_state?all=1"]
)
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_names_of_languages_do_not_pile_up(
    redis_url: str,
    client: redis.Redis,
    tmp_path: Path,
    path: str,
    accept: str,
    sender: str,
) -> None:
    """Whatever languages requests name, nothing is kept but those that the application
    has catalogs for. Others are shown the default.
    """
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    app = make_app(config)
    store = JobStore(client)
    path = path.format(add_job(store, TranslatedRelay, params={"miles": 26}).uuid)

    for name in UNKNOWN:
        address, headers = path, {"Accept": accept, "Cookie": f"_LOCALE_={name}"}
        if sender == "query":
            mark = "&" if "?" in path else "?"
            address, headers = f"{path}{mark}_LOCALE_={name}", {"Accept": accept}
        response = get(app, address, OPERATOR, **headers)

        assert response.status_code == 200
        is_german = "de_" in name
        text = "Marathon über 26 Meilen" if is_german else "Marathon over 26 miles"
        assert text in response.text
    assert localizers(config) <= {"en", "de"}


def test_catalog_of_a_region_comes_before_that_of_its_language(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """A catalog serves the regions of its language that have none of their own."""
    for name, miles in ("de", "Meilen"), ("de_AT", "Miglien"):
        texts = {**GERMAN, "Marathon over ${miles} miles": f"${{miles}} {miles}"}
        write_catalog(tmp_path / name / "LC_MESSAGES" / "marathons.mo", texts)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    app = make_app(config)
    path = f"/job_state/{put_relay(client)}?_LOCALE_="

    found = {name: get(app, path + name).json for name in ("de", "de_AT", "de_CH")}

    titles = {name: state["job"]["title"] for name, state in found.items()}
    assert titles == {"de": "26 Meilen", "de_AT": "26 Miglien", "de_CH": "26 Meilen"}
    assert localizers(config) == {"de", "de_AT"}


def test_default_and_english_need_no_catalog(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """An unknown language is shown the default. English is what texts say that have no
    translation.
    """
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = make_config(redis_url, settings={"pyramid.default_locale_name": "de_AT"})
    config.add_translation_dirs(str(tmp_path))
    app = make_app(config)
    path = f"/job_state/{put_relay(client)}"

    titles = [
        get(app, f"{path}{query}").json["job"]["title"]
        for query in ("", "?_LOCALE_=fr", "?_LOCALE_=en", "?_LOCALE_=en_GB")
    ]

    assert titles == ["Marathon über 26 Meilen"] * 2 + ["Marathon over 26 miles"] * 2
    assert localizers(config) == {"de_AT", "en"}


def test_locale_negotiator_of_the_application_stays_in_force(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """Only what the application's own negotiator returns is restricted."""
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    config.set_locale_negotiator(lambda request: request.headers["X-Language"])
    app = make_app(config)
    path = f"/job_state/{put_relay(client)}?_LOCALE_=en"

    german, unknown = (get(app, path, X_Language=name) for name in ("de", "x"))

    assert german.json["job"]["title"] == "Marathon über 26 Meilen"
    assert unknown.json["job"]["title"] == "Marathon over 26 miles"
    assert localizers(config) == {"de", "en"}


def test_localizer_of_the_application_stays_in_force(
    redis_url: str, client: redis.Redis
) -> None:
    """An application that translates in its own way is not asked for catalogs."""

    class Shouting:
        def translate(self, text: Any) -> str:
            return str(text.interpolate()).upper()

    config = make_config(redis_url)
    config.add_request_method(lambda request: Shouting(), "localizer", reify=True)
    app = make_app(config)

    title = get(app, f"/job_state/{put_relay(client)}?_LOCALE_=x").json["job"]["title"]

    assert title == "MARATHON OVER 26 MILES"
    assert localizers(config) == set()
