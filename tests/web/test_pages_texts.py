"""The words of pages in other languages, and texts of jobs that try to be more."""

from __future__ import annotations

import ast
import gc
import gettext
import json
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis
from bs4 import BeautifulSoup, Comment
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from pyramid.authorization import Allow, Everyone
from pyramid.httpexceptions import HTTPBadRequest
from pyramid.i18n import (
    TranslationStringFactory,
    default_locale_negotiator,
    make_localizer,
)
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore, NotUnique, Progress
from pyramid_jobstate.errors import BatchCancelled
from pyramid_jobstate.job import FINISHED, NOT_SENT, UNFINISHED, Record, sentence_of
from pyramid_jobstate.store import refusal
from pyramid_jobstate.testing import put_job
from pyramid_jobstate.web.pages.acts import ACTS
from pyramid_jobstate.web.pages.chart import PARTS
from pyramid_jobstate.web.pages.texts import (
    LABELS,
    PLURALS,
    SCRIPT,
    SENTENCES,
    SINGLE,
    UNCOUNTED,
    WORDS,
)
from pyramid_jobstate.web.pages.words import MOST_LANGUAGES, Words, words_of
from pyramid_jobstate.worker import middleware_of
from pyramid_jobstate.worker.failures import failure_of
from tests.batched import put_batch
from tests.catalogs import POT, template, write_catalog
from tests.jobs import RunMarathon
from tests.support import PACKAGE, UUID, key_of
from tests.web.operating import OPERATOR, Marathons
from tests.web.paging import Visit, Visiting, browse, paged_app, paged_config
from tests.webapp import get, make_app

_ = TranslationStringFactory("sports")

GERMAN = {
    "": "Content-Type: text/plain; charset=UTF-8\n"
    "Plural-Forms: nplurals=2; plural=n != 1;\n",
    "Jobs": "Aufgaben",
    "Waiting": "Wartet",
    "Running": "Läuft",
    "Cancel": "Abbrechen",
    "No jobs.": "Keine Aufgaben.",
    "jobs": "Aufgaben",
    "${number} failed": "${number} gescheitert",
    "${amount}, ${count}": "${amount}; ${count}",
    "Some of its jobs failed.": "Einige Aufgaben sind gescheitert.",
    "Part of": "Teil von",
    "Run ${number} failed job again\0Run ${number} failed jobs again": (
        "${number} Aufgabe wiederholen\0${number} Aufgaben wiederholen"
    ),
    "Starts at ${time}": "Beginnt um ${time}",
    "${done} of ${total} ${unit}": "${done} von ${total} ${unit}",
    "number-grouping": ".",
    "number-decimal": ",",
    "${number} s": "${number} Sek.",
    "${time} UTC": "${time} (UTC)",
    "The store does not hold its message.": "Der Speicher hat seine Nachricht nicht.",
    "The broker does not know the actor ${actor}.": "Wer ist ${actor}?",
    "This page's address is invalid.": "Diese Adresse ist falsch.",
    "The job could not be sent.": "Nicht abgeschickt.",
    "Cancel this job?": "Diese Aufgabe abbrechen?",
    "The job has changed in the meantime.": "Die Aufgabe hat sich geändert.",
    "Cancel ${number} job?\0Cancel ${number} jobs?": (
        "${number} Aufgabe abbrechen?\0${number} Aufgaben abbrechen?"
    ),
}


class Biathlon(JobState):
    """A kind of job with a title in several languages."""

    @property
    def title(self) -> Any:
        return _("Biathlon")

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, ("view_job", "cancel_job"))]


def language_of(request: Request) -> str:
    """Return the language that the query or a header of a request names."""
    return default_locale_negotiator(request) or request.headers["X-User"]


@pytest.fixture
def german(redis_url: str, tmp_path: Path) -> TestApp:
    """An application with a German catalog for our domain, and one of its own. A header
    of the request names its language.
    """
    catalogs = tmp_path / "de" / "LC_MESSAGES"
    write_catalog(catalogs / "pyramid_jobstate.mo", GERMAN)
    write_catalog(
        tmp_path / "own" / "de" / "LC_MESSAGES" / "sports.mo",
        {
            "": GERMAN[""],
            "Biathlon": "Zweikampf",
        },
    )
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path), str(tmp_path / "own"))
    config.set_locale_negotiator(language_of)
    return make_app(config)


