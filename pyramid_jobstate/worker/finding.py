"""Finds the middleware of a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .following import Follower

if TYPE_CHECKING:
    from dramatiq import Broker


def middleware_of(broker: Broker) -> Follower:
    """Return the JobStateMiddleware of a broker.

    Raises:
      TypeError: The broker does not have one.
    """
    for middleware in broker.middleware:
        if isinstance(middleware, Follower):
            return middleware
    raise TypeError(
        f"The broker {broker!r} has no JobStateMiddleware. Add one before the actors "
        "are declared: broker.add_middleware(JobStateMiddleware())."
    )
