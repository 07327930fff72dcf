"""Encodes answers as JSON."""

from __future__ import annotations

import functools
import inspect
import json
from typing import Any

from ..job import Batch, JobState

try:
    import orjson
except ImportError:
    # It comes with the extra `speed`.
    fast: Any = None
else:
    fast = orjson.dumps

encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

#: What ``__json__`` reads and does not check.
READ = frozenset(
    {
        *("__json__", "progress_metrics", "progress", "message", "log", "attempt"),
        *("status", "job_params", "_own_json"),
    }
)


def encode_state(job_state: JobState, state: Any) -> str:
    """Return the state that a job's ``__json__`` has returned as JSON.

    An application's own values may be what orjson writes and the standard library
    refuses, such as NaN.
    """
    cls: Any = type(job_state)
    if fast is None or not _is_ours(cls) or not READ.isdisjoint(vars(job_state)):
        return encode(state)
    title, error = state["job"]["title"], state["job"]["error"]
    if not isinstance(title, str) or (error and not isinstance(error["message"], str)):
        return encode(state)
    try:
        text: str = fast(state).decode()
    except TypeError:
        # A number beyond 64 bits, or a lone surrogate.
        return encode(state)
    return text


@functools.lru_cache(1024)
def _is_ours(cls: Any) -> bool:
    """Return whether a class of jobs overrides nothing that ``__json__`` reads."""
    find = inspect.getattr_static
    return any(
        all(find(cls, name) is find(base, name) for name in READ)
        for base in (JobState, Batch)
    )
