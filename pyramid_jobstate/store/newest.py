"""The newest jobs of a store, by their uuids alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..job import UUID
from .connection import Command
from .lists import index_key
from .reader import MAX_SCORE, ask, scored

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
    words = (MAX_SCORE, 0, "WITHSCORES", "LIMIT", 0, count)
    commands = [Command(key, ("ZREVRANGEBYSCORE", key, *words)) for key in keys]
    scores: dict[str, int] = {}
    for reply in ask(store.client, commands):
        for uuid, score in scored(reply):
            # A job that has just ended may still be listed as unfinished.
            scores[uuid] = max(score, scores.get(uuid, 0))
    newest = sorted(scores, key=scores.__getitem__, reverse=True)
    return [uuid for uuid in newest if UUID.fullmatch(uuid)][:count]
