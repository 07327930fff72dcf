"""Actors with string annotations, for the tests of what these mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq import Broker

from tests.jobs import RunMarathon

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tests.jobs import RunMarathon as Swim


def plain(miles: int, *, job_state: RunMarathon) -> None: ...


def optional(miles: int, *, job_state: RunMarathon | None = None) -> None: ...


def other_is_unresolvable(who: Hashable, *, job_state: RunMarathon) -> Swim | None: ...


async def coroutine(*, job_state: RunMarathon) -> None: ...


def unresolvable(*, job_state: Swim) -> None: ...


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def declare_marathon(place: Broker) -> dramatiq.Actor[..., Any]:
    class Marathon(dramatiq.GenericActor):
        class Meta:
            broker = place

        def perform(self, miles: int, *, job_state: RunMarathon) -> None:
            job_state.set_progress_metric("miles_run", miles)

    return Marathon.__actor__
