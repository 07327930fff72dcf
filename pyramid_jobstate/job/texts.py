"""Texts that viewers read."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from translationstring import TranslationString, TranslationStringFactory

from .record import (
    CANCELLED,
    MEMBERS_CANCELLED,
    MEMBERS_FAILED,
    NOT_REACHED,
    NOT_SENT,
    REJECTED,
    UNKNOWN_ACTOR,
)

#: The domain of our own texts. An application may ship a catalog for it.
DOMAIN = "pyramid_jobstate"

#: A place for a value in a text.
PLACE = re.compile(r"\$\{(\w+)\}")


_ = TranslationStringFactory(DOMAIN)

#: What viewers read by default of a job that an exception or a SkipMessage ended.
FAILED: str = _("The job failed.")
SKIPPED: str = _("The job was skipped.")

#: The reasons that do not come from an exception: see :class:`.JobError`.
REASONS = (
    CANCELLED.message,
    NOT_SENT.message,
    NOT_REACHED.message,
    MEMBERS_FAILED.message,
    MEMBERS_CANCELLED.message,
    REJECTED.message,
    UNKNOWN_ACTOR,
)


@functools.lru_cache(256)
def humanized(name: str) -> str:
    """Return the name of a kind or actor in words, such as "Run marathon"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+|[^\W_]+", name)
    words = [w if w.isupper() and len(w) > 1 else w.lower() for w in words]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def sentence_of(sentence: str, texts: Iterable[str]) -> TranslationString | None:
    """Return a sentence as a translation string if it is one of these texts,
    whatever values its placeholders hold, else None. The store and exceptions keep only
    the finished text.

    Parameters:
      texts: The texts. If several fit, the first is returned.
    """
    for text in texts:
        match = _pattern_of(text).fullmatch(sentence)
        if match is not None:
            return _(text, mapping=match.groupdict())
    return None


def translated(text: str, states: Any) -> str:
    """Return a text, translated if it is a translation string.

    Parameters:
      states: The container of jobs, whose localizer is that of its request.
    """
    # The test that Pyramid's Localizer uses for a translation string.
    if not hasattr(text, "interpolate"):
        return text
    result: str = states.localizer.translate(text)
    return result


def filled(text: str, values: Mapping[str, object]) -> str:
    """Return a text with values in its places."""
    if not values:
        return text
    return PLACE.sub(lambda match: str(values.get(match[1], match[0])), text)


@functools.cache
def _pattern_of(text: str) -> re.Pattern[str]:
    """Return what matches a text with any values in its places."""
    pattern = ""
    for n, part in enumerate(PLACE.split(text)):
        # Between two parts of the text is the name of a place.
        pattern += f"(?P<{part}>.*)" if n % 2 else re.escape(part)
    return re.compile(pattern, re.DOTALL)
