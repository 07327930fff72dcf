"""Texts that viewers read."""

from __future__ import annotations

import functools
import re
from typing import Any


@functools.lru_cache(256)
def humanized(name: str) -> str:
    """Return the name of a kind or actor in words, such as "Run marathon"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+|[^\W_]+", name)
    words = [w if w.isupper() and len(w) > 1 else w.lower() for w in words]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def translated(text: str, request: Any) -> str:
    """Return a text, translated for the request if it is a translation string."""
    # The test that Pyramid's Localizer uses for a translation string.
    if not hasattr(text, "interpolate"):
        return text
    try:
        result: str = request.localizer.translate(text)
    except ValueError:
        # The request's locale name cannot be part of a path, such as "\0".
        result = text.interpolate()
    return result
