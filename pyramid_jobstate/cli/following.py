"""Which changes of a job are worth a line."""

from __future__ import annotations

import time
from typing import NamedTuple

from ..job import JobState
from .batches import bad_counts
from .states import state_text
from .texts import percent

#: Seconds between two lines that only differ in how much is done.
QUIET = 10.0


class Told(NamedTuple):
    """What was last said of a job.

    Attributes:
      main: What gets a line whenever it changes.
      text: The whole text.
      at: When it was said.
    """

    main: tuple[object, ...]
    text: str
    at: float


class Changes:
    """Tells what has changed: a status, an attempt, a message, a whole percent and the
    failures of a batch at once, other progress every ten seconds.
    """

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}

    def text(self, job: JobState) -> str | None:
        """Return the state of a job if it is worth a line, else None."""
        progress = job.progress
        share = None if progress is None else percent(progress)
        main = (job.status, job.attempt, share, job.message, bad_counts(job))
        text, now = state_text(job), time.monotonic()
        told = self._told.get(job.uuid)
        is_new = told is None or told.main != main
        if told is not None and not is_new:
            is_new = told.text != text and now - told.at >= QUIET
        if not is_new:
            return None
        self._told[job.uuid] = Told(main, text, now)
        return text
