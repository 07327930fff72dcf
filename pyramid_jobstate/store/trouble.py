"""Keys of ours into which another program has written: they are skipped."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from .commands import Keyed

log = logging.getLogger("pyramid_jobstate")

#: What a server says of such keys: the type is wrong, a value is not a number, or a
#: script cannot use what it has read. Only then does the script's name come before the
#: reason: other errors of scripts, such as that of a full server, end with it.
_FOREIGN = re.compile(
    r"WRONGTYPE|value is not an? |would overflow|must be strings or integers"
    r"|(?<!@)user_script:\d+: "
)

#: The most keys that are logged, once each.
MOST = 100

_noted: set[str] = set()


def is_foreign(error: Exception) -> bool:
    """Return whether a server answers so because of what another program wrote."""
    return isinstance(error, ResponseError) and bool(_FOREIGN.search(str(error)))


def skip(key: str, error: Exception) -> None:
    """Log once that a key is skipped into which another program has written.

    Raises:
      redis.exceptions.RedisError: The error has another cause.
    """
    if not is_foreign(error):
        raise error
    if key not in _noted and len(_noted) < MOST:
        _noted.add(key)
        log.warning(
            "Another program has written into the key %s of the job state store, or "
            "into one beside it. What cannot be read is skipped: %s",
            key,
            error,
        )


def skipped(commands: Sequence[Keyed], replies: Sequence[Any]) -> list[Any]:
    """Return the replies to commands, with None in place of those that :func:`skip`
    skips. Other errors stay.
    """
    found = [*replies]
    for i, reply in enumerate(replies):
        if isinstance(reply, Exception) and is_foreign(reply):
            skip(commands[i].key, reply)
            found[i] = None
    return found


def checked(commands: Sequence[Keyed], replies: Sequence[Any]) -> list[Any]:
    """Return what :func:`skipped` does.

    Raises:
      redis.exceptions.RedisError: One of the errors that stay.
    """
    found = skipped(commands, replies)
    for reply in found:
        if isinstance(reply, Exception):
            raise reply
    return found
