"""Answers that are kept for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class Fresh(Generic[Key, Answer]):
    """Answers by their questions, each kept for a while. Threads may share them.

    Parameters:
      seconds: How long an answer is kept.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: Before then answers are too old.
        self._since = 0.0
        #: The answers, each with the time of its question.
        self._kept: dict[Key, tuple[float, Answer]] = {}

    def get(self, key: Key, ask: Callable[[], Answer], *, anew: bool = False) -> Answer:
        """Return the answer that is kept, or else what `ask` returns.

        Parameters:
          anew: Ask in any case.
        """
        now = time.monotonic()
        since = max(self._since, now - self._seconds)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > since and not anew:
            return kept[1]
        answer = ask()
        fresh = {k: v for k, v in self._kept.items() if v[0] > since}
        # Other threads may iterate over the old dictionary: it never changes.
        self._kept = {**fresh, key: (now, answer)}
        return answer

    def forget(self) -> None:
        """Ask anew from now on: something has changed that this process knows of."""
        self._since = time.monotonic()
