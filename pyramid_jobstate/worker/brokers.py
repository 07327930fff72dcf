"""Looking up the JobStateMiddleware of a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .middleware import JobStateMiddleware

if TYPE_CHECKING:
    from dramatiq import Broker


def middleware_of(broker: Broker) -> JobStateMiddleware:
    """Return the JobStateMiddleware of a broker.

    Raises:
      TypeError: The broker does not have one.
    """
    for middleware in broker.middleware:
        if isinstance(middleware, JobStateMiddleware):
            return middleware
    raise TypeError(
        f"The broker {broker!r} has no JobStateMiddleware. Add one before the actors "
        "are declared: broker.add_middleware(JobStateMiddleware())."
    )
