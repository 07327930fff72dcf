"""The words of pages in other languages, and texts of jobs that try to be more."""

import gettext
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from babel import Locale
from babel.messages.pofile import read_po
from bs4 import BeautifulSoup
from pyramid.i18n import TranslationStringFactory
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, NotUnique, Progress
from pyramid_jobstate.testing import put_job
from tests.catalogs import POT, Texts, template, write_catalog
from tests.jobs import RunMarathon
from tests.support import PACKAGE, UUID
from tests.web.operating import OPERATOR, put
from tests.web.paging import (
    Visit,
    browse,
    paged_app,
    paged_config,
    put_batch,
    shape_of,
)
from tests.webapp import get, make_app

_ = TranslationStringFactory("sports")

DOMAIN = "pyramid_jobstate"

GERMAN: Texts = {
    "Waiting": "Wartet",
    "Running": "Läuft",
    "Cancel": "Abbrechen",
    "Starts at ${time}": "Beginnt um ${time}",
    "${done} of ${total} ${unit}": "${done} von ${total} ${unit}",
    "The broker does not know the actor ${actor}.": "Wer ist ${actor}?",
    "This page's address is invalid.": "Diese Adresse ist falsch.",
    "The job could not be sent.": "Nicht abgeschickt.",
    "The job was cancelled.": "Die Aufgabe wurde abgebrochen.",
    "The job ${uuid} with the same unique key is under way.": "Vorher läuft ${uuid}.",
    "Cancel this job?": "Diese Aufgabe abbrechen?",
    "The job has changed in the meantime.": "Die Aufgabe hat sich geändert.",
    ("Cancel ${number} job?", "Cancel ${number} jobs?"): (
        "${number} Aufgabe abbrechen?",
        "${number} Aufgaben abbrechen?",
    ),
}


class Biathlon(JobState):
    """A kind of job with a title in several languages."""

    @property
    def title(self) -> Any:
        return _("Biathlon")


def translated(
    redis_url: str, folder: Path, *others: str, **catalogs: Texts
) -> TestApp:
    """Return an application with pages, and with catalogs for our domain."""
    for language, texts in catalogs.items():
        write_catalog(folder, DOMAIN, language, texts)
    config = paged_config(redis_url)
    config.add_translation_dirs(str(folder), *others)
    return make_app(config)


@pytest.fixture
def german(redis_url: str, tmp_path: Path) -> TestApp:
    """An application with a German catalog for our domain, and one of its own."""
    write_catalog(tmp_path / "own", "sports", "de", {"Biathlon": "Zweikampf"})
    return translated(redis_url, tmp_path, str(tmp_path / "own"), de=GERMAN)


@pytest.mark.promise("element-speaks-languages")
def test_pages_are_in_the_requests_language(german, store):
    """A catalog translates words, plurals, numbers, questions and scripts' words."""
    job = put_job(store, Biathlon, progress=Progress(1234.5, 5000, "m")).uuid
    page = Visit(german, "/job_state?_LOCALE_=de")
    one = Visit(german, f"/job_state/{job}?_LOCALE_=de")
    english = Visit(german, f"/job_state/{job}?_LOCALE_=en")
    assert page.texts("tbody a") == one.texts("h1") == ["Zweikampf"]
    assert page.texts("job-state") == ["Läuft · 24 % · 1.234,5 von 5.000 m"]
    assert page.texts("[data-act=cancel]") == ["Abbrechen"]
    assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == "de"
    (sent,) = page.texts("tbody time")
    assert re.fullmatch(r"\d\d\.\d\d\.\d{4}, \d\d:\d\d UTC", sent)
    assert one.one("[data-act]")["data-question"] == "Diese Aufgabe abbrechen?"
    assert re.match(r"\d(,\d)? Sek\. ", one.texts(".jobstate-timeline li")[1])
    assert one.data["lang"] == "de"
    assert one.data["labels"]["due"] == "Beginnt um {time}"
    assert one.data["words"]["changed"] == "Die Aufgabe hat sich geändert."
    assert one.data["plurals"]["cancel"] == {
        "one": "{number} Aufgabe abbrechen?",
        "other": "{number} Aufgaben abbrechen?",
    }
    # A reason that only repeats the status is left out, whatever their words.
    reason = JobError(None, "The job was cancelled.")
    put_job(store, Biathlon, "cancelled", error=reason)
    assert "Cancelled" in Visit(german, "/job_state?_LOCALE_=de").texts("job-state")
    label = page.data["labels"]["reason-cancelled"]
    assert label == "Die Aufgabe wurde abgebrochen."
    # What has no translation is English.
    assert one.texts("h2") == ["Timeline"]
    assert english.texts("h1") == ["Biathlon"]
    assert english.one("html")["lang"] == "en"
    # Austria shares its words with Germany.
    austrian = Visit(german, "/job_state?_LOCALE_=de_AT")
    assert austrian.texts(".jobstate-tabs a")[1] == "Wartet 0"
    assert austrian.one("html")["lang"] == "de"


