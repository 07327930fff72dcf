"""Logs what an application's code raises for a job, once per kind."""

from __future__ import annotations

import logging

from .state import JobState

log = logging.getLogger("pyramid_jobstate")

#: The kinds that were logged. All unknown kinds count as one, so this set cannot grow
#: beyond the number of JobState classes.
_troubled: set[str] = set()


def note_trouble(
    cls: type[JobState], uuid: str, consequence: str = "which is left out"
) -> None:
    """Log the current exception, unless one was logged for this kind before.

    Parameters:
      consequence: What follows from it for the job, as the end of a sentence.
    """
    if cls.kind not in _troubled:
        _troubled.add(cls.kind)
        log.exception(
            "The application's code for %s.%s raised an exception for the job %s, "
            "%s. Further exceptions for jobs of kind %r are not logged.",
            cls.__module__,
            cls.__qualname__,
            uuid,
            consequence,
            cls.kind,
        )
