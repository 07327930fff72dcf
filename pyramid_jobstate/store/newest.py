"""The newest jobs of a store, by their uuids alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..job import UUID
from .commands import Command
from .connection import execute, text
from .index import index_key

if TYPE_CHECKING:
    from .jobstore import JobStore


def newest_uuids(store: JobStore, count: int) -> list[str]:
    """Return the uuids of the jobs that were queued, are due or have ended last, the
    newest first, in one round trip. The records of some may have expired.

    Parameters:
      store: The store.
      count: How many at most.

    Raises:
      redis.exceptions.RedisError: The store does not answer.
    """
    keys = [index_key(store.namespace, "all", ended=ended) for ended in (False, True)]
    words = (0, count - 1, "WITHSCORES")
    commands = [Command(key, ("ZREVRANGE", key, *words)) for key in keys]
    scores: dict[str, float] = {}
    for reply in execute(store.client, commands):
        if isinstance(reply, Exception):
            raise reply
        for uuid, score in _pairs(reply):
            # A job that has just ended may still be listed as unfinished.
            scores[uuid] = max(score, scores.get(uuid, 0.0))
    newest = sorted(scores, key=scores.__getitem__, reverse=True)
    return [uuid for uuid in newest if UUID.fullmatch(uuid)][:count]


def _pairs(rows: Any) -> Iterator[tuple[str, float]]:
    """Yield the members and scores in a reply of either protocol."""
    if rows and not isinstance(rows[0], (list, tuple)):
        # RESP2 returns a flat list instead of pairs.
        rows = zip(rows[::2], rows[1::2], strict=True)
    for member, score in rows:
        yield text(member), float(score)