def test_page_without_a_catalog_is_english(redis_url, store, tmp_path):
    """Words, numbers, times and durations are English, whatever a request asks for."""
    job = put_job(store, RunMarathon, progress=Progress(1234.5, 5000, "m")).uuid
    write_catalog(tmp_path, "sports", "de", {"Cancel": "Abbrechen"})
    for default, name, lang, time in (
        ("de", "de_AT", "en", r"[A-Z][a-z]+ \d+"),
        ("../", "%22+lang=%22de", "en", r"[A-Z][a-z]+ \d+"),
        ("en_GB", "en_GB", "en-GB", r"\d+ [A-Z][a-z]+"),
    ):
        config = paged_config(redis_url, settings={"default_locale_name": default})
        config.add_translation_dirs(str(tmp_path))
        page = Visit(make_app(config), f"/job_state/{job}?_LOCALE_={name}")
        assert page.data["labels"]["working"] == "Running"
        assert page.texts("[data-act=cancel]") == ["Cancel"]
        assert "24% · 1,234.5 of 5,000 m" in page.texts("job-state")[0]
        assert re.match(time, page.texts("time")[0])
        for tag in page.one("html"), page.one(".jobstate"):
            assert (tag["lang"], tag["dir"]) == (lang, "ltr"), name
        assert re.match(r"[\d.]+ secs? ", page.texts(".jobstate-timeline li")[1])


def test_language_is_that_of_the_catalog(redis_url, tmp_path):
    """A page says its language as HTML spells it, if Babel knows it."""
    langs = {
        "he": ("he", "rtl"),
        "pt_BR": ("pt-BR", "ltr"),
        "pt-PT": ("pt-PT", "ltr"),
        "sr@latin": ("sr-Latn", "ltr"),
        "sr_RS@latin": ("sr-Latn-RS", "ltr"),
        "zh_TW": ("zh-Hant-TW", "ltr"),
        "de_XX": ("de", "ltr"),
        "xx_YY": ("en", "ltr"),
    }
    app = translated(redis_url, tmp_path, **{name: {"Jobs": "J."} for name in langs})
    for name, (lang, direction) in langs.items():
        page = Visit(app, f"/job_state?_LOCALE_={name}")
        assert page.texts("h1") == ["Jobs" if lang == "en" else "J."], name
        for tag in page.one("html"), page.one(".jobstate"):
            assert (tag["lang"], tag["dir"]) == (lang, direction)


def test_reason_is_in_the_language_of_the_request(german, store, marathons):
    """Our own reasons are translated, but no exception, and nothing in the JSON."""
    (job,) = put(store, "alice", cls=RunMarathon, status="error")
    del marathons.broker.actors["run_marathon"]
    page = Visit(german, f"/job_state/{job}?_LOCALE_=de")
    reason = "The job cannot run again: Wer ist 'run_marathon'?"
    assert page.texts("#jobstate-reason") == [reason]
    inspected = get(german, f"/job_state/{job}/inspect?_LOCALE_=de", OPERATOR)
    unknown = "The broker does not know the actor 'run_marathon'."
    assert inspected.json["reason"] == unknown
    not_sent = "The job could not be sent."
    for kind, text, shown in (
        (None, not_sent, "Nicht abgeschickt."),
        (None, str(NotUnique(UUID)), f"Vorher läuft {UUID}."),
        ("E", not_sent, f"E: {not_sent}"),
        (None, "So.", "So."),
    ):
        uuid = put_job(store, RunMarathon, "error", error=JobError(kind, text)).uuid
        page = Visit(german, f"/job_state/{uuid}?_LOCALE_=de")
        place = ".jobstate-exception" if kind else ".jobstate-detail"
        assert page.texts(place) == [shown]
    page = Visit(german, "/job_state?status=error&group=error&_LOCALE_=de")
    assert {f"E: {not_sent}", "Nicht abgeschickt."} < {*page.texts("tbody th")}


def test_bad_address_is_said_in_the_language_of_the_request(german):
    """A bad query is a sentence for viewers, followed by what is wrong, in English."""
    response = browse(german, "/job_state/?all=1&limit=--><b>&_LOCALE_=de")
    html = BeautifulSoup(response.text, "html.parser")
    assert (response.status_code, response.content_type) == (400, "text/html")
    text = " ".join(html.get_text().split())
    detail = "limit must be a number, not '--><b>'."
    assert text.endswith(f"Diese Adresse ist falsch. {detail}")


