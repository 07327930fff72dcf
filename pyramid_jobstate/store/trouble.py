"""Records of batches that another program has damaged."""

from __future__ import annotations

import logging

from redis.exceptions import ResponseError

log = logging.getLogger("pyramid_jobstate")

#: The most batches that are logged as damaged, once each.
MOST = 100

_noted: set[str] = set()


def is_lasting(error: Exception) -> bool:
    """Return whether a script will always fail: it has found what it did not write."""
    # Errors that pass, such as of a full server, have classes of their own.
    return type(error) is ResponseError and "user_script" in str(error)


def note_broken(batch: str, error: Exception) -> None:
    """Log that a batch cannot be told of its members, once."""
    if batch not in _noted and len(_noted) < MOST:
        _noted.add(batch)
        log.warning(
            "The record of the batch %s is damaged: its counts are out of date. Its "
            "jobs go on: %s",
            batch,
            error,
        )
