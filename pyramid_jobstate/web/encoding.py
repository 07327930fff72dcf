"""Encodes answers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..job import JobState

try:
    import orjson
except ImportError:
    # It comes with the extra `speed`.
    fast: Any = None
else:
    fast = orjson.dumps

encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encoder_of(job_state: JobState | None) -> Callable[[Any], str]:
    """Return what encodes the state that a job's ``__json__`` returns.

    An application's own may contain NaN, which orjson would write as null.
    """
    is_ours = getattr(type(job_state), "__json__", None) is JobState.__json__
    return _encode_fast if is_ours and fast is not None else encode


def _encode_fast(state: object) -> str:
    try:
        text: str = fast(state).decode()
    except TypeError:
        # A number beyond 64 bits, or a lone surrogate.
        return encode(state)
    return text
