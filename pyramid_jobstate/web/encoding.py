"""Encodes answers as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from ..job import Batch, JobState

try:
    import orjson
except ImportError:
    # It comes with the extra `speed`.
    fast: Any = None
else:
    # A title that is a time, for instance, is refused as by the standard library.
    fast = functools.partial(
        orjson.dumps,
        option=orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME,
    )

encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

#: What ``__json__`` reads, and does not check.
READ = (
    *("__json__", "progress_metrics", "progress", "message", "log", "attempt"),
    *("status", "job_params", "_own_json"),
)


def encoder_of(job_state: JobState | None) -> Callable[[Any], str]:
    """Return what encodes the state that a job's ``__json__`` returns."""
    cls: Any = type(job_state)
    is_fast = fast is not None and job_state is not None and _is_ours(cls)
    return _encode_fast if is_fast else encode


@functools.lru_cache(1024)
def _is_ours(cls: Any) -> bool:
    """Return whether all values come from us. An application's may hold what orjson
    writes and the standard library refuses, such as NaN.
    """
    ours = JobState, Batch
    return any(
        all(getattr(cls, name) is getattr(base, name) for name in READ) for base in ours
    )


def _encode_fast(state: object) -> str:
    try:
        text: str = fast(state).decode()
    except TypeError:
        # A number beyond 64 bits, or a lone surrogate.
        return encode(state)
    return text
