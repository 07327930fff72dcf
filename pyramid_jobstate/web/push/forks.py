"""What a forked process abandons: its parent's threads, connections and counts."""

from __future__ import annotations

import functools
import os
import weakref
from typing import Protocol


class Abandoned(Protocol):
    """What belongs to one process."""

    def abandon(self) -> None:
        """Start anew. Called in a forked child."""


@functools.cache
def watch_forks() -> weakref.WeakSet[Abandoned]:
    """Have a forked child abandon what is in a set, and return the set."""
    known: weakref.WeakSet[Abandoned] = weakref.WeakSet()

    def abandon() -> None:
        for each in known:
            each.abandon()

    os.register_at_fork(after_in_child=abandon)
    return known
