"""What the errors of a store mean, and patience with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from redis import exceptions as errors

from ..store import JobStore, is_passing, name_of
from .faults import CouldNot, say
from .texts import span

T = TypeVar("T")

#: Seconds between two tries.
INTERVAL = 0.5

#: What a server answers while it starts, or while another takes over. `is_passing`
#: knows the errors without a class of their own.
PASSING = (
    errors.ConnectionError,
    errors.TimeoutError,
    errors.ReadOnlyError,
    errors.ClusterDownError,
    errors.TryAgainError,
)

#: What more patience does not help against.
HOPELESS = (errors.AuthenticationError, errors.AuthorizationError)


class TimeUp(Exception):
    """A deadline has passed."""


class Patience:
    """Asks a store again while it does not answer.

    Parameters:
      store: The store.
      seconds: How long it may be away.
      deadline: When to stop asking in any case, in seconds of time.monotonic().
    """

    def __init__(
        self, store: JobStore, seconds: float, deadline: float | None = None
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._deadline = deadline

    def ask(self, call: Callable[[], T]) -> T:
        """Return what a call returns, as soon as the store answers. An outage is said
        once, and so is its end.

        Raises:
          CouldNot: The store was away for too long.
          TimeUp: The deadline has passed.
          redis.exceptions.RedisError: Asking again would not help.
        """
        began = None
        while True:
            try:
                result = call()
            except errors.RedisError as e:
                if not passes(e):
                    raise
                reason = explained(self._store, e)
                now = time.monotonic()
                if began is None:
                    began = now
                    say(f"{reason}. Asking again for {span(self._seconds)}.")
                if now - began >= self._seconds:
                    raise CouldNot(f"{reason}, for {span(now - began)}.") from None
                self.sleep()
            else:
                if began is not None:
                    say("The store answers again.")
                return result

    def sleep(self) -> None:
        """Wait a moment.

        Raises:
          TimeUp: The deadline has passed.
        """
        left = INTERVAL
        if self._deadline is not None:
            left = min(left, self._deadline - time.monotonic())
            if left <= 0:
                raise TimeUp
        time.sleep(left)


def passes(error: errors.RedisError) -> bool:
    """Return whether an error may pass by itself."""
    if isinstance(error, PASSING):
        return not isinstance(error, HOPELESS)
    return is_passing(error)


def answers_ping(store: JobStore) -> bool:
    """Return whether a server answers PING as Redis does, or at least with an error."""
    try:
        return bool(store.client.ping())
    except Exception as e:
        # Any other comes from redis-py, which did not expect the reply.
        return isinstance(e, errors.RedisError)


def explained(store: JobStore, error: errors.RedisError) -> str:
    """Return an error as a sentence without its full stop."""
    where = f"The store at {name_of(store.client)}"
    if isinstance(error, HOPELESS):
        return f"{where} rejects the user or the password, or wants one"
    # A Cluster's own client follows these, and gives up with another error.
    if isinstance(error, errors.AskError):
        return (
            f"{where} is a node of a Cluster: add +cluster to the scheme of its URL, "
            "as in redis+cluster://"
        )
    if isinstance(error, errors.ResponseError):
        return f"{where} refuses: {_text(error)}"
    if isinstance(error, errors.InvalidResponse):
        return f"{where} is not Redis: {_text(error)}"
    return f"{where} does not answer: {_text(error)}"


def _text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
