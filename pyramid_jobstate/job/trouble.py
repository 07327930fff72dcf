"""One job's trouble: what an application's code raises for it, logged once a kind."""

from __future__ import annotations

import logging

from .state import JobState

log = logging.getLogger("pyramid_jobstate")

#: The kinds that were logged, at most as many as this process has classes: all kinds
#: that it does not know are one.
_troubled: set[str] = set()


def note_trouble(cls: type[JobState], uuid: str) -> None:
    """Log the exception that is being handled, unless it was for this kind before."""
    if cls.kind not in _troubled:
        _troubled.add(cls.kind)
        log.exception(
            "The application raised for a job of %s.%s, %s, which is left out. Further "
            "jobs of the kind %r that raise are left out without a word.",
            cls.__module__,
            cls.__qualname__,
            uuid,
            cls.kind,
        )
