"""What a broker tells: which JobStateMiddleware it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .middleware import JobStateMiddleware

if TYPE_CHECKING:
    from dramatiq import Broker


def middleware_of(broker: Broker) -> JobStateMiddleware:
    """Return the JobStateMiddleware of a broker.

    Raises:
      TypeError: It has none.
    """
    for middleware in broker.middleware:
        if isinstance(middleware, JobStateMiddleware):
            return middleware
    raise TypeError(
        f"The broker {broker!r} has no JobStateMiddleware. Add one to it, before the "
        "actors are declared: broker.add_middleware(JobStateMiddleware())."
    )
