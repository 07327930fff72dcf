"""What people call the statuses of jobs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType

from translationstring import TranslationStringFactory

from .record import STATUSES
from .texts import DOMAIN

_ = TranslationStringFactory(DOMAIN)

#: The words for each status: first that of the pages, then everyday ones.
STATUS_WORDS = MappingProxyType(
    {
        "queued": (_("Waiting"), "delayed", "enqueued", "pending", "scheduled"),
        "working": (_("Running"), "active", "busy", "in progress", "started"),
        "retrying": (_("Trying again"), "retry"),
        "stalled": (_("No sign of life"), "hanging", "silent", "stuck"),
        "cancelling": (_("Cancelling…"), "canceling", "stopping"),
        "success": (_("Done"), "completed", "ended", "finished", "succeeded"),
        "error": (_("Failed"), "ended", "failure", "finished"),
        "cancelled": (_("Cancelled"), "canceled", "ended", "finished", "stopped"),
    }
)


def did_you_mean(word: object, known: Sequence[str] = STATUSES) -> str:
    """Return what to add to an error: " Did you mean …?" with the statuses that a wrong
    word may mean, or "" if it means none.

    Parameters:
      word: The word, in any spelling.
      known: The statuses that would be right.
    """
    plain = _plain(str(word))
    meant = [
        repr(status)
        for status in known
        if plain in map(_plain, (status, *STATUS_WORDS[status]))
    ]
    if not meant:
        return ""
    names = " or ".join(filter(None, [", ".join(meant[:-1]), meant[-1]]))
    return f" Did you mean {names}?"


def _plain(text: str) -> str:
    """Return a text in small letters, with single spaces and without punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