def test_numbers_have_forms_of_their_language(redis_url, store, tmp_path):
    """The form for a number is that of its CLDR category, also in the script."""
    job = put_job(store, RunMarathon, attempt=23).uuid
    text = "${number} earlier try", "${number} earlier tries"
    # The place of each category in the entry.
    languages = {
        "pl": {"one": 0, "few": 1, "many": 2, "other": 2},
        "ar": {"zero": 0, "one": 1, "two": 2, "few": 3, "many": 4, "other": 5},
        "ja": {"other": 0},
    }
    catalogs: dict[str, Texts] = {
        language: {
            "Jobs": "J.",
            text: tuple(f"{n} ${{number}}" for n in range(max(places.values()) + 1)),
        }
        for language, places in languages.items()
    }
    app = translated(redis_url, tmp_path, **catalogs)
    for language, places in languages.items():
        category = Locale(language).plural_form
        page = Visit(app, f"/job_state/{job}?_LOCALE_={language}")
        earlier = f"{places[category(22)]} 22"
        assert page.texts(".jobstate-timeline li")[1] == earlier
        found = page.data["plurals"]["earlier"]
        assert found == {name: f"{n} {{number}}" for name, n in places.items()}
        path = tmp_path / language / "LC_MESSAGES" / f"{DOMAIN}.mo"
        with path.open("rb") as file:
            gnu = gettext.GNUTranslations(file)
        for number in (*range(231), 1_000_000):
            form = gnu.ngettext(*text, number).replace("${", "{")
            assert found[category(number)] == form, number


def test_catalog_may_have_a_rule_of_its_own(redis_url, tmp_path):
    """Where a catalog's rule parts 0 from 1, unlike CLDR, the form for 1 is used."""
    text = "${number} earlier try", "${number} earlier tries"
    forms = "${number} tentativa", "${number} tentativas"
    texts: Texts = {"Jobs": "Tarefas", text: forms}
    write_catalog(tmp_path, DOMAIN, "pt", texts, "nplurals=2; plural=n != 1;")
    page = Visit(translated(redis_url, tmp_path), "/job_state?_LOCALE_=pt")
    one, other = "{number} tentativa", "{number} tentativas"
    found = page.data["plurals"]["earlier"]
    assert found == {"one": one, "many": other, "other": other}


class Asking:
    """A localizer that notes the ids of the texts of our domain that it translates."""

    locale_name = "en"

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def translate(self, text: Any, **options: Any) -> str:
        if getattr(text, "domain", "") == "pyramid_jobstate":
            self.ids.add(str(text))
        return str(getattr(text, "default", text))

    def pluralize(self, one: str, other: str, number: int, domain: str) -> str:
        self.ids.add(str(one))
        return str(one)


def test_template_for_translators_has_all_texts(redis_url):
    """The template that the package ships has the texts that pages ask for."""
    assert POT.read_bytes() == template()
    asking = Asking()
    config = paged_config(redis_url)
    config.add_request_method(lambda request: asking, "localizer", reify=True)
    Visit(make_app(config), "/job_state/?all=1")
    with POT.open("rb") as file:
        messages = [each.id for each in read_po(file) if each.id]
    ids = [each if isinstance(each, str) else each[0] for each in messages]
    assert asking.ids == {*ids}


def test_scripts_ask_for_words_that_they_get(redis_url):
    """The scripts use each word that their page has, and no other."""
    data = Visit(paged_app(redis_url), "/job_state").data
    element, page = (
        (PACKAGE / "static" / name).read_text("utf-8")
        for name in ("job-state.js", "job-state-pages.js")
    )
    table = element.partition("const ENGLISH = {\n")[2].partition("\n};")[0]
    found = re.findall(r'^  "?([\w-]+)"?: "(.*)",$', table, re.MULTILINE)
    words = re.findall(r"\bwords(?:\.(\w+)\b|\[\"([\w-]+)\"\])", page)
    labels = re.findall(r"\blabels\.(\w+)", page)
    assert dict(found) == data["labels"]
    # One is looked up by the status of an answer.
    assert {a or b for a, b in words} == data["words"].keys() - {"503"}
    assert set(labels) <= data["labels"].keys()


# Texts of jobs, and of addresses, that try to be more than text.


#: Ends an attribute, an element, a script, an expression of any template engine; has
#: control characters, and text of another direction.
HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;</title></textarea>"
    "</job-state>{{ 7 * 7 }}{% raw %}${7*7}<%= 7*7 %>\u202eabc\u2028\x1b[2J"
)


