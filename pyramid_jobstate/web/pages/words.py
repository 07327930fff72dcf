"""Words, numbers and times in the language of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from ...job import DOMAIN, filled, sentence_of
from .texts import LABELS, PLURALS, SCRIPT, SENTENCES, SINGLE, UNCOUNTED, WORDS

if TYPE_CHECKING:
    from pyramid.request import Request

#: The numbers whose forms of plurals are looked up. A greater number n has the form of
#: 100 + n % 100: languages look at the last two digits, and at whether a number is
#: small. The form that a few have for whole millions is not used.
NUMBERS = range(200)

#: These numbers cover every plural form of every language. They also tell the rules of
#: two languages apart.
SAMPLE = (0, 1, 2, 3, 4, 5, 6, 7, 11, 20, 21, 100, 101)

#: The most languages whose words are kept. An application may make a localizer for each
#: request.
MOST_LANGUAGES = 64

#: The names of languages, as HTML spells them. A folder may have any other name.
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")

PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def words_for(request: Request) -> Words:
    """Return the words in the language of a request."""
    return words_of(request.job_states.localizer)


class Forms(NamedTuple):
    """A text that depends on a number.

    Attributes:
      forms: Its different texts.
      at: Which of them each of the NUMBERS has.
    """

    forms: Sequence[str]
    at: Sequence[int]


class Words:
    """The words of the pages in one language.

    Parameters:
      localizer: Translates them.

    Attributes:
      lang: Their language, as HTML names it: English if no catalog has any of them.
      direction: The direction of its text, "ltr" or "rtl".
      for_script: What the script and the elements of a page say, as JSON.
    """

    def __init__(self, localizer: Any) -> None:
        tables = WORDS, LABELS, SINGLE, UNCOUNTED, SCRIPT
        found = [
            {name: str(localizer.translate(text)) for name, text in table.items()}
            for table in tables
        ]
        english = [
            {name: text.interpolate() for name, text in table.items()}
            for table in tables
        ]
        self._words, self._labels, self._single, self._uncounted, script = found
        lang = localizer.locale_name.replace("_", "-")
        is_known = found != english or lang.startswith("en-")
        self.lang: str = lang if is_known and LANGUAGE.fullmatch(lang) else "en"
        self._plurals = plurals_of(localizer)
        self._sentences = {str(t): str(localizer.translate(t)) for t in SENTENCES}
        self.direction = "rtl" if self._words["direction"] == "rtl" else "ltr"
        self.for_script = encode(
            {
                "labels": {name: braced(text) for name, text in self._labels.items()},
                "words": {name: braced(text) for name, text in script.items()},
                "plurals": {
                    name: {
                        "forms": [braced(form) for form in forms],
                        "at": "".join(map(str, at)),
                    }
                    for name, (forms, at) in self._plurals.items()
                },
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

    def plural(self, name: str, number: int) -> str:
        """Return one of the PLURALS for a number."""
        forms, at = self._plurals[name]
        place = number if number in NUMBERS else 100 + number % 100
        return filled(forms[at[place]], {"number": self.number(number)})

    def about_all(self, act: str) -> str:
        """Return the question about all jobs that match, whose number is unknown."""
        return self._uncounted[act]

    def about_one(self, act: str, *, is_batch: bool = False) -> str:
        """Return the question about the job, or the batch, of a page."""
        return self._single[f"{act}-batch" if is_batch else act]

    def number(self, value: float, digits: int = 0) -> str:
        """Return a number with up to so many digits after the decimal point."""
        whole, _, rest = f"{value:,.{digits}f}".partition(".")
        rest = rest.rstrip("0")
        whole = whole.replace(",", self._words["grouping"])
        return f"{whole}{self._words['decimal']}{rest}" if rest else whole

    def percent(self, fraction: float) -> str:
        """Return a share, rounded down, so that only a finished job has 100 %."""
        return self("percent", number=self.number(int(fraction * 100 + 1e-9)))

    def duration(self, seconds: float) -> str:
        """Return a duration in its largest unit, or in hours and minutes."""
        seconds = max(0.0, seconds)
        if seconds < 59.5:
            digits = 1 if seconds < 10 else 0
            return self("seconds", number=self.number(seconds, digits))
        minutes = round(seconds / 60)
        hours, rest = divmod(minutes, 60)
        if hours >= 24:
            return self("days", number=self.number(seconds / 86400, 1))
        parts = [self("hours", number=hours)] if hours else []
        if rest:
            parts.append(self("minutes", number=rest))
        return " ".join(parts)

    def time(self, iso: str) -> str:
        """Return a time, to the minute.

        Parameters:
          iso: The time as the JSON of a job spells it.
        """
        return self("utc", time=f"{iso[:10]} {iso[11:16]}")


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


def plurals_of(localizer: Any) -> dict[str, Forms]:
    """Return the forms of the PLURALS. Most of them follow the same rule, which is
    looked up once.
    """
    # Some texts are the same for all numbers.
    rules = {(0,) * len(SAMPLE): [0] * len(NUMBERS)}
    found = {}
    for name, ids in PLURALS.items():

        def form(number: int, ids: Sequence[Any] = ids) -> str:
            return str(localizer.pluralize(*ids, number, DOMAIN))

        sample = [form(number) for number in SAMPLE]
        pattern = tuple(map(sample.index, sample))
        if pattern not in rules:
            texts = [form(number) for number in NUMBERS]
            different = list(dict.fromkeys(texts))
            rules[pattern] = [different.index(text) for text in texts]
        at = rules[pattern]
        found[name] = Forms([form(at.index(n)) for n in range(max(at) + 1)], at)
    return found


def braced(text: str) -> str:
    """Return a text with its placeholders as the element spells them."""
    return PLACEHOLDER.sub(r"{\1}", text)


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
