"""The words of pages in other languages."""

from __future__ import annotations

import ast
import gc
import gettext
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from bs4 import BeautifulSoup, Comment
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

from pyramid_jobstate import (
    JobError,
    JobState,
    JobStore,
    NotRepeatable,
    NotUnique,
    Progress,
    rerun,
)
from pyramid_jobstate.testing import put_job
from tests.catalogs import write_catalog
from tests.jobs import RunMarathon, make_broker
from tests.support import PACKAGE, UUID, load_job
from tests.web.operating import OPERATOR, Marathons, put
from tests.web.paging import Visit, browse, paged_app, paged_config, put_batch
from tests.webapp import get, made_config, make_app, make_request

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


def catalog_of(folder: Path, language: str, name: str = "pyramid_jobstate") -> Path:
    """Return where a folder has the catalog of a language."""
    return folder / language / "LC_MESSAGES" / f"{name}.mo"


def language_of(request: Request) -> str:
    """Return the language that the query or a header of a request names."""
    return default_locale_negotiator(request) or request.headers["X-User"]


def localized_app(redis_url: str, localizer: Callable[[Request], Any]) -> TestApp:
    """Return an application with pages that makes the localizers of its requests."""
    config = paged_config(redis_url)
    config.add_request_method(localizer, "localizer", reify=True)
    return make_app(config)


def always(localizer: Any) -> Callable[[Request], Any]:
    """Return a function that has one localizer for all requests."""
    return lambda request: localizer