def test_pages_are_in_the_language_of_the_request(
    german: TestApp, store: JobStore
) -> None:
    """An application's catalog for our domain translates both pages: words, plurals,
    numbers, questions, and what the element and the script say.
    """
    job = put_job(
        store, Biathlon, owner="de", progress=Progress(1234.5, 5000, "m")
    ).uuid

    page = Visit(german, "/job_state", "de")
    one = Visit(german, f"/job_state/{job}", "de")
    english = Visit(german, f"/job_state/{job}", "en")

    assert page.texts("tbody a") == one.texts("h1") == ["Zweikampf"]
    assert page.texts("job-state") == ["Läuft · 24 % · 1.234,5 von 5.000 m"]
    assert page.texts(".jobstate-tabs a")[1] == "Wartet"
    assert page.texts("[data-act]") == ["Abbrechen"]
    assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == "de"
    assert page.texts("time")[0].endswith(" (UTC)")
    assert one.one("[data-act]")["data-question"] == "Diese Aufgabe abbrechen?"
    assert one.texts(".jobstate-timeline li")[1].startswith("0 Sek. ")
    assert one.data["labels"]["working"] == "Läuft"
    assert one.data["labels"]["due"] == "Beginnt um {time}"
    assert one.data["words"]["changed"] == "Die Aufgabe hat sich geändert."
    plural = one.data["plurals"]["cancel"]
    forms = [plural["forms"][int(plural["at"][number])] for number in (0, 1, 2, 199)]
    many = "{number} Aufgaben abbrechen?"
    assert forms == [many, "{number} Aufgabe abbrechen?", many, many]
    # What has no translation is English.
    assert one.texts("h2") == ["Timeline"]
    assert english.texts("h1") == ["Biathlon"]
    assert english.data["labels"]["working"] == "Running"
    assert english.one("html")["lang"] == "en"


@pytest.mark.parametrize("prefix", [None, "shop"])
@pytest.mark.parametrize(
    ("locale", "default", "lang"),
    [("de", "en", "en"), ("de_AT", "en", "en"), ("en_GB", "en_GB", "en-GB")],
)
def test_page_without_a_catalog_says_that_it_is_english(
    redis_url: str,
    store: JobStore,
    locale: str,
    default: str,
    lang: str,
    prefix: str | None,
) -> None:
    """In a locale without a catalog for our words, the language of both pages is that
    of the words, and not that of the request.
    """
    config = paged_config(redis_url, route_prefix=prefix)
    config.add_settings({"default_locale_name": default})
    config.set_locale_negotiator(lambda request: locale)
    app = make_app(config)
    path = f"/{prefix}/job_state" if prefix else "/job_state"
    job = put_job(store, RunMarathon).uuid

    for page in Visit(app, path), Visit(app, f"{path}/{job}"):
        assert page.data["labels"]["working"] == "Running"
        assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == lang


def test_catalog_serves_all_regions_of_its_language(german: TestApp) -> None:
    """Austria shares its words with Germany."""
    page = Visit(german, "/job_state", "de_AT")

    assert page.texts(".jobstate-tabs a")[1] == "Wartet"
    assert page.one("html")["lang"] == "de"


def test_batch_is_in_the_language_of_the_request(
    german: TestApp, store: JobStore
) -> None:
    """What a page says of a batch is translated, and so is its error."""
    batch = put_batch(store, "success", "error", "error")

    page = Visit(german, f"/job_state/{batch.uuid}?_LOCALE_=de")
    member = Visit(german, f"/job_state/{batch.members[0]}?_LOCALE_=de")

    reason = "Einige Aufgaben sind gescheitert."
    amount = "100 % · 3 von 3 Aufgaben; 2 gescheitert"
    assert page.texts("#jobstate-job p") == [
        f"Failed · {amount} · \u2068{reason}\u2069"
    ]
    assert page.texts(".jobstate-exception") == [reason]
    assert page.texts("[data-act=rerun]") == ["2 Aufgaben wiederholen"]
    assert page.link("All 3").endswith("?_LOCALE_=de")
    assert member.texts(".jobstate-batch") == ["Teil von: Import of the files"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NOT_SENT, "Nicht abgeschickt."),
        (JobError("E", NOT_SENT.message), f"E: {NOT_SENT.message}"),
    ],
    ids=["ours", "exception"],
)
def test_end_is_in_the_language_of_the_request(
    german: TestApp, store: JobStore, error: JobError, text: str
) -> None:
    """An operator reads our reasons translated, and exceptions as they are."""
    job = put_job(store, RunMarathon, "error", error=error).uuid

    page = Visit(german, f"/job_state/{job}?_LOCALE_=de")

    assert page.texts(".jobstate-exception") == [text]


