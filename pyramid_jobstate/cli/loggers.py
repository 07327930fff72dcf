"""What is logged while a command for operators runs."""

from __future__ import annotations

import logging
import sys

from .faults import say


class OneLine(logging.Handler):
    """Writes errors to stderr, each as one line without a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text = f"{text} {type(error).__name__}: {error}"
        say(text)


def log_to_stderr() -> None:
    """Write errors to stderr as single lines, instead of what the ini's handlers write
    to the terminal. Its other handlers stay.
    """
    root = logging.getLogger()
    names = list(root.manager.loggerDict)
    for logger in [root, *map(logging.getLogger, names)]:
        for handler in list(logger.handlers):
            if _is_of_terminal(handler):
                logger.removeHandler(handler)
    root.addHandler(OneLine(logging.ERROR))


def _is_of_terminal(handler: logging.Handler) -> bool:
    if isinstance(handler, OneLine):
        return True
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    if isinstance(handler, logging.FileHandler):
        return False
    return isinstance(handler, logging.StreamHandler) and handler.stream in streams
