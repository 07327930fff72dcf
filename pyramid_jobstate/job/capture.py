"""Captures what jobs log with :mod:`logging`, without a handler: one on the root logger
would silence Python's handler of last resort, turn ``basicConfig()`` into nothing, and
go with a later ``dictConfig()``.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from .journal import NAME_LENGTH, Journal
from .once import Once
from .run import Run
from .state import JobState, current_state, run_of

log = logging.getLogger("pyramid_jobstate")

#: The highest level that is kept as it is: JSON has no number of 5,000 digits.
MAX_LEVEL = 10**9

#: The kinds that a warning was logged for.
_warned = Once()


class RecordFactory:
    """Makes the log records of this process, and has the job that logs one keep it.

    A contextvar says which job that is: its thread, its tasks, and what runs in a copy
    of their context log for it, but no other thread.

    Parameters:
      make: The application's own factory.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        global _active
        if self is not _active and self is logging.getLogRecordFactory():
            # The application has put it back.
            _active = self
        record = self._make(*args, **kwargs)
        job_state = current_state.get()
        if job_state is not None and self is _active:
            run = run_of(job_state)
            run = run.outer or run
            if run.journal is not None:
                _keep(record, run, run.journal)
        return record


#: The newest of them, or the one that the application has put back. The others, which
#: it may have wrapped, keep nothing: each record counts once.
_active: RecordFactory | None = None


def _keep(record: logging.LogRecord, run: Run, journal: Journal) -> None:
    """Add a record to the journal of a run if its level is high enough. Whatever its
    formatting raises is counted: the handlers of the application say more.
    """
    try:
        # logging.makeLogRecord() makes records without a level.
        if (record.levelno or 0) < journal.level:
            return
        name = record.name
        if name.partition(".")[0] == log.name:
            return
        # A class of records of the application may return anything.
        text = str(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            said = "".join(traceback.format_exception_only(record.exc_info[1]))
            text = f"{text}\n{said.rstrip()}"
        level = min(int(record.levelno), MAX_LEVEL)
        journal.add(
            text, level, str(record.levelname)[:NAME_LENGTH], name[:NAME_LENGTH]
        )
    except Exception:
        journal.fail()
    run.dirty = True


def new_journal(cls: type[JobState], level: int, attempt: int) -> Journal:
    """Return the journal of a run that begins, and capture from now on.

    Parameters:
      cls: The class of its job.
      level: The least level that the class captures.
      attempt: The number of the attempt.
    """
    global _active
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, RecordFactory):
        # The application has set it since.
        factory = RecordFactory(factory)
        logging.setLogRecordFactory(factory)
        _active = factory
    least = logging.getLogger().level
    if level < least and _warned.is_new(cls.kind):
        log.warning(
            "%s.log_level is %s, but the level of the root logger is %s: lower records "
            "are captured only of loggers that have a lower level of their own.",
            cls.__qualname__,
            logging.getLevelName(level),
            logging.getLevelName(least),
        )
    return Journal(level, attempt)
