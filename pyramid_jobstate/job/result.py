"""The link to what a job has made."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from ..errors import StoreUnavailable

log = logging.getLogger("pyramid_jobstate")

#: An absolute http or https URL, which is safe in a link.
_HTTP = re.compile(r"https?://[^\s/?#\x00-\x1f\x7f][^\s\x00-\x1f\x7f]*", re.IGNORECASE)

#: The kinds whose results were logged as faults.
_faulty: set[str] = set()


def result_of(cls: Any, uuid: str, make: Callable[[], object]) -> dict[str, str] | None:
    """Return the JSON of the result of a job that succeeded, or None without one.
    Faults in the application's code are logged once per kind; the state is still
    returned.

    Parameters:
      cls: The class of the job.
      uuid: The job.
      make: Calls its ``result_url()``.
    """
    try:
        url = make()
    except StoreUnavailable:
        raise
    except Exception:
        if _is_new(cls):
            log.exception("%s raised an exception.%s", *_place(cls, uuid))
        return None
    if url is None:
        return None
    if is_link(url):
        return {"url": str(url)}
    if _is_new(cls):
        place, consequence = _place(cls, uuid)
        line = "%s returned %r, not an http or https URL, such as request.route_url(…)."
        log.error(line + consequence, place, url)
    return None


def is_link(url: object) -> bool:
    """Return whether something is an http or https URL."""
    return isinstance(url, str) and _HTTP.fullmatch(url) is not None


def _is_new(cls: Any) -> bool:
    """Return whether this is the first fault of a kind."""
    is_new = cls.kind not in _faulty
    _faulty.add(cls.kind)
    return is_new


def _place(cls: Any, uuid: str) -> tuple[str, str]:
    """Return the method at fault, and the consequence."""
    return (
        f"{cls.__module__}.{cls.__qualname__}.result_url() for the job {uuid}",
        f" The job has no result. Further faults for jobs of kind {cls.kind!r} are not "
        "logged.",
    )
