"""Saying a thing once."""

from __future__ import annotations

import math
from collections.abc import Hashable


class Once:
    """Remembers what was said, so that it is said once. A race may say it twice.

    Parameters:
      most: How many things are said. Those that come from outside could fill the log.
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._said: set[Hashable] = set()

    def is_new(self, what: Hashable) -> bool:
        """Return whether to say a thing: not if this was asked before."""
        if what in self._said or len(self._said) >= self._most:
            return False
        self._said.add(what)
        return True