def test_reason_is_in_the_language_of_the_request(
    german: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """A page translates why a job cannot run again, and its JSON does not."""
    (job,) = marathons.fail("de")
    lost = put_job(store, RunMarathon, "error", error=JobError("E", "e")).uuid

    def reasons(job: str) -> tuple[str, str]:
        page = Visit(german, f"/job_state/{job}?_LOCALE_=de")
        path = f"/job_state/{job}/inspect?_LOCALE_=de"
        said = get(german, path, OPERATOR).json["reason"]
        return page.texts("#jobstate-reason")[0], said

    assert reasons(lost) == (
        "The job cannot run again: Der Speicher hat seine Nachricht nicht.",
        "The store does not hold its message.",
    )
    del marathons.broker.actors["run_marathon"]
    assert reasons(job) == (
        "The job cannot run again: Wer ist 'run_marathon'?",
        "The broker does not know the actor 'run_marathon'.",
    )
    store.client.hset(
        f"{{{key_of(store, job)}}}:failure",
        mapping={"message": "", "refusal": "<${x}>"},
    )
    assert reasons(job) == ("The job cannot run again: <${x}>", "<${x}>")


class Marking:
    """A localizer whose texts begin with an asterisk."""

    locale_name = "en"

    def translate(self, text: Any) -> str:
        return f"*{text.default}"

    def pluralize(self, one: str, other: str, number: int, domain: str) -> str:
        return f"*{one if number == 1 else other}"


def text_of(node: ast.AST) -> str:
    """Return a text in Python code, with "'x'" for each value, or ""."""
    match node:
        case ast.Constant(str() as text):
            return text
        case ast.JoinedStr(parts):
            return "".join(map(text_of, parts))
        case ast.FormattedValue():
            return "'x'"
    return ""


def nodes_of(path: Path) -> Iterator[ast.AST]:
    """Yield the parts of a module."""
    return ast.walk(ast.parse(path.read_text("utf-8")))


def sentences_in(path: Path) -> Iterator[str]:
    """Yield the sentences in the code of a module."""
    nodes = list(nodes_of(path))
    docs = [node.value for node in nodes if isinstance(node, ast.Expr)]
    for text in (text_of(node) for node in nodes if node not in docs):
        if re.fullmatch(r"[A-Z].* .*\.", text):
            yield text


def reasons_of_ends() -> Iterator[str]:
    """Yield what the package says of jobs that no exception has ended."""
    for path in PACKAGE.rglob("*.py"):
        for node in nodes_of(path):
            match node:
                case ast.Call(ast.Name("JobError"), [ast.Constant(None), reason]):
                    yield text_of(reason)


def refusals() -> Iterator[str]:
    """Yield what a store and a broker that do not belong together are called."""
    here, there = "redis://localhost:1/0", "redis://localhost:2/0"
    for url, namespace in (here, "n"), (there, "x"), ("redis://localhost:1/1", "x"):
        read = JobStore(redis.Redis.from_url(here), namespace="x")
        written = JobStore(redis.Redis.from_url(url), namespace=namespace)
        yield str(refusal(read, written, "its broker"))
    with pytest.raises(TypeError) as caught:
        middleware_of(StubBroker())
    yield str(caught.value)
    for value in (1, 2), "x" * 70_000, b"":
        message: Message[None] = Message("queue", "actor", (value,), {}, {})
        yield failure_of(MessageProxy(message), None, is_final=True).refusal


def test_what_other_wings_say_is_translated() -> None:
    """The pages know all sentences on why a job ended, or cannot run again."""
    worker = PACKAGE / "worker"
    said = [
        *sentences_in(worker / "repeatable.py"),
        *sentences_in(worker / "rerunning.py"),
        *reasons_of_ends(),
        *refusals(),
        str(NotUnique(UUID)),
        str(BatchCancelled()),
        *(
            JobState(Record("", {"status": status})).public_error("E", "e")
            for status in ("error", "cancelled")
        ),
    ]
    words = Words(Marking())

    texts = {str(text): words.sentence(text) for text in said}

    assert len(texts) == len(SENTENCES) == 27
    for text, translated in texts.items():
        assert translated == f"*{text}"
    assert {sentence_of(text, SENTENCES) for text in texts} == set(SENTENCES)
    assert words.sentence("Something else.") == "Something else."


def test_bad_address_is_said_in_the_language_of_the_request(german: TestApp) -> None:
    """What a query gets wrong is a sentence for viewers, and a comment for those who
    read the source.
    """
    for language, sentence in (
        ("de", "Diese Adresse ist falsch."),
        ("en", "This page's address is invalid."),
    ):
        response = browse(german, "/job_state/?limit=--><b>", language)

        html = BeautifulSoup(response.text, "html.parser")
        text = " ".join(html.get_text().split())
        assert (response.status_code, response.content_type) == (400, "text/html")
        assert text == f"400 Bad Request 400 Bad Request {sentence}"
        (comment,) = html.find_all(string=lambda each: isinstance(each, Comment))
        assert comment == " limit must be a number, not &#x27;--&gt;&lt;b&gt;&#x27;. "


def test_bad_address_reaches_the_application(redis_url: str) -> None:
    """An application's own page for 400 says the sentence, and its log the detail."""
    config = paged_config(redis_url)
    seen: list[HTTPBadRequest] = []

    def page(exc: HTTPBadRequest, request: Request) -> Response:
        seen.append(exc)
        return Response(str(exc), 400)

    config.add_exception_view(page, HTTPBadRequest)

    response = browse(make_app(config), "/job_state/?limit=x", "alice")

    assert response.text == seen[0].message == "This page's address is invalid."
    detail = "limit must be a number, not 'x'."
    assert str(seen[0].__cause__) == seen[0].comment == detail


@pytest.mark.parametrize(
    ("negotiator", "sentence"),
    [
        (lambda request: request.headers["X-User"], "Diese Adresse ist falsch."),
        (None, "This page's address is invalid."),
        (language_of, "This page's address is invalid."),
    ],
    ids=["header", "none", "query"],
)
@pytest.mark.parametrize("path", ["/job_state/", f"/job_state/{UUID}", "/job_state/x/"])
def test_query_that_is_not_text(
    redis_url: str, tmp_path: Path, path: str, negotiator: Any, sentence: str
) -> None:
    """A query that is not UTF-8 is plain text to a browser, in the language that is
    found without it, or else in English.
    """
    catalogs = tmp_path / "de" / "LC_MESSAGES"
    write_catalog(catalogs / "pyramid_jobstate.mo", GERMAN)
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    config.set_locale_negotiator(negotiator)
    config.add_exception_view(lambda exc, request: request.GET["x"], HTTPBadRequest)

    response = browse(make_app(config), f"{path}?kind=%ff", "de")

    assert (response.status_code, response.text) == (400, sentence)
    assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "private, no-store"
    assert response.headers["Vary"] == "Accept"


def test_localizer_of_the_request_decides(redis_url: str, store: JobStore) -> None:
    """An application that replaces the localizer of requests has its localizer used."""

    class Shouting:
        locale_name = "en_GB"

        def translate(self, text: Any, **options: Any) -> str:
            return str(text.interpolate()).upper()

        def pluralize(self, *args: Any) -> str:
            return "MANY"

    shouting = Shouting()
    config = paged_config(redis_url)

    def shout(event: Any) -> None:
        event.request.localizer = shouting

    config.add_subscriber(shout, "pyramid.events.NewRequest")
    put_job(store, RunMarathon)

    page = Visit(make_app(config), "/job_state")

    assert page.texts("h1") == ["JOBS"]
    assert page.one("html")["lang"] == "en-GB"
    assert page.data["plurals"]["new"]["forms"] == ["MANY"]


#: The number of the forms of languages, and how they decide on that for a number.
RULES = {
    "ar": (
        6,
        "n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>2 && n%100<11 ? 3 : n%100>10 ? 4 : 5",
    ),
    "cy": (5, "n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n==3 ? 3 : n==6 ? 4 : 2"),
    "fr": (2, "n>1"),
    "ga": (5, "n==1 ? 0 : n==2 ? 1 : n<7 ? 2 : n<11 ? 3 : 4"),
    "ja": (1, "0"),
    "lv": (3, "n%10==1 && n%100!=11 ? 0 : n!=0 ? 1 : 2"),
    "mk": (2, "n%10!=1"),
    "pl": (3, "n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<12 || n%100>14) ? 1 : 2"),
    "ro": (3, "n==1 ? 0 : n==0 || (n%100>0 && n%100<20) ? 1 : 2"),
    "ru": (
        3,
        "n%10==1 && n%100!=11 ? 0 : n%10>1 && n%10<5 && (n%100<12 || n%100>14) ? 1 : 2",
    ),
    "sl": (4, "n%100==1 ? 0 : n%100==2 ? 1 : n%100==3 || n%100==4 ? 2 : 3"),
    "tl": (2, "n%10==4 || n%10==6 || n%10==9"),
    "tzm": (2, "n>1 && (n<11 || n>99)"),
}


@pytest.mark.parametrize("language", RULES)
def test_numbers_have_the_forms_of_their_language(
    tmp_path: Path, language: str
) -> None:
    """The forms that the script is told are those of GNU gettext, for any number: the
    script looks up 100 + n % 100 in place of a number n from 200 on. Some texts may
    lack a translation, and others may use a form twice.
    """
    catalog = tmp_path / language / "LC_MESSAGES" / "pyramid_jobstate.mo"
    count, rule = RULES[language]
    header = f"Plural-Forms: nplurals={count}; plural={rule};"
    texts = {"": f"Content-Type: text/plain; charset=UTF-8\n{header}\n"}
    for place, (name, (one, other)) in enumerate(PLURALS.items()):
        if place % 3:
            forms = [f"{name} {n // (place % 3)} ${{number}}" for n in range(count)]
            texts[f"{one}\0{other}"] = "\0".join(forms)
    write_catalog(catalog, texts)
    with catalog.open("rb") as file:
        gnu = gettext.GNUTranslations(file)

    words = Words(make_localizer(language, [str(tmp_path)]))

    plurals = json.loads(words.for_script)["plurals"]
    assert plurals.keys() == PLURALS.keys()
    for name, (one, other) in PLURALS.items():
        forms, at = plurals[name]["forms"], plurals[name]["at"]
        for number in range(3000):
            text = gnu.ngettext(one, other, number)
            place = int(at[number if number < 200 else 100 + number % 100])
            assert forms[place] == text.replace("${", "{"), (name, number)
            filled = text.replace("${number}", f"{number:,}")
            assert words.plural(name, number) == filled, (name, number)


@pytest.mark.parametrize(
    ("text", "direction"), [(None, "ltr"), ("rtl", "rtl"), ("<b>", "ltr"), ("", "ltr")]
)
def test_direction_is_translated(
    redis_url: str, tmp_path: Path, text: str | None, direction: str
) -> None:
    """A catalog says that its texts run from right to left."""
    texts = {"": GERMAN[""], **({} if text is None else {"text-direction": text})}
    write_catalog(tmp_path / "he" / "LC_MESSAGES" / "pyramid_jobstate.mo", texts)

    localizer = make_localizer("he", [str(tmp_path)])
    assert Words(localizer).direction == direction
    config = paged_config(redis_url)
    config.add_request_method(lambda request: localizer, "localizer", reify=True)
    page = Visit(make_app(config), "/job_state")
    assert page.one("html")["dir"] == direction
    # An application's own layout has the direction of its language, perhaps.
    assert page.one(".jobstate").get("dir") == (direction if text == "rtl" else None)


class Slow:
    """A localizer that an application makes for each request. It cannot be hashed."""

    def __init__(self, calls: list[object]) -> None:
        self.calls = calls
        self.localizer = make_localizer("de", [])
        self.locale_name = "de"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slow)

    def translate(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.localizer.translate(*args)

    def pluralize(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.localizer.pluralize(*args)


#: More languages than are kept.
LOCALIZERS = [make_localizer(f"x{n}", []) for n in range(3 * MOST_LANGUAGES)]


class Hashed(Slow):
    """One that can."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("cls", [Slow, Hashed])
def test_localizer_of_one_request_is_cheap(
    redis_url: str, store: JobStore, cls: type[Slow]
) -> None:
    """An application that makes a localizer for each request waits for a few hundred
    texts, and nothing keeps the localizer.
    """
    config = paged_config(redis_url)
    calls: list[object] = []
    made: list[weakref.ref] = []

    def localizer(request: Any) -> Slow:
        found = cls(calls)
        made.append(weakref.ref(found))
        return found

    config.add_request_method(localizer, reify=True)
    put_job(store, RunMarathon)

    page = Visit(make_app(config), "/job_state/?all=1")

    assert page.one("html")["lang"] == "en"
    assert 100 < len(calls) < 600
    del page
    gc.collect()
    assert [found() for found in made] == [None]


def test_languages_do_not_pile_up() -> None:
    """Whatever languages requests name, the words of a few are kept."""
    words = [weakref.ref(words_of(each)) for each in LOCALIZERS]
    gc.collect()
    assert 0 < sum(each() is not None for each in words) <= MOST_LANGUAGES
    assert words_of(LOCALIZERS[-1]) is words[-1]()


@pytest.mark.parametrize("has_catalog", [False, True])
@pytest.mark.parametrize("name", ["%00", "%22+lang=%22de", "..", "d"])
def test_language_that_is_none_is_english(
    redis_url: str, store: JobStore, tmp_path: Path, name: str, has_catalog: bool
) -> None:
    """A language name that cannot be one, or a folder's name, is not an error."""
    config = paged_config(redis_url)
    if has_catalog:
        config.add_translation_dirs(str(tmp_path))
    job = put_job(store, RunMarathon).uuid

    page = Visit(make_app(config), f"/job_state/{job}?_LOCALE_={name}")

    assert page.texts("h2") == ["Timeline"]
    assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == "en"


def test_words_of_the_element_are_those_of_the_script() -> None:
    """The labels that a page hands to its elements are their own, in English."""
    script = (PACKAGE / "static/job-state.js").read_text("utf-8")
    table = script.partition("const ENGLISH = {\n")[2].partition("\n};")[0]
    found = re.findall(r'^  "?([\w-]+)"?: "(.*)",$', table, re.MULTILINE)

    assert dict(found) == {
        name: re.sub(r"\$\{(\w+)\}", r"{\1}", text) for name, text in LABELS.items()
    }


def test_template_for_translators_is_current() -> None:
    """The template that the package ships has every text. ``python -m tests.catalogs``
    writes it.
    """
    assert POT.read_text("utf-8") == template()


def code_of(*paths: Path) -> str:
    """Return the texts of files of the package."""
    return "".join(path.read_text("utf-8") for path in paths)


PAGES = PACKAGE / "web" / "pages"
SERVER = code_of(
    *(PACKAGE / "templates").glob("*.jinja2"),
    *(path for path in PAGES.glob("*.py") if path.name != "texts.py"),
)
SCRIPTS = PACKAGE / "static"
PAGE, ELEMENT = map(code_of, (SCRIPTS / "job-state-pages.js", SCRIPTS / "job-state.js"))

#: How code asks for the words of a table. What names the word is in a group.
ASKED = {
    "WORDS": (
        (SERVER, r"\b(?:words|self|words_for\(request\))\(\s*([^,()]+)"),
        (SERVER, r"self\._words\[(.+?)\]"),
    ),
    "PLURALS": (
        (SERVER, r"\.plural\(\s*([^,()]+)"),
        (PAGE, r"(?<!function )\bplural\(([^,()]+)"),
    ),
    "SINGLE": ((SERVER, r"\.about_one\((.+?)\)"),),
    "UNCOUNTED": ((SERVER, r"\.about_all\((.+?)\)"),),
    "SCRIPT": ((PAGE, r"\bwords(\.\w+|\[.+?\])"),),
    "LABELS": (
        (SERVER, r"\.label\(\s*([^,()]+)"),
        (SERVER, r"self\._labels(\[.+?\]|\.get\(.+?\))"),
        (PAGE, r"\blabels(\.\w+|\[.+?\])"),
        (ELEMENT, r"\._label\((.+)"),
        (ELEMENT, r"(?<!function )\bproblem\(([^)].*)"),
        (ELEMENT, r"\bget state\(\) \{([^}]+)\}"),
        (ELEMENT, r"own\(ENGLISH, (state)\)"),
        (ELEMENT, r"\[(status, code), "),
    ),
}

TABLES = {
    "WORDS": WORDS,
    "PLURALS": PLURALS,
    "SINGLE": SINGLE,
    "UNCOUNTED": UNCOUNTED,
    "SCRIPT": SCRIPT,
    "LABELS": LABELS,
}

STATUSES = {*FINISHED, *UNFINISHED}

#: The names that the code computes, by what computes them.
COMPUTED = {
    "words(act": {*ACTS},
    'words(f"chart-{part}"': {f"chart-{part}" for part in PARTS},
    "plural(act": {*ACTS},
    "plural(name": {*ACTS},
    "plural(DONE[name]": {f"{act}-done" for act in ACTS},
    ".about_one(act, is_batch=members is not none)": {
        *ACTS,
        "cancel-batch",
        "delete-batch",
    },
    ".about_all(act)": {*ACTS},
    '.label(f"count-{status}"': {"count-error", "count-cancelled"},
    "self._labels.get(status)": STATUSES,
    "own(ENGLISH, state)": STATUSES,
    '._label(`count-${COUNTED[i]}`, { number: this._number(count) }) : "",': {
        f"count-{status}" for status in STATUSES - {"cancelling", "stalled"}
    },
    "words[status]": {"503"},
    "labels[status]": {"403", "404"},
    "[status, code, ": {"401", "403", "404", "410"},
    # Whoever calls these names the word.
    "self._words[name]": set(),
    "self._labels[name]": set(),
    "._label(nameOf(code, status), { status });": set(),
}

#: The codes of problems that have no label of their own.
UNNAMED = {"aborted", "timeout"}


def names_asked(code: str, pattern: str) -> Iterator[str]:
    """Yield the names of the words for which code asks."""
    for match in re.finditer(pattern, code):
        names = re.findall(r"""["']([\w-]+)["']|^\.(\w+)$""", match[1])
        if names:
            yield from (quoted or attribute for quoted, attribute in names)
        if match[0] in COMPUTED or not names:
            yield from COMPUTED[match[0]]


@pytest.mark.parametrize("table", ASKED)
def test_every_word_is_used(table: str) -> None:
    """A template, a module or a script asks for each word, and for no other."""
    asked = {name for each in ASKED[table] for name in names_asked(*each)}
    assert asked - UNNAMED == TABLES[table].keys()


# Hostile texts.

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


def put_each(store: JobStore, cls: type[JobState], status: str, text: str) -> str:
    """Store a job with a text in each field, and return its uuid."""
    return put_job(
        store,
        cls,
        status,
        owner=f"owner {text}",
        params={"miles": f"value {text}", text: "named"},
        metrics={"m": f"metric {text}", "n": {text: text}},
        message=f"message {text}",
        log=[f"line {text}"],
        progress=Progress(1, 2, f"unit {text}"),
        error=JobError(f"type {text}", f"exception {text}"),
    ).uuid


def shape_of(html: BeautifulSoup) -> set[tuple[str, ...]]:
    """Return the elements of a page, each with the names of its attributes."""
    return {(tag.name, *sorted(tag.attrs)) for tag in html.find_all(True)}


def assert_has(page: Visit, *words: str) -> None:
    """Assert that a page has the texts that begin with these words."""
    text = page.html.get_text()
    for word in words:
        assert f"{word} {HOSTILE}" in text, word


@pytest.mark.parametrize("status", ["working", "error"])
def test_hostile_texts_stay_text(store: JobStore, visit: Visiting, status: str) -> None:
    """Whatever a job, its owner or its kind is called, it adds no element and no
    attribute to a page, and is read as it is.
    """
    harmless = put_each(store, RunMarathon, status, "x")
    list_shape = shape_of(visit("/job_state").html)
    shape = shape_of(visit(f"/job_state/{harmless}").html)
    job = put_each(store, Hurdles, status, HOSTILE)

    page = visit("/job_state")
    one = visit(f"/job_state/{job}")

    assert shape_of(page.html) == list_shape
    assert shape_of(one.html) == shape
    words = ["title", "message", "owner", "unit"]
    assert_has(page, "kind", *words)
    assert_has(one, "line", "value", "metric", *words)
    if status == "error":
        assert_has(page, "error")
        assert_has(one, "error", "type", "exception")
    assert {HOSTILE, "m", "n", "miles"} == {tag.get_text() for tag in one.all("dt")}
    assert one.all("title")[0].get_text() == f"title {HOSTILE}"


def test_half_a_surrogate_pair_is_shown_as_a_question_mark(
    store: JobStore, visit: Visiting
) -> None:
    """Text that JSON can spell, and UTF-8 cannot, does not break a page."""
    job = put_job(store, RunMarathon).uuid
    store.client.hset(key_of(store, job), mapping={"message": r'"half \ud800"'})

    for path in "/job_state", f"/job_state/{job}":
        assert "half ?" in visit(path).html.get_text()


def test_hostile_queries_stay_text(store: JobStore, visit: Visiting) -> None:
    """What a query says adds nothing to a page, and its links say the same."""
    put_job(store, RunMarathon)
    shape = shape_of(visit("/job_state?owner=a&kind=Unknown&id=x").html)
    query = urlencode({"owner": HOSTILE, "kind": HOSTILE, "id": HOSTILE})

    page = visit(f"/job_state/?{query}")

    assert shape_of(page.html) == shape
    assert page.one("input[name=owner]")["value"] == HOSTILE
    filters = {"kind": HOSTILE, "owner": HOSTILE, "status": "error"}
    assert page.link("Failed") == f"http://localhost/job_state/?{urlencode(filters)}"


def test_hostile_traceback_stays_text(
    store: JobStore, visit: Visiting, marathons: Marathons
) -> None:
    """A traceback is shown as it is."""
    (job,) = marathons.fail(
        "alice", kwargs={"shoes": "</pre><script>alert(1)</script>"}
    )

    page = visit(f"/job_state/{job}")

    assert "</pre><script>alert(1)</script>" in page.one("pre").get_text()
    assert len(page.all("script")) == 2


def test_pages_need_nothing_inline(store: JobStore, visit: Visiting) -> None:
    """A strict Content-Security-Policy has nothing to block: no inline script or style,
    no event handler, and nothing from elsewhere.
    """
    job = put_job(store, RunMarathon, "error", metrics={"m": 1}).uuid

    for page in visit("/job_state"), visit(f"/job_state/{job}"):
        for tag in page.html.find_all(True):
            assert tag.name != "style"
            assert not [name for name in tag.attrs if name.startswith("on")]
            assert "style" not in tag.attrs
        for tag in page.all("script"):
            assert tag.get_text() == ""
        for tag in page.all("[src], [href], [action]"):
            for name in "src", "href", "action":
                url = str(tag.get(name, "http://localhost/"))
                assert url.startswith("http://localhost/"), tag


def test_settings_of_the_application_s_jinja2_do_not_matter(
    redis_url: str, store: JobStore
) -> None:
    """An application whose own templates escape nothing, or are spelled otherwise, has
    the same pages.
    """
    settings = {
        "jinja2.autoescape": "false",
        "jinja2.undefined": "strict",
        "jinja2.variable_start_string": "[[",
        "jinja2.block_start_string": "<%",
        "jinja2.trim_blocks": "true",
    }
    put_job(store, RunMarathon, message="<b>", metrics={"m": 1})
    plain_page = Visit(paged_app(redis_url), "/job_state").response.text
    config = paged_config(redis_url, settings=settings)
    config.include("pyramid_jinja2")

    text = Visit(make_app(config), "/job_state").response.text

    assert text == plain_page
    assert "&lt;b&gt;" in text