class Hurdles(JobState):
    """A kind of job whose texts try to be more."""

    kind = f"kind {HOSTILE}"
    public_params = ("miles", HOSTILE)

    @property
    def title(self) -> str:
        return f"title {HOSTILE}"

    def public_error(self, exception_type: str, message: str) -> str:
        return f"error {HOSTILE}"


@pytest.mark.promise("texts-are-inert")
def test_hostile_texts_stay_text(store, visit):
    """Texts of jobs, owners and kinds add no markup to a page, and read as they are."""

    def put_each(cls: type[JobState], text: str) -> str:
        given: dict[str, Any] = {
            "owner": f"owner {text}",
            "params": {"miles": f"value {text}", text: "named"},
            "metrics": {"m": f"metric {text}", "n": {text: text}},
            "message": f"message {text}",
            "log": [f"line {text}"],
            "progress": Progress(1, 2, f"unit {text}"),
            "error": JobError(f"type {text}", f"exception {text}"),
            "traceback": f"trace {text}",
        }
        put_job(store, cls, "error", **given)
        # Shows both its message and its error.
        return put_job(store, cls, "retrying", **given).uuid

    harmless = put_each(RunMarathon, "x")
    list_shape = shape_of(visit("/job_state"))
    groups_shape = shape_of(visit("/job_state?status=error&group=error"))
    shape = shape_of(visit(f"/job_state/{harmless}"))
    job = put_each(Hurdles, HOSTILE)
    page = visit("/job_state")
    one = visit(f"/job_state/{job}")
    groups = visit("/job_state?status=error&group=error")
    assert len(groups.all("tbody tr")) == 2
    assert shape_of(groups) == groups_shape
    assert shape_of(page) == list_shape
    assert shape_of(one) == shape
    both = ["title", "message", "owner", "unit", "type", "exception"]
    own = ["error", "line", "value", "metric", "trace"]
    for visited, words in (page, ["kind", *both]), (one, [*both, *own]):
        text = visited.html.get_text()
        for word in words:
            assert f"{word} {HOSTILE}" in text, word
    assert {HOSTILE, "m", "n", "miles"} == {tag.get_text() for tag in one.all("dt")}
    assert one.all("title")[0].get_text() == f"title {HOSTILE}"


def test_hostile_titles_of_a_batch_stay_text(store, visit):
    """Nothing in the titles of a batch and of its members becomes an element."""
    options: Any = {"title": f"batch {HOSTILE}", "member": Hurdles, "owner": HOSTILE}
    batch, (job,) = put_batch(store, "error", **options)
    plain, (other,) = put_batch(store, "error")
    page, member = visit(f"/job_state/{batch}"), visit(f"/job_state/{job}")
    assert shape_of(page) == shape_of(visit(f"/job_state/{plain}"))
    assert page.one("h1").get_text() == f"batch {HOSTILE}"
    assert page.one("tr th a").get_text() == f"title {HOSTILE}"
    assert shape_of(member) == shape_of(visit(f"/job_state/{other}"))
    assert member.one(".jobstate-batch a").get_text() == f"batch {HOSTILE}"


def test_hostile_queries_stay_text(store, visit):
    """What a query says adds nothing to a page, and its links say the same."""
    put_job(store, RunMarathon)
    shape = shape_of(visit("/job_state?owner=a&kind=Unknown&id=x"))
    query = urlencode({"owner": HOSTILE, "kind": HOSTILE, "id": HOSTILE})
    page = visit(f"/job_state/?{query}")
    assert shape_of(page) == shape
    assert page.one("input[name=owner]")["value"] == HOSTILE
    filters = {"kind": HOSTILE, "owner": HOSTILE, "status": "error"}
    assert page.link("Failed") == f"http://localhost/job_state/?{urlencode(filters)}"


def test_each_request_may_have_a_localizer(redis_url, store):
    """A request's own localizer is used, even one that is not hashable."""
    (job,) = put(store, "alice")

    class Odd(Asking):
        """A localizer that cannot be the key of a dictionary, because of its method."""

        def __eq__(self, other: object) -> bool:
            return self is other

    for cls, count in (Asking, 70), (Odd, 1):
        made: list[Asking] = []

        def make(request: Request, cls: Any = cls, made: Any = made) -> Asking:
            made.append(cls())
            return made[-1]

        config = paged_config(redis_url)
        config.add_request_method(make, "localizer", reify=True)
        app = make_app(config)
        for _ in range(count):
            assert ">Running<" in browse(app, f"/job_state/{job}").text
        assert len(made) == count
        assert all("Running" in each.ids for each in made)
