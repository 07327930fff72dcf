"""Every word of the pages, and words, numbers and times in a request's language."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
import itertools
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from babel import Locale, UnknownLocaleError, dates, numbers
from babel.units import format_unit
from pyramid.i18n import TranslationStringFactory, make_localizer

from ...job.texts import DOMAIN, FAILED, REASONS, SKIPPED, filled, sentence_of
from ...job.words import STATUS_WORDS
from ...store.whereabouts import NO_ANSWER

if TYPE_CHECKING:
    from pyramid.request import Request


_ = TranslationStringFactory(DOMAIN)

#: The words of the element, by the names of its labels.
LABELS = MappingProxyType(
    {
        "job": _("Job"),
        "loading": _("Loading…"),
        **{status: words[0] for status, words in STATUS_WORDS.items()},
        "reconnecting": _("Connection lost, trying again…"),
        "lost": _("Unavailable"),
        "due": _("Starts at ${time}"),
        "waiting": _("Waiting for ${time}"),
        "retry": _("next try at ${time}"),
        "attempt": _("attempt ${number}"),
        "amount": _("${done} ${unit}"),
        "amount-of": _("${done} of ${total} ${unit}"),
        "amount-count": _("${amount}, ${count}"),
        "members": _("jobs"),
        "count-success": _("${number} succeeded"),
        "count-error": _("${number} failed"),
        "count-cancelled": _("${number} cancelled"),
        "count-working": _("${number} running"),
        "count-queued": _("${number} waiting"),
        "count-retrying": _("${number} trying again"),
        "phase": _("${phase}: ${amount}"),
        "rate": _("${amount}/s"),
        "rate-slow": _("${amount}/min"),
        "left": _("about ${time} left"),
        "usual": _("usually runs ${time}"),
        "range": _("${low} to ${high}"),
        "longer": _("longer than usual"),
        "took": _("took ${time}"),
        "cancel": _("Cancel"),
        "cancel-failed": _("Not cancelled: ${reason}"),
        "reason-cancelled": _("The job was cancelled."),
        "log": _("Log"),
        "result": _("Open the result"),
        "401": _("You are not signed in."),
        "403": _("You may not do this."),
        "404": _("The job does not exist, or has expired."),
        "410": _("The job no longer exists."),
        "address": _("The address is wrong."),
        "csrf": _("The CSRF header or token is wrong."),
        "format": _("The answer is not the state of a job."),
        "network": _("The server cannot be reached."),
        "redirect": _("The server redirects, perhaps to a login page."),
        "status": _("The server answered ${status}."),
    }
)

#: The words of the pages, by names that the templates use.
WORDS = MappingProxyType(
    {
        # Both pages.
        "jobs": _("Jobs"),
        "bad-address": _("This page's address is invalid."),
        "no-script": _("Live updates and actions need JavaScript."),
        "queued-at": _("Sent"),
        "finished-at": _("Ended"),
        "owner": _("Owner"),
        "nobody": _("nobody"),
        "cancel": _("Cancel"),
        "rerun": _("Run again"),
        "delete": _("Delete"),
        "others": _("Other jobs"),
        "show-all": _("Show all"),
        "close": _("Close"),
        # The list.
        "all-jobs": _("All jobs"),
        "own-jobs": _("Your jobs"),
        "statuses": _("Status"),
        "all": _("All"),
        "filter": _("Filter"),
        "show": _("Show"),
        "kind": _("Kind"),
        "all-kinds": _("All kinds"),
        "id": _("Job ID"),
        "not-an-id": _("This is not a job ID: ${text}"),
        "state": _("State"),
        "attempts": _("Attempts"),
        "none": _("No jobs."),
        "none-here": _("No matching jobs so far. Older ones may match."),
        "none-here-yet": _("No matching jobs so far. Later ones may match."),
        "hidden-members": _(
            "These jobs have expired or changed, or you may not see them."
        ),
        "unsent-members": _(
            "Some of these jobs were never sent, since their sender died. Cancel the "
            "batch, and send again what is cancelled then."
        ),
        "newest": _("Newest"),
        "older": _("Older"),
        "first": _("First"),
        "next": _("Next"),
        "pages-of-list": _("Pages of the list"),
        "select-all": _("Select all on this page"),
        "matching": _("All matching jobs, on every page"),
        "durations": _(
            "Half of the latest successful jobs took at most ${p50}, 95% at most ${p95}"
        ),
        "oldest-wait": _("The oldest job in the queue has waited ${time}"),
        "recent-wait": _("Jobs that started lately had waited ${time}"),
        # The groups of failed jobs.
        "by-reason": _("Group by reason"),
        "failures": _("Failed jobs by reason"),
        "failed-jobs": _("Failed jobs"),
        "reason": _("Reason"),
        "oldest": _("Oldest"),
        "more-failures": _("Older failed jobs are not counted."),
        # The chart.
        "chart": _("Ended in the last 24 hours"),
        "now": _("now"),
        "chart-none": _("No job has ended in the last 24 hours."),
        "chart-peak": _("peak: ${number} in ${time}"),
        "chart-error": _("failed: ${number}"),
        "chart-cancelled": _("cancelled: ${number}"),
        "chart-success": _("done: ${number}"),
        # The page of a job.
        "copy": _("Copy"),
        "copied": _("Copied"),
        "timeline": _("Timeline"),
        "part-of": _("Part of"),
        "sent": _("sent"),
        "started": _("started"),
        "due": _("due at"),
        "try": _("try ${number}"),
        "since-sent": _("${time} after it was sent"),
        "actor": _("Actor"),
        "queue": _("Queue"),
        "worker": _("Worker"),
        "ask-where": _("Where is it now?"),
        "asking": _("Asking the worker…"),
        "no-answer": _(NO_ANSWER),
        "where": _("Where it was at"),
        "copy-stack": _("Copy the stack"),
        "megabytes": _("${number} MB"),
        "metrics": _("Metrics"),
        "params": _("Parameters"),
        "exception": _("Exception"),
        "traceback": _("Traceback"),
        "copy-traceback": _("Copy the traceback"),
        "not-repeatable": _("The job cannot run again: ${reason}"),
    }
)

#: What other wings say of a job, in English: why it ended, and why it cannot run again.
#: If several of these fit, the first does.
SENTENCES = (
    *map(_, (FAILED, SKIPPED, *REASONS)),
    _("The job has not failed."),
    _("The job ${uuid} with the same unique key is under way."),
    _("This process has no Dramatiq broker."),
    _(
        "The broker ${broker} has no JobStateMiddleware. Add one before the actors are "
        "declared: broker.add_middleware(JobStateMiddleware())."
    ),
    _(
        "Job states are read from ${read}, but the JobStateMiddleware on its broker "
        "writes them to ${written}, in another namespace. Use the same namespace in "
        "jobstate.namespace, or the store in config.set_job_store(...), and in "
        "JobStateMiddleware(namespace=...)."
    ),
    _(
        "Job states are read from ${read}, but the JobStateMiddleware on its broker "
        "writes them to ${written}, in another database. Point jobstate.redis_url, or "
        "the store in config.set_job_store(...), at the store of the middleware."
    ),
    _(
        "Job states are read from ${read}, but the JobStateMiddleware on its broker "
        "writes them to ${written}, on another port. Point jobstate.redis_url, or the "
        "store in config.set_job_store(...), at the store of the middleware."
    ),
    _("The broker does not know the actor ${actor}."),
    _("The actor ${actor} is not tracked here."),
    _("The store does not hold its message."),
    _("The store holds something other than its message."),
    _("The message that the store holds belongs to another job."),
    _("A later step of its pipeline was deleted."),
    _("Its batch was cancelled."),
    _("A batch cannot run again. Rerun its failed jobs."),
    _("Its message cannot be kept as JSON: it takes ${size} bytes of at most ${limit}"),
    _("Its message cannot be kept as JSON: it would come back changed"),
    _("Its message cannot be kept as JSON: ${error}"),
)

#: The words that only the script of the pages uses.
SCRIPT = MappingProxyType(
    {
        "under-way": _("Working…"),
        "keep": _("Leave as it is"),
        "metrics": _("Metrics"),
        "changed": _("The job has changed in the meantime."),
        "not-repeatable": _("The job cannot run again."),
        "503": _("The server cannot do this now. Try again later."),
    }
)


#: Texts that depend on a number, which they may contain: for one, and for others.
PLURALS = MappingProxyType(
    {
        "new": ("${number} new job · Show", "${number} new jobs · Show"),
        "workers": (
            "${number} worker, ${busy} of ${threads} threads busy with tracked jobs",
            "${number} workers, ${busy} of ${threads} threads busy with tracked jobs",
        ),
        "silent-workers": (
            "${number} worker has not been heard of lately",
            "${number} workers have not been heard of lately",
        ),
        "no-worker": (
            "${number} job waits, and no worker has been heard of",
            "${number} jobs wait, and no worker has been heard of",
        ),
        "earlier": ("${number} earlier try", "${number} earlier tries"),
        "cancel": ("Cancel ${number} job?", "Cancel ${number} jobs?"),
        "rerun": ("Run ${number} job again?", "Run ${number} jobs again?"),
        "delete": (
            "Delete ${number} job? This cannot be undone.",
            "Delete ${number} jobs? This cannot be undone.",
        ),
        "keep": ("Keep it", "Keep them"),
        "rerun-some": ("Run ${number} job again", "Run ${number} jobs again"),
        "rerun-failed": (
            "Run ${number} failed job again",
            "Run ${number} failed jobs again",
        ),
        "selected": ("${number} selected", "${number} selected"),
        "cancel-done": (
            "Asked ${number} job to stop.",
            "Asked ${number} jobs to stop.",
        ),
        "rerun-done": ("${number} job runs again.", "${number} jobs run again."),
        "delete-done": ("${number} job deleted.", "${number} jobs deleted."),
        "refused": ("${number} refused.", "${number} refused."),
        "frames": ("${number} frame of ${names}", "${number} frames of ${names}"),
    }
)

#: The questions about all jobs that match, whose number is unknown.
UNCOUNTED = MappingProxyType(
    {
        "cancel": _("Cancel all unfinished jobs that match?"),
        "rerun": _("Run all failed jobs that match again?"),
        "delete": _("Delete all ended jobs that match? This cannot be undone."),
    }
)

#: The questions about the job of a page.
SINGLE = MappingProxyType(
    {
        "cancel": _("Cancel this job?"),
        "rerun": _("Run this job again?"),
        "delete": _("Delete this job? This cannot be undone."),
        "cancel-batch": _("Cancel all unfinished jobs of this batch?"),
        "delete-batch": _("Delete this batch? Its jobs stay. This cannot be undone."),
    }
)


#: The tables of translation strings.
TABLES = WORDS, LABELS, SINGLE, UNCOUNTED, SCRIPT

#: Among these numbers is one of each category of plurals of each language. If several
#: are, the last one stands for the others: a catalog may have a form for 0 alone.
NUMBERS = (1_000_000, 0, *range(101, 0, -1))

#: Enough for every digit of the greatest float, which has 309, and some decimals.
MOST_DIGITS = 400

#: The most languages whose words are kept. An application may make a localizer for each
#: request.
MOST_LANGUAGES = 64

#: The scripts that POSIX names of locales have at their end, as in "sr@latin".
SCRIPTS = MappingProxyType({"latin": "Latn", "cyrillic": "Cyrl"})

PLACEHOLDER = re.compile(r"\$\{(\w+)\}")

# Numbers and times repeat, on a page and on the next ones. To format each anew takes a
# third of the time of a list.
cached = functools.lru_cache(4096)
format_datetime = cached(dates.format_datetime)
format_percent = cached(numbers.format_percent)


@cached
def format_number(number: float, locale: Locale) -> str:
    with decimal.localcontext(prec=MOST_DIGITS):
        return numbers.format_decimal(number, locale=locale, decimal_quantization=False)


def words_for(request: Request) -> Words:
    """Return the words in the language of a request."""
    return words_of(request.job_states.localizer)


class Words:
    """The words of the pages in one language.

    Parameters:
      localizer: Translates them.

    Attributes:
      lang: Their language, as HTML names it.
      direction: The direction of its text, "ltr" or "rtl".
      for_script: What the script and the elements of a page say, as JSON.
    """

    def __init__(self, localizer: Any) -> None:
        localizer, locale = translator_of(localizer)
        self._locale = locale
        self.lang = str(locale).replace("_", "-")
        self.direction = locale.text_direction
        clock, day = locale.time_formats["short"], locale.date_formats["medium"]
        pattern = locale.datetime_formats["medium"].format(clock, day)
        self._time = f"{pattern} 'UTC'"
        self._words, self._labels, self._single, self._uncounted, script = (
            {name: str(localizer.translate(text)) for name, text in table.items()}
            for table in TABLES
        )
        self._sentences = {str(t): str(localizer.translate(t)) for t in SENTENCES}
        samples = {locale.plural_form(number): number for number in NUMBERS}
        # Some languages use "other" for fractions alone.
        samples.setdefault("other", NUMBERS[0])
        self._plurals = {
            name: {
                category: str(localizer.pluralize(*ids, number, DOMAIN))
                for category, number in samples.items()
            }
            for name, ids in PLURALS.items()
        }
        self.for_script = encode(
            {
                "lang": self.lang,
                "labels": braced(self._labels),
                "words": braced(script),
                "plurals": {n: braced(forms) for n, forms in self._plurals.items()},
            }
        )

    def __call__(self, name: str, **values: object) -> str:
        """Return one of the WORDS."""
        return filled(self._words[name], values)

    def sentence(self, text: str) -> str:
        """Return what another wing says, or any other text as it is."""
        found = sentence_of(text, SENTENCES)
        if found is None:
            return text
        return filled(self._sentences[found], found.mapping)

    def label(self, name: str, **values: object) -> str:
        """Return one of the LABELS of the element."""
        return filled(self._labels[name], values)

    def status(self, status: str) -> str:
        """Return the word for the status of a job."""
        return self._labels.get(status) or self._labels["working"]

    def plural(self, name: str, number: int, **values: object) -> str:
        """Return one of the PLURALS for a number."""
        form = self._plurals[name][self._locale.plural_form(number)]
        return filled(form, {"number": self.number(number), **values})

    def about_all(self, act: str) -> str:
        """Return the question about all jobs that match, whose number is unknown."""
        return self._uncounted[act]

    def about_one(self, act: str, *, is_batch: bool = False) -> str:
        """Return the question about the job, or the batch, of a page."""
        return self._single[f"{act}-batch" if is_batch else act]

    def number(self, value: float, digits: int = 0) -> str:
        """Return a number with up to so many digits after the decimal point."""
        # -0.0 is written differently from 0, which the cache takes it for.
        return format_number(round(value, digits) + 0, self._locale)

    def percent(self, fraction: float) -> str:
        """Return a share, rounded down, so that only a finished job has 100 %."""
        return format_percent(int(fraction * 100 + 1e-9) / 100, locale=self._locale)

    def duration(self, seconds: float) -> str:
        """Return a duration in its largest unit, or in hours and minutes."""
        seconds = max(0.0, seconds)
        if seconds < 59.5:
            return self._amount(round(seconds, 1 if seconds < 10 else 0), "second")
        hours, minutes = divmod(round(seconds / 60), 60)
        if hours >= 24:
            return self._amount(round(seconds / 86400, 1), "day")
        parts = [self._amount(hours, "hour")] if hours else []
        if minutes:
            parts.append(self._amount(minutes, "minute"))
        return " ".join(parts)

    def _amount(self, number: float, unit: str) -> str:
        return format_unit(number, f"duration-{unit}", "short", locale=self._locale)

    def time(self, iso: str) -> str:
        """Return a time, to the minute.

        Parameters:
          iso: The time as the JSON of a job spells it.
        """
        minute = datetime.datetime.fromisoformat(iso[:16])
        return format_datetime(minute, self._time, locale=self._locale)


#: The words of the localizers in use. An application has one for each language, or
#: makes one for each request.
_words: WeakKeyDictionary[Any, Words] = WeakKeyDictionary()


def words_of(localizer: Any) -> Words:
    """Return the words of a localizer."""
    try:
        words = _words.get(localizer)
    except TypeError:
        # A localizer of the application's may have no hash, or no weak references.
        return Words(localizer)
    if words is None:
        if len(_words) >= MOST_LANGUAGES:
            _words.clear()
        words = _words[localizer] = Words(localizer)
    return words


def translator_of(localizer: Any) -> tuple[Any, Locale]:
    """Return what translates our words, and its language: a localizer, if it has words
    of ours in a language that Babel knows, or else one for English.
    """
    name, _, modifier = localizer.locale_name.replace("-", "_").partition("@")
    language, _, territory = name.partition("_")
    if modifier in SCRIPTS:
        name = "_".join(filter(None, (language, SCRIPTS[modifier], territory)))
    is_known = has_catalog(localizer)
    # Babel knows a language "root", and browsers do not.
    if language == "en" or (is_known and language != "root"):
        for each in (name, language):
            with contextlib.suppress(ValueError, UnknownLocaleError):
                locale = Locale.parse(each)
                return (localizer if is_known else make_localizer(each, ())), locale
    return make_localizer("en", ()), Locale("en")


def has_catalog(localizer: Any) -> bool:
    """Return whether a localizer has a catalog for our domain. Without one, Pyramid
    looks up our words in the catalog of the default domain, where it looks up words of
    no domain.
    """
    texts = itertools.chain(SENTENCES, *(table.values() for table in TABLES))
    return any(
        localizer.translate(text) != localizer.translate(str(text)) for text in texts
    ) or any(
        localizer.pluralize(*ids, 2, DOMAIN) != localizer.pluralize(*ids, 2, None)
        for ids in PLURALS.values()
    )


def braced(texts: Mapping[str, str]) -> dict[str, str]:
    """Return texts with their placeholders as the element spells them."""
    return {name: PLACEHOLDER.sub(r"{\1}", text) for name, text in texts.items()}


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