@pytest.fixture
def german(redis_url: str, tmp_path: Path) -> TestApp:
    """An application with a German catalog for our domain, and one of its own. A header
    of the request names its language.
    """
    write_catalog(catalog_of(tmp_path, "de"), GERMAN)
    write_catalog(
        catalog_of(tmp_path / "own", "de", "sports"),
        {"": GERMAN[""], "Biathlon": "Zweikampf"},
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
    # Austria shares its words with Germany.
    austrian = Visit(german, "/job_state", "de_AT")
    assert austrian.texts(".jobstate-tabs a")[1] == "Wartet"
    assert austrian.one("html")["lang"] == "de"


def test_page_without_a_catalog_says_that_it_is_english(
    redis_url: str, store: JobStore
) -> None:
    """In a locale without a catalog for our words, the language of both pages is that
    of the words, and not that of the request.
    """
    (job,) = put(store, "alice")
    for locale, default, lang, prefix in (
        ("de", "en", "en", None),
        ("de_AT", "en", "en", "shop"),
        ("en_GB", "en_GB", "en-GB", None),
    ):
        config = paged_config(redis_url, route_prefix=prefix)
        config.add_settings({"default_locale_name": default})
        config.set_locale_negotiator(lambda request, locale=locale: locale)
        app = make_app(config)
        path = f"/{prefix}/job_state" if prefix else "/job_state"

        for page in Visit(app, path), Visit(app, f"{path}/{job}"):
            assert page.data["labels"]["working"] == "Running"
            assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == lang


def test_language_that_is_none_is_english(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """A language name that cannot be one, or a folder's name, is not an error."""
    (job,) = put(store, "alice")
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    for app in make_app(config), paged_app(redis_url):
        for name in "%00", "%22+lang=%22de", "..", "d":
            page = Visit(app, f"/job_state/{job}?_LOCALE_={name}")

            assert page.texts("h2")[0] == "Timeline"
            assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == "en"


def test_batch_is_in_the_language_of_the_request(
    german: TestApp, store: JobStore
) -> None:
    """What a page says of a batch is translated, and so is its error."""
    batch, jobs = put_batch(store, "success", "error", "error")

    page = Visit(german, f"/job_state/{batch}?_LOCALE_=de")
    member = Visit(german, f"/job_state/{jobs[0]}?_LOCALE_=de")

    reason = "Einige Aufgaben sind gescheitert."
    amount = "100 % · 3 von 3 Aufgaben; 2 gescheitert"
    assert page.texts("#jobstate-job p") == [
        f"Failed · {amount} · \u2068{reason}\u2069"
    ]
    assert page.texts(".jobstate-exception") == [reason]
    assert page.texts("[data-act=rerun]") == ["2 Aufgaben wiederholen"]
    assert page.link("All 3").endswith("?_LOCALE_=de")
    assert member.texts(".jobstate-batch") == ["Teil von: Import of the files"]


# Reasons.


def test_reason_is_in_the_language_of_the_request(
    german: TestApp,
    store: JobStore,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page translates why a job has ended and why it cannot run again, though no
    exception and no reason that is not ours. The JSON stays as it is.
    """
    (job,) = put(store, "de", cls=RunMarathon, status="error")
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
    failures = store.failures(lost)._replace(message="", refusal="<${x}>")
    with monkeypatch.context() as patched:
        patched.setattr(JobStore, "failures", lambda *args: failures)
        assert reasons(job) == ("The job cannot run again: <${x}>", "<${x}>")
    del marathons.broker.actors["run_marathon"]
    assert reasons(job) == (
        "The job cannot run again: Wer ist 'run_marathon'?",
        "The broker does not know the actor 'run_marathon'.",
    )
    not_sent = "The job could not be sent."
    for error, text in (
        (JobError(None, not_sent), "Nicht abgeschickt."),
        (JobError("E", not_sent), f"E: {not_sent}"),
    ):
        job = put_job(store, RunMarathon, "error", error=error).uuid
        page = Visit(german, f"/job_state/{job}?_LOCALE_=de")
        assert page.texts(".jobstate-exception") == [text]


def reasons_of_ends() -> Iterator[str]:
    """Yield what the package says of jobs that no exception has ended, with "'x'" for
    each value.
    """
    sources = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py")]
    for source in (text for text in sources if re.search(r"JobError\(\s*None", text)):
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(ast.Name("JobError"), [ast.Constant(None), reason]):
                    parts = reason.values if isinstance(reason, ast.JoinedStr) else []
                    texts = [p.value for p in parts or [reason] if hasattr(p, "value")]
                    yield "".join(t if isinstance(t, str) else "'x'" for t in texts)


def refusals(
    url: str,
    store: JobStore,
    marathons: Marathons,
    request: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """Yield why jobs cannot run again. The request sends some."""

    def refusal(job: str, broker: Any = marathons.broker, **failures: Any) -> str:
        known = store.failures(job)._replace(**failures)
        with monkeypatch.context() as patched:
            patched.setattr(JobStore, "failures", lambda *args: known)
            with pytest.raises(NotRepeatable) as caught:
                rerun(store, broker, job)
        return str(caught.value)

    job, other = put(store, "de", "de", cls=RunMarathon, status="error")
    for there, namespace in (
        (url, "x"),
        (f"{url.removesuffix('0')}1", "jobstate"),
        ("redis://127.0.0.1:1/0", "jobstate"),
    ):
        written = JobStore(there, namespace=namespace)
        yield refusal(job, Marathons(there, written).broker)
    yield refusal(put_job(store, RunMarathon, "error").uuid)
    yield refusal(job, message="[1]")
    yield refusal(job, message=store.failures(other).message)
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        values: list[Any] = [(1, 2), "x" * 70_000, b""]
        sent = [marathons.run_marathon.send(value) for value in values]
        marathons.wait(sent, "error")
    finally:
        dramatiq.set_encoder(before)
    yield from (refusal(message.message_id) for message in sent)
    pipeline = marathons.run_marathon.message(1) | marathons.run_marathon.message(2)
    first, last = (job.uuid for job in request.job_states.send_immediately(pipeline))
    marathons.wait_for(first, "error")
    marathons.wait_for(last, "cancelled")
    store.delete(last)
    yield refusal(first)
    batch, (member, _) = put_batch(store, "error", "error")
    yield refusal(batch)
    batch, (member, _) = put_batch(store, "error", "queued")
    load_job(store, batch).cancel()
    yield refusal(member)
    untracked = make_broker(url)
    yield refusal(job, untracked)

    @dramatiq.actor(broker=untracked)
    def run_marathon(miles: int) -> None:
        """Is not tracked."""

    yield refusal(job, untracked)


def test_every_reason_is_translated(
    redis_url: str,
    store: JobStore,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pages know all sentences on why a job ended, or cannot run again."""
    request = make_request(made_config(redis_url), "de")
    with pytest.raises(TypeError) as no_middleware:
        rerun(store, StubBroker(), put(store, "de", status="error")[0])
    said = [
        *refusals(redis_url, store, marathons, request, monkeypatch),
        *reasons_of_ends(),
        str(no_middleware.value),
        str(NotUnique(UUID)),
        "The job has not failed.",
        "This process has no Dramatiq broker.",
        *(
            str(put_job(store, status=status).public_error("E", "e"))
            for status in ("error", "cancelled")
        ),
    ]
    app = localized_app(redis_url, always(Marking()))
    assert len({*said}) >= 26
    for text in said:
        error = JobError(None, text)
        job = put_job(store, RunMarathon, "error", error=error).uuid
        (shown,) = Visit(app, f"/job_state/{job}").texts(".jobstate-exception")
        assert shown == " ".join(f"*{text}".split()), text
    job = put_job(store, RunMarathon, "error", error=JobError(None, "So.")).uuid
    assert Visit(app, f"/job_state/{job}").texts(".jobstate-exception") == ["So."]


class Marking:
    """A localizer whose texts begin with an asterisk."""

    locale_name = "en"

    def translate(self, text: Any, **options: Any) -> str:
        default = text.default if hasattr(text, "default") else text
        return f"*{default}"

    def pluralize(self, one: str, other: str, number: int, domain: str) -> str:
        return f"*{one if number == 1 else other}"


# Bad addresses.


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


def test_query_that_is_not_text(redis_url: str, tmp_path: Path) -> None:
    """A query that is not UTF-8 is plain text to a browser, in the language that is
    found without it, or else in English.
    """
    write_catalog(catalog_of(tmp_path, "de"), GERMAN)
    english = "This page's address is invalid."
    for negotiator, sentence in (
        (lambda request: request.headers["X-User"], "Diese Adresse ist falsch."),
        (None, english),
        (language_of, english),
    ):
        config = paged_config(redis_url)
        config.add_translation_dirs(str(tmp_path))
        config.set_locale_negotiator(negotiator)
        config.add_exception_view(lambda exc, request: request.GET["x"], HTTPBadRequest)
        app = make_app(config)
        for path in "/job_state/", f"/job_state/{UUID}", "/job_state/x/":
            response = browse(app, f"{path}?kind=%ff", "de")

            assert (response.status_code, response.text) == (400, sentence)
            assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "private, no-store"
            assert response.headers["Vary"] == "Accept"


# Plurals.

#: The number of the forms of languages, and how they decide on that for a number.
RULES = {
    "ar": (
        6,
        "n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>2 && n%100<11 ? 3 : n%100>10 ? 4 : 5",
    ),
    "cy": (5, "n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n==3 ? 3 : n==6 ? 4 : 2"),
    "fr": (2, "n>1"),
    "ja": (1, "0"),
    "lv": (3, "n%10==1 && n%100!=11 ? 0 : n!=0 ? 1 : 2"),
    "pl": (3, "n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<12 || n%100>14) ? 1 : 2"),
    "sl": (4, "n%100==1 ? 0 : n%100==2 ? 1 : n%100==3 || n%100==4 ? 2 : 3"),
    "tzm": (2, "n>1 && (n<11 || n>99)"),
}


def test_numbers_have_the_forms_of_their_language(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """The forms that the script is told are those of GNU gettext, for any number: the
    script looks up 100 + n % 100 in place of a number n from 200 on. Some texts may
    lack a translation, and others may use a form twice. The page uses the same forms.
    """

    class Tried(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state["job"]["attempt"] = attempt
            return state

    attempt = 1
    job = put_job(store, Tried).uuid
    path = f"/job_state/{job}"
    english = Visit(paged_app(redis_url), path).data["plurals"]
    ids = {
        name: [
            plural["forms"][int(plural["at"][number])].replace("{", "${")
            for number in (1, 2)
        ]
        for name, plural in english.items()
    }
    for language, (count, rule) in RULES.items():
        header = f"Plural-Forms: nplurals={count}; plural={rule};"
        texts = {"": f"Content-Type: text/plain; charset=UTF-8\n{header}\n"}
        for place, (name, (one, other)) in enumerate(ids.items()):
            if place % 3:
                forms = [f"{name} {n // (place % 3)} ${{number}}" for n in range(count)]
                texts[f"{one}\0{other}"] = "\0".join(forms)
        write_catalog(catalog_of(tmp_path, language), texts)
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    app = make_app(config)
    numbers = [*range(131), *range(199, 231), *range(1000, 1023), 1_000_000]
    for language in RULES:
        with catalog_of(tmp_path, language).open("rb") as file:
            gnu = gettext.GNUTranslations(file)
        plurals = Visit(app, f"{path}?_LOCALE_={language}").data["plurals"]
        assert plurals.keys() == ids.keys()
        for name, (one, other) in ids.items():
            forms, at = plurals[name]["forms"], plurals[name]["at"]
            for number in numbers:
                text = gnu.ngettext(one, other, number).replace("${", "{")
                place = int(at[number if number < 200 else 100 + number % 100])
                assert forms[place] == text, (language, name, number)
        for number in 1, 2, 5, 21, 211:
            attempt = number + 1
            one, other = ids["earlier"]
            text = gnu.ngettext(one, other, number).replace("${number}", str(number))
            page = Visit(app, f"{path}?_LOCALE_={language}")
            assert text in page.html.get_text(), (language, number)


# Localizers, and direction.


def test_direction_is_translated(redis_url: str, tmp_path: Path) -> None:
    """A catalog says that its texts run from right to left."""
    for number, (text, direction) in enumerate(
        ((None, "ltr"), ("rtl", "rtl"), ("<b>", "ltr"), ("", "ltr"))
    ):
        folder = tmp_path / str(number)
        texts = {"": GERMAN[""], **({} if text is None else {"text-direction": text})}
        write_catalog(catalog_of(folder, "he"), texts)
        localizer = make_localizer("he", [str(folder)])

        app = localized_app(redis_url, always(localizer))
        page = Visit(app, "/job_state")

        assert page.one("html")["dir"] == direction
        # An application's own layout has the direction of its language, perhaps.
        own = direction if text == "rtl" else None
        assert page.one(".jobstate").get("dir") == own


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
    put(store, "alice")

    page = Visit(make_app(config), "/job_state")

    assert page.texts("h1") == ["JOBS"]
    assert page.one("html")["lang"] == "en-GB"
    assert page.data["plurals"]["new"]["forms"] == ["MANY"]


class Slow:
    """A localizer that an application makes for each request. It cannot be hashed.

    Attributes:
      asked: The ids of the texts of our domain that it was asked for.
    """

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked
        self.localizer = make_localizer("de", [])
        self.locale_name = "de"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slow)

    def translate(self, text: Any, *args: Any, **options: Any) -> str:
        if getattr(text, "domain", "") == "pyramid_jobstate":
            self.asked.append(str(text))
        return str(self.localizer.translate(text, *args, **options))

    def pluralize(self, one: str, *args: Any) -> str:
        self.asked.append(str(one))
        return str(self.localizer.pluralize(one, *args))


class Hashed(Slow):
    """One that can."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("cls", [Slow, Hashed])
def test_localizer_of_one_request_is_cheap(
    redis_url: str, store: JobStore, cls: type[Slow]
) -> None:
    """An application that makes a localizer for each request waits for a few hundred
    texts, and nothing keeps the localizer. The texts are those of the template for
    translators that the package ships.
    """
    asked: list[str] = []
    made: list[weakref.ref[Slow]] = []

    def localizer(request: Any) -> Slow:
        found = cls(asked)
        made.append(weakref.ref(found))
        return found

    put(store, "alice")

    page = Visit(localized_app(redis_url, localizer), "/job_state/?all=1")

    assert page.one("html")["lang"] == "en"
    assert 100 < len(asked) < 600
    template = (PACKAGE / "locale" / "pyramid_jobstate.pot").read_text("utf-8")
    ids = [ast.literal_eval(s) for s in re.findall(r'^msgid (".+")$', template, re.M)]
    assert sorted({*asked}) == sorted(ids)
    del page
    gc.collect()
    assert [found() for found in made] == [None]


class Wordy(Hashed):
    """One whose texts are its own."""

    def translate(self, text: Any, *args: Any, **options: Any) -> str:
        return f"{super().translate(text, *args, **options)} {id(self)}"


@pytest.mark.system
def test_languages_do_not_pile_up(redis_url: str) -> None:
    """Whatever languages requests name, the words of a few are kept."""
    localizers = [Wordy([]) for _ in range(70)]
    ahead = iter(localizers)
    app = localized_app(redis_url, lambda request: next(ahead))
    blocks = []
    for number, _ in enumerate(localizers):
        browse(app, "/job_state", None)
        if number in (20, 30, 69):
            gc.collect()
            blocks.append(sys.getallocatedblocks())

    of_ten = blocks[1] - blocks[0]
    assert of_ten > 1000
    assert blocks[2] - blocks[1] < 2 * of_ten


# What the scripts say.


def test_scripts_ask_for_words_that_they_get(redis_url: str) -> None:
    """The labels that a page hands to its elements are their own, in English. Its
    script asks for no word that the page does not have, and for each that it has.
    """
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
