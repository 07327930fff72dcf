"""Texts that a viewer reads."""

from __future__ import annotations

import functools
import re
from typing import Any


@functools.lru_cache(256)
def humanized(name: str) -> str:
    """Return the name of a kind or an actor in words: "Run marathon"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+|[^\W_]+", name)
    words = [w if w.isupper() and len(w) > 1 else w.lower() for w in words]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def translated(text: str, request: Any) -> str:
    """Return a translation string in the language of a request."""
    # Pyramid's Localizer tells one from a string in the same way.
    if not hasattr(text, "interpolate"):
        return text
    try:
        result: str = request.localizer.translate(text)
    except ValueError:
        # The request names a language that no folder can be called, such as "\0".
        result = text.interpolate()
    return result
