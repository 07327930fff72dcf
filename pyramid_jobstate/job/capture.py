"""Captures what jobs log with :mod:`logging`, without a handler: one on the root logger
would silence Python's handler of last resort, turn ``basicConfig()`` into nothing, and
go with a later ``dictConfig()``.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from .journal import LOGGER_LENGTH, Journal, Source
from .once import Once
from .state import JobState, current_state, log_level_of, run_of

log = logging.getLogger("pyramid_jobstate")

#: The kinds that a warning was logged for.
_warned = Once()


class RecordFactory:
    """Makes the log records of this process, and has the job that logs one keep it.

    Which job that is, a contextvar says: its thread, its tasks, and what runs in a copy
    of their context log for it, but no other thread.

    Parameters:
      make: The application's own factory.
    """

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        job_state = current_state.get()
        if job_state is not None and self is _active:
            run = run_of(job_state)
            journal = run.journal
            # After a fork, the run of a child is closed.
            if journal is not None and not run.is_closed and _keep(journal, record):
                run.dirty = True
        return record


#: The newest of them. Those before, which the application may have wrapped, keep
#: nothing: each record counts once.
_active: RecordFactory | None = None


def _keep(journal: Journal, record: logging.LogRecord) -> bool:
    """Add a record to a journal, and return whether it belongs there. Whatever its
    formatting raises is counted: the handlers of the application say more.
    """
    # logging.makeLogRecord() makes records without a level.
    if not (record.levelno or 0) >= journal.level or _is_own(record.name):
        return False
    try:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            (*_, last) = traceback.format_exception_only(record.exc_info[1])
            text = f"{text}\n{last.rstrip()}"
        name = record.name[:LOGGER_LENGTH]
        source = Source(record.levelno, record.levelname, name)
        journal.add(record.created, source, text)
    except Exception:
        journal.fail()
    return True


def _is_own(name: str) -> bool:
    return name == log.name or name.startswith(f"{log.name}.")


def new_journal(cls: type[JobState], attempt: int) -> Journal | None:
    """Return the journal of a run that begins, or None if its class captures nothing.

    Parameters:
      cls: The class of its job.
      attempt: The number of the attempt.
    """
    global _active
    level = log_level_of(cls)
    if level is None:
        return None
    factory = logging.getLogRecordFactory()
    if factory is not _active:
        # The application has set another since.
        if not isinstance(factory, RecordFactory):
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
