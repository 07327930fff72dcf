"""Words, numbers and times in the language of a request."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from pyramid.i18n import make_localizer

from .texts import DOMAIN, LABELS, PLURALS, SCRIPT, SINGLE, UNCOUNTED, WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyramid.request import Request

#: The most jobs of a page: up to here, the script knows the forms of plurals.
MOST = 200

#: The names of languages, as HTML spells them. A request may name anything else.
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")

PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def words_for(request: Request) -> Words:
    """Return the words in the language of a request."""
    try:
        localizer = request.localizer
    except ValueError:
        # The locale name cannot be part of a path, such as "\0".
        localizer = make_localizer("en", [])
    return words_of(localizer)


class Words:
    """The words of the pages in one language.

    Parameters:
      localizer: Translates them.

    Attributes:
      lang: The language, as HTML names it.
      for_script: What the script and the elements of a page say, as JSON.
    """

    def __init__(self, localizer: Any) -> None:
        lang = localizer.locale_name.replace("_", "-")
        self.lang: str = lang if LANGUAGE.fullmatch(lang) else "en"
        self._pluralize = localizer.pluralize
        self._words, self._labels, self._single, self._uncounted, script = (
            {name: str(localizer.translate(text)) for name, text in texts.items()}
            for texts in (WORDS, LABELS, SINGLE, UNCOUNTED, SCRIPT)
        )
        self.for_script = encode(
            {
                "labels": {name: braced(text) for name, text in self._labels.items()},
                "words": {name: braced(text) for name, text in script.items()},
                "plurals": {name: self._forms(name) for name in PLURALS},
            }
        )

    def __call__(self, name: str, **values: object) -> str:
        """Return one of the WORDS."""
        return filled(self._words[name], values)

    def label(self, name: str, **values: object) -> str:
        """Return one of the LABELS of the element."""
        return filled(self._labels[name], values)

    def status(self, status: str) -> str:
        """Return the word for the status of a job."""
        return self._labels.get(status) or self._labels["working"]

    def plural(self, name: str, number: int) -> str:
        """Return one of the PLURALS for a number."""
        text: str = self._pluralize(*PLURALS[name], number, DOMAIN)
        return filled(text, {"number": self.number(number)})

    def about_all(self, act: str, number: int | None) -> str:
        """Return the question about all jobs that match.

        Parameters:
          number: Their number, or None if it is unknown.
        """
        return self._uncounted[act] if number is None else self.plural(act, number)

    def about_one(self, act: str) -> str:
        """Return the question about the job of a page."""
        return self._single[act]

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

    def _forms(self, name: str) -> dict[str, Any]:
        """Return the forms of a plural, and the position of that of each number."""
        texts = [
            braced(self._pluralize(*PLURALS[name], number, DOMAIN))
            for number in range(MOST + 1)
        ]
        forms = list(dict.fromkeys(texts))
        return {"forms": forms, "at": "".join(str(forms.index(t)) for t in texts)}


@functools.lru_cache(64)
def words_of(localizer: Any) -> Words:
    """Return the words of a localizer. Its application keeps one for each language."""
    return Words(localizer)


def filled(text: str, values: Mapping[str, object]) -> str:
    """Return a text with values in place of its placeholders."""
    if not values:
        return text
    return PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), text)


def braced(text: str) -> str:
    """Return a text with its placeholders as the element spells them."""
    return PLACEHOLDER.sub(r"{\1}", text)


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
